'use strict';
// Which function and request the running code belongs to, and `process.env` as a view of that function's env and secrets. What runs
// outside any function sees an empty environment.

const { AsyncLocalStorage } = require('node:async_hooks');

const storage = new AsyncLocalStorage();
const NOTHING = Object.freeze(Object.create(null));

function installContext() {
  const view = () => storage.getStore()?.fn.env ?? NOTHING;
  const proxy = new Proxy(Object.create(null), {
    get: (_, key) => (typeof key === 'string' ? view()[key] : undefined),
    has: (_, key) => key in view(),
    set: (_, key, value) => {
      const env = view();
      if (env !== NOTHING) env[key] = String(value);
      return true;
    },
    deleteProperty: (_, key) => {
      const env = view();
      if (env !== NOTHING) delete env[key];
      return true;
    },
    ownKeys: () => Reflect.ownKeys(view()),
    getOwnPropertyDescriptor: (_, key) => {
      const env = view();
      return Object.hasOwn(env, key) ? { value: env[key], writable: true, enumerable: true, configurable: true } : undefined;
    },
    defineProperty: (_, key, descriptor) => {
      const env = view();
      if (env !== NOTHING && 'value' in descriptor) env[key] = String(descriptor.value);
      return true;
    },
  });
  Object.defineProperty(process, 'env', { value: proxy, writable: false, enumerable: true, configurable: false });
}

module.exports = { installContext, run: storage.run.bind(storage), current: () => storage.getStore() };
