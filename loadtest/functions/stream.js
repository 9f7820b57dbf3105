'use strict';
// Sends ?chunks= (10) chunks of ?bytes= (1024) bytes, ?ms= milliseconds (10) apart.
const id = process.env.LOADTEST_ID || '';
module.exports = (context, req, res) => {
  const chunk = 'x'.repeat(Number(context.query.bytes) || 1024);
  let left = Number(context.query.chunks) || 10;
  res.setHeader('x-loadtest-id', id);
  const timer = setInterval(() => {
    left -= 1;
    if (left > 0) res.write(chunk);
    else {
      clearInterval(timer);
      res.end(chunk);
    }
  }, Number(context.query.ms) || 10);
  res.on('close', () => clearInterval(timer));
};
