//! JSON Web Keys (RFC 7517): which of a published set can verify RS256 here.

use std::fmt;

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
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
/// Values of `use` that mean "verifies the signatures of tokens": RFC 7517 §4.2, and SPIFFE's JWT-SVID §4.2 for the keys of a
/// trust bundle. IANA's registry has no other such value.
const USES: [&str; 2] = ["sig", "jwt-svid"];
/// Maximum length of a certificate's thumbprint: SHA-256 has 43 characters in base64url.
const MAX_THUMBPRINT_LENGTH: usize = 64;
/// Maximum number of keys for which an error gives the reason.
const MAX_PROBLEMS: usize = 5;
/// Maximum length of a quoted value in an error, in characters.
const MAX_QUOTE: usize = 40;

/// Decodes the numbers of keys leniently. RFC 7518 §6.3.1 requires base64url without padding, but some providers add padding
/// or use the alphabet of RFC 4648 §4. This is safe, because the spelling of a number is not signed.
const LENIENT_BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true).with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a token's header says about the key that signed it: RFC 7515 §4.1.4, §4.1.7 and §4.1.8.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeyHint<'t> {
    /// The id of the key.
    pub kid: Option<&'t str>,
    /// The SHA-1 thumbprint of its certificate. Not used if there is a `kid`.
    pub x5t: Option<&'t str>,
    /// The SHA-256 thumbprint of its certificate. Not used if there is a `kid`.
    pub x5t_s256: Option<&'t str>,
}

impl<'t> From<Option<&'t str>> for KeyHint<'t> {
    fn from(kid: Option<&'t str>) -> Self {
        Self { kid, ..Self::default() }
    }
}

/// The text of a certificate's thumbprint, without padding. Any other value is ignored.
pub(super) fn thumbprint(value: &Value) -> Option<Box<str>> {
    let text = value.as_str()?.trim_end_matches('=');
    let is_base64url = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_good = !text.is_empty() && text.len() <= MAX_THUMBPRINT_LENGTH && text.bytes().all(is_base64url);
    is_good.then(|| text.into())
}

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
        Self::checked(modulus, exponent).ok()
    }

    fn checked(modulus: &[u8], exponent: &[u8]) -> Result<Self, Unusable> {
        let not_a_number = |name| move |_| Unusable::Number(name);
        let modulus = UintRef::new(modulus).map_err(not_a_number("n"))?;
        let exponent = UintRef::new(exponent).map_err(not_a_number("e"))?;
        let is_odd = |number: UintRef<'_>| number.as_bytes().last().is_some_and(|byte| byte & 1 == 1);
        let length = bits(modulus.as_bytes()).unwrap_or(0);
        if !MODULUS_BITS.contains(&length) {
            return Err(Unusable::ModulusLength(length));
        }
        if !is_odd(modulus) {
            return Err(Unusable::EvenModulus);
        }
        let is_long = bits(exponent.as_bytes()).is_none_or(|bits| bits > MAX_EXPONENT_BITS);
        if is_long || !is_odd(exponent) || exponent.as_bytes() == [1] {
            return Err(Unusable::Exponent);
        }
        let to_der = || {
            let key = pkcs1::RsaPublicKey { modulus, public_exponent: exponent }.to_der()?;
            let subject_public_key = BitStringRef::from_bytes(&key)?;
            SubjectPublicKeyInfo { algorithm: pkcs1::ALGORITHM_ID, subject_public_key }.to_der()
        };
        let spki = to_der().map_err(not_a_number("n"))?;
        Ok(Self { modulus: modulus.as_bytes().into(), exponent: exponent.as_bytes().into(), spki })
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
    x5t: Option<Box<str>>,
    x5t_s256: Option<Box<str>>,
    key: RsaPublicKey,
}

