//! Rate limits and quotas: exactly the allowed number of requests passes, on one Envoy with several workers and on two
//! Envoys that share a service.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use wasm_test::gateway::{Gateway, Setup, plugin};
use wasm_test::http::{Reply, Request};
use wasm_test::issuer::{Behaviour, Issuer};
use wasm_test::policy::{api_key, api_key_record, merged, sha256};
use wasm_test::rate_limit::RateLimitService;
use wasm_test::token::{Key, now};
use wasm_test::upstream::{self, Arrived};
use wasm_test::{eventually, oauth};

const CLIENTS: usize = 64;

fn call(key: &str) -> Request {
    Request::tools_list("/mcp/acme").api_key(&api_key(key))
}

/// An org with these limits and two keys. The second key has limits of its own.
fn acme(limits: &Value, own: &Value) -> Value {
    let narrower = merged(api_key_record("key_own"), &json!({ "limits": own }));
    json!({"acme": {"api_keys": [api_key_record("key_all"), narrower], "limits": limits}})
}

fn by_service(orgs: &Value, on_error: &str) -> Value {
    let service = json!({"cluster": "ratelimit", "timeout": "5s", "on_error": on_error});
    merged(plugin(orgs), &json!({"limits": {"store": "rate_limit_service", "rate_limit_service": service}}))
}

/// Sends `count` requests from many clients to the gateways in turn. Counts the replies by status and reason.
async fn send_all(gateways: &[&Gateway], request: &Request, count: usize) -> BTreeMap<String, usize> {
    let mut clients = JoinSet::new();
    for index in 0..CLIENTS {
        let (client, request) = (gateways[index % gateways.len()].client().clone(), request.clone());
        clients.spawn(async move {
            let mut replies = Vec::new();
            for _ in 0..count / CLIENTS {
                replies.push(verdict(&client.send(&request).await));
            }
            replies
        });
    }
    let mut tally = BTreeMap::new();
    for verdict in clients.join_all().await.concat() {
        *tally.entry(verdict).or_default() += 1;
    }
    tally
}

fn verdict(reply: &Reply) -> String {
    match Arrived::of(reply) {
        Some(_) => "passed".to_owned(),
        None => format!("{} {}", reply.status, reply.json()["reason"].as_str().unwrap_or_default()),
    }
}

