//! `apexmcp key`

use std::slice;

use apexmcp_core::problem::Problem;
use serde_json::json;

use super::session::{Session, with_secret};
use super::tables::or_dash;
use crate::cli::KeyCommand;
use crate::failure::Failure;
use crate::output::{Answer, table};
use crate::records::api_key::{self, ApiKey, Filter, NewKey, Rolled};
use crate::sql::{Range, Sql};

pub(super) fn run(session: &Session<'_>, command: KeyCommand) -> Result<Answer, Failure> {
    match command {
        KeyCommand::Create { org, name, connectors, expires } => {
            let expires_at = expires.map(|duration| session.actor.now.plus(duration)).transpose()?;
            let new = NewKey { org: &org, name: &name, connectors: &connectors, expires_at };
            session.change_with_warnings(
                |change, actor| api_key::create(change, actor, &new),
                |(record, key), warnings| {
                    let text = format!(
                        "{key}\n\nThis is the API key {} of {org}. Store it in a secret manager: it cannot be shown again.",
                        record.id
                    );
                    let warnings = warnings.iter().map(Problem::to_string).collect();
                    Answer { warnings, ..Answer::new(text, with_secret(&record, "key", &key)) }
                },
            )
        }
        KeyCommand::List { org } => {
            let all = |connection: &dyn Sql| api_key::list(connection, &session.actor, &org, &Filter::default(), &Range::all());
            let mut keys = session.open()?.read(all)?.items;
            let warnings = session.note_last_used(&org, &mut keys);
            Ok(Answer { warnings, ..session.answer(|| rows(&keys), json!(keys)) })
        }
        KeyCommand::Show { id } => {
            let mut key = session.open()?.read(|connection| api_key::show(connection, &session.actor, &id))?;
            let warnings = session.note_last_used(&key.org.clone(), slice::from_mut(&mut key));
            Ok(Answer { warnings, ..Answer::new(rows(slice::from_ref(&key)), json!(key)) })
        }
        KeyCommand::Roll { id, overlap } => session.change(
            |change, actor| api_key::roll(change, actor, &id, overlap),
            |Rolled { new, key, old }| {
                let end = old.revoked_at.as_ref().map_or_else(
                    || format!("{id} expires at {}", or_dash(old.expires_at.as_ref())),
                    |_| format!("{id} is revoked"),
                );
                let text = format!(
                    "{key}\n\nThis is the API key {}. {end}. Store the new key in a secret manager: it cannot be shown again.",
                    new.id
                );
                Answer::new(text, with_secret(&new, "key", &key))
            },
        ),
        KeyCommand::Revoke { id } => session.change(
            |change, actor| api_key::revoke(change, actor, &id),
            |key| Answer::new(format!("Revoked the API key {id} of {}.", key.org), json!(key)),
        ),
    }
}

fn rows(keys: &[ApiKey]) -> String {
    let row = |key: &ApiKey| {
        let connectors = key.connectors.as_ref().map_or_else(|| "all".to_owned(), |connectors| connectors.join(" "));
        let (expires, revoked) = (or_dash(key.expires_at.as_ref()), or_dash(key.revoked_at.as_ref()));
        // The beginning of an imported key is not known.
        let begins = or_dash(Some(&key.prefix).filter(|prefix| !prefix.is_empty()));
        let used = or_dash(key.last_used.as_ref());
        [key.id.clone(), key.name.clone(), begins, connectors, key.created_at.clone(), used, expires, revoked]
    };
    let rows: Vec<_> = keys.iter().map(row).collect();
    let headings = ["ID", "NAME", "BEGINS", "CONNECTORS", "CREATED", "LAST USED", "EXPIRES", "REVOKED"];
    table(headings, &rows, "No API keys. Run 'apexmcp key create'.")
}
