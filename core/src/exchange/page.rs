//! Requests that a browser sends for a web page. The filter checks the origin before anything else, without a policy.

use super::forward::Record;
use super::pending::Step;
use super::refusal::{self, Size, refuse};
use crate::config::Mode;
use crate::denial::Denial;
use crate::gateway::{Findings, Gateway};
use crate::host::Host;
use crate::oauth::discovery::{self, Endpoint};
use crate::origin::{self, Sharing, Source};
use crate::reason::{OK, Reason};
use crate::request::RequestHead;

/// The value of `endpoint` in the metrics for an allowed preflight.
const PREFLIGHT: &str = "preflight";

/// Answers a preflight, and refuses a page that may not call. Returns `None` for every other request.
///
/// A preflight has no credential (Fetch standard, "CORS protocol and credentials"), so only its origin can be checked.
///
/// Shadow mode applies to connectors: a request from another origin passes, and so does its preflight. So everything
/// that works without the filter still works. The filter's own endpoints refuse such requests in every mode.
pub(super) fn judge(
    gateway: &Gateway,
    head: &RequestHead,
    endpoint: Option<&Endpoint>,
    is_resource: bool,
    mode: Mode,
    host: &dyn Host,
) -> Option<Step> {
    let source = match endpoint {
        Some(Endpoint::Document(_)) => {
            let reply = origin::is_preflight(head).then(discovery::options)?;
            return Some(Step::Reply(reply, Record::Endpoint { endpoint: PREFLIGHT, outcome: OK }));
        }
        None if !is_resource => return None,
        _ => gateway.config.gateway.allowed_origins.source(head),
    };
    match (source, endpoint) {
        (Source::NoPage, _) => None,
        (Source::Allowed(_), _) => origin::is_preflight(head)
            .then(|| Step::Reply(origin::preflight(), Record::Endpoint { endpoint: PREFLIGHT, outcome: OK })),
        (Source::Foreign, None) => {
            Some(refuse(gateway, head, None, mode, Reason::OriginNotAllowed.into(), Findings::default(), host))
        }
        (Source::Foreign, Some(endpoint)) => {
            let denial = Denial::from(Reason::OriginNotAllowed);
            let record = Record::Endpoint { endpoint: endpoint.word(), outcome: denial.reason().word() };
            Some(refusal::step(gateway, Size::of(head), denial.reply(None), record))
        }
    }
}

/// The pages that may read the answer to the request with this `head`. `None` if no page sent it, or a page that may not
/// call.
pub fn sharing(gateway: &Gateway, head: &RequestHead) -> Option<Sharing> {
    match gateway.config.gateway.allowed_origins.source(head) {
        Source::NoPage => None,
        _ if matches!(Endpoint::at(head.path(), &gateway.config), Some(Endpoint::Document(_))) => Some(Sharing::Public),
        Source::Allowed(origin) => Some(Sharing::Pages(origin.into())),
        Source::Foreign => None,
    }
}
