'use strict';
// The webtask model. Its error bodies are part of the model: they are the function's own answer, marked `hearth-fault: tenant`.

const querystring = require('node:querystring');
const { respond } = require('../exchange');
const { describe } = require('./fail');
const { upgradeOf } = require('./node');
const { Storage } = require('./storage');

const { parse, stringify } = JSON;
const byteLength = Buffer.byteLength.bind(Buffer);
const NO_BODY = '';

function answer(call, status, body) {
  const { res } = call;
  if (call.done && res.writableEnded) return;
  call.done = true;
  // Too late for an answer: the client must see that this one is not whole.
  if (res.headersSent) return void res.destroy();
  for (const name of res.getHeaderNames()) res.removeHeader(name);
  let text;
  try {
    text = stringify(body, null, 2);
  } catch {
    text = stringify({ ...body, details: String(body.details) }, null, 2);
  }
  respond(res, status, ['content-type', 'application/json', 'content-length', `${byteLength(text)}`, 'hearth-fault', 'tenant'], text);
}

// The fields of an error body, in their order. `name` and `message` are there where the value has them.
function problem(code, error, source) {
  let details = source;
  let name;
  let message;
  try {
    if (Error.isError?.(source) ?? source instanceof Error) details = String(source);
    name = source?.name;
    message = source?.message;
  } catch {
    details = 'an error that cannot be shown';
  }
  return { code, error, details: details ?? String(details), name, message };
}

const returned = (call, error) => answer(call, 400, problem(400, 'Script returned an error.', error));

function threw(call, error, when) {
  call.fn.logs.lines('error', describe(error), call);
  const body = problem(500, `Script generated an unhandled ${when} exception.`, error);
  if (when === 'asynchronous' && typeof error?.stack === 'string') body.stack = describe(error);
  answer(call, 500, body);
}

const uncaught = (call, error) => threw(call, error, 'asynchronous');

const notLoaded = (error) => (call) => answer(call, 400, problem(400, `Unable to compile submitted JavaScript: ${String(error)}`, error));

const refused = (text) => (call) => answer(call, 400, { code: 400, error: 'Unable to compile submitted JavaScript.', details: `Unable to compile submitted JavaScript. Error: ${text}` });

function succeed(call, data) {
  if (call.done || call.res.headersSent) return;
  let text;
  try {
    text = data ? (stringify(data) ?? NO_BODY) : '{}';
  } catch (error) {
    return answer(call, 400, problem(400, 'Error when JSON serializing the result of the JavaScript code.', error));
  }
  call.done = true;
  respond(call.res, 200, ['content-type', 'application/json', 'content-length', `${byteLength(text)}`], text);
}

// The platform's own parameters of a query are not the function's.
function parseQuery(url) {
  const at = url.indexOf('?');
  if (at < 0) return {};
  const query = querystring.parse(url.slice(at + 1));
  const own = {};
  for (const name of Object.keys(query)) if (!name.startsWith('webtask_')) own[name] = query[name];
  return own;
}

const notHere = (name) => () => {
  throw new Error(`The '${name}' method is not supported in this environment`);
};
const createToken = notHere('create_token');
const createTokenUrl = notHere('create_token_url');

function createContext(call) {
  const { fn, req } = call;
  const query = parseQuery(req.url);
  return {
    data: { ...query, ...fn.params, ...fn.secrets },
    headers: req.headers,
    id: call.requestId,
    params: { ...fn.params },
    query,
    secrets: { ...fn.secrets },
    meta: {},
    storage: new Storage(fn),
    token: undefined,
    create_token: createToken,
    create_token_url: createTokenUrl,
  };
}

function readBody(call, callback) {
  const { req } = call;
  const { headers } = req;
  if (headers['content-length'] === undefined && headers['transfer-encoding'] === undefined) return callback(NO_BODY);
  const chunks = [];
  req.on('data', (chunk) => chunks.push(chunk));
  req.on('end', () => callback(Buffer.concat(chunks).toString('utf8')));
}

function parseBody(context, raw) {
  if (raw === NO_BODY) return;
  context.body_raw = raw;
  // Without a type it is taken for JSON, as ever.
  const type = context.headers['content-type'] ?? 'application/json';
  try {
    if (type.includes('application/x-www-form-urlencoded')) context.body = querystring.parse(raw);
    else if (type.includes('application/json')) context.body = parse(raw);
  } catch {
    // A body that is none stays unset.
  }
  const { body, data } = context;
  if (typeof body !== 'object' || body === null) return;
  for (const name of Object.keys(body)) if (!data[name]) data[name] = body[name];
}

// The `callback` of a call, good for one answer.
const callbackOf = (call) => (error, data) => {
  if (call.done) return void call.fn.logs.lines('warn', 'the callback was called again after the answer', call);
  if (error) returned(call, error);
  else succeed(call, data);
};

function invoke(call, fn, args, isAnswer) {
  let result;
  try {
    result = fn(...args);
  } catch (error) {
    return threw(call, error, 'synchronous');
  }
  if (typeof result?.then !== 'function') return;
  result.then(
    (value) => {
      // A function that takes the callback may still use it.
      if (isAnswer || value !== undefined) succeed(call, value);
    },
    (error) => threw(call, error, 'asynchronous'),
  );
}

// An async function of one argument takes the context, unless that argument is called as callbacks are.
function takesContext(fn) {
  if (Object.prototype.toString.call(fn) !== '[object AsyncFunction]') return false;
  return !/^async\s*(?:function\b[^(]*)?\(?\s*(?:cb|callback|done|next)\b/.test(Function.prototype.toString.call(fn));
}

function bind(fn, { exports, namespace }) {
  let subject = namespace ? namespace.default : exports;
  if (subject?.__esModule && typeof subject.default === 'function') subject = subject.default;
  if (typeof subject !== 'function') return { call: refused('Supplied code must return or export a function.') };
  const arity = subject.length;
  if (arity < 1 || arity > 3) {
    return { call: refused('The JavaScript function must have one of the following signatures: ([ctx], callback) or (ctx, req, res).') };
  }
  const upgrade = upgradeOf(subject, namespace ?? exports);
  if (arity === 3) return { call: (call) => invoke(call, subject, [createContext(call), call.req, call.res], false), upgrade };
  const isAnswer = arity === 1 && takesContext(subject);
  if (arity === 1 && !isAnswer) return { call: (call) => invoke(call, subject, [callbackOf(call)], false), upgrade };
  return {
    call(call) {
      const context = createContext(call);
      readBody(call, (raw) => {
        parseBody(context, raw);
        invoke(call, subject, isAnswer ? [context] : [context, callbackOf(call)], isAnswer);
      });
    },
    upgrade,
  };
}

module.exports = { bind, notLoaded, uncaught };
