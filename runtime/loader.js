'use strict';
// Loads a function's main file: CommonJS (where the source may also `return` the function, as a webtask's may) or an ES module. What
// that file requires or imports goes through Node's own loaders, and through cache-loader.js where it belongs to a built module.

const fs = require('node:fs');
const path = require('node:path');
const vm = require('node:vm');
const Module = require('node:module');
const { pathToFileURL } = require('node:url');
const { makeRequire, addFunctionDir } = require('./cache-loader');
const { Storage } = require('./models/storage');

const PARAMETERS = ['exports', 'require', 'module', '__filename', '__dirname'];
const COMPILE = { importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER };
const EXTENSIONS = ['.js', '.mjs', '.cjs'];
// What V8 says to the source of an ES module that it reads as CommonJS, the same list that Node goes by.
const MODULE_SYNTAX = [
  'Cannot use import statement outside a module', "Unexpected token 'export'", "Cannot use 'import.meta' outside a module",
  'await is only valid in async functions and the top level bodies of modules', 'Unexpected reserved word',
  "Identifier '__filename' has already been declared", "Identifier '__dirname' has already been declared",
  "Identifier 'module' has already been declared", "Identifier 'exports' has already been declared", "Identifier 'require' has already been declared",
];

// Stands for the program's main module, which functions have no business with: `require.main === module` is false in a function, and
// `require.main.filename` lies beside the functions.
const mainModule = new Module(path.join(path.sep, 'hearth', 'index.js'), undefined);
mainModule.filename = mainModule.id;
mainModule.paths = [];
mainModule.loaded = true;

// `type` of the nearest package.json, not above the function's own directory.
function packageType(dir, file) {
  for (let at = path.dirname(file); ; at = path.dirname(at)) {
    try {
      return JSON.parse(fs.readFileSync(path.join(at, 'package.json'), 'utf8')).type ?? null;
    } catch (error) {
      if (error.code !== 'ENOENT') throw error;
    }
    if (at === dir || !at.startsWith(dir)) return null;
  }
}

const isFile = (file) => fs.statSync(file, { throwIfNoEntry: false })?.isFile() ?? false;

// The file that `main` means, and the export where it names one as Lambda does (`src/app.nested.handler`).
function findMain(fn) {
  const file = path.resolve(fn.dir, fn.main);
  if (!file.startsWith(fn.dir + path.sep)) throw new Error(`the main file ${fn.main} lies outside of the function`);
  if (isFile(file)) return { file };
  for (const extension of EXTENSIONS) if (isFile(file + extension)) return { file: file + extension };
  const base = path.basename(file);
  const dot = base.indexOf('.', 1);
  if (dot > 0) {
    const root = path.join(path.dirname(file), base.slice(0, dot));
    for (const extension of EXTENSIONS) if (isFile(root + extension)) return { file: root + extension, handler: base.slice(dot + 1) };
  }
  throw new Error(`the function has no file ${fn.main}`);
}

async function importModule(fn, file) {
  fn.isModule = true;
  return { namespace: await import(pathToFileURL(file).href) };
}

function compile(file, source) {
  if (source.charCodeAt(0) === 0xfeff) source = source.slice(1);
  if (source.startsWith('#!')) source = `//${source}`;
  return vm.compileFunction(source, PARAMETERS, { ...COMPILE, filename: file });
}

function runCommonJs(fn, file, compiled) {
  const module = new Module(file, mainModule);
  module.filename = file;
  module.paths = Module._nodeModulePaths(path.dirname(file));
  module.webtask = { storage: new Storage(fn), meta: {}, params: { ...fn.params }, secrets: { ...fn.secrets } };
  Module._cache[file] = module;
  const untouched = module.exports;
  let returned;
  try {
    returned = Reflect.apply(compiled, untouched, [untouched, makeRequire(module), module, file, path.dirname(file)]);
  } catch (error) {
    delete Module._cache[file];
    throw error;
  }
  module.loaded = true;
  const isSet = module.exports !== untouched || Object.keys(untouched).length > 0;
  if (!isSet && returned !== undefined) module.exports = returned;
  return { exports: module.exports };
}

async function loadMain(fn) {
  addFunctionDir(fn.dir);
  const { file, handler } = findMain(fn);
  const extension = path.extname(file);
  const type = extension === '.mjs' ? 'module' : extension === '.cjs' ? 'commonjs' : packageType(fn.dir, file);
  // Types, JSON and whatever else Node can import are its own business.
  if (type === 'module' || !EXTENSIONS.includes(extension)) return { ...(await importModule(fn, file)), handler };
  let compiled;
  try {
    compiled = compile(file, fs.readFileSync(file, 'utf8'));
  } catch (error) {
    const isModule = type === null && error instanceof SyntaxError && MODULE_SYNTAX.some((text) => error.message.includes(text));
    if (!isModule) throw error;
    return { ...(await importModule(fn, file)), handler };
  }
  return { ...runCommonJs(fn, file, compiled), handler };
}

module.exports = { loadMain, mainModule };
