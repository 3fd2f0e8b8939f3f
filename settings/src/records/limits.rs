//! How much an org, or one key of it, may send.

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{api_key, json as json_column, org};
use crate::database::{Actor, Change, Record};
use crate::document;
use crate::failure::Failure;

/// Limits as the policy document writes them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// A token bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Requests in a calendar month.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly_quota: Option<u32>,
}

/// How fast.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rate {
    /// So many requests
    pub requests: u32,
    /// in each of these,
    pub per: String,
    /// and so many at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

/// Whose limits.
#[derive(Clone, Copy, Debug)]
pub enum Holder<'a> {
    /// Those of all credentials of this org together.
    Org(&'a str),
    /// Those of the key of this id.
    ApiKey(&'a str),
}

impl Holder<'_> {
    fn table(self) -> (&'static str, &'static str) {
        match self {
            Self::Org(_) => ("orgs", "name"),
            Self::ApiKey(_) => ("api_keys", "id"),
        }
    }

    /// The org's name, or the key's id.
    pub fn name(&self) -> &str {
        match self {
            Self::Org(name) | Self::ApiKey(name) => name,
        }
    }

    /// The org of it, where it exists.
    fn org(self, connection: &Connection) -> Result<String, Failure> {
        match self {
            Self::Org(name) => org::require(connection, name).map(|()| name.to_owned()),
            Self::ApiKey(id) => api_key::show(connection, id).map(|key| key.org),
        }
    }
}

/// What it is limited to; `None`: not limited.
///
/// # Errors
/// Where there is no such org or key.
pub fn show(connection: &Connection, holder: Holder<'_>) -> Result<Option<Limits>, Failure> {
    holder.org(connection)?;
    let (table, column) = holder.table();
    let query = format!("SELECT limits FROM {table} WHERE {column} = ?");
    Ok(connection.query_row(&query, [holder.name()], |row| json_column(row, "limits"))?)
}

/// Replaces what it is limited to; `None`: no longer limited.
///
/// # Errors
/// Where there is no such org or key.
pub fn set(change: &Change<'_>, actor: &Actor, holder: Holder<'_>, limits: Option<&Limits>) -> Result<(), Failure> {
    let org = holder.org(change)?;
    let (table, column) = holder.table();
    let text = limits.map(|limits| json!(limits).to_string());
    change.execute(&format!("UPDATE {table} SET limits = ? WHERE {column} = ?"), params![text, holder.name()])?;
    let action = if limits.is_some() { "limits.set" } else { "limits.clear" };
    change.record(actor, &Record { action, org: Some(&org), subject: holder.name(), details: json!({ "limits": limits }) })?;
    document::verify(change, &org).map(drop)
}
