//! `/orgs`

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use utoipa::ToSchema;

use super::call::{Body, Call, Page, PageQuery};
use super::problem::Problem;
use super::{Items, Made, Path, Shared};
use crate::clock::Moment;
use crate::records::org::{self, Org};
use crate::serve::log;

/// The orgs that the caller may read.
#[utoipa::path(get, path = "/orgs", params(PageQuery), responses((status = 200, body = Items<Org>)), extensions(("x-role" = json!("viewer"))))]
pub(super) async fn list(State(api): Shared, call: Call, Page(range): Page) -> Result<Json<Items<Org>>, Problem> {
    let found = api.read(call, move |sql, actor| {
        let found = org::list(sql, actor, &range)?;
        Ok(Items::of(found, |org| [org.name.clone(), String::new()]))
    });
    Ok(Json(found.await?))
}

/// A new org.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewOrg {
    /// 1 to 128 of `A-Z a-z 0-9 . _ ~ -`. Its clients call `/mcp/<name>`.
    #[schema(pattern = "^[A-Za-z0-9._~-]{1,128}$")]
    name: String,
}

/// Creates an org.
#[utoipa::path(post, path = "/orgs", request_body = NewOrg, responses((status = 201, body = Org)), extensions(("x-role" = json!("operator"))))]
pub(super) async fn create(State(api): Shared, call: Call, body: Body<NewOrg>) -> Result<Response, Problem> {
    api.change(call, body.digest, move |change, actor, _| Ok(Made::created(org::create(change, actor, &body.value.name)?))).await
}

/// One org.
#[utoipa::path(get, path = "/orgs/{org}", params(("org" = String, Path, description = "The name of the org")), responses((status = 200, body = Org)), extensions(("x-role" = json!("viewer"))))]
pub(super) async fn show(State(api): Shared, call: Call, Path(org): Path<String>) -> Result<Response, Problem> {
    api.show(call, move |sql, actor| org::show(sql, actor, &org)).await
}

/// Deletes an org with all its records. This cannot be undone.
#[utoipa::path(delete, path = "/orgs/{org}", params(("org" = String, Path, description = "The name of the org")), responses((status = 204)), extensions(("x-role" = json!("operator"))))]
pub(super) async fn delete(State(api): Shared, call: Call, Path(org): Path<String>) -> Result<Response, Problem> {
    let (name, usage) = (org.clone(), Arc::clone(&api.usage));
    let deleted = api.change(call, String::new(), move |change, actor, call| {
        call.check(&serde_json::json!(org::show(change, actor, &org)?))?;
        org::delete(change, actor, &org)?;
        Ok(Made::deleted())
    });
    let response = deleted.await?;
    let forgotten = api.pool.run_aside(name.clone(), move || usage.forget(&name, Moment::now()));
    forgotten.await.unwrap_or_else(log);
    Ok(response)
}
