//! Counts a request against the limits of its principal. Only a request that may pass is counted, so a refused request
//! costs the principal nothing.

use std::rc::Rc;
use std::time::Duration;

use super::forward::{Edits, Forward, Record};
use super::pending::{Context, Event, Pending, Question, ServiceOutcome, State, Step};
use super::refusal::{self, Size};
use crate::budget::{Account, Hold, Waits};
use crate::config::{LimitStore, Mode, OnError};
use crate::denial::Denial;
use crate::gateway::{Count, Findings, Gateway};
use crate::host::Host;
use crate::limits::Kind;
use crate::limits::local::Exceeded;
use crate::limits::service;
use crate::limits::standing::Standing;
use crate::path::Resource;
use crate::principal::Principal;
use crate::reason::Reason;
use crate::time::UnixTime;

/// A request that passed all checks except the limits.
pub(super) struct Admitted {
    pub(super) size: Size,
    pub(super) resource: Resource,
    pub(super) mode: Mode,
    pub(super) principal: Rc<Principal>,
    pub(super) forward: Forward,
    pub(super) findings: Findings,
}

/// A request that waits for the rate limit service.
struct AwaitingCount {
    admitted: Admitted,
    /// The open questions have a clone: a question stays open when the stream of its request ends.
    hold: Rc<Hold>,
    /// The number of the call. `None` until the question is sent.
    call: Option<u32>,
}

/// Whether the filter reads the answer to a call with this gRPC status and this many bytes.
pub fn is_readable(grpc_status: u32, bytes: usize) -> bool {
    grpc_status == 0 && bytes <= service::MAX_ANSWER_LENGTH
}

impl Admitted {
    /// Counts the request, then lets it pass, refuses it, or asks the rate limit service.
    pub(super) fn count(self, gateway: &Gateway, now: UnixTime, host: &dyn Host) -> Step {
        match gateway.count(&self.principal, now, host) {
            Count::Free => self.pass(None),
            Count::Done(counted) => self.settle(counted, gateway, host),
            Count::Ask(message) => self.ask(message, gateway, host),
        }
    }

    /// Asks the service. The shell edits the headers before, so that the filter does not keep the edits meanwhile.
    fn ask(mut self, message: Vec<u8>, gateway: &Gateway, host: &dyn Host) -> Step {
        let LimitStore::RateLimitService(service) = &gateway.config.limits else { return self.pass(None) };
        let account = Account::Questions(self.resource.org.clone());
        match gateway.budget.hold(account, Waits::ForOthers, self.size.head()) {
            Some(hold) => {
                let edits: Edits = std::mem::take(&mut self.forward.edits);
                let (cluster, upstream) = (Rc::clone(&service.cluster), Rc::clone(&service.upstream));
                let question = Question { cluster, upstream, timeout: service.timeout, message };
                let awaiting = AwaitingCount { admitted: self, hold: Rc::new(hold), call: None };
                Step::Ask(edits, question, Pending::new(awaiting))
            }
            None => {
                let denial = too_many_questions(&self.principal);
                self.refuse(gateway, denial, host)
            }
        }
    }

    pub(super) fn refuse(self, gateway: &Gateway, denial: Denial, host: &dyn Host) -> Step {
        let reply = (self.mode == Mode::Enforce).then(|| gateway.reply(&denial, Some(&self.resource), host));
        let record = Record::Resource { refused: Some(denial), findings: self.findings };
        match reply {
            Some(reply) => refusal::step(gateway, self.size, reply, record),
            None => Step::Forward(self.forward, record),
        }
    }

    /// Decides on a response that began before the request was decided. A success cannot be an answer to the request, so it is
    /// replaced. Other responses pass, such as Envoy's own if no upstream is available.
    pub(super) fn answered_early(self, status: u16, gateway: &Gateway, host: &dyn Host) -> Step {
        let denial = Denial::from(Reason::MessageUnread);
        let is_replaced = (200..300).contains(&status) && self.mode == Mode::Enforce;
        let reply = is_replaced.then(|| gateway.reply(&denial, Some(&self.resource), host));
        Step::EarlyResponse(reply, Record::Resource { refused: Some(denial), findings: self.findings })
    }

    fn settle(self, counted: Result<Standing, Exceeded>, gateway: &Gateway, host: &dyn Host) -> Step {
        match counted {
            Ok(standing) => self.pass(Some(standing)),
            Err(exceeded) => self.refuse(gateway, exceeded.into(), host),
        }
    }

