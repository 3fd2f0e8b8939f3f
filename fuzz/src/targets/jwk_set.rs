//! JWK sets. Each key in use is strong, and was published in the set.

use apexmcp_core::jose::jwk::JwkSet;
use apexmcp_core::json::without_byte_order_mark;
use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rsa::pkcs1::RsaPublicKey;
use rsa::pkcs8::SubjectPublicKeyInfoRef;

use crate::reader::Json;

/// `data` is a document. Placeholders such as `<2048>` or `<2048 even>` stand for numbers of that many bits, because a
/// fuzzer would never guess a number of this length.
pub fn check(data: &[u8]) -> bool {
    let document = expanded(data);
    let Ok(set) = JwkSet::parse(&document) else { return false };
    assert!((1..=100).contains(&set.len()) && !set.is_empty());
    let printed = set.to_document();
    assert_eq!(JwkSet::parse(printed.as_bytes()).as_ref(), Ok(&set), "parse, print, parse");
    assert!(printed.len() <= document.len(), "{} of {}", printed.len(), document.len());

    let lax = Json::read(without_byte_order_mark(&document)).expect("JSON");
    let published: Vec<&Json> = lax.exactly("keys").flat_map(Json::elements).collect();
    let kids = published.iter().flat_map(|key| key.exactly("kid").map(Json::text));
    for kid in kids.chain([None]) {
        let candidates: Vec<_> = set.candidates(kid).collect();
        let all: usize = candidates.iter().map(|key| bits(key.modulus())).sum();
        assert!(candidates.len() <= 4 && all <= 16_384, "{all}");
        for key in candidates {
            let is_it = |published: &&&Json| {
                let has = |name, bytes: &[u8]| {
                    let number = published.exactly(name).next().and_then(Json::text);
                    let number = number.and_then(lenient_base64);
                    number.is_some_and(|number| number.iter().skip_while(|byte| **byte == 0).eq(bytes))
                };
                let says = |name, texts: &[&str]| {
                    published
                        .exactly(name)
                        .all(|value| *value == Json::Word || value.text().is_some_and(|text| texts.contains(&text)))
                };
                let is_for_rs256 = published.exactly("kty").any(|kty| kty.text() == Some("RSA"))
                    && says("use", &["sig", "jwt-svid"])
                    && says("alg", &["RS256"]);
                // A key without kid is tried only if no key has the kid of the token.
                let own_kid = published.exactly("kid").next().and_then(Json::text);
                let has_kid = kid.is_none() || own_kid == kid || (own_kid.is_none() && !set.has_named(&kid.into()));
                has("n", key.modulus()) && has("e", key.exponent()) && is_for_rs256 && has_kid
            };
            assert!(published.iter().any(|key| is_it(&key)), "a key in use was not published for this kid: {kid:?}");
            let (modulus, exponent) = (bits(key.modulus()), bits(key.exponent()));
            assert!((2048..=8192).contains(&modulus) && (2..=17).contains(&exponent), "{modulus}, {exponent}");
            assert!(key.modulus().last().is_some_and(|last| last % 2 == 1), "an even modulus is no product of two odd primes");
            let spki = SubjectPublicKeyInfoRef::try_from(key.spki()).expect("DER");
            let der = RsaPublicKey::try_from(spki.subject_public_key.raw_bytes()).expect("DER");
            assert_eq!((der.modulus.as_bytes(), der.public_exponent.as_bytes()), (key.modulus(), key.exponent()));
        }
    }
    true
}

fn lenient_base64(text: &str) -> Option<Vec<u8>> {
    let lenient = GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let text: String = text.split_ascii_whitespace().collect();
    GeneralPurpose::new(&URL_SAFE, lenient).decode(text.replace('+', "-").replace('/', "_")).ok()
}

fn bits(number: &[u8]) -> usize {
    number.len() * 8 - number.first().map_or(0, |byte| byte.leading_zeros() as usize)
}

fn expanded(data: &[u8]) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(data) else { return data.to_vec() };
    let mut text = text.to_owned();
    for bits in [1024, 2047, 2048, 4096, 8192, 8200_usize] {
        for (short, last) in [(format!("<{bits}>"), 0xff), (format!("<{bits} even>"), 0xfe)] {
            if text.contains(&short) {
                let mut bytes = vec![0xff; bits.div_ceil(8) - 1];
                bytes.push(last);
                bytes[0] >>= (8 - bits % 8) % 8;
                text = text.replace(&short, &BASE64_URL_SAFE_NO_PAD.encode(bytes));
            }
        }
    }
    text.into_bytes()
}
