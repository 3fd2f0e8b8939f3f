//! Gateways accept the policy after any series of changes.

use apexmcp_core::jwks::Clusters;
use apexmcp_core::limits::document::Limits;
use apexmcp_core::policy::publication::Publication;
use apexmcp_settings::access::Actor;
use apexmcp_settings::clock::Moment;
use apexmcp_settings::database::{Database, Location};
use apexmcp_settings::document;
use apexmcp_settings::records::api_key::{self, NewKey};
use apexmcp_settings::records::client::{self, NewClient};
use apexmcp_settings::records::limits::{self, Holder};
use apexmcp_settings::records::provider::{self, Provider};
use apexmcp_settings::records::{org, revocation, signing_key};
use apexmcp_settings::sql::Range;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;
use std::sync::LazyLock;

static PEM: LazyLock<String> = LazyLock::new(|| signing_key::generate().unwrap());

#[derive(Clone, Debug)]
enum Step {
    Org(String),
    Key { org: String, name: String, connectors: Vec<String>, expires_at: Option<String> },
    Client { org: String, name: String, scopes: Vec<String> },
    Provider { org: String, issuer: String, jwks_uri: String, audience: Vec<String>, scopes: [Option<Vec<String>>; 2] },
    Limits { org: String, requests: u32, per: String, burst: Option<u32>, monthly_quota: Option<u32> },
    RevokeToken { org: String, jti: String },
    SigningKey(String),
    RevokeFirstKey(String),
    DeleteOrg(String),
}

/// Mostly a valid value, sometimes any text.
fn text(good: &'static str) -> impl Strategy<Value = String> {
    prop_oneof![8 => good, 1 => any::<String>()]
}

fn org() -> impl Strategy<Value = String> {
    prop_oneof![8 => "[ab]", 1 => any::<String>()]
}

fn step() -> impl Strategy<Value = Step> {
    let url = "https?://[a-z]{1,5}(:[0-9]{1,6})?/[a-z/]{0,5}";
    let issuer = "https?://[a-z]{1,5}/[a-z]{0,5}|[a-z@.]{1,9}|[a-z]{1,3}:[!-~]{1,5}";
    let scopes = || vec(text("mcp:call(:[a-z]{1,3})?"), 0..3);
    prop_oneof![
        org().prop_map(Step::Org),
        (org(), text("[a-z ]{1,9}"), vec(text("[a-z]{1,4}"), 0..3), prop::option::of("20[0-9]{2}-01-01T00:00:00Z"))
            .prop_map(|(org, name, connectors, expires_at)| Step::Key { org, name, connectors, expires_at }),
        (org(), text("[a-z ]{1,9}"), scopes()).prop_map(|(org, name, scopes)| Step::Client { org, name, scopes }),
        (
            org(),
            text(issuer),
            text(url),
            vec(text("[a-z]{1,4}"), 0..3),
            prop::option::of(scopes()),
            prop::option::of(vec(text("[!-~]{1,3}"), 0..3))
        )
            .prop_map(|(org, issuer, jwks_uri, audience, default_scopes, client_scopes)| Step::Provider {
                org,
                issuer,
                jwks_uri,
                audience,
                scopes: [default_scopes, client_scopes],
            }),
        (org(), any::<u32>(), text("second|minute|hour|day"), any::<Option<u32>>(), any::<Option<u32>>())
            .prop_map(|(org, requests, per, burst, monthly_quota)| Step::Limits { org, requests, per, burst, monthly_quota }),
        (org(), any::<String>()).prop_map(|(org, jti)| Step::RevokeToken { org, jti }),
        text("[a-z]{1,2}").prop_map(Step::SigningKey),
        org().prop_map(Step::RevokeFirstKey),
        org().prop_map(Step::DeleteOrg),
    ]
}

/// Makes the change of a step. Returns whether it was accepted.
fn take(database: &mut Database, actor: &Actor, step: &Step) -> bool {
    let done = database.change(|change| {
        match step {
            Step::Org(name) => drop(org::create(change, actor, name)?),
            Step::Key { org, name, connectors, expires_at } => {
                let expires_at = expires_at.as_deref().map(|text| Moment::parse(text).unwrap());
                api_key::create(change, actor, &NewKey { org, name, connectors, expires_at })?;
            }
            Step::Client { org, name, scopes } => {
                client::create(change, actor, &NewClient { org, name, scopes, jwks: None })?;
            }
            Step::Provider { org, issuer, jwks_uri, audience, scopes } => {
                let (org, issuer, jwks_uri) = (org.clone(), issuer.clone(), jwks_uri.clone());
                let [default_scopes, client_scopes] = scopes.clone();
                let (audience, configured_at) = (audience.clone(), actor.now.to_string());
                let id = provider::id_of(&issuer);
                let provider = Provider {
                    id,
                    org,
                    issuer,
                    jwks_uri,
                    audience,
                    default_scopes,
                    client_scopes,
                    allow_private_address: false,
                    configured_at,
                };
                provider::configure(change, actor, &provider)?;
            }
            Step::Limits { org, requests, per, burst, monthly_quota } => {
                let rate = json!({"requests": requests, "per": per, "burst": burst});
                let Ok(set) = serde_json::from_value::<Limits>(json!({"rate": rate, "monthly_quota": monthly_quota})) else {
                    return Ok(());
                };
                limits::set(change, actor, Holder::Org(org), Some(&set))?;
            }
            Step::RevokeToken { org, jti } => revocation::of_token(change, actor, org, jti)?,
            Step::SigningKey(kid) => drop(signing_key::create(change, actor, Some(kid), &PEM)?),
            Step::RevokeFirstKey(org) => {
                if let Some(key) = api_key::list(change, actor, org, &api_key::Filter::default(), &Range::all())?.items.first() {
                    api_key::revoke(change, actor, &key.id)?;
                }
            }
            Step::DeleteOrg(name) => drop(org::delete(change, actor, name)?),
        }
        Ok(())
    });
    done.is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn gateways_accept_the_policy_after_any_series_of_changes(steps in vec(step(), 1..40)) {
        let folder = tempfile::tempdir().unwrap();
        let actor = Actor::operator("test", Moment::now());
        let mut database = Database::create(&Location::from(&*folder.path().join("test.db")), |_| Ok(())).unwrap();
        let done = steps.iter().filter(|step| take(&mut database, &actor, step)).count();
        let document = database.read(document::render).unwrap();
        let clusters = Clusters { https: Some("a".to_owned()), http: Some("b".to_owned()) };
        let read = Publication::of(document.as_bytes(), &clusters, "__");
        prop_assert!(read.is_ok(), "{done} steps done: {:?}\n{document}", read.err());
        prop_assert!(document == database.read(document::render).unwrap(), "the same state has the same text");
    }
}
