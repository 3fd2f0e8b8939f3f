//! `/orgs/{org}/explain`

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::ToSchema;

use super::call::{Body, Call};
use super::problem::Problem;
use super::{Path, Shared};
use crate::access::Role;
use crate::explain::{self, Credential, Explanation};
use crate::failure::{Failure, Reason};
use crate::issuer::Reach;

/// The credential to explain: exactly one of the two.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// A token of the gateway or of an identity provider.
    token: Option<String>,
    /// An API key.
    key: Option<String>,
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
    let (name, of, origin) = (org.clone(), credential.clone(), api.origin.clone());
    let asked = api.read(call, move |sql, actor| {
        let reach = Reach::allowing_private(actor.role == Role::Operator);
        Ok((explain::configuration(sql, actor, &name, &of, &origin)?, reach, actor.now))
    });
    let (configuration, reach, now) = asked.await?;
    let explained =
        api.pool.run_aside(org.clone(), move || explain::explain(&configuration, &org, &credential, reach, now.into()));
    Ok(Json(explained.await?))
}
