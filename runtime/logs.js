'use strict';
// Output of functions, line by line, with function, version and request. Bounded: what the node does not take is dropped and
// counted, and a function that prints never waits.

const { current } = require('./context');
const { format } = require('node:util');

const LINE_MAX = 16 * 1024;
const BUFFER_MAX = 4 * 1024 * 1024;

function createLogs(control) {
  let dropped = 0;

  function line(level, text, ctx = current()) {
    if (control.buffered() > BUFFER_MAX) {
      dropped += 1;
      return;
    }
    if (dropped > 0) {
      const count = dropped;
      dropped = 0;
      control.send({ t: 'log', level: 'warn', line: `${count} lines of output were dropped`, at: Date.now() });
    }
    control.send({
      t: 'log',
      function: ctx?.fn.name,
      version: ctx?.fn.version,
      request_id: ctx?.requestId,
      level,
      line: text.length > LINE_MAX ? `${text.slice(0, LINE_MAX - 1)}…` : text,
      at: Date.now(),
    });
  }

  function lines(level, text, ctx) {
    // A huge text would become a huge array: only as much of it is split as can be kept.
    const bounded = text.length > BUFFER_MAX ? text.slice(0, BUFFER_MAX) : text;
    for (const part of bounded.split('\n')) line(level, part, ctx);
  }

  const levels = { debug: 'debug', log: 'info', info: 'info', warn: 'warn', error: 'error' };
  for (const [method, level] of Object.entries(levels)) {
    console[method] = (...args) => lines(level, format(...args));
  }
  console.trace = (...args) => lines('error', new Error(format(...args)).stack.replace(/^Error/, 'Trace'));

  for (const [stream, level] of [[process.stdout, 'info'], [process.stderr, 'error']]) {
    let rest = '';
    stream.write = (chunk, encoding, callback) => {
      if (typeof encoding === 'function') callback = encoding;
      const text = rest + (typeof chunk === 'string' ? chunk : Buffer.from(chunk).toString('utf8'));
      const end = text.lastIndexOf('\n');
      if (end >= 0) lines(level, text.slice(0, end));
      rest = text.slice(end + 1);
      if (rest.length > LINE_MAX) {
        line(level, rest);
        rest = '';
      }
      if (typeof callback === 'function') process.nextTick(callback);
      return true;
    };
  }
  return { line, lines };
}

module.exports = { createLogs };
