//! Maps each method of MCP to what it reaches. docs/reference/tokens.md has the same table for operators,
//! and a test compares the two.

/// What a method reaches at the endpoint of all connectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Nothing of a single connector: handshake, liveness, and data of the client about itself.
    Nothing,
    /// The lists of all connectors. The filter cuts them in the response.
    List,
    /// The connector of the tool or prompt `params.name`.
    Name,
    /// The connector of the resource `params.uri`.
    Uri,
    /// The connector of the prompt or resource template `params.ref`.
    Reference,
    /// Something that cannot be tied to one connector.
    Untied,
}

/// The member of a message that the header `Mcp-Name` repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mirrored {
    /// `params.name`
    Name,
    /// `params.uri`
    Uri,
    /// `params.taskId`
    TaskId,
    /// `params.ref.name` or `params.ref.uri`
    Reference,
    /// The header repeats no member.
    Nothing,
}

/// The member that `Mcp-Name` repeats in a message of `method`: MCP 2026-07-28, Streamable HTTP, and SEP-2663 for tasks.
/// For a completion, the specification names no member. A client can only mean the reference that is completed.
pub fn name_of(method: &str) -> Mirrored {
    match reach_of(method) {
        Reach::Name => Mirrored::Name,
        Reach::Uri => Mirrored::Uri,
        Reach::Reference => Mirrored::Reference,
        _ if method.starts_with("tasks/") => Mirrored::TaskId,
        _ => Mirrored::Nothing,
    }
}

/// What `method` reaches. An unknown method cannot be tied to a connector.
pub fn reach_of(method: &str) -> Reach {
    match method {
        "initialize"
        | "ping"
        | "server/discover"
        | "notifications/initialized"
        | "notifications/cancelled"
        | "notifications/progress"
        | "notifications/roots/list_changed" => Reach::Nothing,
        "tools/list" | "prompts/list" | "resources/list" | "resources/templates/list" => Reach::List,
        "tools/call" | "prompts/get" => Reach::Name,
        "resources/read" | "resources/subscribe" | "resources/unsubscribe" => Reach::Uri,
        "completion/complete" => Reach::Reference,
        _ => Reach::Untied,
    }
}
