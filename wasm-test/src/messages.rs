//! Random JSON-RPC messages, in the forms that clients and attackers write. The same seed gives the same messages.

use fastrand::Rng;

/// JSON as text. Members keep their order, may be repeated, and their names may contain escapes.
#[derive(Clone, Debug)]
enum Json {
    Text(String),
    Array(Vec<Json>),
    Object(Vec<(String, Json)>),
}

use Json::{Array, Object, Text};

fn object<const N: usize>(members: [(&str, Json); N]) -> Json {
    Object(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

fn string(text: &str) -> Json {
    Text(format!("\"{text}\""))
}

impl Json {
    fn render(&self, space: &str) -> String {
        let list = |items: Vec<String>| items.join(&format!(",{space}"));
        match self {
            Text(text) => text.clone(),
            Array(elements) => format!("[{}]", list(elements.iter().map(|element| element.render(space)).collect())),
            Object(members) => {
                let member = |(name, value): &(String, Self)| format!("\"{name}\":{space}{}", value.render(space));
                format!("{{{}}}", list(members.iter().map(member).collect()))
            }
        }
    }

    /// Adds a member at a random position of this object or of an object inside it.
    fn add(&mut self, name: &str, value: Json, rng: &mut Rng) {
        let Object(members) = self else { return };
        let is_object = |index: &usize| matches!(members[*index].1, Object(_));
        let inner: Vec<usize> = (0..members.len()).filter(is_object).collect();
        match rng.choice(inner).filter(|_| rng.u8(..4) > 0) {
            Some(index) => members[index].1.add(name, value, rng),
            None => members.insert(rng.usize(..=members.len()), (name.to_owned(), value)),
        }
    }

    fn shuffle(&mut self, rng: &mut Rng) {
        if let Object(members) = self {
            rng.shuffle(members);
            members.iter_mut().for_each(|(_, value)| value.shuffle(rng));
        }
    }
}

fn pick<'a>(rng: &mut Rng, from: &[&'a str]) -> &'a str {
    from[rng.usize(..from.len())]
}

/// A name in the place of a connector's name: of a real connector, of an unknown one, or misspelled.
fn connector(rng: &mut Rng) -> &'static str {
    pick(rng, &["notes", "notes", "clock", "clock", "clock", "files", "", "notes_", "no tes", "Notes", "n\u{f6}tes"])
}

fn name(rng: &mut Rng) -> String {
    format!(
        "{}{}{}",
        connector(rng),
        pick(rng, &["__", "__", "__", "_", "___", "-", ""]),
        pick(rng, &["a", "a__b", "clock__a", ""])
    )
}

fn uri(rng: &mut Rng) -> String {
    let form = pick(rng, &["+n://", "+n://", "+n://", "+://", "://", ":", "+n:/"]);
    format!("{}{form}{}", connector(rng), pick(rng, &["a", "clock+n://a", "{t}", ""]))
}

fn request(rng: &mut Rng) -> Json {
    let (name, uri) = (name(rng), uri(rng));
    let (method, params) = match rng.u8(..12) {
        0..4 => ("tools/call", object([("name", string(&name)), ("arguments", object([("x", string("y"))]))])),
        4 => ("prompts/get", object([("name", string(&name))])),
        5 => ("resources/read", object([("uri", string(&uri))])),
        6 => (pick(rng, &["resources/subscribe", "resources/unsubscribe"]), object([("uri", string(&uri))])),
        7 => {
            let reference = match rng.bool() {
                true => object([("type", string("ref/prompt")), ("name", string(&name))]),
                false => object([("type", string("ref/resource")), ("uri", string(&uri))]),
            };
            ("completion/complete", object([("ref", reference), ("argument", object([("name", string("n"))]))]))
        }
        8 => (pick(rng, &["tools/list", "prompts/list", "resources/list", "resources/templates/list"]), object([])),
        9 => (pick(rng, &["initialize", "ping", "server/discover", "logging/setLevel"]), object([("level", string("info"))])),
        10 => (pick(rng, &["notifications/initialized", "notifications/cancelled"]), object([("requestId", Text("1".into()))])),
        _ => (pick(rng, &["__jsonrpc_response", "tasks/get", "Tools/Call", "tools/call "]), object([("name", string(&name))])),
    };
    let meta = object([("progressToken", Text("1".into())), ("io.modelcontextprotocol/x", object([("a.b", object([]))]))]);
    let mut params = params;
    if let Object(members) = &mut params
        && rng.bool()
    {
        members.push(("_meta".into(), meta));
    }
    object([("jsonrpc", string("2.0")), ("id", id(rng)), ("method", string(method)), ("params", params)])
}

