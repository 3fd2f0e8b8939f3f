//! The console of `serve --console`, without a browser: what each person sees, and what the forms do.

use serde_json::json;

use crate::support::{Answer, Api, Settings};

/// A person with a browser.
struct Person<'a> {
    api: &'a Api,
    cookie: String,
}

const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");
const OWN: (&str, &str) = ("sec-fetch-site", "same-origin");

/// The text of a field of a form.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

fn send(api: &Api, method: &str, path: &str, headers: &[(&str, &str)], fields: &[(&str, &str)]) -> Answer {
    let body: Vec<String> = fields.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect();
    api.send_to(&api.base.replace("/api/v1", ""), method, path, headers, body.join("&").as_bytes())
}

impl<'a> Person<'a> {
    /// Signs in with a link.
    fn with(api: &'a Api, url: &str) -> Self {
        let link = url.split_once("link=").unwrap().1;
        let begun = send(api, "POST", "/sign-in", &[FORM, OWN], &[("link", link)]);
        assert_eq!((begun.status, begun.header("location")), (303, "/"), "{begun:?}");
        let cookie = begun.header("set-cookie");
        assert!(cookie.contains("; HttpOnly; SameSite=Lax") && !cookie.contains("Secure"), "{cookie}");
        Self { api, cookie: cookie.split(';').next().unwrap().to_owned() }
    }

    fn get(&self, path: &str) -> Answer {
        send(self.api, "GET", path, &[("cookie", &self.cookie)], &[])
    }

    fn post(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        send(self.api, "POST", path, &[("cookie", &self.cookie), FORM, OWN], fields)
    }
}

fn link(settings: &Settings, more: &[&str]) -> String {
    settings.json(&[&["sign-in"], more].concat())["url"].as_str().unwrap().to_owned()
}

/// The secret in a field of a page.
fn secret<'p>(page: &'p Answer, id: &str) -> &'p str {
    let rest = page.text.split_once(&format!("id=\"{id}\" value=\"")).unwrap_or_else(|| panic!("{}", page.text)).1;
    rest.split('"').next().unwrap()
}

#[test]
fn an_administrator_creates_rolls_and_revokes_a_key() {
    let settings = Settings::new();
    let api = settings.api(&["operator"]);
    let operator = Person::with(&api, &link(&settings, &[]));
    assert_eq!(operator.get("/").header("location"), "/orgs");
    let added = operator.post("/orgs/acme/members", &[("email", "Ada@Example.com"), ("role", "admin")]);
    assert_eq!(added.status, 303, "{added:?}");
    let ada = Person::with(&api, &link(&settings, &["--member", "ada@example.com"]));
    assert_eq!(ada.get("/").header("location"), "/orgs/acme/keys");
    let empty = ada.get("/orgs/acme/keys");
    assert!(empty.text.contains("No API keys yet. Create one to let an agent call <code>/mcp/acme</code>."), "{}", empty.text);

    let name = "<b>\"ci\" & co</b>";
    let made = ada.post("/orgs/acme/keys", &[("name", name), ("connectors", "github, jira"), ("days", "30")]);
    let key = secret(&made, "key");
    assert!(made.status == 200 && key.starts_with("apx_live_sk_"), "{made:?}");
    assert!(made.text.contains("https://gateway.example.com/mcp/acme"), "{}", made.text);
    let listed = ada.get("/orgs/acme/keys");
    assert!(!listed.text.contains(key) && !listed.text.contains(name) && listed.text.contains("&#60;b&#62;"), "{}", listed.text);
    for (fields, id, part) in [
        ([("name", ""), ("days", "30")], "name-wrong", "This must be 1 to 200 visible characters."),
        ([("name", "k"), ("days", "0")], "days-wrong", "This must be a number of days"),
    ] {
        let refused = ada.post("/orgs/acme/keys", &fields);
        assert_eq!(refused.status, 422);
        assert!(refused.text.contains(&format!("id=\"{id}\">{part}")), "{}", refused.text);
    }
    let stored = settings.json(&["key", "list", "--org", "acme"]);
    assert_eq!((stored.as_array().unwrap().len(), &stored[0]["connectors"]), (1, &json!(["github", "jira"])));
    let path = format!("/orgs/acme/keys/{}", stored[0]["id"].as_str().unwrap());
    let asked = ada.get(&format!("{path}/roll")).text;
    assert!(
        asked.contains("keeps working for the time you choose") && asked.contains("<option value=\"0s\">Stop now"),
        "{asked}"
    );
    let rolled = ada.post(&format!("{path}/roll"), &[("overlap", "24h")]);
    assert!(secret(&rolled, "key") != key && rolled.text.contains("Then it stops working"), "{rolled:?}");
    assert!(ada.get(&format!("{path}/revoke")).text.contains("is refused within a second"));
    assert_eq!(ada.post(&format!("{path}/revoke"), &[]).status, 303);
    let listed = ada.get("/orgs/acme/keys").text;
    assert!(listed.contains("<span class=\"status revoked\">Revoked</span>"), "a revoked key stays visible: {listed}");
    let audit = ada.get("/orgs/acme/audit").text;
    assert!(audit.contains("key.revoke") && audit.contains("ada@example.com") && !audit.contains(key), "{audit}");
}

