//! What may happen to a request that waits, and what the shell does next. A new state needs only its own file with an
//! implementation of [`State`].

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use super::forward::{Edits, Forward, Record};
use crate::budget::Hold;
use crate::denial::LocalReply;
use crate::gateway::Gateway;
use crate::host::Host;
use crate::request::RequestHead;
use crate::time::UnixTime;

/// What the shell does next.
#[derive(Debug)]
pub enum Step {
    /// Let the request pass unchanged. It is not for this filter.
    Pass,
    /// Edit the headers, then let the request pass.
    Forward(Forward, Record),
    /// Answer the request.
    Reply(LocalReply, Record),
    /// Hold the request until an event ends its wait.
    Wait(Pending),
    /// Edit the headers, then hold the request.
    EditAndWait(Edits, Pending),
    /// Edit the headers, send the question, then report the result as [`Event::Asked`].
    Ask(Edits, Question, Pending),
    /// The response began before the request was decided. Replace it, or let it pass if there is no reply. What has arrived
    /// of the request goes no further.
    EarlyResponse(Option<LocalReply>, Record),
}

/// A question to the rate limit service.
#[derive(Debug, PartialEq, Eq)]
pub struct Question {
    /// The Envoy cluster of the service.
    pub cluster: Rc<str>,
    /// The cluster as the wasm module tells it to Envoy, see [`crate::limits::service::upstream`].
    pub upstream: Rc<str>,
    /// The timeout of the call.
    pub timeout: Duration,
    /// The serialized `RateLimitRequest`.
    pub message: Vec<u8>,
}

/// The result of a question to the rate limit service, for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServiceOutcome {
    /// The request is within all limits.
    Ok,
    /// The request exceeds a limit.
    OverLimit,
    /// There was no answer, or an unreadable one.
    Error,
    /// The service was not asked, or its answer was not awaited, because too many questions are open.
    Overloaded,
}

/// Something that may end the wait of a request.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The request was just held. The event tells a state what is already known, so that it need not wait in vain.
    Held {
        /// The part of the body that arrived before.
        body: BodyProgress,
        /// See [`crate::body_holding::BodyHolding::known`].
        host_holds_bodies: Option<bool>,
    },
    /// The worker's timer, every 20 ms.
    Tick {
        /// The current time.
        now: UnixTime,
    },
    /// A part of the body arrived, or the request ended.
    BodyArrived(BodyProgress),
    /// The question to the rate limit service was sent.
    Asked {
        /// The stream of the request.
        stream: u32,
        /// The number that Envoy gave to the call. `None` if Envoy did not send the question.
        call: Option<u32>,
    },
    /// The call to the rate limit service ended.
    Answered {
        /// The number that Envoy gave to the call.
        call: u32,
        /// The `RateLimitResponse`. `None` if there is no answer that the filter reads.
        message: Option<&'a [u8]>,
    },
    /// The response began before the request was decided.
    AnsweredEarly {
        /// The status of the response.
        status: u16,
    },
    /// The budget gave the place of this request to another request.
    GivenUp,
}

/// The part of a request body that has arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BodyProgress {
    /// Number of bytes.
    pub length: usize,
    /// Whether nothing more comes.
    pub is_whole: bool,
}

impl BodyProgress {
    /// Whether the body is whole, or has the `max` bytes that are read.
    pub(super) fn is_enough(self, max: usize) -> bool {
        self.is_whole || self.length >= max
    }
}

/// Reads from the host what no state keeps. Each call is a hostcall, so a state reads only what it needs.
pub trait RequestReader {
    /// The head of the request. `None` if the host cannot give it, or if it has a name that is not ASCII.
    fn head(&self) -> Option<RequestHead>;

    /// The first `max` bytes of the body, as far as they have arrived.
    fn body(&self, max: usize) -> Vec<u8>;

    /// The current time.
    fn now(&self) -> UnixTime;
}

/// What a state may use to handle an event, and what it reports besides its [`Step`].
pub struct Context<'a> {
    /// Configuration, policy, key sets and budget of the worker.
    pub gateway: &'a mut Gateway,
    /// Cryptography, randomness and shared memory.
    pub host: &'a dyn Host,
    /// The request, and the clock.
    pub request: &'a dyn RequestReader,
    /// Output: how the rate limit service answered, for the metrics.
    pub service_outcome: Option<ServiceOutcome>,
    /// Output: a line for the operator's log.
    pub warning: Option<&'static str>,
}

impl<'a> Context<'a> {
    /// A context without output.
    pub fn new(gateway: &'a mut Gateway, host: &'a dyn Host, request: &'a dyn RequestReader) -> Self {
        Self { gateway, host, request, service_outcome: None, warning: None }
    }
}

/// One state in which a request waits. A state consumes itself.
pub(super) trait State {
    /// The name of the type, for tests.
    #[cfg(test)]
    fn name(&self) -> &'static str {
        std::any::type_name::<Self>().rsplit("::").next().unwrap_or_default()
    }

    /// The place of the request in the worker's budget.
    fn hold(&self) -> &Hold;

    /// Whether `event` ends the wait. [`Pending`] answers for [`Event::GivenUp`].
    ///
    /// Each tick asks every waiting request, so this must be cheap.
    fn is_ended_by(&mut self, event: &Event<'_>, gateway: &Gateway) -> bool;

    /// Decides on the request after an event that ended the wait.
    fn handle(self: Box<Self>, event: Event<'_>, context: &mut Context<'_>) -> Step;

    /// Whether the hold of this state is charged for the part of the body that arrived earlier.
    fn charges_earlier_body(&self) -> bool {
        true
    }

    /// Whether Envoy may forward the head while the request waits.
    fn lets_head_go(&self) -> bool {
        false
    }
}

/// A request that waits, in one of the states of this module's files.
pub struct Pending(Box<dyn State>);

/// Without the data of the state, which would make the module larger by 3 %.
impl fmt::Debug for Pending {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Pending(..)")
    }
}

impl Pending {
    pub(super) fn new(state: impl State + 'static) -> Self {
        Self(Box::new(state))
    }

    pub(super) fn again(state: Box<impl State + 'static>) -> Self {
        Self(state)
    }

    /// The name of the state.
    #[cfg(test)]
    pub(super) fn name(&self) -> &'static str {
        self.0.name()
    }

    /// Handles an event. An event that does not end the wait returns the unchanged state as [`Step::Wait`].
    pub fn handle(mut self, event: Event<'_>, context: &mut Context<'_>) -> Step {
        let event = match event {
            Event::Tick { .. } if self.hold().is_given_up() => Event::GivenUp,
            event => event,
        };
        if !self.is_ended_by(&event, context.gateway) {
            return Step::Wait(self);
        }
        self.0.handle(event, context)
    }

    /// Whether `event` ends the wait.
    pub fn is_ended_by(&mut self, event: &Event<'_>, gateway: &Gateway) -> bool {
        match event {
            Event::GivenUp => self.hold().is_given_up(),
            event => self.0.is_ended_by(event, gateway),
        }
    }

    /// The place of the request in the worker's budget.
    pub fn hold(&self) -> &Hold {
        self.0.hold()
    }

    /// See [`State::charges_earlier_body`].
    pub(super) fn charges_earlier_body(&self) -> bool {
        self.0.charges_earlier_body()
    }

    /// See [`State::lets_head_go`].
    pub(super) fn lets_head_go(&self) -> bool {
        self.0.lets_head_go()
    }
}
