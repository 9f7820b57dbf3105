'use strict';
// Loads CommonJS files of modules from the code cache that was made when they were built: one read gives sources, V8's compiled code and
// resolutions for a whole closure. Whatever does not fit exactly is left to Node.

const fs = require('node:fs');
const path = require('node:path');
const vm = require('node:vm');
const Module = require('node:module');

const MODULES = process.env.HEARTH_MODULES_DIR || '/hearth/m/';
const CACHE_DIR = '.hearth-cache';
const MAGIC = 'hearth-code-cache-1';

// V8 itself says when its flags are others. What the processor can do, which `v8.cachedDataVersionTag` includes, does not matter to
// bytecode, and machines of one cluster differ in it.
const cacheName = () => `${process.version}-${process.arch}.bin`;

// `{root}/m/{context}/a`, the directory that an artifact is mounted at.
function artifactRoot(file) {
  if (!file.startsWith(MODULES)) return null;
  const end = file.indexOf('/a/', MODULES.length);
  return end < 0 ? null : file.slice(0, end + 2);
}

// Layout: 4 bytes length of the index, the index as JSON, then the blobs that it points into.
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

function makeRequire(module) {
  const require = (request) => module.require(request);
  require.resolve = Object.assign((request, options) => Module._resolveFilename(request, module, false, options), {
    paths: (request) => Module._resolveLookupPaths(request, module),
  });
  require.main = process.mainModule;
  require.extensions = Module._extensions;
  require.cache = Module._cache;
  return require;
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

  const resolveFilename = Module._resolveFilename;
  Module._resolveFilename = function (request, parent, isMain, options) {
    if (options === undefined && parent?.filename && !Module.isBuiltin(request)) {
      const artifact = artifactOf(parent.filename);
      const found = artifact?.resolved.get(`${path.dirname(parent.filename).slice(artifact.root.length)}\0${request}`);
      if (found !== undefined) return artifact.root + found;
    }
    return resolveFilename.call(this, request, parent, isMain, options);
  };

  const loadJs = Module._extensions['.js'];
  Module._extensions['.js'] = function (module, filename) {
    const artifact = artifactOf(filename);
    const entry = artifact?.files.get(filename.slice(artifact.root.length));
    if (entry === undefined) return loadJs.call(this, module, filename);
    const [sourceAt, sourceLength, codeAt, codeLength] = entry;
    const source = artifact.blobs.toString('utf8', sourceAt, sourceAt + sourceLength);
    const script = new vm.Script(source, {
      filename,
      cachedData: artifact.blobs.subarray(codeAt, codeAt + codeLength),
      importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
    });
    // V8 says so when the code was made by another version of it or under other flags.
    if (script.cachedDataRejected) return loadJs.call(this, module, filename);
    const compiled = script.runInThisContext();
    compiled.call(module.exports, module.exports, makeRequire(module), module, filename, path.dirname(filename));
  };
  // Files ending in .cjs have no entry of their own in Node's table; they take the .js path only where a cache holds them.
}

module.exports = { installCacheLoader, artifactRoot, cacheName, CACHE_DIR, MAGIC };
