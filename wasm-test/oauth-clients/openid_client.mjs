// Gets a token with openid-client, and uses it at the MCP endpoint.
//
//     node openid_client.mjs SETTINGS METHOD

import { createPrivateKey } from 'node:crypto';
import { readFileSync } from 'node:fs';

import * as oauth from 'openid-client';

const [settingsFile, method] = process.argv.slice(2);
const settings = JSON.parse(readFileSync(settingsFile, 'utf8'));

async function privateKey() {
  const der = createPrivateKey(settings.private_key).export({ type: 'pkcs8', format: 'der' });
  return crypto.subtle.importKey('pkcs8', der, { name: 'RSASSA-PKCS1-v1_5', hash: 'SHA-256' }, false, ['sign']);
}

const authentication = {
  client_secret_basic: async () => oauth.ClientSecretBasic(settings.client_secret),
  client_secret_post: async () => oauth.ClientSecretPost(settings.client_secret),
  private_key_jwt: async () => oauth.PrivateKeyJwt({ key: await privateKey() }),
};

const configuration = await oauth.discovery(
  new URL(settings.issuer),
  settings.client_id,
  undefined,
  await authentication[method](),
  // The gateway of the test has no TLS certificate.
  { algorithm: settings.discovery, execute: [oauth.allowInsecureRequests] },
);
const token = await oauth.clientCredentialsGrant(configuration, { scope: 'mcp:call', resource: settings.url });
const request = JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'tools/list', params: {} });
const headers = new Headers({ 'content-type': 'application/json', accept: 'application/json, text/event-stream' });
const url = new URL(settings.url);
const reply = await oauth.fetchProtectedResource(configuration, token.access_token, url, 'POST', request, headers);
const { access_token, ...rest } = token;
console.log(JSON.stringify({ status: reply.status, lists: (await reply.text()).includes('"tools"'), token: rest }));
