'use strict';
// The program in every container: one HTTP server on a unix socket for requests, one control socket for the node. Functions are
// loaded when the node says so and called when a request names them. No dependencies.

const { installEnvironment } = require('./context');
const { installExchange } = require('./exchange');
const { createLogs } = require('./logs');
const { createControl } = require('./control');
const { createFunctions } = require('./functions');
const { createServer } = require('./server');
const { installExit } = require('./exit');
const { installCacheLoader } = require('./cache-loader');
const { mainModule } = require('./loader');
const { install: installWeb } = require('./models/fetch');
const { warmUp } = require('./warm');
const Module = require('node:module');
const fs = require('node:fs');
const path = require('node:path');

const REQUESTS_WAITING_MAX = 4096;

// Functions find neither the runtime's modules nor its main module.
function hideRuntime() {
  const own = __dirname + path.sep;
  for (const file of Object.keys(Module._cache)) if (file.startsWith(own)) delete Module._cache[file];
  process.mainModule = mainModule;
  module.children = [];
}

function listen(server, file) {
  return new Promise((resolve, reject) => {
    server.on('error', reject);
    server.listen({ path: file, backlog: REQUESTS_WAITING_MAX }, resolve);
  });
}

async function main() {
  const runDir = process.env.HEARTH_RUN_DIR || '/run/hearth';
  const modulesDir = process.env.HEARTH_MODULES_DIR || '/hearth/m/';
  delete process.env.HEARTH_RUN_DIR;
  delete process.env.HEARTH_MODULES_DIR;
  installEnvironment();
  const control = createControl();
  const logs = createLogs(control);
  logs.installOutput();
  const functions = createFunctions({ control, logs });
  const { server, waiting, sockets } = createServer({ functions, logs });
  functions.watch(waiting);
  installExchange();
  installExit({ control, logs, sockets });
  installCacheLoader(modulesDir.endsWith('/') ? modulesDir : `${modulesDir}/`);
  installWeb();
  const httpSocket = path.join(runDir, 'http.sock');
  const controlSocket = path.join(runDir, 'control.sock');
  for (const file of [httpSocket, controlSocket, `${controlSocket}.new`]) fs.rmSync(file, { force: true });
  await listen(server, httpSocket);
  await warmUp({ functions, httpSocket });
  hideRuntime();
  // The control socket appears last, and under its name only once it listens: who finds it finds a runtime that is ready.
  await control.listen(`${controlSocket}.new`, functions);
  fs.renameSync(`${controlSocket}.new`, controlSocket);
}

const { reallyExit } = process;
main().catch((error) => {
  fs.writeSync(2, `runtime: ${error && error.stack}\n`);
  reallyExit.call(process, 70);
});
