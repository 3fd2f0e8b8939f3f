//! Tokens that must be refused. Each of them is accepted by some other implementation.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use wasm_test::gateway::{Setup, plugin};
use wasm_test::http::Request;
use wasm_test::issuer::{Behaviour, Issuer};
use wasm_test::policy::{api_key, api_key_record, merged};
use wasm_test::sign_in::SignIn;
use wasm_test::token::{Algorithm, Key, base64url, now};
use wasm_test::upstream;

const MALFORMED: &str = "token_malformed";
const ALGORITHM: &str = "algorithm_not_allowed";

/// Returns `token` with one part changed: the header (0), the claims (1) or the signature (2).
fn with_part(token: &str, index: usize, change: impl FnOnce(&str) -> String) -> String {
    let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
    parts[index] = change(&parts[index]);
    parts.join(".")
}

/// Spells the same bytes differently. In base64url, 256 bytes leave four bits of the last character unused, and lax
/// decoders ignore these bits.
fn with_unused_bits(part: &str) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let (rest, last) = part.split_at(part.len() - 1);
    let value = ALPHABET.iter().position(|byte| last.as_bytes() == [*byte]).expect("base64url");
    assert_eq!(value & 0b1111, 0, "four bits are unused");
    format!("{rest}{}", char::from(ALPHABET[value + 1]))
}

