//! `/orgs/{org}/revoked-tokens`

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use utoipa::ToSchema;

use super::call::{Body, Call, moment};
use super::problem::Problem;
use super::{Made, Path, Shared};
use crate::failure::{Failure, Reason};
use crate::records::{org, revocation};

/// The tokens to revoke: exactly one of `jti`, `client_id` and `principal`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Revocation {
    /// The `jti` claim of one token.
    jti: Option<String>,
    /// All tokens of this OAuth client.
    client_id: Option<String>,
    /// All tokens of this principal of an identity provider, named as in the access log.
    principal: Option<String>,
    /// Only tokens that were issued before this time. Absent: until now.
    #[schema(format = DateTime)]
    issued_before: Option<String>,
}

/// Revokes tokens before they expire.
#[utoipa::path(post, path = "/orgs/{org}/revoked-tokens", params(("org" = String, Path, description = "The name of the org")), request_body = Revocation, responses((status = 204)), extensions(("x-role" = json!("admin"))))]
pub(super) async fn revoke(
    State(api): Shared,
    call: Call,
    Path(org): Path<String>,
    body: Body<Revocation>,
) -> Result<Response, Problem> {
    api.change(call, body.digest, move |change, actor, _| {
        org::require_change(change, actor, &org)?;
        let Revocation { jti, client_id, principal, issued_before } = body.value;
        let before = moment("issued_before", issued_before.as_deref())?;
        let until = before.map_or_else(|| revocation::until_now(actor), Ok)?;
        match (jti, client_id, principal) {
            (Some(jti), None, None) if before.is_none() => revocation::of_token(change, actor, &org, &jti)?,
            (Some(_), None, None) => return Err(Failure::of("issued_before", "is only for tokens of a client or a principal")),
            (None, Some(client), None) => revocation::of_client(change, actor, &org, &client, until)?,
            (None, None, Some(principal)) => revocation::of_principal(change, actor, &org, &principal, until)?,
            _ => return Err(Failure::new(Reason::InvalidArgument, "pass exactly one of jti, client_id and principal")),
        }
        Ok(Made::deleted())
    })
    .await
}
