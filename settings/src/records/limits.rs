//! The limits of an org or of one of its keys.

use apexmcp_core::limits::Unit;
use apexmcp_core::limits::document::{Limits, Rate};
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;

use super::{api_key, org};
use crate::access::Actor;
use crate::database::{Change, Check, Record};
use crate::failure::Failure;
use crate::sql::{Sql, only, values};

/// The limits of an org or a key in the API, which refuses unknown members: a misspelled limit would be none.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Limits)]
#[serde(deny_unknown_fields)]
pub struct LimitsBody {
    /// Absent: unlimited.
    rate: Option<RateBody>,
    /// Requests in a calendar month. Absent: unlimited.
    #[schema(minimum = 1, maximum = 4294967295_i64)]
    monthly_quota: Option<u64>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = Rate)]
#[serde(deny_unknown_fields)]
struct RateBody {
    /// Requests in each period.
    #[schema(minimum = 1, maximum = 4294967295_i64)]
    requests: u64,
    /// `second`, `minute`, `hour` or `day`.
    #[schema(value_type = String, pattern = "^(second|minute|hour|day)$")]
    per: Unit,
    /// Maximum burst. Absent: `requests`.
    #[schema(minimum = 1, maximum = 4294967295_i64)]
    burst: Option<u64>,
}

impl From<LimitsBody> for Limits {
    fn from(LimitsBody { rate, monthly_quota }: LimitsBody) -> Self {
        let rate = rate.map(|RateBody { requests, per, burst }| Rate { requests: Some(requests), per: Some(per), burst });
        Self { rate, monthly_quota }
    }
}

/// The record that is limited.
#[derive(Clone, Copy, Debug)]
pub enum Holder<'a> {
    /// An org, by its name: the requests of all its credentials together.
    Org(&'a str),
    /// An API key, by its id.
    ApiKey(&'a str),
}

impl Holder<'_> {
    fn table(self) -> (&'static str, &'static str) {
        match self {
            Self::Org(_) => ("orgs", "name"),
            Self::ApiKey(_) => ("api_keys", "id"),
        }
    }

    /// The name of the org, or the id of the key.
    pub fn name(&self) -> &str {
        match self {
            Self::Org(name) | Self::ApiKey(name) => name,
        }
    }

    /// The name of the org, or of the org that owns the key.
    fn org(self, connection: &dyn Sql, actor: &Actor) -> Result<String, Failure> {
        match self {
            Self::Org(name) => org::require(connection, actor, name).map(|()| name.to_owned()),
            Self::ApiKey(id) => api_key::show(connection, actor, id).map(|key| key.org),
        }
    }
}

/// The limits of a record. `None`: unlimited.
///
/// # Errors
/// If the record does not exist.
pub fn show(connection: &dyn Sql, actor: &Actor, holder: Holder<'_>) -> Result<Option<Limits>, Failure> {
    holder.org(connection, actor)?;
    let (table, column) = holder.table();
    let query = format!("SELECT limits FROM {table} WHERE {column} = ?");
    only(connection, &query, values![holder.name()], |row| row.json("limits"))
}

/// Replaces the limits of a record. `None`: unlimited. The limits of an org are those of its contract, so only operators set them.
///
/// # Errors
/// If the record does not exist, or the actor may not change its limits.
pub fn set(change: &Change<'_>, actor: &Actor, holder: Holder<'_>, limits: Option<&Limits>) -> Result<(), Failure> {
    let org = holder.org(change, actor)?;
    match holder {
        Holder::Org(_) => actor.check_operator()?,
        Holder::ApiKey(_) => org::require_change(change, actor, &org)?,
    }
    let (table, column) = holder.table();
    let text = limits.map(|limits| json!(limits).to_string());
    change.execute(&format!("UPDATE {table} SET limits = ? WHERE {column} = ?"), values![text, holder.name()])?;
    let action = if limits.is_some() { "limits.set" } else { "limits.clear" };
    let details = json!({ "limits": limits });
    change.record(actor, &Record { action, org: Some(&org), subject: holder.name(), details, check: Check::Accepted })
}