fn id(rng: &mut Rng) -> Json {
    Text(rng.u32(..).to_string())
}

fn response(rng: &mut Rng) -> Json {
    let id = string(&name(rng));
    object([("jsonrpc", string("2.0")), ("id", id), ("result", object([("content", object([]))]))])
}

/// Writes the method, the version and the type of a reference with escapes, like PHP's `json_encode`.
fn escape_words(text: &str, rng: &mut Rng) -> String {
    let words = [
        ("tools/", "tools\\/"),
        ("prompts/", "prompts\\/"),
        ("resources/", "resources\\/"),
        ("completion/", "completi\\u006fn\\/"),
        ("ref/", "ref\\/"),
        ("\"2.0\"", "\"2\\u002e0\""),
        ("\"method\"", "\"m\\u0065thod\""),
        ("\"ping\"", "\"\\u0070ing\""),
    ];
    words.iter().filter(|_| rng.bool()).fold(text.to_owned(), |text, (word, escaped)| text.replace(word, escaped))
}

/// A message as a well-behaved client writes it.
pub fn plain(rng: &mut Rng) -> String {
    let mut message = if rng.u8(..10) == 0 { response(rng) } else { request(rng) };
    if rng.bool() {
        message.shuffle(rng);
    }
    let text = message.render(pick(rng, &["", " ", "\n  "]));
    if rng.u8(..4) == 0 { escape_words(&text, rng) } else { text }
}

/// A message that different parsers may understand differently.
pub fn hostile(rng: &mut Rng) -> String {
    let mut message = if rng.u8(..10) == 0 { response(rng) } else { request(rng) };
    if rng.bool() {
        message.shuffle(rng);
    }
    for _ in 0..rng.u8(1..4) {
        let (member, value) = (misleading_name(rng), misleading_value(rng));
        message.add(member, value, rng);
    }
    if rng.u8(..12) == 0 {
        message = Array(vec![message, request(rng)]);
    }
    let text = message.render(pick(rng, &["", " ", "\n\t"]));
    let text = if rng.u8(..8) == 0 { escape_words(&text, rng) } else { text };
    match rng.u8(..24) {
        0 => text.replace("__", "\\u005f_"),
        1 => text.replace('/', "\\/"),
        2 => format!("\u{feff}{text}"),
        3 => format!("{text}{}", request(rng).render("")),
        4 => text.replace("\"name\"", "\"n\\u0061me\""),
        5 => text.replace('"', "'"),
        6 => text.chars().take(rng.usize(..text.len())).collect(),
        7 => text.replacen('}', ",}", 1),
        8 => text.replace("name", "name\\u0000"),
        _ => text,
    }
}

fn misleading_name(rng: &mut Rng) -> &'static str {
    pick(
        rng,
        &[
            "name",
            "uri",
            "ref",
            "method",
            "params",
            "type",
            "id",
            "",
            "",
            "Name",
            "METHOD",
            "x.name",
            "a.b.name",
            "name.x",
            "params.name",
            "params.uri",
            "x.method",
            "x.uri",
            "x.params",
            "x.type",
            "ref.name",
            "n\\u0061me",
            "_meta",
            "arguments",
            "a.b",
            "result",
            "jsonrpc",
        ],
    )
}

fn misleading_value(rng: &mut Rng) -> Json {
    let named = |rng: &mut Rng| {
        let (name, uri) = (name(rng), uri(rng));
        object([("name", string(&name)), ("uri", string(&uri))])
    };
    match rng.u8(..10) {
        0..3 => string(&name(rng)),
        3 => string(&uri(rng)),
        4 => string(pick(rng, &["tools/call", "resources/read", "ref/prompt", "ref/resource", "2.0", "1.0"])),
        5 => named(rng),
        6 => object([("", named(rng))]),
        7 => Array(vec![named(rng), object([("", object([]))])]),
        8 => object([("a.b", object([])), ("name", string(&name(rng)))]),
        _ => Text(pick(rng, &["null", "true", "1", "-1e400", "[]", "{}"]).to_owned()),
    }
}
