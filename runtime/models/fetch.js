'use strict';
// The web standard's model: `export default async (request, context) => new Response(...)` or `{ fetch(request, env, context) }`.

const { setImmediate } = require('node:timers');
const { fail, failed, describe } = require('./fail');
const { respond } = require('../exchange');
const { upgradeOf } = require('./node');
const web = require('./web');

const byteLength = Buffer.byteLength.bind(Buffer);

class Context {
  #call;
  constructor(call) {
    this.#call = call;
    this.params = {};
    this.requestId = call.requestId;
    this.ip = call.clientIp;
  }
  get env() {
    return this.#call.fn.env;
  }
  get log() {
    return console;
  }
  // The URL as the client sent it, with the part that names the function.
  get originalUrl() {
    return this.#call.req.originalUrl;
  }
  waitUntil(promise) {
    const call = this.#call;
    Promise.resolve(promise).catch((error) => call.fn.logs.lines('error', describe(error), call));
  }
  passThroughOnException() {}
}

function write(call, response) {
  if (call.done) return;
  if (!(response instanceof web.Response)) {
    const kind = response === null ? 'null' : typeof response;
    return fail(call, 'bad-response', `the function answered with ${kind} where a Response was expected`);
  }
  try {
    writeParts(call, web.parts(response));
  } catch (error) {
    fail(call, 'bad-response', describe(error));
  }
}

function writeParts(call, { type, status, statusText, headers, body, bodyUsed }) {
  const { res, req } = call;
  if (type === 'error') return fail(call, 'bad-response', 'the function answered with Response.error()');
  if (bodyUsed) return fail(call, 'bad-response', 'the body of the answer was read already');
  if (statusText !== '') res.statusMessage = statusText;
  const isHead = req.method === 'HEAD';
  if (body === null || typeof body === 'string' || Buffer.isBuffer(body)) {
    const length = body === null ? 0 : typeof body === 'string' ? byteLength(body) : body.length;
    // An answer to HEAD may tell the length of a body that it does not have; other answers without a body may not.
    const known = (length === 0 && isHead) || web.NULL_BODY.has(status) ? undefined : length;
    const flat = web.headersOf(headers, known);
    call.done = true;
    return respond(res, status, flat, body ?? undefined);
  }
  if (body.locked) return fail(call, 'bad-response', 'the body of the answer is being read by somebody else');
  const flat = web.headersOf(headers, undefined);
  call.done = true;
  if (isHead) {
    body.cancel().catch(() => {});
    return respond(res, status, flat);
  }
  res.strictContentLength = flat.includes('content-length');
  res.writeHead(status, flat);
  pump(call, body.getReader());
}

async function pump(call, reader) {
  const { res } = call;
  let started = false;
  // The head goes out with the first bytes, or alone when they take their time.
  setImmediate(() => {
    if (!started && !res.destroyed) res.flushHeaders();
    started = true;
  });
  res.on('close', () => {
    if (!res.writableFinished) reader.cancel(new DOMException('The client went away.', 'AbortError')).catch(() => {});
  });
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (res.destroyed) return;
      started = true;
      if (done) return void res.end();
      if (!(value instanceof Uint8Array)) throw new TypeError('the body of a Response is made of Uint8Arrays');
      if (!res.write(value)) {
        await new Promise((resolve) => {
          res.once('drain', resolve);
          res.once('close', resolve);
        });
      }
    }
  } catch (error) {
    if (res.destroyed) return;
    call.fn.logs.lines('error', describe(error), call);
    res.destroy();
    reader.cancel(error).catch(() => {});
  }
}

function bind(fn, { exports, namespace }) {
  let subject = namespace ? (namespace.default ?? (typeof namespace.fetch === 'function' ? namespace : undefined)) : exports;
  if (subject?.__esModule || (subject && typeof subject === 'object' && typeof subject.fetch !== 'function')) subject = subject.default ?? subject;
  let invoke;
  if (typeof subject === 'function') invoke = (request, context) => subject(request, context);
  else if (typeof subject?.fetch === 'function') invoke = (request, context) => subject.fetch(request, fn.env, context);
  else throw new TypeError('a function of the fetch model has a default export: a function (request, context), or an object with `fetch`');
  return {
    call(call) {
      const { req } = call;
      // Without a body there is nothing to read, and nobody who could listen for its end.
      if (!web.hasBody(req) && typeof req._dumpAndCloseReadable === 'function') {
        req._dumpAndCloseReadable();
        req._read();
      }
      let result;
      try {
        result = invoke(new web.IncomingRequest(call), new Context(call));
      } catch (error) {
        return failed(call, error);
      }
      if (typeof result?.then === 'function') result.then((response) => write(call, response), (error) => failed(call, error));
      else write(call, result);
    },
    upgrade: upgradeOf(subject, namespace ?? exports),
  };
}

module.exports = { bind, uncaught: failed, install: web.install };
