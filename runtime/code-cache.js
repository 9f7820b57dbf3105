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
const { cacheName, aligned, CACHE_DIR, MAGIC } = require('./cache-loader');

const TOTAL_MAX = 64 * 1024 * 1024;

// By its name and the nearest package.json, as Node decides for a file that could be read as either.
function isEsModule(root, filename) {
  if (filename.endsWith('.mjs')) return true;
  if (filename.endsWith('.cjs')) return false;
  for (let dir = path.dirname(filename); dir.startsWith(root); dir = path.dirname(dir)) {
    try {
      return JSON.parse(fs.readFileSync(path.join(dir, 'package.json'), 'utf8')).type === 'module';
    } catch (error) {
      if (error.code !== 'ENOENT') return false;
    }
  }
  return false;
}

function record(root) {
  const scripts = new Map();
  // By directory, since Node asks once for all files of one.
  const resolved = new Map();
  const resolveFilename = Module._resolveFilename;
  Module._resolveFilename = function (request, parent, isMain, options) {
    const file = resolveFilename.call(this, request, parent, isMain, options);
    if (options === undefined && parent?.filename?.startsWith(root) && file.startsWith(root)) {
      resolved.set(`${parent.path}\0${request}`, file);
    }
    return file;
  };
  const loadJs = Module._extensions['.js'];
  Module._extensions['.js'] = function (module, filename) {
    if (!filename.startsWith(root) || isEsModule(root, filename)) return loadJs.call(this, module, filename);
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
    const requests = new Set();
    scripts.set(filename, { script, source, requests });
    const note = (request) => {
      requests.add(request);
      return module.require(request);
    };
    const require = Object.assign(note, {
      resolve: (request, options) => Module._resolveFilename(request, module, false, options),
      main: process.mainModule,
      extensions: Module._extensions,
      cache: Module._cache,
    });
    script.runInThisContext().call(module.exports, module.exports, require, module, filename, path.dirname(filename));
  };
  return { scripts, resolved };
}

// An ES module that does nothing but hand on a CommonJS file, as many packages have for `require` (the condition `module-sync`): Node's
// loader of ES modules takes as long for it as for several files.
const HANDS_ON = /^\s*import (\w+) from '(\.{1,2}\/[\w./-]+\.c?js)';\s*export default \1;\s*export \{ \1 as 'module\.exports' \};\s*$/;

function handedOn(file) {
  try {
    const match = file.endsWith('.mjs') && HANDS_ON.exec(fs.readFileSync(file, 'utf8'));
    return match ? path.resolve(path.dirname(file), match[2]) : null;
  } catch {
    // The module has removed it since.
    return null;
  }
}

function write(root, { scripts, resolved }) {
  const numbers = new Map([...scripts.keys()].map((filename, number) => [filename, number]));
  const handOns = {};
  for (const file of new Set(resolved.values())) {
    const number = numbers.get(handedOn(file));
    if (number !== undefined) handOns[file.slice(root.length)] = number;
  }
  const files = [];
  const parts = [];
  let bytes = 0;
  const add = (buffer) => {
    const padding = aligned(buffer.length) - buffer.length;
    parts.push(buffer, Buffer.alloc(padding));
    bytes += buffer.length + padding;
    return buffer.length;
  };
  for (const [filename, { script, source, requests }] of scripts) {
    // What V8 keeps a string as, so that reading it is copying it.
    const encoding = /^[\0-\xff]*$/.test(source) ? 'latin1' : 'utf16le';
    const required = [...requests].flatMap((request) => {
      const file = resolved.get(`${path.dirname(filename)}\0${request}`);
      return file === undefined ? [] : [request, numbers.get(file) ?? file.slice(root.length)];
    });
    // After loading, so that functions which ran while loading are in the cache as well.
    files.push([filename.slice(root.length), add(Buffer.from(source, encoding)), encoding, add(script.createCachedData()), required]);
    if (bytes > TOTAL_MAX) return;
  }
  const index = Buffer.from(JSON.stringify({ magic: MAGIC, bytes, files, handOns }), 'utf8');
  const head = Buffer.alloc(4);
  head.writeUInt32LE(index.length);
  const padding = Buffer.alloc(aligned(4 + index.length) - 4 - index.length);
  const dir = path.join(root, CACHE_DIR);
  fs.mkdirSync(dir, { recursive: true });
  fs.writeFileSync(path.join(dir, cacheName()), Buffer.concat([head, index, padding, ...parts]));
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
