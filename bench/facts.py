"""Measurements that need an Envoy of their own: one and two workers, large policies, memory, and the module's size."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from envoy_config import ROOT, Listener, bootstrap, listener_config
from envoy_process import Envoy
from load import Fault, Requests, Wrk
from measure import Sample
from report import fact, unpaired
from rows import ORG, SIZES, Parties, ours, with_key
from run import free_port
from upstream import Upstream
from wire import Request, send

MODULE = ROOT / "dist" / "apexmcp_auth.wasm"
SETTLE_TIMEOUT_S = 60
# Connections while a policy is swapped. They are few, so that requests wait for the swap and not for each other.
WATCHING_CONNECTIONS = 2
WATCHING_S = 12
TWO_WORKERS_CONNECTIONS = 32
# V8 runs a VM for the main thread and one for the single worker.
VMS_OF_A_LISTENER = 2


@dataclass(frozen=True)
class Surroundings:
    parties: Parties
    upstream: Upstream
    folder: Path
    seconds: int

    def listener(self, name: str, keys: int) -> Listener:
        return ours(name, lambda: {ORG: self.parties.org(self.parties.keys(keys))})

    def envoy(self, name: str, config: dict, **how) -> Envoy:
        return Envoy(name, config, self.folder, self.parties.environment, **how)

    def with_listeners(self, listeners: list[Listener]) -> dict:
        config = bootstrap(self.upstream.port)
        config["static_resources"]["listeners"] = [listener_config(listener, ORG) for listener in listeners]
        return config


@dataclass(frozen=True)
class Fact:
    title: str
    names: list[str]
    measure: Callable[[Surroundings], list[dict]]


def await_answer(port: int, request: Request) -> None:
    """Returns when `request` is admitted."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        try:
            if send(port, request)[0] == 200:
                return
        except OSError:
            # Envoy does not listen yet.
            pass
        if time.monotonic() > deadline:
            raise Fault(f"a policy was not in force after {SETTLE_TIMEOUT_S} s")
        time.sleep(0.005)


def workers(surroundings: Surroundings) -> list[dict]:
    """Envoy and wrk share all cores: neither is pinned to one. So compare these two figures only with each other."""
    request = with_key(*surroundings.parties.keys(1))
    requests = Requests([request], surroundings.folder)
    entries = []
    for count, name in ((1, "one_worker"), (2, "two_workers")):
        config = surroundings.with_listeners([surroundings.listener("gateway", 1)])
        with surroundings.envoy(name, config, workers=count, core=None) as envoy:
            port = envoy.ports()["gateway"]
            await_answer(port, request)
            load = (
                Wrk(port, requests, TWO_WORKERS_CONNECTIONS, surroundings.seconds, core=None)
                .result()
                .require(name, 200)
            )
        entries.append(unpaired(name, Sample(load, None)))
    return entries


class Policies:
    """An Envoy that watches the file of its listener. Operators can change policies in this way."""

    def __init__(self, surroundings: Surroundings) -> None:
        self.surroundings = surroundings
        self.port = free_port()
        self.file = surroundings.folder / "listeners.json"
        self._replace([])
        source = {"path_config_source": {"path": str(self.file)}, "resource_api_version": "V3"}
        # Envoy needs a node name if its listeners can change.
        dynamic = {"node": {"id": "bench", "cluster": "bench"}, "dynamic_resources": {"lds_config": source}}
        config = bootstrap(surroundings.upstream.port) | dynamic
        self.envoy = surroundings.envoy("policies", config)

    def _replace(self, listeners: list[dict]) -> None:
        types = "type.googleapis.com/envoy"
        resources = [{"@type": f"{types}.config.listener.v3.Listener"} | listener for listener in listeners]
        # Envoy reloads a file that is moved into place.
        whole = self.file.with_suffix(".new")
        whole.touch(mode=0o600)
        whole.write_text(json.dumps({"resources": resources}))
        whole.replace(self.file)

    def put_in_force(self, keys: int) -> float:
        """Writes a policy of `keys` keys. Returns the milliseconds until the last key is admitted."""
        listener = listener_config(self.surroundings.listener("gateway", keys), ORG, self.port)
        last = self.surroundings.parties.keys(keys)[-1]
        before = time.monotonic()
        self._replace([listener])
        await_answer(self.port, with_key(last))
        return (time.monotonic() - before) * 1000


def large_policies(surroundings: Surroundings) -> list[dict]:
    few, many = SIZES["10"], SIZES["100k"]
    watched = Requests([with_key(surroundings.parties.keys(1)[0])], surroundings.folder)
    entries = []
    for keys, label in ((few, "10"), (many, "100k")):
        policies = Policies(surroundings)
        with policies.envoy:
            load_ms = policies.put_in_force(keys)
            watching = Wrk(policies.port, watched, WATCHING_CONNECTIONS, WATCHING_S)
            time.sleep(1)
            swap_ms = policies.put_in_force(keys + 1)
            if not watching.runs():
                raise Fault(f"a swap of policies took longer than {WATCHING_S} s")
            longest_ms = watching.result().require("a swap of policies", 200).max_us / 1000
        entries += [
            fact(f"policy_{label}_load", round(load_ms, 1), "ms"),
            fact(f"policy_{label}_swap", round(swap_ms, 1), "ms"),
            fact(f"policy_{label}_swap_longest_request", round(longest_ms, 1), "ms"),
        ]
    return entries


def memory(surroundings: Surroundings) -> list[dict]:
    """Memory that one more listener adds for each of its VMs. The first listener also adds V8 itself."""
    entries = []
    for label in ("10", "100k"):
        resident = []
        for count in (1, 3):
            listeners = [surroundings.listener(f"gateway_{number}", SIZES[label]) for number in range(count)]
            with surroundings.envoy(f"memory_{label}_{count}", surroundings.with_listeners(listeners)) as envoy:
                for port in envoy.ports().values():
                    await_answer(port, with_key(surroundings.parties.keys(1)[0]))
                resident.append(envoy.memory_bytes())
        one, three = resident
        entries.append(fact(f"vm_with_{label}_keys", round((three - one) / (2 * VMS_OF_A_LISTENER)), "bytes"))
    return entries


def module_size(_: Surroundings) -> list[dict]:
    return [fact("module", MODULE.stat().st_size, "bytes")]


FACTS = [
    Fact("one and two workers", ["one_worker", "two_workers"], workers),
    Fact(
        "loading and swapping policies of 10 and 100,000 keys",
        [f"policy_{label}_{what}" for label in ("10", "100k") for what in ("load", "swap", "swap_longest_request")],
        large_policies,
    ),
    Fact("memory of a VM", ["vm_with_10_keys", "vm_with_100k_keys"], memory),
    Fact("size of the module", ["module"], module_size),
]