#[test]
fn an_administrator_edits_a_key_and_finds_the_new_one() {
    let settings = Settings::new();
    let api = settings.api(&["operator"]);
    let operator = Person::with(&api, &link(&settings, &[]));
    let fields = [("name", "ci"), ("connectors", "github jira"), ("days", "30")];
    let made = operator.post("/orgs/acme/keys", &fields);
    let marked = made.text.split_once("href=\"/orgs/acme/keys?created=").unwrap().1.split('"').next().unwrap().to_owned();
    let shown = |path: &str| operator.get(path).text;
    let listed = shown(&format!("/orgs/acme/keys?created={marked}"));
    assert!(listed.contains("<tr class=\"fresh\">") && listed.contains("<span class=\"chip\">New</span>"), "{listed}");
    let listed = shown("/orgs/acme/keys?created=%22%3E%3Cb%3E");
    assert!(!listed.contains("fresh") && !listed.contains("<b>") && !listed.contains("Expires soon"), "{listed}");

    let path = format!("/orgs/acme/keys/{marked}");
    settings.json(&["limits", "set", "--key", &marked, "--monthly-quota", "7"]);
    let form = shown(&format!("{path}/edit"));
    let stored = settings.json(&["key", "list", "--org", "acme"]);
    let (end, day) =
        (stored[0]["expires_at"].as_str().unwrap().to_owned(), stored[0]["expires_at"].as_str().unwrap()[..10].to_owned());
    for part in ["value=\"ci\"", "value=\"github jira\"", &format!("value=\"{day}\""), "Your keys use: github, jira."] {
        assert!(form.contains(part), "{part}: {form}");
    }
    let edit = |fields: &[(&str, &str)]| operator.post(&format!("{path}/edit"), fields);
    let key = || settings.json(&["key", "list", "--org", "acme"])[0].clone();
    let saved = edit(&[("name", " cd "), ("connectors", "github"), ("expires_at", &day)]);
    assert_eq!(saved.header("location"), "/orgs/acme/keys?done=key-saved");
    let changed = key();
    assert_eq!(
        (&changed["name"], &changed["connectors"], &changed["expires_at"]),
        (&json!("cd"), &json!(["github"]), &json!(end))
    );
    assert_eq!(changed["limits"], json!({"monthly_quota": 7}), "the limits stay");
    edit(&[("name", "cd"), ("connectors", ""), ("expires_at", "2099-01-31")]);
    assert_eq!((&key()["connectors"], &key()["expires_at"]), (&json!(null), &json!("2099-01-31T23:59:59Z")));
    edit(&[("name", "cd"), ("expires_at", "")]);
    assert_eq!(key()["expires_at"], json!(null));
    for (fields, id, part) in [
        ([("name", ""), ("expires_at", "")], "name-wrong", "This must be 1 to 200"),
        ([("name", "k"), ("expires_at", "soon")], "expires_at-wrong", "This must be a day such as"),
        ([("name", "k"), ("expires_at", "2020-01-01")], "expires_at-wrong", "This must be in the future"),
    ] {
        let refused = edit(&fields);
        assert!(refused.status == 422 && refused.text.contains(&format!("id=\"{id}\">{part}")), "{}", refused.text);
    }
    assert_eq!(key()["name"], "cd");
    assert!(shown("/orgs/acme/audit").contains("key.update"));

    settings.json(&["key", "create", "--org", "acme", "--name", "short", "--expires", "6d"]);
    assert_eq!(shown("/orgs/acme/keys").matches("<span class=\"status soon\">Expires soon</span>").count(), 1);
    operator.post(&format!("{path}/revoke"), &[]);
    assert!(edit(&[("name", "cd")]).text.contains("was revoked at"));
}

#[test]
fn a_link_and_a_session_end() {
    let settings = Settings::new();
    let api = settings.api(&["operator"]);
    let url = link(&settings, &["--console", "https://settings.example.com/"]);
    assert!(url.starts_with("https://settings.example.com/sign-in?link="), "{url}");
    let operator = Person::with(&api, &url);
    let used = url.split_once("link=").unwrap().1;
    let again = send(&api, "POST", "/sign-in", &[FORM, OWN], &[("link", used)]);
    assert!(again.header("set-cookie").is_empty() && again.text.contains("was used already"), "{again:?}");
    assert!(send(&api, "GET", &format!("/sign-in?link={used}"), &[], &[]).header("set-cookie").is_empty());
    let page = operator.get("/orgs");
    assert_eq!((page.status, page.header("cache-control")), (200, "no-store"));
    assert!(page.header("content-security-policy").starts_with("default-src 'none'; style-src 'self'; script-src 'self'"));
    assert!(!page.text.contains("<script>") && !page.text.contains(" style=") && !page.text.contains(" onclick="));
    let behind_tls = link(&settings, &[]);
    let headers = [FORM, OWN, ("x-forwarded-proto", "https")];
    let begun = send(&api, "POST", "/sign-in", &headers, &[("link", behind_tls.split_once("link=").unwrap().1)]);
    assert!(begun.header("set-cookie").ends_with("; Secure"), "{begun:?}");

    assert_eq!(operator.post("/sign-out", &[]).header("location"), "/sign-in");
    assert_eq!(operator.get("/orgs").header("location"), "/sign-in", "the session has ended");
    for (method, path) in [("GET", "/orgs/acme/keys"), ("POST", "/orgs/acme/keys"), ("GET", "/audit"), ("GET", "/")] {
        let refused = send(&api, method, path, &[FORM, OWN, ("cookie", "apexmcp_session=nope")], &[("name", "k")]);
        assert_eq!((refused.status, refused.header("location")), (303, "/sign-in"), "{method} {path}");
    }
    let database = settings.text(&["audit", "list", "--json"]);
    assert!(database.contains("session.begin") && !database.contains(used) && !database.contains(&operator.cookie), "{database}");
}

