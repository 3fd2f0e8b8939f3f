//! `POST /oauth/token`: RFC 6749 §4.4 with the client authentication of §2.3.1 and RFC 7523, and RFC 8707.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::percent_decode_str;

use super::access_token::AccessTokenClaims;
use super::attempts::Attempts;
use super::client::{self, OauthClient};
use super::replay::Use;
use crate::config::Config;
use crate::denial::LocalReply;
use crate::host::Host;
use crate::jose::claims;
use crate::jose::compact::{CompactJws, Type};
use crate::jose::signature;
use crate::names::is_record_id;
use crate::path::Resource;
use crate::policy::Policy;
use crate::request::RequestHead;
use crate::scope::{self, ScopeSet};
use crate::time::UnixTime;

/// The longest body that is read. A client assertion is the longest thing in it, and below 4 KiB.
pub const MAX_BODY_LENGTH: usize = 16 * 1024;

const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// How far ahead an assertion may expire: as long is its `jti` remembered.
const MAX_ASSERTION_LIFETIME: Duration = Duration::from_secs(600);

/// Why no token is issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// RFC 6749 §5.2 `invalid_request`, and what is wrong.
    InvalidRequest(&'static str),
    /// `invalid_client`, after Basic or not. It does not tell whether the id, the secret or the assertion was wrong.
    InvalidClient {
        /// Whether the client tried HTTP Basic, and is answered in kind.
        basic: bool,
    },
    /// `unsupported_grant_type`
    UnsupportedGrantType,
    /// `invalid_scope`
    InvalidScope,
    /// RFC 8707 §2 `invalid_target`
    InvalidTarget,
    /// This client id failed too often; again after this time.
    TooManyAttempts(Duration),
    /// The body is over [`MAX_BODY_LENGTH`].
    BodyTooLong,
    /// No whole body came in time.
    BodyTimeout,
    /// The method is not POST.
    MethodNotAllowed,
    /// The token could not be signed.
    SigningFailed,
}

impl TokenError {
    /// The word for the log and the metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::InvalidRequest(_) => "invalid_request",
            Self::InvalidClient { .. } => "invalid_client",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::InvalidScope => "invalid_scope",
            Self::InvalidTarget => "invalid_target",
            Self::TooManyAttempts(_) => "too_many_attempts",
            Self::BodyTooLong => "body_too_long",
            Self::BodyTimeout => "body_timeout",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::SigningFailed => "signing_failed",
        }
    }

    /// The answer, RFC 6749 §5.2.
    pub fn reply(self) -> LocalReply {
        let (status, error, description) = match self {
            Self::InvalidRequest(description) => (400, "invalid_request", description),
            Self::InvalidClient { .. } => (401, "invalid_client", "The client is unknown or did not prove itself."),
            Self::UnsupportedGrantType => (400, "unsupported_grant_type", "Only client_credentials is granted here."),
            Self::InvalidScope => (400, "invalid_scope", "The client holds none of these scopes."),
            Self::InvalidTarget => (400, "invalid_target", "The resource is not one of this client's org."),
            Self::TooManyAttempts(_) => (429, "rate_limited", "Too many failed attempts of this client. Try again later."),
            Self::BodyTooLong => (413, "invalid_request", "The body is too long."),
            Self::BodyTimeout => (408, "invalid_request", "The body did not arrive in time."),
            Self::MethodNotAllowed => (405, "invalid_request", "Use POST."),
            Self::SigningFailed => (503, "temporarily_unavailable", "No token can be signed now. Try again."),
        };
        let mut reply =
            no_store(status, serde_json::json!({ "error": error, "error_description": description, "reason": self.word() }));
        match self {
            Self::InvalidClient { basic: true } => {
                reply.headers.push(("www-authenticate", r#"Basic realm="apexmcp""#.to_owned()))
            }
            Self::TooManyAttempts(wait) => {
                reply.headers.push(("retry-after", wait.as_millis().div_ceil(1000).max(1).to_string()))
            }
            Self::MethodNotAllowed => reply.headers.push(("allow", "POST".to_owned())),
            Self::SigningFailed => reply.headers.push(("retry-after", "1".to_owned())),
            _ => {}
        }
        reply
    }
}

/// RFC 6749 §5.1: what stands here must not be kept by a cache.
fn no_store(status: u32, body: serde_json::Value) -> LocalReply {
    let headers = [("content-type", "application/json"), ("cache-control", "no-store"), ("pragma", "no-cache")];
    LocalReply { status, headers: headers.map(|(name, value)| (name, value.to_owned())).into(), body: body.to_string() }
}

/// Everything by which a request is answered.
pub struct TokenEndpoint<'e> {
    /// The configuration.
    pub config: &'e Config,
    /// The clients and the signing keys.
    pub policy: &'e Policy,
    /// Who failed how often.
    pub attempts: &'e mut Attempts,
    /// Cryptography and shared memory.
    pub host: &'e dyn Host,
    /// The present.
    pub now: UnixTime,
}

