// People in Chromium who sign in to the console with the operator's provider.
//
//   node sign_in.mjs CONSOLE FOLDER
//
// CONSOLE is the origin of the console, FOLDER one for the data of Chromium. Prints what each person sees, in JSON.

import { start } from "./browser.mjs";

const [console_, folder] = process.argv.slice(2);
const seen = {};

// A new browser, in which a person signs in at the provider.
async function signIn(person) {
  const browser = await start(`${folder}/${person}`);
  await browser.open(`${console_}/sign-in`);
  await browser.click("main a.button");
  // The pages of the provider: the name and a password, then the consent.
  await browser.type("[name=login]", person);
  await browser.type("[name=password]", "any");
  await browser.click("[type=submit]");
  let address = await browser.inPage("location.href");
  if (!address.startsWith(console_)) {
    // The redirect back to the console is a GET without a cookie of the console's session.
    await browser.click("[type=submit]");
    address = await browser.inPage("location.href");
  }
  return browser;
}

const where = (browser) => browser.inPage("location.pathname");
const words = (browser) => browser.inPage("document.querySelector('main').innerText");

const ada = await signIn("ada");
seen.ada = [await where(ada), await ada.inPage("document.querySelector('.who').innerText")];
const cookies = (await ada.ask("Network.getCookies", { urls: [console_] })).cookies;
// The provider has cookies, too: it has the same host.
seen.cookies = cookies
  .filter(({ name }) => name.startsWith("apexmcp"))
  .map(({ name, httpOnly, sameSite }) => [name, httpOnly, sameSite]);

const olga = await signIn("olga");
seen.choices = await olga.inPage("[...document.querySelectorAll('.choices button')].map((button) => button.innerText)");
await olga.click(".choices li:first-child button");
seen.olga = [await where(olga), await olga.inPage("document.querySelector('.role').innerText")];

const mallory = await signIn("mallory");
seen.mallory = await words(mallory);
// An answer of the provider that no sign-in of this browser asked for.
await mallory.open(`${console_}/sign-in/callback?code=stolen&state=guessed`);
seen.forged = await words(mallory);
await mallory.open(`${console_}/orgs/acme/keys`);
seen.after = await where(mallory);

console.log(JSON.stringify(seen));
process.exit(0);
