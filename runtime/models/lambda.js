'use strict';
// AWS Lambda's handler with the function URL's payload format 2.0; the fields of format 1.0 that do not contradict it ride along.

const querystring = require('node:querystring');
const { fail, failed, describe } = require('./fail');
const { respond, isReserved } = require('../exchange');

const TEXT = /^(?:text\/|application\/(?:json|javascript|xml|x-www-form-urlencoded|graphql|[^;]*\+(?:json|xml)))/i;
const FRAMING = new Set(['connection', 'content-length', 'keep-alive', 'transfer-encoding', 'upgrade']);
const EMPTY = Buffer.alloc(0);
const memoryMb = Math.round((process.constrainedMemory?.() || 0) / 2 ** 20);
const { stringify } = JSON;

function parseQuery(url) {
  const at = url.indexOf('?');
  const raw = at < 0 ? '' : url.slice(at + 1);
  const joined = {};
  const multi = {};
  for (const [name, value] of Object.entries(querystring.parse(raw))) {
    multi[name] = Array.isArray(value) ? value : [value];
    joined[name] = multi[name].join(',');
  }
  return { raw, path: at < 0 ? url : url.slice(0, at), joined, multi };
}

function parseHeaders(req) {
  const headers = {};
  const multi = {};
  for (const [name, values] of Object.entries(req.headersDistinct)) {
    multi[name] = values;
    headers[name] = values.join(name === 'cookie' ? '; ' : ',');
  }
  return { headers, multi, cookies: headers.cookie?.split(/; */).filter(Boolean) };
}

function createEvent(call, body) {
  const { req, fn } = call;
  const query = parseQuery(req.url);
  const { headers, multi, cookies } = parseHeaders(req);
  const isText = body.length === 0 || TEXT.test(headers['content-type'] ?? 'text/plain');
  const now = new Date();
  return {
    version: '2.0',
    routeKey: '$default',
    rawPath: query.path,
    rawQueryString: query.raw,
    cookies,
    headers,
    queryStringParameters: query.raw === '' ? undefined : query.joined,
    requestContext: {
      accountId: 'anonymous',
      apiId: fn.name,
      domainName: headers.host ?? '',
      domainPrefix: (headers.host ?? '').split('.')[0],
      http: {
        method: req.method,
        path: query.path,
        protocol: `HTTP/${req.httpVersion}`,
        sourceIp: call.clientIp,
        userAgent: headers['user-agent'] ?? '',
      },
      requestId: call.requestId,
      routeKey: '$default',
      stage: '$default',
      time: formatTime(now),
      timeEpoch: now.getTime(),
    },
    body: body.length === 0 ? undefined : body.toString(isText ? 'utf8' : 'base64'),
    isBase64Encoded: !isText,
    path: query.path,
    httpMethod: req.method,
    multiValueHeaders: multi,
    multiValueQueryStringParameters: query.raw === '' ? undefined : query.multi,
  };
}

// `12/Mar/2020:19:03:58 +0000`
function formatTime(date) {
  const [, day, month, year, time] = date.toUTCString().split(' ');
  return `${day}/${month}/${year}:${time} +0000`;
}

function createContext(call, done) {
  const { fn } = call;
  const deadline = Date.now() + call.timeoutMs;
  return {
    callbackWaitsForEmptyEventLoop: true,
    functionName: fn.name,
    functionVersion: String(fn.version),
    invokedFunctionArn: `arn:hearth:function:${fn.key}`,
    memoryLimitInMB: String(memoryMb),
    awsRequestId: call.requestId,
    logGroupName: fn.name,
    logStreamName: fn.key,
    identity: undefined,
    clientContext: undefined,
    getRemainingTimeInMillis: () => Math.max(0, deadline - Date.now()),
    done,
    succeed: (value) => done(null, value),
    fail: (error) => done(error ?? new Error('the function failed')),
  };
}

function collectHeaders(result) {
  const flat = [];
  let hasType = false;
  const add = (name, value) => {
    name = String(name);
    const key = name.toLowerCase();
    if (value === undefined || value === null || FRAMING.has(key) || isReserved(name)) return;
    hasType ||= key === 'content-type';
    for (const one of Array.isArray(value) ? value : [value]) flat.push(name, String(one));
  };
  const multi = result.multiValueHeaders ?? {};
  const named = new Set(Object.keys(multi).map((name) => name.toLowerCase()));
  for (const name of Object.keys(multi)) add(name, multi[name]);
  for (const name of Object.keys(result.headers ?? {})) if (!named.has(name.toLowerCase())) add(name, result.headers[name]);
  for (const cookie of result.cookies ?? []) add('set-cookie', cookie);
  return { flat, hasType };
}

function bodyOf(result) {
  const { body } = result;
  if (body === undefined || body === null) return EMPTY;
  if (Buffer.isBuffer(body)) return body;
  const text = typeof body === 'string' ? body : stringify(body);
  return Buffer.from(text, result.isBase64Encoded ? 'base64' : 'utf8');
}

function write(call, result) {
  if (call.done) return;
  try {
    if (typeof result !== 'object' || result === null || result.statusCode === undefined) {
      result = { statusCode: 200, body: stringify(result) ?? 'null' };
    }
    const status = Number(result.statusCode);
    if (!Number.isInteger(status) || status < 200 || status > 599) throw new RangeError(`statusCode ${result.statusCode} is not an HTTP status`);
    const body = bodyOf(result);
    const { flat, hasType } = collectHeaders(result);
    if (!hasType && body.length > 0) flat.push('content-type', 'application/json');
    if (status !== 204 && status !== 304) flat.push('content-length', `${body.length}`);
    call.done = true;
    respond(call.res, status, flat, status === 204 || status === 304 ? undefined : body);
  } catch (error) {
    fail(call, 'bad-response', describe(error));
  }
}

// `handler`, or the nested export that the function's `main` names.
function handlerOf({ exports, namespace, handler = 'handler' }) {
  const parts = handler.split('.');
  const roots = namespace ? [namespace, namespace.default] : [exports, exports?.default];
  for (const root of roots) {
    const [owner, found] = parts.reduce(([, at], part) => [at, at?.[part]], [undefined, root]);
    if (typeof found === 'function') return found.bind(owner);
  }
  if (handler === 'handler') for (const root of [namespace?.default, exports]) if (typeof root === 'function') return root;
  throw new TypeError(`a function of the lambda model exports \`${handler}\``);
}

function bind(fn, loaded) {
  const handler = handlerOf(loaded);
  const takesCallback = handler.length >= 3;

  function invoke(call, body) {
    let settled = false;
    const done = (error, value) => {
      if (settled) return;
      settled = true;
      if (error) failed(call, error);
      else write(call, value);
    };
    let result;
    try {
      result = handler(createEvent(call, body), createContext(call, done), done);
    } catch (error) {
      return done(error ?? new Error('the function threw nothing'));
    }
    if (typeof result?.then === 'function') result.then((value) => done(null, value), (error) => done(error ?? new Error('the function rejected with nothing')));
    // A plain handler that takes no callback has nothing else to answer with than its value.
    else if (!takesCallback && result !== undefined) done(null, result);
  }

  return {
    call(call) {
      const { req } = call;
      if (req.headers['content-length'] === undefined && req.headers['transfer-encoding'] === undefined) return invoke(call, EMPTY);
      const chunks = [];
      req.on('data', (chunk) => chunks.push(chunk));
      req.on('end', () => invoke(call, Buffer.concat(chunks)));
    },
    upgrade: null,
  };
}

module.exports = { bind, uncaught: failed };
