//! One request, from its head to its end, as states that consume themselves.
//!
//! The shell passes in each event and carries out the returned [`Step`]. A request that waits is held as a value such as
//! [`AwaitingKeySet`]. When a stream ends, the shell only has to drop this value.
//!
//! No state keeps the head of its request: Envoy keeps it while the stream is paused, and the shell reads it again.
//! Each state has a [`Hold`] of the worker's budget for the bytes that Envoy keeps.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::Duration;

use crate::budget::{Account, Hold, Waits};
use crate::config::{Mode, UnmatchedPaths};
use crate::denial::{Denial, LocalReply};
use crate::gateway::{Admission, Findings, Gateway, NotAdmitted};
use crate::host::Host;
use crate::jwks::{KeySet, KeySetId, Waiter};
use crate::limits::standing::Standing;
use crate::mcp::headers;
use crate::mcp::reply::ListRequest;
use crate::oauth::discovery::{self, Endpoint};
use crate::oauth::token_endpoint::{MAX_BODY_LENGTH, TokenError};
use crate::path::Resource;
use crate::principal::Principal;
use crate::reason::{OK, Reason};
use crate::request::{CONNECTION, RequestHead};
use crate::route::{RouteMode, RouteSettings};
use crate::time::UnixTime;

mod count;
mod message;
mod page;
mod refusal;

use count::Admitted;
pub use count::{AwaitingCount, ServiceAnswer, ServiceOutcome};
use message::Content;
pub use message::{AwaitingMessage, MAX_MESSAGE_READ};
pub use page::sharing;
pub use refusal::AwaitingRest;
use refusal::Size;

/// How long a body may take. It is a short one.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// As much of a body is read: one byte more than is accepted, by which the longer ones are known.
pub const MAX_BODY_READ: usize = MAX_BODY_LENGTH + 1;

/// What the shell does next.
#[derive(Debug)]
pub enum Step {
    /// Let the request pass as it is: it is none of this filter's.
    Pass,
    /// Edit the headers, then let the request pass.
    Forward(Forward, Record),
    /// Answer it.
    Reply(LocalReply, Record),
    /// Hold it until the rest of it came, or [`AwaitingRest::is_overdue`], then answer it.
    ReplyAfterRest(AwaitingRest),
    /// Hold it until [`AwaitingPolicy::is_ready`].
    AwaitPolicy(AwaitingPolicy),
    /// Hold it until [`AwaitingKeySet::is_ready`].
    Await(AwaitingKeySet),
    /// Hold it until its body is whole, or [`AwaitingBody::is_overdue`].
    ReadBody(AwaitingBody),
    /// Edit the headers, and hold the body until it is whole: [`AwaitingMessage::proceed`]. The head may go on before.
    Inspect(Edits, AwaitingMessage),
    /// Edit the headers, ask the rate limit service this question, and hold the request until the service has answered.
    Count(Edits, Vec<u8>, AwaitingCount),
}

/// Changes of the headers of a request, before Envoy forwards it to a connector.
#[derive(Debug, Default)]
pub struct Edits {
    /// Headers to remove, each occurrence: the credential, and whatever looks like an identity.
    pub remove: Vec<Cow<'static, str>>,
    /// Whether the response must not be compressed.
    pub accept_identity: bool,
    /// Whether `Connection` is replaced by `upgrade`. If the client's header named other headers, a proxy behind the
    /// gateway would remove them, including identity headers.
    pub is_upgrade_only: bool,
    /// Whose identity headers are added.
    pub principal: Option<Rc<Principal>>,
}

/// How a request is forwarded to a connector.
#[derive(Debug, Default)]
pub struct Forward {
    /// Changes of the headers.
    pub edits: Edits,
    /// How lists that come back are to be cut.
    pub lists: Option<ListRequest>,
    /// What the response tells of the limits.
    pub standing: Option<Box<Standing>>,
}

/// What is counted and logged of a decided request, once.
#[derive(Debug)]
pub enum Record {
    /// A request to the connectors.
    Resource {
        /// Why it was refused, or in shadow mode would have been; `None` where it was admitted.
        refused: Option<Reason>,
        /// What was found out on the way.
        findings: Findings,
    },
    /// A request to an address that the filter answers itself.
    Endpoint {
        /// Which.
        endpoint: &'static str,
        /// `ok`, or what was wrong.
        outcome: &'static str,
    },
}

