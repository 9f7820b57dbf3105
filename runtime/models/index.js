'use strict';
// The four ways in which a function can be called, and how its exports choose one.

const { Server } = require('node:http');

const models = {
  webtask: require('./webtask'),
  fetch: require('./fetch'),
  lambda: require('./lambda'),
  node: require('./node'),
};

const isFunction = (value) => typeof value === 'function';
const isThing = (value) => (typeof value === 'object' && value !== null) || isFunction(value);

// An Express or Connect app, a Koa app or its callback, a Fastify instance or a server: things that take (req, res) themselves.
function takesRequests(value) {
  if (!isThing(value)) return false;
  if (isFunction(value) && isFunction(value.handle) && isFunction(value.use)) return true;
  if (isFunction(value) && value.name === 'handleRequest' && value.length === 2) return true;
  if (isFunction(value.routing) && isFunction(value.ready)) return true;
  if (isFunction(value.callback) && isFunction(value.use) && Array.isArray(value.middleware)) return true;
  return value instanceof Server;
}

// The default export: of an ES module, or of CommonJS that was one before it was compiled.
function subjectOf({ exports, namespace }) {
  if (namespace) return namespace.default;
  return exports?.__esModule && exports.default !== undefined ? exports.default : exports;
}

function choose(loaded) {
  const { exports, namespace } = loaded;
  const subject = subjectOf(loaded);
  const handler = (namespace ?? exports)?.handler ?? (isFunction(subject) ? undefined : subject?.handler);
  if (takesRequests(subject)) return 'node';
  if (loaded.handler !== undefined || (!isFunction(subject) && isFunction(handler))) return 'lambda';
  if (namespace) return 'fetch';
  if (isThing(subject) && isFunction(subject.fetch)) return 'fetch';
  if (exports?.__esModule && isFunction(exports.default)) return 'fetch';
  return 'webtask';
}

module.exports = { models, choose };
