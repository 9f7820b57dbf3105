'use strict';
// The program in every container: two unix sockets for requests, the link and an HTTP server, and one control socket for the node.
// Functions are loaded when the node says so and called when a request names them. No dependencies.

const { installContext } = require('./context');
const { createLogs } = require('./logs');
const { createControl } = require('./control');
const { createFunctions } = require('./functions');
const { createCalls } = require('./calls');
const { createLinkServer } = require('./link');
const { createServer } = require('./server');
const { installCacheLoader } = require('./cache-loader');
const { warmUp } = require('./warm');
const fs = require('node:fs');
const path = require('node:path');

function listen(server, socket) {
  fs.rmSync(socket, { force: true });
  return new Promise((resolve, reject) => {
    server.on('error', reject);
    server.listen({ path: socket, backlog: 4096 }, resolve);
  });
}

// V8 sizes its heap by the memory that it finds when it starts: half of it, but 256 MB at least.
function restarter() {
  const [file, env] = [process.execPath, { ...process.env }];
  const args = [file, ...process.execArgv, __filename];
  return () => process.execve(file, args, env);
}

async function main() {
  const runDir = process.env.HEARTH_RUN_DIR || '/run/hearth';
  const restart = restarter();
  installContext();
  installCacheLoader();
  const control = createControl({ restart });
  const logs = createLogs(control);
  const functions = createFunctions({ control, logs });
  const calls = createCalls({ functions, control, logs });
  const [httpSocket, linkSocket, controlSocket] = ['http.sock', 'link.sock', 'control.sock'].map((name) => path.join(runDir, name));
  await listen(createServer(calls), httpSocket);
  await listen(createLinkServer(calls), linkSocket);
  fs.rmSync(controlSocket, { force: true });
  await warmUp({ functions, httpSocket, linkSocket });
  // The control socket appears last: who can connect to it finds a runtime that is ready.
  await control.listen(controlSocket, functions);
}

main().catch((error) => {
  process._rawDebug(`runtime: ${error && error.stack}`);
  process.reallyExit(70);
});
