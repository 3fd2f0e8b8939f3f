//! `apexmcp policy`

use std::path::Path;

use apexmcp_core::policy::raw::RawPolicy;
use apexmcp_core::problem::{self, Problem, Problems};
use serde_json::{Value, json};

use super::input::{read, read_import};
use super::session::Session;
use crate::check::{self, Surroundings};
use crate::cli::PolicyCommand;
use crate::clock::Moment;
use crate::document;
use crate::failure::{Failure, Reason};
use crate::issuer::{self, Reach};
use crate::output::{Answer, table};
use crate::records::import;

/// Maximum number of warnings that a command prints after many changes.
pub(super) const MAX_WARNINGS: usize = 20;

pub(super) fn run(session: &Session<'_>, command: PolicyCommand) -> Result<Answer, Failure> {
    match command {
        PolicyCommand::Export => {
            let document = session.open()?.read(document::render)?;
            let json = serde_json::from_str(&document).map_err(Failure::during(Reason::DatabaseFailed, "the policy document"))?;
            Ok(Answer::new(document, json))
        }
        PolicyCommand::Import { file } => import(session, &file),
        PolicyCommand::Check { file, clusters, connectors, fetch_keys, allow_private_address } => {
            let (clusters, connectors) = (clusters.into_iter().collect(), connectors.into_iter().collect());
            let surroundings = Surroundings { clusters, connectors, ..Surroundings::default() };
            let reach = Reach::allowing_private(allow_private_address);
            check(&file, &surroundings, session.actor.now, fetch_keys.then_some(reach))
        }
    }
}

/// Creates the records of a document that are not there yet.
fn import(session: &Session<'_>, file: &Path) -> Result<Answer, Failure> {
    let name = file.display().to_string();
    let bytes = read_import(file)?;
    let mut problems = Problems::default();
    let read = problem::read::<RawPolicy>(&bytes, &mut problems);
    drop(bytes);
    let (policy, _) = problems.conclude(read).map_err(|problems| {
        let first = problems.first().map(Problem::to_string).unwrap_or_default();
        Failure::new(Reason::FileInvalid, format!("{name}: {first}"))
    })?;
    session.change_with_warnings(
        |change, actor| import::import(change, actor, policy).map_err(|failure| failure.within(&name)),
        |counts, warnings| {
            let rows: Vec<[String; 2]> = [
                ("orgs", counts.orgs),
                ("API keys", counts.api_keys),
                ("OAuth clients", counts.oauth_clients),
                ("identity providers", counts.identity_providers),
                ("signing keys", counts.signing_keys),
                ("limits", counts.limits),
                ("revoked tokens", counts.revoked_tokens),
                ("already there", counts.unchanged),
                ("revoked in the file, ignored", counts.revoked),
            ]
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(kind, count)| [kind.to_owned(), count.to_string()])
            .collect();
            let text = table(["RECORDS", "NUMBER"], &rows, "The file has no records.");
            let warnings = warnings.iter().take(MAX_WARNINGS).map(Problem::to_string).collect();
            Answer { warnings, ..Answer::new(text, json!(counts)) }
        },
    )
}

/// Checks a file. With `reach`, also fetches the key sets that the file names, from the addresses that `reach` allows.
fn check(file: &Path, surroundings: &Surroundings, now: Moment, reach: Option<Reach>) -> Result<Answer, Failure> {
    let name = file.display().to_string();
    let mut report = check::check(&read(file)?, surroundings, now).map_err(|failure| failure.within(&name))?;
    if let Some(reach) = reach {
        for (uri, path) in std::mem::take(&mut report.key_sets) {
            if let Some(message) = issuer::wrong_with_keys(&uri, reach) {
                report.warnings.push(Problem { path, message });
            }
        }
    }
    let errors = report.errors.iter().map(|problem| format!("error: {problem}"));
    let warnings = report.warnings.iter().map(|problem| format!("warning: {problem}"));
    let summary = format!("{name}: {} errors, {} warnings", report.errors.len(), report.warnings.len());
    let notes = report.notes.iter().map(|problem| format!("note: {problem}"));
    let lines: Vec<String> = errors.chain(warnings).chain(notes).chain([summary]).collect();
    let list = |problems: &[Problem]| -> Vec<Value> {
        problems.iter().map(|problem| json!({"path": problem.path, "message": problem.message})).collect()
    };
    let json = json!({"errors": list(&report.errors), "warnings": list(&report.warnings), "notes": list(&report.notes)});
    let answer = Answer::new(lines.join("\n"), json);
    Ok(match report.errors.len() {
        0 => answer,
        count => answer.but(Failure::new(Reason::CheckFailed, format!("{name}: {count} errors"))),
    })
}
