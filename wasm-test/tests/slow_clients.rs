//! A slow client does not change how the requests of others are handled: no head of a refused call reaches the
//! connector.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wasm_test::eventually;
use wasm_test::gateway::{Gateway, Setup, plugin};
use wasm_test::http::Request;
use wasm_test::module::Module;
use wasm_test::policy::{api_key, api_key_record, merged};
use wasm_test::upstream;

fn call(tool: &str) -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool}}).to_string()
}

/// A plugin configuration with a key for the connector `notes`, and these settings of the gateway.
fn scoped(gateway: &Value) -> Value {
    let key = merged(api_key_record("key_notes"), &json!({"connectors": ["notes"]}));
    let mut plugin = plugin(&json!({"acme": {"api_keys": [key]}}));
    plugin["gateway"] = merged(plugin["gateway"].clone(), gateway);
    plugin
}

/// A request of which only the head was sent.
struct Slow {
    connection: TcpStream,
    body: String,
}

impl Slow {
    async fn send_head(gateway: &Gateway, credential: &str) -> Self {
        let body = call("notes__read");
        let head = format!(
            "POST /mcp/acme HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n{credential}content-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        let mut connection = TcpStream::connect(gateway.client().authority()).await.expect("a connection");
        connection.write_all(head.as_bytes()).await.expect("the head is sent");
        Self { connection, body }
    }

    /// Sends the body and reads the answer.
    async fn finish(mut self) -> String {
        self.connection.write_all(self.body.as_bytes()).await.expect("the body is sent");
        self.answer().await
    }

    async fn answer(&mut self) -> String {
        let mut answer = Vec::new();
        self.connection.read_to_end(&mut answer).await.expect("an answer");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// The number of requests that have reached the connector, as Envoy counts them.
async fn reached(gateway: &Gateway) -> u64 {
    gateway.stat("cluster.upstream.upstream_rq_total").await
}

/// Checks that forbidden calls are refused before any part of them is forwarded.
async fn refuse(gateway: &Gateway, what: &str) {
    let before = reached(gateway).await;
    for _ in 0..5 {
        let refused = Request::tools_list("/mcp/acme").api_key(&api_key("key_notes")).body(call("clock__now"));
        assert_eq!(gateway.send(&refused).await.status, 403, "{what}");
    }
    assert_eq!(reached(gateway).await, before, "{what}: a head was forwarded");
}

#[tokio::test]
async fn a_slow_client_affects_no_other_if_host_holds_bodies_is_not_set() {
    if Module::is_native("it knows that it gets every body") {
        return;
    }
    let upstream = upstream::start().await;
    let credential = format!("x-api-key: {}\r\n", api_key("key_notes"));
    let start = async || Setup::new(scoped(&json!({}))).start(&upstream).await;

    let gateway = start().await;
    let slow = Slow::send_head(&gateway, &credential).await;
    // The head of the slow call itself may be forwarded, because Envoy could be holding its body.
    eventually("its head is forwarded", async || (reached(&gateway).await == 1).then_some(())).await;
    refuse(&gateway, "after a slow call").await;
    assert!(slow.finish().await.starts_with("HTTP/1.1 200"));
    refuse(&gateway, "after the slow call was finished").await;

    let gateway = start().await;
    let mut strangers = Vec::new();
    for _ in 0..3 {
        strangers.push(Slow::send_head(&gateway, "").await);
    }
    for mut stranger in strangers {
        assert!(stranger.answer().await.starts_with("HTTP/1.1 401"), "the refusal did not wait for the body");
    }
    refuse(&gateway, "after slow clients without a credential").await;

    let gateway = start().await;
    drop(Slow::send_head(&gateway, &credential).await);
    gateway.until_active(0).await;
    refuse(&gateway, "after a slow client hung up").await;
}

#[tokio::test]
async fn a_slow_client_affects_no_other_if_envoy_holds_only_heads() {
    let upstream = upstream::start().await;
    let gateway = Setup::new(scoped(&json!({"host_holds_bodies": false}))).start(&upstream).await;
    let slow = Slow::send_head(&gateway, &format!("x-api-key: {}\r\n", api_key("key_notes"))).await;
    gateway.until_active(1).await;
    refuse(&gateway, "beside a slow call").await;
    let good = Request::tools_list("/mcp/acme").api_key(&api_key("key_notes")).body(call("notes__read"));
    for _ in 0..5 {
        assert_eq!(gateway.send(&good).await.status, 200);
    }
    assert_eq!(reached(&gateway).await, 5, "the slow head is held");
    assert!(slow.finish().await.starts_with("HTTP/1.1 200"));
    assert_eq!(reached(&gateway).await, 6);
}

#[tokio::test]
async fn requests_are_decided_if_envoy_holds_bodies() {
    let upstream = upstream::start().await;
    let gateway = Setup::new(scoped(&json!({"host_holds_bodies": true}))).holding_bodies().start(&upstream).await;
    let good = Request::tools_list("/mcp/acme").api_key(&api_key("key_notes")).body(call("notes__read"));
    assert_eq!(gateway.send(&good).await.status, 200);
    let refused = Request::tools_list("/mcp/acme").api_key(&api_key("key_notes")).body(call("clock__now"));
    assert_eq!(gateway.send(&refused).await.status, 403);
    assert_eq!(gateway.send(&Request::tools_list("/mcp/acme")).await.status, 401);
}
