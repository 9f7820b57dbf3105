'use strict';
// AWS Lambda's handler with the function URL's payload format 2.0; the fields of format 1.0 that do not contradict it ride along.

const { readBody } = require('./body');
const { fail, describe } = require('./fail');

const TEXT = /^(text\/|application\/(json|javascript|xml|x-www-form-urlencoded|[^;]*\+(json|xml))|multipart\/form-data; *charset)/i;

function query(url) {
  const at = url.indexOf('?');
  const raw = at < 0 ? '' : url.slice(at + 1);
  const joined = {};
  const multi = {};
  for (const [key, value] of new URLSearchParams(raw)) {
    (multi[key] ??= []).push(value);
    joined[key] = multi[key].join(',');
  }
  return { raw, path: at < 0 ? url : url.slice(0, at), joined, multi };
}

function createEvent(ctx, body) {
  const { req } = ctx;
  const { raw, path, joined, multi } = query(req.url);
  const headers = {};
  const multiValueHeaders = {};
  for (const [name, value] of Object.entries(req.headers)) {
    if (name === 'cookie') continue;
    headers[name] = Array.isArray(value) ? value.join(',') : value;
    multiValueHeaders[name] = Array.isArray(value) ? value : [value];
  }
  const cookies = req.headers.cookie ? req.headers.cookie.split('; ') : undefined;
  if (cookies) headers.cookie = req.headers.cookie;
  const isText = body.length === 0 || TEXT.test(req.headers['content-type'] ?? 'text/plain');
  const now = new Date();
  const rawPath = decodeURI(path);
  return {
    version: '2.0',
    routeKey: '$default',
    rawPath,
    rawQueryString: raw,
    cookies,
    headers,
    queryStringParameters: raw ? joined : undefined,
    requestContext: {
      accountId: 'anonymous',
      apiId: ctx.fn.name,
      domainName: req.headers.host ?? '',
      domainPrefix: ctx.fn.name,
      http: { method: req.method, path: rawPath, protocol: `HTTP/${req.httpVersion}`, sourceIp: ctx.clientIp, userAgent: req.headers['user-agent'] ?? '' },
      requestId: ctx.requestId,
      routeKey: '$default',
      stage: '$default',
      time: now.toUTCString(),
      timeEpoch: now.getTime(),
    },
    body: body.length === 0 ? undefined : body.toString(isText ? 'utf8' : 'base64'),
    isBase64Encoded: body.length > 0 && !isText,
    path: rawPath,
    httpMethod: req.method,
    multiValueHeaders,
    multiValueQueryStringParameters: multi,
  };
}

function createContext(ctx, done) {
  const deadline = Date.now() + ctx.timeoutMs;
  return {
    functionName: ctx.fn.name,
    functionVersion: String(ctx.fn.version),
    invokedFunctionArn: `arn:hearth:function:${ctx.fn.key}`,
    memoryLimitInMB: String(Math.round((process.constrainedMemory?.() || 0) / 1048576)),
    awsRequestId: ctx.requestId,
    logGroupName: ctx.fn.name,
    logStreamName: ctx.fn.key,
    callbackWaitsForEmptyEventLoop: true,
    getRemainingTimeInMillis: () => Math.max(0, deadline - Date.now()),
    done,
    succeed: (value) => done(null, value),
    fail: (error) => done(error ?? new Error('the function failed')),
  };
}

function respond(ctx, result) {
  if (ctx.done) return;
  const { res } = ctx;
  try {
    if (result === null || typeof result !== 'object' || result.statusCode === undefined) {
      const text = result === undefined ? '' : JSON.stringify(result);
      ctx.done = true;
      res.writeHead(200, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) });
      return void res.end(text);
    }
    const status = Number(result.statusCode);
    if (!Number.isInteger(status) || status < 200 || status > 599) throw new RangeError(`statusCode ${result.statusCode} is not an HTTP status`);
    for (const [name, value] of Object.entries(result.headers ?? {})) res.setHeader(name, Array.isArray(value) ? value.map(String) : String(value));
    for (const [name, values] of Object.entries(result.multiValueHeaders ?? {})) res.setHeader(name, values.map(String));
    if (result.cookies) res.appendHeader('set-cookie', result.cookies.map(String));
    let body = result.body ?? '';
    if (typeof body !== 'string') body = Buffer.isBuffer(body) ? body : JSON.stringify(body);
    if (result.isBase64Encoded) body = Buffer.from(body, 'base64');
    if (!res.hasHeader('content-type') && body.length > 0) res.setHeader('content-type', 'application/json');
    res.removeHeader('transfer-encoding');
    if (status !== 204 && status !== 304) res.setHeader('content-length', Buffer.byteLength(body));
    res.writeHead(status);
    ctx.done = true;
    res.end(body);
  } catch (error) {
    ctx.done = false;
    fail(ctx, 'bad-response', describe(error));
  }
}

function bind(fn, { exports, namespace }) {
  const from = namespace ? { ...namespace.default, ...namespace } : exports;
  const handler = from?.handler ?? (typeof from === 'function' ? from : undefined);
  if (typeof handler !== 'function') throw new TypeError('a function of the lambda model exports `handler`');

  function run(ctx, body) {
    let settled = false;
    const done = (error, value) => {
      if (settled) return;
      settled = true;
      if (!error) return respond(ctx, value);
      ctx.fn.logs.lines('error', describe(error), ctx);
      fail(ctx, 'failed', describe(error));
    };
    const returned = (error, value) => {
      ctx.res.returned = true;
      done(error, value);
    };
    try {
      const result = handler(createEvent(ctx, body), createContext(ctx, done), done);
      if (result && typeof result.then === 'function') result.then((value) => returned(null, value), (error) => returned(error ?? new Error('rejected')));
      // A synchronous handler that takes no callback has nothing else to answer with than its value.
      else if (handler.length < 3 && result !== undefined) returned(null, result);
    } catch (error) {
      done(error ?? new Error('threw'));
    }
  }

  return {
    call: (ctx) => readBody(ctx.req, (body) => run(ctx, body)),
  };
}

module.exports = { bind, uncaught: (ctx, error) => fail(ctx, 'failed', describe(error)) };
