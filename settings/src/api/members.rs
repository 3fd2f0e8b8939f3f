//! `/orgs/{org}/members`

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::call::{Body, Call, query};
use super::problem::Problem;
use super::{Items, Made, Path, Shared};
use crate::records::member::{self, Member};

/// The members of an org, who may use the console for it.
#[utoipa::path(get, path = "/orgs/{org}/members", params(("org" = String, Path, description = "The name of the org")), responses((status = 200, body = Items<Member>)), extensions(("x-role" = json!("viewer"))))]
pub(super) async fn list(State(api): Shared, call: Call, Path(org): Path<String>) -> Result<Json<Items<Member>>, Problem> {
    Ok(Json(api.read(call, move |sql, actor| Ok(Items::all(member::list(sql, actor, &org)?))).await?))
}

/// A member of an org.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewMember {
    /// The address.
    #[schema(min_length = 3, max_length = 254)]
    email: String,
    /// `admin` or `viewer`.
    #[schema(pattern = "^(admin|viewer)$")]
    role: String,
}

/// Adds a member. An address that is there already is refused.
#[utoipa::path(post, path = "/orgs/{org}/members", params(("org" = String, Path, description = "The name of the org")), request_body = NewMember, responses((status = 201, body = Member)), extensions(("x-role" = json!("admin"))))]
pub(super) async fn add(
    State(api): Shared,
    call: Call,
    Path(org): Path<String>,
    body: Body<NewMember>,
) -> Result<Response, Problem> {
    api.change(call, body.digest, move |change, actor, _| {
        Ok(Made::created(member::add(change, actor, &org, &body.value.email, &body.value.role)?))
    })
    .await
}

/// Changes the role of a member, which applies to open sessions, too.
#[utoipa::path(put, path = "/orgs/{org}/members", params(("org" = String, Path, description = "The name of the org")), request_body = NewMember, responses((status = 200, body = Member)), extensions(("x-role" = json!("admin"))))]
pub(super) async fn change_role(
    State(api): Shared,
    call: Call,
    Path(org): Path<String>,
    body: Body<NewMember>,
) -> Result<Response, Problem> {
    api.change(call, body.digest, move |change, actor, call| {
        call.check(&json!(member::to_change(change, actor, &org, &body.value.email)?))?;
        Ok(Made::ok(member::change_role(change, actor, &org, &body.value.email, &body.value.role)?))
    })
    .await
}

/// Which member is meant.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// The address of the member.
    email: String,
}

impl<S: Sync> FromRequestParts<S> for Wanted {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Ok(query(parts)?)
    }
}

/// Removes a member, whose sessions end.
#[utoipa::path(delete, path = "/orgs/{org}/members", params(("org" = String, Path, description = "The name of the org"), Wanted), responses((status = 204)), extensions(("x-role" = json!("admin"))))]
pub(super) async fn remove(State(api): Shared, call: Call, Path(org): Path<String>, wanted: Wanted) -> Result<Response, Problem> {
    api.change(call, String::new(), move |change, actor, _| {
        member::remove(change, actor, &org, &wanted.email)?;
        Ok(Made::deleted())
    })
    .await
}
