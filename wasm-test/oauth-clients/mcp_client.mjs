// The official TypeScript client of MCP as a machine. It knows an endpoint and its credential, and discovers the rest.
//
//     node mcp_client.mjs SETTINGS METHOD [STOP]
//
// SETTINGS is a JSON file, METHOD is a client authentication method of the token endpoint. Each result is printed as a
// line of JSON. With STOP, the program continues until a file of that name exists, and then prints "stopped". In each
// round, the first client continues with its token, and a new client starts without a token.

import { existsSync, readFileSync } from 'node:fs';

import { ClientCredentialsProvider, PrivateKeyJwtProvider } from '@modelcontextprotocol/sdk/client/auth-extensions.js';
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';

const [settingsFile, method, stop] = process.argv.slice(2);
const settings = JSON.parse(readFileSync(settingsFile, 'utf8'));

function provider() {
  const common = { clientId: settings.client_id, expectedIssuer: settings.issuer };
  return method === 'private_key_jwt'
    ? new PrivateKeyJwtProvider({ privateKey: settings.private_key, algorithm: 'RS256', ...common })
    : new ClientCredentialsProvider({ clientSecret: settings.client_secret, ...common });
}

async function connect() {
  const client = new Client({ name: 'agent', version: '1' });
  await client.connect(new StreamableHTTPClientTransport(new URL(settings.url), { authProvider: provider() }));
  return client;
}

async function work(client) {
  const { tools } = await client.listTools();
  const { content } = await client.callTool({ name: settings.tool, arguments: settings.arguments });
  console.log(JSON.stringify({ tools: tools.map(({ name }) => name).sort(), said: content[0].text }));
}

const first = await connect();
await work(first);
while (stop && !existsSync(stop)) {
  const next = await connect();
  await work(first);
  await work(next);
  await next.close();
}
await first.close();
if (stop) console.log('stopped');
