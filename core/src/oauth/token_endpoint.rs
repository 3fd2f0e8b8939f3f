//! `POST /oauth/token`: client credentials (RFC 6749 §4.4) with client authentication by secret (RFC 6749 §2.3.1) or
//! assertion (RFC 7523), and resource indicators (RFC 8707).

use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::attempts::{self, Attempts};
use super::replay::Use;
use crate::access_token::AccessTokenClaims;
use crate::config::Config;
use crate::credential::MAX_TOKEN_LENGTH;
use crate::denial::{LocalReply, retry_after};
use crate::host::Host;
use crate::jose::claims;
use crate::jose::compact::{CompactJws, Type};
use crate::jose::signature;
use crate::limits;
use crate::limits::local::Exceeded;
use crate::limits::standing::{RATE_LIMIT, RATE_LIMIT_POLICY, Standing};
use crate::names::is_record_id;
use crate::oauth_client::{self, OauthClient};
use crate::path::Resource;
use crate::policy::source::PolicySource;
use crate::reason::Reason;
use crate::request::RequestHead;
use crate::scope::{self, ScopeSet};
use crate::time::UnixTime;

/// Maximum length of a body in bytes. The longest parameter is a client assertion, which stays below 4 KiB.
pub const MAX_BODY_LENGTH: usize = 16 * 1024;

const RESOURCE: &str = "resource";
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// Maximum lifetime of an assertion. Its `jti` is remembered for the same time.
const MAX_ASSERTION_LIFETIME: Duration = Duration::from_secs(600);

/// The reason why no token is issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// RFC 6749 §5.2 `invalid_request`. The text tells the client what is wrong.
    InvalidRequest(&'static str),
    /// `invalid_client`. It does not tell whether the id, the secret or the assertion was wrong.
    InvalidClient {
        /// Whether the client used HTTP Basic. The reply then has a challenge for it (RFC 6749 §5.2).
        basic: bool,
    },
    /// `unsupported_grant_type`
    UnsupportedGrantType,
    /// `invalid_scope`
    InvalidScope,
    /// `invalid_scope`: a token for all these scopes and resources would be longer than the gateway accepts.
    ScopeTooLong,
    /// RFC 8707 §2 `invalid_target`
    InvalidTarget,
    /// This client id failed too often. It must wait for this time.
    TooManyAttempts(Duration),
    /// This client requested too many tokens.
    RateLimit(Exceeded),
    /// The body is over [`MAX_BODY_LENGTH`].
    BodyTooLong,
    /// The whole body did not arrive in time.
    BodyTimeout,
    /// The worker has no room for another request that waits for its body.
    Overloaded,
    MethodNotAllowed,
    SigningFailed,
}

