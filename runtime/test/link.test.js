'use strict';
// What the link adds to the models: many exchanges over one connection, a window for each, and nothing of one in another's way.

const { test, before, after } = require('node:test');
const assert = require('node:assert/strict');
const path = require('node:path');
const { LinkClient, Runtime } = require('./harness');

const WINDOW = 64 * 1024;

let runtime;
before(async () => (runtime = await Runtime.start()));
after(() => runtime.stop());

const fields = (name, method = 'GET', target = '') => {
  const prefix = `/run/acme/main/${name}`;
  return [`${name}@1`, 'req-1', 1000, prefix.length, '192.0.2.1', method, prefix + target];
};
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

test('hundreds at once, answered in any order', async () => {
  await runtime.load('slow', { 'index.mjs': 'export default async (r) => { const n = new URL(r.url).searchParams.get("n"); await new Promise((f) => setTimeout(f, 50 - n % 50)); return new Response(n); };' });
  const calls = Array.from({ length: 300 }, (_, n) => runtime.link.call(fields('slow', 'GET', `?n=${n}`)).answer);
  const answers = await Promise.all(calls);
  assert.deepEqual(answers.map(({ text }) => text), Array.from({ length: 300 }, (_, n) => String(n)));
});

test('a frame may come in pieces, and several in one', async () => {
  const link = new LinkClient(path.join(runtime.dir, 'link.sock'));
  const exchange = link.call(fields('slow', 'GET', '?n=1'));
  const [a, b] = [Buffer.from(LinkClient.call(7, fields('slow', 'GET', '?n=7'), {}, '')), LinkClient.call(8, fields('slow', 'GET', '?n=8'), {}, '')];
  const other = (id) => new Promise((resolve) => link.exchanges.set(id, { id, chunks: [], resolve }));
  const [seven, eight] = [other(7), other(8)];
  for (const byte of a) {
    link.socket.write(Buffer.from([byte]));
    await pause(0);
  }
  link.socket.write(b);
  assert.deepEqual([(await exchange.answer).text, (await seven).text, (await eight).text], ['1', '7', '8']);
  link.socket.destroy();
});

test('an answer waits for credit while others pass', async () => {
  await runtime.load('long', { 'index.mjs': 'export default () => new Response(new ReadableStream({ pull(c) { this.n = (this.n ?? 0) + 1; if (this.n > 100) c.close(); else c.enqueue(new Uint8Array(10000).fill(this.n)); } }));' });
  const link = new LinkClient(path.join(runtime.dir, 'link.sock'));
  link.credits = false;
  const long = link.call(fields('long'));
  await pause(100);
  const came = () => long.chunks.reduce((sum, chunk) => sum + chunk.length, 0);
  const frames = long.chunks.filter((chunk) => chunk.length > 0).length;
  assert.equal(came() + frames * LinkClient.FRAME_COST, WINDOW);
  assert.equal((await link.call(fields('slow', 'GET', '?n=3')).answer).text, '3');
  link.credits = true;
  link.credit(long, WINDOW);
  await long.answer;
  const body = Buffer.concat(long.chunks);
  assert.equal(body.length, 1000000);
  assert.deepEqual([...new Set(body)], Array.from({ length: 100 }, (_, n) => n + 1));
  link.socket.destroy();
});

test('a large answer of one piece is whole, a failing one is not', async () => {
  await runtime.load('large', 'module.exports = (c, cb) => cb(null, "é".repeat(500000));');
  const large = await runtime.link.call(fields('large')).answer;
  assert.equal(large.json, 'é'.repeat(500000));
  assert.equal(Number(large.headers['content-length']), Buffer.byteLength(large.text));
  await runtime.load('breaks', { 'index.mjs': 'export default () => new Response(new ReadableStream({ pull(c) { if (this.n) throw new Error("half"); this.n = 1; c.enqueue(new Uint8Array(10)); } }));' });
  await assert.rejects(runtime.link.call(fields('breaks')).answer);
  await runtime.load('heads', { 'index.mjs': 'export default () => new Response("x", { headers: { a: "b".repeat(70000) } });' });
  await assert.rejects(runtime.link.call(fields('heads')).answer);
  assert.equal((await runtime.link.call(fields('slow', 'GET', '?n=4')).answer).text, '4');
});

test('the answer to HEAD has no body', async () => {
  for (const [name, source] of Object.entries({
    'head-light': 'export default () => new Response("body");',
    'head-stream': 'export default () => new Response(new Blob(["body"]).stream());',
  })) {
    await runtime.load(name, { 'index.mjs': source });
    const { status, text, headers } = await runtime.link.call(fields(name, 'HEAD')).answer;
    assert.deepEqual([status, text], [200, '']);
    if (name === 'head-light') assert.equal(headers['content-length'], '4');
  }
});

