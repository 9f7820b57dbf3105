'use strict';
// The HTTP server: reads `hearth-call`, finds the function, runs it in its context, and turns what nobody caught into the answer of the
// request in which it arose.

const http = require('node:http');
const { run, current } = require('./context');
const { models } = require('./models');
const { fail, describe } = require('./models/fail');

const CALL = 'hearth-call';
const CONTEXT = Symbol('context');
const { reallyExit } = process;

function createServer({ functions, control, logs }) {
  const running = new Set();

  // `{function}@{version} {request id} {timeout ms} {prefix bytes} {client ip}`
  function begin(req, res) {
    const { headers } = req;
    const call = headers[CALL];
    if (typeof call !== 'string') return null;
    const a = call.indexOf(' ');
    const b = call.indexOf(' ', a + 1);
    const c = call.indexOf(' ', b + 1);
    const d = call.indexOf(' ', c + 1);
    if (a < 0 || b < 0 || c < 0 || d < 0) return null;
    delete headers[CALL];
    const raw = req.rawHeaders;
    if (raw[raw.length - 2] === CALL) raw.length -= 2;
    else {
      const at = raw.findIndex((text, i) => i % 2 === 0 && text.toLowerCase() === CALL);
      if (at >= 0) raw.splice(at, 2);
    }
    req.originalUrl = req.url;
    const rest = req.url.slice(+call.slice(c + 1, d));
    req.url = rest.charCodeAt(0) === 47 ? rest : `/${rest}`;
    return {
      fn: functions.get(call.slice(0, a)),
      requestId: call.slice(a + 1, b),
      timeoutMs: +call.slice(b + 1, c),
      clientIp: call.slice(d + 1),
      req,
      res,
      done: false,
    };
  }

  function finish(ctx) {
    running.delete(ctx);
    functions.release(ctx.fn);
  }

  function closed() {
    finish(this[CONTEXT]);
  }

  function handle(req, res) {
    const ctx = begin(req, res);
    if (ctx === null) {
      res.writeHead(400).end();
      return;
    }
    const { fn } = ctx;
    if (!fn || !fn.call) {
      // Answered outside any function, so that nothing of a function is needed.
      fail(ctx, 'unknown', 'this version is not loaded');
      return;
    }
    fn.inFlight += 1;
    running.add(ctx);
    res[CONTEXT] = ctx;
    res.on('close', closed);
    run(ctx, fn.call, ctx);
  }

  function upgrade(req, socket, head) {
    const ctx = begin(req, null);
    socket.on('error', () => socket.destroy());
    if (!ctx?.fn?.call) return void socket.destroy();
    const { fn } = ctx;
    if (!fn.upgrade) {
      // Not every function knows upgrades: it sees an ordinary request, and its answer says so.
      const res = new http.ServerResponse(req);
      res.shouldKeepAlive = false;
      res.assignSocket(socket);
      res.on('finish', () => socket.end());
      ctx.res = res;
      fn.inFlight += 1;
      running.add(ctx);
      res[CONTEXT] = ctx;
      res.on('close', closed);
      return void run(ctx, fn.call, ctx);
    }
    fn.inFlight += 1;
    socket.on('close', () => functions.release(fn));
    run(ctx, () => {
      try {
        fn.upgrade(req, socket, head);
      } catch (error) {
        logs.lines('error', describe(error), ctx);
        socket.destroy();
      }
    });
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
    const answer = `HTTP/1.1 502 Bad Gateway\r\nhearth-error: exit\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n\r\n${body}`;
    for (const other of running) {
      // Written past the response object, since nothing asynchronous happens any more.
      if (!other.res.headersSent && other.res.socket) other.res.socket.write(answer);
    }
    reallyExit.call(process, exitCode);
  }
  process.exit = exit;
  process.reallyExit = exit;
  process.abort = () => exit(134);

  const server = http.createServer({ maxHeaderSize: 64 * 1024, keepAliveTimeout: 0, requestTimeout: 0, headersTimeout: 0, noDelay: false }, handle);
  server.on('upgrade', upgrade);
  server.on('clientError', (_, socket) => socket.destroy());
  server.timeout = 0;
  server.maxRequestsPerSocket = 0;
  return server;
}

module.exports = { createServer };
