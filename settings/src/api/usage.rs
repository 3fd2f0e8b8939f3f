//! `/orgs/{org}/usage`

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use serde::Deserialize;
use utoipa::IntoParams;

use super::call::{Call, page, query, range};
use super::problem::Problem;
use super::{Path, Shared};
use crate::sql::Range;
use crate::usage::{Dates, OrgUsage, usage_of_org};

/// Which usage is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct UsageQuery {
    /// The first day in UTC, such as `2026-11-01`. The default is the first day of this month.
    #[param(format = Date)]
    from: Option<String>,
    /// The last day in UTC. The default is today.
    #[param(format = Date)]
    to: Option<String>,
    /// Maximum number of credentials: 1 to 1,000.
    #[serde(default = "page")]
    #[param(default = 100, minimum = 1, maximum = 1000)]
    limit: u32,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// The wanted days and credentials.
pub(super) struct Wanted {
    from: Option<String>,
    to: Option<String>,
    range: Range,
}

impl<S: Sync> FromRequestParts<S> for Wanted {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let UsageQuery { from, to, limit, cursor } = query(parts)?;
        Ok(Self { from, to, range: range(limit, cursor.as_deref())? })
    }
}

/// The requests of an org by credential, day and hour, and the part of its monthly quota that is used.
#[utoipa::path(get, path = "/orgs/{org}/usage", params(("org" = String, Path, description = "The name of the org"), UsageQuery), responses((status = 200, body = OrgUsage)), extensions(("x-role" = json!("viewer"))))]
pub(super) async fn show(
    State(api): Shared,
    call: Call,
    Path(org): Path<String>,
    Wanted { from, to, range }: Wanted,
) -> Result<Json<OrgUsage>, Problem> {
    let usage = Arc::clone(&api.usage);
    // It may have to read all sums of the org.
    let place = call.caller.search(true, &api.pool).await?;
    let found = api.read(call, move |sql, actor| {
        let _place = place;
        let dates = Dates::parse(from.as_deref(), to.as_deref(), actor.now)?;
        usage_of_org(sql, &usage, actor, &org, dates, &range)
    });
    Ok(Json(found.await?))
}
