//! OAuth clients and their secrets. A client has two secrets during a rotation.

use apexmcp_core::jose::jwk::JwkSet;
use apexmcp_core::names::is_plain;
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::checks::{check_name, check_scopes};
use super::org;
use crate::access::Actor;
use crate::database::{Change, Check, Record};
use crate::failure::{Failure, Reason};
use crate::secret;
use crate::sql::{Part, Range, Row, Sql, exists, first, newest_first, values};

/// A client without its secrets.
#[derive(Debug, Serialize, ToSchema)]
pub struct Client {
    /// The id, which is not secret.
    pub client_id: String,
    pub org: String,
    pub name: String,
    /// The scopes that its tokens may have.
    pub scopes: Vec<String>,
    /// The public keys with which a client without a secret authenticates (`private_key_jwt`).
    #[schema(value_type = Option<Object>)]
    pub jwks: Option<Value>,
    /// One time for each secret, the oldest first.
    pub secrets_created_at: Vec<String>,
    pub created_at: String,
    pub revoked: bool,
    pub revoked_at: Option<String>,
}

const SELECT: &str = "SELECT oauth_clients.*, (
        SELECT '[' || string_agg('\"' || created_at || '\"', ',' ORDER BY number) || ']' FROM client_secrets
        WHERE client_secrets.client_id = oauth_clients.client_id
    ) AS secrets FROM oauth_clients";

impl Client {
    fn read(row: &Row<'_>) -> Result<Self, Failure> {
        let revoked_at: Option<String> = row.get("revoked_at")?;
        Ok(Self {
            client_id: row.get("client_id")?,
            org: row.get("org")?,
            name: row.get("name")?,
            scopes: row.json("scopes")?.unwrap_or_default(),
            jwks: row.json("jwks")?,
            secrets_created_at: row.json("secrets")?.unwrap_or_default(),
            created_at: row.get("created_at")?,
            revoked: revoked_at.is_some(),
            revoked_at,
        })
    }
}

/// The values of a new client.
#[derive(Debug)]
pub struct NewClient<'a> {
    pub org: &'a str,
    pub name: &'a str,
    /// The scopes that its tokens may have.
    pub scopes: &'a [String],
    /// A JWK Set for `private_key_jwt`. `None`: the client gets a secret.
    pub jwks: Option<&'a Value>,
}

/// Maximum length of a `kid`, in bytes. Those in use are hashes, UUIDs or URLs.
const MAX_KID_LENGTH: usize = 256;

/// The members of a JWK that are secret (RFC 7518 §6).
const PRIVATE_MEMBERS: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// The part of a JWK Set that is stored: the keys and members that the gateway reads. The rest would make the policy longer
/// for all orgs, and might contain private keys.
pub(super) fn public_keys(jwks: &Value) -> Result<Value, Failure> {
    let keys = jwks.get("keys").and_then(Value::as_array);
    if keys.into_iter().flatten().any(|key| PRIVATE_MEMBERS.iter().any(|member| key.get(member).is_some())) {
        return Err(Failure::of(
            "jwks",
            "contains a private key: pass only the public keys, and keep the private keys at the client",
        ));
    }
    let set = JwkSet::parse(jwks.to_string().as_bytes()).map_err(|error| Failure::of("jwks", error.to_string()))?;
    let document: Value = serde_json::from_str(&set.to_document()).map_err(|error| Failure::of("jwks", error.to_string()))?;
    if kids(&document).iter().any(|kid| kid.len() > MAX_KID_LENGTH || !kid.chars().all(is_plain)) {
        return Err(Failure::of("jwks", format!("has a kid that is not at most {MAX_KID_LENGTH} bytes of visible characters")));
    }
    Ok(document)
}

fn kids(jwks: &Value) -> Vec<&str> {
    let keys = jwks.get("keys").and_then(Value::as_array);
    keys.into_iter().flatten().filter_map(|key| key.get("kid")?.as_str()).collect()
}

