//! Every refusal, with its data. A [`Denial`] has two renderings: the reply for the client, and a line for the log.
//!
//! The reply, the access log and the metrics share one word, the [`Reason`]. The reply must help the client's operator, but
//! not an attacker: it never tells whether an organization exists, or which part of a credential was right. The line for the
//! log is for the operator of the gateway. It quotes what did not match, but never a credential.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::jose::compact::CompactJws;
use crate::limits::Kind;
use crate::limits::local::Exceeded;
use crate::limits::standing::{RATE_LIMIT, RATE_LIMIT_POLICY};
use crate::mcp::headers::MISMATCH_CODE;
use crate::names::OrgName;
use crate::reason::Reason;
use crate::scope::Scope;
use crate::unproven::Unproven;

/// A refusal, with the data of its reply and of its log line.
#[derive(Debug, PartialEq, Eq)]
pub enum Denial {
    /// The reason says everything.
    Plain(Reason),
    /// An API key in `Authorization`.
    MisplacedApiKey,
    /// The `iss` of a token is not an issuer of the organization.
    IssuerUnknown {
        /// The organization of the resource.
        org: OrgName,
        /// The `iss` of the token.
        issuer: Unproven,
    },
    /// The `aud` of a token names no accepted audience.
    AudienceMismatch {
        /// The `iss` of the token.
        issuer: Unproven,
        /// The `aud` of the token.
        audience: Unproven,
    },
    /// No key of the issuer has the `kid` of the token, or no key made its signature.
    KeyMismatch {
        /// [`Reason::KeyUnknown`] or [`Reason::SignatureInvalid`].
        reason: Reason,
        /// The `iss` of the token.
        issuer: Unproven,
        /// The `kid` of the token.
        kid: Unproven,
    },
    /// The issuer's keys cannot be fetched now.
    JwksUnavailable {
        /// Time until the next fetch.
        retry_after: Duration,
    },
    /// The credential lacks a scope.
    ScopeInsufficient {
        /// The scope that the operation needs.
        needed: Scope,
        /// Whether the token has a grant that could not be read, so that it grants nothing.
        has_unread_grant: bool,
    },
    /// The body is no acceptable message.
    MessageMalformed {
        /// A sentence that says what is wrong.
        description: &'static str,
    },
    /// A header contradicts the body.
    HeaderMismatch {
        /// The `id` of the message, for a reply in JSON-RPC.
        request_id: Value,
    },
    /// A rate or a quota is exceeded.
    LimitExceeded(Box<Exceeded>),
}

impl From<Reason> for Denial {
    fn from(reason: Reason) -> Self {
        Self::Plain(reason)
    }
}

impl From<Exceeded> for Denial {
    fn from(exceeded: Exceeded) -> Self {
        Self::LimitExceeded(Box::new(exceeded))
    }
}

/// The description for a client whose token has a grant that could not be read. Like all descriptions, it contains no
/// `=`, `"` or `\\`.
const UNREAD_GRANT: &str = "A value of the access token contains mcp:call but is no scope of this gateway, so nothing is granted \
     by default. Send mcp:call or mcp:call:<connector> as a value of the claim scope or scp.";

impl Denial {
    /// The `iss` of `jws` is not an issuer of `org`. This moves the claim, so that a refusal costs no copy.
    pub fn issuer_unknown(org: &OrgName, jws: CompactJws<'_>) -> Self {
        let (mut claims, _) = jws.into_unproven();
        Self::IssuerUnknown { org: org.clone(), issuer: Unproven::new(claims.remove("iss")) }
    }

    /// The check of the audience of `jws` failed for this reason.
    pub fn audience(reason: Reason, jws: CompactJws<'_>) -> Self {
        if reason != Reason::AudienceMismatch {
            return reason.into();
        }
        let (mut claims, _) = jws.into_unproven();
        Self::AudienceMismatch { issuer: Unproven::new(claims.remove("iss")), audience: Unproven::new(claims.remove("aud")) }
    }

    /// No key fits `jws`. `reason` is [`Reason::KeyUnknown`] or [`Reason::SignatureInvalid`].
    pub fn key_mismatch(reason: Reason, jws: CompactJws<'_>) -> Self {
        let (mut claims, kid) = jws.into_unproven();
        let kid = Unproven::new(kid.map(Value::String));
        Self::KeyMismatch { reason, issuer: Unproven::new(claims.remove("iss")), kid }
    }

