// The script of the page of browser.mjs. It runs in a browser.

import { ClientCredentialsProvider } from '@modelcontextprotocol/sdk/client/auth-extensions.js';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';

const DOCUMENTS = [
  '/.well-known/oauth-protected-resource/mcp/acme-corp',
  '/.well-known/oauth-authorization-server',
  '/.well-known/openid-configuration',
  '/.well-known/jwks.json',
];

async function connect(url, options) {
  const client = new Client({ name: 'page', version: '1' });
  await client.connect(new StreamableHTTPClientTransport(new URL(url), options));
  return client;
}

async function work(client, settings) {
  const { tools } = await client.listTools();
  const { content } = await client.callTool({ name: settings.tool, arguments: settings.arguments });
  return { tools: tools.map(({ name }) => name).sort(), said: content[0].text };
}

const withKey = (key) => ({ requestInit: { headers: { 'X-API-Key': key } } });

// The parts of an answer that the page can read. It can read none if the browser blocks the answer.
async function read(url, options) {
  try {
    const response = await fetch(url, options);
    const { status, headers } = response;
    return { status, challenge: headers.get('www-authenticate'), type: headers.get('content-type'), text: await response.text() };
  } catch (error) {
    return { kept_back: error.name };
  }
}

// The message that the page shows to its user for a refused call.
async function refused(settings) {
  const shown = document.querySelector('pre');
  const client = await connect(settings.url, withKey(settings.narrow_key));
  try {
    await client.callTool({ name: settings.forbidden_tool, arguments: {} });
    shown.textContent = 'the call was answered';
  } catch (error) {
    shown.textContent = error.message;
  }
  return document.body.innerText.trim();
}

const FORM = { method: 'POST', headers: { 'content-type': 'application/x-www-form-urlencoded' }, body: 'grant_type=x' };

async function allowed(settings) {
  const authProvider = new ClientCredentialsProvider({
    clientId: settings.client_id,
    clientSecret: settings.client_secret,
    expectedIssuer: settings.issuer,
  });
  return {
    by_key: await work(await connect(settings.url, withKey(settings.key)), settings),
    by_token: await work(await connect(settings.url, { authProvider }), settings),
    refused: await refused(settings),
    without_credential: await read(settings.url, { method: 'POST' }),
    token_error: await read(`${settings.issuer}/oauth/token`, FORM),
    no_document: await read(`${settings.issuer}/.well-known/oauth-protected-resource/mcp/nobody`),
  };
}

async function foreign(settings) {
  const headers = { 'X-API-Key': settings.key, 'content-type': 'application/json' };
  const statuses = [];
  for (const path of DOCUMENTS) statuses.push((await read(settings.issuer + path, { headers: { 'MCP-Protocol-Version': 'x' } })).status);
  return {
    call: await read(settings.url, { method: 'POST', headers, body: '{}' }),
    // The browser sends no preflight here, so the request itself reaches the gateway.
    simple_call: await read(settings.url, { method: 'POST', body: '{}' }),
    token: await read(`${settings.issuer}/oauth/token`, FORM),
    documents: statuses,
  };
}

export async function run(settings) {
  let result;
  try {
    result = await (settings.is_foreign ? foreign(settings) : allowed(settings));
  } catch (error) {
    result = { error: `${error.stack}` };
  }
  if (settings.frame) {
    const frame = document.createElement('iframe');
    frame.src = settings.frame;
    document.body.append(frame);
  }
  await fetch('/', { method: 'POST', body: JSON.stringify(result) });
}
