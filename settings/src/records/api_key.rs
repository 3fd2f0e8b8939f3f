//! API keys.

use apexmcp_core::limits::document::Limits;
use serde::Serialize;
use serde_json::json;

use super::checks::{check_connectors, check_name};
use super::org;
use crate::access::Actor;
use crate::clock::Moment;
use crate::database::{Change, Check, Record};
use crate::failure::{Failure, Reason};
use crate::secret;
use crate::sql::{Row, Sql, exists, first, rows, values};

/// Length of the part of a key that is stored unhashed, so that its owner can recognize it: `apx_live_sk_` and four characters.
const SHOWN: usize = 16;

/// An API key without its secret.
#[derive(Debug, Serialize)]
pub struct ApiKey {
    /// The id, which is not secret.
    pub id: String,
    pub org: String,
    pub name: String,
    /// The first 16 characters of the key.
    pub prefix: String,
    /// The connectors that the key may call. `None`: all.
    pub connectors: Option<Vec<String>>,
    pub created_at: String,
    pub expires_at: Option<String>,
    /// The limits of this key. Those of its org apply as well.
    pub limits: Option<Limits>,
    pub revoked: bool,
    pub revoked_at: Option<String>,
}

impl ApiKey {
    fn read(row: &Row<'_>) -> Result<Self, Failure> {
        let revoked_at: Option<String> = row.get("revoked_at")?;
        Ok(Self {
            id: row.get("id")?,
            org: row.get("org")?,
            name: row.get("name")?,
            prefix: row.get("prefix")?,
            connectors: row.json("connectors")?,
            created_at: row.get("created_at")?,
            expires_at: row.get("expires_at")?,
            limits: row.json("limits")?,
            revoked: revoked_at.is_some(),
            revoked_at,
        })
    }
}

/// The values of a new key.
#[derive(Debug)]
pub struct NewKey<'a> {
    pub org: &'a str,
    pub name: &'a str,
    /// The connectors that the key may call. Empty: all.
    pub connectors: &'a [String],
    pub expires_at: Option<Moment>,
}

/// Creates a key. The key itself is only returned: the database keeps its hash.
///
/// # Errors
/// If the org does not exist, or a value is not allowed.
pub fn create(change: &Change<'_>, actor: &Actor, new: &NewKey<'_>) -> Result<(ApiKey, String), Failure> {
    org::require_change(change, actor, new.org)?;
    check_name(new.name)?;
    check_connectors(new.connectors)?;
    if new.expires_at.is_some_and(|moment| moment <= actor.now) {
        return Err(Failure::of("expires_at", "must be in the future"));
    }
    let taken = |id: &str| exists(change, "SELECT 1 FROM api_keys WHERE id = ?", values![id]);
    let id = secret::unused(|| secret::hexadecimal::<6>().map(|digits| format!("key_{digits}")), taken)?;
    let key = secret::base62("apx_live_sk_", 32)?;
    let made = ApiKey {
        id,
        org: new.org.to_owned(),
        name: new.name.to_owned(),
        prefix: key.chars().take(SHOWN).collect(),
        connectors: (!new.connectors.is_empty()).then(|| new.connectors.to_vec()),
        created_at: actor.now.to_string(),
        expires_at: new.expires_at.map(|moment| moment.to_string()),
        limits: None,
        revoked: false,
        revoked_at: None,
    };
    let connectors = made.connectors.as_ref().map(|connectors| json!(connectors).to_string());
    change.execute(
        "INSERT INTO api_keys (id, org, name, prefix, sha256, connectors, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        values![
            &made.id,
            &made.org,
            &made.name,
            &made.prefix,
            secret::sha256(&key),
            connectors,
            &made.created_at,
            made.expires_at.as_deref()
        ],
    )?;
    let details = json!({"name": made.name, "connectors": made.connectors, "expires_at": made.expires_at});
    change.record(
        actor,
        &Record { action: "key.create", org: Some(&made.org), subject: &made.id, details, check: Check::Addition },
    )?;
    Ok((made, key))
}

/// The keys of an org, the oldest first, including revoked ones.
///
/// # Errors
/// If the org does not exist.
pub fn list(connection: &dyn Sql, actor: &Actor, org: &str) -> Result<Vec<ApiKey>, Failure> {
    org::require(connection, actor, org)?;
    rows(connection, "SELECT * FROM api_keys WHERE org = ? ORDER BY created_at, id", values![org], ApiKey::read)
}

/// # Errors
/// If no key has this id.
pub fn show(connection: &dyn Sql, actor: &Actor, id: &str) -> Result<ApiKey, Failure> {
    let found = first(connection, "SELECT * FROM api_keys WHERE id = ?", values![id], ApiKey::read)?;
    let key = found.ok_or_else(|| unknown(id))?;
    actor.check_read(&key.org, || unknown(id))?;
    Ok(key)
}

fn unknown(id: &str) -> Failure {
    Failure::new(Reason::NotFound, format!("no API key has the id {id:?}"))
        .hint("Run 'apexmcp key list --org ORG' to see the ids")
}

/// Revokes a key. A second revocation changes nothing.
///
/// # Errors
/// If no key has this id.
pub fn revoke(change: &Change<'_>, actor: &Actor, id: &str) -> Result<ApiKey, Failure> {
    let key = show(change, actor, id)?;
    actor.check_change(&key.org, || unknown(id))?;
    if key.revoked {
        return Ok(key);
    }
    change.execute("UPDATE api_keys SET revoked_at = ? WHERE id = ?", values![actor.now.to_string(), id])?;
    let details = json!({"name": key.name});
    change.record(actor, &Record { action: "key.revoke", org: Some(&key.org), subject: id, details, check: Check::Nothing })?;
    show(change, actor, id)
}
