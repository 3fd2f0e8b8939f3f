//! Errors of the management API (RFC 9457).

use axum::Json;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::failure::{Failure, Reason};
use crate::serve::log;

/// The beginning of every `type`. The reason's code follows.
const TYPES: &str = "urn:apexmcp:problem:";
/// The media type of a problem.
pub(super) const MEDIA_TYPE: &str = "application/problem+json";

/// Why a request failed (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    /// `urn:apexmcp:problem:` and a code of a closed list.
    #[schema(example = "urn:apexmcp:problem:not_found")]
    pub r#type: String,
    /// What is wrong with every request of this type.
    #[schema(example = "No such record")]
    pub title: &'static str,
    /// The status of the answer.
    #[schema(example = 404)]
    pub status: u16,
    /// What is wrong with this request.
    pub detail: String,
    /// The member of the request that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// After how many seconds another attempt can succeed.
    #[serde(skip)]
    pub retry_after: Option<u64>,
}

/// The status and the title of a reason.
fn kind(reason: Reason) -> (StatusCode, &'static str) {
    match reason {
        Reason::InvalidArgument => (StatusCode::UNPROCESSABLE_ENTITY, "A value is not allowed"),
        Reason::Unauthenticated => (StatusCode::UNAUTHORIZED, "No valid admin token"),
        Reason::RequestMalformed => (StatusCode::BAD_REQUEST, "The request cannot be read"),
        Reason::RequestTooLong => (StatusCode::PAYLOAD_TOO_LARGE, "The request is too long"),
        Reason::RequestTimeout => (StatusCode::REQUEST_TIMEOUT, "The request was not received in time"),
        Reason::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "This path has no such method"),
        Reason::PreconditionFailed => (StatusCode::PRECONDITION_FAILED, "The record has changed"),
        Reason::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "Too many requests"),
        Reason::IdempotencyKeyReused => (StatusCode::UNPROCESSABLE_ENTITY, "The Idempotency-Key was used for another request"),
        Reason::NotFound => (StatusCode::NOT_FOUND, "No such record"),
        Reason::Forbidden => (StatusCode::FORBIDDEN, "The role of the token does not allow this"),
        Reason::AlreadyExists => (StatusCode::CONFLICT, "A record of this name exists"),
        Reason::Conflict => (StatusCode::CONFLICT, "The state of the record does not allow this"),
        Reason::LimitExceeded => (StatusCode::UNPROCESSABLE_ENTITY, "A limit would be exceeded"),
        Reason::PolicyRefused => (StatusCode::UNPROCESSABLE_ENTITY, "Gateways would refuse the policy"),
        Reason::PrivateAddress => (StatusCode::UNPROCESSABLE_ENTITY, "A URL leads out of the public Internet"),
        Reason::ProviderCheckFailed => (StatusCode::UNPROCESSABLE_ENTITY, "A check of the identity provider failed"),
        Reason::DatabaseBusy => (StatusCode::SERVICE_UNAVAILABLE, "The server is busy"),
        _ => (StatusCode::INTERNAL_SERVER_ERROR, "The server failed"),
    }
}

/// The code of every failure of the server itself. The reason is in the log of the server.
const SERVER_FAILED: &str = "server_failed";

/// The code of a reason.
fn code(reason: Reason) -> &'static str {
    match kind(reason).0 {
        StatusCode::INTERNAL_SERVER_ERROR => SERVER_FAILED,
        _ => reason.code(),
    }
}

/// Every `type`.
pub(super) fn types() -> Vec<String> {
    let mut codes: Vec<&str> = Reason::ALL.iter().map(|reason| code(*reason)).filter(|code| *code != SERVER_FAILED).collect();
    codes.push(SERVER_FAILED);
    codes.into_iter().map(|code| format!("{TYPES}{code}")).collect()
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let (status, title) = kind(failure.reason);
        let detail = if status.is_server_error() && failure.reason != Reason::DatabaseBusy {
            // The line may name files and addresses of this machine.
            log(&failure);
            "the log of apexmcp serve has the reason: try again, or tell your operator".to_owned()
        } else {
            failure.detail()
        };
        let field = failure.field.map(str::to_owned);
        let retry_after = failure.retry_after.or_else(|| (status == StatusCode::SERVICE_UNAVAILABLE).then_some(1));
        Self { r#type: format!("{TYPES}{}", code(failure.reason)), title, status: status.as_u16(), detail, field, retry_after }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.retry_after;
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}
