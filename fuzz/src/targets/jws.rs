//! The compact serialization: what is read has one spelling, and a header of the profile.

use apexmcp_auth::jose::compact::CompactJws;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use crate::reader::Json;

/// The members of a header that must not be there: they bring a key, or change what the rest means.
const FORBIDDEN: [&str; 6] = ["jwk", "jku", "x5u", "x5c", "crit", "b64"];

/// `data` is a token. Where it has a line feed, it is the texts of header and claims, and a signature.
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
    assert_eq!(respelled, token, "one spelling");
    assert_eq!((jws.token(), jws.signing_input()), (token.as_str(), format!("{header}.{claims}").as_str()));
    assert_eq!(jws.signature(), decoded(signature));

    let header = Json::read(&decoded(header)).expect("a header in JSON");
    let texts = |name| header.exactly(name).map(|value| value.text()).collect::<Vec<_>>();
    assert_eq!(texts("alg"), [Some("RS256")]);
    assert!(FORBIDDEN.iter().all(|name| header.exactly(name).next().is_none()), "{header:?}");
    assert_eq!(texts("kid"), jws.kid().map(|kid| vec![Some(kid)]).unwrap_or_default());
    assert!(jws.kid().is_none_or(|kid| kid.len() <= 256));
    super::claims::check(&decoded(claims));
    true
}
