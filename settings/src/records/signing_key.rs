//! The keys that sign the gateway's own tokens.

use apexmcp_core::names::is_record_id;
use rsa::RsaPrivateKey;
use rsa::pkcs8::{EncodePrivateKey, LineEnding};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;

use crate::access::Actor;
use crate::clock::Moment;
use crate::database::{Change, Check, Record};
use crate::encryption::{self, Keyring};
use crate::failure::{Failure, Reason};
use crate::sql::{Row, Sql, exists, first, rows, values};

/// Length of a key in bits. RS256 needs at least 2048 (RFC 7518 §3.3), and longer keys make each verification slower.
const BITS: usize = 2048;

/// A signing key without its private part.
#[derive(Debug, Serialize, ToSchema)]
pub struct SigningKey {
    /// The id in the headers of tokens.
    pub kid: String,
    /// Whether this key signs new tokens. All keys are published and verify tokens.
    pub signs: bool,
    pub created_at: String,
}

impl SigningKey {
    fn read(row: &Row<'_>) -> Result<Self, Failure> {
        Ok(Self { kid: row.get("kid")?, signs: row.get::<i64>("signs")? == 1, created_at: row.get("created_at")? })
    }
}

/// A new private key as PKCS#8 PEM. Generate it before the transaction: it takes long, and a transaction blocks other changes.
///
/// # Errors
/// If the operating system returns no random numbers.
pub fn generate() -> Result<String, Failure> {
    let key = RsaPrivateKey::new(&mut rsa::rand_core::OsRng, BITS)
        .map_err(Failure::during(Reason::SystemFailed, "no signing key could be created"))?;
    let pem = key
        .to_pkcs8_pem(LineEnding::LF)
        .map_err(Failure::during(Reason::SystemFailed, "the new signing key cannot be encoded"))?;
    Ok(pem.to_string())
}

/// Adds a key that verifies tokens. The only key also signs them. The default `kid` is the current date.
///
/// The `kid` of a removed key is not used again: a connector that caches the published keys would verify with the removed key.
///
/// # Errors
/// If the `kid` is not allowed, or another key has it.
pub fn create(change: &Change<'_>, actor: &Actor, kid: Option<&str>, private_key_pem: &str) -> Result<SigningKey, Failure> {
    actor.check_operator()?;
    let is_taken = |kid: &str| {
        let was_created = "SELECT 1 FROM audit WHERE action = 'signing-key.create' AND subject = ?";
        Ok::<_, Failure>(
            exists(change, "SELECT 1 FROM signing_keys WHERE kid = ?", values![kid])?
                || exists(change, was_created, values![kid])?,
        )
    };
    let kid = match kid {
        Some(kid) if !is_record_id(kid) => {
            return Err(Failure::of("kid", "must be 1 to 128 of A-Z a-z 0-9 . _ ~ -"));
        }
        Some(kid) if is_taken(kid)? => {
            let line = format!("{kid:?} already is, or was, that of a signing key: choose another one");
            return Err(Failure::of("kid", line).because(Reason::AlreadyExists));
        }
        Some(kid) => kid.to_owned(),
        None => {
            let mut kid = actor.now.date();
            for number in 2_u32.. {
                if !is_taken(&kid)? {
                    break;
                }
                kid = format!("{}-{number}", actor.now.date());
            }
            kid
        }
    };
    change.execute(
        "INSERT INTO signing_keys (kid, position, private_key_pem, created_at)
            VALUES (?, (SELECT coalesce(max(position), 0) + 1 FROM signing_keys), ?, ?)",
        values![&kid, change.keyring().seal(&kid, private_key_pem)?, actor.now],
    )?;
    change.record(
        actor,
        &Record { action: "signing-key.create", org: None, subject: &kid, details: json!({}), check: Check::Nothing },
    )?;
    find(change, actor, &kid)
}

/// All keys in the order of the policy document. The first one signs.
///
/// # Errors
/// If the database fails.
pub fn list(connection: &dyn Sql, actor: &Actor) -> Result<Vec<SigningKey>, Failure> {
    actor.check_operator()?;
    let query = "SELECT kid, created_at, CASE WHEN position = (SELECT min(position) FROM signing_keys) THEN 1 ELSE 0 END AS signs
        FROM signing_keys ORDER BY position";
    rows(connection, query, values![], SigningKey::read)
}

