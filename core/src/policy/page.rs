//! What Settings sends to a gateway that takes changes: parts of the policy, in pages of bounded length.
//!
//! A gateway asks for such pages by the media type of [`CONTENT_TYPE`] in `Accept`, and says by `If-None-Match` which state it
//! has. A server that knows no pages answers with the whole document.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::raw::Members;

/// The media type of a page.
pub const CONTENT_TYPE: &str = "application/vnd.apexmcp.policy-parts+json";

/// The request header in which a gateway names itself: a random id of its Envoy, a space, and the version of its module.
pub const GATEWAY_HEADER: &str = "x-apexmcp-gateway";

/// Some parts of a policy. All parts of one page were in force at the same time.
#[derive(Debug, Serialize, Deserialize)]
pub struct Page<'a> {
    /// The state that the gateway named, to which these parts are to be added. Absent: the pages begin anew with all parts.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Cow<'a, str>>,
    /// The state after this page, for the next request.
    #[serde(borrow)]
    pub next: Cow<'a, str>,
    /// The version of the policy after the last page.
    #[serde(borrow)]
    pub version: Cow<'a, str>,
    /// Whether the gateway has the whole policy after this page.
    pub is_last: bool,
    /// The sum of all parts after this page, if it is known.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub sum: Option<Cow<'a, str>>,
    /// The parts by name. A part that is null is gone.
    #[serde(borrow, default)]
    pub parts: Members<Option<&'a RawValue>>,
}
