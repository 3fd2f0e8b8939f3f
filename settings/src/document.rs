//! Builds the policy document from the database, and checks it as gateways do.

use std::collections::BTreeMap;

use apexmcp_core::config::DEFAULT_SEPARATOR;
use apexmcp_core::jwks::Clusters;
use apexmcp_core::policy::raw::{OneOrMany, RawApiKey, RawIdentityProvider, RawOauthClient, RawOrg, RawPolicy, RawSigningKey};
use apexmcp_core::policy::remote::{MAX_DOCUMENT_LENGTH, Publication};
use apexmcp_core::problem::Problem;
use rusqlite::{Connection, Row};

use crate::failure::{Failure, Reason};
use crate::rows::json;

/// Maximum length of the document of one org and the signing keys: half of what gateways accept for all orgs together. It has
/// room for 80,000 keys.
const MAX_ORG_LENGTH: usize = MAX_DOCUMENT_LENGTH / 2;

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
/// If the document is longer than gateways accept, or the database fails.
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

/// Checks that gateways accept the records of `org`. Returns their warnings.
///
/// # Errors
/// If gateways would refuse a record, or the database fails.
pub fn verify(connection: &Connection, org: &str) -> Result<Vec<Problem>, Failure> {
    Ok(read(&of_orgs(connection, Some(org))?)?.warnings().to_vec())
}

/// As [`verify`], after an addition to `org`. The org must also leave room for others, and gateways must be able to tell apart
/// all connectors that its records name.
///
/// # Errors
/// If one of these is not so, and as for [`verify`].
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

/// Reads a document as gateways do.
fn read(document: &str) -> Result<Publication, Failure> {
    // Settings does not know the clusters of a gateway, so each scheme has one here.
    let clusters = Clusters { https: Some(String::new()), http: Some(String::new()) };
    let checked = Publication::of(document.as_bytes(), &clusters, DEFAULT_SEPARATOR);
    checked.map_err(|problems| {
        let first = problems.first().map(Problem::to_string).unwrap_or_default();
        Failure::new(Reason::PolicyRefused, format!("the gateway would refuse {first}"))
    })
}

/// The document with one org, or with all.
fn of_orgs(connection: &Connection, only: Option<&str>) -> Result<String, Failure> {
    let mut orgs: BTreeMap<String, RawOrg> = BTreeMap::new();
    // One query for each kind of record, not for each org, because there may be thousands of orgs.
    let mut each = |query: &str, add: fn(&mut RawOrg, &Row<'_>) -> rusqlite::Result<()>| -> Result<(), Failure> {
        let query = format!("SELECT * FROM {query}");
        let mut statement = connection.prepare(&query)?;
        let mut rows = statement.query([only])?;
        while let Some(row) = rows.next()? {
            let name = row.get_ref("org")?.as_str().map_err(rusqlite::Error::from)?;
            match orgs.get_mut(name) {
                Some(org) => add(org, row)?,
                None => add(orgs.entry(name.to_owned()).or_default(), row)?,
            }
        }
        Ok(())
    };
    each("(SELECT name AS org, limits FROM orgs) WHERE ?1 IS NULL OR org = ?1", |org, row| {
        org.limits = json(row, "limits")?;
        Ok(())
    })?;
    each("api_keys WHERE revoked_at IS NULL AND (?1 IS NULL OR org = ?1) ORDER BY org, created_at, id", |org, row| {
        org.api_keys.push(RawApiKey {
            id: row.get("id")?,
            name: row.get("name")?,
            sha256: row.get("sha256")?,
            connectors: json(row, "connectors")?,
            expires_at: row.get("expires_at")?,
            limits: json(row, "limits")?,
            revoked: false,
        });
        Ok(())
    })?;
    let clients = "(SELECT *, (
            SELECT json_group_array(sha256 ORDER BY number) FROM client_secrets
            WHERE client_secrets.client_id = oauth_clients.client_id
        ) AS secrets FROM oauth_clients)
        WHERE revoked_at IS NULL AND (?1 IS NULL OR org = ?1) ORDER BY org, created_at, client_id";
    each(clients, |org, row| {
        org.oauth_clients.push(RawOauthClient {
            client_id: row.get("client_id")?,
            name: row.get("name")?,
            secret_sha256: json(row, "secrets")?.unwrap_or_default(),
            jwks: json(row, "jwks")?,
            scopes: json(row, "scopes")?,
            revoked: false,
        });
        Ok(())
    })?;
    each("identity_providers WHERE ?1 IS NULL OR org = ?1 ORDER BY org, issuer", |org, row| {
        org.identity_providers.push(RawIdentityProvider {
            issuer: row.get("issuer")?,
            jwks_uri: row.get("jwks_uri")?,
            audience: json(row, "audiences")?.map(OneOrMany::Many),
            default_scopes: json(row, "default_scopes")?,
            client_scopes: json(row, "client_scopes")?,
            revoked: false,
        });
        Ok(())
    })?;
    each("revoked_tokens WHERE ?1 IS NULL OR org = ?1 ORDER BY org, jti", |org, row| {
        org.revoked_tokens.jti.push(row.get("jti")?);
        Ok(())
    })?;
    each("revoked_clients WHERE ?1 IS NULL OR org = ?1 ORDER BY org, client_id", |org, row| {
        org.revoked_tokens.issued_before.0.push((row.get("client_id")?, row.get("issued_before")?));
        Ok(())
    })?;
    let mut statement = connection.prepare("SELECT kid, private_key_pem FROM signing_keys ORDER BY position")?;
    let signing_keys = statement
        .query_map([], |row| {
            Ok(RawSigningKey { kid: row.get("kid")?, private_key_pem: row.get("private_key_pem")?, private_key_env: None })
        })?
        .collect::<rusqlite::Result<_>>()?;
    let document = RawPolicy { version: Some(version(connection)?.to_string()), signing_keys, orgs: orgs.into() };
    serde_json::to_string(&document).map_err(Failure::during(Reason::DatabaseFailed, "the policy document"))
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
