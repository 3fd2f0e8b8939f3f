"""Simulated gateways for `make scale`: connections that follow `apexmcp serve` as our filter does, and check what
they get.

The program writes a line of JSON for each version of the policy: when the gateways had it, in seconds since the epoch.
It ends when its standard input ends.
"""

import argparse
import asyncio
import hashlib
import json
import os
import sys
import time
from collections import Counter

TOKEN_ENV = "APEXMCP_SETTINGS_TOKEN"
MEDIA_TYPE = "application/vnd.apexmcp.policy-parts+json"
LANES = 4
# Pause after a connection was refused or broke.
RETRY_S = 0.2


class Wrong(Exception):
    """An answer that a gateway must not get."""


def digest(name: str, text: str) -> list[int]:
    data = hashlib.sha256(f"{name}\0{text}".encode()).digest()
    return [int.from_bytes(data[8 * lane : 8 * lane + 8]) for lane in range(LANES)]


class Policy:
    """All parts in the latest state. Gateways that got the same answer share it, so that a thousand of them fit."""

    def __init__(self) -> None:
        self.parts: dict[str, str] = {}
        self.sum = [0] * LANES
        self.seen: dict[bytes, dict] = {}

    def take(self, body: bytes) -> dict:
        """The page in an answer. The first time, its parts are added and their sum is checked."""
        if page := self.seen.get(body):
            return page
        page = json.loads(body)
        for name, part in page["parts"].items():
            # The digest is that of the text as it was sent.
            text = None if part is None else json.dumps(part, separators=(",", ":"), ensure_ascii=False)
            before = self.parts.pop(name, None)
            for old, sign in ((before, -1), (text, 1)):
                if old is not None:
                    self.sum = [
                        (lane + sign * more) % 2**64 for lane, more in zip(self.sum, digest(name, old), strict=True)
                    ]
            if text is not None:
                self.parts[name] = text
        if (expected := page.get("sum")) and "".join(f"{lane:016x}" for lane in self.sum) != expected:
            raise Wrong(f"the parts of version {page['version']} have another sum")
        # The parts are not needed again.
        page = {name: page[name] for name in ("next", "version", "is_last")} | {"since": page.get("since")}
        self.seen[body] = page
        if len(self.seen) > 64:
            del self.seen[next(iter(self.seen))]
        return page


class Fleet:
    def __init__(self, port: int, token: str) -> None:
        self.port, self.token = port, token
        self.policy = Policy()
        self.times: dict[str, list[float]] = {}
        self.bytes: Counter[str] = Counter()

    def request(self, state: str | None) -> bytes:
        known = f'If-None-Match: "{state}"\r\n' if state else ""
        path = "/v1/policy?wait=30s" if state else "/v1/policy"
        return (
            f"GET {path} HTTP/1.1\r\nHost: settings\r\nAuthorization: Bearer {self.token}\r\n"
            f"Accept: {MEDIA_TYPE}\r\n{known}\r\n"
        ).encode()

    async def ask(self, stream: tuple[asyncio.StreamReader, asyncio.StreamWriter], state: str | None) -> bytes | None:
        """The body of the answer. None: nothing changed."""
        reader, writer = stream
        writer.write(self.request(state))
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        status = head.split(" ", 2)[1]
        if status == "304":
            return None
        if status != "200":
            raise Wrong(f"status {status}")
        length = int(head.split("content-length: ", 1)[1].split("\r\n", 1)[0])
        return await reader.readexactly(length)

    async def first_state(self) -> str:
        """Takes the whole policy once, for all gateways."""
        stream = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
        state, is_last = None, False
        while not is_last:
            page = self.policy.take(await self.ask(stream, state) or b"{}")
            state, is_last = page["next"], page["is_last"]
        stream[1].close()
        return state

    async def gateway(self, state: str, gateways: int) -> None:
        """Follows the changes."""
        while True:
            try:
                stream = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
                while True:
                    body = await self.ask(stream, state)
                    if body is None:
                        continue
                    page = self.policy.take(body)
                    if page["since"] != state:
                        raise Wrong(f"a gateway with {state} got what follows {page['since']}")
                    state = page["next"]
                    self.note(page["version"], len(body), gateways)
            except (OSError, asyncio.IncompleteReadError):
                await asyncio.sleep(RETRY_S)

    def note(self, version: str, length: int, gateways: int) -> None:
        times = self.times.setdefault(version, [])
        times.append(time.time())
        self.bytes[version] = max(self.bytes[version], length)
        if len(times) == gateways:
            # A gateway that was late may have several versions at once.
            line = {"version": version, "times": times, "bytes": self.bytes.pop(version)}
            del self.times[version]
            print(json.dumps(line), flush=True)


async def follow(port: int, gateways: int) -> None:
    fleet = Fleet(port, os.environ[TOKEN_ENV])
    state = await fleet.first_state()
    followers = [asyncio.create_task(fleet.gateway(state, gateways)) for _ in range(gateways)]
    print(json.dumps({"ready": gateways, "parts": len(fleet.policy.parts)}), flush=True)
    end = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    done, _ = await asyncio.wait([*followers, end], return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
    # The tasks end with the process.
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("gateways", type=int)
    chosen = parser.parse_args()
    try:
        asyncio.run(follow(chosen.port, chosen.gateways))
    except Wrong as wrong:
        sys.exit(f"fleet: {wrong}")


if __name__ == "__main__":
    main()
