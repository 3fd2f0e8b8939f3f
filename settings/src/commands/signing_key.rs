//! `apexmcp signing-key`

use serde_json::json;

use super::session::Session;
use crate::cli::SigningKeyCommand;
use crate::failure::Failure;
use crate::output::{Answer, table};
use crate::records::signing_key::{self, SigningKey};

pub(super) fn run(session: &Session<'_>, command: SigningKeyCommand) -> Result<Answer, Failure> {
    match command {
        SigningKeyCommand::Create { kid } => {
            let pem = signing_key::generate()?;
            session.change(
                |change, actor| signing_key::create(change, actor, kid.as_deref(), &pem),
                |key| {
                    let text = match key.signs {
                        true => format!("Created the signing key {}. It signs new tokens.", key.kid),
                        false => format!(
                            "Created and published the signing key {0}. Wait one minute, then run 'apexmcp signing-key use {0}'.",
                            key.kid
                        ),
                    };
                    Answer::new(text, json!(key))
                },
            )
        }
        SigningKeyCommand::List => {
            let keys = session.open()?.read(|connection| signing_key::list(connection, &session.actor))?;
            let row = |key: &SigningKey| {
                [key.kid.clone(), if key.signs { "signs, verifies" } else { "verifies" }.to_owned(), key.created_at.clone()]
            };
            let rows: Vec<_> = keys.iter().map(row).collect();
            Ok(Answer::new(table(["KID", "USE", "CREATED"], &rows, "No signing keys."), json!(keys)))
        }
        SigningKeyCommand::Use { kid } => session.change(
            |change, actor| signing_key::sign_with(change, actor, &kid),
            |key| Answer::new(format!("{kid} signs new tokens from now on. The other keys still verify."), json!(key)),
        ),
        SigningKeyCommand::Remove { kid } => session.change(
            |change, actor| signing_key::remove(change, actor, &kid),
            |key| Answer::new(format!("Removed {kid}. Gateways refuse the tokens that it signed."), json!(key)),
        ),
    }
}