impl Jwk {
    /// `key` under the id `kid`.
    pub fn new(kid: &str, key: RsaPublicKey) -> Self {
        Self { kid: Some(kid.into()), x5t: None, x5t_s256: None, key }
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
    fn from_members(members: &Map<String, Value>) -> Result<Self, Unusable> {
        // Some serializers write null for an absent member.
        let member = |name: &str| members.get(name).filter(|value| !value.is_null());
        let expect = |name: &'static str, accepted: &'static [&'static str], may_be_absent: bool| {
            let is_good = |value: &Value| value.as_str().is_some_and(|text| accepted.contains(&text));
            let is_accepted = member(name).map_or(may_be_absent, is_good);
            let found = || member(name).map(quoted);
            if is_accepted { Ok(()) } else { Err(Unusable::Member { name, found: found(), accepted }) }
        };
        expect("kty", &["RSA"], false)?;
        expect("use", &USES, true)?;
        expect("alg", &["RS256"], true)?;
        let is_verify = |operations: &Vec<Value>| operations.iter().any(|operation| operation.as_str() == Some("verify"));
        if !member("key_ops").is_none_or(|operations| operations.as_array().is_some_and(is_verify)) {
            return Err(Unusable::Operations);
        }
        let kid = member("kid").map(|kid| kid.as_str().ok_or(Unusable::Kid)).transpose()?.map(Into::into);
        let number = |name| member(name).and_then(Value::as_str).and_then(published_number).ok_or(Unusable::Number(name));
        let key = RsaPublicKey::checked(&number("n")?, &number("e")?)?;
        let hint = |name| member(name).and_then(thumbprint);
        Ok(Self { kid, x5t: hint("x5t"), x5t_s256: hint("x5t#S256"), key })
    }

    /// Whether a token's header names this key: by `kid`, or by a thumbprint if the header has no `kid`.
    fn is_named_by(&self, hint: &KeyHint<'_>) -> bool {
        let is_it = |own: &Option<Box<str>>, named: Option<&str>| named.is_some() && own.as_deref() == named;
        match hint.kid {
            Some(_) => is_it(&self.kid, hint.kid),
            None => is_it(&self.x5t, hint.x5t) || is_it(&self.x5t_s256, hint.x5t_s256),
        }
    }

    /// The names by which a token may refer to this key.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        [&self.kid, &self.x5t, &self.x5t_s256].into_iter().filter_map(|name| name.as_deref())
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
        let names = [("kid", &self.kid), ("x5t", &self.x5t), ("x5t#S256", &self.x5t_s256)];
        let names = names.into_iter().filter_map(|(name, value)| Some((name, Value::from(value.as_deref()?))));
        key.into_iter().chain(names).map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// A number of a key, decoded by [`LENIENT_BASE64`].
fn published_number(text: &str) -> Option<Vec<u8>> {
    let in_alphabet = |character| match character {
        '+' => '-',
        '/' => '_',
        other => other,
    };
    let text: String = text.chars().filter(|character| !character.is_ascii_whitespace()).map(in_alphabet).collect();
    LENIENT_BASE64.decode(text).ok()
}

/// A value from a key set, short enough for a log line. Debug formatting escapes characters that could deceive a reader.
fn quoted(value: &Value) -> String {
    let Some(text) = value.as_str() else { return "not a string".to_owned() };
    let short: String = text.chars().take(MAX_QUOTE).collect();
    let ellipsis = if short.len() < text.len() { "…" } else { "" };
    format!("{short:?}{ellipsis}")
}

/// The reason why a key of a set cannot verify RS256.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Unusable {
    /// The key is not a JSON object.
    NotAnObject,
    /// A member is missing or does not have an accepted value.
    Member { name: &'static str, found: Option<String>, accepted: &'static [&'static str] },
    /// `key_ops` is not an array that contains "verify".
    Operations,
    /// `kid` is not a string.
    Kid,
    /// `n` or `e` is missing or is not a base64url number.
    Number(&'static str),
    /// The modulus has an unaccepted number of bits: this one.
    ModulusLength(usize),
    /// The modulus is even, so it is not the product of two odd primes.
    EvenModulus,
    /// The exponent is even, 1, or too long.
    Exponent,
}

impl fmt::Display for Unusable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnObject => formatter.write_str("it is not a JSON object"),
            Self::Member { name, found, accepted } => {
                let accepted: Vec<String> = accepted.iter().map(|value| format!("{value:?}")).collect();
                let found = found.as_deref().unwrap_or("missing");
                write!(formatter, "{name:?} is {found}, expected {}", accepted.join(" or "))
            }
            Self::Operations => formatter.write_str("\"key_ops\" is not an array that contains \"verify\""),
            Self::Kid => formatter.write_str("\"kid\" is not a string"),
            Self::Number(name) => write!(formatter, "{name:?} is missing or is not a base64url number"),
            Self::ModulusLength(bits) => {
                let (least, most) = (MODULUS_BITS.start(), MODULUS_BITS.end());
                write!(formatter, "the modulus \"n\" has {bits} bits, expected {least} to {most}")
            }
            Self::EvenModulus => formatter.write_str("the modulus \"n\" is even"),
            Self::Exponent => {
                write!(formatter, "the exponent \"e\" is even, is 1, or has over {MAX_EXPONENT_BITS} bits")
            }
        }
    }
}

/// Why a document is no usable set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwkSetError {
    /// Over 256 KiB.
    TooLong,
    /// No JSON object with an array `keys`.
    Malformed,
    /// Over 100 keys.
    TooManyKeys,
    /// None of its keys can verify RS256, for these reasons. A provider without a usable key counts as broken. It does not
    /// mean that the provider has revoked all its keys.
    NoUsableKey(Box<str>),
}

