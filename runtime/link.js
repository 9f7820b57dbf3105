'use strict';
// The link: many requests at once over one connection, for the models that need none of Node's own HTTP objects. Frames are described in
// `model/src/protocol.rs`. A request comes with all of its body; an answer goes in one frame, or in several under a window, so that
// a client that reads slowly holds up nobody else.

const net = require('node:net');
const { IncomingMessage, validateHeaderName, validateHeaderValue } = require('node:http');

const NOTHING = Buffer.alloc(0);
const HEADER_BYTES = 9;
const FRAME_MAX = 192 * 1024;
// How much of one answer may be on its way: what the node has not passed on yet. Every frame counts for some bytes more than it has.
const WINDOW = 64 * 1024;
const FRAME_COST = 64;
const BUFFER = 16 * 1024;
// Of one answer's headers; the node takes no more.
const HEAD_MAX = 64 * 1024;

const [CALL, CANCEL, CREDIT] = [1, 2, 3];
const [ANSWER, DATA, END, BROKEN] = [1, 2, 3, 4];

// Answers that are ready so soon after calls were read, or others were sent, go together. Only whole milliseconds are looked at.
const TOGETHER_MS = 2;

// Taken before any function runs: one that alters the clock or timers alters its own.
const { now } = Date;
const { setImmediate: later } = require('node:timers');
const addHeaderLine = IncomingMessage.prototype._addHeaderLine;

// What the models use of an `http.IncomingMessage`.
class LinkRequest {
  #headers = null;
  constructor(method, originalUrl, prefix, rawHeaders, body) {
    this.method = method;
    this.originalUrl = originalUrl;
    const rest = originalUrl.slice(prefix);
    this.url = rest.charCodeAt(0) === 47 ? rest : `/${rest}`;
    this.rawHeaders = rawHeaders;
    this.body = body;
  }
  get httpVersion() { return '1.1'; }
  get headers() {
    if (this.#headers === null) {
      const raw = this.rawHeaders;
      this.#headers = {};
      for (let i = 0; i < raw.length; i += 2) addHeaderLine.call(this, raw[i], raw[i + 1], this.#headers);
    }
    return this.#headers;
  }
}

const view = (bytes) => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);

// What the models use of an `http.ServerResponse`.
class LinkResponse {
  #link;
  #id;
  #bodiless;
  #status = 200;
  // Name and value of every header, one after the other; nobody looks one up by its name often enough for a map.
  #headers = [];
  #listeners = [];
  #headSent = false;
  #waiting = [];
  #onWay = 0;
  #ending = false;
  headersSent = false;
  writableFinished = false;
  destroyed = false;
  // Set when the function has returned: then its answer may wait for others that go at the same time. Until then it goes at once, since
  // nobody knows how long the function will keep the event loop.
  returned = false;

  constructor(link, id, method) {
    this.#link = link;
    this.#id = id;
    this.#bodiless = method === 'HEAD';
  }

  // `close` and `drain`; a listener is called once.
  on(event, listener) {
    this.#listeners.push(event, listener);
    return this;
  }
  once(event, listener) { return this.on(event, listener); }

