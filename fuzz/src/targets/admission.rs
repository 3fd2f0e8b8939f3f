//! Whole requests. An admitted request has a valid credential, gets the identity of that credential, and reaches only
//! what was granted to it.

use std::cell::RefCell;

use apexmcp_core::exchange::{self, BodyProgress, Context, Edits, Event, RequestReader, Step};
use apexmcp_core::gateway::Gateway;
use apexmcp_core::jose::jwk::RsaPublicKey;
use apexmcp_core::jwks::JwksUri;
use apexmcp_core::names::OrgName;
use apexmcp_core::principal::{Attribute, Method, Principal};
use apexmcp_core::request::RequestHead;
use apexmcp_core::route::RouteSettings;
use apexmcp_core::time::UnixTime;

use crate::reader::{self, Json};
use crate::token::Token;
use crate::world::{self, API_KEY, CLIENTS, NOW, ORIGIN, PROVIDERS, key_of};
use apexmcp_core::testing::{MemoryHost, Signatures};

thread_local! {
    /// Keeps its token cache from one input to the next, like a worker from one request to the next.
    static WORKER: RefCell<Worker> = RefCell::new(Worker::new());
}

struct Worker {
    gateway: Gateway,
    host: MemoryHost,
    gateway_key: RsaPublicKey,
}

impl Worker {
    fn new() -> Self {
        let (config, policy) = world::config();
        let mut gateway = Gateway::new(config, policy);
        let host = MemoryHost::with(Signatures::Hash);
        let timing = gateway.config.jwks;
        for (org, issuer, letter) in PROVIDERS {
            let uri = JwksUri::parse(&format!("{issuer}/{}", char::from(letter))).expect("a URI");
            let key_sets = &mut gateway.key_sets;
            let id = key_sets.at(&uri, &OrgName::parse(org).expect("an organization"));
            let fetch = key_sets.sync(id, NOW, &timing, &host).expect("readable keys").expect("a fetch is due");
            key_sets.finish(&fetch, Some(&world::jwk_set(letter)), NOW, &timing, &host).expect("keys");
        }
        let gateway_key = gateway.policy.signing_keys(&host)[0].jwk().key().clone();
        Self { gateway, host, gateway_key }
    }
}

/// `data` begins with a signer (`a`, `b`, `g` for the gateway, `-` for nobody), a token's header and its claims, one
/// line each. A request head and a body follow. The token replaces the word `<token>` in the head.
pub fn check(data: &[u8]) -> bool {
    let (token, request) = Token::read(data);
    WORKER.with_borrow_mut(|worker| judge(worker, &token, request))
}

fn judge(worker: &mut Worker, token: &Token, request: &[u8]) -> bool {
    let key = match token.signer {
        b'g' => Some(worker.gateway_key.clone()),
        letter => PROVIDERS.iter().any(|(.., known)| *known == letter).then(|| key_of(letter)),
    };
    let written = token.written(key.as_ref());
    let (mut headers, body) = reader::head_and_body(request);
    for (_, value) in &mut headers {
        if let Some(at) = value.windows(7).position(|word| word == b"<token>") {
            value.splice(at..at + 7, written.bytes());
        }
    }

    let Some(head) = reader::request_head(&headers) else { return false };
    let step = exchange::start(&mut worker.gateway, head, RouteSettings::default(), NOW, &worker.host);
    match step {
        Step::Forward(forward, _) => {
            let principal = forward.edits.principal.as_deref().expect("no request passes without a principal");
            check_admitted(token, &written, &headers, &forward.edits, principal);
            let connector = path_of(&headers).split('/').nth(3).map(str::to_owned);
            let is_end = headers.iter().any(|(name, value)| name == ":method" && value == b"DELETE");
            assert!(connector.map_or(is_end || reaches(principal, None), |connector| reaches(principal, Some(&connector))));
            true
        }
        Step::EditAndWait(edits, pending) => {
            let principal = edits.principal.as_deref().expect("no request passes without a principal");
            check_admitted(token, &written, &headers, &edits, principal);
            let is_readable = Json::read(body).is_some();
            let message = Message(body);
            let mut context = Context::new(&mut worker.gateway, &worker.host, &message);
            let whole = Event::BodyArrived(BodyProgress { length: body.len(), is_whole: true });
            let passes = matches!(pending.handle(whole, &mut context), Step::Forward(..));
            if passes {
                assert!(is_readable);
                check_reach(principal, body);
            }
            passes
        }
        Step::Pass | Step::Ask(..) | Step::EarlyResponse(..) => panic!("no input of this target leads to this step: {step:?}"),
        Step::Reply(..) | Step::Wait(_) => false,
    }
}

/// The body of a request whose head the exchange does not read again.
struct Message<'a>(&'a [u8]);

impl RequestReader for Message<'_> {
    fn head(&self) -> Option<RequestHead> {
        None
    }

    fn body(&self, max: usize) -> Vec<u8> {
        self.0.iter().take(max).copied().collect()
    }

    fn now(&self) -> UnixTime {
        NOW
    }
}

fn path_of(headers: &[(String, Vec<u8>)]) -> String {
    let path = headers.iter().find(|(name, _)| name == ":path").map(|(_, value)| value.as_slice()).unwrap_or_default();
    let end = path.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(path.len());
    String::from_utf8_lossy(&path[..end]).into_owned()
}

