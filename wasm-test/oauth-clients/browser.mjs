// Runs a web page in Chromium that uses the official TypeScript client of MCP against the gateway.
//
//     node browser.mjs SETTINGS PROFILE
//
// SETTINGS is a JSON file, PROFILE is a new folder for Chromium. The page is served at the port `page_port`, and the
// gateway allows its origin. A frame of the page comes from another port, so it has another origin. The program prints
// the results of the page and of the frame as one line of JSON.

import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { text } from 'node:stream/consumers';

import { build } from 'esbuild';

const [settingsFile, profile] = process.argv.slice(2);
const settings = JSON.parse(readFileSync(settingsFile, 'utf8'));
const DEADLINE_MS = 50_000;

const { outputFiles } = await build({
  entryPoints: [new URL('browser_page.mjs', import.meta.url).pathname],
  bundle: true,
  format: 'esm',
  platform: 'browser',
  write: false,
});
const script = outputFiles[0].text;

function serve(port, page, found) {
  const server = createServer(async (request, response) => {
    if (request.method === 'POST') {
      found(JSON.parse(await text(request)));
      response.end();
    } else if (request.url === '/page.js') {
      response.setHeader('content-type', 'text/javascript');
      response.end(script);
    } else {
      response.setHeader('content-type', 'text/html');
      response.end(`<!doctype html><meta charset="utf-8"><pre></pre><script type="module">
        import { run } from '/page.js';
        await run(${JSON.stringify(page)});
      </script>`);
    }
  });
  return new Promise((resolve) => server.listen(port, '127.0.0.1', () => resolve(server.address().port)));
}

const results = {};
let chromium;
function end(code) {
  chromium?.kill('SIGKILL');
  process.exit(code);
}
const found = (name) => (result) => {
  results[name] = result;
  if (results.allowed && results.foreign) {
    console.log(JSON.stringify(results));
    end(0);
  }
};
const foreignPort = await serve(0, { ...settings, is_foreign: true }, found('foreign'));
await serve(settings.page_port, { ...settings, frame: `http://127.0.0.1:${foreignPort}/` }, found('allowed'));

const flags = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run'];
const page = `http://127.0.0.1:${settings.page_port}/`;
chromium = spawn(settings.browser, [...flags, `--user-data-dir=${profile}`, page], { stdio: ['ignore', 'ignore', 'inherit'] });
chromium.on('error', (error) => {
  console.error(`${settings.browser} did not start: ${error}`);
  end(1);
});
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => end(1));
setTimeout(() => {
  console.error(`no result within ${DEADLINE_MS} ms: ${JSON.stringify(results)}`);
  end(1);
}, DEADLINE_MS);
