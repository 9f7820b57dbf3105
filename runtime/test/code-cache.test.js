'use strict';
// The code cache of modules: made once, used where it fits, left alone where it does not.

const assert = require('node:assert');
const { test } = require('node:test');
const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const { aligned, MAGIC } = require('../cache-loader');
const { NODE_OPTIONS } = require('./harness');

const RUNTIME = path.join(__dirname, '..');

// An artifact where a container would have it, with a module that depends on another; the cache is made as a build makes it.
function artifact(t, source = "exports.helper = require('helper').name; exports.file = require('./lib/part').part;", more = {}) {
  const root = fs.realpathSync(fs.mkdtempSync(path.join(os.tmpdir(), 'cache-')));
  t.after(() => fs.rmSync(root, { recursive: true, force: true }));
  const a = path.join(root, 'm/context/a');
  const write = (file, text) => {
    fs.mkdirSync(path.dirname(path.join(a, file)), { recursive: true });
    fs.writeFileSync(path.join(a, file), text);
  };
  write('node_modules/x/index.js', source);
  write('node_modules/x/lib/part.js', "#!/usr/bin/env node\nexports.part = 'part';");
  write('node_modules/helper/index.js', "exports.name = 'helper';");
  for (const [file, text] of Object.entries(more)) write(`node_modules/x/${file}`, text);
  const log = execFileSync(process.execPath, [path.join(RUNTIME, 'code-cache.js'), a, 'x'], { encoding: 'utf8' });
  const cache = fs.existsSync(path.join(a, '.hearth-cache')) ? path.join(a, '.hearth-cache', fs.readdirSync(path.join(a, '.hearth-cache'))[0]) : null;
  return { root, a, log, cache };
}

// In a process of its own, as a container is.
function load({ root, a }, before = '') {
  const program = `
    ${before};
    require(${JSON.stringify(path.join(RUNTIME, 'cache-loader.js'))}).installCacheLoader();
    const x = require(${JSON.stringify(path.join(a, 'node_modules/x'))});
    setImmediate(() => console.log(JSON.stringify(x)));`;
  const env = { ...process.env, HEARTH_MODULES_DIR: path.join(root, 'm') + path.sep };
  return JSON.parse(execFileSync(process.execPath, ['-e', program], { env, encoding: 'utf8' }));
}

const EXPECTED = { helper: 'helper', file: 'part' };

test('sources and resolutions come from the cache', (t) => {
  const made = artifact(t);
  assert.match(made.log, /code cache: 3 files/);
  assert.deepStrictEqual(load(made), EXPECTED);
  // What lies on the disk is not read again.
  fs.writeFileSync(path.join(made.a, 'node_modules/helper/index.js'), "exports.name = 'from the disk';");
  assert.deepStrictEqual(load(made), EXPECTED);
  // Without the cache it is.
  fs.rmSync(made.cache);
  assert.deepStrictEqual(load(made), { ...EXPECTED, helper: 'from the disk' });
});

test('a cache that does not fit is left alone', (t) => {
  const made = artifact(t);
  const good = fs.readFileSync(made.cache);
  const index = good.toString('utf8', 4, 4 + good.readUInt32LE(0));
  // As another version of V8 would have made it: its first bytes are a check of version and flags.
  const files = JSON.parse(index).files;
  const otherVersion = Buffer.from(good);
  let at = aligned(4 + good.readUInt32LE(0));
  for (const [, sourceLength, , codeLength] of files) {
    otherVersion.fill(0xff, at + aligned(sourceLength), at + aligned(sourceLength) + 16);
    at += aligned(sourceLength) + aligned(codeLength);
  }
  const bad = {
    empty: Buffer.alloc(0),
    'cut in the index': good.subarray(0, 40),
    'cut in the sources': good.subarray(0, good.length - 10),
    'no index': Buffer.concat([Buffer.from([255, 255, 255, 127]), good.subarray(4)]),
    'another format': Buffer.from(good.toString('latin1').replace(MAGIC, MAGIC.replace(/\d+$/, '9')), 'latin1'),
    'another version of V8': otherVersion,
  };
  for (const [what, bytes] of Object.entries(bad)) {
    fs.writeFileSync(made.cache, bytes);
    assert.deepStrictEqual(load(made), EXPECTED, what);
  }
  // Made for another Node.js: it has another name and is not looked at.
  fs.writeFileSync(made.cache, good);
  fs.renameSync(made.cache, path.join(path.dirname(made.cache), 'v0.0.0-x64.bin'));
  assert.deepStrictEqual(load(made), EXPECTED);
});

