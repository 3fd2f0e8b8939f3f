//! What the database holds, a kind a module: how it is made, found and ended.

pub mod api_key;
pub mod audit;
pub mod client;
pub mod limits;
pub mod org;
pub mod provider;
pub mod revocation;
pub mod signing_key;

use apexmcp_core::names::{ConnectorId, is_plain};
use apexmcp_core::scope::Scope;
use rusqlite::{Connection, Params, Row};
use serde::de::DeserializeOwned;

use crate::failure::{Failure, Reason};

/// Connectors or scopes of one record: it must not make the policy too long for all.
const MAX_LIST: usize = 256;
/// Longest name, in characters: it is shown in one line.
const MAX_NAME: usize = 200;

/// All rows that `query` finds.
fn rows<T>(
    connection: &Connection,
    query: &str,
    parameters: impl Params,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, Failure> {
    let mut statement = connection.prepare(query)?;
    let found = statement.query_map(parameters, read)?.collect::<rusqlite::Result<_>>()?;
    Ok(found)
}

/// Whether `query` finds a row.
fn is_there(connection: &Connection, query: &str, parameters: impl Params) -> Result<bool, Failure> {
    Ok(connection.prepare(query)?.exists(parameters)?)
}

/// A column that holds JSON, or nothing.
pub(crate) fn json<T: DeserializeOwned>(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| serde_json::from_str(&text))
        .transpose()
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(error)))
}

fn check_name(name: &str) -> Result<(), Failure> {
    if name.trim().is_empty() || name.chars().count() > MAX_NAME || !name.chars().all(is_plain) {
        return Err(Failure::new(Reason::InvalidArgument, format!("--name must be 1 to {MAX_NAME} visible characters")));
    }
    Ok(())
}

fn check_count(option: &str, values: &[String]) -> Result<(), Failure> {
    if values.len() > MAX_LIST {
        return Err(Failure::new(Reason::InvalidArgument, format!("{option}: at most {MAX_LIST} for one record")));
    }
    Ok(())
}

fn check_connectors(connectors: &[String]) -> Result<(), Failure> {
    check_count("--connector", connectors)?;
    match connectors.iter().find(|connector| ConnectorId::parse(connector).is_none()) {
        Some(wrong) => {
            Err(Failure::new(Reason::InvalidArgument, format!("--connector {wrong:?} must be 1 to 128 of A-Z a-z 0-9 . _ ~ -")))
        }
        None => Ok(()),
    }
}

fn check_scopes(option: &str, scopes: &[String]) -> Result<(), Failure> {
    check_count(option, scopes)?;
    match scopes.iter().find(|scope| Scope::parse(scope).is_none()) {
        Some(wrong) => {
            Err(Failure::new(Reason::InvalidArgument, format!("{option} {wrong:?} must be mcp:call or mcp:call:<connector-id>")))
        }
        None => Ok(()),
    }
}
