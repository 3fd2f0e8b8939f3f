//! `apexmcp serve`

use std::io::Write;
use std::net::SocketAddr;

use serde_json::json;

use super::session::Session;
use crate::database::Database;
use crate::failure::{Failure, Reason};
use crate::output::Answer;
use crate::serve::{self, Addresses, Options};

/// The environment variable with the token that gateways send to fetch the policy.
const TOKEN: &str = "APEXMCP_SETTINGS_TOKEN";
/// Minimum length of the token. The token gives access to the private signing keys.
const MIN_TOKEN_LENGTH: usize = 16;

pub(super) fn run(
    session: &Session<'_>,
    listen: SocketAddr,
    console: Option<SocketAddr>,
    origin: String,
) -> Result<Answer, Failure> {
    let token = std::env::var(TOKEN).unwrap_or_default();
    if token.len() < MIN_TOKEN_LENGTH || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Failure::new(
            Reason::TokenInvalid,
            format!(
                "{TOKEN} must contain the token with which gateways fetch the policy: at least {MIN_TOKEN_LENGTH} visible ASCII \
             characters. Run: export {TOKEN}=$(openssl rand -hex 32)"
            ),
        ));
    }
    let json = session.json;
    // Not `session.open()`: the server itself warns if others can read the database.
    serve::run(
        session.location,
        Database::open(session.location)?,
        Options { addresses: Addresses { listen, console }, token, origin },
        |at| {
            let Addresses { listen, console } = at;
            let line = match (json, console) {
                (true, None) => json!({"listening": listen}).to_string(),
                (true, Some(console)) => json!({"listening": listen, "console": console}).to_string(),
                (false, None) => format!("listening on http://{listen}"),
                (false, Some(console)) => format!("listening on http://{listen}\nconsole at http://{console}"),
            };
            // Standard output may be closed.
            let _ = writeln!(std::io::stdout(), "{line}");
        },
    )?;
    Ok(Answer::silent())
}
