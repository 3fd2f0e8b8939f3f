//! Checks that several kinds of records share.

use apexmcp_core::names::{ConnectorId, is_plain};
use apexmcp_core::scope::Scope;

use crate::failure::Failure;

/// Maximum number of connectors or scopes of one record. One org must not make the policy too long for all.
const MAX_LIST: usize = 256;
/// Maximum length of a name, in characters. A name is shown in one line.
const MAX_NAME: usize = 200;

pub(super) fn check_name(name: &str) -> Result<(), Failure> {
    if name.trim().is_empty() || name.chars().count() > MAX_NAME || !name.chars().all(is_plain) {
        return Err(Failure::of("name", format!("must be 1 to {MAX_NAME} visible characters")));
    }
    Ok(())
}

fn check_count(field: &'static str, values: &[String]) -> Result<(), Failure> {
    if values.len() > MAX_LIST {
        return Err(Failure::of(field, format!("must have at most {MAX_LIST} values, and has {}", values.len())));
    }
    Ok(())
}

pub(super) fn check_connectors(connectors: &[String]) -> Result<(), Failure> {
    check_count("connectors", connectors)?;
    match connectors.iter().find(|connector| ConnectorId::parse(connector).is_none()) {
        Some(wrong) => Err(Failure::of("connectors", format!("{wrong:?} must be 1 to 128 of A-Z a-z 0-9 . _ ~ -"))),
        None => Ok(()),
    }
}

pub(super) fn check_scopes(field: &'static str, scopes: &[String]) -> Result<(), Failure> {
    check_count(field, scopes)?;
    match scopes.iter().find(|scope| Scope::parse(scope).is_none()) {
        Some(wrong) => Err(Failure::of(field, format!("{wrong:?} must be mcp:call or mcp:call:<connector-id>"))),
        None => Ok(()),
    }
}
