//! Reading rows of the database.

use rusqlite::{Connection, Params, Row};
use serde::de::DeserializeOwned;

use crate::failure::Failure;

/// All rows of a query.
pub(crate) fn rows<T>(
    connection: &Connection,
    query: &str,
    parameters: impl Params,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, Failure> {
    let mut statement = connection.prepare(query)?;
    let found = statement.query_map(parameters, read)?.collect::<rusqlite::Result<_>>()?;
    Ok(found)
}

/// Whether a query has a row.
pub(crate) fn exists(connection: &Connection, query: &str, parameters: impl Params) -> Result<bool, Failure> {
    Ok(connection.prepare(query)?.exists(parameters)?)
}

/// The value of a column that contains JSON or NULL.
pub(crate) fn json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| serde_json::from_str(&text))
        .transpose()
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error)))
}
