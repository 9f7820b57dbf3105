'use strict';
// The HTTP server: reads `hearth-call`, finds the function and runs it as the code of that request. Errors that nobody caught become
// the answer of the request in which they arose. Deadlines, sizes and idle connections are the node's business.

const http = require('node:http');
const { run, tie, callOf, current, Call } = require('./context');
const { bindSocket } = require('./exchange');
const { models } = require('./models');
const { fail, describe } = require('./models/fail');

const CALL = 'hearth-call';
const HEADER_BYTES_MAX = 64 * 1024;
const TIMER_MS_MAX = 2 ** 31 - 1;
// Node counts the raw headers of a request under this name; what is taken out must be taken off.
const headersCount = Object.getOwnPropertySymbols(new http.IncomingMessage()).find((symbol) => symbol.description === 'kHeadersCount');

// Takes the node's header out, wherever it shows.
function takeHeader(req) {
  const { headers, rawHeaders } = req;
  const value = headers[CALL];
  if (typeof value !== 'string') return null;
  delete headers[CALL];
  for (let i = rawHeaders.length - 2; i >= 0; i -= 2) {
    if (rawHeaders[i].length !== CALL.length || rawHeaders[i].toLowerCase() !== CALL) continue;
    if (i === rawHeaders.length - 2) rawHeaders.length = i;
    else rawHeaders.splice(i, 2);
    if (headersCount !== undefined) req[headersCount] -= 2;
  }
  return value;
}

// The function that `{function}@{version} {request id} {timeout ms} {prefix bytes} {client ip}` names.
const functionOf = (functions, text) => functions.get(text.slice(0, text.indexOf(' ')));

function parseCall(functions, text, req, res) {
  const a = text.indexOf(' ');
  const b = text.indexOf(' ', a + 1);
  const c = text.indexOf(' ', b + 1);
  const d = text.indexOf(' ', c + 1);
  if (a < 0 || b < 0 || c < 0 || d < 0) return null;
  const call = new Call(functions.get(text.slice(0, a)), text.slice(a + 1, b), +text.slice(b + 1, c), text.slice(d + 1), req, res);
  tie(req, call);
  req.originalUrl = req.url;
  const rest = req.url.slice(+text.slice(c + 1, d));
  req.url = rest.charCodeAt(0) === 47 ? rest : `/${rest}`;
  return call;
}

function createServer({ functions, logs }) {
  const sockets = new Set();
  const upgraded = new Map();

  function handle(req, res) {
    const text = takeHeader(req);
    const call = text === null ? null : parseCall(functions, text, req, res);
    if (call === null) return void res.writeHead(400).end();
    // The node dates what it sends on.
    res.sendDate = false;
    const { fn } = call;
    if (fn !== undefined && fn.call !== null) return void invoke(call);
    if (fn === undefined) return fail(call, 'unknown', 'this version is not loaded');
    // Asked for while it loads, or after it could not.
    fn.loading.then(() => (fn.call === null ? fail(call, 'load', fn.loadError ?? 'this version is not loaded') : invoke(call)));
  }

  function invoke(call) {
    try {
      run(call, call.fn.call, call);
    } catch (error) {
      uncaught(error, call);
    }
  }

  function upgrade(req, socket, head) {
    const call = parseCall(functions, takeHeader(req) ?? '', req, null);
    socket.on('error', () => socket.destroy());
    if (!call?.fn?.upgrade) return void socket.destroy();
    upgraded.set(socket, call);
    socket.on('close', () => upgraded.delete(socket));
    bindSocket(socket, call);
    run(call, () => {
      try {
        const { upgrade: listener } = call.fn;
        const result = listener(req, socket, head);
        if (typeof result?.then === 'function') result.then(undefined, (error) => uncaught(error, call));
      } catch (error) {
        uncaught(error, call);
      }
    });
  }

  // An error that nobody caught, of whichever call is running.
  function uncaught(error, scope = current()) {
    try {
      if (scope instanceof Call && scope.fn) {
        if (scope.res === null) {
          logs.lines('error', `Uncaught ${describe(error)}`, scope);
          for (const [socket, call] of upgraded) if (call === scope) socket.destroy();
          return;
        }
        if (!scope.res.writableEnded) return models[scope.fn.model].uncaught(scope, error);
      }
      logs.lines('error', `Uncaught ${describe(error)}`, scope);
    } catch (second) {
      logs.lines('error', `Uncaught ${describe(second)}`, scope);
    }
  }

  // Every call that still waits for an answer.
  function* waiting() {
    for (const socket of sockets) {
      const res = socket._httpMessage;
      const call = res?.req && callOf(res.req);
      if (call) yield call;
    }
    yield* upgraded.values();
  }

  const server = http.createServer(
    {
      maxHeaderSize: HEADER_BYTES_MAX,
      keepAlive: false,
      keepAliveTimeout: 0,
      requestTimeout: 0,
      headersTimeout: 0,
      connectionsCheckingInterval: TIMER_MS_MAX,
      requireHostHeader: false,
      // A function that knows no upgrades sees an ordinary request, body and all.
      shouldUpgradeCallback: (req) => typeof req.headers[CALL] === 'string' && Boolean(functionOf(functions, req.headers[CALL])?.upgrade),
    },
    handle,
  );
  server.timeout = 0;
  server.maxRequestsPerSocket = 0;
  server.maxHeadersCount = 0;
  server.on('connection', (socket) => {
    sockets.add(socket);
    socket.on('close', () => sockets.delete(socket));
  });
  server.on('upgrade', upgrade);
  server.on('clientError', (_, socket) => socket.destroy());
  process.on('uncaughtException', (error) => uncaught(error));
  process.on('unhandledRejection', (error) => uncaught(error));
  return { server, waiting, sockets };
}

module.exports = { createServer };
