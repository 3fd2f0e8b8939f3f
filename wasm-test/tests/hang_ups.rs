//! Clients hang up while the filter holds their requests. Other clients are not affected, whatever the requests wait for,
//! and the resources of the held requests are released.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, JoinSet};
use wasm_test::apexmcp::Apexmcp;
use wasm_test::eventually;
use wasm_test::front::{Front, Way};
use wasm_test::gateway::{Gateway, Setup, plugin};
use wasm_test::http::{CASE_HEADER, Reply, Request};
use wasm_test::issuer::{Behaviour, Issuer};
use wasm_test::load::{CLIENTS, Loads, strangers};
use wasm_test::module::Module;
use wasm_test::oauth::{self, PrivateKey};
use wasm_test::policy::{api_key, api_key_record, merged, sha256};
use wasm_test::rate_limit::RateLimitService;
use wasm_test::settings::TOKEN;
use wasm_test::token::Key;
use wasm_test::upstream;

const WORKERS: usize = 2;
/// Number of clients that hang up together.
const WAVE: usize = 100;
/// Number of waves. In total, more clients leave than there are places in all threads (1,024 in each). If a client that left
/// kept its place, later requests would be refused instead of held.
const WAVES: usize = WORKERS * 1_024 / WAVE + 1;

/// The tests run one after the other. A request is held for at most one minute, and all clients must come and leave in that
/// time.
static TURN: Mutex<()> = Mutex::const_new(());

fn by_key(id: &str) -> Request {
    Request::tools_list("/mcp/acme").api_key(&api_key(id))
}

/// A complete request to the connectors of an org.
fn whole(org: &str, credential: &str) -> String {
    format!("GET /mcp/{org} HTTP/1.1\r\nhost: gateway\r\n{credential}\r\n")
}

fn by_token(token: &str) -> Request {
    Request::tools_list("/mcp/acme").bearer(token)
}

/// The [`CASE_HEADER`] of clients that leave.
const LEAVING: &str = "leaving";

/// A request in two parts. The second part is the last byte of the body.
fn parts(path: &str, headers: &str, body: &str) -> (String, String) {
    let (first, last) = body.split_at(body.len() - 1);
    let head = format!("POST {path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n{headers}content-length: {}", body.len());
    (format!("{head}\r\n\r\n{first}"), last.to_owned())
}

/// Marks a request as one of a client that leaves.
fn leaving(request: &str) -> String {
    request.replacen("\r\n", &format!("\r\n{CASE_HEADER}: {LEAVING}\r\n"), 1)
}

/// The access log lines of clients that left since this value was created. Each line is read only once, because the log is
/// long.
struct Departures {
    log: BufReader<File>,
    line: String,
    lines: Vec<Value>,
}

impl Departures {
    fn of(gateway: &Gateway) -> Self {
        let mut log = File::open(gateway.folder().file("stdout")).expect("the access log");
        log.seek(SeekFrom::End(0)).expect("its end");
        Self { log: BufReader::new(log), line: String::new(), lines: Vec::new() }
    }

    /// The number of these lines until now.
    fn count(&mut self) -> usize {
        // The last line may be incomplete. The next call reads its rest.
        while self.log.read_line(&mut self.line).expect("a line") > 0 && self.line.ends_with('\n') {
            let line = std::mem::take(&mut self.line);
            self.lines.extend(Some(&line).filter(|line| line.contains(LEAVING)).and_then(|line| serde_json::from_str(line).ok()));
        }
        self.lines.len()
    }
}

/// Clients send this request and hang up while the filter holds it. Returns their access log lines.
async fn hang_up(gateway: &Gateway, request: &str, waves: usize) -> Vec<Value> {
    let mut departures = Departures::of(gateway);
    for wave in 1..=waves {
        let mut connections = Vec::new();
        for _ in 0..WAVE {
            let mut connection = TcpStream::connect(gateway.client().authority()).await.expect("a connection");
            connection.write_all(leaving(request).as_bytes()).await.expect("the request is sent");
            connections.push(connection);
        }
        eventually("all requests are held or have ended", async || {
            let held = gateway.stat("http.gateway.downstream_rq_active").await;
            (held as usize + departures.count() >= wave * WAVE).then_some(())
        })
        .await;
    }
    eventually("all requests have ended", async || (departures.count() == waves * WAVE).then_some(())).await;
    departures.lines
}

/// Like [`hang_up`], for requests that are held until their clients leave. Checks that none was answered or decided.
async fn hang_up_undecided(gateway: &Gateway, request: &str, waves: usize) {
    let lines = hang_up(gateway, request, waves).await;
    let decided = lines.iter().find(|line| line["status"] != 0 || !line["reason"].is_null());
    assert!(decided.is_none(), "one of {} requests was decided: {decided:?}", lines.len());
}

/// Sends a request in the background.
fn send(gateway: &Gateway, request: Request) -> JoinHandle<Reply> {
    let client = gateway.client().clone();
    tokio::spawn(async move { client.send(&request).await })
}

