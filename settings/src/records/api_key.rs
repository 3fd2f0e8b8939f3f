//! API keys.

use std::collections::BTreeSet;
use std::time::Duration;

use apexmcp_core::limits::document::Limits;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::checks::{check_connectors, check_name};
use super::limits::LimitsBody;
use super::org;
use crate::access::Actor;
use crate::clock::Moment;
use crate::database::{Change, Check, Record};
use crate::failure::{Failure, Reason};
use crate::secret;
use crate::sql::{Part, Range, Row, Sql, Value, exists, first, newest_first, rows, values};

/// Length of the part of a key that is stored unhashed, so that its owner can recognize it: `apx_live_sk_` and four characters.
const SHOWN: usize = 16;

/// The time before its end in which a key expires soon.
const SOON: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The beginning of every key.
const KEY: &str = "apx_live_sk_";

/// Maximum length of a search, in characters.
const MAX_SEARCH: usize = 64;

/// An API key without its secret.
#[derive(Debug, Serialize, ToSchema)]
pub struct ApiKey {
    /// The id, which is not secret.
    pub id: String,
    pub org: String,
    pub name: String,
    /// The first 16 characters of the key.
    pub prefix: String,
    /// The connectors that the key may call. Null: all.
    pub connectors: Option<Vec<String>>,
    pub created_at: String,
    pub expires_at: Option<String>,
    /// The limits of this key. Those of its org apply as well.
    #[schema(value_type = Option<LimitsBody>)]
    pub limits: Option<Limits>,
    pub revoked: bool,
    pub revoked_at: Option<String>,
    /// The time of the last allowed request, to the minute. Null: unknown. The usage says since when it is collected.
    #[schema(format = DateTime)]
    pub last_used: Option<String>,
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
            last_used: None,
        })
    }

    /// Whether the key is active, and expires within a week.
    pub fn expires_soon(&self, now: Moment) -> bool {
        let week = now.plus(SOON).map(|end| end.to_string());
        let ends = self.expires_at.as_ref().zip(week.ok()).is_some_and(|(end, week)| *end <= week);
        ends && self.status(now) == Status::Active
    }

    /// Whether the key can be used.
    pub fn status(&self, now: Moment) -> Status {
        match &self.expires_at {
            _ if self.revoked => Status::Revoked,
            Some(end) if *end <= now.to_string() => Status::Expired,
            _ => Status::Active,
        }
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
    let key = secret::base62(KEY, 32)?;
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
        last_used: None,
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

/// Whether a key can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Active,
    Expired,
    Revoked,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "Active",
            Self::Expired => "Expired",
            Self::Revoked => "Revoked",
        }
    }
}

/// Which keys are wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// `None`: all.
    pub status: Option<Status>,
    /// A part of the name, of the id or of the known beginning of the key, or a whole key. Its letters match in both cases. Empty: all.
    pub search: String,
}

impl Filter {
    /// Whether the list may have to read all keys of the org.
    pub fn is_search(&self) -> bool {
        self.status.is_some() || !self.search.is_empty()
    }
}

/// The keys of an org that the filter wants, the newest first, including revoked ones.
///
/// # Errors
/// If the org does not exist.
pub fn list(
    connection: &dyn Sql,
    actor: &Actor,
    org: &str,
    Filter { status, search }: &Filter,
    range: &Range,
) -> Result<Part<ApiKey>, Failure> {
    org::require(connection, actor, org)?;
    let now = actor.now.to_string();
    let (condition, mut values) = match status {
        None => ("", Vec::new()),
        Some(Status::Revoked) => (" AND revoked_at IS NOT NULL", Vec::new()),
        Some(Status::Expired) => (" AND revoked_at IS NULL AND expires_at <= ?", vec![Value::Text(now)]),
        Some(Status::Active) => (" AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?)", vec![Value::Text(now)]),
    };
    if search.chars().count() > MAX_SEARCH {
        return Err(Failure::of("search", format!("must have at most {MAX_SEARCH} characters")));
    }
    let searches = if search.is_empty() {
        ""
    } else {
        let search = search.trim_end_matches('…').to_ascii_lowercase();
        // Of a whole key, only the beginning is known.
        let of_key: String = search.chars().take(SHOWN).collect();
        let of_key = if search.starts_with(KEY) { of_key } else { search.clone() };
        values.extend([search.clone(), search, of_key].map(Value::Text));
        // Not LIKE: its time grows with the product of both lengths.
        " AND (replace(lower(name), ?, '') <> lower(name) OR replace(id, ?, '') <> id
            OR replace(lower(prefix), ?, '') <> lower(prefix))"
    };
    let query = format!("SELECT * FROM api_keys WHERE org = ?{condition}{searches}");
    let values = [values![org], &values[..]].concat();
    newest_first(connection, &query, &values, ["created_at", "id"], range, ApiKey::read)
}

