'use strict';
// Loads CommonJS files of modules from the code cache that was made when they were built: one file has sources, V8's compiled code and
// resolutions for a whole closure. Whatever does not fit exactly, or is hooked by somebody, is left to Node.

const fs = require('node:fs');
const path = require('node:path');
const vm = require('node:vm');
const Module = require('node:module');
const { setImmediate } = require('node:timers');
const { isProxy } = require('node:util').types;

const MODULES = process.env.HEARTH_MODULES_DIR || '/hearth/m/';
const CACHE_DIR = '.hearth-cache';
const MAGIC = 'hearth-code-cache-3';
// V8 copies code that does not begin at a multiple of a pointer's size.
const ALIGNMENT = 8;
// What is read at once at least.
const BLOCK_BYTES = 256 * 1024;

// V8 itself says when its flags are others. What the processor can do, which `v8.cachedDataVersionTag` includes, does not matter to
// bytecode, and machines of one cluster differ in it.
const cacheName = () => `${process.version}-${process.arch}.bin`;

const aligned = (length) => Math.ceil(length / ALIGNMENT) * ALIGNMENT;

// `{root}/m/{context}/a`, the directory that an artifact is mounted at.
function artifactRoot(file) {
  if (!file.startsWith(MODULES)) return null;
  const end = file.indexOf('/a/', MODULES.length);
  return end < 0 ? null : file.slice(0, end + 2);
}

// What was read last, of whichever artifact.
let block = null;
let held = null;

// Layout: 4 bytes length of the index; the index as JSON; source and code of each of its files. Each part begins at a multiple of
// ALIGNMENT. The index has of each file its name below the root, length of the source, its encoding, length of the code, and what it
// required followed by what that was: the number of another file, or the name of one that is not in the cache. `handOns` has those of the
// latter that are ES modules which only hand on a file, and which.
class Artifact {
  #file;
  #length;

