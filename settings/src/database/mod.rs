//! The database: an SQLite file, or PostgreSQL. It changes in transactions, and each transaction leaves a record in the audit
//! log.

pub mod copy;
pub mod pool;
mod postgres;
mod sqlite;
pub(crate) mod usage;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use apexmcp_core::problem::Problem;
use serde_json::Value as Json;

pub use self::postgres::Postgres;
pub use self::sqlite::{Files, Sqlite};
use crate::access::Actor;
use crate::encryption::Keyring;
use crate::failure::{Failure, Reason};
use crate::parts::{self, Changed};
use crate::sql::{Row, Sql, Value, exists, only, values};

/// Maximum length of a part of the policy after an addition, in bytes. Gateways take each part as a whole.
const MAX_PART_LENGTH: usize = 1 << 20;

/// Where a database is.
#[derive(Clone, PartialEq, Eq)]
pub enum Location {
    /// A file of SQLite.
    File(PathBuf),
    /// A connection string of PostgreSQL (`postgres://…`), which may contain a password.
    Postgres(String),
}

impl FromStr for Location {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_url = ["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme));
        Ok(if is_url { Self::Postgres(text.to_owned()) } else { Self::File(text.into()) })
    }
}

impl From<&Path> for Location {
    fn from(path: &Path) -> Self {
        Self::File(path.to_owned())
    }
}

impl fmt::Display for Location {
    /// Without a password.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(formatter),
            Self::Postgres(url) => formatter.write_str(&without_password(url)),
        }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// A URL without its password and without its query, which may contain one too.
fn without_password(url: &str) -> String {
    let url = url.split('?').next().unwrap_or_default();
    let Some((scheme, rest)) = url.split_once("://") else { return String::new() };
    match rest.rsplit_once('@') {
        Some((user, host)) => format!("{scheme}://{}@{host}", user.split(':').next().unwrap_or_default()),
        None => url.to_owned(),
    }
}

/// An entry of the audit log.
#[derive(Debug)]
pub struct Record<'a> {
    /// Such as `key.create`.
    pub action: &'static str,
    pub org: Option<&'a str>,
    /// The name or id of what was changed.
    pub subject: &'a str,
    /// A JSON object without any secret.
    pub details: Json,
    pub check: Check,
}

/// How the changed parts of an org's policy are checked before a change is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// Nothing, because the change can make nothing worse. A revocation must succeed even if the policy has an error.
    Nothing,
    /// Gateways must accept the parts.
    Accepted,
    /// In addition, gateways must be able to tell apart all connectors that the records of the org name.
    Addition,
}

/// The result of a change.
#[derive(Debug)]
pub struct Done<T> {
    pub value: T,
    /// What gateways would warn of in the changed orgs.
    pub warnings: Vec<Problem>,
}

/// An open database.
#[derive(Debug)]
pub enum Database {
    Sqlite(Box<Sqlite>),
    Postgres(Box<Postgres>),
}

impl Database {
    /// Opens a database that [`Database::create`] created, and applies missing migrations.
    ///
    /// # Errors
    /// If there is no database, or it is not ours.
    pub fn open(location: &Location) -> Result<Self, Failure> {
        match location {
            Location::File(path) => Sqlite::open(path).map(Box::new).map(Self::Sqlite),
            Location::Postgres(url) => Postgres::open(url).map(Box::new).map(Self::Postgres),
        }
    }