// Builds run without the runtime's options.
test('a container takes code that a build has compiled', () => {
  const tag = (options, before) => execFileSync(process.execPath, [...options, '-p', `${before}; require('v8').cachedDataVersionTag()`], { encoding: 'utf8' });
  const grow = `require(${JSON.stringify(path.join(RUNTIME, 'warm.js'))}).growYoung()`;
  assert.strictEqual(tag(NODE_OPTIONS, grow), tag([], ''));
  assert.strictEqual(tag(NODE_OPTIONS, grow.replace('growYoung', 'prepare')), tag([], ''));
  assert.notStrictEqual(tag(['--semi-space-growth-factor=8'], ''), tag([], ''));
  const young = "require('v8').getHeapSpaceStatistics().find((space) => space.space_name === 'new_space').space_size";
  const sizes = execFileSync(process.execPath, [...NODE_OPTIONS, '-p', `[${young}, ${grow}, ${young}]`], { encoding: 'utf8' });
  const [before, , after] = eval(sizes);
  if (NODE_OPTIONS.includes('--max-semi-space-size=8')) assert.ok(before < after && after === 16 * 1024 * 1024, sizes);
});

test('a closure behaves as Node would have it', (t) => {
  const source = `
    const data = require('./data.json');
    const one = require('./one');
    let failed = 0;
    for (let i = 0; i < 2; i++) try { require('./throws'); } catch (error) { failed += error.message === 'boom ' + i; }
    module.exports = {
      plain: [data, one, require('./two')].every((exported) => Object.getPrototypeOf(exported) === Object.prototype), json: data.text, same: data === require('./data'), circle: one.seen, again: require('./one') === one, failed,
      parent: require.cache[require.resolve('./one')].parent === module, children: module.children.map((m) => require('path').basename(m.id)),
      paths: require('./two').paths, main: typeof require.main, missing: (() => { try { require('./none'); } catch (e) { return e.code; } })(),
      umlaut: require('./umlaut'),
    };`;
  const more = {
    'data.json': '\ufeff{"text": "\u00fc and more"}',
    'one.js': "exports.early = 1; exports.seen = require('./two').early;",
    'two.js': "exports.early = require('./one').early; exports.paths = module.paths[0].endsWith('x/node_modules');",
    'throws.js': "globalThis.times = (globalThis.times ?? -1) + 1; throw new Error('boom ' + globalThis.times);",
    'umlaut.js': "module.exports = '\u00fc\u20ac';",
  };
  const made = artifact(t, source, more);
  assert.match(made.log, /code cache: \d files/);
  const cached = load(made, 'delete globalThis.times');
  fs.rmSync(made.cache);
  const plain = load(made);
  assert.deepStrictEqual(cached, plain);
  assert.strictEqual(cached.circle, 1);
  assert.strictEqual(cached.failed, 2);
});

test('files that are wanted late are read again', (t) => {
  const source = "if (globalThis.late !== true) require('./late'); exports.toJSON = () => require('./late');";
  const made = artifact(t, source, { 'late.js': "module.exports = 'late';" });
  fs.writeFileSync(path.join(made.a, 'node_modules/x/late.js'), "module.exports = 'from the disk';");
  assert.strictEqual(load(made, 'globalThis.late = true'), 'late');
  // A file that has changed since is not believed.
  const changed = "globalThis.late = true; setImmediate(() => require('fs').appendFileSync(" + JSON.stringify(made.cache) + ", 'x'))";
  assert.strictEqual(load(made, changed), 'from the disk');
});

