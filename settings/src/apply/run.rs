//! Computes the plan from the records of a database, and carries out its steps in one transaction.

use super::file::{Client, Key, Org, Provider};
use super::plan::{self, Action, Kind, Present, Step, Target};
use crate::access::Actor;
use crate::database::Change;
use crate::failure::{Failure, Reason};
use crate::records::limits::Holder;
use crate::records::{api_key, client, limits, member, org, provider};
use crate::sql::{Range, Sql};

/// The plan for all orgs of the file.
///
/// # Errors
/// If an entry of the file means no record or several, two entries mean the same one, or the database fails.
pub fn plan<'f>(sql: &dyn Sql, actor: &Actor, orgs: &'f [Org], prune: bool) -> Result<Vec<Step<'f>>, Failure> {
    actor.check_operator()?;
    let mut steps = Vec::new();
    for org in orgs {
        steps.extend(plan::of_org(org, present(sql, actor, org)?.as_ref(), prune, actor.now)?);
    }
    Ok(steps)
}

/// The present records of the kinds that the file manages. `None`: the org does not exist.
fn present(sql: &dyn Sql, actor: &Actor, org: &Org) -> Result<Option<Present>, Failure> {
    let name = &org.name;
    match org::require(sql, actor, name) {
        Err(failure) if failure.reason == Reason::NotFound => return Ok(None),
        checked => checked?,
    }
    let mut present = Present::default();
    if org.limits.is_some() {
        present.limits = limits::show(sql, actor, Holder::Org(name))?;
    }
    if org.api_keys.is_some() {
        present.api_keys = api_key::list(sql, actor, name, &api_key::Filter::default(), &Range::all())?.items;
        present.api_keys.retain(|key| !key.revoked);
    }
    if org.oauth_clients.is_some() {
        present.oauth_clients = client::list(sql, actor, name, &Range::all())?.items;
        present.oauth_clients.retain(|client| !client.revoked);
    }
    if org.identity_providers.is_some() {
        present.identity_providers = provider::list(sql, actor, name)?;
    }
    if org.members.is_some() {
        present.members = member::list(sql, actor, name)?;
    }
    Ok(Some(present))
}

/// What a step created.
#[derive(Debug, Default)]
pub struct Made {
    /// The id of the new record.
    pub id: Option<String>,
    /// The secret and its name in the answer, such as `key`. It is shown once.
    pub secret: Option<(&'static str, String)>,
}

/// Carries out the steps of a plan, in their order. `is_private`: providers may have addresses outside of the public Internet.
///
/// # Errors
/// If a value is not allowed, or the database fails. The line has the JSON path of the entry.
pub fn steps(change: &Change<'_>, actor: &Actor, steps: &[Step<'_>], is_private: bool) -> Result<Vec<Made>, Failure> {
    steps.iter().map(|step| carry_out(change, actor, step, is_private).map_err(|failure| failure.within(step.path))).collect()
}

fn carry_out(change: &Change<'_>, actor: &Actor, step: &Step<'_>, is_private: bool) -> Result<Made, Failure> {
    // A record that exists has an id, and a new one gets it here.
    let id = step.id.as_deref().unwrap_or_default();
    match step.target {
        Target::Org => org::create(change, actor, step.org).map(drop)?,
        Target::Limits(limits) => limits::set(change, actor, Holder::Org(step.org), limits)?,
        Target::Key(key) if step.action == Action::Create => return create_key(change, actor, step.org, key),
        Target::Key(key) => {
            // Only what differs: a key that has expired may be renamed, although its expiry is not in the future.
            let changes = api_key::Changes {
                name: step.changes("name").then(|| key.name.clone()),
                connectors: key.connectors.clone().filter(|_| step.changes("connectors")),
                expires_at: key.expires_at.filter(|_| step.changes("expires_at")),
                limits: key.limits.clone().filter(|_| step.changes("limits")),
            };
            api_key::update(change, actor, id, changes).map(drop)?;
        }
        Target::Client(client) if step.action == Action::Create => return create_client(change, actor, step.org, client),
        Target::Client(client) => {
            client::update(change, actor, id, Some(&client.name), client.scopes.as_deref()).map(drop)?;
        }
        Target::Provider(provider) => save_provider(change, actor, step.org, provider, is_private)?,
        Target::Member(member) => {
            let make = if step.action == Action::Create { member::add } else { member::change_role };
            make(change, actor, step.org, &member.email, &member.role).map(drop)?;
        }
        Target::Nothing => remove(change, actor, step, id)?,
    }
    Ok(Made::default())
}

fn create_key(change: &Change<'_>, actor: &Actor, org: &str, key: &Key) -> Result<Made, Failure> {
    let connectors = key.connectors.as_ref().and_then(Option::as_deref).unwrap_or_default();
    let new = api_key::NewKey { org, name: &key.name, connectors, expires_at: key.expires_at.flatten() };
    let (record, secret) = api_key::create(change, actor, &new)?;
    if let Some(Some(limits)) = &key.limits {
        limits::set(change, actor, Holder::ApiKey(&record.id), Some(limits))?;
    }
    Ok(Made { id: Some(record.id), secret: Some(("key", secret)) })
}

fn create_client(change: &Change<'_>, actor: &Actor, org: &str, client: &Client) -> Result<Made, Failure> {
    let new = client::NewClient { org, name: &client.name, scopes: &client.first_scopes(), jwks: None };
    let (record, secret) = client::create(change, actor, &new)?;
    Ok(Made { id: Some(record.client_id), secret: secret.map(|secret| ("client_secret", secret)) })
}

fn save_provider(change: &Change<'_>, actor: &Actor, org: &str, declared: &Provider, is_private: bool) -> Result<(), Failure> {
    let place = [org, &declared.issuer, &declared.jwks_uri];
    let allow_private_address = provider::permission(change, actor, place, is_private.then_some(true))?;
    let known = provider::list(change, actor, org)?.into_iter().find(|provider| provider.issuer == declared.issuer);
    let (default_scopes, client_scopes) = known.map(|known| (known.default_scopes, known.client_scopes)).unwrap_or_default();
    let record = provider::Provider {
        id: provider::id_of(&declared.issuer),
        org: org.to_owned(),
        issuer: declared.issuer.clone(),
        jwks_uri: declared.jwks_uri.clone(),
        audience: declared.audience.clone(),
        default_scopes: declared.default_scopes.clone().unwrap_or(default_scopes),
        client_scopes: declared.client_scopes.clone().unwrap_or(client_scopes),
        allow_private_address,
        configured_at: actor.now.to_string(),
    };
    provider::configure(change, actor, &record)
}

fn remove(change: &Change<'_>, actor: &Actor, step: &Step<'_>, id: &str) -> Result<(), Failure> {
    match step.kind {
        Kind::ApiKey => api_key::revoke(change, actor, id).map(drop),
        Kind::OauthClient => client::revoke(change, actor, id).map(drop),
        Kind::IdentityProvider => provider::remove(change, actor, step.org, id).map(drop),
        Kind::Member => member::remove(change, actor, step.org, id).map(drop),
        // The plan never removes them.
        Kind::Org | Kind::Limits => Ok(()),
    }
}
