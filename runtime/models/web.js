'use strict';
// The web's Request, Response and fetch as functions see them. They behave as Node's own (undici's), but undici is loaded only by who
// really fetches: that takes 35 ms and 7 MB. What `fetch` answers is undici's Response; `instanceof` holds for both kinds.

const { Readable } = require('node:stream');
const { inspect } = require('node:util');
const { Message, LAZY, lazy, take, tee, isMessage, peek, extract, isStream } = require('./body');
const { Headers, fromRaw, isHeaders } = require('./headers');
const { isReserved } = require('../exchange');

const REASON = /^[\t\x20-\x7e\x80-\xff]*$/;
const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
const VALUE = /^(?![\t ])[\t\x20-\x7e\x80-\xff]*(?<![\t ])$/;
const NULL_BODY = new Set([101, 103, 204, 205, 304]);
const REDIRECTS = new Set([301, 302, 303, 307, 308]);
const NORMAL_METHODS = new Set(['DELETE', 'GET', 'HEAD', 'OPTIONS', 'POST', 'PUT']);
const FORBIDDEN_METHODS = new Set(['CONNECT', 'TRACE', 'TRACK']);
// Framing is the server's: what a function says about it would be wrong sooner or later.
const FRAMING = new Set(['content-length', 'transfer-encoding', 'connection', 'keep-alive', 'upgrade', 'te', 'trailer']);
const hasInstanceOf = Function.prototype[Symbol.hasInstance];
const realFetch = globalThis.fetch;
// Undici's classes, known from the first thing that was fetched; nobody has any of their objects before.
const real = { Response: null, Headers: null };

// A plain object of headers as a flat list with lower-case names, when it holds nothing that needs a closer look.
function plainList(init) {
  if (typeof init !== 'object' || init === null || Object.getPrototypeOf(init) !== Object.prototype) return null;
  const list = [];
  for (const name of Object.keys(init)) {
    const value = init[name];
    if (typeof value !== 'string' || !TOKEN.test(name) || !VALUE.test(value)) return null;
    const key = name.toLowerCase();
    if (list.includes(key)) return null;
    list.push(key, value);
  }
  return list;
}

function statusOf(status) {
  const number = Number(status) & 0xffff;
  if (!Number.isFinite(Number(status)) || number < 200 || number > 599) throw new RangeError('init["status"] must be in the range of 200 to 599, inclusive.');
  return number;
}

class Response extends Message {
  #status = 200;
  #statusText = '';
  #type = 'default';
  // A flat list until somebody asks for a Headers object, null from then on.
  #list = null;
  #headers = null;

