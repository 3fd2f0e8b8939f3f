//! What PostgreSQL makes possible: several servers, and a database that goes away. These tests run with `scripts/with-postgres`.

use std::thread;
use std::time::Instant;

use serde_json::Value;

use crate::support::{OwnPostgres, Server, Settings, new_database, postgres};

/// A client that is no gateway gets the whole document.
fn names(server: &Server) -> String {
    server.policy("", "0s").body
}

fn execute(url: &str, query: &str) {
    ::postgres::Client::connect(url, ::postgres::NoTls).unwrap().batch_execute(query).unwrap();
}

#[test]
fn each_server_has_a_change_at_once() {
    if postgres().is_none() {
        return;
    }
    let settings = Settings::new();
    let servers = [settings.serve(), settings.serve()];
    for round in 0..10 {
        let etags = servers.each_ref().map(|server| server.policy("", "0s").etag);
        assert_eq!(etags[0], etags[1], "both servers have the same states");
        let began = Instant::now();
        let id = settings.json(&["key", "create", "--org", "acme", "--name", "k"])["id"].as_str().unwrap().to_owned();
        thread::scope(|scope| {
            for (server, etag) in servers.iter().zip(&etags) {
                let id = &id;
                scope.spawn(move || assert!(server.policy(etag, "30s").body.contains(id)));
            }
        });
        println!("round {round}: both servers had the change after {:?}", began.elapsed());
    }
}

#[test]
fn changes_of_many_processes_get_one_version_after_the_other() {
    if postgres().is_none() {
        return;
    }
    const PROCESSES: usize = 8;
    let settings = Settings::new();
    let server = settings.serve();
    thread::scope(|scope| {
        for _ in 0..PROCESSES {
            scope.spawn(|| {
                for _ in 0..5 {
                    let id = settings.json(&["key", "create", "--org", "acme", "--name", "k"])["id"].as_str().unwrap().to_owned();
                    settings.json(&["key", "revoke", &id]);
                }
            });
        }
    });
    let log = settings.json(&["audit", "list", "--limit", "1000"]);
    let versions: Vec<u64> = log.as_array().unwrap().iter().map(|entry| entry["version"].as_u64().unwrap()).collect();
    assert_eq!(versions, (1..=2 + 10 * PROCESSES as u64).collect::<Vec<_>>());
    let last = format!("\"version\":\"{}\"", versions.len());
    let mut policy = server.policy("", "0s");
    while !policy.body.contains(&last) {
        policy = server.policy(&policy.etag, "30s");
    }
    assert!(!policy.body.contains("api_keys"), "{}", policy.body);
}

#[test]
fn a_server_continues_while_the_database_is_away() {
    if postgres().is_none() {
        return;
    }
    let own = OwnPostgres::start();
    let settings = Settings { database: new_database(&own.server), ..Settings::empty_file() }.initialized();
    settings.json(&["org", "create", "before"]);
    let server = settings.serve();
    let known = server.policy("", "0s");
    own.control("stop");
    let (line, code) = settings.refusal(&["org", "create", "meanwhile"]);
    assert_eq!(code, "database_failed");
    assert!(line.contains("cannot be reached") && line.contains("check the address"), "{line}");
    while server.get("/healthz", &[]).status == 200 {
        thread::yield_now();
    }
    assert!(names(&server).contains("before"), "the last policy is still served");
    assert_eq!(server.policy(&known.etag, "10ms").status, 304);
    own.control("start");
    while server.get("/healthz", &[]).status != 200 {
        thread::yield_now();
    }
    settings.json(&["org", "create", "after"]);
    assert!(server.policy(&known.etag, "30s").body.contains("after"));
    assert!(std::fs::read_to_string(settings.file("serve.log")).unwrap().contains("can be read again"));
    // A restart ends all connections, but loses no change.
    own.control("restart");
    settings.json(&["org", "create", "later"]);
    let mut policy = server.policy("", "0s");
    while !policy.body.contains("later") {
        policy = server.policy(&policy.etag, "30s");
    }
}

