//! OAuth clients and their secrets, of which there are two while one rotates.

use apexmcp_core::jose::jwk::JwkSet;
use apexmcp_core::names::is_plain;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use serde_json::{Value, json};

use super::checks::{check_name, check_scopes};
use super::org;
use crate::database::{Actor, Change, Check, Record};
use crate::failure::{Failure, Reason};
use crate::rows::{exists, json as json_column, rows};
use crate::secret;

/// What is kept of a client.
#[derive(Debug, Serialize)]
pub struct Client {
    /// Its id, which is no secret.
    pub client_id: String,
    /// Whose it is.
    pub org: String,
    /// What it is for.
    pub name: String,
    /// What its tokens may be granted.
    pub scopes: Vec<String>,
    /// The keys by which it authenticates (`private_key_jwt`) where it has no secret.
    pub jwks: Option<Value>,
    /// When each of its secrets was made, the oldest first.
    pub secrets_created_at: Vec<String>,
    /// When it was made.
    pub created_at: String,
    /// Whether it was ended.
    pub revoked: bool,
    /// When that was.
    pub revoked_at: Option<String>,
}

const SELECT: &str = "SELECT *, (
        SELECT json_group_array(created_at ORDER BY number) FROM client_secrets
        WHERE client_secrets.client_id = oauth_clients.client_id
    ) AS secrets FROM oauth_clients";

impl Client {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let revoked_at: Option<String> = row.get("revoked_at")?;
        Ok(Self {
            client_id: row.get("client_id")?,
            org: row.get("org")?,
            name: row.get("name")?,
            scopes: json_column(row, "scopes")?.unwrap_or_default(),
            jwks: json_column(row, "jwks")?,
            secrets_created_at: json_column(row, "secrets")?.unwrap_or_default(),
            created_at: row.get("created_at")?,
            revoked: revoked_at.is_some(),
            revoked_at,
        })
    }
}

/// A client to be made.
#[derive(Debug)]
pub struct NewClient<'a> {
    /// Whose it will be.
    pub org: &'a str,
    /// What it is for.
    pub name: &'a str,
    /// What its tokens may be granted.
    pub scopes: &'a [String],
    /// A JWK Set for `private_key_jwt`; none: it gets a secret.
    pub jwks: Option<&'a Value>,
}

/// Those in use are hashes, UUIDs or URLs.
const MAX_KID_LENGTH: usize = 256;

/// What of a JWK is secret, RFC 7518 §6.
const PRIVATE_MEMBERS: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// What is kept of a client's JWK Set: the keys that the gateway reads, and of them what it reads. The rest would make the
/// policy longer for all, and might hold the private half.
fn public_keys(jwks: &Value) -> Result<Value, Failure> {
    let keys = jwks.get("keys").and_then(Value::as_array);
    if keys.into_iter().flatten().any(|key| PRIVATE_MEMBERS.iter().any(|member| key.get(member).is_some())) {
        return Err(Failure::new(
            Reason::InvalidArgument,
            "--jwks contains a private key: pass only the public keys, and keep the private keys at the client",
        ));
    }
    let set = JwkSet::parse(jwks.to_string().as_bytes()).map_err(Failure::during(Reason::InvalidArgument, "--jwks"))?;
    let document: Value = serde_json::from_str(&set.to_document()).map_err(Failure::during(Reason::InvalidArgument, "--jwks"))?;
    if kids(&document).iter().any(|kid| kid.len() > MAX_KID_LENGTH || !kid.chars().all(is_plain)) {
        return Err(Failure::new(
            Reason::InvalidArgument,
            format!("--jwks: a kid must be at most {MAX_KID_LENGTH} bytes of visible characters"),
        ));
    }
    Ok(document)
}

/// By which the keys of a set are known.
fn kids(jwks: &Value) -> Vec<&str> {
    let keys = jwks.get("keys").and_then(Value::as_array);
    keys.into_iter().flatten().filter_map(|key| key.get("kid")?.as_str()).collect()
}

/// Makes one, and its first secret where it has one, which is returned and kept nowhere.
///
/// # Errors
/// Where there is no such org, or a value cannot be.
pub fn create(change: &Change<'_>, actor: &Actor, new: &NewClient<'_>) -> Result<(Client, Option<String>), Failure> {
    org::require(change, new.org)?;
    check_name(new.name)?;
    check_scopes("--scope", new.scopes)?;
    let jwks = new.jwks.map(public_keys).transpose()?;
    let taken = |id: &str| exists(change, "SELECT 1 FROM oauth_clients WHERE client_id = ?", [id]);
    let client_id = secret::unused(|| secret::base62("apx_client_", 8), taken)?;
    let scopes = json!(new.scopes).to_string();
    change.execute(
        "INSERT INTO oauth_clients (client_id, org, name, scopes, jwks, created_at) VALUES (?, ?, ?, ?, ?, ?)",
        params![client_id, new.org, new.name, scopes, jwks.as_ref().map(Value::to_string), actor.now.to_string()],
    )?;
    let client_secret = if jwks.is_none() { Some(add_secret(change, actor, &client_id)?) } else { None };
    let details = json!({"name": new.name, "scopes": new.scopes, "kids": jwks.as_ref().map(kids)});
    change.record(
        actor,
        &Record { action: "client.create", org: Some(new.org), subject: &client_id, details, check: Check::Addition },
    )?;
    Ok((show(change, &client_id)?, client_secret))
}