impl TokenError {
    /// The word in the log, the metrics and the reply.
    pub const fn word(self) -> &'static str {
        match self {
            Self::InvalidRequest(_) => "invalid_request",
            Self::InvalidClient { .. } => "invalid_client",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::InvalidScope | Self::ScopeTooLong => "invalid_scope",
            Self::InvalidTarget => "invalid_target",
            Self::TooManyAttempts(_) => "too_many_attempts",
            Self::RateLimit(_) => "rate_limit",
            Self::BodyTooLong => "body_too_long",
            Self::BodyTimeout => "body_timeout",
            Self::Overloaded => "overloaded",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::SigningFailed => "signing_failed",
        }
    }

    /// The reply, RFC 6749 §5.2.
    pub fn reply(self) -> LocalReply {
        let (status, error, description) = match self {
            Self::InvalidRequest(description) => (400, "invalid_request", description),
            Self::InvalidClient { .. } => (401, "invalid_client", "The client is unknown, or its authentication failed."),
            Self::UnsupportedGrantType => (400, "unsupported_grant_type", "The grant_type must be client_credentials."),
            Self::InvalidScope => (400, "invalid_scope", "The client has none of these scopes."),
            Self::ScopeTooLong => (400, "invalid_scope", "The token would be too long. Ask for fewer scopes or resources."),
            Self::InvalidTarget => (400, "invalid_target", "A resource does not belong to the client's organization."),
            Self::TooManyAttempts(_) => (429, "rate_limited", "Too many failed attempts of this client. Try again later."),
            Self::RateLimit(_) => (429, "rate_limited", "This client requests too many tokens. Use a token until it expires."),
            Self::BodyTooLong => (413, "invalid_request", "The body is longer than 16 KiB."),
            Self::BodyTimeout => (408, "invalid_request", "The body did not arrive in time."),
            Self::Overloaded => (503, "temporarily_unavailable", "Too many requests are waiting. Try again."),
            Self::MethodNotAllowed => (405, "invalid_request", "Use POST."),
            Self::SigningFailed => (503, "temporarily_unavailable", "The gateway cannot sign tokens now. Try again."),
        };
        let mut reply =
            no_store(status, serde_json::json!({ "error": error, "error_description": description, "reason": self.word() }));
        match self {
            Self::InvalidClient { basic: true } => {
                reply.headers.push(("www-authenticate", r#"Basic realm="apexmcp""#.to_owned()))
            }
            Self::TooManyAttempts(wait) => rate_limited(&mut reply, wait, attempts::standing(wait)),
            Self::RateLimit(exceeded) => rate_limited(&mut reply, exceeded.retry_after, exceeded.standing),
            Self::MethodNotAllowed => reply.headers.push(("allow", "POST".to_owned())),
            Self::SigningFailed | Self::Overloaded => reply.headers.push(("retry-after", "1".to_owned())),
            _ => {}
        }
        reply
    }
}

/// Adds the headers that every 429 has.
fn rate_limited(reply: &mut LocalReply, wait: Duration, standing: Standing) {
    let headers = [("retry-after", retry_after(wait)), (RATE_LIMIT_POLICY, standing.policy()), (RATE_LIMIT, standing.state())];
    reply.headers.extend(headers);
}

/// A reply that no cache may keep, RFC 6749 §5.1.
fn no_store(status: u32, body: Value) -> LocalReply {
    let headers = [("content-type", "application/json"), ("cache-control", "no-store"), ("pragma", "no-cache")];
    LocalReply { status, headers: headers.map(|(name, value)| (name, value.to_owned())).into(), body: body.to_string() }
}

/// What the token endpoint needs to answer a request.
pub struct TokenEndpoint<'e> {
    pub config: &'e Config,
    /// Provides the clients and the signing keys.
    pub policy: &'e PolicySource,
    pub attempts: &'e mut Attempts,
    pub host: &'e dyn Host,
    pub now: UnixTime,
}