impl Record {
    /// The word for access log and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Resource { refused, .. } => refused.map_or(OK, Reason::word),
            Self::Endpoint { outcome, .. } => outcome,
        }
    }
}

/// A request whose addressee is known and whose credential is to be judged.
#[derive(Debug)]
struct Request {
    head: RequestHead,
    resource: Resource,
    mode: Mode,
}

/// A request that cannot be decided before a key set was fetched.
#[derive(Debug)]
pub struct AwaitingKeySet {
    resource: Resource,
    mode: Mode,
    key_set: KeySetId,
    seen_revision: u64,
    /// As those below, never later than its whole time from the last look at the clock, which may be put back.
    deadline: UnixTime,
    hold: Hold,
    waiter: Waiter,
}

/// Decides on a request at `now`.
pub fn start(gateway: &mut Gateway, head: RequestHead, route: RouteSettings, now: UnixTime, host: &dyn Host) -> Step {
    let mode = match route.mode {
        Some(RouteMode::Disabled) => return Step::Pass,
        Some(RouteMode::Active(mode)) => mode,
        None => gateway.config.mode,
    };
    let endpoint = Endpoint::at(head.path(), &gateway.config);
    let by_path = gateway.config.gateway.mcp_path.resource(head.path());
    let is_resource = endpoint.is_none() && (by_path.is_some() || route.org.is_some());
    if let Some(step) = page::judge(gateway, &head, endpoint.as_ref(), is_resource, mode, host) {
        return step;
    }
    if gateway.policy.generation() == 0 && (endpoint.is_some() || is_resource) {
        return wait_for_policy(gateway, &head, route, mode, now, host);
    }
    if let Some(endpoint) = endpoint {
        return answer(gateway, &head, &endpoint, now, host);
    }
    let resource = match (route.org, by_path) {
        (Some(org), by_path) => {
            // The route says whose it is. Its connector may still be in the path, where the path is a plain one.
            let in_path = by_path.filter(|resource| resource.org == org).and_then(|resource| resource.connector);
            Resource { org, connector: route.connector.or(in_path) }
        }
        (None, Some(resource)) => Resource { connector: route.connector.or(resource.connector), ..resource },
        (None, None) => return unmatched(gateway, &head, mode, host),
    };
    match (Request { head, resource, mode }).decide(gateway, now, host) {
        Decision::Made(step) => step,
        Decision::NeedsKeySet(request, key_set) => request.wait(gateway, key_set, now, host),
    }
}

/// A request that came before the first policy.
#[derive(Debug)]
pub struct AwaitingPolicy {
    route: RouteSettings,
    mode: Mode,
    deadline: UnixTime,
    hold: Hold,
}

fn wait_for_policy(
    gateway: &Gateway,
    head: &RequestHead,
    route: RouteSettings,
    mode: Mode,
    now: UnixTime,
    host: &dyn Host,
) -> Step {
    let deadline = now.plus(patience(gateway));
    match gateway.budget.hold(Account::FirstPolicy, Waits::ForOthers, head.length()) {
        Some(hold) => Step::AwaitPolicy(AwaitingPolicy { route, mode, deadline, hold }),
        None => refuse(gateway, head, None, mode, Reason::Overloaded.into(), Findings::default(), host),
    }
}

/// How long a request waits for the first policy.
fn patience(gateway: &Gateway) -> Duration {
    gateway.config.remote.as_ref().map_or(Duration::ZERO, |remote| remote.timeout)
}

impl AwaitingPolicy {
    /// Whether the policy has arrived, the request has reached its deadline, or its hold was given up.
    pub fn is_ready(&mut self, gateway: &Gateway, now: UnixTime) -> bool {
        self.deadline = self.deadline.min(now.plus(patience(gateway)));
        now >= self.deadline || gateway.policy.generation() != 0 || self.hold.is_given_up()
    }

    /// Begins anew with the policy, or gives up without.
    pub fn proceed(self, head: RequestHead, gateway: &mut Gateway, now: UnixTime, host: &dyn Host) -> Step {
        let is_given_up = self.hold.is_given_up();
        if gateway.policy.generation() != 0 && !is_given_up {
            return start(gateway, head, self.route, now, host);
        }
        let reason = if is_given_up { Reason::Overloaded } else { Reason::PolicyUnavailable };
        refuse(gateway, &head, None, self.mode, reason.into(), Findings::default(), host)
    }

