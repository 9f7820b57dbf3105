'use strict';
// Runs in a build's container, whose only way out is the relay's socket: makes the relay look like a registry on loopback, and runs
// npm for one module. What comes out lies in /build/root; the host takes it from there and believes nothing of it.
//
// Usage: node build.js {name@version} {scripts: true|false}

const { spawn } = require('node:child_process');
const fs = require('node:fs');
const net = require('node:net');
const path = require('node:path');

const RELAY = '/hearth/registry.sock';
const ROOT = '/build/root';
const NPM = '/opt/npm/bin/npm-cli.js';
const [spec, scripts] = process.argv.slice(2);
const name = spec.slice(0, spec.lastIndexOf('@'));

const server = net.createServer((socket) => {
  const upstream = net.connect(RELAY);
  socket.on('error', () => upstream.destroy());
  upstream.on('error', () => socket.destroy());
  socket.pipe(upstream).pipe(socket);
});

server.listen(0, '127.0.0.1', () => {
  fs.mkdirSync(ROOT, { recursive: true });
  const manifest = { private: true, dependencies: { [name]: spec.slice(spec.lastIndexOf('@') + 1) } };
  if (scripts === 'true') manifest.allowScripts = { [name]: true };
  fs.writeFileSync(path.join(ROOT, 'package.json'), JSON.stringify(manifest));
  const { port } = server.address();
  const options = [
    `--registry=http://127.0.0.1:${port}/`, '--replace-registry-host=never', '--no-audit', '--no-fund', '--no-update-notifier',
    '--omit=dev', '--install-strategy=hoisted', '--loglevel=http', '--fetch-retries=1', '--fetch-retry-mintimeout=1000', '--fetch-timeout=60000',
    '--allow-git=none', '--allow-file=none', '--allow-directory=none', '--allow-remote=none',
  ];
  const env = { PATH: process.env.PATH, HOME: '/build/home', TMPDIR: '/build/tmp', LANG: 'C.UTF-8', npm_config_cache: '/build/cache', npm_config_nodedir: process.env.npm_config_nodedir, npm_config_jobs: '2' };
  fs.mkdirSync('/build/home', { recursive: true });
  fs.mkdirSync('/build/tmp', { recursive: true });
  const npm = (args, then) => {
    const child = spawn(process.execPath, [NPM, ...args, ...options], { cwd: ROOT, env, stdio: ['ignore', 'inherit', 'inherit'] });
    child.on('exit', (code, signal) => (signal || code !== 0 ? process.exit(signal ? 128 : code) : then()));
  };
  const done = () => process.exit(0);
  // Nobody's scripts run while packages are put in place. Afterwards those of the one module that is on the list run, and of no
  // package that it brings along.
  npm(['install', '--ignore-scripts'], scripts === 'true' ? () => npm(['rebuild', name, '--foreground-scripts'], done) : done);
});