impl TokenEndpoint<'_> {
    /// Issues a token for the request with this `head` and `body`.
    ///
    /// # Errors
    /// See [`TokenError`].
    pub fn issue(&mut self, head: &RequestHead, body: &[u8]) -> Result<LocalReply, TokenError> {
        let form = Form::read(head, body)?;
        let client = self.authenticate(head, &form)?;
        match form.get("grant_type") {
            Some("client_credentials") => {}
            Some(_) => return Err(TokenError::UnsupportedGrantType),
            None => return Err(TokenError::InvalidRequest("The parameter grant_type is required.")),
        }
        let scope = granted(&client, form.get("scope"))?.to_string();
        let audiences = self.audiences(&client, &form.resources)?;
        limits::local::take_one(&limits::of_token_endpoint(&client.id), self.now, self.host).map_err(TokenError::RateLimit)?;

        let signing_keys = self.policy.signing_keys(self.host);
        let key = signing_keys.first().ok_or(TokenError::SigningFailed)?;
        let jti = hex::encode(self.host.random().ok_or(TokenError::SigningFailed)?);
        let ttl = self.config.tokens.ttl;
        let claims = AccessTokenClaims {
            iss: &self.config.gateway.origin,
            sub: &client.id,
            client_id: &client.id,
            aud: &audiences,
            iat: self.now.as_secs(),
            exp: self.now.plus(ttl).as_secs(),
            jti: &jti,
            scope: &scope,
        };
        let token = self.host.sign(key, &claims).ok_or(TokenError::SigningFailed)?;
        if token.len() > MAX_TOKEN_LENGTH {
            return Err(TokenError::ScopeTooLong);
        }
        let body =
            serde_json::json!({ "access_token": token, "token_type": "Bearer", "expires_in": ttl.as_secs(), "scope": scope });
        Ok(no_store(200, body))
    }

    /// Authenticates the client. RFC 6749 §2.3: a request must not use more than one method.
    fn authenticate(&mut self, head: &RequestHead, form: &Form) -> Result<Rc<OauthClient>, TokenError> {
        let authorization =
            head.authorization().map_err(|_| TokenError::InvalidRequest("The header authorization is repeated."))?;
        match (authorization, form.get("client_secret"), form.get("client_assertion")) {
            (Some(value), None, None) => {
                let refused = TokenError::InvalidClient { basic: true };
                let (id, secret) = basic_credentials(value).ok_or(refused)?;
                if form.get("client_id").is_some_and(|named| named != id) {
                    return Err(TokenError::InvalidRequest("The client_id in the body differs from the one in the header."));
                }
                self.by_secret(&id, &secret, refused)
            }
            (None, Some(secret), None) => {
                let id = form.get("client_id").ok_or(TokenError::InvalidRequest("The parameter client_id is required."))?;
                self.by_secret(id, secret, TokenError::InvalidClient { basic: false })
            }
            (None, None, Some(assertion)) => {
                if form.get("client_assertion_type") != Some(JWT_BEARER) {
                    return Err(TokenError::InvalidRequest("The parameter client_assertion_type is missing or unknown."));
                }
                self.by_assertion(assertion, form.get("client_id"))
            }
            (None, None, None) => Err(TokenError::InvalidClient { basic: false }),
            _ => Err(TokenError::InvalidRequest("Use only one method of client authentication.")),
        }
    }

    /// Wrong secrets are counted by client id. After too many of them, the client must wait. Ids that do not exist and clients
    /// without a secret are counted too: the answer must not reveal which ids exist.
    fn by_secret(&mut self, id: &str, secret: &str, refused: TokenError) -> Result<Rc<OauthClient>, TokenError> {
        if !is_record_id(id) {
            return Err(refused); // No client has such an id, so it is not counted and takes no memory.
        }
        if let Some(wait) = self.attempts.wait(id, self.now) {
            return Err(TokenError::TooManyAttempts(wait));
        }
        let client = self.policy.oauth_client(id, self.host);
        // An unknown id costs as much as a known one.
        let is_proven = oauth_client::is_secret(client.as_ref().map_or(&[], |client| &client.secrets), secret);
        client.filter(|_| is_proven).ok_or_else(|| {
            self.attempts.failed(id, self.now);
            refused
        })
    }

    /// Authenticates a client by its assertion, RFC 7523 §3. The audience is the issuer or the endpoint, as in the update
    /// of the RFC (draft-ietf-oauth-rfc7523bis).
    ///
    /// Failed assertions are not counted, and wrong secrets do not delay assertions. A signature cannot be guessed, so a delay
    /// would protect nothing. It would let anybody who knows a client id keep the client from getting tokens.
    fn by_assertion(&self, assertion: &str, named: Option<&str>) -> Result<Rc<OauthClient>, TokenError> {
        let refused = TokenError::InvalidClient { basic: false };
        let jws = CompactJws::parse(assertion).map_err(|_| refused)?;
        let id = claims::issuer(jws.claims()).map_err(|_| refused)?;
        let is_own = claims::subject(jws.claims()).is_ok_and(|sub| sub == id) && named.is_none_or(|named| named == id);
        if !is_own || !is_record_id(id) {
            return Err(refused);
        }
        let client = self.policy.oauth_client(id, self.host);
        client.filter(|client| self.is_proven(jws, client)).ok_or(refused)
    }

    fn is_proven(&self, jws: CompactJws<'_>, client: &OauthClient) -> bool {
        let gateway = &self.config.gateway;
        let audiences = [gateway.origin.as_str().into(), format!("{}{}", gateway.origin, gateway.token_path).into()];
        let accepted = [Type::Untyped, Type::Named("jwt"), Type::Named("client-authentication+jwt")];
        let (Ok(expires_at), Some(jwks)) = (self.assertion_ends(jws.claims()), &client.jwks) else { return false };
        if jws.check_type(&accepted).is_err() || claims::check_audience_url(jws.claims(), &audiences).is_err() {
            return false;
        }
        let keys: Vec<_> = jwks.candidates(jws.key_hint()).collect();
        let Some(verified) = signature::verify(&jws, keys, self.host) else { return false };
        let Ok(jti) = claims::id(verified.claims()) else { return false };
        !jti.is_empty() && Use::new(&client.id, jti, self.now, expires_at, self.longest_assertion()).is_first(self.host)
    }

    /// The time from which an assertion is refused: its `exp`, but at most [`MAX_ASSERTION_LIFETIME`] after its `iat`.
    /// Some clients set `exp` far ahead (RFC 7523 §3 items 4 and 6).
    fn assertion_ends(&self, claims: &Map<String, Value>) -> Result<UnixTime, Reason> {
        let skew = self.config.tokens.clock_skew;
        let expires_at = claims::check_times(claims, self.now, skew)?.until;
        let lifetime_from = |moment: UnixTime| moment.plus(MAX_ASSERTION_LIFETIME).plus(skew);
        let ends = claims::issued_at(claims).map_or(expires_at, |issued_at| expires_at.min(lifetime_from(issued_at)));
        // `iat` itself may be ahead by the skew.
        let is_short = self.now < ends && ends <= self.now.plus(self.longest_assertion());
        if is_short { Ok(ends) } else { Err(Reason::TokenExpired) }
    }

    /// Maximum time from now to the end of an assertion.
    fn longest_assertion(&self) -> Duration {
        let skew = self.config.tokens.clock_skew;
        MAX_ASSERTION_LIFETIME.saturating_add(skew).saturating_add(skew)
    }

    /// The `aud` of the token: the resources that the client names (RFC 8707 §2), without repetition. If it names none, the
    /// endpoint of its org.
    fn audiences(&self, client: &OauthClient, named: &[String]) -> Result<Vec<String>, TokenError> {
        let gateway = &self.config.gateway;
        if named.is_empty() {
            return Ok(vec![gateway.resource_url(&Resource { org: client.org.clone(), connector: None })]);
        }
        let audience = |text: &String| {
            let resource = gateway.resource_of_url(text).filter(|resource| resource.org == client.org);
            resource.map(|resource| gateway.resource_url(&resource)).ok_or(TokenError::InvalidTarget)
        };
        let audiences = named.iter().map(audience).collect::<Result<Vec<_>, _>>()?;
        let mut seen = HashSet::new();
        Ok(audiences.into_iter().filter(|audience| seen.insert(audience.clone())).collect())
    }
}

