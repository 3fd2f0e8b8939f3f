//! `apexmcp serve`, through the program itself.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

use crate::support::{Server, Settings, TOKEN};
use serde_json::Value;

#[test]
fn a_waiting_gateway_gets_a_change_and_a_known_policy_is_not_sent_again() {
    let settings = Settings::new();
    let server = settings.serve();
    let first = server.policy("", "0s");
    assert_eq!((first.status, serde_json::from_str::<Value>(&first.body).unwrap()), (200, settings.policy()));
    assert!(first.etag.starts_with("\"2-") && first.etag.ends_with('"'), "a strong ETag: {}", first.etag);
    for etag in [first.etag.as_str(), &format!("\"other\", {}", first.etag), "*", &format!("W/{}", first.etag)] {
        let known = server.policy(etag, "0s");
        assert_eq!((known.status, known.body.as_str(), &known.etag), (304, "", &first.etag), "{etag}");
    }
    assert_eq!(server.policy("\"other\"", "30s").status, 200, "a gateway with another policy does not wait");

    let second = thread::scope(|scope| {
        let waiting = scope.spawn(|| server.policy(&first.etag, "300s"));
        while server.metric("waiting_requests") == 0 {
            thread::yield_now();
        }
        settings.json(&["key", "create", "--org", "acme", "--name", "k"]);
        waiting.join().unwrap()
    });
    assert_eq!(second.status, 200);
    assert_eq!(serde_json::from_str::<Value>(&second.body).unwrap(), settings.policy());
    assert_ne!(second.etag, first.etag);
    assert_eq!(server.policy(&second.etag, "10ms").status, 304, "nothing changed during the wait");
    assert_eq!(server.metric("waiting_requests"), 0);
    assert_eq!(server.metric("policy_version").to_string(), settings.policy()["version"].as_str().unwrap());
}

#[test]
fn a_restored_copy_is_served_and_a_missing_database_is_reported() {
    let settings = Settings::with_file();
    let server = settings.serve();
    let first = server.policy("", "0s");
    let copy = rusqlite::Connection::open(settings.file("test.db")).unwrap();
    copy.execute("VACUUM INTO ?", [settings.file("copy.db").to_str().unwrap()]).unwrap();
    drop(copy);
    settings.json(&["org", "create", "lost"]);
    assert!(server.policy(&first.etag, "300s").body.contains("lost"));
    let second = server.policy("", "0s");
    for name in ["test.db", "test.db-wal", "test.db-shm"] {
        let _ = std::fs::remove_file(settings.file(name));
    }
    while server.get("/healthz", &[]).status == 200 {
        thread::yield_now();
    }
    assert_eq!(server.policy("", "0s").body, second.body, "the last policy is still served");
    std::fs::rename(settings.file("copy.db"), settings.file("test.db")).unwrap();
    settings.json(&["org", "create", "restored"]);
    let third = server.policy(&second.etag, "300s");
    let third = if third.body.contains("restored") { third } else { server.policy(&third.etag, "300s") };
    assert!(third.body.contains("restored") && !third.body.contains("lost"), "{}", third.body);
    while server.get("/healthz", &[]).status != 200 {
        thread::yield_now();
    }
}

#[test]
fn a_new_database_at_the_path_of_a_lost_one_does_not_replace_the_policy() {
    let settings = Settings::with_file();
    let server = settings.serve();
    let first = server.policy("", "0s");
    let lost = |name: &str| {
        let _ = std::fs::rename(settings.file(name), settings.file(&format!("lost-{name}")));
    };
    ["test.db", "test.db-wal", "test.db-shm"].into_iter().for_each(lost);
    settings.json(&["init"]);
    settings.json(&["org", "create", "new"]);
    let failures = server.metric("database_failures_total");
    while server.metric("database_failures_total") < failures + 2 {
        thread::yield_now();
    }
    assert_eq!(server.get("/healthz", &[]).status, 503);
    assert_eq!(server.policy("", "0s").body, first.body, "the last policy is still served");
    drop(server);
    let restarted = settings.serve();
    assert!(restarted.policy("", "0s").body.contains("new"), "a new server serves the new database");
}

/// Makes a change, and checks that a waiting gateway gets it.
fn assert_follows(settings: &Settings, server: &Server, org: &str) {
    let etag = server.policy("", "0s").etag;
    settings.json(&["org", "create", org]);
    let reply = server.policy(&etag, "20s");
    assert!(reply.body.contains(org), "{reply:?}");
}

/// Python uses the SQLite of the machine, which is another build than ours. The code does the same as `.backup` of `sqlite3`.
#[test]
fn a_backup_by_another_sqlite_does_not_disconnect_serve() {
    let settings = Settings::with_file();
    let server = settings.serve();
    assert_follows(&settings, &server, "before");
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/python");
    let backup = "import sqlite3, sys
source, copy = map(sqlite3.connect, sys.argv[1:])
source.backup(copy)
copy.close()
source.close()";
    let copied = Command::new(if own.exists() { own } else { PathBuf::from("python3") })
        .args(["-c", backup])
        .args([settings.file("test.db"), settings.file("copy.db")])
        .status()
        .unwrap();
    assert!(copied.success());
    assert!(settings.file("test.db-wal").exists(), "the locks of serve kept the file from being deleted");
    assert_follows(&settings, &server, "after");
}