  #emit(event) {
    const listeners = this.#listeners;
    this.#listeners = [];
    for (let i = 0; i < listeners.length; i += 2) {
      if (listeners[i] === event) listeners[i + 1].call(this);
      else this.#listeners.push(listeners[i], listeners[i + 1]);
    }
  }

  getHeaderNames() { return this.#headers.filter((_, i) => i % 2 === 0).map((name) => name.toLowerCase()); }
  hasHeader(name) { return this.getHeaderNames().includes(name.toLowerCase()); }

  removeHeader(name) {
    const kept = [];
    const headers = this.#headers;
    for (let i = 0; i < headers.length; i += 2) {
      if (headers[i].toLowerCase() !== name.toLowerCase()) kept.push(headers[i], headers[i + 1]);
    }
    this.#headers = kept;
  }

  setHeader(name, value) {
    this.removeHeader(String(name));
    this.appendHeader(name, value);
  }

  appendHeader(name, value) {
    validateHeaderName(name);
    for (const one of Array.isArray(value) ? value : [value]) {
      validateHeaderValue(name, one);
      this.#headers.push(name, one);
    }
  }

  // Headers as an object replace those of the same name, as a list they come as they are.
  writeHead(status, ...rest) {
    if (this.headersSent) throw new Error('Cannot write headers after they are sent to the client');
    const headers = rest[rest.length - 1];
    if (Array.isArray(headers)) for (let i = 0; i < headers.length; i += 2) this.appendHeader(headers[i], headers[i + 1]);
    else if (typeof headers === 'object') for (const name of Object.keys(headers)) this.setHeader(name, headers[name]);
    this.#status = status;
    if (status === 204 || status === 304) this.#bodiless = true;
    this.headersSent = true;
  }

  #sendHead(whole, body) {
    const head = this.#headers.join('\n');
    this.#headSent = true;
    if (head.length > HEAD_MAX) this.destroy();
    else this.#link.answer(this.#id, this.#status, whole, head, body);
  }

  flushHeaders() {
    if (!this.headersSent) this.writeHead(this.#status);
    if (!this.#headSent && !this.destroyed) this.#sendHead(false, '');
  }

  write(chunk) {
    if (this.destroyed || this.#ending) return false;
    this.flushHeaders();
    if (this.destroyed || this.#bodiless) return true;
    const bytes = typeof chunk === 'string' ? Buffer.from(chunk) : view(chunk);
    if (bytes.length === 0) return true;
    this.#waiting.push(bytes);
    this.#pump();
    return this.#waiting.length === 0;
  }

  end(body = '') {
    if (this.destroyed || this.#ending) return;
    if (!this.headersSent) this.writeHead(this.#status);
    if (!this.#headSent && (this.#bodiless || body.length <= WINDOW / 3)) {
      this.#ending = true;
      this.#sendHead(true, this.#bodiless ? '' : body);
      if (!this.destroyed) this.#close(true);
      return;
    }
    this.write(body);
    this.#ending = true;
    this.#pump();
  }

  // Sends as much as the window takes.
  #pump() {
    while (this.#waiting.length > 0 && this.#onWay + FRAME_COST < WINDOW) {
      const [first] = this.#waiting;
      // Its function took the memory away while it waited.
      if (first.length === 0) return this.destroy();
      const bytes = Math.min(first.length, WINDOW - this.#onWay - FRAME_COST);
      this.#link.frame(this.#id, DATA, first.subarray(0, bytes));
      this.#onWay += bytes + FRAME_COST;
      if (bytes === first.length) this.#waiting.shift();
      else this.#waiting[0] = first.subarray(bytes);
    }
    if (this.#ending && this.#waiting.length === 0 && !this.writableFinished && !this.destroyed) {
      this.#link.frame(this.#id, END);
      this.#close(true);
    }
    this.#link.flush();
  }

  // The node has passed so many bytes on.
  credit(bytes) {
    this.#onWay -= bytes;
    const full = this.#waiting.length > 0;
    this.#pump();
    if (full && this.#waiting.length === 0) this.#emit('drain');
  }

  // An answer that is not whole, or that nobody waits for: the node hears that nothing follows.
  destroy() {
    if (this.destroyed || this.writableFinished) return;
    this.#link.frame(this.#id, BROKEN);
    this.cancelled();
  }

  // Nobody can be told any more.
  cancelled() {
    if (this.destroyed || this.writableFinished) return;
    this.destroyed = true;
    this.#waiting = [];
    this.#close(false);
  }

  #close(finished) {
    this.writableFinished = finished;
    if (!this.returned) this.#link.flush();
    this.#link.forget(this.#id);
    this.#emit('close');
  }

  // The process ends now: nothing asynchronous happens any more.
  leave(status, headers, body) {
    if (this.headersSent || this.destroyed) return;
    this.#headers = [];
    this.writeHead(status, headers);
    this.end(body);
  }
}

const links = new Set();

class Link {
  #socket;
  #calls;
  #exchanges = new Map();
  // What was read and not taken yet, from `#at` on; and the turns that calls in it wait for.
  #unread = null;
  #at = 0;
  #turns = 0;
  #began = 0;
  #out = Buffer.allocUnsafeSlow(BUFFER);
  #used = 0;

  constructor(socket, calls) {
    this.#socket = socket;
    this.#calls = calls;
    this.flush = this.flush.bind(this);
    links.add(this);
    socket.on('data', (chunk) => this.#read(chunk));
    socket.on('error', () => {});
    socket.on('close', () => {
      links.delete(this);
      for (const res of [...this.#exchanges.values()]) res.cancelled();
    });
  }

  #read(data) {
    this.flush();
    this.#began = now();
    this.#unread = this.#unread === null ? data : Buffer.concat([this.#unread.subarray(this.#at), data]);
    this.#at = 0;
    // Each call in a turn of its own, as if it had come alone: what the one before it does once it has started comes first. It is taken apart
    // only then, since what lives from turn to turn costs the garbage collector most.
    const atOnce = this.#turns === 0 ? 1 : 0;
    for (let calls = this.#waiting().length - atOnce; this.#turns < calls; this.#turns += 1) later(this.#turn);
    if (atOnce === 1) this.#advance();
  }

  #turn = () => {
    this.#turns -= 1;
    this.#advance();
  };

  // The exchanges of the calls that are there as a whole and wait for their turns.
  #waiting() {
    const chunk = this.#unread;
    const ids = [];
    for (let at = this.#at; chunk !== null && at + HEADER_BYTES <= chunk.length;) {
      const end = at + HEADER_BYTES + chunk.readUInt32LE(at);
      if (chunk[at + 8] === CALL && end <= chunk.length) ids.push(chunk.readUInt32LE(at + 4));
      at = end;
    }
    return ids;
  }

  // Takes frames up to the second call, or those that are there.
  #advance() {
    for (let started = false; this.#unread !== null && !this.#socket.destroyed;) {
      const [chunk, at] = [this.#unread, this.#at];
      if (at + HEADER_BYTES > chunk.length) return;
      const bytes = chunk.readUInt32LE(at);
      if (bytes > FRAME_MAX) return void this.#socket.destroy();
      const [start, end] = [at + HEADER_BYTES, at + HEADER_BYTES + bytes];
      const isCall = chunk[at + 8] === CALL;
      if (end > chunk.length || (isCall && started)) return;
      // What remains is set before a frame does anything, so that nothing it does can make another one be read from its middle.
      this.#at = end;
      if (end === chunk.length) this.#unread = null;
      this.#take(chunk.readUInt32LE(at + 4), chunk[at + 8], chunk, start, end);
      started ||= isCall;
    }
  }

  // Whatever one frame throws is its own exchange's matter.
  #guard(id, run) {
    try {
      run();
    } catch (error) {
      this.#calls.escaped(error);
      this.#exchanges.get(id)?.destroy();
    }
  }

  // Takes a frame.
  #take(id, kind, chunk, start, end) {
    if (kind === CALL) {
      const head = start + 4 + (end - start < 4 ? FRAME_MAX : chunk.readUInt32LE(start));
      if (head > end || this.#exchanges.has(id)) return void this.#socket.destroy();
      const fields = chunk.toString('latin1', start + 4, head).split('\n');
      const [key, requestId, timeoutMs, prefix, clientIp, method, target] = fields;
      if (target === undefined) return void this.#socket.destroy();
      const req = new LinkRequest(method, target, +prefix, fields.slice(7), head === end ? NOTHING : chunk.subarray(head, end));
      const res = new LinkResponse(this, id, method);
      this.#exchanges.set(id, res);
      this.#calls.start({ key, requestId, timeoutMs: +timeoutMs, clientIp, req, res });
    } else if (kind === CANCEL) this.#guard(id, () => this.#exchanges.get(id)?.destroy());
    else if (kind === CREDIT && end - start === 4) this.#guard(id, () => this.#exchanges.get(id)?.credit(chunk.readUInt32LE(start)));
    else this.#socket.destroy();
  }

  forget(id) { this.#exchanges.delete(id); }

  // The process ends now: whoever waits is told, also those whose calls have not begun.
  leave(status, headers, body) {
    for (const id of this.#waiting()) if (!this.#exchanges.has(id)) this.#exchanges.set(id, new LinkResponse(this, id, ''));
    for (const res of [...this.#exchanges.values()]) res.leave(status, headers, body);
    this.flush();
  }

  // Room for so many bytes in the buffer that is sent when all that runs now has run.
  #room(bytes) {
    if (this.#used + bytes > this.#out.length) {
      this.flush();
      if (bytes > this.#out.length) this.#out = Buffer.allocUnsafeSlow(bytes);
    }
    if (this.#used === 0) later(this.flush);
    return this.#used;
  }

  #header(at, bytes, id, kind) {
    const out = this.#out;
    out.writeUInt32LE(bytes, at);
    out.writeUInt32LE(id, at + 4);
    out[at + 8] = kind;
    this.#used = at + HEADER_BYTES + bytes;
  }

  frame(id, kind, payload) {
    const bytes = payload?.length ?? 0;
    const at = this.#room(HEADER_BYTES + bytes);
    this.#header(at, bytes, id, kind);
    payload?.copy(this.#out, at + HEADER_BYTES);
  }

  answer(id, status, whole, head, body) {
    const isText = typeof body === 'string';
    // At most three bytes for a text's every unit.
    const at = this.#room(HEADER_BYTES + 7 + head.length + (isText ? 3 * body.length : body.length));
    const out = this.#out;
    let end = at + HEADER_BYTES;
    out.writeUInt16LE(status, end);
    out[end + 2] = whole ? 1 : 0;
    out.writeUInt32LE(head.length, end + 3);
    end += 7;
    end += out.write(head, end, 'latin1');
    if (isText) end += out.write(body, end, 'utf8');
    else end += view(body).copy(out, end);
    this.#header(at, end - at - HEADER_BYTES, id, ANSWER);
    if (now() - this.#began >= TOGETHER_MS) this.flush();
  }

  flush() {
    if (this.#used === 0) return;
    const chunk = this.#out.subarray(0, this.#used);
    this.#used = 0;
    this.#began = now();
    if (this.#socket.destroyed) return;
    this.#socket.write(chunk);
    // What the kernel did not take at once belongs to the socket now.
    if (this.#socket.writableLength > 0 || this.#out.length > BUFFER) this.#out = Buffer.allocUnsafeSlow(BUFFER);
  }
}

// Answers whoever waits, before the process ends.
function leaveLinks(status, headers, body) {
  for (const link of links) link.leave(status, headers, body);
}

const createLinkServer = (calls) => net.createServer((socket) => void new Link(socket, calls));

module.exports = { createLinkServer, leaveLinks };
