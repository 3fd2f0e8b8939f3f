//! A request that a browser sends for a web page: its origin is judged before anything else, and needs no policy.

use super::refusal::{self, Size};
use super::{Record, Step, refuse};
use crate::config::Mode;
use crate::denial::{Denial, OK, Reason};
use crate::gateway::{Findings, Gateway};
use crate::host::Host;
use crate::oauth::discovery::{self, Endpoint};
use crate::origin::{self, Sharing, Source};
use crate::request::RequestHead;

/// The word for metrics of a preflight that was allowed.
const PREFLIGHT: &str = "preflight";

/// Answers the request where its origin decides: a preflight, or a page that may not call. `None` where the request has no
/// origin, or goes on.
///
/// A preflight has no credential (Fetch standard, "CORS protocol and credentials"), so nothing else can be judged of it.
///
/// Shadow mode is for connectors: there, a request of another origin passes, its preflight included, so that nothing
/// stops working that works without the filter. The filter's own endpoints answer as always.
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
            let record = Record::Endpoint { endpoint: endpoint.word(), outcome: denial.reason.word() };
            Some(refusal::step(gateway, Size::of(head), denial.reply(None), record))
        }
    }
}

/// Which pages may read the answer to the request of `head`: `None` where it comes from none, or from one that may not.
pub fn sharing(gateway: &Gateway, head: &RequestHead) -> Option<Sharing> {
    match gateway.config.gateway.allowed_origins.source(head) {
        Source::NoPage => None,
        _ if matches!(Endpoint::at(head.path(), &gateway.config), Some(Endpoint::Document(_))) => Some(Sharing::Public),
        Source::Allowed(origin) => Some(Sharing::Pages(origin.into())),
        Source::Foreign => None,
    }
}
