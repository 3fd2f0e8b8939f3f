//! Builds the policy document from the database.

use std::collections::BTreeMap;

use apexmcp_core::policy::raw::{OneOrMany, RawApiKey, RawIdentityProvider, RawOauthClient, RawOrg, RawPolicy, RawSigningKey};
use rusqlite::{Connection, Row};

use crate::failure::{Failure, Reason};
use crate::rows::{json, rows};

/// The query for the clients that are in force.
pub(crate) const CLIENTS: &str = "SELECT *, (
        SELECT json_group_array(sha256 ORDER BY number) FROM client_secrets
        WHERE client_secrets.client_id = oauth_clients.client_id
    ) AS secrets FROM oauth_clients WHERE revoked_at IS NULL";

/// The version of the current policy. Each change adds one.
///
/// # Errors
/// If the database fails.
pub fn version(connection: &Connection) -> Result<i64, Failure> {
    Ok(connection.query_row("SELECT version FROM policy", [], |row| row.get(0))?)
}

/// The id of the database. All copies of a database have the same.
///
/// # Errors
/// If the database fails.
pub fn database_id(connection: &Connection) -> Result<String, Failure> {
    Ok(connection.query_row("SELECT id FROM identity", [], |row| row.get(0))?)
}

/// The document with all records that are in force. It contains the private signing keys. The same state of the database
/// always has the same text.
///
/// # Errors
/// If the database fails.
pub fn render(connection: &Connection) -> Result<String, Failure> {
    let mut orgs: BTreeMap<String, RawOrg> = BTreeMap::new();
    // One query for each kind of record, not for each org, because there may be thousands of orgs.
    let mut each = |query: &str, add: fn(&mut RawOrg, &Row<'_>) -> rusqlite::Result<()>| -> Result<(), Failure> {
        let mut statement = connection.prepare(query)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let name = row.get_ref("org")?.as_str().map_err(rusqlite::Error::from)?;
            match orgs.get_mut(name) {
                Some(org) => add(org, row)?,
                None => add(orgs.entry(name.to_owned()).or_default(), row)?,
            }
        }
        Ok(())
    };
    each("SELECT name AS org, limits FROM orgs", limits)?;
    each("SELECT * FROM api_keys WHERE revoked_at IS NULL ORDER BY org, created_at, id", |org, row| {
        org.api_keys.push(api_key(row)?);
        Ok(())
    })?;
    each(&format!("{CLIENTS} ORDER BY org, created_at, client_id"), |org, row| {
        org.oauth_clients.push(client(row)?);
        Ok(())
    })?;
    each("SELECT * FROM identity_providers ORDER BY org, issuer", identity_provider)?;
    each("SELECT * FROM revoked_tokens ORDER BY org, jti", revoked_token)?;
    each("SELECT * FROM revoked_clients ORDER BY org, client_id", revoked_client)?;
    let signing_keys = signing_keys(connection)?;
    let document = RawPolicy { version: Some(version(connection)?.to_string()), signing_keys, orgs: orgs.into() };
    serde_json::to_string(&document).map_err(Failure::during(Reason::DatabaseFailed, "the policy document"))
}

/// An org without its keys and clients. `None`: there is no such org.
///
/// # Errors
/// If the database fails.
pub fn org(connection: &Connection, name: &str) -> Result<Option<RawOrg>, Failure> {
    let mut org = RawOrg::default();
    let mut each = |query: &str, add: fn(&mut RawOrg, &Row<'_>) -> rusqlite::Result<()>| -> Result<Option<()>, Failure> {
        let mut statement = connection.prepare_cached(query)?;
        let mut rows = statement.query([name])?;
        let mut found = None;
        while let Some(row) = rows.next()? {
            add(&mut org, row)?;
            found = Some(());
        }
        Ok(found)
    };
    if each("SELECT limits FROM orgs WHERE name = ?", limits)?.is_none() {
        return Ok(None);
    }
    each("SELECT * FROM identity_providers WHERE org = ? ORDER BY issuer", identity_provider)?;
    each("SELECT * FROM revoked_tokens WHERE org = ? ORDER BY jti", revoked_token)?;
    each("SELECT * FROM revoked_clients WHERE org = ? ORDER BY client_id", revoked_client)?;
    Ok(Some(org))
}

/// The signing keys. The first one signs.
///
/// # Errors
/// If the database fails.
pub fn signing_keys(connection: &Connection) -> Result<Vec<RawSigningKey>, Failure> {
    rows(connection, "SELECT kid, private_key_pem FROM signing_keys ORDER BY position", [], |row| {
        Ok(RawSigningKey { kid: row.get("kid")?, private_key_pem: row.get("private_key_pem")?, private_key_env: None })
    })
}