fn words(principal: &Principal) -> Vec<String> {
    principal.attribute(Attribute::Scope).split(' ').map(str::to_owned).collect()
}

fn reaches(principal: &Principal, connector: Option<&str>) -> bool {
    words(principal).iter().any(|word| word == "mcp:call" || connector.is_some_and(|one| *word == format!("mcp:call:{one}")))
}

/// Checks that each tool called by `body`, in every possible reading, belongs to a connector that the principal may
/// use.
fn check_reach(principal: &Principal, body: &[u8]) {
    let json = Json::read(body).expect("JSON");
    for message in json.elements() {
        if message.all("method").any(|method| method.text() == Some("tools/call")) {
            for name in message.all("params").flat_map(|params| params.all("name")) {
                let connector = name.text().and_then(|name| name.split("__").next());
                assert!(reaches(principal, connector), "{name:?}");
            }
        }
    }
}

/// Checks the principal and the header changes of an admitted request against its credential.
fn check_admitted(token: &Token, written: &str, headers: &[(String, Vec<u8>)], edits: &Edits, principal: &Principal) {
    let org = path_of(headers).split('/').nth(2).map(str::to_owned).unwrap_or_default();
    assert_eq!(principal.org().as_str(), org, "the principal belongs to another org");
    let carriers: Vec<_> = headers.iter().filter(|(name, _)| name == "x-api-key" || name == "authorization").collect();
    let [(name, value)] = carriers.as_slice() else { panic!("not exactly one credential") };
    assert!(edits.remove.iter().any(|removed| removed == name), "the credential must not be forwarded");
    let could_be_identity = |name: &&String| name.replace('_', "-").starts_with("x-apexmcp-");
    assert!(
        headers
            .iter()
            .map(|(name, _)| name)
            .filter(could_be_identity)
            .all(|name| edits.remove.iter().any(|removed| removed == name))
    );
    let values = Attribute::ALL.map(|attribute| principal.attribute(attribute));
    assert!(values.iter().all(|value| value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')));

    let subject = String::from_utf8(reader::percent_decoded(principal.attribute(Attribute::Subject).as_bytes())).expect("text");
    if principal.method() == Method::ApiKey {
        assert_eq!((name.as_str(), value.as_slice(), org.as_str()), ("x-api-key", API_KEY.as_bytes(), "acme"));
        assert_eq!((subject.as_str(), words(principal)), ("k1", vec!["mcp:call:files".to_owned(), "mcp:call:notes".to_owned()]));
        return;
    }
    assert_eq!(name, "authorization");
    assert!(String::from_utf8_lossy(value).trim_end().ends_with(written), "admitted without the signed token");
    let (header, claims) =
        (Json::read(token.header.as_bytes()).expect("JSON"), Json::read(token.claims.as_bytes()).expect("JSON"));
    let text = |name| claims.exactly(name).next().and_then(Json::text).unwrap_or_default();
    let number = |name| claims.exactly(name).next().and_then(Json::number);
    assert_eq!(subject, text("sub"), "admitted with another subject");
    assert!(header.exactly("alg").all(|alg| alg.text() == Some("RS256")));
    assert!(number("exp").expect("exp") + 60.0 > 1.8e9);
    assert!(["nbf", "iat"].into_iter().filter_map(number).all(|moment| moment <= 1.8e9 + 60.001));
    let audiences: Vec<_> = claims.exactly("aud").flat_map(Json::elements).filter_map(Json::text).collect();
    let claimed: Vec<&str> = ["scope", "scp"]
        .into_iter()
        .flat_map(|name| claims.exactly(name).flat_map(Json::elements))
        .filter_map(Json::text)
        .flat_map(|text| text.split(' '))
        .filter(|word| word.starts_with("mcp:"))
        .collect();
    if principal.method() == Method::Byoidp {
        let is_trusted = |(of, issuer, letter): &(&str, &str, u8)| (*of, *issuer, *letter) == (&*org, text("iss"), token.signer);
        assert!(PROVIDERS.iter().any(is_trusted), "{org} does not trust this issuer and key");
        assert!(audiences.contains(&"apexmcp") && !text("sub").is_empty());
        let granted = if claimed.is_empty() { vec!["mcp:call:notes"] } else { claimed };
        assert!(words(principal).iter().all(|word| word.is_empty() || granted.contains(&word.as_str())));
    } else {
        assert_eq!((token.signer, text("iss")), (b'g', ORIGIN));
        let whole = format!("{ORIGIN}/mcp/{org}");
        let asked = format!("{ORIGIN}{}", path_of(headers));
        assert!(audiences.contains(&whole.as_str()) || audiences.contains(&asked.as_str()));
        let client = CLIENTS.iter().find(|client| client.id == text("sub")).expect("a client");
        assert_eq!(client.org, org);
        let holds: Vec<&str> = client.scopes.split(' ').collect();
        for word in words(principal).iter().filter(|word| !word.is_empty()) {
            assert!(holds.contains(&"mcp:call") || holds.contains(&word.as_str()), "{word} is not a scope of the client");
            assert!(claimed.contains(&"mcp:call") || claimed.contains(&word.as_str()), "{word} was not granted");
        }
    }
}
