'use strict';
// Loads CommonJS files of built modules from the code cache that was made with them (code-cache.js): one read gives the sources, V8's
// compiled code and the resolutions of a whole closure. Whatever does not fit is left to Node; artifacts are immutable and their
// hash was checked, so nothing is compared with the files. Also `require('name@1.2.3')`.

const fs = require('node:fs');
const path = require('node:path');
const vm = require('node:vm');
const Module = require('node:module');
const { setTimeout } = require('node:timers');

const CACHE_DIR = '.hearth-cache';
const MAGIC = 'hearth-code-cache-2';
const WRAPPER = ['(function (exports, require, module, __filename, __dirname) { ', '\n});'];
// Kinds of entries: how the text is stored, and what it is.
const KIND = { WIDE: 1, JSON: 2 };
// The blob is let go of this long after it was read: a closure loads at once or hardly ever.
const BLOB_KEPT_MS = 3000;
const COMPILE = { importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER, columnOffset: -WRAPPER[0].length };
const VERSIONED = /^((?:@[^/@]+\/)?[^/@]+)@(\d[^/]*)(\/.*)?$/;

// Named by what V8 compares: its version (by Node's), and the flags that change compiled code. Their hash stands in every cache.
const cacheName = () => `${process.version}-${process.arch}-${new vm.Script('0').createCachedData().readUInt32LE(12).toString(16)}.bin`;

// Layout: 4 bytes length of the index, the index as JSON, then the blobs that it points into, from a multiple of 8 on.
class Artifact {
  #file;
  #start;
  #blob;
  #isRejected = false;

