//! `apexmcp database`

use serde_json::json;

use super::session::Session;
use crate::cli::DatabaseCommand;
use crate::database::copy;
use crate::failure::Failure;
use crate::output::Answer;

pub(super) fn run(session: &Session<'_>, command: DatabaseCommand) -> Result<Answer, Failure> {
    let DatabaseCommand::Copy { to } = command;
    let copied = copy::copy(&mut session.open()?, &to)?;
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
