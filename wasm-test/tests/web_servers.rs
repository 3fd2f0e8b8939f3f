//! Forged identity headers behind web servers that pass headers to applications as variables: lighttpd with a CGI
//! program, and lighttpd and nginx with PHP through FastCGI. There, several spellings of a name become one variable,
//! and the last value counts.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use wasm_test::gateway::{Setup, plugin};
use wasm_test::http::{Client, Request};
use wasm_test::policy::{api_key, api_key_record};
use wasm_test::process::{Folder, Process, argument, free_port};

/// Every byte that may occur in a header name and is neither a letter nor a digit (RFC 9110 §5.6.2).
const SEPARATORS: &str = "!#$%&'*+-.^_`|~";

/// A web server whose application prints its variables, one in each line.
struct WebServer {
    port: u16,
    _processes: Vec<Process>,
    _folder: Folder,
}

/// Prints the variables of a CGI program as the server set them. A name may occur twice, and programs differ in which value
/// they read.
const CGI: &str = "#!/bin/sh\nprintf 'content-type: text/plain\\r\\n\\r\\n'\ntr '\\0' '\\n' < /proc/$$/environ\n";
/// Prints the variables as PHP reads them.
const PHP: &str = r#"<?php header("content-type: text/plain"); foreach ($_SERVER as $name => $value) echo "$name=$value\n";"#;

impl WebServer {
    /// lighttpd, which runs the program for each request, or passes the request to PHP through FastCGI.
    async fn lighttpd(with_php: bool) -> Self {
        let folder = Folder::new().expect("a folder");
        let (port, mut processes) = (free_port(), Vec::new());
        let root = folder.file("");
        let (root, application) = (argument(&root), if with_php { "php" } else { "cgi" });
        let handler = if with_php {
            let (php, php_port) = php(&folder).await;
            processes.push(php);
            format!(
                r#"server.modules = ("mod_rewrite", "mod_fastcgi")
                fastcgi.server = (".php" => (("host" => "127.0.0.1", "port" => {php_port})))"#
            )
        } else {
            executable(&folder, "application.cgi", CGI);
            r#"server.modules = ("mod_rewrite", "mod_cgi")
            cgi.assign = (".cgi" => "")"#
                .to_owned()
        };
        let configuration = format!(
            r#"{handler}
            server.document-root = "{root}"
            server.bind = "127.0.0.1"
            server.port = {port}
            server.errorlog = "{root}/errors"
            url.rewrite-once = (".*" => "/application.{application}")"#
        );
        folder.write("lighttpd.conf", &configuration).expect("the configuration is written");
        let mut lighttpd =
            Process::start("lighttpd", &["-D", "-f", argument(&folder.file("lighttpd.conf"))], &folder).expect("lighttpd starts");
        lighttpd.until_listening("lighttpd", port, &folder).await;
        processes.push(lighttpd);
        Self { port, _processes: processes, _folder: folder }
    }

    /// nginx with PHP through FastCGI, with these additional lines in its configuration.
    async fn nginx(lines: &str) -> Self {
        let folder = Folder::new().expect("a folder");
        let port = free_port();
        let (php, php_port) = php(&folder).await;
        let root = folder.file("");
        let root = argument(&root);
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {root}/{kind};\n"))
            .concat();
        let configuration = format!(
            "daemon off; master_process off; pid {root}/nginx.pid; error_log {root}/errors;
            events {{}}
            http {{
                access_log off; {temporary} {lines}
                server {{
                    listen 127.0.0.1:{port};
                    location / {{
                        fastcgi_pass 127.0.0.1:{php_port};
                        fastcgi_param SCRIPT_FILENAME {root}/application.php;
                        fastcgi_param REQUEST_METHOD $request_method;
                    }}
                }}
            }}"
        );
        folder.write("nginx.conf", &configuration).expect("the configuration is written");
        let [file, errors] = ["nginx.conf", "errors"].map(|name| folder.file(name));
        let mut nginx =
            Process::start("nginx", &["-c", argument(&file), "-e", argument(&errors)], &folder).expect("nginx starts");
        nginx.until_listening("nginx", port, &folder).await;
        Self { port, _processes: vec![php, nginx], _folder: folder }
    }

