'use strict';
// Starts the runtime as a container would and speaks the node's side of both sockets.

const { spawn } = require('node:child_process');
const fs = require('node:fs');
const http = require('node:http');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');

// As a container has them.
const PROTOCOL = fs.readFileSync(path.join(__dirname, '../../model/src/protocol.rs'), 'utf8');
const NODE_OPTIONS = JSON.parse(new RegExp(`NodeVersion::V${process.versions.node.split('.')[0]} => &(\\[.*\\])`).exec(PROTOCOL)[1]);

function answered(status, rawHeaders, body) {
  const text = body.toString('utf8');
  const headers = {};
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const name = rawHeaders[i].toLowerCase();
    if (name === 'set-cookie') (headers[name] ??= []).push(rawHeaders[i + 1]);
    else headers[name] = rawHeaders[i + 1];
  }
  let json;
  try {
    json = JSON.parse(text);
  } catch {}
  return { status, headers, rawHeaders, text, json };
}

// The node's end of the link.
class LinkClient {
  static FRAME_COST = 64;

  constructor(socketPath) {
    this.socket = net.connect(socketPath);
    this.next = 0;
    this.exchanges = new Map();
    this.credits = true;
    let rest = Buffer.alloc(0);
    this.closed = new Promise((resolve) => this.socket.on('close', resolve));
    this.closed.then(() => this.exchanges.forEach((exchange) => exchange.reject?.(new Error('the link closed'))));
    this.socket.on('error', () => {});
    this.socket.on('data', (data) => {
      rest = Buffer.concat([rest, data]);
      while (rest.length >= 9 && rest.length >= 9 + rest.readUInt32LE(0)) {
        const end = 9 + rest.readUInt32LE(0);
        this.receive(rest.readUInt32LE(4), rest[8], rest.subarray(9, end));
        rest = rest.subarray(end);
      }
    });
  }

  static frame(id, kind, payload = Buffer.alloc(0)) {
    const header = Buffer.alloc(9);
    header.writeUInt32LE(payload.length, 0);
    header.writeUInt32LE(id, 4);
    header[8] = kind;
    return Buffer.concat([header, payload]);
  }

  static call(id, fields, headers, body) {
    const lines = Object.entries(headers).flatMap(([name, value]) => [value].flat().flatMap((one) => [name, one]));
    const head = Buffer.from([...fields, ...lines].join('\n'), 'latin1');
    const length = Buffer.alloc(4);
    length.writeUInt32LE(head.length, 0);
    return LinkClient.frame(id, 1, Buffer.concat([length, head, Buffer.from(body)]));
  }

  // The exchange: `answer` resolves when it is whole, `chunks` is what has come.
  call(fields, headers = {}, body = '') {
    const id = this.next++;
    const exchange = { id, chunks: [] };
    exchange.answer = new Promise((resolve, reject) => Object.assign(exchange, { resolve, reject }));
    exchange.answer.catch(() => {});
    this.exchanges.set(id, exchange);
    this.socket.write(LinkClient.call(id, fields, headers, body));
    return exchange;
  }

  cancel({ id }) { this.socket.write(LinkClient.frame(id, 2)); }

  credit({ id }, bytes) {
    const payload = Buffer.alloc(4);
    payload.writeUInt32LE(bytes, 0);
    this.socket.write(LinkClient.frame(id, 3, payload));
  }

  receive(id, kind, payload) {
    const exchange = this.exchanges.get(id);
    if (kind === 1) {
      const head = 7 + payload.readUInt32LE(3);
      const text = payload.toString('latin1', 7, head);
      exchange.at = Date.now();
      Object.assign(exchange, { status: payload.readUInt16LE(0), rawHeaders: text ? text.split('\n') : [] });
      exchange.chunks.push(Buffer.from(payload.subarray(head)));
      if (payload[2] === 0) return;
    } else if (kind === 2) {
      exchange.chunks.push(Buffer.from(payload));
      if (this.credits) this.credit(exchange, payload.length + LinkClient.FRAME_COST);
      return;
    } else if (kind === 4) return exchange.reject(new Error('the answer broke off'));
    exchange.resolve(answered(exchange.status, exchange.rawHeaders, Buffer.concat(exchange.chunks)));
  }
}

