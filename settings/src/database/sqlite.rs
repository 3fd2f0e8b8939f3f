//! SQLite: one file, without a server.

use std::fs::{self, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OpenFlags, ToSql, TransactionBehavior, params_from_iter};

use super::{Change, Done, keyring};
use crate::encryption::Keyring;
use crate::failure::{Failure, Reason};
use crate::sql::{Row, Sql, Value};

/// The migrations in their order. `user_version` counts the ones that were applied. A released migration never changes.
const MIGRATIONS: &[&str] = &[
    include_str!("../../migrations/0001.sql"),
    include_str!("../../migrations/0002.sql"),
    include_str!("../../migrations/0003.sql"),
    include_str!("../../migrations/0004.sql"),
    include_str!("../../migrations/0005.sql"),
    include_str!("../../migrations/0006.sql"),
    include_str!("../../migrations/0007.sql"),
];

/// "apex" in the header of the file. It tells our database from those of other programs.
const APPLICATION_ID: i64 = 0x6170_6578;

/// How long a change waits for the changes of other processes.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// An open file.
#[derive(Debug)]
pub struct Sqlite {
    connection: Connection,
    keyring: Keyring,
}

impl Sqlite {
    /// Opens a database that [`Self::create`] created, and applies missing migrations.
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
        Ok(Self { connection, keyring: keyring()? })
    }

    fn stage(&self, path: &Path) -> Result<Stage, Failure> {
        let invalid = |line: String| Err(Failure::new(Reason::DatabaseInvalid, line));
        let number = |pragma| self.connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
        let applied = usize::try_from(number("user_version")?).unwrap_or(usize::MAX);
        let tables: i64 = self.connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
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
        self.connection.pragma_update(None, "journal_mode", "WAL")?;
        let was_empty = matches!(self.stage(path)?, Stage::Empty);
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
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
        let open = Open { connection: &transaction, keyring: &self.keyring };
        let change = Change::of(&open);
        then(&change)?;
        change.conclude_first()?;
        transaction.commit()?;
        Ok(())
    }

    /// Runs `action` in one transaction, and commits if its second result says so.
    pub(super) fn change<T>(
        &mut self,
        action: impl FnOnce(&dyn Sql) -> Result<(Done<T>, bool), Failure>,
    ) -> Result<Done<T>, Failure> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (done, is_change) = action(&Open { connection: &transaction, keyring: &self.keyring })?;
        if is_change {
            transaction.commit()?;
        }
        Ok(done)
    }

    pub(super) fn read<T>(&mut self, question: impl FnOnce(&dyn Sql) -> Result<T, Failure>) -> Result<T, Failure> {
        let transaction = self.connection.transaction()?;
        question(&Open { connection: &transaction, keyring: &self.keyring })
    }

    pub(super) fn forget_deleted(&mut self) -> Result<(), Failure> {
        Ok(self.connection.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)")?)
    }

    /// Closes the connection without a checkpoint. It keeps `-wal` and `-shm`, because another process may have created them
    /// anew and written changes into them.
    pub fn leave(self) {
        let _ = self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
    }

    /// A number that changes whenever another connection commits.
    ///
    /// # Errors
    /// If the database fails.
    pub fn data_version(&self) -> Result<i64, Failure> {
        Ok(self.connection.pragma_query_value(None, "data_version", |row| row.get(0))?)
    }
}

/// The files of a database. They stay the same as long as a connection uses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Files {
    file: Identity,
    /// The files `-wal` and `-shm`.
    beside: [Identity; 2],
}

/// The device and the inode number of a file. `None`: the file does not exist.
type Identity = Option<(u64, u64)>;

impl Files {
    /// The files that are at `path` now.
    pub fn at(path: &Path) -> Self {
        let [file, wal, shm] = ["", "-wal", "-shm"].map(|ending| {
            let mut path = path.to_owned().into_os_string();
            path.push(ending);
            fs::metadata(path).map(|file| (file.dev(), file.ino())).ok()
        });
        Self { file, beside: [wal, shm] }
    }

    /// The files that a connection uses, which was opened after this value was read. It may have created those beside the file.
    pub fn opened(self, path: &Path) -> Self {
        Self { beside: Self::at(path).beside, ..self }
    }
}

enum Stage {
    Empty,
    /// With this number of migrations.
    Migrated(usize),
}

/// An open transaction.
struct Open<'c> {
    connection: &'c Connection,
    keyring: &'c Keyring,
}

impl Sql for Open<'_> {
    fn keyring(&self) -> &Keyring {
        self.keyring
    }

    fn execute(&self, query: &str, values: &[Value]) -> Result<u64, Failure> {
        let changed = self.connection.prepare_cached(query)?.execute(params_from_iter(values))?;
        Ok(changed.try_into().unwrap_or(u64::MAX))
    }

    fn each(&self, query: &str, values: &[Value], take: &mut dyn FnMut(&Row<'_>) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut statement = self.connection.prepare_cached(query)?;
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let mut found = statement.query(params_from_iter(values))?;
        while let Some(row) = found.next()? {
            let values = (0..columns.len()).map(|index| Ok(value(row.get_ref(index)?))).collect::<rusqlite::Result<_>>()?;
            take(&Row { columns: &columns, values })?;
        }
        Ok(())
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Integer(number) => ValueRef::Integer(*number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
        }))
    }
}

fn value(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Integer(number) => Value::Integer(number),
        ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
        // No column has another type.
        _ => Value::Null,
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
pub(super) fn exposure(path: &Path) -> Option<String> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o777;
    let path = path.display();
    let line = || format!("other users can read {path} (mode {mode:o}) and the private keys in it: run 'chmod 600 {path}*'");
    (mode & 0o077 != 0).then(line)
}

fn failed_to_open(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::during(Reason::DatabaseFailed, format_args!("{} cannot be opened", path.display()))(error)
}
