// An OpenID provider for the demo: oidc-provider with one client for client credentials.
//
//   node idp.mjs [--port N] [--state FILE] [--scopes "A B"]
//
// The client may request only the scopes in --scopes. The default is the scopes of the demo. The provider also knows
// the scopes of the demo, and answers invalid_scope if the client requests a scope that it may not have.
// It prints one line of JSON when it is ready. FILE keeps its keys over a restart.
// `control` is for tests. POST <control>/rotate[?drop=1] adds a new key that signs from now on, and removes the old ones
// with drop. GET <control>/stats returns the number of requests for the key set.

import { generateKeyPairSync, randomBytes } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { parseArgs } from "node:util";
import { Provider } from "oidc-provider";

const { values } = parseArgs({
  options: {
    port: { type: "string", default: "0" },
    state: { type: "string" },
    scopes: { type: "string" },
  },
});

const DEMO_SCOPES = ["mcp:call", "mcp:call:notes", "mcp:call:clock"];
const ALLOWED = values.scopes?.split(" ") ?? DEMO_SCOPES;
const SCOPES = [...new Set([...DEMO_SCOPES, ...ALLOWED])];

function newKey() {
  const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
  return { ...privateKey.export({ format: "jwk" }), use: "sig", alg: "RS256", kid: randomBytes(8).toString("hex") };
}

const state =
  values.state && existsSync(values.state)
    ? JSON.parse(readFileSync(values.state, "utf8"))
    : { keys: [newKey()], client_id: "demo-agent", client_secret: randomBytes(24).toString("base64url") };

function save() {
  if (values.state) writeFileSync(values.state, JSON.stringify(state), { mode: 0o600 });
}
save();

function newProvider(issuer) {
  return new Provider(issuer, {
    // The first key signs.
    jwks: { keys: state.keys },
    clients: [
      {
        client_id: state.client_id,
        client_secret: state.client_secret,
        grant_types: ["client_credentials"],
        redirect_uris: [],
        response_types: [],
        scope: ALLOWED.join(" "),
      },
    ],
    scopes: SCOPES,
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => "urn:apexmcp",
        getResourceServerInfo: (_ctx, resource) => ({
          scope: SCOPES.join(" "),
          audience: resource === "urn:apexmcp" ? "apexmcp" : resource,
          accessTokenTTL: 3600,
          accessTokenFormat: "jwt",
          jwt: { sign: { alg: "RS256" } },
        }),
      },
    },
  }).callback();
}

let provider;
let jwksRequests = 0;
const server = createServer((request, response) => {
  const url = new URL(request.url, "http://localhost");
  if (url.pathname === "/control/rotate" && request.method === "POST") {
    const key = newKey();
    state.keys = url.searchParams.has("drop") ? [key] : [key, ...state.keys];
    save();
    provider = newProvider(issuer);
    response.end(JSON.stringify({ kid: key.kid }));
  } else if (url.pathname === "/control/stats") {
    response.end(JSON.stringify({ jwks_requests: jwksRequests }));
  } else {
    if (url.pathname === "/jwks") jwksRequests += 1;
    provider(request, response);
  }
});

let issuer;
server.listen(Number(values.port), "127.0.0.1", () => {
  issuer = `http://127.0.0.1:${server.address().port}`;
  provider = newProvider(issuer);
  console.log(
    JSON.stringify({
      issuer,
      jwks_uri: `${issuer}/jwks`,
      token_endpoint: `${issuer}/token`,
      client_id: state.client_id,
      client_secret: state.client_secret,
      control: `${issuer}/control`,
    }),
  );
});
