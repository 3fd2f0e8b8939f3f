//! PostgreSQL: for more than one `apexmcp serve`, and for operators who have one already.

use std::cell::RefCell;
use std::collections::HashMap;
use std::error::Error as _;
use std::fs;
use std::time::Duration;

use postgres::fallible_iterator::FallibleIterator;
use postgres::types::{IsNull, ToSql, Type, private::BytesMut, to_sql_checked};
use postgres::{Client, Config, IsolationLevel, Statement, Transaction};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use rustls_platform_verifier::BuilderVerifierExt;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{Change, Done, copy, keyring, without_password};
use crate::encryption::Keyring;
use crate::failure::{Failure, Reason};
use crate::sql::{Row, Sql, Value, first, values};

/// The migrations in their order. A released migration never changes.
const MIGRATIONS: &[&str] = &[
    include_str!("../../migrations/postgres/0001.sql"),
    include_str!("../../migrations/postgres/0002.sql"),
    include_str!("../../migrations/postgres/0003.sql"),
    include_str!("../../migrations/postgres/0004.sql"),
];
/// The schema with all tables of this program.
const SCHEMA: &str = "apexmcp";
/// Serializes the migrations of processes that start at the same time: "apex" as a number.
const MIGRATION_LOCK: &str = "SELECT pg_advisory_xact_lock(1634756984)";
/// How long to wait for the server when a connection begins.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a change waits for the changes of other processes.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// Query parameter of the URL that names a file with the certificate authorities of the server.
const ROOT_CERTIFICATES: &str = "sslrootcert";

/// A connection, which is made anew if it was lost.
pub struct Postgres {
    url: String,
    client: Client,
    is_listening: bool,
    keyring: Keyring,
    /// Prepared statements by their query.
    statements: RefCell<HashMap<String, Statement>>,
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&without_password(&self.url))
    }
}

impl Postgres {
    /// Opens a database that [`Self::create`] created, and applies missing migrations.
    ///
    /// # Errors
    /// If the server cannot be reached, or the database is not ours.
    pub fn open(url: &str) -> Result<Self, Failure> {
        let mut database = Self::connect(url)?;
        match database.applied()? {
            None => Err(Failure::new(
                Reason::DatabaseMissing,
                format!(
                    "{} has no tables of apexmcp: run 'apexmcp init', or name another database with --db",
                    without_password(url)
                ),
            )),
            Some(applied) if applied > MIGRATIONS.len() => Err(Failure::new(
                Reason::DatabaseInvalid,
                format!("{} was written by a newer apexmcp: install that version", without_password(url)),
            )),
            Some(applied) => {
                if applied < MIGRATIONS.len() {
                    database.migrate(false, |_| Ok(()))?;
                }
                Ok(database)
            }
        }
    }

