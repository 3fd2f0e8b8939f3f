//! Orgs: the tenants to which everything else belongs.

use apexmcp_core::names::OrgName;
use rusqlite::Connection;
use serde::Serialize;
use serde_json::json;

use crate::database::{Actor, Change, Check, Record};
use crate::failure::{Failure, Reason};
use crate::rows::{self, rows};

/// An org, and how much it has in force.
#[derive(Debug, Serialize)]
pub struct Org {
    /// Its name, as it stands in paths.
    pub name: String,
    /// Keys that are not revoked.
    pub api_keys: u32,
    /// Clients that are not revoked.
    pub oauth_clients: u32,
    /// Its identity providers.
    pub identity_providers: u32,
    /// When it was made.
    pub created_at: String,
}

const SELECT: &str = "SELECT name, created_at,
    (SELECT count(*) FROM api_keys WHERE org = orgs.name AND revoked_at IS NULL) AS keys,
    (SELECT count(*) FROM oauth_clients WHERE org = orgs.name AND revoked_at IS NULL) AS clients,
    (SELECT count(*) FROM identity_providers WHERE org = orgs.name) AS providers
    FROM orgs ORDER BY name";

/// All of them, by name.
///
/// # Errors
/// What hinders the database.
pub fn list(connection: &Connection) -> Result<Vec<Org>, Failure> {
    rows(connection, SELECT, [], |row| {
        Ok(Org {
            name: row.get("name")?,
            api_keys: row.get("keys")?,
            oauth_clients: row.get("clients")?,
            identity_providers: row.get("providers")?,
            created_at: row.get("created_at")?,
        })
    })
}

/// The one of this name.
///
/// # Errors
/// Where there is none.
pub fn show(connection: &Connection, name: &str) -> Result<Org, Failure> {
    list(connection)?.into_iter().find(|org| org.name == name).ok_or_else(|| unknown(name))
}

/// Makes one that has nothing yet.
///
/// # Errors
/// Where the name cannot stand in a path, or is taken.
pub fn create(change: &Change<'_>, actor: &Actor, name: &str) -> Result<Org, Failure> {
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
    change.execute("INSERT INTO orgs (name, created_at) VALUES (?, ?)", [name, &created_at])?;
    change.record(
        actor,
        &Record { action: "org.create", org: Some(name), subject: name, details: json!({}), check: Check::Nothing },
    )?;
    Ok(Org { name: name.to_owned(), api_keys: 0, oauth_clients: 0, identity_providers: 0, created_at })
}

/// Deletes one with all that it has.
///
/// # Errors
/// Where there is none.
pub fn delete(change: &Change<'_>, actor: &Actor, name: &str) -> Result<Org, Failure> {
    let org = show(change, name)?;
    change.execute("DELETE FROM orgs WHERE name = ?", [name])?;
    let details = json!({
        "api_keys": org.api_keys, "oauth_clients": org.oauth_clients, "identity_providers": org.identity_providers,
    });
    change.record(actor, &Record { action: "org.delete", org: Some(name), subject: name, details, check: Check::Nothing })?;
    Ok(org)
}

/// Passes where there is an org of this name.
///
/// # Errors
/// Where there is none.
pub fn require(connection: &Connection, name: &str) -> Result<(), Failure> {
    if exists(connection, name)? { Ok(()) } else { Err(unknown(name)) }
}

fn exists(connection: &Connection, name: &str) -> Result<bool, Failure> {
    rows::exists(connection, "SELECT 1 FROM orgs WHERE name = ?", [name])
}

fn unknown(name: &str) -> Failure {
    Failure::new(
        Reason::NotFound,
        format!("no org has the name {name:?}. Run 'apexmcp org list' to see the names, or 'apexmcp org create' to create it"),
    )
}
