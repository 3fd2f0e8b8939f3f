//! The replies to clients and the lines for the log.

use super::*;
use crate::limits::standing::{Standing, Window};
use crate::testing;

const METADATA: &str = "https://gw/.well-known/oauth-protected-resource/mcp/acme";

fn header(reply: &LocalReply, wanted: &str) -> Option<String> {
    reply.headers.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value.clone())
}

#[test]
fn golden_replies() {
    let needed = Scope::parse("mcp:call:github").unwrap();
    let table = [
        (
            Denial::from(Reason::CredentialMissing),
            401,
            Some(format!(r#"Bearer resource_metadata="{METADATA}", scope="mcp:call""#)),
        ),
        (
            Denial::from(Reason::TokenExpired),
            401,
            Some(format!(
                r#"Bearer error="invalid_token", error_description="The access token expired.", resource_metadata="{METADATA}""#
            )),
        ),
        (
            Denial::ScopeInsufficient { needed, has_unread_grant: false },
            403,
            Some(format!(r#"Bearer error="insufficient_scope", scope="mcp:call:github", resource_metadata="{METADATA}""#)),
        ),
        (Reason::OriginNotAllowed.into(), 403, None),
        (Reason::PathUnmatched.into(), 404, None),
        (Reason::JwksUnavailable.into(), 503, None),
        (Reason::MessageMalformed.into(), 400, None),
        (Reason::MethodNotAllowed.into(), 405, None),
    ];
    for (denial, status, challenge) in table {
        let scope = Some("mcp:call".to_owned());
        let reply = denial.reply(Some(&Discovery { resource_metadata: Some(METADATA.to_owned()), scope }));
        assert_eq!(reply.status, status);
        assert_eq!(header(&reply, "www-authenticate"), challenge);
        assert_eq!(header(&reply, "retry-after").is_some(), status == 503);
        assert_eq!(header(&reply, "allow").is_some(), status == 405);
    }
    let reply = Denial::from(Reason::TokenExpired).reply(None);
    assert_eq!(
        reply.body,
        r#"{"error":"invalid_token","error_description":"The access token expired.","reason":"token_expired"}"#
    );
    assert_eq!(
        header(&reply, "www-authenticate").unwrap(),
        r#"Bearer error="invalid_token", error_description="The access token expired.""#
    );
    assert_eq!(
        header(&Denial::from(Reason::CredentialMissing).reply(None), "www-authenticate").unwrap(),
        r#"Bearer scope="mcp:call""#
    );
}

#[test]
fn a_header_mismatch_is_told_in_json_rpc() {
    let reply = Denial::HeaderMismatch { request_id: json!("a") }.reply(None);
    let body: Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!((reply.status, &body["id"], &body["error"]["code"]), (400, &json!("a"), &json!(-32020)));
    assert_eq!(body["error"]["data"]["reason"], "header_mismatch");
}

#[test]
fn retry_after_rounds_up_to_whole_seconds() {
    for (wait, expected) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2")] {
        let denial = Denial::JwksUnavailable { retry_after: Duration::from_millis(wait) };
        assert_eq!(header(&denial.reply(None), "retry-after").unwrap(), expected);
    }
}

#[test]
fn the_log_line_quotes_what_did_not_match_and_nothing_else() {
    let claims = json!({"iss": "https://idp/\nforged", "aud": ["a", "b"], "sub": "secret subject"});
    let token = testing::sign(&json!({"alg": "RS256", "kid": "k\u{202e}"}), &claims);
    let jws = || CompactJws::parse(&token).unwrap();
    let org = OrgName::parse("acme").unwrap();
    let line = |denial: Denial| denial.details().map(|details| details.to_string()).unwrap_or_default();
    for (denial, quoted) in [
        (Denial::issuer_unknown(&org, jws()), &[r#""https://idp/\nforged""#, "organization acme"][..]),
        (Denial::audience(Reason::AudienceMismatch, jws()), &[r#""https://idp/\nforged""#, r#"["a", "b"]"#]),
        (Denial::key_mismatch(Reason::KeyUnknown, jws()), &[r#""https://idp/\nforged""#, r#""k\u{202e}""#]),
        (Denial::key_mismatch(Reason::SignatureInvalid, jws()), &[r#""https://idp/\nforged""#, "signature"]),
        (Denial::ScopeInsufficient { needed: Scope::AllConnectors, has_unread_grant: true }, &["mcp:call", "grant"]),
        (Denial::JwksUnavailable { retry_after: Duration::from_millis(7) }, &["7 ms"]),
    ] {
        let line = line(denial);
        assert!(quoted.iter().all(|quoted| line.contains(quoted)), "{line}");
        assert!(!line.contains('\n') && !line.contains("secret") && !line.contains(&token), "{line}");
    }
    assert_eq!(line(Reason::TokenExpired.into()), "");
    assert_eq!(Denial::audience(Reason::ClaimMissing, jws()), Denial::Plain(Reason::ClaimMissing));
}

#[test]
fn the_data_of_a_refusal_are_moved_and_not_copied() {
    let token = testing::sign(&json!({"alg": "RS256", "kid": "k"}), &json!({"iss": "https://idp", "aud": ["a", "b"]}));
    let org = OrgName::parse("acme").unwrap();
    let tests: [fn(&OrgName, CompactJws<'_>) -> Denial; 3] = [
        |org, jws| Denial::issuer_unknown(org, jws),
        |_, jws| Denial::audience(Reason::AudienceMismatch, jws),
        |_, jws| Denial::key_mismatch(Reason::KeyUnknown, jws),
    ];
    for refuse in tests {
        let jws = CompactJws::parse(&token).unwrap();
        assert_eq!(allocation_counter::measure(|| drop(refuse(&org, jws))).count_total, 0);
    }
}

#[test]
fn the_log_line_names_the_limit_that_is_exceeded() {
    let window = |quota, seconds| Window {
        quota,
        length: Some(Duration::from_secs(seconds)),
        remaining: 0,
        resets_in: Duration::from_secs(1),
    };
    let standing = Standing { rate: Some(window(600, 60)), month: Some(window(1000, 0)) };
    for (kind, expected) in [
        (Kind::Rate, "the rate of 600 requests in 60 s is exceeded for 50 ms"),
        (Kind::Month, "the quota of 1000 requests a month is used up for 50 ms"),
    ] {
        let denial = Denial::from(Exceeded { kind, retry_after: Duration::from_millis(50), standing });
        assert_eq!(denial.details().unwrap().to_string(), expected);
    }
}
