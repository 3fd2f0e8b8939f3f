"""`make scale`: measures a policy with a million keys, and a fleet of gateways.

1. A policy with a million keys in 10,000 organizations, half of them in one, is imported and served. A real Envoy with
   two workers starts with it.
2. 1,000 and then 4,000 simulated gateways (fleet.py) follow `apexmcp serve` while a key changes each second.
3. The CPU time of a request with an API key is compared with that of a policy with ten keys.
4. `apexmcp serve`, Envoy and PostgreSQL are killed in the middle of changes. Afterwards, Envoy must decide about each
   key as the commands have confirmed, and no confirmed change may be lost. One half of the kills is with SQLite.
"""

import argparse
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "demo"))

from envoy_config import Listener, bootstrap, cluster, dynamic, listener_config, module
from envoy_process import ENVOY_CORE, Envoy
from load import WRK_CORE, Fault, Requests, Wrk
from report import fact, table, write
from rows import ORIGIN, with_key
from settings import CLUSTER, TOKEN_ENV, Postgres, Settings
from start import begin, positive
from upstream import Upstream
from wire import Request, send

OUT = ROOT / "target" / "scale"
RESULT = ROOT / "target" / "scale.json"
BIG = "org-big"
READY_TIMEOUT_S = 120
MODULES = ("wasm", "native")
# Keys whose requests are sent in turn.
SAMPLE = 64
CHANGES = 20
ROUNDS = 5


def api_key(number: int) -> str:
    return f"apx_live_sk_{number:032d}"