    /// The place of this request in the worker's budget.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }
}

/// A request to the filter itself.
fn answer(gateway: &Gateway, head: &RequestHead, endpoint: &Endpoint, now: UnixTime, host: &dyn Host) -> Step {
    let (reply, outcome) = match endpoint {
        Endpoint::Document(document) => gateway.document(document, head, host),
        Endpoint::Authorization | Endpoint::Token if !gateway.issues_tokens(host) => {
            (Denial::from(Reason::PathUnmatched).reply(None), Reason::PathUnmatched.word())
        }
        Endpoint::Authorization => discovery::refuse_authorization(head),
        Endpoint::Token if head.method() == b"POST" => {
            return match gateway.budget.hold(Account::TokenEndpoint, Waits::ForClient, head.length()) {
                Some(hold) => Step::ReadBody(AwaitingBody { deadline: now.plus(BODY_TIMEOUT), hold }),
                None => token_step(Err(TokenError::Overloaded)),
            };
        }
        Endpoint::Token => (TokenError::MethodNotAllowed.reply(), TokenError::MethodNotAllowed.word()),
    };
    Step::Reply(reply, Record::Endpoint { endpoint: endpoint.word(), outcome })
}

/// A request to the token endpoint whose form is incomplete.
#[derive(Debug)]
pub struct AwaitingBody {
    deadline: UnixTime,
    hold: Hold,
}

impl AwaitingBody {
    /// Whether the request has reached its deadline, or its hold was given up. Without `allow_on_headers_stop_iteration`,
    /// the body never arrives, because Envoy holds it together with the head.
    pub fn is_overdue(&mut self, now: UnixTime) -> bool {
        self.deadline = self.deadline.min(now.plus(BODY_TIMEOUT));
        now >= self.deadline || self.hold.is_given_up()
    }

    /// Answers the request with this `head`. `body` is the whole body, or its first [`MAX_BODY_READ`] bytes.
    pub fn proceed(self, head: &RequestHead, body: &[u8], gateway: &mut Gateway, now: UnixTime, host: &dyn Host) -> Step {
        token_step(gateway.issue_token(head, body, now, host))
    }

    /// Answers although no whole body came.
    pub fn give_up(self) -> Step {
        token_step(Err(if self.hold.is_given_up() { TokenError::Overloaded } else { TokenError::BodyTimeout }))
    }

    /// The place of this request in the worker's budget.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }
}

fn token_step(issued: Result<LocalReply, TokenError>) -> Step {
    let (reply, outcome) = match issued {
        Ok(reply) => (reply, OK),
        Err(error) => (error.reply(), error.word()),
    };
    Step::Reply(reply, Record::Endpoint { endpoint: Endpoint::Token.word(), outcome })
}

/// A path that is no MCP endpoint. One that a server behind might take for one is refused in any case.
fn unmatched(gateway: &Gateway, head: &RequestHead, mode: Mode, host: &dyn Host) -> Step {
    let gateway_settings = &gateway.config.gateway;
    if gateway_settings.unmatched_paths == UnmatchedPaths::Allow && !gateway_settings.mcp_path.may_be_read_as_mcp(head.path()) {
        return Step::Pass;
    }
    refuse(gateway, head, None, mode, Reason::PathUnmatched.into(), Findings::default(), host)
}

/// A request on a route whose settings can't be read.
pub fn refuse_invalid_route(gateway: &Gateway, head: &RequestHead, host: &dyn Host) -> Step {
    refuse(gateway, head, None, Mode::Enforce, Reason::RouteInvalid.into(), Findings::default(), host)
}

/// The header by which a response may be compressed.
pub const ACCEPT_ENCODING: &str = "accept-encoding";

#[allow(clippy::large_enum_variant)] // A value lives for one call, and it is small on wasm32.
enum Decision {
    Made(Step),
    NeedsKeySet(Request, KeySetId),
}

