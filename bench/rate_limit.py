"""Envoy's rate limit service, and the Redis in which it counts."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from load import Fault
from run import BIN, free_port

DOMAIN = "apexmcp"
START_TIMEOUT_S = 20


class RateLimitService:
    """Runs until `stop`, or until the end of a `with` block. It shares its core with wrk, not with Envoy."""

    def __init__(self, folder: Path, core: int) -> None:
        runtime = folder / "runtime"
        config = runtime / "ratelimit" / "config"
        config.mkdir(parents=True)
        (config / "apexmcp.yaml").write_text(f"domain: {DOMAIN}\n")
        redis, self.port, http, debug = (free_port() for _ in range(4))
        environment = {
            "HOST": "127.0.0.1",
            "GRPC_HOST": "127.0.0.1",
            "DEBUG_HOST": "127.0.0.1",
            "GRPC_PORT": str(self.port),
            "PORT": str(http),
            "DEBUG_PORT": str(debug),
            "REDIS_SOCKET_TYPE": "tcp",
            "REDIS_URL": f"127.0.0.1:{redis}",
            "USE_STATSD": "false",
            "RUNTIME_ROOT": str(runtime),
            "RUNTIME_SUBDIRECTORY": "ratelimit",
            "RUNTIME_WATCH_ROOT": "false",
        }
        redis_server = shutil.which("redis-server") or "redis-server"
        redis_command = [redis_server, "--port", str(redis), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        log = open(folder / "ratelimit.log", "wb")
        self.processes: list[subprocess.Popen] = []
        for port, command in ((redis, redis_command), (self.port, [str(BIN / "ratelimit")])):
            pinned = ["taskset", "-c", str(core), *command]
            process = subprocess.Popen(pinned, stdout=log, stderr=log, env=os.environ | environment)
            self.processes.append(process)
            self._await(process, port)

    def _await(self, process: subprocess.Popen, port: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                return socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise Fault("the rate limit service did not start, see target/bench/ratelimit.log") from None
                time.sleep(0.05)

    def __enter__(self) -> "RateLimitService":
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            process.wait()