/// A failover to a replica that lost the last transactions is the same: another history with the same versions.
#[test]
fn a_restored_database_replaces_the_lost_history() {
    let Some(server) = postgres() else { return };
    let settings = Settings::new();
    settings.json(&["org", "create", "stays"]);
    let (copy, admin) = (new_database(&server), format!("{server}/postgres"));
    let name = |url: &str| url.rsplit('/').next().unwrap().to_owned();
    let (old, backup) = (name(&settings.database), name(&copy));
    execute(&admin, &format!("DROP DATABASE {backup}"));
    execute(&admin, &format!("CREATE DATABASE {backup} TEMPLATE {old}"));
    let serving = settings.serve();
    settings.json(&["org", "create", "lost"]);
    let mut before = serving.policy("", "0s");
    while !before.body.contains("lost") {
        before = serving.policy(&before.etag, "30s");
    }
    execute(&admin, &format!("ALTER DATABASE {old} ALLOW_CONNECTIONS false"));
    execute(&admin, &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{old}'"));
    execute(&admin, &format!("DROP DATABASE {old} WITH (FORCE)"));
    execute(&admin, &format!("ALTER DATABASE {backup} RENAME TO {old}"));
    settings.json(&["org", "create", "restored"]);
    let mut after = serving.policy(&before.etag, "30s");
    while !after.body.contains("restored") {
        after = serving.policy(&after.etag, "30s");
    }
    let policy: Value = serde_json::from_str(&after.body).unwrap();
    let before: Value = serde_json::from_str(&before.body).unwrap();
    assert_eq!(policy["version"], before["version"], "the same number");
    assert!(policy["orgs"].get("lost").is_none() && policy["orgs"].get("stays").is_some(), "{policy}");
}

#[test]
fn a_database_that_is_not_there_is_named_without_its_password() {
    let Some(server) = postgres() else { return };
    let settings = Settings::empty();
    let (line, code) = settings.refusal(&["org", "list"]);
    assert!(code == "database_missing" && line.contains("has no tables of apexmcp: run 'apexmcp init'"), "{line}");
    settings.json(&["init"]);
    assert_eq!(settings.refusal(&["init"]).1, "already_exists");
    let with_password = server.replace("postgres@", "postgres:SECRET@");
    for (database, expected) in [
        (format!("{with_password}/nothing"), "cannot be reached"),
        ("postgres://user:SECRET@127.0.0.1:1/x".to_owned(), "cannot be reached"),
        ("postgres://user:SECRET@host:port/x".to_owned(), "is not a connection string"),
        (format!("{with_password}/x?sslrootcert=/nothing"), "sslrootcert /nothing"),
        (format!("{with_password}/x?sslmode=require"), "cannot be reached"),
    ] {
        let line = settings.failure(&["--db", &database, "org", "list"]);
        assert!(line.contains(expected) && !line.contains("SECRET"), "{line}");
    }
}

#[test]
fn a_database_moves_to_postgres_and_back() {
    let Some(server) = postgres() else { return };
    let settings = Settings::with_file();
    settings.json(&["key", "create", "--org", "acme", "--name", "k", "--connector", "github"]);
    let id = settings.json(&["key", "create", "--org", "acme", "--name", "l"])["id"].as_str().unwrap().to_owned();
    settings.json(&["key", "revoke", &id]);
    let client = settings.json(&["client", "create", "--org", "acme", "--name", "c", "--scope", "mcp:call"]);
    let client = client["client_id"].as_str().unwrap();
    settings.json(&["limits", "set", "--org", "acme", "--monthly-quota", "5"]);
    settings.json(&["token", "revoke", "--org", "acme", "--jti", "t"]);
    let state = |database: &str| {
        let there = Settings { database: database.to_owned(), ..Settings::empty_file() };
        let log = there.json(&["audit", "list"]);
        let keys = there.json(&["key", "list", "--org", "acme"]);
        (there.policy(), log, keys, there.serve().policy("", "0s").etag)
    };
    let moved = new_database(&server);
    let copied = settings.json(&["database", "copy", "--to", &moved]);
    assert!(copied["rows"].as_u64().unwrap() > 20, "{copied}");
    assert_eq!(state(&moved), state(&settings.database), "also the state that gateways name");
    let (line, code) = settings.refusal(&["database", "copy", "--to", &moved]);
    assert_eq!(code, "already_exists", "{line}");
    // The copy is used, and moves back.
    let there = Settings { database: moved.clone(), ..Settings::empty_file() };
    there.json(&["client", "rotate-secret", client]);
    there.json(&["key", "create", "--org", "acme", "--name", "m"]);
    let back = settings.file("back.db").to_str().unwrap().to_owned();
    there.json(&["database", "copy", "--to", &back]);
    assert_eq!(state(&back), state(&moved));
    let there = Settings { database: back, ..Settings::empty_file() };
    there.json(&["client", "drop-secret", client]);
    assert!(there.text(&["database", "copy", "--to", there.file("third.db").to_str().unwrap()]).contains("the same policy"));
}

#[test]
fn a_server_is_verified_when_it_offers_tls() {
    if postgres().is_none() {
        return;
    }
    let own = OwnPostgres::with_tls();
    let url = new_database(&own.server);
    let by_name = url.replace("127.0.0.1", "localhost");
    let settings = Settings::empty_file();
    let run = |url: &str, command: &str| settings.run(&["--db", url, command, "--json"]);
    let trusted = format!("sslrootcert={}", own.root);
    let made = run(&format!("{by_name}?sslmode=require&{trusted}"), "init");
    assert!(made.status.success(), "{made:?}");
    for (url, is_good) in [
        (format!("{by_name}?{trusted}"), true),
        (format!("{url}?{trusted}"), false),           // another name than in the certificate
        (format!("{by_name}?sslmode=require"), false), // an authority that the system does not know
        (format!("{by_name}?sslmode=prefer"), false),  // TLS is offered, so it is verified
        (format!("{by_name}?sslmode=disable"), true),
    ] {
        let output = settings.run(&["--db", &url, "org", "list", "--json"]);
        assert_eq!(output.status.success(), is_good, "{url}: {output:?}");
    }
}
