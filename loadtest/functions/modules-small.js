'use strict';
// One module of a few kilobytes.
const ms = require('ms');
const id = process.env.LOADTEST_ID || '';
module.exports = (context, req, res) => {
  res.setHeader('x-loadtest-id', id);
  res.end(`${ms(60000)}\n`);
};
