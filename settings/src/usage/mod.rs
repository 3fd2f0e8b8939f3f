//! Usage: what gateways allowed and refused. Gateways report it to `apexmcp serve`, which keeps sums by day and by hour.

mod batch;
mod count;
mod expiry;
mod overview;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

pub(crate) use batch::Batch;
use batch::Credential;
pub(crate) use count::{count, known};
use expiry::KEPT_DAYS;
pub(crate) use expiry::{delete_old, delete_org, orgs, unknown_orgs};
pub(crate) use overview::{CredentialUsage, Dates, DayUsage, OrgUsage, Overview, overview, usage_of_org};

use crate::clock::Moment;
use crate::database::usage::{Store, beside};
use crate::database::{Files, Location};
use crate::failure::{Failure, Reason};
use crate::records::api_key::ApiKey;
use crate::records::client::Client;
use crate::serve::log;
use crate::sql::{Row, Sql, Value, first, values};

/// Stands for the credential of requests that had no known one.
const NO_CREDENTIAL: &str = "-";
/// The outcome of an allowed request. Other outcomes are reasons of refusals.
const ALLOWED: &str = "allowed";
/// Number of names or rows in one statement. Statements of the same length are prepared once.
const PORTION: usize = 100;

/// Connections to the store of usage.
#[derive(Debug)]
pub(crate) struct Usage {
    location: Location,
    /// Whether this process collects usage.
    is_collected: bool,
    idle: Mutex<Vec<Idle>>,
}

/// A connection that nobody uses.
#[derive(Debug)]
struct Idle {
    store: Store,
    /// The files of SQLite that it uses.
    files: Option<Files>,
}

impl Usage {
    /// Usage that this process only reads. Drop it outside of an async runtime, as [`crate::database::pool::Pool`].
    pub(crate) fn reader(location: &Location) -> Self {
        Self { location: location.clone(), is_collected: false, idle: Mutex::default() }
    }

    /// Usage that this process collects from now on.
    pub(crate) fn collector(location: &Location, now: Moment) -> Self {
        let usage = Self { is_collected: true, ..Self::reader(location) };
        // Gateways need the policy more than the reports, so the server starts. Each report tries again.
        if let Err(failure) = usage.write(now, |_| Ok(())) {
            let store = match location {
                Location::File(path) => beside(path).display().to_string(),
                Location::Postgres(_) => "in PostgreSQL".to_owned(),
            };
            log(failure.within(format_args!("reports get 503, because the store of usage {store} cannot be used")));
        }
        usage
    }

    /// Whether this process collects usage.
    pub(crate) fn is_collected(&self) -> bool {
        self.is_collected
    }

    /// Runs `question` on one state of the store. `None`: usage was never collected.
    ///
    /// # Errors
    /// If `question` or the store fails.
    pub(crate) fn read<T>(&self, question: impl FnOnce(&dyn Sql) -> Result<T, Failure>) -> Result<Option<T>, Failure> {
        let Some(mut idle) = self.take()? else { return Ok(None) };
        let answer = idle.store.read(|sql| match began_at(sql)? {
            Some(_) => question(sql).map(Some),
            None => Ok(None),
        });
        self.put(idle);
        answer
    }

    /// Runs `action` in one transaction of the store. Somebody may have deleted the file, and then collection begins now.
    ///
    /// # Errors
    /// If `action` or the store fails.
    pub(crate) fn write<T>(&self, now: Moment, action: impl FnOnce(&dyn Sql) -> Result<T, Failure>) -> Result<T, Failure> {
        let missing = || Failure::new(Reason::DatabaseMissing, "the store of usage is missing");
        let mut idle = self.take()?.ok_or_else(missing)?;
        let answer = idle.store.write(|sql| {
            if began_at(sql)?.is_none() {
                let query = "INSERT INTO usage_began (id, at) VALUES (1, ?) ON CONFLICT (id) DO NOTHING";
                sql.execute(query, values![now])?;
            }
            action(sql)
        });
        self.put(idle);
        answer
    }

