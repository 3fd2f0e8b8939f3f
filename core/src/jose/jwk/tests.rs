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
fn only_rsa_keys_for_signatures_are_used() {
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
fn key_sizes_are_limited() {
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
fn malformed_and_oversized_documents_are_refused() {
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
fn keys_are_chosen_by_thumbprint_and_keys_without_kid_are_tried() {
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
    assert_eq!(chosen(None, Some("two"), Some("one")), [2048, 2056, 2064, 2072], "no key has this thumbprint");
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

/// Workers pass the printed set on in shared data, and parse it again with the same limit.
#[test]
fn a_printed_set_is_no_longer_than_the_published_one() {
    let key = json!({"kty": "RSA", "n": number(2048), "e": "AQAB", "kid": ""});
    let length = json!({"keys": [key]}).to_string().len();
    let long = json!({"kty": "RSA", "n": number(2048), "e": "AQAB", "kid": "k".repeat(MAX_DOCUMENT_LENGTH - length)});
    let document = json!({"keys": [long]}).to_string();
    let set = JwkSet::parse(document.as_bytes()).unwrap();
    assert_eq!((document.len(), JwkSet::parse(set.to_document().as_bytes())), (MAX_DOCUMENT_LENGTH, Ok(set)));
}

proptest! {
    #[test]
    fn a_printed_set_is_parsed_to_the_same_set(kids in proptest::collection::vec(proptest::option::of(".{0,8}"), 1..5)) {
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
