//! The parts of the policy (`apexmcp_core::policy::parts`), as they are in the database, and which of them changed when.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use apexmcp_core::jwks::Clusters;
use apexmcp_core::policy::parts::{KeyRange, OrgPart, PartName};
use apexmcp_core::policy::raw::{RawApiKey, RawOauthClient, RawOrg, RawPolicy};
use apexmcp_core::policy::remote::PartReader;
use apexmcp_core::scope::{Scope, ScopeSet};
use serde::Serialize;

use crate::document;
use crate::failure::{Failure, Reason};
use crate::secret::{self, sha256};
use crate::sql::{Sql, first, rows, values};

/// Number of versions from which a gateway can take the changes since. A gateway with an older one gets all parts.
pub const KEPT_VERSIONS: i64 = 100_000;

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
pub fn note_changes(sql: &dyn Sql) -> Result<Vec<Changed>, Failure> {
    let version = document::version(sql)?;
    let tag = secret::hexadecimal::<8>()?;
    sql.execute(
        "INSERT INTO versions (version, tag) VALUES (?, ?) ON CONFLICT (version) DO UPDATE SET tag = excluded.tag",
        values![version, tag],
    )?;
    let oldest = version.saturating_sub(KEPT_VERSIONS);
    sql.execute("DELETE FROM versions WHERE version <= ?", values![oldest])?;
    sql.execute("DELETE FROM parts WHERE digest IS NULL AND version <= ?", values![oldest])?;

    let mut changed = Vec::new();
    for (name, org) in touched(sql)? {
        let part = PartName::parse(&name).ok_or_else(|| Failure::new(Reason::DatabaseInvalid, format!("the part {name:?}")))?;
        let text = render(sql, &part)?;
        let digest = text.as_deref().map(sha256);
        let before = first(sql, "SELECT digest FROM parts WHERE name = ?", values![&name], |row| row.get("digest"))?;
        if before.flatten() != digest {
            let insert = "INSERT INTO parts (name, version, digest) VALUES (?, ?, ?)
                ON CONFLICT (name) DO UPDATE SET version = excluded.version, digest = excluded.digest";
            sql.execute(insert, values![&name, version, digest])?;
            changed.push(Changed { org, name, text });
        }
    }
    Ok(changed)
}