/// The number of keys whose connectors [`used_connectors`] reads: an org may have half a million keys.
const RECENT: u32 = 200;
/// Maximum number of connectors that [`used_connectors`] finds.
const SUGGESTED: usize = 50;

/// Connectors that recent keys of an org may call, by name.
///
/// # Errors
/// If the org does not exist.
pub fn used_connectors(connection: &dyn Sql, actor: &Actor, org: &str) -> Result<Vec<String>, Failure> {
    org::require(connection, actor, org)?;
    let query = "SELECT DISTINCT connectors
        FROM (SELECT connectors FROM api_keys WHERE org = ? AND revoked_at IS NULL
            ORDER BY created_at DESC, id DESC LIMIT ?) AS recent
        WHERE connectors IS NOT NULL";
    let lists = rows(connection, query, values![org, RECENT], |row| row.json::<Vec<String>>("connectors"))?;
    let used: BTreeSet<String> = lists.into_iter().flatten().flatten().collect();
    Ok(used.into_iter().take(SUGGESTED).collect())
}

/// # Errors
/// If no key has this id.
pub fn show(connection: &dyn Sql, actor: &Actor, id: &str) -> Result<ApiKey, Failure> {
    let found = first(connection, "SELECT * FROM api_keys WHERE id = ?", values![id], ApiKey::read)?;
    let key = found.ok_or_else(|| unknown(id))?;
    actor.check_read(&key.org, || unknown(id))?;
    Ok(key)
}

