'use strict';
// The web standard's model: `export default async (request, context) => new Response(...)` or `{ fetch(request, env, context) }`.

const { fail, describe } = require('./fail');
const web = require('./web');

web.install();

class Context {
  #ctx;
  #params;
  constructor(ctx) { this.#ctx = ctx; }
  get params() { return (this.#params ??= {}); }
  get requestId() { return this.#ctx.requestId; }
  get ip() { return this.#ctx.clientIp; }
  get env() { return this.#ctx.fn.env; }
  get log() { return console; }
  // Bound where it is taken, since it is often taken out of the context.
  get waitUntil() {
    const ctx = this.#ctx;
    return (promise) => {
      Promise.resolve(promise).catch((error) => ctx.fn.logs.lines('error', describe(error), ctx));
    };
  }
}
for (const name of ['params', 'requestId', 'ip', 'env', 'log', 'waitUntil']) {
  Object.defineProperty(Context.prototype, name, { enumerable: true });
}

// With the body's length. What the function says of it counts only where there is no body to see it by.
function framed(headers, bytes, req) {
  if (headers.includes('content-length')) {
    if (bytes === 0 && req.method === 'HEAD') return headers;
    headers = headers.filter((_, i) => headers[i - (i % 2)] !== 'content-length');
  }
  return ['content-length', String(bytes), ...headers];
}

function write(ctx, response) {
  if (ctx.done) return;
  ctx.res.returned = true;
  if (!web.isResponse(response)) {
    const kind = response === null ? 'null' : typeof response;
    return fail(ctx, 'bad-response', `the function answered with ${kind} where a Response was expected`);
  }
  const { res, req } = ctx;
  const light = web.light(response);
  try {
    if (light) {
      ctx.done = true;
      const { status, headers, body } = light;
      if (body === null) {
        res.writeHead(status, framed(headers, 0, req));
        return void res.end();
      }
      res.writeHead(status, framed(headers, Buffer.byteLength(body), req));
      return void res.end(body);
    }
    const full = web.full(response);
    if (full.type === 'error') return fail(ctx, 'bad-response', 'the function answered with Response.error()');
    const headers = [];
    for (const [name, value] of full.headers) headers.push(name, value);
    ctx.done = true;
    res.writeHead(full.status, full.statusText, headers);
    if (!full.body || req.method === 'HEAD') {
      full.body?.cancel().catch(() => {});
      return void res.end();
    }
    pump(ctx, full.body.getReader());
  } catch (error) {
    ctx.done = false;
    fail(ctx, 'bad-response', describe(error));
  }
}

async function pump(ctx, reader) {
  const { res } = ctx;
  let goOn = null;
  const close = () => {
    reader.cancel(new DOMException('The client went away.', 'AbortError')).catch(() => {});
    goOn?.();
  };
  if (res.destroyed) return close();
  res.on('close', close);
  res.flushHeaders();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return void res.end();
      if (!(value instanceof Uint8Array) && typeof value !== 'string') throw new TypeError('a body must be made of bytes');
      if (!res.write(value) && !res.destroyed) {
        await new Promise((resolve) => {
          goOn = resolve;
          res.once('drain', resolve);
        });
      }
      if (res.destroyed) return;
    }
  } catch (error) {
    ctx.fn.logs.lines('error', describe(error), ctx);
    res.destroy();
  }
}

function bind(fn, { exports, namespace }) {
  let subject = namespace ? namespace.default : exports;
  if (subject && typeof subject !== 'function' && subject.default) subject = subject.default;
  if (!namespace && subject?.__esModule) subject = subject.default;
  let invoke;
  if (typeof subject === 'function') invoke = (request, context) => subject(request, context);
  else if (typeof subject?.fetch === 'function') invoke = (request, context) => subject.fetch(request, fn.env, context);
  else throw new TypeError('a function of the fetch model has a default export: a function (request, context), or an object with `fetch`');

  const failed = (ctx, error) => {
    fn.logs.lines('error', describe(error), ctx);
    fail(ctx, 'failed', describe(error));
  };
  return {
    call(ctx) {
      let result;
      try {
        result = invoke(new web.IncomingRequest(ctx), new Context(ctx));
      } catch (error) {
        return failed(ctx, error);
      }
      if (result && typeof result.then === 'function') result.then((response) => write(ctx, response), (error) => failed(ctx, error));
      else write(ctx, result);
    },
    upgrade: namespace?.upgrade ?? subject?.upgrade ?? null,
  };
}

module.exports = { bind, uncaught: (ctx, error) => fail(ctx, 'failed', describe(error)) };
