//! The policy document, made of what the database holds.

use std::collections::BTreeMap;

use apexmcp_core::config::DEFAULT_SEPARATOR;
use apexmcp_core::jwks::Clusters;
use apexmcp_core::policy::remote::{MAX_DOCUMENT_LENGTH, Publication};
use apexmcp_core::problem::Problem;
use rusqlite::{Connection, Row};
use serde::Serialize;
use serde_json::Value;

use crate::database::version;
use crate::failure::{Failure, Reason};
use crate::records::json;
use crate::records::limits::Limits;

/// Of one org, with the signing keys: half of what gateways take of all. It has room for 80,000 keys.
const MAX_ORG_LENGTH: usize = MAX_DOCUMENT_LENGTH / 2;

#[derive(Serialize)]
struct Document {
    version: String,
    signing_keys: Vec<SigningKey>,
    orgs: BTreeMap<String, Org>,
}

#[derive(Serialize)]
struct SigningKey {
    kid: String,
    private_key_pem: String,
}

#[derive(Default, Serialize)]
struct Org {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    api_keys: Vec<ApiKey>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    oauth_clients: Vec<OauthClient>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    identity_providers: Vec<IdentityProvider>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Limits>,
    #[serde(skip_serializing_if = "RevokedTokens::is_empty")]
    revoked_tokens: RevokedTokens,
}

#[derive(Serialize)]
struct ApiKey {
    id: String,
    name: String,
    sha256: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    connectors: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<Limits>,
}

#[derive(Serialize)]
struct OauthClient {
    client_id: String,
    name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    secret_sha256: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    jwks: Option<Value>,
    scopes: Vec<String>,
}

#[derive(Serialize)]
struct IdentityProvider {
    issuer: String,
    jwks_uri: String,
    audience: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_scopes: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_scopes: Option<Vec<String>>,
}

#[derive(Default, Serialize)]
struct RevokedTokens {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    jti: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    issued_before: BTreeMap<String, String>,
}

impl RevokedTokens {
    fn is_empty(&self) -> bool {
        self.jti.is_empty() && self.issued_before.is_empty()
    }
}

/// The document of everything in force. It holds the private signing keys.
///
/// # Errors
/// Where it is longer than gateways take, and what hinders the database.
pub fn render(connection: &Connection) -> Result<String, Failure> {
    let document = of_orgs(connection, None)?;
    let length = document.len();
    if length > MAX_DOCUMENT_LENGTH {
        return Err(Failure::new(
            Reason::LimitExceeded,
            format!(
                "the policy would have {length} bytes, and gateways accept at most {MAX_DOCUMENT_LENGTH}: revoke keys and \
                 clients, or delete orgs, that are no longer needed"
            ),
        ));
    }
    Ok(document)
}

/// What the gateway would warn of in `org`. What it would refuse is a failure that says where it is wrong.
///
/// # Errors
/// That, and what hinders the database.
pub fn verify(connection: &Connection, org: &str) -> Result<Vec<Problem>, Failure> {
    Ok(read(&of_orgs(connection, Some(org))?)?.warnings().to_vec())
}

/// Like [`verify`], after an addition to `org`. The organization must leave room for others, and all connectors that it names
/// must be distinguishable.
///
/// # Errors
/// Where it does not, and those of [`verify`].
pub fn verify_larger(connection: &Connection, org: &str) -> Result<Vec<Problem>, Failure> {
    let document = of_orgs(connection, Some(org))?;
    let length = document.len();
    if length > MAX_ORG_LENGTH {
        return Err(Failure::new(
            Reason::LimitExceeded,
            format!(
                "the policy of {org} alone would have {length} bytes, and one org may have at most {MAX_ORG_LENGTH}: revoke \
                 keys and clients that are no longer needed"
            ),
        ));
    }
    let publication = read(&document)?;
    match publication.conflicts().first() {
        Some(conflict) => Err(Failure::new(Reason::PolicyRefused, conflict.to_string())),
        None => Ok(publication.warnings().to_vec()),
    }
}

