//! The file of `apexmcp apply`, in YAML or JSON.

use apexmcp_core::limits::document::Limits;
use apexmcp_core::policy::raw::{Members, OneOrMany};
use apexmcp_core::problem::{self, Problem, Problems};
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use crate::clock::Moment;
use crate::failure::{Failure, Reason};
use crate::json::present;
use crate::yaml;

/// An org with the records that it should have. The records of a kind that is `None` stay as they are.
///
/// A member of a record that is `None` has its default in a new record, and stays as it is in a present one. `Some(None)` is
/// null in the file: all connectors, no expiry, unlimited, the default scopes.
#[derive(Debug, PartialEq, Eq)]
pub struct Org {
    pub name: String,
    /// The JSON path of the org in the file.
    pub path: String,
    pub limits: Option<Option<Limits>>,
    pub api_keys: Option<Vec<Key>>,
    pub oauth_clients: Option<Vec<Client>>,
    pub identity_providers: Option<Vec<Provider>>,
    pub members: Option<Vec<Member>>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    pub path: String,
    /// The id of the present key. `None`: the name finds it.
    pub id: Option<String>,
    pub name: String,
    pub connectors: Option<Option<Vec<String>>>,
    pub expires_at: Option<Option<Moment>>,
    pub limits: Option<Option<Limits>>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Client {
    pub path: String,
    /// The id of the present client. `None`: the name finds it.
    pub client_id: Option<String>,
    pub name: String,
    pub scopes: Option<Vec<String>>,
}

impl Client {
    /// The scopes of a new client.
    pub fn first_scopes(&self) -> Vec<String> {
        self.scopes.clone().unwrap_or_else(|| vec!["mcp:call".to_owned()])
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Provider {
    pub path: String,
    pub issuer: String,
    pub jwks_uri: String,
    pub audience: Vec<String>,
    pub default_scopes: Option<Option<Vec<String>>>,
    pub client_scopes: Option<Option<Vec<String>>>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Member {
    pub path: String,
    /// In lower case, as in the database.
    pub email: String,
    pub role: String,
}

/// The file as it is written. Required members are optional here, so that a missing one is reported with its path.
#[derive(Deserialize)]
struct RawFile {
    orgs: Option<Members<Option<RawOrg>>>,
}

#[derive(Default, Deserialize)]
struct RawOrg {
    #[serde(default, deserialize_with = "present")]
    limits: Option<Option<Limits>>,
    api_keys: Option<Vec<RawKey>>,
    oauth_clients: Option<Vec<RawClient>>,
    identity_providers: Option<Vec<RawProvider>>,
    members: Option<Vec<RawMember>>,
}

#[derive(Deserialize)]
struct RawKey {
    id: Option<String>,
    name: Option<String>,
    #[serde(default, deserialize_with = "present")]
    connectors: Option<Option<Vec<String>>>,
    #[serde(default, deserialize_with = "moment")]
    expires_at: Option<Option<Moment>>,
    #[serde(default, deserialize_with = "present")]
    limits: Option<Option<Limits>>,
}

#[derive(Deserialize)]
struct RawClient {
    client_id: Option<String>,
    name: Option<String>,
    scopes: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct RawProvider {
    issuer: Option<String>,
    jwks_uri: Option<String>,
    audience: Option<OneOrMany>,
    #[serde(default, deserialize_with = "present")]
    default_scopes: Option<Option<Vec<String>>>,
    #[serde(default, deserialize_with = "present")]
    client_scopes: Option<Option<Vec<String>>>,
}

#[derive(Deserialize)]
struct RawMember {
    email: Option<String>,
    role: Option<String>,
}

fn moment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<Moment>>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let wrong = |_| D::Error::custom("a text, expected a timestamp such as 2027-01-01T00:00:00Z");
    text.map(|text| Moment::parse(&text).map_err(wrong)).transpose().map(Some)
}

/// The orgs that a file declares.
///
/// # Errors
/// If the file is neither YAML nor JSON, or has another form. The line has the JSON path of the first mistake.
pub fn read(bytes: &[u8]) -> Result<Vec<Org>, Failure> {
    let mut problems = Problems::default();
    // JSON is read from its own bytes: a parser of YAML needs much longer, and has lower limits.
    let is_json = bytes.trim_ascii_start().starts_with(b"{");
    let raw = if is_json {
        problem::read::<RawFile>(bytes, &mut problems)
    } else {
        let text = str::from_utf8(bytes).map_err(Failure::during(Reason::FileInvalid, "neither YAML nor JSON"))?;
        let value = yaml::read_one(text).map_err(Failure::during(Reason::FileInvalid, "neither YAML nor JSON"))?;
        problem::read::<RawFile>(value.to_string().as_bytes(), &mut problems)
    };
    let orgs = raw.and_then(|raw| problems.required("orgs", raw.orgs)).map(|orgs| Reader { problems: &mut problems }.orgs(orgs));
    let (orgs, _) = problems.conclude(orgs).map_err(|problems| {
        let first = problems.first().map(Problem::to_string).unwrap_or_default();
        // The place in the JSON that was made of the YAML is no place in the file.
        let line = if is_json { first.as_str() } else { first.split(" at line ").next().unwrap_or_default() };
        Failure::new(Reason::FileInvalid, line)
    })?;
    Ok(orgs)
}

/// Makes the valid types of the raw ones.
struct Reader<'p> {
    problems: &'p mut Problems,
}

impl Reader<'_> {
    fn orgs(&mut self, orgs: Members<Option<RawOrg>>) -> Vec<Org> {
        orgs.0.into_iter().map(|(name, raw)| self.org(name, raw.unwrap_or_default())).collect()
    }

    fn org(&mut self, name: String, raw: RawOrg) -> Org {
        let path = format!("orgs.{name}");
        Org {
            limits: raw.limits.map(|limits| self.limits(&path, limits)),
            api_keys: self.each(&path, "api_keys", raw.api_keys, Self::key),
            oauth_clients: self.each(&path, "oauth_clients", raw.oauth_clients, Self::client),
            identity_providers: self.each(&path, "identity_providers", raw.identity_providers, Self::provider),
            members: self.each(&path, "members", raw.members, Self::member),
            name,
            path,
        }
    }

    /// The records of a kind. A record with a mistake is left out, and the file is refused.
    fn each<R, T>(
        &mut self,
        path: &str,
        member: &str,
        raw: Option<Vec<R>>,
        read: impl Fn(&mut Self, String, R) -> Option<T>,
    ) -> Option<Vec<T>> {
        let numbered = raw?.into_iter().enumerate();
        Some(numbered.filter_map(|(index, raw)| read(self, format!("{path}.{member}[{index}]"), raw)).collect())
    }

    fn key(&mut self, path: String, raw: RawKey) -> Option<Key> {
        if matches!(&raw.connectors, Some(Some(connectors)) if connectors.is_empty()) {
            self.problems.add(format_args!("{path}.connectors"), "must name a connector, or be null for all");
        }
        let limits = raw.limits.map(|limits| self.limits(&path, limits));
        let name = self.problems.required(format_args!("{path}.name"), raw.name)?;
        Some(Key { path, id: raw.id, name, connectors: raw.connectors, expires_at: raw.expires_at, limits })
    }

    fn client(&mut self, path: String, raw: RawClient) -> Option<Client> {
        let name = self.problems.required(format_args!("{path}.name"), raw.name)?;
        Some(Client { path, client_id: raw.client_id, name, scopes: raw.scopes })
    }

    fn provider(&mut self, path: String, raw: RawProvider) -> Option<Provider> {
        let issuer = self.problems.required(format_args!("{path}.issuer"), raw.issuer);
        let jwks_uri = self.problems.required(format_args!("{path}.jwks_uri"), raw.jwks_uri);
        let audience = self.problems.required(format_args!("{path}.audience"), raw.audience).map(OneOrMany::into_vec);
        let RawProvider { default_scopes, client_scopes, .. } = raw;
        Some(Provider { path, issuer: issuer?, jwks_uri: jwks_uri?, audience: audience?, default_scopes, client_scopes })
    }

    fn member(&mut self, path: String, raw: RawMember) -> Option<Member> {
        let email = self.problems.required(format_args!("{path}.email"), raw.email);
        let role = self.problems.required(format_args!("{path}.role"), raw.role);
        Some(Member { path, email: email?.trim().to_ascii_lowercase(), role: role? })
    }

    /// Limits that limit nothing are none.
    fn limits(&mut self, path: &str, limits: Option<Limits>) -> Option<Limits> {
        let limits = limits.filter(|limits| *limits != Limits::default())?;
        if let Some(rate) = &limits.rate {
            self.problems.required(format_args!("{path}.limits.rate.requests"), rate.requests);
            self.problems.required(format_args!("{path}.limits.rate.per"), rate.per);
        }
        let counts = [("rate.requests", limits.rate.as_ref().and_then(|rate| rate.requests))].into_iter();
        let counts = counts.chain([("rate.burst", limits.rate.as_ref().and_then(|rate| rate.burst))]);
        for (member, count) in counts.chain([("monthly_quota", limits.monthly_quota)]) {
            if count.is_some_and(|count| count == 0 || u32::try_from(count).is_err()) {
                self.problems.add(format_args!("{path}.limits.{member}"), "must be from 1 to 4294967295");
            }
        }
        Some(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_not_an_absent_member() {
        let text = "
orgs:
  acme:
    limits: {}
    api_keys:
      - {name: a, connectors: null, expires_at: 2027-01-01T02:00:00+02:00}
      - {name: b, limits: {monthly_quota: 5}}
  empty:
";
        let orgs = read(text.as_bytes()).unwrap();
        let keys = orgs[0].api_keys.as_ref().unwrap();
        assert_eq!((&orgs[0].limits, &orgs[0].members), (&Some(None), &None));
        assert_eq!((&keys[0].connectors, &keys[1].connectors), (&Some(None), &None));
        assert_eq!(keys[0].expires_at, Some(Some(Moment::parse("2027-01-01T00:00:00Z").unwrap())));
        assert_eq!(keys[1].limits.as_ref().unwrap().as_ref().unwrap().monthly_quota, Some(5));
        assert_eq!((orgs[1].name.as_str(), &orgs[1].api_keys), ("empty", &None));
        let json = br#" {"orgs": {"acme": {"api_keys": [{"name": "a"}]}}}"#;
        assert_eq!(read(json).unwrap()[0].api_keys.as_ref().unwrap()[0].path, "orgs.acme.api_keys[0]");
    }

    #[test]
    fn mistakes_are_reported_with_their_path() {
        for (text, line) in [
            ("orgs: {acme: {api_keys: [{name: a, conectors: [b]}]}}", "orgs.acme.api_keys[0].conectors: unknown field"),
            ("orgs: {acme: {api_keys: [{connectors: [b]}]}}", "orgs.acme.api_keys[0].name: is required"),
            ("orgs: {acme: {api_keys: [{name: a, connectors: []}]}}", "orgs.acme.api_keys[0].connectors: must name"),
            (
                "orgs: {acme: {api_keys: [{name: a, expires_at: soon}]}}",
                "orgs.acme.api_keys[0].expires_at: has a wrong type or value, expected a timestamp",
            ),
            ("orgs: {acme: {limits: {rate: {requests: 5}}}}", "orgs.acme.limits.rate.per: is required"),
            ("orgs: {acme: {limits: {monthly_quota: 0}}}", "orgs.acme.limits.monthly_quota: must be from 1"),
            ("orgs: {acme: {limits: {rat: 1}}}", "orgs.acme.limits.rat: unknown field"),
            ("orgs: {acme: {members: [{email: a@b}]}}", "orgs.acme.members[0].role: is required"),
            ("orgs: {acme: {members: x}}", "orgs.acme.members: has a wrong type"),
            ("org: {}", "org: unknown field"),
            ("{}", "orgs: is required"),
            ("orgs: {a b: {api_keys: [{name: [x at line 5]}]}}", "orgs.a b.api_keys[0].name: has a wrong type"),
            ("{\n\"orgs\": {\"a\": {}, \"a\": {}}}", "orgs"),
            ("a: {}\na: {}", "neither YAML nor JSON: a name is repeated at line 2"),
            ("- a", "[0]: has a wrong type or value, expected an object"),
        ] {
            let failure = read(text.as_bytes()).unwrap_err();
            assert!(failure.to_string().starts_with(line), "{text}: {failure}");
            assert_eq!(failure.reason, Reason::FileInvalid);
            assert!(!failure.to_string().contains("line 1"), "{failure}: this is no line of the file");
        }
    }
}
