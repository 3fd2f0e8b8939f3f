// An operator's OpenID provider: oidc-provider, where anybody may sign in as any person.
//
//   node provider.mjs REDIRECT-URI
//
// Prints one line of JSON when it is ready: issuer, client_id, client_secret. The person `olga` is in the group platform. The
// address of `mallory` is that of ada, and is not verified.

import { generateKeyPairSync, randomBytes } from "node:crypto";
import { createServer } from "node:http";
import { createRequire } from "node:module";

// Uses the package that is installed for demo/idp.
const { Provider } = createRequire(new URL("../../demo/idp/package.json", import.meta.url))("oidc-provider");

const client = {
  client_id: "console",
  client_secret: randomBytes(24).toString("base64url"),
  redirect_uris: [process.argv[2]],
};
const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });

const newProvider = (issuer) =>
  new Provider(issuer, {
    jwks: { keys: [{ ...privateKey.export({ format: "jwk" }), use: "sig", alg: "RS256", kid: "a" }] },
    clients: [client],
    claims: { email: ["email", "email_verified"], groups: ["groups"] },
    scopes: ["openid", "email", "groups"],
    pkce: { required: () => true },
    findAccount: (_ctx, id) => ({
      accountId: id,
      claims: () => ({
        sub: id,
        email: `${id === "mallory" ? "ada" : id}@example.com`,
        email_verified: id !== "mallory",
        groups: id === "olga" ? ["platform"] : [],
      }),
    }),
  });

let answer;
const server = createServer((request, response) => answer(request, response));
server.listen(0, "127.0.0.1", () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  answer = newProvider(issuer).callback();
  console.log(JSON.stringify({ issuer, client_id: client.client_id, client_secret: client.client_secret }));
});
