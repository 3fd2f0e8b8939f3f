//! `apexmcp sso`

use serde_json::json;

use super::session::Session;
use super::tables::listed;
use crate::cli::{ConfigureArgs, SsoCommand};
use crate::failure::{Failure, Reason};
use crate::issuer::Reach;
use crate::output::{Answer, table};
use crate::records::provider::{self, Provider};
use crate::service::{self, Examined, Wanted};

pub(super) fn run(session: &Session<'_>, command: SsoCommand) -> Result<Answer, Failure> {
    match command {
        SsoCommand::Configure(arguments) => configure(session, arguments),
        SsoCommand::List { org } => {
            let providers = session.open()?.read(|connection| provider::list(connection, &session.actor, &org))?;
            Ok(session.answer(|| rows(&org, &providers), json!(providers)))
        }
        SsoCommand::Remove { org, issuer } => session.change(
            |change, actor| provider::remove(change, actor, &org, &issuer),
            |provider| Answer::new(format!("Removed. Gateways no longer accept tokens of {issuer} for {org}."), json!(provider)),
        ),
    }
}

fn configure(session: &Session<'_>, arguments: ConfigureArgs) -> Result<Answer, Failure> {
    let ConfigureArgs { org, issuer, jwks_uri, audiences, .. } = arguments;
    let client_scopes = chosen(arguments.client_scopes, arguments.no_client_scope);
    let wanted =
        Wanted { org: &org, issuer: &issuer, jwks_uri: &jwks_uri, audience: &audiences, client_scopes: client_scopes.as_deref() };
    let asked = arguments.allow_private_address.then_some(true);
    let (sharing, allow_private_address) = session.open()?.read(|sql| {
        let sharing = service::sharing(sql, &session.actor, &wanted)?;
        Ok((sharing, provider::permission(sql, &session.actor, [&org, &issuer, &jwks_uri], asked)?))
    })?;
    let examined = service::examine(&sharing, &wanted, Reach::allowing_private(allow_private_address))?;
    let failed = examined.failed();
    let Examined { findings, proposed_client_scopes: proposed } = examined;
    let lines: Vec<String> = findings.iter().map(|finding| format!("{}  {}", finding.mark(), finding.finding)).collect();
    let lines = lines.join("\n");
    if failed > 0 && !arguments.force {
        let text = format!("{lines}\n\nNothing was saved. Fix the failed checks, or pass --force to save the provider anyway.");
        let why = format!("nothing was saved: {failed} of {} checks failed", findings.len());
        let answer = Answer::new(text, json!({"saved": false, "findings": findings, "proposed_client_scopes": proposed}));
        return Ok(answer.but(Failure::new(Reason::ProviderCheckFailed, why)));
    }
    let default_scopes = chosen(arguments.default_scopes, arguments.no_default_scope);
    let configured_at = session.actor.now.to_string();
    let record = Provider {
        id: provider::id_of(&issuer),
        org,
        issuer,
        jwks_uri,
        audience: audiences,
        default_scopes,
        client_scopes,
        allow_private_address,
        configured_at,
    };
    session.change(
        |change, actor| provider::configure(change, actor, &record),
        |()| {
            let text = format!("{lines}\n\nSaved. Gateways accept tokens of {} for {}.", record.issuer, record.org);
            let json = json!({
                "saved": true, "findings": findings, "proposed_client_scopes": proposed, "identity_provider": record,
            });
            Answer::new(text, json)
        },
    )
}

/// The chosen scopes. `None` means the default, an empty list means none.
fn chosen(scopes: Vec<String>, is_none: bool) -> Option<Vec<String>> {
    (is_none || !scopes.is_empty()).then_some(scopes)
}

fn rows(org: &str, providers: &[Provider]) -> String {
    let row = |provider: &Provider| {
        let scopes = listed(provider.default_scopes.as_deref(), "mcp:call");
        let client_scopes = listed(provider.client_scopes.as_deref(), "mcp:call");
        [provider.issuer.clone(), provider.jwks_uri.clone(), provider.audience.join(" "), scopes, client_scopes]
    };
    let rows: Vec<_> = providers.iter().map(row).collect();
    let empty = format!("{org} has no identity provider. Run 'apexmcp sso configure --help'.");
    table(["ISSUER", "JWKS URI", "AUDIENCE", "DEFAULT SCOPES", "CLIENT SCOPES"], &rows, &empty)
}
