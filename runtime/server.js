'use strict';
// The HTTP server: reads `hearth-call`, which says whom the request is for.

const http = require('node:http');

const CALL = 'hearth-call';

// `{function}@{version} {request id} {timeout ms} {prefix bytes} {client ip}`
function read(req, res) {
  const { headers } = req;
  const call = headers[CALL];
  if (typeof call !== 'string') return null;
  const [key, requestId, timeoutMs, prefix, clientIp] = call.split(' ');
  if (clientIp === undefined) return null;
  delete headers[CALL];
  const raw = req.rawHeaders;
  if (raw[raw.length - 2] === CALL) raw.length -= 2;
  else {
    const at = raw.findIndex((text, i) => i % 2 === 0 && text.toLowerCase() === CALL);
    if (at >= 0) raw.splice(at, 2);
  }
  req.originalUrl = req.url;
  const rest = req.url.slice(+prefix);
  req.url = rest.charCodeAt(0) === 47 ? rest : `/${rest}`;
  return { key, requestId, timeoutMs: +timeoutMs, clientIp, req, res };
}

function createServer(calls) {
  function handle(req, res) {
    const call = read(req, res);
    if (call === null) res.writeHead(400).end();
    else calls.start(call);
  }

  function upgrade(req, socket, head) {
    socket.on('error', () => socket.destroy());
    const call = read(req, null);
    if (call === null) return void socket.destroy();
    if (calls.upgrade(call, socket, head)) return;
    // Not every function knows upgrades: it sees an ordinary request, and its answer says so.
    const res = new http.ServerResponse(req);
    res.shouldKeepAlive = false;
    res.assignSocket(socket);
    res.on('finish', () => socket.end());
    call.res = res;
    calls.start(call);
  }

  const server = http.createServer({ maxHeaderSize: 64 * 1024, keepAliveTimeout: 0, requestTimeout: 0, headersTimeout: 0, noDelay: false }, handle);
  server.on('upgrade', upgrade);
  server.on('clientError', (_, socket) => socket.destroy());
  server.timeout = 0;
  server.maxRequestsPerSocket = 0;
  return server;
}

module.exports = { createServer };
