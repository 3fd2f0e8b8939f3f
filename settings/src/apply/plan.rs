//! The steps from the present records to those of the file. Computing them is pure: it reads no database and no clock.

use std::collections::{BTreeMap, BTreeSet};

use apexmcp_core::limits::document::Limits;
use serde::Serialize;

use super::file::{Client, Key, Member, Org, Provider};
use super::matching::{self, Entry, Words};
use crate::clock::Moment;
use crate::failure::{Failure, Reason};
use crate::records::{api_key, client, member, provider};

/// The present records of an org that are in force. A kind that the file does not manage may be empty.
#[derive(Debug, Default)]
pub struct Present {
    pub limits: Option<Limits>,
    pub api_keys: Vec<api_key::ApiKey>,
    pub oauth_clients: Vec<client::Client>,
    pub identity_providers: Vec<provider::Provider>,
    pub members: Vec<member::Member>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Org,
    Limits,
    ApiKey,
    OauthClient,
    IdentityProvider,
    Member,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Create,
    Change,
    /// Keys and clients are revoked. The database forgets providers and members.
    Remove,
}

/// What a step leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'f> {
    Org,
    /// `None`: unlimited.
    Limits(Option<&'f Limits>),
    Key(&'f Key),
    Client(&'f Client),
    Provider(&'f Provider),
    Member(&'f Member),
    /// The record is gone.
    Nothing,
}

/// The value of a member of a record. `None`: its default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Value {
    Text(Option<String>),
    List(Option<Vec<String>>),
    Limits(Option<Limits>),
}

impl Value {
    fn text(text: &str) -> Self {
        Self::Text(Some(text.to_owned()))
    }

    /// The value of a record that does not exist yet.
    fn absent(&self) -> Self {
        match self {
            Self::Text(_) => Self::Text(None),
            Self::List(_) => Self::List(None),
            Self::Limits(_) => Self::Limits(None),
        }
    }

    pub fn is_default(&self) -> bool {
        *self == self.absent()
    }
}

/// A changed member of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Field {
    pub field: &'static str,
    pub before: Value,
    pub after: Value,
}

/// One step of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step<'f> {
    pub org: &'f str,
    /// The JSON path in the file of what causes the step.
    pub path: &'f str,
    pub action: Action,
    pub kind: Kind,
    pub target: Target<'f>,
    /// The id of the present record: of a key or a client. For a provider its issuer, and for a member the address.
    pub id: Option<String>,
    pub name: String,
    pub fields: Vec<Field>,
}

impl Step<'_> {
    /// Whether the step changes this member.
    pub fn changes(&self, field: &str) -> bool {
        self.fields.iter().any(|changed| changed.field == field)
    }
}

/// The steps for one org. `present` is `None` if the org does not exist. With `prune`, records of managed kinds that the file
/// omits are removed.
///
/// # Errors
/// If an entry of the file means no record or several, or two entries mean the same one.
pub fn of_org<'f>(org: &'f Org, present: Option<&Present>, prune: bool, now: Moment) -> Result<Vec<Step<'f>>, Failure> {
    let nothing = Present::default();
    let mut plan = Plan { org, prune, now, steps: Vec::new() };
    if present.is_none() {
        plan.add(Action::Create, Kind::Org, Target::Org, &org.path, (None, org.name.clone()), Vec::new());
    }
    let present = present.unwrap_or(&nothing);
    if let Some(limits) = &org.limits {
        let action = if present.limits.is_none() { Action::Create } else { Action::Change };
        let fields = changed([("limits", Value::Limits(present.limits.clone()), Value::Limits(limits.clone()))]);
        let name = (None, org.name.clone());
        plan.add_if_changed(action, Kind::Limits, Target::Limits(limits.as_ref()), &org.path, name, fields);
    }
    if let Some(keys) = &org.api_keys {
        plan.keys(keys, &present.api_keys)?;
    }
    if let Some(clients) = &org.oauth_clients {
        plan.clients(clients, &present.oauth_clients)?;
    }
    if let Some(providers) = &org.identity_providers {
        plan.providers(providers, &present.identity_providers)?;
    }
    if let Some(members) = &org.members {
        plan.members(members, &present.members)?;
    }
    Ok(plan.steps)
}

