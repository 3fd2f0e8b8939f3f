//! Copies a database to an empty one, from SQLite to PostgreSQL or back.

use apexmcp_core::policy::parts::Sum;

use super::{Database, Location};
use crate::failure::{Failure, Reason};
use crate::output::progress;
use crate::parts;
use crate::sql::{Sql, Value, only, values};

/// All tables, each after those to which it refers. The copy has the same versions, so gateways need not fetch it anew.
const TABLES: [&str; 20] = [
    "policy",
    "identity",
    "orgs",
    "api_keys",
    "oauth_clients",
    "client_secrets",
    "identity_providers",
    "signing_keys",
    "revoked_tokens",
    "revoked_clients",
    "audit",
    "ecds",
    "parts",
    "versions",
    "key_parts",
    "admin_tokens",
    "replies",
    "members",
    "sign_in_links",
    "sessions",
];

/// What was copied.
#[derive(Debug)]
pub struct Copied {
    /// The number of rows of all tables.
    pub rows: u64,
    /// The sum of all parts of the policy, which both databases have.
    pub sum: Sum,
}

/// Copies all records of `from` to a new database, atomically, and compares the two.
///
/// # Errors
/// If the new database exists already, one of them fails, or they differ. The new database then has no records.
pub fn copy(from: &mut Database, to: &Location) -> Result<Copied, Failure> {
    from.read(|from| {
        let mut copied = None;
        Database::create(to, |change| {
            let mut rows = 0_u64;
            for table in TABLES {
                change.execute(&format!("DELETE FROM {table}"), values![])?;
                copy_table(from, change, table, &mut rows)?;
            }
            // All parts are as they were, with the versions that they had.
            change.execute("DELETE FROM touched", values![])?;
            let sums = (sum(from)?, sum(change)?);
            if sums.0 != sums.1 {
                let line = "the copy has another policy, so it was not kept: report this as a bug of apexmcp";
                return Err(Failure::new(Reason::DatabaseFailed, line));
            }
            copied = Some(Copied { rows, sum: sums.0 });
            Ok(())
        })?;
        copied.ok_or_else(|| Failure::new(Reason::DatabaseFailed, "nothing was copied"))
    })
}

fn copy_table(from: &dyn Sql, to: &dyn Sql, table: &str, rows: &mut u64) -> Result<(), Failure> {
    let count = |sql| only(sql, &format!("SELECT count(*) AS count FROM {table}"), values![], |row| row.get::<i64>("count"));
    let mut insert = None;
    from.each(&format!("SELECT * FROM {table}"), values![], &mut |row| {
        let query = insert.get_or_insert_with(|| {
            let columns: Vec<String> = row.columns.iter().map(|column| format!("\"{column}\"")).collect();
            let places = vec!["?"; columns.len()].join(", ");
            format!("INSERT INTO {table} ({}) VALUES ({places})", columns.join(", "))
        });
        to.execute(query, &row.values)?;
        *rows = rows.saturating_add(1);
        progress(*rows, || format!("{rows} rows copied, now {table}"));
        Ok(())
    })?;
    let counts = (count(from)?, count(to)?);
    if counts.0 != counts.1 {
        let line = format!("the table {table} has {} rows, and its copy {}: nothing was kept", counts.0, counts.1);
        return Err(Failure::new(Reason::DatabaseFailed, line));
    }
    Ok(())
}

/// The sum of all parts of the policy.
fn sum(sql: &dyn Sql) -> Result<Sum, Failure> {
    let parts = parts::all(sql)?.parts;
    let in_force = parts.iter().filter_map(|(name, _, text)| Some((name, text.as_ref()?)));
    Ok(in_force.fold(Sum::default(), |sum, (name, text)| sum.with(name, text)))
}

/// The highest number of a client's secret, from which the next numbers continue.
pub(super) fn last_number(sql: &dyn Sql) -> Result<Option<i64>, Failure> {
    only(sql, "SELECT max(number) AS last FROM client_secrets", values![], |row| row.get("last"))
}

/// A query without rows.
pub(super) fn run(sql: &dyn Sql, query: &str, values: &[Value]) -> Result<(), Failure> {
    sql.each(query, values, &mut |_| Ok(()))
}
