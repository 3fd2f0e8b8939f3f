//! Deletes usage that is too old, and that of orgs that were deleted.

use std::collections::BTreeSet;

use super::{Usage, each_of};
use crate::clock::Moment;
use crate::failure::Failure;
use crate::sql::{Sql, Value, first, values};

/// Days for which sums by hour, and the sequences of silent gateways, are kept.
const KEPT_HOURS_DAYS: i64 = 14;
/// [`KEPT_HOURS_DAYS`] in hours.
pub(super) const KEPT_HOURS: i64 = KEPT_HOURS_DAYS * 24;
/// Days for which sums by day are kept: 13 months.
pub(crate) const KEPT_DAYS: i64 = 400;
/// Number of rows that one transaction deletes. A report waits for such a transaction.
const MAX_ROWS: u32 = 2_000;

/// Number of such transactions for a table, until the next hour. The server waits for them when it stops.
const PORTIONS: u32 = 200;

/// The tables with the columns of their keys, and the column with the time.
const TABLES: [(&str, &str, &str); 4] = [
    ("usage_days", "org, credential, day, outcome", "day"),
    ("usage_org_days", "org, day, outcome", "day"),
    ("usage_hours", "org, hour", "hour"),
    ("usage_gateways", "gateway", "hour"),
];

/// The tables whose rows belong to an org. The last two show which orgs have usage, so their rows are deleted last.
const TABLES_OF_ORGS: [(&str, &str); 4] = [
    ("usage_days", "org, credential, day, outcome"),
    ("usage_hours", "org, hour"),
    ("usage_last_used", "org, credential"),
    ("usage_org_days", "org, day, outcome"),
];

/// Deletes rows that are too old.
///
/// # Errors
/// If the store fails.
pub(crate) fn delete_old(usage: &Usage, now: Moment) -> Result<(), Failure> {
    for (table, key, time) in TABLES {
        let oldest = match time {
            "day" => now.day().saturating_sub(KEPT_DAYS),
            _ => now.hour().saturating_sub(KEPT_HOURS),
        };
        delete(usage, now, [table, key], &format!("{time} < ?"), &oldest.into())?;
    }
    Ok(())
}

/// Deletes the usage of an org.
///
/// # Errors
/// If the store fails.
pub(crate) fn delete_org(usage: &Usage, now: Moment, org: &str) -> Result<(), Failure> {
    for (table, key) in TABLES_OF_ORGS {
        // The next hour goes on with a table that has too many rows.
        if !delete(usage, now, [table, key], "org = ?", &org.into())? {
            break;
        }
    }
    Ok(())
}

/// Deletes rows in portions, so that no report waits long. False: some are left.
fn delete(usage: &Usage, now: Moment, [table, key]: [&str; 2], condition: &str, value: &Value) -> Result<bool, Failure> {
    let query = format!("DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE {condition} LIMIT ?)");
    let portion = || usage.write(now, |sql| sql.execute(&query, &[value.clone(), MAX_ROWS.into()]));
    for _ in 0..PORTIONS {
        if portion()? < u64::from(MAX_ROWS) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The orgs with usage that the database with the records does not have: they were deleted.
///
/// # Errors
/// If the database fails.
pub(crate) fn unknown_orgs(settings: &dyn Sql, mut names: Vec<String>) -> Result<Vec<String>, Failure> {
    let mut known = BTreeSet::new();
    each_of(settings, ("SELECT name FROM orgs WHERE name IN", ""), &[], &names, &mut |row| {
        known.insert(row.get::<String>("name")?);
        Ok(())
    })?;
    names.retain(|name| !known.contains(name));
    Ok(names)
}

/// All orgs with usage. Each is one look into the index, because an org may have many rows.
///
/// # Errors
/// If the store fails.
pub(crate) fn orgs(sql: &dyn Sql) -> Result<Vec<String>, Failure> {
    let mut names = BTreeSet::new();
    for table in ["usage_org_days", "usage_last_used"] {
        let query = format!("SELECT org FROM {table} WHERE org > ? ORDER BY org LIMIT 1");
        let mut last = String::new();
        while let Some(next) = first(sql, &query, values![&last], |row| row.get::<String>("org"))? {
            last.clone_from(&next);
            names.insert(next);
        }
    }
    Ok(names.into_iter().collect())
}
