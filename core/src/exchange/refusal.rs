//! Refuses requests. A refusal waits for the rest of a short request, so that the client can keep its connection.
//!
//! If an HTTP/1.1 request is answered before it is whole, the connection cannot serve another request, and Envoy closes it
//! (RFC 9112 §9.3). An agent that has to authenticate then sends its next request on the same connection.

use std::time::Duration;

use super::forward::{Forward, Record, edits};
use super::pending::{Context, Event, Pending, State, Step};
use crate::budget::{Account, Hold, Waits};
use crate::config::Mode;
use crate::deadline::Deadline;
use crate::denial::{Denial, LocalReply};
use crate::gateway::{Findings, Gateway};
use crate::host::Host;
use crate::path::Resource;
use crate::reason::Reason;
use crate::request::RequestHead;

/// Maximum length of a body that a refusal waits for. Messages are shorter. The buffer of a listener must be longer (Envoy
/// advises 32 KiB at the edge), else the client would get 413 instead of the refusal.
const MAX_REST_LENGTH: usize = 16 * 1024;

/// Maximum time that a refusal waits. Clients send a short body together with the head.
const REST_TIMEOUT: Duration = Duration::from_millis(250);

/// A request that is refused, and whose body is incomplete.
struct AwaitingRest {
    reply: LocalReply,
    record: Record,
    /// The first tick sets the deadline, because a refusal does not read the clock.
    deadline: Option<Deadline>,
    hold: Hold,
}

/// The size of a request, as far as it is known when the request is refused.
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

    /// The size by the head alone. Only a declared length is known.
    pub(super) fn of(head: &RequestHead) -> Self {
        let rest = head.content_length().filter(|length| *length <= MAX_REST_LENGTH).unwrap_or(0);
        Self { head: head.length(), rest }
    }

    pub(super) fn head(self) -> usize {
        self.head
    }
}

/// Refuses a request. In shadow mode it passes.
pub(super) fn refuse(
    gateway: &Gateway,
    head: &RequestHead,
    resource: Option<&Resource>,
    mode: Mode,
    denial: Denial,
    findings: Findings,
    host: &dyn Host,
) -> Step {
    let org = resource.filter(|_| findings.principal.is_none()).map(|resource| resource.org.clone());
    let findings = Findings { org, ..findings };
    match mode {
        Mode::Enforce => {
            let reply = gateway.reply(&denial, resource, host);
            step(gateway, Size::of(head), reply, Record::Resource { refused: Some(denial), findings })
        }
        Mode::Shadow => {
            // The request asserts the proven principal, if there is one. The edits remove every other assertion.
            let edits = edits(gateway, head, findings.principal.clone());
            Step::Forward(Forward { edits, ..Forward::default() }, Record::Resource { refused: Some(denial), findings })
        }
    }
}

/// The refusal of a request whose head cannot be read, or that arrived before a configuration.
pub fn unreadable() -> Step {
    let record = Record::Resource { refused: Some(Reason::PolicyUnavailable.into()), findings: Findings::default() };
    Step::Reply(not_edited(), record)
}

/// The answer if the host did not edit the headers of a request. Without the edits, the request could assert an identity.
pub fn not_edited() -> LocalReply {
    Denial::from(Reason::PolicyUnavailable).reply(None)
}

/// Refuses a request of this size with `reply`.
pub(super) fn step(gateway: &Gateway, size: Size, reply: LocalReply, record: Record) -> Step {
    let hold = (size.rest > 0).then(|| gateway.budget.hold(Account::Refused, Waits::ForClient, size.head)).flatten();
    match hold {
        Some(hold) => Step::Wait(Pending::new(AwaitingRest { reply, record, deadline: None, hold })),
        None => Step::Reply(reply, record),
    }
}

impl State for AwaitingRest {
    fn hold(&self) -> &Hold {
        &self.hold
    }

    /// If Envoy holds the body together with the head, nothing more arrives, and the refusal does not wait.
    fn is_ended_by(&mut self, event: &Event<'_>, _gateway: &Gateway) -> bool {
        match *event {
            Event::Held { body, host_holds_bodies } => body.is_whole || host_holds_bodies == Some(true),
            Event::BodyArrived(body) => body.is_whole,
            Event::Tick { now } => {
                let deadline = self.deadline.get_or_insert_with(|| Deadline::after(REST_TIMEOUT, now));
                deadline.has_passed(REST_TIMEOUT, now)
            }
            _ => false,
        }
    }

    fn handle(self: Box<Self>, _event: Event<'_>, _context: &mut Context<'_>) -> Step {
        Step::Reply(self.reply, self.record)
    }
}
