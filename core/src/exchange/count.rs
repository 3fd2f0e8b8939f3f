//! A request that may pass is counted: only then, so that a refused one costs nothing.

use std::rc::Rc;
use std::time::Duration;

use super::refusal::{self, Size};
use super::{Forward, Record, Step};
use crate::budget::{Account, Hold, Waits};
use crate::config::{LimitStore, Mode, OnError};
use crate::denial::{Denial, LocalReply};
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

/// A request that may pass as far as its credential goes.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) size: Size,
    pub(super) resource: Resource,
    pub(super) mode: Mode,
    pub(super) principal: Rc<Principal>,
    pub(super) forward: Forward,
    pub(super) findings: Findings,
}

/// A request about which the rate limit service is asked.
#[derive(Debug)]
pub struct AwaitingCount {
    admitted: Admitted,
    hold: Rc<Hold>,
}

/// How the rate limit service answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServiceOutcome {
    /// Within all limits.
    Ok,
    /// Over one.
    OverLimit,
    /// Not, or not so that it could be read.
    Error,
    /// The service was not asked, or its answer was not awaited, because too many questions are open.
    Overloaded,
}

/// How a question to the rate limit service ended.
#[derive(Clone, Copy, Debug)]
pub enum ServiceAnswer<'a> {
    /// The service answered this.
    Message(&'a [u8]),
    /// The service did not answer in time, or cannot be reached.
    None,
    /// Envoy did not send the question, because the circuit breaker of the cluster is full.
    Overflow,
}

impl Admitted {
    pub(super) fn count(self, gateway: &Gateway, now: UnixTime, host: &dyn Host) -> Step {
        match gateway.count(&self.principal, now, host) {
            Count::Free => self.pass(None),
            Count::Done(counted) => self.settle(counted, gateway, host),
            Count::Ask(question) => self.ask(question, gateway, host),
        }
    }

    /// Asks the service. The headers are edited before that, so that the filter does not have to keep the edits.
    fn ask(mut self, question: Vec<u8>, gateway: &Gateway, host: &dyn Host) -> Step {
        let account = Account::Questions(self.resource.org.clone());
        match gateway.budget.hold(account, Waits::ForOthers, self.size.head()) {
            Some(hold) => {
                let edits = std::mem::take(&mut self.forward.edits);
                Step::Count(edits, question, AwaitingCount { admitted: self, hold: Rc::new(hold) })
            }
            None => {
                let denial = too_many_questions(&self.principal);
                self.refuse(gateway, &denial, host)
            }
        }
    }

    pub(super) fn refuse(self, gateway: &Gateway, denial: &Denial, host: &dyn Host) -> Step {
        let record = Record::Resource { refused: Some(denial.reason), findings: self.findings };
        match self.mode {
            Mode::Enforce => {
                let reply = gateway.reply(denial, Some(&self.resource), host);
                refusal::step(gateway, self.size, reply, record)
            }
            Mode::Shadow => Step::Forward(self.forward, record),
        }
    }

    /// What is told in the place of an answer that came before the message went on. A good one can't be an answer to it;
    /// others, such as Envoy's own where no upstream is there, pass.
    pub(super) fn answered_early(self, status: u16, gateway: &Gateway, host: &dyn Host) -> (Option<LocalReply>, Record) {
        let denial = Denial::from(Reason::MessageUnread);
        let is_held_back = (200..300).contains(&status) && self.mode == Mode::Enforce;
        let reply = is_held_back.then(|| gateway.reply(&denial, Some(&self.resource), host));
        (reply, Record::Resource { refused: Some(denial.reason), findings: self.findings })
    }

    fn settle(self, counted: Result<Standing, Exceeded>, gateway: &Gateway, host: &dyn Host) -> Step {
        match counted {
            Ok(standing) => self.pass(Some(standing)),
            Err(exceeded) => self.refuse(gateway, &exceeded.into(), host),
        }
    }

    fn pass(self, standing: Option<Standing>) -> Step {
        let record = Record::Resource { refused: None, findings: self.findings };
        Step::Forward(Forward { standing: standing.and_then(Standing::told).map(Box::new), ..self.forward }, record)
    }
}

/// How long until a place for a question is likely to be free.
const NEXT_QUESTION: Duration = Duration::from_secs(1);

/// The refusal of a request about which the service cannot be asked now. What is left is known to the service alone.
fn too_many_questions(principal: &Principal) -> Denial {
    let standing = Standing::refused_for(principal.limits().iter(), NEXT_QUESTION);
    Exceeded { kind: Kind::Rate, retry_after: NEXT_QUESTION, standing }.into()
}

impl AwaitingCount {
    /// Something behind answers with this status before the request was counted.
    pub fn answered_early(self, status: u16, gateway: &Gateway, host: &dyn Host) -> (Option<LocalReply>, Record) {
        self.admitted.answered_early(status, gateway, host)
    }

    /// The place of this request in the worker's budget. The shell keeps it until the question is answered, even if the
    /// stream ends before.
    pub fn hold(&self) -> &Rc<Hold> {
        &self.hold
    }

    /// Decides by the service's `RateLimitResponse`. If the service did not answer, the operator's `on_error` decides. If
    /// too many questions are open, the request is refused: a burst must not switch off the limits of its own org.
    pub fn proceed(self, answer: ServiceAnswer<'_>, gateway: &Gateway, host: &dyn Host) -> (Step, ServiceOutcome) {
        let on_error = match &gateway.config.limits {
            LimitStore::RateLimitService(service) => service.on_error,
            LimitStore::Local => OnError::default(),
        };
        let message = match answer {
            ServiceAnswer::Message(message) => Some(message),
            ServiceAnswer::None => None,
            ServiceAnswer::Overflow => {
                let denial = too_many_questions(&self.admitted.principal);
                return (self.admitted.refuse(gateway, &denial, host), ServiceOutcome::Overloaded);
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
                    OnError::Deny => self.admitted.refuse(gateway, &Reason::RateLimitUnavailable.into(), host),
                };
                (step, ServiceOutcome::Error)
            }
        }
    }
}
