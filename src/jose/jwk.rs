//! JSON Web Keys (RFC 7517): which of a published set can verify RS256 here.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use pkcs1::UintRef;
use pkcs1::der::Encode;
use pkcs1::der::asn1::BitStringRef;
use serde_json::{Map, Value};
use spki::SubjectPublicKeyInfo;

use crate::json;

/// A larger document is refused before it is parsed. Real ones, certificates included, stay below 64 KiB.
pub const MAX_DOCUMENT_LENGTH: usize = 256 * 1024;
/// A set of more keys is refused whole. Real ones have below ten.
const MAX_KEYS: usize = 100;
/// RSA moduli: below is weak (RFC 7518 §3.3), above costs more time than a request may.
const MODULUS_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// Keys that one token may be tried with: where it has no `kid`, or several keys have the same.
const MAX_CANDIDATES: usize = 4;
/// The bits of their moduli together: four times as long, a modulus takes fourteen times as long.
const MAX_CANDIDATE_BITS: usize = 16_384;
/// Real exponents are 65537, or 3. What is longer only takes longer.
const MAX_EXPONENT_BITS: usize = 17;

/// An RSA public key of acceptable strength.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RsaPublicKey {
    modulus: Vec<u8>,
    exponent: Vec<u8>,
    spki: Vec<u8>,
}

impl RsaPublicKey {
    /// The key of these big-endian numbers; `None` where the modulus is too small or too large, or the exponent is
    /// even, below 3 or over 17 bits.
    pub fn from_components(modulus: &[u8], exponent: &[u8]) -> Option<Self> {
        let modulus = UintRef::new(modulus).ok()?;
        let exponent = UintRef::new(exponent).ok()?;
        let is_odd = |number: UintRef<'_>| number.as_bytes().last().is_some_and(|byte| byte & 1 == 1);
        let is_long = !MODULUS_BITS.contains(&bits(modulus.as_bytes())?) || bits(exponent.as_bytes())? > MAX_EXPONENT_BITS;
        if is_long || !is_odd(modulus) || !is_odd(exponent) || exponent.as_bytes() == [1] {
            return None;
        }
        let key = pkcs1::RsaPublicKey { modulus, public_exponent: exponent }.to_der().ok()?;
        let spki =
            SubjectPublicKeyInfo { algorithm: pkcs1::ALGORITHM_ID, subject_public_key: BitStringRef::from_bytes(&key).ok()? };
        Some(Self { modulus: modulus.as_bytes().into(), exponent: exponent.as_bytes().into(), spki: spki.to_der().ok()? })
    }

    /// The modulus, big-endian, without leading zeros.
    pub fn modulus(&self) -> &[u8] {
        &self.modulus
    }

    /// The public exponent, big-endian, without leading zeros.
    pub fn exponent(&self) -> &[u8] {
        &self.exponent
    }

    /// The key as DER SubjectPublicKeyInfo, RFC 5280 §4.1.2.7.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }
}

/// How many bits a number has that begins with no zero.
fn bits(number: &[u8]) -> Option<usize> {
    let leading_zeros = number.first()?.leading_zeros();
    number.len().checked_mul(8)?.checked_sub(usize::try_from(leading_zeros).ok()?)
}

/// A key that can verify RS256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jwk {
    kid: Option<Box<str>>,
    key: RsaPublicKey,
}

impl Jwk {
    /// `key` under the id `kid`.
    pub fn new(kid: &str, key: RsaPublicKey) -> Self {
        Self { kid: Some(kid.into()), key }
    }

    /// Its id.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// The key.
    pub fn key(&self) -> &RsaPublicKey {
        &self.key
    }

    /// A key from a set, where it is one for RS256 signatures: RFC 7517 §4 and §5, unknown kinds are ignored.
    fn from_members(members: &Map<String, Value>) -> Option<Self> {
        let is_absent_or = |name: &str, wanted: &str| members.get(name).is_none_or(|value| value.as_str() == Some(wanted));
        let may_verify = members.get("key_ops").is_none_or(|operations| {
            operations
                .as_array()
                .is_some_and(|operations| operations.iter().any(|operation| operation.as_str() == Some("verify")))
        });
        if members.get("kty")?.as_str()? != "RSA" || !is_absent_or("use", "sig") || !is_absent_or("alg", "RS256") || !may_verify {
            return None;
        }
        let number = |name: &str| BASE64_URL_SAFE_NO_PAD.decode(members.get(name)?.as_str()?).ok();
        let kid = match members.get("kid") {
            None => None,
            Some(kid) => Some(kid.as_str()?.into()),
        };
        Some(Self { kid, key: RsaPublicKey::from_components(&number("n")?, &number("e")?)? })
    }

    /// The key as members of a set that says what it is for, RFC 7517 §4.
    pub fn to_value(&self) -> Value {
        let mut members = self.to_members();
        members.extend([("use", "sig"), ("alg", "RS256")].map(|(name, value)| (name.to_owned(), value.into())));
        members.into()
    }

