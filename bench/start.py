"""The first steps of each benchmark program."""

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
    """Empties the folder `out`. Ends the program if this machine cannot measure."""
    if not shutil.which("wrk"):
        sys.exit(f"{program}: wrk is missing (Debian: apt-get install wrk)")
    if (os.cpu_count() or 1) < 2:
        sys.exit(f"{program}: needs two cores, one for Envoy and one for wrk")
    # Remove old requests: they contain credentials, and may be large.
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True, mode=0o700)
    # With an exception instead of a signal, the `with` blocks stop all started programs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"{program}: terminated"))