    fn pass(self, standing: Option<Standing>) -> Step {
        let record = Record::Resource { refused: None, findings: self.findings };
        Step::Forward(Forward { standing: standing.and_then(Standing::told).map(Box::new), ..self.forward }, record)
    }
}

/// `Retry-After` of a request that found no place for its question.
const NEXT_QUESTION: Duration = Duration::from_secs(1);

/// The refusal of a request about which the service cannot be asked now. Only the service knows what remains of the limits.
fn too_many_questions(principal: &Principal) -> Denial {
    let standing = Standing::refused_for(principal.limits().iter(), NEXT_QUESTION);
    Exceeded { kind: Kind::Rate, retry_after: NEXT_QUESTION, standing }.into()
}

/// The end of a question to the rate limit service.
#[derive(Clone, Copy)]
enum Answer<'a> {
    Message(&'a [u8]),
    /// The service did not answer in time, or cannot be reached.
    Missing,
    /// Envoy did not send the question, because the circuit breaker of the cluster is full. Or the budget gave the place of
    /// the request to another request.
    Overflow,
}

impl AwaitingCount {
    /// The question was sent, and is open from now on.
    fn asked(mut self: Box<Self>, stream: u32, call: u32, gateway: &mut Gateway) -> Step {
        if let LimitStore::RateLimitService(service) = &gateway.config.limits {
            gateway.questions.ask(call, stream, Rc::clone(&self.hold), service.timeout);
        }
        self.call = Some(call);
        Step::Wait(Pending::again(self))
    }

    /// Decides by the service's `RateLimitResponse`. If the service did not answer, the operator's `on_error` decides. If
    /// too many questions are open, the request is refused: a burst must not switch off the limits of its own org.
    fn settle(self, answer: Answer<'_>, gateway: &Gateway, host: &dyn Host) -> (Step, ServiceOutcome) {
        let on_error = match &gateway.config.limits {
            LimitStore::RateLimitService(service) => service.on_error,
            LimitStore::Local => OnError::default(),
        };
        let message = match answer {
            Answer::Message(message) => Some(message),
            Answer::Missing => None,
            Answer::Overflow => {
                let denial = too_many_questions(&self.admitted.principal);
                return (self.admitted.refuse(gateway, denial, host), ServiceOutcome::Overloaded);
            }
        };
        match message.and_then(|message| service::read(message, self.admitted.principal.limits())) {
            Some(counted) => {
                let outcome = if counted.is_ok() { ServiceOutcome::Ok } else { ServiceOutcome::OverLimit };
                (self.admitted.settle(counted, gateway, host), outcome)
            }
            None => {
                let step = match on_error {
                    OnError::Allow => self.admitted.pass(None),
                    OnError::Deny => self.admitted.refuse(gateway, Reason::RateLimitUnavailable.into(), host),
                };
                (step, ServiceOutcome::Error)
            }
        }
    }
}

impl State for AwaitingCount {
    fn hold(&self) -> &Hold {
        &self.hold
    }

    fn is_ended_by(&mut self, event: &Event<'_>, gateway: &Gateway) -> bool {
        match *event {
            Event::Asked { .. } => self.call.is_none(),
            Event::Answered { call, .. } => self.call == Some(call),
            // Envoy may not report the end of a question that it was asked in the callback of another stream.
            Event::Tick { .. } => self.call.is_some_and(|call| !gateway.questions.is_open(call)),
            Event::AnsweredEarly { .. } => true,
            _ => false,
        }
    }

    fn handle(self: Box<Self>, event: Event<'_>, context: &mut Context<'_>) -> Step {
        let answer = match event {
            Event::Asked { stream, call: Some(call) } => return self.asked(stream, call, context.gateway),
            Event::AnsweredEarly { status } => return self.admitted.answered_early(status, context.gateway, context.host),
            Event::Answered { message: Some(message), .. } => Answer::Message(message),
            // Envoy reports a full circuit breaker and a cluster without hosts in the same way.
            Event::Asked { .. } if context.gateway.questions.is_service_there() => Answer::Overflow,
            Event::GivenUp => Answer::Overflow,
            _ => Answer::Missing,
        };
        let (step, outcome) = self.settle(answer, context.gateway, context.host);
        context.service_outcome = Some(outcome);
        step
    }

    /// The hold of a question counts the body already.
    fn charges_earlier_body(&self) -> bool {
        false
    }
}
