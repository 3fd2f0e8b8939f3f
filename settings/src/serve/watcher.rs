//! Watches the database, and publishes each change of the policy.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use tokio::sync::watch;

use super::counts::{Counts, add};
use super::log::log;
use super::published::{Published, Shared};
use crate::database::{self, Database, Files, Location, Postgres, Sqlite};
use crate::failure::Failure;

/// Interval between two looks at the database. A look takes a microsecond.
const INTERVAL: Duration = Duration::from_millis(50);

/// Longest wait for a notification of PostgreSQL. A notification may get lost with its connection.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Interval after a failed look. A failure may have taken as long as the database's timeout.
const INTERVAL_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// The state of the database at a look.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    files: Files,
    /// See [`Sqlite::data_version`]. Numbers of different connections cannot be compared.
    data_version: i64,
}

pub(super) struct Watcher {
    pub(super) location: Location,
    /// `None` while the database cannot be opened.
    pub(super) database: Option<Database>,
    pub(super) publisher: watch::Sender<Arc<Published>>,
    pub(super) catalog: Shared,
    pub(super) counts: Arc<Counts>,
}

impl Watcher {
    pub(super) fn run(self) {
        match self.location.clone() {
            Location::File(path) => self.watch_file(&path),
            Location::Postgres(url) => self.listen(&url),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "this thread has nothing else to do")]
    fn watch_file(mut self, path: &Path) {
        let mut seen = None;
        loop {
            let looked = self.look(path, seen);
            let pause = match self.note(&looked) {
                true => INTERVAL,
                false => INTERVAL_AFTER_FAILURE,
            };
            seen = looked.ok();
            thread::sleep(pause);
        }
    }

    #[expect(clippy::disallowed_methods, reason = "this thread has nothing else to do")]
    fn listen(mut self, url: &str) {
        loop {
            let waited = self.wait_and_look(url);
            if !self.note(&waited) {
                self.database = None;
                thread::sleep(INTERVAL_AFTER_FAILURE);
            }
        }
    }

    /// Counts and logs a failure. Returns whether there was none.
    fn note<T>(&self, looked: &Result<T, Failure>) -> bool {
        match looked {
            Ok(_) => {
                if self.counts.failing.swap(0, Ordering::Relaxed) > 0 {
                    log(format_args!("{}: the database can be read again", self.location));
                }
                true
            }
            Err(failure) => {
                add(&self.counts.failures);
                if self.counts.failing.fetch_add(1, Ordering::Relaxed) == 0 {
                    log(format_args!("{}: {failure}; the server keeps serving the last policy", self.location));
                }
                false
            }
        }
    }

    /// Waits for a notification of PostgreSQL, and publishes the policy if it changed.
    fn wait_and_look(&mut self, url: &str) -> Result<(), Failure> {
        let mut database = match self.database.take() {
            Some(Database::Postgres(database)) if database.is_listening() => database,
            // Read after LISTEN, so that no change between the two is missed.
            _ => {
                let mut database = Postgres::open(url)?;
                database.listen()?;
                let mut opened = Database::Postgres(Box::new(database));
                self.publish(&mut opened)?;
                self.database = Some(opened);
                return Ok(());
            }
        };
        database.wait_for_change(LONGEST_WAIT)?;
        let mut database = Database::Postgres(database);
        self.publish(&mut database)?;
        self.database = Some(database);
        Ok(())
    }

    /// Publishes the policy if it changed.
    fn publish(&self, database: &mut Database) -> Result<(), Failure> {
        let expected = self.publisher.borrow().database_id.clone();
        let published = Published::read_changes(database, &self.catalog, &expected)?;
        if published.etag != self.publisher.borrow().etag {
            let (version, length) = (published.state.version, published.length);
            self.publisher.send_replace(Arc::new(published));
            log(format_args!("policy version {version}, {length} bytes"));
        }
        Ok(())
    }

    /// Publishes the policy if the file changed since `seen`. Returns the present state.
    fn look(&mut self, path: &Path, seen: Option<Seen>) -> Result<Seen, Failure> {
        let files = Files::at(path);
        // Somebody may have replaced the database by a copy, or -wal and -shm may have been deleted and created anew. The old
        // connection would then see no further change. It must end before the new connection begins.
        let is_same = seen.is_some_and(|seen| seen.files == files);
        let database = match self.database.take() {
            Some(Database::Sqlite(database)) if is_same => database,
            left => {
                if let Some(Database::Sqlite(left)) = left {
                    left.leave();
                }
                Box::new(Sqlite::open(path)?)
            }
        };
        // Read before the policy, so that the next look finds a change that is committed meanwhile.
        let now = Seen { files: files.opened(path), data_version: database.data_version()? };
        let mut database = Database::Sqlite(database);
        if seen != Some(now)
            && let Err(failure) = self.publish(&mut database)
        {
            if let Database::Sqlite(database) = database {
                database.leave();
            }
            return Err(failure);
        }
        if let Some(exposure) = database::exposure(&self.location).filter(|_| !is_same) {
            log(exposure);
        }
        self.database = Some(database);
        Ok(now)
    }
}
