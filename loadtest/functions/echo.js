'use strict';
// Sends the body back while it arrives.
const id = process.env.LOADTEST_ID || '';
module.exports = (context, req, res) => {
  res.setHeader('x-loadtest-id', id);
  res.setHeader('content-type', req.headers['content-type'] || 'application/octet-stream');
  req.pipe(res);
};