/// Each page and form, for each person: another org is not found, a viewer changes nothing, and only operators see all orgs.
#[test]
fn a_member_sees_only_the_own_org_and_a_viewer_only_reads() {
    let settings = Settings::new();
    let api = settings.api(&["operator"]);
    settings.json(&["org", "create", "other"]);
    let key = settings.json(&["key", "create", "--org", "other", "--name", "theirs"])["id"].as_str().unwrap().to_owned();
    let own = settings.json(&["key", "create", "--org", "acme", "--name", "ours"])["id"].as_str().unwrap().to_owned();
    let operator = Person::with(&api, &link(&settings, &[]));
    for (email, role) in [("admin@example.com", "admin"), ("viewer@example.com", "viewer")] {
        operator.post("/orgs/acme/members", &[("email", email), ("role", role)]);
    }
    let admin = Person::with(&api, &link(&settings, &["--member", "admin@example.com"]));
    let viewer = Person::with(&api, &link(&settings, &["--member", "viewer@example.com"]));
    for list in ["keys", "clients", "sso", "limits", "members", "audit"] {
        for person in [&admin, &viewer] {
            let page = person.get(&format!("/orgs/acme/{list}"));
            assert!(
                page.status == 200 && !page.text.contains("Organizations") && !page.text.contains("theirs"),
                "{list} {page:?}"
            );
            assert_eq!(person.get(&format!("/orgs/other/{list}")).status, 404, "{list}");
        }
    }
    for path in ["/orgs", "/signing-keys", "/gateways", "/audit", "/orgs/acme/delete"] {
        assert_eq!((admin.get(path).status, viewer.get(path).status, operator.get(path).status), (403, 403, 200), "{path}");
    }
    let forms: &[(&str, &[(&str, &str)])] = &[
        ("/orgs/acme/keys", &[("name", "k")]),
        ("/orgs/acme/clients", &[("name", "c"), ("scopes", "mcp:call")]),
        ("/orgs/acme/sso/configure", &[("issuer", "https://a"), ("jwks_uri", "https://a"), ("audience", "a")]),
        ("/orgs/acme/sso/discover", &[("issuer", "https://a")]),
        ("/orgs/acme/sso/explain", &[("token", "a")]),
        ("/orgs/acme/members", &[("email", "x@example.com"), ("role", "admin")]),
        ("/orgs/acme/members/remove", &[("email", "admin@example.com")]),
        ("/orgs/acme/members/role", &[("email", "admin@example.com"), ("role", "viewer"), ("confirmed", "yes")]),
        ("/orgs/acme/members/link", &[("email", "admin@example.com")]),
        ("/orgs/acme/limits", &[("monthly_quota", "1")]),
        ("/orgs/acme/delete", &[("name", "acme")]),
        ("/orgs", &[("name", "new")]),
        ("/signing-keys", &[]),
        (&format!("/orgs/acme/keys/{own}/revoke"), &[]),
        (&format!("/orgs/acme/keys/{own}/edit"), &[("name", "k")]),
        (&format!("/orgs/acme/keys/{own}/roll"), &[("overlap", "1h")]),
    ];
    for (path, fields) in forms {
        assert_eq!(viewer.post(path, fields).status, 403, "{path}");
        if path.contains("acme/") {
            let answer = admin.post(&path.replace("acme", "other").replace(&own, &key), fields);
            assert!([403, 404].contains(&answer.status), "{path}: {answer:?}");
        }
    }
    assert_eq!(admin.post(&format!("/orgs/acme/keys/{key}/revoke"), &[]).status, 404, "a key is found only in its own org");
    let kid = settings.json(&["signing-key", "create"])["kid"].as_str().unwrap().to_owned();
    let client = settings.json(&["client", "create", "--org", "acme", "--name", "c"])["client_id"].as_str().unwrap().to_owned();
    settings.json(&["client", "rotate-secret", &client]);
    let drop = format!("/orgs/acme/clients/{client}/secrets/drop");
    for page in ["revoke", "roll", "edit"].map(|page| format!("/orgs/acme/keys/{own}/{page}")).iter().chain([&drop]) {
        assert_eq!((admin.get(page).status, viewer.get(page).status), (200, 403), "{page}");
        let elsewhere = page.replace("acme", "other");
        assert_eq!((admin.get(&elsewhere).status, operator.get(&elsewhere).status), (404, 404), "{page}");
    }
    assert_eq!(viewer.post(&drop, &[]).status, 403);
    for path in ["use", "remove"].map(|page| format!("/signing-keys/{kid}/{page}")) {
        assert_eq!((admin.get(&path).status, viewer.get(&path).status, operator.get(&path).status), (403, 403, 200), "{path}");
        assert_eq!((admin.post(&path, &[]).status, viewer.post(&path, &[]).status), (403, 403), "{path}");
    }
    let ask = "Ask an admin of your organization to create one.";
    settings.json(&["client", "revoke", &client]);
    operator.post("/orgs/other/members", &[("email", "viewer@other.org"), ("role", "viewer")]);
    let of_other = Person::with(&api, &link(&settings, &["--member", "viewer@other.org"]));
    assert!(of_other.get("/orgs/other/clients").text.contains(ask) && !viewer.get("/orgs/acme/clients").text.contains(ask));
    for path in ["/orgs/acme/limits", "/orgs/acme/delete", "/orgs", "/signing-keys"] {
        assert_eq!(admin.post(path, &[("name", "acme"), ("monthly_quota", "1")]).status, 403, "{path}");
    }
    assert_eq!(settings.json(&["org", "list"]).as_array().unwrap().len(), 2);

    // A member who is removed is signed out.
    assert_eq!(admin.post("/orgs/acme/members/remove", &[("email", "viewer@example.com")]).status, 303);
    assert_eq!(viewer.get("/orgs/acme/keys").header("location"), "/sign-in");
    let invited = admin.post("/orgs/acme/members/link", &[("email", "admin@example.com")]);
    Person::with(&api, secret(&invited, "link"));
}