def write_policy(path: Path, keys: int, orgs: int) -> None:
    """Half of the keys belong to one organization."""

    def record(number: int) -> dict:
        key = {
            "id": f"key_{number:012x}",
            "name": "agent",
            "sha256": hashlib.sha256(api_key(number).encode()).hexdigest(),
        }
        return key | ({"connectors": ["github"]} if number % 4 == 0 else {})

    big = max(keys // 2, 1)
    policy = {BIG: {"api_keys": [record(number) for number in range(big)]}}
    for org in range(orgs - 1):
        policy[f"org-{org}"] = {"api_keys": [record(number) for number in range(big + org, keys, orgs - 1)]}
    path.write_text(json.dumps({"version": "1", "orgs": policy}, separators=(",", ":")))


def org_of(number: int, keys: int, orgs: int) -> str:
    big = max(keys // 2, 1)
    return BIG if number < big else f"org-{(number - big) % (orgs - 1)}"


def call(org: str, key: str) -> Request:
    """A request to a connector that each key may use."""
    return with_key(key, org).at(f"/mcp/{org}/github")


def gateway(name: str, is_native: bool, settings: Settings, upstream: Upstream, folder: Path, **options) -> Envoy:
    return Envoy(name, envoy_config(is_native, {CLUSTER: settings}, upstream), folder, settings.environment, **options)


def envoy_config(is_native: bool, services: dict[str, Settings], upstream: Upstream) -> dict:
    """A listener for each Settings, with the name of its cluster."""
    config = bootstrap(upstream.port)
    for name, settings in services.items():
        token_env = TOKEN_ENV if name == CLUSTER else f"{TOKEN_ENV}_{name.upper()}"
        plugin = {
            "gateway": {"origin": ORIGIN},
            "policy": {"remote": {"cluster": name, "token_env": token_env}},
        }
        ours = module(name, plugin)
        if not is_native:
            ours["typed_config"]["config"]["vm_config"]["environment_variables"] = {"host_env_keys": [token_env]}
        filters = dynamic(ours) if is_native else ours
        config["static_resources"]["clusters"].append(cluster(name, settings.port))
        config["static_resources"]["listeners"].append(listener_config(Listener(name, lambda f=filters: [f]), BIG))
    return config


def await_status(port: int, request: Request, status: int, timeout_s: float = READY_TIMEOUT_S) -> float:
    """Sends the request until it gets this status. Returns when."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if send(port, request)[0] == status:
                return time.monotonic()
        except OSError:
            pass  # Envoy does not listen yet.
    raise Fault(f"a request for {request.path} never got {status}")


def note(line: str) -> None:
    print(f"==> {line}", flush=True)


class Scale:
    def __init__(self, keys: int, orgs: int, upstream: Upstream) -> None:
        self.keys, self.orgs, self.upstream = keys, orgs, upstream
        self.facts: list[dict] = []

    def fact(self, name: str, value: float, unit: str) -> None:
        self.facts.append(fact(name, value, unit))
        print(f"    {name}: {value:,} {unit}", flush=True)

    def requests(self) -> list[Request]:
        numbers = random.Random(1).sample(range(self.keys), SAMPLE)
        return [call(org_of(number, self.keys, self.orgs), api_key(number)) for number in numbers]

    def start(self, module_name: str, settings: Settings, ten: Settings) -> None:
        """A real Envoy with two workers starts, and follows changes."""
        note(f"{module_name}: Envoy starts with {self.keys:,} keys")
        began = time.monotonic()
        is_native = module_name == "native"
        with gateway(module_name, is_native, settings, self.upstream, OUT, workers=2, core=None) as envoy:
            port = envoy.ports()[CLUSTER]
            for request in self.requests():
                await_status(port, request, 200)
            self.fact(f"{module_name}_start", round(time.monotonic() - began, 2), "s")
            self.fact(f"{module_name}_memory", round(envoy.memory_bytes() / 1e6), "MB")
            waits = []
            for number in range(CHANGES):
                began = time.monotonic()
                made = settings.command("key", "create", "--org", BIG, "--name", f"change {number}")
                created = await_status(port, call(BIG, made["key"]), 200)
                settings.command("key", "revoke", made["id"])
                waits += [created - began, await_status(port, call(BIG, made["key"]), 401) - created]
            self.fact(f"{module_name}_change_in_force", round(statistics.median(waits) * 1000), "ms")
            self.fact(f"{module_name}_change_in_force_longest", round(max(waits) * 1000), "ms")
            self.fact(f"{module_name}_memory_after_changes", round(envoy.memory_bytes() / 1e6), "MB")
            self.longest(module_name, settings, ten, port)

    def longest(self, module_name: str, settings: Settings, ten: Settings, port: int) -> None:
        """The longest request in each second. Each has a change of this policy, or of one that Envoy does not have: the
        command itself takes time of the same cores."""
        requests = Requests(self.requests(), OUT)
        longest: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(2 * CHANGES):
            has_change = turn % 2 == 1
            wrk = Wrk(port, requests, 4, 1, pause_ms=1)
            changed = settings if has_change else ten
            changed.command("key", "create", "--org", BIG, "--name", "beside requests")
            longest[has_change].append(wrk.result().require("requests beside a change", 200).max_us)
        for has_change, name in ((False, "other_change"), (True, "change")):
            self.fact(
                f"{module_name}_longest_request_beside_{name}",
                round(statistics.median(longest[has_change]) / 1000, 2),
                "ms",
            )

    def fleet(self, gateways: int, settings: Settings) -> None:
        note(f"{gateways:,} simulated gateways")
        program = [sys.executable, str(ROOT / "bench" / "fleet.py"), str(settings.port), str(gateways)]
        process = subprocess.Popen(
            ["taskset", "-c", str(WRK_CORE), *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | settings.environment,
        )
        try:
            if not process.stdout.readline():
                raise Fault("the simulated gateways did not start")
            # All of them wait for a change.
            settings.command("key", "create", "--org", BIG, "--name", "first")
            process.stdout.readline()
            cpu, began = settings.cpu_s(), time.monotonic()
            time.sleep(5)
            idle_share = (settings.cpu_s() - cpu) / (time.monotonic() - began)
            cpu, began, all_have_it, median, sizes = settings.cpu_s(), time.monotonic(), [], [], []
            for number in range(CHANGES):
                since = time.time()
                settings.command("key", "create", "--org", BIG, "--name", f"{number}")
                line = process.stdout.readline()
                if not line:
                    raise Fault("the simulated gateways ended")
                got = json.loads(line)
                times = sorted(moment - since for moment in got["times"])
                all_have_it.append(times[-1])
                median.append(statistics.median(times))
                sizes.append(got["bytes"])
                time.sleep(max(0, 1 - (time.time() - since)))
            used = settings.cpu_s() - cpu - idle_share * (time.monotonic() - began)
            self.fact(f"fleet_{gateways}_median", round(statistics.median(median) * 1000), "ms")
            self.fact(f"fleet_{gateways}_all_have_it_p99", round(sorted(all_have_it)[-1] * 1000), "ms")
            self.fact(f"fleet_{gateways}_bytes_for_a_change", max(sizes), "bytes")
            self.fact(f"fleet_{gateways}_serve_cpu_for_a_change", round(used / CHANGES * 1000, 1), "ms")
            self.fact(f"fleet_{gateways}_serve_memory", round(settings.memory_bytes() / 1e6), "MB")
        finally:
            process.stdin.close()
            process.wait(timeout=30)

    def against_ten(self, module_name: str, settings: Settings, ten: Settings) -> None:
        """The CPU time of a request, with many keys and with ten, in turn."""
        note(f"{module_name}: a key of {self.keys:,} and one of ten")
        is_native = module_name == "native"
        config = envoy_config(is_native, {CLUSTER: settings, "ten": ten}, self.upstream)
        environment = settings.environment | {f"{TOKEN_ENV}_TEN": ten.environment[TOKEN_ENV]}
        sampled = {CLUSTER: self.requests(), "ten": [call(BIG, api_key(number)) for number in range(4)]}
        with Envoy(f"{module_name}-ten", config, OUT, environment, core=ENVOY_CORE) as envoy:
            ports = envoy.ports()
            for name, requests in sampled.items():
                for request in requests:
                    await_status(ports[name], request, 200)
            files = {name: Requests(requests, OUT) for name, requests in sampled.items()}
            costs: dict[str, list[float]] = {name: [] for name in sampled}
            for _ in range(ROUNDS):
                for name in sampled:
                    before = envoy.worker_cpu_us()
                    load = Wrk(ports[name], files[name], 8, 2).result().require(name, 200)
                    costs[name].append((envoy.worker_cpu_us() - before) / load.requests)
            cost = {name: statistics.median(each) for name, each in costs.items()}
            self.fact(f"{module_name}_ten_keys_against_many", round(cost["ten"] / cost[CLUSTER], 3), "times")


def kill_in_the_middle(kills: int, postgres: Postgres | None, upstream: Upstream, report: Callable[..., None]) -> None:
    """Kills the programs in turn while keys are created and revoked."""
    name = "postgres" if postgres else "sqlite"
    note(f"{name}: {kills} kills in the middle of changes")
    folder = OUT / name
    folder.mkdir()
    rng = random.Random(2)
    write_policy(folder / "policy.json", 200, 5)
    wrong = unconfirmed = 0
    with Settings(folder, WRK_CORE, folder / "policy.json", postgres.url if postgres else "") as settings:
        keys: dict[str, tuple[str, bool]] = {}
        envoy = gateway(name, False, settings, upstream, folder, workers=2, core=None)

        def change() -> None:
            revocable = [each for each, (_, is_valid) in keys.items() if is_valid]
            if len(revocable) > 20 or (revocable and rng.random() < 0.4):
                revoked = rng.choice(revocable)
                settings.command("key", "revoke", revoked)
                keys[revoked] = (keys[revoked][0], False)
            else:
                made = settings.command("key", "create", "--org", BIG, "--name", "k")
                keys[made["id"]] = (made["key"], True)

        try:
            for kill in range(kills):
                change()
                # A command under way when the programs are killed. It may fail, or succeed without a confirmation.
                under_way = settings.begin("key", "create", "--org", BIG, "--name", "under way")
                time.sleep(rng.random() * 0.03)
                if postgres and kill % 3 == 0:
                    postgres.kill()
                elif kill % 3 == 1:
                    envoy.process.kill()
                    envoy.process.wait()
                    envoy = gateway(name, False, settings, upstream, folder, workers=2, core=None)
                else:
                    settings.kill()
                    settings.start()
                output, _ = under_way.communicate()
                if under_way.returncode == 0:
                    made = json.loads(output)
                    keys[made["id"]] = (made["key"], True)
                else:
                    unconfirmed += 1
                change()
                marker = settings.command("key", "create", "--org", BIG, "--name", "marker")
                port = envoy.ports()[CLUSTER]
                await_status(port, call(BIG, marker["key"]), 200)
                # The other worker has it at its next tick.
                time.sleep(0.1)
                for key, is_valid in rng.sample(list(keys.values()), min(len(keys), 20)):
                    wrong += send(port, call(BIG, key))[0] != (200 if is_valid else 401)
                settings.command("key", "revoke", marker["id"])
            listed = {key["id"]: not key["revoked"] for key in settings.command("key", "list", "--org", BIG)}
            lost = sum(listed.get(each) != is_valid for each, (_, is_valid) in keys.items())
        finally:
            envoy.stop()
    report(f"{name}_kills", kills, "kills")
    report(f"{name}_commands_that_failed", unconfirmed, "commands")
    report(f"{name}_wrong_decisions", wrong, "decisions")
    report(f"{name}_lost_changes", lost, "changes")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=".tools/bin/python bench/scale.py",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__.strip(),
    )
    parser.add_argument("--keys", type=positive, default=1_000_000, help="number of keys (default: 1000000)")
    parser.add_argument("--orgs", type=positive, default=10_000, help="number of organizations (default: 10000)")
    parser.add_argument(
        "--gateways", type=positive, nargs="+", default=[1000, 4000], help="sizes of the fleet (default: 1000 4000)"
    )
    parser.add_argument("--kills", type=positive, default=200, help="number of kills (default: 200)")
    chosen = parser.parse_args()
    begin("make scale", OUT)
    upstream = Upstream()
    scale = Scale(chosen.keys, chosen.orgs, upstream)
    try:
        note(f"importing {chosen.keys:,} keys in {chosen.orgs:,} organizations")
        big, small = OUT / "big", OUT / "ten"
        for folder in (big, small):
            folder.mkdir()
        write_policy(big / "policy.json", chosen.keys, chosen.orgs)
        write_policy(small / "policy.json", 10, 3)
        began = time.monotonic()
        with (
            Settings(big, ENVOY_CORE, big / "policy.json") as settings,
            Settings(small, WRK_CORE, small / "policy.json") as ten,
        ):
            scale.fact("import_and_start", round(time.monotonic() - began, 1), "s")
            scale.fact("serve_memory", round(settings.memory_bytes() / 1e6), "MB")
            for module_name in MODULES:
                scale.start(module_name, settings, ten)
            for gateways in chosen.gateways:
                scale.fleet(gateways, settings)
            for module_name in MODULES:
                scale.against_ten(module_name, settings, ten)
        kill_in_the_middle(chosen.kills // 2, None, upstream, scale.fact)
        with Postgres() as postgres:
            kill_in_the_middle(chosen.kills // 2, postgres, upstream, scale.fact)
    except Fault as fault:
        sys.exit(f"make scale: {fault}")
    finally:
        upstream.stop()
    write(scale.facts, RESULT)
    print(table(scale.facts))
    print(f"\nwritten to {RESULT.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
