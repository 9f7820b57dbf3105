'use strict';
// The web standard's Headers, without undici behind it: loading that costs every process 35 ms and 7 MB, and most functions need no
// more of it than this.

const { inspect } = require('node:util');

const TOKEN = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
const SPACE = /^[\t\n\r ]+|[\t\n\r ]+$/g;
const BAD_VALUE = /[\0\r\n]/;
const NOT_BYTES = /[^\0-\xff]/;

function nameOf(value, method) {
  const name = String(value);
  if (!TOKEN.test(name)) throw new TypeError(`Headers.${method}: ${name} is an invalid header name.`);
  return name.toLowerCase();
}

function valueOf(value, method) {
  let text = String(value);
  if (NOT_BYTES.test(text)) {
    const at = text.search(NOT_BYTES);
    throw new TypeError(`Cannot convert argument to a ByteString because the character at index ${at} has a value of ${text.charCodeAt(at)} which is greater than 255.`);
  }
  text = text.replace(SPACE, '');
  if (BAD_VALUE.test(text)) throw new TypeError(`Headers.${method}: ${text} is an invalid header value.`);
  return text;
}

const needs = (given, count, method) => {
  if (given < count) throw new TypeError(`Headers.${method}: ${count} argument${count > 1 ? 's' : ''} required, but${given ? ' only' : ''} ${given} found.`);
};

class Headers {
  // Lower-case name to its values joined; those of `set-cookie` are kept apart.
  #map = new Map();
  #cookies = [];

  constructor(init = undefined) {
    if (init === undefined) return;
    if ((typeof init !== 'object' && typeof init !== 'function') || init === null) {
      throw new TypeError("Headers constructor: init given is not one of sequence<sequence<ByteString>>, record<ByteString, ByteString>.");
    }
    if (#map in init) {
      this.#map = new Map(init.#map);
      this.#cookies = [...init.#cookies];
      return;
    }
    const iterate = init[Symbol.iterator];
    if (iterate !== undefined && iterate !== null) {
      for (const pair of { [Symbol.iterator]: iterate.bind(init) }) {
        const list = typeof pair === 'object' && pair !== null ? [...pair] : [];
        if (list.length !== 2) throw new TypeError(`Headers constructor: expected name/value pair to be length 2, found ${list.length}.`);
        this.append(list[0], list[1]);
      }
      return;
    }
    for (const key of Reflect.ownKeys(init)) {
      if (!Object.getOwnPropertyDescriptor(init, key)?.enumerable) continue;
      if (typeof key === 'symbol') throw new TypeError('Headers constructor: Symbol is not a ByteString.');
      this.append(key, init[key]);
    }
  }

  #add(name, value) {
    if (name === 'set-cookie') return void this.#cookies.push(value);
    const found = this.#map.get(name);
    this.#map.set(name, found === undefined ? value : `${found}${name === 'cookie' ? '; ' : ', '}${value}`);
  }

  append(name, value) {
    needs(arguments.length, 2, 'append');
    this.#add(nameOf(name, 'append'), valueOf(value, 'append'));
  }
  set(name, value) {
    needs(arguments.length, 2, 'set');
    const key = nameOf(name, 'set');
    const text = valueOf(value, 'set');
    if (key === 'set-cookie') this.#cookies = [text];
    else this.#map.set(key, text);
  }
  delete(name) {
    needs(arguments.length, 1, 'delete');
    const key = nameOf(name, 'delete');
    if (key === 'set-cookie') this.#cookies = [];
    else this.#map.delete(key);
  }
  get(name) {
    needs(arguments.length, 1, 'get');
    const key = nameOf(name, 'get');
    if (key === 'set-cookie') return this.#cookies.length === 0 ? null : this.#cookies.join(', ');
    return this.#map.get(key) ?? null;
  }
  has(name) {
    needs(arguments.length, 1, 'has');
    const key = nameOf(name, 'has');
    return key === 'set-cookie' ? this.#cookies.length > 0 : this.#map.has(key);
  }
  getSetCookie() {
    return [...this.#cookies];
  }

  #sorted() {
    const names = [...this.#map.keys()];
    if (this.#cookies.length > 0) names.push('set-cookie');
    const list = [];
    for (const name of names.sort()) {
      if (name === 'set-cookie') for (const value of this.#cookies) list.push([name, value]);
      else list.push([name, this.#map.get(name)]);
    }
    return list;
  }
  // What changes while somebody iterates shows in what is still to come, as the standard has it.
  *#iterate(pick) {
    for (let i = 0; ; i++) {
      const list = this.#sorted();
      if (i >= list.length) return;
      yield pick(list[i]);
    }
  }
  entries() {
    return this.#iterate((pair) => pair);
  }
  keys() {
    return this.#iterate((pair) => pair[0]);
  }
  values() {
    return this.#iterate((pair) => pair[1]);
  }
  forEach(callback, self = undefined) {
    needs(arguments.length, 1, 'forEach');
    if (typeof callback !== 'function') throw new TypeError("Failed to execute 'forEach' on 'Headers': parameter 1 is not of type 'Function'.");
    for (const [name, value] of this) callback.call(self, value, name, this);
  }
  get [Symbol.toStringTag]() {
    return 'Headers';
  }
  [inspect.custom](depth, options) {
    return `Headers ${inspect(Object.fromEntries(this.#sorted()), { ...options, depth })}`;
  }

  // Of a request that Node has parsed: nothing is left to check.
  static fromRaw(rawHeaders) {
    const headers = new Headers();
    for (let i = 0; i < rawHeaders.length; i += 2) headers.#add(rawHeaders[i].toLowerCase(), rawHeaders[i + 1]);
    return headers;
  }
  static is(value) {
    return typeof value === 'object' && value !== null && #map in value;
  }
}
Headers.prototype[Symbol.iterator] = Headers.prototype.entries;
const { fromRaw, is } = Headers;
delete Headers.fromRaw;
delete Headers.is;
for (const name of ['append', 'delete', 'get', 'has', 'set', 'getSetCookie', 'keys', 'values', 'entries', 'forEach']) {
  Object.defineProperty(Headers.prototype, name, { enumerable: true });
}
Object.defineProperty(Headers.prototype, Symbol.iterator, { enumerable: false });

module.exports = { Headers, fromRaw, isHeaders: is };
