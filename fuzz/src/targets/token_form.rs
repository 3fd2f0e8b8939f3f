//! The token endpoint: who gets a token proved itself in one way, and gets no more than it holds.

use apexmcp_auth::oauth::attempts::Attempts;
use apexmcp_auth::oauth::token_endpoint::{TokenEndpoint, TokenError};
use apexmcp_auth::policy::source::PolicySource;
use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};

use crate::host::FuzzHost;
use crate::reader::{self, Json};
use crate::world::{self, CLIENTS, NOW, ORIGIN, SECRET};

thread_local! {
    static WORLD: (apexmcp_auth::config::Config, PolicySource) = {
        let (config, policy) = world::config();
        (config, PolicySource::Inline(policy))
    };
}

/// `data` is a head and a form. Where the head has the word `<basic>`, what follows it in the line is encoded.
pub fn check(data: &[u8]) {
    let (mut headers, body) = reader::head_and_body(data);
    for (_, value) in &mut headers {
        if let Some(at) = value.windows(7).position(|word| word == b"<basic>") {
            let encoded = BASE64_STANDARD.encode(&value[at + 7..]);
            value.splice(at.., encoded.bytes());
        }
    }
    let Some(head) = reader::request_head(&headers) else { return };
    let host = FuzzHost::default();
    let issued = WORLD.with(|(config, policy)| {
        TokenEndpoint { config, policy, attempts: &mut Attempts::default(), host: &host, now: NOW }.issue(&head, body)
    });
    let reply = match issued {
        Ok(reply) => reply,
        Err(error) => {
            let reply = error.reply();
            assert!(reply.status >= 400 && !reply.body.contains("access_token"));
            assert!(!matches!(error, TokenError::SigningFailed), "nothing hinders signing");
            return;
        }
    };

    let form = reader::form(body);
    let all = |name: &str| form.iter().filter(|(field, _)| field == name).map(|(_, value)| value.as_str()).collect::<Vec<_>>();
    assert!(form.iter().all(|(name, _)| all(name).len() == 1), "a parameter is repeated");
    let one = |name: &str| all(name).first().copied().filter(|value| !value.is_empty());
    assert_eq!(one("grant_type"), Some("client_credentials"));
    let basic: Vec<_> = headers.iter().filter(|(name, _)| name == "authorization").map(|(_, value)| value).collect();
    assert!(one("client_assertion").is_none(), "no client has a key");
    let (id, secret) = match (basic.as_slice(), one("client_secret")) {
        ([], Some(secret)) => (one("client_id").expect("an id").to_owned(), secret.to_owned()),
        ([value], None) => {
            let decoded = BASE64_STANDARD.decode(value[6..].trim_ascii()).expect("base64");
            let plain = |text: &[u8]| String::from_utf8(reader::percent_decoded(text)).expect("text");
            let mut halves = decoded.splitn(2, |byte| *byte == b':');
            (plain(halves.next().unwrap_or_default()), plain(halves.next().unwrap_or_default()))
        }
        both => panic!("one way to prove itself: {both:?}"),
    };
    assert_eq!(secret, SECRET);
    let (_, org, holds) = CLIENTS.iter().find(|(known, ..)| *known == id).expect("a client");
    assert!(one("client_id").is_none_or(|named| named == id));
    let path = headers.iter().find(|(name, _)| name == ":path").map(|(_, path)| path.as_slice()).unwrap_or_default();
    let query = path.split(|byte| *byte == b'#').next().and_then(|path| path.splitn(2, |byte| *byte == b'?').nth(1));
    assert!(query.is_none_or(<[u8]>::is_empty), "credentials may stand in the query");

    let answer = Json::read(reply.body.as_bytes()).expect("JSON");
    let said = |json: &Json, name: &str| json.exactly(name).next().and_then(Json::text).unwrap_or_default().to_owned();
    let token = said(&answer, "access_token");
    let claims = token.split('.').nth(1).and_then(|part| BASE64_URL_SAFE_NO_PAD.decode(part).ok()).expect("claims");
    let claims = Json::read(&claims).expect("JSON");
    assert_eq!((said(&claims, "sub"), said(&claims, "client_id"), said(&claims, "iss")), (id.clone(), id, ORIGIN.to_owned()));
    let (audience, whole) = (said(&claims, "aud"), format!("{ORIGIN}/mcp/{org}"));
    assert!(audience == whole || audience.strip_prefix(&whole).is_some_and(|rest| rest.starts_with('/')), "{audience}");
    assert!(one("resource").is_none_or(|resource| resource == audience));
    assert_eq!(said(&claims, "scope"), said(&answer, "scope"));
    let (holds, asked) = (holds.split(' ').collect::<Vec<_>>(), one("scope").map(|scope| scope.split(' ').collect::<Vec<_>>()));
    for word in said(&answer, "scope").split(' ') {
        assert!(word.starts_with("mcp:call"), "{word}");
        assert!(holds.contains(&"mcp:call") || holds.contains(&word), "{word} is not the client's");
        assert!(
            asked.as_ref().is_none_or(|asked| asked.contains(&"mcp:call") || asked.contains(&word)),
            "{word} was not asked for"
        );
    }
}
