//! `apexmcp apply`.

use serde_json::{Value, json};

use crate::support::{Settings, website};

const ALL: &str = "
orgs:
  acme:
    limits: {rate: {requests: 600, per: minute, burst: 60}, monthly_quota: 1000000}
    api_keys:
      - name: ci agent
        connectors: [github]
        expires_at: 2999-01-01T02:00:00+02:00
        limits: {rate: {requests: 10, per: second}}
      - name: ops
    oauth_clients:
      - name: billing
      - {name: reports, scopes: [mcp:call:github]}
    identity_providers:
      - issuer: http://127.0.0.1:1/idp
        jwks_uri: http://127.0.0.1:1/keys
        audience: apexmcp
        default_scopes: [mcp:call:github]
        client_scopes: []
    members:
      - {email: Ada@example.com, role: admin}
      - {email: bob@example.com, role: viewer}
  beta:
";

/// Applies this text, with these options.
fn apply(settings: &Settings, text: &str, options: &[&str]) -> Value {
    settings.json(&arguments(&settings.write("orgs.yaml", text), options))
}

/// Providers of the tests answer nothing, so the checks fail.
fn arguments<'a>(file: &'a str, options: &[&'a str]) -> Vec<&'a str> {
    [&["apply", "-f", file, "--force", "--allow-private-address"], options].concat()
}

fn refusal(settings: &Settings, text: &str, options: &[&str]) -> (String, String) {
    settings.refusal(&arguments(&settings.write("orgs.yaml", text), options))
}

/// What the steps do, such as `create api_key ops`.
fn steps(answer: &Value) -> Vec<String> {
    let word = |step: &Value, member: &str| step[member].as_str().unwrap().to_owned();
    let steps = answer["steps"].as_array().unwrap().iter();
    steps.map(|step| ["action", "kind", "name"].map(|member| word(step, member)).join(" ")).collect()
}

/// Everything that a command could change.
fn state(settings: &Settings) -> (Value, Value) {
    (settings.json(&["audit", "list", "--limit", "1000"]), settings.policy())
}

#[test]
fn what_a_file_declares_is_created_once() {
    let settings = Settings::new();
    let plan = apply(&settings, ALL, &["--plan"]);
    assert_eq!((&plan["applied"], &plan["create"]), (&json!(false), &json!(9)), "{plan}");
    assert_eq!(settings.json(&["audit", "list"]).as_array().map(Vec::len), Some(2), "a plan changes nothing");

    let made = apply(&settings, ALL, &[]);
    let expected = [
        "create limits acme",
        "create api_key ci agent",
        "create api_key ops",
        "create oauth_client billing",
        "create oauth_client reports",
        "create identity_provider http://127.0.0.1:1/idp",
        "create member ada@example.com",
        "create member bob@example.com",
        "create org beta",
    ];
    assert_eq!((steps(&made), &made["applied"]), (expected.map(str::to_owned).to_vec(), &json!(true)));
    let org = settings.policy()["orgs"]["acme"].clone();
    let limits = json!({"rate": {"requests": 600, "per": "minute", "burst": 60}, "monthly_quota": 1_000_000});
    assert_eq!(org["limits"], limits);
    let (first, second) = (&made["steps"][1], &made["steps"][2]);
    let hash = |step: &Value, member: &str| json!(apexmcp_settings::secret::sha256(step[member].as_str().unwrap()));
    let keys = json!([
        {"id": first["id"], "name": "ci agent", "sha256": hash(first, "key"), "connectors": ["github"],
            "expires_at": "2999-01-01T00:00:00Z", "limits": {"rate": {"requests": 10, "per": "second"}}},
        {"id": second["id"], "name": "ops", "sha256": hash(second, "key")},
    ]);
    let by_name = |list: &Value| {
        let mut list = list.as_array().unwrap().clone();
        list.sort_by_key(|record| record["name"].as_str().unwrap().to_owned());
        json!(list)
    };
    assert_eq!(by_name(&org["api_keys"]), keys);
    let clients = by_name(&org["oauth_clients"]);
    assert_eq!(clients[0]["secret_sha256"], json!([hash(&made["steps"][3], "client_secret")]));
    assert_eq!((&clients[0]["scopes"], &clients[1]["scopes"]), (&json!(["mcp:call"]), &json!(["mcp:call:github"])));
    let provider = &org["identity_providers"][0];
    assert_eq!((&provider["audience"], &provider["client_scopes"]), (&json!(["apexmcp"]), &json!([])));
    let findings = made["identity_providers"][0]["findings"].as_array().unwrap();
    assert!(findings.iter().any(|finding| finding["ok"] == false), "the failed checks are shown: {findings:?}");
    for step in made["steps"].as_array().unwrap() {
        let secrets = ["key", "client_secret"].into_iter().filter(|member| step.get(*member).is_some()).count();
        assert_eq!(secrets, usize::from(["api_key", "oauth_client"].contains(&step["kind"].as_str().unwrap())), "{step}");
    }

    let before = state(&settings);
    let again = apply(&settings, ALL, &["--prune"]);
    assert_eq!((&again["steps"], &again["applied"]), (&json!([]), &json!(false)));
    assert_eq!(settings.text(&arguments(settings.file("orgs.yaml").to_str().unwrap(), &[])), "Nothing to change.\n");
    assert_eq!(state(&settings), before, "the second time changes nothing");
}

#[test]
fn secrets_are_shown_once_and_not_stored() {
    let settings = Settings::with_file();
    let file = settings.write("orgs.yaml", "orgs: {acme: {api_keys: [{name: k}], oauth_clients: [{name: c}]}}");
    let text = settings.text(&["apply", "-f", &file]);
    let words: Vec<&str> =
        text.split_whitespace().filter(|word| word.contains("apx_live_sk_") || word.contains("apx_secret_")).collect();
    assert_eq!(words.len(), 2, "{text}");
    assert!(text.contains("Created 2, changed 0, removed 0."), "{text}");
    for entry in std::fs::read_dir(&settings.folder).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        for secret in &words {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "a secret is stored unhashed");
        }
    }
    assert!(!settings.json(&["audit", "list"]).to_string().contains("apx_secret_"));
}