    /// The reason.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Plain(reason) | Self::KeyMismatch { reason, .. } => *reason,
            Self::MisplacedApiKey => Reason::CredentialMalformed,
            Self::IssuerUnknown { .. } => Reason::IssuerUnknown,
            Self::AudienceMismatch { .. } => Reason::AudienceMismatch,
            Self::JwksUnavailable { .. } => Reason::JwksUnavailable,
            Self::ScopeInsufficient { .. } => Reason::ScopeInsufficient,
            Self::MessageMalformed { .. } => Reason::MessageMalformed,
            Self::HeaderMismatch { .. } => Reason::HeaderMismatch,
            Self::LimitExceeded(exceeded) => exceeded.kind.reason(),
        }
    }

    /// A more exact description for the client than that of the reason.
    const fn description(&self) -> Option<&'static str> {
        match self {
            Self::MisplacedApiKey => Some("Send the API key in the X-API-Key header, not in Authorization."),
            Self::ScopeInsufficient { has_unread_grant: true, .. } => Some(UNREAD_GRANT),
            Self::MessageMalformed { description } => Some(description),
            _ => None,
        }
    }

    /// When the client may try again.
    const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::JwksUnavailable { retry_after } => Some(*retry_after),
            Self::LimitExceeded(exceeded) => Some(exceeded.retry_after),
            _ => None,
        }
    }

    /// What the operator's log is told besides the reason. `None` if the reason says everything.
    pub fn details(&self) -> Option<Details<'_>> {
        let has_details = !matches!(self, Self::Plain(_) | Self::MisplacedApiKey | Self::HeaderMismatch { .. });
        has_details.then_some(Details(self))
    }
}

/// The line about a [`Denial`] for the operator's log. It is rendered only if the log has level debug.
pub struct Details<'d>(&'d Denial);

impl fmt::Display for Details<'_> {
    fn fmt(&self, line: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Denial::IssuerUnknown { org, issuer } => {
                write!(line, "the token has the issuer {issuer}, which is no identity provider of the organization {org}")
            }
            Denial::AudienceMismatch { issuer, audience } => {
                write!(
                    line,
                    "the token of the issuer {issuer} has the audience {audience}, which is not accepted for this issuer"
                )
            }
            Denial::KeyMismatch { reason: Reason::KeyUnknown, issuer, kid } => {
                write!(line, "the token has the kid {kid}, and its issuer {issuer} publishes no such key")
            }
            Denial::KeyMismatch { issuer, kid, .. } => {
                write!(line, "no key of the issuer {issuer} made the signature of the token, which has the kid {kid}")
            }
            Denial::JwksUnavailable { retry_after } => {
                write!(line, "the keys of the issuer are missing, and the next fetch is due in {} ms", retry_after.as_millis())
            }
            Denial::ScopeInsufficient { needed, has_unread_grant } => {
                let why =
                    if *has_unread_grant { ". The token has a grant that could not be read, so it has no scope" } else { "" };
                write!(line, "the operation needs the scope {needed}{why}")
            }
            Denial::MessageMalformed { description } => line.write_str(description),
            Denial::LimitExceeded(exceeded) => {
                let wait = exceeded.retry_after.as_millis();
                match (exceeded.kind, exceeded.standing.rate, exceeded.standing.month) {
                    (Kind::Rate, Some(rate), _) => {
                        let length = rate.length.unwrap_or_default().as_secs();
                        write!(line, "the rate of {} requests in {length} s is exceeded for {wait} ms", rate.quota)
                    }
                    (Kind::Month, _, Some(month)) => {
                        write!(line, "the quota of {} requests a month is used up for {wait} ms", month.quota)
                    }
                    _ => write!(line, "a limit is exceeded for {wait} ms"),
                }
            }
            Denial::Plain(_) | Denial::MisplacedApiKey | Denial::HeaderMismatch { .. } => Ok(()),
        }
    }
}

/// What the client is told for a reason. RFC 6750 §3.1 defines most of the error codes.
struct Wording {
    status: u32,
    error: &'static str,
    /// Without `"`, `\` and `=`: the text stands in a quoted string that clients search with unanchored patterns.
    description: &'static str,
}

