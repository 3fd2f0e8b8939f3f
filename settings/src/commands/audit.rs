//! `apexmcp audit`

use serde_json::json;

use super::session::Session;
use crate::cli::AuditCommand;
use crate::failure::Failure;
use crate::output::{Answer, table};
use crate::records::audit::{self, Entry, Filter};
use crate::sql::Range;

pub(super) fn run(session: &Session<'_>, command: AuditCommand) -> Result<Answer, Failure> {
    let AuditCommand::List { org, limit } = command;
    let (filter, range) = (Filter { org, ..Filter::default() }, Range { limit, ..Range::default() });
    let mut entries = session.open()?.read(|connection| audit::latest(connection, &session.actor, &filter, &range))?.items;
    entries.reverse();
    let row = |entry: &Entry| {
        let org = entry.org.clone().unwrap_or_default();
        let details = if entry.details == json!({}) { String::new() } else { entry.details.to_string() };
        [
            entry.version.to_string(),
            entry.at.clone(),
            entry.actor.clone(),
            entry.action.clone(),
            org,
            entry.subject.clone(),
            details,
        ]
    };
    let text = || {
        let rows: Vec<_> = entries.iter().map(row).collect();
        table(["VERSION", "AT", "WHO", "WHAT", "ORG", "SUBJECT", "DETAILS"], &rows, "No changes.")
    };
    Ok(session.answer(text, json!(entries)))
}