#[test]
fn each_kind_of_record_is_changed() {
    let settings = Settings::new();
    apply(&settings, ALL, &[]);
    let id = |list: &str, name: &str| {
        let list = settings.json(&[list, "list", "--org", "acme"]).as_array().unwrap().clone();
        let record = list.into_iter().find(|record| record["name"] == name).unwrap();
        record.get("id").or(record.get("client_id")).unwrap().as_str().unwrap().to_owned()
    };
    let (key, client) = (id("key", "ci agent"), id("client", "billing"));
    let text = format!(
        "
orgs:
  acme:
    limits: {{}}
    api_keys:
      - {{id: {key}, name: renamed, connectors: null, expires_at: null, limits: null}}
      - {{name: ops, connectors: [jira, github]}}
    oauth_clients: [{{client_id: {client}, name: payments, scopes: [mcp:call:jira]}}]
    identity_providers:
      - {{issuer: http://127.0.0.1:1/idp, jwks_uri: http://127.0.0.1:1/others, audience: [apexmcp, other], client_scopes: [openid]}}
    members: [{{email: bob@example.com, role: admin}}]
"
    );
    let file = settings.write("orgs.yaml", &text);
    let shown = settings.text(&["apply", "-f", &file, "--plan"]);
    for line in [
        "~ limits: 600/minute, burst 60; 1000000 a month -> no limits",
        &format!(
            "~ API key \"ci agent\" {key}: name: ci agent -> renamed; connectors: github -> all; \
             expires_at: 2999-01-01T00:00:00Z -> never; limits: 10/second, burst 10 -> no limits"
        ),
        "connectors: all -> jira github",
        "scopes: mcp:call -> mcp:call:jira",
        "audience: apexmcp -> apexmcp other; client_scopes: none -> openid",
        "~ member bob@example.com: role: viewer -> admin",
        "Plan: 0 to create, 6 to change, 0 to remove.",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    let made = apply(&settings, &text, &[]);
    assert_eq!(made["change"], 6, "{made}");
    assert_eq!(made["steps"][5]["changes"], json!([{"field": "role", "before": "viewer", "after": "admin"}]));
    let org = settings.policy()["orgs"]["acme"].clone();
    assert_eq!(org.get("limits"), None);
    let renamed = settings.json(&["key", "show", &key]);
    let members = ["name", "connectors", "expires_at", "limits"].map(|member| renamed[member].clone());
    assert_eq!(members, [json!("renamed"), Value::Null, Value::Null, Value::Null]);
    assert_eq!(settings.json(&["client", "show", &client])["scopes"], json!(["mcp:call:jira"]));
    let provider = &org["identity_providers"][0];
    assert_eq!(provider["default_scopes"], json!(["mcp:call:github"]), "what the file omits stays");
    assert_eq!((&provider["jwks_uri"], &provider["client_scopes"]), (&json!("http://127.0.0.1:1/others"), &json!(["openid"])));
    assert_eq!(settings.json(&["client", "list", "--org", "acme"]).as_array().map(Vec::len), Some(2), "a client is left alone");
    assert_eq!(apply(&settings, &text, &[])["steps"], json!([]));
    // A shorter entry makes no narrow grant a wide one.
    let short = "orgs: {acme: {api_keys: [{name: ops}], oauth_clients: [{name: payments}]}}";
    assert_eq!(apply(&settings, short, &[])["steps"], json!([]));
    let wide = text.replace("client_scopes: [openid]", "default_scopes: null");
    let (line, code) = refusal(&settings, &wide, &["--plan"]);
    assert!(line.contains("orgs.acme.identity_providers[0].default_scopes: null would let tokens"), "{line}");
    assert_eq!(code, "conflict");
}

#[test]
fn prune_removes_what_is_omitted_after_a_confirmation() {
    let settings = Settings::new();
    apply(&settings, ALL, &[]);
    let rest = "
orgs:
  acme:
    api_keys: [{name: ops}]
    oauth_clients: []
    identity_providers: []
    members: [{email: ada@example.com, role: admin}]
";
    let before = state(&settings);
    assert_eq!(apply(&settings, rest, &[])["steps"], json!([]), "without --prune, nothing is removed");
    let file = settings.write("orgs.yaml", rest);
    let output = settings.run(&["apply", "-f", &file, "--prune"]);
    let (shown, line) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert!(line.contains("--yes is required, because the plan removes records; nothing was changed"), "{line}");
    assert!(
        shown.contains("- API key \"ci agent\" key_") && shown.contains("- identity provider http://127.0.0.1:1/idp\n"),
        "{shown}"
    );
    assert!(shown.contains("- member bob@example.com\n") && shown.ends_with("0 to change, 5 to remove.\n"), "{shown}");
    let output = settings.run(&["apply", "-f", &file, "--prune", "--json"]);
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&printed["code"], &printed["applied"], &printed["remove"]),
        (&json!("invalid_argument"), &json!(false), &json!(5))
    );
    assert_eq!(apply(&settings, rest, &["--prune", "--plan"])["remove"], 5);
    assert_eq!(state(&settings), before, "nothing was changed");

    let made = apply(&settings, rest, &["--prune", "--yes"]);
    assert_eq!((&made["applied"], &made["remove"]), (&json!(true), &json!(5)));
    let org = settings.policy()["orgs"]["acme"].clone();
    assert_eq!(org["api_keys"].as_array().map(Vec::len), Some(1));
    assert_eq!((org.get("oauth_clients"), org.get("identity_providers")), (None, None));
    assert_eq!(org["limits"]["monthly_quota"], 1_000_000, "limits that the file omits stay");
    let actions: Vec<Value> = settings
        .json(&["audit", "list", "--limit", "5"])
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["action"].clone())
        .collect();
    assert_eq!(actions, ["key.revoke", "client.revoke", "client.revoke", "sso.remove", "member.remove"]);
    // A kind that the file does not name is not managed.
    assert_eq!(
        apply(
            &settings,
            "orgs: {acme: {limits: {monthly_quota: 1000000, rate: {requests: 600, per: minute, burst: 60}}}}",
            &["--prune"]
        )["steps"],
        json!([])
    );
    assert_eq!(settings.json(&["org", "list"]).as_array().map(Vec::len), Some(2), "an org is never deleted");
}