  constructor(body = null, init = undefined) {
    const { body: content, type } = extract(body);
    super(content);
    if (init === undefined || init === null) {
      this.#list = type === null ? [] : ['content-type', type];
      return;
    }
    if (typeof init !== 'object' && typeof init !== 'function') throw new TypeError('Response constructor: Expected init to be one of: Null, Undefined, Object.');
    const { status = 200, statusText = '', headers } = init;
    this.#status = statusOf(status);
    this.#statusText = `${statusText}`;
    if (!REASON.test(this.#statusText)) throw new TypeError('Invalid statusText');
    const list = headers === undefined ? [] : plainList(headers);
    if (list === null) this.#headers = new Headers(headers);
    else this.#list = list;
    if (content === null) return;
    if (NULL_BODY.has(this.#status)) throw new TypeError(`Response constructor: Invalid response status code ${this.#status}`);
    if (type !== null) this.#setType(type);
  }

  #setType(type) {
    if (this.#list === null) this.#headers.has('content-type') || this.#headers.set('content-type', type);
    else if (!this.#list.includes('content-type')) this.#list.push('content-type', type);
  }

  static json(data, init = undefined) {
    const text = JSON.stringify(data);
    if (text === undefined) throw new TypeError('The data is not JSON serializable');
    const response = new Response(null, init);
    const made = new Response(Buffer.from(text), { status: response.#status, statusText: response.#statusText });
    made.#list = response.#list;
    made.#headers = response.#headers;
    made.#setType('application/json');
    return made;
  }
  static redirect(url, status = 302) {
    const location = new URL(`${url}`).href;
    if (!REDIRECTS.has(Number(status))) throw new RangeError(`Invalid status code ${status}`);
    return new Response(null, { status, headers: { location } });
  }
  static error() {
    const response = new Response();
    response.#type = 'error';
    response.#status = 0;
    return response;
  }
  static [Symbol.hasInstance](value) {
    if (this !== Response) return hasInstanceOf.call(this, value);
    return typeof value === 'object' && value !== null && (#list in value || (real.Response !== null && hasInstanceOf.call(real.Response, value)));
  }

  get type() {
    return this.#type;
  }
  get url() {
    return '';
  }
  get redirected() {
    return false;
  }
  get status() {
    return this.#status;
  }
  get ok() {
    return this.#status >= 200 && this.#status <= 299;
  }
  get statusText() {
    return this.#statusText;
  }
  get headers() {
    if (this.#headers === null) {
      this.#headers = fromRaw(this.#list);
      this.#list = null;
    }
    return this.#headers;
  }
  clone() {
    const copy = new Response(tee(this));
    copy.#type = this.#type;
    copy.#status = this.#status;
    copy.#statusText = this.#statusText;
    copy.#headers = new Headers(this.headers);
    copy.#list = null;
    return copy;
  }
  get [Symbol.toStringTag]() {
    return 'Response';
  }
  [inspect.custom](depth, options) {
    const { status, statusText, headers, body, bodyUsed, ok, redirected, type, url } = this;
    return `Response ${inspect({ status, statusText, headers, body, bodyUsed, ok, redirected, type, url }, { ...options, depth })}`;
  }

  // For the server. The body is whatever it is made of.
  static parts(value) {
    if (!(#list in value)) {
      const { type, status, statusText, url, headers, body, bodyUsed } = value;
      return { type, status, statusText, headers: url === '' ? headers : decoded(headers), body, bodyUsed };
    }
    return { type: value.#type, status: value.#status, statusText: value.#statusText, headers: value.#list ?? value.#headers, body: peek(value), bodyUsed: value.bodyUsed };
  }
}
const { parts } = Response;
delete Response.parts;

// What was fetched has been decoded, whatever its headers still say.
function decoded(headers) {
  if (!headers.has('content-encoding')) return headers;
  return [...headers].filter(([name]) => name !== 'content-encoding' && name !== 'content-length');
}

const DEFAULTS = {
  cache: 'default', credentials: 'same-origin', destination: '', duplex: 'half', integrity: '', keepalive: false, mode: 'cors', redirect: 'follow', referrer: 'about:client', referrerPolicy: '',
};
const CHOICES = {
  cache: ['default', 'no-store', 'reload', 'no-cache', 'force-cache', 'only-if-cached'],
  credentials: ['omit', 'same-origin', 'include'],
  duplex: ['half'],
  mode: ['navigate', 'same-origin', 'no-cors', 'cors'],
  redirect: ['follow', 'error', 'manual'],
};

function methodOf(value) {
  const method = `${value}`;
  if (!TOKEN.test(method)) throw new TypeError(`'${method}' is not a valid HTTP method.`);
  const upper = method.toUpperCase();
  if (FORBIDDEN_METHODS.has(upper)) throw new TypeError(`'${method}' HTTP method is unsupported.`);
  return NORMAL_METHODS.has(upper) ? upper : method;
}

function urlOf(input) {
  let url;
  try {
    url = new URL(`${input}`);
  } catch (cause) {
    throw new TypeError(`Failed to parse URL from ${input}`, { cause });
  }
  if (url.username || url.password) throw new TypeError(`Request cannot be constructed from a URL that includes credentials: ${input}`);
  return url.href;
}

class Request extends Message {
  #method = 'GET';
  #url;
  #headers;
  #signal = null;
  #options;

  constructor(input, init = undefined) {
    const given = init ?? {};
    if (arguments.length === 0) throw new TypeError('Request constructor: 1 argument required, but 0 found.');
    const from = isRequest(input) ? input : null;
    const method = given.method !== undefined ? methodOf(given.method) : (from?.method ?? 'GET');
    const hasOwn = given.body !== undefined && given.body !== null;
    if (hasOwn && (method === 'GET' || method === 'HEAD')) throw new TypeError('Request with GET/HEAD method cannot have body.');
    const { body, type } = hasOwn ? extract(given.body) : { body: null, type: null };
    if (isStream(body) && given.duplex === undefined && isStream(given.body)) throw new TypeError('RequestInit: duplex option is required when sending a body.');
    const inherits = !hasOwn && from !== null && given.body !== null && peek(from) !== null;
    if (inherits && (from.bodyUsed || (isStream(peek(from)) && from.body.locked))) {
      throw new TypeError('Cannot construct a Request with a Request object that has already been used.');
    }
    super(inherits ? take(from) : body);
    this.#method = method;
    this.#url = from === null ? urlOf(input) : from.url;
    this.#headers = new Headers(given.headers ?? from?.headers);
    if (type !== null && !this.#headers.has('content-type')) this.#headers.set('content-type', type);
    const signal = given.signal !== undefined ? given.signal : (from?.signal ?? null);
    if (signal !== null) this.#signal = AbortSignal.any([signal]);
    this.#options = {};
    for (const name of Object.keys(DEFAULTS)) {
      const value = given[name] ?? from?.[name];
      if (value === undefined || value === DEFAULTS[name]) continue;
      if (CHOICES[name] && !CHOICES[name].includes(`${value}`)) throw new TypeError(`Request constructor: ${value} is not an accepted type. Expected one of ${CHOICES[name].join(', ')}.`);
      this.#options[name] = value;
    }
    if (given.dispatcher !== undefined) this.#options.dispatcher = given.dispatcher;
  }
  static [Symbol.hasInstance](value) {
    return this === Request ? isRequest(value) : hasInstanceOf.call(this, value);
  }

  get method() {
    return this.#method;
  }
  get url() {
    return this.#url;
  }
  get headers() {
    return this.#headers;
  }
  get signal() {
    return (this.#signal ??= new AbortController().signal);
  }
  clone() {
    const { method, headers, signal } = this;
    const copy = new Request(this.url, { ...Request.optionsOf(this), method, headers, signal, duplex: 'half' });
    return withBody(copy, tee(this));
  }
  get [Symbol.toStringTag]() {
    return 'Request';
  }
  [inspect.custom](depth, options) {
    const { method, url, headers, bodyUsed, signal } = this;
    return `Request ${inspect({ method, url, headers, bodyUsed, signal }, { ...options, depth })}`;
  }

  static optionsOf(request) {
    return #options in request ? request.#options : {};
  }
}
const { optionsOf } = Request;
Object.defineProperty(Request, 'optionsOf', { enumerable: false });
for (const [name, value] of Object.entries(DEFAULTS)) {
  Object.defineProperty(Request.prototype, name, { get() { return optionsOf(this)[name] ?? value; }, enumerable: true, configurable: true });
}

// What a function sees of an incoming request: nothing is made before it is asked for.
class IncomingRequest extends Message {
  #call;
  #headers = null;
  #controller = null;

  constructor(call) {
    super(call.req.method !== 'GET' && call.req.method !== 'HEAD' && hasBody(call.req) ? LAZY : null);
    this.#call = call;
  }
  get method() {
    return this.#call.req.method;
  }
  get url() {
    const { headers, url } = this.#call.req;
    const scheme = headers['x-forwarded-proto'] === 'https' ? 'https' : 'http';
    return `${scheme}://${headers.host ?? 'localhost'}${url}`;
  }
  get headers() {
    return (this.#headers ??= fromRaw(this.#call.req.rawHeaders));
  }
  get signal() {
    if (this.#controller === null) {
      const controller = (this.#controller = new AbortController());
      const { res } = this.#call;
      const abort = () => res.writableFinished || controller.abort(new DOMException('The client went away.', 'AbortError'));
      if (res.destroyed) abort();
      else res.once('close', abort);
    }
    return this.#controller.signal;
  }
  static is(value) {
    return typeof value === 'object' && value !== null && #call in value;
  }
  // The usual ways to read a body need no stream of the web's kind.
  static read(request) {
    const { req } = request.#call;
    return new Promise((resolve, reject) => {
      const chunks = [];
      req.on('data', (chunk) => chunks.push(chunk));
      req.on('end', () => resolve(chunks.length === 1 ? chunks[0] : Buffer.concat(chunks)));
      req.on('error', reject);
      req.on('close', () => req.complete || reject(new DOMException('The client went away.', 'AbortError')));
    });
  }
  static stream(request) {
    return Readable.toWeb(request.#call.req);
  }
}
lazy.read = IncomingRequest.read;
lazy.stream = IncomingRequest.stream;
const isIncoming = IncomingRequest.is;
Object.setPrototypeOf(IncomingRequest.prototype, Request.prototype);
Object.defineProperty(IncomingRequest.prototype, 'constructor', { value: Request, writable: true, configurable: true });
const isRequest = (value) => isIncoming(value) || (isMessage(value) && hasInstanceOf.call(Request, value));

// A request that differs in its body alone.
function withBody(request, body) {
  if (body === null) return request;
  const { method, headers, signal } = request;
  return new Request(request.url, { ...optionsOf(request), method, headers, signal, body, duplex: 'half' });
}

// A message of HTTP/1.1 has a body where its headers say so.
function hasBody(req) {
  const { headers } = req;
  return headers['transfer-encoding'] !== undefined || (headers['content-length'] ?? '0') !== '0';
}

async function fetch(input, init = undefined) {
  let target = input;
  let options = init;
  if (isRequest(input)) {
    const request = init === undefined ? input : new Request(input, init);
    const { method, headers, signal } = request;
    target = request.url;
    options = { ...optionsOf(request), method, headers, signal, body: take(request) ?? undefined, duplex: 'half' };
  }
  const response = await realFetch(target, options);
  if (real.Response === null) {
    real.Response = response.constructor;
    real.Headers = response.headers.constructor;
  }
  return response;
}

function install() {
  Object.defineProperty(Headers, Symbol.hasInstance, {
    value(value) {
      if (this !== Headers) return hasInstanceOf.call(this, value);
      return isHeaders(value) || (real.Headers !== null && hasInstanceOf.call(real.Headers, value));
    },
  });
  for (const [name, value, enumerable] of [['Response', Response, false], ['Request', Request, false], ['Headers', Headers, false], ['fetch', fetch, true]]) {
    // Defining over Node's lazy property would load what lies behind it.
    delete globalThis[name];
    Object.defineProperty(globalThis, name, { value, writable: true, configurable: true, enumerable });
  }
}

// Flat names and values of an answer, without what only the server may say. `length` is the body's where it is known.
function headersOf(list, length) {
  const flat = [];
  let own = length;
  const take = (name, value) => {
    if (FRAMING.has(name)) {
      if (name === 'content-length' && own === undefined) own = value;
    } else if (!isReserved(name)) flat.push(name, value);
  };
  if (Array.isArray(list) && !Array.isArray(list[0])) for (let i = 0; i < list.length; i += 2) take(list[i], list[i + 1]);
  else for (const [name, value] of list) take(name, value);
  if (own !== undefined) flat.push('content-length', `${own}`);
  return flat;
}

module.exports = { install, IncomingRequest, Response, NULL_BODY, parts, headersOf, hasBody };
