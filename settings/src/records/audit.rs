//! The audit log: each change with its actor and its time.

use serde::Serialize;
use serde_json::Value;

use super::org;
use crate::access::Actor;
use crate::failure::Failure;
use crate::sql::{Sql, rows, values};

#[derive(Debug, Serialize)]
pub struct Entry {
    /// The version of the policy after the change.
    pub version: i64,
    pub at: String,
    pub actor: String,
    /// Such as `key.create`.
    pub action: String,
    pub org: Option<String>,
    /// The name or id of what was changed.
    pub subject: String,
    /// A JSON object without any secret.
    pub details: Value,
}

/// The latest changes of one org or of all, the oldest of them first. Who may read only one org sees only its changes.
///
/// # Errors
/// If the actor may not read the changes of this org.
pub fn list(connection: &dyn Sql, actor: &Actor, org: Option<&str>, limit: u32) -> Result<Vec<Entry>, Failure> {
    let org = org.or(actor.role.org());
    if let Some(org) = org {
        actor.check_read(org, || org::unknown(org))?;
    }
    let query = "SELECT * FROM (
            SELECT * FROM audit WHERE CAST(? AS TEXT) IS NULL OR org = ? ORDER BY version DESC LIMIT ?
        ) AS latest ORDER BY version";
    rows(connection, query, values![org, org, limit], |row| {
        Ok(Entry {
            version: row.get("version")?,
            at: row.get("at")?,
            actor: row.get("actor")?,
            action: row.get("action")?,
            org: row.get("org")?,
            subject: row.get("subject")?,
            details: row.json("details")?.unwrap_or_default(),
        })
    })
}
