"""`make bench`: what the gateway costs, measured at one Envoy worker on one core with wrk on the other.

Prints a table and writes target/bench.json: a list of {name, cpu_us, rps, p99_us, native, ratio, mad}. `cpu_us` is
Envoy's CPU time for each request; medians of several rounds, `mad` their median absolute deviation. `native` and
`ratio` are null where Envoy has no filter that does the same.
"""

import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "demo"))
from run import answers, base62, free_port, sha256, signing_key_pem  # noqa: E402

BIN = ROOT / ".tools" / "bin"
OUT = ROOT / "target" / "bench"
ROUNDS = 5
SECONDS = 3
ORG = "acme-corp"
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Gateway:
    """One Envoy with one worker and a direct response, the filter before it or not."""

    def __init__(self, name: str, has_filter: bool) -> None:
        self.port, self.admin = free_port(), free_port()
        self.origin = f"http://127.0.0.1:{self.port}"
        self.key, self.client, self.secret = f"apx_live_sk_{base62(32)}", f"apx_client_{base62(8)}", f"apx_secret_{base62(24)}"
        policy = {
            "signing_keys": [{"kid": "bench", "private_key_env": "APEXMCP_SIGNING_KEY"}],
            "orgs": {
                ORG: {
                    "api_keys": [{"id": "key_1", "sha256": sha256(self.key)}],
                    "oauth_clients": [
                        {"client_id": self.client, "secret_sha256": [sha256(self.secret)], "scopes": ["mcp:call"]}
                    ],
                }
            },
        }
        config = yaml.safe_load((ROOT / "envoy" / "envoy.yaml").read_text())
        config["admin"]["address"]["socket_address"]["port_value"] = self.admin
        listener = config["static_resources"]["listeners"][0]
        listener["address"]["socket_address"]["port_value"] = self.port
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        del manager["access_log"]
        plugin = manager["http_filters"][0]["typed_config"]["config"]["configuration"]["value"]
        plugin["gateway"]["origin"] = self.origin
        plugin["policy"]["inline"] = policy
        if not has_filter:
            del manager["http_filters"][0]
        manager["route_config"]["virtual_hosts"][0]["routes"] = [
            {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
        ]
        path = OUT / f"{name}.yaml"
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(config))
        command = ["taskset", "-c", "0", str(BIN / "envoy"), "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "warning"]
        environment = os.environ | {"APEXMCP_SIGNING_KEY": signing_key_pem()}
        log = open(OUT / f"{name}.log", "wb")
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
        while not answers(f"http://127.0.0.1:{self.admin}/ready"):
            if self.process.poll() is not None:
                sys.exit(f"make bench: Envoy ended, see target/bench/{name}.log")
            time.sleep(0.05)

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND

    def token(self) -> str:
        form = f"grant_type=client_credentials&client_id={self.client}&client_secret={self.secret}"
        with urllib.request.urlopen(f"{self.origin}/oauth/token", data=form.encode()) as response:
            return json.load(response)["access_token"]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def wrk(url: str, script: str, connections: int) -> subprocess.Popen:
    name = hashlib.sha256(script.encode()).hexdigest()[:12]
    path = OUT / f"{name}.lua"
    path.write_text(script)
    command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{SECONDS}s", "--latency", "-s", path, url]
    return subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen) -> tuple[float, float]:
    """Requests each second and the 99th percentile in microseconds; any answer but 200 is a fault of the bench."""
    output, _ = process.communicate()
    if "Non-2xx" in output or "Socket errors" in output or process.returncode != 0:
        sys.exit(f"make bench: requests failed\n{output}")
    requests = float(re.search(r"Requests/sec:\s+([\d.]+)", output).group(1))
    number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", output).groups()
    return requests, float(number) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]


def with_header(name: str, value: str) -> str:
    return f'wrk.method = "POST"\nwrk.body = "{{}}"\nwrk.headers["{name}"] = "{value}"\n'


def rounds(gateway: Gateway, bare: Gateway) -> dict[str, list[tuple[float | None, float, float]]]:
    mcp, token_url = f"{gateway.origin}/mcp/{ORG}", f"{gateway.origin}/oauth/token"
    api_key = with_header("X-API-Key", gateway.key)
    bearer = with_header("Authorization", f"Bearer {gateway.token()}")
    form = f"grant_type=client_credentials&client_id={gateway.client}&client_secret={gateway.secret}"
    issue = f'wrk.method = "POST"\nwrk.body = "{form}"\nwrk.headers["Content-Type"] = "application/x-www-form-urlencoded"\n'
    alone = {
        "no_filter": (bare, lambda: wrk(f"{bare.origin}/mcp/{ORG}", api_key, 16)),
        "api_key": (gateway, lambda: wrk(mcp, api_key, 16)),
        "gateway_token_warm": (gateway, lambda: wrk(mcp, bearer, 16)),
        "token_issued": (gateway, lambda: wrk(token_url, issue, 4)),
    }
    rows: dict[str, list] = {}
    for number in range(ROUNDS):
        print(f"==> round {number + 1} of {ROUNDS}", flush=True)
        for name, (envoy, start) in alone.items():
            before = envoy.cpu_seconds()
            requests, p99 = result(start())
            cpu = envoy.cpu_seconds() - before
            rows.setdefault(name, []).append((cpu / (requests * SECONDS) * 1e6, requests, p99))
        # The worker signs one token after the other while it serves keys.
        issuing, serving = wrk(token_url, issue, 1), wrk(mcp, api_key, 16)
        for name, process in (("token_issued_beside_keys", issuing), ("api_key_beside_tokens", serving)):
            rows.setdefault(name, []).append((None, *result(process)))
    return rows


def summarize(rows: dict) -> list[dict]:
    summary = []
    for name, figures in rows.items():
        cpu, requests, p99 = zip(*figures)
        measured = [value for value in cpu if value is not None]
        median = statistics.median(measured) if measured else None
        mad = statistics.median(abs(value - median) for value in measured) if measured else None
        summary.append(
            {
                "name": name,
                "cpu_us": median and round(median, 2),
                "rps": round(statistics.median(requests)),
                "p99_us": round(statistics.median(p99)),
                "native": None,
                "ratio": None,
                "mad": mad and round(mad, 2),
            }
        )
    return summary


def main() -> None:
    if not shutil.which("wrk"):
        sys.exit("make bench: wrk is missing (Debian: apt-get install wrk)")
    OUT.mkdir(parents=True, exist_ok=True)
    gateway, bare = Gateway("gateway", has_filter=True), Gateway("no_filter", has_filter=False)
    try:
        summary = summarize(rounds(gateway, bare))
    finally:
        gateway.stop()
        bare.stop()
    (ROOT / "target" / "bench.json").write_text(json.dumps(summary, indent=2) + "\n")
    columns = ("name", "cpu_us", "mad", "rps", "p99_us")
    print(f"{columns[0]:28}" + "".join(f"{column:>12}" for column in columns[1:]))
    for row in summary:
        cells = ("-" if row[column] is None else row[column] for column in columns[1:])
        print(f"{row['name']:28}" + "".join(f"{cell:>12}" for cell in cells))


if __name__ == "__main__":
    main()