#[test]
fn a_member_is_added_once_and_changed_only_on_purpose() {
    let settings = Settings::new();
    let api = settings.api(&["operator"]);
    let operator = Person::with(&api, &link(&settings, &[]));
    let roles = || {
        let items = api.get("/orgs/acme/members").json["items"].clone();
        let role =
            |member: &serde_json::Value| format!("{} {}", member["email"].as_str().unwrap(), member["role"].as_str().unwrap());
        items.as_array().unwrap().iter().map(role).collect::<Vec<_>>()
    };
    let (ada, bob) = ("ada@example.com", "bob+x@example.com");
    let add = |email: &str, role: &str| operator.post("/orgs/acme/members", &[("email", email), ("role", role)]);
    assert_eq!((add(ada, "admin").status, add(bob, "viewer").status), (303, 303));
    let again = add("ADA@example.com", "viewer");
    let expected =
        "id=\"email-wrong\">This is the address of a member of acme already, with the role admin: change the role of that member";
    assert!(again.status == 422 && again.text.contains(expected), "{}", again.text);
    assert_eq!(roles(), ["ada@example.com admin", "bob+x@example.com viewer"]);

    let change = |person: &Person<'_>, email: &str, role: &str, confirmed: &str| {
        person.post("/orgs/acme/members/role", &[("email", email), ("role", role), ("confirmed", confirmed)])
    };
    assert!(operator.get("/orgs/acme/members").text.contains("Change role to admin for bob+x@example.com"));
    assert_eq!(change(&operator, bob, "admin", "").header("location"), "/orgs/acme/members?done=role-changed");
    assert_eq!(roles(), ["ada@example.com admin", "bob+x@example.com admin"]);
    assert_eq!(change(&operator, bob, "owner", "").status, 400);
    assert_eq!(change(&operator, "nobody@example.com", "admin", "").status, 404);
    // Two admins: only the own role is confirmed, and it is not that of the last one.
    let person = Person::with(&api, &link(&settings, &["--member", ada]));
    let (own, last) = ("This is you", "This is the last admin");
    let asked = change(&person, ada, "viewer", "");
    assert!(asked.status == 200 && asked.text.contains(own) && !asked.text.contains(last), "{}", asked.text);
    let remove = |person: &Person<'_>, email: &str| person.get(&format!("/orgs/acme/members/remove?email={}", encoded(email)));
    let removal = remove(&person, ada).text;
    assert!(removal.contains(own) && !removal.contains(last), "{removal}");
    assert_eq!(change(&person, bob, "viewer", "").status, 303);
    let asked = change(&person, ada, "viewer", "");
    assert!(asked.text.contains(own) && asked.text.contains(last), "{}", asked.text);
    let asked = change(&operator, ada, "viewer", "");
    assert!(!asked.text.contains(own) && asked.text.contains(last), "{}", asked.text);
    let removal = remove(&operator, ada).text;
    assert!(!removal.contains(own) && removal.contains(last) && removal.contains("end immediately"), "{removal}");
    let removal = remove(&operator, bob).text;
    assert!(!removal.contains(own) && !removal.contains(last) && removal.contains("Remove bob+x@example.com?"), "{removal}");
    assert_eq!(roles(), ["ada@example.com admin", "bob+x@example.com viewer"], "nothing is changed before it is confirmed");
    assert_eq!(change(&person, ada, "viewer", "yes").status, 303);
    assert_eq!(roles(), ["ada@example.com viewer", "bob+x@example.com viewer"]);
    let page = person.get("/orgs/acme/members").text;
    assert!(page.contains("<span class=\"role\">Viewer of acme</span>") && !page.contains("Change role"), "{page}");
    assert_eq!((change(&person, ada, "admin", "yes").status, remove(&person, bob).status), (403, 403));
    assert_eq!(operator.get("/orgs/acme/members/remove?email=nobody").status, 404);
    let recorded = operator.get("/orgs/acme/audit?action=member.update").text;
    assert_eq!(recorded.matches(">member.update</code>").count(), 3, "{recorded}");
}

#[test]
fn a_page_that_is_not_there_leads_back() {
    let settings = Settings::new();
    let api = settings.api(&["operator"]);
    settings.json(&["org", "create", "other"]);
    let operator = Person::with(&api, &link(&settings, &[]));
    operator.post("/orgs/acme/members", &[("email", "ada@example.com"), ("role", "viewer")]);
    let ada = Person::with(&api, &link(&settings, &["--member", "ada@example.com"]));
    let text = |path: &str| {
        let page = ada.get(path);
        assert!(page.status == 404 && page.text.contains("This page does not exist, or you may not see it."), "{page:?}");
        assert!(page.text.contains("<a class=\"button\" href=\"/\">"), "{page:?}");
        page.text
    };
    text("/nothing");
    assert_eq!(
        text("/orgs/other/keys").replace("other", "nope"),
        text("/orgs/nope/keys"),
        "they do not tell which orgs there are"
    );
    let forbidden = ada.get("/orgs");
    assert!(forbidden.text.contains("your role is viewer of acme") && forbidden.text.contains("href=\"/\""), "{forbidden:?}");
}

#[test]
fn the_audit_log_is_narrowed_down_and_exported() {
    let settings = Settings::new();
    let api = settings.api(&["operator"]);
    settings.json(&["org", "create", "other"]);
    settings.json(&["--actor", "Zoë =1+1", "key", "create", "--org", "acme", "--name", "first"]);
    settings.json(&["--actor", "zora", "key", "create", "--org", "other", "--name", "second"]);
    let operator = Person::with(&api, &link(&settings, &[]));
    operator.post("/orgs/acme/members", &[("email", "ada@example.com"), ("role", "viewer")]);
    let ada = Person::with(&api, &link(&settings, &["--member", "ada@example.com"]));
    let count = |person: &Person<'_>, path: &str| {
        let page = person.get(path);
        assert_eq!(page.status, 200, "{page:?}");
        page.text.matches("<tr").count().saturating_sub(1)
    };
    for (path, expected) in [
        ("/audit?actor=ZO", 2),
        ("/audit?actor=+Zo%C3%AB+", 1),
        ("/audit?actor=zo&action=key.create", 2),
        ("/audit?actor=zo&action=key.revoke", 0),
        ("/audit?actor=z_r", 0),
        ("/orgs/acme/audit?actor=zo", 1),
        ("/orgs/acme/audit?actor=zo&from=2999-01-01", 0),
    ] {
        assert_eq!(count(&operator, path), expected, "{path}");
    }
    assert!(count(&operator, "/audit?action=nothing") > 4, "an unknown action is as none");
    assert_eq!(operator.get(&format!("/audit?actor={}", "a".repeat(65))).status, 400);
    let page = ada.get("/orgs/acme/audit?actor=zo&action=key.create").text;
    assert!(page.contains("<option selected>key.create</option>") && page.contains("<option>sso.remove</option>"), "{page}");
    assert!(
        page.contains("href=\"/orgs/acme/audit/csv?actor=zo&amp;action=key.create&amp;from=&amp;to=\">Export CSV</a>"),
        "{page}"
    );
    assert!(
        ada.get("/orgs/acme/audit?actor=nobody")
            .text
            .contains("No changes fit this filter. <a href=\"/orgs/acme/audit\">Show all</a>")
    );

    let table = ada.get("/orgs/acme/audit/csv?actor=zo");
    assert_eq!(table.header("content-disposition"), "attachment; filename=\"audit-acme.csv\"");
    assert_eq!((table.header("content-type"), table.text.lines().count()), ("text/csv; charset=utf-8", 2), "{table:?}");
    let file = ada.get("/orgs/acme/audit/json?actor=zo");
    assert_eq!(file.header("content-disposition"), "attachment; filename=\"audit-acme.json\"");
    assert_eq!(file.json, api.get("/audit?org=acme&action=key.create").json);
    assert_eq!(operator.get("/audit/csv?actor=zo").text.lines().count(), 3);
    for (path, status) in [("/audit/csv", 403), ("/orgs/other/audit/csv", 404), ("/orgs/acme/audit/xml", 404)] {
        assert_eq!(ada.get(path).status, status, "{path}");
    }
    assert_eq!(send(&api, "GET", "/orgs/acme/audit/csv", &[], &[]).header("location"), "/sign-in");
}