/// All of an org, the oldest first, revoked ones too.
///
/// # Errors
/// Where there is no such org.
pub fn list(connection: &Connection, org: &str) -> Result<Vec<Client>, Failure> {
    org::require(connection, org)?;
    rows(connection, &format!("{SELECT} WHERE org = ? ORDER BY created_at, client_id"), [org], Client::read)
}

/// The one of this id.
///
/// # Errors
/// Where there is none.
pub fn show(connection: &Connection, client_id: &str) -> Result<Client, Failure> {
    let found = connection.query_row(&format!("{SELECT} WHERE client_id = ?"), [client_id], Client::read).optional()?;
    let unknown = || format!("no client has the id {client_id:?}. Run 'apexmcp client list --org ORG' to see the ids");
    found.ok_or_else(|| Failure::new(Reason::NotFound, unknown()))
}

/// Gives one a second secret, which is returned and kept nowhere; the first stays valid.
///
/// # Errors
/// Where there is no such client in force, or it has two already.
pub fn rotate_secret(change: &Change<'_>, actor: &Actor, client_id: &str) -> Result<(Client, String), Failure> {
    let client = in_force(change, client_id)?;
    if client.jwks.is_some() {
        return Err(Failure::new(
            Reason::Conflict,
            format!("{client_id} has no secret: the client authenticates with its own keys"),
        ));
    }
    if client.secrets_created_at.len() > 1 {
        return Err(Failure::new(
            Reason::Conflict,
            format!(
                "{client_id} already has two secrets: when nothing uses the old one, run 'apexmcp client drop-secret {client_id}'"
            ),
        ));
    }
    let client_secret = add_secret(change, actor, client_id)?;
    let details = json!({"name": client.name});
    change.record(
        actor,
        &Record { action: "client.rotate-secret", org: Some(&client.org), subject: client_id, details, check: Check::Nothing },
    )?;
    Ok((show(change, client_id)?, client_secret))
}

/// Ends the older of two secrets.
///
/// # Errors
/// Where there is no such client in force, or it has but one.
pub fn drop_secret(change: &Change<'_>, actor: &Actor, client_id: &str) -> Result<Client, Failure> {
    let client = in_force(change, client_id)?;
    if client.secrets_created_at.len() < 2 {
        return Err(Failure::new(
            Reason::Conflict,
            format!(
                "{client_id} has only one secret: run 'apexmcp client rotate-secret {client_id}' first, or revoke the client \
                 with 'apexmcp client revoke {client_id}'"
            ),
        ));
    }
    change.execute(
        "DELETE FROM client_secrets WHERE number = (SELECT min(number) FROM client_secrets WHERE client_id = ?)",
        [client_id],
    )?;
    let details = json!({"name": client.name, "created_at": client.secrets_created_at.first()});
    change.record(
        actor,
        &Record { action: "client.drop-secret", org: Some(&client.org), subject: client_id, details, check: Check::Nothing },
    )?;
    show(change, client_id)
}

/// Ends one, and with it all of its tokens. To end it again changes nothing.
///
/// # Errors
/// Where there is none.
pub fn revoke(change: &Change<'_>, actor: &Actor, client_id: &str) -> Result<Client, Failure> {
    let client = show(change, client_id)?;
    if client.revoked {
        return Ok(client);
    }
    change.execute("UPDATE oauth_clients SET revoked_at = ? WHERE client_id = ?", params![actor.now.to_string(), client_id])?;
    let details = json!({"name": client.name});
    change.record(
        actor,
        &Record { action: "client.revoke", org: Some(&client.org), subject: client_id, details, check: Check::Nothing },
    )?;
    show(change, client_id)
}

fn in_force(connection: &Connection, client_id: &str) -> Result<Client, Failure> {
    let client = show(connection, client_id)?;
    match client.revoked_at {
        Some(at) => Err(Failure::new(
            Reason::Conflict,
            format!("{client_id} was revoked at {at}: create another client with 'apexmcp client create'"),
        )),
        None => Ok(client),
    }
}

fn add_secret(change: &Change<'_>, actor: &Actor, client_id: &str) -> Result<String, Failure> {
    let client_secret = secret::base62("apx_secret_", 24)?;
    change.execute(
        "INSERT INTO client_secrets (client_id, sha256, created_at) VALUES (?, ?, ?)",
        params![client_id, secret::sha256(&client_secret), actor.now.to_string()],
    )?;
    Ok(client_secret)
}
