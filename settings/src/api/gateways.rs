//! `/gateways`

use axum::Json;
use axum::extract::State;

use super::call::Call;
use super::problem::Problem;
use super::{Items, Shared};
use crate::serve::Gateway;

/// The gateways that get the policy from this server, and the version that each has. Those without the present version come first.
#[utoipa::path(get, path = "/gateways", responses((status = 200, body = Items<Gateway>)), extensions(("x-role" = json!("operator"))))]
pub(super) async fn list(State(api): Shared, call: Call) -> Result<Json<Items<Gateway>>, Problem> {
    let gateways = api.gateways.clone();
    Ok(Json(api.read(call, move |_, actor| Ok(Items::all(gateways.list(actor)?))).await?))
}