/// A page of another site cannot send a form, with any of the methods that browsers have.
#[test]
fn forms_of_other_sites_are_refused() {
    let settings = Settings::new();
    let api = settings.api(&["operator"]);
    let operator = Person::with(&api, &link(&settings, &[]));
    let host = api.base.strip_prefix("http://").unwrap().strip_suffix("/api/v1").unwrap().to_owned();
    let own = format!("http://{host}");
    let cookie = ("cookie", operator.cookie.as_str());
    for (header, allowed) in [
        (("sec-fetch-site", "same-origin"), true),
        (("sec-fetch-site", "same-site"), false),
        (("sec-fetch-site", "cross-site"), false),
        (("sec-fetch-site", "none"), false),
        (("origin", own.as_str()), true),
        (("origin", "https://evil.example"), false),
        (("origin", "null"), false),
        (("x-nothing", "1"), false),
    ] {
        let answer = send(&api, "POST", "/orgs", &[cookie, FORM, header], &[("name", "made")]);
        assert_eq!(answer.status != 403, allowed, "{header:?}: {answer:?}");
        let url = link(&settings, &[]);
        let begun = send(&api, "POST", "/sign-in", &[FORM, header], &[("link", url.split_once("link=").unwrap().1)]);
        assert_eq!(begun.status == 303, allowed, "{header:?}: {begun:?}");
    }
    for method in ["PUT", "DELETE", "PATCH"] {
        assert_eq!(send(&api, method, "/orgs", &[cookie, FORM], &[]).status, 403, "{method}");
    }
}

