'use strict';
// Makes the code cache of one built module: loads it as a function would, notes every CommonJS and JSON file that was loaded and every
// resolution inside the artifact, and writes one file below `.hearth-cache/`. Runs in the build's container, where the module's code is
// as untrusted as anywhere. A module that does not load, never ends or exits has the cache of what it loaded until then, or none: that
// is never an error of the build.
//
// Usage: node code-cache.js {artifact root} {module name}

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const vm = require('node:vm');
const v8 = require('node:v8');
const Module = require('node:module');
const { makeRequire, cacheName, CACHE_DIR, MAGIC, WRAPPER, KIND } = require('./cache-loader');

const TOTAL_BYTES_MAX = 64 * 1024 * 1024;
const LOAD_MS_MAX = 60_000;
// After the module is there, for what it loads a moment later.
const SETTLE_MS = 50;
const COMPILE = { importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER, columnOffset: -WRAPPER[0].length };

// Whether Node takes `.js` files there for ES modules.
function createTypes(root) {
  const known = new Map();
  const isModuleDir = (dir) => {
    if (!known.has(dir)) {
      let type;
      try {
        type = JSON.parse(fs.readFileSync(path.join(dir, 'package.json'), 'utf8')).type ?? 'commonjs';
      } catch {
        type = undefined;
      }
      const isTop = dir === root || path.basename(dir) === 'node_modules' || dir.length <= root.length;
      known.set(dir, type === undefined ? !isTop && isModuleDir(path.dirname(dir)) : type === 'module');
    }
    return known.get(dir);
  };
  return (file) => file.endsWith('.mjs') || (!file.endsWith('.cjs') && isModuleDir(path.dirname(file)));
}

function record(root) {
  const texts = new Map();
  const resolved = {};
  const isModule = createTypes(root);
  const inside = (file) => typeof file === 'string' && file.startsWith(root + path.sep);
  const resolveFilename = Module._resolveFilename;
  Module._resolveFilename = function (request, parent, isMain, options) {
    const file = Reflect.apply(resolveFilename, this, [request, parent, isMain, options]);
    if (options === undefined && inside(parent?.filename) && inside(file)) {
      const from = path.dirname(parent.filename).slice(root.length);
      (resolved[from] ??= {})[request] = file.slice(root.length);
    }
    return file;
  };
  const loadJs = Module._extensions['.js'];
  Module._extensions['.js'] = function (module, filename) {
    if (!inside(filename) || isModule(filename)) return loadJs(module, filename);
    let script;
    let source;
    try {
      const text = fs.readFileSync(filename, 'utf8').replace(/^\ufeff/, '');
      source = WRAPPER[0] + (text.startsWith('#!') ? `//${text}` : text) + WRAPPER[1];
      script = new vm.Script(source, { ...COMPILE, filename });
    } catch {
      // An ES module without saying so, or nothing that V8 can read: Node's own loader decides.
      return loadJs(module, filename);
    }
    texts.set(filename, { source, script });
    const { exports } = module;
    Reflect.apply(script.runInThisContext(), exports, [exports, makeRequire(module), module, filename, path.dirname(filename)]);
  };
  const loadJson = Module._extensions['.json'];
  Module._extensions['.json'] = function (module, filename) {
    loadJson(module, filename);
    if (inside(filename)) texts.set(filename, { source: fs.readFileSync(filename, 'utf8').replace(/^\ufeff/, ''), script: null });
  };
  return { texts, resolved };
}

function write(root, { texts, resolved }) {
  const files = {};
  const blobs = [];
  let at = 0;
  const add = (bytes) => {
    const entry = [at, bytes.length];
    // V8 copies compiled code that does not lie at a multiple of 8.
    const padding = Buffer.alloc((8 - (bytes.length % 8)) % 8);
    blobs.push(bytes, padding);
    at += bytes.length + padding.length;
    return entry;
  };
  for (const [filename, { source, script }] of texts) {
    // Made now, so that functions which ran while the module loaded are in it as well.
    const code = script?.createCachedData() ?? null;
    const isWide = /[^\0-\xff]/.test(source);
    const text = Buffer.from(source, isWide ? 'utf16le' : 'latin1');
    if (at + text.length + (code?.length ?? 0) > TOTAL_BYTES_MAX) break;
    const kind = (isWide ? KIND.WIDE : 0) | (script === null ? KIND.JSON : 0);
    files[filename.slice(root.length)] = [kind, ...add(text), ...(code === null ? [] : add(code))];
  }
  // ASCII, so that it can be read as Latin-1.
  const json = JSON.stringify({ magic: MAGIC, files, resolved }).replace(/[^\0-\x7f]/g, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`);
  const head = Buffer.alloc(Math.ceil((4 + json.length) / 8) * 8);
  head.writeUInt32LE(json.length);
  head.write(json, 4, 'latin1');
  const dir = path.join(root, CACHE_DIR);
  fs.mkdirSync(dir, { recursive: true });
  const file = path.join(dir, cacheName());
  fs.writeFileSync(`${file}.tmp`, Buffer.concat([head, ...blobs]));
  fs.renameSync(`${file}.tmp`, file);
  return { files: Object.keys(files).length, bytes: head.length + at };
}

// In a process of its own: the module may do to it what it likes.
async function child(root, name) {
  const reallyExit = process.reallyExit.bind(process);
  const print = fs.writeSync.bind(fs, 3);
  // Compiled code that was not used for a while would be thrown away before it is noted. The flag is part of what V8 compares, so it is
  // taken back below.
  v8.setFlagsFromString('--no-flush-bytecode');
  const recorded = record(root);
  let error = null;
  let isFinished = false;
  const finish = (reason) => {
    if (isFinished) return;
    isFinished = true;
    v8.setFlagsFromString('--flush-bytecode');
    const written = recorded.texts.size > 0 ? write(root, recorded) : { files: 0, bytes: 0 };
    print(JSON.stringify({ ...written, error: reason === null ? null : String(reason).slice(0, 500) }));
    reallyExit(0);
  };
  process.exit = process.abort = process.reallyExit = () => finish('the module ended the process');
  process.on('uncaughtException', (thrown) => (error ??= thrown));
  process.on('unhandledRejection', (thrown) => (error ??= thrown));
  const require = Module.createRequire(path.join(root, 'x.js'));
  try {
    require(name);
  } catch (thrown) {
    error = thrown;
    if (/^ERR_(REQUIRE_ASYNC_MODULE|REQUIRE_ESM|PACKAGE_PATH_NOT_EXPORTED)$/.test(thrown?.code)) {
      try {
        await import(path.join(root, 'node_modules', name, require('node:fs') && 'index.js'));
        error = null;
      } catch (second) {
        error = second;
      }
    }
  }
  setTimeout(() => finish(error), SETTLE_MS);
}

function main([first, second, third]) {
  if (first === '--child') return child(second, third);
  const root = fs.realpathSync(first);
  const args = [__filename, '--child', root, second];
  const options = { env: { HOME: '/tmp' }, cwd: '/tmp', stdio: ['ignore', 'ignore', 'ignore', 'pipe'], timeout: LOAD_MS_MAX, killSignal: 'SIGKILL' };
  const result = spawnSync(process.execPath, args, options);
  const report = String(result.output?.[3] ?? '') || JSON.stringify({ files: 0, bytes: 0, error: `no code cache: ended by ${result.signal ?? result.status}` });
  console.log(report);
}

if (require.main === module) main(process.argv.slice(2));

module.exports = { main };