    /// Creates the tables in an existing database, with what `first` writes, atomically.
    ///
    /// # Errors
    /// If the tables already exist, or cannot be created.
    pub fn create(url: &str, first: impl FnOnce(&Change<'_>) -> Result<(), Failure>) -> Result<Self, Failure> {
        let mut database = Self::connect(url)?;
        database.migrate(true, first)?;
        Ok(database)
    }

    fn connect(url: &str) -> Result<Self, Failure> {
        Ok(Self {
            client: client(url)?,
            url: url.to_owned(),
            is_listening: false,
            keyring: keyring()?,
            statements: RefCell::default(),
        })
    }

    /// Connects again if the connection was lost.
    fn revive(&mut self) -> Result<(), Failure> {
        if self.client.is_closed() {
            self.statements.borrow_mut().clear();
            self.is_listening = false;
            self.client = client(&self.url)?;
        }
        Ok(())
    }

    /// The number of applied migrations. `None`: there are no tables.
    fn applied(&mut self) -> Result<Option<usize>, Failure> {
        let exists = format!("SELECT to_regclass('{SCHEMA}.migrations') IS NOT NULL");
        if !self.client.query_one(&exists, &[])?.get::<_, bool>(0) {
            return Ok(None);
        }
        let applied: i64 = self.client.query_one("SELECT applied FROM migrations", &[])?.get(0);
        Ok(Some(usize::try_from(applied).unwrap_or(usize::MAX)))
    }

    /// Applies the missing migrations, then runs `then` in the same transaction.
    fn migrate(&mut self, is_new: bool, then: impl FnOnce(&Change<'_>) -> Result<(), Failure>) -> Result<(), Failure> {
        let url = without_password(&self.url);
        let mut transaction = self.client.transaction()?;
        transaction.batch_execute(MIGRATION_LOCK)?;
        transaction.batch_execute(&format!(
            "CREATE SCHEMA IF NOT EXISTS {SCHEMA};
            CREATE TABLE IF NOT EXISTS migrations (applied BIGINT NOT NULL);
            INSERT INTO migrations SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM migrations);"
        ))?;
        let applied: i64 = transaction.query_one("SELECT applied FROM migrations", &[])?.get(0);
        if is_new && applied > 0 {
            return Err(Failure::new(
                Reason::AlreadyExists,
                format!("the database {url} already exists: use it, or name another database with --db"),
            ));
        }
        for migration in MIGRATIONS.iter().skip(usize::try_from(applied).unwrap_or(usize::MAX)) {
            transaction.batch_execute(migration)?;
        }
        let all = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
        transaction.execute("UPDATE migrations SET applied = $1", &[&all])?;
        let open = Open { transaction: RefCell::new(transaction), statements: &self.statements, keyring: &self.keyring };
        let change = Change::of(&open);
        then(&change)?;
        // A copy brings the numbers of secrets along.
        if let Some(last) = copy::last_number(&change)? {
            copy::run(&change, "SELECT setval(pg_get_serial_sequence('client_secrets', 'number'), ?) AS last", values![last])?;
        }
        change.conclude_first()?;
        Ok(open.transaction.into_inner().commit()?)
    }

    /// Runs `action` in one transaction, and commits if its second result says so.
    pub(super) fn change<T>(
        &mut self,
        action: impl FnOnce(&dyn Sql) -> Result<(Done<T>, bool), Failure>,
    ) -> Result<Done<T>, Failure> {
        self.revive()?;
        let transaction = self.client.transaction()?;
        let open = Open { transaction: RefCell::new(transaction), statements: &self.statements, keyring: &self.keyring };
        // One change after the other, so that no version becomes visible before an earlier one.
        first(&open, "SELECT version FROM policy FOR UPDATE", values![], |_| Ok(()))?;
        let (done, is_change) = action(&open)?;
        if is_change {
            open.transaction.into_inner().commit()?;
        }
        Ok(done)
    }

    pub(super) fn read<T>(&mut self, question: impl FnOnce(&dyn Sql) -> Result<T, Failure>) -> Result<T, Failure> {
        self.revive()?;
        let transaction = self.client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
        question(&Open { transaction: RefCell::new(transaction.start()?), statements: &self.statements, keyring: &self.keyring })
    }

    pub(super) fn forget_deleted(&mut self) -> Result<(), Failure> {
        Ok(self.client.batch_execute("VACUUM FULL signing_keys")?)
    }

    /// Begins to listen for changes.
    ///
    /// # Errors
    /// If the database fails.
    pub fn listen(&mut self) -> Result<(), Failure> {
        self.client.batch_execute("LISTEN apexmcp")?;
        self.is_listening = true;
        Ok(())
    }

    /// Whether this connection listens.
    pub fn is_listening(&self) -> bool {
        self.is_listening
    }

    /// Waits for a change, at most for this time.
    ///
    /// # Errors
    /// If the connection was lost.
    pub fn wait_for_change(&mut self, timeout: Duration) -> Result<(), Failure> {
        {
            let mut notifications = self.client.notifications();
            notifications.timeout_iter(timeout).next()?;
            // One look is enough for all changes so far.
            while notifications.iter().next()?.is_some() {}
        }
        match self.client.is_closed() {
            true => Err(Failure::new(Reason::DatabaseFailed, "the connection to the database was lost")),
            false => Ok(()),
        }
    }
}

fn client(url: &str) -> Result<Client, Failure> {
    let (url, roots) = without_root_certificates(url);
    let shown = without_password(&url);
    let mut config: Config = url.parse().map_err(|error: postgres::Error| {
        // The error does not quote the URL, which contains a password.
        Failure::new(Reason::InvalidArgument, format!("--db {shown} is not a connection string of PostgreSQL: {}", cause(&error)))
    })?;
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    config.application_name("apexmcp");
    let tls = MakeRustlsConnect::new(tls(roots.as_deref())?);
    let mut client = config.connect(tls).map_err(|error| {
        Failure::new(
            Reason::DatabaseFailed,
            format!(
                "the database {shown} cannot be reached: {}; check the address, the user and the password of --db",
                cause(&error)
            ),
        )
    })?;
    client.batch_execute(&format!("SET search_path TO {SCHEMA}; SET lock_timeout TO '{}s'", LOCK_TIMEOUT.as_secs()))?;
    Ok(client)
}

/// An error with its cause, which says more.
fn cause(error: &postgres::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Takes the parameter `sslrootcert` out of a URL, because the library does not know it.
fn without_root_certificates(url: &str) -> (String, Option<String>) {
    let Some((base, query)) = url.split_once('?') else { return (url.to_owned(), None) };
    let prefix = format!("{ROOT_CERTIFICATES}=");
    let (own, others): (Vec<&str>, Vec<&str>) = query.split('&').partition(|pair| pair.starts_with(&prefix));
    let url = if others.is_empty() { base.to_owned() } else { format!("{base}?{}", others.join("&")) };
    (url, own.first().and_then(|pair| pair.strip_prefix(&prefix)).map(str::to_owned))
}

/// Verifies the server by the certificate authorities in a file, or by those of the system.
fn tls(roots: Option<&str>) -> Result<ClientConfig, Failure> {
    let builder = ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .map_err(Failure::during(Reason::SystemFailed, "TLS"))?;
    let Some(file) = roots else {
        let builder =
            builder.with_platform_verifier().map_err(Failure::during(Reason::SystemFailed, "the certificates of the system"))?;
        return Ok(builder.with_no_client_auth());
    };
    let unusable = || Failure::during(Reason::FileInvalid, format!("{ROOT_CERTIFICATES} {file}"));
    let pem = fs::read(file).map_err(Failure::during(Reason::FileUnreadable, format!("{ROOT_CERTIFICATES} {file}")))?;
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        store.add(certificate.map_err(|error| unusable()(error.to_string()))?).map_err(|error| unusable()(error.to_string()))?;
    }
    Ok(builder.with_root_certificates(store).with_no_client_auth())
}

/// An open transaction.
struct Open<'c> {
    transaction: RefCell<Transaction<'c>>,
    statements: &'c RefCell<HashMap<String, Statement>>,
    keyring: &'c Keyring,
}

