'use strict';
// Called at start only, see warm.js.
exports.handler = async (event) => ({ statusCode: 200, headers: { 'x-warm': '1' }, body: JSON.stringify({ path: event.rawPath }) });
