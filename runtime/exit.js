'use strict';
// A function that ends the process ends it for its whole container. Whoever waits is told first, the node is told why, and then it
// really ends: nothing asynchronous happens any more, so everything is written at once.

const { current } = require('./context');

const { stringify } = JSON;
const byteLength = Buffer.byteLength.bind(Buffer);
const reallyExit = process.reallyExit.bind(process);
const realKill = process.kill.bind(process);
const { pid } = process;
// Signals that end a process which does not handle them, by their numbers.
const DEADLY = { SIGHUP: 1, SIGINT: 2, SIGQUIT: 3, SIGILL: 4, SIGTRAP: 5, SIGABRT: 6, SIGBUS: 7, SIGFPE: 8, SIGKILL: 9, SIGUSR2: 12, SIGSEGV: 11, SIGPIPE: 13, SIGALRM: 14, SIGTERM: 15 };

function installExit({ control, logs, sockets }) {
  let ending = false;

  function answerWaiting(code) {
    const body = stringify({ message: `the function ended its process with code ${code}` });
    const answer =
      `HTTP/1.1 502 Bad Gateway\r\nhearth-error: exit\r\ncontent-type: application/json\r\ncontent-length: ${byteLength(body)}\r\nconnection: close\r\n\r\n${body}`;
    for (const socket of sockets) {
      const res = socket._httpMessage;
      // Written past the response object: what it would still do belongs to a later turn of the loop.
      if (res && !res.headersSent) socket.write(answer);
    }
  }

  function exit(code) {
    const scope = current();
    if (scope?.fn?.preloading) throw new Error('the module wanted to end the process while it was loaded ahead');
    const given = code ?? process.exitCode ?? 0;
    const number = Number.isInteger(+given) ? +given & 255 : 1;
    if (!ending) {
      ending = true;
      try {
        process.emit('exit', number);
      } catch (error) {
        logs.lines('error', String(error), scope);
      }
      try {
        logs.flush();
        control.send({ t: 'exit', function: scope?.fn?.name ?? null, code: number });
        control.flush();
        answerWaiting(number);
      } catch {
        // Nothing is left to tell anybody.
      }
    }
    reallyExit(number);
  }

  process.exit = exit;
  process.reallyExit = exit;
  process.abort = function abort() {
    exit(134);
  };
  process.kill = function kill(target, signal) {
    const name = typeof signal === 'number' ? Object.keys(DEADLY).find((key) => DEADLY[key] === signal) : (signal ?? 'SIGTERM');
    const deadly = Object.hasOwn(DEADLY, name ?? '') && (name === 'SIGKILL' || process.listenerCount(name) === 0);
    if ((+target === pid || +target === 0) && deadly) exit(128 + DEADLY[name]);
    return realKill(target, signal);
  };
}

module.exports = { installExit };
