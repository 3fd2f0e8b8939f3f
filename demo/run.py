"""`make run`: starts the gateway of envoy/envoy.yaml, a new Settings service, two connectors and an identity provider.

With MODULE=native, the gateway is that of envoy/native.yaml.

All programs listen on 127.0.0.1, and Ctrl-C stops them. Each run creates new secrets and prints them once.
"""

import ctypes
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".tools" / "bin"
RUN = ROOT / "target" / "run"
GATEWAY, ADMIN = 10000, 9901
ORIGIN = f"http://127.0.0.1:{GATEWAY}"
ORG = "acme-corp"
# The file of Envoy for each module. `make run MODULE=native` selects the second one.
FILES = {"wasm": "envoy.yaml", "native": "native.yaml"}
SETTINGS_DB = RUN / "settings.db"
START_TIMEOUT_S = 30


class Refused(Exception):
    """A problem that the operator has to fix. The message is one line."""


class Stopped(Exception):
    """The operator stops the demo."""


def require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise Refused(
                f"port {port} of 127.0.0.1 is in use: stop the program that listens there, then run again"
            ) from error


def module() -> str:
    """The module that the environment variable MODULE selects."""
    name = os.environ.get("MODULE") or "wasm"
    if name not in FILES:
        raise Refused(f"MODULE is {name!r}: use one of {', '.join(FILES)}")
    return name


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# prctl(2) of Linux. Other systems have nothing similar.
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with(parent: int) -> None:
    """Asks the kernel to send SIGTERM to this process when `parent`, which started it, dies, even by SIGKILL."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        # The parent may have died before the call.
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


class Processes:
    """The started programs. `stop` ends these and no others."""

    def __init__(self, stopping: threading.Event) -> None:
        self.stopping = stopping
        self.running: dict[str, subprocess.Popen] = {}

    def start(self, name: str, command: list, stdout=None, env: dict | None = None) -> subprocess.Popen:
        log = open(RUN / f"{name}.log", "wb")
        here = os.getpid()
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            stdout=stdout or log,
            stderr=log,
            env=env,
            # Each program has its own session, so Ctrl-C reaches only this script. It then stops the others in order.
            start_new_session=True,
            preexec_fn=lambda: end_with(here),
        )
        self.running[name] = process
        return process

    def check(self) -> None:
        if self.stopping.is_set():
            raise Stopped
        for name, process in self.running.items():
            if process.poll() is not None:
                last = (RUN / f"{name}.log").read_text(errors="replace").splitlines()[-10:]
                lines = "\n".join(f"  {line}" for line in last)
                raise Refused(f"{name} ended with {process.returncode}; target/run/{name}.log ends with\n{lines}")

    def stop(self) -> None:
        for process in reversed(self.running.values()):
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until(what: str, ready, processes: Processes) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        processes.check()
        if time.monotonic() > deadline:
            raise Refused(f"{what} did not answer within {START_TIMEOUT_S} s; see target/run/")
        time.sleep(0.05)


def answers(url: str, status: int = 200, **request) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, **request), timeout=2) as response:
            return response.status == status
    except urllib.error.HTTPError as error:
        return error.code == status
    except OSError:
        return False


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def settings(*words: str) -> dict:
    """Runs a command of `apexmcp` and returns its JSON."""
    command = [ROOT / "dist" / "apexmcp", "--json", "--db", SETTINGS_DB, *words]
    done = subprocess.run(command, capture_output=True, text=True, start_new_session=True)
    if done.returncode != 0:
        raise Refused(f"apexmcp {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return json.loads(done.stdout)


def render(ports: dict[str, int]) -> Path:
    """Writes the file of Envoy with the policy from Settings. `ports` has the port of each cluster."""
    config = yaml.safe_load((ROOT / "envoy" / FILES[module()]).read_text())
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    manager["access_log"][0] = {
        "name": "envoy.access_loggers.file",
        "typed_config": manager["access_log"][0]["typed_config"]
        | {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": str(RUN / "access.log"),
        },
    }
    ours = manager["http_filters"][0]["typed_config"]
    plugin = (ours["filter_config"] if "filter_config" in ours else ours["config"]["configuration"])["value"]
    usage = {"token_env": "APEXMCP_USAGE_TOKEN", "interval": "5s"}
    plugin["policy"] = {"remote": {"cluster": "settings", "token_env": "APEXMCP_SETTINGS_TOKEN", "usage": usage}}
    if "config" in ours:
        ours["config"]["vm_config"]["environment_variables"]["host_env_keys"].append("APEXMCP_USAGE_TOKEN")
    # The identity provider of the demo has no certificate.
    plugin["jwks"]["http_cluster"] = "jwks_http"
    for cluster in config["static_resources"]["clusters"]:
        if cluster["name"] in ports:
            endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
            endpoint["address"]["socket_address"]["port_value"] = ports[cluster["name"]]
    path = RUN / "envoy.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def gateway_lists_tools(key: str) -> bool:
    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{}}'
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream", "X-API-Key": key}
    request = urllib.request.Request(f"{ORIGIN}/mcp/{ORG}", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            answer = response.read()
            return b"notes__" in answer and b"clock__" in answer
    except OSError:
        return False


def call(credential: str) -> str:
    return (
        f"curl -X POST {ORIGIN}/mcp/{ORG} \\\n"
        '  -H "Content-Type: application/json" \\\n'
        f'  -H "{credential}" \\\n'
        """  -d '{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{}}'"""
    )


def instructions(key: str, client: dict, idp: dict, sign_in: str) -> str:
    client_id, client_secret = client["client_id"], client["client_secret"]
    take = """python3 -c 'import json,sys; print(json.load(sys.stdin)["access_token"])'"""
    return f"""
