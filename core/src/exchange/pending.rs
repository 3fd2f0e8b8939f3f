//! The states of a request that waits. This file has the only list of them: a new state needs its own file with an
//! implementation of [`State`], and a line in [`Pending`] and in the macro `each`.

use super::{AwaitingCount, AwaitingForm, AwaitingKeySet, AwaitingMessage, AwaitingPolicy, AwaitingRest, ServiceOutcome, Step};
use crate::budget::Hold;
use crate::gateway::Gateway;
use crate::host::Host;
use crate::request::RequestHead;
use crate::time::UnixTime;

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

/// One state. A state consumes itself.
pub(super) trait State {
    /// The place of the request in the worker's budget.
    fn hold(&self) -> &Hold;

    /// Whether `event` ends the wait. [`Pending`] answers for [`Event::GivenUp`].
    ///
    /// Each tick asks every waiting request, so this must be cheap.
    fn is_ended_by(&mut self, event: &Event<'_>, gateway: &Gateway) -> bool;

    /// Decides on the request after an event that ended the wait.
    fn handle(self, event: Event<'_>, context: &mut Context<'_>) -> Step;

    /// Whether the hold of this state is charged for the part of the body that arrived earlier.
    fn charges_earlier_body(&self) -> bool {
        true
    }

    /// Whether Envoy may forward the head while the request waits.
    fn lets_head_go(&self) -> bool {
        false
    }
}

/// A request that waits.
#[derive(Debug)]
pub enum Pending {
    /// The first policy has not arrived.
    Policy(AwaitingPolicy),
    /// A key set is being fetched.
    KeySet(AwaitingKeySet),
    /// The form for the token endpoint is incomplete.
    Form(AwaitingForm),
    /// The MCP message is incomplete.
    Message(AwaitingMessage),
    /// The rate limit service has not answered.
    Count(AwaitingCount),
    /// The request is refused, and the rest of it has not arrived.
    Rest(AwaitingRest),
}

macro_rules! each {
    ($pending:expr, $state:ident => $result:expr) => {
        match $pending {
            Self::Policy($state) => $result,
            Self::KeySet($state) => $result,
            Self::Form($state) => $result,
            Self::Message($state) => $result,
            Self::Count($state) => $result,
            Self::Rest($state) => $result,
        }
    };
}

impl Pending {
    /// Handles an event. An event that does not end the wait returns the unchanged state as [`Step::Wait`].
    #[inline(never)] // Otherwise each callback of the module has a copy of all states.
    pub fn handle(mut self, event: Event<'_>, context: &mut Context<'_>) -> Step {
        let event = match event {
            Event::Tick { .. } if self.hold().is_given_up() => Event::GivenUp,
            event => event,
        };
        if !self.is_ended_by(&event, context.gateway) {
            return Step::Wait(self);
        }
        each!(self, state => state.handle(event, context))
    }

    /// Whether `event` ends the wait.
    pub fn is_ended_by(&mut self, event: &Event<'_>, gateway: &Gateway) -> bool {
        match event {
            Event::GivenUp => self.hold().is_given_up(),
            event => each!(self, state => state.is_ended_by(event, gateway)),
        }
    }

    /// The place of the request in the worker's budget.
    pub fn hold(&self) -> &Hold {
        each!(self, state => state.hold())
    }

    /// See [`State::charges_earlier_body`].
    pub(super) fn charges_earlier_body(&self) -> bool {
        each!(self, state => state.charges_earlier_body())
    }

    /// See [`State::lets_head_go`].
    pub(super) fn lets_head_go(&self) -> bool {
        each!(self, state => state.lets_head_go())
    }
}
