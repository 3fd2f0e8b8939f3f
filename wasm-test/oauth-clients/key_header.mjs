// Loaded before a program that knows no credential: its requests to the gateway carry the API key, as a header.

const { GATEWAY, API_KEY } = process.env;
const { fetch } = globalThis;

globalThis.fetch = (resource, options) => {
  const request = new Request(resource, options);
  if (new URL(request.url).origin === GATEWAY) request.headers.set('x-api-key', API_KEY);
  return fetch(request);
};
