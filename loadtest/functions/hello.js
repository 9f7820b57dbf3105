'use strict';
// Answers at once.
const id = process.env.LOADTEST_ID || '';
const version = process.env.LOADTEST_VERSION || '1';
module.exports = (context, req, res) => {
  res.setHeader('x-loadtest-id', id);
  res.setHeader('x-loadtest-version', version);
  res.end('hello\n');
};
