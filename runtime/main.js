'use strict';
// The program in every container: one HTTP server on a unix socket for requests, one control socket for the node. Functions are
// loaded when the node says so and called when a request names them. No dependencies.

const { installContext } = require('./context');
const { createLogs } = require('./logs');
const { createControl } = require('./control');
const { createFunctions } = require('./functions');
const { createServer } = require('./server');
const { installCacheLoader } = require('./cache-loader');
const { warmUp } = require('./warm');
const fs = require('node:fs');
const path = require('node:path');

async function main() {
  const runDir = process.env.HEARTH_RUN_DIR || '/run/hearth';
  installContext();
  installCacheLoader();
  const control = createControl();
  const logs = createLogs(control);
  const functions = createFunctions({ control, logs });
  const server = createServer({ functions, control, logs });
  const httpSocket = path.join(runDir, 'http.sock');
  const controlSocket = path.join(runDir, 'control.sock');
  for (const file of [httpSocket, controlSocket]) fs.rmSync(file, { force: true });
  await new Promise((resolve, reject) => {
    server.on('error', reject);
    server.listen({ path: httpSocket, backlog: 4096 }, resolve);
  });
  await warmUp({ functions, httpSocket });
  // The control socket appears last: who can connect to it finds a runtime that is ready.
  await control.listen(controlSocket, functions);
}

main().catch((error) => {
  process._rawDebug(`runtime: ${error && error.stack}`);
  process.reallyExit(70);
});