impl<'e> TokenEndpoint<'e> {
    /// Issues a token for the request of `head` and `body`.
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
        let scope = granted(client, form.get("scope"))?.to_string();
        let audience = self.audience(client, form.get("resource"))?;

        let key = self.policy.signing_keys().first().ok_or(TokenError::SigningFailed)?;
        let jti = hex::encode(self.host.random().ok_or(TokenError::SigningFailed)?);
        let ttl = self.config.tokens.ttl;
        let claims = AccessTokenClaims {
            iss: &self.config.gateway.origin,
            sub: &client.id,
            client_id: &client.id,
            aud: &audience,
            iat: self.now.as_secs(),
            exp: self.now.plus(ttl).as_secs(),
            jti: &jti,
            scope: &scope,
        };
        let token = self.host.sign(key, &claims).ok_or(TokenError::SigningFailed)?;
        let body =
            serde_json::json!({ "access_token": token, "token_type": "Bearer", "expires_in": ttl.as_secs(), "scope": scope });
        Ok(no_store(200, body))
    }

    /// RFC 6749 §2.3: exactly one way of authentication.
    fn authenticate(&mut self, head: &RequestHead, form: &Form) -> Result<&'e OauthClient, TokenError> {
        let authorization =
            head.authorization().map_err(|_| TokenError::InvalidRequest("The header authorization is repeated."))?;
        match (authorization, form.get("client_secret"), form.get("client_assertion")) {
            (Some(value), None, None) => {
                let refused = TokenError::InvalidClient { basic: true };
                let (id, secret) = basic_credentials(value).ok_or(refused)?;
                if form.get("client_id").is_some_and(|named| named != id) {
                    return Err(TokenError::InvalidRequest("The client_id differs from that of the header."));
                }
                self.by_secret(&id, &secret, refused)
            }
            (None, Some(secret), None) => {
                let id = form.get("client_id").ok_or(TokenError::InvalidRequest("The parameter client_id is required."))?;
                self.by_secret(id, secret, TokenError::InvalidClient { basic: false })
            }
            (None, None, Some(assertion)) => {
                if form.get("client_assertion_type") != Some(JWT_BEARER) {
                    return Err(TokenError::InvalidRequest("The client_assertion_type is missing or unknown."));
                }
                self.by_assertion(assertion, form.get("client_id"))
            }
            (None, None, None) => Err(TokenError::InvalidClient { basic: false }),
            _ => Err(TokenError::InvalidRequest("Use one way of client authentication.")),
        }
    }

    fn by_secret(&mut self, id: &str, secret: &str, refused: TokenError) -> Result<&'e OauthClient, TokenError> {
        self.listen_to(id, refused)?;
        let client = self.policy.oauth_client(id);
        // An unknown id costs as much as a known one.
        let is_proven = client::is_secret(client.map_or(&[], |client| &client.secrets), secret);
        self.settle(id, client.filter(|_| is_proven), refused)
    }

    /// RFC 7523 §3, with the audience of its update (draft-ietf-oauth-rfc7523bis): the issuer or the endpoint.
    fn by_assertion(&mut self, assertion: &str, named: Option<&str>) -> Result<&'e OauthClient, TokenError> {
        let refused = TokenError::InvalidClient { basic: false };
        let jws = CompactJws::parse(assertion).map_err(|_| refused)?;
        let id = claims::issuer(jws.claims()).map_err(|_| refused)?.to_owned();
        self.listen_to(&id, refused)?;
        let client = self.policy.oauth_client(&id).filter(|client| {
            let is_own = claims::subject(jws.claims()).is_ok_and(|sub| sub == id) && named.is_none_or(|named| named == id);
            is_own && self.is_proven(jws, client)
        });
        self.settle(&id, client, refused)
    }

    fn is_proven(&self, jws: CompactJws<'_>, client: &OauthClient) -> bool {
        let gateway = &self.config.gateway;
        let audiences = [gateway.origin.as_str().into(), format!("{}{}", gateway.origin, gateway.token_path).into()];
        let accepted = [Type::Untyped, Type::Named("jwt"), Type::Named("client-authentication+jwt")];
        let expires_at = claims::check_times(jws.claims(), self.now, self.config.tokens.clock_skew);
        let (Ok(expires_at), Some(jwks)) = (expires_at, &client.jwks) else { return false };
        let latest = self.now.plus(MAX_ASSERTION_LIFETIME).plus(self.config.tokens.clock_skew);
        if jws.check_type(&accepted).is_err() || claims::check_audience(jws.claims(), &audiences).is_err() || expires_at > latest
        {
            return false;
        }
        let keys: Vec<_> = jwks.candidates(jws.kid()).collect();
        let Some(verified) = signature::verify(jws, keys, self.host) else { return false };
        let jti = claims::id(verified.claims());
        !jti.is_empty() && self.host.is_first_use(&Use::new(&client.id, jti, self.now, expires_at))
    }

    fn listen_to(&mut self, id: &str, refused: TokenError) -> Result<(), TokenError> {
        if !is_record_id(id) {
            return Err(refused); // No client has such an id, and none is to be remembered.
        }
        self.attempts.wait(id, self.now).map_or(Ok(()), |wait| Err(TokenError::TooManyAttempts(wait)))
    }

    fn settle<'c>(
        &mut self,
        id: &str,
        proven: Option<&'c OauthClient>,
        refused: TokenError,
    ) -> Result<&'c OauthClient, TokenError> {
        proven.ok_or_else(|| {
            self.attempts.failed(id, self.now);
            refused
        })
    }

    /// The `aud` of the token: the resource that the client names (RFC 8707 §2), else its org's endpoint.
    fn audience(&self, client: &OauthClient, named: Option<&str>) -> Result<String, TokenError> {
        let gateway = &self.config.gateway;
        match named {
            None => Ok(gateway.resource_url(&Resource { org: client.org.clone(), connector: None })),
            Some(url) => url
                .strip_prefix(gateway.origin.as_str())
                .and_then(|path| gateway.mcp_path.resource(path.as_bytes()))
                .filter(|resource| resource.org == client.org)
                .map(|resource| gateway.resource_url(&resource))
                .ok_or(TokenError::InvalidTarget),
        }
    }
}

