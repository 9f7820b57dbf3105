'use strict';
// Measures the runtime side by side with raw node:http (and Express, where a directory with it is given) over unix sockets.
//
// Usage: node bench/bench.js [--packages DIR] [--seconds 4] [--rounds 3]
// `DIR/node_modules` may hold express, lodash, stripe, @aws-sdk/client-s3: those that are there are loaded with and without code cache.

const { spawn, spawnSync } = require('node:child_process');
const fs = require('node:fs');
const net = require('node:net');
const os = require('node:os');
const path = require('node:path');
const { parseArgs } = require('node:util');
const { Runtime } = require('../test/harness');

const { values } = parseArgs({ options: { packages: { type: 'string' }, seconds: { type: 'string', default: '4' }, rounds: { type: 'string', default: '3' } } });
const CONNECTIONS = 32;
const SECONDS = Number(values.seconds);
const ROUNDS = Number(values.rounds);
const TARGET = '/run/acme/main/hello';

const HELLO = {
  'webtask (cb)': { 'index.js': 'module.exports = (cb) => cb(null, "hello world");' },
  'webtask (context, cb)': { 'index.js': 'module.exports = (context, cb) => cb(null, "hello world");' },
  'webtask (context, req, res)': { 'index.js': 'module.exports = (context, req, res) => res.end("hello world");' },
  fetch: { 'index.mjs': 'export default () => new Response("hello world");' },
  'fetch async, with url and a header': {
    'index.mjs': 'export default async (request) => new Response("hello world " + request.method + request.url.length, { headers: { "x-a": "b" } });',
  },
  node: { 'index.js': 'module.exports = (req, res) => { res.setHeader("content-type", "text/plain"); res.end("hello world"); };' },
  lambda: { 'index.js': 'exports.handler = async () => ({ statusCode: 200, body: "hello world" });' },
};
const RAW = `require('node:http').createServer((req, res) => { res.setHeader('content-type', 'text/plain;charset=UTF-8'); res.end('hello world'); }).listen(process.argv[1]);`;
const EXPRESS = `const app = require('express')(); app.use((req, res) => res.type('text/plain').send('hello world')); app.listen(process.argv[1]);`;

// Requests per second over keep-alive connections with one request each in flight. All answers have the length of the first.
async function load(socketPath, key) {
  const request = Buffer.from(`GET ${TARGET} HTTP/1.1\r\nhost: localhost\r\nuser-agent: bench\r\nhearth-call: ${key} 0123456789abcdef 30000 ${TARGET.length} 127.0.0.1\r\n\r\n`);
  let size = 0;
  let done = 0;
  const sockets = [];
  for (let i = 0; i < CONNECTIONS; i++) {
    const socket = net.connect(socketPath);
    sockets.push(socket);
    await new Promise((resolve, reject) => socket.on('connect', resolve).on('error', reject));
    let received = 0;
    socket.on('data', (data) => {
      if (size === 0) size = data.length;
      received += data.length;
      while (received >= size) {
        received -= size;
        done += 1;
        socket.write(request);
      }
    });
  }
  for (const socket of sockets) socket.write(request);
  await new Promise((resolve) => setTimeout(resolve, 700));
  const began = performance.now();
  const before = done;
  await new Promise((resolve) => setTimeout(resolve, SECONDS * 1000));
  const rate = (done - before) / ((performance.now() - began) / 1000);
  for (const socket of sockets) socket.destroy();
  return rate;
}

async function serve(source, cwd) {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'bench-'));
  const socketPath = path.join(dir, 's.sock');
  const child = spawn(process.execPath, ['-e', source, socketPath], { cwd, stdio: 'inherit', env: { NODE_ENV: 'production' } });
  while (!fs.existsSync(socketPath)) await new Promise((resolve) => setTimeout(resolve, 10));
  return { socketPath, stop: () => { child.kill(); fs.rmSync(dir, { recursive: true, force: true }); } };
}

const best = (list) => Math.max(...list);
const median = (list) => [...list].sort((a, b) => a - b)[Math.floor(list.length / 2)];

// Servers take turns, so that a slow moment of the machine hits all of them.
async function rates() {
  const raw = await serve(RAW);
  const express = values.packages && fs.existsSync(path.join(values.packages, 'node_modules/express')) ? await serve(EXPRESS, values.packages) : null;
  const runtimes = new Map();
  for (const [name, files] of Object.entries(HELLO)) {
    const runtime = await Runtime.start();
    await runtime.load('hello', files, name === 'node' ? { model: 'node' } : {});
    runtimes.set(name, runtime);
  }
  const found = new Map();
  const note = (name, rate) => found.set(name, [...(found.get(name) ?? []), rate]);
  for (let round = 0; round < ROUNDS; round++) {
    note('raw node:http', await load(raw.socketPath, 'hello@1'));
    if (express) note('express', await load(express.socketPath, 'hello@1'));
    for (const [name, runtime] of runtimes) note(name, await load(path.join(runtime.dir, 'http.sock'), 'hello@1'));
  }
  const base = best(found.get('raw node:http'));
  for (const [name, list] of found) {
    const rate = best(list);
    console.log(`${name.padEnd(38)} ${Math.round(rate).toString().padStart(7)}/s  ${(rate / base).toFixed(2)} of raw${express ? `  ${(rate / best(found.get('express'))).toFixed(1)} of express` : ''}`);
  }
  raw.stop();
  express?.stop();
  for (const runtime of runtimes.values()) await runtime.stop();
}

