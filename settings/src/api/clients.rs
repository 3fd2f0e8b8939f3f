//! `/orgs/{org}/clients`

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::call::{Body, Call, Page, PageQuery};
use super::problem::Problem;
use super::{Items, Made, Path, Shared};
use crate::json::present;
use crate::records::client::{self, Client, NewClient};

/// The OAuth clients of an org, the newest first, including revoked ones.
#[utoipa::path(get, path = "/orgs/{org}/clients", params(("org" = String, Path, description = "The name of the org"), PageQuery), responses((status = 200, body = Items<Client>)), extensions(("x-role" = json!("viewer"))))]
pub(super) async fn list(
    State(api): Shared,
    call: Call,
    Path(org): Path<String>,
    Page(range): Page,
) -> Result<Json<Items<Client>>, Problem> {
    let usage = Arc::clone(&api.usage);
    let found = api.read(call, move |sql, actor| {
        let mut found = client::list(sql, actor, &org, &range)?;
        usage.note_last_used_or_log(&org, &mut found.items);
        Ok(Items::of(found, |client| [client.created_at.clone(), client.client_id.clone()]))
    });
    Ok(Json(found.await?))
}

/// A new OAuth client.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewOauthClient {
    /// A name that says what the client is for.
    #[schema(min_length = 1, max_length = 200)]
    name: String,
    /// The scopes that its tokens may have.
    #[serde(default = "every_connector")]
    #[schema(default = json!(["mcp:call"]))]
    scopes: Vec<String>,
    /// A JWK Set. The client then authenticates with these keys (`private_key_jwt`) and gets no secret.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    jwks: Option<Value>,
}

fn every_connector() -> Vec<String> {
    vec!["mcp:call".to_owned()]
}

/// A client with its secret, which only this answer has.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it only describes an answer")]
pub(super) struct CreatedClient {
    #[schema(inline)]
    #[serde(flatten)]
    record: Client,
    /// The new secret. A client with its own keys has none.
    client_secret: Option<String>,
}

/// Creates an OAuth client. Store its secret: it cannot be shown again.
#[utoipa::path(post, path = "/orgs/{org}/clients", params(("org" = String, Path, description = "The name of the org")), request_body = NewOauthClient, responses((status = 201, body = CreatedClient)), extensions(("x-role" = json!("admin"))))]
pub(super) async fn create(
    State(api): Shared,
    call: Call,
    Path(org): Path<String>,
    body: Body<NewOauthClient>,
) -> Result<Response, Problem> {
    api.change(call, body.digest, move |change, actor, _| {
        let NewOauthClient { name, scopes, jwks } = &body.value;
        let (record, secret) = client::create(change, actor, &NewClient { org: &org, name, scopes, jwks: jwks.as_ref() })?;
        Ok(Made::created(record).with("client_secret", secret))
    })
    .await
}

/// One OAuth client, without its secrets.
#[utoipa::path(get, path = "/orgs/{org}/clients/{id}", params(("org" = String, Path, description = "The name of the org"), ("id" = String, Path, description = "The id of the client")), responses((status = 200, body = Client)), extensions(("x-role" = json!("viewer"))))]
pub(super) async fn show(State(api): Shared, call: Call, Path((org, id)): Path<(String, String)>) -> Result<Response, Problem> {
    api.show_used(call, org, move |sql, actor, org| client::of_org(sql, actor, org, &id)).await
}

/// Changes of an OAuth client. An absent member stays as it is.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ClientChanges {
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, nullable = false)]
    name: Option<String>,
    /// The scopes that its tokens may have. Tokens that it has keep theirs.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Vec<String>>, nullable = false)]
    scopes: Option<Vec<String>>,
}

/// Changes an OAuth client.
#[utoipa::path(patch, path = "/orgs/{org}/clients/{id}", params(("org" = String, Path, description = "The name of the org"), ("id" = String, Path, description = "The id of the client")), request_body = ClientChanges, responses((status = 200, body = Client)), extensions(("x-role" = json!("admin"))))]
pub(super) async fn update(
    State(api): Shared,
    call: Call,
    Path((org, id)): Path<(String, String)>,
    body: Body<ClientChanges>,
) -> Result<Response, Problem> {
    api.change(call, body.digest, move |change, actor, call| {
        call.check(&json!(client::of_org(change, actor, &org, &id)?))?;
        let ClientChanges { name, scopes } = &body.value;
        Ok(Made::ok(client::update(change, actor, &id, name.as_deref(), scopes.as_deref())?))
    })
    .await
}

/// Revokes an OAuth client and all its tokens. Gateways refuse them within a second.
#[utoipa::path(post, path = "/orgs/{org}/clients/{id}/revoke", params(("org" = String, Path, description = "The name of the org"), ("id" = String, Path, description = "The id of the client")), responses((status = 200, body = Client)), extensions(("x-role" = json!("admin"))))]
pub(super) async fn revoke(State(api): Shared, call: Call, Path((org, id)): Path<(String, String)>) -> Result<Response, Problem> {
    api.change(call, String::new(), move |change, actor, call| {
        call.check(&json!(client::of_org(change, actor, &org, &id)?))?;
        Ok(Made::ok(client::revoke(change, actor, &id)?))
    })
    .await
}

/// Adds a second secret. The first one stays valid.
#[utoipa::path(post, path = "/orgs/{org}/clients/{id}/secrets", params(("org" = String, Path, description = "The name of the org"), ("id" = String, Path, description = "The id of the client")), responses((status = 201, body = CreatedClient)), extensions(("x-role" = json!("admin"))))]
pub(super) async fn add_secret(
    State(api): Shared,
    call: Call,
    Path((org, id)): Path<(String, String)>,
) -> Result<Response, Problem> {
    api.change(call, String::new(), move |change, actor, call| {
        call.check(&json!(client::of_org(change, actor, &org, &id)?))?;
        let (record, secret) = client::rotate_secret(change, actor, &id)?;
        Ok(Made::created(record).with("client_secret", Some(secret)))
    })
    .await
}

/// Drops the older of two secrets.
#[utoipa::path(delete, path = "/orgs/{org}/clients/{id}/secrets", params(("org" = String, Path, description = "The name of the org"), ("id" = String, Path, description = "The id of the client")), responses((status = 200, body = Client)), extensions(("x-role" = json!("admin"))))]
pub(super) async fn drop_secret(
    State(api): Shared,
    call: Call,
    Path((org, id)): Path<(String, String)>,
) -> Result<Response, Problem> {
    api.change(call, String::new(), move |change, actor, call| {
        call.check(&json!(client::of_org(change, actor, &org, &id)?))?;
        Ok(Made::ok(client::drop_secret(change, actor, &id)?))
    })
    .await
}
