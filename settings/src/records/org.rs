//! Orgs: the tenants that own all other records.

use apexmcp_core::names::OrgName;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::access::Actor;
use crate::database::{Change, Check, Record};
use crate::failure::{Failure, Reason};
use crate::sql::{self, Part, Range, Row, Sql, first, part, values};

/// An org, and the number of its records that are in force.
#[derive(Debug, Serialize, ToSchema)]
pub struct Org {
    /// The name, as it is in paths.
    pub name: String,
    pub api_keys: u32,
    pub oauth_clients: u32,
    pub identity_providers: u32,
    pub created_at: String,
}

// An org may have half a million keys, so a trigger counts them.
const SELECT: &str = "SELECT name, created_at,
    coalesce((SELECT keys FROM key_parts WHERE org = orgs.name), 0) AS keys,
    (SELECT count(*) FROM oauth_clients WHERE org = orgs.name AND revoked_at IS NULL) AS clients,
    (SELECT count(*) FROM identity_providers WHERE org = orgs.name) AS providers
    FROM orgs";

impl Org {
    fn read(row: &Row<'_>) -> Result<Self, Failure> {
        Ok(Self {
            name: row.get("name")?,
            api_keys: row.get("keys")?,
            oauth_clients: row.get("clients")?,
            identity_providers: row.get("providers")?,
            created_at: row.get("created_at")?,
        })
    }
}

/// The orgs that the actor may read, by name.
///
/// # Errors
/// If the database fails.
pub fn list(connection: &dyn Sql, actor: &Actor, range: &Range) -> Result<Part<Org>, Failure> {
    let query = format!("{SELECT} WHERE (CAST(? AS TEXT) IS NULL OR name = ?) AND name > ? ORDER BY name LIMIT ?");
    let (own, [after, _]) = (actor.role.org(), &range.after);
    part(connection, &query, values![own, own, after, range.with_next()], range, Org::read)
}

/// # Errors
/// If no org has this name.
pub fn show(connection: &dyn Sql, actor: &Actor, name: &str) -> Result<Org, Failure> {
    actor.check_read(name, || unknown(name))?;
    let found = first(connection, &format!("{SELECT} WHERE name = ?"), values![name], Org::read)?;
    found.ok_or_else(|| unknown(name))
}

/// Creates an org without records.
///
/// # Errors
/// If a path cannot contain the name, or another org has it.
pub fn create(change: &Change<'_>, actor: &Actor, name: &str) -> Result<Org, Failure> {
    actor.check_operator()?;
    if OrgName::parse(name).is_none() {
        return Err(Failure::new(
            Reason::InvalidArgument,
            format!("the name {name:?} must be 1 to 128 of A-Z a-z 0-9 . _ ~ -, because URLs contain it"),
        ));
    }
    if exists(change, name)? {
        return Err(Failure::new(Reason::AlreadyExists, format!("the org {name} already exists: choose another name")));
    }
    let created_at = actor.now.to_string();
    change.execute("INSERT INTO orgs (name, created_at) VALUES (?, ?)", values![name, &created_at])?;
    change.record(
        actor,
        &Record { action: "org.create", org: Some(name), subject: name, details: json!({}), check: Check::Nothing },
    )?;
    Ok(Org { name: name.to_owned(), api_keys: 0, oauth_clients: 0, identity_providers: 0, created_at })
}

/// Deletes an org with all its records.
///
/// # Errors
/// If no org has this name.
pub fn delete(change: &Change<'_>, actor: &Actor, name: &str) -> Result<Org, Failure> {
    let org = show(change, actor, name)?;
    actor.check_operator()?;
    change.execute("DELETE FROM orgs WHERE name = ?", values![name])?;
    let details = json!({
        "api_keys": org.api_keys, "oauth_clients": org.oauth_clients, "identity_providers": org.identity_providers,
    });
    change.record(actor, &Record { action: "org.delete", org: Some(name), subject: name, details, check: Check::Nothing })?;
    Ok(org)
}

/// Checks that an org exists, and that the actor may read its records.
///
/// # Errors
/// If no org has this name, or the actor may not know of it.
pub fn require(connection: &dyn Sql, actor: &Actor, name: &str) -> Result<(), Failure> {
    actor.check_read(name, || unknown(name))?;
    if exists(connection, name)? { Ok(()) } else { Err(unknown(name)) }
}

/// Checks that an org exists, and that the actor may change its records.
///
/// # Errors
/// As for [`require`], and if the actor may only read.
pub fn require_change(connection: &dyn Sql, actor: &Actor, name: &str) -> Result<(), Failure> {
    require(connection, actor, name)?;
    actor.check_change(name, || unknown(name))
}

fn exists(connection: &dyn Sql, name: &str) -> Result<bool, Failure> {
    sql::exists(connection, "SELECT 1 AS one FROM orgs WHERE name = ?", values![name])
}

pub(crate) fn unknown(name: &str) -> Failure {
    Failure::new(Reason::NotFound, format!("no org has the name {name:?}"))
        .hint("Run 'apexmcp org list' to see the names, or 'apexmcp org create' to create it")
}
