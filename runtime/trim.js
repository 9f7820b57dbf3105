'use strict';
// Gives back memory when the node says that nobody has called for a while: what loading a function left behind, two megabytes of the
// twelve of a small one. V8 does it by itself only under pressure, which an idle process has not.

// Time that a collection takes grows with the heap, and a request may come meanwhile.
const HEAP_MAX = 64 * 1024 * 1024;

let collect = null;

function trim() {
  if (process.memoryUsage().heapTotal > HEAP_MAX) return;
  if (!collect) {
    // Not before they are needed, since they take memory and a container's start. A context of its own shows it to no function.
    const v8 = require('node:v8');
    const vm = require('node:vm');
    v8.setFlagsFromString('--expose-gc');
    collect = vm.runInNewContext('gc');
    v8.setFlagsFromString('--no-expose-gc');
  }
  collect({ type: 'major', execution: 'sync', flavor: 'last-resort' });
}

module.exports = { trim };
