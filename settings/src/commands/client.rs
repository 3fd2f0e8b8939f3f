//! `apexmcp client`

use std::slice;

use serde_json::{Value, json};

use super::input::read_json;
use super::session::{Session, with_secret};
use super::tables::or_dash;
use crate::cli::ClientCommand;
use crate::failure::Failure;
use crate::output::{Answer, table};
use crate::records::client::{self, Client, NewClient};
use crate::sql::Range;

pub(super) fn run(session: &Session<'_>, command: ClientCommand) -> Result<Answer, Failure> {
    match command {
        ClientCommand::Create { org, name, scopes, jwks } => {
            let jwks: Option<Value> = jwks.map(|file| read_json(&file)).transpose()?;
            let new = NewClient { org: &org, name: &name, scopes: &scopes, jwks: jwks.as_ref() };
            session.change(
                |change, actor| client::create(change, actor, &new),
                |(client, secret)| match secret {
                    Some(secret) => secret_shown(&client, &secret),
                    None => {
                        let text = format!("client id: {}\n\nThe client authenticates with its own keys.", client.client_id);
                        Answer::new(text, json!(client))
                    }
                },
            )
        }
        ClientCommand::List { org } => {
            let list = session.open()?.read(|connection| client::list(connection, &session.actor, &org, &Range::all()));
            let mut clients = list?.items;
            let warnings = session.note_last_used(&org, &mut clients);
            Ok(Answer { warnings, ..session.answer(|| rows(&clients), json!(clients)) })
        }
        ClientCommand::Show { client_id } => {
            let mut client = session.open()?.read(|connection| client::show(connection, &session.actor, &client_id))?;
            let warnings = session.note_last_used(&client.org.clone(), slice::from_mut(&mut client));
            Ok(Answer { warnings, ..Answer::new(rows(slice::from_ref(&client)), json!(client)) })
        }
        ClientCommand::RotateSecret { client_id } => session.change(
            |change, actor| client::rotate_secret(change, actor, &client_id),
            |(client, secret)| secret_shown(&client, &secret),
        ),
        ClientCommand::DropSecret { client_id } => session.change(
            |change, actor| client::drop_secret(change, actor, &client_id),
            |client| Answer::new(format!("Dropped the older secret of {client_id}."), json!(client)),
        ),
        ClientCommand::Revoke { client_id } => session.change(
            |change, actor| client::revoke(change, actor, &client_id),
            |client| Answer::new(format!("Revoked {client_id} of {} and all its tokens.", client.org), json!(client)),
        ),
    }
}

fn secret_shown(client: &Client, secret: &str) -> Answer {
    let text = format!(
        "client id:     {}\nclient secret: {secret}\n\nStore the secret in a secret manager: it cannot be shown again.",
        client.client_id
    );
    Answer::new(text, with_secret(client, "client_secret", secret))
}

fn rows(clients: &[Client]) -> String {
    let row = |client: &Client| {
        let method = match client.secrets_created_at.len() {
            0 => "its own keys".to_owned(),
            1 => "a secret".to_owned(),
            count => format!("{count} secrets"),
        };
        let (used, revoked) = (or_dash(client.last_used.as_ref()), or_dash(client.revoked_at.as_ref()));
        let scopes = client.scopes.join(" ");
        [client.client_id.clone(), client.name.clone(), scopes, method, client.created_at.clone(), used, revoked]
    };
    let rows: Vec<_> = clients.iter().map(row).collect();
    let headings = ["CLIENT ID", "NAME", "SCOPES", "AUTHENTICATED BY", "CREATED", "LAST USED", "REVOKED"];
    table(headings, &rows, "No OAuth clients. Run 'apexmcp client create'.")
}