const memory = (pid) => Object.fromEntries([...fs.readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8').matchAll(/^(Rss|Pss|Private_Clean|Private_Dirty): +(\d+)/gm)].map(([, name, kb]) => [name, Math.round(kb / 102.4) / 10]));
const cpuMs = (pid) => fs.readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ').slice(11, 13).reduce((sum, ticks) => sum + Number(ticks) * 10, 0);

async function startUp() {
  const starts = [];
  const cpus = [];
  const loads = [];
  const firsts = [];
  const running = [];
  for (let i = 0; i < 15; i++) {
    const began = performance.now();
    const runtime = await Runtime.start();
    starts.push(performance.now() - began);
    cpus.push(cpuMs(runtime.child.pid));
    const at = performance.now();
    await runtime.load('hello', 'module.exports = (cb) => cb(null, "hello world");');
    const loaded = performance.now();
    await runtime.call('hello');
    loads.push(loaded - at);
    firsts.push(performance.now() - loaded);
    running.push(runtime);
  }
  await new Promise((resolve) => setTimeout(resolve, 500));
  const used = memory(running[7].child.pid);
  const reported = running.map((r) => r.messages.find((m) => m.t === 'loaded').ms);
  console.log(`start until ready: ${median(starts).toFixed(1)} ms, CPU ${median(cpus)} ms; load hello: ${median(reported).toFixed(2)} ms by itself, ${median(loads).toFixed(2)} ms seen from outside; first request ${median(firsts).toFixed(2)} ms`);
  console.log(`idle, one of ${running.length} processes: ${JSON.stringify(used)} MB`);
  for (const runtime of running) await runtime.stop();
}

// A copy of the packages as an artifact, with and without its cache.
async function packageLoads() {
  const names = ['express', 'lodash', 'stripe', '@aws-sdk/client-s3'].filter((name) => values.packages && fs.existsSync(path.join(values.packages, 'node_modules', name)));
  for (const cached of [false, true]) {
    for (const set of [...names.map((name) => [name]), names.includes('express') && names.includes('lodash') ? ['express', 'lodash'] : []]) {
      if (set.length === 0) continue;
      const times = [];
      for (let i = 0; i < 7; i++) {
        const runtime = await Runtime.start();
        for (const name of set) {
          const root = path.join(runtime.dir, 'm', name.replace('/', '-'), 'a');
          fs.mkdirSync(path.dirname(root), { recursive: true });
          spawnSync('cp', ['-al', path.join(values.packages), root]);
          fs.rmSync(path.join(root, '.hearth-cache'), { recursive: true, force: true });
          if (cached) {
            const made = caches.get(name) ?? makeCache(root, name);
            caches.set(name, made);
            fs.mkdirSync(path.join(root, '.hearth-cache'), { recursive: true });
            fs.writeFileSync(path.join(root, '.hearth-cache', made.file), made.data);
          }
          const link = path.join(runtime.dir, 'f/hello@1/node_modules', name);
          fs.mkdirSync(path.dirname(link), { recursive: true });
          fs.symlinkSync(path.join(root, 'node_modules', name), link);
        }
        const source = `${set.map((name) => `require('${name}');`).join(' ')} module.exports = (cb) => cb(null, "x");`;
        const loaded = await runtime.load('hello', source);
        const answer = await runtime.call('hello');
        if (answer.status !== 200) throw new Error(answer.text);
        times.push(loaded.ms);
        if (i === 6) console.log(`load ${set.join(' + ')} ${cached ? 'with' : 'without'} code cache: ${median(times).toFixed(1)} ms; then ${JSON.stringify(memory(runtime.child.pid))} MB`);
        await runtime.stop();
      }
    }
  }
}
const caches = new Map();
function makeCache(root, name) {
  const made = spawnSync(process.execPath, [path.join(__dirname, '../code-cache.js'), root, name], { encoding: 'utf8' });
  const [file] = fs.readdirSync(path.join(root, '.hearth-cache'));
  console.log(`cache of ${name}: ${made.stdout.trim()}`);
  return { file, data: fs.readFileSync(path.join(root, '.hearth-cache', file)) };
}

(async () => {
  console.log(`node ${process.version}`);
  await startUp();
  if (values.packages) await packageLoads();
  await rates();
})();
