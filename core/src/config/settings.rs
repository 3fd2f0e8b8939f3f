//! The sections of a checked configuration.

use std::rc::Rc;
use std::time::Duration;

use serde::Deserialize;

use crate::mcp::call::Part;
use crate::origin::AllowedOrigins;
use crate::path::{McpPath, Resource};
use crate::principal::Attribute;
use crate::url;

/// Prefix of the path of a resource's metadata. The path of the resource follows (RFC 9728 §3.1).
pub const PROTECTED_RESOURCE: &str = "/.well-known/oauth-protected-resource";

/// Section `gateway`.
#[derive(Debug)]
pub struct GatewaySettings {
    /// Public `scheme://host[:port]`, without a trailing slash.
    pub origin: String,
    /// The path of the token endpoint.
    pub token_path: String,
    /// The paths of the MCP endpoints.
    pub mcp_path: McpPath,
    /// The text between the name of a connector and the name of its tool or prompt.
    pub connector_separator: Box<str>,
    /// What the filter does with other paths.
    pub unmatched_paths: UnmatchedPaths,
    /// Whether the filter reads settings from the metadata of routes.
    pub route_metadata: bool,
    /// Whether Envoy holds the body of a request while the filter holds its head. It does, unless
    /// `allow_on_headers_stop_iteration` is on. `None` if the operator does not set it.
    pub host_holds_bodies: Option<bool>,
    /// The web pages that may call the gateway.
    pub allowed_origins: AllowedOrigins,
}

impl GatewaySettings {
    /// The identifier of a protected resource (RFC 8707, RFC 9728): the URL that clients call.
    pub fn resource_url(&self, resource: &Resource) -> String {
        format!("{}{}", self.origin, self.mcp_path.path_of(resource))
    }

    /// The protected resource that a client names with `url`. Every spelling of the URL matches.
    pub fn resource_of_url(&self, url: &str) -> Option<Resource> {
        let url = url::normalized(url)?;
        self.mcp_path.resource(url.strip_prefix(self.origin.as_str())?.as_bytes())
    }

    /// The URL of the metadata of a protected resource, RFC 9728 §3.1.
    pub fn metadata_url(&self, resource: &Resource) -> String {
        format!("{}{PROTECTED_RESOURCE}{}", self.origin, self.mcp_path.path_of(resource))
    }
}

/// Section `tokens`.
#[derive(Debug)]
pub struct TokenSettings {
    /// Lifetime of the gateway's own tokens.
    pub ttl: Duration,
    /// Maximum difference between the clock of an issuer and this one.
    pub clock_skew: Duration,
    /// Maximum number of verified tokens in the cache of each worker.
    pub cache_size: usize,
}

/// Section `forward`.
#[derive(Debug)]
pub struct ForwardSettings {
    /// Whether the header with the credential is removed.
    pub strip_credentials: bool,
    /// The prefix of the identity headers, in lower case.
    pub header_prefix: String,
    /// The identity headers to add, with their whole names.
    pub headers: Vec<(Attribute, String)>,
    /// The attributes to write as filter state.
    pub filter_state: Vec<Attribute>,
    /// The parts of the call to write as filter state.
    pub call: Vec<Part>,
}

/// Section `limits`.
#[derive(Debug)]
pub enum LimitStore {
    /// The threads of this Envoy count in their shared data.
    Local,
    /// A rate limit service counts for many Envoys.
    RateLimitService(RateLimitService),
}

/// Section `limits.rate_limit_service`.
#[derive(Debug)]
pub struct RateLimitService {
    /// The Envoy cluster of the service.
    pub cluster: Rc<str>,
    /// The cluster as [`crate::limits::service::upstream`] returns it.
    pub upstream: Rc<str>,
    /// The domain under which the service knows this gateway.
    pub domain: String,
    /// How long an answer may take.
    pub timeout: Duration,
    /// What the filter does with a request that could not be counted.
    pub on_error: OnError,
}

/// What the filter does with a request that could not be counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// The request passes.
    #[default]
    Allow,
    /// The request is refused with status 503.
    Deny,
}

/// What the filter does with a request to a path that is no MCP endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnmatchedPaths {
    /// The request is refused with status 404.
    #[default]
    Deny,
    /// The request passes, and the filter changes nothing.
    Allow,
}

/// Whether refusals take effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// The filter refuses requests.
    #[default]
    Enforce,
    /// The filter only records its decisions, and every request passes.
    Shadow,
}
