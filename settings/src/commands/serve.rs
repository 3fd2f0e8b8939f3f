//! `apexmcp serve`

use std::io::Write;

use serde_json::json;

use super::session::Session;
use crate::cli::SignInArgs;
use crate::database::Database;
use crate::failure::{Failure, Reason};
use crate::oidc::{Config, Oidc};
use crate::output::Answer;
use crate::serve::{self, Addresses, Options, SignIn};

/// The environment variable with the token that gateways send to fetch the policy.
const TOKEN: &str = "APEXMCP_SETTINGS_TOKEN";
/// The environment variable with the token that gateways send to report usage.
const USAGE_TOKEN: &str = "APEXMCP_USAGE_TOKEN";
/// Minimum length of the token. The token gives access to the private signing keys.
const MIN_TOKEN_LENGTH: usize = 16;
/// The environment variable with the secret that the identity provider gave to the console.
const SIGN_IN_SECRET: &str = "APEXMCP_SIGN_IN_SECRET";

fn sign_in(args: SignInArgs) -> Result<SignIn, Failure> {
    let SignInArgs { sign_in_issuer, sign_in_client_id, sign_in_operators, sign_in_scopes, console_url } = args;
    let (Some(issuer), Some(client_id), Some(url)) = (sign_in_issuer, sign_in_client_id, console_url.clone()) else {
        return Ok(SignIn { console_url, oidc: None });
    };
    let client_secret = std::env::var(SIGN_IN_SECRET).ok().filter(|secret| !secret.is_empty());
    let (operators, scopes, url) = (sign_in_operators, sign_in_scopes, url.trim_end_matches('/').to_owned());
    let config = Config { issuer, client_id, client_secret, operators, scopes, console_url: url };
    config.check()?;
    Ok(SignIn { console_url, oidc: Some(Oidc::new(config)) })
}

fn is_token(token: &str) -> bool {
    token.len() >= MIN_TOKEN_LENGTH && token.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The token with which gateways report usage. It must not open the policy.
fn usage_token(token: &str) -> Result<Option<String>, Failure> {
    let usage_token = match std::env::var(USAGE_TOKEN) {
        Err(std::env::VarError::NotPresent) => return Ok(None),
        // A variable that is not Unicode is no token.
        read => read.unwrap_or_default(),
    };
    let line = if !is_token(&usage_token) {
        format!("must contain at least {MIN_TOKEN_LENGTH} visible ASCII characters")
    } else if usage_token == token {
        format!("must be another token than {TOKEN}, because the policy contains private keys")
    } else {
        return Ok(Some(usage_token));
    };
    let hint = format!("Run: export {USAGE_TOKEN}=$(openssl rand -hex 32), or unset it to collect no usage");
    Err(Failure::new(Reason::TokenInvalid, format!("{USAGE_TOKEN} {line}. {hint}")))
}

pub(super) fn run(session: &Session<'_>, addresses: Addresses, origin: String, args: SignInArgs) -> Result<Answer, Failure> {
    let sign_in = sign_in(args)?;
    let token = std::env::var(TOKEN).unwrap_or_default();
    if !is_token(&token) {
        return Err(Failure::new(
            Reason::TokenInvalid,
            format!(
                "{TOKEN} must contain the token with which gateways fetch the policy: at least {MIN_TOKEN_LENGTH} visible ASCII \
                 characters. Run: export {TOKEN}=$(openssl rand -hex 32)"
            ),
        ));
    }
    let usage_token = usage_token(&token)?;
    let json = session.json;
    // Not `session.open()`: the server itself warns if others can read the database.
    serve::run(
        session.location,
        Database::open(session.location)?,
        Options { addresses, token, usage_token, origin, sign_in },
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
