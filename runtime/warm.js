'use strict';
// Before a container is ready it answers dummy requests in every model through its own socket, so that the first real one finds
// Node's modules loaded and the code paths known.

const http = require('node:http');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');

const SOURCES = {
  webtask: ['index.js', 'module.exports = (context, cb) => cb(null, { q: context.query, d: context.data });'],
  fetch: ['index.mjs', 'export default async (request) => new Response("ok " + request.url.length + (await request.text()).length);'],
  lambda: ['index.js', 'exports.handler = async (event) => ({ statusCode: 200, body: event.rawPath });'],
  node: ['index.js', 'module.exports = (req, res) => { res.setHeader("x", "y"); res.end(req.url); };'],
};
const ROUNDS = 3;

function request(agent, socketPath, key, post) {
  return new Promise((resolve) => {
    const headers = { host: 'warm', 'hearth-call': `${key} warm 1000 1 127.0.0.1`, 'content-type': 'application/json' };
    const req = http.request({ socketPath, agent, path: '/?a=b', method: post ? 'POST' : 'GET', headers }, (res) => {
      res.resume();
      res.on('end', resolve);
    });
    req.on('error', resolve);
    req.end(post ? '{}' : undefined);
  });
}

async function warmUp({ functions, httpSocket }) {
  const root = fs.mkdtempSync(path.join(os.tmpdir(), 'warm-'));
  const agent = new http.Agent({ keepAlive: true });
  try {
    for (const [model, [main, source]] of Object.entries(SOURCES)) {
      const dir = path.join(root, model);
      fs.mkdirSync(dir);
      fs.writeFileSync(path.join(dir, main), source);
      await functions.load({ function: `.${model}`, version: 0, dir, main, model, env: {}, secrets: {} });
      for (let i = 0; i < ROUNDS; i++) await request(agent, httpSocket, `.${model}@0`, i > 0);
      functions.unload(`.${model}`, 0);
    }
  } finally {
    agent.destroy();
    fs.rmSync(root, { recursive: true, force: true });
  }
}

module.exports = { warmUp };
