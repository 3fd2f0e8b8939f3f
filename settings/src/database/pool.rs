//! Connections to the database that the requests of the management API share.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{Database, Files, Location};
use crate::document;
use crate::failure::{Failure, Reason};

/// Maximum number of connections, and of requests that use the database at the same time.
const MAX_CONNECTIONS: usize = 8;
/// How long a request waits for a connection.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Maximum number of requests that do long work without a connection, such as fetching the keys of an identity provider.
const MAX_OTHERS: usize = 4;

/// Runs `work` in a thread that may wait, if one of `places` is free in time. The place is free again when `work` ends, even if its
/// client has disconnected.
///
/// # Errors
/// If `work` fails, or no place is free in time.
pub async fn in_thread<T: Send + 'static>(
    places: &Arc<Semaphore>,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let busy = || Failure::new(Reason::DatabaseBusy, "too many requests at the same time: try again");
    let place = timeout(MAX_WAIT, Arc::clone(places).acquire_owned()).await.ok().and_then(Result::ok).ok_or_else(busy)?;
    let done = tokio::task::spawn_blocking(move || {
        let done = work();
        drop(place);
        done
    });
    done.await.unwrap_or_else(|_| Err(Failure::new(Reason::SystemFailed, "the request was given up")))
}

/// The connections. They are made when they are needed.
#[derive(Debug)]
pub struct Pool {
    location: Location,
    places: Arc<Semaphore>,
    /// Places for work without a connection.
    others: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
    /// The id of the database with which the server began.
    id: String,
}

/// A connection that nobody uses.
#[derive(Debug)]
struct Idle {
    database: Database,
    /// The files of SQLite that it uses.
    files: Option<Files>,
}

impl Pool {
    /// A pool for the database with this id. Drop it outside of an async runtime: a connection to PostgreSQL waits for its end.
    pub fn new(location: &Location, id: &str) -> Arc<Self> {
        let [places, others] = [MAX_CONNECTIONS, MAX_OTHERS].map(|places| Arc::new(Semaphore::new(places)));
        Arc::new(Self { location: location.clone(), places, others, idle: Mutex::default(), id: id.to_owned() })
    }

    /// Runs `work` with a connection, in a thread that may wait.
    ///
    /// # Errors
    /// If `work` fails, the database cannot be opened, or no connection is free in time.
    pub async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&mut Database, &Location) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let pool = Arc::clone(self);
        in_thread(&self.places, move || {
            let mut connection = pool.take()?;
            let done = work(&mut connection.database, &pool.location);
            pool.put(connection);
            done
        })
        .await
    }

    /// Runs work that needs no connection but takes long, in a thread that may wait.
    ///
    /// # Errors
    /// If `work` fails, or too much of such work runs.
    pub async fn run_aside<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        in_thread(&self.others, work).await
    }

    /// An idle connection, or a new one. A connection to a file that was replaced by another is never used again: changes made
    /// with it would be lost.
    fn take(&self) -> Result<Idle, Failure> {
        let files = self.files();
        while let Some(mut idle) = self.pop() {
            let is_usable = match &self.location {
                Location::File(_) => idle.files == files,
                // The server may have ended the connection, or another one may have its name now.
                Location::Postgres(_) => self.is_ours(&mut idle.database).unwrap_or(false),
            };
            if is_usable {
                return Ok(idle);
            }
            idle.leave();
        }
        let mut database = Database::open(&self.location)?;
        if !self.is_ours(&mut database)? {
            return Err(Failure::new(Reason::DatabaseInvalid, document::OTHER_DATABASE));
        }
        let files = match &self.location {
            Location::File(path) => files.map(|files| files.opened(path)),
            Location::Postgres(_) => None,
        };
        Ok(Idle { database, files })
    }

    fn is_ours(&self, database: &mut Database) -> Result<bool, Failure> {
        Ok(database.read(document::database_id)? == self.id)
    }

    fn files(&self) -> Option<Files> {
        match &self.location {
            Location::File(path) => Some(Files::at(path)),
            Location::Postgres(_) => None,
        }
    }

    fn pop(&self) -> Option<Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn put(&self, connection: Idle) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }
}

impl Idle {
    fn leave(self) {
        if let Database::Sqlite(database) = self.database {
            database.leave();
        }
    }
}