/// A key of this org.
///
/// # Errors
/// If the org has no key with this id.
pub fn of_org(connection: &dyn Sql, actor: &Actor, org: &str, id: &str) -> Result<ApiKey, Failure> {
    let key = show(connection, actor, id)?;
    if key.org == org { Ok(key) } else { Err(unknown(id)) }
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

/// Changes of a key. `None`: the value stays as it is.
#[derive(Debug, Default)]
pub struct Changes {
    pub name: Option<String>,
    /// `Some(None)`: all connectors.
    pub connectors: Option<Option<Vec<String>>>,
    /// `Some(None)`: the key never expires.
    pub expires_at: Option<Option<Moment>>,
    /// `Some(None)`: unlimited.
    pub limits: Option<Option<Limits>>,
}

/// Changes a key.
///
/// # Errors
/// If no key has this id, the key is revoked, or a value is not allowed.
pub fn update(change: &Change<'_>, actor: &Actor, id: &str, changes: Changes) -> Result<ApiKey, Failure> {
    let key = in_force(change, actor, id)?;
    let Changes { name, connectors, expires_at, limits } = changes;
    if let Some(name) = &name {
        check_name(name)?;
    }
    if let Some(Some(connectors)) = &connectors {
        if connectors.is_empty() {
            return Err(Failure::of("connectors", "must name a connector, or be null for all"));
        }
        check_connectors(connectors)?;
    }
    if expires_at.flatten().is_some_and(|moment| moment <= actor.now) {
        return Err(Failure::of("expires_at", "must be in the future"));
    }
    let name = name.unwrap_or(key.name);
    let connectors = connectors.unwrap_or(key.connectors);
    let expires_at = expires_at.map_or(key.expires_at, |moment| moment.map(|moment| moment.to_string()));
    let limits = limits.unwrap_or(key.limits);
    let json = |value: Option<serde_json::Value>| value.map(|value| value.to_string());
    change.execute(
        "UPDATE api_keys SET name = ?, connectors = ?, expires_at = ?, limits = ? WHERE id = ?",
        values![
            &name,
            json(connectors.as_ref().map(|connectors| json!(connectors))),
            expires_at.as_deref(),
            json(limits.as_ref().map(|limits| json!(limits))),
            id
        ],
    )?;
    let details = json!({"name": name, "connectors": connectors, "expires_at": expires_at, "limits": limits});
    let record = Record { action: "key.update", org: Some(&key.org), subject: id, details, check: Check::Addition };
    change.record(actor, &record)?;
    show(change, actor, id)
}

/// A key that was replaced by a new one.
#[derive(Debug)]
pub struct Rolled {
    pub new: ApiKey,
    /// The new key itself.
    pub key: String,
    pub old: ApiKey,
}

fn moment(text: &str) -> Result<Moment, Failure> {
    Moment::parse(text).map_err(|line| Failure::new(Reason::DatabaseInvalid, line))
}

/// When a key expires that replaces `old` now: it lives as long as the old one was meant to live.
///
/// # Errors
/// If the database has no timestamps.
pub fn end_after_roll(old: &ApiKey, now: Moment) -> Result<Option<Moment>, Failure> {
    let Some(old_end) = old.expires_at.as_deref().map(moment).transpose()? else { return Ok(None) };
    let life = old_end.since(moment(&old.created_at)?);
    // An end that is too far for the calendar stays the same.
    Ok(Some(now.plus(life).unwrap_or(old_end)))
}

/// Creates a key like this one, which then expires after `overlap`. The new key lives as long as the old one was meant to live.
///
/// # Errors
/// If no key has this id, or the key is revoked.
pub fn roll(change: &Change<'_>, actor: &Actor, id: &str, overlap: Duration) -> Result<Rolled, Failure> {
    let old = in_force(change, actor, id)?;
    // Its end is that of the overlap, and no longer that of its life.
    let rolled = "SELECT 1 AS one FROM audit WHERE org = ? AND action = 'key.roll' AND subject = ?";
    if exists(change, rolled, values![&old.org, id])? {
        return Err(Failure::new(
            Reason::Conflict,
            format!("{id} was rolled before: roll the key that replaced it, or create one"),
        ));
    }
    let old_end = old.expires_at.as_deref().map(moment).transpose()?;
    let new = NewKey {
        org: &old.org,
        name: &old.name,
        connectors: old.connectors.as_deref().unwrap_or_default(),
        expires_at: end_after_roll(&old, actor.now)?,
    };
    let (new, key) = create(change, actor, &new)?;
    let limits = old.limits.as_ref().map(|limits| json!(limits).to_string());
    change.execute("UPDATE api_keys SET limits = ? WHERE id = ?", values![limits, &new.id])?;
    let too_long = |_| Failure::of("overlap", "must end before the year 10000");
    let end = actor.now.plus(overlap).map_err(too_long)?;
    let old = if overlap.is_zero() {
        revoke(change, actor, id)?
    } else {
        let end = old_end.map_or(end, |old_end| old_end.min(end));
        change.execute("UPDATE api_keys SET expires_at = ? WHERE id = ?", values![end, id])?;
        let details = json!({"name": old.name, "replaced_by": new.id, "expires_at": end.to_string()});
        let record = Record { action: "key.roll", org: Some(&old.org), subject: id, details, check: Check::Accepted };
        change.record(actor, &record)?;
        show(change, actor, id)?
    };
    let new = show(change, actor, &new.id)?;
    Ok(Rolled { new, key, old })
}

/// The key, if it is not revoked and the actor may change it.
fn in_force(change: &Change<'_>, actor: &Actor, id: &str) -> Result<ApiKey, Failure> {
    let key = show(change, actor, id)?;
    actor.check_change(&key.org, || unknown(id))?;
    match &key.revoked_at {
        Some(at) => Err(Failure::new(Reason::Conflict, format!("{id} was revoked at {at}: create another key"))),
        None => Ok(key),
    }
}
