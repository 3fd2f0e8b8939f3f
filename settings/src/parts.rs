//! The parts of the policy (`apexmcp_core::policy::parts`), as they are in the database, and which of them changed when.

use std::collections::{BTreeMap, BTreeSet};

use apexmcp_core::jwks::Clusters;
use apexmcp_core::policy::parts::{KeyRange, OrgPart, PartName};
use apexmcp_core::policy::raw::{RawOrg, RawPolicy};
use apexmcp_core::policy::remote::PartReader;
use apexmcp_core::scope::{Scope, ScopeSet};
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use crate::document;
use crate::failure::{Failure, Reason};
use crate::rows::{json, rows};
use crate::secret::{self, sha256};

/// Number of versions from which a gateway can take the changes since. A gateway with an older one gets all parts.
const KEPT_VERSIONS: i64 = 100_000;

/// A part that a transaction changed.
#[derive(Debug)]
pub struct Changed {
    /// The org to which the part belongs. `None`: the signing keys.
    pub org: Option<String>,
    pub name: String,
    /// `None`: the part is gone.
    pub text: Option<String>,
}

/// Notes the present version, with the parts that this transaction changed. Returns these parts.
///
/// # Errors
/// If the database fails.
pub fn note_changes(connection: &Connection) -> Result<Vec<Changed>, Failure> {
    let version = document::version(connection)?;
    let tag = secret::hexadecimal::<8>()?;
    connection.execute("INSERT OR REPLACE INTO versions (version, tag) VALUES (?, ?)", params![version, tag])?;
    let oldest = version.saturating_sub(KEPT_VERSIONS);
    connection.execute("DELETE FROM versions WHERE version <= ?", [oldest])?;
    connection.execute("DELETE FROM parts WHERE digest IS NULL AND version <= ?", [oldest])?;

    let mut changed = Vec::new();
    for (name, org) in touched(connection)? {
        let part = PartName::parse(&name).ok_or_else(|| Failure::new(Reason::DatabaseInvalid, format!("the part {name:?}")))?;
        let text = render(connection, &part)?;
        let digest = text.as_deref().map(sha256);
        let before: Option<Option<String>> = connection
            .prepare_cached("SELECT digest FROM parts WHERE name = ?")?
            .query_row([&name], |row| row.get(0))
            .optional()?;
        if before.flatten() != digest {
            connection
                .prepare_cached("INSERT OR REPLACE INTO parts (name, version, digest) VALUES (?, ?, ?)")?
                .execute(params![name, version, digest])?;
            changed.push(Changed { org, name, text });
        }
    }
    Ok(changed)
}

/// The names of the parts that may have changed, each with its org. Forgets what was touched.
fn touched(connection: &Connection) -> Result<BTreeMap<String, Option<String>>, Failure> {
    let mut names = BTreeMap::new();
    let mut keys: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    let touched = rows(connection, "SELECT DISTINCT kind, org, id FROM touched", [], |row| {
        Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
    })?;
    connection.execute("DELETE FROM touched", [])?;
    for (kind, org, id) in touched {
        match kind.as_str() {
            "key" => {
                let first_bytes = id.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0);
                keys.entry(org.clone()).or_default().insert(first_bytes);
            }
            "client" => _ = names.insert(PartName::Client(&id).to_string(), Some(org.clone())),
            "signing" => _ = names.insert(PartName::Signing.to_string(), None),
            _ => {}
        }
        // What an org's part says of its keys and clients may have changed as well.
        if kind != "signing" {
            names.insert(PartName::Org(&org).to_string(), Some(org));
        }
    }
    for (org, keys) in keys {
        let before = key_parts(connection, &org)?;
        let count: u32 =
            connection
                .query_row("SELECT count(*) FROM api_keys WHERE org = ? AND revoked_at IS NULL", [&org], |row| row.get(0))?;
        let after = KeyRange::count(count);
        if after != before {
            connection.execute("INSERT OR REPLACE INTO key_parts (org, parts) VALUES (?, ?)", params![org, after])?;
            connection.execute("DELETE FROM key_parts WHERE org = ? AND parts = 0", [&org])?;
        }
        let of_keys = keys.into_iter().filter_map(|first_bytes| KeyRange::of(first_bytes, after));
        for range in KeyRange::changed(before, after).into_iter().chain(of_keys) {
            names.insert(PartName::Keys(&org, range).to_string(), Some(org.clone()));
        }
    }
    Ok(names)
}

/// The number of key parts of an org.
fn key_parts(connection: &Connection, org: &str) -> Result<u32, Failure> {
    let mut statement = connection.prepare_cached("SELECT parts FROM key_parts WHERE org = ?")?;
    Ok(statement.query_row([org], |row| row.get(0)).optional()?.unwrap_or(0))
}

