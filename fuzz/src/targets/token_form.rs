//! The token endpoint. A client that gets a token has authenticated in exactly one way, and gets only scopes that it
//! holds.

use apexmcp_core::oauth::attempts::Attempts;
use apexmcp_core::oauth::token_endpoint::{TokenEndpoint, TokenError};
use apexmcp_core::policy::source::PolicySource;
use apexmcp_core::url;
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};

use crate::reader::{self, Json};
use crate::token::Token;
use crate::world::{self, CLIENTS, Client, NOW, ORIGIN, SECRET};
use apexmcp_core::testing::{MemoryHost, Signatures};

/// [`NOW`] as a JSON number.
const PRESENT: f64 = 1.8e9;

thread_local! {
    static WORLD: (apexmcp_core::config::Config, PolicySource) = {
        let (config, policy) = world::config();
        (config, PolicySource::Inline(policy))
    };
}

/// `data` is a request head and a form. In the head, the rest of the line after `<basic>` is encoded with base64. An
/// assertion may come before the head, in the form of [`Token::read`]. It replaces the word `<assertion>` in the form.
pub fn check(data: &[u8]) -> bool {
    let (token, data) = if data.get(1) == Some(&b'\n') { Token::read(data) } else { (Token::default(), data) };
    let (mut headers, body) = reader::head_and_body(data);
    for (_, value) in &mut headers {
        if let Some(at) = value.windows(7).position(|word| word == b"<basic>") {
            let encoded = BASE64_STANDARD.encode(&value[at + 7..]);
            value.splice(at.., encoded.bytes());
        }
    }
    let signs = CLIENTS.iter().any(|client| client.key == Some(token.signer));
    let written = token.written(signs.then(|| world::key_of(token.signer)).as_ref());
    let mut body = body.to_vec();
    if let Some(at) = body.windows(11).position(|word| word == b"<assertion>") {
        body.splice(at..at + 11, written.bytes());
    }

    let Some(head) = reader::request_head(&headers) else { return false };
    let host = MemoryHost::with(Signatures::Hash);
    let issue = || {
        WORLD.with(|(config, policy)| {
            TokenEndpoint { config, policy, attempts: &mut Attempts::default(), host: &host, now: NOW }.issue(&head, &body)
        })
    };
    let reply = match issue() {
        Ok(reply) => reply,
        Err(error) => {
            let reply = error.reply();
            assert!(reply.status >= 400 && !reply.body.contains("access_token"));
            assert!(!matches!(error, TokenError::SigningFailed), "signing must not fail");
            return false;
        }
    };

    let form = reader::form(&body);
    let all = |name: &str| form.iter().filter(|(field, _)| field == name).map(|(_, value)| value.as_str()).collect::<Vec<_>>();
    assert!(form.iter().all(|(name, _)| name == "resource" || all(name).len() == 1), "a parameter is repeated");
    let one = |name: &str| all(name).first().copied().filter(|value| !value.is_empty());
    assert_eq!(one("grant_type"), Some("client_credentials"));
    let basic: Vec<_> = headers.iter().filter(|(name, _)| name == "authorization").map(|(_, value)| value).collect();
    let client = match (basic.as_slice(), one("client_secret"), one("client_assertion")) {
        ([], None, Some(assertion)) => {
            assert_eq!(one("client_assertion_type"), Some("urn:ietf:params:oauth:client-assertion-type:jwt-bearer"));
            assert_eq!(assertion, written, "authenticated without the signed assertion");
            assert!(matches!(issue(), Err(TokenError::InvalidClient { .. })), "an assertion must be accepted only once");
            prover(&token)
        }
        ([], Some(secret), None) => holder(one("client_id").expect("an id"), secret),
        ([value], None, None) => {
            let decoded = BASE64_STANDARD.decode(value[6..].trim_ascii()).expect("base64");
            let spaced = |text: &[u8]| text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect::<Vec<u8>>();
            let plain = |text: &[u8]| String::from_utf8(reader::percent_decoded(&spaced(text))).expect("text");
            let mut halves = decoded.splitn(2, |byte| *byte == b':');
            holder(&plain(halves.next().unwrap_or_default()), &plain(halves.next().unwrap_or_default()))
        }
        both => panic!("not exactly one authentication method: {both:?}"),
    };
    assert!(one("client_id").is_none_or(|named| named == client.id));
    let path = headers.iter().find(|(name, _)| name == ":path").map(|(_, path)| path.as_slice()).unwrap_or_default();
    let query = path.split(|byte| *byte == b'#').next().and_then(|path| path.splitn(2, |byte| *byte == b'?').nth(1));
    assert!(query.is_none_or(<[u8]>::is_empty), "a request with a query must be refused: it may contain credentials");

    let answer = Json::read(reply.body.as_bytes()).expect("JSON");
    let access_token = said(&answer, "access_token");
    let claims = access_token.split('.').nth(1).and_then(|part| BASE64_URL_SAFE_NO_PAD.decode(part).ok()).expect("claims");
    let claims = Json::read(&claims).expect("JSON");
    assert_eq!((said(&claims, "sub"), said(&claims, "client_id"), said(&claims, "iss")), (client.id, client.id, ORIGIN));
    let whole = format!("{ORIGIN}/mcp/{}", client.org);
    let audiences: Vec<&str> = claims.exactly("aud").flat_map(Json::elements).filter_map(Json::text).collect();
    let is_its_own =
        |audience: &&str| *audience == whole || audience.strip_prefix(&whole).is_some_and(|rest| rest.starts_with('/'));
    assert!(!audiences.is_empty() && audiences.iter().all(is_its_own), "{audiences:?}");
    for resource in all("resource").into_iter().filter(|resource| !resource.is_empty()) {
        assert!(audiences.iter().any(|audience| url::is_same(audience, resource)), "{resource} is not among {audiences:?}");
    }
    assert_eq!(said(&claims, "scope"), said(&answer, "scope"));
    let (holds, asked) =
        (client.scopes.split(' ').collect::<Vec<_>>(), one("scope").map(|scope| scope.split(' ').collect::<Vec<_>>()));
    for word in said(&answer, "scope").split(' ') {
        assert!(word.starts_with("mcp:call"), "{word}");
        assert!(holds.contains(&"mcp:call") || holds.contains(&word), "{word} is not a scope of the client");
        assert!(
            asked.as_ref().is_none_or(|asked| asked.contains(&"mcp:call") || asked.contains(&word)),
            "{word} was not asked for"
        );
    }
    true
}