/// Creates a client, and its first secret unless it has keys. The secret itself is only returned: the database keeps its hash.
///
/// # Errors
/// If the org does not exist, or a value is not allowed.
pub fn create(change: &Change<'_>, actor: &Actor, new: &NewClient<'_>) -> Result<(Client, Option<String>), Failure> {
    org::require_change(change, actor, new.org)?;
    check_name(new.name)?;
    check_scopes("scopes", new.scopes)?;
    let jwks = new.jwks.map(public_keys).transpose()?;
    let taken = |id: &str| exists(change, "SELECT 1 FROM oauth_clients WHERE client_id = ?", values![id]);
    let client_id = secret::unused(|| secret::base62("apx_client_", 8), taken)?;
    let scopes = json!(new.scopes).to_string();
    change.execute(
        "INSERT INTO oauth_clients (client_id, org, name, scopes, jwks, created_at) VALUES (?, ?, ?, ?, ?, ?)",
        values![&client_id, new.org, new.name, scopes, jwks.as_ref().map(Value::to_string), actor.now],
    )?;
    let client_secret = if jwks.is_none() { Some(add_secret(change, actor, &client_id)?) } else { None };
    let details = json!({"name": new.name, "scopes": new.scopes, "kids": jwks.as_ref().map(kids)});
    change.record(
        actor,
        &Record { action: "client.create", org: Some(new.org), subject: &client_id, details, check: Check::Addition },
    )?;
    Ok((show(change, actor, &client_id)?, client_secret))
}

/// The clients of an org, the newest first, including revoked ones.
///
/// # Errors
/// If the org does not exist.
pub fn list(connection: &dyn Sql, actor: &Actor, org: &str, range: &Range) -> Result<Part<Client>, Failure> {
    org::require(connection, actor, org)?;
    let order = ["oauth_clients.created_at", "oauth_clients.client_id"];
    newest_first(connection, &format!("{SELECT} WHERE org = ?"), values![org], order, range, Client::read)
}

/// # Errors
/// If no client has this id.
pub fn show(connection: &dyn Sql, actor: &Actor, client_id: &str) -> Result<Client, Failure> {
    let found = first(connection, &format!("{SELECT} WHERE client_id = ?"), values![client_id], Client::read)?;
    let client = found.ok_or_else(|| unknown(client_id))?;
    actor.check_read(&client.org, || unknown(client_id))?;
    Ok(client)
}

/// A client of this org.
///
/// # Errors
/// If the org has no client with this id.
pub fn of_org(connection: &dyn Sql, actor: &Actor, org: &str, client_id: &str) -> Result<Client, Failure> {
    let client = show(connection, actor, client_id)?;
    if client.org == org { Ok(client) } else { Err(unknown(client_id)) }
}

fn unknown(client_id: &str) -> Failure {
    Failure::new(Reason::NotFound, format!("no client has the id {client_id:?}"))
        .hint("Run 'apexmcp client list --org ORG' to see the ids")
}

/// Changes the name or the scopes of a client. `None`: the value stays as it is.
///
/// # Errors
/// If the client does not exist or is revoked, or a value is not allowed.
pub fn update(
    change: &Change<'_>,
    actor: &Actor,
    client_id: &str,
    name: Option<&str>,
    scopes: Option<&[String]>,
) -> Result<Client, Failure> {
    let client = in_force(change, actor, client_id)?;
    let (name, scopes) = (name.unwrap_or(&client.name), scopes.unwrap_or(&client.scopes));
    check_name(name)?;
    check_scopes("scopes", scopes)?;
    change.execute(
        "UPDATE oauth_clients SET name = ?, scopes = ? WHERE client_id = ?",
        values![name, json!(scopes).to_string(), client_id],
    )?;
    let details = json!({"name": name, "scopes": scopes});
    let record = Record { action: "client.update", org: Some(&client.org), subject: client_id, details, check: Check::Addition };
    change.record(actor, &record)?;
    show(change, actor, client_id)
}

