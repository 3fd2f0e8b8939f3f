//! JSON Web Keys (RFC 7517): selects the keys of a published set that can verify RS256.

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

/// Maximum length of a JWK set document in bytes. Real ones, certificates included, stay below 64 KiB.
pub const MAX_DOCUMENT_LENGTH: usize = 256 * 1024;
/// Maximum number of keys in a set. A set with more keys is refused. Real ones have fewer than ten.
const MAX_KEYS: usize = 100;
/// Accepted lengths of RSA moduli. Shorter ones are weak (RFC 7518 §3.3). Longer ones cost more time than a request may.
const MODULUS_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// Maximum number of keys that are tried for a token without `kid`, or with a `kid` that several keys have.
const MAX_CANDIDATES: usize = 4;
/// Maximum total length of the moduli of these keys, in bits. Verification with a modulus of four times the length takes
/// fourteen times as long.
const MAX_CANDIDATE_BITS: usize = 16_384;
/// Maximum length of a public exponent in bits. Real ones are 65537 or 3. A longer one only takes more time.
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
    /// The key with these big-endian numbers. `None` if the modulus is even, too short or too long, or if the exponent is
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

/// The length in bits of a big-endian number without leading zero bytes.
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
    pub fn new(kid: &str, key: RsaPublicKey) -> Self {
        Self { kid: Some(kid.into()), x5t: None, x5t_s256: None, key }
    }

    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    pub fn key(&self) -> &RsaPublicKey {
        &self.key
    }

    /// Reads a key of a set. It is an error if the key is not for RS256 signatures. [`JwkSet::parse`] ignores such keys
    /// (RFC 7517 §4 and §5).
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

    /// The key with its purpose, as an element of a published set (RFC 7517 §4).
    pub fn to_value(&self) -> Value {
        let mut members = self.to_members();
        members.extend([("use", "sig"), ("alg", "RS256")].map(|(name, value)| (name.to_owned(), value.into())));
        members.into()
    }

    /// The numbers and names of the key, without its purpose.
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
    /// The length of the modulus is not accepted. The number is its length in bits.
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

/// The reason why a document is not a usable set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwkSetError {
    /// The document is over 256 KiB.
    TooLong,
    /// The document is not a JSON object with an array `keys`.
    Malformed,
    /// The set has over 100 keys.
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
            Self::Malformed => "the document is not a JWK set",
            Self::TooManyKeys => "the set has over 100 keys",
            Self::NoUsableKey(why) => why,
        })
    }
}

/// The usable keys of a published set. There is at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwkSet(Vec<Jwk>);

impl JwkSet {
    /// Parses a JWK set document. Keys that cannot verify RS256 are dropped.
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

    /// The set as a document from which [`JwkSet::parse`] reads the same set. It is no longer than the published
    /// document, so it does not exceed the maximum length.
    pub fn to_document(&self) -> String {
        serde_json::json!({ "keys": self.0.iter().map(Jwk::to_members).collect::<Vec<_>>() }).to_string()
    }

    /// Whether the set has a key that a token's header names.
    pub fn has_named(&self, hint: &KeyHint<'_>) -> bool {
        self.0.iter().any(|jwk| jwk.is_named_by(hint))
    }

    /// The keys to try for a token with this header: the keys that it names. If it names no key of the set, these are the
    /// keys without `kid`, because RFC 7517 §4.5 makes `kid` optional. If the token has no `kid` either, these are all
    /// keys. There are at most four, and fewer if they are long.
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

    /// Whether this set has a key that `other` does not have.
    pub fn has_more_than(&self, other: &Self) -> bool {
        self.0.iter().any(|jwk| !other.0.contains(jwk))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Always false: a set has at least one key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests;
