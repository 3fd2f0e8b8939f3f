//! Decides on a request to a known resource. A request that cannot be decided before a key set is fetched waits for it, and
//! is then decided again.

use std::borrow::Cow;
use std::rc::Rc;

use super::count::Admitted;
use super::forward::{ACCEPT_ENCODING, Edits, Forward, edits};
use super::message::{self, AwaitingMessage, Content};
use super::pending::{Context, Event, Pending, State, Step};
use super::refusal::{Size, refuse, unreadable};
use crate::budget::{Account, Hold, Waits};
use crate::config::Mode;
use crate::deadline::Deadline;
use crate::denial::Denial;
use crate::gateway::{Admission, Findings, Gateway, NotAdmitted};
use crate::host::Host;
use crate::jwks::{KeySet, KeySetId, Waiter};
use crate::mcp::call::Call;
use crate::mcp::headers::{self, MirrorHeaders};
use crate::mcp::reply::ListRequest;
use crate::path::Resource;
use crate::principal::Principal;
use crate::reason::Reason;
use crate::request::RequestHead;
use crate::time::UnixTime;

/// A request to a known resource whose credential is not judged yet.
pub(super) struct Request {
    pub(super) head: RequestHead,
    pub(super) resource: Resource,
    pub(super) mode: Mode,
}

#[allow(clippy::large_enum_variant)] // A value lives for one call, and it is small on wasm32.
enum Decision {
    Made(Step),
    NeedsKeySet(Request, KeySetId),
}

impl Request {
    /// Decides on the request, or waits for the key set that it needs.
    pub(super) fn start(self, gateway: &mut Gateway, now: UnixTime, host: &dyn Host) -> Step {
        match self.decide(gateway, now, host) {
            Decision::Made(step) => step,
            Decision::NeedsKeySet(request, key_set) => wait(request, gateway, key_set, now, host),
        }
    }

    fn decide(self, gateway: &mut Gateway, now: UnixTime, host: &dyn Host) -> Decision {
        let is_logged = !gateway.config.forward.call.is_empty();
        let mut findings = Findings { call: is_logged.then(|| Call::of_head(&self.head)), ..Findings::default() };
        Decision::Made(match gateway.admit(&self.head, &self.resource, now, host, &mut findings) {
            Ok(_) if !headers::may_be_spoken(&self.head) => {
                self.refuse(gateway, Reason::ProtocolVersionUnsupported.into(), findings, host)
            }
            Ok(Admission::Whole(principal)) => self.admitted(gateway, principal, findings).count(gateway, now, host),
            Ok(Admission::ByMessage(principal)) => match message::check_head(&self.head) {
                Err(reason) => self.refuse(gateway, reason.into(), findings, host),
                Ok(Content::Nothing) => self.admitted(gateway, principal, findings).count(gateway, now, host),
                Ok(Content::Message) => self.inspect(gateway, principal, findings, host),
            },
            Err(NotAdmitted::Denied(denial)) => self.refuse(gateway, denial, findings, host),
            Err(NotAdmitted::AwaitKeySet(key_set)) => return Decision::NeedsKeySet(self, key_set),
        })
    }

    fn admitted(self, gateway: &Gateway, principal: Rc<Principal>, findings: Findings) -> Admitted {
        let mut edits = edits(gateway, &self.head, Some(Rc::clone(&principal)));
        let is_list = self.mode == Mode::Enforce && headers::asks_for_lists(&self.head);
        let lists = is_list.then(|| {
            self.ask_for_plain(&mut edits);
            ListRequest::of_whole(self.resource.org.clone())
        });
        let forward = Forward { edits, lists, ..Forward::default() };
        let size = Size::of(&self.head);
        Admitted { size, resource: self.resource, mode: self.mode, principal, forward, findings }
    }

    /// Waits for the message of a request to the joined endpoint of an org. The scopes cover only some of its connectors.
    fn inspect(self, gateway: &Gateway, principal: Rc<Principal>, findings: Findings, host: &dyn Host) -> Step {
        let account = Account::Org(self.resource.org.clone());
        let Some(hold) = gateway.budget.hold(account, Waits::ForClient, self.head.length()) else {
            return self.refuse(gateway, Reason::Overloaded.into(), findings, host);
        };
        let mut edits = edits(gateway, &self.head, Some(Rc::clone(&principal)));
        self.ask_for_plain(&mut edits);
        let Self { head, resource, mode } = self;
        let findings = Findings { is_identified: true, ..findings };
        let awaiting = AwaitingMessage { resource, mode, mirror: MirrorHeaders::of(&head), principal, findings, hold };
        // The head may go on before the message is decided, so it is edited now.
        Step::EditAndWait(edits, Pending::new(awaiting))
    }

    /// Requests a response without compression, so that the filter can read it.
    fn ask_for_plain(&self, edits: &mut Edits) {
        edits.remove.extend(self.head.values(ACCEPT_ENCODING).next().map(|_| Cow::Borrowed(ACCEPT_ENCODING)));
        edits.accept_identity = true;
    }

    fn refuse(self, gateway: &Gateway, denial: Denial, findings: Findings, host: &dyn Host) -> Step {
        refuse(gateway, &self.head, Some(&self.resource), self.mode, denial, findings, host)
    }
}

/// A request that waits for a key set.
struct AwaitingKeySet {
    resource: Resource,
    mode: Mode,
    key_set: KeySetId,
    /// The revision of the key set that could not decide the request.
    seen_revision: u64,
    deadline: Deadline,
    hold: Hold,
    waiter: Waiter,
}

fn wait(request: Request, gateway: &Gateway, key_set: KeySetId, now: UnixTime, host: &dyn Host) -> Step {
    let Some(set) = gateway.key_sets.get(key_set) else {
        return request.refuse(gateway, Reason::JwksUnavailable.into(), Findings::default(), host);
    };
    match gateway.budget.hold_for_key_set(request.resource.org.clone(), key_set, request.head.length()) {
        Some(hold) => {
            let deadline = Deadline::after(gateway.config.jwks.timeout, now);
            let Request { resource, mode, .. } = request;
            Step::Wait(Pending::new(AwaitingKeySet {
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
    fn handle(self: Box<Self>, event: Event<'_>, context: &mut Context<'_>) -> Step {
        let Some(head) = context.request.head() else { return unreadable() };
        let Context { gateway, host, .. } = context;
        let now = context.request.now();
        let Self { resource, mode, key_set: awaited, deadline, hold, waiter, .. } = *self;
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
                Step::Wait(Pending::new(Self { resource, mode, key_set, seen_revision, deadline, hold, waiter }))
            }
            Decision::NeedsKeySet(request, _) => refused(request, gateway, Reason::JwksUnavailable),
        }
    }
}
