//! `apexmcp token`

use serde_json::json;

use super::session::Session;
use crate::cli::TokenCommand;
use crate::clock::Moment;
use crate::failure::{Failure, Reason};
use crate::output::Answer;
use crate::records::revocation;

pub(super) fn run(session: &Session<'_>, command: TokenCommand) -> Result<Answer, Failure> {
    let TokenCommand::Revoke { org, jti, client, principal, issued_before } = command;
    match (jti, client, principal) {
        (Some(jti), ..) => session.change(
            |change, actor| revocation::of_token(change, actor, &org, &jti),
            |()| Answer::new(format!("Revoked the token {jti} of {org}."), json!({"org": org, "jti": jti})),
        ),
        (None, Some(client), _) => {
            let issued_before = revoked_until(session, issued_before)?;
            session.change(
                |change, actor| revocation::of_client(change, actor, &org, &client, issued_before),
                |()| {
                    let text = format!("Revoked the tokens of {client} that were issued before {issued_before}.");
                    let at = issued_before.to_string();
                    Answer::new(text, json!({"org": org, "client_id": client, "issued_before": at}))
                },
            )
        }
        (None, None, Some(principal)) => {
            let issued_before = revoked_until(session, issued_before)?;
            session.change(
                |change, actor| revocation::of_principal(change, actor, &org, &principal, issued_before),
                |()| {
                    let text = format!("Revoked the tokens of {principal} that were issued before {issued_before}.");
                    let at = issued_before.to_string();
                    Answer::new(text, json!({"org": org, "principal": principal, "issued_before": at}))
                },
            )
        }
        (None, None, None) => Err(Failure::new(Reason::InvalidArgument, "pass --jti, --client or --principal")),
    }
}

/// The moment before which tokens are revoked. The default is now.
fn revoked_until(session: &Session<'_>, named: Option<Moment>) -> Result<Moment, Failure> {
    named.map_or_else(|| revocation::until_now(&session.actor), Ok)
}
