//! The audit log: each change with its actor and its time.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::org;
use crate::access::Actor;
use crate::clock::Moment;
use crate::failure::Failure;
use crate::sql::{Part, Range, Row, Sql, first, part, values};

#[derive(Debug, Serialize, ToSchema)]
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
    #[schema(value_type = Object)]
    pub details: Value,
}

impl Entry {
    fn read(row: &Row<'_>) -> Result<Self, Failure> {
        Ok(Self {
            version: row.get("version")?,
            at: row.get("at")?,
            actor: row.get("actor")?,
            action: row.get("action")?,
            org: row.get("org")?,
            subject: row.get("subject")?,
            details: row.json("details")?.unwrap_or_default(),
        })
    }
}

/// Which changes are wanted.
#[derive(Debug, Default)]
pub struct Filter {
    pub org: Option<String>,
    pub actor: Option<String>,
    pub action: Option<String>,
    /// At this time or later.
    pub from: Option<Moment>,
    /// Before this time.
    pub to: Option<Moment>,
}

impl Filter {
    /// Whether many changes may have to be read. An index has those of an org.
    pub fn is_search(&self) -> bool {
        let Self { org: _, actor, action, from, to } = self;
        actor.is_some() || action.is_some() || from.is_some() || to.is_some()
    }
}

/// The changes that the actor may read, the latest first.
///
/// # Errors
/// If the actor may not read the changes of the wanted org.
pub fn latest(connection: &dyn Sql, actor: &Actor, filter: &Filter, range: &Range) -> Result<Part<Entry>, Failure> {
    let org = filter.org.as_deref().or(actor.role.org());
    if let Some(org) = org {
        actor.check_read(org, || org::unknown(org))?;
    }
    let [before, _] = &range.after;
    let wrong = || Failure::of("cursor", "must be the next of an answer to the same request");
    let before = if before.is_empty() { i64::MAX } else { before.parse().map_err(|_| wrong())? };
    // An earlier org of the same name may have been that of other people.
    let born = first(
        connection,
        "SELECT max(version) AS born FROM audit WHERE org = ? AND action = 'org.create'",
        values![actor.role.org()],
        |row| row.get::<Option<i64>>("born"),
    )?;
    let born = born.flatten().unwrap_or(0);
    let query = "SELECT * FROM audit WHERE version < ? AND version >= ?
            AND (CAST(? AS TEXT) IS NULL OR org = ?) AND (CAST(? AS TEXT) IS NULL OR actor = ?)
            AND (CAST(? AS TEXT) IS NULL OR action = ?) AND (CAST(? AS TEXT) IS NULL OR at >= ?)
            AND (CAST(? AS TEXT) IS NULL OR at < ?)
        ORDER BY version DESC LIMIT ?";
    let (by, action) = (filter.actor.as_deref(), filter.action.as_deref());
    let (from, to) = (filter.from, filter.to);
    let values = values![before, born, org, org, by, by, action, action, from, from, to, to, range.with_next()];
    part(connection, query, values, range, Entry::read)
}
