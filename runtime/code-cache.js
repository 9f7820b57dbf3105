'use strict';
// Makes the code cache of one built module: loads it as a function would, notes every CommonJS file that was compiled and every
// resolution that was made, and writes one file below `.hearth-cache/`. Runs in the build's container; a module that does not load
// simply has no cache.
//
// Usage: node code-cache.js {artifact root} {module name}

const fs = require('node:fs');
const path = require('node:path');
const vm = require('node:vm');
const Module = require('node:module');
const { cacheName, CACHE_DIR, MAGIC } = require('./cache-loader');

const TOTAL_MAX = 64 * 1024 * 1024;

function record(root) {
  const scripts = new Map();
  const resolved = {};
  const resolveFilename = Module._resolveFilename;
  Module._resolveFilename = function (request, parent, isMain, options) {
    const file = resolveFilename.call(this, request, parent, isMain, options);
    if (options === undefined && parent?.filename?.startsWith(root) && file.startsWith(root)) {
      resolved[`${path.dirname(parent.filename).slice(root.length)}\0${request}`] = file.slice(root.length);
    }
    return file;
  };
  const loadJs = Module._extensions['.js'];
  Module._extensions['.js'] = function (module, filename) {
    if (!filename.startsWith(root)) return loadJs.call(this, module, filename);
    let script;
    let source;
    try {
      const text = fs.readFileSync(filename, 'utf8').replace(/^\ufeff/, '').replace(/^#!.*/, '');
      source = Module.wrap(text);
      script = new vm.Script(source, { filename, importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER });
    } catch {
      // An ES module, or nothing V8 can read: Node's own loader decides.
      return loadJs.call(this, module, filename);
    }
    // Noted before it runs and taken out again if it is not CommonJS after all.
    scripts.set(filename, { script, source });
    const require = Object.assign((request) => module.require(request), {
      resolve: (request, options) => Module._resolveFilename(request, module, false, options),
      main: process.mainModule,
      extensions: Module._extensions,
      cache: Module._cache,
    });
    script.runInThisContext().call(module.exports, module.exports, require, module, filename, path.dirname(filename));
  };
  return { scripts, resolved };
}

function write(root, { scripts, resolved }) {
  const files = {};
  const blobs = [];
  let at = 0;
  const add = (buffer) => {
    blobs.push(buffer);
    at += buffer.length;
    return [at - buffer.length, buffer.length];
  };
  for (const [filename, { script, source }] of scripts) {
    // After loading, so that functions which ran while loading are in the cache as well.
    files[filename.slice(root.length)] = [...add(Buffer.from(source, 'utf8')), ...add(script.createCachedData())];
    if (at > TOTAL_MAX) return;
  }
  const index = Buffer.from(JSON.stringify({ magic: MAGIC, bytes: at, files, resolved }), 'utf8');
  const head = Buffer.alloc(4);
  head.writeUInt32LE(index.length);
  const dir = path.join(root, CACHE_DIR);
  fs.mkdirSync(dir, { recursive: true });
  fs.writeFileSync(path.join(dir, cacheName()), Buffer.concat([head, index, ...blobs]));
}

function main() {
  const root = fs.realpathSync(process.argv[2]);
  const recorded = record(root);
  const { exit } = process;
  // Scripts compiled with other flags would be rejected: nothing may be changed while the module loads.
  process.exit = () => {
    throw new Error('the module wanted to exit');
  };
  try {
    require(path.join(root, 'node_modules', process.argv[3]));
  } catch (error) {
    console.log(`no code cache beyond what loaded: ${String(error).slice(0, 200)}`);
  }
  if (recorded.scripts.size > 0) write(root, recorded);
  console.log(`code cache: ${recorded.scripts.size} files`);
  exit.call(process, 0);
}

main();
