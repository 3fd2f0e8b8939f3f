//! `OAuth clients`

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, Query, State};
use serde::Deserialize;

use super::frame::{Done, Frame, Told, Wrong};
use super::sign_in::Form;
use super::{Around, Cursor, Page, Refused, Session, Shared, around, back_to, filters, show, show_again, words};
use crate::access::Actor;
use crate::failure::{Failure, Reason};
use crate::records::client::{self, Client, NewClient};
use crate::records::org;
use crate::sql::Sql;

const SECTION: &str = "OAuth clients";

#[derive(Template)]
#[template(path = "clients.html")]
struct ListPage {
    frame: Frame,
    org: String,
    clients: Vec<Client>,
    /// Why a client has no time of its last use.
    why_unused: String,
    /// The id of the client that the person has just created.
    created: String,
    around: Around,
}

/// Which part of the list is wanted.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Wanted {
    cursor: Option<String>,
    before: Option<String>,
    #[serde(default)]
    created: String,
}

fn frame(actor: &Actor, org: &str, title: &str) -> Frame {
    Frame::new(actor, Some(org), SECTION, title)
}

/// The OAuth clients of an org.
pub(super) async fn list(
    State(console): Shared,
    session: Session,
    told: Told,
    Path(org): Path<String>,
    Query(Wanted { cursor, before, created }): Query<Wanted>,
) -> Page {
    let range = Cursor { cursor, before }.range();
    let (name, of_list) = (org.clone(), range.clone());
    let usage = Arc::clone(&console.usage);
    let listed = console.read(session, move |sql, actor| {
        let mut clients = client::list(sql, actor, &name, &of_list)?;
        usage.note_last_used_or_log(&name, &mut clients.items);
        Ok((clients, usage.why_unused()))
    });
    let (actor, (clients, why_unused)) = listed.await?;
    let around = around(&clients, &range, |client| [client.created_at.clone(), client.client_id.clone()]);
    let frame = frame(&actor, &org, "OAuth Clients").after(told);
    Ok(show(&ListPage { frame, org, clients: clients.items, why_unused, created, around }))
}

/// The fields of a new client.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Fields {
    #[serde(default)]
    name: String,
    /// Separated by spaces, commas or lines.
    #[serde(default)]
    scopes: String,
    /// A JWK Set. Empty: the client gets a secret.
    #[serde(default)]
    jwks: String,
}

#[derive(Template)]
#[template(path = "client_new.html")]
struct NewPage {
    frame: Frame,
    org: String,
    fields: Fields,
    wrong: Wrong,
}

/// The form for a new client.
pub(super) async fn new(State(console): Shared, session: Session, Path(org): Path<String>) -> Page {
    let name = org.clone();
    let (actor, ()) = console.read(session, move |sql, actor| org::require_change(sql, actor, &name)).await?;
    let fields = Fields { scopes: "mcp:call".to_owned(), ..Fields::default() };
    Ok(show(&NewPage { frame: frame(&actor, &org, "Create OAuth client"), org, fields, wrong: Wrong::default() }))
}

/// A client with its new secret, which is shown only here.
#[derive(Template)]
#[template(path = "client_created.html")]
struct CreatedPage {
    frame: Frame,
    client: Client,
    secret: Option<String>,
    /// Whether the client is new. It may instead have got a second secret.
    is_new: bool,
    /// The URL of the token endpoint.
    token_endpoint: String,
    /// The URL at which the client calls the gateway.
    endpoint: String,
}

impl CreatedPage {
    fn new(frame: Frame, client: Client, secret: Option<String>, is_new: bool, origin: &str) -> Self {
        let connector = match client.scopes.as_slice() {
            [one] => one.strip_prefix("mcp:call:").map(|id| format!("/{id}")).unwrap_or_default(),
            _ => String::new(),
        };
        let endpoint = format!("{origin}/mcp/{}{connector}", client.org);
        Self { frame, client, secret, is_new, token_endpoint: format!("{origin}/oauth/token"), endpoint }
    }

    fn token(&self, secret: &str) -> String {
        let example = include_str!("../../templates/examples/token.txt").trim_end();
        let example = example.replace("ENDPOINT", &self.token_endpoint).replace("CLIENT_ID", &self.client.client_id);
        example.replace("CLIENT_SECRET", secret)
    }