/// The names of the parts that may have changed, each with its org. Forgets what was touched.
fn touched(sql: &dyn Sql) -> Result<BTreeMap<String, Option<String>>, Failure> {
    let mut names = BTreeMap::new();
    let mut keys: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    let touched = rows(sql, "SELECT DISTINCT kind, org, id FROM touched", values![], |row| {
        Ok((row.get::<String>("kind")?, row.get::<String>("org")?, row.get::<String>("id")?))
    })?;
    sql.execute("DELETE FROM touched", values![])?;
    for (kind, org, id) in touched {
        match kind.as_str() {
            "key" => {
                keys.entry(org.clone()).or_default().insert(first_bytes(&id));
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
        let counts = first(sql, "SELECT keys, parts FROM key_parts WHERE org = ?", values![&org], |row| {
            Ok((row.get::<u32>("keys")?, row.get::<u32>("parts")?))
        })?;
        let (count, before) = counts.unwrap_or((0, 0));
        let after = KeyRange::count(count);
        if after != before {
            sql.execute("UPDATE key_parts SET parts = ? WHERE org = ?", values![after, &org])?;
            sql.execute("DELETE FROM key_parts WHERE org = ? AND keys = 0", values![&org])?;
        }
        let of_keys = keys.into_iter().filter_map(|first_bytes| KeyRange::of(first_bytes, after));
        for range in KeyRange::changed(before, after).into_iter().chain(of_keys) {
            names.insert(PartName::Keys(&org, range).to_string(), Some(org.clone()));
        }
    }
    Ok(names)
}

/// The number of key parts of an org.
fn key_parts(sql: &dyn Sql, org: &str) -> Result<u32, Failure> {
    let parts = first(sql, "SELECT parts FROM key_parts WHERE org = ?", values![org], |row| row.get("parts"))?;
    Ok(parts.unwrap_or(0))
}

/// The text of a part. `None`: there is no such part. The same state of the database always has the same text.
///
/// # Errors
/// If the database fails.
pub fn render(sql: &dyn Sql, name: &PartName<'_>) -> Result<Option<String>, Failure> {
    match name {
        PartName::Signing => {
            let signing_keys = document::signing_keys(sql)?;
            let has_keys = !signing_keys.is_empty();
            has_keys.then(|| text(&RawPolicy { signing_keys, ..RawPolicy::default() })).transpose()
        }
        PartName::Org(org) => of_org(sql, org),
        PartName::Client(id) => {
            let query = format!("{} AND client_id = ?", document::CLIENTS);
            let found = first(sql, &query, values![id], |row| Ok((row.get("org")?, document::client(row)?)))?;
            found.map(|(org, client)| of_client(org, client)).transpose()
        }
        PartName::Keys(org, range) => {
            if KeyRange::of(range.first(), key_parts(sql, org)?) != Some(*range) {
                return Ok(None);
            }
            // The hashes are hexadecimal, so `g` is after each of them.
            let bounds = values![org, format!("{:08x}", range.first()), format!("{:08x}g", range.last())];
            let query = "SELECT * FROM api_keys WHERE revoked_at IS NULL AND org = ? AND sha256 BETWEEN ? AND ? ORDER BY sha256";
            of_keys(org, rows(sql, query, bounds, document::api_key)?).map(Some)
        }
    }
}

fn of_client(org: String, client: RawOauthClient) -> Result<String, Failure> {
    alone(org, RawOrg { oauth_clients: vec![client], ..RawOrg::default() })
}

fn of_keys(org: &str, api_keys: Vec<RawApiKey>) -> Result<String, Failure> {
    alone(org.to_owned(), RawOrg { api_keys, ..RawOrg::default() })
}

fn of_org(sql: &dyn Sql, org: &str) -> Result<Option<String>, Failure> {
    let Some(policy) = document::org(sql, org)? else { return Ok(None) };
    // One step for each different list, whatever the number of keys.
    let lists = "WITH RECURSIVE lists (list) AS (
            SELECT min(connectors) FROM api_keys WHERE org = ? AND revoked_at IS NULL AND connectors IS NOT NULL
            UNION ALL
            SELECT (
                SELECT min(connectors) FROM api_keys
                WHERE org = ? AND revoked_at IS NULL AND connectors IS NOT NULL AND connectors > lists.list
            ) FROM lists WHERE lists.list IS NOT NULL
        ) SELECT list FROM lists WHERE list IS NOT NULL";
    let lists: Vec<Option<Vec<String>>> = rows(sql, lists, values![org, org], |row| row.json("list"))?;
    let scopes = "SELECT DISTINCT scopes FROM oauth_clients WHERE org = ? AND revoked_at IS NULL";
    let scopes: Vec<Option<Vec<String>>> = rows(sql, scopes, values![org], |row| row.json("scopes"))?;
    let has_clients = !scopes.is_empty();
    let scopes: ScopeSet = scopes.iter().flatten().flatten().filter_map(|scope| Scope::parse(scope)).collect();
    let of_scopes = scopes.connectors().map(ToString::to_string);
    let connectors: BTreeSet<String> = lists.into_iter().flatten().flatten().chain(of_scopes).collect();
    let policy = RawPolicy { orgs: BTreeMap::from([(org.to_owned(), policy)]).into(), ..RawPolicy::default() };
    let connectors = connectors.into_iter().collect();
    text(&OrgPart { key_parts: key_parts(sql, org)?, has_clients, connectors, policy }).map(Some)
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
    /// The tags of the versions after that one.
    pub tags: Vec<(i64, String)>,
    /// The parts that changed, each with the version of its last change, and its text unless it is gone.
    pub parts: Vec<(String, i64, Option<String>)>,
}

/// The changes after `since`, a version with its tag. `None`: this database never had that version, so it is a restored copy.
///
/// # Errors
/// If the database fails.
pub fn changes_since(sql: &dyn Sql, since: (i64, &str)) -> Result<Option<Changes>, Failure> {
    let (after, tag) = since;
    let query = "SELECT tag FROM versions WHERE version = ?";
    let found: Option<String> = first(sql, query, values![after], |row| row.get("tag"))?;
    if found.as_deref() != Some(tag) {
        return Ok(None);
    }
    let parts = rows(sql, "SELECT name, version FROM parts WHERE version > ?", values![after], |row| {
        Ok((row.get::<String>("name")?, row.get("version")?))
    })?;
    let parts = parts.into_iter().map(|(name, version)| {
        let text = PartName::parse(&name).map(|part| render(sql, &part)).transpose()?.flatten();
        Ok((name, version, text))
    });
    let parts = parts.collect::<Result<_, Failure>>()?;
    Ok(Some(Changes { version: document::version(sql)?, tags: tags_after(sql, after)?, parts }))
}

/// All parts.
///
/// # Errors
/// If the database fails.
pub fn all(sql: &dyn Sql) -> Result<Changes, Failure> {
    // One query for each kind of part, because there may be a hundred thousand of them.
    let mut texts: HashMap<String, String> = HashMap::new();
    for name in rows(sql, "SELECT name FROM orgs", values![], |row| row.get::<String>("name"))? {
        let part = PartName::Org(&name);
        texts.extend(render(sql, &part)?.map(|text| (part.to_string(), text)));
    }
    texts.extend(render(sql, &PartName::Signing)?.map(|text| (PartName::Signing.to_string(), text)));
    sql.each(document::CLIENTS, values![], &mut |row| {
        let client = document::client(row)?;
        let name = PartName::Client(client.client_id.as_deref().unwrap_or_default()).to_string();
        texts.insert(name, of_client(row.get("org")?, client)?);
        Ok(())
    })?;
    let counts = rows(sql, "SELECT org, parts FROM key_parts", values![], |row| {
        Ok((row.get::<String>("org")?, row.get::<u32>("parts")?))
    })?;
    let counts: HashMap<String, u32> = counts.into_iter().collect();
    let mut keys: Vec<RawApiKey> = Vec::new();
    let mut of: Option<(String, KeyRange)> = None;
    let query = "SELECT * FROM api_keys WHERE revoked_at IS NULL ORDER BY org, sha256";
    sql.each(query, values![], &mut |row| {
        let (org, hash): (String, String) = (row.get("org")?, row.get("sha256")?);
        let range = KeyRange::of(first_bytes(&hash), counts.get(&org).copied().unwrap_or(0));
        let next = range.map(|range| (org, range));
        if next != of {
            end_of_part(of.take(), &mut keys, &mut texts)?;
            of = next;
        }
        keys.push(document::api_key(row)?);
        Ok(())
    })?;
    end_of_part(of, &mut keys, &mut texts)?;
    let mut parts = Vec::new();
    sql.each("SELECT name, version, digest FROM parts", values![], &mut |row| {
        let (name, version): (String, i64) = (row.get("name")?, row.get("version")?);
        let is_there = row.get::<Option<String>>("digest")?.is_some();
        let text = match (texts.remove(&name), PartName::parse(&name)) {
            // A range in which there is no key at present.
            (None, Some(PartName::Keys(org, _))) if is_there => Some(of_keys(org, Vec::new())?),
            (text, _) => text,
        };
        parts.push((name, version, text));
        Ok(())
    })?;
    Ok(Changes { version: document::version(sql)?, tags: tags_after(sql, -1)?, parts })
}

/// Adds the part to which all these keys belong.
fn end_of_part(
    of: Option<(String, KeyRange)>,
    keys: &mut Vec<RawApiKey>,
    texts: &mut HashMap<String, String>,
) -> Result<(), Failure> {
    let keys = std::mem::take(keys);
    if let Some((org, range)) = of {
        texts.insert(PartName::Keys(&org, range).to_string(), of_keys(&org, keys)?);
    }
    Ok(())
}

fn tags_after(sql: &dyn Sql, version: i64) -> Result<Vec<(i64, String)>, Failure> {
    rows(sql, "SELECT version, tag FROM versions WHERE version > ?", values![version], |row| {
        Ok((row.get("version")?, row.get("tag")?))
    })
}

/// The first four bytes of a hash.
fn first_bytes(hash: &str) -> u32 {
    hash.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or(0)
}