The gateway is at {ORIGIN}, Envoy's admin port at http://127.0.0.1:{ADMIN}.
The logs are in target/run/. Ctrl-C stops all programs.

Method 1, a static API key: {key}

{call(f"X-API-Key: {key}")}

Method 2, OAuth client credentials: client {client_id}, secret {client_secret}

curl -X POST {ORIGIN}/oauth/token \\
  -H "Content-Type: application/x-www-form-urlencoded" \\
  -d "grant_type=client_credentials" \\
  -d "client_id={client_id}" \\
  -d "client_secret={client_secret}" \\
  -d "scope=mcp:call"

TOKEN=$(curl -s {ORIGIN}/oauth/token -u {client_id}:{client_secret} -d grant_type=client_credentials | {take})

{call("Authorization: Bearer $TOKEN")}

Method 3, a token of the demo identity provider {idp["issuer"]}

TOKEN=$(curl -s {idp["token_endpoint"]} -u {idp["client_id"]}:{idp["client_secret"]} \\
  -d grant_type=client_credentials -d scope=mcp:call | {take})

{call("Authorization: Bearer $TOKEN")}

Settings: a change is in force within a second. The console, by a link that works once:

{sign_in}

export APEXMCP_DB={SETTINGS_DB.relative_to(ROOT)}
dist/apexmcp key create --org {ORG} --name another --connector notes
dist/apexmcp key list --org {ORG}
dist/apexmcp audit list
"""


def start_all(processes: Processes) -> str:
    module()
    require_free(GATEWAY)
    require_free(ADMIN)
    RUN.mkdir(parents=True, exist_ok=True)
    (RUN / "access.log").write_bytes(b"")

    connectors = {name: free_port() for name in ("notes", "clock")}
    for name, port in connectors.items():
        processes.start(name, [BIN / "python", f"demo/connectors/{name}.py", "--port", port])
    node = processes.start("idp", [BIN / "node", "demo/idp/idp.mjs"], stdout=subprocess.PIPE)
    line = node.stdout.readline()
    if not line:
        node.wait()
        processes.check()
    idp = json.loads(line)

    for left in RUN.glob("settings.db*"):
        left.unlink()
    settings("init")
    settings("org", "create", ORG)
    key = settings("key", "create", "--org", ORG, "--name", "demo key", "--expires", "1d")["key"]
    client = settings("client", "create", "--org", ORG, "--name", "demo client")
    provider = ["--issuer", idp["issuer"], "--jwks-uri", idp["jwks_uri"], "--audience", "apexmcp"]
    settings("sso", "configure", "--org", ORG, *provider, "--allow-private-address")

    ports = connectors | {"settings": free_port()}
    console = f"127.0.0.1:{free_port()}"
    tokens = {name: secrets.token_urlsafe(32) for name in ("APEXMCP_SETTINGS_TOKEN", "APEXMCP_USAGE_TOKEN")}
    environment = os.environ | tokens
    environment["ENVOY_DYNAMIC_MODULES_SEARCH_PATH"] = str(ROOT / "dist")
    serve = [ROOT / "dist" / "apexmcp", "--db", SETTINGS_DB, "serve", "--listen", f"127.0.0.1:{ports['settings']}"]
    serve += ["--console", console, "--origin", ORIGIN]
    processes.start("settings", serve, env=environment)
    config = render(ports)
    for name, port in ports.items():
        wait_until(name, lambda port=port: accepts(port), processes)
    processes.start(
        "envoy", [BIN / "envoy", "-c", config, "--concurrency", 2, "--disable-hot-restart"], env=environment
    )
    wait_until("Envoy", lambda: answers(f"http://127.0.0.1:{ADMIN}/ready"), processes)
    wait_until("the gateway", lambda: gateway_lists_tools(key), processes)
    sign_in = settings("sign-in", "--console", f"http://{console}")["url"]
    return instructions(key, client, idp, sign_in)


def main() -> int:
    stopping = threading.Event()
    # SIGHUP: the terminal was closed.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stopping.set())
    # If make dies, `make run` must end too.
    if "MAKELEVEL" in os.environ:
        end_with(os.getppid())
    processes = Processes(stopping)
    try:
        print("==> starting the connectors, the identity provider, Settings and Envoy", flush=True)
        print(start_all(processes), flush=True)
        while True:
            processes.check()
            stopping.wait(0.5)
    except Stopped:
        pass
    except Refused as problem:
        print(f"make run: {problem}", file=sys.stderr)
        return 1
    finally:
        processes.stop()
    print("\nstopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
