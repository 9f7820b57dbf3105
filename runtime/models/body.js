'use strict';
// All of a request's body: over the link it is there already, over HTTP it comes in pieces.

const BODY_MAX = 100 * 1024 * 1024;
const NOTHING = Buffer.alloc(0);

function readBody(req, callback) {
  if (req.body !== undefined) return callback(req.body);
  if (!req.headers['content-length'] && !req.headers['transfer-encoding']) {
    req.resume();
    return callback(NOTHING);
  }
  const chunks = [];
  let length = 0;
  req.on('data', (chunk) => {
    length += chunk.length;
    if (length > BODY_MAX) req.destroy();
    else chunks.push(chunk);
  });
  req.on('end', () => callback(Buffer.concat(chunks)));
}

module.exports = { readBody };