/// The members whose values differ.
fn changed<const N: usize>(fields: [(&'static str, Value, Value); N]) -> Vec<Field> {
    let fields = fields.into_iter().filter(|(_, before, after)| before != after);
    fields.map(|(field, before, after)| Field { field, before, after }).collect()
}

/// The members of a new record that have no default value.
fn given<const N: usize>(fields: [(&'static str, Value); N]) -> Vec<Field> {
    let fields = fields.into_iter().filter(|(_, after)| !after.is_default());
    fields.map(|(field, after)| Field { field, before: after.absent(), after }).collect()
}

fn time(moment: Option<Moment>) -> Option<String> {
    moment.map(|moment| moment.to_string())
}

/// Checks that no two entries have the same key, and returns the entries by it.
fn distinct<'e, T>(
    entries: &'e [T],
    key: impl Fn(&'e T) -> &'e str,
    path: impl Fn(&'e T) -> &'e str,
    word: &str,
) -> Result<BTreeMap<&'e str, &'e T>, Failure> {
    let mut known = BTreeMap::new();
    for entry in entries {
        if known.insert(key(entry), entry).is_some() {
            let line = format!("{}.{word}: another entry has the same {word}: remove one of the two", path(entry));
            return Err(Failure::new(Reason::FileInvalid, line));
        }
    }
    Ok(known)
}

/// The plan of one org.
struct Plan<'f> {
    org: &'f Org,
    prune: bool,
    now: Moment,
    steps: Vec<Step<'f>>,
}

impl<'f> Plan<'f> {
    fn add(
        &mut self,
        action: Action,
        kind: Kind,
        target: Target<'f>,
        path: &'f str,
        (id, name): (Option<&str>, String),
        fields: Vec<Field>,
    ) {
        let id = id.map(str::to_owned);
        self.steps.push(Step { org: &self.org.name, path, action, kind, target, id, name, fields });
    }

    fn add_if_changed(
        &mut self,
        action: Action,
        kind: Kind,
        target: Target<'f>,
        path: &'f str,
        name: (Option<&str>, String),
        fields: Vec<Field>,
    ) {
        if !fields.is_empty() {
            self.add(action, kind, target, path, name, fields);
        }
    }

    /// Removes the records that no entry means. Removals come first: an org may have only some providers at a time.
    fn remove<'r>(&mut self, kind: Kind, records: impl Iterator<Item = (&'r str, &'r str, bool)>) {
        for (id, name, is_declared) in records {
            if self.prune && !is_declared {
                self.add(Action::Remove, kind, Target::Nothing, &self.org.path, (Some(id), name.to_owned()), Vec::new());
            }
        }
    }

    fn keys(&mut self, keys: &'f [Key], present: &[api_key::ApiKey]) -> Result<(), Failure> {
        let words = Words { kind: "API key", id: "id", command: "key" };
        let entries = keys.iter().map(|key| Entry { path: &key.path, id: key.id.as_deref(), name: &key.name });
        let is_expired = |key: &api_key::ApiKey| {
            key.expires_at.as_deref().and_then(|end| Moment::parse(end).ok()).is_some_and(|end| end <= self.now)
        };
        let records: Vec<_> =
            present.iter().map(|key| matching::Record { id: &key.id, name: &key.name, is_expired: is_expired(key) }).collect();
        let found = matching::find(&self.org.name, &words, &entries.collect::<Vec<_>>(), &records)?;
        self.remove(Kind::ApiKey, omitted(&records, &found));
        for (key, index) in keys.iter().zip(&found) {
            let Key { path, name, connectors, expires_at, limits, .. } = key;
            let Some(record) = index.and_then(|index| present.get(index)) else {
                let fields = given([
                    ("connectors", Value::List(connectors.clone().flatten())),
                    ("expires_at", Value::Text(time(expires_at.flatten()))),
                    ("limits", Value::Limits(limits.clone().flatten())),
                ]);
                self.add(Action::Create, Kind::ApiKey, Target::Key(key), path, (None, name.clone()), fields);
                continue;
            };
            let expires_at = expires_at.map_or_else(|| record.expires_at.clone(), time);
            let fields = changed([
                ("name", Value::text(&record.name), Value::text(name)),
                ("connectors", Value::List(record.connectors.clone()), Value::List(or_present(connectors, &record.connectors))),
                ("expires_at", Value::Text(record.expires_at.clone()), Value::Text(expires_at)),
                ("limits", Value::Limits(record.limits.clone()), Value::Limits(or_present(limits, &record.limits))),
            ]);
            let id = (Some(record.id.as_str()), record.name.clone());
            self.add_if_changed(Action::Change, Kind::ApiKey, Target::Key(key), path, id, fields);
        }
        Ok(())
    }

    fn clients(&mut self, clients: &'f [Client], present: &[client::Client]) -> Result<(), Failure> {
        let words = Words { kind: "OAuth client", id: "client_id", command: "client" };
        let entries =
            clients.iter().map(|client| Entry { path: &client.path, id: client.client_id.as_deref(), name: &client.name });
        let records: Vec<_> = present
            .iter()
            .map(|client| matching::Record { id: &client.client_id, name: &client.name, is_expired: false })
            .collect();
        let found = matching::find(&self.org.name, &words, &entries.collect::<Vec<_>>(), &records)?;
        self.remove(Kind::OauthClient, omitted(&records, &found));
        for (client, index) in clients.iter().zip(&found) {
            let Client { path, name, scopes, .. } = client;
            let Some(record) = index.and_then(|index| present.get(index)) else {
                let fields = given([("scopes", Value::List(Some(client.first_scopes())))]);
                self.add(Action::Create, Kind::OauthClient, Target::Client(client), path, (None, name.clone()), fields);
                continue;
            };
            let scopes = scopes.as_ref().unwrap_or(&record.scopes);
            let fields = changed([
                ("name", Value::text(&record.name), Value::text(name)),
                ("scopes", Value::List(Some(record.scopes.clone())), Value::List(Some(scopes.clone()))),
            ]);
            let id = (Some(record.client_id.as_str()), record.name.clone());
            self.add_if_changed(Action::Change, Kind::OauthClient, Target::Client(client), path, id, fields);
        }
        Ok(())
    }

    fn providers(&mut self, providers: &'f [Provider], present: &[provider::Provider]) -> Result<(), Failure> {
        let declared = distinct(providers, |provider| &provider.issuer, |provider| &provider.path, "issuer")?;
        let known = present.iter().map(|provider| (provider.issuer.as_str(), provider));
        let names = known.clone().map(|(issuer, _)| (issuer, issuer, declared.contains_key(issuer)));
        self.remove(Kind::IdentityProvider, names);
        let known: BTreeMap<_, _> = known.collect();
        for provider in providers {
            let Provider { path, issuer, jwks_uri, audience, default_scopes, client_scopes } = provider;
            let name = (Some(issuer.as_str()), issuer.clone());
            let target = Target::Provider(provider);
            let Some(record) = known.get(issuer.as_str()) else {
                let fields = given([
                    ("jwks_uri", Value::text(jwks_uri)),
                    ("audience", Value::List(Some(audience.clone()))),
                    ("default_scopes", Value::List(default_scopes.clone().flatten())),
                    ("client_scopes", Value::List(client_scopes.clone().flatten())),
                ]);
                self.add(Action::Create, Kind::IdentityProvider, target, path, name, fields);
                continue;
            };
            let (defaults, of_clients) = (&record.default_scopes, &record.client_scopes);
            if *default_scopes == Some(None) && defaults.as_ref().is_some_and(|scopes| *scopes != ["mcp:call"]) {
                let line = "null would let tokens without an mcp: scope call every connector, which this provider does not allow now: \
                            write [mcp:call] if you want that, or leave default_scopes out to keep them";
                return Err(Failure::new(Reason::Conflict, format!("{path}.default_scopes: {line}")));
            }
            let fields = changed([
                ("jwks_uri", Value::text(&record.jwks_uri), Value::text(jwks_uri)),
                ("audience", Value::List(Some(record.audience.clone())), Value::List(Some(audience.clone()))),
                ("default_scopes", Value::List(defaults.clone()), Value::List(or_present(default_scopes, defaults))),
                ("client_scopes", Value::List(of_clients.clone()), Value::List(or_present(client_scopes, of_clients))),
            ]);
            self.add_if_changed(Action::Change, Kind::IdentityProvider, target, path, name, fields);
        }
        Ok(())
    }

    fn members(&mut self, members: &'f [Member], present: &[member::Member]) -> Result<(), Failure> {
        let declared = distinct(members, |member| &member.email, |member| &member.path, "email")?;
        let known = present.iter().map(|member| (member.email.as_str(), member));
        let names = known.clone().map(|(email, _)| (email, email, declared.contains_key(email)));
        self.remove(Kind::Member, names);
        let known: BTreeMap<_, _> = known.collect();
        for member in members {
            let Member { path, email, role } = member;
            let name = (Some(email.as_str()), email.clone());
            let Some(record) = known.get(email.as_str()) else {
                let fields = given([("role", Value::text(role))]);
                self.add(Action::Create, Kind::Member, Target::Member(member), path, name, fields);
                continue;
            };
            let fields = changed([("role", Value::text(&record.role), Value::text(role))]);
            self.add_if_changed(Action::Change, Kind::Member, Target::Member(member), path, name, fields);
        }
        Ok(())
    }
}

/// The value of the file, or the present one if the file omits it.
fn or_present<T: Clone>(declared: &Option<Option<T>>, present: &Option<T>) -> Option<T> {
    declared.as_ref().unwrap_or(present).clone()
}

/// The id and the name of each record, and whether an entry means it.
fn omitted<'r>(
    records: &'r [matching::Record<'r>],
    found: &[Option<usize>],
) -> impl Iterator<Item = (&'r str, &'r str, bool)> + use<'r> {
    let declared: BTreeSet<usize> = found.iter().copied().flatten().collect();
    records.iter().enumerate().map(move |(index, record)| (record.id, record.name, declared.contains(&index)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::file;

    fn key(id: &str, name: &str, connectors: Option<&[&str]>) -> api_key::ApiKey {
        api_key::ApiKey {
            id: id.to_owned(),
            org: "acme".to_owned(),
            name: name.to_owned(),
            prefix: String::new(),
            connectors: connectors.map(|all| all.iter().map(ToString::to_string).collect()),
            created_at: "2026-01-01T00:00:00Z".to_owned(),
            expires_at: Some("2026-06-01T00:00:00Z".to_owned()),
            limits: None,
            revoked: false,
            revoked_at: None,
            last_used: None,
        }
    }

    /// The steps as texts: the action, the kind, the name and the changed members.
    fn steps(text: &str, present: Option<&Present>, prune: bool) -> Result<Vec<String>, Failure> {
        let orgs = file::read(text.as_bytes())?;
        let steps = of_org(&orgs[0], present, prune, Moment::parse("2026-02-01T00:00:00Z").unwrap())?;
        let text = |step: &Step<'_>| {
            let fields: Vec<&str> = step.fields.iter().map(|field| field.field).collect();
            format!("{:?} {:?} {} [{}]", step.action, step.kind, step.name, fields.join(" "))
        };
        Ok(steps.iter().map(text).collect())
    }

    #[test]
    fn an_absent_org_is_created_with_its_records() {
        let text =
            "orgs: {acme: {limits: {monthly_quota: 1}, api_keys: [{name: a, connectors: [b]}], oauth_clients: [{name: c}]}}";
        let expected = [
            "Create Org acme []",
            "Create Limits acme [limits]",
            "Create ApiKey a [connectors]",
            "Create OauthClient c [scopes]",
        ];
        assert_eq!(steps(text, None, true).unwrap(), expected);
        assert_eq!(steps("orgs: {acme: }", None, true).unwrap(), ["Create Org acme []"]);
    }

    #[test]
    fn only_members_that_the_file_names_are_changed() {
        let present = Present { api_keys: vec![key("1", "a", Some(&["x"])), key("2", "b", None)], ..Present::default() };
        for (entries, prune, expected) in [
            ("{name: a}, {name: b}", true, &[][..]),
            ("{name: a}", false, &[]),
            ("{name: a}", true, &["Remove ApiKey b []"]),
            ("", true, &["Remove ApiKey a []", "Remove ApiKey b []"]),
            ("{name: a, connectors: [x], expires_at: 2026-06-01T00:00:00Z}", false, &[]),
            ("{name: a, connectors: [x, z]}", false, &["Change ApiKey a [connectors]"]),
            ("{name: a, connectors: null, expires_at: null, limits: null}", false, &["Change ApiKey a [connectors expires_at]"]),
            ("{name: c, id: '2', limits: {monthly_quota: 1}}", false, &["Change ApiKey b [name limits]"]),
        ] {
            let text = format!("orgs: {{acme: {{api_keys: [{entries}]}}}}");
            assert_eq!(steps(&text, Some(&present), prune).unwrap(), expected, "{text}");
        }
        assert_eq!(steps("orgs: {acme: {members: []}}", Some(&present), true).unwrap(), [""; 0], "keys are not managed");
    }

    #[test]
    fn limits_are_created_changed_and_cleared() {
        let limited = Present { limits: Some(Limits { monthly_quota: Some(5), rate: None }), ..Present::default() };
        for (limits, present, expected) in [
            ("{monthly_quota: 5}", &limited, &[][..]),
            ("{monthly_quota: 6}", &limited, &["Change Limits acme [limits]"]),
            ("{}", &limited, &["Change Limits acme [limits]"]),
            ("null", &limited, &["Change Limits acme [limits]"]),
            ("{}", &Present::default(), &[]),
        ] {
            let text = format!("orgs: {{acme: {{limits: {limits}}}}}");
            assert_eq!(steps(&text, Some(present), true).unwrap(), expected, "{text}");
        }
    }
}