#[test]
fn a_wrong_file_changes_nothing_and_says_where() {
    let settings = Settings::new();
    settings.json(&["org", "create", "other"]);
    let foreign = settings.json(&["key", "create", "--org", "other", "--name", "k"])["id"].as_str().unwrap().to_owned();
    let ids = ["a", "b"]
        .map(|_| settings.json(&["key", "create", "--org", "acme", "--name", "twice"])["id"].as_str().unwrap().to_owned());
    let before = state(&settings);
    // The first entry is good, and is not created.
    let late = |org: &str| format!("orgs: {{gamma: {{api_keys: [{{name: good}}]}}, acme: {{{org}}}}}");
    let (form, invalid, conflict) = ("file_invalid", "invalid_argument", "conflict");
    for (text, code, part) in [
        (late("api_keys: [{name: k, conectors: []}]"), form, "orgs.yaml: orgs.acme.api_keys[0].conectors: unknown field"),
        (late("api_keys: [{name: k}, {name: k}]"), form, "orgs.acme.api_keys[1].name: another entry"),
        (late("members: [{email: A@b, role: admin}, {email: a@B, role: viewer}]"), form, "orgs.acme.members[1].email: another"),
        (late("api_keys: [{name: twice}]"), conflict, "orgs.acme.api_keys[0].name: acme has 2 records of the kind API key"),
        (late(&format!("api_keys: [{{name: k, id: {foreign}}}]")), "not_found", "orgs.acme.api_keys[0].id: acme has no API key"),
        (late("api_keys: [{name: k, connectors: [a/b]}]"), invalid, "orgs.acme.api_keys[0]: connectors"),
        (
            late("api_keys: [{name: k, expires_at: 2020-01-01T00:00:00Z}]"),
            invalid,
            "orgs.acme.api_keys[0]: expires_at must be in",
        ),
        (late("api_keys: [{name: k, connectors: [a__, a]}]"), "policy_refused", "told apart"),
        (late("oauth_clients: [{name: k, scopes: [all]}]"), invalid, "orgs.acme.oauth_clients[0]: scopes"),
        (late("members: [{email: nobody, role: admin}]"), invalid, "orgs.acme.members[0]: email must be"),
        (late("members: [{email: a@b, role: owner}]"), invalid, "orgs.acme.members[0]: role must be"),
        ("orgs: {gamma: {}, a/b: {}}".to_owned(), invalid, "orgs.a/b: the name"),
        ("orgs: [".to_owned(), form, "neither YAML nor JSON"),
    ] {
        for options in [&[][..], &["--plan"]] {
            let (line, found) = refusal(&settings, &text, options);
            assert!(line.contains(part), "{text}: {line}");
            assert_eq!(found, code, "{line}");
            assert_eq!(state(&settings), before, "{line}");
        }
    }
    // The id says which of the two is meant, and --prune removes the other.
    let chosen = format!("orgs: {{acme: {{api_keys: [{{name: twice, id: {}}}]}}}}", ids[1]);
    let made = apply(&settings, &chosen, &["--prune", "--yes"]);
    assert_eq!((&made["steps"][0]["id"], &made["steps"][0]["action"]), (&json!(ids[0]), &json!("remove")));
    assert_eq!(apply(&settings, "orgs: {acme: {api_keys: [{name: twice}]}}", &[])["steps"], json!([]));
}

