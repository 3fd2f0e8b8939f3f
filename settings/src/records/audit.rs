//! Who changed what, and when.

use rusqlite::{Connection, params};
use serde::Serialize;
use serde_json::Value;

use crate::failure::Failure;
use crate::rows::{json as json_column, rows};

/// A change that was made.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// The policy's version since then.
    pub version: i64,
    /// When.
    pub at: String,
    /// Who.
    pub actor: String,
    /// What, such as `key.create`.
    pub action: String,
    /// The org concerned, where it is one.
    pub org: Option<String>,
    /// What was changed.
    pub subject: String,
    /// How.
    pub details: Value,
}

/// The latest changes, of one org or of all, the oldest of them first.
///
/// # Errors
/// What hinders the database.
pub fn list(connection: &Connection, org: Option<&str>, limit: u32) -> Result<Vec<Entry>, Failure> {
    let query =
        "SELECT * FROM (SELECT * FROM audit WHERE ?1 IS NULL OR org = ?1 ORDER BY version DESC LIMIT ?2) ORDER BY version";
    rows(connection, query, params![org, limit], |row| {
        Ok(Entry {
            version: row.get("version")?,
            at: row.get("at")?,
            actor: row.get("actor")?,
            action: row.get("action")?,
            org: row.get("org")?,
            subject: row.get("subject")?,
            details: json_column(row, "details")?.unwrap_or_default(),
        })
    })
}
