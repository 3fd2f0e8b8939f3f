// Adds an API key to the requests of a program that cannot send a credential:
//
//     node --import file:///…/key_header.mjs?origin=ORIGIN&key=KEY PROGRAM
//
// Every request to ORIGIN gets the key. This works with fetch, the package undici, and node:http.

import { subscribe } from 'node:diagnostics_channel';

const { searchParams } = new URL(import.meta.url);
const [origin, key] = [searchParams.get('origin'), searchParams.get('key')];

subscribe('undici:request:create', ({ request }) => {
  if (request.origin === origin) request.addHeader('x-api-key', key);
});
subscribe('http.client.request.created', ({ request }) => {
  if (`${request.protocol}//${request.getHeader('host')}` === origin) request.setHeader('x-api-key', key);
});
