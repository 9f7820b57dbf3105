'use strict';
// How a failed function of the models other than webtask is told to the node, which answers with a problem. Also how errors are put
// into words: without the runtime's own frames.

const path = require('node:path');
const { respond } = require('../exchange');

const { stringify } = JSON;
const byteLength = Buffer.byteLength.bind(Buffer);
const MESSAGE_CHARS_MAX = 8192;
const OWN = path.join(__dirname, '..') + path.sep;
// Node says so when a function's status or header is none.
const NOT_HTTP = new Set([
  'ERR_HTTP_INVALID_STATUS_CODE', 'ERR_HTTP_INVALID_HEADER_VALUE', 'ERR_INVALID_HTTP_TOKEN', 'ERR_INVALID_CHAR',
  'ERR_HTTP_CONTENT_LENGTH_MISMATCH', 'ERR_HTTP_TRAILER_INVALID',
]);

// Whatever was thrown, as text. Never throws itself.
function describe(error) {
  try {
    const text = String((typeof error === 'object' && error !== null && error.stack) || error);
    const lines = text.split('\n').filter((line) => !(line.startsWith('    at ') && (line.includes(OWN) || line.includes('(node:internal/'))));
    const cause = typeof error === 'object' && error?.cause instanceof Error ? `\n[cause]: ${error.cause.stack}` : '';
    return lines.join('\n') + cause;
  } catch {
    return 'an error that cannot be shown';
  }
}

function fail(call, reason, message) {
  const { res } = call;
  if (call.done && res.writableEnded) return;
  call.done = true;
  if (res.headersSent) {
    // Too late for an answer: the client must see that this one is not whole.
    res.destroy();
    return;
  }
  for (const name of res.getHeaderNames()) res.removeHeader(name);
  res.strictContentLength = false;
  const body = stringify({ message: String(message).slice(0, MESSAGE_CHARS_MAX) });
  respond(res, 502, ['hearth-error', reason, 'content-type', 'application/json', 'content-length', `${byteLength(body)}`], body);
}

// A function threw, now or later.
function failed(call, error) {
  const text = describe(error);
  call.fn.logs.lines('error', text, call);
  fail(call, NOT_HTTP.has(error?.code) ? 'bad-response' : 'failed', text);
}

module.exports = { fail, failed, describe };
