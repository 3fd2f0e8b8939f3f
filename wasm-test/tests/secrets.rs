//! The filter, Envoy and Settings write no secrets. The test searches logs at the highest level, refusals, metrics,
//! the dump of Envoy's configuration, the output of commands, and the database. Only the database may contain a
//! secret: the signing keys.

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD};
use rsa::RsaPrivateKey;
use rsa::pkcs8::DecodePrivateKey;
use rsa::traits::PrivateKeyParts;
use serde_json::{Value, json};
use wasm_test::apexmcp::Apexmcp;
use wasm_test::eventually;
use wasm_test::gateway::{Gateway, ORIGIN, Setup};
use wasm_test::http::{Client, Request};
use wasm_test::issuer::Issuer;
use wasm_test::module::Module;
use wasm_test::oauth::{assertion_request, token_request_of};
use wasm_test::policy::sha256;
use wasm_test::process::argument;
use wasm_test::provider::Provider;
use wasm_test::settings::TOKEN;
use wasm_test::token::{Key, now};
use wasm_test::upstream::{self, Arrived};

/// The environment variable of a signing key, as in envoy/envoy.yaml.
const SIGNING_KEY: &str = "APEXMCP_SIGNING_KEY";

/// Pages of Envoy's admin interface.
const PAGES: [&str; 8] =
    ["/config_dump", "/init_dump", "/server_info", "/certs", "/stats/prometheus", "/stats", "/clusters", "/listeners"];

