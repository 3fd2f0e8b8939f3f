//! Every refusal: why, what status, what the client is told.
//!
//! One word, the [`Reason`], goes to the client's body, the access log and the metrics. It must help who operates the
//! gateway and must not help an attacker: it never tells whether an org exists or which part of a credential was right.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::limits::local::Exceeded;
use crate::limits::standing::{RATE_LIMIT, RATE_LIMIT_POLICY, Standing};
use crate::mcp::headers::MISMATCH_CODE;
use crate::scope::Scope;

/// Why a request was refused. The list is closed; README.md explains each word to operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No credential at all.
    CredentialMissing,
    /// A credential header that has not the form of one.
    CredentialMalformed,
    /// Two credentials, or one repeated.
    CredentialRepeated,
    /// No such key: unknown, revoked, or another org's.
    ApiKeyUnknown,
    /// A key past its `expires_at`.
    ApiKeyExpired,
    /// A bearer token that is no JWS of the profile accepted here.
    TokenMalformed,
    /// `alg` is not RS256 (RFC 8725 §3.1).
    AlgorithmNotAllowed,
    /// `iss` is none of this org's issuers.
    IssuerUnknown,
    /// `aud` names none of the configured audiences.
    AudienceMismatch,
    /// Past `exp`.
    TokenExpired,
    /// Before `nbf`, or `iat` lies in the future.
    TokenNotYetValid,
    /// A required claim is absent.
    ClaimMissing,
    /// The issuer publishes no key of this `kid`.
    KeyUnknown,
    /// The signature is not the issuer's.
    SignatureInvalid,
    /// A gateway token that was revoked, by itself or with all of its client's.
    TokenRevoked,
    /// The client of a gateway token is gone or revoked.
    ClientUnknown,
    /// Valid, but without the scope that the operation needs.
    ScopeInsufficient,
    /// The request comes from a web page whose origin is not allowed.
    OriginNotAllowed,
    /// The body is no JSON-RPC message, or one that two readers could read differently.
    MessageMalformed,
    /// The body is longer than is read.
    MessageTooLong,
    /// Something behind answered before the message had been read: nothing was called.
    MessageUnread,
    /// `MCP-Protocol-Version` is a date before the first version of MCP.
    ProtocolVersionUnsupported,
    /// `Mcp-Method` or `Mcp-Name` contradicts the body.
    HeaderMismatch,
    /// The body is no `application/json`, or compressed.
    MediaTypeUnsupported,
    /// Not POST or DELETE: the stream of all connectors' messages is not for a credential that covers some of them.
    MethodNotAllowed,
    /// The org or the key sends more often than it may.
    RateLimit,
    /// The org or the key has sent what it may in this month.
    MonthlyQuota,
    /// The rate limit service does not answer, and without it nothing is to pass.
    RateLimitUnavailable,
    /// Nothing is served at this path.
    PathUnmatched,
    /// The issuer's key set could not be fetched yet.
    JwksUnavailable,
    /// The module has no policy to decide by.
    PolicyUnavailable,
    /// The worker has no room for another request that waits.
    Overloaded,
    /// The route's metadata can't be read.
    RouteInvalid,
}

/// The word in the place of a [`Reason`] where a request was not refused.
pub const OK: &str = "ok";

/// How a refusal is told: RFC 6750 §3.1 where OAuth has a code for it.
struct Wording {
    word: &'static str,
    status: u32,
    error: &'static str,
    /// Without `"`, `\` and `=`: it stands in a quoted string that clients search with unanchored patterns.
    description: &'static str,
}

const fn invalid_token(word: &'static str, description: &'static str) -> Wording {
    Wording { word, status: 401, error: "invalid_token", description }
}

