'use strict';
// `(req, res)`: Node's own request and response, with `req.url` below the function's URL and `req.originalUrl` the whole.

const { fail, describe } = require('./fail');
const { Server } = require('node:http');

const rejected = (ctx) => (error) => {
  ctx.fn.logs.lines('error', describe(error), ctx);
  fail(ctx, 'failed', describe(error));
};

function bind(fn, { exports, namespace }) {
  let subject = namespace ? (namespace.default ?? namespace.handler) : exports;
  if (subject && subject.__esModule && subject.default) subject = subject.default;
  const upgrade = namespace?.upgrade ?? subject?.upgrade;
  let handle;
  if (subject instanceof Server) handle = (req, res) => void subject.emit('request', req, res);
  else if (typeof subject?.routing === 'function' && typeof subject?.ready === 'function') {
    let ready = null;
    handle = (req, res) => (ready ??= Promise.resolve(subject.ready())).then(() => subject.routing(req, res));
  } else if (typeof subject === 'function') handle = subject;
  else throw new TypeError('a function of the node model exports (req, res) => ..., an Express or Connect app, or an http.Server');

  return {
    linked: false,
    call(ctx) {
      try {
        const result = handle(ctx.req, ctx.res);
        if (result && typeof result.then === 'function') result.then(undefined, rejected(ctx));
      } catch (error) {
        rejected(ctx)(error);
      }
    },
    upgrade:
      subject instanceof Server
        ? (req, socket, head) => void subject.emit('upgrade', req, socket, head)
        : typeof upgrade === 'function'
          ? upgrade
          : null,
  };
}

module.exports = { bind, uncaught: (ctx, error) => fail(ctx, 'failed', describe(error)) };
