//! Gateway tokens that end before they expire.

use std::time::Duration;

use apexmcp_auth::names::is_plain;
use rusqlite::params;
use serde_json::json;

use super::{client, org};
use crate::clock::Moment;
use crate::database::{Actor, Change, Record};
use crate::failure::Failure;

/// No gateway token lives longer: `tokens.ttl` is at most a day, `tokens.clock_skew` ten minutes. Older revocations end nothing.
const LONGEST_LIFE: Duration = Duration::from_secs(25 * 60 * 60);

/// The gateway's own have 32 characters.
const MAX_JTI_LENGTH: usize = 256;

/// Ends the token with this `jti`.
///
/// # Errors
/// Where there is no such org.
pub fn of_token(change: &Change<'_>, actor: &Actor, org: &str, jti: &str) -> Result<(), Failure> {
    org::require(change, org)?;
    if jti.is_empty() || jti.len() > MAX_JTI_LENGTH || !jti.chars().all(is_plain) {
        return Err(Failure::new(format!("--jti must be the jti claim of a token, at most {MAX_JTI_LENGTH} bytes")));
    }
    change.execute("DELETE FROM revoked_tokens WHERE revoked_at < ?", [actor.now.minus(LONGEST_LIFE).to_string()])?;
    change.execute(
        "INSERT OR REPLACE INTO revoked_tokens (org, jti, revoked_at) VALUES (?, ?, ?)",
        params![org, jti, actor.now.to_string()],
    )?;
    change.record(actor, &Record { action: "token.revoke", org: Some(org), subject: jti, details: json!({}) })
}

/// Ends all tokens of a client that were issued before this moment.
///
/// # Errors
/// Where there is no such client in this org, or the moment is yet to come.
pub fn of_client(change: &Change<'_>, actor: &Actor, org: &str, client_id: &str, issued_before: Moment) -> Result<(), Failure> {
    org::require(change, org)?;
    if client::show(change, client_id)?.org != org {
        return Err(Failure::new(format!("{client_id} is no client of {org}: see 'apexmcp client list --org {org}'")));
    }
    // Tokens of this second are meant, too. What is later would refuse those that are yet to be made, and for good.
    if issued_before > actor.now.plus(Duration::from_secs(1))? {
        return Err(Failure::new("--issued-before must not be in the future: 'apexmcp client revoke' ends a client for good"));
    }
    change.execute("DELETE FROM revoked_clients WHERE issued_before < ?", [actor.now.minus(LONGEST_LIFE).to_string()])?;
    change.execute(
        "INSERT INTO revoked_clients (org, client_id, issued_before) VALUES (?1, ?2, ?3)
            ON CONFLICT DO UPDATE SET issued_before = max(issued_before, ?3)",
        params![org, client_id, issued_before.to_string()],
    )?;
    let details = json!({"issued_before": issued_before.to_string()});
    change.record(actor, &Record { action: "token.revoke", org: Some(org), subject: client_id, details })
}
