'use strict';
// Fails in one of the ways in which functions fail: throws, rejects, ends the process, or never answers.
const ways = ['throw', 'reject', 'exit', 'hang'];
module.exports = (context, req, res) => {
  switch (context.query.how || ways[Math.floor(Math.random() * ways.length)]) {
    case 'throw':
      throw new Error('thrown on purpose');
    case 'reject':
      return Promise.reject(new Error('rejected on purpose'));
    case 'exit':
      return process.exit(1);
    default:
      return undefined;
  }
};
