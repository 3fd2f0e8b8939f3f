"""Runs wrk on the core that Envoy does not use."""

import hashlib
import json
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from wire import Request

SCRIPT = Path(__file__).with_name("load.lua")
WRK_CORE = 1


class Fault(Exception):
    """A measurement would not mean what its name says. The message is one line for the user."""


@dataclass(frozen=True)
class Load:
    """The results of one run of wrk."""

    requests: int
    refused: int
    broken: int
    seconds: float
    p50_us: float
    p99_us: float
    max_us: float

    @property
    def rps(self) -> float:
        return self.requests / self.seconds

    def require(self, name: str, status: int) -> "Load":
        """Checks that all answers are refusals (400 and above) if `status` is one, and none otherwise."""
        expected = self.requests if status >= 400 else 0
        if self.broken or self.requests == 0 or self.refused != expected:
            seen = f"{self.requests} answers, {self.refused} of them refusals, {self.broken} broken connections"
            raise Fault(f"{name}: {seen}")
        return self


class Requests:
    """Requests in a file, which wrk sends in turn. Only the owner may read them: they contain credentials."""

    def __init__(self, requests: list[Request], folder: Path) -> None:
        text = b"".join(request.encode() + b"\0" for request in requests)
        self.count = len(requests)
        self.path = folder / f"{hashlib.sha256(text).hexdigest()[:16]}.requests"
        self.path.touch(mode=0o600)
        self.path.write_bytes(text)


class Wrk:
    """A running wrk. `result` waits for its end."""

    def __init__(
        self,
        port: int,
        requests: Requests,
        connections: int,
        seconds: int,
        *,
        skip: int = 0,
        pause_ms: float = 0,
        core: int | None = WRK_CORE,
    ) -> None:
        pinned = [] if core is None else ["taskset", "-c", str(core)]
        wrk = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(SCRIPT), f"http://127.0.0.1:{port}/"]
        arguments = ["--", str(requests.path), str(skip), str(pause_ms)]
        self.process = subprocess.Popen([*pinned, *wrk, *arguments], stdout=subprocess.PIPE, text=True)

    def runs(self) -> bool:
        return self.process.poll() is None

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends the load, also if it is stopped. After `result`, there is nothing left to end."""
        if self.runs():
            self.process.terminate()
            self.resume()
            self.process.wait()

    def end(self) -> Load:
        """Ends the load early and returns its result."""
        self.process.send_signal(signal.SIGINT)
        return self.result()

    def result(self) -> Load:
        try:
            output, _ = self.process.communicate()
        except BaseException:
            self.process.terminate()
            raise
        if self.process.returncode != 0:
            raise Fault(f"wrk failed\n{output}")
        return Load(**json.loads(output.splitlines()[-1]))