    /// The members without which it would not be this key.
    fn to_members(&self) -> Map<String, Value> {
        let number = |number: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(number).into();
        let key = [("kty", "RSA".into()), ("n", number(self.key.modulus())), ("e", number(self.key.exponent()))];
        let kid = self.kid.as_ref().map(|kid| ("kid", (**kid).into()));
        key.into_iter().chain(kid).map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// Why a document is no usable set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JwkSetError {
    /// Over 256 KiB.
    TooLong,
    /// No JSON object with an array `keys`.
    Malformed,
    /// Over 100 keys.
    TooManyKeys,
    /// None of its keys can verify RS256. A provider that publishes nothing is taken for broken, not for having revoked all.
    NoUsableKey,
}

impl std::fmt::Display for JwkSetError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::TooLong => "the document is over 256 KiB",
            Self::Malformed => "the document is no JWK set",
            Self::TooManyKeys => "the set has over 100 keys",
            Self::NoUsableKey => "none of its keys is for RS256: RSA of 2048 to 8192 bits, use sig",
        })
    }
}

/// The usable keys of a published set; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwkSet(Vec<Jwk>);

impl JwkSet {
    /// Reads a JWK set document, leaving out what can't verify RS256.
    ///
    /// # Errors
    /// See [`JwkSetError`].
    pub fn parse(document: &[u8]) -> Result<Self, JwkSetError> {
        if document.len() > MAX_DOCUMENT_LENGTH {
            return Err(JwkSetError::TooLong);
        }
        let members = json::parse_object(document).map_err(|_| JwkSetError::Malformed)?;
        let keys = members.get("keys").and_then(Value::as_array).ok_or(JwkSetError::Malformed)?;
        if keys.len() > MAX_KEYS {
            return Err(JwkSetError::TooManyKeys);
        }
        let usable: Vec<Jwk> = keys.iter().filter_map(|key| Jwk::from_members(key.as_object()?)).collect();
        if usable.is_empty() { Err(JwkSetError::NoUsableKey) } else { Ok(Self(usable)) }
    }

    /// The set as a document that [`JwkSet::parse`] reads to the same set. It is no longer than the one that was published,
    /// so that what could be read there can be read here.
    pub fn to_document(&self) -> String {
        serde_json::json!({ "keys": self.0.iter().map(Jwk::to_members).collect::<Vec<_>>() }).to_string()
    }

    /// The keys with which a token of this `kid` may be signed: those that bear it, or all where it names none. At most
    /// four, and of long ones fewer.
    pub fn candidates(&self, kid: Option<&str>) -> impl Iterator<Item = &RsaPublicKey> {
        let mut left = MAX_CANDIDATE_BITS;
        let mut is_affordable = move |key: &&RsaPublicKey| {
            let after = bits(&key.modulus).and_then(|bits| left.checked_sub(bits));
            left = after.unwrap_or(left);
            after.is_some()
        };
        let named = self.0.iter().filter(move |jwk| kid.is_none() || jwk.kid.as_deref() == kid).map(|jwk| &jwk.key);
        named.filter(move |key| is_affordable(key)).take(MAX_CANDIDATES)
    }

    /// Whether it has a key that `other` lacks.
    pub fn has_more_than(&self, other: &Self) -> bool {
        self.0.iter().any(|jwk| !other.0.contains(jwk))
    }

