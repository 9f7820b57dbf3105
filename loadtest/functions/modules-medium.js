'use strict';
// Two modules that most functions know, with about seventy packages below them.
const express = require('express');
const _ = require('lodash');
const id = process.env.LOADTEST_ID || '';
const app = express();
module.exports = (context, req, res) => {
  res.setHeader('x-loadtest-id', id);
  res.end(`${_.camelCase('hello world')} ${typeof app}\n`);
};
