'use strict';
// The control socket: one JSON message per line, both ways. The first secret ever presented is the only one accepted afterwards, so
// that code inside the container cannot take the node's place. Messages never wait in unbounded number, and nothing here waits for the
// node.

const net = require('node:net');
const { timingSafeEqual, createHash } = require('node:crypto');
const { setImmediate, setTimeout, clearTimeout } = require('node:timers');

// Taken before any function runs, so that a function which alters the built-ins does not alter the protocol.
const { parse, stringify } = JSON;
const indexOf = Function.prototype.call.bind(Buffer.prototype.indexOf);
const byteLength = Buffer.byteLength.bind(Buffer);

const MESSAGE_BYTES_MAX = 1024 * 1024;
// Storage calls of all functions that wait for the node.
const PENDING_MAX = 1000;
// Kept while no node is connected.
const UNSENT_BYTES_MAX = 256 * 1024;
const HELLO_TIMEOUT_MS = 5000;

function createControl() {
  let secretHash = null;
  let socket = null;
  let queue = [];
  let queueBytes = 0;
  let scheduled = false;
  let nextId = 1;
  const pending = new Map();
  let functions = null;

  const digest = (text) => createHash('sha256').update(text).digest();

  // All lines of one turn of the event loop are one write.
  function flush() {
    scheduled = false;
    if (socket === null || queue.length === 0) return;
    const text = queue.join('');
    queue = [];
    queueBytes = 0;
    socket.write(text);
  }

  function sendSoon(message) {
    const text = `${stringify(message)}\n`;
    const limit = socket === null ? UNSENT_BYTES_MAX : Infinity;
    const length = byteLength(text);
    if (length > MESSAGE_BYTES_MAX || queueBytes + length > limit) return false;
    queue.push(text);
    queueBytes += length;
    if (!scheduled && socket !== null) {
      scheduled = true;
      setImmediate(flush);
    }
    return true;
  }

  function send(message) {
    const taken = sendSoon(message);
    flush();
    return taken;
  }

  // What the node has not taken yet. Nothing is lost by counting much of it as too much while nobody is connected.
  const buffered = () => (socket === null ? queueBytes * 16 : queueBytes + socket.writableLength);

  // A question to the node; the answer carries the same id.
  function ask(message) {
    if (socket === null) return Promise.reject(new Error('the platform cannot be reached now'));
    if (pending.size >= PENDING_MAX) return Promise.reject(new Error('too many storage calls at once'));
    const id = nextId++;
    return new Promise((resolve, reject) => {
      pending.set(id, { resolve, reject });
      if (!send({ ...message, id })) {
        pending.delete(id);
        reject(new Error('the document is too large'));
      }
    });
  }

  function failPending() {
    for (const { reject } of pending.values()) reject(new Error('the platform restarted before it answered'));
    pending.clear();
  }

  function adopt(newer) {
    const older = socket;
    socket = null;
    failPending();
    older?.destroy();
    // First of all, whatever waits.
    newer.write(`${stringify({ t: 'ready', node: process.version, loaded: functions.loaded() })}\n`);
    socket = newer;
    flush();
  }

  function dispatch(message) {
    switch (message.t) {
      case 'load':
        functions.load(message).then((result) => send({ t: 'loaded', id: message.id, ...result }));
        break;
      case 'unload':
        functions.unload(message.function, message.version);
        break;
      case 'preload':
        functions.preload(message.modules).then((failed) => send({ t: 'preloaded', id: message.id, failed }));
        break;
      case 'ping':
        send({ t: 'pong', id: message.id });
        break;
      case 'storage': {
        const waiting = pending.get(message.id);
        pending.delete(message.id);
        waiting?.resolve(message);
        break;
      }
    }
  }

  function accept(connection) {
    let trusted = false;
    let chunks = [];
    let length = 0;
    // Who does not say the secret soon is not the node.
    const deadline = setTimeout(() => connection.destroy(), HELLO_TIMEOUT_MS);
    connection.on('error', () => connection.destroy());
    connection.on('close', () => {
      clearTimeout(deadline);
      if (socket !== connection) return;
      socket = null;
      failPending();
    });

    function receive(text) {
      const message = parse(text);
      if (trusted) return dispatch(message);
      if (message.t !== 'hello' || typeof message.secret !== 'string') throw new Error('no hello');
      const hash = digest(message.secret);
      secretHash ??= hash;
      if (!timingSafeEqual(hash, secretHash)) throw new Error('another secret');
      trusted = true;
      clearTimeout(deadline);
      adopt(connection);
    }

    connection.on('data', (data) => {
      let start = 0;
      for (let end = indexOf(data, 10); end >= 0; end = indexOf(data, 10, start)) {
        const line = data.subarray(start, end);
        start = end + 1;
        if (length + line.length > MESSAGE_BYTES_MAX) return connection.destroy();
        const text = (chunks.length === 0 ? line : Buffer.concat([...chunks, line])).toString('utf8');
        chunks = [];
        length = 0;
        try {
          receive(text);
        } catch {
          return connection.destroy();
        }
        if (connection.destroyed) return;
      }
      if (start < data.length) {
        chunks.push(data.subarray(start));
        length += data.length - start;
        if (length > MESSAGE_BYTES_MAX) connection.destroy();
      }
    });
  }

  function listen(path, loadedFunctions) {
    functions = loadedFunctions;
    const server = net.createServer(accept);
    return new Promise((resolve, reject) => {
      server.on('error', reject);
      server.listen({ path, backlog: 16 }, resolve);
    });
  }

  return { send, sendSoon, flush, ask, buffered, listen };
}

module.exports = { createControl };