impl Reason {
    const fn wording(self) -> Wording {
        match self {
            Self::CredentialMissing => invalid_token("credential_missing", "Send an X-API-Key header or a Bearer token."),
            Self::CredentialMalformed => invalid_token("credential_malformed", "The credential is malformed."),
            Self::CredentialRepeated => invalid_token("credential_repeated", "Send exactly one credential."),
            Self::ApiKeyUnknown => invalid_token("api_key_unknown", "The API key is not valid here."),
            Self::ApiKeyExpired => invalid_token("api_key_expired", "The API key expired."),
            Self::TokenMalformed => invalid_token("token_malformed", "The access token is not an acceptable JWT."),
            Self::AlgorithmNotAllowed => invalid_token("algorithm_not_allowed", "The access token must be signed with RS256."),
            Self::IssuerUnknown => invalid_token("issuer_unknown", "The issuer of the access token is not accepted here."),
            Self::AudienceMismatch => invalid_token("audience_mismatch", "The access token is meant for another audience."),
            Self::TokenExpired => invalid_token("token_expired", "The access token expired."),
            Self::TokenNotYetValid => invalid_token("token_not_yet_valid", "The access token is not valid yet."),
            Self::ClaimMissing => invalid_token("claim_missing", "The access token needs the claims iss, sub, aud and exp."),
            Self::KeyUnknown => {
                invalid_token("key_unknown", "The access token is signed with a key that its issuer does not publish.")
            }
            Self::SignatureInvalid => invalid_token("signature_invalid", "The signature of the access token is not valid."),
            Self::TokenRevoked => invalid_token("token_revoked", "The access token was revoked."),
            Self::ClientUnknown => invalid_token("client_unknown", "The client of the access token is no longer accepted."),
            Self::ScopeInsufficient => Wording {
                word: "scope_insufficient",
                status: 403,
                error: "insufficient_scope",
                description: "The credential does not cover this operation.",
            },
            Self::OriginNotAllowed => Wording {
                word: "origin_not_allowed",
                status: 403,
                error: "origin_not_allowed",
                description: "Web pages of this origin may not call this gateway.",
            },
            Self::MessageMalformed => invalid_request("message_malformed", 400, "The body is no acceptable JSON-RPC message."),
            Self::MessageTooLong => invalid_request("message_too_long", 413, "The body is longer than 1 MiB."),
            Self::MessageUnread => Wording {
                word: "message_unread",
                status: 502,
                error: "bad_gateway",
                description: "The upstream answered before the message was read.",
            },
            Self::ProtocolVersionUnsupported => invalid_request(
                "protocol_version_unsupported",
                400,
                "No server speaks the version of MCP in the header MCP-Protocol-Version.",
            ),
            Self::HeaderMismatch => {
                invalid_request("header_mismatch", 400, "The header Mcp-Method or Mcp-Name contradicts the body.")
            }
            Self::MediaTypeUnsupported => {
                invalid_request("media_type_unsupported", 415, "Send the message as application/json, not compressed.")
            }
            Self::MethodNotAllowed => invalid_request(
                "method_not_allowed",
                405,
                "Send messages by POST. The stream of a GET is not offered to this credential.",
            ),
            Self::RateLimit => rate_limited("rate_limit", "Too many requests. Try again later."),
            Self::MonthlyQuota => rate_limited("monthly_quota", "The monthly quota is used up."),
            Self::RateLimitUnavailable => unavailable("rate_limit_unavailable", "Requests cannot be counted now. Try again."),
            Self::PathUnmatched => Wording {
                word: "path_unmatched",
                status: 404,
                error: "not_found",
                description: "Nothing is served at this path.",
            },
            Self::JwksUnavailable => {
                unavailable("jwks_unavailable", "The keys of the token issuer are not available now. Try again.")
            }
            Self::RouteInvalid => unavailable("route_invalid", "The route is misconfigured. Tell its operator."),
            Self::PolicyUnavailable => unavailable("policy_unavailable", "The gateway has no policy yet. Try again."),
            Self::Overloaded => unavailable("overloaded", "Too many requests are waiting. Try again."),
        }
    }