impl Open<'_> {
    fn prepare(&self, transaction: &mut Transaction<'_>, query: &str) -> Result<Statement, Failure> {
        if let Some(statement) = self.statements.borrow().get(query) {
            return Ok(statement.clone());
        }
        let statement = transaction.prepare(&numbered(query))?;
        self.statements.borrow_mut().insert(query.to_owned(), statement.clone());
        Ok(statement)
    }
}

/// A query with `$1`, `$2` and so on for each `?`.
fn numbered(query: &str) -> String {
    let mut words = query.split('?');
    let mut numbered = words.next().unwrap_or_default().to_owned();
    for (index, word) in words.enumerate() {
        numbered.push_str(&format!("${}{word}", index.saturating_add(1)));
    }
    numbered
}

impl Sql for Open<'_> {
    fn keyring(&self) -> &Keyring {
        self.keyring
    }

    fn execute(&self, query: &str, values: &[Value]) -> Result<u64, Failure> {
        let mut transaction = self.transaction.try_borrow_mut().map_err(|_| in_use())?;
        let statement = self.prepare(&mut transaction, query)?;
        let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|value| value as _).collect();
        Ok(transaction.execute(&statement, &values)?)
    }

    fn each(&self, query: &str, values: &[Value], take: &mut dyn FnMut(&Row<'_>) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut transaction = self.transaction.try_borrow_mut().map_err(|_| in_use())?;
        let statement = self.prepare(&mut transaction, query)?;
        let columns: Vec<String> = statement.columns().iter().map(|column| column.name().to_owned()).collect();
        let mut found = transaction.query_raw(&statement, values)?;
        while let Some(row) = found.next()? {
            let values = (0..columns.len()).map(|index| value(&row, index)).collect::<Result<_, _>>()?;
            take(&Row { columns: &columns, values })?;
        }
        Ok(())
    }
}

fn in_use() -> Failure {
    Failure::new(Reason::SystemFailed, "a query began while the rows of another one were read")
}

fn value(row: &postgres::Row, index: usize) -> Result<Value, postgres::Error> {
    Ok(match row.columns().get(index).map(postgres::Column::type_) {
        Some(&Type::INT8) => row.try_get::<_, Option<i64>>(index)?.map_or(Value::Null, Value::Integer),
        Some(&Type::INT4) => row.try_get::<_, Option<i32>>(index)?.map_or(Value::Null, |number| Value::Integer(number.into())),
        _ => row.try_get::<_, Option<String>>(index)?.map_or(Value::Null, Value::Text),
    })
}

impl ToSql for Value {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match (self, kind) {
            (Self::Null, _) => Ok(IsNull::Yes),
            (Self::Integer(number), &Type::INT4) => i32::try_from(*number)?.to_sql(kind, out),
            (Self::Integer(number), _) => number.to_sql(kind, out),
            (Self::Text(text), _) => text.to_sql(kind, out),
        }
    }

    fn accepts(kind: &Type) -> bool {
        matches!(*kind, Type::INT4 | Type::INT8 | Type::TEXT | Type::VARCHAR)
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_numbered_in_their_order() {
        assert_eq!(numbered("SELECT ? WHERE a = ? AND b = 1"), "SELECT $1 WHERE a = $2 AND b = 1");
        assert_eq!(numbered("SELECT 1"), "SELECT 1");
    }

    #[test]
    fn a_url_is_shown_without_its_secrets() {
        for (url, shown) in [
            ("postgres://user:secret@host:5432/name?sslmode=require", "postgres://user@host:5432/name"),
            ("postgres://us%40er:a@b@host/name", "postgres://us%40er@host/name"),
            ("postgres://host/name?password=secret", "postgres://host/name"),
            ("postgresql:///name", "postgresql:///name"),
        ] {
            assert_eq!(without_password(url), shown);
        }
        let (url, roots) = without_root_certificates("postgres://h/n?a=1&sslrootcert=/etc/ca.pem&b=2");
        assert_eq!((url.as_str(), roots.as_deref()), ("postgres://h/n?a=1&b=2", Some("/etc/ca.pem")));
        assert_eq!(without_root_certificates("postgres://h/n"), ("postgres://h/n".to_owned(), None));
    }
}
