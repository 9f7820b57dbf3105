'use strict';
// Bodies of the web's Request and Response: what they may be made of, and the ways to read them. Strings and bytes stay what they are as
// long as nobody asks for a stream. No undici behind it: loading that costs every process 35 ms and 7 MB.

const { isDisturbed } = require('node:stream');
const { randomBytes } = require('node:crypto');

const TEXT_TYPE = 'text/plain;charset=UTF-8';
const FORM_TYPE = 'application/x-www-form-urlencoded;charset=UTF-8';
const EMPTY = Buffer.alloc(0);
// The body of an incoming request that nobody has touched.
const LAZY = Symbol('lazy');
const { parse } = JSON;

const tagOf = (value) => Object.prototype.toString.call(value);
const isStream = (value) => typeof value === 'object' && value !== null && typeof value.getReader === 'function' && value instanceof ReadableStream;
const unusable = () => new TypeError('Body is unusable: Body has already been read');

// As the web decodes text: without its byte order mark.
function utf8(bytes) {
  const text = bytes.toString('utf8');
  return text.charCodeAt(0) === 0xfeff ? text.slice(1) : text;
}
const exact = (bytes) => bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);

async function readStream(stream) {
  const chunks = [];
  for await (const chunk of stream) {
    if (!(chunk instanceof Uint8Array)) throw new TypeError('Received non-Uint8Array chunk');
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

function streamOf(bytes) {
  return new ReadableStream({
    type: 'bytes',
    start(controller) {
      if (bytes.length > 0) controller.enqueue(new Uint8Array(bytes));
      controller.close();
    },
  });
}

// `multipart/form-data` of a form, as browsers write it.
function encodeForm(form) {
  const boundary = `----hearth-form-${randomBytes(12).toString('hex')}`;
  const quote = (text) => text.replace(/\n/g, '%0A').replace(/\r/g, '%0D').replace(/"/g, '%22');
  const lines = (text) => text.replace(/\r?\n|\r/g, '\r\n');
  const parts = [];
  for (const [name, value] of form) {
    const head = `--${boundary}\r\nContent-Disposition: form-data; name="${quote(lines(name))}"`;
    if (typeof value === 'string') parts.push(`${head}\r\n\r\n${lines(value)}\r\n`);
    else parts.push(`${head}; filename="${quote(value.name)}"\r\nContent-Type: ${value.type || 'application/octet-stream'}\r\n\r\n`, value, '\r\n');
  }
  parts.push(`--${boundary}--\r\n`);
  return { body: new Blob(parts).stream(), type: `multipart/form-data; boundary=${boundary}` };
}

// What a body is made of, and the content type that comes with it.
function extract(body) {
  if (typeof body === 'string') return { body, type: TEXT_TYPE };
  if (body === null || body === undefined) return { body: null, type: null };
  if (typeof body === 'object') {
    if (body instanceof Uint8Array) return { body: Buffer.from(body), type: null };
    if (ArrayBuffer.isView(body)) return { body: Buffer.from(exact(body)), type: null };
    if (body instanceof ArrayBuffer) return { body: Buffer.from(body.slice(0)), type: null };
    if (body instanceof URLSearchParams) return { body: String(body), type: FORM_TYPE };
    if (isStream(body)) {
      if (body.locked || isDisturbed(body)) throw new TypeError('Response body object should not be disturbed or locked');
      return { body, type: null };
    }
    if (body instanceof Blob) return { body: body.stream(), type: body.type || null };
    if (tagOf(body) === '[object FormData]') return encodeForm(body);
    if (typeof body[Symbol.asyncIterator] === 'function') return { body: ReadableStream.from(body), type: null };
  }
  return { body: `${body}`, type: TEXT_TYPE };
}

// Undici reads forms; it can be had only by `fetch`, which also knows `data:` URLs.
const realFetch = globalThis.fetch;
async function parseForm(bytes, type) {
  const response = await realFetch(`data:${type.replace(/[^!-~ ]/g, '')};base64,${bytes.toString('base64')}`);
  return response.formData();
}

class Message {
  #body;
  #used = false;

  constructor(body) {
    this.#body = body;
  }

  get body() {
    const body = this.#body;
    if (body === null || isStream(body)) return body;
    if (body === LAZY) this.#body = this.#used ? streamOf(EMPTY) : lazy.stream(this);
    else this.#body = streamOf(this.#used ? EMPTY : typeof body === 'string' ? Buffer.from(body) : body);
    if (this.#used) this.#body.cancel().catch(() => {});
    return this.#body;
  }
  get bodyUsed() {
    return this.#used || (isStream(this.#body) && isDisturbed(this.#body));
  }

  #bytes() {
    const body = this.#body;
    if (body === null) return Promise.resolve(EMPTY);
    if (this.bodyUsed || (isStream(body) && body.locked)) return Promise.reject(unusable());
    this.#used = true;
    if (body === LAZY) return lazy.read(this);
    if (isStream(body)) return readStream(body);
    return Promise.resolve(typeof body === 'string' ? Buffer.from(body) : body);
  }
  text() {
    return this.#bytes().then(utf8);
  }
  json() {
    return this.#bytes().then((bytes) => parse(utf8(bytes)));
  }
  arrayBuffer() {
    return this.#bytes().then(exact);
  }
  bytes() {
    return this.#bytes().then((bytes) => new Uint8Array(exact(bytes)));
  }
  blob() {
    return this.#bytes().then((bytes) => new Blob([bytes], { type: this.headers.get('content-type') ?? '' }));
  }
  formData() {
    const type = this.headers.get('content-type') ?? '';
    if (!/^(?:multipart\/form-data|application\/x-www-form-urlencoded)\b/i.test(type)) {
      return Promise.reject(new TypeError('Content-Type was not one of "multipart/form-data" or "application/x-www-form-urlencoded".'));
    }
    return this.#bytes().then((bytes) => parseForm(bytes, type));
  }

  // The body for whoever writes it out or hands it on; the message has none from then on.
  static take(message) {
    const body = message.#body === LAZY ? message.body : message.#body;
    if (message.bodyUsed || (isStream(body) && body.locked)) throw unusable();
    if (body !== null) message.#used = true;
    return body;
  }
  // A second body with the same content.
  static tee(message) {
    if (message.#body === LAZY) message.#body = lazy.stream(message);
    const body = message.#body;
    if (message.bodyUsed || (isStream(body) && body.locked)) throw new TypeError(`${tagOf(message).slice(8, -1)}.clone: Body has already been consumed.`);
    if (!isStream(body)) return body;
    const [own, other] = body.tee();
    message.#body = own;
    return other;
  }
  static is(value) {
    return typeof value === 'object' && value !== null && #body in value;
  }
  static peek(message) {
    return message.#body;
  }
}
const { take, tee, is: isMessage, peek } = Message;
for (const name of ['take', 'tee', 'is', 'peek']) delete Message[name];
for (const name of ['body', 'bodyUsed', 'text', 'json', 'arrayBuffer', 'bytes', 'blob', 'formData']) Object.defineProperty(Message.prototype, name, { enumerable: true });

// How to get at a body that lies in a connection still; set by the class that has such bodies.
const lazy = { stream: null, read: null };

module.exports = { Message, LAZY, lazy, take, tee, isMessage, peek, isStream, extract };
