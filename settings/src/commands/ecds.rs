//! `apexmcp ecds`

use serde_json::json;

use super::session::Session;
use crate::cli::EcdsCommand;
use crate::ecds::{self, Target};
use crate::failure::Failure;
use crate::output::Answer;

pub(super) fn run(session: &Session<'_>, command: EcdsCommand) -> Result<Answer, Failure> {
    match command {
        EcdsCommand::Enable { template, file } => {
            let target = Target::of(&template, &file)?;
            written(session.open()?.change(|change| ecds::enable(change, &session.actor, &target))?.value)
        }
        EcdsCommand::Write => written(ecds::write(&mut session.open()?)?),
        EcdsCommand::Disable => {
            let target = session.open()?.change(|change| ecds::disable(change, &session.actor))?.value;
            Ok(Answer::new(format!("{} is no longer updated.", target.file.display()), json!(target)))
        }
    }
}

fn written(target: Option<Target>) -> Result<Answer, Failure> {
    let target = target.ok_or_else(ecds::not_enabled)?;
    Ok(Answer::new(format!("Wrote the current policy to {}.", target.file.display()), json!(target)))
}
