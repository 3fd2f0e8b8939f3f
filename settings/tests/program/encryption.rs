//! Encryption of the signing keys in the database.

use serde_json::Value;

use crate::support::Settings;

const PRIVATE: &[u8] = b"PRIVATE KEY";

fn key(digit: &str) -> String {
    digit.repeat(64)
}

/// Runs a command with these master keys. Returns the JSON, and whether it succeeded.
fn run(settings: &Settings, keys: &[(&str, &str)], arguments: &[&str]) -> (Value, bool) {
    let mut command = settings.command(&[arguments, &["--json"]].concat());
    let output = command.envs(keys.iter().copied()).output().unwrap();
    (serde_json::from_slice(&output.stdout).unwrap(), output.status.success())
}

/// Whether any file of the database contains a private key.
fn is_readable(settings: &Settings) -> bool {
    let files = std::fs::read_dir(settings.folder.path()).unwrap().map(|file| file.unwrap().path());
    files
        .filter(|file| file.to_str().unwrap().contains("test.db"))
        .any(|file| std::fs::read(file).unwrap().windows(PRIVATE.len()).any(|window| window == PRIVATE))
}

#[test]
fn signing_keys_are_encrypted_rotated_and_decrypted() {
    let settings = Settings::new();
    let is_file = settings.database.ends_with("test.db");
    let plain = settings.policy();
    assert!(!is_file || is_readable(&settings));
    let (one, two) = (key("1"), key("2"));
    let first = [("APEXMCP_DB_KEY", one.as_str())];
    let (refused, _) = run(&settings, &[], &["database", "encrypt"]);
    assert_eq!(refused["code"], "key_missing", "{refused}");
    assert_eq!(run(&settings, &first, &["database", "encrypt"]).0["signing_keys"], 1);
    assert!(!is_file || !is_readable(&settings), "neither the file nor its -wal has the old value");
    assert_eq!(run(&settings, &first, &["database", "encrypt"]).0["signing_keys"], 0, "they are encrypted already");
    let orgs = |policy: &Value| (policy["signing_keys"].clone(), policy["orgs"].clone());
    assert_eq!(orgs(&run(&settings, &first, &["policy", "export"]).0), orgs(&plain));

    // Without the key, or with another one.
    for keys in [vec![], vec![("APEXMCP_DB_KEY", two.as_str())]] {
        let (refused, is_good) = run(&settings, &keys, &["policy", "export"]);
        assert!(!is_good && refused["code"] == "key_missing", "{refused}");
    }
    let (_, is_good) = run(&settings, &[], &["key", "list", "--org", "acme"]);
    assert!(is_good, "other records are not encrypted");

    // A new key is encrypted at once, and all of them are encrypted with the next master key.
    run(&settings, &first, &["signing-key", "create", "--kid", "second"]);
    assert!(!is_file || !is_readable(&settings));
    let file = settings.write("key", &format!("{two}\n"));
    let both = [("APEXMCP_DB_KEY_FILE", file.as_str()), ("APEXMCP_DB_KEY_PREVIOUS", one.as_str())];
    assert_eq!(run(&settings, &both, &["database", "encrypt"]).0["signing_keys"], 2);
    let second = [("APEXMCP_DB_KEY", two.as_str())];
    assert_eq!(run(&settings, &second, &["policy", "export"]).0["signing_keys"].as_array().map(Vec::len), Some(2));
    assert!(!run(&settings, &first, &["policy", "export"]).1);
    assert_eq!(run(&settings, &second, &["database", "decrypt"]).0["signing_keys"], 2);
    assert_eq!(settings.policy()["signing_keys"][0], plain["signing_keys"][0]);
}

#[test]
fn a_database_can_begin_encrypted() {
    let settings = Settings::empty_file();
    let one = key("a");
    assert!(run(&settings, &[("APEXMCP_DB_KEY", &one)], &["init"]).1);
    assert!(!is_readable(&settings));
    let (wrong, _) = run(&settings, &[("APEXMCP_DB_KEY", "12")], &["org", "list"]);
    assert_eq!(wrong["code"], "invalid_argument", "{wrong}");
}
