//! Builds the policy document from the database.

use std::collections::BTreeMap;

use apexmcp_core::policy::raw::{OneOrMany, RawApiKey, RawIdentityProvider, RawOauthClient, RawOrg, RawPolicy, RawSigningKey};

use crate::failure::{Failure, Reason};
use crate::sql::{Row, Sql, only, rows, values};

/// Why `serve` refuses a database.
pub const OTHER_DATABASE: &str = "this is another database than the one with which the server began: restore a copy of that one, or \
                                  restart 'apexmcp serve' to serve this one";

/// The query for the clients that are in force.
pub(crate) const CLIENTS: &str = "SELECT oauth_clients.*, (
        SELECT '[' || string_agg('\"' || sha256 || '\"', ',' ORDER BY number) || ']' FROM client_secrets
        WHERE client_secrets.client_id = oauth_clients.client_id
    ) AS secrets FROM oauth_clients WHERE revoked_at IS NULL";

/// The version of the current policy. Each change adds one.
///
/// # Errors
/// If the database fails.
pub fn version(sql: &dyn Sql) -> Result<i64, Failure> {
    only(sql, "SELECT version FROM policy", values![], |row| row.get("version"))
}

/// The id of the database. All copies of a database have the same.
///
/// # Errors
/// If the database fails.
pub fn database_id(sql: &dyn Sql) -> Result<String, Failure> {
    only(sql, "SELECT id FROM identity", values![], |row| row.get("id"))
}

/// The document with all records that are in force. It contains the private signing keys. The same state of the database
/// always has the same text.
///
/// # Errors
/// If the database fails.
pub fn render(sql: &dyn Sql) -> Result<String, Failure> {
    let mut orgs: BTreeMap<String, RawOrg> = BTreeMap::new();
    // One query for each kind of record, not for each org, because there may be thousands of orgs.
    let mut each = |query: &str, add: fn(&mut RawOrg, &Row<'_>) -> Result<(), Failure>| {
        sql.each(query, values![], &mut |row| add(orgs.entry(row.get("org")?).or_default(), row))
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
    let signing_keys = signing_keys(sql)?;
    let document = RawPolicy { version: Some(version(sql)?.to_string()), signing_keys, orgs: orgs.into() };
    serde_json::to_string(&document).map_err(Failure::during(Reason::DatabaseFailed, "the policy document"))
}

/// An org without its keys and clients. `None`: there is no such org.
///
/// # Errors
/// If the database fails.
pub fn org(sql: &dyn Sql, name: &str) -> Result<Option<RawOrg>, Failure> {
    let mut org = RawOrg::default();
    let mut each = |query: &str, add: fn(&mut RawOrg, &Row<'_>) -> Result<(), Failure>| {
        let mut is_there = false;
        sql.each(query, values![name], &mut |row| {
            is_there = true;
            add(&mut org, row)
        })?;
        Ok::<_, Failure>(is_there)
    };
    if !each("SELECT limits FROM orgs WHERE name = ?", limits)? {
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
pub fn signing_keys(sql: &dyn Sql) -> Result<Vec<RawSigningKey>, Failure> {
    rows(sql, "SELECT kid, private_key_pem FROM signing_keys ORDER BY position", values![], |row| {
        let kid: String = row.get("kid")?;
        let private_key_pem = sql.keyring().open(&kid, &row.get::<String>("private_key_pem")?)?;
        Ok(RawSigningKey { kid: Some(kid), private_key_pem: Some(private_key_pem), private_key_env: None })
    })
}

pub(crate) fn api_key(row: &Row<'_>) -> Result<RawApiKey, Failure> {
    Ok(RawApiKey {
        id: row.get("id")?,
        name: row.get("name")?,
        sha256: row.get("sha256")?,
        connectors: row.json("connectors")?,
        expires_at: row.get("expires_at")?,
        limits: row.json("limits")?,
        revoked: false,
    })
}

/// A row of [`CLIENTS`].
pub(crate) fn client(row: &Row<'_>) -> Result<RawOauthClient, Failure> {
    Ok(RawOauthClient {
        client_id: row.get("client_id")?,
        name: row.get("name")?,
        secret_sha256: row.json("secrets")?.unwrap_or_default(),
        jwks: row.json("jwks")?,
        scopes: row.json("scopes")?,
        revoked: false,
    })
}

fn limits(org: &mut RawOrg, row: &Row<'_>) -> Result<(), Failure> {
    org.limits = row.json("limits")?;
    Ok(())
}

fn identity_provider(org: &mut RawOrg, row: &Row<'_>) -> Result<(), Failure> {
    org.identity_providers.push(RawIdentityProvider {
        issuer: row.get("issuer")?,
        jwks_uri: row.get("jwks_uri")?,
        audience: row.json("audiences")?.map(OneOrMany::Many),
        default_scopes: row.json("default_scopes")?,
        client_scopes: row.json("client_scopes")?,
        revoked: false,
    });
    Ok(())
}

fn revoked_token(org: &mut RawOrg, row: &Row<'_>) -> Result<(), Failure> {
    org.revoked_tokens.jti.push(row.get("jti")?);
    Ok(())
}

fn revoked_client(org: &mut RawOrg, row: &Row<'_>) -> Result<(), Failure> {
    org.revoked_tokens.issued_before.0.push((row.get("client_id")?, row.get("issued_before")?));
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::access::Actor;
    use crate::clock::Moment;
    use crate::database::{Database, Location};
    use crate::records::signing_key;
    use crate::sql::{Sql, values};

    /// Gateways compare the document by its text. A new order of members would make all of them load it again.
    #[test]
    fn each_member_has_its_name_and_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        let actor = Actor::operator("test", Moment::parse("2026-01-01T00:00:00Z").unwrap());
        let mut database = Database::create(&Location::from(&*path), |change| {
            signing_key::create(change, &actor, Some("a"), "PEM")?;
            let records = r#"
                INSERT INTO orgs VALUES ('a', '', '{"rate":{"requests":1,"per":"hour","burst":2},"monthly_quota":3}'), ('b', '', NULL);
                INSERT INTO api_keys VALUES
                    ('k', 'a', 'n', '', 'h', '["c"]', '', '2027-01-01T00:00:00Z', '{"monthly_quota":4}', NULL),
                    ('l', 'a', 'n', '', 'i', NULL, '', NULL, NULL, NULL),
                    ('m', 'a', 'n', '', 'j', NULL, '', NULL, NULL, 'revoked');
                INSERT INTO oauth_clients VALUES
                    ('c', 'a', 'n', '["mcp:call"]', NULL, '', NULL), ('d', 'a', 'n', '[]', '{"keys":[]}', '', NULL);
                INSERT INTO client_secrets VALUES (2, 'c', 'second', ''), (1, 'c', 'first', '');
                INSERT INTO identity_providers VALUES
                    ('a', 'i', 'u', '["x","y"]', NULL, '', NULL, 0), ('a', 'j', 'u', '["x"]', '[]', '', '["s"]', 1);
                INSERT INTO revoked_tokens VALUES ('a', 't', '');
                INSERT INTO revoked_clients VALUES ('a', 'c', '2026-01-01T00:00:00Z');
                "#;
            for insert in records.split(";\n").filter(|insert| !insert.trim().is_empty()) {
                change.execute(insert, values![])?;
            }
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
