'use strict';
// Loads a function's main file: CommonJS (where the source may also `return` the function, as a webtask's may) or an ES module. What
// the file imports or requires goes through Node's own loaders.

const fs = require('node:fs');
const path = require('node:path');
const vm = require('node:vm');
const Module = require('node:module');
const { pathToFileURL } = require('node:url');

const MODULE_SYNTAX = /Cannot use import statement outside a module|Unexpected token 'export'|Cannot use 'import\.meta' outside a module|await is only valid/;
const PARAMETERS = ['exports', 'require', 'module', '__filename', '__dirname'];

// `type` of the nearest package.json, not above the function's own directory.
function packageType(dir, file) {
  for (let at = path.dirname(file); at.startsWith(dir); at = path.dirname(at)) {
    try {
      return JSON.parse(fs.readFileSync(path.join(at, 'package.json'), 'utf8')).type ?? null;
    } catch (error) {
      if (error.code !== 'ENOENT') throw error;
    }
    if (at === dir) break;
  }
  return null;
}

async function importModule(file) {
  try {
    return { namespace: await import(pathToFileURL(file).href) };
  } catch (error) {
    if (error && typeof error === 'object') error.isModule = true;
    throw error;
  }
}

// `require('name@1.2.3')` is `require('name')` where the function has just that version.
function versionedRequire(fn, require) {
  const versioned = /^((?:@[^/@]+\/)?[^/@]+)@([0-9][^/]*)(\/.*)?$/;
  const wrapped = (request) => {
    const match = typeof request === 'string' ? versioned.exec(request) : null;
    if (!match) return require(request);
    const [, name, version, rest = ''] = match;
    const manifest = path.join(fn.dir, 'node_modules', name, 'package.json');
    const found = fs.existsSync(manifest) ? JSON.parse(fs.readFileSync(manifest, 'utf8')).version : null;
    if (found !== version) {
      const error = new Error(`Cannot find module '${request}': ${found ? `this function has ${name}@${found}` : `${name} is not a dependency of this function`}`);
      error.code = 'MODULE_NOT_FOUND';
      throw error;
    }
    return require(name + rest);
  };
  return Object.assign(wrapped, { resolve: require.resolve, cache: require.cache, main: require.main, extensions: require.extensions });
}

function runCommonJs(fn, file, source) {
  const compiled = vm.compileFunction(source.replace(/^#!.*/, ''), PARAMETERS, {
    filename: file,
    importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
  });
  const module = new Module(file, null);
  module.filename = file;
  module.paths = Module._nodeModulePaths(path.dirname(file));
  module.webtask = {
    storage: require('./models/storage').createStorage(fn),
    meta: {},
    params: fn.params,
    secrets: fn.secrets,
  };
  Module._cache[file] = module;
  const untouched = module.exports;
  const require_ = versionedRequire(fn, Module.createRequire(file));
  require_.main = module;
  let returned;
  try {
    returned = compiled.call(module.exports, module.exports, require_, module, file, path.dirname(file));
  } catch (error) {
    delete Module._cache[file];
    throw error;
  }
  module.loaded = true;
  const set = module.exports !== untouched || Object.keys(module.exports).length > 0;
  return { exports: set || returned === undefined ? module.exports : returned };
}

async function loadMain(fn) {
  const file = path.join(fn.dir, fn.main);
  const extension = path.extname(file);
  const type = extension === '.mjs' ? 'module' : extension === '.cjs' ? 'commonjs' : packageType(fn.dir, file);
  if (type === 'module') return importModule(file);
  const source = fs.readFileSync(file, 'utf8');
  try {
    return runCommonJs(fn, file, source);
  } catch (error) {
    if (type === null && error instanceof SyntaxError && MODULE_SYNTAX.test(error.message)) return importModule(file);
    throw error;
  }
}

module.exports = { loadMain };
