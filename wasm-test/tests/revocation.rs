//! Tokens of identity providers are revoked before they expire, even if a worker has cached them.

use serde_json::{Value, json};
use wasm_test::apexmcp::Apexmcp;
use wasm_test::gateway::{Gateway, Setup, plugin};
use wasm_test::http::Request;
use wasm_test::issuer::Issuer;
use wasm_test::settings::{Settings, TOKEN};
use wasm_test::token::{Key, now};
use wasm_test::upstream;

const WORKERS: usize = 2;

fn call(path: &str, token: &str) -> Request {
    Request::tools_list(path).bearer(token)
}

fn remote_plugin() -> Value {
    let mut config = plugin(&json!({}));
    config["policy"] = json!({"remote": {"cluster": "settings", "token_env": "APEXMCP_SETTINGS_TOKEN"}});
    config
}

/// The name of a case, the value of `revoked_tokens`, and tokens. For each token: whether acme still accepts it.
type Revocation = (&'static str, Value, Vec<(String, bool)>);

/// An issuer and its key.
struct World {
    key: Key,
    issuer: Issuer,
}

impl World {
    async fn new() -> Self {
        let key = Key::first("a");
        Self { issuer: Issuer::start(&[&key]).await, key }
    }

    fn token(&self, changes: Value) -> String {
        self.key.token(&self.issuer.claims_with(&changes))
    }

    /// Two orgs that trust this issuer. The first one has this `revoked_tokens`.
    fn orgs(&self, revoked: Value) -> Value {
        json!({
            "acme": {"identity_providers": [self.issuer.record()], "revoked_tokens": revoked},
            "other": {"identity_providers": [self.issuer.record()]},
        })
    }

    fn principal(&self, sub: &str) -> String {
        format!("acme/idp/{}#{sub}", self.issuer.url())
    }

    /// The cases of this test.
    fn revocations(&self) -> Vec<Revocation> {
        let with = |changes| self.token(changes);
        let at = |moment: i64| jiff::Timestamp::from_second(moment).expect("a moment").to_string();
        let stopped = now() - 100;
        vec![
            (
                "one jti",
                json!({"jti": ["t1", "t9", ""]}),
                vec![
                    (with(json!({"jti": "t1"})), false),
                    (with(json!({"jti": "t1", "sub": "another", "scope": "mcp:call"})), false),
                    (with(json!({"jti": "t2"})), true),
                    (with(json!({"jti": "T1"})), true),
                    (with(json!({"jti": null})), true),
                    (with(json!({"jti": ""})), true),
                ],
            ),
            (
                "a principal",
                json!({"issued_before": {self.principal("agent-7"): at(stopped)}}),
                vec![
                    (with(json!({"sub": "agent-7", "iat": stopped - 1})), false),
                    // A token without `iat` may have been issued at any time.
                    (with(json!({"sub": "agent-7", "iat": null})), false),
                    (with(json!({"sub": "agent-7", "iat": stopped})), true),
                    (with(json!({"sub": "agent-77", "iat": stopped - 1})), true),
                    (with(json!({"sub": "agent", "iat": null})), true),
                ],
            ),
            (
                "a principal whose sub is encoded",
                json!({"issued_before": {self.principal("a%20b%25"): at(stopped)}}),
                vec![
                    (with(json!({"sub": "a b%", "iat": stopped - 1})), false),
                    (with(json!({"sub": "a%20b%25", "iat": stopped - 1})), true),
                ],
            ),
        ]
    }

    /// Checks each case. `put` puts a policy with these orgs in force.
    async fn assert_holds(&self, gateway: &Gateway, revocations: &[Revocation], mut put: impl AsyncFnMut(Value)) {
        for (what, revoked, tokens) in revocations {
            put(self.orgs(json!({}))).await;
            for (token, _) in tokens {
                // Enough requests for every worker to cache the token.
                gateway.until_everywhere(&call("/mcp/acme", token), 200).await;
            }
            put(self.orgs(revoked.clone())).await;
            for (index, (token, is_good)) in tokens.iter().enumerate() {
                gateway.until_everywhere(&call("/mcp/acme", token), if *is_good { 200 } else { 401 }).await;
                let reply = gateway.send(&call("/mcp/acme", token)).await;
                let reason = reply.json().get("reason").cloned().unwrap_or_default();
                assert_eq!(reason, if *is_good { json!(null) } else { json!("token_revoked") }, "{what} {index}");
                assert_eq!(gateway.send(&call("/mcp/other", token)).await.status, 200, "{what} {index}: at another org");
            }
        }
    }
}

#[tokio::test]
async fn an_inline_policy_revokes_tokens() {
    let (world, upstream) = (World::new().await, upstream::start().await);
    let gateway = Setup::new(plugin(&world.orgs(json!({})))).workers(WORKERS).start(&upstream).await;
    let revocations = world.revocations();
    world.assert_holds(&gateway, &revocations, async |orgs| assert!(gateway.reconfigure(&plugin(&orgs)).await)).await;

    // A forged token must not reveal which tokens are revoked.
    assert!(gateway.reconfigure(&plugin(&world.orgs(json!({"jti": ["t1"]})))).await);
    let forged = Key::second("a").token(&world.issuer.claims_with(&json!({"jti": "t1"})));
    gateway.until_everywhere(&call("/mcp/acme", &world.token(json!({"jti": "t1"}))), 401).await;
    assert_eq!(gateway.refuses("a forged one", &call("/mcp/acme", &forged)).await.reason, "signature_invalid");
}

#[tokio::test]
async fn a_remote_policy_revokes_tokens() {
    let (world, upstream, settings) = (World::new().await, upstream::start().await, Settings::start().await);
    let publish = async |orgs: Value| settings.publish(&json!({"version": "1", "orgs": orgs}));
    publish(world.orgs(json!({}))).await;
    let gateway = Setup::new(remote_plugin()).workers(WORKERS).settings(settings.port(), TOKEN).start(&upstream).await;
    let revocations = world.revocations();
    world.assert_holds(&gateway, &revocations, publish).await;
}

#[tokio::test]
async fn the_command_line_revokes_tokens() {
    let (world, upstream) = (World::new().await, upstream::start().await);
    let mut settings = Apexmcp::new();
    let (issuer, keys) = (world.issuer.url(), world.issuer.jwks_uri());
    settings.run(&format!(
        "sso configure --org acme --issuer {issuer} --jwks-uri {keys} --audience apexmcp --force --allow-private-address"
    ));
    let port = settings.serve().await;
    let gateway = Setup::new(remote_plugin()).workers(WORKERS).settings(port, TOKEN).start(&upstream).await;
    let token = |jti: &str, sub: &str| world.token(json!({"jti": jti, "sub": sub}));
    let (one, another, third) = (token("t1", "agent-7"), token("t2", "agent-7"), token("t3", "agent-8"));
    let expect = async |statuses: [u16; 3]| {
        for (token, status) in [&one, &another, &third].into_iter().zip(statuses) {
            gateway.until_everywhere(&call("/mcp/acme", token), status).await;
        }
    };
    expect([200, 200, 200]).await;
    settings.run("token revoke --org acme --jti t1");
    expect([401, 200, 200]).await;
    settings.run(&format!("token revoke --org acme --principal {}", world.principal("agent-7")));
    expect([401, 401, 200]).await;
    // The provider issues this token after the revocation.
    let later = world.token(json!({"jti": "t4", "sub": "agent-7", "iat": now() + 5}));
    gateway.until_everywhere(&call("/mcp/acme", &later), 200).await;
}
