//! A refusal waits for the rest of a short request: in HTTP/1.1 a connection on which a request was answered before it had
//! come whole cannot serve another one, and Envoy closes it (RFC 9112 §9.3). An agent that is told to authenticate
//! then comes again on the same connection.

use std::time::Duration;

use super::{Record, Step};
use crate::denial::LocalReply;
use crate::gateway::Gateway;
use crate::places::Place;
use crate::request::RequestHead;
use crate::time::UnixTime;

/// As long a body is awaited: messages are shorter, and so is no listener's buffer (Envoy advises 32 KiB at the edge), which
/// would make a 413 of the refusal.
const MAX_REST_LENGTH: usize = 16 * 1024;

/// How long it is awaited. It is on its way: clients send it with the head.
const REST_TIMEOUT: Duration = Duration::from_millis(250);

/// A request that is refused, and has not come whole.
#[derive(Debug)]
pub struct AwaitingRest {
    reply: LocalReply,
    record: Record,
    /// Begins with the first look at the clock.
    deadline: Option<UnixTime>,
    _place: Place,
}

/// Refuses the request of `head` with `reply`. Without a head, all of it has come.
pub(super) fn step(gateway: &Gateway, head: Option<&RequestHead>, reply: LocalReply, record: Record) -> Step {
    let is_short = |length: usize| 0 < length && length <= MAX_REST_LENGTH;
    let place =
        head.and_then(RequestHead::content_length).filter(|length| is_short(*length)).and_then(|_| gateway.wait_for_rest());
    match place {
        Some(place) => Step::ReplyAfterRest(AwaitingRest { reply, record, deadline: None, _place: place }),
        None => Step::Reply(reply, record),
    }
}

impl AwaitingRest {
    /// Whether the rest has been coming for too long, as far as whoever asks in intervals can tell.
    pub fn is_overdue(&mut self, now: UnixTime) -> bool {
        let latest = now.plus(REST_TIMEOUT);
        now >= *self.deadline.insert(self.deadline.map_or(latest, |deadline| deadline.min(latest)))
    }

    /// Answers, whatever has come.
    pub fn proceed(self) -> Step {
        Step::Reply(self.reply, self.record)
    }
}