    /// Deletes the usage of an org that was deleted, so that a new org of the same name does not get it. If that fails, `serve`
    /// tries again within an hour.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn forget(&self, org: &str, now: Moment) -> Result<(), Failure> {
        let forgotten = self.read(|_| Ok(())).and_then(|store| store.map_or(Ok(()), |()| delete_org(self, now, org)));
        forgotten.map_err(|failure| failure.within(format_args!("the usage of {org} was not deleted")))
    }

    /// An idle connection, or a new one. A connection to a file that was replaced is never used again.
    fn take(&self) -> Result<Option<Idle>, Failure> {
        let files = match &self.location {
            Location::File(path) => Some(Files::at(&beside(path))),
            Location::Postgres(_) => None,
        };
        // One after the other: a thread that creates the file must close its own descriptor before another one opens the file.
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(found) = idle.pop() {
            if found.files == files {
                return Ok(Some(found));
            }
            found.store.leave();
        }
        let Some(store) = Store::open(&self.location, self.is_collected)? else { return Ok(None) };
        let files = match &self.location {
            Location::File(path) => Some(Files::at(&beside(path))),
            Location::Postgres(_) => None,
        };
        Ok(Some(Idle { store, files }))
    }

    fn put(&self, connection: Idle) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
    }

    /// Sets the times of the last allowed requests of an org's keys or clients. A credential without a time has not been used
    /// since collection began.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn note_last_used<T: Used>(&self, org: &str, records: &mut [T]) -> Result<(), Failure> {
        let names: Vec<String> = records.iter().map(Used::name).collect();
        let Some(found) = self.read(|sql| last_used(sql, org, &names))? else { return Ok(()) };
        for record in records {
            *record.last_used() = found.get(&record.name()).cloned();
        }
        Ok(())
    }

    /// As [`Self::note_last_used`], for the lists of the server. They are needed even if the store fails.
    pub(crate) fn note_last_used_or_log<T: Used>(&self, org: &str, records: &mut [T]) {
        if let Err(failure) = self.note_last_used(org, records) {
            log(failure.within("usage cannot be read"));
        }
    }

    /// Says why a credential has no time of its last use.
    pub(crate) fn why_unused(&self) -> String {
        match self.read(began_at) {
            Ok(Some(Some(began_at))) => format!("No data before {}", began_at.chars().take(10).collect::<String>()),
            _ => "Usage is not collected".to_owned(),
        }
    }
}

/// A record whose use is counted.
pub(crate) trait Used {
    /// The name of its usage within its org.
    fn name(&self) -> String;
    /// The place of the time of its last allowed request.
    fn last_used(&mut self) -> &mut Option<String>;
}

impl Used for ApiKey {
    fn name(&self) -> String {
        Credential::Key(self.id.clone()).to_string()
    }

    fn last_used(&mut self) -> &mut Option<String> {
        &mut self.last_used
    }
}

impl Used for Client {
    fn name(&self) -> String {
        Credential::Client(self.client_id.clone()).to_string()
    }

    fn last_used(&mut self) -> &mut Option<String> {
        &mut self.last_used
    }
}

fn began_at(sql: &dyn Sql) -> Result<Option<String>, Failure> {
    first(sql, "SELECT at FROM usage_began", values![], |row| row.get("at"))
}

fn last_used(sql: &dyn Sql, org: &str, credentials: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let mut found = BTreeMap::new();
    let query = "SELECT credential, at FROM usage_last_used WHERE org = ? AND credential IN";
    each_of(sql, (query, ""), values![org], credentials, &mut |row| {
        let at: i64 = row.get("at")?;
        if let Some(at) = Moment::of_seconds(at) {
            found.insert(row.get("credential")?, at.to_string());
        }
        Ok(())
    })?;
    Ok(found)
}

/// Runs a query whose condition ends with `IN`, for all names. `first` has the values before the names.
fn each_of(
    sql: &dyn Sql,
    (query, ending): (&str, &str),
    first: &[Value],
    names: &[String],
    take: &mut dyn FnMut(&Row<'_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let query = format!("{query} ({}){ending}", vec!["?"; PORTION].join(", "));
    for portion in names.chunks(PORTION) {
        let Some(last) = portion.last() else { continue };
        // A repeated name finds no row twice, and one statement is enough for all lengths.
        let padding = std::iter::repeat_n(last, PORTION.saturating_sub(portion.len()));
        let names = portion.iter().chain(padding).map(Value::from);
        let values: Vec<Value> = first.iter().cloned().chain(names).collect();
        sql.each(&query, &values, take)?;
    }
    Ok(())
}

/// Inserts rows of `N` columns. `head` ends with `VALUES`, and `tail` says what happens to a row that exists.
fn insert<const N: usize>(sql: &dyn Sql, head: &str, tail: &str, rows: &[[Value; N]]) -> Result<(), Failure> {
    let row = format!("({})", [const { "?" }; N].join(", "));
    let [one, many] = [1, PORTION].map(|rows| format!("{head} {} {tail}", vec![row.as_str(); rows].join(", ")));
    for portion in rows.chunks(PORTION) {
        if portion.len() == PORTION {
            sql.execute(&many, portion.as_flattened())?;
        } else {
            portion.iter().try_for_each(|row| sql.execute(&one, row).map(drop))?;
        }
    }
    Ok(())
}
