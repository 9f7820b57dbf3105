'use strict';
// Before a container is ready it loads those of Node's modules that most npm modules want, and answers dummy requests in every model
// through its own sockets, so that the first real one finds modules loaded and the code paths known.

const fs = require('node:fs');
const net = require('node:net');
const path = require('node:path');
const v8 = require('node:v8');

// A quarter of the time that express takes to load is theirs; https, which takes longer still, would make every container a megabyte larger.
const BUILTINS = ['crypto', 'fs/promises', 'os', 'tty', 'zlib'];

const SOURCES = {
  webtask: ['index.js', 'module.exports = (context, cb) => cb(null, { q: context.query, d: context.data });'],
  fetch: ['index.mjs', 'export default async (request) => new Response("ok " + request.url.length + (await request.text()).length);'],
  lambda: ['index.js', 'exports.handler = async (event) => ({ statusCode: 200, body: event.rawPath });'],
  node: ['index.js', 'module.exports = (req, res) => { res.setHeader("x", "y"); res.end(req.url); };'],
};
// Without a body and with one.
const ROUNDS = 2;

const HEADERS = ['host', 'warm', 'content-type', 'application/json'];

// Both written by hand, since Node's HTTP client would stay in every container's memory.
function overHttp(key, body) {
  const head = [`${body ? 'POST' : 'GET'} /?a=b HTTP/1.1`, `hearth-call: ${key} warm 1000 1 127.0.0.1`];
  for (let i = 0; i < HEADERS.length; i += 2) head.push(`${HEADERS[i]}: ${HEADERS[i + 1]}`);
  if (body) head.push(`content-length: ${body.length}`);
  return `${head.join('\r\n')}\r\n\r\n${body}`;
}

let exchanges = 0;
function overLink(key, body) {
  const head = [key, 'warm', '1000', '1', '127.0.0.1', body ? 'POST' : 'GET', '/?a=b', ...HEADERS];
  if (body) head.push('content-length', String(body.length));
  const text = head.join('\n');
  const frame = Buffer.alloc(13);
  frame.writeUInt32LE(4 + text.length + body.length, 0);
  frame.writeUInt32LE(exchanges++, 4);
  frame[8] = 1;
  frame.writeUInt32LE(text.length, 9);
  return Buffer.concat([frame, Buffer.from(text + body)]);
}

function exchange(socket, message) {
  if (socket.destroyed) return Promise.resolve();
  return new Promise((resolve) => {
    for (const event of ['data', 'error', 'close']) socket.once(event, resolve);
    socket.write(message);
  });
}

const YOUNG_BYTES = 8 * 1024 * 1024;
const ARRAY_BYTES = 8 * 1024;

// Whether V8 may let the space for young objects grow as far as this runtime wants it.
const MAY_GROW = process.execArgv.some((option) => option.startsWith('--max-semi-space-size='));

// Lets the space for young objects grow at once to what it may: V8 would double it from one megabyte while modules load, collecting
// garbage each time, a tenth of the time that express takes. It grows when more than it holds has survived, by a factor that nothing may
// differ in later: compiled code is rejected under another. Then makes so many more bytes of garbage. What this costs goes back when the
// container is trimmed, and the room with it: what is loaded after that is loaded as V8 would have it.
function growYoung(garbage = 0) {
  if (!MAY_GROW) return;
  v8.setFlagsFromString('--semi-space-growth-factor=8');
  try {
    const make = () => new Array(ARRAY_BYTES / 8);
    const survivors = [];
    for (let i = 0; i < 300; i++) survivors[i % 150] = make();
    for (let made = 0; made < garbage; made += ARRAY_BYTES) survivors[0] = make();
  } finally {
    v8.setFlagsFromString('--semi-space-growth-factor=2');
  }
}

// At leisure, when the node says so: fills both halves of that space, so that the kernel has given out its pages before modules are
// loaded into it, a tenth of the time again; and does for the first time what many functions do and Node takes half a millisecond for.
function prepare() {
  growYoung(2 * YOUNG_BYTES);
  const { createHash, createHmac } = require('node:crypto');
  createHash('sha1').update('').digest('base64');
  createHmac('sha256', '-').update('').digest('hex');
  void require('node:buffer').File;
}

async function warmUp({ functions, httpSocket, linkSocket }) {
  for (const name of BUILTINS) require(`node:${name}`);
  // Read, since Node loads it then.
  void fs.ReadStream;
  const root = fs.mkdtempSync('/tmp/warm-');
  const [http, link] = [net.connect(httpSocket), net.connect(linkSocket)];
  // gVisor lets a container make sockets in the host's directory and not connect to them: then nothing is rehearsed.
  for (const socket of [http, link]) socket.on('error', () => {});
  try {
    for (const [model, [main, source]] of Object.entries(SOURCES)) {
      const dir = path.join(root, model);
      fs.mkdirSync(dir);
      fs.writeFileSync(path.join(dir, main), source);
      const { linked } = await functions.load({ function: `.${model}`, version: 0, dir, main, model, env: {}, secrets: {} });
      for (let i = 0; i < ROUNDS; i++) {
        const [key, body] = [`.${model}@0`, i > 0 ? '{}' : ''];
        await (linked ? exchange(link, overLink(key, body)) : exchange(http, overHttp(key, body)));
      }
      functions.unload(`.${model}`, 0);
    }
  } finally {
    growYoung();
    http.destroy();
    link.destroy();
    fs.rmSync(root, { recursive: true, force: true });
  }
}

module.exports = { warmUp, growYoung, prepare };
