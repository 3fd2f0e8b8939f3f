//! The identity providers of customers.

use apexmcp_core::policy::{MAX_CLIENT_SCOPE_LENGTH, MAX_CLIENT_SCOPES, MAX_IDENTITY_PROVIDERS};
use apexmcp_core::scope::is_scope_token;
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use super::checks::check_scopes;
use super::org;
use crate::access::Actor;
use crate::database::{Change, Check, Record};
use crate::failure::{Failure, Reason};
use crate::secret;
use crate::sql::{Row, Sql, exists, rows, values};

/// Maximum number of audiences of a provider. One org must not make the policy too long for all.
const MAX_AUDIENCES: usize = 16;
/// Maximum length of an audience, in bytes. Audiences are client ids or URLs.
const MAX_AUDIENCE_LENGTH: usize = 512;

#[derive(Debug, Serialize, ToSchema)]
pub struct Provider {
    /// The id, made of the issuer.
    pub id: String,
    pub org: String,
    /// The `iss` claim of its tokens, exactly as it is in them.
    pub issuer: String,
    /// The URL of its key set.
    pub jwks_uri: String,
    /// The `aud` values that mean this gateway. A token needs one of them.
    pub audience: Vec<String>,
    /// The scopes of a token without any `mcp:` scope. Absent: the default of the policy document. Empty: no scopes.
    pub default_scopes: Option<Vec<String>>,
    /// The scopes that clients are told to request from the provider. Absent: the mcp scopes. Empty: no scopes are named.
    pub client_scopes: Option<Vec<String>>,
    /// Whether an operator allowed addresses outside of the public Internet, and http, for this issuer and this JWKS URI.
    pub allow_private_address: bool,
    /// The time of the last configuration.
    pub configured_at: String,
}

impl Provider {
    fn read(row: &Row<'_>) -> Result<Self, Failure> {
        let issuer: String = row.get("issuer")?;
        Ok(Self {
            id: id_of(&issuer),
            org: row.get("org")?,
            issuer,
            jwks_uri: row.get("jwks_uri")?,
            audience: row.json("audiences")?.unwrap_or_default(),
            default_scopes: row.json("default_scopes")?,
            client_scopes: row.json("client_scopes")?,
            allow_private_address: row.get("allow_private_address")?,
            configured_at: row.get("configured_at")?,
        })
    }
}

/// The id of the provider with this issuer. An issuer is a URL, which paths cannot contain well.
pub fn id_of(issuer: &str) -> String {
    let digits: String = secret::sha256(issuer).chars().take(16).collect();
    format!("idp_{digits}")
}

/// Saves a provider. It replaces the provider of the same org and issuer.
///
/// # Errors
/// If the org does not exist, or a value is not allowed.
pub fn configure(change: &Change<'_>, actor: &Actor, provider: &Provider) -> Result<(), Failure> {
    org::require_change(change, actor, &provider.org)?;
    if provider.audience.len() > MAX_AUDIENCES || provider.audience.iter().any(|audience| audience.len() > MAX_AUDIENCE_LENGTH) {
        return Err(Failure::of(
            "audience",
            format!("must have at most {MAX_AUDIENCES} values of at most {MAX_AUDIENCE_LENGTH} bytes each"),
        ));
    }
    require_room(change, actor, &provider.org, &provider.issuer)?;
    let Provider { org, issuer, jwks_uri, allow_private_address, .. } = provider;
    permission(change, actor, [org, issuer, jwks_uri], Some(*allow_private_address))?;
    check_scopes("default_scopes", provider.default_scopes.as_deref().unwrap_or_default())?;
    let default_scopes = provider.default_scopes.as_ref().map(|scopes| json!(scopes).to_string());
    check_client_scopes(provider.client_scopes.as_deref().unwrap_or_default())?;
    let client_scopes = provider.client_scopes.as_ref().map(|scopes| json!(scopes).to_string());
    if default_scopes.is_none() {
        require_no_narrow_default(change, provider)?;
    }
    let audience = json!(provider.audience).to_string();
    change.execute(
        "INSERT INTO identity_providers
            (org, issuer, jwks_uri, audiences, default_scopes, client_scopes, allow_private_address, configured_at)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?)
            ON CONFLICT (org, issuer) DO UPDATE SET jwks_uri = excluded.jwks_uri, audiences = excluded.audiences,
            default_scopes = excluded.default_scopes, client_scopes = excluded.client_scopes,
            allow_private_address = excluded.allow_private_address, configured_at = excluded.configured_at",
        values![
            &provider.org,
            &provider.issuer,
            &provider.jwks_uri,
            audience,
            default_scopes,
            client_scopes,
            *allow_private_address,
            &provider.configured_at
        ],
    )?;
    let details = json!({
        "jwks_uri": provider.jwks_uri,
        "audience": provider.audience,
        "default_scopes": provider.default_scopes,
        "client_scopes": provider.client_scopes,
        "allow_private_address": allow_private_address.then_some(true),
    });
    change.record(
        actor,
        &Record { action: "sso.configure", org: Some(&provider.org), subject: &provider.issuer, details, check: Check::Addition },
    )
}

