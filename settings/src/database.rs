//! The database: one SQLite file, changed in transactions of which each leaves its record.

use std::fs::{self, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, params};
use serde_json::Value;

use crate::clock::Moment;
use crate::failure::{Failure, Reason};

/// In the order in which they are applied; `user_version` counts those that were. What was released is never edited.
const MIGRATIONS: &[&str] = &[include_str!("../migrations/0001.sql"), include_str!("../migrations/0002.sql")];

/// In the file's head, so that another program's database is not taken for ours: "apex".
const APPLICATION_ID: i64 = 0x6170_6578;

/// How long a change waits for others to end.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Who changes something, and when.
#[derive(Clone, Debug)]
pub struct Actor {
    /// The operating system's user, or whom the command names.
    pub name: String,
    /// The moment of the change.
    pub now: Moment,
}

/// What a change leaves in the audit log.
#[derive(Debug)]
pub struct Record<'a> {
    /// Such as `key.create`.
    pub action: &'static str,
    /// The org concerned, where it is one.
    pub org: Option<&'a str>,
    /// What was changed.
    pub subject: &'a str,
    /// How; a JSON object without any secret.
    pub details: Value,
}

/// An open database.
#[derive(Debug)]
pub struct Database(Connection);

impl Database {
    /// Opens what [`Database::create`] made, and brings it to this program's form.
    ///
    /// # Errors
    /// Where there is none, or it is not ours.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let mut database = Self::connect(path)?;
        match database.stage(path)? {
            Stage::Empty => Err(Failure::new(
                Reason::DatabaseMissing,
                format!("the database {} is empty: run 'apexmcp init' first", path.display()),
            )),
            Stage::Migrated(applied) => {
                if applied < MIGRATIONS.len() {
                    database.migrate(path, |_| Ok(()))?;
                }
                Ok(database)
            }
        }
    }

    /// Makes a new one that holds what `first` writes, all or nothing.
    ///
    /// # Errors
    /// Where there is one already, or the file cannot be made.
    pub fn create(path: &Path, first: impl FnOnce(&Change<'_>) -> Result<(), Failure>) -> Result<Self, Failure> {
        // Private keys will be in it: it is nobody else's to read. SQLite gives the files beside it the same mode.
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed_to_open(path, error)),
            _ => {}
        }
        let mut database = Self::connect(path)?;
        match database.stage(path)? {
            Stage::Empty => {
                // An empty one may have been there.
                fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(|error| failed_to_open(path, error))?;
                database.migrate(path, first)?;
            }
            Stage::Migrated(_) => return Err(exists(path)),
        }
        Ok(database)
    }

    fn connect(path: &Path) -> Result<Self, Failure> {
        // SQLite would say no more than that it cannot. The file itself is opened by SQLite alone: whatever else of this
        // process closes it ends the locks of all its connections, and another process then deletes the -wal under them.
        fs::metadata(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Failure::new(
                Reason::DatabaseMissing,
                format!(
                    "there is no database {}: run 'apexmcp init' first, or name another file with --db or APEXMCP_DB",
                    path.display()
                ),
            ),
            _ => failed_to_open(path, error),
        })?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(|error| failed_to_open(path, error))?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        // With FULL, a change that was acknowledged survives the loss of power too.
        connection.pragma_update(None, "synchronous", "FULL")?;
        Ok(Self(connection))
    }

    fn stage(&self, path: &Path) -> Result<Stage, Failure> {
        let foreign = || {
            Failure::new(
                Reason::DatabaseInvalid,
                format!("{} is not a database of apexmcp: name another file with --db", path.display()),
            )
        };
        let number = |pragma| self.0.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
        let applied = usize::try_from(number("user_version")?).unwrap_or(usize::MAX);
        let tables: i64 = self.0.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        match (number("application_id")?, applied) {
            (0, 0) if tables == 0 => Ok(Stage::Empty),
            (APPLICATION_ID, applied) if applied > MIGRATIONS.len() => Err(Failure::new(
                Reason::DatabaseInvalid,
                format!("{} was written by a newer apexmcp: install that version", path.display()),
            )),
            (APPLICATION_ID, applied) => Ok(Stage::Migrated(applied)),
            _ => Err(foreign()),
        }
    }

    /// Applies what is missing, and lets `then` write in the same transaction.
    fn migrate(&mut self, path: &Path, then: impl FnOnce(&Change<'_>) -> Result<(), Failure>) -> Result<(), Failure> {
        // It stays in the file. SQLite changes it outside transactions only.
        self.0.pragma_update(None, "journal_mode", "WAL")?;
        let was_empty = matches!(self.stage(path)?, Stage::Empty);
        let transaction = self.0.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have been faster until the transaction began.
        let applied: u32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if was_empty && applied > 0 {
            return Err(exists(path));
        }
        for migration in MIGRATIONS.iter().skip(usize::try_from(applied).unwrap_or(usize::MAX)) {
            transaction.execute_batch(migration)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX))?;
        then(&Change(&transaction))?;
        transaction.commit()?;
        Ok(())
    }

    /// Runs `action` in one transaction. What it writes stays if it leaves a record, and only then.
    ///
    /// # Errors
    /// What `action` says, and what hinders the database.
    pub fn change<T>(&mut self, action: impl FnOnce(&Change<'_>) -> Result<T, Failure>) -> Result<T, Failure> {
        let transaction = self.0.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let before = version(&transaction)?;
        let value = action(&Change(&transaction))?;
        if version(&transaction)? != before {
            transaction.commit()?;
        }
        Ok(value)
    }

    /// Runs `question` on one state of the database, whatever is changed meanwhile.
    ///
    /// # Errors
    /// What `question` says, and what hinders the database.
    pub fn read<T>(&mut self, question: impl FnOnce(&Connection) -> Result<T, Failure>) -> Result<T, Failure> {
        question(&*self.0.transaction()?)
    }

    /// Ends the connection, and leaves `-wal` and `-shm` where they are: whoever made them anew may have changes in them.
    pub fn leave(self) {
        let _ = self.0.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
    }

    /// A number that is another one after any other connection has committed.
    ///
    /// # Errors
    /// What hinders the database.
    pub fn data_version(&self) -> Result<i64, Failure> {
        Ok(self.0.pragma_query_value(None, "data_version", |row| row.get(0))?)
    }
}