const fn invalid_token(description: &'static str) -> Wording {
    Wording { status: 401, error: "invalid_token", description }
}

/// The status and the texts for `reason`.
const fn wording(reason: Reason) -> Wording {
    match reason {
        Reason::CredentialMissing => invalid_token("Send an X-API-Key header or a Bearer token."),
        Reason::CredentialMalformed => invalid_token("The credential is malformed."),
        Reason::CredentialRepeated => invalid_token("Send exactly one credential."),
        Reason::ApiKeyUnknown => invalid_token("The API key is not valid here."),
        Reason::ApiKeyExpired => invalid_token("The API key expired."),
        Reason::TokenMalformed => invalid_token("The access token is not an acceptable JWT."),
        Reason::AlgorithmNotAllowed => invalid_token("The access token must be signed with RS256."),
        Reason::IssuerUnknown => invalid_token("The issuer of the access token is not accepted here."),
        Reason::AudienceMismatch => invalid_token("The access token is meant for another audience."),
        Reason::TokenExpired => invalid_token("The access token expired."),
        Reason::TokenNotYetValid => invalid_token("The access token is not valid yet."),
        Reason::ClaimMissing => invalid_token("The access token needs the claims iss, sub, aud and exp."),
        Reason::KeyUnknown => invalid_token("The access token is signed with a key that its issuer does not publish."),
        Reason::SignatureInvalid => invalid_token("The signature of the access token is not valid."),
        Reason::TokenRevoked => invalid_token("The access token was revoked."),
        Reason::ClientUnknown => invalid_token("The client of the access token is no longer accepted."),
        Reason::ScopeInsufficient => {
            Wording { status: 403, error: "insufficient_scope", description: "The credential does not cover this operation." }
        }
        Reason::OriginNotAllowed => Wording {
            status: 403,
            error: "origin_not_allowed",
            description: "Web pages of this origin may not call this gateway.",
        },
        Reason::MessageMalformed => invalid_request(400, "The body is no acceptable JSON-RPC message."),
        Reason::MessageTooLong => invalid_request(413, "The body is longer than 1 MiB."),
        Reason::MessageUnread => {
            Wording { status: 502, error: "bad_gateway", description: "The upstream answered before the message was read." }
        }
        Reason::ProtocolVersionUnsupported => {
            invalid_request(400, "No server speaks the version of MCP in the header MCP-Protocol-Version.")
        }
        Reason::HeaderMismatch => invalid_request(400, "The header Mcp-Method or Mcp-Name contradicts the body."),
        Reason::MediaTypeUnsupported => invalid_request(415, "Send the message as application/json, not compressed."),
        Reason::MethodNotAllowed => {
            invalid_request(405, "Send messages by POST. The stream of a GET is not offered to this credential.")
        }
        Reason::RateLimit => rate_limited("Too many requests. Try again later."),
        Reason::MonthlyQuota => rate_limited("The monthly quota is used up."),
        Reason::RateLimitUnavailable => unavailable("Requests cannot be counted now. Try again."),
        Reason::PathUnmatched => Wording { status: 404, error: "not_found", description: "Nothing is served at this path." },
        Reason::JwksUnavailable => unavailable("The keys of the token issuer are not available now. Try again."),
        Reason::RouteInvalid => unavailable("The route is misconfigured. Tell its operator."),
        Reason::PolicyUnavailable => unavailable("The gateway has no policy yet. Try again."),
        Reason::Overloaded => unavailable("Too many requests are waiting. Try again."),
    }
}

const fn unavailable(description: &'static str) -> Wording {
    Wording { status: 503, error: "temporarily_unavailable", description }
}

const fn rate_limited(description: &'static str) -> Wording {
    Wording { status: 429, error: "rate_limited", description }
}

const fn invalid_request(status: u32, description: &'static str) -> Wording {
    Wording { status, error: "invalid_request", description }
}

/// `wait` as the value of `Retry-After` (RFC 9110 §10.2.3): whole seconds, rounded up, at least one.
pub fn retry_after(wait: Duration) -> String {
    wait.as_millis().div_ceil(1000).max(1).to_string()
}