#[test]
fn an_operator_manages_orgs_clients_limits_and_signing_keys() {
    let settings = Settings::new();
    let api = settings.api(&["operator"]);
    let operator = Person::with(&api, &link(&settings, &[]));
    assert_eq!(operator.post("/orgs", &[("name", "beta")]).header("location"), "/orgs/beta/keys?done=org-created");
    let wrong = operator.post("/orgs", &[("name", "a/b")]);
    assert!(wrong.status == 422 && wrong.text.contains("id=\"name-wrong\""), "{wrong:?}");

    let made = operator.post("/orgs/beta/clients", &[("name", "billing"), ("scopes", "mcp:call:github")]);
    let (id, first) = (secret(&made, "client_id").to_owned(), secret(&made, "client_secret").to_owned());
    assert!(made.text.contains("https://gateway.example.com/oauth/token") && first.starts_with("apx_secret_"), "{}", made.text);
    for part in ["2. Call a connector", "Bearer ACCESS_TOKEN", "curl https://gateway.example.com/mcp/beta/github "] {
        assert!(made.text.contains(part), "{part}: {}", made.text);
    }
    assert!(made.text.contains(&format!("/orgs/beta/clients?created={id}\"")), "{}", made.text);
    let marked = operator.get(&format!("/orgs/beta/clients?created={id}")).text;
    assert!(marked.contains("<tr class=\"fresh\">") && marked.contains(">New</span>"), "{marked}");
    let drop = format!("/orgs/beta/clients/{id}/secrets/drop");
    assert!(operator.get(&drop).text.contains("does not have two secrets"));
    let second = operator.post(&format!("/orgs/beta/clients/{id}/secrets"), &[]);
    assert_ne!(secret(&second, "client_secret"), first);
    assert!(operator.get("/orgs/beta/clients").text.contains("Two secrets"));
    assert!(!second.text.contains("?created="), "the client is not new: {}", second.text);
    let asked = operator.get(&drop).text;
    assert!(asked.contains("can get no more tokens") && asked.matches("Created <time").count() == 2, "{asked}");
    assert_eq!(operator.post(&drop, &[]).status, 303);
    assert_eq!(operator.post(&format!("/orgs/beta/clients/{id}/revoke"), &[]).status, 303);
    let refused = operator.post("/orgs/beta/clients", &[("name", "x"), ("scopes", "nope")]);
    assert!(refused.text.contains("id=\"scopes-wrong\">&#34;nope&#34; must be mcp:call"), "{}", refused.text);

    let limits = [("requests", "600"), ("per", "minute"), ("burst", ""), ("monthly_quota", "1000")];
    assert_eq!(operator.post("/orgs/beta/limits", &limits).status, 303);
    let shown = settings.json(&["limits", "show", "--org", "beta"])["limits"].clone();
    assert_eq!(shown, json!({"rate": {"requests": 600, "per": "minute"}, "monthly_quota": 1000}));
    assert!(operator.get("/orgs/beta/limits").text.contains("value=\"600\""));
    assert_eq!(operator.post("/orgs/beta/limits", &[("requests", "x"), ("per", "day")]).status, 422);

    assert_eq!(operator.post("/signing-keys", &[]).status, 303);
    let keys = settings.json(&["signing-key", "list"]);
    let [old, new] = [0, 1].map(|index: usize| keys[index]["kid"].as_str().unwrap().to_owned());
    assert_eq!(operator.post(&format!("/signing-keys/{old}/remove"), &[]).status, 409, "it signs");
    let asked = operator.get(&format!("/signing-keys/{new}/use")).text;
    assert!(asked.contains("This key is only") && asked.contains("Clients cache the published keys for a minute"), "{asked}");
    assert_eq!(operator.get(&format!("/signing-keys/{old}/use")).status, 409);
    let asked = operator.get(&format!("/signing-keys/{new}/remove")).text;
    assert!(!asked.contains("less than one hour ago"), "nobody knows since when the first key signs: {asked}");
    assert_eq!(operator.post(&format!("/signing-keys/{new}/use"), &[]).status, 303);
    let asked = operator.get(&format!("/signing-keys/{old}/remove")).text;
    assert!(asked.contains("began to sign less than one hour ago") && asked.contains("of all organizations"), "{asked}");
    assert_eq!(operator.post(&format!("/signing-keys/{old}/remove"), &[]).status, 303);

    let provider = [("issuer", "https://localhost/"), ("jwks_uri", "https://localhost/keys"), ("audience", "a")];
    let discovered = operator.post("/orgs/beta/sso/discover", &[("issuer", "http://127.0.0.1:1"), ("private", "on")]);
    assert!(discovered.text.contains("cannot be fetched"), "{}", discovered.text);
    let private = operator.post("/orgs/beta/sso/configure", &provider);
    assert!(private.status == 422 && private.text.contains("id=\"issuer-wrong\""), "{}", private.text);
    let checked = operator.post("/orgs/beta/sso/configure", &[&provider[..], &[("private", "on")]].concat());
    assert!(checked.text.contains("Nothing was saved, because a check failed"), "{}", checked.text);
    assert_eq!(
        operator.post("/orgs/beta/sso/configure", &[&provider[..], &[("private", "on"), ("force", "on")]].concat()).status,
        303
    );
    let saved = settings.json(&["sso", "list", "--org", "beta"]);
    assert_eq!(saved[0]["audience"], json!(["a"]));
    // An admin changes what an operator saved at a private address, but not its URLs.
    let id = saved[0]["id"].as_str().unwrap();
    operator.post("/orgs/beta/members", &[("email", "admin@b.org"), ("role", "admin")]);
    let admin = Person::with(&api, &link(&settings, &["--member", "admin@b.org", "--org", "beta"]));
    let form = admin.get(&format!("/orgs/beta/sso/configure?id={id}")).text;
    assert!(form.contains("Only an operator can change its URLs") && !form.contains("/sso/discover"), "{form}");
    let by_operator = operator.get(&format!("/orgs/beta/sso/configure?id={id}")).text;
    assert!(by_operator.contains("name=\"private\" checked"), "{by_operator}");
    let [(_, issuer), (_, jwks_uri), _] = provider;
    let change = |jwks_uri: &str| {
        let fields = [("id", id), ("issuer", issuer), ("jwks_uri", jwks_uri), ("audience", "b"), ("force", "on")];
        admin.post("/orgs/beta/sso/configure", &fields)
    };
    assert_eq!(change(jwks_uri).header("location"), "/orgs/beta/sso?done=provider-forced");
    assert!(admin.get("/orgs/beta/sso?done=provider-forced").text.contains("saved, although a check failed"));
    assert!(!admin.get("/orgs/beta/sso?done=%3Cb%3E").text.contains("role=\"status\""));
    let refused = change("http://127.0.0.1:1/other");
    assert!(refused.status == 422 && refused.text.contains("Send an operator of this gateway"), "{refused:?}");
    assert_eq!(settings.json(&["sso", "list", "--org", "beta"])[0]["audience"], json!(["b"]));
    let path = format!("/orgs/beta/sso/{id}/remove");
    assert!(operator.get(&path).status == 200 && operator.post(&path, &[]).status == 303);

    assert!(operator.get("/orgs/beta/sso").text.contains("Why was this token refused?"));
    let explained = operator.post("/orgs/beta/sso/explain", &[("token", "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiI8Yj4ifQ.")]);
    assert!(explained.status == 200 && explained.text.contains("Refused: <code>"), "{}", explained.text);
    assert!(!explained.text.contains("<b>") && explained.text.contains("&#60;b&#62;"), "{}", explained.text);
    assert_eq!(operator.post("/orgs/beta/sso/explain", &[("token", "")]).status, 422);
    // What people copy: a header, the answer of the token endpoint, or the wrong secret.
    for (pasted, part) in [
        ("x-api-key: apx_live_sk_00000000000000000000000000000000", "api_key_unknown"),
        ("Authorization: Bearer eyJ", "token_malformed"),
        (r#"{"access_token": "eyJ", "expires_in": 1}"#, "token_malformed"),
        ("apx_secret_x", "This is the secret of an OAuth client"),
        ("key_1f9c", "This is the id of an API key"),
    ] {
        let explained = operator.post("/orgs/beta/sso/explain", &[("token", pasted)]).text;
        assert!(explained.contains(part), "{pasted}: {explained}");
    }

    assert_eq!(operator.post("/orgs/beta/delete", &[("name", "bet")]).status, 422);
    assert_eq!(operator.post("/orgs/beta/delete", &[("name", "beta")]).header("location"), "/orgs?done=org-deleted");
    assert_eq!(operator.get("/orgs/beta/keys").status, 404);
    assert!(operator.get("/audit?action=org.delete").text.contains("beta"));
    assert_eq!(operator.get("/nothing").status, 404);
}

#[test]
fn a_list_of_keys_is_narrowed_down_and_has_pages() {
    let settings = Settings::new();
    let api = settings.api(&["operator"]);
    let keys: Vec<_> = (0..102).map(|number| json!({"id": format!("key_{number:03}"), "sha256": format!("{number:064x}"), "name": format!("100% of agent_{number}")})).collect();
    let policy = json!({"version": "1", "signing_keys": [], "orgs": {"acme": {"api_keys": keys}}});
    settings.json(&["policy", "import", &settings.write("policy.json", &policy.to_string())]);
    settings.json(&["key", "revoke", "key_007"]);
    settings.json(&["key", "create", "--org", "acme", "--name", "Übung", "--expires", "1s"]);
    let operator = Person::with(&api, &link(&settings, &[]));
    let rows = |path: &str| {
        let page = operator.get(path);
        assert_eq!(page.status, 200, "{page:?}");
        (page.text.matches("<tr").count() - 1, page.text)
    };
    let place = |page: &str, name: &str| page.split_once(&format!("{name}=")).unwrap().1.split('"').next().unwrap().to_owned();
    let (count, first) = rows("/orgs/acme/keys");
    assert!(!first.contains("Previous page") && first.contains("Next page"), "{first}");
    let (rest, last) = rows(&format!("/orgs/acme/keys?cursor={}", place(&first, "cursor")));
    assert_eq!((count, rest, last.contains("Next page")), (100, 3, false));
    let (back, again) = rows(&format!("/orgs/acme/keys?before={}", place(&last, "before")));
    let ids =
        |page: &str| page.split("class=\"id\">").skip(1).map(|id| id.split('<').next().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!((back, ids(&again)), (100, ids(&first)));
    assert!(!again.contains("Previous page") && again.contains("Next page") && last.contains(">First page</a>"), "{again}");
    assert_eq!(rows("/orgs/acme/keys?before=x&cursor=y").0, 100, "a cursor that cannot be read");
    let revoke = operator.get("/orgs/acme/keys/key_008/revoke").text;
    assert!(revoke.contains("<code>key_008</code>"), "an imported key has no beginning: {revoke}");
    assert!(operator.get("/orgs/acme/keys/key_008/roll").text.contains("<code>key_008</code>"));
    for (query, expected) in [
        ("status=Revoked", 1),
        ("search=AGENT_10", 3),
        ("search=agent_10&status=Active", 3),
        ("search=agent_7&status=Revoked", 1),
        ("search=100%25+of", 100),
        ("search=1_0", 0),
        ("search=key_01", 10),
        ("search=nothing", 0),
        ("search=%27%3B--&status=%27", 0),
    ] {
        let page = operator.get(&format!("/orgs/acme/keys?{query}"));
        assert_eq!((page.status, page.text.matches("<tr").count().saturating_sub(1)), (200, expected), "{query}: {}", page.text);
    }
    let of_api = |query: &str| api.get(&format!("/orgs/acme/keys?{query}")).json["items"].as_array().map(Vec::len);
    assert_eq!((of_api("status=revoked&limit=1000"), of_api("search=agent_10")), (Some(1), Some(3)));
    assert_eq!(api.get("/orgs/acme/keys?status=gone").problem(), "request_malformed");
    let long = |length| api.get(&format!("/orgs/acme/keys?search={}", "a".repeat(length)));
    assert_eq!((long(64).status, long(65).problem()), (200, "invalid_argument"));
}

#[test]
fn sessions_are_listed_and_ended_by_those_who_may() {
    let settings = Settings::new();
    settings.json(&["org", "create", "other"]);
    let api = settings.api(&["operator"]);
    let operator = Person::with(&api, &link(&settings, &[]));
    for (org, email, role) in
        [("acme", "admin@a.org", "admin"), ("acme", "viewer@a.org", "viewer"), ("other", "admin@a.org", "admin")]
    {
        operator.post(&format!("/orgs/{org}/members"), &[("email", email), ("role", role)]);
    }
    let member = |org: &str, email: &str| Person::with(&api, &link(&settings, &["--member", email, "--org", org]));
    let (admin, viewer) = (member("acme", "admin@a.org"), member("acme", "viewer@a.org"));
    let (other, elsewhere) = (member("other", "admin@a.org"), member("acme", "viewer@a.org"));
    let ids = |person: &Person<'_>| -> Vec<String> {
        let page = person.get("/sessions").text;
        page.split("/sessions/").skip(1).map(|rest| rest.split('/').next().unwrap().to_owned()).collect()
    };
    assert_eq!((ids(&operator).len(), ids(&admin).len(), ids(&viewer).len(), ids(&other).len()), (5, 3, 2, 1));
    assert_eq!(viewer.get("/sessions").text.matches("This browser").count(), 1);
    let of_admin: Vec<String> = ids(&admin).into_iter().filter(|id| !ids(&viewer).contains(id)).collect();
    let asked = |id: &str| viewer.get(&format!("/sessions/{id}/end"));
    assert_eq!(asked(&of_admin[0]).status, 404);
    let own = ids(&viewer).iter().filter(|id| asked(id).text.contains("This is your own browser")).count();
    assert_eq!(own, 1);
    let end = |person: &Person<'_>, id: &str| person.post(&format!("/sessions/{id}/end"), &[]).status;
    assert_eq!((end(&viewer, &of_admin[0]), end(&other, &of_admin[0]), end(&viewer, "%25")), (404, 404, 404));
    for id in ids(&viewer) {
        if viewer.get("/sessions").header("location").is_empty() {
            assert_eq!(end(&viewer, &id), 303);
        }
    }
    assert!([&viewer, &elsewhere].iter().any(|person| person.get("/sessions").header("location") == "/sign-in"));
    assert_eq!(end(&operator, &of_admin[0]), 303);
    assert_eq!(admin.get("/orgs/acme/keys").header("location"), "/sign-in");
    assert_eq!(other.get("/orgs/other/keys").status, 200);
    // A twenty-first session ends the oldest.
    let many: Vec<Person<'_>> = (0..20).map(|_| member("other", "admin@a.org")).collect();
    assert_eq!((ids(&many[19]).len(), many[19].get("/").status), (20, 303));
}

#[test]
fn guesses_from_an_address_are_limited_and_known_people_are_not() {
    let settings = Settings::new();
    let api = settings.api(&["operator"]);
    let operator = Person::with(&api, &link(&settings, &[]));
    assert_eq!(operator.get("/orgs").status, 200);
    assert_eq!(api.get("/orgs").status, 200);
    let guess = |number: usize| match number % 3 {
        0 => send(&api, "POST", "/sign-in", &[FORM, OWN], &[("link", &number.to_string())]),
        1 => send(&api, "GET", "/orgs", &[("cookie", &format!("apexmcp_session={number}"))], &[]),
        _ => api.send("GET", "/orgs", &[("authorization", &format!("Bearer apx_admin_{number}"))], b""),
    };
    let answers: Vec<Answer> = (0..60).map(guess).collect();
    let refused: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 429).collect();
    assert!((20..=30).contains(&refused.len()), "{}", refused.len());
    let last = refused.last().unwrap();
    assert!(["1", "2"].contains(&last.header("retry-after")), "{last:?}");
    let stranger = api.send("GET", "/orgs", &[("authorization", "Bearer apx_admin_new")], b"");
    assert_eq!((stranger.status, stranger.problem()), (429, "rate_limited"));
    let page = send(&api, "GET", "/orgs", &[("cookie", "apexmcp_session=new")], &[]);
    assert!(page.status == 429 && page.text.contains("Too many requests"), "{page:?}");
    let behind_proxy = [("authorization", "Bearer apx_admin_new"), ("x-forwarded-for", "198.51.100.7")];
    assert_eq!(api.send("GET", "/orgs", &behind_proxy, b"").status, 401);
    assert_eq!((operator.get("/orgs").status, api.get("/orgs").status), (200, 200));
}

