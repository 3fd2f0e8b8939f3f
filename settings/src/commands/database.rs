//! `apexmcp database`

use serde_json::json;

use super::session::Session;
use crate::cli::DatabaseCommand;
use crate::database::{Location, copy};
use crate::failure::Failure;
use crate::output::Answer;
use crate::records::signing_key;

pub(super) fn run(session: &Session<'_>, command: DatabaseCommand) -> Result<Answer, Failure> {
    match command {
        DatabaseCommand::Copy { to } => copy_to(session, &to),
        DatabaseCommand::Encrypt => reseal(session, true),
        DatabaseCommand::Decrypt => reseal(session, false),
    }
}

/// Encrypts or decrypts the private signing keys.
fn reseal(session: &Session<'_>, is_encrypted: bool) -> Result<Answer, Failure> {
    let answer = session.change(
        |change, actor| signing_key::reseal(change, actor, is_encrypted),
        |count| {
            let done = if is_encrypted { "Encrypted" } else { "Decrypted" };
            Answer::new(format!("{done} {count} signing keys of {}.", session.location), json!({ "signing_keys": count }))
        },
    )?;
    // The old values may still be in pages that the database does not use any more.
    match session.open()?.forget_deleted() {
        Ok(()) => Ok(answer),
        Err(failure) => {
            let warning = format!(
                "the old values may still be in the files of the database: stop 'apexmcp serve', and run this command again ({failure})"
            );
            Ok(Answer { warnings: vec![warning], ..answer })
        }
    }
}

fn copy_to(session: &Session<'_>, to: &Location) -> Result<Answer, Failure> {
    let copied = copy::copy(&mut session.open()?, to)?;
    let (rows, sum) = (copied.rows, copied.sum.to_string());
    let text = format!(
        "Copied {rows} rows from {} to {to}. Both have the same policy, {}.\nNext: stop 'apexmcp serve', and start it with --db and the \
         copy. Changes to {} after this moment are not in the copy.",
        session.location,
        sum.get(..16).unwrap_or(&sum),
        session.location
    );
    Ok(Answer::new(text, json!({"from": session.location.to_string(), "to": to.to_string(), "rows": rows, "sum": sum})))
}
