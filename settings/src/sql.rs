//! SQL that SQLite and PostgreSQL both understand. All columns are texts or integers.
//!
//! A `?` in a query stands for the next value. A query that needs a value twice passes it twice.

use apexmcp_core::names::is_plain;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;

use crate::clock::Moment;
use crate::encryption::Keyring;
use crate::failure::{Failure, Reason};

/// A value of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Null,
    Integer(i64),
    Text(String),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<&&str> for Value {
    fn from(text: &&str) -> Self {
        Self::Text((*text).to_owned())
    }
}

impl From<&String> for Value {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<bool> for Value {
    fn from(is_true: bool) -> Self {
        Self::Integer(is_true.into())
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Integer(number.into())
    }
}

impl From<Moment> for Value {
    fn from(moment: Moment) -> Self {
        Self::Text(moment.to_string())
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// The values of a query, in their order.
macro_rules! values {
    ($($value:expr),* $(,)?) => { &[$($crate::sql::Value::from($value)),*] };
}
pub(crate) use values;

/// A type that a column can have.
pub trait FromValue: Sized {
    /// `None`: the value has another type.
    fn from_value(value: &Value) -> Option<Self>;
}

impl FromValue for String {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }
}

impl FromValue for i64 {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Integer(number) => Some(*number),
            _ => None,
        }
    }
}

impl FromValue for bool {
    fn from_value(value: &Value) -> Option<Self> {
        i64::from_value(value).map(|number| number != 0)
    }
}

impl FromValue for u32 {
    fn from_value(value: &Value) -> Option<Self> {
        i64::from_value(value)?.try_into().ok()
    }
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Null => Some(None),
            value => T::from_value(value).map(Some),
        }
    }
}

/// A row of a result.
#[derive(Debug)]
pub struct Row<'r> {
    pub(crate) columns: &'r [String],
    pub(crate) values: Vec<Value>,
}

impl Row<'_> {
    /// The value of a column.
    ///
    /// # Errors
    /// If there is no such column, or its value has another type.
    pub fn get<T: FromValue>(&self, column: &str) -> Result<T, Failure> {
        let index = self.columns.iter().position(|name| name == column);
        let value = index.and_then(|index| self.values.get(index)).and_then(T::from_value);
        value.ok_or_else(|| Failure::new(Reason::DatabaseInvalid, format!("the column {column} has an unexpected value")))
    }

    /// The value of a column that contains JSON or null.
    ///
    /// # Errors
    /// As for [`Self::get`], and if the text is no such JSON.
    pub fn json<T: DeserializeOwned>(&self, column: &str) -> Result<Option<T>, Failure> {
        let text: Option<String> = self.get(column)?;
        let read = text.map(|text| serde_json::from_str(&text)).transpose();
        read.map_err(Failure::during(Reason::DatabaseInvalid, format_args!("the column {column}")))
    }
}

/// A part of a list that is ordered by two texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// The place of the record before the part. Empty: the part is the first one.
    pub after: [String; 2],
    /// The part ends before the place, instead of beginning after it. Only lists of [`newest_first`] can do so.
    pub is_backward: bool,
    /// Maximum number of records.
    pub limit: u32,
}

impl Range {
    /// The whole list.
    pub fn all() -> Self {
        Self { limit: u32::MAX, ..Self::default() }
    }

    /// One record more than the limit, so that it is known whether more follow.
    pub(crate) fn with_next(&self) -> i64 {
        i64::from(self.limit).saturating_add(1)
    }

    /// A text for the place of a record, for clients that do not look into it.
    pub(crate) fn cursor(place: &[String; 2]) -> String {
        URL_SAFE_NO_PAD.encode(place.join("\n"))
    }

    /// The place that [`Self::cursor`] wrote.
    pub(crate) fn from_cursor(cursor: &str) -> Option<[String; 2]> {
        let place = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
        let (first, second) = place.split_once('\n')?;
        Some([first, second].map(str::to_owned)).filter(|place| place.iter().all(|text| text.chars().all(is_plain)))
    }
}

/// An open transaction.
pub trait Sql {
    /// The keys that encrypt private keys in this database.
    fn keyring(&self) -> &Keyring;

    /// Runs a statement. Returns the number of changed rows.
    ///
    /// # Errors
    /// If the database fails.
    fn execute(&self, query: &str, values: &[Value]) -> Result<u64, Failure>;

