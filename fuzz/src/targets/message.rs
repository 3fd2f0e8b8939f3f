//! JSON-RPC messages. However a parser behind the gateway reads a message, it finds the connector that the gateway
//! found.

use apexmcp_core::mcp::message::{Body, Target};
use apexmcp_core::names::ConnectorId;
use apexmcp_core::scope::parse_words;
use serde_json::Value;

use crate::reader::{Json, without_fractions};

/// Methods that concern no single connector, or whose answer is filtered. Every other method needs the scope of all
/// connectors.
const HARMLESS: [&str; 11] = [
    "initialize",
    "ping",
    "server/discover",
    "notifications/initialized",
    "notifications/cancelled",
    "notifications/progress",
    "notifications/roots/list_changed",
    "tools/list",
    "prompts/list",
    "resources/list",
    "resources/templates/list",
];

/// `data` is a request body.
pub fn check(data: &[u8]) -> bool {
    let Ok(body) = Body::parse(data, "__") else { return false };
    let json = Json::read(data).expect("JSON");
    let readings = json.elements();
    let held = parse_words("mcp:call:notes");
    assert_eq!((body.is_batch, body.messages.len()), (matches!(json, Json::Array(_)), readings.len()));
    for (message, reading) in body.messages.iter().zip(readings) {
        let methods: Vec<Option<&str>> = reading.all("method").map(Json::text).collect();
        assert_eq!(methods, message.method.as_deref().map(|method| vec![Some(method)]).unwrap_or_default());
        let connector = match &message.target {
            Target::Connector(connector) => Some(connector.as_str()),
            _ => None,
        };
        let params = || reading.all("params");
        let references = || params().flat_map(|params| params.all("ref"));
        let before = |text: &str, separator| text.split_once(separator).map(|(connector, _)| connector.to_owned());
        let of_name = |name: &Json| before(name.text().expect("text"), "__");
        let of_uri = |uri: &Json| before(before(uri.text().expect("text"), "://")?.as_str(), "+");
        let named: Vec<Option<String>> = match message.method.as_deref() {
            Some("tools/call" | "prompts/get") => params().flat_map(|params| params.all("name")).map(of_name).collect(),
            Some("resources/read" | "resources/subscribe" | "resources/unsubscribe") => {
                params().flat_map(|params| params.all("uri")).map(of_uri).collect()
            }
            Some("completion/complete") => {
                let kinds: Vec<_> = references().flat_map(|one| one.all("type")).map(Json::text).collect();
                match kinds.as_slice() {
                    [Some("ref/prompt")] => references().flat_map(|one| one.all("name")).map(of_name).collect(),
                    [Some("ref/resource")] => references().flat_map(|one| one.all("uri")).map(of_uri).collect(),
                    [_] => vec![None],
                    _ => panic!("one kind: {message:?}"),
                }
            }
            None => {
                let ids: Vec<_> = reading.all("id").filter_map(Json::text).map(|id| before(id, "__")).collect();
                // A response without a connector's name in its id reaches no connector.
                if ids.iter().flatten().all(|name| ConnectorId::parse(name).is_none()) {
                    assert_eq!(message.target, Target::Nothing);
                    continue;
                }
                ids
            }
            Some(other) => {
                let is_free = HARMLESS.contains(&other);
                assert_eq!(message.target == Target::Untied, !is_free, "{message:?}");
                assert!(is_free || body.lacks(&held).is_some(), "{message:?} passes for notes");
                continue;
            }
        };
        // A message for a connector needs the scope of that connector, or of all connectors.
        assert!(matches!(message.target, Target::Connector(_) | Target::Untied), "{message:?}");
        assert_eq!(named.len(), 1, "{message:?}");
        assert!(connector.is_none_or(|connector| named[0].as_deref() == Some(connector)), "{message:?} of {named:?}");
        assert!(body.lacks(&held).is_some() || named[0].as_deref() == Some("notes"), "{message:?} passes for notes");
    }
    // Parse, print, parse. The printer escapes only what was escaped before, and escapes do not change the decision.
    let printed = serde_json::from_slice::<Value>(data).expect("JSON").to_string();
    let mut again = Body::parse(printed.as_bytes(), "__").expect("the printed message is valid");
    let mut once = body;
    for message in once.messages.iter_mut().chain(&mut again.messages) {
        message.id = without_fractions(std::mem::take(&mut message.id));
    }
    assert_eq!(again, once);
    true
}
