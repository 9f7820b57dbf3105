'use strict';
// Before a container is ready it answers dummy requests in every model through its own socket, so that the first real one finds
// Node's modules loaded and the code paths known.

const fs = require('node:fs');
const net = require('node:net');
const path = require('node:path');

const SOURCES = {
  webtask: ['index.js', 'module.exports = (context, cb) => cb(null, { q: context.query, d: context.data });'],
  fetch: ['index.mjs', 'export default async (request) => new Response("ok " + request.url.length + (await request.text()).length);'],
  lambda: ['index.js', 'exports.handler = async (event) => ({ statusCode: 200, body: event.rawPath });'],
  node: ['index.js', 'module.exports = (req, res) => { res.setHeader("x", "y"); res.end(req.url); };'],
};
// Without a body and with one; a third would make V8 double the space for young objects in every container that waits.
const ROUNDS = 2;

// Written by hand, since Node's HTTP client would stay in every container's memory.
function exchange(socket, key, body) {
  const head = [
    `${body ? 'POST' : 'GET'} /?a=b HTTP/1.1`,
    'host: warm',
    `hearth-call: ${key} warm 1000 1 127.0.0.1`,
    'content-type: application/json',
    ...(body ? [`content-length: ${body.length}`] : []),
  ];
  if (socket.destroyed) return Promise.resolve();
  return new Promise((resolve) => {
    for (const event of ['data', 'error', 'close']) socket.once(event, resolve);
    socket.write(`${head.join('\r\n')}\r\n\r\n${body}`);
  });
}

async function warmUp({ functions, httpSocket }) {
  const root = fs.mkdtempSync('/tmp/warm-');
  const socket = net.connect(httpSocket);
  // gVisor lets a container make sockets in the host's directory and not connect to them: then nothing is rehearsed.
  socket.on('error', () => {});
  try {
    for (const [model, [main, source]] of Object.entries(SOURCES)) {
      const dir = path.join(root, model);
      fs.mkdirSync(dir);
      fs.writeFileSync(path.join(dir, main), source);
      await functions.load({ function: `.${model}`, version: 0, dir, main, model, env: {}, secrets: {} });
      for (let i = 0; i < ROUNDS; i++) await exchange(socket, `.${model}@0`, i > 0 ? '{}' : '');
      functions.unload(`.${model}`, 0);
    }
  } finally {
    socket.destroy();
    fs.rmSync(root, { recursive: true, force: true });
  }
}

module.exports = { warmUp };
