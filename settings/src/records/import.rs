//! Creates the records of a policy document that the database does not have yet.

use apexmcp_core::api_key::KeyDigest;
use apexmcp_core::limits::document::Limits;
use apexmcp_core::names::is_record_id;
use apexmcp_core::policy::raw::{RawApiKey, RawIdentityProvider, RawOauthClient, RawOrg, RawPolicy, RawSigningKey};
use serde::Serialize;
use serde_json::json;

use super::checks::{check_connectors, check_name, check_scopes};
use super::provider::{self, Provider};
use super::{client, org, signing_key};
use crate::access::Actor;
use crate::clock::Moment;
use crate::database::{Change, Check, Record};
use crate::failure::{Failure, Reason};
use crate::output::progress;
use crate::sql::{Sql, exists, first, values};

/// How many records of each kind an import created, and how many existed already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub orgs: u64,
    pub api_keys: u64,
    pub oauth_clients: u64,
    pub identity_providers: u64,
    pub signing_keys: u64,
    pub limits: u64,
    pub revoked_tokens: u64,
    /// Records that are in the database already.
    pub unchanged: u64,
    /// Records with `"revoked": true`, which count as absent.
    pub revoked: u64,
}

impl Counts {
    fn created(&self) -> u64 {
        let Self { orgs, api_keys, oauth_clients, identity_providers, signing_keys, limits, revoked_tokens, .. } = *self;
        [orgs, api_keys, oauth_clients, identity_providers, signing_keys, limits, revoked_tokens]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    fn seen(&self) -> u64 {
        self.created().saturating_add(self.unchanged).saturating_add(self.revoked)
    }

    fn add(count: &mut u64) {
        *count = count.saturating_add(1);
    }
}

/// Creates every record of `policy` that is not there yet.
///
/// # Errors
/// If a record is not allowed, or contradicts a record in the database. The line names its JSON path.
pub fn import(change: &Change<'_>, actor: &Actor, policy: RawPolicy) -> Result<Counts, Failure> {
    actor.check_operator()?;
    let mut counts = Counts::default();
    for (index, key) in policy.signing_keys.into_iter().enumerate() {
        let path = format!("signing_keys[{index}]");
        signing(change, actor, key, &mut counts).map_err(|failure| failure.within(path))?;
    }
    for (name, org) in policy.orgs.0 {
        let before = counts;
        let path = format!("orgs.{name}");
        Import { change, actor, org: &name, path, counts: &mut counts }.org(org)?;
        if counts.created() > before.created() {
            let details = json!({
                "api_keys": counts.api_keys.saturating_sub(before.api_keys),
                "oauth_clients": counts.oauth_clients.saturating_sub(before.oauth_clients),
                "identity_providers": counts.identity_providers.saturating_sub(before.identity_providers),
            });
            let record = Record { action: "policy.import", org: Some(&name), subject: &name, details, check: Check::Addition };
            change.record(actor, &record)?;
        }
    }
    Ok(counts)
}

fn signing(change: &Change<'_>, actor: &Actor, key: RawSigningKey, counts: &mut Counts) -> Result<(), Failure> {
    let (Some(kid), Some(pem)) = (key.kid, key.private_key_pem) else {
        return Err(Failure::new(
            Reason::InvalidArgument,
            "a key in an environment variable of Envoy cannot be imported: write the key itself as private_key_pem, or remove this \
             entry and use the signing key of this database",
        ));
    };
    let query = "SELECT private_key_pem FROM signing_keys WHERE kid = ?";
    let known: Option<String> = first(change, query, values![&kid], |row| row.get("private_key_pem"))?;
    let known = known.map(|known| change.keyring().open(&kid, &known)).transpose()?;
    match known {
        Some(known) if known.trim() == pem.trim() => Counts::add(&mut counts.unchanged),
        Some(_) => return Err(differs("signing key", &kid)),
        None => {
            signing_key::create(change, actor, Some(&kid), &pem)?;
            Counts::add(&mut counts.signing_keys);
        }
    }
    Ok(())
}

fn differs(kind: &str, id: &str) -> Failure {
    Failure::new(
        Reason::Conflict,
        format!("the database has another {kind} with the id {id:?}: change the id in the file, or remove the record from it"),
    )
}

fn checked_id(id: Option<String>, member: &str) -> Result<String, Failure> {
    let wrong = || format!("{member} must be 1 to 128 of A-Z a-z 0-9 . _ ~ -");
    id.filter(|id| is_record_id(id)).ok_or_else(|| Failure::new(Reason::InvalidArgument, wrong()))
}

/// A time in the form of the database.
fn moment(text: &str) -> Result<String, Failure> {
    Moment::parse(text).map(|moment| moment.to_string()).map_err(|line| Failure::new(Reason::InvalidArgument, line))
}

/// The import of one org.
struct Import<'a> {
    change: &'a Change<'a>,
    actor: &'a Actor,
    org: &'a str,
    /// The JSON path of the org.
    path: String,
    counts: &'a mut Counts,
}