impl JwkSetError {
    fn no_usable_key(keys: &[Value], problems: &[Unusable]) -> Self {
        if keys.is_empty() {
            return Self::NoUsableKey("\"keys\" is empty".into());
        }
        let name = |index: usize, key: &Value| match key.get("kid").filter(|kid| kid.is_string()) {
            Some(kid) => format!("keys[{index}] (kid {})", quoted(kid)),
            None => format!("keys[{index}]"),
        };
        let known = keys.iter().zip(problems).enumerate().take(MAX_PROBLEMS);
        let mut texts: Vec<String> = known.map(|(index, (key, why))| format!("{}: {why}", name(index, key))).collect();
        let others = keys.len().saturating_sub(texts.len());
        texts.extend((others > 0).then(|| format!("and {others} more")));
        Self::NoUsableKey(format!("none of its keys can verify RS256: {}", texts.join("; ")).into())
    }
}

impl fmt::Display for JwkSetError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::TooLong => "the document is over 256 KiB",
            Self::Malformed => "the document is no JWK set",
            Self::TooManyKeys => "the set has over 100 keys",
            Self::NoUsableKey(why) => why,
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
        let document = json::without_byte_order_mark(document);
        let members = json::parse_object(document).map_err(|_| JwkSetError::Malformed)?;
        let keys = members.get("keys").and_then(Value::as_array).ok_or(JwkSetError::Malformed)?;
        if keys.len() > MAX_KEYS {
            return Err(JwkSetError::TooManyKeys);
        }
        let (mut usable, mut problems) = (Vec::new(), Vec::new());
        for key in keys {
            match key.as_object().ok_or(Unusable::NotAnObject).and_then(Jwk::from_members) {
                Ok(key) => usable.push(key),
                Err(problem) => problems.push(problem),
            }
        }
        if usable.is_empty() { Err(JwkSetError::no_usable_key(keys, &problems)) } else { Ok(Self(usable)) }
    }

    /// The set as a document that [`JwkSet::parse`] reads to the same set. It is no longer than the one that was published,
    /// so that what could be read there can be read here.
    pub fn to_document(&self) -> String {
        serde_json::json!({ "keys": self.0.iter().map(Jwk::to_members).collect::<Vec<_>>() }).to_string()
    }

    /// Whether the set has a key that a token's header names.
    pub fn has_named(&self, hint: &KeyHint<'_>) -> bool {
        self.0.iter().any(|jwk| jwk.is_named_by(hint))
    }

    /// The keys to try for a token with this header: the keys that it names. If it names none of the set, these are the keys
    /// without `kid` (RFC 7517 §4.5 makes `kid` optional), or all keys if the token has no `kid`. There are at most four,
    /// and fewer if they are long.
    pub fn candidates<'s, 'h>(&'s self, hint: impl Into<KeyHint<'h>>) -> impl Iterator<Item = &'s RsaPublicKey> {
        let hint = hint.into();
        let has_named = self.has_named(&hint);
        let mut left = MAX_CANDIDATE_BITS;
        let mut is_affordable = move |key: &&RsaPublicKey| {
            let after = bits(&key.modulus).and_then(|bits| left.checked_sub(bits));
            left = after.unwrap_or(left);
            after.is_some()
        };
        let may_be = move |jwk: &&Jwk| match (has_named, hint.kid) {
            (true, _) => jwk.is_named_by(&hint),
            (false, Some(_)) => jwk.kid.is_none(),
            (false, None) => true,
        };
        self.0.iter().filter(may_be).map(|jwk| &jwk.key).filter(move |key| is_affordable(key)).take(MAX_CANDIDATES)
    }

    /// The names of all keys: `kid`s, and thumbprints of certificates.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(Jwk::names)
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

    /// Whether a good key with these changes is used. `"<absent>"` removes a member.
    fn usable(changes: Value) -> bool {
        let mut key = json!({"kty": "RSA", "n": number(2048), "e": "AQAB", "kid": "a"});
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::String(text) if text == "<absent>" => key.as_object_mut().unwrap().remove(name),
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
            (json!({"kty": "<absent>"}), false),
            (json!({"kid": "<absent>"}), true),
            (json!({"use": null, "alg": null, "key_ops": null, "x5t": null, "x5c": null, "x5t#S256": null}), true),
            (json!({"use": "jwt-svid"}), true),
            (json!({"use": "x509-svid"}), false),
            (json!({"use": "SIG"}), false),
            (json!({"use": ["sig"]}), false),
            (json!({"n": format!("{}==", number(2048))}), true),
            (json!({"n": number(2048).replace('_', "/").replace('-', "+")}), true),
            (json!({"n": number(2048).replace('_', "/") + "==\n"}), true),
            (json!({"n": number(2048).split_at(76).0.to_owned() + "\r\n" + number(2048).split_at(76).1}), true),
            (json!({"e": "AQAB===="}), false),
            (json!({"e": "AQAB="}), false),
            (json!({"e": "Aw=="}), true),
            (json!({"e": 65537}), false),
            (json!({"use": "enc"}), false),
            (json!({"alg": "RS512"}), false),
            (json!({"alg": "HS256"}), false),
            (json!({"key_ops": ["encrypt"]}), false),
            (json!({"key_ops": "verify"}), false),
            (json!({"kid": 7}), false),
            (json!({"n": number(1024)}), false),
            (json!({"n": number(8200)}), false),
            (json!({"n": null}), false),
            (json!({"e": null}), false),
            (json!({"n": "<absent>"}), false),
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
        assert_eq!(parse(&json!({"keys": []})), Err(JwkSetError::NoUsableKey("\"keys\" is empty".into())));
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

    #[test]
    fn harmless_bytes_before_the_json_are_skipped() {
        let document = json!({"keys": [{"kty": "RSA", "n": number(2048), "e": "AQAB"}]}).to_string();
        for (before, is_read) in [("\u{feff}", true), ("\n\u{feff} ", true), ("\r\n\t", true), (")]}'\n", false), ("x", false)] {
            assert_eq!(JwkSet::parse(format!("{before}{document}").as_bytes()).is_ok(), is_read, "{before:?}");
        }
    }

    #[test]
    fn keys_are_chosen_by_thumbprint_and_by_the_lack_of_a_kid() {
        let key = |bits: usize, names: Value| {
            let mut key = json!({"kty": "RSA", "n": number(bits), "e": "AQAB"});
            key.as_object_mut().unwrap().extend(names.as_object().unwrap().clone());
            key
        };
        let keys = [
            key(2048, json!({"kid": "a"})),
            key(2056, json!({"x5t": "one"})),
            key(2064, json!({"kid": "b", "x5t#S256": "two=="})),
            key(2072, json!({})),
            key(2080, json!({"x5t": "no thumbprint"})),
            key(2088, json!({"kid": null})),
            key(2096, json!({})),
        ];
        let set = JwkSet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap();
        assert_eq!(JwkSet::parse(set.to_document().as_bytes()).as_ref(), Ok(&set), "thumbprints are printed");
        let chosen = |kid, x5t, x5t_s256| {
            let keys = set.candidates(KeyHint { kid, x5t, x5t_s256 });
            keys.map(|key| key.modulus().len() * 8).collect::<Vec<_>>()
        };
        assert_eq!(chosen(Some("a"), None, None), [2048]);
        assert_eq!(chosen(Some("new"), None, None), [2056, 2072, 2080, 2088], "keys without kid, four of them");
        assert_eq!(chosen(Some(""), None, None), [2056, 2072, 2080, 2088]);
        assert_eq!(chosen(None, Some("one"), None), [2056]);
        assert_eq!(chosen(None, None, Some("two")), [2064]);
        assert_eq!(chosen(None, Some("one"), Some("two")), [2056, 2064]);
        assert_eq!(chosen(None, Some("two"), Some("one")), [2048, 2056, 2064, 2072], "no key has it: as without");
        assert_eq!(chosen(None, None, None), [2048, 2056, 2064, 2072]);
        let named = JwkSet::parse(json!({"keys": [keys[0], keys[2]]}).to_string().as_bytes()).unwrap();
        assert_eq!(named.candidates(Some("new")).count(), 0, "each key has another kid");
    }

    #[test]
    fn a_set_without_usable_keys_says_why_for_each_key() {
        let why = |keys: Value| JwkSet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap_err().to_string();
        let good = json!({"kty": "RSA", "n": number(2048), "e": "AQAB", "kid": "k"});
        let with = |name: &str, value: Value| {
            let mut key = good.clone();
            key[name] = value;
            key
        };
        for (key, expected) in [
            (with("kty", json!("EC")), r#"keys[0] (kid "k"): "kty" is "EC", expected "RSA""#),
            (with("kty", json!(null)), r#"keys[0] (kid "k"): "kty" is missing, expected "RSA""#),
            (with("use", json!("enc")), r#"keys[0] (kid "k"): "use" is "enc", expected "sig" or "jwt-svid""#),
            (with("use", json!(["sig"])), r#"keys[0] (kid "k"): "use" is not a string, expected "sig" or "jwt-svid""#),
            (with("alg", json!("PS256")), r#"keys[0] (kid "k"): "alg" is "PS256", expected "RS256""#),
            (with("key_ops", json!(["sign"])), r#"keys[0] (kid "k"): "key_ops" is not an array that contains "verify""#),
            (with("kid", json!(7)), r#"keys[0]: "kid" is not a string"#),
            (with("n", json!("a.b")), r#"keys[0] (kid "k"): "n" is missing or is not a base64url number"#),
            (with("n", json!(number(1024))), r#"keys[0] (kid "k"): the modulus "n" has 1024 bits, expected 2048 to 8192"#),
            (with("e", json!("AQ")), r#"keys[0] (kid "k"): the exponent "e" is even, is 1, or has over 17 bits"#),
            (json!("a key"), "keys[0]: it is not a JSON object"),
        ] {
            assert_eq!(why(json!([key])), format!("none of its keys can verify RS256: {expected}"));
        }
        let hostile = "\u{202e}\n".repeat(50);
        let many = why(json!(vec![json!({"kid": hostile, "kty": hostile}); 100]));
        assert!(many.ends_with("; and 95 more") && many.matches("keys[").count() == 5, "{many}");
        assert!(many.len() < 8_192 && !many.contains(['\n', '\u{202e}']), "{} bytes", many.len());
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
