'use strict';
// Keeps one core busy for ?ms= milliseconds (10) and answers.
const id = process.env.LOADTEST_ID || '';
module.exports = (context, req, res) => {
  const until = performance.now() + (Number(context.query.ms) || 10);
  let x = 1;
  while (performance.now() < until) for (let i = 0; i < 1000; i++) x = (x * 48271) % 2147483647;
  res.setHeader('x-loadtest-id', id);
  res.end(`${x}\n`);
};
