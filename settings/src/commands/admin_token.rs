//! `apexmcp admin-token`

use serde_json::json;

use super::session::{Session, with_secret};
use super::tables::or_dash;
use crate::access::Role;
use crate::cli::AdminTokenCommand;
use crate::failure::Failure;
use crate::output::{Answer, table};
use crate::records::admin_token::{self, AdminToken, NewToken};
use crate::sql::Range;

pub(super) fn run(session: &Session<'_>, command: AdminTokenCommand) -> Result<Answer, Failure> {
    match command {
        AdminTokenCommand::Create { name, role, org, expires } => {
            let role = Role::of(&role, org.as_deref())?;
            let new = NewToken { name: &name, role: &role, expires_at: Some(session.actor.now.plus(expires)?) };
            session.change(
                |change, actor| admin_token::create(change, actor, &new),
                |(record, token)| {
                    let text = format!(
                        "{token}\n\nThis is the admin token {}, for the role {role}. Store it in a secret manager: it cannot be \
                         shown again.",
                        record.id
                    );
                    Answer::new(text, with_secret(&record, "token", &token))
                },
            )
        }
        AdminTokenCommand::List => {
            let tokens = session.open()?.read(|connection| admin_token::list(connection, &session.actor, &Range::all()))?.items;
            Ok(session.answer(|| rows(&tokens), json!(tokens)))
        }
        AdminTokenCommand::Revoke { id } => session.change(
            |change, actor| admin_token::revoke(change, actor, &id),
            |token| Answer::new(format!("Revoked the admin token {id}."), json!(token)),
        ),
    }
}

fn rows(tokens: &[AdminToken]) -> String {
    let row = |token: &AdminToken| {
        let [org, expires, revoked] = [&token.org, &token.expires_at, &token.revoked_at].map(|cell| or_dash(cell.as_ref()));
        [token.id.clone(), token.name.clone(), token.role.clone(), org, token.created_at.clone(), expires, revoked]
    };
    let rows: Vec<_> = tokens.iter().map(row).collect();
    let headings = ["ID", "NAME", "ROLE", "ORG", "CREATED", "EXPIRES", "REVOKED"];
    table(headings, &rows, "No admin tokens. Run 'apexmcp admin-token create'.")
}
