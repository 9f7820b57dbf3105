'use strict';
// The functions of this container: several, each in several versions side by side. A version is loaded once, in the context of its own
// environment; whoever asks for it meanwhile waits for the same load.

const { run } = require('./context');
const { loadMain } = require('./loader');
const { choose, models } = require('./models');
const { describe } = require('./models/fail');
const path = require('node:path');

function createFunctions({ control, logs }) {
  const byKey = new Map();

  function define(message) {
    const env = Object.assign(Object.create(null), message.env, message.secrets);
    return {
      name: message.function,
      version: message.version,
      key: `${message.function}@${message.version}`,
      dir: message.dir,
      main: message.main,
      asked: message.model ?? null,
      env,
      params: Object.assign(Object.create(null), message.env),
      secrets: Object.assign(Object.create(null), message.secrets),
      control,
      logs,
      model: null,
      call: null,
      upgrade: null,
      // Whether it can be called over the link.
      linked: true,
      inFlight: 0,
      unloading: false,
      loading: null,
    };
  }

  async function start(fn) {
    const began = process.hrtime.bigint();
    const elapsed = () => Number((process.hrtime.bigint() - began) / 1000n) / 1000;
    try {
      const loaded = await run({ fn, requestId: undefined }, () => loadMain(fn));
      fn.model = fn.asked ?? choose(loaded);
      const bound = models[fn.model].bind(fn, loaded);
      fn.call = bound.call;
      fn.upgrade = bound.upgrade ?? null;
      fn.linked = bound.linked ?? true;
      return { model: fn.model, linked: fn.linked, ms: elapsed() };
    } catch (error) {
      const model = fn.asked ?? 'webtask';
      const text = describe(error);
      logs.lines('error', text, { fn, requestId: undefined });
      // A webtask answers for itself also when it does not load; an ES module is none unless it says so.
      if (model === 'webtask' && (fn.asked || !error?.isModule)) {
        fn.model = 'webtask';
        fn.call = models.webtask.notLoaded(error);
        return { model: fn.model, linked: true, ms: elapsed() };
      }
      byKey.delete(fn.key);
      return { error: text.slice(0, 8192), ms: elapsed() };
    }
  }

  function load(message) {
    const key = `${message.function}@${message.version}`;
    let fn = byKey.get(key);
    if (!fn) {
      fn = define(message);
      byKey.set(key, fn);
      fn.loading = start(fn);
    }
    fn.unloading = false;
    return fn.loading;
  }

  function forget(fn) {
    byKey.delete(fn.key);
    const prefix = fn.dir + path.sep;
    for (const file of Object.keys(require.cache)) if (file.startsWith(prefix)) delete require.cache[file];
  }

  function unload(name, version) {
    const fn = byKey.get(`${name}@${version}`);
    if (!fn) return;
    fn.unloading = true;
    if (fn.inFlight === 0) forget(fn);
  }

  function release(fn) {
    fn.inFlight -= 1;
    if (fn.unloading && fn.inFlight === 0) forget(fn);
  }

  // Loads packages ahead of a claim, in no function's context.
  async function preload(directories) {
    const failed = [];
    for (const directory of directories) {
      try {
        require(directory);
      } catch {
        failed.push(directory);
      }
    }
    return failed;
  }

  return {
    load,
    unload,
    release,
    preload,
    get: (key) => byKey.get(key),
    loaded: () => [...byKey.values()].filter((fn) => fn.call && !fn.name.startsWith('.')).map(({ key, linked }) => ({ key, linked })),
  };
}

module.exports = { createFunctions };
