//! A request that may pass is counted: only then, so that a refused one costs nothing.

use std::rc::Rc;

use super::{Forward, Record, Step, refusal};
use crate::config::{LimitStore, Mode, OnError};
use crate::denial::{Denial, LocalReply, Reason};
use crate::gateway::{Count, Findings, Gateway};
use crate::host::Host;
use crate::limits::local::Exceeded;
use crate::limits::service;
use crate::limits::standing::Standing;
use crate::path::Resource;
use crate::principal::Principal;
use crate::request::RequestHead;
use crate::time::UnixTime;

/// A request that may pass as far as its credential goes.
#[derive(Debug)]
pub(super) struct Admitted {
    /// `None` where its body was read.
    pub(super) head: Option<RequestHead>,
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
    question: Vec<u8>,
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
}

impl Admitted {
    pub(super) fn count(self, gateway: &Gateway, now: UnixTime, host: &dyn Host) -> Step {
        match gateway.count(&self.principal, now, host) {
            Count::Free => self.pass(None),
            Count::Done(counted) => self.settle(counted, gateway, host),
            Count::Ask(question) => Step::Count(AwaitingCount { admitted: self, question }),
        }
    }

    pub(super) fn refuse(self, gateway: &Gateway, denial: &Denial, host: &dyn Host) -> Step {
        let record = Record::Resource { refused: Some(denial.reason), findings: self.findings };
        match self.mode {
            Mode::Enforce => {
                let reply = gateway.reply(denial, Some(&self.resource), host);
                refusal::step(gateway, self.head.as_ref(), reply, record)
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

impl AwaitingCount {
    /// Something behind answers with this status before the request was counted.
    pub fn answered_early(self, status: u16, gateway: &Gateway, host: &dyn Host) -> (Option<LocalReply>, Record) {
        self.admitted.answered_early(status, gateway, host)
    }

    /// What the service is asked: a `RateLimitRequest`.
    pub fn question(&self) -> &[u8] {
        &self.question
    }

    /// Goes on with the service's `RateLimitResponse`, or, where none came in time, as the operator wants it.
    pub fn proceed(self, answer: Option<&[u8]>, gateway: &Gateway, host: &dyn Host) -> (Step, ServiceOutcome) {
        let on_error = match &gateway.config.limits {
            LimitStore::RateLimitService(service) => service.on_error,
            LimitStore::Local => OnError::default(),
        };
        match answer.and_then(|answer| service::read(answer, self.admitted.principal.limits())) {
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
