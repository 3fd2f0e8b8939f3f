//! A request that arrived before the first policy.

use std::time::Duration;

use super::pending::{Context, Event, Pending, State};
use super::{Step, refuse, start, unreadable};
use crate::budget::{Account, Hold, Waits};
use crate::config::Mode;
use crate::deadline::Deadline;
use crate::gateway::{Findings, Gateway};
use crate::host::Host;
use crate::reason::Reason;
use crate::request::RequestHead;
use crate::route::RouteSettings;
use crate::time::UnixTime;

/// A request that waits for the first policy.
#[derive(Debug)]
pub struct AwaitingPolicy {
    route: RouteSettings,
    mode: Mode,
    deadline: Deadline,
    hold: Hold,
}

pub(super) fn wait(
    gateway: &Gateway,
    head: &RequestHead,
    route: RouteSettings,
    mode: Mode,
    now: UnixTime,
    host: &dyn Host,
) -> Step {
    let deadline = Deadline::after(timeout(gateway), now);
    match gateway.budget.hold(Account::FirstPolicy, Waits::ForOthers, head.length()) {
        Some(hold) => Step::Wait(Pending::Policy(AwaitingPolicy { route, mode, deadline, hold })),
        None => refuse(gateway, head, None, mode, Reason::Overloaded.into(), Findings::default(), host),
    }
}

/// Maximum time that a request waits for the first policy.
fn timeout(gateway: &Gateway) -> Duration {
    gateway.config.remote.as_ref().map_or(Duration::ZERO, |remote| remote.timeout)
}

fn is_there(gateway: &Gateway) -> bool {
    gateway.policy.generation() != 0
}

impl State for AwaitingPolicy {
    fn hold(&self) -> &Hold {
        &self.hold
    }

    fn is_ended_by(&mut self, event: &Event<'_>, gateway: &Gateway) -> bool {
        let Event::Tick { now } = *event else { return false };
        self.deadline.has_passed(timeout(gateway), now) || is_there(gateway)
    }

    fn handle(self, event: Event<'_>, context: &mut Context<'_>) -> Step {
        let Some(head) = context.request.head() else { return unreadable() };
        let reason = match event {
            Event::GivenUp => Reason::Overloaded,
            _ if is_there(context.gateway) => {
                return start(context.gateway, head, self.route, context.request.now(), context.host);
            }
            _ => Reason::PolicyUnavailable,
        };
        refuse(context.gateway, &head, None, self.mode, reason.into(), Findings::default(), context.host)
    }
}
