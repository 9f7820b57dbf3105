'use strict';
// How a failed function of the models other than webtask is told to the node, which answers with a problem.

function fail(ctx, reason, message) {
  const { res } = ctx;
  if (ctx.done || res.headersSent) {
    // Too late for an answer: the client must see that this one is not whole.
    res.destroy();
    return;
  }
  ctx.done = true;
  for (const name of res.getHeaderNames()) res.removeHeader(name);
  const body = JSON.stringify({ message: String(message).slice(0, 8192) });
  res.writeHead(502, { 'hearth-error': reason, 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) });
  res.end(body);
}

// Anything can be thrown, also what has no text.
function describe(error) {
  try {
    return String((error && error.stack) || error);
  } catch {
    return 'something that cannot be written as text';
  }
}

module.exports = { fail, describe };