pub(crate) fn api_key(row: &Row<'_>) -> rusqlite::Result<RawApiKey> {
    Ok(RawApiKey {
        id: row.get("id")?,
        name: row.get("name")?,
        sha256: row.get("sha256")?,
        connectors: json(row, "connectors")?,
        expires_at: row.get("expires_at")?,
        limits: json(row, "limits")?,
        revoked: false,
    })
}

/// A row of [`CLIENTS`].
pub(crate) fn client(row: &Row<'_>) -> rusqlite::Result<RawOauthClient> {
    Ok(RawOauthClient {
        client_id: row.get("client_id")?,
        name: row.get("name")?,
        secret_sha256: json(row, "secrets")?.unwrap_or_default(),
        jwks: json(row, "jwks")?,
        scopes: json(row, "scopes")?,
        revoked: false,
    })
}

fn limits(org: &mut RawOrg, row: &Row<'_>) -> rusqlite::Result<()> {
    org.limits = json(row, "limits")?;
    Ok(())
}

fn identity_provider(org: &mut RawOrg, row: &Row<'_>) -> rusqlite::Result<()> {
    org.identity_providers.push(RawIdentityProvider {
        issuer: row.get("issuer")?,
        jwks_uri: row.get("jwks_uri")?,
        audience: json(row, "audiences")?.map(OneOrMany::Many),
        default_scopes: json(row, "default_scopes")?,
        client_scopes: json(row, "client_scopes")?,
        revoked: false,
    });
    Ok(())
}

fn revoked_token(org: &mut RawOrg, row: &Row<'_>) -> rusqlite::Result<()> {
    org.revoked_tokens.jti.push(row.get("jti")?);
    Ok(())
}

fn revoked_client(org: &mut RawOrg, row: &Row<'_>) -> rusqlite::Result<()> {
    org.revoked_tokens.issued_before.0.push((row.get("client_id")?, row.get("issued_before")?));
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::clock::Moment;
    use crate::database::{Actor, Database};
    use crate::records::signing_key;

    /// Gateways compare the document by its text. A new order of members would make all of them load it again.
    #[test]
    fn each_member_has_its_name_and_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        let actor = Actor { name: "test".to_owned(), now: Moment::parse("2026-01-01T00:00:00Z").unwrap() };
        let mut database = Database::create(&path, |change| {
            signing_key::create(change, &actor, Some("a"), "PEM")?;
            change.execute_batch(
                r#"
                INSERT INTO orgs VALUES ('a', '', '{"rate":{"requests":1,"per":"hour","burst":2},"monthly_quota":3}'), ('b', '', NULL);
                INSERT INTO api_keys VALUES
                    ('k', 'a', 'n', '', 'h', '["c"]', '', '2027-01-01T00:00:00Z', '{"monthly_quota":4}', NULL),
                    ('l', 'a', 'n', '', 'i', NULL, '', NULL, NULL, NULL),
                    ('m', 'a', 'n', '', 'j', NULL, '', NULL, NULL, 'revoked');
                INSERT INTO oauth_clients VALUES
                    ('c', 'a', 'n', '["mcp:call"]', NULL, '', NULL), ('d', 'a', 'n', '[]', '{"keys":[]}', '', NULL);
                INSERT INTO client_secrets VALUES (2, 'c', 'second', ''), (1, 'c', 'first', '');
                INSERT INTO identity_providers VALUES
                    ('a', 'i', 'u', '["x","y"]', NULL, '', NULL), ('a', 'j', 'u', '["x"]', '[]', '', '["s"]');
                INSERT INTO revoked_tokens VALUES ('a', 't', '');
                INSERT INTO revoked_clients VALUES ('a', 'c', '2026-01-01T00:00:00Z');
                "#,
            )?;
            Ok(())
        })
        .unwrap();
        let expected = concat!(
            r#"{"version":"1","signing_keys":[{"kid":"a","private_key_pem":"PEM"}],"orgs":{"a":{"#,
            r#""api_keys":[{"id":"k","name":"n","sha256":"h","connectors":["c"],"expires_at":"2027-01-01T00:00:00Z","#,
            r#""limits":{"monthly_quota":4}},{"id":"l","name":"n","sha256":"i"}],"#,
            r#""oauth_clients":[{"client_id":"c","name":"n","secret_sha256":["first","second"],"scopes":["mcp:call"]},"#,
            r#"{"client_id":"d","name":"n","jwks":{"keys":[]},"scopes":[]}],"#,
            r#""identity_providers":[{"issuer":"i","jwks_uri":"u","audience":["x","y"]},"#,
            r#"{"issuer":"j","jwks_uri":"u","audience":["x"],"default_scopes":[],"client_scopes":["s"]}],"#,
            r#""limits":{"rate":{"requests":1,"per":"hour","burst":2},"monthly_quota":3},"#,
            r#""revoked_tokens":{"jti":["t"],"issued_before":{"c":"2026-01-01T00:00:00Z"}}},"b":{}}}"#,
        );
        assert_eq!(database.read(super::render).unwrap(), expected);
    }
}
