//! One request, from its head to its end, as states that consume themselves.
//!
//! [`begin`] decides on the head. The shell carries out the returned [`Step`]. A request that waits is a [`Pending`], which
//! [`HeldRequests`] keeps by the id of its stream. The shell passes each [`Event`] to [`Pending::handle`] and carries out the
//! next step. When a stream ends, the shell only drops the value. [`Flow`] decides how far Envoy may forward the request.
//!
//! No state keeps the head or the body: Envoy keeps them while the stream is paused, and a state reads them again through
//! [`RequestReader`]. Each state has a [`Hold`](crate::budget::Hold) of the worker's budget for the bytes that Envoy keeps.
//!
//! Each state has its own file. `pending.rs` has the list of all states.

use std::borrow::Cow;
use std::rc::Rc;

use crate::budget::{Account, Waits};
use crate::config::{Mode, UnmatchedPaths};
use crate::denial::{Denial, LocalReply};
use crate::gateway::{Admission, Findings, Gateway, NotAdmitted};
use crate::host::Host;
use crate::jwks::KeySetId;
use crate::limits::standing::Standing;
use crate::mcp::headers;
use crate::mcp::reply::ListRequest;
use crate::oauth::discovery::{self, Endpoint};
use crate::oauth::token_endpoint::TokenError;
use crate::path::Resource;
use crate::principal::Principal;
use crate::reason::{OK, Reason};
use crate::request::{CONNECTION, RequestHead};
use crate::route::{RouteInvalid, RouteMode, RouteSettings};
use crate::time::UnixTime;

mod count;
mod first_policy;
mod form;
mod gate;
mod held;
mod key_set;
mod message;
mod page;
mod pending;
mod refusal;

use count::Admitted;
pub use count::{AwaitingCount, Question, ServiceOutcome, is_readable};
pub use first_policy::AwaitingPolicy;
pub use form::AwaitingForm;
pub use gate::{Flow, Passage, Response};
pub use held::{Held, HeldRequests};
pub use key_set::AwaitingKeySet;
pub use message::AwaitingMessage;
use message::Content;
pub use page::sharing;
pub use pending::{BodyProgress, Context, Event, Pending, RequestReader};
pub use refusal::AwaitingRest;
use refusal::Size;

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

/// Changes of the headers of a request, before Envoy forwards it to a connector.
#[derive(Debug, Default)]
pub struct Edits {
    /// Names of headers to remove: the credential, and every name that a server could read as an identity header.
    pub remove: Vec<Cow<'static, str>>,
    /// Whether the response must not be compressed.
    pub accept_identity: bool,
    /// Whether `Connection` is replaced by `upgrade`. If the client's header named other headers, a proxy behind the
    /// gateway would remove them, including identity headers.
    pub is_upgrade_only: bool,
    /// The principal in the identity headers to add. `None` adds no headers.
    pub principal: Option<Rc<Principal>>,
}

/// How a request is forwarded to a connector.
#[derive(Debug, Default)]
pub struct Forward {
    /// Changes that the shell makes before the request goes on.
    pub edits: Edits,
    /// How to cut the lists in the response.
    pub lists: Option<ListRequest>,
    /// The limits that the response states.
    pub standing: Option<Box<Standing>>,
}

/// The data about a decided request for metrics and access logs. The shell uses it once.
#[derive(Debug)]
pub enum Record {
    /// A request to the connectors.
    Resource {
        /// The reason of the refusal. In shadow mode, the request passes all the same. `None` if the request is admitted.
        refused: Option<Denial>,
        /// The results of the checks before the decision.
        findings: Findings,
    },
    /// A request that the filter answers itself.
    Endpoint {
        /// The label of the endpoint in the metrics.
        endpoint: &'static str,
        /// `ok`, or the word of the error.
        outcome: &'static str,
    },
}

impl Record {
    /// The word for access log and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Resource { refused, .. } => refused.as_ref().map_or(OK, |denial| denial.reason().word()),
            Self::Endpoint { outcome, .. } => outcome,
        }
    }
}