/// The text of a part. `None`: there is no such part. The same state of the database always has the same text.
///
/// # Errors
/// If the database fails.
pub fn render(connection: &Connection, name: &PartName<'_>) -> Result<Option<String>, Failure> {
    match name {
        PartName::Signing => {
            let signing_keys = document::signing_keys(connection)?;
            let has_keys = !signing_keys.is_empty();
            has_keys.then(|| text(&RawPolicy { signing_keys, ..RawPolicy::default() })).transpose()
        }
        PartName::Org(org) => of_org(connection, org),
        PartName::Client(id) => {
            let query = format!("{} AND client_id = ?", document::CLIENTS);
            let found = connection
                .prepare_cached(&query)?
                .query_row([id], |row| Ok((row.get::<_, String>("org")?, document::client(row)?)));
            let Some((org, client)) = found.optional()? else { return Ok(None) };
            alone(org, RawOrg { oauth_clients: vec![client], ..RawOrg::default() }).map(Some)
        }
        PartName::Keys(org, range) => {
            if KeyRange::of(range.first(), key_parts(connection, org)?) != Some(*range) {
                return Ok(None);
            }
            // The hashes are hexadecimal, so `g` is after each of them.
            let bounds = params![org, format!("{:08x}", range.first()), format!("{:08x}g", range.last())];
            let mut statement = connection.prepare_cached(
                "SELECT * FROM api_keys WHERE revoked_at IS NULL AND org = ? AND sha256 BETWEEN ? AND ? ORDER BY sha256",
            )?;
            let api_keys = statement.query_map(bounds, document::api_key)?.collect::<rusqlite::Result<_>>()?;
            alone((*org).to_owned(), RawOrg { api_keys, ..RawOrg::default() }).map(Some)
        }
    }
}

fn of_org(connection: &Connection, org: &str) -> Result<Option<String>, Failure> {
    let Some(policy) = document::org(connection, org)? else { return Ok(None) };
    // One step for each different list, whatever the number of keys.
    let lists = "WITH RECURSIVE lists (list) AS (
            SELECT min(connectors) FROM api_keys WHERE org = ?1 AND revoked_at IS NULL AND connectors IS NOT NULL
            UNION ALL
            SELECT (
                SELECT min(connectors) FROM api_keys
                WHERE org = ?1 AND revoked_at IS NULL AND connectors IS NOT NULL AND connectors > lists.list
            ) FROM lists WHERE lists.list IS NOT NULL
        ) SELECT list FROM lists WHERE list IS NOT NULL";
    let lists: Vec<Option<Vec<String>>> = rows(connection, lists, [org], |row| json(row, "list"))?;
    let scopes = "SELECT DISTINCT scopes FROM oauth_clients WHERE org = ? AND revoked_at IS NULL";
    let scopes: Vec<Option<Vec<String>>> = rows(connection, scopes, [org], |row| json(row, "scopes"))?;
    let has_clients = !scopes.is_empty();
    let scopes: ScopeSet = scopes.iter().flatten().flatten().filter_map(|scope| Scope::parse(scope)).collect();
    let of_scopes = scopes.connectors().map(ToString::to_string);
    let connectors: BTreeSet<String> = lists.into_iter().flatten().flatten().chain(of_scopes).collect();
    let policy = RawPolicy { orgs: BTreeMap::from([(org.to_owned(), policy)]).into(), ..RawPolicy::default() };
    let connectors = connectors.into_iter().collect();
    text(&OrgPart { key_parts: key_parts(connection, org)?, has_clients, connectors, policy }).map(Some)
}

fn alone(name: String, org: RawOrg) -> Result<String, Failure> {
    text(&RawPolicy { orgs: BTreeMap::from([(name, org)]).into(), ..RawPolicy::default() })
}

fn text(part: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(part).map_err(Failure::during(Reason::DatabaseFailed, "a part of the policy"))
}

/// How gateways read parts. Settings does not know the clusters of a gateway, so each scheme has one here.
pub fn reader() -> PartReader {
    let clusters = Clusters { https: Some(String::new()), http: Some(String::new()) };
    PartReader { clusters, separator: apexmcp_core::config::DEFAULT_SEPARATOR.into() }
}

/// What happened to the parts after a version.
#[derive(Debug)]
pub struct Changes {
    /// The present version.
    pub version: i64,
    /// See [`document::database_id`].
    pub database_id: String,
    /// The tags of the versions after that one.
    pub tags: Vec<(i64, String)>,
    /// The parts that changed, each with the version of its last change, and its text unless it is gone.
    pub parts: Vec<(String, i64, Option<String>)>,
}

/// The changes after `version`. `tag` is its tag. `None`: this database never had that version, so it is a restored copy.
///
/// # Errors
/// If the database fails.
pub fn changes_since(connection: &Connection, since: Option<(i64, &str)>) -> Result<Option<Changes>, Failure> {
    let (version, database_id) = (document::version(connection)?, document::database_id(connection)?);
    let after = match since {
        None => -1,
        Some((after, tag)) => {
            let query = "SELECT tag FROM versions WHERE version = ?";
            let found: Option<String> = connection.query_row(query, [after], |row| row.get(0)).optional()?;
            if found.as_deref() != Some(tag) {
                return Ok(None);
            }
            after
        }
    };
    let tags =
        rows(connection, "SELECT version, tag FROM versions WHERE version > ?", [after], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let names = "SELECT name, version FROM parts WHERE version > ?";
    let names = rows(connection, names, [after], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
    let mut parts = Vec::with_capacity(names.len());
    for (name, version) in names {
        let text = match PartName::parse(&name) {
            Some(part) => render(connection, &part)?,
            None => None,
        };
        parts.push((name, version, text));
    }
    Ok(Some(Changes { version, database_id, tags, parts }))
}
