//! The database: one SQLite file. It changes in transactions, and each transaction leaves a record in the audit log.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use apexmcp_core::problem::Problem;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, params};
use serde_json::Value;

use crate::clock::Moment;
use crate::failure::{Failure, Reason};
use crate::parts::{self, Changed};
use crate::rows::exists;

/// The migrations in their order. `user_version` counts the ones that were applied. A released migration never changes.
const MIGRATIONS: &[&str] = &[
    include_str!("../migrations/0001.sql"),
    include_str!("../migrations/0002.sql"),
    include_str!("../migrations/0003.sql"),
    include_str!("../migrations/0004.sql"),
];

/// "apex" in the header of the file. It tells our database from those of other programs.
const APPLICATION_ID: i64 = 0x6170_6578;

/// Maximum length of a part of the policy after an addition, in bytes. Gateways take each part as a whole.
const MAX_PART_LENGTH: usize = 1 << 20;

/// How long a change waits for the changes of other processes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The author and the time of a change.
#[derive(Clone, Debug)]
pub struct Actor {
    /// The user of this process, or the name that `--actor` gives.
    pub name: String,
    pub now: Moment,
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
    pub details: Value,
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
pub struct Database(Connection);

impl Database {
    /// Opens a database that [`Database::create`] created, and applies missing migrations.
    ///
    /// # Errors
    /// If the file does not exist or is not our database.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let mut database = Self::connect(path)?;
        match database.stage(path)? {
            Stage::Empty => Err(Failure::new(
                Reason::DatabaseMissing,
                format!("the database {} is empty: run 'apexmcp init', or restore a copy if it was lost", path.display()),
            )),
            Stage::Migrated(applied) => {
                if applied < MIGRATIONS.len() {
                    database.migrate(path, |_| Ok(()))?;
                }
                Ok(database)
            }
        }
    }

    /// Creates a database with what `first` writes, atomically.
    ///
    /// # Errors
    /// If the database already exists, or the file cannot be created.
    pub fn create(path: &Path, first: impl FnOnce(&Change<'_>) -> Result<(), Failure>) -> Result<Self, Failure> {
        // The file will contain private keys, so only its owner may read it. SQLite gives -wal and -shm the same mode.
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed_to_open(path, error)),
            _ => {}
        }
        let mut database = Self::connect(path)?;
        match database.stage(path)? {
            Stage::Empty => {
                // The file may have existed, empty and with another mode.
                fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(|error| failed_to_open(path, error))?;
                database.migrate(path, first)?;
            }
            Stage::Migrated(_) => return Err(already_exists(path)),
        }
        Ok(database)
    }

    fn connect(path: &Path) -> Result<Self, Failure> {
        // The error of SQLite would not say why. Only SQLite may open the file itself: POSIX ends all locks of a process on a
        // file when the process closes any descriptor of it. Another process would then delete the -wal that is in use.
        fs::metadata(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => Failure::new(
                Reason::DatabaseMissing,
                format!(
                    "there is no database {}: run 'apexmcp init' to create one, restore a copy if it was lost, or name another file \
                     with --db or APEXMCP_DB",
                    path.display()
                ),
            ),
            _ => failed_to_open(path, error),
        })?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(|error| failed_to_open(path, error))?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "foreign_keys", true)?;
        // With FULL, an acknowledged change also survives a loss of power.
        connection.pragma_update(None, "synchronous", "FULL")?;
        Ok(Self(connection))
    }

    fn stage(&self, path: &Path) -> Result<Stage, Failure> {
        let invalid = |line: String| Err(Failure::new(Reason::DatabaseInvalid, line));
        let number = |pragma| self.0.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
        let applied = usize::try_from(number("user_version")?).unwrap_or(usize::MAX);
        let tables: i64 = self.0.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        match (number("application_id")?, applied) {
            (0, 0) if tables == 0 => Ok(Stage::Empty),
            (APPLICATION_ID, applied) if applied > MIGRATIONS.len() => {
                invalid(format!("{} was written by a newer apexmcp: install that version", path.display()))
            }
            (APPLICATION_ID, applied) => Ok(Stage::Migrated(applied)),
            _ => invalid(format!("{} is not a database of apexmcp: name another file with --db", path.display())),
        }
    }

    /// Applies the missing migrations, then runs `then` in the same transaction.
    fn migrate(&mut self, path: &Path, then: impl FnOnce(&Change<'_>) -> Result<(), Failure>) -> Result<(), Failure> {
        // The file remembers the mode. SQLite can change it only outside of a transaction.
        self.0.pragma_update(None, "journal_mode", "WAL")?;
        let was_empty = matches!(self.stage(path)?, Stage::Empty);
        let transaction = self.0.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have migrated the database before this transaction began.
        let applied: u32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if was_empty && applied > 0 {
            return Err(already_exists(path));
        }
        for migration in MIGRATIONS.iter().skip(usize::try_from(applied).unwrap_or(usize::MAX)) {
            transaction.execute_batch(migration)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX))?;
        let change = Change::of(&transaction);
        then(&change)?;
        change.conclude()?;
        transaction.commit()?;
        Ok(())
    }

    /// Runs `action` in one transaction, then checks the policy of the changed orgs. Commits only if `action` left a record.
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
        let transaction = self.0.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let change = Change::of(&transaction);
        let value = action(&change)?;
        let warnings = change.conclude()?;
        accept(&change)?;
        let is_recorded = change.is_recorded.get();
        if is_recorded {
            transaction.commit()?;
        }
        Ok(Done { value, warnings })
    }

    /// Runs `question` on one state of the database, even if other processes change it meanwhile.
    ///
    /// # Errors
    /// If `question` or the database fails.
    pub fn read<T>(&mut self, question: impl FnOnce(&Connection) -> Result<T, Failure>) -> Result<T, Failure> {
        question(&*self.0.transaction()?)
    }

    /// Closes the connection without a checkpoint. It keeps `-wal` and `-shm`, because another process may have created them
    /// anew and written changes into them.
    pub fn leave(self) {
        let _ = self.0.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
    }

    /// A number that changes whenever another connection commits.
    ///
    /// # Errors
    /// If the database fails.
    pub fn data_version(&self) -> Result<i64, Failure> {
        Ok(self.0.pragma_query_value(None, "data_version", |row| row.get(0))?)
    }
}

