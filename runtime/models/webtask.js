'use strict';
// The webtask model. Its error bodies are part of the model: they are the function's own answer, marked `hearth-fault: tenant`.

const { readBody } = require('./body');
const { describe: asText } = require('./fail');
const { createStorage } = require('./storage');
const querystring = require('node:querystring');

function answer(ctx, status, body) {
  if (ctx.done || ctx.res.headersSent) return void ctx.res.destroy();
  // First, since what was thrown may not be possible to write as JSON.
  const text = JSON.stringify(body, null, 2);
  ctx.done = true;
  for (const name of ctx.res.getHeaderNames()) ctx.res.removeHeader(name);
  ctx.res.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text), 'hearth-fault': 'tenant' });
  ctx.res.end(text);
}

const isError = (value) => value instanceof Error || Object.prototype.toString.call(value) === '[object Error]';

// Anything may be thrown or given to the callback; what has a name and a message shows them.
function describe(error) {
  return { details: isError(error) ? String(error) : error, name: error?.name, message: error?.message };
}

const returned = (ctx, error) => answer(ctx, 400, { code: 400, error: 'Script returned an error.', ...describe(error) });

function threw(ctx, error, when) {
  ctx.fn.logs.lines('error', asText(error), ctx);
  const body = { code: 500, error: `Script generated an unhandled ${when} exception.`, ...describe(error) };
  if (when === 'asynchronous' && isError(error)) body.stack = error.stack;
  answer(ctx, 500, body);
}

const notLoaded = (error) => (ctx) =>
  answer(ctx, 400, { code: 400, error: `Unable to compile submitted JavaScript: ${String(error)}`, ...describe(error) });

const refused = (text) => (ctx) =>
  answer(ctx, 400, { code: 400, error: 'Unable to compile submitted JavaScript.', details: `Unable to compile submitted JavaScript. Error: ${text}` });

function succeed(ctx, data) {
  let text;
  try {
    text = data ? JSON.stringify(data) : '{}';
    if (text === undefined) text = '{}';
  } catch (error) {
    return answer(ctx, 400, { code: 400, error: 'Error when JSON serializing the result of the JavaScript code.', ...describe(error) });
  }
  if (ctx.done || ctx.res.headersSent) return;
  ctx.done = true;
  ctx.res.writeHead(200, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) });
  ctx.res.end(text);
}

function parseQuery(url) {
  const at = url.indexOf('?');
  return at < 0 ? {} : { ...querystring.parse(url.slice(at + 1)) };
}

const unsupported = (name) => () => {
  throw new Error(`The '${name}' method is not supported in this environment`);
};

function createContext(ctx) {
  const { fn, req } = ctx;
  const query = parseQuery(req.url);
  // Such parameters speak to the platform, not to the function.
  for (const key of Object.keys(query)) if (key.startsWith('webtask_')) delete query[key];
  const context = {
    query,
    params: { ...fn.params },
    secrets: { ...fn.secrets },
    meta: {},
    headers: req.headers,
    body: undefined,
    body_raw: undefined,
    token: undefined,
    id: ctx.requestId,
    storage: createStorage(fn),
    create_token: unsupported('create_token'),
    create_token_url: unsupported('create_token_url'),
    data: undefined,
  };
  context.data = { ...query, ...context.params, ...context.secrets };
  return context;
}

function bodyOf(ctx, callback) {
  const { req } = ctx;
  const said = req.headers['content-length'] || req.headers['transfer-encoding'];
  if (said && req.method !== 'GET' && req.method !== 'HEAD') return readBody(req, (body) => callback(body.toString('utf8')));
  if (req.body === undefined) req.resume();
  callback(undefined);
}

function parseBody(context, raw) {
  context.body_raw = raw;
  if (!raw) return;
  const type = (context.headers['content-type'] ?? 'application/json').split(';')[0].trim().toLowerCase();
  if (type === 'application/json' || type.endsWith('+json')) {
    try {
      context.body = JSON.parse(raw);
    } catch {
      return;
    }
  } else if (type === 'application/x-www-form-urlencoded') {
    context.body = { ...querystring.parse(raw) };
  }
  if (context.body && typeof context.body === 'object' && !Array.isArray(context.body)) {
    for (const key of Object.keys(context.body)) if (!context.data[key]) context.data[key] = context.body[key];
  }
}

function invoke(ctx, run) {
  try {
    const result = run();
    if (result && typeof result.then === 'function') result.then((value) => settle(ctx, value), (error) => threw(ctx, error, 'asynchronous'));
  } catch (error) {
    threw(ctx, error, 'synchronous');
  }
}

// An async function's value is its answer, unless it has answered through the callback.
function settle(ctx, value) {
  if (ctx.done || value === undefined) return;
  ctx.res.returned = true;
  succeed(ctx, value);
}

function bind(fn, { exports, namespace }) {
  let subject = namespace ? namespace.default : exports;
  if (subject && subject.__esModule && typeof subject.default === 'function') subject = subject.default;
  if (typeof subject !== 'function') return { call: refused('Supplied code must return or export a function.') };
  const callback = (ctx) => (error, data) => (error ? returned(ctx, error) : succeed(ctx, data));
  const isAsync = subject.constructor?.name === 'AsyncFunction';
  switch (subject.length) {
    case 1:
      // `async (context) => value` takes the context; a plain function of one parameter takes the callback.
      if (isAsync) return { call: (ctx) => withBody(ctx, (context) => subject(context)) };
      return { call: (ctx) => bodyOf(ctx, () => invoke(ctx, () => subject(callback(ctx)))) };
    case 2:
      return { call: (ctx) => withBody(ctx, (context) => subject(context, callback(ctx))) };
    case 3:
      return {
        // It is given Node's own request and response.
        linked: false,
        call: (ctx) => {
          const context = createContext(ctx);
          invoke(ctx, () => subject(context, ctx.req, ctx.res));
        },
      };
    case 0:
      if (isAsync) return { call: (ctx) => withBody(ctx, () => subject()) };
  }
  return { call: refused('The JavaScript function must have one of the following signatures: ([ctx], callback) or (ctx, req, res).') };
}

function withBody(ctx, run) {
  const context = createContext(ctx);
  bodyOf(ctx, (raw) => {
    parseBody(context, raw);
    invoke(ctx, () => run(context));
  });
}

module.exports = { bind, notLoaded, uncaught: (ctx, error) => threw(ctx, error, 'asynchronous') };