  constructor(root, file) {
    this.#file = file;
    const handle = fs.openSync(file);
    try {
      this.#length = fs.fstatSync(handle).size;
      const read = (length, at) => {
        const data = Buffer.allocUnsafeSlow(length);
        if (fs.readSync(handle, data, 0, length, at) !== length) throw new Error('it is cut');
        return data;
      };
      const length = read(4, 0).readUInt32LE(0);
      if (4 + length > this.#length) throw new Error('it is cut');
      const { magic, bytes, files, handOns } = JSON.parse(read(length, 4).toString('utf8'));
      let at = aligned(4 + length);
      // A file that was cut would give cut sources.
      if (magic !== MAGIC || bytes !== this.#length - at) throw new Error('not a whole cache of this format');
      this.files = [];
      this.byName = new Map();
      for (const [name, sourceLength, encoding, codeLength, required] of files) {
        const entry = { name: root + name, required, requests: null, source: at, sourceLength, encoding, code: 0, codeLength };
        entry.code = at + aligned(sourceLength);
        at = entry.code + aligned(codeLength);
        this.files.push(entry);
        this.byName.set(entry.name, entry);
      }
      this.handOns = new Map(Object.entries(handOns).map(([name, number]) => [root + name, this.files[number]]));
    } finally {
      fs.closeSync(handle);
    }
    this.root = root;
  }

  // Source and code of one file, until the next is asked for: files lie in the order in which they were loaded, so that one block of
  // memory serves many of them, and a large cache needs no more of it than a small one.
  parts({ source, sourceLength, encoding, code, codeLength }) {
    if (block === null || block.artifact !== this || source < block.at || code + codeLength > block.at + block.bytes) this.#read(source, code + codeLength - source);
    const { data, at } = block;
    return { text: data.toString(encoding, source - at, source - at + sourceLength), cachedData: data.subarray(code - at, code - at + codeLength) };
  }

  #read(at, needed) {
    const bytes = Math.min(Math.max(needed, BLOCK_BYTES), this.#length - at);
    const old = block?.data;
    block = null;
    const data = old !== undefined && old.length >= bytes ? old : Buffer.allocUnsafeSlow(Math.max(bytes, BLOCK_BYTES));
    const handle = fs.openSync(this.#file);
    try {
      if (fs.fstatSync(handle).size !== this.#length || fs.readSync(handle, data, 0, bytes, at) !== bytes) throw new Error('it has changed');
    } finally {
      fs.closeSync(handle);
    }
    block = { artifact: this, at, bytes, data };
    // Let go of when nothing is being loaded any more.
    held ??= setImmediate(() => (held = block = null)).unref();
  }

  // What `request` is for a file: another file of the cache, the name of one that is not, or nothing known.
  target(entry, request) {
    if (entry.requests === null) {
      entry.requests = new Map();
      for (let i = 0; i < entry.required.length; i += 2) entry.requests.set(entry.required[i], entry.required[i + 1]);
    }
    const found = entry.requests.get(request);
    return typeof found === 'number' ? this.files[found] : found === undefined ? undefined : this.root + found;
  }
}

function open(root) {
  try {
    return new Artifact(root, `${root}/${CACHE_DIR}/${cacheName()}`);
  } catch {
    return null;
  }
}

function installCacheLoader() {
  const artifacts = new Map();
  const artifactOf = (file) => {
    const root = artifactRoot(file);
    if (root === null) return null;
    let artifact = artifacts.get(root);
    if (artifact === undefined) artifacts.set(root, (artifact = open(root)));
    return artifact;
  };

  const { require: nodeRequire } = Module.prototype;
  const { _load: nodeLoad, _resolveFilename: nodeResolve } = Module;
  const { '.js': nodeJs, '.mjs': nodeMjs } = Module._extensions;

  // Who hooks one of these, or registers hooks, wants to see every module.
  let registered = false;
  const { registerHooks } = Module;
  if (registerHooks) {
    Module.registerHooks = (hooks) => {
      registered = true;
      return registerHooks(hooks);
    };
  }
  const unhooked = () =>
    !registered &&
    Module.prototype.require === nodeRequire && Module._load === nodeLoad && Module._resolveFilename === resolveFilename && Module._extensions['.js'] === loadJs;

  // What an ES module only hands on, unless somebody has put another thing in its place or wants to see such files. Node knows that
  // module then; here its CommonJS file stands for it, whose parent is who asked.
  const handedOn = (artifact, name) =>
    Module._cache[name] === undefined && Module._extensions['.mjs'] === nodeMjs ? artifact.handOns.get(name) : undefined;

  function makeRequire(artifact, entry, module) {
    const require = (request) => {
      let found = unhooked() ? artifact.target(entry, request) : undefined;
      if (typeof found === 'string') found = handedOn(artifact, found);
      if (typeof found !== 'object') return module.require(request);
      const cached = Module._cache[found.name];
      if (cached === undefined) return load(artifact, found, module);
      // In a circle, or noted by an import before it runs: Node knows which.
      if (!cached.loaded) return module.require(request);
      if (!module.children.includes(cached)) module.children.push(cached);
      return cached.exports;
    };
    require.resolve = (request, options) => Module._resolveFilename(request, module, false, options);
    require.resolve.paths = (request) => Module._resolveLookupPaths(request, module);
    require.main = process.mainModule;
    require.extensions = Module._extensions;
    require.cache = Module._cache;
    return require;
  }

  // False where the cache cannot be read any more, or V8 says that the code was made by another version of it or under other flags.
  function run(artifact, entry, module) {
    const { name } = entry;
    let parts;
    try {
      parts = artifact.parts(entry);
    } catch {
      return false;
    }
    const script = new vm.Script(parts.text, {
      filename: name,
      cachedData: parts.cachedData,
      importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
    });
    if (script.cachedDataRejected) return false;
    const compiled = script.runInThisContext();
    compiled.call(module.exports, module.exports, makeRequire(artifact, entry, module), module, name, path.dirname(name));
    return true;
  }

  // As Node's own loader does for a file that it has resolved.
  function load(artifact, entry, parent) {
    const module = new Module(entry.name, parent);
    Module._cache[entry.name] = module;
    try {
      module.load(entry.name);
      // Who asked for it through Node while it loaded has given it a prototype that warns of what was not there yet.
      const { exports } = module;
      if (exports !== null && typeof exports === 'object' && !isProxy(exports) && isProxy(Object.getPrototypeOf(exports))) {
        Object.setPrototypeOf(exports, Object.prototype);
      }
    } catch (error) {
      delete Module._cache[entry.name];
      const at = parent.children.indexOf(module);
      if (at >= 0) parent.children.splice(at, 1);
      throw error;
    }
    return module.exports;
  }

  function resolveFilename(request, parent, isMain, options) {
    if (options === undefined && parent?.filename && !Module.isBuiltin(request)) {
      const artifact = artifactOf(parent.filename);
      const entry = artifact?.byName.get(parent.filename);
      const found = entry && artifact.target(entry, request);
      if (found !== undefined) return found.name ?? found;
    }
    return nodeResolve.call(this, request, parent, isMain, options);
  }

  function loadJs(module, filename) {
    const artifact = artifactOf(filename);
    const entry = artifact?.byName.get(filename);
    if (registered || entry === undefined || !run(artifact, entry, module)) nodeJs.call(this, module, filename);
  }

  Module._resolveFilename = resolveFilename;
  // Files ending in .cjs have no entry of their own in Node's table; they take the .js path only where a cache holds them.
  Module._extensions['.js'] = loadJs;
}

module.exports = { installCacheLoader, artifactRoot, cacheName, aligned, CACHE_DIR, MAGIC };