test('a cancelled call is aborted, and so are all of a connection that ends', async () => {
  await runtime.load('waits', { 'index.mjs': 'export default (r) => new Promise(() => r.signal.addEventListener("abort", () => console.log("aborted " + new URL(r.url).search)));' });
  const link = new LinkClient(path.join(runtime.dir, 'link.sock'));
  const first = link.call(fields('waits', 'GET', '?first'));
  link.call(fields('waits', 'GET', '?second'));
  await pause(30);
  link.cancel(first);
  await runtime.log((l) => l.line === 'aborted ?first');
  assert.equal(runtime.logs.some((l) => l.line === 'aborted ?second'), false);
  link.socket.destroy();
  await runtime.log((l) => l.line === 'aborted ?second');
});

test('an answer does not wait for what its function does after it', async () => {
  await runtime.load('after', 'module.exports = (c, cb) => { cb(null, { ok: 1 }); const end = Date.now() + 500; while (Date.now() < end); console.log("at its end"); };');
  assert.deepEqual((await runtime.link.call(fields('after')).answer).json, { ok: 1 });
  const came = Date.now();
  assert.ok(came <= (await runtime.log((l) => l.line === 'at its end')).at, 'it came while the function was still at work');
});

test('an answer that waits for others goes before the process ends', async () => {
  const other = await Runtime.start();
  await other.load('gone', { 'index.mjs': 'export default async () => { queueMicrotask(() => queueMicrotask(() => process.exit(0))); return new Response("answered"); };' });
  assert.equal((await other.link.call(fields('gone')).answer).text, 'answered');
  await other.stop();
});

test('what escapes from one call costs that call alone, wherever the frames are cut', async () => {
  const bad = {
    'throws-circle': ['index.js', 'module.exports = (cb) => { const a = {}; a.a = a; throw a; };'],
    'throws-nothing': ['index.mjs', 'export default () => { throw Object.create(null); };'],
    'rejects-nothing': ['index.js', 'exports.handler = async () => { throw Object.create(null); };'],
    'throws-text': ['index.mjs', 'export default () => { throw { get stack() { throw 1; } }; };'],
  };
  await runtime.load('echo', 'module.exports = (c, cb) => cb(null, { got: c.body_raw });');
  for (const [name, [file, source]] of Object.entries(bad)) {
    await runtime.load(name, { [file]: source });
    const link = new LinkClient(path.join(runtime.dir, 'link.sock'));
    const call = (id, name, body = '') => LinkClient.call(id, fields(name, 'POST'), { 'content-length': body.length }, body);
    const answer = (id) => new Promise((resolve, reject) => link.exchanges.set(id, { id, chunks: [], resolve, reject }));
    const answers = [answer(0), answer(1), answer(2)];
    answers[0].catch(() => {});
    // The last one's body is a frame itself, which must not be read as one.
    const forged = call(9, 'echo').toString('latin1');
    const all = Buffer.concat([call(0, name), call(1, 'echo', 'one'), call(2, 'echo', forged)]);
    const cut = all.length - forged.length - 20;
    link.socket.write(all.subarray(0, cut));
    await pause(20);
    link.socket.write(all.subarray(cut));
    assert.deepEqual([(await answers[1]).json.got, (await answers[2]).json.got], ['one', forged], name);
    const failed = await answers[0].then(({ status }) => status, () => 502);
    assert.ok(failed >= 500, name);
    assert.equal(link.exchanges.size, 3);
    link.socket.destroy();
  }
});

test('a detached buffer breaks its own answer', async () => {
  await runtime.load('detaches', { 'index.mjs': `export default () => new Response(new ReadableStream({ start(c) {
    const bytes = new Uint8Array(200000); c.enqueue(bytes); setTimeout(() => structuredClone(bytes.buffer, { transfer: [bytes.buffer] }), 20); } }));` });
  const link = new LinkClient(path.join(runtime.dir, 'link.sock'));
  link.credits = false;
  const detached = link.call(fields('detaches'));
  await pause(60);
  link.credit(detached, WINDOW);
  await assert.rejects(detached.answer);
  assert.equal((await link.call(fields('slow', 'GET', '?n=6')).answer).text, '6');
  link.socket.destroy();
});

test('calls that came together are answered one after the other', async () => {
  const busy = 'const end = Date.now() + 40; while (Date.now() < end);';
  const sources = {
    'busy-sync': `export default () => { ${busy} return new Response('x'); };`,
    'busy-async': `export default async () => { ${busy} return new Response('x'); };`,
    'busy-later': `export default async () => { await null; ${busy} return new Response('x'); };`,
  };
  for (const [name, source] of Object.entries(sources)) {
    await runtime.load(name, { 'index.mjs': source });
    const link = new LinkClient(path.join(runtime.dir, 'link.sock'));
    await link.call(fields(name)).answer;
    link.socket.cork();
    const calls = Array.from({ length: 6 }, () => link.call(fields(name)));
    link.socket.uncork();
    await Promise.all(calls.map(({ answer }) => answer));
    // In order, and the first long before the last is done: each of the five between them takes 40 ms.
    assert.ok(calls[5].at - calls[0].at >= 120, `${name}: ${calls.map(({ at }) => at - calls[0].at)}`);
    link.socket.destroy();
  }
});