    /// How many keys it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: a set has a key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn number(bits: usize) -> String {
        let mut bytes = vec![0xff; bits / 8];
        bytes[0] = 0x80;
        BASE64_URL_SAFE_NO_PAD.encode(bytes)
    }

    fn usable(changes: Value) -> bool {
        let mut key = json!({"kty": "RSA", "n": number(2048), "e": "AQAB", "kid": "a"});
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => key.as_object_mut().unwrap().remove(name),
                value => key.as_object_mut().unwrap().insert(name.clone(), value.clone()),
            };
        }
        JwkSet::parse(json!({ "keys": [key] }).to_string().as_bytes()).is_ok()
    }

    #[test]
    fn which_keys_are_used() {
        for (changes, expected) in [
            (json!({}), true),
            (json!({"kid": null}), true),
            (json!({"use": "sig", "alg": "RS256", "key_ops": ["verify"]}), true),
            (json!({"n": number(8192)}), true),
            (json!({"e": "Aw"}), true),
            (json!({"kty": "EC"}), false),
            (json!({"kty": null}), false),
            (json!({"use": "enc"}), false),
            (json!({"alg": "RS512"}), false),
            (json!({"alg": "HS256"}), false),
            (json!({"key_ops": ["encrypt"]}), false),
            (json!({"key_ops": "verify"}), false),
            (json!({"kid": 7}), false),
            (json!({"n": number(1024)}), false),
            (json!({"n": number(8200)}), false),
            (json!({"n": null}), false),
            (json!({"n": "!"}), false),
            (json!({"n": ""}), false),
            (json!({"e": "AQ"}), false),
            (json!({"e": "Ag"}), false),
            (json!({"e": "AA"}), false),
            (json!({"e": ""}), false),
            (json!({"e": "AQAAAAE"}), false),
        ] {
            assert_eq!(usable(changes.clone()), expected, "{changes}");
        }
    }

    #[test]
    fn sizes_of_keys() {
        let modulus = |bits: usize| {
            let mut bytes = vec![0xff; bits.div_ceil(8)];
            bytes[0] >>= bytes.len() * 8 - bits;
            bytes
        };
        for (bits, is_good) in [(2047, false), (2048, true), (8192, true), (8193, false)] {
            assert_eq!(RsaPublicKey::from_components(&modulus(bits), &[1, 0, 1]).is_some(), is_good, "{bits} bits");
        }
        let mut even = modulus(2048);
        even[255] = 0xfe;
        assert!(RsaPublicKey::from_components(&even, &[1, 0, 1]).is_none(), "an even modulus");
        for (exponent, is_good) in [(&[3][..], true), (&[1], false), (&[1, 0xff, 0xff], true), (&[2, 0, 1], false)] {
            assert_eq!(RsaPublicKey::from_components(&modulus(2048), exponent).is_some(), is_good, "{exponent:?}");
        }
    }

    #[test]
    fn documents() {
        let key = json!({"kty": "RSA", "n": number(2048), "e": "AQAB"});
        let parse = |document: &Value| JwkSet::parse(document.to_string().as_bytes());
        assert_eq!(parse(&json!({"keys": vec![key.clone(); 100]})).unwrap().len(), 100);
        assert_eq!(parse(&json!({"keys": vec![key.clone(); 101]})), Err(JwkSetError::TooManyKeys));
        assert_eq!(parse(&json!({"keys": []})), Err(JwkSetError::NoUsableKey));
        assert_eq!(parse(&json!({"keys": {}})), Err(JwkSetError::Malformed));
        assert_eq!(parse(&json!({})), Err(JwkSetError::Malformed));
        assert_eq!(JwkSet::parse(b"<html>"), Err(JwkSetError::Malformed));
        for (length, expected) in [(262_144, None), (262_145, Some(JwkSetError::TooLong))] {
            let mut document = json!({"keys": [key]}).to_string();
            document.push_str(&" ".repeat(length - document.len()));
            assert_eq!((document.len(), JwkSet::parse(document.as_bytes()).err()), (length, expected));
        }
    }

    #[test]
    fn candidates_are_chosen_by_kid_and_bounded() {
        let keys: Vec<Value> = (0..6)
            .map(|index| json!({"kty": "RSA", "n": number(2048), "e": "AQAB", "kid": if index < 5 { "same" } else { "other" }}))
            .collect();
        let set = JwkSet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap();
        let count = |kid| set.candidates(kid).count();
        assert_eq!((count(Some("other")), count(Some("same")), count(Some("none")), count(None)), (1, 4, 0, 4));

        let lengths = [8192, 4096, 8192, 2048, 8192].map(|bits| json!({"kty": "RSA", "n": number(bits), "e": "AQAB"}));
        let set = JwkSet::parse(json!({ "keys": lengths }).to_string().as_bytes()).unwrap();
        let tried: Vec<usize> = set.candidates(None).map(|key| key.modulus().len() * 8).collect();
        assert_eq!(tried, [8192, 4096, 2048]);
    }

    /// What comes of a long document goes through shared data, and is read anew there.
    #[test]
    fn what_is_printed_is_no_longer_than_what_was_published() {
        let key = json!({"kty": "RSA", "n": number(2048), "e": "AQAB", "kid": ""});
        let length = json!({"keys": [key]}).to_string().len();
        let long = json!({"kty": "RSA", "n": number(2048), "e": "AQAB", "kid": "k".repeat(MAX_DOCUMENT_LENGTH - length)});
        let document = json!({"keys": [long]}).to_string();
        let set = JwkSet::parse(document.as_bytes()).unwrap();
        assert_eq!((document.len(), JwkSet::parse(set.to_document().as_bytes())), (MAX_DOCUMENT_LENGTH, Ok(set)));
    }

    proptest! {
        #[test]
        fn a_set_survives_printing(kids in proptest::collection::vec(proptest::option::of(".{0,8}"), 1..5)) {
            let keys: Vec<Value> = kids.iter().map(|kid| {
                let mut key = json!({"kty": "RSA", "n": number(2048), "e": "AQAB"});
                if let Some(kid) = kid { key["kid"] = kid.as_str().into(); }
                key
            }).collect();
            let set = JwkSet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap();
            prop_assert_eq!(JwkSet::parse(set.to_document().as_bytes()), Ok(set));
        }

        #[test]
        fn never_panics(bytes: Vec<u8>, n: Vec<u8>, e: Vec<u8>) {
            let _ = (JwkSet::parse(&bytes), RsaPublicKey::from_components(&n, &e));
        }
    }
}
