//! Sign-in to the console: one-time links, and the sessions that they begin. The database has only hashes of both.

use std::time::Duration;

use serde_json::json;

use super::{member, org};
use crate::access::{Actor, Role};
use crate::clock::Moment;
use crate::database::{Change, Check, Record};
use crate::failure::Failure;
use crate::secret::{self, sha256};
use crate::sql::{Sql, first, values};

/// How long a link can be used.
pub const LINK_LIFE: Duration = Duration::from_secs(10 * 60);
/// How long a session lasts.
pub const LIFE: Duration = Duration::from_secs(12 * 60 * 60);

/// The person who signs in.
#[derive(Debug)]
pub enum Person<'a> {
    /// An operator, by the name for the audit log.
    Operator(&'a str),
    Member {
        org: &'a str,
        email: &'a str,
    },
}

impl Person<'_> {
    fn parts(&self) -> (&str, Option<&str>) {
        match self {
            Self::Operator(name) => (name, None),
            Self::Member { org, email } => (email, Some(org)),
        }
    }
}

/// Makes the secret of a one-time link for this person.
///
/// # Errors
/// If the actor may not, or the org has no such member.
pub fn create_link(change: &Change<'_>, actor: &Actor, person: &Person<'_>) -> Result<String, Failure> {
    match person {
        Person::Operator(_) => actor.check_operator()?,
        Person::Member { org, email } => {
            org::require_change(change, actor, org)?;
            member::find(change, org, email)?.ok_or_else(|| member::unknown(org, email))?;
        }
    }
    let link = secret::base62("", 32)?;
    let (name, org) = person.parts();
    change.execute("DELETE FROM sign_in_links WHERE expires_at <= ?", values![actor.now])?;
    change.execute(
        "INSERT INTO sign_in_links (sha256, person, org, expires_at) VALUES (?, ?, ?, ?)",
        values![sha256(&link), name, org, actor.now.plus(LINK_LIFE)?],
    )?;
    change.record(actor, &Record { action: "session.link", org, subject: name, details: json!({}), check: Check::Nothing })?;
    Ok(link)
}

/// Begins a session with the secret of a link, which cannot be used again. `None`: the link is unknown, used or expired.
///
/// # Errors
/// If the database fails.
pub fn begin(change: &Change<'_>, link: &str, now: Moment) -> Result<Option<String>, Failure> {
    let query = "SELECT person, org FROM sign_in_links WHERE sha256 = ? AND expires_at > ?";
    let found = first(change, query, values![sha256(link), now], |row| {
        Ok((row.get::<String>("person")?, row.get::<Option<String>>("org")?))
    })?;
    let Some((person, org)) = found else { return Ok(None) };
    change.execute("DELETE FROM sign_in_links WHERE sha256 = ?", values![sha256(link)])?;
    change.execute("DELETE FROM sessions WHERE expires_at <= ?", values![now])?;
    let session = secret::base62("", 32)?;
    change.execute(
        "INSERT INTO sessions (sha256, person, org, expires_at) VALUES (?, ?, ?, ?)",
        values![sha256(&session), &person, org.as_deref(), now.plus(LIFE)?],
    )?;
    let org = org.as_deref();
    let record = Record { action: "session.begin", org, subject: &person, details: json!({}), check: Check::Nothing };
    change.record(&Actor::operator(&person, now), &record)?;
    Ok(Some(session))
}

/// The person with this session. `None`: the session is unknown or has ended.
///
/// # Errors
/// If the database fails.
pub fn owner(connection: &dyn Sql, session: &str, now: Moment) -> Result<Option<Actor>, Failure> {
    let query = "SELECT person, org, expires_at FROM sessions WHERE sha256 = ? AND expires_at > ?";
    let found = first(connection, query, values![sha256(session), now], |row| {
        Ok((row.get::<String>("person")?, row.get::<Option<String>>("org")?, row.get::<String>("expires_at")?))
    })?;
    let Some((name, org, expires_at)) = found else { return Ok(None) };
    let role = match org {
        None => Role::Operator,
        // The role of a member may have changed since the session began.
        Some(org) => match member::find(connection, &org, &name)? {
            Some(member) => member.role()?,
            None => return Ok(None),
        },
    };
    Ok(Some(Actor { name, now, role, expires_at: Moment::parse(&expires_at).ok() }))
}

/// Ends a session.
///
/// # Errors
/// If the database fails.
pub fn end(change: &Change<'_>, actor: &Actor, session: &str) -> Result<(), Failure> {
    change.execute("DELETE FROM sessions WHERE sha256 = ?", values![sha256(session)])?;
    let org = actor.role.org();
    let record = Record { action: "session.end", org, subject: &actor.name, details: json!({}), check: Check::Nothing };
    change.record(actor, &record)
}
