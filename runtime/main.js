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
const os = require('node:os');
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

// V8's helper threads compile beside the main thread. Where the kernel wakes them on its processor they take that away from whoever waits
// for an answer or for a function to load, a tenth of the time: they go behind it. Linux has a priority for each thread; those that
// libuv makes later keep theirs.
const HELPER_NICE = 10;
function lowerHelpers() {
  try {
    for (const thread of fs.readdirSync('/proc/self/task').map(Number)) if (thread !== process.pid) os.setPriority(thread, HELPER_NICE);
  } catch {
    // A kernel that knows no such thing, or a thread that has just ended: they stay as they are.
  }
}

async function main() {
  lowerHelpers();
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
