'use strict';
// The same function and the same request, here and in the programs that such functions were written for: status, the headers that
// matter and body must be the same. What follows is what the two are known to differ in on purpose: PROGRAMMING-MODEL's async functions
// (a webtask oracle would never answer), and errors of the models other than webtask, which the node answers.
//
// HEARTH_ORACLES names a directory in which `npm ci` has run with this folder's lock file.

const { test, before, after } = require('node:test');
const assert = require('node:assert/strict');
const http = require('node:http');
const fs = require('node:fs');
const path = require('node:path');
const { createRequire } = require('node:module');
const { Runtime } = require('../test/harness');

const oracle = createRequire(path.join(process.env.HEARTH_ORACLES ?? __dirname, 'package.json'));

let runtime;
let count = 0;
before(async () => (runtime = await Runtime.start()));
after(() => runtime.stop());

const MATTERS = ['content-type', 'location', 'set-cookie', 'x-answer'];

function view({ status, headers, text }) {
  const kept = {};
  for (const name of MATTERS) if (headers[name] !== undefined) kept[name] = headers[name];
  return { status, headers: kept, text };
}

function request(port, { path: target = '/', method = 'GET', headers = {}, body } = {}) {
  return new Promise((resolve, reject) => {
    const req = http.request({ port, host: '127.0.0.1', path: target, method, headers }, (res) => {
      const chunks = [];
      res.on('data', (chunk) => chunks.push(chunk));
      res.on('error', reject);
      res.on('end', () => resolve({ status: res.statusCode, headers: res.headers, text: Buffer.concat(chunks).toString('utf8') }));
    });
    req.setTimeout(5000, () => req.destroy(new Error('the oracle does not answer')));
    req.on('error', reject);
    req.end(body);
  });
}

async function served(server, ask) {
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  try {
    return await ask(server.address().port);
  } finally {
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  }
}

const JSON_POST = { method: 'POST', headers: { 'content-type': 'application/json' } };
const FORM_POST = { method: 'POST', headers: { 'content-type': 'application/x-www-form-urlencoded' } };

const WEBTASKS = [
  ['module.exports = cb => cb(null, { a: 1, b: [true, null] });'],
  ['module.exports = function (cb) { cb(null, "text"); };'],
  ['return function (cb) { cb(null, 5); };'],
  ['module.exports = cb => cb(null, 0);'],
  ['module.exports = cb => cb();'],
  ['module.exports = cb => setTimeout(() => cb(null, { later: true }), 5);'],
  ['module.exports = (context, cb) => cb(null, { q: context.query, d: context.data, p: context.params, s: context.secrets });', { path: '/?a=1&a=2&b=x%20y&webtask_no=1' }],
  ['module.exports = (context, cb) => cb(null, context.data);', { path: '/?S=query&P=query&other=1' }],
  ['module.exports = (context, cb) => cb(null, { b: context.body, r: context.body_raw });', { ...JSON_POST, body: '{"x":[1,2]}' }],
  ['module.exports = (context, cb) => cb(null, { b: context.body, r: context.body_raw });', { ...JSON_POST, body: '{broken' }],
  ['module.exports = (context, cb) => cb(null, { b: context.body, r: context.body_raw });', { ...FORM_POST, body: 'a=1&a=2&c=%C3%A4' }],
  ['module.exports = (context, cb) => cb(null, { b: context.body, r: context.body_raw });', { method: 'POST', headers: { 'content-type': 'text/plain' }, body: 'plain' }],
  ['module.exports = (context, cb) => cb(null, { b: context.body, r: context.body_raw });', { method: 'POST', body: '{"no":"type"}' }],
  ['module.exports = (context, cb) => cb(null, { d: context.data });', { ...JSON_POST, path: '/?k=query&empty=', body: '{"k":"body","empty":"body","new":1}' }],
  ['module.exports = (context, cb) => cb(null, { t: typeof context.storage.get, u: typeof context.storage.set, m: context.meta });'],
  ['module.exports = (context, cb) => { try { context.create_token({}, () => {}); } catch (e) { cb(e); } };'],
  ['module.exports = (context, cb) => cb(null, Object.keys(module.webtask).sort());'],
  ['module.exports = (context, req, res) => { res.writeHead(201, { "x-answer": req.method }); res.end(req.url + JSON.stringify(context.query)); };', { path: '/?a=1', method: 'PUT' }],
  ['module.exports = (context, req, res) => { res.setHeader("set-cookie", ["a=1", "b=2"]); res.write("in "); setTimeout(() => res.end("parts"), 5); };'],
  ['module.exports = (context, req, res) => { res.writeHead(302, { location: "/else" }); res.end(); };'],
  ['module.exports = cb => cb(new Error("boom"));'],
  ['module.exports = cb => { const e = new TypeError("coded"); e.code = 418; cb(e); };'],
  ['module.exports = cb => cb("s");'],
  ['module.exports = cb => cb({ x: 1 });'],
  ['module.exports = cb => cb({ name: "N", message: "M", x: 1 });'],
  ['module.exports = cb => cb(42);'],
  ['module.exports = cb => { throw new RangeError("thrown"); };'],
  ['module.exports = cb => { throw "a text"; };'],
  ['module.exports = cb => { const a = {}; a.a = a; cb(null, a); };'],
  ['"use strict";\nmodule.exports = cb => cb(null, { strict: (function () { return this === undefined; })() });'],
  ['module.exports = cb => cb(null, { dir: typeof __dirname, file: typeof __filename, r: require("path").join("a", "b"), p: typeof process.version });'],
];

