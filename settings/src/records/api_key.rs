//! Static API keys.

use apexmcp_core::limits::document::Limits;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use serde_json::json;

use super::checks::{check_connectors, check_name};
use super::org;
use crate::clock::Moment;
use crate::database::{Actor, Change, Check, Record};
use crate::failure::{Failure, Reason};
use crate::rows::{exists, json as json_column, rows};
use crate::secret;

/// How much of a key is kept in clear, for its owner to know it again: the scheme's prefix and four characters.
const SHOWN: usize = 16;

/// What is kept of a key.
#[derive(Debug, Serialize)]
pub struct ApiKey {
    /// Its id, which is no secret.
    pub id: String,
    /// Whose it is.
    pub org: String,
    /// What it is for.
    pub name: String,
    /// The key's first 16 characters.
    pub prefix: String,
    /// The connectors it is confined to; none: all.
    pub connectors: Option<Vec<String>>,
    /// When it was made.
    pub created_at: String,
    /// When it ends by itself.
    pub expires_at: Option<String>,
    /// Its own limits, besides its org's.
    pub limits: Option<Limits>,
    /// Whether it was ended.
    pub revoked: bool,
    /// When that was.
    pub revoked_at: Option<String>,
}

impl ApiKey {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let revoked_at: Option<String> = row.get("revoked_at")?;
        Ok(Self {
            id: row.get("id")?,
            org: row.get("org")?,
            name: row.get("name")?,
            prefix: row.get("prefix")?,
            connectors: json_column(row, "connectors")?,
            created_at: row.get("created_at")?,
            expires_at: row.get("expires_at")?,
            limits: json_column(row, "limits")?,
            revoked: revoked_at.is_some(),
            revoked_at,
        })
    }
}

/// A key to be made.
#[derive(Debug)]
pub struct NewKey<'a> {
    /// Whose it will be.
    pub org: &'a str,
    /// What it is for.
    pub name: &'a str,
    /// The connectors it is confined to; none: all.
    pub connectors: &'a [String],
    /// When it ends by itself.
    pub expires_at: Option<Moment>,
}

/// Makes one. The key itself is returned and kept nowhere. With it comes what the gateway would warn of in its org.
///
/// # Errors
/// Where there is no such org, or a value cannot be.
pub fn create(change: &Change<'_>, actor: &Actor, new: &NewKey<'_>) -> Result<(ApiKey, String), Failure> {
    org::require(change, new.org)?;
    check_name(new.name)?;
    check_connectors(new.connectors)?;
    if new.expires_at.is_some_and(|moment| moment <= actor.now) {
        return Err(Failure::new(Reason::InvalidArgument, "--expires must be at least a second"));
    }
    let taken = |id: &str| exists(change, "SELECT 1 FROM api_keys WHERE id = ?", [id]);
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
        params![made.id, made.org, made.name, made.prefix, secret::sha256(&key), connectors, made.created_at, made.expires_at],
    )?;
    let details = json!({"name": made.name, "connectors": made.connectors, "expires_at": made.expires_at});
    change.record(
        actor,
        &Record { action: "key.create", org: Some(&made.org), subject: &made.id, details, check: Check::Addition },
    )?;
    Ok((made, key))
}

/// All of an org, the oldest first, revoked ones too.
///
/// # Errors
/// Where there is no such org.
pub fn list(connection: &Connection, org: &str) -> Result<Vec<ApiKey>, Failure> {
    org::require(connection, org)?;
    rows(connection, "SELECT * FROM api_keys WHERE org = ? ORDER BY created_at, id", [org], ApiKey::read)
}

/// The one of this id.
///
/// # Errors
/// Where there is none.
pub fn show(connection: &Connection, id: &str) -> Result<ApiKey, Failure> {
    let found = connection.query_row("SELECT * FROM api_keys WHERE id = ?", [id], ApiKey::read).optional()?;
    found.ok_or_else(|| unknown(id))
}

fn unknown(id: &str) -> Failure {
    let line = format!("no API key has the id {id:?}. Run 'apexmcp key list --org ORG' to see the ids");
    Failure::new(Reason::NotFound, line)
}

/// Ends one. To end it again changes nothing.
///
/// # Errors
/// Where there is none.
pub fn revoke(change: &Change<'_>, actor: &Actor, id: &str) -> Result<ApiKey, Failure> {
    let key = show(change, id)?;
    if key.revoked {
        return Ok(key);
    }
    change.execute("UPDATE api_keys SET revoked_at = ? WHERE id = ?", params![actor.now.to_string(), id])?;
    let details = json!({"name": key.name});
    change.record(actor, &Record { action: "key.revoke", org: Some(&key.org), subject: id, details, check: Check::Nothing })?;
    show(change, id)
}
