//! Members: people who may use the console for an org.

use apexmcp_core::names::is_plain;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::org;
use crate::access::{Actor, Role};
use crate::database::{Change, Check, Record};
use crate::failure::{Failure, Reason};
use crate::sql::{Row, Sql, first, rows, values};

/// Maximum length of an address (RFC 5321 §4.5.3.1.3, without the brackets).
const MAX_EMAIL_LENGTH: usize = 254;

#[derive(Debug, Serialize, ToSchema)]
pub struct Member {
    /// The address, in lower case.
    pub email: String,
    pub org: String,
    /// `admin` or `viewer`.
    pub role: String,
    pub created_at: String,
}

impl Member {
    fn read(row: &Row<'_>) -> Result<Self, Failure> {
        Ok(Self { email: row.get("email")?, org: row.get("org")?, role: row.get("role")?, created_at: row.get("created_at")? })
    }

    /// What the member may do.
    ///
    /// # Errors
    /// If the database has an unknown role.
    pub fn role(&self) -> Result<Role, Failure> {
        Role::of(&self.role, Some(&self.org))
    }
}

/// Adds a member, or changes the role of one.
///
/// # Errors
/// If the org does not exist, or a value is not allowed.
pub fn add(change: &Change<'_>, actor: &Actor, org: &str, email: &str, role: &str) -> Result<Member, Failure> {
    org::require_change(change, actor, org)?;
    let email = email.trim().to_ascii_lowercase();
    let is_address = email.split_once('@').is_some_and(|(name, domain)| !name.is_empty() && !domain.is_empty());
    if !is_address || email.len() > MAX_EMAIL_LENGTH || !email.chars().all(|letter| is_plain(letter) && letter != ' ') {
        return Err(Failure::of("email", "must be an address such as ada@example.com"));
    }
    if !["admin", "viewer"].contains(&role) {
        return Err(Failure::of("role", "must be admin or viewer"));
    }
    change.execute(
        "INSERT INTO members (org, email, role, created_at) VALUES (?, ?, ?, ?)
            ON CONFLICT (org, email) DO UPDATE SET role = excluded.role",
        values![org, &email, role, actor.now],
    )?;
    let details = json!({ "role": role });
    change.record(actor, &Record { action: "member.add", org: Some(org), subject: &email, details, check: Check::Nothing })?;
    find(change, org, &email)?.ok_or_else(|| unknown(org, &email))
}

/// The members of an org, by address.
///
/// # Errors
/// If the org does not exist.
pub fn list(connection: &dyn Sql, actor: &Actor, org: &str) -> Result<Vec<Member>, Failure> {
    org::require(connection, actor, org)?;
    rows(connection, "SELECT * FROM members WHERE org = ? ORDER BY email", values![org], Member::read)
}

/// Removes a member. The member's sessions end.
///
/// # Errors
/// If the org has no such member.
pub fn remove(change: &Change<'_>, actor: &Actor, org: &str, email: &str) -> Result<Member, Failure> {
    org::require_change(change, actor, org)?;
    let member = find(change, org, email)?.ok_or_else(|| unknown(org, email))?;
    for table in ["members WHERE email = ?", "sessions WHERE person = ?", "sign_in_links WHERE person = ?"] {
        change.execute(&format!("DELETE FROM {table} AND org = ?"), values![email, org])?;
    }
    let record = Record { action: "member.remove", org: Some(org), subject: email, details: json!({}), check: Check::Nothing };
    change.record(actor, &record)?;
    Ok(member)
}

/// A member of an org.
///
/// # Errors
/// If the database fails.
pub fn find(connection: &dyn Sql, org: &str, email: &str) -> Result<Option<Member>, Failure> {
    first(connection, "SELECT * FROM members WHERE org = ? AND email = ?", values![org, email], Member::read)
}

/// The orgs of which somebody is a member.
///
/// # Errors
/// If the database fails.
pub fn orgs_of(connection: &dyn Sql, email: &str) -> Result<Vec<String>, Failure> {
    rows(connection, "SELECT org FROM members WHERE email = ? ORDER BY org", values![email], |row| row.get("org"))
}

/// There is no such member.
pub fn unknown(org: &str, email: &str) -> Failure {
    Failure::new(Reason::NotFound, format!("{org} has no member {email:?}: add the member first"))
}
