'use strict';
// Called at start only, see warm.js.
module.exports = (context, callback) => {
  console.log('warm');
  callback(null, { query: context.query, body: context.body, env: process.env.NONE });
};
