'use strict';
// The four ways in which a function can be called, and how its exports choose one.

const models = {
  webtask: require('./webtask'),
  fetch: require('./fetch'),
  lambda: require('./lambda'),
  node: require('./node'),
};

const isFunction = (value) => typeof value === 'function';

// An Express or Connect app, a Koa callback, a Fastify instance or a server: things that take (req, res) themselves.
function takesRequests(value) {
  if (value === null || (typeof value !== 'object' && !isFunction(value))) return false;
  if (isFunction(value) && isFunction(value.handle) && isFunction(value.use)) return true;
  if (isFunction(value) && value.name === 'handleRequest' && value.length === 2) return true;
  if (isFunction(value.routing) && isFunction(value.ready)) return true;
  return value instanceof require('node:http').Server;
}

function choose({ exports, namespace }) {
  const subject = namespace ? namespace.default : exports;
  const handler = namespace ? (namespace.handler ?? namespace.default?.handler) : exports?.handler;
  if (takesRequests(subject)) return 'node';
  if (!isFunction(subject) && isFunction(handler)) return 'lambda';
  if (namespace) return 'fetch';
  if (!isFunction(exports) && (isFunction(exports?.fetch) || isFunction(exports?.default?.fetch))) return 'fetch';
  if (exports?.__esModule && isFunction(exports.default)) return 'fetch';
  return 'webtask';
}

module.exports = { models, choose, takesRequests };