fn tally<const N: usize>(counts: [(&str, usize); N]) -> BTreeMap<String, usize> {
    counts.into_iter().map(|(verdict, count)| (verdict.to_owned(), count)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn four_workers_admit_exactly_the_allowed_number() {
    let upstream = upstream::start().await;
    // One request a day: during the test, the bucket gains less than one request.
    let day = |burst| json!({"rate": {"requests": 1, "per": "day", "burst": burst}});
    for (limits, own, key, expected) in [
        (day(500), json!({}), "key_all", tally([("passed", 500), ("429 rate_limit", 3596)])),
        (json!({"monthly_quota": 700}), json!({}), "key_all", tally([("passed", 700), ("429 monthly_quota", 3396)])),
        (day(500), json!({"monthly_quota": 200}), "key_own", tally([("passed", 200), ("429 monthly_quota", 3896)])),
        (json!({"monthly_quota": 200}), day(500), "key_own", tally([("passed", 200), ("429 monthly_quota", 3896)])),
    ] {
        let gateway = Setup::new(plugin(&acme(&limits, &own))).workers(4).start(&upstream).await;
        assert_eq!(send_all(&[&gateway], &call(key), 4096).await, expected, "{limits} {own}");
        if own["monthly_quota"] == 200 {
            // A request that the key's quota refused does not count at the org's limit.
            assert_eq!(send_all(&[&gateway], &call("key_all"), 512).await, tally([("passed", 300), ("429 rate_limit", 212)]));
        }
    }
}

#[tokio::test]
async fn replies_report_the_state_of_the_limits() {
    let upstream = upstream::start().await;
    let limits = json!({"rate": {"requests": 600, "per": "minute", "burst": 2}, "monthly_quota": 3});
    let gateway = Setup::new(plugin(&acme(&limits, &json!({})))).start(&upstream).await;
    let policy = r#""rate";q=600;w=60, "month";q=3"#;
    let first = gateway.send(&call("key_all")).await;
    assert_eq!(first.header("ratelimit-policy"), Some(policy));
    assert!(first.header("ratelimit").is_some_and(|field| field.starts_with(r#""rate";r=1;t=1, "month";r=2;t="#)), "{first:?}");
    let refused = eventually("the quota is used up", async || {
        let reply = gateway.send(&call("key_all")).await;
        (reply.json()["reason"] == "monthly_quota").then_some(reply)
    })
    .await;
    assert_eq!((refused.status, refused.header("www-authenticate")), (429, None));
    assert_eq!(refused.json()["error"], "rate_limited");
    assert_eq!(refused.header("ratelimit-policy"), Some(policy));
    let wait: u64 = refused.header("retry-after").and_then(|wait| wait.parse().ok()).expect("seconds");
    assert!((1..=31 * 86_400).contains(&wait), "{wait}");
    assert!(refused.header("ratelimit").is_some_and(|field| field.contains(r#""month";r=0"#)), "{refused:?}");
    // A request that is refused for another reason does not count. An org without limits gets no such headers.
    assert_eq!(gateway.send(&Request::tools_list("/mcp/acme").api_key(&api_key("key_none"))).await.status, 401);
    let unlimited = Setup::new(plugin(&json!({"acme": {"api_keys": [api_key_record("key_all")]}}))).start(&upstream).await;
    assert_eq!(unlimited.send(&call("key_all")).await.header("ratelimit"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gateways_share_the_counts_of_one_service() {
    let upstream = upstream::start().await;
    let service = RateLimitService::start().await;
    for (limits, own, key, expected) in [
        (json!({"monthly_quota": 700}), json!({}), "key_all", tally([("passed", 700), ("429 monthly_quota", 1348)])),
        (
            json!({"rate": {"requests": 500, "per": "day"}}),
            json!({}),
            "key_all",
            tally([("passed", 500), ("429 rate_limit", 1548)]),
        ),
        (json!({}), json!({"monthly_quota": 300}), "key_own", tally([("passed", 300), ("429 monthly_quota", 1748)])),
    ] {
        let setup = Setup::new(by_service(&acme(&limits, &own), "deny")).workers(2).rate_limit_service(service.port());
        let (one, other) = (setup.clone().start(&upstream).await, setup.start(&upstream).await);
        assert_eq!(send_all(&[&one, &other], &call(key), 2048).await, expected, "{limits} {own}");
        let reply = one.send(&call(key)).await;
        assert!(reply.header("retry-after").is_some() && reply.header("ratelimit").is_some(), "{reply:?}");
        let counted = one.metric("apexmcp_rate_limit_service", &[("outcome", "over_limit")]).await;
        assert!(counted > 0, "the metric counts refused requests");
    }
}

#[tokio::test]
async fn on_error_decides_while_the_service_is_down() {
    let upstream = upstream::start().await;
    let mut service = RateLimitService::start().await;
    let orgs = acme(&json!({"monthly_quota": 1_000_000}), &json!({}));
    let setup = |on_error| Setup::new(by_service(&orgs, on_error)).rate_limit_service(service.port());
    let (allowing, denying) = (setup("allow").start(&upstream).await, setup("deny").start(&upstream).await);
    let verdicts = async || {
        let [allowed, denied] = [allowing.send(&call("key_all")).await, denying.send(&call("key_all")).await];
        (verdict(&allowed), allowed.header("ratelimit").is_some(), verdict(&denied), denied.header("retry-after").is_some())
    };
    let works = ("passed".to_owned(), true, "passed".to_owned(), false);
    let fails = ("passed".to_owned(), false, "503 rate_limit_unavailable".to_owned(), true);
    assert_eq!(verdicts().await, works);
    service.stop_service();
    eventually("the gateway notices that the service is down", async || (verdicts().await == fails).then_some(())).await;
    service.start_service().await;
    eventually("the service is back", async || (verdicts().await == works).then_some(())).await;
    service.stop_redis();
    eventually("the gateway notices that Redis is down", async || (verdicts().await == fails).then_some(())).await;
    service.start_redis().await;
    eventually("Redis is back", async || (verdicts().await == works).then_some(())).await;
}

#[tokio::test]
async fn a_missing_cluster_is_an_error_and_causes_no_trap() {
    let upstream = upstream::start().await;
    let orgs = acme(&json!({"monthly_quota": 5}), &json!({}));
    for (on_error, expected) in [("allow", "passed"), ("deny", "503 rate_limit_unavailable")] {
        let gateway = Setup::new(by_service(&orgs, on_error)).start(&upstream).await;
        for _ in 0..3 {
            assert_eq!(verdict(&gateway.send(&call("key_all")).await), expected);
        }
    }
}

#[tokio::test]
async fn requests_that_waited_or_were_inspected_are_counted() {
    let upstream = upstream::start().await;
    for holding_bodies in [false, true] {
        let service = RateLimitService::start().await;
        let key = Key::first("a");
        let issuer = Issuer::start(&[]).await;
        issuer.behave(Behaviour::Hang);
        let orgs = json!({"acme": {"identity_providers": [issuer.record()], "limits": {"monthly_quota": 1}}});
        let patience = json!({"jwks": {"http_cluster": "jwks_http", "timeout": "60s"}});
        let setup = Setup::new(merged(by_service(&orgs, "deny"), &patience)).rate_limit_service(service.port());
        let gateway = if holding_bodies { setup.holding_bodies() } else { setup }.start(&upstream).await;
        let call = |name: &str| {
            let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name}});
            let token = key.token(&issuer.claims_with(&json!({"scope": "mcp:call:notes"})));
            Request::tools_list("/mcp/acme").bearer(&token).body(body.to_string())
        };
        let waiting: Vec<_> = ["clock__now", "notes__read"]
            .map(|name| {
                let (client, request) = (gateway.client().clone(), call(name));
                tokio::spawn(async move { client.send(&request).await })
            })
            .into();
        gateway.until_active(2).await;
        issuer.publish(&[&key]);
        let mut verdicts = Vec::new();
        for reply in waiting {
            verdicts.push(verdict(&reply.await.expect("a reply")));
        }
        assert_eq!(verdicts, ["403 scope_insufficient", "passed"], "{holding_bodies}");
        assert_eq!(verdict(&gateway.send(&call("notes__read")).await), "429 monthly_quota", "{holding_bodies}");
    }
}

#[tokio::test]
async fn the_number_of_tokens_of_a_client_is_limited() {
    let upstream = upstream::start().await;
    let client = json!({"client_id": oauth::WITH_SECRET, "secret_sha256": [sha256(oauth::SECRET)], "scopes": ["mcp:call"]});
    let mut issuing = plugin(&json!({"acme": {"oauth_clients": [client]}}));
    issuing["policy"]["inline"]["signing_keys"] = json!([oauth::PrivateKey::new().record("k")]);
    let gateway = Setup::new(issuing).workers(2).start(&upstream).await;
    let request = oauth::token_request(oauth::SECRET);
    let envoy_signs = gateway.log().contains("and made by Envoy");
    let begin = now();
    let replies = {
        let mut clients = JoinSet::new();
        for _ in 0..8 {
            let (client, request) = (gateway.client().clone(), request.clone());
            clients.spawn(async move {
                let mut replies: Vec<Reply> = Vec::new();
                // If the module itself signs, it may issue less than ten tokens a second, and then it refuses none.
                while replies.len() < 60 || envoy_signs && replies.last().is_some_and(|reply| reply.status == 200) {
                    replies.push(client.send(&request).await);
                }
                replies
            });
        }
        clients.join_all().await.concat()
    };
    let issued = replies.iter().filter(|reply| reply.status == 200).count();
    let allowed = 300 + 10 * usize::try_from(now() - begin + 1).expect("the clock goes forward");
    assert!((300..=allowed).contains(&issued), "{issued} tokens were issued, {allowed} are allowed");
    let Some(refused) = replies.iter().find(|reply| reply.status != 200) else {
        assert!(!envoy_signs, "no request was refused");
        return;
    };
    assert_eq!((refused.status, &refused.json()["reason"]), (429, &json!("rate_limit")), "{refused:?}");
    assert!(refused.header("retry-after").is_some() && refused.header("cache-control") == Some("no-store"), "{refused:?}");
}