/// Checks that all other requests were answered correctly, and that no request is held any more.
async fn end(gateway: &Gateway, loads: Loads, what: &str) {
    loads.until_answered(100).await;
    assert_eq!(loads.stop(what).await, 0);
    gateway.until_active(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hang_ups_while_waiting_for_keys_affect_nobody_else() {
    let _turn = TURN.lock().await;
    let (key, other) = (Key::first("a"), Key::second("a"));
    let (known, silent) = (Issuer::start(&[&key]).await, Issuer::start(&[]).await);
    silent.behave(Behaviour::Hang);
    let acme = json!({"api_keys": [api_key_record("key_all")], "identity_providers": [known.record(), silent.record()]});
    let patience = json!({"jwks": {"http_cluster": "jwks_http", "timeout": "60s"}});
    let upstream = upstream::start().await;
    let gateway = Setup::new(merged(plugin(&json!({ "acme": acme })), &patience)).workers(WORKERS).start(&upstream).await;
    let by = |key: &Key, issuer: &Issuer| by_token(&key.token(&issuer.claims()));
    gateway.until_everywhere(&by(&key, &known), 200).await;
    let bad = strangers(&Request::tools_list("/mcp/acme"), [(&key, known.claims())]);
    let loads = Loads::start(gateway.client(), vec![by_key("key_all"), by(&key, &known)], bad);

    let staying = [&key, &other].map(|key| send(&gateway, by(key, &silent)));
    let token = key.token(&silent.claims());
    hang_up_undecided(&gateway, &whole("acme", &format!("authorization: Bearer {token}\r\n")), WAVES).await;
    silent.publish(&[&key]);
    for (reply, status) in staying.into_iter().zip([200, 401]) {
        assert_eq!(reply.await.expect("a reply").status, status);
    }
    assert_eq!(silent.requests(), 1, "one fetch for all");
    gateway.until_everywhere(&by(&key, &silent), 200).await;
    end(&gateway, loads, "hung up while they waited for keys").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hang_ups_while_waiting_for_the_first_policy_affect_nobody_else() {
    let _turn = TURN.lock().await;
    let mut settings = Apexmcp::new();
    let (_, key) = settings.create_key();
    let front = Front::of(settings.serve().await).await;
    front.lead(Way::Silent);
    let mut plugin = plugin(&json!({}));
    plugin["policy"] = json!({"remote": {"cluster": "settings", "token_env": "APEXMCP_SETTINGS_TOKEN", "timeout": "60s"}});
    let upstream = upstream::start().await;
    let gateway = Setup::new(plugin).workers(WORKERS).settings(front.port(), TOKEN).start(&upstream).await;
    let good = Request::tools_list("/mcp/acme").api_key(&key);
    let loads = Loads::start(gateway.client(), vec![good.clone()], strangers(&Request::tools_list("/mcp/acme"), []));

    // Nothing is decided without a policy, so one request of each other client is held, too.
    gateway.until_active(2 * CLIENTS as u64).await;
    hang_up_undecided(&gateway, &whole("acme", &format!("x-api-key: {key}\r\n")), WAVES).await;
    assert_eq!(loads.sent(), 2 * CLIENTS);
    front.lead(Way::Open);
    gateway.until_everywhere(&good, 200).await;
    end(&gateway, loads, "hung up while they waited for the first policy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hang_ups_before_the_end_of_the_body_affect_nobody_else() {
    let _turn = TURN.lock().await;
    let key = Key::first("a");
    let issuer = Issuer::start(&[&key]).await;
    let client = json!({"client_id": oauth::WITH_SECRET, "secret_sha256": [sha256(oauth::SECRET)], "scopes": ["mcp:call"]});
    let providers = [issuer.record()];
    let acme = json!({"api_keys": [api_key_record("key_all")], "identity_providers": providers, "oauth_clients": [client]});
    let mut plugin = plugin(&json!({ "acme": acme }));
    plugin["policy"]["inline"]["signing_keys"] = json!([PrivateKey::new().record("k")]);

    let for_notes = key.token(&issuer.claims_with(&json!({"scope": "mcp:call:notes"})));
    let message = |tool: &str| {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool}}).to_string();
        parts("/mcp/acme", &format!("authorization: Bearer {for_notes}\r\ncontent-type: application/json\r\n"), &body)
    };
    let form = |secret: &str| {
        let body = format!("grant_type=client_credentials&client_id={}&client_secret={secret}", oauth::WITH_SECRET);
        parts("/oauth/token", "content-type: application/x-www-form-urlencoded\r\n", &body)
    };
    let upstream = upstream::start().await;
    for holding_bodies in [false, true] {
        let setup = Setup::new(plugin.clone()).workers(WORKERS);
        let gateway = if holding_bodies { setup.holding_bodies() } else { setup }.start(&upstream).await;
        gateway.until_everywhere(&by_token(&key.token(&issuer.claims())), 200).await;
        let good = vec![by_key("key_all"), by_token(&key.token(&issuer.claims()))];
        let bad = strangers(&Request::tools_list("/mcp/acme"), [(&key, issuer.claims())]);
        let loads = Loads::start(gateway.client(), good, bad);

        let mut cases = vec![("a message", message("notes__read"), "200 OK", message("clock__now"), "403 Forbidden")];
        if !holding_bodies {
            // If Envoy holds bodies, the filter never gets the incomplete form.
            cases.push(("a form", form(oauth::SECRET), "200 OK", form("apx_secret_wrong"), "401 Unauthorized"));
        }
        for (what, good, good_status, bad, bad_status) in cases {
            let client = gateway.client();
            let mut refusal = String::new();
            let reply = client
                .send_halves(good.0.as_bytes(), good.1.as_bytes(), async || {
                    let between = async || hang_up_undecided(&gateway, &good.0, 1).await;
                    refusal = client.send_halves(bad.0.as_bytes(), bad.1.as_bytes(), between).await;
                })
                .await;
            for (reply, status) in [(reply, good_status), (refusal, bad_status)] {
                assert!(reply.starts_with(&format!("HTTP/1.1 {status}")), "{what}: {reply}");
            }
        }
        // A refusal is held only for a short time. It is sent immediately if holding it has no use, or if no place is left.
        let (first, last) = parts("/mcp/acme", "", "{}");
        let lines = hang_up(&gateway, &first, if holding_bodies { 1 } else { WAVES }).await;
        let wrong = lines.iter().find(|line| line["status"] != 0 && line["status"] != 401);
        assert!(wrong.is_none(), "one of {} requests got a wrong status: {wrong:?}", lines.len());
        let held = lines.iter().filter(|line| line["status"] == 0).count();
        println!("{held} of {} hung up before they were refused", lines.len());
        assert!(held > 0 || holding_bodies, "no request was held");
        if !holding_bodies {
            // Envoy keeps the connection for the next request if a refusal waited for the rest of the first one.
            let kept = format!("{first}{last}").replace("connection: close\r\n", "");
            let both = [kept, whole("acme", "connection: close\r\n")].concat();
            let clients: JoinSet<_> = std::iter::repeat_n((gateway.client().clone(), both), WORKERS * 8)
                .map(async |(client, both)| client.send_bytes(both.as_bytes()).await.matches("HTTP/1.1 401").count())
                .collect();
            assert_eq!(clients.join_all().await, [2; WORKERS * 8], "the places are free again");
        }
        end(&gateway, loads, "hung up while their bodies were awaited").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hang_ups_while_waiting_for_the_rate_limit_service_affect_nobody_else() {
    let _turn = TURN.lock().await;
    let service = RateLimitService::start().await;
    let limited = json!({"api_keys": [api_key_record("key_limited")], "limits": {"monthly_quota": 1_000_000_000}});
    let orgs = json!({"acme": {"api_keys": [api_key_record("key_all")]}, "limited": limited});
    // All clients must come and leave in this time, and afterwards the test waits for it.
    let asked = json!({"cluster": "ratelimit", "timeout": "30s", "on_error": "deny"});
    let limits = json!({"limits": {"store": "rate_limit_service", "rate_limit_service": asked}});
    let upstream = upstream::start().await;
    let setup = Setup::new(merged(plugin(&orgs), &limits)).workers(WORKERS).rate_limit_service(service.port());
    let gateway = setup.start(&upstream).await;
    let of_limited = |key: &str| Request::tools_list("/mcp/limited").api_key(&api_key(key));
    gateway.until_everywhere(&of_limited("key_limited"), 200).await;
    let mut bad = strangers(&Request::tools_list("/mcp/limited"), []);
    bad.push((of_limited("key_all"), "api_key_unknown"));
    let loads = Loads::start(gateway.client(), vec![by_key("key_all")], bad);

    service.signal_service("STOP").await;
    let staying = send(&gateway, of_limited("key_limited"));
    // An org has at most 128 open requests to the service in each worker. They stay open when their clients leave, until their
    // timeout is over: the SDK does not tell the filter about the end of a call if the stream that began it has ended.
    let leaving = whole("limited", &format!("x-api-key: {}\r\n", api_key("key_limited")));
    let lines = hang_up(&gateway, &leaving, 5).await;
    let of_status = |status: u16| lines.iter().filter(|line| line["status"] == status).count();
    assert_eq!(of_status(0) + of_status(429), lines.len());
    // The dynamic module asks by the stream itself, so its places are free as soon as the clients leave.
    let is_bounded = Module::under_test() == Module::Native || (of_status(0) < WORKERS * 128 && of_status(429) > 0);
    assert!(is_bounded, "{} requests were undecided", of_status(0));
    service.signal_service("CONT").await;
    assert_eq!(staying.await.expect("a reply").status, 200);
    // The places of the clients that have left are free again.
    gateway.until_everywhere(&of_limited("key_limited"), 200).await;
    end(&gateway, loads, "hung up while they waited for the rate limit service").await;
}