fn said<'j>(json: &'j Json, name: &'static str) -> &'j str {
    json.exactly(name).next().and_then(Json::text).unwrap_or_default()
}

/// The client with this id and this secret.
fn holder(id: &str, secret: &str) -> &'static Client {
    assert_eq!(secret, SECRET);
    CLIENTS.iter().find(|client| client.id == id && client.key.is_none()).expect("a client with a secret")
}

/// The client that this assertion authenticates (RFC 7523 §3).
fn prover(assertion: &Token) -> &'static Client {
    let [header, claims] = [&assertion.header, &assertion.claims].map(|part| Json::read(part.as_bytes()).expect("JSON"));
    let id = said(&claims, "sub");
    let client = CLIENTS.iter().find(|client| client.id == id && client.key == Some(assertion.signer)).expect("its own key");
    assert_eq!((said(&claims, "iss"), said(&header, "alg")), (id, "RS256"));
    assert!(header.exactly("kid").all(|kid| kid.text().is_some_and(|kid| kid.as_bytes() == [assertion.signer])));
    let endpoint = format!("{ORIGIN}/oauth/token");
    let names_us = |audience: &Json| {
        audience.text().is_some_and(|audience| [ORIGIN, &endpoint].iter().any(|own| url::is_same(audience, own)))
    };
    assert!(claims.exactly("aud").flat_map(Json::elements).any(names_us));
    assert!(!said(&claims, "jti").is_empty());
    let number = |name| claims.exactly(name).next().and_then(Json::number);
    let (skew, lifetime) = (60.001, 600.0);
    let expires_at = number("exp").expect("exp");
    assert!(expires_at + skew > PRESENT);
    assert!(["nbf", "iat"].into_iter().filter_map(number).all(|moment| moment <= PRESENT + skew));
    assert!(number("iat").map_or(expires_at <= PRESENT + lifetime + skew, |iat| iat + lifetime + skew > PRESENT));
    client
}
