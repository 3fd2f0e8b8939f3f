//! Reports of usage from gateways: each is counted once, and changes no policy.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Answer, Api, Settings, TOKEN, postgres};

/// The token with which gateways report usage.
const USAGE_TOKEN: &str = "a-token-of-usage";
const GATEWAY: &str = "9f0c4c1f2b7e4d60a1b2c3d4e5f60718";
const OTHER_GATEWAY: &str = "00000000000000000000000000000001";

/// Settings with an API key, and a server that collects usage.
struct Collecting {
    settings: Settings,
    api: Api,
    /// The id of the key.
    key: String,
}

fn now() -> i64 {
    i64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

fn hour() -> i64 {
    now() / 3600
}

impl Collecting {
    fn new() -> Self {
        let settings = Settings::new();
        let key = settings.json(&["key", "create", "--org", "acme", "--name", "ci"])["id"].as_str().unwrap().to_owned();
        let api = settings.api_with(&["operator"], &[("APEXMCP_USAGE_TOKEN", USAGE_TOKEN)]);
        Self { settings, api, key }
    }

    /// The report of a gateway.
    fn report(&self, gateway: &str, sequence: u64, orgs: &Value) -> Answer {
        let body = json!({"gateway": gateway, "sequence": sequence, "hour": hour(), "orgs": orgs});
        post(&self.api, body.to_string().as_bytes())
    }

    /// A report with allowed requests of the key.
    fn allowed(&self, gateway: &str, sequence: u64, requests: u64) -> Answer {
        let name = format!("acme/key/{}", self.key);
        self.report(gateway, sequence, &json!({"acme": {"credentials": {name: {"allowed": requests}}}}))
    }

    fn shown(&self) -> Value {
        let answer = self.api.get("/orgs/acme/usage");
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json
    }

    /// The allowed requests of the org.
    fn total(&self) -> u64 {
        self.shown()["month"]["allowed"].as_u64().unwrap()
    }

    /// Runs a statement on the store.
    fn execute(&self, statement: &str) {
        match postgres() {
            Some(_) => ::postgres::Client::connect(&self.settings.database, ::postgres::NoTls)
                .unwrap()
                .batch_execute(&format!("SET search_path TO apexmcp; {statement}"))
                .unwrap(),
            None => rusqlite::Connection::open(self.settings.file("test.db-usage")).unwrap().execute_batch(statement).unwrap(),
        }
    }

    /// The number that a query finds.
    fn number(&self, query: &str) -> i64 {
        match postgres() {
            Some(_) => {
                let mut client = ::postgres::Client::connect(&self.settings.database, ::postgres::NoTls).unwrap();
                client.batch_execute("SET search_path TO apexmcp").unwrap();
                client.query_one(query, &[]).unwrap().get(0)
            }
            None => {
                let store = rusqlite::Connection::open(self.settings.file("test.db-usage")).unwrap();
                store.query_row(query, [], |row| row.get(0)).unwrap()
            }
        }
    }
}

fn post(api: &Api, body: &[u8]) -> Answer {
    let authorization = format!("Bearer {USAGE_TOKEN}");
    send(api, "POST", &[("authorization", &authorization), ("content-type", "application/json")], body)
}

fn send(api: &Api, method: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    api.send_to(&format!("http://{}", api.server.address()), method, "/v1/usage", headers, body)
}

#[test]
fn a_report_is_counted_once_whatever_happens_to_it() {
    let collecting = Collecting::new();
    assert_eq!(collecting.allowed(GATEWAY, 1, 10).status, 200);
    assert_eq!(collecting.allowed(GATEWAY, 2, 5).status, 200);
    assert_eq!(collecting.total(), 15);
    for (sequence, requests) in [(2, 5), (1, 10), (2, 500), (1, 1)] {
        assert_eq!(collecting.allowed(GATEWAY, sequence, requests).status, 200, "a repeated report is acknowledged");
    }
    assert_eq!(collecting.total(), 15, "a repeated, late or reordered report is not counted");
    assert_eq!(collecting.allowed(OTHER_GATEWAY, 1, 100).status, 200);
    assert_eq!(collecting.allowed(GATEWAY, 9, 1).status, 200, "a lost report leaves a gap");
    assert_eq!(collecting.total(), 116);
    assert_eq!(collecting.api.server.metric("usage_reports_total"), 4);
    assert_eq!(collecting.api.server.metric("usage_requests_total{result=\"allowed\"}"), 116);

    // The same report many times at once.
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| assert_eq!(collecting.allowed(GATEWAY, 10, 7).status, 200));
        }
    });
    assert_eq!(collecting.total(), 123);
}

