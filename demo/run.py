"""`make run`: the gateway of envoy/envoy.yaml with a fresh policy, two demo connectors and a demo identity provider.

Everything listens on 127.0.0.1 and ends with Ctrl-C. Secrets are made anew each time and shown once.
"""

import hashlib
import json
import os
import secrets
import signal
import socket
import string
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".tools" / "bin"
RUN = ROOT / "target" / "run"
GATEWAY, ADMIN = 10000, 9901
ORIGIN = f"http://127.0.0.1:{GATEWAY}"
ORG = "acme-corp"
START_TIMEOUT_S = 30


class Refused(Exception):
    """Something that the operator has to mend, in one line."""


class Stopped(Exception):
    """The operator wants it to end."""


def base62(length: int) -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(length))


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def signing_key_pem() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoding = serialization.Encoding.PEM
    return key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()


def require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise Refused(f"port {port} of 127.0.0.1 is in use: end what listens there, then run again") from error


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Processes:
    """What was started, and nothing else, is ended."""

    def __init__(self, stopping: threading.Event) -> None:
        self.stopping = stopping
        self.running: dict[str, subprocess.Popen] = {}

    def start(self, name: str, command: list, stdout=None, env: dict | None = None) -> subprocess.Popen:
        log = open(RUN / f"{name}.log", "wb")
        # A session of its own: Ctrl-C reaches this program alone, which then ends the others in order.
        process = subprocess.Popen(
            [str(part) for part in command], cwd=ROOT, stdout=stdout or log, stderr=log, env=env, start_new_session=True
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


def render(policy: dict, connectors: dict[str, int]) -> Path:
    """envoy/envoy.yaml with this policy and these connectors. A policy is nobody else's to read."""
    config = yaml.safe_load((ROOT / "envoy" / "envoy.yaml").read_text())
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    manager["access_log"][0] = {
        "name": "envoy.access_loggers.file",
        "typed_config": manager["access_log"][0]["typed_config"]
        | {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": str(RUN / "access.log"),
        },
    }
    plugin = manager["http_filters"][0]["typed_config"]["config"]["configuration"]["value"]
    plugin["policy"]["inline"] = policy
    # The demo's identity provider has no certificate.
    plugin["jwks"]["http_cluster"] = "jwks_http"
    for cluster in config["static_resources"]["clusters"]:
        if cluster["name"] in connectors:
            endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
            endpoint["address"]["socket_address"]["port_value"] = connectors[cluster["name"]]
    path = RUN / "envoy.yaml"
    path.touch(mode=0o600)
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


def instructions(key: str, client_id: str, client_secret: str, idp: dict) -> str:
    take = """python3 -c 'import json,sys; print(json.load(sys.stdin)["access_token"])'"""
    return f"""
The gateway is at {ORIGIN}, Envoy's admin at http://127.0.0.1:{ADMIN}. Logs: target/run/. Ctrl-C ends all.

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

TOKEN=$(curl -s {idp["token_endpoint"]} -u {idp["client_id"]}:{idp["client_secret"]} -d grant_type=client_credentials -d scope=mcp:call | {take})

{call("Authorization: Bearer $TOKEN")}
"""


def start_all(processes: Processes) -> str:
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

    key = f"apx_live_sk_{base62(32)}"
    client_id, client_secret = f"apx_client_{base62(8)}", f"apx_secret_{base62(24)}"
    policy = {
        "version": "demo",
        "signing_keys": [{"kid": "demo", "private_key_env": "APEXMCP_SIGNING_KEY"}],
        "orgs": {
            ORG: {
                "api_keys": [{"id": "key_demo", "name": "demo key", "sha256": sha256(key)}],
                "oauth_clients": [
                    {
                        "client_id": client_id,
                        "name": "demo client",
                        "secret_sha256": [sha256(client_secret)],
                        "scopes": ["mcp:call"],
                    }
                ],
                "identity_providers": [{"issuer": idp["issuer"], "jwks_uri": idp["jwks_uri"], "audience": "apexmcp"}],
            }
        },
    }
    config = render(policy, connectors)
    for name, port in connectors.items():
        wait_until(f"the connector {name}", lambda port=port: accepts(port), processes)
    environment = os.environ | {"APEXMCP_SIGNING_KEY": signing_key_pem()}
    processes.start("envoy", [BIN / "envoy", "-c", config, "--concurrency", 2, "--disable-hot-restart"], env=environment)
    wait_until("Envoy", lambda: answers(f"http://127.0.0.1:{ADMIN}/ready"), processes)
    wait_until("the gateway", lambda: gateway_lists_tools(key), processes)
    return instructions(key, client_id, client_secret, idp)


def main() -> int:
    stopping = threading.Event()
    # SIGHUP: the terminal was closed.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stopping.set())
    processes = Processes(stopping)
    try:
        print("==> starting the connectors, the identity provider and Envoy", flush=True)
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
