//! The parts of a request to the management API: the admin token, the conditions, the query and the body.

use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, IF_MATCH};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;
use utoipa::IntoParams;

use super::Api;
use super::problem::Problem;
use crate::access::Actor;
use crate::clock::Moment;
use crate::failure::{Failure, Reason};
use crate::records::admin_token;
use crate::secret::sha256;
use crate::sql::{Range, Sql};
use crate::throttle::{Caller, Throttle};

/// Maximum length of a request's body, in bytes. A JWK Set of a client is the longest.
const MAX_BODY_LENGTH: usize = 256 << 10;
/// How long a client may take to send a body.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum length of an `Idempotency-Key`, in bytes.
const MAX_IDEMPOTENCY_KEY_LENGTH: usize = 255;
/// Maximum number of records in one answer, and the number without `limit`.
pub(crate) const MAX_PAGE: u32 = 1_000;
const PAGE: u32 = 100;

/// The headers of a request that every operation heeds.
#[derive(Debug)]
pub(super) struct Call {
    /// The method and the path.
    pub(super) what: String,
    token: String,
    pub(super) caller: Caller,
    if_match: Vec<String>,
    pub(super) idempotency_key: Option<String>,
}

/// The only value of a header. A repeated header is ambiguous, and refused.
fn only(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Failure> {
    let mut values = headers.get_all(name).iter();
    let malformed = || Failure::new(Reason::RequestMalformed, format!("the header {name} must be there once, in visible ASCII"));
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(|text| Some(text.to_owned())).map_err(|_| malformed()),
        _ => Err(malformed()),
    }
}

impl Call {
    fn read(parts: &Parts, throttle: &Arc<Throttle>) -> Result<Self, Failure> {
        let unauthenticated = || {
            let line = "the request needs 'Authorization: Bearer' with an admin token, which is neither revoked nor expired";
            Failure::new(Reason::Unauthenticated, line)
        };
        let credential = only(&parts.headers, &AUTHORIZATION).map_err(|_| unauthenticated())?.unwrap_or_default();
        let token = credential.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer "));
        let (_, token) = token.ok_or_else(unauthenticated)?;
        let idempotency_key = only(&parts.headers, &HeaderName::from_static("idempotency-key"))?;
        if idempotency_key.as_ref().is_some_and(|key| key.is_empty() || key.len() > MAX_IDEMPOTENCY_KEY_LENGTH) {
            let line = format!("an Idempotency-Key must have 1 to {MAX_IDEMPOTENCY_KEY_LENGTH} characters");
            return Err(Failure::new(Reason::RequestMalformed, line));
        }
        let if_match = only(&parts.headers, &IF_MATCH)?;
        let if_match = if_match.iter().flat_map(|tags| tags.split(',')).map(|tag| tag.trim().to_owned()).collect();
        // The other methods can be repeated without it.
        let idempotency_key = idempotency_key.filter(|_| parts.method == Method::POST);
        let what = format!("{} {}", parts.method, parts.uri.path());
        let caller = throttle.caller(token, &parts.headers, &parts.extensions);
        Ok(Self { what, token: token.to_owned(), caller, if_match, idempotency_key })
    }

    /// The caller.
    ///
    /// # Errors
    /// If nobody has the token.
    pub(super) fn actor(&self, sql: &dyn Sql, now: Moment) -> Result<Actor, Failure> {
        let Some(owner) = admin_token::owner(sql, &self.token, now)? else {
            self.caller.failed();
            let line = "the admin token is unknown, revoked or expired: create another one";
            return Err(Failure::new(Reason::Unauthenticated, line));
        };
        self.caller.passed();
        Ok(owner)
    }

    /// Checks the condition of a change (RFC 9110 §13.1.1). `record` is the present state.
    ///
    /// # Errors
    /// If `If-Match` has no tag of this state.
    pub(super) fn check(&self, record: &Value) -> Result<(), Failure> {
        let tag = etag(record);
        if self.if_match.is_empty() || self.if_match.iter().any(|known| *known == tag || known == "*") {
            return Ok(());
        }
        Err(Failure::new(Reason::PreconditionFailed, "the record changed since you read it: read it again, then decide anew"))
    }
}

/// A strong validator of a record: the hash of its JSON (RFC 9110 §8.8.3).
pub(super) fn etag(record: &Value) -> String {
    let hash: String = sha256(&record.to_string()).chars().take(32).collect();
    format!("\"{hash}\"")
}