#[test]
fn identity_providers_are_examined_before_they_are_saved() {
    let settings = Settings::new();
    let origin = website(vec![("/keys", 200, r#"{"keys":[]}"#.to_owned())]);
    let text = |issuer: &str| {
        let provider = format!("{{issuer: {issuer}, jwks_uri: {issuer}/keys, audience: shared}}");
        format!("orgs: {{acme: {{identity_providers: [{provider}]}}, beta: {{identity_providers: [{provider}]}}}}")
    };
    let before = state(&settings);
    let file = settings.write("orgs.yaml", &text(&origin));
    let (line, code) = settings.refusal(&["apply", "-f", &file]);
    assert!(line.contains("orgs.acme.identity_providers[0]: issuer must be https") && code == "private_address", "{line}");
    let output = settings.run(&["apply", "-f", &file, "--allow-private-address", "--json"]);
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), &printed["applied"], &printed["code"]),
        (Some(1), &json!(false), &json!("provider_check_failed"))
    );
    let shown = String::from_utf8(settings.run(&["apply", "-f", &file, "--allow-private-address"]).stdout).unwrap();
    assert!(shown.contains("FAIL") && shown.contains("pass --force"), "{shown}");
    assert_eq!(state(&settings), before);
    let made = settings.json(&["apply", "-f", &file, "--allow-private-address", "--force"]);
    for provider in made["identity_providers"].as_array().unwrap() {
        assert!(provider.to_string().contains("accepted in both"), "{provider}");
    }
    assert_eq!(settings.json(&["apply", "-f", &file])["steps"], json!([]), "an unchanged provider is not examined");
}

#[test]
fn the_example_of_the_help_can_be_applied() {
    let settings = Settings::new();
    let help = settings.text(&["apply", "--help"]);
    let (_, example) = help.split_once("A complete example:\n\n").unwrap();
    let (example, _) = example.split_once("\n\n").unwrap();
    let plan = apply(&settings, example, &["--plan"]);
    assert_eq!((&plan["create"], &plan["change"]), (&json!(6), &json!(0)), "{plan}");
    let mut command = settings.command(&["apply", "-f", "-", "--plan", "--json"]);
    let mut process = command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut process.stdin.take().unwrap(), example.as_bytes()).unwrap();
    let output = process.wait_with_output().unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), plan);
    assert_eq!(settings.run(&["apply", "-f", "absent.yaml"]).status.code(), Some(1));
    for wrong in [&["apply"][..], &["apply", "-f", "x", "--yes"], &["apply", "-f", "x", "--prune", "--plan", "--yes"]] {
        assert_eq!(settings.run(wrong).status.code(), Some(2), "{wrong:?}");
    }
}
