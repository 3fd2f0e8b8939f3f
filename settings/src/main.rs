//! `apexmcp`: Settings of the gateway.

use std::io::Write;
use std::process::ExitCode;

use apexmcp_settings::cli::Cli;
use apexmcp_settings::commands;
use clap::Parser;
use serde_json::json;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let is_json = cli.json;
    let (output, warnings, failure, is_good) = match commands::run(cli) {
        Ok(answer) => {
            let output = if is_json { answer.json.to_string() } else { answer.text };
            (Some(output), answer.warnings, answer.failure, answer.is_good)
        }
        Err(failure) => (is_json.then(|| json!({"error": failure.to_string()}).to_string()), Vec::new(), Some(failure), false),
    };
    let written = output.filter(|text| !text.is_empty() && text != "null").map(|text| writeln!(std::io::stdout(), "{text}"));
    for warning in warnings {
        let _ = writeln!(std::io::stderr(), "apexmcp: warning: {warning}");
    }
    if let Some(failure) = failure {
        let _ = writeln!(std::io::stderr(), "apexmcp: {failure}");
    }
    if let Some(Err(error)) = &written {
        let _ = writeln!(std::io::stderr(), "apexmcp: what was done could not be told: {error}; 'apexmcp audit list' has it");
    }
    if is_good && written.is_none_or(|written| written.is_ok()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
