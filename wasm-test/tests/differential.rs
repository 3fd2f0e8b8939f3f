//! Sends the same tokens to this filter and to Envoy's own `jwt_authn`, side by side in one Envoy: valid tokens, and
//! thousands of mutations of them. This filter must refuse every token that `jwt_authn` refuses. It may refuse further
//! tokens only for the reasons in [`DIFFERENCES`].
//!
//! One file, although it is over 500 lines: its lists of differences and of values for the mutations are long.

use apexmcp_fuzz::reader::Json;
use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use fastrand::Rng;
use serde_json::{Value, json};
use wasm_test::envoy::{Envoy, GATEWAY_LISTENER};
use wasm_test::gateway::{Setup, local_cluster, plugin};
use wasm_test::http::{Client, Request};
use wasm_test::issuer::Issuer;
use wasm_test::policy::merged;
use wasm_test::process::Folder;
use wasm_test::token::{Algorithm, Key, base64url, now};

/// Number of random tokens.
const TOKENS: usize = 5000;
/// The environment variable with the seed of the random tokens. Without it, each run has the same tokens, except for
/// the times in them.
const SEED: &str = "DIFFERENTIAL_SEED";
/// The clock skew that both filters accept, in seconds.
const CLOCK_SKEW: i64 = 60;
const JWT_AUTHN_LISTENER: &str = "jwt_authn";

/// A token as a lax parser reads it.
struct Lax {
    token: String,
    header: Option<Json>,
    claims: Option<Json>,
}

impl Lax {
    fn of(token: &str) -> Self {
        let parts: Vec<&str> = token.split('.').collect();
        let read = |index: usize| Json::read(&lax_base64(parts.get(index)?)?);
        Self { token: token.to_owned(), header: read(0), claims: read(1) }
    }

    /// The values of a header member, which may be repeated.
    fn header<'l>(&'l self, name: &'l str) -> impl Iterator<Item = &'l Json> {
        self.header.iter().flat_map(move |header| header.exactly(name))
    }

    /// The values of a claim, which may be repeated.
    fn claim<'l>(&'l self, name: &'l str) -> impl Iterator<Item = &'l Json> {
        self.claims.iter().flat_map(move |claims| claims.exactly(name))
    }
}

fn lax_base64(part: &str) -> Option<Vec<u8>> {
    let lax = GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(&URL_SAFE, lax).decode(part).ok()
}

/// Whether a time in this claim is at most this many seconds away from `border`.
fn is_near(lax: &Lax, claim: &str, border: i64, seconds: f64) -> bool {
    lax.claim(claim).any(|moment| moment.number().is_some_and(|moment| (moment - border as f64).abs() < seconds))
}

/// A reason for which this filter refuses a token that `jwt_authn` admits.
struct Difference {
    what: &'static str,
    /// The standard on which the refusal is based.
    why: &'static str,
    /// Changes a valid token so that it shows the difference.
    example: fn(&mut Draft),
    is_found: fn(&Lax) -> bool,
}

