'use strict';
// Before a container is ready it answers some requests in every model through its own socket, so that the first real one finds Node's
// modules loaded and the code paths known to V8.

const net = require('node:net');
const path = require('node:path');
const { setTimeout, clearTimeout } = require('node:timers');

const FUNCTIONS = { webtask: 'webtask.js', fetch: 'fetch.mjs', lambda: 'lambda.js', node: 'node.js' };
const ROUNDS = 4;
const ANSWER_MS_MAX = 2000;
// What functions require most; loaded once before anybody is there.
const BUILT_INS = ['buffer', 'crypto', 'events', 'fs', 'http', 'net', 'os', 'path', 'querystring', 'stream', 'string_decoder', 'tty', 'url', 'util', 'zlib'];

const message = (key, method, body) =>
  `${method} /w/?a=b HTTP/1.1\r\nhost: warm\r\ncontent-type: application/json\r\n${body ? `content-length: ${body.length}\r\n` : ''}hearth-call: ${key} warm 1000 2 127.0.0.1\r\n\r\n${body}`;

// One request on a connection; resolves when its answer has arrived, or never mind.
function ask(socket, text) {
  return new Promise((resolve) => {
    let received = '';
    const finish = () => {
      clearTimeout(timer);
      socket.removeListener('data', take);
      resolve();
    };
    const take = (data) => {
      received += data.toString('latin1');
      const head = received.indexOf('\r\n\r\n');
      if (head < 0) return;
      const length = /content-length: (\d+)/i.exec(received);
      if (length ? received.length >= head + 4 + Number(length[1]) : received.endsWith('0\r\n\r\n')) finish();
    };
    const timer = setTimeout(finish, ANSWER_MS_MAX);
    socket.on('data', take);
    socket.write(text);
  });
}

async function warmUp({ functions, httpSocket }) {
  for (const name of BUILT_INS) require(`node:${name}`);
  const socket = net.connect(httpSocket);
  socket.on('error', () => {});
  for (const [model, main] of Object.entries(FUNCTIONS)) {
    const key = `.${model}@0`;
    await functions.load({ function: `.${model}`, version: 0, dir: path.join(__dirname, 'warm'), main, model, env: {}, secrets: {} }, true);
    for (let i = 0; i < ROUNDS; i++) {
      await ask(socket, message(key, 'GET', ''));
      await ask(socket, message(key, 'POST', '{}'));
    }
  }
  for (const model of Object.keys(FUNCTIONS)) functions.unload(`.${model}`, 0);
  await new Promise((resolve) => {
    socket.on('close', resolve);
    socket.destroy();
  });
}

module.exports = { warmUp };
