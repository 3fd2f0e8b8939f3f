//! `/orgs/{org}/keys`

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::call::{Body, Call, moment, page, query, range};
use super::problem::Problem;
use super::{Items, Made, Path, Shared};
use crate::failure::Failure;
use crate::json::present;
use crate::records::api_key::{self, ApiKey, Changes, Filter, NewKey, Rolled, Status};
use crate::records::limits::LimitsBody;
use crate::records::org;
use crate::sql::Range;

/// Which keys are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct KeysQuery {
    /// Only keys with this status.
    #[param(inline)]
    status: Option<Status>,
    /// Only keys whose name contains this text, or whose id or first characters contain it.
    #[serde(default)]
    search: String,
    /// Maximum number of records: 1 to 1,000.
    #[serde(default = "page")]
    #[param(default = 100, minimum = 1, maximum = 1000)]
    limit: u32,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// The wanted keys.
pub(super) struct Wanted(Filter, Range);

impl<S: Sync> FromRequestParts<S> for Wanted {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let KeysQuery { status, search, limit, cursor } = query(parts)?;
        Ok(Self(Filter { status, search }, range(limit, cursor.as_deref())?))
    }
}

/// The API keys of an org, the newest first, including revoked ones.
#[utoipa::path(get, path = "/orgs/{org}/keys", params(("org" = String, Path, description = "The name of the org"), KeysQuery), responses((status = 200, body = Items<ApiKey>)), extensions(("x-role" = json!("viewer"))))]
pub(super) async fn list(
    State(api): Shared,
    call: Call,
    Path(org): Path<String>,
    Wanted(filter, range): Wanted,
) -> Result<Json<Items<ApiKey>>, Problem> {
    let place = call.caller.search(filter.is_search(), &api.pool).await?;
    let usage = Arc::clone(&api.usage);
    let found = api.read(call, move |sql, actor| {
        let _place = place;
        let mut found = api_key::list(sql, actor, &org, &filter, &range)?;
        usage.note_last_used_or_log(&org, &mut found.items);
        Ok(Items::of(found, |key| [key.created_at.clone(), key.id.clone()]))
    });
    Ok(Json(found.await?))
}

/// A new API key.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewApiKey {
    /// A name that says what uses the key.
    #[schema(min_length = 1, max_length = 200)]
    name: String,
    /// The connectors that the key may call. Absent or null: all.
    #[serde(default)]
    connectors: Option<Vec<String>>,
    /// Absent or null: the key never expires.
    #[serde(default)]
    #[schema(format = DateTime)]
    expires_at: Option<String>,
}

/// A key with its secret, which only this answer has.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it only describes an answer")]
pub(super) struct CreatedKey {
    #[schema(inline)]
    #[serde(flatten)]
    record: ApiKey,
    /// The API key itself.
    #[schema(required = false)]
    key: String,
}

/// Creates an API key. Store it: it cannot be shown again.
#[utoipa::path(post, path = "/orgs/{org}/keys", params(("org" = String, Path, description = "The name of the org")), request_body = NewApiKey, responses((status = 201, body = CreatedKey)), extensions(("x-role" = json!("admin"))))]
pub(super) async fn create(
    State(api): Shared,
    call: Call,
    Path(org): Path<String>,
    body: Body<NewApiKey>,
) -> Result<Response, Problem> {
    api.change(call, body.digest, move |change, actor, _| {
        org::require_change(change, actor, &org)?;
        let NewApiKey { name, connectors, expires_at } = &body.value;
        if connectors.as_ref().is_some_and(Vec::is_empty) {
            return Err(Failure::of("connectors", "must name a connector; leave it out for a key that may call all"));
        }
        let connectors = connectors.as_deref().unwrap_or_default();
        let expires_at = moment("expires_at", expires_at.as_deref())?;
        let (record, key) = api_key::create(change, actor, &NewKey { org: &org, name, connectors, expires_at })?;
        Ok(Made::created(record).with("key", Some(key)))
    })
    .await
}