impl FromRequestParts<Arc<Api>> for Call {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let call = Self::read(parts, &api.throttle)?;
        call.caller.check()?;
        Ok(call)
    }
}

/// The body of a request, in JSON.
#[derive(Debug)]
pub(super) struct Body<T> {
    pub(super) value: T,
    /// The SHA-256 of the bytes.
    pub(super) digest: String,
}

impl<T: DeserializeOwned> FromRequest<Arc<Api>> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        // The server checks the token before it reads the body.
        api.read(Call::read(&parts, &api.throttle)?, |_, _| Ok(())).await?;
        let media_type = only(&parts.headers, &CONTENT_TYPE)?.unwrap_or_default();
        let is_json = media_type.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
        let late = |_| Failure::new(Reason::RequestTimeout, format!("the body took over {} seconds", BODY_TIMEOUT.as_secs()));
        let long = |_| Failure::new(Reason::RequestTooLong, format!("the body must have at most {MAX_BODY_LENGTH} bytes"));
        let bytes = timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY_LENGTH)).await.map_err(late)?.map_err(long)?;
        if !is_json && !bytes.is_empty() {
            return Err(Failure::new(Reason::RequestMalformed, "the body must have the Content-Type application/json").into());
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| Failure::new(Reason::RequestMalformed, "the body is not UTF-8"))?;
        // PostgreSQL cannot store it.
        if text.contains("\\u0000") {
            return Err(Failure::new(Reason::RequestMalformed, "the body contains the character U+0000").into());
        }
        // serde would also read an array as an object. Only operations with optional members read nothing.
        let text = match text.trim() {
            // Operations whose body may be missing also take null.
            "" => "null",
            "null" => text,
            object if object.starts_with('{') => text,
            _ => return Err(Failure::new(Reason::RequestMalformed, "the body must be a JSON object").into()),
        };
        let mut reader = serde_json::Deserializer::from_str(text);
        let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let (path, why) = (error.path().to_string(), error.inner().to_string());
            let detail = if path == "." { why } else { format!("{path}: {why}") };
            let problem = Problem::from(Failure::new(Reason::RequestMalformed, detail));
            Problem { field: Some(path).filter(|path| path != "."), ..problem }
        })?;
        reader.end().map_err(|error| Failure::new(Reason::RequestMalformed, error.to_string()))?;
        Ok(Self { value, digest: sha256(text) })
    }
}

/// Which part of a list is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct PageQuery {
    /// Maximum number of records: 1 to 1,000.
    #[serde(default = "page")]
    #[param(default = 100, minimum = 1, maximum = 1000)]
    limit: u32,
    /// `next` of the page before.
    cursor: Option<String>,
}

pub(super) fn page() -> u32 {
    PAGE
}

/// The wanted part of a list.
#[derive(Debug)]
pub(super) struct Page(pub(super) Range);

/// The query of a request.
///
/// # Errors
/// If a parameter is unknown or has a wrong value.
pub(super) fn query<T: DeserializeOwned>(parts: &Parts) -> Result<T, Failure> {
    let read = Query::<T>::try_from_uri(&parts.uri);
    read.map(|Query(query)| query).map_err(|error| Failure::new(Reason::RequestMalformed, error.body_text()))
}

impl<S: Sync> FromRequestParts<S> for Page {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let PageQuery { limit, cursor } = query(parts)?;
        Ok(Self(range(limit, cursor.as_deref())?))
    }
}

/// The range of a list that `limit` and `cursor` describe.
///
/// # Errors
/// If one of them is wrong.
pub(super) fn range(limit: u32, cursor: Option<&str>) -> Result<Range, Failure> {
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Failure::of("limit", format!("must be 1 to {MAX_PAGE}")));
    }
    let wrong = || Failure::of("cursor", "must be the next of an answer to the same request");
    // A client may fill a template with nothing.
    let after =
        cursor.filter(|cursor| !cursor.is_empty()).map(|cursor| Range::from_cursor(cursor).ok_or_else(wrong)).transpose()?;
    Ok(Range { after: after.unwrap_or_default(), limit, ..Range::default() })
}

/// A moment in a request.
pub(super) fn moment(field: &'static str, text: Option<&str>) -> Result<Option<Moment>, Failure> {
    text.map(|text| Moment::parse(text).map_err(|_| Failure::of(field, "must be a timestamp such as 2027-01-01T00:00:00Z")))
        .transpose()
}
