// A person in Chromium who walks through the console: looks at every page on a screen, in the dark and on a phone, creates an
// API key, waits until the gateway admits it, revokes it, and waits until the gateway refuses it.
//
//   node walk.mjs CONSOLE SIGN-IN-LINK ENDPOINT PROFILE [without-scripts]
//
// CONSOLE is the origin of the console, ENDPOINT the URL of the org at the gateway, PROFILE a folder for Chromium. Prints a
// list of problems in JSON.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { start } from "./browser.mjs";

const [origin, link, endpoint, profile, scripts] = process.argv.slice(2);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const problems = [];

const { ask, inPage, open: openUrl, click, type } = await start(profile, { scripts: scripts !== "without-scripts" });
const open = (path) => openUrl(new URL(path, origin));

const screens = [
  ["screen", 1280, "light"],
  ["dark", 1280, "dark"],
  ["phone", 360, "light"],
];
// Widths at which only the width of the page is checked.
const widths = [800, 900, 1024];

async function checkWidth(page, name, width) {
  await ask("Emulation.setDeviceMetricsOverride", { width, height: 800, deviceScaleFactor: 1, mobile: width < 500 });
  const wide = await inPage("document.documentElement.scrollWidth - innerWidth");
  if (wide > 0) problems.push(`${page}, ${name}: ${wide} pixels too wide`);
}

async function look(page) {
  for (const width of widths) await checkWidth(page, `${width} pixels`, width);
  for (const [name, width, scheme] of screens) {
    await ask("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
    await checkWidth(page, name, width);
    if (scripts) continue;
    await inPage(axe);
    const found = await inPage("axe.run().then(({ violations }) => violations.map(({ id, nodes }) => `${id}: ${nodes[0].html}`))");
    problems.push(...found.map((violation) => `${page}, ${name}: ${violation}`));
  }
}

async function visit(page, path) {
  await open(path);
  await look(page);
}

const list = { jsonrpc: "2.0", id: 1, method: "tools/list", params: {} };
async function untilStatus(key, status) {
  for (;;) {
    const headers = { "x-api-key": key, "content-type": "application/json" };
    const answer = await fetch(endpoint, { method: "POST", body: JSON.stringify(list), headers });
    if (answer.status === status) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

await visit("sign-in", "/sign-in");
await visit("sign-in by a link", link);
await click("main button");
const pages = {
  "API keys": "keys",
  "API keys, empty": "../other/keys",
  "API keys, filtered": "keys?status=Revoked&search=x",
  "Create API key": "keys/new",
  "OAuth clients": "clients",
  "Create OAuth client": "clients/new",
  SSO: "sso",
  "Configure BYOIDP": "sso/configure",
  "Why was this token refused?": "sso/explain",
  "Limits and usage": "limits",
  Members: "members",
  "Audit log": "audit",
  Organizations: "..",
  "Signing keys": "/signing-keys",
  "Sign with a key": "/signing-keys/next/use",
  "Remove a signing key": "/signing-keys/next/remove",
  Gateways: "/gateways",
  Sessions: "/sessions",
  "All changes": "/audit",
  "Audit log, nothing fits": "audit?actor=nobody",
  "Delete organization": "delete",
  "Not found": "/nothing",
};
for (const [page, path] of Object.entries(pages)) {
  const { pathname, search } = new URL(path, `${origin}/orgs/acme/`);
  await visit(page, pathname.replace(/\/orgs\/$/, "/orgs") + search);
}

await open("/orgs/acme/clients");
await click("td.actions a[href$='/secrets/drop']");
await look("Drop the older secret");

const name = `agent-${scripts ?? "with-scripts"}`;
const address = `${name}@example.com`;
await open("/orgs/acme/members");
await type("#email", address);
await click("main .buttons button");
await look("Member added");
await type("#email", address);
await click("main .buttons button");
await look("Member added twice");
if (!(await inPage("document.querySelector('#email-wrong')?.textContent"))) problems.push("a second member has the same address");
await visit("Remove member", `/orgs/acme/members/remove?email=${address}`);
await click("main .buttons button");
await visit("Sessions", "/sessions");
await click("main a.danger");
await look("End session");

await open("/orgs/acme/keys/new");
await type("#name", name);
await type("#days", "x");
await click("main form button");
await look("Create API key, refused");
if (!(await inPage("document.querySelector('#days-wrong')?.textContent"))) problems.push("a wrong field has no message");
if (!scripts && (await inPage("document.activeElement.id")) !== "days") problems.push("the wrong field has no focus");
await type("#days", "30");
await click("main form button");
await look("API key created");
const key = await inPage("document.querySelector('#key').value");
const shown = await inPage("[...document.querySelectorAll('[data-copy]')].filter((button) => !button.hidden).length");
if (scripts ? shown !== 0 : shown === 0) problems.push(`${shown} buttons to copy`);
await untilStatus(key, 200);
await click("main .button");
await look("API keys, with a new one");
if (!(await inPage("document.querySelector('tr.fresh th').innerText.includes('New')"))) problems.push("the new key is not marked");
await open("/orgs/acme/keys");
if (await inPage(`document.documentElement.outerHTML.includes(${JSON.stringify(key)})`)) problems.push("the key is shown again");
const id = await inPage(
  `[...document.querySelectorAll("tbody tr")].find((row) => row.querySelector("th").firstChild.data === "${name}").querySelector(".id").innerText`,
);
await visit("Edit API key", `/orgs/acme/keys/${id}/edit`);
await visit("Roll API key", `/orgs/acme/keys/${id}/roll`);
await visit("Revoke API key", `/orgs/acme/keys/${id}/revoke`);
await click("main button");
await untilStatus(key, 401);

console.log(JSON.stringify(problems));
process.exit(0);
