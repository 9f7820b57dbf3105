'use strict';
// The functions of this container: several, each in several versions side by side. A version is loaded once, as code of its own;
// whoever asks for it meanwhile waits for the same load.

const Module = require('node:module');
const path = require('node:path');
const { setImmediate, setTimeout } = require('node:timers');
const { run, createView, Scope } = require('./context');
const { loadMain, mainModule } = require('./loader');
const { choose, models } = require('./models');
const { describe } = require('./models/fail');

const ERROR_CHARS_MAX = 8192;
const UNLOAD_POLL_MS = 250;
const { now } = performance;
const elapsed = now.bind(performance);
const MODULES = `${path.sep}node_modules${path.sep}`;

class LoadedFunction {
  constructor(message, control, logs) {
    this.name = message.function;
    this.version = message.version;
    this.key = `${message.function}@${message.version}`;
    this.dir = message.dir;
    this.main = message.main;
    this.asked = message.model ?? null;
    this.env = createView(message.env, message.secrets);
    this.params = createView(message.env);
    this.secrets = createView(message.secrets);
    this.control = control;
    this.logs = logs;
    this.model = null;
    this.call = null;
    this.upgrade = null;
    this.loadError = null;
    this.loading = null;
    this.unloading = false;
    // Runs at start only, its output is nobody's.
    this.silent = false;
  }
}

function createFunctions({ control, logs }) {
  const byKey = new Map();
  let calls = () => [];
  let polling = false;

  async function start(fn) {
    const began = elapsed();
    const ms = () => Math.round((elapsed() - began) * 1000) / 1000;
    try {
      const loaded = await run(new Scope(fn), loadMain, fn);
      fn.model = fn.asked ?? choose(loaded);
      const bound = models[fn.model].bind(fn, loaded);
      fn.upgrade = bound.upgrade ?? null;
      fn.call = bound.call;
      return { model: fn.model, ms: ms() };
    } catch (error) {
      const text = describe(error).slice(0, ERROR_CHARS_MAX);
      logs.lines('error', text, new Scope(fn));
      // A webtask answers its callers itself also when it does not load. An ES module is none unless it is said to be.
      if (fn.asked === 'webtask' || (fn.asked === null && !fn.isModule)) {
        fn.model = 'webtask';
        fn.call = models.webtask.notLoaded(error);
        return { model: fn.model, ms: ms() };
      }
      fn.loadError = text;
      return { error: text, ms: ms() };
    }
  }

  function load(message, silent = false) {
    const key = `${message.function}@${message.version}`;
    let fn = byKey.get(key);
    // What could not be loaded is tried again.
    if (fn === undefined || fn.loadError !== null) {
      fn = new LoadedFunction(message, control, logs);
      fn.silent = silent;
      byKey.set(key, fn);
      fn.loading = start(fn);
    }
    fn.unloading = false;
    return fn.loading;
  }

  function forget(fn) {
    byKey.delete(fn.key);
    const prefix = fn.dir + path.sep;
    for (const file of Object.keys(Module._cache)) if (file.startsWith(prefix)) delete Module._cache[file];
    mainModule.children = mainModule.children.filter((child) => !child.filename?.startsWith(prefix));
  }

  function isBusy(fn) {
    for (const call of calls()) if (call.fn === fn) return true;
    return false;
  }

  // Requests are not counted one by one: the few functions that are to go look whether any is left.
  function sweep() {
    polling = false;
    for (const fn of [...byKey.values()]) {
      if (!fn.unloading) continue;
      if (!isBusy(fn)) forget(fn);
      else if (!polling) {
        polling = true;
        setTimeout(sweep, UNLOAD_POLL_MS).unref();
      }
    }
  }

  function unload(name, version) {
    const fn = byKey.get(`${name}@${version}`);
    if (fn === undefined) return;
    fn.unloading = true;
    if (!polling) sweep();
  }

  // `/hearth/m/{context}/a/node_modules/{name}` is required by its name, so that its `exports` are honoured.
  async function requirePackage(directory) {
    const at = directory.lastIndexOf(MODULES);
    if (at < 0) return Module.createRequire(path.join(directory, 'x.js'))(directory);
    const from = path.join(directory.slice(0, at), 'x.js');
    const name = directory.slice(at + MODULES.length);
    try {
      Module.createRequire(from)(name);
    } catch (error) {
      if (error?.code !== 'ERR_REQUIRE_ASYNC_MODULE' && error?.code !== 'ERR_PACKAGE_PATH_NOT_EXPORTED' && error?.code !== 'ERR_REQUIRE_ESM') throw error;
      await import(Module.createRequire(from).resolve(name));
    }
  }

  // Loads packages ahead of a claim, as nobody's code.
  async function preload(directories) {
    const failed = [];
    const scope = new Scope({ name: undefined, version: undefined, env: Object.freeze({}), preloading: true });
    for (const directory of directories) {
      try {
        await run(scope, requirePackage, directory);
      } catch {
        failed.push(directory);
      }
      // Between two packages the node may ask whether anybody is here.
      await new Promise(setImmediate);
    }
    return failed;
  }

  return {
    load,
    unload,
    preload,
    get: (key) => byKey.get(key),
    loaded: () => [...byKey.values()].filter((fn) => fn.call !== null && !fn.silent).map((fn) => fn.key),
    // How to find the calls that run.
    watch(running) {
      calls = running;
    },
  };
}

module.exports = { createFunctions };
