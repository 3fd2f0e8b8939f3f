//! `/orgs/{org}/limits`

use apexmcp_core::limits::document::Limits;
use axum::extract::State;
use axum::response::Response;
use serde_json::json;

use super::call::{Body, Call};
use super::problem::Problem;
use super::{Made, Path, Shared};
use crate::records::limits::{self, Holder, LimitsBody};

/// The limits of an org. Without members: unlimited.
#[utoipa::path(get, path = "/orgs/{org}/limits", params(("org" = String, Path, description = "The name of the org")), responses((status = 200, body = LimitsBody)), extensions(("x-role" = json!("viewer"))))]
pub(super) async fn show(State(api): Shared, call: Call, Path(org): Path<String>) -> Result<Response, Problem> {
    api.show(call, move |sql, actor| Ok(limits::show(sql, actor, Holder::Org(&org))?.unwrap_or_default())).await
}

/// Replaces the limits of an org. An object without members removes them.
#[utoipa::path(put, path = "/orgs/{org}/limits", params(("org" = String, Path, description = "The name of the org")), request_body = LimitsBody, responses((status = 200, body = LimitsBody)), extensions(("x-role" = json!("operator"))))]
pub(super) async fn replace(
    State(api): Shared,
    call: Call,
    Path(org): Path<String>,
    body: Body<LimitsBody>,
) -> Result<Response, Problem> {
    api.change(call, body.digest, move |change, actor, call| {
        let (holder, wanted) = (Holder::Org(&org), Limits::from(body.value));
        call.check(&json!(limits::show(change, actor, holder)?.unwrap_or_default()))?;
        limits::set(change, actor, holder, Some(&wanted).filter(|wanted| **wanted != Limits::default()))?;
        Ok(Made::ok(wanted))
    })
    .await
}