    fn call(&self) -> String {
        include_str!("../../templates/examples/call.txt").trim_end().replace("ENDPOINT", &self.endpoint)
    }
}

/// Creates a client.
pub(super) async fn create(State(console): Shared, session: Session, Path(org): Path<String>, form: Form<Fields>) -> Page {
    let (name, fields) = (org.clone(), form.0.clone());
    let made = console.change(session, move |change, actor| {
        org::require_change(change, actor, &name)?;
        let jwks = match fields.jwks.trim() {
            "" => None,
            text => Some(serde_json::from_str(text).map_err(|_| Failure::of("jwks", "must be a JWK Set in JSON"))?),
        };
        let scopes = words(&fields.scopes);
        client::create(change, actor, &NewClient { org: &name, name: fields.name.trim(), scopes: &scopes, jwks: jwks.as_ref() })
    });
    Ok(match made.await? {
        (actor, Ok((client, secret))) => {
            show(&CreatedPage::new(frame(&actor, &org, "OAuth client created"), client, secret, true, &console.origin))
        }
        (actor, Err(failure)) => {
            let frame = frame(&actor, &org, "Create OAuth client");
            show_again(&NewPage { frame, org, fields: form.0, wrong: failure.into() })
        }
    })
}

/// A client of this org that the actor may change.
fn of(sql: &dyn Sql, actor: &Actor, org: &str, id: &str) -> Result<Client, Failure> {
    org::require_change(sql, actor, org)?;
    client::of_org(sql, actor, org, id)
}

#[derive(Template)]
#[template(path = "client_revoke.html")]
struct RevokePage {
    frame: Frame,
    client: Client,
}

/// Asks whether to revoke a client.
pub(super) async fn confirm(State(console): Shared, session: Session, Path((org, id)): Path<(String, String)>) -> Page {
    let (actor, client) = console.read(session, move |sql, actor| of(sql, actor, &org, &id)).await?;
    Ok(show(&RevokePage { frame: frame(&actor, &client.org, "Revoke OAuth client"), client }))
}

/// Revokes a client.
pub(super) async fn revoke(State(console): Shared, session: Session, Path((org, id)): Path<(String, String)>) -> Page {
    let made = console.change(session, move |change, actor| {
        of(change, actor, &org, &id)?;
        client::revoke(change, actor, &id)
    });
    let (_, client) = made.await?;
    Ok(back_to(&client.map_err(Refused::Failure)?.org, "clients", Done::ClientRevoked))
}

/// Adds a second secret.
pub(super) async fn add_secret(State(console): Shared, session: Session, Path((org, id)): Path<(String, String)>) -> Page {
    let made = console.change(session, move |change, actor| {
        of(change, actor, &org, &id)?;
        client::rotate_secret(change, actor, &id)
    });
    let (actor, made) = made.await?;
    let (client, secret) = made.map_err(Refused::Failure)?;
    let frame = frame(&actor, &client.org, "Second secret created");
    Ok(show(&CreatedPage::new(frame, client, Some(secret), false, &console.origin)))
}

#[derive(Template)]
#[template(path = "client_secret_drop.html")]
struct DropPage {
    frame: Frame,
    client: Client,
    /// When the older secret was created.
    older: String,
    /// When the newer secret was created.
    newer: String,
}

/// Asks whether to drop the older of two secrets.
pub(super) async fn confirm_drop(State(console): Shared, session: Session, Path((org, id)): Path<(String, String)>) -> Page {
    let (actor, client) = console.read(session, move |sql, actor| of(sql, actor, &org, &id)).await?;
    let [older, newer] = client.secrets_created_at.as_slice() else {
        let line = format!("{} does not have two secrets", client.client_id);
        return Err(Refused::Failure(Failure::new(Reason::Conflict, line)));
    };
    let (older, newer) = (older.clone(), newer.clone());
    Ok(show(&DropPage { frame: frame(&actor, &client.org, "Drop the older secret"), client, older, newer }))
}

/// Drops the older of two secrets.
pub(super) async fn drop_secret(State(console): Shared, session: Session, Path((org, id)): Path<(String, String)>) -> Page {
    let made = console.change(session, move |change, actor| {
        of(change, actor, &org, &id)?;
        client::drop_secret(change, actor, &id)
    });
    let (_, client) = made.await?;
    Ok(back_to(&client.map_err(Refused::Failure)?.org, "clients", Done::SecretDropped))
}
