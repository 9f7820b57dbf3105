'use strict';
const { describe, test, before, after } = require('node:test');
const assert = require('node:assert/strict');
const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const { NODE_OPTIONS, Runtime } = require('./harness');

// Every model behaves the same over the link, for functions that can be called so, and over HTTP.
for (const over of ['link', 'http']) describe(over, () => suite(over));

function suite(over) {
  let runtime;
  before(async () => (runtime = await Runtime.start(over)));
  after(() => runtime.stop());

  test("V8's helpers go behind the main thread", () => {
    const tasks = `/proc/${runtime.child.pid}/task`;
    // The 19th field of `stat`, the 17th after the name.
    const nice = (thread) => Number(fs.readFileSync(`${tasks}/${thread}/stat`, 'utf8').split(') ')[1].split(' ')[16]);
    const main = String(runtime.child.pid);
    const helpers = fs.readdirSync(tasks).filter((thread) => thread !== main).map(nice);
    assert.equal(nice(main), 0);
    assert.ok(helpers.includes(10), String(helpers));
  });

  test('a runtime that is told to prepare itself has the memory that a load needs', async (t) => {
    if (!NODE_OPTIONS.includes('--max-semi-space-size=8')) return t.skip('V8 may not let the space grow');
    const prepared = await Runtime.start(over);
    try {
      const mb = () => Number(/VmRSS:\s+(\d+)/.exec(fs.readFileSync(`/proc/${prepared.child.pid}/status`, 'utf8'))[1]) / 1024;
      const before = mb();
      prepared.send({ t: 'prepare' });
      await prepared.load('fills', 'const kept = Array.from({ length: 500 }, () => new Array(1024)); module.exports = (cb) => cb(null, { n: kept.length });');
      assert.ok(mb() - before > 10, `${mb() - before} MB`);
      assert.deepEqual((await prepared.call('fills')).json, { n: 500 });
      // Given back with the rest.
      prepared.send({ t: 'trim' });
      await prepared.ask({ t: 'ping' });
      assert.ok(mb() - before < 10, `${mb() - before} MB after it was trimmed`);
    } finally {
      await prepared.stop();
    }
  });

  test('webtask: arities, falsy data, promise', async () => {
    await runtime.load('one', 'module.exports = cb => cb(null, {a: 1});');
    await runtime.load('two', 'module.exports = (context, cb) => cb(null, context.data);', { secrets: { S: 'x' } });
    await runtime.load('three', 'module.exports = (context, req, res) => { res.statusCode = 201; res.end(req.url + context.query.a); };');
    await runtime.load('falsy', 'module.exports = cb => cb(null, 0);');
    await runtime.load('async', 'module.exports = async (context) => ({ q: context.query.a });');
    assert.deepEqual((await runtime.call('one')).json, { a: 1 });
    const two = await runtime.call('two', { path: '?a=1&b=2&b=3' });
    assert.deepEqual(two.json, { a: '1', b: ['2', '3'], S: 'x' });
    assert.equal(two.headers['content-type'], 'application/json');
    const three = await runtime.call('three', { path: '/x?a=5' });
    assert.deepEqual([three.status, three.text], [201, '/x?a=55']);
    assert.equal((await runtime.call('falsy')).text, '{}');
    assert.deepEqual((await runtime.call('async', { path: '?a=7' })).json, { q: '7' });
  });

  test('webtask: the source may return its function, and directives pass', async () => {
    await runtime.load('returned', '"use latest";\nreturn function (cb) { cb(null, {r: 1}); }');
    assert.deepEqual((await runtime.call('returned')).json, { r: 1 });
  });

  test('webtask: bodies', async () => {
    await runtime.load('body', 'module.exports = (c, cb) => cb(null, { body: c.body, raw: c.body_raw, data: c.data });');
    const json = await runtime.call('body', { path: '?k=q', method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"k":1,"z":2}' });
    assert.deepEqual(json.json, { body: { k: 1, z: 2 }, raw: '{"k":1,"z":2}', data: { k: 'q', z: 2 } });
    const form = await runtime.call('body', { method: 'POST', headers: { 'content-type': 'application/x-www-form-urlencoded' }, body: 'a=1&a=2' });
    assert.deepEqual(form.json.body, { a: ['1', '2'] });
    const broken = await runtime.call('body', { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{' });
    assert.equal(broken.json.body, undefined);
    assert.equal(broken.json.raw, '{');
  });

  test('webtask: the exact error bodies', async () => {
    const cases = {
      'module.exports = cb => cb(new Error("boom"))': [400, { code: 400, error: 'Script returned an error.', details: 'Error: boom', name: 'Error', message: 'boom' }],
      'module.exports = cb => cb("s")': [400, { code: 400, error: 'Script returned an error.', details: 's' }],
      'module.exports = cb => cb({x: 1})': [400, { code: 400, error: 'Script returned an error.', details: { x: 1 } }],
      'module.exports = cb => { throw new TypeError("t"); }': [500, { code: 500, error: 'Script generated an unhandled synchronous exception.', details: 'TypeError: t', name: 'TypeError', message: 't' }],
      'module.exports = 5': [400, { code: 400, error: 'Unable to compile submitted JavaScript.', details: 'Unable to compile submitted JavaScript. Error: Supplied code must return or export a function.' }],
      'module.exports = (a, b, c, d) => 1': [400, { code: 400, error: 'Unable to compile submitted JavaScript.', details: 'Unable to compile submitted JavaScript. Error: The JavaScript function must have one of the following signatures: ([ctx], callback) or (ctx, req, res).' }],
    };
    let n = 0;
    for (const [source, [status, body]] of Object.entries(cases)) {
      const name = `error-${n++}`;
      await runtime.load(name, source);
      const answer = await runtime.call(name);
      assert.deepEqual([answer.status, answer.json], [status, body], source);
      assert.equal(answer.headers['hearth-fault'], 'tenant');
      assert.equal(answer.text, JSON.stringify(body, null, 2));
    }
    await runtime.load('syntax', 'module.exports = (');
    const syntax = await runtime.call('syntax');
    assert.equal(syntax.status, 400);
    assert.match(syntax.json.error, /^Unable to compile submitted JavaScript: SyntaxError: /);
    await runtime.load('circular', 'module.exports = cb => { const a = {}; a.a = a; cb(null, a); }');
    assert.equal((await runtime.call('circular')).json.error, 'Error when JSON serializing the result of the JavaScript code.');
  });

  test('what is thrown later fails its own request only', async () => {
    await runtime.load('later', 'module.exports = (c, cb) => { if (c.query.bad) setTimeout(() => { throw new Error("late"); }, 5); else setTimeout(cb, 50, null, {ok: 1}); };');
    const [bad, good] = await Promise.all([runtime.call('later', { path: '?bad=1' }), runtime.call('later')]);
    assert.equal(bad.json.error, 'Script generated an unhandled asynchronous exception.');
    assert.match(bad.json.stack, /late/);
    assert.deepEqual(good.json, { ok: 1 });
    await runtime.load('rejects', 'export default () => { Promise.reject(new Error("nobody")); return new Promise(() => {}); };');
    const rejected = await runtime.call('rejects');
    assert.deepEqual([rejected.status, rejected.headers['hearth-error']], [502, 'failed']);
    assert.match(rejected.json.message, /nobody/);
    const line = await runtime.log((l) => l.line.includes('late'));
    assert.deepEqual([line.function, line.version, line.request_id, line.level], ['later', 1, 'req-1', 'error']);
  });

  test('fetch: responses of every kind', async () => {
    await runtime.load('f-text', { 'index.mjs': 'export default (r) => new Response("hi " + new URL(r.url).pathname, { headers: { "X-A": "b" } });' });
    const text = await runtime.call('f-text', { path: '/p' });
    assert.deepEqual([text.status, text.text, text.headers['x-a'], text.headers['content-type']], [200, 'hi /run/acme/main/f-text/p', 'b', 'text/plain;charset=UTF-8']);
    await runtime.load('f-json', { 'index.mjs': 'export default { fetch: async (r, env, c) => Response.json({ b: await r.json(), e: env.E, s: process.env.S, id: c.requestId }) };' }, { env: { E: '1' }, secrets: { S: '2' } });
    const json = await runtime.call('f-json', { method: 'POST', body: '{"x":1}' });
    assert.deepEqual(json.json, { b: { x: 1 }, e: '1', s: '2', id: 'req-1' });
    await runtime.load('f-stream', { 'index.mjs': 'export default (r) => new Response(r.body.pipeThrough(new TransformStream({ transform(c, k) { k.enqueue(c); } })), { status: 201 });' });
    const stream = await runtime.call('f-stream', { method: 'POST', body: 'x'.repeat(300000) });
    assert.deepEqual([stream.status, stream.text.length], [201, 300000]);
    await runtime.load('f-cookies', { 'index.mjs': 'export default () => { const r = new Response(null, { status: 204 }); r.headers.append("set-cookie", "a=1"); r.headers.append("set-cookie", "b=2"); return r; };' });
    const cookies = await runtime.call('f-cookies');
    assert.deepEqual([cookies.status, cookies.headers['set-cookie']], [204, ['a=1', 'b=2']]);
    await runtime.load('f-bad', { 'index.mjs': 'export default () => 5;' });
    assert.equal((await runtime.call('f-bad')).headers['hearth-error'], 'bad-response');
    await runtime.load('f-throws', { 'index.mjs': 'export default () => { throw new Error("no"); };' });
    assert.equal((await runtime.call('f-throws')).headers['hearth-error'], 'failed');
  });

  test('fetch: the light Request and Response behave as the real ones', async () => {
    await runtime.load('f-same', { 'index.mjs': `export default async (r) => {
      const checks = {
        request: r instanceof Request, method: r.method, header: r.headers.get('x-q'),
        copy: (await new Request(r, { method: 'POST', body: 'z' }).text()),
        response: new Response('a') instanceof Response, real: Response.error() instanceof Response,
        text: await new Response('abc').text(), clone: await new Response('q').clone().text(),
        type: new Response('a').headers.get('content-type'), ok: new Response(null, { status: 404 }).ok,
        redirect: Response.redirect('http://x.test/').status, json: await Response.json({ a: 1 }).json(),
        range: (() => { try { new Response('', { status: 99 }); } catch (e) { return e.name; } })(),
        hidden: [...r.headers.keys()].filter((n) => n.startsWith('hearth-')).length,
      };
      return Response.json(checks);
    };` });
    const { json } = await runtime.call('f-same', { headers: { 'x-q': '7' } });
    assert.deepEqual(json, {
      request: true, method: 'GET', header: '7', copy: 'z', response: true, real: true, text: 'abc', clone: 'q', type: 'text/plain;charset=UTF-8',
      ok: false, redirect: 302, json: { a: 1 }, range: 'RangeError', hidden: 0,
    });
  });

  test('fetch: a request is read without the code behind fetch, and with it still behaves as the standard says', async () => {
    const light = await Runtime.start(over);
    try {
      await light.load('f-light', { 'index.mjs': `export default async (r) => {
        const [signature, missing, has] = [r.headers.get('X-Signature'), r.headers.get('nope'), r.headers.has('x-signature')];
        const before = process.moduleLoadList.some((m) => m.endsWith('undici/undici'));
        const body = await r.text();
        const again = await r.text().catch((e) => e.name);
        const cloned = (() => { try { r.clone(); } catch (e) { return e.name; } })();
        return Response.json({ signature, missing, has, before, body, again, cloned, used: r.bodyUsed,
          all: Object.fromEntries(r.headers)['x-signature'], headers: r.headers instanceof Headers, request: r instanceof Request,
          after: process.moduleLoadList.some((m) => m.endsWith('undici/undici')), tag: String(r.headers),
          bad: (() => { try { r.headers.get('a b'); } catch (e) { return e.name; } })() });
      };` });
      const { json } = await light.call('f-light', { method: 'POST', body: 'abc', headers: { 'x-signature': ['1', '2'] } });
      assert.deepEqual(json, {
        signature: '1, 2', missing: null, has: true, before: false, body: 'abc', again: 'TypeError', cloned: 'TypeError', used: true, all: '1, 2',
        headers: true, request: true, after: true, tag: '[object Headers]', bad: 'TypeError',
      });
      await light.load('f-get', { 'index.mjs': 'export default async (r) => Response.json([await r.text(), r.bodyUsed, await r.json().catch((e) => e.name)]);' });
      assert.deepEqual((await light.call('f-get')).json, ['', false, 'SyntaxError']);
    } finally {
      await light.stop();
    }
  });

  test('lambda: event, callback, cookies, binary', async () => {
    await runtime.load('l-event', 'exports.handler = async (event) => event;');
    const { json, headers } = await runtime.call('l-event', { path: '/p?a=1&a=2', headers: { cookie: 'x=1; y=2', 'x-h': 'v' } });
    assert.equal(headers['content-type'], 'application/json');
    assert.equal(json.version, '2.0');
    assert.deepEqual([json.rawPath, json.rawQueryString, json.queryStringParameters.a], ['/p', 'a=1&a=2', '1,2']);
    assert.deepEqual(json.cookies, ['x=1', 'y=2']);
    assert.equal(json.requestContext.http.sourceIp, '192.0.2.1');
    assert.equal(json.headers['hearth-call'], undefined);
    await runtime.load('l-cb', 'exports.handler = (event, context, cb) => cb(null, { statusCode: 202, cookies: ["a=1", "b=2"], headers: { "X-Y": 1 }, body: Buffer.from([1, 2]).toString("base64"), isBase64Encoded: true });');
    const answer = await runtime.call('l-cb');
    assert.deepEqual([answer.status, answer.headers['set-cookie'], answer.headers['x-y'], answer.text], [202, ['a=1', 'b=2'], '1', '\x01\x02']);
    await runtime.load('l-bad', 'exports.handler = async () => ({ statusCode: 1000 });');
    assert.equal((await runtime.call('l-bad')).headers['hearth-error'], 'bad-response');
  });

  test('node: url and originalUrl, and a late second answer harms nobody', async () => {
    await runtime.load('n', 'module.exports = (req, res) => { res.end(req.url + " " + req.originalUrl); setImmediate(() => { try { res.writeHead(500); } catch {} res.end("again"); }); };', { model: 'node' });
    assert.equal((await runtime.call('n', { path: '/a?b' })).text, '/a?b /run/acme/main/n/a?b');
    assert.equal((await runtime.call('n')).text, '/ /run/acme/main/n');
  });

  test('process.env is each function\'s own, also in a shared module and while loading', async () => {
    const files = { 'index.js': 'const loaded = process.env.A; module.exports = cb => setTimeout(() => cb(null, { loaded, now: process.env.A, keys: Object.keys(process.env), home: process.env.HOME }), 1);' };
    await runtime.load('env-a', files, { env: { A: '1' } });
    await runtime.load('env-b', files, { secrets: { A: '2' } });
    assert.deepEqual((await runtime.call('env-a')).json, { loaded: '1', now: '1', keys: ['A'] });
    assert.deepEqual((await runtime.call('env-b')).json, { loaded: '2', now: '2', keys: ['A'] });
  });

  test('versions live side by side, and an unloaded one is gone', async () => {
    await runtime.load('v', 'module.exports = cb => cb(null, {v: 1});', { version: 1 });
    await runtime.load('v', 'module.exports = cb => cb(null, {v: 2});', { version: 2 });
    assert.deepEqual((await runtime.call('v', { version: 1 })).json, { v: 1 });
    assert.deepEqual((await runtime.call('v', { version: 2 })).json, { v: 2 });
    runtime.send({ t: 'unload', function: 'v', version: 1 });
    await runtime.ask({ t: 'ping' });
    assert.equal((await runtime.call('v', { version: 1 })).headers['hearth-error'], 'unknown');
  });

  test('several files, JSON, ES modules required and imported', async () => {
    await runtime.load('multi', {
      'index.js': 'const { a } = require("./lib/a.js"); const j = require("./d.json"); module.exports = async (c) => ({ a, j, m: (await import("./m.mjs")).default });',
      'lib/a.js': 'exports.a = 1;', 'd.json': '{"x":2}', 'm.mjs': 'export default 3;',
    });
    assert.deepEqual((await runtime.call('multi')).json, { a: 1, j: { x: 2 }, m: 3 });
    await runtime.load('detected', 'import fs from "node:fs"; export default () => new Response(typeof fs.readFileSync);');
    assert.equal((await runtime.call('detected')).text, 'function');
    const failed = await runtime.load('esm-broken', { 'index.mjs': 'export default (' });
    assert.match(failed.error, /SyntaxError/);
  });

  test('storage: get, set, conflict, delete', async () => {
    await runtime.load('store', `module.exports = (c, cb) => {
      const s = c.storage;
      if (c.query.get) return s.get((e, d) => cb(e, { d: d === undefined ? null : d }));
      s.get((e) => { if (c.query.stale) return s.set({ n: 9 }, { etag: 'old' }, (e) => cb(null, { conflict: Boolean(e.conflict) })); s.set({ n: 1 }, (e) => cb(e, { ok: !e })); });
    };`);
    assert.deepEqual((await runtime.call('store', { path: '?get=1' })).json, { d: null });
    assert.deepEqual((await runtime.call('store')).json, { ok: true });
    assert.deepEqual((await runtime.call('store', { path: '?get=1' })).json, { d: { n: 1 } });
    assert.deepEqual((await runtime.call('store', { path: '?stale=1' })).json, { conflict: true });
  });

  test('output is attributed, cut and never blocks', async () => {
    await runtime.load('logs', 'module.exports = (c, cb) => { console.log("hello %d", 5); console.error("bad"); process.stdout.write("part"); process.stdout.write("ial\\n"); cb(); };');
    await runtime.call('logs');
    const line = await runtime.log((l) => l.line === 'hello 5');
    assert.deepEqual([line.function, line.request_id, line.level], ['logs', 'req-1', 'info']);
    assert.equal((await runtime.log((l) => l.line === 'bad')).level, 'error');
    await runtime.log((l) => l.line === 'partial');
    await runtime.load('flood', 'module.exports = (c, cb) => { const s = "x".repeat(100000); for (let i = 0; i < 2000; i++) console.log(s); cb(null, { m: process.memoryUsage().rss }); };');
    const flood = await runtime.call('flood');
    assert.ok(flood.json.m < 300e6, `rss ${flood.json.m}`);
  });

  test('only the first secret opens the control socket', async () => {
    await assert.rejects(runtime.connect('another'));
    const ready = await runtime.connect('secret');
    assert.ok(ready.loaded.includes('one@1'));
  });

  test('a client that goes away aborts its request', async () => {
    await runtime.load('abort', { 'index.mjs': 'export default (r) => new Promise((resolve) => r.signal.addEventListener("abort", () => { console.log("aborted"); resolve(new Response()); }));' });
    const req = http.request({ socketPath: path.join(runtime.dir, 'http.sock'), path: '/run/acme/main/abort', headers: { 'hearth-call': 'abort@1 r 1000 19 ::1' } });
    req.on('error', () => {});
    req.end();
    setTimeout(() => req.destroy(), 50);
    await runtime.log((l) => l.line === 'aborted');
  });

  test('upgrade reaches functions that know it, others answer as usual', async () => {
    await runtime.load('up', 'module.exports = (req, res) => res.end("plain"); module.exports.upgrade = (req, socket, head) => { socket.write("HTTP/1.1 101 Switching Protocols\\r\\nupgrade: echo\\r\\nconnection: upgrade\\r\\n\\r\\n"); socket.pipe(socket); };', { model: 'node' });
    const echoed = await new Promise((resolve, reject) => {
      const req = http.request({ socketPath: path.join(runtime.dir, 'http.sock'), path: '/run/acme/main/up', headers: { connection: 'upgrade', upgrade: 'echo', 'hearth-call': 'up@1 r 1000 16 ::1' } });
      req.on('upgrade', (res, socket) => { socket.write('ping'); socket.once('data', (d) => { resolve(String(d)); socket.destroy(); }); });
      req.on('error', reject);
      req.end();
    });
    assert.equal(echoed, 'ping');
    const plain = await runtime.call('one', { headers: { connection: 'upgrade', upgrade: 'websocket' } });
    assert.deepEqual(plain.json, { a: 1 });
  });

  test('process.exit answers whoever waits and ends the process', async () => {
    const other = await Runtime.start(over);
    await other.load('exits', 'module.exports = (c, cb) => { if (c.query.now) process.exit(3); };');
    const waiting = other.call('exits');
    const exiting = await other.call('exits', { path: '?now=1' });
    assert.deepEqual([exiting.status, exiting.headers['hearth-error']], [502, 'exit']);
    assert.equal((await waiting).headers['hearth-error'], 'exit');
    assert.equal(await other.exited, 3);
    await other.stop();
  });
}
