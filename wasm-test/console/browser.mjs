// Chromium without a window, by the Chrome DevTools protocol.

import { spawn } from "node:child_process";

// Starts Chromium with its data in the folder `profile`. With `scripts: false`, the pages run no scripts.
export async function start(profile, { scripts = true } = {}) {
  const flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"];
  const chromium = spawn("chromium", [...flags, "--remote-debugging-port=0", `--user-data-dir=${profile}`, "about:blank"], {
    stdio: ["ignore", "ignore", "pipe"],
  });
  process.on("exit", () => chromium.kill());
  const devtools = await new Promise((resolve) => {
    let said = "";
    chromium.stderr.on("data", (text) => {
      said += text;
      const found = /ws:\/\/\S+/.exec(said);
      if (found) resolve(found[0]);
    });
  });

  const socket = new WebSocket(devtools);
  await new Promise((resolve) => { socket.onopen = resolve; });
  const answers = new Map();
  let loaded = () => {};
  socket.onmessage = ({ data }) => {
    const message = JSON.parse(data);
    if (message.method === "Page.loadEventFired") loaded();
    answers.get(message.id)?.(message);
  };
  let number = 0;
  let sessionId;
  function ask(method, params = {}) {
    const id = ++number;
    socket.send(JSON.stringify({ id, method, params, sessionId }));
    return new Promise((resolve, reject) => {
      answers.set(id, ({ result, error }) => (error ? reject(new Error(`${method}: ${error.message}`)) : resolve(result)));
    });
  }

  const { targetId } = await ask("Target.createTarget", { url: "about:blank" });
  ({ sessionId } = await ask("Target.attachToTarget", { targetId, flatten: true }));
  await ask("Page.enable");
  if (!scripts) await ask("Emulation.setScriptExecutionDisabled", { value: true });

  // Runs an expression in the page. This also works if the page's own scripts are disabled.
  async function inPage(expression) {
    const { result, exceptionDetails } = await ask("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(`${expression.slice(0, 80)}: ${exceptionDetails.exception?.description}`);
    return result.value;
  }

  async function andWait(action) {
    const load = new Promise((resolve) => { loaded = resolve; });
    await action();
    await load;
  }
  const open = (url) => andWait(() => ask("Page.navigate", { url: url.href ?? url }));
  const click = (selector) => andWait(() => inPage(`document.querySelector(${JSON.stringify(selector)}).click()`));
  const type = (selector, text) =>
    inPage(`document.querySelector(${JSON.stringify(selector)}).value = ${JSON.stringify(text)}`);
  return { ask, inPage, open, click, type };
}
