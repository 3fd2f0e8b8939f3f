//! Watches the database, and publishes each change of the policy.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use tokio::sync::watch;

use super::counts::{Counts, add};
use super::log::log;
use super::published::{Published, Shared};
use crate::database::{self, Database};
use crate::document;
use crate::failure::{Failure, Reason};

/// Interval between two looks at the database. A look takes a microsecond.
const INTERVAL: Duration = Duration::from_millis(50);

/// Interval after a failed look. A failure may have taken as long as the database's timeout.
const INTERVAL_AFTER_FAILURE: Duration = Duration::from_secs(1);

const OTHER_DATABASE: &str = "this is another database than the one with which the server began: restore a copy of that one, or \
                              restart 'apexmcp serve' to serve this one";

/// The device and the inode number of a file. `None`: the file does not exist.
type Identity = Option<(u64, u64)>;

/// The state of the database at a look.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    file: Identity,
    /// The files `-wal` and `-shm`. They stay the same as long as the connection uses them.
    beside: [Identity; 2],
    /// See [`Database::data_version`]. Numbers of different connections cannot be compared.
    data_version: i64,
}

fn identity(path: &Path) -> Identity {
    fs::metadata(path).map(|file| (file.dev(), file.ino())).ok()
}

pub(super) struct Watcher {
    pub(super) path: PathBuf,
    /// `None` while the database cannot be opened.
    pub(super) database: Option<Database>,
    pub(super) publisher: watch::Sender<Arc<Published>>,
    pub(super) catalog: Shared,
    pub(super) counts: Arc<Counts>,
}

impl Watcher {
    #[expect(clippy::disallowed_methods, reason = "this thread has nothing else to do")]
    pub(super) fn run(mut self) {
        let mut seen = None;
        loop {
            let pause = match self.look(seen) {
                Ok(now) => {
                    seen = Some(now);
                    self.counts.failing.store(0, Ordering::Relaxed);
                    INTERVAL
                }
                Err(failure) => {
                    seen = None;
                    add(&self.counts.failures);
                    if self.counts.failing.fetch_add(1, Ordering::Relaxed) == 0 {
                        log(format_args!("{}: {failure}; the server keeps serving the last policy", self.path.display()));
                    }
                    INTERVAL_AFTER_FAILURE
                }
            };
            thread::sleep(pause);
        }
    }

    /// Publishes the policy if it changed since `seen`. Returns the present state.
    fn look(&mut self, seen: Option<Seen>) -> Result<Seen, Failure> {
        let file = identity(&self.path);
        // Somebody may have replaced the database by a copy, or -wal and -shm may have been deleted and created anew. The old
        // connection would then see no further change. It must end before the new connection begins.
        let is_same = seen.is_some_and(|seen| (seen.file, seen.beside) == (file, self.beside()));
        let mut database = match self.database.take() {
            Some(database) if is_same => database,
            left => {
                if let Some(left) = left {
                    left.leave();
                }
                Database::open(&self.path)?
            }
        };
        // Read before the document, so that the next look finds a change that is committed meanwhile.
        let now = Seen { file, beside: self.beside(), data_version: database.data_version()? };
        if seen != Some(now) {
            // Somebody who has lost the database may run `apexmcp init`. Its empty policy would refuse everybody.
            if database.read(document::database_id)? != self.publisher.borrow().database_id {
                database.leave();
                return Err(Failure::new(Reason::DatabaseMissing, OTHER_DATABASE));
            }
            let published = Published::read_changes(&mut database, &self.catalog)?;
            if published.etag != self.publisher.borrow().etag {
                let (version, length) = (published.state.version, published.length);
                self.publisher.send_replace(Arc::new(published));
                log(format_args!("policy version {version}, {length} bytes"));
            }
        }
        if let Some(exposure) = database::exposure(&self.path).filter(|_| !is_same) {
            log(exposure);
        }
        self.database = Some(database);
        Ok(now)
    }

    fn beside(&self) -> [Identity; 2] {
        ["-wal", "-shm"].map(|ending| {
            let mut path = self.path.clone().into_os_string();
            path.push(ending);
            identity(Path::new(&path))
        })
    }
}
