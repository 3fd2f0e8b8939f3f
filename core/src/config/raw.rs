//! The plugin configuration as operators write it, before any check. docs/reference/configuration.md describes
//! each field, and a test compares the two.

use serde::Deserialize;

use super::settings;
use crate::mcp::call::Part;
use crate::policy::raw::RawPolicy;
use crate::principal::Attribute;

#[derive(Debug, Deserialize)]
pub(super) struct RawConfig {
    pub(super) gateway: Option<RawGateway>,
    pub(super) policy: Option<RawPolicySource>,
    #[serde(default)]
    pub(super) jwks: RawJwks,
    #[serde(default)]
    pub(super) tokens: RawTokens,
    #[serde(default)]
    pub(super) forward: RawForward,
    #[serde(default)]
    pub(super) limits: Limits,
    #[serde(default)]
    pub(super) mode: settings::Mode,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawGateway {
    pub(super) origin: Option<String>,
    pub(super) mcp_path: Option<String>,
    pub(super) token_path: Option<String>,
    pub(super) connector_separator: Option<String>,
    #[serde(default)]
    pub(super) unmatched_paths: settings::UnmatchedPaths,
    #[serde(default)]
    pub(super) route_metadata: bool,
    pub(super) host_holds_bodies: Option<bool>,
    pub(super) allowed_origins: Option<RawOrigins>,
}

/// `gateway.allowed_origins`: `"*"`, or a list of origins.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum RawOrigins {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Deserialize)]
pub(super) struct RawPolicySource {
    pub(super) inline: Option<RawPolicy>,
    pub(super) remote: Option<RawRemote>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawRemote {
    pub(super) cluster: Option<String>,
    pub(super) authority: Option<String>,
    pub(super) path: Option<String>,
    pub(super) timeout: Option<String>,
    pub(super) interval: Option<String>,
    pub(super) long_poll: Option<String>,
    pub(super) token_env: Option<String>,
    pub(super) token_sds: Option<RawSdsSecret>,
    pub(super) usage: Option<RawUsage>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawUsage {
    pub(super) path: Option<String>,
    pub(super) interval: Option<String>,
    pub(super) token_env: Option<String>,
}

/// Envoy's `SdsSecretConfig`.
#[derive(Debug, Deserialize)]
pub(super) struct RawSdsSecret {
    pub(super) name: Option<String>,
    pub(super) sds_config: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawJwks {
    pub(super) https_cluster: Option<String>,
    pub(super) http_cluster: Option<String>,
    pub(super) timeout: Option<String>,
    pub(super) refresh_interval: Option<String>,
    pub(super) refetch_cooldown: Option<String>,
    pub(super) max_stale: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawTokens {
    pub(super) ttl: Option<String>,
    pub(super) clock_skew: Option<String>,
    pub(super) cache_size: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawForward {
    pub(super) strip_credentials: Option<bool>,
    pub(super) header_prefix: Option<String>,
    pub(super) headers: Option<Vec<Attribute>>,
    pub(super) filter_state: Option<Vec<FilterState>>,
}

/// A filter state that can be chosen: a part of the identity, or of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FilterState {
    Org,
    Principal,
    Subject,
    Method,
    Scope,
    McpMethod,
    McpName,
}

impl FilterState {
    pub(super) const fn attribute(self) -> Option<Attribute> {
        match self {
            Self::Org => Some(Attribute::Org),
            Self::Principal => Some(Attribute::Principal),
            Self::Subject => Some(Attribute::Subject),
            Self::Method => Some(Attribute::Method),
            Self::Scope => Some(Attribute::Scope),
            Self::McpMethod | Self::McpName => None,
        }
    }

    pub(super) const fn part(self) -> Option<Part> {
        match self {
            Self::McpMethod => Some(Part::Method),
            Self::McpName => Some(Part::Name),
            _ => None,
        }
    }

    pub(super) const fn word(self) -> &'static str {
        match (self.attribute(), self) {
            (Some(attribute), _) => attribute.word(),
            (None, Self::McpName) => "mcp_name",
            (None, _) => "mcp_method",
        }
    }
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Limits {
    #[serde(default)]
    pub(super) store: RawLimitStore,
    pub(super) rate_limit_service: Option<RawRateLimitService>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RawLimitStore {
    #[default]
    Local,
    RateLimitService,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawRateLimitService {
    pub(super) cluster: Option<String>,
    pub(super) domain: Option<String>,
    pub(super) timeout: Option<String>,
    #[serde(default)]
    pub(super) on_error: settings::OnError,
}
