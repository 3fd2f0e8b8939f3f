//! `apexmcp init`

use serde_json::json;

use super::session::Session;
use crate::database::Database;
use crate::failure::Failure;
use crate::output::Answer;
use crate::records::signing_key;

pub(super) fn run(session: &Session<'_>) -> Result<Answer, Failure> {
    let pem = signing_key::generate()?;
    let mut kid = String::new();
    Database::create(session.path, |change| {
        kid = signing_key::create(change, &session.actor, None, &pem)?.kid;
        Ok(())
    })?;
    let path = session.path.display();
    let text = format!(
        "Created {path} with the signing key {kid}. The file contains private keys, so only you can read it.\n\
         Next: apexmcp org create acme-corp"
    );
    Ok(Answer::new(text, json!({"db": path.to_string(), "signing_key": kid})))
}