#[test]
fn gateways_are_listed_with_the_version_that_they_have() {
    let settings = Settings::new();
    let api = settings.api(&["operator"]);
    let operator = Person::with(&api, &link(&settings, &[]));
    assert!(operator.get("/gateways").text.contains("No gateway has asked"));
    let pages = ("accept", "application/vnd.apexmcp.policy-parts+json");
    let token = format!("Bearer {}", crate::support::TOKEN);
    let ask = |etag: &str| {
        let headers = [("authorization", token.as_str()), pages, ("x-apexmcp-gateway", "1f9c<b> 0.1.0"), ("if-none-match", etag)];
        api.server.get("/v1/policy", &headers).etag
    };
    let mut etag = ask("\"\"");
    let listed = api.get("/gateways").json["items"].clone();
    assert_eq!(
        (&listed[0]["version"], &listed[0]["is_current"], &listed[0]["is_connected"]),
        (&json!(null), &json!(false), &json!(true))
    );
    // The server publishes the changes that the test made before a moment later.
    let present = format!("\"{}-", settings.policy()["version"].as_str().unwrap());
    while !etag.starts_with(&present) {
        etag = ask(&etag);
    }
    assert_eq!(ask(&etag), etag);
    let listed = api.get("/gateways").json["items"].clone();
    assert_eq!((&listed[0]["address"], &listed[0]["module"]), (&json!("127.0.0.1"), &json!("0.1.0")));
    assert_eq!((&listed[0]["is_current"], &listed[0]["behind_since"]), (&json!(true), &json!(null)));
    let page = operator.get("/gateways").text;
    assert!(page.contains("Up to date") && page.contains("1f9c&#60;b&#62;") && !page.contains("1f9c<b>"), "{page}");
    assert!(api.server.get("/metrics", &[]).body.contains("apexmcp_settings_gateways 1\n"));
}

