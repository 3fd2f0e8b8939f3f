//! A request that cannot be decided before a key set is fetched.

use super::pending::{Context, Event, Pending, State};
use super::{Decision, Request, Step, unreadable};
use crate::budget::Hold;
use crate::config::Mode;
use crate::deadline::Deadline;
use crate::gateway::{Findings, Gateway};
use crate::host::Host;
use crate::jwks::{KeySet, KeySetId, Waiter};
use crate::path::Resource;
use crate::reason::Reason;
use crate::time::UnixTime;

/// A request that waits for a key set.
#[derive(Debug)]
pub struct AwaitingKeySet {
    resource: Resource,
    mode: Mode,
    key_set: KeySetId,
    /// The revision of the key set that could not decide the request.
    seen_revision: u64,
    deadline: Deadline,
    hold: Hold,
    waiter: Waiter,
}

pub(super) fn wait(request: Request, gateway: &Gateway, key_set: KeySetId, now: UnixTime, host: &dyn Host) -> Step {
    let Some(set) = gateway.key_sets.get(key_set) else {
        return request.refuse(gateway, Reason::JwksUnavailable.into(), Findings::default(), host);
    };
    match gateway.budget.hold_for_key_set(request.resource.org.clone(), key_set, request.head.length()) {
        Some(hold) => {
            let deadline = Deadline::after(gateway.config.jwks.timeout, now);
            let Request { resource, mode, .. } = request;
            Step::Wait(Pending::KeySet(AwaitingKeySet {
                resource,
                mode,
                key_set,
                seen_revision: set.revision(),
                deadline,
                hold,
                waiter: set.wait(),
            }))
        }
        None => request.refuse(gateway, Reason::Overloaded.into(), Findings::default(), host),
    }
}

impl State for AwaitingKeySet {
    fn hold(&self) -> &Hold {
        &self.hold
    }

    fn is_ended_by(&mut self, event: &Event<'_>, gateway: &Gateway) -> bool {
        let Event::Tick { now } = *event else { return false };
        self.deadline.has_passed(gateway.config.jwks.timeout, now)
            || gateway.key_sets.get(self.key_set).is_none_or(|set| set.revision() != self.seen_revision)
    }

    /// Decides again, and waits again if the request needs another fetch of the same key set.
    fn handle(self, event: Event<'_>, context: &mut Context<'_>) -> Step {
        let Some(head) = context.request.head() else { return unreadable() };
        let Context { gateway, host, .. } = context;
        let now = context.request.now();
        let Self { resource, mode, key_set: awaited, deadline, hold, waiter, .. } = self;
        let refused = |request: Request, gateway: &Gateway, reason: Reason| {
            request.refuse(gateway, reason.into(), Findings::default(), *host)
        };
        let request = Request { head, resource, mode };
        if matches!(event, Event::GivenUp) {
            return refused(request, gateway, Reason::Overloaded);
        }
        match request.decide(gateway, now, *host) {
            Decision::Made(step) => step,
            // A hold counts for one key set, and a new policy may name another key set.
            Decision::NeedsKeySet(request, key_set) if !deadline.is_past(now) && key_set == awaited => {
                let seen_revision = gateway.key_sets.get(key_set).map_or(0, KeySet::revision);
                let Request { resource, mode, .. } = request;
                Step::Wait(Pending::KeySet(Self { resource, mode, key_set, seen_revision, deadline, hold, waiter }))
            }
            Decision::NeedsKeySet(request, _) => refused(request, gateway, Reason::JwksUnavailable),
        }
    }
}
