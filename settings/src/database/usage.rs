//! The store of usage: a file beside an SQLite database, or tables of PostgreSQL. Neither is a part of the policy, so a report
//! changes no version and wakes no watcher.

use std::path::{Path, PathBuf};

use super::{Location, Postgres, Sqlite};
use crate::failure::Failure;
use crate::sql::Sql;

/// An open store.
#[derive(Debug)]
pub(crate) enum Store {
    File(Box<Sqlite>),
    Tables(Box<Postgres>),
}

/// The file beside the database at `path`.
pub(crate) fn beside(path: &Path) -> PathBuf {
    let mut path = path.to_owned().into_os_string();
    path.push("-usage");
    path.into()
}

impl Store {
    /// Opens the store of this database. `None`: there is no file yet, and `may_create` is false.
    ///
    /// # Errors
    /// If the store cannot be opened or created.
    pub(crate) fn open(location: &Location, may_create: bool) -> Result<Option<Self>, Failure> {
        match location {
            Location::File(path) => Ok(Sqlite::open_usage(&beside(path), may_create)?.map(Box::new).map(Self::File)),
            Location::Postgres(url) => Postgres::open(url).map(Box::new).map(Self::Tables).map(Some),
        }
    }

    /// Runs `action` in one transaction.
    ///
    /// # Errors
    /// If `action` or the store fails. Nothing is written then.
    pub(crate) fn write<T>(&mut self, action: impl FnOnce(&dyn Sql) -> Result<T, Failure>) -> Result<T, Failure> {
        match self {
            Self::File(database) => database.write_usage(action),
            Self::Tables(database) => database.write_usage(action),
        }
    }

    /// Runs `question` on one state of the store.
    ///
    /// # Errors
    /// If `question` or the store fails.
    pub(crate) fn read<T>(&mut self, question: impl FnOnce(&dyn Sql) -> Result<T, Failure>) -> Result<T, Failure> {
        match self {
            Self::File(database) => database.read(question),
            Self::Tables(database) => database.read(question),
        }
    }

    /// Closes the connection to a file that was replaced.
    pub(crate) fn leave(self) {
        if let Self::File(database) = self {
            database.leave();
        }
    }
}
