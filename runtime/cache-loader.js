'use strict';
// Loads CommonJS and JSON files of modules from the code cache that was made when they were built: one read gives sources, V8's compiled code and
// resolutions for a whole closure. Whatever does not fit exactly is left to Node.

const fs = require('node:fs');
const path = require('node:path');
const v8 = require('node:v8');
const vm = require('node:vm');
const Module = require('node:module');

const MODULES = process.env.HEARTH_MODULES_DIR || '/hearth/m/';
const CACHE_DIR = '.hearth-cache';
const MAGIC = 'hearth-code-cache-2';

const cacheName = () => `${process.version}-${process.arch}-${v8.cachedDataVersionTag()}.bin`;

// `{root}/m/{context}/a`, the directory that an artifact is mounted at.
function artifactRoot(file) {
  if (!file.startsWith(MODULES)) return null;
  const end = file.indexOf('/a/', MODULES.length);
  return end < 0 ? null : file.slice(0, end + 2);
}

// Layout: 4 bytes length of the index, the index as JSON, then the blobs that it points into. A file is [start and length of its source,
// 1 if that is ASCII, start and length of V8's code]; JSON has no code.
function open(root) {
  let data;
  try {
    data = fs.readFileSync(path.join(root, CACHE_DIR, cacheName()));
  } catch {
    return null;
  }
  try {
    const length = data.readUInt32LE(0);
    const index = JSON.parse(data.toString('utf8', 4, 4 + length));
    const blobs = data.subarray(4 + length);
    // A file that was cut would give cut sources.
    if (index.magic !== MAGIC || index.bytes !== blobs.length) return null;
    return { root, files: new Map(Object.entries(index.files)), resolved: new Map(Object.entries(index.resolved)), blobs };
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
  const resolvedIn = (artifact, dir, request) => {
    const found = artifact.resolved.get(`${dir.slice(artifact.root.length)}\0${request}`);
    return found === undefined ? undefined : artifact.root + found;
  };
  const entryOf = (artifact, filename) => artifact.files.get(filename.slice(artifact.root.length));
  const text = ({ blobs }, at, length, ascii) => (ascii ? blobs.latin1Slice(at, at + length) : blobs.utf8Slice(at, at + length));

  const resolveFilename = Module._resolveFilename;
  const ourResolve = function (request, parent, isMain, options) {
    if (options === undefined && parent?.filename && !Module.isBuiltin(request)) {
      const artifact = artifactOf(parent.filename);
      const found = artifact && resolvedIn(artifact, path.dirname(parent.filename), request);
      if (found) return found;
    }
    return resolveFilename.call(this, request, parent, isMain, options);
  };
  Module._resolveFilename = ourResolve;

  // A module's file from the cache; false where Node has to do it.
  function loadCached(artifact, entry, module, filename) {
    const [sourceAt, sourceLength, ascii, codeAt, codeLength] = entry;
    const source = text(artifact, sourceAt, sourceLength, ascii);
    if (codeAt === undefined) {
      module.exports = JSON.parse(source);
      return true;
    }
    const script = new vm.Script(source, {
      filename,
      cachedData: artifact.blobs.subarray(codeAt, codeAt + codeLength),
      importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
    });
    // V8 says so when the code was made by another version of it or under other flags.
    if (script.cachedDataRejected) return false;
    const compiled = script.runInThisContext();
    const dir = path.dirname(filename);
    compiled.call(module.exports, module.exports, makeRequire(artifact, module, dir), module, filename, dir);
    return true;
  }

  const load = {};
  for (const extension of ['.js', '.json']) {
    const original = Module._extensions[extension];
    // Files ending in .cjs have no entry of their own in Node's table; they take the .js path only where a cache holds them.
    load[extension] = Module._extensions[extension] = function (module, filename) {
      const artifact = artifactOf(filename);
      const entry = artifact && entryOf(artifact, filename);
      if (entry === undefined || entry === null || !loadCached(artifact, entry, module, filename)) return original.call(this, module, filename);
    };
  }

  // Whether all is as this file and Node left it: a function's own hooks into `require` see every module (listeners of diagnostics channels do not).
  let hooked = false;
  const { registerHooks } = Module;
  if (registerHooks) {
    Module.registerHooks = (hooks) => {
      hooked = true;
      return registerHooks(hooks);
    };
  }
  const originals = { load: Module._load, require: Module.prototype.require, protoLoad: Module.prototype.load };
  const unhooked = () =>
    !hooked &&
    Module._extensions['.cjs'] === undefined &&
    Module._load === originals.load &&
    Module.prototype.require === originals.require &&
    Module.prototype.load === originals.protoLoad &&
    Module._resolveFilename === ourResolve &&
    Module._extensions['.js'] === load['.js'] &&
    Module._extensions['.json'] === load['.json'];

  const loading = new Set();

  // `require` between files of one artifact, without Node's way through lookups, caches of stats and tracing: half of the time that a
  // closure of sixty small files takes to load is spent there.
  function requireWithin(artifact, module, dir, request) {
    const filename = resolvedIn(artifact, dir, request);
    if (filename === undefined) return module.require(request);
    const known = Module._cache[filename];
    if (known !== undefined && (known.loaded || loading.has(known))) {
      if (!module.children.includes(known)) module.children.push(known);
      return known.exports;
    }
    const entry = entryOf(artifact, filename);
    // What Node is loading it must go on with.
    if (known !== undefined || entry === undefined) return module.require(request);
    const child = new Module(filename, module);
    Module._cache[filename] = child;
    loading.add(child);
    let done = false;
    try {
      child.filename = filename;
      child.paths = Module._nodeModulePaths(path.dirname(filename));
      done = loadCached(artifact, entry, child, filename);
    } finally {
      loading.delete(child);
      if (!done) {
        delete Module._cache[filename];
        const at = module.children.indexOf(child);
        if (at >= 0) module.children.splice(at, 1);
      }
    }
    if (!done) return module.require(request);
    child.loaded = true;
    return child.exports;
  }

  function makeRequire(artifact, module, dir) {
    const require = (request) => (unhooked() ? requireWithin(artifact, module, dir, request) : module.require(request));
    require.resolve = Object.assign((request, options) => Module._resolveFilename(request, module, false, options), {
      paths: (request) => Module._resolveLookupPaths(request, module),
    });
    require.main = process.mainModule;
    require.extensions = Module._extensions;
    require.cache = Module._cache;
    return require;
  }
}

module.exports = { installCacheLoader, artifactRoot, cacheName, CACHE_DIR, MAGIC };
