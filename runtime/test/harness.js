'use strict';
// Starts the runtime as a container would and speaks the node's side of both sockets.

const { spawn } = require('node:child_process');
const fs = require('node:fs');
const http = require('node:http');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');

class Runtime {
  static async start() {
    const runtime = new Runtime();
    runtime.dir = fs.mkdtempSync(path.join(os.tmpdir(), 'runtime-test-'));
    runtime.logs = [];
    runtime.messages = [];
    runtime.nextId = 1;
    runtime.waiting = new Map();
    runtime.documents = new Map();
    const env = { HEARTH_RUN_DIR: runtime.dir, HEARTH_MODULES_DIR: path.join(runtime.dir, 'm') + '/' };
    runtime.child = spawn(process.execPath, ['--expose-internals', path.join(__dirname, '..', 'main.js')], { env, stdio: ['ignore', 'inherit', 'inherit'] });
    runtime.exited = new Promise((resolve) => runtime.child.on('exit', (code) => resolve(code)));
    while (!fs.existsSync(path.join(runtime.dir, 'control.sock'))) {
      if (runtime.child.exitCode !== null) throw new Error('the runtime did not start');
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    await runtime.connect('secret');
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
  load(name, files, options = {}) {
    const { version = 1, ...rest } = options;
    const dir = path.join(this.dir, 'f', `${name}@${version}`);
    if (typeof files === 'string') files = { 'index.js': files };
    for (const [file, text] of Object.entries(files)) {
      fs.mkdirSync(path.dirname(path.join(dir, file)), { recursive: true });
      fs.writeFileSync(path.join(dir, file), text);
    }
    const main = rest.main ?? Object.keys(files)[0];
    return this.ask({ t: 'load', function: name, version, dir, main, model: null, env: {}, secrets: {}, ...rest });
  }

  call(name, { path: target = '/', method = 'GET', headers = {}, body, version = 1 } = {}) {
    const prefix = `/run/acme/main/${name}`;
    return new Promise((resolve, reject) => {
      const req = http.request(
        {
          socketPath: path.join(this.dir, 'http.sock'),
          path: prefix + (target === '/' ? '' : target),
          method,
          headers: { host: 'example.test', ...headers, 'hearth-call': `${name}@${version} req-1 1000 ${prefix.length} 192.0.2.1` },
        },
        (res) => {
          const chunks = [];
          res.on('data', (chunk) => chunks.push(chunk));
          res.on('error', reject);
          res.on('end', () => {
            const text = Buffer.concat(chunks).toString('utf8');
            let json;
            try {
              json = JSON.parse(text);
            } catch {}
            resolve({ status: res.statusCode, headers: res.headers, rawHeaders: res.rawHeaders, text, json });
          });
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
    this.child.kill('SIGKILL');
    await this.exited;
    fs.rmSync(this.dir, { recursive: true, force: true });
  }
}

module.exports = { Runtime };