#[tokio::test]
async fn a_forged_or_malformed_token_is_refused() {
    let upstream = upstream::start().await;
    let (key, foreign) = (Key::first("a"), Key::second("a"));
    let unpublished = Key::second("b");
    let issuer = Issuer::start(&[&key]).await;
    let gateway = Setup::new(plugin(&json!({
        "acme": {"identity_providers": [issuer.record()]},
    })))
    .start(&upstream)
    .await;

    let good = key.token(&issuer.claims());
    let header = key.header().to_string();
    let claims = issuer.claims().to_string();
    let headed = |changes: Value| key.token_with(&merged(key.header(), &changes), &issuer.claims());
    let foreign_with = |changes: Value| foreign.token_with(&merged(foreign.header(), &changes), &issuer.claims());
    let with = |changes: Value| key.token(&issuer.claims_with(&changes));
    let text = |header: &str, claims: &str| key.sign(Algorithm::Rs256, header, claims);
    let signed =
        |algorithm, name: &str| key.sign(algorithm, merged(key.header(), &json!({"alg": name})).to_string(), claims.as_str());
    let unsigned =
        |name: &str| with_part(&key.token_with(&json!({"alg": name, "kid": "a"}), &issuer.claims()), 2, |_| String::new());
    let also = |member: &str, object: &str| format!("{{{member},{}", &object[1..]);
    let deep = |depth| also(&format!(r#""deep":{}{}"#, "[".repeat(depth), "]".repeat(depth)), &claims);

    let table = [
        // Algorithms: RFC 8725 §2.1, §3.1.
        ("alg none", ALGORITHM, unsigned("none")),
        ("alg None", ALGORITHM, unsigned("None")),
        ("alg nOnE, signed", ALGORITHM, signed(Algorithm::Rs256, "nOnE")),
        ("alg HS256 with the public key for the secret", ALGORITHM, signed(Algorithm::Hs256, "HS256")),
        ("alg RS512", ALGORITHM, signed(Algorithm::Rs512, "RS512")),
        ("alg PS256", ALGORITHM, signed(Algorithm::Ps256, "PS256")),
        ("alg rs256", ALGORITHM, signed(Algorithm::Rs256, "rs256")),
        ("alg RS256 over PS256", "signature_invalid", signed(Algorithm::Ps256, "RS256")),
        ("alg RS256 over RS512", "signature_invalid", signed(Algorithm::Rs512, "RS256")),
        ("alg RS256 over HS256", "signature_invalid", signed(Algorithm::Hs256, "RS256")),
        ("alg absent", ALGORITHM, headed(json!({"alg": null}))),
        ("alg an array", ALGORITHM, headed(json!({"alg": ["RS256"]}))),
        // Keys that the token brings along, RFC 8725 §3.10; extensions, RFC 7515 §4.1.11 and RFC 7797.
        ("jwk", "key_unknown", foreign_with(json!({"jwk": foreign.jwk(), "kid": "b"}))),
        ("jwk under the kid of the issuer", "signature_invalid", foreign_with(json!({"jwk": foreign.jwk(), "kid": "a"}))),
        ("jku", "key_unknown", foreign_with(json!({"jku": issuer.jwks_uri(), "kid": "b"}))),
        ("x5u", "signature_invalid", foreign_with(json!({"x5u": issuer.jwks_uri(), "kid": "a"}))),
        ("x5c", "key_unknown", foreign_with(json!({"x5c": ["MIIB"], "kid": "b"}))),
        ("crit", MALFORMED, headed(json!({"crit": ["exp"], "exp": 1}))),
        ("crit empty", MALFORMED, headed(json!({"crit": []}))),
        ("b64", MALFORMED, headed(json!({"b64": false, "crit": ["b64"]}))),
        ("typ of another kind of token", MALFORMED, headed(json!({"typ": "logout+jwt"}))),
        ("typ a number", MALFORMED, headed(json!({"typ": 7}))),
        // Two parsers may choose different values.
        ("alg twice in the header", MALFORMED, text(&also(r#""alg":"RS256""#, &header), &claims)),
        ("kid twice in the header", MALFORMED, text(&also(r#""kid":"a""#, &header), &claims)),
        ("exp twice", MALFORMED, text(&header, &also(r#""exp":9999999999"#, &claims))),
        ("iss twice, once escaped", MALFORMED, text(&header, &also(r#""\u0069ss":"x""#, &claims))),
        ("a member twice further down", MALFORMED, text(&header, &also(r#""a":{"b":[{"c":1,"c":2}]}"#, &claims))),
        // Sizes and forms.
        ("a huge token", "credential_malformed", with(json!({"pad": "x".repeat(20_000)}))),
        ("deep claims", MALFORMED, text(&header, &deep(100))),
        ("very deep claims", MALFORMED, text(&header, &deep(2000))),
        ("claims that are an array", MALFORMED, text(&header, "[]")),
        ("claims that are not JSON", MALFORMED, text(&header, "{")),
        ("claims followed by text", MALFORMED, text(&header, &format!("{claims} {{}}"))),
        ("claims that are not UTF-8", MALFORMED, key.sign(Algorithm::Rs256, &header, b"{\"iss\":\"\xff\"}")),
        ("a header that is no object", MALFORMED, text(r#""RS256""#, &claims)),
        ("two parts", MALFORMED, good.rsplit_once('.').expect("three").0.to_owned()),
        ("four parts", MALFORMED, format!("{good}.AAAA")),
        ("five parts, as of JWE", ALGORITHM, "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ.a.b.c.d".to_owned()),
        ("padded signature", MALFORMED, format!("{good}==")),
        ("padded claims", MALFORMED, with_part(&good, 1, |claims| format!("{claims}="))),
        ("unused bits in the signature", MALFORMED, with_part(&good, 2, with_unused_bits)),
        ("the alphabet of plain base64", MALFORMED, with_part(&good, 2, |signature| format!("+/{}", &signature[2..]))),
        ("a space within", "credential_malformed", good.replacen('.', " .", 1)),
        // Claims.
        ("iss of an unknown issuer", "issuer_unknown", with(json!({"iss": "https://elsewhere.example"}))),
        ("iss with one more slash", "issuer_unknown", with(json!({"iss": format!("{}/", issuer.url())}))),
        ("iss in capitals", "issuer_unknown", with(json!({"iss": issuer.url().to_uppercase()}))),
        ("iss a list", MALFORMED, with(json!({"iss": [issuer.url()]}))),
        ("iss absent", "claim_missing", with(json!({"iss": null}))),
        ("aud of another", "audience_mismatch", with(json!({"aud": "account"}))),
        ("aud longer", "audience_mismatch", with(json!({"aud": "apexmcp2"}))),
        ("aud in capitals", "audience_mismatch", with(json!({"aud": "ApexMCP"}))),
        ("aud of others", "audience_mismatch", with(json!({"aud": ["account", "apex"]}))),
        ("aud empty", "audience_mismatch", with(json!({"aud": []}))),
        ("aud of the client that it was issued to", "audience_mismatch", {
            with(json!({"aud": "portal", "azp": "apexmcp", "client_id": "apexmcp", "nonce": "n", "at_hash": "h"}))
        }),
        ("aud absent", "claim_missing", with(json!({"aud": null}))),
        ("aud a number", MALFORMED, with(json!({"aud": 7}))),
        ("aud an object", MALFORMED, with(json!({"aud": {"apexmcp": true}}))),
        ("sub absent", "claim_missing", with(json!({"sub": null}))),
        ("sub empty", "claim_missing", with(json!({"sub": ""}))),
        ("sub a number", MALFORMED, with(json!({"sub": 7}))),
        ("exp past", "token_expired", with(json!({"exp": now() - 61}))),
        ("exp at the epoch", "token_expired", with(json!({"exp": 0}))),
        ("exp past, with a fraction", "token_expired", with(json!({"exp": 1.5}))),
        ("exp absent", "claim_missing", with(json!({"exp": null}))),
        ("exp null", MALFORMED, text(&header, &claims.replacen("\"exp\":", "\"exp\":null,\"was\":", 1))),
        ("exp as text", MALFORMED, with(json!({"exp": (now() + 3600).to_string()}))),
        ("exp huge", MALFORMED, text(&header, &claims.replacen("\"exp\":", "\"exp\":1e400,\"was\":", 1))),
        ("exp beyond all dates", MALFORMED, with(json!({"exp": u64::MAX}))),
        ("exp in milliseconds", MALFORMED, with(json!({"exp": (now() + 3600) * 1000}))),
        ("exp negative", MALFORMED, with(json!({"exp": -1}))),
        ("nbf in the future", "token_not_yet_valid", with(json!({"nbf": now() + 120}))),
        ("iat in the future", "token_not_yet_valid", with(json!({"iat": now() + 120}))),
        ("nbf as text", MALFORMED, with(json!({"nbf": "0"}))),
        ("scope of another type", MALFORMED, with(json!({"scope": 7}))),
        // Keys and signatures.
        ("kid of no key", "key_unknown", unpublished.token(&issuer.claims())),
        ("kid as a path", "key_unknown", headed(json!({"kid": "../../etc/passwd"}))),
        ("kid empty", "key_unknown", headed(json!({"kid": ""}))),
        ("kid a number", MALFORMED, headed(json!({"kid": 7}))),
        ("kid huge", MALFORMED, headed(json!({"kid": "k".repeat(5000)}))),
        ("another's signature under this kid", "signature_invalid", foreign.token(&issuer.claims())),
        ("another's signature without kid", "signature_invalid", {
            foreign.token_with(&json!({"alg": "RS256"}), &issuer.claims())
        }),
        ("signature empty", "signature_invalid", with_part(&good, 2, |_| String::new())),
        ("signature short", "signature_invalid", with_part(&good, 2, |signature| signature[..340].to_owned())),
        ("signature long", "signature_invalid", with_part(&good, 2, |signature| format!("{}AAAA", &signature[..340]))),
        ("signature zero", "signature_invalid", with_part(&good, 2, |_| base64url([0; 256]))),
        ("signature one", "signature_invalid", with_part(&good, 2, |_| base64url([vec![0; 255], vec![1]].concat()))),
        ("claims exchanged", "signature_invalid", {
            with_part(&good, 1, |_| base64url(issuer.claims_with(&json!({"sub": "admin"})).to_string()))
        }),
        ("header exchanged", "signature_invalid", {
            with_part(&good, 0, |_| base64url(json!({"alg": "RS256", "kid": "a"}).to_string()))
        }),
    ];
    // The valid token passes before, between and after the others, and is cached meanwhile. So a refusal has no side
    // effects.
    let request = |token: &str| Request::tools_list("/mcp/acme").bearer(token);
    let mut wrong = Vec::new();
    for (what, reason, token) in &table {
        gateway.admits("the good one", &request(&good)).await;
        let refusal = gateway.refuses(what, &request(token)).await;
        if (refusal.status, refusal.reason.as_str()) != (401, reason) {
            wrong.push(format!("{what}: expected 401 {reason}, got {} {}", refusal.status, refusal.reason));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    gateway.admits("shallow claims", &request(&text(&header, &deep(10)))).await;
}

/// The same key signs an ID token and the access token that comes with it, and both have the same form (RFC 8725
/// §2.8). Only the audience, which is the client's id, shows the purpose of an ID token.
#[tokio::test]
async fn an_id_token_is_accepted_only_at_its_configured_audience() {
    let upstream = upstream::start().await;
    let person = SignIn::new().await;
    let for_the_client = merged(person.record(person.client_id()), &json!({"default_scopes": ["mcp:call:notes"]}));
    let gateway = Setup::new(plugin(&json!({
        "acme": {"identity_providers": [person.record("apexmcp")]},
        "portal": {"identity_providers": [for_the_client]},
    })))
    .start(&upstream)
    .await;
    let claims = claims_of(person.id_token());
    assert_eq!((&claims["aud"], &claims["sub"]), (&json!(person.client_id()), &json!(person.subject())), "{claims}");
    assert!(claims["nonce"].is_string() && claims.get("scope").is_none(), "{claims}");

    let at = |path: &str, token: &str| Request::tools_list(path).bearer(token);
    // Twice, so that the second round uses cached tokens.
    for _ in 0..2 {
        gateway.admits("the access token", &at("/mcp/acme", person.access_token())).await;
        let arrived = gateway.admits("the ID token at its audience", &at("/mcp/portal/notes", person.id_token())).await;
        let identity = arrived.headers_below("x-apexmcp-");
        assert_eq!(identity["principal"], format!("portal/idp/{}#{}", person.issuer(), person.subject()));
        assert_eq!(identity["scope"], "mcp:call:notes", "the ID token has no scope of its own");
        for (what, path, token, status, reason) in [
            ("the ID token", "/mcp/acme", person.id_token(), 401, "audience_mismatch"),
            ("the ID token at a connector", "/mcp/acme/notes", person.id_token(), 401, "audience_mismatch"),
            ("the access token where ID tokens pass", "/mcp/portal/notes", person.access_token(), 401, "audience_mismatch"),
            ("the ID token beyond the default", "/mcp/portal/clock", person.id_token(), 403, "scope_insufficient"),
        ] {
            let refusal = gateway.refuses(what, &at(path, token)).await;
            assert_eq!((refusal.status, &*refusal.reason), (status, reason), "{what}");
        }
    }
}

/// The claims of a token, without a check of its signature.
fn claims_of(token: &str) -> Value {
    let claims = token.split('.').nth(1).and_then(|part| BASE64_URL_SAFE_NO_PAD.decode(part).ok()).expect("base64url");
    serde_json::from_slice(&claims).expect("JSON")
}

#[tokio::test]
async fn only_keys_for_rs256_are_used() {
    let upstream = upstream::start().await;
    let (good, other, short) = (Key::first("good"), Key::second("other"), Key::short("other"));
    let issuer = Issuer::start(&[]).await;
    let documents = [
        ("as it is", other.jwk(), other.token(&issuer.claims()), true),
        ("no use, alg, key_ops", merged(other.jwk(), &json!({"use": null, "alg": null})), other.token(&issuer.claims()), true),
        ("key_ops verify", merged(other.jwk(), &json!({"key_ops": ["verify"]})), other.token(&issuer.claims()), true),
        ("kty EC", merged(other.jwk(), &json!({"kty": "EC"})), other.token(&issuer.claims()), false),
        ("kty oct", merged(other.jwk(), &json!({"kty": "oct", "k": "AAAA"})), other.token(&issuer.claims()), false),
        ("use enc", merged(other.jwk(), &json!({"use": "enc"})), other.token(&issuer.claims()), false),
        ("key_ops", merged(other.jwk(), &json!({"key_ops": ["encrypt"]})), other.token(&issuer.claims()), false),
        ("alg RS512", merged(other.jwk(), &json!({"alg": "RS512"})), other.token(&issuer.claims()), false),
        ("alg RSA-OAEP", merged(other.jwk(), &json!({"alg": "RSA-OAEP"})), other.token(&issuer.claims()), false),
        ("1024 bits", short.jwk(), short.token(&issuer.claims()), false),
        ("exponent 1", merged(other.jwk(), &json!({"e": "AQ"})), other.forge_for_exponent_1(&issuer.claims()), false),
        ("exponent even", merged(other.jwk(), &json!({"e": "AQAA"})), other.token(&issuer.claims()), false),
        ("exponent of 64 bits", merged(other.jwk(), &json!({"e": "AQAAAAAAAAE"})), other.token(&issuer.claims()), false),
        ("kid a number", merged(other.jwk(), &json!({"kid": 7})), other.token(&issuer.claims()), false),
        ("kid of another", merged(other.jwk(), &json!({"kid": "another"})), other.token(&issuer.claims()), false),
        ("no modulus", merged(other.jwk(), &json!({"n": null})), other.token(&issuer.claims()), false),
        ("no key at all", json!("other"), other.token(&issuer.claims()), false),
    ];
    // Each document has its own provider, and each set is fetched once, at start.
    let mut providers = Vec::new();
    for (what, jwk, token, is_used) in documents {
        let provider = Issuer::start(&[]).await;
        provider.behave(Behaviour::Document { status: 200, body: json!({"keys": [good.jwk(), jwk]}).to_string() });
        providers.push((what, provider, token, is_used));
    }
    let record = |provider: &Issuer| merged(issuer.record(), &json!({"jwks_uri": provider.jwks_uri()}));
    let orgs: serde_json::Map<String, Value> = providers
        .iter()
        .enumerate()
        .map(|(index, (_, provider, ..))| (format!("org-{index}"), json!({"identity_providers": [record(provider)]})))
        .collect();
    let gateway = Setup::new(plugin(&Value::Object(orgs))).start(&upstream).await;
    for (index, (what, _, token, is_used)) in providers.iter().enumerate() {
        let request = |token: &str| Request::tools_list(&format!("/mcp/org-{index}")).bearer(token);
        gateway.admits(what, &request(&good.token(&issuer.claims()))).await;
        if *is_used {
            gateway.admits(what, &request(token)).await;
        } else {
            assert_eq!(gateway.refuses(what, &request(token)).await.reason, "key_unknown", "{what}");
        }
    }
}

#[tokio::test]
async fn credentials_that_are_not_text_are_refused() {
    let upstream = upstream::start().await;
    let gateway = Setup::new(plugin(&json!({"acme": {}}))).start(&upstream).await;
    let to = || Request::tools_list("/mcp/acme");
    for request in [
        to().header("authorization", b"Bearer \xff\xfe.\x80.\x81"),
        to().header("authorization", b"\xff"),
        to().header("authorization", b"Bearer\xa0x.y.z"),
        to().header("authorization", b"Bearer \t"),
        to().header("x-api-key", b"\xff\xfe"),
        to().header("x-api-key", [b"apx_live_sk_".as_slice(), &[0xc3; 32]].concat()),
        to().header("x-api-key", "apx_live_sk_\u{661}2345678901234567890123456789012"),
        to().header("x-api-key", format!("apx_live_sk_{}", "x".repeat(50_000))),
    ] {
        assert_eq!(
            gateway.refuses("a credential that is not text", &request).await.reason,
            "credential_malformed",
            "{request:?}"
        );
    }
}

/// Envoy drops trailers in HTTP/1.1 unless it is configured otherwise. In HTTP/2, it forwards them.
#[tokio::test]
async fn a_trailer_cannot_carry_an_identity() {
    const TRAILERS: [&str; 8] = [
        "x-apexmcp-org",
        "x_apexmcp_scope",
        "x.apexmcp.principal",
        "x'apexmcp~method",
        "authorization",
        "x-api-key",
        "x!api|key",
        "x-checksum",
    ];
    let upstream = upstream::start().await;
    let keys = json!([api_key_record("key_all"), merged(api_key_record("key_notes"), &json!({"connectors": ["notes"]}))]);
    let mut config = plugin(&json!({"acme": {"api_keys": keys}}));
    config["gateway"]["unmatched_paths"] = json!("allow");
    let gateway = Setup::new(config.clone()).passing_trailers().start(&upstream).await;
    let other_prefix = merged(config, &json!({"forward": {"header_prefix": "my-id-"}}));
    let other_gateway = Setup::new(other_prefix).passing_trailers().start(&upstream).await;
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"notes__read"}}"#;
    let trailers: String = TRAILERS.iter().map(|name| format!("{name}: forged\r\n")).collect();
    for (gateway, path, key, expected) in [
        (&gateway, "/mcp/acme", "key_all", &TRAILERS[7..]),
        // The filter reads the message of this key and decides after the trailers have arrived.
        (&gateway, "/mcp/acme", "key_notes", &TRAILERS[7..]),
        (&gateway, "/elsewhere", "key_all", &TRAILERS),
        (&other_gateway, "/mcp/acme", "key_all", &TRAILERS[7..]),
        (&other_gateway, "/mcp/acme", "key_notes", &TRAILERS[7..]),
    ] {
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-api-key: {}\r\ncontent-type: application/json\r\n\
             transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n{trailers}\r\n",
            api_key(key),
            body.len(),
        );
        let reply = gateway.client().send_bytes(request.as_bytes()).await;
        let arrived: Value = serde_json::from_str(reply.split("\r\n\r\n").nth(1).expect("a body")).expect("what arrived");
        assert_eq!(arrived["body"], body, "{reply}");
        let names: Vec<&str> =
            arrived["trailers"].as_array().expect("trailers").iter().filter_map(|one| one[0].as_str()).collect();
        assert_eq!(names, expected, "{path} {key}: {reply}");
    }
}

/// A connector that reads the documented names must not get them from a client of a gateway that uses other names.
#[tokio::test]
async fn identity_headers_of_clients_are_removed() {
    let upstream = upstream::start().await;
    let keys = json!([api_key_record("key_all"), merged(api_key_record("key_notes"), &json!({"connectors": ["notes"]}))]);
    for prefix in ["x-apexmcp-", "my-id-", "x-apexmcp-id-", "x-apex-"] {
        let forward = json!({"forward": {"header_prefix": prefix}});
        let gateway = Setup::new(merged(plugin(&json!({"acme": {"api_keys": keys}})), &forward)).start(&upstream).await;
        for key in ["key_all", "key_notes"] {
            let mut request = Request::tools_list("/mcp/acme").api_key(&api_key(key)).header("y-apexmcp-org", "passes");
            for name in ["x-apexmcp-org", "x_apexmcp_scope", "x.apexmcp-principal", "X-Apexmcp-Assertion"] {
                request = request.header(name, "forged");
            }
            let arrived = gateway.admits(prefix, &request).await;
            assert_eq!(arrived.headers_below(prefix)["org"], "acme", "{prefix} {key}");
            assert!(arrived.has("y-apexmcp-org"), "{prefix} {key}");
            let forged: Vec<_> = arrived.headers.iter().filter(|(_, value)| value == "forged").collect();
            assert_eq!(forged, Vec::<&(String, String)>::new(), "{prefix} {key}");
        }
    }
}
