//! Processes that are killed in the middle of a change. The acknowledged changes stay, and the database opens.

use std::collections::HashSet;
use std::io::Read;
use std::process::Stdio;
use std::time::Instant;

use crate::support::Settings;
use serde_json::Value;

const KILLS: usize = 100;
/// Processes that write at the same time, so that a killed one may be waiting, writing, or about to answer.
const WRITERS: usize = 3;

#[test]
fn no_acknowledged_change_is_lost() {
    let settings = Settings::with_file();
    let create = ["key", "create", "--org", "acme", "--name", "k", "--json"];
    let started = Instant::now();
    settings.text(&create);
    let usual = started.elapsed();
    let mut acknowledged = HashSet::new();
    let mut unanswered = 0;
    for round in 0..KILLS {
        let mut writers: Vec<_> =
            (0..WRITERS).map(|_| settings.command(&create).stdout(Stdio::piped()).spawn().unwrap()).collect();
        // The kills are spread over three times the usual duration of a change.
        let until = Instant::now() + usual.mul_f64(3.0 * round as f64 / KILLS as f64);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        for writer in &mut writers {
            writer.kill().unwrap();
        }
        for mut writer in writers {
            let mut printed = String::new();
            writer.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
            writer.wait().unwrap();
            match serde_json::from_str::<Value>(&printed) {
                Ok(key) => assert!(acknowledged.insert(key["id"].as_str().unwrap().to_owned())),
                Err(_) => unanswered += 1,
            }
        }
        let listed = settings.json(&["key", "list", "--org", "acme"]);
        let kept: HashSet<String> = listed.as_array().unwrap().iter().map(|key| key["id"].as_str().unwrap().to_owned()).collect();
        assert!(acknowledged.is_subset(&kept), "lost: {:?}", acknowledged.difference(&kept));
        let noted = settings.json(&["audit", "list", "--limit", "1000000"]).as_array().unwrap().len();
        assert_eq!(noted, kept.len() + 2, "the audit log has exactly the keys that exist");
    }
    let database = rusqlite::Connection::open(settings.file("test.db")).unwrap();
    let verdict: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    println!(
        "{KILLS} kills of {WRITERS}: {} changes acknowledged, {unanswered} not; usual duration {usual:?}",
        acknowledged.len()
    );
    assert!(acknowledged.len() > KILLS / 10 && unanswered > KILLS / 10, "too few kills happened in the middle of a change");
}