test('webtask: webtask-runtime 2.0.0 answers the same', async () => {
  const { createServer, PARSE_ALWAYS } = oracle('webtask-runtime');
  const logger = { info() {}, warn() {}, error() {} };
  for (const [code, ask = {}] of WEBTASKS) {
    const name = `webtask-${count++}`;
    await runtime.load(name, code, { env: { P: 'param' }, secrets: { S: 'secret' } });
    const here = view(await runtime.call(name, ask));
    // Parameters of a request's URL are not the only ones: those set with the function come after them, then its secrets.
    const options = { logger, parseBody: PARSE_ALWAYS, mergeBody: true, params: { P: 'param' }, secrets: { S: 'secret' } };
    const there = view(await served(createServer(code, options), (port) => request(port, ask)));
    assert.deepEqual(here, there, code);
  }
});

const LAMBDAS = [
  'exports.handler = async (event) => ({ statusCode: 200, headers: { "X-Answer": event.rawPath }, body: event.queryStringParameters.a });',
  'exports.handler = (event, context, callback) => callback(null, { statusCode: 202, body: JSON.stringify({ m: event.requestContext.http.method }) });',
  'exports.handler = (event, context) => context.succeed({ statusCode: 203, body: "succeed" });',
  'exports.handler = (event, context) => context.done(null, { statusCode: 201, body: "done" });',
  'exports.handler = async () => ({ any: "value" });',
  'exports.handler = async () => "text";',
  'exports.handler = async () => ({ statusCode: 200, cookies: ["a=1", "b=2"], body: "cookies" });',
  'exports.handler = async () => ({ statusCode: 200, isBase64Encoded: true, headers: { "content-type": "text/x-bin" }, body: Buffer.from("binary").toString("base64") });',
  'exports.handler = async (event, context) => ({ statusCode: 200, body: `${typeof context.awsRequestId} ${context.getRemainingTimeInMillis() > 0} ${typeof context.functionName}` });',
  'exports.handler = async () => { throw new Error("boom"); };',
  'exports.handler = (event, context, callback) => callback(new Error("boom"));',
  'exports.handler = (event, context, callback) => callback("a text");',
  'exports.handler = (event, context) => context.fail(new Error("failed"));',
  'exports.handler = () => { throw new Error("at once"); };',
];

