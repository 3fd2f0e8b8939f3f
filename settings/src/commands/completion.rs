//! `apexmcp completion`

use clap::CommandFactory;
use clap_complete::Shell;
use serde_json::json;

use crate::cli::Cli;
use crate::failure::{Failure, Reason};
use crate::output::Answer;

pub(super) fn run(shell: Shell) -> Result<Answer, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "apexmcp", &mut script);
    let script = String::from_utf8(script).map_err(Failure::during(Reason::SystemFailed, "the completion script"))?;
    Ok(Answer::new(script.trim_end(), json!({ "script": script })))
}
