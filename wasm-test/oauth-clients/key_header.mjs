// For a program that knows no credential: `node --import file:///…/key_header.mjs?origin=ORIGIN&key=KEY PROGRAM`. What it
// sends to ORIGIN carries the API key, by whichever of its HTTP clients: fetch, the package undici, node:http.

import { subscribe } from 'node:diagnostics_channel';

const { searchParams } = new URL(import.meta.url);
const [origin, key] = [searchParams.get('origin'), searchParams.get('key')];

subscribe('undici:request:create', ({ request }) => {
  if (request.origin === origin) request.addHeader('x-api-key', key);
});
subscribe('http.client.request.created', ({ request }) => {
  if (`${request.protocol}//${request.getHeader('host')}` === origin) request.setHeader('x-api-key', key);
});