    /// Creates a database with what `first` writes, atomically.
    ///
    /// # Errors
    /// If the database already exists, or cannot be created.
    pub fn create(location: &Location, first: impl FnOnce(&Change<'_>) -> Result<(), Failure>) -> Result<Self, Failure> {
        match location {
            Location::File(path) => Sqlite::create(path, first).map(Box::new).map(Self::Sqlite),
            Location::Postgres(url) => Postgres::create(url, first).map(Box::new).map(Self::Postgres),
        }
    }

    /// Runs `action` in one transaction, then checks the changed parts of the policy. Commits only if `action` left a record.
    ///
    /// # Errors
    /// If `action` fails, gateways would refuse the changed policy, or the database fails. Nothing is changed then.
    pub fn change<T>(&mut self, action: impl FnOnce(&Change<'_>) -> Result<T, Failure>) -> Result<Done<T>, Failure> {
        self.change_if(action, |_| Ok(()))
    }

    /// As [`Self::change`], with a last check before the commit.
    ///
    /// # Errors
    /// As for [`Self::change`], and if `accept` fails.
    pub fn change_if<T>(
        &mut self,
        action: impl FnOnce(&Change<'_>) -> Result<T, Failure>,
        accept: impl FnOnce(&Change<'_>) -> Result<(), Failure>,
    ) -> Result<Done<T>, Failure> {
        let run = |sql: &dyn Sql| {
            let change = Change::of(sql);
            let value = action(&change)?;
            if !change.is_recorded.get() {
                return Ok((Done { value, warnings: Vec::new() }, change.is_needed.get()));
            }
            let warnings = change.conclude()?;
            accept(&change)?;
            Ok((Done { value, warnings }, true))
        };
        match self {
            Self::Sqlite(database) => database.change(run),
            Self::Postgres(database) => database.change(run),
        }
    }

    /// Overwrites what was deleted or replaced, as far as the database can.
    ///
    /// # Errors
    /// If the database fails, for example because another process uses it.
    pub fn forget_deleted(&mut self) -> Result<(), Failure> {
        match self {
            Self::Sqlite(database) => database.forget_deleted(),
            Self::Postgres(database) => database.forget_deleted(),
        }
    }

    /// Runs `question` on one state of the database, even if other processes change it meanwhile.
    ///
    /// # Errors
    /// If `question` or the database fails.
    pub fn read<T>(&mut self, question: impl FnOnce(&dyn Sql) -> Result<T, Failure>) -> Result<T, Failure> {
        match self {
            Self::Sqlite(database) => database.read(question),
            Self::Postgres(database) => database.read(question),
        }
    }
}

/// The master keys that the environment of this process names.
fn keyring() -> Result<Keyring, Failure> {
    Keyring::from_environment(|name| std::env::var(name).ok())
}

/// A warning if users other than the owner can read the file.
pub fn exposure(location: &Location) -> Option<String> {
    match location {
        Location::File(path) => sqlite::exposure(path),
        Location::Postgres(_) => None,
    }
}

/// An open transaction. Without one, the database can only be read.
pub struct Change<'t> {
    transaction: &'t dyn Sql,
    is_recorded: Cell<bool>,
    /// Whether to commit without a record.
    is_needed: Cell<bool>,
    /// The strictest check that the records ask for, by org.
    checks: RefCell<BTreeMap<String, Check>>,
}

impl Sql for Change<'_> {
    fn keyring(&self) -> &Keyring {
        self.transaction.keyring()
    }

    fn execute(&self, query: &str, values: &[Value]) -> Result<u64, Failure> {
        self.transaction.execute(query, values)
    }

    fn each(&self, query: &str, values: &[Value], take: &mut dyn FnMut(&Row<'_>) -> Result<(), Failure>) -> Result<(), Failure> {
        self.transaction.each(query, values, take)
    }
}

impl<'t> Change<'t> {
    fn of(transaction: &'t dyn Sql) -> Self {
        Self { transaction, is_recorded: Cell::default(), is_needed: Cell::default(), checks: RefCell::default() }
    }

    /// Writes an entry of the audit log, and gives the policy its next version.
    ///
    /// # Errors
    /// If the database fails.
    pub fn record(&self, actor: &Actor, record: &Record<'_>) -> Result<(), Failure> {
        self.execute("UPDATE policy SET version = version + 1", values![])?;
        let next: i64 = only(self, "SELECT version FROM policy", values![], |row| row.get("version"))?;
        self.execute(
            "INSERT INTO audit (version, at, actor, action, org, subject, details) VALUES (?, ?, ?, ?, ?, ?, ?)",
            values![next, actor.now, &actor.name, record.action, record.org, record.subject, record.details.to_string()],
        )?;
        self.is_recorded.set(true);
        if let Some(org) = record.org {
            let mut checks = self.checks.borrow_mut();
            let check = checks.entry(org.to_owned()).or_insert(Check::Nothing);
            *check = record.check.max(*check);
        }
        Ok(())
    }

    /// Commits the transaction although it changes no record, for what is not a setting.
    pub fn commit_anyway(&self) {
        self.is_needed.set(true);
    }

    /// Ends the transaction that creates or migrates a database.
    fn conclude_first(&self) -> Result<(), Failure> {
        if self.is_recorded.get() || exists(self, "SELECT kind FROM touched LIMIT 1", values![])? {
            self.conclude()?;
        }
        Ok(())
    }

    /// Notes which parts of the policy changed, and checks them. Returns what gateways would warn of.
    fn conclude(&self) -> Result<Vec<Problem>, Failure> {
        let (reader, checks) = (parts::reader(), self.checks.borrow());
        let mut warnings = Vec::new();
        for Changed { org, name, text } in parts::note_changes(self)? {
            let check = org.and_then(|org| checks.get(&org).copied()).unwrap_or(Check::Nothing);
            let Some(text) = text.filter(|_| check > Check::Nothing) else { continue };
            if check == Check::Addition && text.len() > MAX_PART_LENGTH {
                return Err(Failure::new(
                    Reason::LimitExceeded,
                    format!(
                        "the part {name} of the policy would have {} bytes, and at most {MAX_PART_LENGTH} are allowed: remove \
                         connectors, providers or revocations that are no longer needed",
                        text.len()
                    ),
                ));
            }
            if name.starts_with("client/") && !exists(self, "SELECT 1 AS one FROM signing_keys", values![])? {
                let line = "an OAuth client needs a signing key: create one first";
                return Err(Failure::new(Reason::PolicyRefused, line).hint("Run 'apexmcp signing-key create'"));
            }
            let notes = reader.check(&name, &text).map_err(|problems| {
                let first = problems.first().map(Problem::to_string).unwrap_or_default();
                Failure::new(Reason::PolicyRefused, format!("the gateway would refuse {first}"))
            })?;
            if let Some(conflict) = notes.conflicts.first().filter(|_| check == Check::Addition) {
                return Err(Failure::new(Reason::PolicyRefused, conflict.to_string()));
            }
            warnings.extend(notes.warnings);
            warnings.extend(notes.conflicts);
        }
        Ok(warnings)
    }
}