    /// The word of the closed list.
    pub const fn word(self) -> &'static str {
        self.wording().word
    }
}

const fn unavailable(word: &'static str, description: &'static str) -> Wording {
    Wording { word, status: 503, error: "temporarily_unavailable", description }
}

const fn rate_limited(word: &'static str, description: &'static str) -> Wording {
    Wording { word, status: 429, error: "rate_limited", description }
}

const fn invalid_request(word: &'static str, status: u32, description: &'static str) -> Wording {
    Wording { word, status, error: "invalid_request", description }
}

/// A refusal with what its answer needs besides the reason.
#[derive(Debug, PartialEq, Eq)]
pub struct Denial {
    /// Why.
    pub reason: Reason,
    /// The scope that the operation needs, told in 403.
    pub needed: Option<Scope>,
    /// When to try again, told in 429 and 503.
    pub retry_after: Option<Duration>,
    /// Where the client stands, told in 429.
    pub standing: Option<Box<Standing>>,
    /// What exactly is wrong, in a sentence in the place of the reason's own.
    pub description: Option<&'static str>,
    /// The `id` of the message, told where the answer is one of JSON-RPC.
    pub request_id: Value,
}

impl From<Exceeded> for Denial {
    fn from(exceeded: Exceeded) -> Self {
        let Exceeded { kind, retry_after, standing } = exceeded;
        Self { retry_after: Some(retry_after), standing: standing.told().map(Box::new), ..kind.reason().into() }
    }
}

impl From<Reason> for Denial {
    fn from(reason: Reason) -> Self {
        Self { reason, needed: None, retry_after: None, standing: None, description: None, request_id: Value::Null }
    }
}

/// `wait` as the value of Retry-After: whole seconds, rounded up, at least one; RFC 9110 §10.2.3.
pub fn retry_after(wait: Duration) -> String {
    wait.as_millis().div_ceil(1000).max(1).to_string()
}

/// A response that the filter gives itself.
#[derive(Debug, PartialEq, Eq)]
pub struct LocalReply {
    /// HTTP status code.
    pub status: u32,
    /// Response headers.
    pub headers: Vec<(&'static str, String)>,
    /// Response body.
    pub body: String,
}

/// Most challenges are no longer, in bytes.
const TYPICAL_CHALLENGE: usize = 320;

/// The one shape of a refusal's body.
#[derive(Serialize)]
struct Body<'d> {
    error: &'d str,
    error_description: &'d str,
    reason: &'d str,
}

