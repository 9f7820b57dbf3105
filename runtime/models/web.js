'use strict';
// Light stand-ins for the web's Request, Response and a request's headers: they behave as Node's own (undici's), which are loaded and
// made only when something needs one. Making both for every request would cost more than all the rest of a small function, and
// undici's code alone is a third of an idle container's memory.

const { Readable } = require('node:stream');

const real = Symbol('real');
const state = Symbol('state');

const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
const VALUE = /^[\t\x20-\x7e\x80-\xff]*$/;

// Node.js started with `--expose-internals` gives undici itself. Without it undici is loaded here and now, because the global scope's
// own accessors are lost once they are replaced.
const exposed = process.execArgv.includes('--expose-internals');
const fromGlobal = () => ({ Request, Response: globalThis.Response, Headers });
const source = exposed ? () => require('internal/deps/undici/undici') : ((found) => () => found)(fromGlobal());
const realFetch = globalThis.fetch;
let undici = null;

// Loads undici, once, and makes the stand-ins part of its families.
function load() {
  if (undici) return undici;
  undici = source();
  for (const [light, name] of [[Response, 'Response'], [IncomingRequest, 'Request'], [IncomingHeaders, 'Headers']]) {
    Object.setPrototypeOf(light.prototype, undici[name].prototype);
  }
  Object.setPrototypeOf(Response, undici.Response);
  return undici;
}

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
    this[real] = new (load().Response)(body, init);
  }

  static json(data, init) {
    if (init !== undefined) return load().Response.json(data, init);
    const text = JSON.stringify(data);
    if (text === undefined) return load().Response.json(data);
    const response = Object.create(Response.prototype);
    response[state] = { status: 200, headers: ['content-type', 'application/json'], body: text };
    return response;
  }
  static error() { return load().Response.error(); }
  static redirect(url, status) { return load().Response.redirect(url, status); }
  static [Symbol.hasInstance](value) { return isResponse(value); }

  get status() { return this[state] ? this[state].status : this[real].status; }
  get ok() { const { status } = this; return status >= 200 && status <= 299; }
  clone() { return getReal(this).clone(); }
}

function getReal(light) {
  if (!light[real]) {
    const { status, headers, body } = light[state];
    const pairs = [];
    for (let i = 0; i < headers.length; i += 2) pairs.push([headers[i], headers[i + 1]]);
    light[real] = new (load().Response)(body, { status, headers: pairs });
    light[state] = null;
  }
  return light[real];
}

for (const name of ['type', 'url', 'redirected', 'statusText', 'headers', 'body', 'bodyUsed']) {
  Object.defineProperty(Response.prototype, name, { get() { return getReal(this)[name]; }, configurable: true, enumerable: true });
}
for (const name of ['arrayBuffer', 'blob', 'bytes', 'formData', 'json', 'text']) {
  Object.defineProperty(Response.prototype, name, { value() { return getReal(this)[name](); }, configurable: true, writable: true });
}
Object.defineProperty(Response.prototype, Symbol.toStringTag, { value: 'Response', configurable: true });

// Until undici is loaded there are none but light ones.
const isResponse = (value) => (undici ? value instanceof undici.Response : Object.prototype.isPrototypeOf.call(Response.prototype, value));