impl Request {
    fn decide(self, gateway: &mut Gateway, now: UnixTime, host: &dyn Host) -> Decision {
        let mut findings = Findings::default();
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

    fn wait(self, gateway: &Gateway, key_set: KeySetId, now: UnixTime, host: &dyn Host) -> Step {
        let Some(set) = gateway.key_sets.get(key_set) else {
            return self.refuse(gateway, Reason::JwksUnavailable.into(), Findings::default(), host);
        };
        match gateway.budget.hold_for_key_set(self.resource.org.clone(), key_set, self.head.length()) {
            Some(hold) => {
                let deadline = now.plus(gateway.config.jwks.timeout);
                let Self { resource, mode, .. } = self;
                Step::Await(AwaitingKeySet {
                    resource,
                    mode,
                    key_set,
                    seen_revision: set.revision(),
                    deadline,
                    hold,
                    waiter: set.wait(),
                })
            }
            None => self.refuse(gateway, Reason::Overloaded.into(), Findings::default(), host),
        }
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

    /// The joined endpoint, asked by who may use some of the connectors behind it.
    fn inspect(self, gateway: &Gateway, principal: Rc<Principal>, findings: Findings, host: &dyn Host) -> Step {
        let account = Account::Org(self.resource.org.clone());
        let Some(hold) = gateway.budget.hold(account, Waits::ForClient, self.head.length()) else {
            return self.refuse(gateway, Reason::Overloaded.into(), findings, host);
        };
        let mut edits = edits(gateway, &self.head, Some(Rc::clone(&principal)));
        self.ask_for_plain(&mut edits);
        Step::Inspect(edits, AwaitingMessage::new(self, principal, findings, hold))
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

impl AwaitingKeySet {
    /// Whether the key set has changed, the request has reached its deadline, or its hold was given up.
    pub fn is_ready(&mut self, gateway: &Gateway, now: UnixTime) -> bool {
        self.deadline = self.deadline.min(now.plus(gateway.config.jwks.timeout));
        let is_changed = || gateway.key_sets.get(self.key_set).is_none_or(|set| set.revision() != self.seen_revision);
        now >= self.deadline || self.hold.is_given_up() || is_changed()
    }

    /// Decides again on the request with this `head`, or continues to wait until the deadline.
    pub fn proceed(self, head: RequestHead, gateway: &mut Gateway, now: UnixTime, host: &dyn Host) -> Step {
        let Self { resource, mode, key_set: awaited, deadline, hold, waiter, .. } = self;
        let refused = |request: Request, gateway: &Gateway, reason: Reason| {
            request.refuse(gateway, reason.into(), Findings::default(), host)
        };
        let request = Request { head, resource, mode };
        if hold.is_given_up() {
            return refused(request, gateway, Reason::Overloaded);
        }
        match request.decide(gateway, now, host) {
            Decision::Made(step) => step,
            // A hold counts for one key set, and a new policy may name another key set.
            Decision::NeedsKeySet(request, key_set) if now < deadline && key_set == awaited => {
                let seen_revision = gateway.key_sets.get(key_set).map_or(0, KeySet::revision);
                let Request { resource, mode, .. } = request;
                Step::Await(Self { resource, mode, key_set, seen_revision, deadline, hold, waiter })
            }
            Decision::NeedsKeySet(request, _) => refused(request, gateway, Reason::JwksUnavailable),
        }
    }

    /// The place of this request in the worker's budget.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }
}

fn refuse(
    gateway: &Gateway,
    head: &RequestHead,
    resource: Option<&Resource>,
    mode: Mode,
    denial: Denial,
    findings: Findings,
    host: &dyn Host,
) -> Step {
    let principal = findings.principal.clone();
    let record = Record::Resource { refused: Some(denial.reason), findings };
    match mode {
        Mode::Enforce => refusal::step(gateway, Size::of(head), gateway.reply(&denial, resource, host), record),
        // What was proven is asserted. Nothing else is, and nobody else may assert it.
        Mode::Shadow => Step::Forward(Forward { edits: edits(gateway, head, principal), ..Forward::default() }, record),
    }
}

fn edits(gateway: &Gateway, head: &RequestHead, principal: Option<Rc<Principal>>) -> Edits {
    let settings = &gateway.config.forward;
    let mut remove: Vec<Cow<'static, str>> =
        head.forged(&settings.header_prefix).map(|name| Cow::Owned(name.to_owned())).collect();
    if principal.is_some() && settings.strip_credentials {
        remove.extend(head.credential_headers().map(|(header, _)| Cow::Borrowed(header.name())));
    }
    let nominates = head.nominates_headers();
    remove.extend(nominates.then_some(Cow::Borrowed(CONNECTION)));
    let is_upgrade_only = nominates && head.values("upgrade").next().is_some();
    Edits { remove, is_upgrade_only, principal, accept_identity: false }
}

#[cfg(test)]
mod tests;
