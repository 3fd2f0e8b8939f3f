//! `/signing-keys`

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use super::call::{Body, Call};
use super::problem::Problem;
use super::{Items, Made, Path, Shared};
use crate::clock::Moment;
use crate::records::signing_key::{self, SigningKey};

/// All signing keys. The first one signs new tokens, and all verify.
#[utoipa::path(get, path = "/signing-keys", responses((status = 200, body = Items<SigningKey>)), extensions(("x-role" = json!("operator"))))]
pub(super) async fn list(State(api): Shared, call: Call) -> Result<Json<Items<SigningKey>>, Problem> {
    Ok(Json(api.read(call, |sql, actor| Ok(Items::all(signing_key::list(sql, actor)?))).await?))
}

/// A new signing key.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewSigningKey {
    /// The id in the headers of tokens. Absent: the current date.
    kid: Option<String>,
}

/// Creates and publishes a signing key. It verifies tokens, but does not sign yet, unless it is the only one.
#[utoipa::path(post, path = "/signing-keys", request_body = Option<NewSigningKey>, responses((status = 201, body = SigningKey)), extensions(("x-role" = json!("operator"))))]
pub(super) async fn create(State(api): Shared, call: Call, body: Body<Option<NewSigningKey>>) -> Result<Response, Problem> {
    // Generated before the transaction, and only for an operator: it takes long.
    let allowed = api.pool.run(|database, _| {
        database.read(|sql| call.actor(sql, Moment::now())?.check_operator())?;
        Ok(call)
    });
    let call = allowed.await?;
    let pem = api.pool.run_aside("", signing_key::generate).await?;
    api.change(call, body.digest, move |change, actor, _| {
        Ok(Made::created(signing_key::create(change, actor, body.value.as_ref().and_then(|new| new.kid.as_deref()), &pem)?))
    })
    .await
}

/// Removes a key that does not sign. Gateways refuse the tokens that it signed.
#[utoipa::path(delete, path = "/signing-keys/{kid}", params(("kid" = String, Path, description = "The id of the key")), responses((status = 204)), extensions(("x-role" = json!("operator"))))]
pub(super) async fn delete(State(api): Shared, call: Call, Path(kid): Path<String>) -> Result<Response, Problem> {
    api.change(call, String::new(), move |change, actor, call| {
        call.check(&json!(signing_key::find(change, actor, &kid)?))?;
        signing_key::remove(change, actor, &kid)?;
        Ok(Made::deleted())
    })
    .await
}

/// Lets a key sign new tokens from now on. The other keys still verify.
#[utoipa::path(post, path = "/signing-keys/{kid}/use", params(("kid" = String, Path, description = "The id of the key")), responses((status = 200, body = SigningKey)), extensions(("x-role" = json!("operator"))))]
pub(super) async fn sign(State(api): Shared, call: Call, Path(kid): Path<String>) -> Result<Response, Problem> {
    api.change(call, String::new(), move |change, actor, call| {
        call.check(&json!(signing_key::find(change, actor, &kid)?))?;
        Ok(Made::ok(signing_key::sign_with(change, actor, &kid)?))
    })
    .await
}
