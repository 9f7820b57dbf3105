'use strict';
// A call, however it came: finds the function, runs it in its context, and turns what nobody caught into the answer of the request in
// which it arose.

const { run, current } = require('./context');
const { leaveLinks } = require('./link');
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

  const contextOf = ({ key, requestId, timeoutMs, clientIp, req, res }) => ({ fn: functions.get(key), requestId, timeoutMs, clientIp, req, res, done: false });

  // The models answer for what a function throws; what comes out here came out of answering.
  function guarded(ctx) {
    try {
      ctx.fn.call(ctx);
    } catch (error) {
      escaped(error);
    }
  }

  // `call`: key, requestId, timeoutMs, clientIp, req, res.
  function start(call) {
    const ctx = contextOf(call);
    const { fn } = ctx;
    if (!fn || !fn.call) {
      // Answered outside any function, so that nothing of a function is needed.
      fail(ctx, 'unknown', 'this version is not loaded');
      return;
    }
    fn.inFlight += 1;
    running.add(ctx);
    ctx.res[CONTEXT] = ctx;
    ctx.res.on('close', closed);
    run(ctx, guarded, ctx);
  }

  // Whether the function took the connection; false leaves it untouched.
  function upgrade(call, socket, head) {
    const ctx = contextOf(call);
    const { fn } = ctx;
    if (!fn?.upgrade) return false;
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

  // What nobody caught: it costs the request in which it arose its answer, and nothing else.
  function escaped(error) {
    const ctx = current();
    logs.lines('error', `Uncaught ${describe(error)}`, ctx);
    if (!ctx?.res || ctx.res.writableFinished) return;
    try {
      models[ctx.fn.model]?.uncaught(ctx, error);
    } catch {
      ctx.res.destroy();
    }
  }
  process.on('uncaughtException', escaped);
  process.on('unhandledRejection', escaped);

  // A function that ends the process ends it for its whole container: everybody who waits is told first.
  function exit(code) {
    const exitCode = Number(code ?? process.exitCode ?? 0) || 0;
    const ctx = current();
    control.send({ t: 'exit', function: ctx?.fn.name, code: exitCode });
    const body = JSON.stringify({ message: `the function ended its process with code ${exitCode}` });
    const headers = { 'hearth-error': 'exit', 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(body)) };
    leaveLinks(502, headers, body);
    for (const { res } of [...running]) {
      // Written past the response object, since nothing asynchronous happens any more.
      if (!res.headersSent && res.socket) res.socket.write(asText(headers, body));
    }
    reallyExit.call(process, exitCode);
  }
  process.exit = exit;
  process.reallyExit = exit;
  process.abort = () => exit(134);

  return { start, upgrade, escaped };
}

function asText(headers, body) {
  const lines = Object.entries({ ...headers, connection: 'close' }).map(([name, value]) => `${name}: ${value}\r\n`);
  return `HTTP/1.1 502 Bad Gateway\r\n${lines.join('')}\r\n${body}`;
}

module.exports = { createCalls };