enum Stage {
    Empty,
    /// With this number of migrations.
    Migrated(usize),
}

/// An open transaction. Without one, the database can only be read.
#[derive(Debug)]
pub struct Change<'t> {
    transaction: &'t Transaction<'t>,
    is_recorded: Cell<bool>,
    /// The strictest check that the records ask for, by org.
    checks: RefCell<BTreeMap<String, Check>>,
}

impl std::ops::Deref for Change<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.transaction
    }
}

impl<'t> Change<'t> {
    fn of(transaction: &'t Transaction<'t>) -> Self {
        Self { transaction, is_recorded: Cell::default(), checks: RefCell::default() }
    }

    /// Writes an entry of the audit log, and gives the policy its next version.
    ///
    /// # Errors
    /// If the database fails.
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
        self.is_recorded.set(true);
        if let Some(org) = record.org {
            let mut checks = self.checks.borrow_mut();
            let check = checks.entry(org.to_owned()).or_insert(Check::Nothing);
            *check = record.check.max(*check);
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
            if name.starts_with("client/") && !exists(self, "SELECT 1 FROM signing_keys", [])? {
                return Err(Failure::new(
                    Reason::PolicyRefused,
                    "an OAuth client needs a signing key: run 'apexmcp signing-key create' first",
                ));
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

fn already_exists(path: &Path) -> Failure {
    Failure::new(
        Reason::AlreadyExists,
        format!("the database {} already exists: use it, or name another file with --db", path.display()),
    )
}

/// A warning if users other than the owner can read the file. A copy of a database often has such a mode, from the umask of
/// its creator.
pub fn exposure(path: &Path) -> Option<String> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    let path = path.display();
    let line = || format!("other users can read {path} (mode {mode:o}) and the private keys in it: run 'chmod 600 {path}*'");
    (mode & 0o077 != 0).then(line)
}

fn failed_to_open(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::during(Reason::DatabaseFailed, format_args!("{} cannot be opened", path.display()))(error)
}
