//! `/orgs/{org}/identity-providers`

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use super::call::{Body, Call};
use super::problem::Problem;
use super::replies::Place;
use super::{Api, Items, Made, Path, Shared};
use crate::clock::Moment;
use crate::failure::{Failure, Reason};
use crate::issuer::{self, Published, Reach};
use crate::records::org;
use crate::records::provider::{self, Provider};
use crate::service::{self, Wanted};

/// The identity providers of an org, by issuer.
#[utoipa::path(get, path = "/orgs/{org}/identity-providers", params(("org" = String, Path, description = "The name of the org")), responses((status = 200, body = Items<Provider>)), extensions(("x-role" = json!("viewer"))))]
pub(super) async fn list(State(api): Shared, call: Call, Path(org): Path<String>) -> Result<Json<Items<Provider>>, Problem> {
    Ok(Json(api.read(call, move |sql, actor| Ok(Items::all(provider::list(sql, actor, &org)?))).await?))
}

/// An identity provider.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewProvider {
    /// The `iss` claim of its tokens, exactly as it is in them.
    #[schema(min_length = 1, max_length = 2048)]
    issuer: String,
    /// The URL of its key set.
    #[schema(min_length = 1, max_length = 2048)]
    jwks_uri: String,
    /// The `aud` values that mean this gateway. A token needs one of them.
    audience: Vec<String>,
    /// The scopes of a token without any `mcp:` scope. Absent or null: `mcp:call`, but nothing if any value in the token contains
    /// `mcp:call`; this does not replace other scopes. Empty: no scopes.
    #[serde(default)]
    default_scopes: Option<Vec<String>>,
    /// The scopes that clients are told to request from the provider. Absent or null: the mcp scopes. Empty: none are named.
    #[serde(default)]
    client_scopes: Option<Vec<String>>,
    /// Save the provider even if a check of what it publishes fails.
    #[serde(default)]
    force: bool,
    /// Allow addresses outside of the public Internet, and http. Only operators can give this permission. Absent or null: as it
    /// is, if the issuer and the JWKS URI stay the same.
    #[serde(default)]
    allow_private_address: Option<bool>,
}

/// An issuer of which nothing else is known.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Issuer {
    /// Its URL.
    #[schema(min_length = 1, max_length = 2048)]
    issuer: String,
    /// Allow addresses outside of the public Internet, and http. Only for operators.
    #[serde(default)]
    allow_private_address: bool,
}

/// Fetches what an identity provider publishes. Nothing is saved.
#[utoipa::path(post, path = "/orgs/{org}/identity-providers/discover", params(("org" = String, Path, description = "The name of the org")), request_body = Issuer, responses((status = 200, body = Published)), extensions(("x-role" = json!("admin"))))]
pub(super) async fn discover(
    State(api): Shared,
    call: Call,
    Path(org): Path<String>,
    body: Body<Issuer>,
) -> Result<Json<Published>, Problem> {
    let Issuer { issuer, allow_private_address } = body.value;
    let name = org.clone();
    api.read(call, move |sql, actor| {
        org::require_change(sql, actor, &name)?;
        if allow_private_address { actor.check_operator() } else { Ok(()) }
    })
    .await?;
    let reach = Reach::allowing_private(allow_private_address);
    Ok(Json(api.pool.run_aside(org, move || issuer::published(&issuer, reach)).await?))
}

/// Checks what an identity provider publishes, then accepts its tokens.
#[utoipa::path(post, path = "/orgs/{org}/identity-providers", params(("org" = String, Path, description = "The name of the org")), request_body = NewProvider, responses((status = 201, body = Provider)), extensions(("x-role" = json!("admin"))))]
pub(super) async fn create(
    State(api): Shared,
    call: Call,
    Path(org): Path<String>,
    body: Body<NewProvider>,
) -> Result<Response, Problem> {
    save(&api, call, org, None, body).await
}

/// One identity provider.
#[utoipa::path(get, path = "/orgs/{org}/identity-providers/{id}", params(("org" = String, Path, description = "The name of the org"), ("id" = String, Path, description = "The id of the provider")), responses((status = 200, body = Provider)), extensions(("x-role" = json!("viewer"))))]
pub(super) async fn show(State(api): Shared, call: Call, Path((org, id)): Path<(String, String)>) -> Result<Response, Problem> {
    api.show(call, move |sql, actor| provider::of_org(sql, actor, &org, &id)).await
}

