//! Members: people who may use the console for an org.

use apexmcp_core::names::is_plain;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::org;
use crate::access::{Actor, Role};
use crate::database::{Change, Check, Record};
use crate::failure::{Failure, Reason};
use crate::sql::{Row, Sql, exists, first, rows, values};

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

    /// The role that the member does not have.
    pub(crate) fn other_role(&self) -> &'static str {
        if self.role == "admin" { "viewer" } else { "admin" }
    }

    /// What the member may do.
    ///
    /// # Errors
    /// If the database has an unknown role.
    pub fn role(&self) -> Result<Role, Failure> {
        Role::of(&self.role, Some(&self.org))
    }
}

/// Adds a member.
///
/// # Errors
/// If the org does not exist, a value is not allowed, or the address is that of a member already.
pub fn add(change: &Change<'_>, actor: &Actor, org: &str, email: &str, role: &str) -> Result<Member, Failure> {
    org::require_change(change, actor, org)?;
    let email = address(email);
    let is_address = email.split_once('@').is_some_and(|(name, domain)| !name.is_empty() && !domain.is_empty());
    if !is_address || email.len() > MAX_EMAIL_LENGTH || !email.chars().all(|letter| is_plain(letter) && letter != ' ') {
        return Err(Failure::of("email", "must be an address such as ada@example.com"));
    }
    check_role(role)?;
    let added = change.execute(
        "INSERT INTO members (org, email, role, created_at) VALUES (?, ?, ?, ?) ON CONFLICT (org, email) DO NOTHING",
        values![org, &email, role, actor.now],
    )?;
    if added == 0 {
        // A form for a new member must not take rights from one who is there.
        let known = find(change, org, &email)?.map(|member| member.role).unwrap_or_default();
        let line =
            format!("is the address of a member of {org} already, with the role {known}: change the role of that member instead");
        return Err(Failure::of("email", line).because(Reason::AlreadyExists));
    }
    let details = json!({ "role": role });
    change.record(actor, &Record { action: "member.add", org: Some(org), subject: &email, details, check: Check::Nothing })?;
    find(change, org, &email)?.ok_or_else(|| unknown(org, &email))
}

fn check_role(role: &str) -> Result<(), Failure> {
    match role {
        "admin" | "viewer" => Ok(()),
        _ => Err(Failure::of("role", "must be admin or viewer")),
    }
}

/// Changes the role of a member. It applies to open sessions, too.
///
/// # Errors
/// If the org has no such member, or there is no such role.
pub fn change_role(change: &Change<'_>, actor: &Actor, org: &str, email: &str, role: &str) -> Result<Member, Failure> {
    let member = to_change(change, actor, org, email)?;
    check_role(role)?;
    if member.role == role {
        return Ok(member);
    }
    let email = &member.email;
    change.execute("UPDATE members SET role = ? WHERE org = ? AND email = ?", values![role, org, email])?;
    let details = json!({ "role": role });
    change.record(actor, &Record { action: "member.update", org: Some(org), subject: email, details, check: Check::Nothing })?;
    Ok(Member { role: role.to_owned(), ..member })
}

/// Whether an org would have no admin without this member.
///
/// # Errors
/// If the database fails.
pub fn is_last_admin(connection: &dyn Sql, member: &Member) -> Result<bool, Failure> {
    let query = "SELECT 1 AS one FROM members WHERE org = ? AND email <> ? AND role = 'admin' LIMIT 1";
    Ok(member.role == "admin" && !exists(connection, query, values![&member.org, &member.email])?)
}

/// A member whom the actor may change.
///
/// # Errors
/// If the org has no such member, or the actor may not change it.
pub fn to_change(connection: &dyn Sql, actor: &Actor, org: &str, email: &str) -> Result<Member, Failure> {
    org::require_change(connection, actor, org)?;
    find(connection, org, &address(email))?.ok_or_else(|| unknown(org, email))
}

/// The form of an address in the database.
fn address(text: &str) -> String {
    text.trim().to_ascii_lowercase()
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
    let member = to_change(change, actor, org, email)?;
    let email = &member.email;
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
