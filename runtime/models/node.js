'use strict';
// `(req, res)`: Node's own request and response, with `req.url` below the function's URL and `req.originalUrl` the whole. An export named
// `upgrade` takes `(req, socket, head)` of connections that switch protocols; an exported `http.Server` takes them as its event.

const { Server } = require('node:http');
const { failed } = require('./fail');

// What answers requests, out of what the module exports.
function handlerOf(subject) {
  if (subject instanceof Server) return (req, res) => void subject.emit('request', req, res);
  if (typeof subject?.routing === 'function' && typeof subject?.ready === 'function') {
    let ready = null;
    return (req, res) => (ready ??= Promise.resolve(subject.ready())).then(() => subject.routing(req, res));
  }
  if (typeof subject === 'function') return subject;
  if (typeof subject?.callback === 'function' && typeof subject?.use === 'function') return subject.callback();
  throw new TypeError('a function of the node model exports (req, res) => ..., an Express, Connect, Koa or Fastify app, or an http.Server');
}

function upgradeOf(subject, exports) {
  if (subject instanceof Server) return subject.listenerCount('upgrade') > 0 ? (req, socket, head) => void subject.emit('upgrade', req, socket, head) : null;
  for (const owner of [exports, subject]) {
    if (typeof owner?.upgrade === 'function') return (req, socket, head) => owner.upgrade(req, socket, head);
  }
  return subject?.server instanceof Server ? upgradeOf(subject.server) : null;
}

function bind(fn, { exports, namespace }) {
  let subject = namespace ? (namespace.default ?? namespace.handler) : exports;
  if (subject?.__esModule && subject.default !== undefined) subject = subject.default;
  const handle = handlerOf(subject);
  return {
    call(call) {
      let result;
      try {
        result = handle(call.req, call.res);
      } catch (error) {
        return failed(call, error);
      }
      if (typeof result?.then === 'function') result.then(undefined, (error) => failed(call, error));
    },
    upgrade: upgradeOf(subject, namespace ?? exports),
  };
}

module.exports = { bind, uncaught: failed, upgradeOf };
