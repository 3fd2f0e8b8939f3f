//! `apexmcp org`

use std::slice;

use serde_json::json;

use super::session::Session;
use crate::cli::OrgCommand;
use crate::failure::Failure;
use crate::output::{Answer, table};
use crate::records::org::{self, Org};
use crate::serve::log;
use crate::sql::Range;
use crate::usage::Usage;

pub(super) fn run(session: &Session<'_>, command: OrgCommand) -> Result<Answer, Failure> {
    match command {
        OrgCommand::Create { name } => session.change(
            |change, actor| org::create(change, actor, &name),
            |org| {
                let next = format!("apexmcp key create --org {name} --name 'ci agent' --expires 90d");
                Answer::new(format!("Created the org {name}. Its endpoint is /mcp/{name}\nNext: {next}"), json!(org))
            },
        ),
        OrgCommand::List => {
            let orgs = session.open()?.read(|connection| org::list(connection, &session.actor, &Range::all()))?.items;
            Ok(session.answer(|| rows(&orgs), json!(orgs)))
        }
        OrgCommand::Show { name } => {
            let org = session.open()?.read(|connection| org::show(connection, &session.actor, &name))?;
            Ok(Answer::new(rows(slice::from_ref(&org)), json!(org)))
        }
        OrgCommand::Delete { name, yes: _ } => {
            let answer = session.change(
                |change, actor| org::delete(change, actor, &name),
                |org| Answer::new(format!("Deleted the org {name} and all its records."), json!(org)),
            )?;
            Usage::reader(session.location).forget(&name, session.actor.now).unwrap_or_else(log);
            Ok(answer)
        }
    }
}

fn rows(orgs: &[Org]) -> String {
    let row = |org: &Org| {
        let counts = [org.api_keys, org.oauth_clients, org.identity_providers].map(|count| count.to_string());
        let [keys, clients, providers] = counts;
        [org.name.clone(), keys, clients, providers, org.created_at.clone()]
    };
    let rows: Vec<_> = orgs.iter().map(row).collect();
    table(["NAME", "KEYS", "CLIENTS", "IDENTITY PROVIDERS", "CREATED"], &rows, "No orgs. Run 'apexmcp org create'.")
}
