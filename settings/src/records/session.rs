//! Sign-in to the console: one-time links, and the sessions that they begin. The database has only hashes of both.

use std::time::Duration;

use serde_json::json;

use super::{member, org};
use crate::access::{Actor, Role};
use crate::clock::Moment;
use crate::database::{Change, Check, Record};
use crate::failure::{Failure, Reason};
use crate::oidc;
use crate::secret::{self, sha256};
use crate::sql::{Row, Sql, first, rows, values};

/// How long a link can be used.
pub const LINK_LIFE: Duration = Duration::from_secs(10 * 60);
/// How long a session lasts.
pub const LIFE: Duration = Duration::from_secs(12 * 60 * 60);
/// Maximum number of sessions of a person in an org. A further one ends the oldest.
const MAX_SESSIONS: usize = 20;
/// Maximum number of sessions in a list. The newest come first.
const MAX_LISTED: usize = 1_000;

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
    let (name, org) = person.parts();
    let link = insert_link(change, name, org, actor.now)?;
    change.record(actor, &Record { action: "session.link", org, subject: name, details: json!({}), check: Check::Nothing })?;
    Ok(link)
}

fn insert_link(change: &Change<'_>, person: &str, org: Option<&str>, now: Moment) -> Result<String, Failure> {
    let link = secret::base62("", 32)?;
    change.execute("DELETE FROM sign_in_links WHERE expires_at <= ?", values![now])?;
    change.execute(
        "INSERT INTO sign_in_links (sha256, person, org, expires_at) VALUES (?, ?, ?, ?)",
        values![sha256(&link), person, org, now.plus(LINK_LIFE)?],
    )?;
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
    insert(change, &person, org.as_deref(), now).map(Some)
}

fn insert(change: &Change<'_>, person: &str, org: Option<&str>, now: Moment) -> Result<String, Failure> {
    change.execute("DELETE FROM sessions WHERE expires_at <= ?", values![now])?;
    let query = "SELECT sha256 FROM sessions WHERE person = ? AND org IS NOT DISTINCT FROM ? ORDER BY expires_at DESC, sha256";
    let known: Vec<String> = rows(change, query, values![person, org], |row| row.get("sha256"))?;
    for oldest in known.iter().skip(MAX_SESSIONS.saturating_sub(1)) {
        change.execute("DELETE FROM sessions WHERE sha256 = ?", values![oldest])?;
    }
    let session = secret::base62("", 32)?;
    change.execute(
        "INSERT INTO sessions (sha256, person, org, expires_at) VALUES (?, ?, ?, ?)",
        values![sha256(&session), person, org, now.plus(LIFE)?],
    )?;
    let record = Record { action: "session.begin", org, subject: person, details: json!({}), check: Check::Nothing };
    change.record(&Actor::operator(person, now), &record)?;
    Ok(session)
}

/// The result of a sign-in with an identity provider.
#[derive(Debug)]
pub enum Admitted {
    /// The secret of a session.
    Session(String),
    /// The person has several roles. Each is an org, or `None` for an operator, with the secret of a link.
    Choice(Vec<(Option<String>, String)>),
    /// The person is neither an operator nor a member of an org.
    Nobody,
}

/// Admits a person whom an identity provider identified.
///
/// # Errors
/// If the database fails.
pub fn admit(change: &Change<'_>, person: &oidc::Person, now: Moment) -> Result<Admitted, Failure> {
    let orgs = match &person.email {
        Some(email) => member::orgs_of(change, email)?,
        None => Vec::new(),
    };
    let mut roles: Vec<Option<String>> = person.is_operator.then_some(None).into_iter().collect();
    roles.extend(orgs.into_iter().map(Some));
    match roles.as_slice() {
        [] => Ok(Admitted::Nobody),
        [role] => Ok(Admitted::Session(insert(change, &person.name, role.as_deref(), now)?)),
        _ => {
            let link = |role: Option<String>| {
                let (name, org) = (person.name.as_str(), role.as_deref());
                let link = insert_link(change, name, org, now)?;
                let record = Record { action: "session.link", org, subject: name, details: json!({}), check: Check::Nothing };
                change.record(&Actor::operator(name, now), &record)?;
                Ok((role, link))
            };
            Ok(Admitted::Choice(roles.into_iter().map(link).collect::<Result<_, Failure>>()?))
        }
    }
}

/// A session, without its secret.
#[derive(Debug)]
pub struct Session {
    /// The first half of its hash.
    pub id: String,
    pub person: String,
    /// The org of a member. `None`: an operator.
    pub org: Option<String>,
    pub begun_at: String,
    pub expires_at: String,
}

impl Session {
    fn read(row: &Row<'_>) -> Result<Self, Failure> {
        let expires_at: String = row.get("expires_at")?;
        let begun_at = Moment::parse(&expires_at).map(|end| end.minus(LIFE).to_string()).unwrap_or_default();
        Ok(Self {
            id: id_of(&row.get::<String>("sha256")?),
            person: row.get("person")?,
            org: row.get("org")?,
            begun_at,
            expires_at,
        })
    }
}

fn id_of(hash: &str) -> String {
    hash.chars().take(32).collect()
}

/// The id of the session with this secret.
pub fn id(session: &str) -> String {
    id_of(&sha256(session))
}

/// The sessions that the actor may end, the newest first: all for an operator, those of the org for its admin, else the own ones.
///
/// # Errors
/// If the database fails.
pub fn list(connection: &dyn Sql, actor: &Actor) -> Result<Vec<Session>, Failure> {
    let query = format!("SELECT * FROM sessions WHERE expires_at > ? ORDER BY expires_at DESC, sha256 LIMIT {MAX_LISTED}");
    let of_org =
        format!("SELECT * FROM sessions WHERE expires_at > ? AND org = ? ORDER BY expires_at DESC, sha256 LIMIT {MAX_LISTED}");
    let of_person = "SELECT * FROM sessions WHERE expires_at > ? AND org = ? AND person = ? ORDER BY expires_at DESC, sha256";
    match &actor.role {
        Role::Operator => rows(connection, &query, values![actor.now], Session::read),
        Role::Admin(org) => rows(connection, &of_org, values![actor.now, org], Session::read),
        Role::Viewer(org) => rows(connection, of_person, values![actor.now, org, &actor.name], Session::read),
    }
}

/// A session that the actor may end.
///
/// # Errors
/// If there is no such session.
pub fn find(connection: &dyn Sql, actor: &Actor, id: &str) -> Result<Session, Failure> {
    let query = "SELECT * FROM sessions WHERE substr(sha256, 1, 32) = ?";
    let found = first(connection, query, values![id], Session::read)?.filter(|session| match &actor.role {
        Role::Operator => true,
        Role::Admin(org) => session.org.as_ref() == Some(org),
        Role::Viewer(org) => session.org.as_ref() == Some(org) && session.person == actor.name,
    });
    let unknown = || Failure::new(Reason::NotFound, "there is no such session: it may have ended already");
    found.ok_or_else(unknown)
}

/// Ends a session that the actor may end.
///
/// # Errors
/// If there is no such session.
pub fn end_by_id(change: &Change<'_>, actor: &Actor, id: &str) -> Result<(), Failure> {
    let session = find(change, actor, id)?;
    change.execute("DELETE FROM sessions WHERE substr(sha256, 1, 32) = ?", values![id])?;
    let (org, subject) = (session.org.as_deref(), session.person.as_str());
    change.record(actor, &Record { action: "session.end", org, subject, details: json!({}), check: Check::Nothing })
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
