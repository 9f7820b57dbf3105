'use strict';
// Waits ?ms= milliseconds (50), as for a database, and answers.
const id = process.env.LOADTEST_ID || '';
module.exports = (context, req, res) => {
  setTimeout(() => {
    res.setHeader('x-loadtest-id', id);
    res.end('slept\n');
  }, Number(context.query.ms) || 50);
};
