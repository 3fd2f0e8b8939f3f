//! Discovery documents, and the scopes that clients learn.

use serde_json::{Value, json};

use super::*;

fn document(world: &mut World, method: &str, path: &str) -> (u32, Vec<&'static str>, Value) {
    match world.start(path, &[(":method", method)]) {
        Step::Reply(reply, Record::Endpoint { .. }) => {
            let names = reply.headers.iter().map(|(name, _)| *name).collect();
            (reply.status, names, serde_json::from_str(&reply.body).unwrap_or_default())
        }
        step => panic!("{step:?}"),
    }
}

/// An authorization server refuses a request for a scope that it does not know.
#[test]
fn clients_are_told_scopes_that_their_server_knows() {
    let entra = json!(["api://apexmcp/.default"]);
    let (all, notes) = ("mcp:call", "mcp:call:notes");
    for (has_clients, providers, at_org, at_notes) in [
        (false, vec![], Some(all), Some(notes)),
        (true, vec![], Some(all), Some(notes)),
        (false, vec![json!(null)], Some(all), Some(notes)),
        (true, vec![json!(null)], Some(all), Some(notes)),
        (false, vec![entra.clone()], Some("api://apexmcp/.default"), Some("api://apexmcp/.default")),
        (false, vec![json!(["openid", "a", "openid"]), json!(["a", "openid"])], Some("openid a"), Some("openid a")),
        (false, vec![json!([])], None, None),
        (false, vec![json!([]), json!([])], None, None),
        (false, vec![entra.clone(), json!(null)], None, None),
        (false, vec![entra.clone(), json!([])], None, None),
        (true, vec![entra.clone()], None, None),
        (true, vec![json!(["mcp:call"])], Some(all), None),
    ] {
        let what = format!("clients {has_clients}, providers {providers:?}");
        let mut world = issuing(|policy| {
            let acme = &mut policy["orgs"]["acme"];
            let record = acme["identity_providers"][0].clone();
            let records = providers.iter().enumerate().map(|(index, scopes)| {
                let mut record = record.clone();
                record["issuer"] = json!(format!("https://idp.example/{index}"));
                record["client_scopes"] = scopes.clone();
                record
            });
            acme["identity_providers"] = records.collect();
            if !has_clients {
                acme["oauth_clients"] = json!([]);
            }
        });
        for (path, expected) in [("/mcp/acme", at_org), ("/mcp/acme/notes", at_notes)] {
            let Step::Reply(reply, _) = world.start(path, &[]) else { panic!("{what}") };
            let challenge = &reply.headers.iter().find(|(name, _)| *name == "www-authenticate").unwrap().1;
            let scope = expected.map(|scope| format!("scope=\"{scope}\""));
            let is_oauth = has_clients || !providers.is_empty();
            let url =
                is_oauth.then(|| format!("resource_metadata=\"https://gw.example/.well-known/oauth-protected-resource{path}\""));
            let parameters: Vec<String> = url.into_iter().chain(scope).collect();
            assert_eq!(*challenge, format!("Bearer {}", parameters.join(", ")), "{what}");

            let (status, _, metadata) = document(&mut world, "GET", &format!("/.well-known/oauth-protected-resource{path}"));
            assert_eq!(status == 200, is_oauth, "{what}");
            let list = expected.filter(|_| is_oauth).map(|scope| json!(scope.split(' ').collect::<Vec<_>>()));
            assert_eq!(metadata.get("scopes_supported"), list.as_ref(), "{what} {path}");
        }
    }

    let mut world = World::with(|config| {
        config["policy"]["inline"]["orgs"]["acme"]["identity_providers"][0]["client_scopes"] = entra;
    });
    world.publish(&["a"]);
    let mut narrow = claims();
    narrow["scope"] = json!("mcp:call:clock");
    let authorization = format!("Bearer {}", token(&narrow));
    let Step::Reply(reply, _) = world.start("/mcp/acme/notes", &[("authorization", &authorization)]) else { panic!() };
    let challenge = &reply.headers.iter().find(|(name, _)| *name == "www-authenticate").unwrap().1;
    assert!(challenge.contains(r#"error="insufficient_scope", scope="mcp:call:notes""#), "{challenge}");
}

#[test]
fn discovery() {
    let mut world = issuing(|_| {});
    let resource = "/.well-known/oauth-protected-resource/mcp/acme";
    let (status, headers, metadata) = document(&mut world, "GET", resource);
    assert_eq!((status, headers), (200, vec!["content-type", "cache-control", "access-control-allow-origin"]));
    assert_eq!(
        metadata,
        json!({
            "resource": "https://gw.example/mcp/acme", "authorization_servers": ["https://gw.example", ISSUER],
            "scopes_supported": ["mcp:call"], "bearer_methods_supported": ["header"],
        })
    );
    let (_, _, metadata) = document(&mut world, "GET", &format!("{resource}/github"));
    assert_eq!(metadata["resource"], "https://gw.example/mcp/acme/github");
    assert_eq!(metadata["scopes_supported"], json!(["mcp:call:github"]));
    let (_, _, metadata) = document(&mut world, "GET", "/.well-known/oauth-authorization-server");
    assert_eq!(metadata["issuer"], "https://gw.example");
    assert_eq!(metadata["token_endpoint"], "https://gw.example/oauth/token");
    let (_, _, metadata) = document(&mut world, "HEAD", "/.well-known/openid-configuration");
    assert_eq!(metadata["subject_types_supported"], json!(["public"]));
    let (_, _, keys) = document(&mut world, "GET", "/.well-known/jwks.json?x=1");
    assert_eq!(keys["keys"][0]["kid"], "s1");
    assert!(keys["keys"][0].get("d").is_none(), "public keys alone");
    for (method, path, status) in [
        ("GET", "/.well-known/oauth-protected-resource/mcp/other", 404),
        ("GET", "/.well-known/oauth-protected-resource/mcp/nobody", 404),
        ("OPTIONS", "/.well-known/jwks.json", 204),
        ("POST", "/.well-known/jwks.json", 405),
        ("GET", "/oauth/authorize", 400),
        ("POST", "/oauth/authorize", 405),
        ("GET", "/oauth/token", 405),
        ("OPTIONS", "/oauth/token", 405),
    ] {
        assert_eq!(document(&mut world, method, path).0, status, "{method} {path}");
    }
    // Clients cannot discover a workload's issuer that is not a URL, so it does not affect the named scopes.
    let mut world = issuing(|policy| {
        let providers = policy["orgs"]["acme"]["identity_providers"].as_array_mut().unwrap();
        let mut workload = providers[0].clone();
        workload["issuer"] = json!("agent@project.iam.example.com");
        workload["client_scopes"] = json!([]);
        providers.push(workload);
    });
    let (_, _, metadata) = document(&mut world, "GET", resource);
    assert_eq!(metadata["authorization_servers"], json!(["https://gw.example", ISSUER]));
    assert_eq!(metadata["scopes_supported"], json!(["mcp:call"]));
    let mut world = World::with(|config| {
        config["policy"]["inline"]["orgs"]["acme"]["identity_providers"][0]["issuer"] = json!("accounts.example.com");
    });
    let (status, _, metadata) = document(&mut world, "GET", resource);
    assert_eq!((status, metadata.get("authorization_servers")), (200, None));
    let mut without = World::new();
    assert_eq!(document(&mut without, "GET", resource).2["authorization_servers"], json!([ISSUER]));
    for path in ["/.well-known/jwks.json", "/.well-known/oauth-authorization-server", "/oauth/token", "/oauth/authorize"] {
        assert_eq!(document(&mut without, "GET", path).0, 404, "{path}: nothing is issued here");
    }
}
