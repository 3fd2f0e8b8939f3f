//! What all commands share: the database, the actor and the form of the answer.

use std::io::Write;

use apexmcp_core::names::is_plain;
use apexmcp_core::problem::Problem;
use serde::Serialize;
use serde_json::{Value, json};

use crate::access::Actor;
use crate::database::{self, Change, Database, Location};
use crate::failure::{Failure, Reason};
use crate::output::Answer;
use crate::service;
use crate::usage::{Usage, Used};

/// One run of the program.
pub(super) struct Session<'a> {
    pub(super) location: &'a Location,
    pub(super) actor: Actor,
    pub(super) json: bool,
}

impl Session<'_> {
    pub(super) fn open(&self) -> Result<Database, Failure> {
        let database = Database::open(self.location)?;
        if let Some(exposure) = database::exposure(self.location) {
            // Printed before the command runs: the command may fail, or print a long answer.
            let _ = writeln!(std::io::stderr(), "apexmcp: warning: {exposure}");
        }
        Ok(database)
    }

    /// Sets when keys or clients were used last. Returns a warning if usage cannot be read.
    pub(super) fn note_last_used<T: Used>(&self, org: &str, records: &mut [T]) -> Vec<String> {
        let noted = Usage::reader(self.location).note_last_used(org, records);
        noted.err().map(|failure| format!("usage cannot be read: {failure}")).into_iter().collect()
    }

    /// An answer whose text is built only if it is shown.
    pub(super) fn answer(&self, text: impl FnOnce() -> String, json: Value) -> Answer {
        Answer::new(if self.json { String::new() } else { text() }, json)
    }

    /// Changes the database, then writes the file for Envoy if one is enabled.
    pub(super) fn change<T>(
        &self,
        action: impl FnOnce(&Change<'_>, &Actor) -> Result<T, Failure>,
        answer: impl FnOnce(T) -> Answer,
    ) -> Result<Answer, Failure> {
        self.change_with_warnings(action, |made, _| answer(made))
    }

    /// As [`Self::change`], for an answer that contains what gateways would warn of.
    pub(super) fn change_with_warnings<T>(
        &self,
        action: impl FnOnce(&Change<'_>, &Actor) -> Result<T, Failure>,
        answer: impl FnOnce(T, Vec<Problem>) -> Answer,
    ) -> Result<Answer, Failure> {
        let mut database = self.open()?;
        let changed = service::change(&mut database, self.location, |change| action(change, &self.actor))?;
        let answer = answer(changed.value, changed.warnings);
        Ok(match changed.file {
            None => answer,
            Some(failure) => answer.but(failure),
        })
    }
}

/// The name for the audit log: the named actor, or the user that runs this process.
pub(super) fn actor(named: Option<String>) -> Result<String, Failure> {
    match named {
        Some(name) if name.trim().is_empty() || !name.chars().all(is_plain) => {
            Err(Failure::new(Reason::InvalidArgument, "--actor must consist of visible characters"))
        }
        Some(name) => Ok(name),
        None => {
            let id = nix::unistd::geteuid();
            let user = nix::unistd::User::from_uid(id).ok().flatten();
            Ok(user.map_or_else(|| format!("uid {id}"), |user| user.name))
        }
    }
}

/// The JSON of a record, with a secret that is shown only in this answer.
pub(super) fn with_secret(record: &impl Serialize, name: &str, secret: &str) -> Value {
    let mut value = json!(record);
    if let Value::Object(members) = &mut value {
        members.insert(name.to_owned(), json!(secret));
    }
    value
}
