'use strict';
// Light stand-ins for the web's Request and Response: they behave as Node's own (undici's), which are made only when something needs
// one. Making both for every request would cost more than all the rest of a small function.

const { Readable } = require('node:stream');

const RealRequest = globalThis.Request;
const RealResponse = globalThis.Response;
const realFetch = globalThis.fetch;

const real = Symbol('real');
const state = Symbol('state');

const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
const VALUE = /^[\t\x20-\x7e\x80-\xff]*$/;

// Headers of a plain object that mean exactly what undici would make of them; null when in doubt.
function plainHeaders(init) {
  if (init === undefined) return [];
  if (init === null || typeof init !== 'object' || Object.getPrototypeOf(init) !== Object.prototype) return null;
  const list = [];
  for (const name of Object.keys(init)) {
    const value = init[name];
    if (typeof value !== 'string' || !TOKEN.test(name) || !VALUE.test(value) || value.trim() !== value) return null;
    list.push(name.toLowerCase(), value);
  }
  return list;
}

class Response {
  constructor(body, init) {
    const simpleBody = body === undefined || body === null || typeof body === 'string';
    const status = init?.status ?? 200;
    if (simpleBody && (init === undefined || (init !== null && typeof init === 'object' && init.statusText === undefined)) &&
        Number.isInteger(status) && status >= 200 && status <= 599 && status !== 204 && status !== 205 && status !== 304) {
      const headers = plainHeaders(init?.headers);
      if (headers) {
        if (typeof body === 'string' && !headers.includes('content-type')) headers.push('content-type', 'text/plain;charset=UTF-8');
        this[state] = { status, headers, body: body ?? null };
        return;
      }
    }
    this[real] = new RealResponse(body, init);
  }

  static json(data, init) {
    if (init !== undefined) return RealResponse.json(data, init);
    const text = JSON.stringify(data);
    if (text === undefined) return RealResponse.json(data);
    const response = Object.create(Response.prototype);
    response[state] = { status: 200, headers: ['content-type', 'application/json'], body: text };
    return response;
  }
  static error() { return RealResponse.error(); }
  static redirect(url, status) { return RealResponse.redirect(url, status); }
  static [Symbol.hasInstance](value) { return value instanceof RealResponse; }

  get status() { return this[state] ? this[state].status : this[real].status; }
  get ok() { const { status } = this; return status >= 200 && status <= 299; }
  clone() { return getReal(this).clone(); }
}

function getReal(light) {
  if (!light[real]) {
    const { status, headers, body } = light[state];
    const pairs = [];
    for (let i = 0; i < headers.length; i += 2) pairs.push([headers[i], headers[i + 1]]);
    light[real] = new RealResponse(body, { status, headers: pairs });
    light[state] = null;
  }
  return light[real];
}

for (const name of ['type', 'url', 'redirected', 'statusText', 'headers', 'body', 'bodyUsed']) {
  Object.defineProperty(Response.prototype, name, { get() { return getReal(this)[name]; }, configurable: true, enumerable: true });
}
for (const name of ['arrayBuffer', 'blob', 'bytes', 'formData', 'json', 'text']) {
  if (!(name in RealResponse.prototype)) continue;
  Object.defineProperty(Response.prototype, name, { value() { return getReal(this)[name](); }, configurable: true, writable: true });
}
Object.setPrototypeOf(Response.prototype, RealResponse.prototype);
Object.setPrototypeOf(Response, RealResponse);

// What a function sees of an incoming request.
class IncomingRequest {
  constructor(ctx) {
    this[state] = { ctx, headers: null, controller: null };
  }
  get method() { return this[state].ctx.req.method; }
  get url() {
    const { req } = this[state].ctx;
    return `${req.headers['x-forwarded-proto'] ?? 'http'}://${req.headers.host ?? 'localhost'}${req.originalUrl}`;
  }
  get headers() {
    if (this[real]) return this[real].headers;
    return (this[state].headers ??= headersOf(this[state].ctx.req));
  }
  get signal() {
    const own = this[state];
    if (!own.controller) {
      own.controller = new AbortController();
      const abort = () => own.ctx.done || own.controller.abort(new DOMException('The client went away.', 'AbortError'));
      if (own.ctx.res.destroyed) abort();
      else own.ctx.res.on('close', () => own.ctx.res.writableFinished || abort());
    }
    return own.controller.signal;
  }
  clone() { return getRealRequest(this).clone(); }
}