/// The scopes granted of those asked for (RFC 6749 §3.3): all that the client holds where it asks for none.
fn granted(client: &OauthClient, asked: Option<&str>) -> Result<ScopeSet, TokenError> {
    let granted = match asked {
        None => client.scopes.clone(),
        Some(text) => client.scopes.cut_to(&scope::parse_words(text)),
    };
    if granted.is_empty() { Err(TokenError::InvalidScope) } else { Ok(granted) }
}

/// The user-id and password of Basic, each form-urlencoded within (RFC 6749 §2.3.1).
fn basic_credentials(value: &[u8]) -> Option<(String, String)> {
    let (scheme, encoded) = value.split_at_checked(b"Basic ".len())?;
    if !scheme.eq_ignore_ascii_case(b"Basic ") {
        return None;
    }
    let decoded = BASE64_STANDARD.decode(encoded.trim_ascii()).ok()?;
    let (id, secret) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    let plain = |text| percent_decode_str(text).decode_utf8().ok().map(std::borrow::Cow::into_owned);
    Some((plain(id)?, plain(secret)?))
}

/// The parameters of the body. One without a value is left out, RFC 6749 §3.2.
struct Form(HashMap<String, String>);

impl Form {
    fn read(head: &RequestHead, body: &[u8]) -> Result<Self, TokenError> {
        if !head.query().is_empty() {
            // RFC 6749 §2.3.1: credentials never stand in the URI, where logs would keep them.
            return Err(TokenError::InvalidRequest("Send parameters in the body, not in the query."));
        }
        if !head.has_media_type("application/x-www-form-urlencoded") {
            return Err(TokenError::InvalidRequest("The content-type must be application/x-www-form-urlencoded."));
        }
        if body.len() > MAX_BODY_LENGTH {
            return Err(TokenError::BodyTooLong);
        }
        let mut parameters = HashMap::new();
        for (name, value) in form_urlencoded::parse(body) {
            if parameters.insert(name.into_owned(), value.into_owned()).is_some() {
                return Err(TokenError::InvalidRequest("A parameter is repeated."));
            }
        }
        parameters.retain(|_, value| !value.is_empty());
        Ok(Self(parameters))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}