/// Whether a provider may have addresses outside of the public Internet, and http. Only an operator gives this permission. It
/// stays as long as the issuer and the JWKS URI stay the same, so an admin can change the rest. `asked`: the wanted permission;
/// `None`: as it is.
///
/// # Errors
/// If the actor asks for a permission that only an operator can give.
pub fn permission(sql: &dyn Sql, actor: &Actor, provider: [&str; 3], asked: Option<bool>) -> Result<bool, Failure> {
    let query = "SELECT 1 FROM identity_providers WHERE org = ? AND issuer = ? AND jwks_uri = ? AND allow_private_address <> 0";
    let [org, issuer, jwks_uri] = provider;
    let was_allowed = exists(sql, query, values![org, issuer, jwks_uri])?;
    let is_allowed = asked.unwrap_or(was_allowed);
    if is_allowed && !was_allowed {
        actor.check_operator()?;
    }
    Ok(is_allowed)
}

/// The default of the policy document grants every connector. So it does not replace a narrower one without a word.
fn require_no_narrow_default(change: &Change<'_>, provider: &Provider) -> Result<(), Failure> {
    let query = "SELECT 1 FROM identity_providers WHERE org = ? AND issuer = ? AND default_scopes != '[\"mcp:call\"]'";
    if exists(change, query, values![&provider.org, &provider.issuer])? {
        let line = "must be given again, because this provider has some; mcp:call lets tokens without an mcp: scope call every connector";
        let hint = "Repeat the option, pass --default-scope mcp:call, or pass --no-default-scope";
        return Err(Failure::of("default_scopes", line).because(Reason::Conflict).hint(hint));
    }
    Ok(())
}

/// Checks the scopes of another authorization server. The gateway puts them into a header.
fn check_client_scopes(scopes: &[String]) -> Result<(), Failure> {
    let is_wrong = |scope: &&String| scope.len() > MAX_CLIENT_SCOPE_LENGTH || !is_scope_token(scope);
    if let Some(wrong) = scopes.iter().find(is_wrong) {
        return Err(Failure::of(
            "client_scopes",
            format!(
                "{wrong:?}: expected one scope of at most {MAX_CLIENT_SCOPE_LENGTH} visible ASCII characters; \
                 give each scope alone"
            ),
        ));
    }
    match scopes.len() > MAX_CLIENT_SCOPES {
        true => Err(Failure::of("client_scopes", format!("must have at most {MAX_CLIENT_SCOPES} values"))),
        false => Ok(()),
    }
}

/// Checks that the organization can have this provider. A provider that it already has can always be changed.
///
/// # Errors
/// If the gateway would refuse the provider's tokens, because the organization has too many others.
pub fn require_room(connection: &dyn Sql, actor: &Actor, org: &str, issuer: &str) -> Result<(), Failure> {
    let providers = list(connection, actor, org)?;
    if providers.len() < MAX_IDENTITY_PROVIDERS || providers.iter().any(|provider| provider.issuer == issuer) {
        return Ok(());
    }
    Err(Failure::new(
        Reason::LimitExceeded,
        format!(
            "{org} has {} identity providers, and the gateway accepts at most {MAX_IDENTITY_PROVIDERS} for an organization, because it must \
             fetch the keys of each: remove one",
            providers.len()
        ),
    )
    .hint(format!("Run 'apexmcp sso remove --org {org} --issuer ISSUER'")))
}

/// The providers of an org, by issuer.
///
/// # Errors
/// If the org does not exist.
pub fn list(connection: &dyn Sql, actor: &Actor, org: &str) -> Result<Vec<Provider>, Failure> {
    org::require(connection, actor, org)?;
    rows(connection, "SELECT * FROM identity_providers WHERE org = ? ORDER BY issuer", values![org], Provider::read)
}

/// # Errors
/// If the org has no provider with this issuer.
pub fn show(connection: &dyn Sql, actor: &Actor, org: &str, issuer: &str) -> Result<Provider, Failure> {
    let unknown = || {
        Failure::new(Reason::NotFound, format!("{org} has no identity provider with exactly the issuer {issuer:?}"))
            .hint(format!("Run 'apexmcp sso list --org {org}' to see them"))
    };
    list(connection, actor, org)?.into_iter().find(|provider| provider.issuer == issuer).ok_or_else(unknown)
}

/// The provider of this org with this id.
///
/// # Errors
/// If there is none.
pub fn of_org(connection: &dyn Sql, actor: &Actor, org: &str, id: &str) -> Result<Provider, Failure> {
    let unknown = || Failure::new(Reason::NotFound, format!("{org} has no identity provider with the id {id:?}"));
    list(connection, actor, org)?.into_iter().find(|provider| provider.id == id).ok_or_else(unknown)
}

/// The other orgs that accept tokens of this issuer for one of these audiences. All of these orgs accept the same token.
///
/// # Errors
/// If the database fails.
pub fn sharing(connection: &dyn Sql, org: &str, issuer: &str, audiences: &[String]) -> Result<Vec<String>, Failure> {
    let query = "SELECT * FROM identity_providers WHERE issuer = ? AND org <> ? ORDER BY org";
    let others = rows(connection, query, values![issuer, org], Provider::read)?;
    let is_shared = |provider: &Provider| provider.audience.iter().any(|audience| audiences.contains(audience));
    Ok(others.into_iter().filter(is_shared).map(|provider| provider.org).collect())
}

/// Removes a provider. Gateways then refuse its tokens.
///
/// # Errors
/// If the org has no provider with this issuer.
pub fn remove(change: &Change<'_>, actor: &Actor, org: &str, issuer: &str) -> Result<Provider, Failure> {
    let provider = show(change, actor, org, issuer)?;
    org::require_change(change, actor, org)?;
    change.execute("DELETE FROM identity_providers WHERE org = ? AND issuer = ?", values![org, issuer])?;
    change.record(
        actor,
        &Record { action: "sso.remove", org: Some(org), subject: issuer, details: json!({}), check: Check::Nothing },
    )?;
    Ok(provider)
}