/// What a challenge tells a client about how to get a token.
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
        let Wording { word, status, error, description } = self.reason.wording();
        let description = self.description.unwrap_or(description);
        let mut headers = vec![("content-type", "application/json".to_owned())];
        // No challenge: a credential would not make the origin of the page an allowed one.
        if matches!(status, 401 | 403) && self.reason != Reason::OriginNotAllowed {
            headers.push(("www-authenticate", self.challenge(error, description, resource_metadata, discovery)));
        }
        if let Some(standing) = &self.standing {
            headers.push((RATE_LIMIT_POLICY, standing.policy()));
            headers.push((RATE_LIMIT, standing.state()));
        }
        if matches!(status, 429 | 503) {
            let wait = self.retry_after.unwrap_or(Duration::from_secs(1));
            headers.push(("retry-after", retry_after(wait)));
        }
        if status == 405 {
            headers.push(("allow", "POST, DELETE".to_owned()));
            // RFC 9110 §15.5.6: caches may store a 405, but another credential may get another answer.
            headers.push(("cache-control", "no-store".to_owned()));
        }
        let body = Body { error, error_description: description, reason: word };
        let body = match self.reason {
            // MCP 2026-07-28 prescribes the code of JSON-RPC; clients look for it.
            Reason::HeaderMismatch => json!({
                "jsonrpc": "2.0",
                "id": self.request_id,
                "error": {"code": MISMATCH_CODE, "message": description, "data": body},
            })
            .to_string(),
            // Texts always have a form in JSON.
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
            // Writing to a String cannot fail.
            let _ = write!(challenge, "{separator}{name}=\"{value}\"");
            separator = ", ";
        };
        match self.reason {
            Reason::CredentialMissing => {
                if let Some(url) = resource_metadata {
                    parameter("resource_metadata", url);
                }
                match discovery.map(|discovery| discovery.scope.as_deref()) {
                    Some(Some(scope)) => parameter("scope", scope),
                    Some(None) => {}
                    None => parameter("scope", &Scope::AllConnectors.to_string()),
                }
            }
            Reason::ScopeInsufficient => {
                parameter("error", error);
                parameter("scope", &self.needed.as_ref().unwrap_or(&Scope::AllConnectors).to_string());
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
mod tests {
    use super::*;

    const METADATA: &str = "https://gw/.well-known/oauth-protected-resource/mcp/acme";

    fn header(reply: &LocalReply, wanted: &str) -> Option<String> {
        reply.headers.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.clone())
    }

    #[test]
    fn golden_replies() {
        let scope = Scope::parse("mcp:call:github");
        let table = [
            (
                Denial::from(Reason::CredentialMissing),
                401,
                Some(format!(r#"Bearer resource_metadata="{METADATA}", scope="mcp:call""#)),
            ),
            (
                Denial::from(Reason::TokenExpired),
                401,
                Some(format!(
                    r#"Bearer error="invalid_token", error_description="The access token expired.", resource_metadata="{METADATA}""#
                )),
            ),
            (
                Denial { needed: scope, ..Reason::ScopeInsufficient.into() },
                403,
                Some(format!(r#"Bearer error="insufficient_scope", scope="mcp:call:github", resource_metadata="{METADATA}""#)),
            ),
            (Reason::OriginNotAllowed.into(), 403, None),
            (Reason::PathUnmatched.into(), 404, None),
            (Reason::JwksUnavailable.into(), 503, None),
            (Reason::MessageMalformed.into(), 400, None),
            (Reason::MethodNotAllowed.into(), 405, None),
        ];
        for (denial, status, challenge) in table {
            let scope = Some("mcp:call".to_owned());
            let reply = denial.reply(Some(&Discovery { resource_metadata: Some(METADATA.to_owned()), scope }));
            assert_eq!(reply.status, status);
            assert_eq!(header(&reply, "www-authenticate"), challenge);
            assert_eq!(header(&reply, "retry-after").is_some(), status == 503);
            assert_eq!(header(&reply, "allow").is_some(), status == 405);
        }
        let reply = Denial::from(Reason::TokenExpired).reply(None);
        assert_eq!(
            reply.body,
            r#"{"error":"invalid_token","error_description":"The access token expired.","reason":"token_expired"}"#
        );
        assert_eq!(
            header(&reply, "www-authenticate").unwrap(),
            r#"Bearer error="invalid_token", error_description="The access token expired.""#
        );
        assert_eq!(
            header(&Denial::from(Reason::CredentialMissing).reply(None), "www-authenticate").unwrap(),
            r#"Bearer scope="mcp:call""#
        );
    }

    #[test]
    fn a_header_mismatch_is_told_in_json_rpc() {
        let reply = Denial { request_id: json!("a"), ..Reason::HeaderMismatch.into() }.reply(None);
        let body: Value = serde_json::from_str(&reply.body).unwrap();
        assert_eq!((reply.status, &body["id"], &body["error"]["code"]), (400, &json!("a"), &json!(-32020)));
        assert_eq!(body["error"]["data"]["reason"], "header_mismatch");
    }

    #[test]
    fn retry_after_rounds_up_to_whole_seconds() {
        for (wait, expected) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2")] {
            let denial = Denial { retry_after: Some(Duration::from_millis(wait)), ..Reason::JwksUnavailable.into() };
            assert_eq!(header(&denial.reply(None), "retry-after").unwrap(), expected);
        }
    }
}
