//! Connections to the database that the requests of the management API share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::{Database, Files, Location};
use crate::document;
use crate::failure::{Failure, Reason};

/// Maximum number of connections, and of requests that use the database at the same time.
const MAX_CONNECTIONS: usize = 8;
/// How long a request waits for a connection.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Maximum number of requests that do long work without a connection, such as fetching the keys of an identity provider: of all
/// orgs, and of one. Operators count as one org.
const MAX_OTHERS: usize = 8;
const MAX_OTHERS_OF_ORG: u32 = 2;
/// Maximum number of searches at the same time. Each may read all keys of an org.
const MAX_SEARCHES: usize = 2;

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
    others_of: Arc<Mutex<HashMap<String, u32>>>,
    searches: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
    /// The id of the database with which the server began.
    id: String,
}

/// A place for work of an org without a connection. It is free again when the value is dropped.
#[derive(Debug)]
struct Place {
    places: Arc<Mutex<HashMap<String, u32>>>,
    org: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let left = places.get(&self.org).map_or(0, |count| count.saturating_sub(1));
        match left {
            0 => places.remove(&self.org),
            left => places.insert(self.org.clone(), left),
        };
    }
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
        let sizes = [MAX_CONNECTIONS, MAX_OTHERS, MAX_SEARCHES];
        let [places, others, searches] = sizes.map(|places| Arc::new(Semaphore::new(places)));
        Arc::new(Self {
            location: location.clone(),
            places,
            others,
            others_of: Arc::default(),
            searches,
            idle: Mutex::default(),
            id: id.to_owned(),
        })
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

    /// A place for a search. Drop it when the search has ended.
    ///
    /// # Errors
    /// If no place is free in time.
    pub async fn search(&self) -> Result<OwnedSemaphorePermit, Failure> {
        let busy = || Failure::new(Reason::DatabaseBusy, "too many searches at the same time: try again");
        let place = timeout(MAX_WAIT, Arc::clone(&self.searches).acquire_owned()).await;
        place.ok().and_then(Result::ok).ok_or_else(busy)
    }

    /// Runs work for an org that needs no connection but takes long, in a thread that may wait. The org of operators is empty.
    ///
    /// # Errors
    /// If `work` fails, or too much of such work runs.
    pub async fn run_aside<T: Send + 'static>(
        self: &Arc<Self>,
        org: impl Into<String> + Send,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let place = self.place_of(org.into())?;
        in_thread(&self.others, move || {
            let done = work();
            drop(place);
            done
        })
        .await
    }

    fn place_of(&self, org: String) -> Result<Place, Failure> {
        let mut places = self.others_of.lock().unwrap_or_else(PoisonError::into_inner);
        let count = places.entry(org.clone()).or_default();
        if *count >= MAX_OTHERS_OF_ORG {
            let line = format!("{MAX_OTHERS_OF_ORG} such requests of this organization are running: wait until one has ended");
            return Err(Failure::new(Reason::DatabaseBusy, line));
        }
        *count = count.saturating_add(1);
        Ok(Place { places: Arc::clone(&self.others_of), org })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_org_has_two_places_for_long_work() {
        let pool = Pool::new(&Location::File("/nothing".into()), "");
        let [first, second] = [(); 2].map(|()| pool.place_of("acme".to_owned()).unwrap());
        assert_eq!(pool.place_of("acme".to_owned()).unwrap_err().reason, Reason::DatabaseBusy);
        let _other = pool.place_of("other".to_owned()).unwrap();
        drop(first);
        let _third = pool.place_of("acme".to_owned()).unwrap();
        assert!(pool.place_of("acme".to_owned()).is_err());
        drop(second);
        assert_eq!(pool.others_of.lock().unwrap().len(), 2);
    }
}
