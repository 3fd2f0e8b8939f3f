//! The compact serialization of a JWS. An accepted token has only one spelling, and its header conforms to the
//! profile.

use apexmcp_core::jose::compact::CompactJws;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::reader::Json;

/// Header members that must be absent, because they change the meaning of other members.
const FORBIDDEN: [&str; 2] = ["crit", "b64"];
/// Header members that contain a key or name one. They must have no effect.
const IGNORED: [&str; 4] = ["jwk", "jku", "x5u", "x5c"];

/// The key hint and the claims of the same token without the ignored members, as text.
fn without_ignored_members(header: &[u8], claims: &str, signature: &str) -> String {
    let mut header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(header).expect("a header in JSON");
    IGNORED.iter().for_each(|name| drop(header.remove(*name)));
    let header = BASE64_URL_SAFE_NO_PAD.encode(serde_json::Value::from(header).to_string());
    let token = format!("{header}.{claims}.{signature}");
    let jws = CompactJws::parse(&token).expect("the token without the ignored members is valid");
    format!("{:?} {:?}", jws.key_hint(), jws.claims())
}

/// `data` is a token, or three lines: the texts of header and claims, and a signature.
pub fn check(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let token = match text.split('\n').collect::<Vec<_>>()[..] {
        [header, claims, signature] => [header, claims, signature].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part)).join("."),
        _ => text.to_owned(),
    };
    let Ok(jws) = CompactJws::parse(&token) else { return false };
    let parts: Vec<&str> = token.split('.').collect();
    let [header, claims, signature] = parts[..] else { panic!("three parts: {token}") };
    let decoded = |part| BASE64_URL_SAFE_NO_PAD.decode(part).expect("base64url");
    let respelled = [header, claims, signature].map(|part| BASE64_URL_SAFE_NO_PAD.encode(decoded(part))).join(".");
    assert_eq!(respelled, token, "the token has another spelling");
    assert_eq!((jws.token(), jws.signing_input()), (token.as_str(), format!("{header}.{claims}").as_str()));
    assert_eq!(jws.signature(), decoded(signature));

    let header_text = decoded(header);
    let header = Json::read(&header_text).expect("a header in JSON");
    let texts = |name| header.exactly(name).map(|value| value.text()).collect::<Vec<_>>();
    assert_eq!(texts("alg"), [Some("RS256")]);
    assert!(FORBIDDEN.iter().all(|name| header.exactly(name).next().is_none()), "{header:?}");
    assert_eq!(texts("kid"), jws.kid().map(|kid| vec![Some(kid)]).unwrap_or_default());
    assert!(jws.kid().is_none_or(|kid| kid.len() <= 256));
    let hint = jws.key_hint();
    for (name, read) in [("x5t", hint.x5t), ("x5t#S256", hint.x5t_s256)] {
        assert!(read.is_none() || (jws.kid().is_none() && texts(name)[0].map(|text| text.trim_end_matches('=')) == read));
    }
    if IGNORED.iter().any(|name| header.exactly(name).next().is_some()) {
        assert_eq!(without_ignored_members(&header_text, claims, signature), format!("{hint:?} {:?}", jws.claims()));
    }
    super::claims::check(&decoded(claims));
    true
}