#[test]
fn serve_follows_changes_after_wal_and_shm_were_created_anew() {
    let settings = Settings::with_file();
    let server = settings.serve();
    assert_follows(&settings, &server, "before");
    let database = rusqlite::Connection::open(settings.file("test.db")).unwrap();
    database.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(database);
    for name in ["test.db-wal", "test.db-shm"] {
        std::fs::remove_file(settings.file(name)).unwrap();
    }
    assert_follows(&settings, &server, "after");
}

#[test]
fn serve_continues_when_it_cannot_log() {
    let settings = Settings::new();
    let server = settings.serve_with_log(File::options().write(true).open("/dev/full").unwrap());
    assert_follows(&settings, &server, "first");
    assert_follows(&settings, &server, "second");
}

#[test]
fn a_database_that_other_users_can_read_is_a_warning() {
    let settings = Settings::with_file();
    let mode = |mode| std::fs::set_permissions(settings.file("test.db"), std::fs::Permissions::from_mode(mode)).unwrap();
    let told = || String::from_utf8(settings.run(&["org", "list", "--json"]).stderr).unwrap();
    for (open, is_told) in [(0o600, false), (0o640, true), (0o604, true), (0o700, false)] {
        mode(open);
        let line = told();
        assert_eq!(line.lines().count(), usize::from(is_told), "{open:o}: {line}");
        assert!(!is_told || line.contains("chmod 600") && line.contains("test.db*"), "{open:o}: {line}");
    }
    mode(0o644);
    let server = settings.serve();
    assert_follows(&settings, &server, "other");
    let log = std::fs::read_to_string(settings.file("serve.log")).unwrap();
    assert!(log.contains("chmod 600"), "{log}");
}

#[test]
fn the_policy_needs_the_token() {
    let settings = Settings::new();
    let server = settings.serve();
    let right = format!("Bearer {TOKEN}");
    assert_eq!(server.get("/v1/policy", &[("authorization", &right.replace("Bearer", "bearer"))]).status, 200);
    for wrong in
        ["", "Bearer", "Bearer ", "Basic x", TOKEN, &right[..right.len() - 1], &format!("{right}x"), "Bearer another-token-here"]
    {
        let reply = server.get("/v1/policy", &[("authorization", wrong)]);
        assert_eq!(reply.status, 401, "{wrong:?}");
        assert!(!reply.body.contains("orgs") && reply.etag.is_empty());
    }
    assert_eq!(server.get("/v1/policy", &[("authorization", &right), ("authorization", "Bearer x")]).status, 401);
    assert_eq!(server.get("/v1/policy", &[]).status, 401);
    assert_eq!(server.metric("unauthorized_total"), 10);
    assert_eq!(server.get("/v1/policy?wait=soon", &[("authorization", &right)]).status, 400);
    assert_eq!(server.get("/", &[]).status, 404);
    assert_eq!(server.get("/healthz", &[]).status, 200);
    let log = std::fs::read_to_string(settings.file("serve.log")).unwrap();
    assert!(!log.contains(TOKEN), "{log}");
}

#[test]
fn serve_does_not_start_without_a_good_token() {
    let settings = Settings::new();
    for token in ["", "fifteen-letters", "with a space in the middle"] {
        let output =
            settings.command(&["serve", "--listen", "127.0.0.1:0"]).env("APEXMCP_SETTINGS_TOKEN", token).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{token:?}");
        assert!(token.is_empty() || !format!("{output:?}").contains(token), "{output:?}");
    }
}

#[test]
fn hundreds_of_gateways_wait_and_all_get_the_change() {
    const GATEWAYS: usize = 300;
    let settings = Settings::new();
    let server = settings.serve();
    let etag = server.policy("", "0s").etag;
    let replies: Vec<_> = thread::scope(|scope| {
        let waiting: Vec<_> = (0..GATEWAYS).map(|_| scope.spawn(|| server.policy(&etag, "300s"))).collect();
        while server.metric("waiting_requests") < GATEWAYS as u64 {
            thread::yield_now();
        }
        let started = Instant::now();
        settings.json(&["org", "create", "other"]);
        let replies = waiting.into_iter().map(|waiting| waiting.join().unwrap()).collect();
        println!("{GATEWAYS} gateways had the change after {:?}", started.elapsed());
        replies
    });
    assert!(replies.iter().all(|reply| reply.status == 200 && reply.body == replies[0].body));
    assert!(replies[0].body.contains(r#""other""#));
}

#[test]
fn a_stop_answers_waiting_gateways() {
    let settings = Settings::new();
    let mut server = settings.serve();
    let etag = server.policy("", "0s").etag;
    let reply = thread::scope(|scope| {
        let waiting = scope.spawn(|| server.policy(&etag, "300s"));
        while server.metric("waiting_requests") == 0 {
            thread::yield_now();
        }
        server.terminate();
        waiting.join().unwrap()
    });
    assert_eq!(reply.status, 304);
    assert!(server.process.wait().unwrap().success());
    assert!(TcpStream::connect(server.address()).is_err());
}

#[test]
fn a_client_that_disconnects_is_no_longer_counted_as_waiting() {
    let settings = Settings::new();
    let server = settings.serve();
    let etag = server.policy("", "0s").etag;
    let stream = server.waiting(&etag);
    while server.metric("waiting_requests") == 0 {
        thread::yield_now();
    }
    drop(stream);
    while server.metric("waiting_requests") > 0 {
        thread::yield_now();
    }
    let mut stream = TcpStream::connect(server.address()).unwrap();
    stream.write_all(b"POST /v1/policy HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.1 405 "), "{reply}");
}
