'use strict';
// What every request and response of a function has in common, whatever framework changes their prototypes: listeners run as the
// function's code for that request, and a function cannot set the platform's own headers. Node's prototypes are extended, not its
// objects, because Express and others put prototypes of their own onto both objects.

const { EventEmitter } = require('node:events');
const { IncomingMessage, OutgoingMessage, ServerResponse } = require('node:http');
const { callOf, run, enter, current } = require('./context');

const { apply } = Reflect;
const emit = EventEmitter.prototype.emit;
const setHeader = OutgoingMessage.prototype.setHeader;
const appendHeader = OutgoingMessage.prototype.appendHeader;
const writeHead = ServerResponse.prototype.writeHead;
const end = ServerResponse.prototype.end;
const lower = Function.prototype.call.bind(String.prototype.toLowerCase);
const codeAt = Function.prototype.call.bind(String.prototype.charCodeAt);
const cut = Function.prototype.call.bind(String.prototype.slice);

// True while the runtime itself writes a head.
let trusted = false;

// `hearth-`, in any case.
function isReserved(name) {
  return !trusted && typeof name === 'string' && name.length >= 7 && (codeAt(name, 0) | 32) === 104 && lower(cut(name, 0, 7)) === 'hearth-';
}

// Runs a listener's code as the call's; when it throws, the uncaught error still belongs to the call.
function emitAs(call, emitter, args) {
  try {
    return run(call, () => apply(emit, emitter, args));
  } catch (error) {
    enter(call);
    throw error;
  }
}

function hasListeners(emitter, event) {
  const events = emitter._events;
  return events !== undefined && (events[event] !== undefined || event === 'error');
}

// Node emits what comes from the connection (`data`, `close`, ...) outside the call that it belongs to.
function emitOfRequest(event) {
  if (hasListeners(this, event)) {
    const call = callOf(this);
    if (call !== undefined && current() !== call) return emitAs(call, this, arguments);
  }
  return apply(emit, this, arguments);
}

function emitOfResponse(event) {
  if (this.req && hasListeners(this, event)) {
    const call = callOf(this.req);
    if (call !== undefined && current() !== call) return emitAs(call, this, arguments);
  }
  return apply(emit, this, arguments);
}

// The socket of an upgraded connection belongs to one call for good.
function bindSocket(socket, call) {
  Object.defineProperty(socket, 'emit', {
    value: function emitOfSocket() {
      return current() === call ? apply(emit, this, arguments) : emitAs(call, this, arguments);
    },
    writable: true,
    configurable: true,
  });
}

function withoutReserved(headers) {
  if (Array.isArray(headers)) {
    const list = [];
    const pairs = headers.length > 0 && Array.isArray(headers[0]);
    for (let i = 0; i < headers.length; i += pairs ? 1 : 2) {
      if (pairs) {
        if (!isReserved(headers[i][0])) list.push(headers[i]);
      } else if (!isReserved(headers[i])) list.push(headers[i], headers[i + 1]);
    }
    return list;
  }
  const kept = {};
  for (const name of Object.keys(headers)) if (!isReserved(name)) kept[name] = headers[name];
  return kept;
}

function anyReserved(headers) {
  if (Array.isArray(headers)) {
    for (const item of headers) if (isReserved(Array.isArray(item) ? item[0] : item)) return true;
    return false;
  }
  for (const name in headers) if (isReserved(name)) return true;
  return false;
}

function installExchange() {
  IncomingMessage.prototype.emit = emitOfRequest;
  const own = {
    emit: emitOfResponse,
    setHeader(name, value) {
      return isReserved(name) ? this : apply(setHeader, this, [name, value]);
    },
    appendHeader(name, value) {
      return isReserved(name) ? this : apply(appendHeader, this, [name, value]);
    },
    writeHead(status, reason, headers) {
      if (typeof reason !== 'string') {
        headers ??= reason;
        if (headers && anyReserved(headers)) headers = withoutReserved(headers);
        return apply(writeHead, this, [status, headers]);
      }
      if (headers && anyReserved(headers)) headers = withoutReserved(headers);
      return apply(writeHead, this, [status, reason, headers]);
    },
  };
  for (const [name, value] of Object.entries(own)) {
    Object.defineProperty(ServerResponse.prototype, name, { value, writable: true, enumerable: name !== 'emit', configurable: true });
  }
}

// The runtime's own way to answer, which a function cannot have replaced. `headers` is a flat list of names and values.
function respond(res, status, headers, body) {
  trusted = true;
  try {
    apply(writeHead, res, [status, headers]);
  } finally {
    trusted = false;
  }
  apply(end, res, [body]);
}

module.exports = { installExchange, bindSocket, respond, isReserved };
