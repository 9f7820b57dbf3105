'use strict';
// The control socket: one JSON message per line, both ways. The first secret ever presented is the only one accepted afterwards, so
// that code inside the container cannot take the node's place.

const net = require('node:net');
const { trim } = require('./trim');
const { prepare } = require('./warm');
const { setImmediate: later } = require('node:timers');

// Taken before any function runs, so that a function which alters the built-ins does not alter the protocol.
const { parse, stringify } = JSON;

// Without node:crypto, which a container has only when its functions want it: takes the same time wherever two texts differ.
function same(a, b) {
  let difference = a.length ^ b.length;
  for (let i = 0; i < a.length; i++) difference |= a.charCodeAt(i) ^ b.charCodeAt(i);
  return difference === 0;
}

const MESSAGE_MAX = 1024 * 1024;
const PENDING_MAX = 1000;
const UNSENT_MAX = 256 * 1024;

function createControl({ restart }) {
  let secret = null;
  let socket = null;
  let unsent = [];
  let unsentBytes = 0;
  let nextId = 1;
  const pending = new Map();
  let functions = null;

  function send(message) {
    const text = `${stringify(message)}\n`;
    if (socket) {
      socket.write(text);
    } else if (unsentBytes + text.length < UNSENT_MAX) {
      unsent.push(text);
      unsentBytes += text.length;
    }
  }

  const buffered = () => (socket ? socket.writableLength : unsentBytes);

  // A question to the node; the answer carries the same id.
  function ask(message) {
    if (!socket) return Promise.reject(new Error('the platform cannot be reached now'));
    if (pending.size >= PENDING_MAX) return Promise.reject(new Error('too many calls of the storage at once'));
    const id = nextId++;
    return new Promise((resolve, reject) => {
      pending.set(id, { resolve, reject });
      send({ ...message, id });
    });
  }

  function adopt(newer) {
    if (socket && socket !== newer) {
      for (const { reject } of pending.values()) reject(new Error('the platform restarted'));
      pending.clear();
      socket.destroy();
    }
    socket = newer;
    const loaded = functions.loaded();
    const keys = (list) => list.map(({ key }) => key);
    send({ t: 'ready', node: process.version, loaded: keys(loaded), linked: keys(loaded.filter(({ linked }) => linked)) });
    for (const text of unsent) socket.write(text);
    unsent = [];
    unsentBytes = 0;
  }

  function dispatch(message) {
    switch (message.t) {
      case 'load':
        functions.load(message).then((result) => send({ t: 'loaded', id: message.id, ...result }));
        break;
      case 'unload':
        functions.unload(message.function, message.version);
        break;
      case 'trim':
      case 'prepare':
        try {
          (message.t === 'trim' ? trim : prepare)();
        } catch {
          // A function or a module has altered what it needs; the container stays as it is.
        }
        break;
      case 'restart':
        restart();
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
    const deadline = setTimeout(() => connection.destroy(), 5000);
    connection.on('error', () => {});
    connection.on('close', () => {
      clearTimeout(deadline);
      if (socket === connection) socket = null;
    });
    connection.on('data', (data) => {
      let start = 0;
      for (let end = data.indexOf(10); end >= 0; end = data.indexOf(10, start)) {
        chunks.push(data.subarray(start, end));
        start = end + 1;
        const text = chunks.length === 1 ? chunks[0].toString('utf8') : Buffer.concat(chunks).toString('utf8');
        chunks = [];
        length = 0;
        let message;
        try {
          message = parse(text);
        } catch {
          return connection.destroy();
        }
        if (trusted) {
          dispatch(message);
          continue;
        }
        if (message.t !== 'hello' || typeof message.secret !== 'string') return connection.destroy();
        secret ??= message.secret;
        if (!same(message.secret, secret)) return connection.destroy();
        trusted = true;
        clearTimeout(deadline);
        adopt(connection);
      }
      if (start < data.length) {
        chunks.push(data.subarray(start));
        length += data.length - start;
        if (length > MESSAGE_MAX) connection.destroy();
      }
    });
  }

  function listen(path, loadedFunctions) {
    functions = loadedFunctions;
    const server = net.createServer(accept);
    return new Promise((resolve, reject) => {
      server.on('error', reject);
      server.listen(path, () => later(resolve));
    });
  }

  return { send, ask, buffered, listen };
}

module.exports = { createControl };