enum Stage {
    Empty,
    Migrated(usize),
}

/// The version of the policy that is in force.
///
/// # Errors
/// What hinders the database.
pub fn version(connection: &Connection) -> Result<i64, Failure> {
    Ok(connection.query_row("SELECT version FROM policy", [], |row| row.get(0))?)
}

/// A transaction that is under way. Outside of it, the database can only be read.
#[derive(Debug)]
pub struct Change<'t>(&'t Transaction<'t>);

impl std::ops::Deref for Change<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.0
    }
}

impl Change<'_> {
    /// Notes what this transaction did, which gives the policy its next version.
    ///
    /// # Errors
    /// What hinders the database.
    pub fn record(&self, actor: &Actor, record: &Record<'_>) -> Result<(), Failure> {
        let next: i64 = self.query_row("UPDATE policy SET version = version + 1 RETURNING version", [], |row| row.get(0))?;
        let values = params![
            next,
            actor.now.to_string(),
            actor.name,
            record.action,
            record.org,
            record.subject,
            record.details.to_string()
        ];
        self.execute(
            "INSERT INTO audit (version, at, actor, action, org, subject, details) VALUES (?, ?, ?, ?, ?, ?, ?)",
            values,
        )?;
        Ok(())
    }
}

fn exists(path: &Path) -> Failure {
    Failure::new(
        Reason::AlreadyExists,
        format!("the database {} already exists: use it, or name another file with --db", path.display()),
    )
}

/// What to do where others than its owner can read the file at `path`: a copy has the mode that the umask of its maker left.
pub fn exposure(path: &Path) -> Option<String> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    let path = path.display();
    let line =
        || format!("others than its owner can read {path} (mode {mode:o}) and the private keys in it: run 'chmod 600 {path}*'");
    (mode & 0o077 != 0).then(line)
}

fn failed_to_open(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::during(Reason::DatabaseFailed, format_args!("{} cannot be opened", path.display()))(error)
}