#[test]
fn usage_is_shown_by_credential_day_and_month() {
    let collecting = Collecting::new();
    let Collecting { settings, api, key } = &collecting;
    settings.json(&["limits", "set", "--org", "acme", "--monthly-quota", "1000"]);
    settings.json(&["limits", "set", "--key", key, "--monthly-quota", "100"]);
    let client =
        settings.json(&["client", "create", "--org", "acme", "--name", "billing"])["client_id"].as_str().unwrap().to_owned();
    let [of_key, of_client] = [format!("acme/key/{key}"), format!("acme/client/{client}")];
    // A `#` in an issuer is encoded in the names of principals.
    let keys = "http://127.0.0.1:1/keys";
    settings.json(&[
        "sso",
        "configure",
        "--org",
        "acme",
        "--issuer",
        "urn:example:a#b",
        "--jwks-uri",
        keys,
        "--audience",
        "apexmcp",
        "--force",
        "--allow-private-address",
    ]);
    let provider = settings.json(&["sso", "list", "--org", "acme"])[0]["id"].as_str().unwrap().to_owned();
    let minute = now() / 60 * 60;
    let used = json!({"acme": {
        "credentials": {
            of_key.clone(): {"allowed": 10, "refused": {"scope_insufficient": 2, "unheard_of": 1}, "last_used": minute},
            of_client.clone(): {"allowed": 1},
            "acme/idp/urn:example:a%23b": {"allowed": 3},
            "acme/other": {"allowed": 2, "refused": {"rate_limit": 1}, "last_used": minute},
        },
        "refused": {"api_key_unknown": 5},
    }});
    let answer = collecting.report(GATEWAY, 1, &used);
    let shown = collecting.shown();
    let month = shown["month"]["month"].as_str().unwrap();
    let expected = json!({"month": month, "orgs": {"acme": 16}, "keys": {of_key.clone(): 10}});
    assert_eq!((answer.status, &answer.json), (200, &expected), "only those with a quota");
    assert_eq!(shown["month"], json!({"month": month, "allowed": 16, "monthly_quota": 1000}));
    assert_eq!((&shown["days"][0]["allowed"], &shown["days"][0]["refused"]), (&json!(16), &json!(9)), "{shown}");
    assert_eq!((&shown["hours"][0]["allowed"], &shown["hours"][0]["refused"]), (&json!(16), &json!(9)), "{shown}");
    let items = shown["credentials"].as_array().unwrap();
    let item = |credential: &str| items.iter().find(|item| item["credential"] == credential).unwrap();
    assert_eq!(shown["refused"], json!({"api_key_unknown": 5}));
    let of_key = item(&of_key);
    assert_eq!(of_key["refused"], json!({"scope_insufficient": 2, "other": 1}));
    let last_used = of_key["last_used"].as_str().unwrap();
    assert_eq!((&of_key["name"], last_used.ends_with(":00Z")), (&json!("ci"), true), "{of_key}");
    assert_eq!(
        item(&of_client),
        &json!({"credential": of_client, "name": "billing", "allowed": 1, "refused": {}, "last_used": null})
    );
    assert_eq!(item(&format!("acme/idp/{provider}"))["name"], "urn:example:a#b");
    assert_eq!(item("acme/other")["last_used"], Value::Null);
    let first = api.get("/orgs/acme/usage?limit=2").json;
    let second = api.get(&format!("/orgs/acme/usage?limit=2&cursor={}", first["next"].as_str().unwrap())).json;
    let parts = [&first["credentials"], &second["credentials"]].map(|items| items.as_array().unwrap().clone()).concat();
    assert_eq!((&parts, &second["next"]), (items, &Value::Null));

    for (query, field) in
        [("from=2026-13-01", "from"), ("to=now", "to"), ("from=2026-02-02&to=2026-02-01", "from"), ("to=2026-1-1", "to")]
    {
        let refused = api.get(&format!("/orgs/acme/usage?{query}"));
        assert_eq!((refused.problem(), &refused.json["field"]), ("invalid_argument", &json!(field)), "{query}");
    }
    assert_eq!(api.get("/orgs/acme/usage?from=2020-01-01&to=2020-01-02").json["credentials"], json!([]));
    assert_eq!(api.get("/orgs/nobody/usage").problem(), "not_found");
    let viewer = Api { token: settings.admin_token(&["viewer", "--org", "acme"]), ..settings.api(&["operator"]) };
    assert_eq!(viewer.get("/orgs/acme/usage").json["month"], shown["month"], "a server that does not collect shows it");
    settings.json(&["org", "create", "other"]);
    assert_eq!(viewer.get("/orgs/other/usage").problem(), "not_found");

    assert_eq!(settings.json(&["usage", "show", "--org", "acme"])["credentials"], shown["credentials"]);
    let text = settings.text(&["usage", "show", "--org", "acme"]);
    for part in [&format!("acme: 16 requests of 1000 in {month}"), "scope_insufficient 2", "(no known credential)", "billing"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(settings.refusal(&["usage", "show", "--org", "acme", "--from", "soon"]).1, "invalid_argument");
    assert_eq!(settings.json(&["key", "list", "--org", "acme"])[0]["last_used"], last_used);
    assert_eq!(settings.json(&["key", "show", key])["last_used"], last_used);
    assert_eq!(settings.json(&["client", "list", "--org", "acme"])[0]["last_used"], Value::Null);
    assert_eq!(api.get("/orgs/acme/keys").json["items"][0]["last_used"], last_used);
    assert_eq!(api.get("/orgs/acme/clients").json["items"][0]["last_used"], Value::Null);
    let path = format!("/orgs/acme/keys/{key}");
    let one = api.get(&path);
    assert_eq!(one.json["last_used"], last_used);
    let changed = api.ask("PATCH", &path, &[("if-match", one.header("etag"))], &json!({"name": "CI"}));
    assert_eq!(changed.status, 200, "the use of a key is no part of its tag: {changed:?}");
}

#[test]
fn an_hour_and_a_last_use_of_a_wrong_clock_are_corrected() {
    let collecting = Collecting::new();
    let name = format!("acme/key/{}", collecting.key);
    let send = |sequence: u64, hour: i64, last_used: i64| {
        let orgs = json!({"acme": {"credentials": {name.clone(): {"allowed": 1, "last_used": last_used}}}});
        let body = json!({"gateway": GATEWAY, "sequence": sequence, "hour": hour, "orgs": orgs});
        assert_eq!(post(&collecting.api, body.to_string().as_bytes()).status, 200);
    };
    let last_used = || collecting.settings.json(&["key", "list", "--org", "acme"])[0]["last_used"].as_str().unwrap().to_owned();
    send(1, hour() + 1000, now() + 1_000_000);
    let present = last_used();
    assert!(*present < *"2100", "{present}");
    send(2, 0, 60);
    assert_eq!(last_used(), present, "a time never goes back");
    send(3, hour() - 10 * 24, 60);
    let shown = collecting.api.get("/orgs/acme/usage?from=2020-01-01").json;
    let days: Vec<u64> = shown["days"].as_array().unwrap().iter().map(|day| day["allowed"].as_u64().unwrap()).collect();
    assert_eq!(days.iter().sum::<u64>(), 2, "a day before the org was created is one of another org: {shown}");
    assert_eq!(collecting.number("SELECT CAST(sum(requests) AS BIGINT) FROM usage_org_days"), 3);
}

#[test]
fn names_that_the_database_does_not_have_are_ignored() {
    let collecting = Collecting::new();
    collecting.settings.json(&["org", "create", "beta"]);
    let of_other = format!("beta/key/{}", collecting.key);
    let orgs = json!({
        "acme": {"credentials": {"acme/key/key_ffffffffffff": {"allowed": 1, "last_used": 60}, "acme/client/x": {"allowed": 1},
            "acme/idp/https://nobody.example": {"allowed": 1}}},
        "beta": {"credentials": {of_other: {"allowed": 1}}},
        "gone": {"refused": {"api_key_unknown": 1}},
    });
    let answer = collecting.report(GATEWAY, 1, &orgs);
    assert_eq!((answer.status, &answer.json["orgs"]), (200, &json!({})), "{answer:?}");
    for table in ["usage_days", "usage_org_days", "usage_hours", "usage_last_used"] {
        assert_eq!(collecting.number(&format!("SELECT count(*) FROM {table}")), 0, "{table}");
    }
    // A deleted org of the same name had requests on earlier days.
    collecting.allowed(GATEWAY, 2, 3);
    collecting.execute("INSERT INTO usage_org_days (org, day, outcome, requests) VALUES ('acme', 20000, 'allowed', 100)");
    assert_eq!(collecting.total(), 3);
    collecting.settings.json(&["org", "delete", "acme", "--yes"]);
    for table in ["usage_days", "usage_org_days", "usage_hours", "usage_last_used"] {
        assert_eq!(
            collecting.number(&format!("SELECT count(*) FROM {table}")),
            0,
            "a new org of this name gets nothing: {table}"
        );
    }
    // The server deletes what is left of orgs that do not exist.
    collecting.execute("INSERT INTO usage_org_days (org, day, outcome, requests) VALUES ('gone', 20000, 'allowed', 100)");
    collecting.execute("INSERT INTO usage_last_used (org, credential, at) VALUES ('silent', 'key/a', 1)");
    let _restarted = collecting.settings.api_with(&["operator"], &[("APEXMCP_USAGE_TOKEN", USAGE_TOKEN)]);
    while collecting.number("SELECT count(*) FROM usage_org_days") + collecting.number("SELECT count(*) FROM usage_last_used") > 0
    {
        thread::yield_now();
    }
}

/// Gateways need the policy more than the reports.
#[test]
fn a_server_starts_with_a_broken_store_and_refuses_reports() {
    if postgres().is_some() {
        return;
    }
    let settings = Settings::new();
    std::fs::write(settings.file("test.db-usage"), "no database").unwrap();
    let api = settings.api_with(&["operator"], &[("APEXMCP_USAGE_TOKEN", USAGE_TOKEN)]);
    let body = json!({"gateway": GATEWAY, "sequence": 1, "hour": hour(), "orgs": {"acme": {}}});
    assert_eq!(post(&api, body.to_string().as_bytes()).status, 503);
    assert_eq!(api.server.get("/v1/policy", &[("authorization", &format!("Bearer {TOKEN}"))]).status, 200);
    let log = std::fs::read_to_string(settings.file("serve.log")).unwrap();
    assert!(log.contains("test.db-usage"), "{log}");
}

/// Wrong reports with the right token must not stop later reports.
#[test]
fn a_sum_stays_at_its_greatest_value() {
    let collecting = Collecting::new();
    let day = now() / 86_400;
    collecting.execute(&format!("INSERT INTO usage_org_days VALUES ('acme', {day}, 'allowed', 10000000000000000)"));
    assert_eq!(collecting.allowed(GATEWAY, 1, 5).status, 200);
    assert_eq!(collecting.total(), 10_000_000_000_000_000);
}

#[test]
fn a_report_needs_the_token_of_usage_and_a_form_that_can_be_read() {
    let collecting = Collecting::new();
    let api = &collecting.api;
    let right = format!("Bearer {USAGE_TOKEN}");
    let json = ("content-type", "application/json");
    for wrong in ["", "Bearer ", &format!("Bearer {TOKEN}"), &format!("Bearer {}", api.token), &right[..right.len() - 1]] {
        assert_eq!(send(api, "POST", &[("authorization", wrong), json], b"{}").status, 401, "{wrong:?}");
    }
    assert_eq!(send(api, "POST", &[json], b"{}").status, 401);
    assert_eq!(api.server.metric("unauthorized_total"), 6);
    assert_eq!(api.server.get("/v1/policy", &[("authorization", &right)]).status, 401, "it cannot read the policy");
    let as_admin = api.send("GET", "/orgs", &[("authorization", &right)], b"");
    assert_eq!(as_admin.problem(), "unauthenticated");
    let get = send(api, "GET", &[("authorization", &right)], b"");
    assert_eq!((get.status, get.header("allow")), (405, "POST"));
    assert_eq!(send(api, "POST", &[("authorization", &right)], b"{}").status, 400, "no content type");
    let wrong = post(api, br#"{"gateway": "9f0c4c1f2b7e4d60a1b2c3d4e5f60718", "sequence": 0, "hour": 1}"#);
    assert_eq!((wrong.status, wrong.text.as_str()), (400, "the report is wrong: sequence: expected 1 or more\n"));
    let padded = |length: usize| {
        let report = format!(r#"{{"gateway": "{GATEWAY}", "sequence": 1, "hour": 1}}"#);
        format!("{report}{}", " ".repeat(length - report.len()))
    };
    assert_eq!(post(api, padded(1 << 20).as_bytes()).status, 200);
    // The server answers before it has read a body that is too long.
    for (framing, body) in [
        ("content-length: 1048577", String::new()),
        ("transfer-encoding: chunked", format!("100001\r\n{}", padded((1 << 20) + 1))),
    ] {
        let mut stream = TcpStream::connect(api.server.address()).unwrap();
        let head = format!("host: x\r\nauthorization: {right}\r\ncontent-type: application/json\r\n{framing}");
        stream.write_all(format!("POST /v1/usage HTTP/1.1\r\n{head}\r\n\r\n{body}").as_bytes()).unwrap();
        let mut line = [0; 12];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(std::str::from_utf8(&line).unwrap(), "HTTP/1.1 413", "{framing}");
    }
}

#[test]
fn serve_does_not_start_with_a_bad_token_of_usage_and_collects_nothing_without_one() {
    let settings = Settings::new();
    for token in ["", "fifteen-letters", "with a space in the middle", TOKEN] {
        let mut command = settings.command(&["serve", "--listen", "127.0.0.1:0"]);
        let output = command.env("APEXMCP_SETTINGS_TOKEN", TOKEN).env("APEXMCP_USAGE_TOKEN", token).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{token:?}");
        let line = String::from_utf8(output.stderr).unwrap();
        assert!(line.contains("APEXMCP_USAGE_TOKEN must") && (token.is_empty() || !line.contains(token)), "{line}");
    }
    let api = settings.api(&["operator"]);
    assert_eq!(post(&api, b"{}").status, 404);
    assert_eq!(api.get("/orgs/acme/usage").json["began_at"], Value::Null);
    assert!(settings.text(&["usage", "show", "--org", "acme"]).contains("Usage is not collected."));
    assert!(!settings.file("test.db-usage").exists());
}

#[test]
fn old_usage_is_deleted() {
    let collecting = Collecting::new();
    collecting.allowed(GATEWAY, 1, 1);
    let (today, present) = (now() / 86_400, hour());
    for (day, hour) in [(today - 399, present - 14 * 24 + 1), (today - 401, present - 14 * 24 - 1)] {
        collecting.execute(&format!(
            "INSERT INTO usage_days (org, credential, day, outcome, requests) VALUES ('acme', 'key/k', {day}, 'allowed', 1);
            INSERT INTO usage_org_days (org, day, outcome, requests) VALUES ('acme', {day}, 'allowed', 1);
            INSERT INTO usage_hours (org, hour, allowed, refused) VALUES ('acme', {hour}, 1, 1);
            INSERT INTO usage_gateways (gateway, sequence, hour) VALUES ('{day}', 1, {hour});"
        ));
    }
    // More than one portion.
    let many: Vec<String> = (0..2_500).map(|key| format!("('acme', 'key/{key}', 1, 'allowed', 1)")).collect();
    collecting.execute(&format!("INSERT INTO usage_days (org, credential, day, outcome, requests) VALUES {}", many.join(", ")));
    let rows = || {
        ["usage_days", "usage_org_days", "usage_hours", "usage_gateways"]
            .map(|table| collecting.number(&format!("SELECT count(*) FROM {table}")))
    };
    assert_eq!(rows(), [2_503, 3, 3, 3]);
    // A server deletes old usage when it starts.
    let _restarted = collecting.settings.api_with(&["operator"], &[("APEXMCP_USAGE_TOKEN", USAGE_TOKEN)]);
    let began = Instant::now();
    while rows() != [2, 2, 2, 2] {
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", rows());
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(collecting.total(), 1);
}

#[test]
fn a_report_is_no_change_of_the_policy() {
    let collecting = Collecting::new();
    let server = &collecting.api.server;
    // The admin token of the test was created after the server started.
    let version = collecting.settings.policy()["version"].clone();
    let present = format!("\"{}-", version.as_str().unwrap());
    let mut before = server.policy("", "0s");
    while !before.etag.starts_with(&present) {
        before = server.policy(&before.etag, "30s");
    }
    let log = || std::fs::read_to_string(collecting.settings.file("serve.log")).unwrap();
    while !log().contains(&format!("policy version {}", version.as_str().unwrap())) {
        thread::yield_now();
    }
    let (logged, failures) = (log(), server.metric("database_failures_total"));
    let waited = thread::scope(|scope| {
        let waiting = scope.spawn(|| server.policy(&before.etag, "1s"));
        for sequence in 1..=20 {
            assert_eq!(collecting.allowed(GATEWAY, sequence, 1).status, 200);
        }
        waiting.join().unwrap()
    });
    assert_eq!((waited.status, waited.etag), (304, before.etag));
    assert_eq!(collecting.settings.policy()["version"], version);
    assert_eq!((log(), server.metric("database_failures_total")), (logged, failures), "nothing was published");
    assert_eq!(collecting.total(), 20);
}

#[test]
fn a_deleted_file_of_usage_is_created_anew() {
    if postgres().is_some() {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let collecting = Collecting::new();
    let file = collecting.settings.file("test.db-usage");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    collecting.allowed(GATEWAY, 1, 10);
    for ending in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(collecting.settings.file(&format!("test.db-usage{ending}")));
    }
    assert_eq!(collecting.allowed(GATEWAY, 2, 3).status, 200);
    assert_eq!(collecting.total(), 3);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let copy = collecting.settings.file("copy.db").to_str().unwrap().to_owned();
    collecting.settings.json(&["database", "copy", "--to", &copy]);
    assert!(!collecting.settings.file("copy.db-usage").exists());
}

#[test]
fn two_servers_add_up() {
    let collecting = Collecting::new();
    let other = collecting.settings.api_with(&["operator"], &[("APEXMCP_USAGE_TOKEN", USAGE_TOKEN)]);
    collecting.settings.json(&["org", "create", "beta"]);
    let report = |gateway: u32, sequence: u32| {
        let orgs = json!({
            "acme": {"credentials": {format!("acme/key/{}", collecting.key): {"allowed": 1}}},
            "beta": {"refused": {"api_key_unknown": 1}},
        });
        let body = json!({"gateway": format!("{gateway:032x}"), "sequence": sequence, "hour": hour(), "orgs": orgs});
        body.to_string()
    };
    thread::scope(|scope| {
        for gateway in 0..8 {
            let (collecting, other, report) = (&collecting, &other, &report);
            scope.spawn(move || {
                for sequence in 1..=25 {
                    // Each report goes to both servers: only one of them may count it.
                    for api in [&collecting.api, other] {
                        let body = report(gateway, sequence);
                        let mut answer = post(api, body.as_bytes());
                        while answer.status == 503 {
                            answer = post(api, body.as_bytes());
                        }
                        assert_eq!(answer.status, 200, "{answer:?}");
                    }
                }
            });
        }
    });
    assert_eq!(collecting.total(), 200);
    assert_eq!(collecting.number("SELECT CAST(sum(refused) AS BIGINT) FROM usage_hours"), 200);
    let counted = [&collecting.api, &other].map(|api| api.server.metric("usage_reports_total"));
    assert_eq!(counted.iter().sum::<u64>(), 200);
}