const DIFFERENCES: &[Difference] = &[
    Difference {
        what: "base64url with padding, or with bits left over",
        why: "RFC 7515 §2 (no padding), RFC 4648 §3.5: a token has only one spelling",
        example: |draft| draft.respelling.push(|token, _| format!("{token}==")),
        is_found: |lax| {
            let respelled: Option<Vec<String>> = lax.token.split('.').map(|part| lax_base64(part).map(base64url)).collect();
            respelled.is_none_or(|parts| parts.join(".") != lax.token)
        },
    },
    Difference {
        what: "a header with `crit` or `b64`",
        why: "RFC 7515 §4.1.11: a critical extension that is not understood is refused; RFC 7797 §6: `b64` is one",
        example: |draft| draft.header.push((r#""crit""#.into(), r#"["exp"]"#.into())),
        is_found: |lax| ["crit", "b64"].into_iter().any(|name| lax.header(name).next().is_some()),
    },
    Difference {
        what: "`typ` that names another kind of token, or is not a string",
        why: "RFC 8725 §3.11: another kind of token is not an access token; RFC 7515 §4.1.9: it is a string",
        example: |draft| draft.replace(r#""typ""#, r#""logout+jwt""#),
        is_found: |lax| {
            lax.header("typ").any(|typ| {
                let typ = typ.text().map(str::to_ascii_lowercase);
                let plain = typ.as_deref().map(|typ| typ.strip_prefix("application/").unwrap_or(typ));
                !matches!(plain, Some("jwt" | "at+jwt" | "jose"))
            })
        },
    },
    Difference {
        what: "`kid` empty",
        why: "RFC 7515 §4.1.4: `kid` names the key, and no key has an empty name",
        example: |draft| draft.replace(r#""kid""#, r#""""#),
        is_found: |lax| lax.header("kid").any(|kid| kid.text() == Some("")),
    },
    Difference {
        what: "a control character in a string of the JSON",
        why: "RFC 8259 §7: it must be escaped, so this is not JSON",
        example: |draft| draft.claims.push((r#""other""#.into(), "\"\u{1}\"".into())),
        is_found: |lax| {
            lax.token.split('.').take(2).any(|part| lax_base64(part).is_some_and(|text| text.iter().any(|byte| *byte < b' ')))
        },
    },
    Difference {
        what: "nested deeper than 16",
        why: "RFC 8259 §9: a limit of this filter",
        example: |draft| draft.claims.push((r#""other""#.into(), format!("{}{}", "[".repeat(20), "]".repeat(20)))),
        is_found: |lax| lax.header.iter().chain(&lax.claims).any(|json| depth(json) > 16),
    },
    Difference {
        what: "over 16 KiB",
        why: "a limit of this filter",
        example: |draft| draft.claims.push((r#""other""#.into(), json!("x".repeat(12_500)).to_string())),
        is_found: |lax| lax.token.len() > 16 * 1024,
    },
    Difference {
        what: "a dot at the end",
        why: "RFC 7515 §7.1: a token has three parts; `jwt_authn` ignores what follows the third",
        example: |draft| draft.respelling.push(|token, _| format!("{token}.")),
        is_found: |lax| lax.token.split('.').count() > 3,
    },
    Difference {
        what: "`exp` within the first second of 1970",
        why: "RFC 7519 §4.1.4: it is a time in the past; `jwt_authn` treats it as absent",
        example: |draft| draft.replace(r#""exp""#, "0"),
        is_found: |lax| lax.claim("exp").any(|exp| exp.number().is_some_and(|exp| exp.abs() < 1.0)),
    },
    Difference {
        what: "no `exp`",
        why: "RFC 9068 §2.2: an access token has one",
        example: |draft| draft.claims.retain(|(name, _)| name != r#""exp""#),
        is_found: |lax| lax.claim("exp").next().is_none(),
    },
    Difference {
        what: "no `sub`, or an empty one",
        why: "RFC 9068 §2.2: an access token has one; without it there is no principal",
        example: |draft| draft.claims.retain(|(name, _)| name != r#""sub""#),
        is_found: |lax| lax.claim("sub").all(|sub| sub.text() == Some("")),
    },
    Difference {
        what: "`iat` in the future",
        why: "RFC 7519 §4.1.6: the time at which it was issued",
        example: |draft| draft.replace(r#""iat""#, &(now() + 600).to_string()),
        is_found: |lax| lax.claim("iat").any(|iat| iat.number().is_some_and(|iat| iat > (now() + CLOCK_SKEW - 2) as f64)),
    },
    Difference {
        what: "a moment after the year 9999",
        why: "RFC 7519 §2: a NumericDate is a date, and RFC 3339 has no later one; milliseconds are the common mistake",
        example: |draft| draft.replace(r#""exp""#, &format!("{}000", now() + 3600)),
        is_found: |lax| {
            ["exp", "nbf", "iat"]
                .into_iter()
                .flat_map(|name| lax.claim(name))
                .any(|moment| moment.number() > Some(253_402_300_799.0))
        },
    },
    Difference {
        what: "the very second of `exp`, or a fraction of `nbf`",
        why: "RFC 7519 §4.1.4: a token is not accepted on or after `exp`; §4.1.5: nor before `nbf`",
        example: |draft| draft.claims.push((r#""nbf""#.into(), format!("{}.999", now() + CLOCK_SKEW))),
        is_found: |lax| is_near(lax, "exp", now() - CLOCK_SKEW, 5.0) || is_near(lax, "nbf", now() + CLOCK_SKEW, 5.0),
    },
    Difference {
        what: "`scope` or `scp` that is neither text nor a list of text",
        why: "RFC 9068 §2.2.3, RFC 8693 §4.2: the grant cannot be read",
        example: |draft| draft.claims.push((r#""scope""#.into(), "7".into())),
        is_found: |lax| {
            let is_readable =
                |claim: &Json| matches!(claim, Json::Word) || claim.elements().iter().all(|element| element.text().is_some());
            ["scope", "scp"].into_iter().flat_map(|name| lax.claim(name)).any(|claim| !is_readable(claim) || *claim == Json::Word)
        },
    },
];

fn depth(json: &Json) -> usize {
    match json {
        Json::Object(members) => 1 + members.iter().map(|(_, value)| depth(value)).max().unwrap_or(0),
        Json::Array(elements) => 1 + elements.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// The members of an object. Names and values are JSON texts.
type Members = Vec<(String, String)>;

/// A token before it is signed.
struct Draft {
    header: Members,
    claims: Members,
    algorithm: Algorithm,
    is_foreign: bool,
    /// Texts to insert. Each has a target (0 for the header, 1 for the claims) and a position.
    text: Vec<(usize, usize, &'static str)>,
    respelling: Vec<fn(String, &mut Rng) -> String>,
}

impl Draft {
    fn good(issuer: &Issuer, key: &Key) -> Self {
        let members = |object: Value| {
            let members = object.as_object().expect("an object").iter();
            members.map(|(name, value)| (json!(name).to_string(), value.to_string())).collect()
        };
        let (header, claims) = (members(key.header()), members(issuer.claims()));
        Self { header, claims, algorithm: Algorithm::Rs256, is_foreign: false, text: Vec::new(), respelling: Vec::new() }
    }

    /// Replaces the value of a member of the header or of the claims.
    fn replace(&mut self, name: &str, value: &str) {
        let mut members = self.header.iter_mut().chain(&mut self.claims);
        members.find(|(member, _)| member == name).expect("the member").1 = value.to_owned();
    }

    fn mutate(&mut self, random: &mut Rng) {
        match random.u8(..12) {
            0..=2 => set(&mut self.header, HEADER_NAMES, HEADER_VALUES, random),
            3..=6 => set(&mut self.claims, CLAIM_NAMES, CLAIM_VALUES, random),
            7 => {
                let members = if random.bool() { &mut self.header } else { &mut self.claims };
                let index = random.usize(..members.len().max(1));
                if index < members.len() {
                    members.remove(index);
                }
            }
            8 => self.text.push((random.usize(..2), random.usize(..), pick(TEXTS, random))),
            9 => {
                self.algorithm = *random.choice([Algorithm::Rs512, Algorithm::Ps256, Algorithm::Hs256].iter()).expect("one");
                if random.bool() {
                    let name = format!("{:?}", self.algorithm).to_uppercase();
                    self.header.retain(|(member, _)| member != "\"alg\"");
                    self.header.push(("\"alg\"".to_owned(), json!(name).to_string()));
                }
            }
            10 => self.is_foreign = true,
            _ => self.respelling.push(*random.choice(RESPELLINGS.iter()).expect("one")),
        }
    }

    fn token(&self, key: &Key, foreign: &Key, random: &mut Rng) -> String {
        let render = |members: &Members| {
            let members: Vec<String> = members.iter().map(|(name, value)| format!("{name}:{value}")).collect();
            format!("{{{}}}", members.join(","))
        };
        let mut texts = [render(&self.header), render(&self.claims)];
        for (which, at, what) in &self.text {
            let text = &mut texts[*which];
            let at = at % (text.len() + 1);
            if text.is_char_boundary(at) {
                text.insert_str(at, what);
            }
        }
        let key = if self.is_foreign { foreign } else { key };
        let [header, claims] = texts;
        let token = key.sign(self.algorithm, header, claims);
        self.respelling.iter().fold(token, |token, respell| respell(token, random))
    }
}

fn pick(pool: &[&'static str], random: &mut Rng) -> &'static str {
    pool[random.usize(..pool.len())]
}

/// Sets a member: replaces it, or adds it once more at either end.
fn set(members: &mut Members, names: &[&'static str], values: &[&'static str], random: &mut Rng) {
    let (name, value) = (pick(names, random).to_owned(), value(pick(values, random), random));
    match (members.iter().position(|(member, _)| *member == name), random.u8(..8)) {
        (_, 0) => members.insert(0, (name, value)),
        (None, _) | (_, 1) => members.push((name, value)),
        (Some(index), _) => members[index].1 = value,
    }
}

/// The value for a word of a pool. Some words are placeholders for longer values.
fn value(word: &str, random: &mut Rng) -> String {
    let offsets = [-3600, -62, -61, -60, -59, -1, 0, 1, 59, 60, 61, 62, 3600];
    let moment = now() + offsets[random.usize(..offsets.len())];
    let nested = |depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    match word {
        "<moment>" => moment.to_string(),
        "<fraction>" => format!("{moment}.{}", random.u8(..10)),
        "<exponent>" => format!("{moment}0e-1"),
        "<text>" => format!("\"{moment}\""),
        "<milliseconds>" => format!("{moment}000"),
        "<deep>" => nested(random.usize(14..19)),
        "<deeper>" => nested(100),
        "<long>" => json!("x".repeat(random.usize(250..260))).to_string(),
        "<longer>" => json!("x".repeat(12_500)).to_string(),
        word => word.to_owned(),
    }
}

const HEADER_NAMES: &[&str] = &[
    r#""alg""#,
    r#""alg""#,
    r#""kid""#,
    r#""kid""#,
    r#""typ""#,
    r#""typ""#,
    r#""crit""#,
    r#""b64""#,
    r#""jwk""#,
    r#""jku""#,
    r#""x5u""#,
    r#""x5c""#,
    r#""x5t""#,
    r#""cty""#,
    r#""zip""#,
    r#""enc""#,
    r#""""#,
    r#""Alg""#,
    r#""\u0061lg""#,
    r#""k\u0069d""#,
];

const HEADER_VALUES: &[&str] = &[
    r#""RS256""#,
    r#""rs256""#,
    r#""none""#,
    r#""RS512""#,
    r#""PS256""#,
    r#""HS256""#,
    r#""ES256""#,
    r#""R\u0053256""#,
    r#"["RS256"]"#,
    r#""a""#,
    r#""A""#,
    r#""b""#,
    r#""\u0061""#,
    r#""a ""#,
    r#""JWT""#,
    r#""at+jwt""#,
    r#""AT+JWT""#,
    r#""application/at+jwt""#,
    r#""logout+jwt""#,
    r#""""#,
    "null",
    "true",
    "false",
    "7",
    "{}",
    "[]",
    r#"["b64"]"#,
    r#"["exp"]"#,
    r#"{"kty":"RSA","e":"AQAB","n":"AQAB"}"#,
    r#"{"a":1,"a":2}"#,
    r#""https://elsewhere.example""#,
    "<long>",
    "<longer>",
    "<deep>",
    r#""\u0000""#,
    r#""\ud800""#,
];

const CLAIM_NAMES: &[&str] = &[
    r#""iss""#,
    r#""sub""#,
    r#""sub""#,
    r#""aud""#,
    r#""aud""#,
    r#""aud""#,
    r#""exp""#,
    r#""exp""#,
    r#""exp""#,
    r#""exp""#,
    r#""nbf""#,
    r#""nbf""#,
    r#""nbf""#,
    r#""iat""#,
    r#""iat""#,
    r#""iat""#,
    r#""jti""#,
    r#""jti""#,
    r#""scope""#,
    r#""scp""#,
    r#""azp""#,
    r#""cnf""#,
    r#""""#,
    r#""@type""#,
    r#""\u0069ss""#,
    r#""e\u0078p""#,
    r#""EXP""#,
    r#""other""#,
];

const CLAIM_VALUES: &[&str] = &[
    "<moment>",
    "<moment>",
    "<moment>",
    "<fraction>",
    "<fraction>",
    "<exponent>",
    "<text>",
    "<milliseconds>",
    "null",
    "true",
    "false",
    "0",
    "-0",
    "-1",
    "-0.5",
    "0.5",
    "1.5",
    "1e3",
    "1E+10",
    "1e300",
    "1e400",
    "-1e400",
    "1e-400",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "253402300799",
    "253402300800",
    "01",
    "+1",
    ".5",
    "1.",
    "NaN",
    "Infinity",
    "0x10",
    r#""""#,
    r#""apexmcp""#,
    r#""apexmcp2""#,
    r#""APEXMCP""#,
    r#""\u0061pexmcp""#,
    r#""apexmcp\u0000""#,
    r#""apexmcp ""#,
    r#"["apexmcp"]"#,
    r#"["account","apexmcp"]"#,
    r#"["apexmcp","apexmcp"]"#,
    r#"["account"]"#,
    "[]",
    r#"["apexmcp",7]"#,
    r#"["apexmcp",null]"#,
    r#"["apexmcp",["x"]]"#,
    r#"[["apexmcp"]]"#,
    "{}",
    r#"{"apexmcp":true}"#,
    r#"{"a":{"b":1,"b":2}}"#,
    r#"{"a":[{"b":null}]}"#,
    r#""mcp:call""#,
    r#""openid""#,
    r#""\ud83d\ude00""#,
    r#""\ud800""#,
    r#""\x""#,
    "\"\u{e4}\"",
    "\"\u{0}\"",
    "<deep>",
    "<deeper>",
    "<long>",
    "<longer>",
    "7",
];

const TEXTS: &[&str] = &[
    " ", "\n", "\t", "\r", "\u{c}", "\u{0}", "\u{feff}", "\u{a0}", ",", "}", "{", "\"", "\\", "/**/", "//", "#", "'", "0",
    "null", ":", "\\u0061", "[", "]", "{}",
];

const RESPELLINGS: &[fn(String, &mut Rng) -> String] = &[
    |token, _| format!("{token}="),
    |token, _| format!("{token}=="),
    |token, _| format!("{token}."),
    |token, _| format!(".{token}"),
    |token, _| format!("{token}.AAAA"),
    |token, _| format!("{token}A"),
    |token, _| format!("{token}AA"),
    |token, _| token.replacen('.', "=.", 1),
    |token, _| token.replacen('.', "==.", 1),
    |token, _| token.replacen('.', " .", 1),
    |token, _| token.replacen('.', "\t.", 1),
    |token, _| token.replacen('.', "..", 1),
    |token, _| token.replacen('.', ",", 1),
    |token, _| token.replace('-', "+").replace('_', "/"),
    |token, _| token.rsplit_once('.').map_or(token.clone(), |(input, _)| input.to_owned()),
    |token, _| token.rsplit_once('.').map_or(token.clone(), |(input, _)| format!("{input}.")),
    |token, _| token.rsplit_once('.').map_or(token.clone(), |(input, signature)| format!("{signature}.{input}")),
    |token, _| token.to_ascii_lowercase(),
    // A signature that is one byte shorter or longer, at either end, or zero.
    |token, _| with_signature(&token, |signature| signature.truncate(255)),
    |token, _| with_signature(&token, |signature| signature.drain(..1.min(signature.len())).for_each(drop)),
    |token, _| with_signature(&token, |signature| signature.push(0)),
    |token, _| with_signature(&token, |signature| signature.insert(0, 0)),
    |token, _| with_signature(&token, |signature| signature.fill(0)),
    // Another character anywhere. At the end of a part, it may change only unused bits.
    with_other_character,
    with_other_character,
    |token, random| {
        let ends: Vec<usize> = token.match_indices('.').map(|(at, _)| at).chain([token.len()]).collect();
        let end = ends[random.usize(..ends.len())];
        if end == 0 { token } else { replaced(&token, end - 1, random) }
    },
];

fn with_signature(token: &str, change: fn(&mut Vec<u8>)) -> String {
    let Some((input, signature)) = token.rsplit_once('.') else { return token.to_owned() };
    let mut signature = lax_base64(signature).unwrap_or_default();
    change(&mut signature);
    format!("{input}.{}", base64url(signature))
}

fn with_other_character(token: String, random: &mut Rng) -> String {
    if token.is_empty() { token } else { replaced(&token, random.usize(..token.len()), random) }
}

fn replaced(token: &str, at: usize, random: &mut Rng) -> String {
    let mut token = token.to_owned();
    token.replace_range(at..=at, random.alphanumeric().encode_utf8(&mut [0; 4]));
    token
}

/// Starts Envoy with both filters, each on its own listener.
async fn start(issuer: &Issuer, key: &Key) -> (Envoy, [Client; 2]) {
    // This test is about authentication, so the scopes are granted whatever else a token contains.
    let provider = merged(issuer.record(), &json!({"default_scopes": ["mcp:call"]}));
    let setup = Setup::new(plugin(&json!({"acme": {"identity_providers": [provider]}})));
    let ours = setup.filter(setup.plugin());
    let ours = json!({"name": "apexmcp", "typed_config": ours["resources"][0]["typed_config"]});
    let filters = "type.googleapis.com/envoy.extensions.filters";
    let theirs = json!({
        "name": "envoy.filters.http.jwt_authn",
        "typed_config": {
            "@type": format!("{filters}.http.jwt_authn.v3.JwtAuthentication"),
            "providers": {"issuer": {
                "issuer": issuer.url(),
                "audiences": ["apexmcp"],
                "local_jwks": {"inline_string": json!({"keys": [key.jwk()]}).to_string()},
                "clock_skew_seconds": CLOCK_SKEW,
            }},
            "rules": [{"match": {"prefix": "/"}, "requires": {"provider_name": "issuer"}}],
        },
    });
    let listener = |name: &str, filter: Value| {
        let router = json!({"name": "router", "typed_config": {"@type": format!("{filters}.http.router.v3.Router")}});
        let manager = json!({
            "@type": format!("{filters}.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": name,
            "route_config": {"virtual_hosts": [{
                "name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
            }]},
            "http_filters": [filter, router],
        });
        json!({
            "name": name,
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
            "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
        })
    };
    let keys_port = issuer.url().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let bootstrap = json!({
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "static_resources": {
            "listeners": [listener(GATEWAY_LISTENER, ours), listener(JWT_AUTHN_LISTENER, theirs)],
            "clusters": [local_cluster("jwks_http", keys_port)],
        },
    });
    let envoy = Envoy::start(&bootstrap, 1, Folder::new().expect("a folder")).await;
    let theirs = envoy.client_of(JWT_AUTHN_LISTENER).await;
    let clients = [envoy.client().clone(), theirs];
    (envoy, clients)
}

/// A token and its decoded header and claims, for a message.
fn shown(token: &str) -> String {
    let parts = token.split('.').map(|part| lax_base64(part).unwrap_or_default().escape_ascii().to_string());
    format!("{}\n    {token}", parts.take(2).collect::<Vec<_>>().join(" "))
}

/// Whether the filter of this client admits a token.
async fn admits(client: &Client, token: &str) -> bool {
    let reply = client.send(&Request::post("/mcp/acme").bearer(token)).await;
    assert!([200, 401, 403].contains(&reply.status), "{token}: {reply:?}");
    reply.status == 200
}

#[tokio::test]
async fn no_token_is_admitted_that_jwt_authn_refuses() {
    let (key, foreign) = (Key::first("a"), Key::second("a"));
    let issuer = Issuer::start(&[&key]).await;
    let (_envoy, [ours, theirs]) = start(&issuer, &key).await;
    let seed = std::env::var(SEED).map_or(7, |text| text.parse().expect("a number"));
    let mut random = Rng::with_seed(seed);
    for difference in DIFFERENCES {
        // A time limit may pass while the token is on its way.
        let mut is_shown = false;
        for _ in 0..20 {
            let mut draft = Draft::good(&issuer, &key);
            (difference.example)(&mut draft);
            let token = draft.token(&key, &foreign, &mut random);
            assert!((difference.is_found)(&Lax::of(&token)), "{}", difference.what);
            is_shown = !admits(&ours, &token).await && admits(&theirs, &token).await;
            if is_shown {
                break;
            }
        }
        assert!(is_shown, "listed, but both filters agree: {}", difference.what);
    }
    let mut seen = vec![0; DIFFERENCES.len()];
    let (mut admitted, mut refused) = (0, 0);
    let mut unlisted = Vec::new();

    for index in 0..TOKENS {
        let mut draft = Draft::good(&issuer, &key);
        // Most tokens have one fault, so that no other fault hides its effect.
        let faults = if index == 0 { 0 } else { random.choice([1, 1, 1, 1, 2, 3]).expect("one") };
        for _ in 0..faults {
            draft.mutate(&mut random);
        }
        let token = draft.token(&key, &foreign, &mut random);
        let here = admits(&ours, &token).await;
        let there = admits(&theirs, &token).await;
        match (here, there) {
            (true, true) => admitted += 1,
            (false, false) => refused += 1,
            // The token may have expired between the two requests.
            (true, false) if is_near(&Lax::of(&token), "exp", now() - CLOCK_SKEW, 30.0) && !admits(&ours, &token).await => {
                refused += 1;
            }
            (false, true) => {
                let lax = Lax::of(&token);
                let found: Vec<usize> = (0..DIFFERENCES.len()).filter(|index| (DIFFERENCES[*index].is_found)(&lax)).collect();
                if found.is_empty() {
                    unlisted.push(format!("refused only by this filter: {}", shown(&token)));
                }
                found.iter().for_each(|index| seen[*index] += 1);
            }
            (true, false) => unlisted.push(format!("ADMITTED ONLY BY THIS FILTER: {}", shown(&token))),
        }
    }

    println!("{admitted} admitted by both, {refused} refused by both; refused by this filter alone:");
    for (difference, seen) in DIFFERENCES.iter().zip(&seen) {
        println!("| {} | {} | {seen} |", difference.what, difference.why);
    }
    assert!(unlisted.is_empty(), "{SEED}={seed}: {} differences are not listed:\n{}", unlisted.len(), unlisted.join("\n"));
    assert!(admitted > 100 && refused > 100, "both verdicts must occur often: {admitted}, {refused}");
}
