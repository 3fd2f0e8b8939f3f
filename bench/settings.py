"""`apexmcp serve` with a new database, and the commands of `apexmcp`."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import time
from pathlib import Path

from load import Fault
from run import ROOT, accepts, free_port

PROGRAM = ROOT / "dist" / "apexmcp"
START_TIMEOUT_S = 60
CLUSTER = "settings"
TOKEN_ENV = "APEXMCP_SETTINGS_TOKEN"


class Postgres:
    """A PostgreSQL server with an empty database. It runs until the end of a `with` block."""

    def __init__(self) -> None:
        told = "echo $APEXMCP_TEST_POSTGRES; echo $APEXMCP_TEST_POSTGRES_CONTROL; exec cat"
        self.script = subprocess.Popen(
            [ROOT / "scripts" / "with-postgres", "sh", "-c", told],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        server, self.control = (self.script.stdout.readline().strip() for _ in range(2))
        if not self.control:
            raise Fault("PostgreSQL did not start")
        self.folder = Path(self.control).parent
        self.url = f"{server}/postgres"

    def __enter__(self) -> "Postgres":
        return self

    def __exit__(self, *_) -> None:
        # The script ends with the command that reads its input.
        self.script.stdin.close()
        self.script.wait()

    def kill(self) -> None:
        """Ends the server as a crash would, and starts it again."""
        pid = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in (pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        deadline = time.monotonic() + START_TIMEOUT_S
        # The memory of the killed server must be free first.
        while subprocess.run([self.control, "start"], capture_output=True).returncode != 0:
            if time.monotonic() > deadline:
                raise Fault("PostgreSQL did not start again")
            time.sleep(0.1)


class Settings:
    """Serves until `stop`, or until the end of a `with` block. It shares its core with wrk, not with Envoy."""

    def __init__(
        self, folder: Path, core: int, policy: Path | None = None, database: str = "", *, with_console: bool = False
    ) -> None:
        """Imports `policy` first. `database` is the URL of an empty database. Without it, a file is created."""
        self.folder, self.core = folder, core
        self.database = database or folder / "settings.db"
        self.port = free_port()
        # The port of the console. `None`: there is none.
        self.console = free_port() if with_console else None
        self.environment = {TOKEN_ENV: secrets.token_urlsafe(32)}
        self.command("init")
        if policy:
            self.command("policy", "import", str(policy))
        self.start()

    def start(self) -> None:
        """Starts `apexmcp serve`."""
        folder = self.folder
        pinned = ["taskset", "-c", str(self.core)]
        serve = [*pinned, PROGRAM, "--db", self.database, "serve", "--listen", f"127.0.0.1:{self.port}"]
        serve += ["--console", f"127.0.0.1:{self.console}"] if self.console else []
        with open(folder / "settings.log", "ab") as log:
            self.process = subprocess.Popen(
                [str(part) for part in serve], stdout=log, stderr=log, env=os.environ | self.environment
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not accepts(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise Fault(f"apexmcp serve did not start, see {(folder / 'settings.log').relative_to(ROOT)}")
            time.sleep(0.05)

    def __enter__(self) -> "Settings":
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    def kill(self) -> None:
        """Ends `apexmcp serve` as a crash would."""
        self.process.kill()
        self.process.wait()

    def memory_bytes(self) -> int:
        """Resident memory of `apexmcp serve`."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_s(self) -> float:
        """CPU time of `apexmcp serve`."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def begin(self, *words: str) -> subprocess.Popen:
        """Begins a command."""
        command = [PROGRAM, "--json", "--db", self.database, *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def command(self, *words: str) -> dict:
        """Runs a command and returns its JSON."""
        done = subprocess.run([PROGRAM, "--json", "--db", self.database, *words], capture_output=True, text=True)
        if done.returncode != 0:
            raise Fault(f"apexmcp {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
        return json.loads(done.stdout)