impl Import<'_> {
    fn org(&mut self, raw: RawOrg) -> Result<(), Failure> {
        if exists(self.change, "SELECT 1 FROM orgs WHERE name = ?", values![self.org])? {
            Counts::add(&mut self.counts.unchanged);
        } else {
            org::create(self.change, self.actor, self.org).map_err(|failure| failure.within(&self.path))?;
            Counts::add(&mut self.counts.orgs);
        }
        if let Some(limits) = raw.limits {
            self.limits(&limits)?;
        }
        self.each("api_keys", raw.api_keys, Self::api_key)?;
        self.each("oauth_clients", raw.oauth_clients, Self::client)?;
        self.each("identity_providers", raw.identity_providers, Self::provider)?;
        for jti in raw.revoked_tokens.jti {
            let query = "INSERT INTO revoked_tokens (org, jti, revoked_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING";
            let made = self.change.execute(query, values![self.org, jti, self.actor.now])?;
            self.count_revocation(made);
        }
        for (whose, before) in raw.revoked_tokens.issued_before.0 {
            let before = moment(&before).map_err(|failure| failure.within(format_args!("{}.revoked_tokens", self.path)))?;
            let query = "INSERT INTO revoked_clients (org, client_id, issued_before) VALUES (?, ?, ?) ON CONFLICT DO NOTHING";
            let made = self.change.execute(query, values![self.org, whose, before])?;
            self.count_revocation(made);
        }
        Ok(())
    }

    fn count_revocation(&mut self, made: u64) {
        Counts::add(if made > 0 { &mut self.counts.revoked_tokens } else { &mut self.counts.unchanged });
    }

    fn each<T>(
        &mut self,
        member: &str,
        records: Vec<T>,
        import: impl Fn(&mut Self, T) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        for (index, record) in records.into_iter().enumerate() {
            import(self, record).map_err(|failure| failure.within(format_args!("{}.{member}[{index}]", self.path)))?;
            let seen = self.counts.seen();
            progress(seen, || format!("{seen} records read"));
        }
        Ok(())
    }

    fn limits(&mut self, limits: &Limits) -> Result<(), Failure> {
        let query = "UPDATE orgs SET limits = ? WHERE name = ? AND limits IS NULL";
        let made = self.change.execute(query, values![json!(limits).to_string(), self.org])?;
        Counts::add(if made > 0 { &mut self.counts.limits } else { &mut self.counts.unchanged });
        Ok(())
    }

    fn api_key(&mut self, key: RawApiKey) -> Result<(), Failure> {
        if key.revoked {
            Counts::add(&mut self.counts.revoked);
            return Ok(());
        }
        let (id, sha256) = (checked_id(key.id, "id")?, key.sha256.unwrap_or_default().to_ascii_lowercase());
        if KeyDigest::from_hex(&sha256).is_none() {
            let wrong = "sha256 must be the SHA-256 of the whole key as 64 hexadecimal digits";
            return Err(Failure::new(Reason::InvalidArgument, wrong));
        }
        let query = "SELECT id, org, sha256 FROM api_keys WHERE id = ? OR sha256 = ?";
        let known = first(self.change, query, values![&id, &sha256], |row| {
            Ok((row.get::<String>("id")?, row.get::<String>("org")?, row.get::<String>("sha256")?))
        })?;
        if let Some((known_id, org, hash)) = known {
            if (known_id.as_str(), org.as_str(), hash.as_str()) != (id.as_str(), self.org, sha256.as_str()) {
                return Err(differs("API key", &known_id));
            }
            Counts::add(&mut self.counts.unchanged);
            return Ok(());
        }
        let name = key.name.unwrap_or_else(|| id.clone());
        check_name(&name)?;
        check_connectors(key.connectors.as_deref().unwrap_or_default())?;
        // The key itself is not known, so its first characters are not either.
        let insert = "INSERT INTO api_keys (id, org, name, prefix, sha256, connectors, created_at, expires_at, limits)
            VALUES (?, ?, ?, '', ?, ?, ?, ?, ?)";
        self.change.execute(
            insert,
            values![
                id,
                self.org,
                name,
                sha256,
                key.connectors.map(|connectors| json!(connectors).to_string()),
                self.actor.now,
                key.expires_at.as_deref().map(moment).transpose()?,
                key.limits.map(|limits| json!(limits).to_string()),
            ],
        )?;
        Counts::add(&mut self.counts.api_keys);
        Ok(())
    }

    fn client(&mut self, raw: RawOauthClient) -> Result<(), Failure> {
        if raw.revoked {
            Counts::add(&mut self.counts.revoked);
            return Ok(());
        }
        let id = checked_id(raw.client_id, "client_id")?;
        let query = "SELECT org FROM oauth_clients WHERE client_id = ?";
        match first(self.change, query, values![&id], |row| row.get::<String>("org"))? {
            Some(org) if org == self.org => {
                Counts::add(&mut self.counts.unchanged);
                return Ok(());
            }
            Some(_) => return Err(differs("client", &id)),
            None => {}
        }
        let name = raw.name.unwrap_or_else(|| id.clone());
        check_name(&name)?;
        let scopes = raw.scopes.unwrap_or_default();
        check_scopes("scopes", &scopes)?;
        let jwks = raw.jwks.as_ref().map(client::public_keys).transpose()?;
        let now = self.actor.now;
        self.change.execute(
            "INSERT INTO oauth_clients (client_id, org, name, scopes, jwks, created_at) VALUES (?, ?, ?, ?, ?, ?)",
            values![&id, self.org, name, json!(scopes).to_string(), jwks.map(|jwks| jwks.to_string()), now],
        )?;
        for sha256 in raw.secret_sha256 {
            let insert = "INSERT INTO client_secrets (client_id, sha256, created_at) VALUES (?, ?, ?)";
            self.change.execute(insert, values![&id, sha256.to_ascii_lowercase(), now])?;
        }
        Counts::add(&mut self.counts.oauth_clients);
        Ok(())
    }

    fn provider(&mut self, raw: RawIdentityProvider) -> Result<(), Failure> {
        if raw.revoked {
            Counts::add(&mut self.counts.revoked);
            return Ok(());
        }
        let issuer = raw.issuer.unwrap_or_default();
        let query = "SELECT 1 FROM identity_providers WHERE org = ? AND issuer = ?";
        if exists(self.change, query, values![self.org, issuer.as_str()])? {
            Counts::add(&mut self.counts.unchanged);
            return Ok(());
        }
        let provider = Provider {
            id: provider::id_of(&issuer),
            org: self.org.to_owned(),
            issuer,
            jwks_uri: raw.jwks_uri.unwrap_or_default(),
            audience: raw.audience.map(|audience| audience.into_vec()).unwrap_or_default(),
            default_scopes: raw.default_scopes,
            client_scopes: raw.client_scopes,
            // The document does not say where its operator found the provider.
            allow_private_address: false,
            configured_at: self.actor.now.to_string(),
        };
        provider::configure(self.change, self.actor, &provider)?;
        Counts::add(&mut self.counts.identity_providers);
        Ok(())
    }
}
