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
use crate::reason::Reason;
use crate::scope::Scope;

/// How a refusal is told: RFC 6750 §3.1 where OAuth has a code for it.
struct Wording {
    status: u32,
    error: &'static str,
    /// Without `"`, `\` and `=`: it stands in a quoted string that clients search with unanchored patterns.
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
        let Wording { status, error, description } = wording(self.reason);
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
        let body = Body { error, error_description: description, reason: self.reason.word() };
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
