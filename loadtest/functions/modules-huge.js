'use strict';
// More than a hundred megabytes on disk, of which little is read.
const { google } = require('googleapis');
const id = process.env.LOADTEST_ID || '';
module.exports = (context, req, res) => {
  res.setHeader('x-loadtest-id', id);
  res.end(`${typeof google.drive}\n`);
};
