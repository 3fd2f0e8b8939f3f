//! Connections to the database that the requests of the management API share.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
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

/// The connections. They are made when they are needed.
#[derive(Debug)]
pub struct Pool {
    location: Location,
    places: Semaphore,
    idle: Mutex<Vec<Idle>>,
    /// The id of the database of the first connection.
    id: OnceLock<String>,
}

/// A connection that nobody uses.
#[derive(Debug)]
struct Idle {
    database: Database,
    /// The files of SQLite that it uses.
    files: Option<Files>,
}

impl Pool {
    pub fn new(location: &Location) -> Arc<Self> {
        let (places, idle) = (Semaphore::new(MAX_CONNECTIONS), Mutex::default());
        Arc::new(Self { location: location.clone(), places, idle, id: OnceLock::new() })
    }

    /// Runs `work` with a connection, in a thread that may wait.
    ///
    /// # Errors
    /// If `work` fails, the database cannot be opened, or no connection is free in time.
    pub async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&mut Database, &Location) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let busy = || Failure::new(Reason::DatabaseBusy, "too many requests use the database: try again");
        let _place = timeout(MAX_WAIT, self.places.acquire()).await.ok().and_then(Result::ok).ok_or_else(busy)?;
        let pool = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let mut connection = pool.take()?;
            let done = work(&mut connection.database, &pool.location);
            pool.put(connection);
            done
        });
        done.await.unwrap_or_else(|_| Err(Failure::new(Reason::SystemFailed, "the request was given up")))
    }

    /// An idle connection, or a new one. A connection to a file that was replaced by another is never used again: changes made
    /// with it would be lost.
    fn take(&self) -> Result<Idle, Failure> {
        let files = self.files();
        while let Some(idle) = self.pop() {
            if idle.files == files {
                return Ok(idle);
            }
            idle.leave();
        }
        let mut database = Database::open(&self.location)?;
        let id = database.read(document::database_id)?;
        if *self.id.get_or_init(|| id.clone()) != id {
            return Err(Failure::new(Reason::DatabaseInvalid, document::OTHER_DATABASE));
        }
        let files = match &self.location {
            Location::File(path) => files.map(|files| files.opened(path)),
            Location::Postgres(_) => None,
        };
        Ok(Idle { database, files })
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
