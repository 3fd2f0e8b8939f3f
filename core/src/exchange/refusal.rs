//! A refusal waits for the rest of a short request: in HTTP/1.1 a connection on which a request was answered before it had
//! come whole cannot serve another one, and Envoy closes it (RFC 9112 §9.3). An agent that is told to authenticate
//! then comes again on the same connection.

use std::time::Duration;

use super::{Record, Step};
use crate::budget::{Account, Hold, Waits};
use crate::denial::LocalReply;
use crate::gateway::Gateway;
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
    hold: Hold,
}

/// The known size of a request when it is refused.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    /// Bytes that Envoy keeps: the head, and the body if it is complete.
    head: usize,
    /// Bytes of the body that the refusal waits for: those of a short body, else zero.
    rest: usize,
}

impl Size {
    /// A complete request with this many bytes.
    pub(super) const fn whole(head: usize) -> Self {
        Self { head, rest: 0 }
    }

    pub(super) fn of(head: &RequestHead) -> Self {
        let rest = head.content_length().filter(|length| *length <= MAX_REST_LENGTH).unwrap_or(0);
        Self { head: head.length(), rest }
    }

    pub(super) fn head(self) -> usize {
        self.head
    }
}

/// Refuses a request of this size with `reply`.
pub(super) fn step(gateway: &Gateway, size: Size, reply: LocalReply, record: Record) -> Step {
    let hold = (size.rest > 0).then(|| gateway.budget.hold(Account::Refused, Waits::ForClient, size.head)).flatten();
    match hold {
        Some(hold) => Step::ReplyAfterRest(AwaitingRest { reply, record, deadline: None, hold }),
        None => Step::Reply(reply, record),
    }
}

impl AwaitingRest {
    /// Whether the rest of the request took too long, or its hold was given up. The time begins with the first call.
    pub fn is_overdue(&mut self, now: UnixTime) -> bool {
        let latest = now.plus(REST_TIMEOUT);
        let deadline = *self.deadline.insert(self.deadline.map_or(latest, |deadline| deadline.min(latest)));
        now >= deadline || self.hold.is_given_up()
    }

    /// The place of this request in the worker's budget.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Answers, whatever has come.
    pub fn proceed(self) -> Step {
        Step::Reply(self.reply, self.record)
    }
}