test('a function may say the length of its answer itself', async () => {
  const sources = {
    'says': 'export default () => new Response("hello", { headers: { "content-length": "5" } });',
    'says-stream': 'export default () => new Response(new Blob(["hello"]).stream(), { headers: { "content-length": "5" } });',
  };
  for (const [name, source] of Object.entries(sources)) {
    await runtime.load(name, { 'index.mjs': source });
    assert.equal((await runtime.link.call(fields(name)).answer).text, 'hello');
  }
});

test('what a function says of a body that is not sent is passed on, once', async () => {
  await runtime.load('says-only', { 'index.mjs': 'export default () => new Response(null, { headers: { "Content-Length": "1234" } });' });
  const lengths = async (method) => {
    const { rawHeaders } = await runtime.link.call(fields('says-only', method)).answer;
    return rawHeaders.filter((_, i) => rawHeaders[i - (i % 2)].toLowerCase() === 'content-length' && i % 2 === 1);
  };
  assert.deepEqual(await lengths('HEAD'), ['1234']);
  assert.deepEqual(await lengths('GET'), ['0']);
});

test('a chunk whose memory is taken away while it waits breaks its own answer', async () => {
  await runtime.load('shrinks', { 'index.mjs': `export default () => new Response(new ReadableStream({ start(c) {
    const memory = new ArrayBuffer(100000, { maxByteLength: 100000 });
    c.enqueue(new Uint8Array(memory, 0, 100000));
    setTimeout(() => memory.resize(0), 20);
  } }));` });
  const link = new LinkClient(path.join(runtime.dir, 'link.sock'));
  link.credits = false;
  const call = link.call(fields('shrinks'));
  await pause(60);
  link.credit(call, 65536);
  await assert.rejects(call.answer, /broke off/);
  assert.equal((await link.call(fields('slow', 'GET', '?n=9')).answer).text, '9');
  link.socket.destroy();
});

test('calls that have not begun when the process ends are told', async () => {
  const other = await Runtime.start();
  await other.load('leaves', { 'index.mjs': 'export default () => process.exit(3);' });
  const link = new LinkClient(path.join(other.dir, 'link.sock'));
  link.socket.cork();
  const calls = [1, 2, 3].map(() => link.call(fields('leaves')));
  link.socket.uncork();
  for (const { answer } of calls) assert.equal((await answer).headers['hearth-error'], 'exit');
  await other.stop();
});

test('a cancelled call is ended by the runtime, once', async () => {
  const link = new LinkClient(path.join(runtime.dir, 'link.sock'));
  const call = link.call(fields('waits', 'GET', '?third'));
  await pause(30);
  link.cancel(call);
  await assert.rejects(call.answer, /broke off/);
  link.cancel(call);
  assert.equal((await link.call(fields('slow', 'GET', '?n=8')).answer).text, '8');
  link.socket.destroy();
});

test('what loading left behind is given back when the node says so, and no function sees how', async () => {
  await runtime.load('left', `let left = []; for (let i = 0; i < 300000; i++) left.push({ i }); left = null;
    module.exports = (cb) => cb(null, { rss: process.memoryUsage.rss(), gc: typeof gc });`);
  const before = (await runtime.link.call(fields('left')).answer).json;
  runtime.send({ t: 'trim' });
  runtime.send({ t: 'trim' });
  await runtime.load('last', 'module.exports = (cb) => cb(null, 0);');
  const after = (await runtime.link.call(fields('left')).answer).json;
  assert.equal(after.gc, 'undefined');
  assert.ok(before.rss - after.rss > 4e6, `${before.rss} ${after.rss}`);
});

test('who sends nonsense loses the connection, and nobody else does', async () => {
  const nonsense = [
    Buffer.from([0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1]),
    LinkClient.frame(1, 9),
    LinkClient.frame(1, 1, Buffer.from([0xff, 0, 0, 0])),
    LinkClient.frame(1, 1),
    LinkClient.frame(1, 3, Buffer.from([1])),
    Buffer.from('GET / HTTP/1.1\r\nhost: a\r\n\r\n'),
  ];
  for (const bytes of nonsense) {
    const link = new LinkClient(path.join(runtime.dir, 'link.sock'));
    link.socket.write(bytes);
    await link.closed;
  }
  assert.equal((await runtime.link.call(fields('slow', 'GET', '?n=5')).answer).text, '5');
  const unknown = await runtime.link.call(fields('nobody')).answer;
  assert.deepEqual([unknown.status, unknown.headers['hearth-error']], [502, 'unknown']);
});
