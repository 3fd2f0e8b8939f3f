//! `/orgs/{org}/explain`

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::ToSchema;

use super::call::{Body, Call};
use super::problem::Problem;
use super::{Path, Shared};
use crate::explain::{self, Credential, Explanation};
use crate::failure::{Failure, Reason};

/// The credential to explain: exactly one of `token` and `key`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// A token of the gateway or of an identity provider.
    token: Option<String>,
    /// An API key.
    key: Option<String>,
    /// The connector that the client calls. Absent or null: the endpoint of all connectors.
    connector: Option<String>,
}

/// Says whether a gateway admits a credential, and what to change if not. The credential is neither stored nor logged.
#[utoipa::path(post, path = "/orgs/{org}/explain", params(("org" = String, Path, description = "The name of the org")), request_body = Asked, responses((status = 200, body = Explanation)), extensions(("x-role" = json!("admin"))))]
pub(super) async fn explain(
    State(api): Shared,
    call: Call,
    Path(org): Path<String>,
    body: Body<Asked>,
) -> Result<Json<Explanation>, Problem> {
    let credential = match (body.value.token, body.value.key) {
        (Some(token), None) => Credential::Token(token),
        (None, Some(key)) => Credential::ApiKey(key),
        _ => return Err(Failure::new(Reason::InvalidArgument, "pass exactly one of token and key").into()),
    };
    let (name, connector, origin) = (org.clone(), body.value.connector, api.origin.clone());
    let asked = api.read(call, move |sql, actor| explain::question(sql, actor, &name, connector, credential, &origin));
    let question = asked.await?;
    Ok(Json(api.pool.run_aside(org, move || explain::explain(&question)).await?))
}
