'use strict';
// Output of functions, line by line, with function, version and request. A function that prints never waits: what the node does not
// take in time is dropped, and the number of lines that were is told.

const { Console } = require('node:console');
const { Writable } = require('node:stream');
const { setTimeout } = require('node:timers');
const { current } = require('./context');

const { now } = Date;
const byteLength = Buffer.byteLength.bind(Buffer);
const LINE_BYTES_MAX = 16 * 1024;
// Lines that wait for the node. Above it they are dropped.
const BUFFER_BYTES_MAX = 4 * 1024 * 1024;
// A line without its end is sent after this time.
const PARTIAL_MS = 200;
const CUT = '…';

function cutLine(line) {
  if (line.length * 3 <= LINE_BYTES_MAX || byteLength(line) <= LINE_BYTES_MAX) return line;
  const bytes = Buffer.from(line.slice(0, LINE_BYTES_MAX), 'utf8');
  let end = Math.min(bytes.length, LINE_BYTES_MAX - byteLength(CUT));
  while (end > 0 && (bytes[end] & 0xc0) === 0x80) end -= 1;
  return bytes.toString('utf8', 0, end) + CUT;
}

function createLogs(control) {
  let dropped = 0;
  let level = null;
  let flushTimer = null;
  const unfinished = new Set();

  function line(lineLevel, text, scope) {
    if (control.buffered() > BUFFER_BYTES_MAX) {
      dropped += 1;
      return;
    }
    if (dropped > 0) {
      const count = dropped;
      dropped = 0;
      control.sendSoon({ t: 'log', level: 'warn', line: `${count} lines of output were dropped`, at: now() });
    }
    control.sendSoon({
      t: 'log',
      function: scope?.fn?.name ?? null,
      version: scope?.fn?.version ?? null,
      request_id: scope?.requestId ?? null,
      level: lineLevel,
      line: cutLine(text),
      at: now(),
    });
  }

  // Text of any length: it is never split further than what can be kept.
  function lines(lineLevel, text, scope = current()) {
    let start = 0;
    for (;;) {
      const end = text.indexOf('\n', start);
      if (end < 0) break;
      line(lineLevel, text.slice(start, end), scope);
      start = end + 1;
      if (dropped > 0 && text.length - start > BUFFER_BYTES_MAX) {
        // Counted roughly: going through all of it would block the function for nothing.
        dropped += 1;
        return;
      }
    }
    line(lineLevel, start === 0 ? text : text.slice(start), scope);
  }

  function flush() {
    for (const part of unfinished) {
      part.holder.partial = null;
      line(part.level, part.text, part.scope);
    }
    unfinished.clear();
  }

  // What is written to a stream ends a line where it says so; until then it waits with the request that wrote it.
  const nobody = { partial: null };
  function write(lineLevel, text) {
    const scope = current();
    const holder = scope ?? nobody;
    const part = holder.partial;
    if (part !== null && part.level === lineLevel) {
      text = part.text + text;
      unfinished.delete(part);
      holder.partial = null;
    }
    const end = text.lastIndexOf('\n');
    if (end >= 0) lines(lineLevel, text.slice(0, end), scope);
    let rest = end < 0 ? text : text.slice(end + 1);
    if (rest.length === 0) return;
    if (rest.length > LINE_BYTES_MAX || holder.partial !== null) {
      line(lineLevel, rest, scope);
      rest = '';
      return;
    }
    holder.partial = { level: lineLevel, text: rest, scope, holder };
    unfinished.add(holder.partial);
    flushTimer ??= setTimeout(() => {
      flushTimer = null;
      flush();
    }, PARTIAL_MS).unref();
  }

  function createStream(fd, streamLevel) {
    const stream = new Writable({
      decodeStrings: false,
      write(chunk, encoding, callback) {
        write(level ?? streamLevel, typeof chunk === 'string' ? chunk : chunk.toString('utf8'));
        callback();
      },
    });
    // Nobody can close the process's output for the others.
    stream._destroy = (error, callback) => callback(error);
    stream.destroy = stream.end = () => stream;
    stream.fd = fd;
    stream.isTTY = false;
    return stream;
  }

  function installOutput() {
    const stdout = createStream(1, 'info');
    const stderr = createStream(2, 'error');
    for (const [name, value] of [['stdout', stdout], ['stderr', stderr]]) {
      Object.defineProperty(process, name, { get: () => value, enumerable: true, configurable: true });
    }
    // Straight to the lines: a console call costs no trip through a stream.
    const direct = (streamLevel) => ({ write: (text) => write(level ?? streamLevel, text), on() {}, once() {}, removeListener() {} });
    const target = new Console({ stdout: direct('info'), stderr: direct('error'), ignoreErrors: false, colorMode: false });
    const levels = { debug: 'debug', warn: 'warn' };
    for (const name of Object.keys(target)) {
      const method = target[name];
      if (typeof method !== 'function' || name === 'Console') continue;
      const own = levels[name];
      console[name] = own === undefined ? method : { [name](...args) {
        level = own;
        try {
          method(...args);
        } finally {
          level = null;
        }
      } }[name];
    }
  }

  return { lines, flush, installOutput };
}

module.exports = { createLogs };
