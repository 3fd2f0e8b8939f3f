//! Cells that several tables share.

/// Scopes in a table. If none are configured, the text `absent`; if the list is empty, a dash.
pub(super) fn listed(scopes: Option<&[String]>, absent: &str) -> String {
    match scopes {
        None => absent.to_owned(),
        Some([]) => "-".to_owned(),
        Some(scopes) => scopes.join(" "),
    }
}

pub(super) fn or_dash(text: Option<&String>) -> String {
    text.cloned().unwrap_or_else(|| "-".to_owned())
}