// What API Gateway's payload format 2.0 makes of a handler's result.
function gateway(result) {
  if (result === null || typeof result !== 'object' || result.statusCode === undefined) {
    return { status: 200, headers: { 'content-type': 'application/json' }, text: JSON.stringify(result) };
  }
  const headers = {};
  for (const [name, value] of Object.entries(result.headers ?? {})) headers[name.toLowerCase()] = String(value);
  if (result.cookies) headers['set-cookie'] = result.cookies;
  const text = result.isBase64Encoded ? Buffer.from(result.body, 'base64').toString() : (result.body ?? '');
  if (text) headers['content-type'] ??= 'application/json';
  return { status: result.statusCode, headers, text };
}

test('lambda: lambda-local gives the same results, and fails where we fail', async () => {
  const { execute, setLogger } = oracle('lambda-local');
  setLogger?.({ log() {}, info() {}, warn() {}, error() {}, transports: [] });
  await runtime.load('event', 'exports.handler = async (event) => event;');
  const ask = { path: '/p/q?a=1&a=2', headers: { cookie: 'x=1; y=2', 'x-h': 'v' } };
  const event = (await runtime.call('event', ask)).json;
  for (const code of LAMBDAS) {
    const name = `lambda-${count++}`;
    await runtime.load(name, code);
    const here = await runtime.call(name, ask);
    const module = { exports: {} };
    new Function('exports', 'module', 'require', code)(module.exports, module, require);
    let there;
    try {
      there = gateway(await execute({ event, lambdaFunc: module.exports, lambdaHandler: 'handler', timeoutMs: 3000, verboseLevel: 0 }));
    } catch {
      assert.deepEqual([here.status, here.headers['hearth-error']], [502, 'failed'], code);
      continue;
    }
    assert.deepEqual(view(here), view(there), code);
  }
});

const HANDLERS = [
  ['module.exports = (req, res) => { res.statusCode = 201; res.setHeader("x-answer", req.headers["x-h"]); res.end(req.method + req.url); };', { path: '/a/b?c=d', headers: { 'x-h': '7' }, method: 'DELETE' }],
  ['module.exports = (req, res) => { res.writeHead(404, { "content-type": "text/plain" }); res.end("none"); };'],
  ['module.exports = async (req, res) => { await new Promise((r) => setTimeout(r, 5)); res.write("a"); res.end("b"); };'],
  ['module.exports = (req, res) => { res.setHeader("set-cookie", ["a=1", "b=2"]); res.end(); };'],
  ['module.exports = (req, res) => { res.writeHead(301, { location: "https://x.test/" }); res.end(); };'],
  ['module.exports = (req, res) => { res.end(Buffer.from([104, 105])); };', { method: 'POST', headers: { 'content-type': 'text/plain' }, body: 'ignored' }],
];

test('node: the Functions Framework answers the same to (req, res)', async () => {
  const { http: register } = oracle('@google-cloud/functions-framework');
  const { getTestServer } = oracle('@google-cloud/functions-framework/testing');
  for (const [code, ask = {}] of HANDLERS) {
    const name = `node-${count++}`;
    await runtime.load(name, code, { model: 'node' });
    const here = view(await runtime.call(name, ask));
    const module = { exports: {} };
    new Function('exports', 'module', 'require', code)(module.exports, module, require);
    register(name, module.exports);
    const there = view(await served(getTestServer(name), (port) => request(port, ask)));
    assert.deepEqual(here, there, code);
  }
});

test('the lock file names the versions that this compares with', () => {
  const lock = JSON.parse(fs.readFileSync(path.join(__dirname, 'package-lock.json'), 'utf8'));
  assert.equal(lock.packages['node_modules/webtask-runtime'].version, '2.0.0');
  for (const [name, entry] of Object.entries(lock.packages)) if (name) assert.match(entry.integrity, /^sha512-|^sha1-/, name);
});
