'use strict';
// Which function and which request the running code belongs to, and `process.env` as a view of that function's env and secrets.
// Code that belongs to no function sees an empty environment. It knows nothing of HTTP models, loading or the control protocol.

const { AsyncLocalStorage } = require('node:async_hooks');
const { inspect } = require('node:util');

const scopes = new AsyncLocalStorage();

// Code of a function outside any request: while it loads, and what it left running.
class Scope {
  constructor(fn) {
    this.fn = fn;
    this.requestId = undefined;
    this.res = null;
    this.done = true;
    this.partial = null;
  }
}

// One request of a function.
class Call {
  constructor(fn, requestId, timeoutMs, clientIp, req, res) {
    this.fn = fn;
    this.requestId = requestId;
    this.timeoutMs = timeoutMs;
    this.clientIp = clientIp;
    this.req = req;
    this.res = res;
    // The runtime has decided on the answer; whatever comes later is too late.
    this.done = false;
    // Output without an end of line yet, see logs.js.
    this.partial = null;
  }
}

// Ties a call to its request object where neither reflection nor a changed prototype reaches: a private field put onto a foreign
// object by a constructor that returns it.
class Foreign {
  constructor(object) {
    return object;
  }
}
class Tie extends Foreign {
  #call;
  constructor(object, call) {
    super(object);
    this.#call = call;
  }
  static of(object) {
    return #call in object ? object.#call : undefined;
  }
}
const tie = (req, call) => new Tie(req, call);
const callOf = Tie.of;

// A function's env and secrets as one object with the prototype that `process.env` has.
function createView(env, secrets) {
  const view = {};
  for (const from of [env, secrets]) {
    for (const name of Object.keys(from ?? {})) {
      Object.defineProperty(view, name, { value: String(from[name]), writable: true, enumerable: true, configurable: true });
    }
  }
  return view;
}

const NOTHING = Object.freeze({});
const getScope = scopes.getStore.bind(scopes);
const view = () => getScope()?.fn?.env ?? NOTHING;

// One proxy for the life of the process, so that no request pays for its view.
function installEnvironment() {
  const target = {};
  Object.defineProperty(target, inspect.custom, { value: () => ({ ...view() }), enumerable: false, configurable: true });
  const { defineProperty, getOwnPropertyDescriptor, ownKeys } = Reflect;
  const write = (key, value) => {
    if (typeof key === 'symbol' || typeof value === 'symbol') throw new TypeError('Cannot convert a Symbol value to a string');
    const env = view();
    return env === NOTHING || defineProperty(env, key, { value: `${value}`, writable: true, enumerable: true, configurable: true });
  };
  const proxy = new Proxy(target, {
    get: (own, key) => (key === inspect.custom ? own[key] : view()[key]),
    has: (_, key) => key in view(),
    set: (_, key, value) => write(key, value),
    defineProperty: (_, key, descriptor) => write(key, descriptor.value),
    deleteProperty: (_, key) => {
      const env = view();
      return env === NOTHING || delete env[key];
    },
    ownKeys: () => ownKeys(view()),
    getOwnPropertyDescriptor: (_, key) => {
      const found = getOwnPropertyDescriptor(view(), key);
      if (found) found.configurable = true;
      return found;
    },
    getPrototypeOf: () => Object.prototype,
  });
  Object.defineProperty(process, 'env', { value: proxy, writable: false, enumerable: true, configurable: false });
}

module.exports = {
  installEnvironment,
  createView,
  Scope,
  Call,
  tie,
  callOf,
  run: scopes.run.bind(scopes),
  enter: scopes.enterWith.bind(scopes),
  current: getScope,
};