    /// Runs a query, and passes each row to `take`.
    ///
    /// # Errors
    /// If the database or `take` fails.
    fn each(&self, query: &str, values: &[Value], take: &mut dyn FnMut(&Row<'_>) -> Result<(), Failure>) -> Result<(), Failure>;
}

/// All rows of a query.
///
/// # Errors
/// If the database or `read` fails.
pub fn rows<T>(
    sql: &dyn Sql,
    query: &str,
    values: &[Value],
    read: impl Fn(&Row<'_>) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    let mut found = Vec::new();
    sql.each(query, values, &mut |row| {
        found.push(read(row)?);
        Ok(())
    })?;
    Ok(found)
}

/// The length of the texts after which a part of a list ends, in bytes.
const MAX_PART_LENGTH: usize = 1 << 20;

/// A part of a list.
#[derive(Debug)]
pub struct Part<T> {
    pub items: Vec<T>,
    /// Whether more follow. If the range is backward: whether more are before the part.
    pub has_more: bool,
}

/// The rows of a query that ends with `LIMIT ?` and the value of [`Range::with_next`]. A part of long records ends before its
/// limit, unless the whole list is wanted.
///
/// # Errors
/// If the database or `read` fails.
pub fn part<T>(
    sql: &dyn Sql,
    query: &str,
    values: &[Value],
    range: &Range,
    read: impl Fn(&Row<'_>) -> Result<T, Failure>,
) -> Result<Part<T>, Failure> {
    let is_whole = range.limit == u32::MAX;
    let limit = usize::try_from(range.limit).unwrap_or(usize::MAX);
    let (mut items, mut length, mut has_more) = (Vec::new(), 0_usize, false);
    sql.each(query, values, &mut |row| {
        has_more = has_more || items.len() >= limit || (length > MAX_PART_LENGTH && !is_whole);
        if !has_more {
            length = row.values.iter().fold(length, |length, value| match value {
                Value::Text(text) => length.saturating_add(text.len()),
                _ => length,
            });
            items.push(read(row)?);
        }
        Ok(())
    })?;
    Ok(Part { items, has_more })
}

/// A part of a list whose newest records come first. `query` ends with its condition. `order` has the column with the time of
/// creation and the one with the id, which an index must have in this order.
///
/// # Errors
/// As for [`part`].
pub fn newest_first<T>(
    sql: &dyn Sql,
    query: &str,
    values: &[Value],
    [created_at, id]: [&str; 2],
    range: &Range,
    read: impl Fn(&Row<'_>) -> Result<T, Failure>,
) -> Result<Part<T>, Failure> {
    let (comparison, order) = if range.is_backward { (">", "ASC") } else { ("<", "DESC") };
    let (condition, place) = match &range.after {
        [first, second] if first.is_empty() && second.is_empty() => (String::new(), Vec::new()),
        [first, second] => (format!(" AND ({created_at}, {id}) {comparison} (?, ?)"), values![first, second].to_vec()),
    };
    let query = format!("{query}{condition} ORDER BY {created_at} {order}, {id} {order} LIMIT ?");
    let values = [values, &place, values![range.with_next()]].concat();
    let mut found = part(sql, &query, &values, range, read)?;
    if range.is_backward {
        found.items.reverse();
    }
    Ok(found)
}

/// The first row of a query.
///
/// # Errors
/// As for [`rows`].
pub fn first<T>(
    sql: &dyn Sql,
    query: &str,
    values: &[Value],
    read: impl Fn(&Row<'_>) -> Result<T, Failure>,
) -> Result<Option<T>, Failure> {
    Ok(rows(sql, query, values, read)?.into_iter().next())
}

/// The row that a query always has.
///
/// # Errors
/// As for [`rows`], and if there is no row.
pub fn only<T>(
    sql: &dyn Sql,
    query: &str,
    values: &[Value],
    read: impl Fn(&Row<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    first(sql, query, values, read)?
        .ok_or_else(|| Failure::new(Reason::DatabaseInvalid, "the database lacks a row that it must have"))
}

/// Whether a query has a row.
///
/// # Errors
/// If the database fails.
pub fn exists(sql: &dyn Sql, query: &str, values: &[Value]) -> Result<bool, Failure> {
    let mut is_there = false;
    sql.each(query, values, &mut |_| {
        is_there = true;
        Ok(())
    })?;
    Ok(is_there)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::access::Actor;
    use crate::database::{Database, Location};
    use crate::records::{api_key, client, org};

    /// A database that notes how it answers each query.
    struct Watched<'a> {
        sql: &'a dyn Sql,
        plans: RefCell<Vec<String>>,
    }

    impl Sql for Watched<'_> {
        fn keyring(&self) -> &Keyring {
            self.sql.keyring()
        }

        fn execute(&self, query: &str, values: &[Value]) -> Result<u64, Failure> {
            self.sql.execute(query, values)
        }

        fn each(
            &self,
            query: &str,
            values: &[Value],
            take: &mut dyn FnMut(&Row<'_>) -> Result<(), Failure>,
        ) -> Result<(), Failure> {
            self.sql.each(&format!("EXPLAIN QUERY PLAN {query}"), values, &mut |row| {
                self.plans.borrow_mut().push(row.get("detail")?);
                Ok(())
            })?;
            self.sql.each(query, values, take)
        }
    }

    /// The pages of an org with many records are read from an index, and not sorted.
    #[test]
    fn lists_with_the_newest_first_have_pages_in_both_directions() {
        let folder = tempfile::tempdir().unwrap();
        let mut database = Database::create(&Location::from(&*folder.path().join("test.db")), |_| Ok(())).unwrap();
        let (noon, later) = ("2026-01-01T12:00:00Z", "2026-01-01T12:00:01Z");
        let actor = Actor::operator("test", Moment::parse(later).unwrap());
        let fill = |change: &crate::database::Change<'_>| {
            org::create(change, &actor, "acme")?;
            for number in 0..10_u32 {
                let (id, at) = (number.to_string(), if number < 5 { noon } else { later });
                let key = "INSERT INTO api_keys (id, org, name, prefix, sha256, created_at) VALUES (?, 'acme', 'k', '', ?, ?)";
                change.execute(key, values![&id, format!("{number:064x}"), at])?;
                let client =
                    "INSERT INTO oauth_clients (client_id, org, name, scopes, created_at) VALUES (?, 'acme', 'c', '[]', ?)";
                change.execute(client, values![&id, at])?;
            }
            Ok(())
        };
        database.change(fill).unwrap();
        let check = |sql: &dyn Sql| {
            let watched = Watched { sql, plans: RefCell::default() };
            let places = |range: &Range| {
                let keys = api_key::list(&watched, &actor, "acme", &api_key::Filter::default(), range).unwrap();
                let clients = client::list(&watched, &actor, "acme", range).unwrap();
                let keys_of = |key: &api_key::ApiKey| [key.created_at.clone(), key.id.clone()];
                let of_keys: Vec<_> = keys.items.iter().map(keys_of).collect();
                let of_clients = clients.items.into_iter().map(|client| [client.created_at, client.client_id]);
                assert_eq!((&of_keys, keys.has_more), (&of_clients.collect(), clients.has_more));
                (of_keys, keys.has_more)
            };
            let all = places(&Range::all()).0;
            assert!(all.len() == 10 && all.is_sorted_by(|a, b| a > b), "{all:?}");
            let range = |index: usize, is_backward: bool| Range { after: all[index].clone(), is_backward, limit: 3 };
            assert_eq!(places(&Range { limit: 3, ..Range::default() }), (all[..3].to_vec(), true));
            assert_eq!(places(&range(2, false)), (all[3..6].to_vec(), true));
            assert_eq!(places(&range(8, false)), (all[9..].to_vec(), false));
            assert_eq!(places(&range(6, true)), (all[3..6].to_vec(), true));
            assert_eq!(places(&range(3, true)), (all[..3].to_vec(), false));
            assert_eq!(places(&range(0, true)), (Vec::new(), false));
            let plans = watched.plans.into_inner();
            let reads = |table: &str| plans.iter().filter(|plan| plan.contains(&format!("{table}_by_org"))).count();
            assert_eq!((reads("api_keys"), reads("oauth_clients")), (7, 7), "{plans:?}");
            assert!(
                !plans.iter().any(|plan| plan.contains("TEMP B-TREE FOR ORDER") || plan.starts_with("SCAN api_keys")),
                "{plans:?}"
            );
            Ok(())
        };
        database.read(check).unwrap();
    }
}
