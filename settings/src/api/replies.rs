//! Answers to requests with an `Idempotency-Key`: a repeated request gets the same answer, without the secret.

use std::time::Duration;

use serde_json::Value;

use super::Made;
use super::call::Call;
use crate::access::Actor;
use crate::database::Change;
use crate::failure::{Failure, Reason};
use crate::secret::sha256;
use crate::sql::{Sql, first, values};

/// How long an answer is kept.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// The place of an answer.
pub(super) struct Place {
    /// `None`: the request has no key.
    key: Option<String>,
    request: String,
}

impl Place {
    /// The place of the answer to this request.
    pub(super) fn of(call: &Call, digest: &str, actor: &Actor) -> Self {
        let key = call.idempotency_key.as_ref().map(|key| sha256(&format!("{}\n{key}", actor.name)));
        Self { key, request: sha256(&format!("{}\n{digest}", call.what)) }
    }

    /// The answer that the request got before.
    ///
    /// # Errors
    /// If another request came with this key.
    pub(super) fn known(&self, sql: &dyn Sql, actor: &Actor) -> Result<Option<Made>, Failure> {
        let Some(key) = &self.key else { return Ok(None) };
        let query = "SELECT request, status, body FROM replies WHERE key = ? AND at >= ?";
        let found = first(sql, query, values![key, actor.now.minus(KEPT)], |row| {
            let status: u32 = row.get("status")?;
            Ok((row.get::<String>("request")?, status, row.json::<Value>("body")?.unwrap_or_default()))
        })?;
        let Some((request, status, body)) = found else { return Ok(None) };
        if request != self.request {
            let line = "this Idempotency-Key came with another request before: use a new key for each request";
            return Err(Failure::new(Reason::IdempotencyKeyReused, line));
        }
        Ok(Some(Made { status: u16::try_from(status).unwrap_or(200), is_replayed: true, ..Made::ok(body) }))
    }

    /// Keeps an answer without its secret, and forgets old ones.
    ///
    /// # Errors
    /// If the database fails.
    pub(super) fn keep(&self, change: &Change<'_>, made: &Made, actor: &Actor) -> Result<(), Failure> {
        change.execute("DELETE FROM replies WHERE at < ?", values![actor.now.minus(KEPT)])?;
        let Some(key) = &self.key else { return Ok(()) };
        change.execute(
            "INSERT INTO replies (key, request, status, body, at) VALUES (?, ?, ?, ?, ?)",
            values![key, &self.request, u32::from(made.status), made.body.to_string(), actor.now],
        )?;
        // A request that changes no record has an answer, too.
        change.commit_anyway();
        Ok(())
    }
}
