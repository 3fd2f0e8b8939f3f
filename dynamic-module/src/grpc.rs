//! The questions to the rate limit service. The ABI has no gRPC client, so a question is an HTTP/2 request with one framed
//! message ("gRPC over HTTP2").

use apexmcp_core::exchange::Question;
use apexmcp_core::limits::service::{MAX_ANSWER_LENGTH, METHOD, SERVICE};
use rustc_hash::FxHashMap;

use crate::abi::Filter;

/// Length of the prefix of a message: a flag for compression, and the length of the message.
const PREFIX_LENGTH: usize = 5;
/// The status of gRPC for a service that does not answer.
const UNAVAILABLE: u32 = 14;

/// The open questions of one thread, by their stream. A stream has one at a time.
#[derive(Default)]
pub(crate) struct Questions {
    open: FxHashMap<u32, Open>,
    last_number: u32,
}

struct Open {
    /// The number for the core.
    number: u32,
    /// Envoy's number of the HTTP request.
    request: u64,
    /// `None` until a header or a trailer has it.
    grpc_status: Option<u32>,
    is_ok: bool,
    answer: Vec<u8>,
}

/// A question that has ended.
pub(crate) struct Ended {
    pub(crate) number: u32,
    pub(crate) grpc_status: u32,
    /// The message, with its prefix.
    answer: Vec<u8>,
}

impl Ended {
    /// Length of the message in bytes.
    pub(crate) fn size(&self) -> usize {
        self.answer.len().saturating_sub(PREFIX_LENGTH)
    }

    /// The message.
    pub(crate) fn message(&self) -> Vec<u8> {
        self.answer.get(PREFIX_LENGTH..).unwrap_or_default().to_vec()
    }
}

impl Questions {
    /// Sends a question, and returns its number.
    pub(crate) fn ask(&mut self, question: &Question, stream: u32, filter: Filter) -> Option<u32> {
        let path = format!("/{SERVICE}/{METHOD}");
        let headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", &path),
            (":authority", &question.cluster),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        let length = u32::try_from(question.message.len()).ok()?.to_be_bytes();
        let body = [&[0], &length[..], &question.message].concat();
        let timeout = u64::try_from(question.timeout.as_millis()).unwrap_or(u64::MAX).max(1);
        let request = filter.start_http_stream(&question.cluster, &headers, &body, timeout)?;
        self.last_number = self.last_number.wrapping_add(1);
        let number = self.last_number;
        let open = Open { number, request, grpc_status: None, is_ok: false, answer: Vec::new() };
        self.open.insert(stream, open);
        Some(number)
    }

    fn of(&mut self, stream: u32, request: u64) -> Option<&mut Open> {
        self.open.get_mut(&stream).filter(|open| open.request == request)
    }

    /// Headers or trailers of an answer came.
    pub(crate) fn headers<'h>(&mut self, stream: u32, request: u64, headers: impl Iterator<Item = (&'h [u8], &'h [u8])>) {
        let Some(open) = self.of(stream, request) else { return };
        for (name, value) in headers {
            match name {
                b":status" => open.is_ok = value == b"200",
                b"grpc-status" => open.grpc_status = std::str::from_utf8(value).ok().and_then(|status| status.parse().ok()),
                _ => {}
            }
        }
    }

    /// A part of an answer came. False if the answer is too long, and must be ended.
    pub(crate) fn data<'d>(&mut self, stream: u32, request: u64, chunks: impl Iterator<Item = &'d [u8]>) -> bool {
        let Some(open) = self.of(stream, request) else { return true };
        for chunk in chunks {
            if open.answer.len().saturating_add(chunk.len()) > MAX_ANSWER_LENGTH.saturating_add(PREFIX_LENGTH) {
                return false;
            }
            open.answer.extend_from_slice(chunk);
        }
        true
    }

    /// The answer is complete.
    pub(crate) fn complete(&mut self, stream: u32, request: u64) -> Option<Ended> {
        self.of(stream, request)?;
        let Open { number, grpc_status, is_ok, answer, .. } = self.open.remove(&stream)?;
        // The prefix must belong to the one message that is not compressed.
        let (flag, length) = answer.get(..PREFIX_LENGTH).and_then(<[u8]>::split_first).unwrap_or((&0, &[]));
        let length = length.iter().fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
        let is_whole = *flag == 0 && answer.len().checked_sub(PREFIX_LENGTH) == Some(length);
        let grpc_status = grpc_status.filter(|_| is_ok && is_whole).unwrap_or(UNAVAILABLE);
        Some(Ended { number, grpc_status, answer })
    }

    /// The answer will not come: the connection failed.
    pub(crate) fn reset(&mut self, stream: u32, request: u64) -> Option<Ended> {
        self.of(stream, request)?;
        self.end(stream)
    }

    /// The stream ends, and its question with it.
    pub(crate) fn end(&mut self, stream: u32) -> Option<Ended> {
        let Open { number, .. } = self.open.remove(&stream)?;
        Some(Ended { number, grpc_status: UNAVAILABLE, answer: Vec::new() })
    }
}
