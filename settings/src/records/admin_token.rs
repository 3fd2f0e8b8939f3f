//! Tokens for the management API.

use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::checks::check_name;
use super::org;
use crate::access::{Actor, Role};
use crate::clock::Moment;
use crate::database::{Change, Check, Record};
use crate::failure::{Failure, Reason};
use crate::secret;
use crate::sql::{Part, Range, Row, Sql, exists, first, part, values};

/// The beginning of every token.
const PREFIX: &str = "apx_admin_";
/// Length of the part of a token that is stored unhashed: the prefix and four characters.
const SHOWN: usize = 14;

/// An admin token without its secret.
#[derive(Debug, Serialize, ToSchema)]
pub struct AdminToken {
    /// The id, which is not secret.
    pub id: String,
    pub name: String,
    /// `operator`, `admin` or `viewer`.
    pub role: String,
    /// The org of an admin or a viewer.
    pub org: Option<String>,
    /// The first 14 characters of the token.
    pub prefix: String,
    pub created_at: String,
    pub expires_at: Option<String>,
    pub revoked: bool,
    pub revoked_at: Option<String>,
}

impl AdminToken {
    fn read(row: &Row<'_>) -> Result<Self, Failure> {
        let revoked_at: Option<String> = row.get("revoked_at")?;
        Ok(Self {
            id: row.get("id")?,
            name: row.get("name")?,
            role: row.get("role")?,
            org: row.get("org")?,
            prefix: row.get("prefix")?,
            created_at: row.get("created_at")?,
            expires_at: row.get("expires_at")?,
            revoked: revoked_at.is_some(),
            revoked_at,
        })
    }
}

/// The values of a new token.
#[derive(Debug)]
pub struct NewToken<'a> {
    pub name: &'a str,
    pub role: &'a Role,
    /// `None`: the token never expires.
    pub expires_at: Option<Moment>,
}

/// Creates a token. The token itself is only returned: the database keeps its hash. No token outlives the one that created it.
///
/// # Errors
/// If the actor is no operator, or a value is not allowed.
pub fn create(change: &Change<'_>, actor: &Actor, new: &NewToken<'_>) -> Result<(AdminToken, String), Failure> {
    actor.check_operator()?;
    check_name(new.name)?;
    if let Some(org) = new.role.org() {
        org::require(change, actor, org)?;
    }
    if new.expires_at.is_some_and(|moment| moment <= actor.now) {
        return Err(Failure::of("expires_at", "must be in the future"));
    }
    if let Some(end) = actor.expires_at.filter(|end| new.expires_at.is_none_or(|moment| moment > *end)) {
        return Err(Failure::of("expires_at", format!("must not be after {end}, when the token of this request expires")));
    }
    let taken = |id: &str| exists(change, "SELECT 1 AS one FROM admin_tokens WHERE id = ?", values![id]);
    let id = secret::unused(|| secret::hexadecimal::<6>().map(|digits| format!("adm_{digits}")), taken)?;
    let token = secret::base62(PREFIX, 32)?;
    let made = AdminToken {
        id,
        name: new.name.to_owned(),
        role: new.role.name().to_owned(),
        org: new.role.org().map(str::to_owned),
        prefix: token.chars().take(SHOWN).collect(),
        created_at: actor.now.to_string(),
        expires_at: new.expires_at.map(|moment| moment.to_string()),
        revoked: false,
        revoked_at: None,
    };
    change.execute(
        "INSERT INTO admin_tokens (id, name, role, org, prefix, sha256, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        values![
            &made.id,
            &made.name,
            &made.role,
            made.org.as_deref(),
            &made.prefix,
            secret::sha256(&token),
            &made.created_at,
            made.expires_at.as_deref()
        ],
    )?;
    let details = json!({"name": made.name, "role": made.role, "expires_at": made.expires_at});
    let record =
        Record { action: "admin-token.create", org: made.org.as_deref(), subject: &made.id, details, check: Check::Nothing };
    change.record(actor, &record)?;
    Ok((made, token))
}

/// All tokens, the oldest first, including revoked ones.
///
/// # Errors
/// If the actor is no operator.
pub fn list(connection: &dyn Sql, actor: &Actor, range: &Range) -> Result<Part<AdminToken>, Failure> {
    actor.check_operator()?;
    let query = "SELECT * FROM admin_tokens WHERE (created_at, id) > (?, ?) ORDER BY created_at, id LIMIT ?";
    let [created_at, id] = &range.after;
    part(connection, query, values![created_at, id, range.with_next()], range, AdminToken::read)
}

/// # Errors
/// If the actor is no operator, or no token has this id.
pub fn show(connection: &dyn Sql, actor: &Actor, id: &str) -> Result<AdminToken, Failure> {
    actor.check_operator()?;
    let found = first(connection, "SELECT * FROM admin_tokens WHERE id = ?", values![id], AdminToken::read)?;
    found.ok_or_else(|| {
        Failure::new(Reason::NotFound, format!("no admin token has the id {id:?}"))
            .hint("Run 'apexmcp admin-token list' to see the ids")
    })
}

/// Revokes a token. A second revocation changes nothing.
///
/// # Errors
/// If the actor is no operator, or no token has this id.
pub fn revoke(change: &Change<'_>, actor: &Actor, id: &str) -> Result<AdminToken, Failure> {
    let token = show(change, actor, id)?;
    if token.revoked {
        return Ok(token);
    }
    change.execute("UPDATE admin_tokens SET revoked_at = ? WHERE id = ?", values![actor.now, id])?;
    let details = json!({"name": token.name});
    let record = Record { action: "admin-token.revoke", org: token.org.as_deref(), subject: id, details, check: Check::Nothing };
    change.record(actor, &record)?;
    show(change, actor, id)
}

/// The caller with this token. `None`: the token is unknown, revoked or expired.
///
/// # Errors
/// If the database fails.
pub fn owner(connection: &dyn Sql, token: &str, now: Moment) -> Result<Option<Actor>, Failure> {
    if !token.starts_with(PREFIX) {
        return Ok(None);
    }
    let query = "SELECT * FROM admin_tokens WHERE sha256 = ? AND revoked_at IS NULL";
    let Some(found) = first(connection, query, values![secret::sha256(token)], AdminToken::read)? else { return Ok(None) };
    let expires_at = found.expires_at.as_deref().map(Moment::parse).transpose();
    let expires_at = expires_at.map_err(|line| Failure::new(Reason::DatabaseInvalid, line))?;
    let role = Role::of(&found.role, found.org.as_deref())?;
    let actor = Actor { name: format!("{} ({})", found.name, found.id), now, role, expires_at };
    Ok(Some(actor).filter(|_| expires_at.is_none_or(|end| now < end)))
}