#[test]
fn the_page_of_limits_shows_the_usage() {
    let settings = Settings::new();
    settings.json(&["limits", "set", "--org", "acme", "--monthly-quota", "2000"]);
    let id = settings.json(&["key", "create", "--org", "acme", "--name", "ci"])["id"].as_str().unwrap().to_owned();
    settings.json(&["client", "create", "--org", "acme", "--name", "billing"]);
    let without = settings.api(&["operator"]);
    let operator = Person::with(&without, &link(&settings, &[]));
    let page = operator.get("/orgs/acme/limits").text;
    assert!(page.contains("Usage is not collected.") && !page.contains("<svg"), "{page}");
    assert!(operator.get("/orgs/acme/keys").text.contains("<span title=\"Usage is not collected\">No use known</span>"));

    let token = "a-token-of-usage";
    let api = settings.api_with(&["operator"], &[("APEXMCP_USAGE_TOKEN", token)]);
    let operator = Person::with(&api, &link(&settings, &[]));
    let page = operator.get("/orgs/acme/limits").text;
    assert!(page.contains("0 of 2,000 requests (0 %)") && page.contains("No requests in the last 30 days."), "{page}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let report = |sequence: u32, allowed: u32| {
        let key = json!({"allowed": allowed, "last_used": now});
        let orgs = json!({"acme": {"credentials": {format!("acme/key/{id}"): key}, "refused": {"api_key_unknown": 7}}});
        let report = json!({"gateway": "0".repeat(32), "sequence": sequence, "hour": now / 3600, "orgs": orgs});
        let headers = [("authorization", &*format!("Bearer {token}")), ("content-type", "application/json")];
        let server = format!("http://{}", api.server.address());
        assert_eq!(api.send_to(&server, "POST", "/v1/usage", &headers, report.to_string().as_bytes()).status, 200);
    };
    report(1, 1_599);
    let page = operator.get("/orgs/acme/limits").text;
    assert!(page.contains("1,599 of 2,000 requests (79 %)") && !page.contains("At least 80 %"), "{page}");
    assert!(
        page.contains(": 1,599 allowed, 7 refused</title>") && page.contains("<td data-label=\"Allowed\">1,599</td>"),
        "{page}"
    );
    report(2, 1);
    assert!(operator.get("/orgs/acme/limits").text.contains("At least 80 % of the monthly quota is used."));
    report(3, 400);
    assert!(operator.get("/orgs/acme/limits").text.contains("The monthly quota is used up."));
    let keys = operator.get("/orgs/acme/keys").text;
    assert!(keys.contains("<span class=\"used\">Used <time datetime="), "{keys}");
    let clients = operator.get("/orgs/acme/clients").text;
    assert!(clients.contains("<span title=\"No data before 2"), "{clients}");
}