/// A document as the gateway reads it.
fn read(document: &str) -> Result<Publication, Failure> {
    // Which clusters a gateway has is its operator's business.
    let clusters = Clusters { https: Some(String::new()), http: Some(String::new()) };
    let checked = Publication::of(document.as_bytes(), &clusters, DEFAULT_SEPARATOR);
    checked.map_err(|problems| {
        let first = problems.first().map(Problem::to_string).unwrap_or_default();
        Failure::new(Reason::PolicyRefused, format!("the gateway would refuse {first}"))
    })
}

/// The document with one org or with all.
fn of_orgs(connection: &Connection, only: Option<&str>) -> Result<String, Failure> {
    let mut orgs: BTreeMap<String, Org> = BTreeMap::new();
    // One query for each kind of record, not for each org: there may be thousands.
    let mut each = |query: &str, take: fn(&mut Org, &Row<'_>) -> rusqlite::Result<()>| -> Result<(), Failure> {
        let query = format!("SELECT * FROM {query}");
        let mut statement = connection.prepare(&query)?;
        let mut rows = statement.query([only])?;
        while let Some(row) = rows.next()? {
            let name = row.get_ref("org")?.as_str().map_err(rusqlite::Error::from)?;
            match orgs.get_mut(name) {
                Some(org) => take(org, row)?,
                None => take(orgs.entry(name.to_owned()).or_default(), row)?,
            }
        }
        Ok(())
    };
    each("(SELECT name AS org, limits FROM orgs) WHERE ?1 IS NULL OR org = ?1", |org, row| {
        org.limits = json(row, "limits")?;
        Ok(())
    })?;
    each("api_keys WHERE revoked_at IS NULL AND (?1 IS NULL OR org = ?1) ORDER BY org, created_at, id", |org, row| {
        org.api_keys.push(ApiKey {
            id: row.get("id")?,
            name: row.get("name")?,
            sha256: row.get("sha256")?,
            connectors: json(row, "connectors")?,
            expires_at: row.get("expires_at")?,
            limits: json(row, "limits")?,
        });
        Ok(())
    })?;
    let clients = "(SELECT *, (
            SELECT json_group_array(sha256 ORDER BY number) FROM client_secrets
            WHERE client_secrets.client_id = oauth_clients.client_id
        ) AS secrets FROM oauth_clients)
        WHERE revoked_at IS NULL AND (?1 IS NULL OR org = ?1) ORDER BY org, created_at, client_id";
    each(clients, |org, row| {
        org.oauth_clients.push(OauthClient {
            client_id: row.get("client_id")?,
            name: row.get("name")?,
            secret_sha256: json(row, "secrets")?.unwrap_or_default(),
            jwks: json(row, "jwks")?,
            scopes: json(row, "scopes")?.unwrap_or_default(),
        });
        Ok(())
    })?;
    each("identity_providers WHERE ?1 IS NULL OR org = ?1 ORDER BY org, issuer", |org, row| {
        org.identity_providers.push(IdentityProvider {
            issuer: row.get("issuer")?,
            jwks_uri: row.get("jwks_uri")?,
            audience: json(row, "audiences")?.unwrap_or_default(),
            default_scopes: json(row, "default_scopes")?,
            client_scopes: json(row, "client_scopes")?,
        });
        Ok(())
    })?;
    each("revoked_tokens WHERE ?1 IS NULL OR org = ?1 ORDER BY org, jti", |org, row| {
        org.revoked_tokens.jti.push(row.get("jti")?);
        Ok(())
    })?;
    each("revoked_clients WHERE ?1 IS NULL OR org = ?1 ORDER BY org, client_id", |org, row| {
        org.revoked_tokens.issued_before.insert(row.get("client_id")?, row.get("issued_before")?);
        Ok(())
    })?;
    let mut statement = connection.prepare("SELECT kid, private_key_pem FROM signing_keys ORDER BY position")?;
    let signing_keys = statement
        .query_map([], |row| Ok(SigningKey { kid: row.get("kid")?, private_key_pem: row.get("private_key_pem")? }))?
        .collect::<rusqlite::Result<_>>()?;
    let document = Document { version: version(connection)?.to_string(), signing_keys, orgs };
    serde_json::to_string(&document).map_err(Failure::during(Reason::DatabaseFailed, "the policy document"))
}