/// The scopes that the client asks for and holds (RFC 6749 §3.3). If it asks for none, all that it holds.
fn granted(client: &OauthClient, asked: Option<&str>) -> Result<ScopeSet, TokenError> {
    let granted = match asked {
        None => client.scopes.clone(),
        Some(text) => client.scopes.cut_to(&scope::parse_words(text)),
    };
    if granted.is_empty() { Err(TokenError::InvalidScope) } else { Ok(granted) }
}

/// The user-id and password of HTTP Basic. Each of them is form-urlencoded (RFC 6749 §2.3.1).
fn basic_credentials(value: &[u8]) -> Option<(String, String)> {
    let (scheme, encoded) = value.split_at_checked(b"Basic ".len())?;
    if !scheme.eq_ignore_ascii_case(b"Basic ") {
        return None;
    }
    let decoded = BASE64_STANDARD.decode(encoded.trim_ascii()).ok()?;
    let (id, secret) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    // Clients that do not encode are accepted too: no id or secret that Settings generates contains `+` or `%`.
    let plain = |text: &str| Some(percent_decode_str(&text.replace('+', " ")).decode_utf8().ok()?.into_owned());
    Some((plain(id)?, plain(secret)?))
}

/// The parameters of the body. A parameter without a value counts as omitted, RFC 6749 §3.2.
struct Form {
    parameters: HashMap<String, String>,
    /// The parameter `resource`, the only one that may be repeated (RFC 8707 §2).
    resources: Vec<String>,
}

impl Form {
    fn read(head: &RequestHead, body: &[u8]) -> Result<Self, TokenError> {
        if !head.query().is_empty() {
            // RFC 6749 §2.3.1: credentials must not be in the URI. Logs would keep them.
            return Err(TokenError::InvalidRequest("Send parameters in the body, not in the query."));
        }
        if !head.has_media_type("application/x-www-form-urlencoded") {
            return Err(TokenError::InvalidRequest("The content-type must be application/x-www-form-urlencoded."));
        }
        if body.len() > MAX_BODY_LENGTH {
            return Err(TokenError::BodyTooLong);
        }
        let (mut parameters, mut resources) = (HashMap::new(), Vec::new());
        for (name, value) in form_urlencoded::parse(body) {
            if name == RESOURCE {
                resources.extend(Some(value.into_owned()).filter(|value| !value.is_empty()));
            } else if parameters.insert(name.into_owned(), value.into_owned()).is_some() {
                return Err(TokenError::InvalidRequest("A parameter is repeated."));
            }
        }
        parameters.retain(|_, value| !value.is_empty());
        Ok(Self { parameters, resources })
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }
}

#[cfg(test)]
mod tests;
