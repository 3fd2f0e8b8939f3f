//! `apexmcp init`

use serde_json::json;

use super::session::Session;
use crate::database::{Database, Location};
use crate::failure::Failure;
use crate::output::Answer;
use crate::records::signing_key;

pub(super) fn run(session: &Session<'_>) -> Result<Answer, Failure> {
    let pem = signing_key::generate()?;
    let mut kid = String::new();
    Database::create(session.location, |change| {
        kid = signing_key::create(change, &session.actor, None, &pem)?.kid;
        Ok(())
    })?;
    let location = session.location;
    let hint = match location {
        Location::File(_) => "The file contains private keys, so only you can read it.",
        Location::Postgres(_) => "Its tables are in the schema apexmcp. They contain private keys.",
    };
    let text = format!("Created {location} with the signing key {kid}. {hint}\nNext: apexmcp org create acme-corp");
    Ok(Answer::new(text, json!({"db": location.to_string(), "signing_key": kid})))
}