/// Since when the key signs. `None`: it was the first key, or was imported.
///
/// # Errors
/// If the database fails.
pub fn signs_since(connection: &dyn Sql, actor: &Actor, kid: &str) -> Result<Option<Moment>, Failure> {
    actor.check_operator()?;
    // An index has the few changes that belong to no org.
    let query = "SELECT at FROM audit WHERE org IS NULL AND action = 'signing-key.use' AND subject = ?
        ORDER BY version DESC LIMIT 1";
    let at = first(connection, query, values![kid], |row| row.get::<String>("at"))?;
    at.map(|at| Moment::parse(&at).map_err(|line| Failure::new(Reason::DatabaseInvalid, line))).transpose()
}

/// Lets a key sign from now on. The other keys still verify.
///
/// # Errors
/// If no key has this `kid`.
pub fn sign_with(change: &Change<'_>, actor: &Actor, kid: &str) -> Result<SigningKey, Failure> {
    let key = find(change, actor, kid)?;
    if key.signs {
        return Ok(key);
    }
    change
        .execute("UPDATE signing_keys SET position = (SELECT min(position) - 1 FROM signing_keys) WHERE kid = ?", values![kid])?;
    change.record(
        actor,
        &Record { action: "signing-key.use", org: None, subject: kid, details: json!({}), check: Check::Nothing },
    )?;
    find(change, actor, kid)
}

/// Removes a key. Gateways then refuse the tokens that it signed.
///
/// # Errors
/// If no key has this `kid`, or the key signs new tokens.
pub fn remove(change: &Change<'_>, actor: &Actor, kid: &str) -> Result<SigningKey, Failure> {
    let key = find(change, actor, kid)?;
    if key.signs {
        return Err(Failure::new(Reason::Conflict, format!("{kid} signs new tokens: let another key sign first"))
            .hint("Run 'apexmcp signing-key create', then 'apexmcp signing-key use'"));
    }
    change.execute("DELETE FROM signing_keys WHERE kid = ?", values![kid])?;
    change.record(
        actor,
        &Record { action: "signing-key.remove", org: None, subject: kid, details: json!({}), check: Check::Nothing },
    )?;
    Ok(key)
}

/// Encrypts all private keys with the present master key, or decrypts them. Returns how many changed.
///
/// # Errors
/// If a key cannot be decrypted.
pub fn reseal(change: &Change<'_>, actor: &Actor, is_encrypted: bool) -> Result<u64, Failure> {
    actor.check_operator()?;
    let keyring = change.keyring();
    if is_encrypted && !keyring.encrypts() {
        let line = format!("there is no master key. Run: export {}=$(openssl rand -hex 32)", encryption::KEY);
        return Err(Failure::new(Reason::KeyMissing, line));
    }
    let stored = rows(change, "SELECT kid, private_key_pem FROM signing_keys", values![], |row| {
        Ok((row.get::<String>("kid")?, row.get::<String>("private_key_pem")?))
    })?;
    let mut changed = 0_u64;
    for (kid, value) in stored {
        if if is_encrypted { keyring.is_sealed(&value) } else { !Keyring::is_encrypted(&value) } {
            continue;
        }
        let private_key = keyring.open(&kid, &value)?;
        let value = if is_encrypted { keyring.seal(&kid, &private_key)? } else { private_key };
        change.execute("UPDATE signing_keys SET private_key_pem = ? WHERE kid = ?", values![value, &kid])?;
        changed = changed.saturating_add(1);
    }
    if changed > 0 {
        let action = if is_encrypted { "database.encrypt" } else { "database.decrypt" };
        let details = json!({ "signing_keys": changed });
        change.record(actor, &Record { action, org: None, subject: "signing keys", details, check: Check::Nothing })?;
    }
    Ok(changed)
}

/// # Errors
/// If no key has this `kid`.
pub fn find(connection: &dyn Sql, actor: &Actor, kid: &str) -> Result<SigningKey, Failure> {
    let unknown = || {
        Failure::new(Reason::NotFound, format!("no signing key has the id {kid:?}"))
            .hint("Run 'apexmcp signing-key list' to see the ids")
    };
    list(connection, actor)?.into_iter().find(|key| key.kid == kid).ok_or_else(unknown)
}