test('a cache larger than what is read at once', (t) => {
  const long = (name, kilobytes) => `/*${name[0].repeat(kilobytes * 1024)}*/ module.exports = '${name}';`;
  const sizes = { a: 200, b: 200, c: 900, d: 1, e: 300, f: 1 };
  const names = Object.keys(sizes);
  const more = Object.fromEntries(names.map((name) => [`${name}.js`, long(name, sizes[name])]));
  const made = artifact(t, `exports.all = ${JSON.stringify(names)}.map((name) => require('./' + name));`, more);
  for (const name of names) fs.writeFileSync(path.join(made.a, `node_modules/x/${name}.js`), "module.exports = 'from the disk';");
  assert.deepStrictEqual(load(made), { all: names });
  // In another order than they lie in.
  assert.deepStrictEqual(load(made, 'Array.prototype.map = ((map) => function (f) { return map.call(this.reverse(), f); })(Array.prototype.map)'), { all: names.toReversed() });
});

test('two artifacts of one shape do not share what was read', (t) => {
  const made = artifact(t, "exports.name = 'one'; exports.part = require('./lib/part').part;");
  const other = path.join(made.root, 'm/other/a');
  fs.cpSync(made.a, other, { recursive: true });
  fs.rmSync(path.join(other, '.hearth-cache'), { recursive: true });
  fs.writeFileSync(path.join(other, 'node_modules/x/index.js'), "exports.name = 'two'; exports.part = require('./lib/part').part;");
  execFileSync(process.execPath, [path.join(RUNTIME, 'code-cache.js'), other, 'x']);
  const before = `globalThis.two = () => require(${JSON.stringify(path.join(other, 'node_modules/x'))});`;
  fs.writeFileSync(path.join(made.root, 'both.js'), `const one = require(${JSON.stringify(path.join(made.a, 'node_modules/x'))}); console.log(JSON.stringify([one.name, two().name]));`);
  const program = `${before} require(${JSON.stringify(path.join(RUNTIME, 'cache-loader.js'))}).installCacheLoader(); require(${JSON.stringify(path.join(made.root, 'both.js'))});`;
  const env = { ...process.env, HEARTH_MODULES_DIR: path.join(made.root, 'm') + path.sep };
  assert.deepStrictEqual(JSON.parse(execFileSync(process.execPath, ['-e', program], { env, encoding: 'utf8' })), ['one', 'two']);
});

test('what a program puts in the place of an ES module is what it gets', (t) => {
  const bridge = "import it from './it.js';\nexport default it;\nexport { it as 'module.exports' };\n";
  const source = `
    const id = require.resolve('./one.mjs');
    if (globalThis.mock) require.cache[id] = Object.assign(new module.constructor(id), { loaded: true, exports: 'mock' });
    if (globalThis.hook) require.extensions['.mjs'] = (module) => { module.exports = 'hook'; };
    exports.one = require('./one.mjs');`;
  const made = artifact(t, source, { 'it.js': "module.exports = 'it';", 'one.mjs': bridge });
  assert.deepStrictEqual(load(made), { one: 'it' });
  assert.deepStrictEqual(load(made, 'globalThis.mock = true'), { one: 'mock' });
  assert.deepStrictEqual(load(made, 'globalThis.hook = true'), { one: 'hook' });
});

test('a module that removes its files, or is an ES module without saying so in its text, still builds', (t) => {
  const bridge = "import it from './it.js';\nexport default it;\nexport { it as 'module.exports' };\n";
  const removed = artifact(t, "exports.one = require('./one.mjs'); require('fs').rmSync(require.resolve('./one.mjs'));", { 'it.js': "module.exports = 'it';", 'one.mjs': bridge });
  assert.match(removed.log, /code cache: 2 files/);
  const more = { 'deep/package.json': '{"type": "module"}', 'deep/index.js': 'globalThis.strict = this === undefined;', 'side.mjs': 'globalThis.side = this === undefined;' };
  const made = artifact(t, "require('./deep/index.js'); require('./side.mjs'); Object.assign(exports, { strict, side });", more);
  assert.match(made.log, /code cache: 1 files/);
  assert.deepStrictEqual(load(made), { strict: true, side: true });
});