/// Replaces an identity provider. Its issuer stays the same.
#[utoipa::path(put, path = "/orgs/{org}/identity-providers/{id}", params(("org" = String, Path, description = "The name of the org"), ("id" = String, Path, description = "The id of the provider")), request_body = NewProvider, responses((status = 200, body = Provider)), extensions(("x-role" = json!("admin"))))]
pub(super) async fn replace(
    State(api): Shared,
    call: Call,
    Path((org, id)): Path<(String, String)>,
    body: Body<NewProvider>,
) -> Result<Response, Problem> {
    save(&api, call, org, Some(id), body).await
}

/// Removes an identity provider. Gateways refuse its tokens within a second.
#[utoipa::path(delete, path = "/orgs/{org}/identity-providers/{id}", params(("org" = String, Path, description = "The name of the org"), ("id" = String, Path, description = "The id of the provider")), responses((status = 204)), extensions(("x-role" = json!("admin"))))]
pub(super) async fn delete(State(api): Shared, call: Call, Path((org, id)): Path<(String, String)>) -> Result<Response, Problem> {
    api.change(call, String::new(), move |change, actor, call| {
        let provider = provider::of_org(change, actor, &org, &id)?;
        call.check(&json!(provider))?;
        provider::remove(change, actor, &org, &provider.issuer)?;
        Ok(Made::deleted())
    })
    .await
}

/// Examines a provider, then saves it. `id` is that of the provider that is replaced.
async fn save(api: &Api, call: Call, org: String, id: Option<String>, body: Body<NewProvider>) -> Result<Response, Problem> {
    let Body { value: new, digest } = body;
    // A provider may be slow, so it is fetched without a connection to the database.
    let checked = api.pool.run(move |database, _| {
        let answer = database.read(|sql| {
            let actor = call.actor(sql, Moment::now())?;
            if let Some(known) = Place::of(&call, &digest, &actor).known(sql, &actor)? {
                return Ok(Err(known));
            }
            let sharing = service::sharing(sql, &actor, &wanted(&org, &new))?;
            if let Some(id) = &id
                && provider::of_org(sql, &actor, &org, id)?.issuer != new.issuer
            {
                return Err(Failure::of("issuer", "must stay the same: create another provider, and delete this one"));
            }
            let provider = [org.as_str(), &new.issuer, &new.jwks_uri];
            Ok(Ok((sharing, provider::permission(sql, &actor, provider, new.allow_private_address)?)))
        });
        Ok((answer?, call, digest, org, id, new))
    });
    let (sharing, call, digest, org, id, new) = checked.await?;
    let (sharing, allow_private_address) = match sharing {
        Ok(checked) => checked,
        Err(known) => return Ok(known.into_response(Vec::new())),
    };
    let examined = api.pool.run_aside(org.clone(), move || {
        let reach = Reach::allowing_private(allow_private_address);
        let examined = service::examine(&sharing, &wanted(&org, &new), reach)?;
        Ok((examined, org, new))
    });
    let (examined, org, new) = examined.await?;
    let of_kind = |ok: bool| examined.findings.iter().filter(move |finding| finding.ok == ok && (!ok || finding.warning));
    let failed: Vec<String> = of_kind(false).map(|finding| finding.finding.clone()).collect();
    if !failed.is_empty() && !new.force {
        let line = format!("nothing was saved: {}; \"force\": true saves it anyway", failed.join("; "));
        return Err(Failure::new(Reason::ProviderCheckFailed, line).into());
    }
    let warnings = failed.into_iter().chain(of_kind(true).map(|finding| finding.finding.clone())).collect();
    api.change(call, digest, move |change, actor, call| {
        if let Some(id) = &id {
            call.check(&json!(provider::of_org(change, actor, &org, id)?))?;
        } else if provider::list(change, actor, &org)?.iter().any(|provider| provider.issuer == new.issuer) {
            let line = format!("{org} already has a provider with the issuer {:?}: replace it with PUT", new.issuer);
            return Err(Failure::new(Reason::AlreadyExists, line));
        }
        let NewProvider { issuer, jwks_uri, audience, default_scopes, client_scopes, .. } = new;
        let configured_at = actor.now.to_string();
        let is_new = id.is_none();
        let id = provider::id_of(&issuer);
        let record =
            Provider { id, org, issuer, jwks_uri, audience, default_scopes, client_scopes, allow_private_address, configured_at };
        provider::configure(change, actor, &record)?;
        Ok(Made { warnings, ..if is_new { Made::created(record) } else { Made::ok(record) } })
    })
    .await
}

fn wanted<'a>(org: &'a str, new: &'a NewProvider) -> Wanted<'a> {
    Wanted {
        org,
        issuer: &new.issuer,
        jwks_uri: &new.jwks_uri,
        audience: &new.audience,
        client_scopes: new.client_scopes.as_deref(),
    }
}
