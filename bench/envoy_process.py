"""An Envoy that the benchmark started, and the figures of the system about it."""

import json
import os
import re
import subprocess
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

from load import Fault
from run import BIN, ROOT, answers

START_TIMEOUT_S = 120
# A line of smaps that begins a mapping, and the minimum size of a mapping that guards a linear memory.
MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (....) .* 0 *$")
GUARD_BYTES = 1 << 32
ENVOY_CORE = 0


class Envoy:
    """Runs until `stop`, or until the end of a `with` block. `core` pins it to a core. None: any core."""

    def __init__(
        self,
        name: str,
        config: dict,
        folder: Path,
        environment: dict[str, str],
        *,
        workers: int = 1,
        core: int | None = ENVOY_CORE,
    ) -> None:
        path, admin, self.log = folder / f"{name}.json", folder / f"{name}.admin", folder / f"{name}.log"
        # Only the owner may read a policy.
        path.touch(mode=0o600)
        path.write_text(json.dumps(config))
        admin.unlink(missing_ok=True)
        pinned = [] if core is None else ["taskset", "-c", core]
        envoy = [BIN / "envoy", "-c", path, "--admin-address-path", admin, "--concurrency", workers]
        options = ["--disable-hot-restart", "-l", "warning"]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in (*pinned, *envoy, *options)],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env=os.environ | {"ENVOY_DYNAMIC_MODULES_SEARCH_PATH": str(ROOT / "dist")} | environment,
            )
        try:
            self._await(lambda: admin.exists() and admin.read_text())
            self.admin = f"http://{admin.read_text()}"
            self._await(lambda: answers(f"{self.admin}/ready"))
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> "Envoy":
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def _await(self, ready) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Fault(f"Envoy did not start, see {self.log.relative_to(ROOT)}")
            time.sleep(0.02)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def ports(self) -> dict[str, int]:
        """Ports by the name of the listener."""
        listeners = self._admin("listeners?format=json")["listener_statuses"]
        return {listener["name"]: listener["local_address"]["socket_address"]["port_value"] for listener in listeners}

    def server_errors(self) -> int:
        """Number of answers of 500 and above, of all listeners."""
        return self._counter("http.gateway.downstream_rq_5xx")

    def answered(self) -> int:
        """Number of finished requests, of all listeners."""
        return self._counter("http.gateway.downstream_rq_completed")

    def _counter(self, name: str) -> int:
        return self.counters(f"^{name}$").get(name, 0)

    def counters(self, pattern: str) -> dict[str, int]:
        """The used counters with a name that matches."""
        stats = self._admin(f"stats?format=json&usedonly&filter={quote(pattern)}")["stats"]
        return {stat["name"]: stat["value"] for stat in stats if "name" in stat}

    def _admin(self, path: str) -> dict:
        with urllib.request.urlopen(f"{self.admin}/{path}") as response:
            return json.load(response)

    def worker_cpu_us(self) -> float:
        """CPU time of the worker threads, without the main thread, which serves no requests."""
        total = 0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            if (task / "comm").read_text().startswith("wrk:worker"):
                total += int((task / "schedstat").read_text().split()[0])
        return total / 1000

    def memory_bytes(self) -> int:
        """Resident memory of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def heap_bytes(self) -> int:
        """Memory that Envoy itself has allocated, without the memory of V8 and without free memory."""
        return int(self._admin("memory")["allocated"])

    def module_bytes(self) -> int:
        """Resident linear memory of all VMs. V8 puts each one before a guard mapping of gigabytes."""
        total, resident = 0, 0
        for line in Path(f"/proc/{self.process.pid}/smaps").read_text().splitlines():
            if mapping := MAPPING.match(line):
                start, end, mode = mapping.groups()
                if mode == "---p" and int(end, 16) - int(start, 16) >= GUARD_BYTES:
                    total += resident
                resident = 0
            elif line.startswith("Rss:"):
                resident = int(line.split()[1]) * 1024
        return total
