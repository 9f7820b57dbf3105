'use strict';
// A large client library of many files.
const { S3Client } = require('@aws-sdk/client-s3');
const id = process.env.LOADTEST_ID || '';
module.exports = (context, req, res) => {
  res.setHeader('x-loadtest-id', id);
  res.end(`${typeof S3Client}\n`);
};