  constructor(root, file, blob) {
    const length = blob.readUInt32LE(0);
    const index = JSON.parse(blob.toString('latin1', 4, 4 + length));
    if (index.magic !== MAGIC) throw new Error('another format');
    this.root = root;
    this.files = index.files;
    this.resolved = index.resolved;
    this.#file = file;
    this.#start = Math.ceil((4 + length) / 8) * 8;
    this.#blob = blob;
    setTimeout(() => (this.#blob = null), BLOB_KEPT_MS).unref();
  }

  #bytes(at, length) {
    const from = this.#start + at;
    if (this.#blob !== null) return this.#blob.subarray(from, from + length);
    const bytes = Buffer.allocUnsafeSlow(length);
    const fd = fs.openSync(this.#file, 'r');
    try {
      if (fs.readSync(fd, bytes, 0, length, from) !== length) throw new Error('the code cache is shorter than it says');
    } finally {
      fs.closeSync(fd);
    }
    return bytes;
  }

  text([kind, at, length]) {
    const bytes = this.#bytes(at, length);
    return kind & KIND.WIDE ? bytes.ucs2Slice(0, length) : bytes.latin1Slice(0, length);
  }

  compile(entry, filename) {
    const cachedData = this.#isRejected ? undefined : this.#bytes(entry[3], entry[4]);
    const script = new vm.Script(this.text(entry), { ...COMPILE, filename, cachedData });
    if (script.cachedDataRejected) this.#isRejected = true;
    return script.runInThisContext();
  }

  resolve(from, request) {
    const found = this.resolved[from];
    return found !== undefined && Object.hasOwn(found, request) ? this.root + found[request] : undefined;
  }
}

function open(root) {
  const file = path.join(root, CACHE_DIR, cacheName());
  try {
    return new Artifact(root, file, fs.readFileSync(file));
  } catch {
    return null;
  }
}

// As Node makes it for every module.
function makeRequire(module) {
  const require = function require(request) {
    return module.require(request);
  };
  require.resolve = function resolve(request, options) {
    return Module._resolveFilename(request, module, false, options);
  };
  require.resolve.paths = function paths(request) {
    return Module._resolveLookupPaths(request, module);
  };
  require.main = process.mainModule;
  require.extensions = Module._extensions;
  require.cache = Module._cache;
  return require;
}

const functionDirs = new Set();
const addFunctionDir = (dir) => functionDirs.add(dir);

// The version of a package as a module sees it from where it lies.
function visibleVersion(paths, name) {
  for (const at of paths ?? []) {
    try {
      return JSON.parse(fs.readFileSync(path.join(at, name, 'package.json'), 'utf8')).version;
    } catch (error) {
      if (error.code !== 'ENOENT' && error.code !== 'ENOTDIR') throw error;
    }
  }
  return null;
}

// `name@1.2.3` is `name` where that is the version.
function withoutVersion(request, parent) {
  const match = VERSIONED.exec(request);
  if (match === null) return request;
  const [, name, version, rest = ''] = match;
  const found = visibleVersion(parent.paths, name);
  if (found === version) return name + rest;
  const reason = found === null ? `${name} is not a dependency of this function` : `this function has ${name}@${found}`;
  throw Object.assign(new Error(`Cannot find module '${request}': ${reason}`), { code: 'MODULE_NOT_FOUND', requireStack: [parent.filename] });
}

// `modules` is the directory whose entries are `{context}/a/`.
function installCacheLoader(modules) {
  const artifacts = new Map();
  const resolveFilename = Module._resolveFilename;
  const loaders = { js: Module._extensions['.js'], json: Module._extensions['.json'] };
  const realCompile = Module.prototype._compile;

  // The artifact that a file lies in, when it has a cache.
  function artifactOf(file) {
    if (typeof file !== 'string' || !file.startsWith(modules)) return null;
    const end = file.indexOf('/a/', modules.length);
    if (end < 0) return null;
    const root = file.slice(0, end + 2);
    let artifact = artifacts.get(root);
    if (artifact === undefined) artifacts.set(root, (artifact = open(root)));
    return artifact;
  }

  // A function's own `require('express')`: its link says which artifact that is, and the artifact says which file.
  function fromFunction(dir, request) {
    const end = request.indexOf('/', request.charCodeAt(0) === 64 ? request.indexOf('/') + 1 : 0);
    const name = end < 0 ? request : request.slice(0, end);
    try {
      const real = fs.realpathSync.native(`${dir}/node_modules/${name}`);
      const artifact = artifactOf(real);
      return artifact !== null && real === `${artifact.root}/node_modules/${name}` ? artifact.resolve('', request) : undefined;
    } catch {
      return undefined;
    }
  }

  Module._resolveFilename = function _resolveFilename(request, parent, isMain, options) {
    if (options === undefined && typeof request === 'string' && parent?.filename) {
      const dir = parent.path ?? path.dirname(parent.filename);
      const artifact = artifactOf(parent.filename);
      const first = request.charCodeAt(0);
      let found;
      if (artifact !== null) found = artifact.resolve(dir.slice(artifact.root.length), request);
      else if (first !== 46 && first !== 47 && functionDirs.has(dir) && !Module.isBuiltin(request)) found = fromFunction(dir, request);
      if (found !== undefined) return found;
      if (first !== 46 && first !== 47 && request.indexOf('@', 1) > 0) request = withoutVersion(request, parent);
    }
    return Reflect.apply(resolveFilename, this, [request, parent, isMain, options]);
  };

  const entryOf = (artifact, filename) => {
    if (artifact === null) return undefined;
    const name = filename.slice(artifact.root.length);
    return Object.hasOwn(artifact.files, name) ? artifact.files[name] : undefined;
  };

  Module._extensions['.js'] = function (module, filename) {
    const artifact = artifactOf(filename);
    const entry = entryOf(artifact, filename);
    // Who replaced Node's compiler wants to see every source.
    if (entry === undefined || entry[0] & KIND.JSON || Module.prototype._compile !== realCompile) return loaders.js(module, filename);
    let compiled;
    try {
      compiled = artifact.compile(entry, filename);
    } catch {
      return loaders.js(module, filename);
    }
    const { exports } = module;
    Reflect.apply(compiled, exports, [exports, makeRequire(module), module, filename, path.dirname(filename)]);
  };

  Module._extensions['.json'] = function (module, filename) {
    const artifact = artifactOf(filename);
    const entry = entryOf(artifact, filename);
    if (entry === undefined || !(entry[0] & KIND.JSON)) return loaders.json(module, filename);
    module.exports = JSON.parse(artifact.text(entry));
  };
}

module.exports = { installCacheLoader, makeRequire, addFunctionDir, cacheName, CACHE_DIR, MAGIC, WRAPPER, KIND };