class Runtime {
  // `over` says how linked functions are called.
  static async start(over = 'link') {
    const runtime = new Runtime();
    runtime.over = over;
    runtime.linked = new Set();
    runtime.dir = fs.mkdtempSync(path.join(os.tmpdir(), 'runtime-test-'));
    runtime.logs = [];
    runtime.messages = [];
    runtime.nextId = 1;
    runtime.waiting = new Map();
    runtime.documents = new Map();
    const env = { HEARTH_RUN_DIR: runtime.dir, HEARTH_MODULES_DIR: path.join(runtime.dir, 'm') + '/' };
    runtime.child = spawn(process.execPath, [...NODE_OPTIONS, path.join(__dirname, '..', 'main.js')], { env, stdio: ['ignore', 'inherit', 'inherit'] });
    runtime.exited = new Promise((resolve) => runtime.child.on('exit', (code) => resolve(code)));
    while (!fs.existsSync(path.join(runtime.dir, 'control.sock'))) {
      if (runtime.child.exitCode !== null) throw new Error('the runtime did not start');
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    await runtime.connect('secret');
    runtime.link = new LinkClient(path.join(runtime.dir, 'link.sock'));
    return runtime;
  }

  connect(secret) {
    const socket = net.connect(path.join(this.dir, 'control.sock'));
    let rest = '';
    socket.setEncoding('utf8');
    return new Promise((resolve, reject) => {
      socket.on('error', reject);
      socket.on('close', () => reject(new Error('refused')));
      socket.on('data', (text) => {
        rest += text;
        const lines = rest.split('\n');
        rest = lines.pop();
        for (const line of lines) {
          const message = JSON.parse(line);
          if (message.t === 'ready') {
            this.control = socket;
            resolve(message);
          }
          this.receive(message);
        }
      });
      socket.write(JSON.stringify({ t: 'hello', secret }) + '\n');
    });
  }

  receive(message) {
    this.messages.push(message);
    if (message.t === 'log') this.logs.push(message);
    if (message.t === 'storage_get') {
      const [data, etag] = this.documents.get(message.function) ?? [null, null];
      this.send({ t: 'storage', id: message.id, data, etag: etag && String(etag) });
    }
    if (message.t === 'storage_set') {
      const [, etag = null] = this.documents.get(message.function) ?? [];
      if (!message.force && message.etag !== (etag && String(etag))) return this.send({ t: 'storage', id: message.id, conflict: true });
      this.documents.set(message.function, [message.data, (etag ?? 0) + 1]);
      this.send({ t: 'storage', id: message.id, etag: String((etag ?? 0) + 1) });
    }
    if (message.t === 'loaded' || message.t === 'pong' || message.t === 'preloaded') this.waiting.get(message.id)?.(message);
  }

  send(message) {
    this.control.write(JSON.stringify(message) + '\n');
  }

  ask(message) {
    const id = this.nextId++;
    return new Promise((resolve) => {
      this.waiting.set(id, resolve);
      this.send({ ...message, id });
    });
  }

  // Writes files and loads them as a version of a function.
  async load(name, files, options = {}) {
    const { version = 1, ...rest } = options;
    const dir = path.join(this.dir, 'f', `${name}@${version}`);
    if (typeof files === 'string') files = { 'index.js': files };
    for (const [file, text] of Object.entries(files)) {
      fs.mkdirSync(path.dirname(path.join(dir, file)), { recursive: true });
      fs.writeFileSync(path.join(dir, file), text);
    }
    const main = rest.main ?? Object.keys(files)[0];
    const answer = await this.ask({ t: 'load', function: name, version, dir, main, model: null, env: {}, secrets: {}, ...rest });
    if (answer.linked) this.linked.add(`${name}@${version}`);
    return answer;
  }

  // As the node does it: over the link what can go so.
  call(name, { path: target = '/', method = 'GET', headers = {}, body = '', version = 1 } = {}) {
    const prefix = `/run/acme/main/${name}`;
    const call = [`${name}@${version}`, 'req-1', 1000, prefix.length, '192.0.2.1'];
    target = prefix + (target === '/' ? '' : target);
    headers = { host: 'example.test', ...headers };
    if (this.over === 'link' && this.linked.has(call[0]) && !headers.upgrade && body.length <= 16384) {
      if (body) headers['content-length'] = Buffer.byteLength(body);
      return this.link.call([...call, method, target], headers, body).answer;
    }
    return new Promise((resolve, reject) => {
      const req = http.request(
        { socketPath: path.join(this.dir, 'http.sock'), path: target, method, headers: { ...headers, 'hearth-call': call.join(' ') } },
        (res) => {
          const chunks = [];
          res.on('data', (chunk) => chunks.push(chunk));
          res.on('error', reject);
          res.on('end', () => resolve(answered(res.statusCode, res.rawHeaders, Buffer.concat(chunks))));
        },
      );
      req.on('error', reject);
      req.end(body);
    });
  }

  async log(find) {
    for (let i = 0; i < 200; i++) {
      const found = this.logs.find(find);
      if (found) return found;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    throw new Error(`no such line in ${JSON.stringify(this.logs)}`);
  }

  async stop() {
    this.link.socket.destroy();
    this.child.kill('SIGKILL');
    await this.exited;
    fs.rmSync(this.dir, { recursive: true, force: true });
  }
}

module.exports = { NODE_OPTIONS, LinkClient, Runtime };
