// The OpenID provider of a customer, and a person who signs in there to the client `portal`. The person uses the
// authorization code flow of OpenID Connect Core §3.1, from the first request to the tokens.
//
//   node sign_in.mjs
//
// Prints one line of JSON when the tokens are there: issuer, jwks_uri, client_id, subject, id_token, access_token.
// Keeps its keys published until it is stopped.

import { generateKeyPairSync, randomBytes } from "node:crypto";
import { createServer } from "node:http";
import { createRequire } from "node:module";

// Uses the package that is installed for demo/idp.
const { Provider } = createRequire(new URL("../../demo/idp/package.json", import.meta.url))("oidc-provider");

const [CLIENT, SUBJECT] = ["portal", "agent-7"];
const CALLBACK = "https://portal.example/callback";
const RESOURCE = { resource: "urn:apexmcp", scope: "openid mcp:call" };

const secret = randomBytes(24).toString("base64url");
const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });

const newProvider = (issuer) =>
  new Provider(issuer, {
    jwks: { keys: [{ ...privateKey.export({ format: "jwk" }), use: "sig", alg: "RS256", kid: "a" }] },
    clients: [{ client_id: CLIENT, client_secret: secret, redirect_uris: [CALLBACK] }],
    features: {
      // Adds pages on which anybody may sign in as any person.
      devInteractions: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: () => ({
          scope: "mcp:call",
          audience: "apexmcp",
          accessTokenFormat: "jwt",
          jwt: { sign: { alg: "RS256" } },
        }),
      },
    },
  });

const cookies = new Map();

// Requests a page, or submits the form on it. Returns the URL to which the answer redirects.
async function redirectOf(url, form) {
  const response = await fetch(url, {
    method: form ? "POST" : "GET",
    body: form && new URLSearchParams(form),
    redirect: "manual",
    headers: { cookie: [...cookies].map((cookie) => cookie.join("=")).join("; ") },
  });
  for (const cookie of response.headers.getSetCookie()) {
    const [, name, value] = /^([^=]+)=([^;]*)/.exec(cookie);
    cookies.set(name, value);
  }
  const next = response.headers.get("location");
  if (!next) throw new Error(`${url} does not redirect: ${response.status} ${await response.text()}`);
  return new URL(next, url);
}

async function signIn(issuer) {
  const forms = [{ prompt: "login", login: SUBJECT }, { prompt: "consent" }];
  const asked = { client_id: CLIENT, response_type: "code", redirect_uri: CALLBACK, nonce: "n-0S6_WzA2Mj", ...RESOURCE };
  let page = new URL(`${issuer}/auth?${new URLSearchParams(asked)}`);
  while (!page.href.startsWith(CALLBACK)) {
    page = await redirectOf(page, page.pathname.startsWith("/interaction/") ? forms.shift() : undefined);
  }
  const response = await fetch(`${issuer}/token`, {
    method: "POST",
    headers: { authorization: `Basic ${Buffer.from(`${CLIENT}:${secret}`).toString("base64")}` },
    body: new URLSearchParams({
      grant_type: "authorization_code",
      code: page.searchParams.get("code"),
      redirect_uri: CALLBACK,
      resource: RESOURCE.resource,
    }),
  });
  if (!response.ok) throw new Error(`no tokens: ${response.status} ${await response.text()}`);
  return response.json();
}

const server = createServer();
server.listen(0, "127.0.0.1", async () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  server.on("request", newProvider(issuer).callback());
  const { id_token, access_token } = await signIn(issuer);
  console.log(
    JSON.stringify({ issuer, jwks_uri: `${issuer}/jwks`, client_id: CLIENT, subject: SUBJECT, id_token, access_token }),
  );
});
