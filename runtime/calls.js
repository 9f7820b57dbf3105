'use strict';
// A call, however it came: finds the function, runs it in its context, and turns what nobody caught into the answer of the request in
// which it arose.

const { run, current } = require('./context');
const { flushLinks } = require('./link');
const { models } = require('./models');
const { fail, describe } = require('./models/fail');

const CONTEXT = Symbol('context');
const { reallyExit } = process;

function createCalls({ functions, control, logs }) {
  const running = new Set();

  function closed() {
    const ctx = this[CONTEXT];
    running.delete(ctx);
    functions.release(ctx.fn);
  }

  // `call`: requestId, timeoutMs, clientIp, req, res.
  function start(key, call) {
    const fn = functions.get(key);
    const ctx = { fn, ...call, done: false };
    if (!fn || !fn.call) {
      // Answered outside any function, so that nothing of a function is needed.
      fail(ctx, 'unknown', 'this version is not loaded');
      return;
    }
    fn.inFlight += 1;
    running.add(ctx);
    ctx.res[CONTEXT] = ctx;
    ctx.res.on('close', closed);
    run(ctx, fn.call, ctx);
  }

  // Whether the function took the connection; false leaves it untouched.
  function upgrade(key, call, socket, head) {
    const fn = functions.get(key);
    if (!fn?.upgrade) return false;
    const ctx = { fn, ...call, done: false };
    fn.inFlight += 1;
    socket.on('close', () => functions.release(fn));
    run(ctx, () => {
      try {
        fn.upgrade(call.req, socket, head);
      } catch (error) {
        logs.lines('error', describe(error), ctx);
        socket.destroy();
      }
    });
    return true;
  }

  function uncaught(error) {
    const ctx = current();
    logs.lines('error', `Uncaught ${describe(error)}`, ctx);
    if (ctx?.res && !ctx.res.writableFinished) models[ctx.fn.model]?.uncaught(ctx, error);
  }
  process.on('uncaughtException', uncaught);
  process.on('unhandledRejection', uncaught);

  // A function that ends the process ends it for its whole container: everybody who waits is told first.
  function exit(code) {
    const exitCode = Number(code ?? process.exitCode ?? 0) || 0;
    const ctx = current();
    control.send({ t: 'exit', function: ctx?.fn.name, code: exitCode });
    const body = JSON.stringify({ message: `the function ended its process with code ${exitCode}` });
    const headers = { 'hearth-error': 'exit', 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(body)) };
    for (const { res } of [...running]) {
      if (res.leave) res.leave(502, headers, body);
      // Written past the response object, since nothing asynchronous happens any more.
      else if (!res.headersSent && res.socket) res.socket.write(asText(headers, body));
    }
    flushLinks();
    reallyExit.call(process, exitCode);
  }
  process.exit = exit;
  process.reallyExit = exit;
  process.abort = () => exit(134);

  return { start, upgrade };
}

function asText(headers, body) {
  const lines = Object.entries({ ...headers, connection: 'close' }).map(([name, value]) => `${name}: ${value}\r\n`);
  return `HTTP/1.1 502 Bad Gateway\r\n${lines.join('')}\r\n${body}`;
}

module.exports = { createCalls };