function headersOf(req) {
  const headers = new Headers();
  for (let i = 0; i < req.rawHeaders.length; i += 2) headers.append(req.rawHeaders[i], req.rawHeaders[i + 1]);
  return headers;
}

function getRealRequest(light) {
  if (!light[real]) {
    const { req } = light[state].ctx;
    const hasBody = req.method !== 'GET' && req.method !== 'HEAD';
    light[real] = new RealRequest(light.url, {
      method: req.method,
      headers: light.headers,
      signal: light.signal,
      ...(hasBody ? { body: Readable.toWeb(req), duplex: 'half' } : {}),
    });
  }
  return light[real];
}

for (const name of ['body', 'bodyUsed', 'cache', 'credentials', 'destination', 'integrity', 'mode', 'redirect', 'referrer', 'referrerPolicy', 'keepalive', 'duplex']) {
  Object.defineProperty(IncomingRequest.prototype, name, { get() { return getRealRequest(this)[name]; }, configurable: true, enumerable: true });
}
// The common ways to read a body need no stream of the web's kind.
function read(light, convert, name) {
  const own = light[state];
  const { req } = own.ctx;
  if (light[real] || own.used || req.method === 'GET' || req.method === 'HEAD') return getRealRequest(light)[name]();
  own.used = true;
  return new Promise((resolve, reject) => {
    const chunks = [];
    req.on('data', (chunk) => chunks.push(chunk));
    req.on('end', () => {
      light[real] = new RealRequest(light.url, { method: 'GET', headers: light.headers });
      Object.defineProperty(light, 'bodyUsed', { value: true });
      try {
        resolve(convert(chunks.length === 1 ? chunks[0] : Buffer.concat(chunks)));
      } catch (error) {
        reject(error);
      }
    });
    req.on('error', reject);
    req.on('close', () => req.complete || reject(new TypeError('the client went away')));
  });
}
const utf8 = (buffer) => new TextDecoder().decode(buffer);
IncomingRequest.prototype.text = function () { return read(this, utf8, 'text'); };
IncomingRequest.prototype.json = function () { return read(this, (b) => JSON.parse(utf8(b)), 'json'); };
IncomingRequest.prototype.arrayBuffer = function () {
  return read(this, (b) => b.buffer.slice(b.byteOffset, b.byteOffset + b.byteLength), 'arrayBuffer');
};
for (const name of ['blob', 'bytes', 'formData']) {
  if (name in RealRequest.prototype) IncomingRequest.prototype[name] = function () { return getRealRequest(this)[name](); };
}
Object.setPrototypeOf(IncomingRequest.prototype, RealRequest.prototype);

const unwrap = (input) => (input && typeof input === 'object' && input[state]?.ctx ? getRealRequest(input) : input);

class Request extends RealRequest {
  constructor(input, init) { super(unwrap(input), init); }
  static [Symbol.hasInstance](value) { return value instanceof RealRequest; }
}

function install() {
  const replace = (name, value) => Object.defineProperty(globalThis, name, { value, writable: true, configurable: true, enumerable: false });
  replace('Response', Response);
  replace('Request', Request);
  replace('fetch', function fetch(input, init) { return realFetch(unwrap(input), init); });
}

// Status, flat headers and body of a response that needs no stream; null for any other.
const light = (response) => response[state] ?? null;
const full = (response) => (response[state] ? getReal(response) : (response[real] ?? response));

module.exports = { install, IncomingRequest, RealResponse, light, full };
