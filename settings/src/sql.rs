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
    /// Whether more follow.
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