/// A response of the filter itself.
#[derive(Debug, PartialEq, Eq)]
pub struct LocalReply {
    /// The HTTP status code.
    pub status: u32,
    /// Names in lower case, and values.
    pub headers: Vec<(&'static str, String)>,
    /// JSON, or empty.
    pub body: String,
}

/// Most challenges are not longer than this, in bytes.
const TYPICAL_CHALLENGE: usize = 320;

/// The body of every refusal.
#[derive(Serialize)]
struct Body<'d> {
    error: &'d str,
    error_description: &'d str,
    reason: &'d str,
}

/// The parameters of a challenge that help a client to get a token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discovery {
    /// The URL of RFC 9728 §5.1. `None` if the org offers no OAuth: a client with a static key must not begin discovery.
    pub resource_metadata: Option<String>,
    /// The scopes to request, separated by spaces. `None` if the challenge names none.
    pub scope: Option<String>,
}

impl Denial {
    /// The answer to the client. The challenge contains `discovery`, if the resource is known.
    pub fn reply(&self, discovery: Option<&Discovery>) -> LocalReply {
        let resource_metadata = discovery.and_then(|discovery| discovery.resource_metadata.as_deref());
        let Wording { status, error, description } = wording(self.reason());
        let description = self.description().unwrap_or(description);
        let mut headers = vec![("content-type", "application/json".to_owned())];
        // No challenge: a credential would not make the origin of the page an allowed one.
        if matches!(status, 401 | 403) && self.reason() != Reason::OriginNotAllowed {
            headers.push(("www-authenticate", self.challenge(error, description, resource_metadata, discovery)));
        }
        if let Self::LimitExceeded(exceeded) = self
            && let Some(standing) = exceeded.standing.told()
        {
            headers.push((RATE_LIMIT_POLICY, standing.policy()));
            headers.push((RATE_LIMIT, standing.state()));
        }
        if matches!(status, 429 | 503) {
            let wait = self.retry_after().unwrap_or(Duration::from_secs(1));
            headers.push(("retry-after", retry_after(wait)));
        }
        if status == 405 {
            headers.push(("allow", "POST, DELETE".to_owned()));
            // RFC 9110 §15.5.6: caches may store a 405, but another credential may get another answer.
            headers.push(("cache-control", "no-store".to_owned()));
        }
        let body = Body { error, error_description: description, reason: self.reason().word() };
        let body = match self {
            // MCP 2026-07-28 prescribes the code of JSON-RPC, and clients look for it.
            Self::HeaderMismatch { request_id } => json!({
                "jsonrpc": "2.0",
                "id": request_id,
                "error": {"code": MISMATCH_CODE, "message": description, "data": body},
            })
            .to_string(),
            // Text always serializes.
            _ => serde_json::to_string(&body).unwrap_or_default(),
        };
        LocalReply { status, headers, body }
    }

    /// RFC 6750 §3: a request without any credential gets no error code.
    fn challenge(
        &self,
        error: &str,
        description: &str,
        resource_metadata: Option<&str>,
        discovery: Option<&Discovery>,
    ) -> String {
        let mut challenge = String::with_capacity(TYPICAL_CHALLENGE);
        challenge.push_str("Bearer");
        let mut separator = " ";
        let mut parameter = |name: &str, value: &str| {
            // `write!` would take several times as long.
            [separator, name, "=\"", value, "\""].into_iter().for_each(|part| challenge.push_str(part));
            separator = ", ";
        };
        match self {
            Self::Plain(Reason::CredentialMissing) => {
                if let Some(url) = resource_metadata {
                    parameter("resource_metadata", url);
                }
                match discovery.map(|discovery| discovery.scope.as_deref()) {
                    Some(Some(scope)) => parameter("scope", scope),
                    Some(None) => {}
                    None => parameter("scope", &Scope::AllConnectors.to_string()),
                }
            }
            Self::ScopeInsufficient { needed, .. } => {
                parameter("error", error);
                parameter("scope", &needed.to_string());
                if let Some(url) = resource_metadata {
                    parameter("resource_metadata", url);
                }
            }
            _ => {
                parameter("error", error);
                parameter("error_description", description);
                if let Some(url) = resource_metadata {
                    parameter("resource_metadata", url);
                }
            }
        }
        challenge
    }
}

#[cfg(test)]
mod tests;
