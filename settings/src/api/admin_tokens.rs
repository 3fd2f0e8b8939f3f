//! `/admin-tokens`

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use super::call::{Body, Call, Page, PageQuery, moment};
use super::problem::Problem;
use super::{Items, Made, Path, Shared};
use crate::access::Role;
use crate::json::present;
use crate::records::admin_token::{self, AdminToken, NewToken};

/// All admin tokens, the oldest first, including revoked ones.
#[utoipa::path(get, path = "/admin-tokens", params(PageQuery), responses((status = 200, body = Items<AdminToken>)), extensions(("x-role" = json!("operator"))))]
pub(super) async fn list(State(api): Shared, call: Call, Page(range): Page) -> Result<Json<Items<AdminToken>>, Problem> {
    let found = api.read(call, move |sql, actor| {
        let found = admin_token::list(sql, actor, &range)?;
        Ok(Items::of(found, |token| [token.created_at.clone(), token.id.clone()]))
    });
    Ok(Json(found.await?))
}

/// How long a token is valid if the request does not say it.
const LIFE: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// A new admin token.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewAdminToken {
    /// A name that says what uses the token. The audit log names it.
    #[schema(min_length = 1, max_length = 200)]
    name: String,
    /// `operator`, `admin` or `viewer`.
    #[schema(pattern = "^(operator|admin|viewer)$")]
    role: String,
    /// The org of an admin or a viewer.
    #[serde(default)]
    org: Option<String>,
    /// Absent: in 90 days, or when the token of the request expires. Null: never. No token outlives the one that created it.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Option<String>>,
}

/// A token with its secret, which only this answer has.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it only describes an answer")]
pub(super) struct CreatedToken {
    #[schema(inline)]
    #[serde(flatten)]
    record: AdminToken,
    /// The token itself.
    #[schema(required = false)]
    token: String,
}

/// Creates an admin token. Store it: it cannot be shown again.
#[utoipa::path(post, path = "/admin-tokens", request_body = NewAdminToken, responses((status = 201, body = CreatedToken)), extensions(("x-role" = json!("operator"))))]
pub(super) async fn create(State(api): Shared, call: Call, body: Body<NewAdminToken>) -> Result<Response, Problem> {
    api.change(call, body.digest, move |change, actor, _| {
        let NewAdminToken { name, role, org, expires_at } = &body.value;
        actor.check_operator()?;
        let role = Role::of(role, org.as_deref())?;
        let expires_at = match expires_at {
            Some(text) => moment("expires_at", text.as_deref())?,
            None => {
                let usual = actor.now.plus(LIFE)?;
                Some(actor.expires_at.map_or(usual, |end| end.min(usual)))
            }
        };
        let (record, token) = admin_token::create(change, actor, &NewToken { name, role: &role, expires_at })?;
        Ok(Made::created(record).with("token", Some(token)))
    })
    .await
}

/// One admin token, without its secret.
#[utoipa::path(get, path = "/admin-tokens/{id}", params(("id" = String, Path, description = "The id of the token")), responses((status = 200, body = AdminToken)), extensions(("x-role" = json!("operator"))))]
pub(super) async fn show(State(api): Shared, call: Call, Path(id): Path<String>) -> Result<Response, Problem> {
    api.show(call, move |sql, actor| admin_token::show(sql, actor, &id)).await
}

/// Revokes an admin token immediately.
#[utoipa::path(post, path = "/admin-tokens/{id}/revoke", params(("id" = String, Path, description = "The id of the token")), responses((status = 200, body = AdminToken)), extensions(("x-role" = json!("operator"))))]
pub(super) async fn revoke(State(api): Shared, call: Call, Path(id): Path<String>) -> Result<Response, Problem> {
    api.change(call, String::new(), move |change, actor, call| {
        call.check(&json!(admin_token::show(change, actor, &id)?))?;
        Ok(Made::ok(admin_token::revoke(change, actor, &id)?))
    })
    .await
}