test('an ES module that only hands on a CommonJS file', (t) => {
  const bridge = "import it from './it.js';\n\nexport default it;\n\nexport { it as 'module.exports' };\n";
  const source = `
    const cached = (name) => Object.keys(require.cache).some((file) => file.endsWith(name));
    Object.assign(exports, { one: require('./one.mjs'), two: require('./two.mjs'), same: require('./one.mjs') === require('./it'), file: require('path').basename(require.resolve('./one.mjs')) });
    exports.skipped = [!cached('one.mjs'), !cached('two.mjs')];
    exports.toJSON = function () { return { ...this, ran: globalThis.ran }; };`;
  const more = { 'it.js': "module.exports = 'it';", 'one.mjs': bridge, 'two.mjs': `${bridge}globalThis.ran = 'two';` };
  const made = artifact(t, source, more);
  const cached = load(made);
  assert.deepStrictEqual(cached, { one: 'it', two: 'it', same: true, file: 'one.mjs', skipped: [true, false], ran: 'two' });
  fs.rmSync(made.cache);
  assert.deepStrictEqual({ ...load(made), skipped: null }, { ...cached, skipped: null });
});

test('an import finds what Node finds', (t) => {
  const source = "module.exports = require('./lib/x');";
  const more = {
    'lib/x.js': "module.exports = () => 1; module.exports.Router = 'router'; module.exports.two = require('../two');",
    'two.js': "module.exports = { base: require('./base') };",
    'base.js': "module.exports = { name: 'base' };",
    'program.mjs': "import two from './two.js'; import base from './base.js'; import x, { Router } from './index.js'; globalThis.found = [typeof x, Router, two.base === base, base.name, x.two === two];",
  };
  const made = artifact(t, source, more);
  const program = `
    require(${JSON.stringify(path.join(RUNTIME, 'cache-loader.js'))}).installCacheLoader();
    import(${JSON.stringify(path.join(made.a, 'node_modules/x/program.mjs'))}).then(() => console.log(JSON.stringify(found)));`;
  const env = { ...process.env, HEARTH_MODULES_DIR: path.join(made.root, 'm') + path.sep };
  const found = JSON.parse(execFileSync(process.execPath, ['-e', program], { env, encoding: 'utf8' }));
  assert.deepStrictEqual(found, ['function', 'router', true, 'base', true]);
});

test('a circle that the build did not see leaves plain objects', (t) => {
  const source = "exports.early = 1; if (globalThis.late) require(globalThis.late).two; exports.plain = Object.getPrototypeOf(exports) === Object.prototype; exports.toJSON = () => ({ plain: Object.getPrototypeOf(require('./one')) === Object.prototype }); require('./one');";
  const more = { 'one.js': "exports.one = 1; if (globalThis.late) exports.two = require('./two').early;", 'two.js': "exports.early = require('./one').one;" };
  const made = artifact(t, source, more);
  assert.deepStrictEqual(load(made, "globalThis.late = './two'"), { plain: true });
});

test('hooks that a function registers see every module', (t) => {
  const made = artifact(t, "globalThis.hook?.(); exports.helper = require('helper').name; exports.file = require('./lib/part').part; exports.seen = globalThis.seen;");
  const hook = "globalThis.hook = () => { globalThis.seen = []; require('module').registerHooks({ resolve: (s, c, next) => { globalThis.seen.push(s); return next(s, c); } }); }";
  assert.deepStrictEqual(load(made, hook), { ...EXPECTED, seen: ['helper', './lib/part'] });
});

test("a function's hook into require sees every module", (t) => {
  const made = artifact(t, "globalThis.hook?.(); exports.helper = require('helper').name; exports.file = require('./lib/part').part; exports.seen = globalThis.seen;");
  const hook = "globalThis.hook = () => { const M = require('module'); const load = M._load; globalThis.seen = []; M._load = function (r) { globalThis.seen.push(r); return load.apply(this, arguments); }; }";
  assert.deepStrictEqual(load(made, hook), { ...EXPECTED, seen: ['helper', './lib/part'] });
});

test('a module that throws or exits while it loads still builds', (t) => {
  for (const source of ["throw new Error('not here');", 'process.exit(3);', "import('node:fs'); export const x = 1;"]) {
    const made = artifact(t, source);
    assert.match(made.log, /code cache: \d+ files/, source);
  }
});
