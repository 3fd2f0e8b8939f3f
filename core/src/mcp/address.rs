//! Finds the connector in a name or a URI, as Envoy's `mcp_router` writes and reads them.

use crate::names::ConnectorId;

/// The connector of a tool or prompt `<connector><separator><name>`: the text before the first separator.
pub fn of_name(name: &str, separator: &str) -> Option<ConnectorId> {
    name.split_once(separator).and_then(|(connector, _)| ConnectorId::parse(connector))
}

/// The other connector to which the tools of `connector` seem to belong: the text before the first separator in their
/// names. With the separator `__`, `notes___read` of the connector `notes_` is read as the tool `_read` of `notes`.
pub fn misread_as<'c>(connector: &'c str, separator: &str) -> Option<&'c str> {
    let at = format!("{connector}{separator}").find(separator)?;
    connector.get(..at).filter(|before| *before != connector)
}

/// The connector of a resource `<connector>+<scheme>://<rest>`: the text before the first `+` of the scheme.
pub fn of_uri(uri: &str) -> Option<ConnectorId> {
    let (scheme, _) = uri.split_once("://")?;
    scheme.split_once('+').and_then(|(connector, _)| ConnectorId::parse(connector))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_uris_are_read_as_mcp_router_reads_them() {
        let name = |name| of_name(name, "__").map(|id| id.to_string());
        for (text, connector) in [
            ("notes__read", Some("notes")),
            ("notes__a__b", Some("notes")),
            ("notes___read", Some("notes")),
            ("my_notes__read", Some("my_notes")),
            ("notes__", Some("notes")),
            ("notes_read", None),
            ("__read", None),
            ("no tes__read", None),
            ("nötes__read", None),
            ("", None),
        ] {
            assert_eq!(name(text).as_deref(), connector, "{text}");
        }
        for (connector, separator, before) in [
            ("notes", "__", None),
            ("my_notes", "__", None),
            ("_notes", "__", None),
            ("notes_", "__", Some("notes")),
            ("notes__", "__", Some("notes")),
            ("my__notes", "__", Some("my")),
            ("__notes", "__", Some("")),
            ("my-notes", "-", Some("my")),
            ("notes-", "-", Some("notes")),
            ("notes.v1", ".", Some("notes")),
            ("notes_", "-", None),
            ("xab", "aba", Some("x")),
            ("xa", "ab", None),
        ] {
            assert_eq!(misread_as(connector, separator), before, "{connector} {separator}");
        }
        let uri = |uri| of_uri(uri).map(|id| id.to_string());
        for (text, connector) in [
            ("notes+note://welcome", Some("notes")),
            ("notes+a+b://c", Some("notes")),
            ("notes+://relative", Some("notes")),
            ("notes+note://clock+x://y", Some("notes")),
            ("note://notes+x", None),
            ("notes+note:welcome", None),
            ("+note://x", None),
            ("", None),
        ] {
            assert_eq!(uri(text).as_deref(), connector, "{text}");
        }
    }
}