/// Texts that were written, each with its place.
type Written = Vec<(&'static str, String)>;

fn text(object: &Value, name: &str) -> String {
    object[name].as_str().unwrap_or_else(|| panic!("no {name}: {object}")).to_owned()
}

/// Another secret of the same form. Its last character differs.
fn changed(secret: &str) -> String {
    format!("{}{}", &secret[..secret.len() - 1], if secret.ends_with('A') { "Q" } else { "A" })
}

/// The secret part of a JWT is its signature. Its claims may be written, for example the subject in the access log.
/// The beginning of the signature is enough to find truncated tokens, too.
fn signature(token: &str) -> &str {
    &token.rsplit('.').next().expect("a part")[..40]
}

/// Texts that no place may contain: the secret in the encodings that programs use. Most of them hold only the middle
/// of the secret, so that texts which are truncated at either end are found, too.
fn forms(secret: &[u8]) -> Vec<String> {
    let rest = secret.get(16..).filter(|rest| rest.len() >= 12).unwrap_or(secret);
    let middle = &rest[..rest.len().min(24)];
    let numbers = format!("{middle:?}").trim_matches(['[', ']']).to_owned();
    let mut forms = vec![numbers, hex::encode(middle), hex::encode_upper(middle)];
    // base64 turns three bytes into four characters, so the middle may begin at any of three offsets.
    for part in (0..3).map(|skipped| &middle[skipped..]) {
        let part = &part[..part.len() / 3 * 3];
        forms.extend([BASE64_STANDARD.encode(part), BASE64_URL_SAFE.encode(part)]);
    }
    if let Ok(text) = std::str::from_utf8(secret) {
        forms.extend([text.to_owned(), String::from_utf8_lossy(middle).into_owned()]);
    }
    forms
}

/// Sends a request that must be admitted, and records the answer, in which the upstream describes what arrived.
async fn admitted(gateway: &Gateway, request: &Request, written: &mut Written) {
    let reply = gateway.send(request).await;
    assert_eq!(reply.status, 200, "{request:?}: {reply:?}");
    written.push(("an answer", format!("{reply:?}")));
}

/// Sends requests that must be refused, and records the answers.
async fn refused(client: &Client, what: &'static str, requests: &[Request], written: &mut Written) {
    for request in requests {
        let reply = client.send(request).await;
        assert!(reply.status >= 400, "{request:?}: {reply:?}");
        written.push((what, format!("{reply:?}")));
    }
}

/// Reads pages that need no credential, and records them.
async fn read(client: &Client, pages: &[&'static str], written: &mut Written) {
    for page in pages {
        let reply = client.send(&Request::get(page)).await;
        assert_eq!(reply.status, 200, "{page}");
        written.push((page, String::from_utf8_lossy(&reply.body).into_owned()));
    }
}

/// Requests a token, and records the headers of the answer.
async fn issued(gateway: &Gateway, request: &Request, written: &mut Written) -> String {
    let reply = gateway.send(request).await;
    written.push(("an answer with a token", format!("{:?}", reply.headers)));
    text(&reply.json(), "access_token")
}

fn basic(client_id: &str, secret: &str) -> String {
    BASE64_STANDARD.encode(format!("{client_id}:{secret}"))
}

fn by_basic(credentials: &str) -> Request {
    Request::post("/oauth/token")
        .header("content-type", "application/x-www-form-urlencoded")
        .header("authorization", format!("Basic {credentials}"))
        .body("grant_type=client_credentials".to_owned())
}

// Needs several threads: while a command runs, the provider in this process answers it.
#[tokio::test(flavor = "multi_thread")]
async fn no_written_text_contains_a_secret() {
    let mut settings = Apexmcp::new();
    let (_, key) = settings.create_key();
    let client = settings.run("client create --org acme --name test --scope mcp:call");
    let (client_id, client_secret) = (text(&client, "client_id"), text(&client, "client_secret"));
    let (own_key, provider_key) = (Key::first("a"), Key::first("b"));
    let key_file = settings.file("keys.json");
    std::fs::write(&key_file, json!({"keys": [own_key.jwk()]}).to_string()).expect("the keys are written");
    let keyed = settings.run(&format!("client create --org acme --name keyed --jwks {}", argument(&key_file)));
    let keyed_id = text(&keyed, "client_id");
    // A real provider issues no token that has expired.
    let (provider, issuer) = (Provider::start().await, Issuer::start(&[&provider_key]).await);
    let mut written = Written::new();
    for record in [provider.record(), issuer.record()] {
        let [issuer, jwks_uri, audience] = ["issuer", "jwks_uri", "audience"].map(|name| text(&record, name));
        let provider = format!("--issuer {issuer} --jwks-uri {jwks_uri} --audience {audience}");
        settings.run(&format!("sso configure --org acme {provider} --allow-private-address --force"));
    }
    let private_key = text(&settings.run("policy export")["signing_keys"][0], "private_key_pem");
    let upstream = upstream::start().await;
    let remote = json!({"cluster": "settings", "token_env": "APEXMCP_SETTINGS_TOKEN"});
    let jwks = json!({"http_cluster": "jwks_http"});
    let plugin = json!({"gateway": {"origin": ORIGIN}, "jwks": jwks, "policy": {"remote": remote}});
    let port = settings.serve().await;
    let gateway = Setup::new(plugin).settings(port, TOKEN).start(&upstream).await;
    gateway.admin().send(&Request::post("/logging?paths=wasm:trace,dynamic_modules:trace")).await;

    let call = || Request::tools_list("/mcp/acme");
    eventually("the policy", async || Arrived::of(&gateway.send(&call().api_key(&key)).await)).await;
    let second_secret = text(&settings.run(&format!("client rotate-secret {client_id}")), "client_secret");
    let (_, late_key) = settings.create_key();
    eventually("the policy with both", async || Arrived::of(&gateway.send(&call().api_key(&late_key)).await)).await;

    let token = issued(&gateway, &token_request_of(&client_id, &client_secret), &mut written).await;
    let assertion = |jti: &str, aud: &str| {
        own_key.token(&json!({"iss": keyed_id, "sub": keyed_id, "aud": aud, "jti": jti, "exp": now() + 300}))
    };
    let (used, elsewhere) = (assertion("first", ORIGIN), assertion("second", "https://elsewhere.example"));
    let forged_assertion = changed(&assertion("third", ORIGIN));
    let token_of_keyed = issued(&gateway, &assertion_request(&used), &mut written).await;
    let provided = provider.token("scope=mcp:call").await;
    let expired = provider_key.token(&issuer.claims_with(&json!({"exp": now() - 100})));
    let by_second = issued(&gateway, &token_request_of(&client_id, &second_secret), &mut written).await;
    let right_basic = basic(&client_id, &client_secret);
    let token_by_basic = issued(&gateway, &by_basic(&right_basic), &mut written).await;
    for token in [&token, &token_of_keyed, &by_second, &token_by_basic, &provided] {
        admitted(&gateway, &call().bearer(token), &mut written).await;
    }
    admitted(&gateway, &call().api_key(&key), &mut written).await;

    // The other gateway has its policy in its configuration, and its signing key in an environment variable.
    let own_client = json!({"client_id": client_id, "secret_sha256": [sha256(&client_secret)], "scopes": ["mcp:call"]});
    let acme = json!({"api_keys": [{"id": "key_a", "sha256": sha256(&key)}], "oauth_clients": [own_client]});
    let inline = json!({"signing_keys": [{"kid": "k", "private_key_env": SIGNING_KEY}], "orgs": {"acme": acme}});
    let plugin = json!({"gateway": {"origin": ORIGIN}, "policy": {"inline": inline}});
    let other = Setup::new(plugin).secret(SIGNING_KEY, &private_key).start(&upstream).await;
    other.admin().send(&Request::post("/logging?paths=wasm:trace,dynamic_modules:trace")).await;
    let token_of_other = issued(&other, &by_basic(&right_basic), &mut written).await;
    for request in [call().api_key(&key), call().bearer(&token_of_other)] {
        admitted(&other, &request, &mut written).await;
    }

    let (wrong_key, wrong_secret) = (changed(&key), changed(&client_secret));
    let (forged, forged_provided) = (changed(&token), changed(&provided));
    let wrong_basic = basic(&client_id, &wrong_secret);
    let at_gateway = [
        call().api_key(&wrong_key),
        call().api_key(&format!(" {key}x")),
        call().api_key(&key).bearer(&token),
        call().bearer(&forged),
        call().bearer(&key),
        call().header("authorization", format!("Basic {token}")),
        Request::post("/mcp/other").bearer(&token),
        call().bearer(&expired),
        call().bearer(&forged_provided),
        call().bearer(&used),
        call().bearer(&provided).api_key(&key),
        Request::post("/mcp/other").bearer(&provided),
        token_request_of(&client_id, &wrong_secret),
        token_request_of(&client_id, &key),
        by_basic(&wrong_basic),
        assertion_request(&used),
        assertion_request(&elsewhere),
        assertion_request(&forged_assertion),
        assertion_request(&provided),
    ];
    for gateway in [&gateway, &other] {
        refused(gateway.client(), "a refusal", &at_gateway, &mut written).await;
        read(gateway.client(), &["/.well-known/jwks.json"], &mut written).await;
        read(gateway.admin(), &PAGES, &mut written).await;
    }

    let server = Client::new(format!("127.0.0.1:{port}"));
    let wrong_token = changed(TOKEN);
    let at_settings = [
        Request::get("/v1/policy"),
        Request::get("/v1/policy").bearer(&wrong_token),
        Request::get("/v1/policy").bearer(TOKEN).bearer(&wrong_token),
        Request::get("/v1/policy").api_key(&key),
        Request::get("/v1/policy").bearer(&token),
        Request::get(&format!("/v1/policy?token={TOKEN}")),
        Request::get(&format!("/v1/policy?wait={key}")).bearer(TOKEN),
        Request::post("/v1/policy").bearer(TOKEN).body(client_secret.clone()),
        Request::get(&format!("/{key}")),
    ];
    refused(&server, "a refusal of Settings", &at_settings, &mut written).await;
    read(&server, &["/metrics", "/healthz"], &mut written).await;
    let commands = ["key list --org acme", "client list --org acme", "sso list --org acme", "signing-key list", "audit list"];
    written.extend(commands.map(|words| (words, settings.run(words).to_string())));
    // These commands print a secret once. No other output may contain it.
    let mut shown = Vec::new();
    for words in ["key create --org acme --name shown", "client create --org acme --name shown --scope mcp:call"] {
        let [output, errors] = settings.print(words);
        let is_secret = |word: &&str| word.starts_with("apx_live_sk_") || word.starts_with("apx_secret_");
        shown.push(output.split_whitespace().find(is_secret).unwrap_or_else(|| panic!("{words}: {output}")).to_owned());
        written.push((words, errors));
    }
    written.extend(commands.map(|words| (words, settings.print(words).concat())));
    std::fs::rename(settings.file("settings.db"), settings.file("gone.db")).expect("the database is moved away");
    let is_missed = async || server.send(&Request::get("/healthz")).await.status == 503;
    eventually("the database is missed", async || is_missed().await.then_some(())).await;

    // A configuration with all secrets in wrong places is refused, and the log describes its errors. Envoy's dump
    // contains each configuration, even a refused one, so the pages were read before.
    let wrong_type = json!({"oauth_clients": [{"client_id": client_id, "secret_sha256": client_secret}]});
    let wrong_values = json!({
        "api_keys": [{"id": key, "sha256": late_key}],
        "oauth_clients": [{"client_id": second_secret, "secret_sha256": [client_secret], "scopes": [used]}],
        "identity_providers": [{"issuer": provided, "jwks_uri": expired, "audience": []}],
    });
    for org in [wrong_type, wrong_values] {
        let wrong = json!({"gateway": {"origin": key, "token_path": token}, "policy": {"inline": {"signing_keys": [
            {"kid": "a", "private_key_pem": private_key.replace("PRIVATE", "SECRET")},
        ], "orgs": {"acme": org}}}});
        assert!(!gateway.reconfigure(&wrong).await);
    }
    for gateway in [&gateway, &other] {
        written.push(("the log", gateway.log()));
        written.push(("the access log", gateway.folder().read("stdout")));
    }
    // Settings has only one log level.
    written.push(("the output of Settings", settings.output()));
    let kept = ["gone.db", "settings.db-wal"].map(|file| std::fs::read(settings.file(file)).unwrap_or_default()).concat();
    written.push(("the database", String::from_utf8_lossy(&kept).into_owned()));

    let mut secrets = vec![
        ("the API key", &*key),
        ("a later one", &late_key),
        ("a wrong API key", &wrong_key),
        ("the client's secret", &client_secret),
        ("its second secret", &second_secret),
        ("a wrong secret", &wrong_secret),
        ("the secret in Basic", &right_basic),
        ("a wrong secret in Basic", &wrong_basic),
        ("a key that a command showed", &shown[0]),
        ("a secret that a command showed", &shown[1]),
        ("the token of Settings", TOKEN),
        ("a wrong token of Settings", &wrong_token),
    ];
    for (what, token) in [
        ("the gateway's token", &token),
        ("a forged one", &forged),
        ("the gateway's token for an assertion", &token_of_keyed),
        ("the gateway's token for a second secret", &by_second),
        ("the gateway's token by Basic", &token_by_basic),
        ("another gateway's token", &token_of_other),
        ("a provider's token", &provided),
        ("a forged one of a provider", &forged_provided),
        ("an expired one of a provider", &expired),
        ("a client's assertion", &used),
        ("an assertion for another audience", &elsewhere),
        ("a forged assertion", &forged_assertion),
    ] {
        secrets.push((what, signature(token)));
    }
    secrets.extend(private_key.lines().filter(|line| line.len() == 64).map(|line| ("the signing key", line)));
    let parsed = RsaPrivateKey::from_pkcs8_pem(&private_key).expect("PKCS#8 PEM");
    let numbers = [parsed.d()].into_iter().chain(parsed.primes()).map(|number| number.to_bytes_be());
    // As bytes, and in the form of a JWK (RFC 7518 §6.3.2).
    let numbers: Vec<Vec<u8>> = numbers.flat_map(|number| [BASE64_URL_SAFE_NO_PAD.encode(&number).into(), number]).collect();
    let secrets = secrets.into_iter().map(|(secret, text)| (secret, text.as_bytes()));
    let mut searched = 0;
    for (secret, bytes) in secrets.chain(numbers.iter().map(|number| ("the signing key", number.as_slice()))) {
        for form in forms(bytes) {
            for (place, text) in &written {
                let is_meant = (*place, secret) == ("the database", "the signing key");
                assert!(is_meant || !text.contains(&form), "{place} contains {secret} in the form {form}");
                searched += 1;
            }
        }
    }
    let length: usize = written.iter().map(|(_, text)| text.len()).sum();
    println!("{searched} searches in {} texts of {length} bytes", written.len());
    for (place, sign) in [
        ("/config_dump", "APEXMCP_SETTINGS_TOKEN"),
        ("/config_dump", SIGNING_KEY),
        ("/.well-known/jwks.json", "\"n\""),
        ("/server_info", "command_line_options"),
        ("an answer", "x-apexmcp-principal"),
        ("an answer with a token", "no-store"),
        ("key list --org acme", "shown"),
        ("the log", if Module::under_test() == Module::Native { "][dynamic_modules] " } else { "[vm->host]" }),
        ("the log", "private_key_pem: "),
        ("the access log", "token_expired"),
        ("the access log", "signature_invalid"),
        ("the access log", "invalid_client"),
        ("the output of Settings", "listening on"),
        ("the output of Settings", "policy version"),
        ("the output of Settings", "keeps serving the last policy"),
        ("the database", &key[..16]),
    ] {
        let was_read = written.iter().any(|(found, text)| *found == place && text.contains(sign));
        assert!(was_read, "{place} was not read, because it does not contain {sign}");
    }
}
