//! `apexmcp`: Settings of the gateway.

use std::io::Write;
use std::process::ExitCode;

use apexmcp_settings::cli::Cli;
use apexmcp_settings::commands;
use apexmcp_settings::output::Answer;
use clap::Parser;
use serde_json::json;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let is_json = cli.json;
    let Answer { text, json, is_good, failure, warnings } = commands::run(cli).unwrap_or_else(|failure| {
        let json = json!({"error": failure.to_string()});
        Answer { failure: Some(failure), is_good: false, ..Answer::new("", json) }
    });
    let mut json = json;
    if let (Some(failure), Some(members)) = (&failure, json.as_object_mut()) {
        members.insert("code".to_owned(), json!(failure.reason.code()));
    }
    let output = if !is_json {
        text
    } else if json.is_null() {
        String::new()
    } else {
        json.to_string()
    };
    let written = if output.is_empty() { Ok(()) } else { writeln!(std::io::stdout(), "{output}") };
    for warning in warnings {
        let _ = writeln!(std::io::stderr(), "apexmcp: warning: {warning}");
    }
    if let Some(failure) = failure {
        let _ = writeln!(std::io::stderr(), "apexmcp: {failure}");
    }
    if let Err(error) = &written {
        let _ = writeln!(
            std::io::stderr(),
            "apexmcp: the command was run, but its answer could not be printed: {error}; 'apexmcp audit list' shows each change"
        );
    }
    if is_good && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