/// Adds a second secret. The first one stays valid. The secret itself is only returned: the database keeps its hash.
///
/// # Errors
/// If the client does not exist, is revoked, has keys of its own, or already has two secrets.
pub fn rotate_secret(change: &Change<'_>, actor: &Actor, client_id: &str) -> Result<(Client, String), Failure> {
    let client = in_force(change, actor, client_id)?;
    if client.jwks.is_some() {
        return Err(Failure::new(
            Reason::Conflict,
            format!("{client_id} has no secret: the client authenticates with its own keys"),
        ));
    }
    if client.secrets_created_at.len() > 1 {
        return Err(Failure::new(
            Reason::Conflict,
            format!("{client_id} already has two secrets: drop the older one when nothing uses it"),
        )
        .hint(format!("Run 'apexmcp client drop-secret {client_id}'")));
    }
    let client_secret = add_secret(change, actor, client_id)?;
    let details = json!({"name": client.name});
    change.record(
        actor,
        &Record { action: "client.rotate-secret", org: Some(&client.org), subject: client_id, details, check: Check::Nothing },
    )?;
    Ok((show(change, actor, client_id)?, client_secret))
}

/// Drops the older of two secrets.
///
/// # Errors
/// If the client does not exist, is revoked, or has only one secret.
pub fn drop_secret(change: &Change<'_>, actor: &Actor, client_id: &str) -> Result<Client, Failure> {
    let client = in_force(change, actor, client_id)?;
    if client.secrets_created_at.len() < 2 {
        return Err(Failure::new(
            Reason::Conflict,
            format!("{client_id} has only one secret: add a second one first, or revoke the client"),
        )
        .hint(format!("Run 'apexmcp client rotate-secret {client_id}', or 'apexmcp client revoke {client_id}'")));
    }
    change.execute(
        "DELETE FROM client_secrets WHERE number = (SELECT min(number) FROM client_secrets WHERE client_id = ?)",
        values![client_id],
    )?;
    let details = json!({"name": client.name, "created_at": client.secrets_created_at.first()});
    change.record(
        actor,
        &Record { action: "client.drop-secret", org: Some(&client.org), subject: client_id, details, check: Check::Nothing },
    )?;
    show(change, actor, client_id)
}

/// Revokes a client and all its tokens. A second revocation changes nothing.
///
/// # Errors
/// If no client has this id.
pub fn revoke(change: &Change<'_>, actor: &Actor, client_id: &str) -> Result<Client, Failure> {
    let client = show(change, actor, client_id)?;
    actor.check_change(&client.org, || unknown(client_id))?;
    if client.revoked {
        return Ok(client);
    }
    change.execute("UPDATE oauth_clients SET revoked_at = ? WHERE client_id = ?", values![actor.now.to_string(), client_id])?;
    let details = json!({"name": client.name});
    change.record(
        actor,
        &Record { action: "client.revoke", org: Some(&client.org), subject: client_id, details, check: Check::Nothing },
    )?;
    show(change, actor, client_id)
}

/// The client, if it is in force and the actor may change it.
fn in_force(change: &Change<'_>, actor: &Actor, client_id: &str) -> Result<Client, Failure> {
    let client = show(change, actor, client_id)?;
    actor.check_change(&client.org, || unknown(client_id))?;
    match client.revoked_at {
        Some(at) => Err(Failure::new(Reason::Conflict, format!("{client_id} was revoked at {at}: create another client"))),
        None => Ok(client),
    }
}

fn add_secret(change: &Change<'_>, actor: &Actor, client_id: &str) -> Result<String, Failure> {
    let client_secret = secret::base62("apx_secret_", 24)?;
    change.execute(
        "INSERT INTO client_secrets (client_id, sha256, created_at) VALUES (?, ?, ?)",
        values![client_id, secret::sha256(&client_secret), actor.now.to_string()],
    )?;
    Ok(client_secret)
}