/// One API key, without its secret.
#[utoipa::path(get, path = "/orgs/{org}/keys/{id}", params(("org" = String, Path, description = "The name of the org"), ("id" = String, Path, description = "The id of the key")), responses((status = 200, body = ApiKey)), extensions(("x-role" = json!("viewer"))))]
pub(super) async fn show(State(api): Shared, call: Call, Path((org, id)): Path<(String, String)>) -> Result<Response, Problem> {
    api.show_used(call, org, move |sql, actor, org| api_key::of_org(sql, actor, org, &id)).await
}

/// Changes of an API key. An absent member stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct KeyChanges {
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, nullable = false)]
    name: Option<String>,
    /// The connectors that the key may call. Null: all.
    #[serde(default, deserialize_with = "present")]
    connectors: Option<Option<Vec<String>>>,
    /// Null: the key never expires.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Option<String>>,
    /// Null: unlimited.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<LimitsBody>)]
    limits: Option<Option<LimitsBody>>,
}

/// Changes an API key.
#[utoipa::path(patch, path = "/orgs/{org}/keys/{id}", params(("org" = String, Path, description = "The name of the org"), ("id" = String, Path, description = "The id of the key")), request_body = KeyChanges, responses((status = 200, body = ApiKey)), extensions(("x-role" = json!("admin"))))]
pub(super) async fn update(
    State(api): Shared,
    call: Call,
    Path((org, id)): Path<(String, String)>,
    body: Body<KeyChanges>,
) -> Result<Response, Problem> {
    api.change(call, body.digest, move |change, actor, call| {
        org::require_change(change, actor, &org)?;
        call.check(&json!(api_key::of_org(change, actor, &org, &id)?))?;
        let KeyChanges { name, connectors, expires_at, limits } = body.value;
        let expires_at = expires_at.map(|text| moment("expires_at", text.as_deref())).transpose()?;
        let limits = limits.map(|limits| limits.map(Into::into));
        let changes = Changes { name, connectors, expires_at, limits };
        Ok(Made::ok(api_key::update(change, actor, &id, changes)?))
    })
    .await
}

/// Revokes an API key. Gateways refuse it within a second.
#[utoipa::path(post, path = "/orgs/{org}/keys/{id}/revoke", params(("org" = String, Path, description = "The name of the org"), ("id" = String, Path, description = "The id of the key")), responses((status = 200, body = ApiKey)), extensions(("x-role" = json!("admin"))))]
pub(super) async fn revoke(State(api): Shared, call: Call, Path((org, id)): Path<(String, String)>) -> Result<Response, Problem> {
    api.change(call, String::new(), move |change, actor, call| {
        call.check(&json!(api_key::of_org(change, actor, &org, &id)?))?;
        Ok(Made::ok(api_key::revoke(change, actor, &id)?))
    })
    .await
}

/// How a key is rolled.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Roll {
    /// How long the old key stays valid, such as `24h`. `0s` revokes it.
    #[serde(default = "day")]
    #[schema(default = "24h")]
    overlap: String,
}

fn day() -> String {
    "24h".to_owned()
}

/// Replaces an API key by a new one of the same name, connectors and limits. The old key expires after the overlap.
#[utoipa::path(post, path = "/orgs/{org}/keys/{id}/roll", params(("org" = String, Path, description = "The name of the org"), ("id" = String, Path, description = "The id of the key")), request_body = Option<Roll>, responses((status = 201, body = CreatedKey)), extensions(("x-role" = json!("admin"))))]
pub(super) async fn roll(
    State(api): Shared,
    call: Call,
    Path((org, id)): Path<(String, String)>,
    body: Body<Option<Roll>>,
) -> Result<Response, Problem> {
    api.change(call, body.digest, move |change, actor, call| {
        org::require_change(change, actor, &org)?;
        call.check(&json!(api_key::of_org(change, actor, &org, &id)?))?;
        let overlap = body.value.map_or_else(day, |roll| roll.overlap);
        let overlap = humantime::parse_duration(&overlap);
        let overlap: Duration = overlap.map_err(|_| Failure::of("overlap", "must be a duration such as 24h"))?;
        let Rolled { new, key, .. } = api_key::roll(change, actor, &id, overlap)?;
        Ok(Made::created(new).with("key", Some(key)))
    })
    .await
}
