//! The start of every request. A request that arrives before the first policy waits for it, and then starts again.

use std::time::Duration;

use super::forward::Record;
use super::pending::{Context, Event, Pending, State, Step};
use super::refusal::{refuse, unreadable};
use super::resource::Request;
use super::{form, page};
use crate::budget::{Account, Hold, Waits};
use crate::config::{Mode, UnmatchedPaths};
use crate::deadline::Deadline;
use crate::denial::Denial;
use crate::gateway::{Findings, Gateway};
use crate::host::Host;
use crate::oauth::discovery::{self, Endpoint};
use crate::oauth::token_endpoint::TokenError;
use crate::path::Resource;
use crate::reason::Reason;
use crate::request::RequestHead;
use crate::route::{RouteInvalid, RouteMode, RouteSettings};
use crate::time::UnixTime;

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

/// Decides on a request at the time `now`, on a route with these settings.
pub fn start(gateway: &mut Gateway, head: RequestHead, route: RouteSettings, now: UnixTime, host: &dyn Host) -> Step {
    let mode = match route.mode {
        Some(RouteMode::Disabled) => return Step::Pass,
        Some(RouteMode::Active(mode)) => mode,
        None => gateway.config.mode,
    };
    let path = head.path();
    let endpoint = Endpoint::at(path, &gateway.config);
    let by_path = gateway.config.gateway.mcp_path.resource(path);
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
            // The route names the org. The path may still name the connector, if it is the plain path of that org.
            let in_path = by_path.filter(|resource| resource.org == org).and_then(|resource| resource.connector);
            Resource { org, connector: route.connector.or(in_path) }
        }
        (None, Some(resource)) => Resource { connector: route.connector.or(resource.connector), ..resource },
        (None, None) => return unmatched(gateway, &head, mode, host),
    };
    (Request { head, resource, mode }).start(gateway, now, host)
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

/// A request that waits for the first policy.
struct AwaitingPolicy {
    route: RouteSettings,
    mode: Mode,
    deadline: Deadline,
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
    let deadline = Deadline::after(timeout(gateway), now);
    match gateway.budget.hold(Account::FirstPolicy, Waits::ForOthers, head.length()) {
        Some(hold) => Step::Wait(Pending::new(AwaitingPolicy { route, mode, deadline, hold })),
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

    fn handle(self: Box<Self>, event: Event<'_>, context: &mut Context<'_>) -> Step {
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
