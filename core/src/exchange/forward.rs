//! How a request goes on to a connector, and what is recorded about it.

use std::borrow::Cow;
use std::rc::Rc;

use crate::denial::Denial;
use crate::gateway::{Findings, Gateway};
use crate::limits::standing::Standing;
use crate::mcp::reply::ListRequest;
use crate::principal::Principal;
use crate::reason::OK;
use crate::request::{CONNECTION, RequestHead};

/// The header with which a client accepts a compressed response (RFC 9110 §12.5.3).
pub const ACCEPT_ENCODING: &str = "accept-encoding";

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

/// The edits for a request of `principal`. They remove every other identity that the request asserts.
pub(super) fn edits(gateway: &Gateway, head: &RequestHead, principal: Option<Rc<Principal>>) -> Edits {
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