/// A request to a known resource whose credential is not judged yet.
#[derive(Debug)]
struct Request {
    head: RequestHead,
    resource: Resource,
    mode: Mode,
}

/// Decides on a new request. `read_route` reads the settings of its route, if the operator allows such settings.
pub fn begin(
    gateway: &mut Gateway,
    head: RequestHead,
    read_route: impl FnOnce() -> Result<RouteSettings, RouteInvalid>,
    now: UnixTime,
    host: &dyn Host,
) -> Step {
    let route = if gateway.config.gateway.route_metadata { read_route() } else { Ok(RouteSettings::default()) };
    match route {
        Ok(route) => start(gateway, head, route, now, host),
        Err(RouteInvalid) => refuse(gateway, &head, None, Mode::Enforce, Reason::RouteInvalid.into(), Findings::default(), host),
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

/// Decides on a request at the time `now`, on a route with these settings.
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
        return first_policy::wait(gateway, &head, route, mode, now, host);
    }
    if let Some(endpoint) = endpoint {
        return answer(gateway, &head, &endpoint, now, host);
    }
    let resource = match (route.org, by_path) {
        (Some(org), by_path) => {
            // The route names the org. The path may still name the connector, if it is the plain path of that org.
            let in_path = by_path.filter(|resource| resource.org == org).and_then(|resource| resource.connector);
            Resource { org, connector: route.connector.or(in_path) }
        }
        (None, Some(resource)) => Resource { connector: route.connector.or(resource.connector), ..resource },
        (None, None) => return unmatched(gateway, &head, mode, host),
    };
    match (Request { head, resource, mode }).decide(gateway, now, host) {
        Decision::Made(step) => step,
        Decision::NeedsKeySet(request, key_set) => key_set::wait(request, gateway, key_set, now, host),
    }
}

/// Answers a request to one of the filter's own endpoints.
fn answer(gateway: &Gateway, head: &RequestHead, endpoint: &Endpoint, now: UnixTime, host: &dyn Host) -> Step {
    let (reply, outcome) = match endpoint {
        Endpoint::Document(document) => gateway.document(document, head, host),
        Endpoint::Authorization | Endpoint::Token if !gateway.issues_tokens(host) => {
            (Denial::from(Reason::PathUnmatched).reply(None), Reason::PathUnmatched.word())
        }
        Endpoint::Authorization => discovery::refuse_authorization(head),
        Endpoint::Token if head.method() == b"POST" => return form::wait(gateway, head, now),
        Endpoint::Token => (TokenError::MethodNotAllowed.reply(), TokenError::MethodNotAllowed.word()),
    };
    Step::Reply(reply, Record::Endpoint { endpoint: endpoint.word(), outcome })
}

/// Decides on a path that is not an MCP endpoint. If a server behind the gateway could read the path as one, it is always
/// refused.
fn unmatched(gateway: &Gateway, head: &RequestHead, mode: Mode, host: &dyn Host) -> Step {
    let gateway_settings = &gateway.config.gateway;
    if gateway_settings.unmatched_paths == UnmatchedPaths::Allow && !gateway_settings.mcp_path.may_be_read_as_mcp(head.path()) {
        return Step::Pass;
    }
    refuse(gateway, head, None, mode, Reason::PathUnmatched.into(), Findings::default(), host)
}

/// The header with which a client accepts a compressed response (RFC 9110 §12.5.3).
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
        AwaitingMessage::wait(self, principal, findings, hold, edits)
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

fn refuse(
    gateway: &Gateway,
    head: &RequestHead,
    resource: Option<&Resource>,
    mode: Mode,
    denial: Denial,
    findings: Findings,
    host: &dyn Host,
) -> Step {
    match mode {
        Mode::Enforce => {
            let reply = gateway.reply(&denial, resource, host);
            refusal::step(gateway, Size::of(head), reply, Record::Resource { refused: Some(denial), findings })
        }
        Mode::Shadow => {
            // The request asserts the proven principal, if there is one. The edits remove every other assertion.
            let edits = edits(gateway, head, findings.principal.clone());
            Step::Forward(Forward { edits, ..Forward::default() }, Record::Resource { refused: Some(denial), findings })
        }
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
