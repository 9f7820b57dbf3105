// Called at start only, see warm.js.
import { readFileSync } from 'node:fs';

export default async (request) => {
  const text = await request.text();
  const type = request.headers.get('content-type');
  if (request.method === 'POST') return Response.json({ text, type, url: new URL(request.url).pathname });
  return new Response(`${typeof readFileSync} ${text.length}`, { headers: { 'x-warm': '1' } });
};
