'use strict';
// Answers at once.
const id = process.env.LOADTEST_ID || '';
module.exports = (context, req, res) => {
  res.setHeader('x-loadtest-id', id);
  res.end('hello\n');
};
