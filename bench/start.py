"""What each of the programs here does before it measures."""

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def begin(program: str, out: Path) -> None:
    """Leaves `out` empty, and ends `program` where it cannot measure."""
    if not shutil.which("wrk"):
        sys.exit(f"{program}: wrk is missing (Debian: apt-get install wrk)")
    if (os.cpu_count() or 1) < 2:
        sys.exit(f"{program}: Envoy and wrk need a core each")
    # Requests hold credentials, and those of large rows are large.
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, mode=0o700)
    # What was started is ended then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"{program}: terminated"))