    fn authority(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

fn executable(folder: &Folder, name: &str, text: &str) {
    folder.write(name, text).expect("the program is written");
    std::fs::set_permissions(folder.file(name), std::fs::Permissions::from_mode(0o755)).expect("it may be run");
}

/// PHP as a FastCGI server, and its port.
async fn php(folder: &Folder) -> (Process, u16) {
    folder.write("application.php", PHP).expect("the program is written");
    let port = free_port();
    let mut php = Process::start("php-cgi", &["-b", &format!("127.0.0.1:{port}")], folder).expect("PHP starts");
    php.until_listening("php-cgi", port, folder).await;
    (php, port)
}

/// The variables of the application. If a name occurs twice, its values are joined.
async fn read(client: &Client, request: &Request) -> BTreeMap<String, String> {
    let reply = client.send(request).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    let variable = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.trim_end().to_owned()));
    let mut variables = BTreeMap::new();
    for (name, value) in text.lines().filter_map(variable).filter(|(name, _)| name.starts_with("HTTP_")) {
        variables.entry(name).and_modify(|joined: &mut String| joined.push_str(&value)).or_insert(value.clone());
    }
    variables
}

/// Adds these names to `request`, in every spelling.
fn forged(request: Request, names: &[&str]) -> Request {
    let spellings = SEPARATORS
        .chars()
        .flat_map(|separator| names.iter().map(move |name| name.replace('-', separator.encode_utf8(&mut [0; 4]))));
    spellings.fold(request, |request, name| request.header(&name, "victim"))
}

#[tokio::test]
async fn no_application_reads_a_forged_identity() {
    let lax = "underscores_in_headers on; ignore_invalid_headers off;";
    let servers = [
        ("lighttpd with CGI", WebServer::lighttpd(false).await),
        ("lighttpd with PHP", WebServer::lighttpd(true).await),
        ("nginx with PHP", WebServer::nginx("").await),
        ("nginx that accepts every name, with PHP", WebServer::nginx(lax).await),
    ];
    let identity = ["x-apexmcp-org", "x-apexmcp-principal", "x-apexmcp-subject", "x-apexmcp-method", "x-apexmcp-scope"];
    // Forged headers are removed whether or not the filter leaves the good credential in the request.
    for ((what, server), strips) in servers.iter().zip([true, false].into_iter().cycle()) {
        let direct = Client::new(server.authority());
        // Without the gateway, the application reads the client's headers, in each spelling that its server maps to
        // the variable.
        for name in ["x-apexmcp-org", "x.apexmcp.org", "x'apexmcp~org"] {
            let got = read(&direct, &Request::get("/").header(name, "victim")).await;
            let is_read = got.get("HTTP_X_APEXMCP_ORG").map(String::as_str) == Some("victim");
            let is_folded = match *what {
                "nginx with PHP" => name == "x-apexmcp-org",
                "nginx that accepts every name, with PHP" => name != "x'apexmcp~org",
                _ => true,
            };
            assert_eq!(is_read, is_folded, "{what}: {name}: {got:?}");
        }
        {
            let mut config = plugin(&json!({"acme": {"api_keys": [api_key_record("key_all")]}}));
            config["forward"] = json!({"strip_credentials": strips});
            let gateway = Setup::new(config).start_at(server.port).await;
            let good = || Request::get("/mcp/acme").api_key(&api_key("key_all"));
            let mut requests = vec![forged(good(), &identity), forged(good(), &["x-apexmcp-role", "x-apexmcp-"])];
            // Look-alikes of the credential, without the credential itself.
            let look_alikes = SEPARATORS.replace('-', "");
            requests.push(look_alikes.chars().fold(good(), |request, separator| {
                let names = [format!("x{separator}api{separator}key"), format!("x-api{separator}key")];
                names.iter().fold(request, |request, name| request.header(name, "victim"))
            }));
            for request in requests {
                let got = read(gateway.client(), &request).await;
                assert!(got.values().all(|value| !value.contains("victim")), "{what}: {got:?}");
                let of_identity: Vec<(&str, &str)> = got
                    .iter()
                    .filter(|(name, _)| name.contains("APEXMCP"))
                    .map(|(name, value)| (name.as_str(), value.as_str()))
                    .collect();
                let expected = [
                    ("HTTP_X_APEXMCP_METHOD", "api_key"),
                    ("HTTP_X_APEXMCP_ORG", "acme"),
                    ("HTTP_X_APEXMCP_PRINCIPAL", "acme/key/key_all"),
                    ("HTTP_X_APEXMCP_SCOPE", "mcp:call"),
                    ("HTTP_X_APEXMCP_SUBJECT", "key_all"),
                ];
                assert_eq!(of_identity, expected, "{what}");
                assert_eq!(got.get("HTTP_X_API_KEY"), (!strips).then_some(&api_key("key_all")), "{what}");
            }
        }
    }
}