// What a function sees of an incoming request.
class IncomingRequest {
  constructor(ctx) {
    this[state] = { ctx, headers: null, controller: null, used: false };
  }
  get method() { return this[state].ctx.req.method; }
  get url() {
    const { req } = this[state].ctx;
    return `${req.headers['x-forwarded-proto'] ?? 'http'}://${req.headers.host ?? 'localhost'}${req.originalUrl}`;
  }
  get headers() {
    return (this[state].headers ??= new IncomingHeaders(this[state].ctx.req));
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
  get bodyUsed() { return this[state].used || (this[real]?.bodyUsed ?? false); }
  clone() {
    if (this.bodyUsed) throw unusable();
    return getRealRequest(this).clone();
  }
}

// The headers of an incoming request: reading one by its name needs nothing but the request itself.
class IncomingHeaders {
  constructor(req) { this[state] = req; }
  get(name) { return find(this, name) ?? (this[real] || !TOKEN.test(name) ? getRealHeaders(this).get(name) : null); }
  has(name) { return find(this, name) !== undefined || (this[real] || !TOKEN.test(name) ? getRealHeaders(this).has(name) : false); }
}

// All values of a name as one text, as the standard joins them; undefined where there is none, or where the real ones must be asked.
function find(headers, name) {
  if (headers[real] || typeof name !== 'string') return undefined;
  const raw = headers[state].rawHeaders;
  const wanted = name.toLowerCase();
  let found;
  for (let i = 0; i < raw.length; i += 2) {
    if (raw[i].length === wanted.length && raw[i].toLowerCase() === wanted) {
      found = found === undefined ? raw[i + 1] : `${found}${wanted === 'cookie' ? '; ' : ', '}${raw[i + 1]}`;
    }
  }
  return found;
}

function getRealHeaders(light) {
  if (!light[real]) {
    const headers = new (load().Headers)();
    const { rawHeaders } = light[state];
    for (let i = 0; i < rawHeaders.length; i += 2) headers.append(rawHeaders[i], rawHeaders[i + 1]);
    light[real] = headers;
  }
  return light[real];
}

for (const name of ['append', 'delete', 'set', 'getSetCookie', 'forEach', 'keys', 'values', 'entries', Symbol.iterator]) {
  const value = function (...args) { return getRealHeaders(this)[name](...args); };
  Object.defineProperty(IncomingHeaders.prototype, name, { value, configurable: true, writable: true });
}
Object.defineProperty(IncomingHeaders.prototype, Symbol.toStringTag, { value: 'Headers', configurable: true });

function getRealRequest(light) {
  if (!light[real]) {
    const { ctx, used } = light[state];
    const { req } = ctx;
    const hasBody = !used && mayHaveBody(req);
    light[real] = new (load().Request)(light.url, {
      method: req.method,
      headers: getRealHeaders(light.headers),
      signal: light.signal,
      ...(hasBody ? { body: req.body ?? Readable.toWeb(req), duplex: 'half' } : {}),
    });
  }
  return light[real];
}

for (const name of ['body', 'cache', 'credentials', 'destination', 'integrity', 'mode', 'redirect', 'referrer', 'referrerPolicy', 'keepalive', 'duplex']) {
  Object.defineProperty(IncomingRequest.prototype, name, { get() { return getRealRequest(this)[name]; }, configurable: true, enumerable: true });
}
Object.defineProperty(IncomingRequest.prototype, Symbol.toStringTag, { value: 'Request', configurable: true });

const mayHaveBody = (req) => req.method !== 'GET' && req.method !== 'HEAD';
const unusable = () => new TypeError('Body is unusable: Body has already been read');

// The common ways to read a body need no stream of the web's kind.
function read(light, convert, name) {
  const own = light[state];
  const { req } = own.ctx;
  if (own.used) return Promise.reject(unusable());
  if (light[real]) return light[real][name]();
  if (!mayHaveBody(req)) return new Promise((resolve) => resolve(convert(Buffer.alloc(0))));
  own.used = true;
  if (req.body !== undefined) return new Promise((resolve) => resolve(convert(req.body)));
  return new Promise((resolve, reject) => {
    const chunks = [];
    req.on('data', (chunk) => chunks.push(chunk));
    req.on('end', () => {
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
const decoder = new TextDecoder();
const utf8 = (buffer) => decoder.decode(buffer);
const READERS = {
  text: utf8,
  json: (buffer) => JSON.parse(utf8(buffer)),
  arrayBuffer: (buffer) => buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength),
  bytes: (buffer) => new Uint8Array(buffer),
};
for (const [name, convert] of Object.entries(READERS)) {
  IncomingRequest.prototype[name] = function () { return read(this, convert, name); };
}
for (const name of ['blob', 'formData']) {
  IncomingRequest.prototype[name] = function () {
    return this[state].used ? Promise.reject(unusable()) : getRealRequest(this)[name]();
  };
}

const unwrap = (input) => (input && typeof input === 'object' && input[state]?.ctx ? getRealRequest(input) : input);

function makeRequest() {
  const { Request: Real } = load();
  return class Request extends Real {
    constructor(input, init) { super(unwrap(input), init); }
    static [Symbol.hasInstance](value) { return value instanceof Real; }
  };
}

function install() {
  const define = (name, property) => {
    // Anything but deleting it first would call Node's accessor.
    delete globalThis[name];
    Object.defineProperty(globalThis, name, { configurable: true, enumerable: false, ...property });
  };
  const own = (name, value) => define(name, { value, writable: true });
  // Nothing but its use loads what is behind it, as Node does it.
  const lazily = (name, make) => define(name, {
    get() {
      const value = make();
      own(name, value);
      return value;
    },
    set(value) { own(name, value); },
  });
  own('Response', Response);
  own('fetch', function fetch(input, init) {
    load();
    return realFetch(unwrap(input), init);
  });
  lazily('Request', makeRequest);
  lazily('Headers', () => load().Headers);
}

// Status, flat headers and body of a response that needs no stream; null for any other.
const light = (response) => response[state] ?? null;
const full = (response) => (response[state] ? getReal(response) : (response[real] ?? response));

module.exports = { install, IncomingRequest, isResponse, light, full };
