//! Identifiers in paths, headers and the policy. They are checked when they are parsed.
//!
//! All are ASCII without separators, so an identifier cannot change the meaning of a path, a header or a scope.

use std::borrow::Borrow;
use std::fmt;
use std::rc::Rc;

/// Maximum length of an identifier. A UUID with a prefix is shorter.
const MAX_LENGTH: usize = 128;

/// Whether `text` is 1 to 128 of `A-Z a-z 0-9 . _ ~ -`, the unreserved characters of RFC 3986 §2.3, and not a dot segment.
fn is_identifier(text: &str) -> bool {
    (1..=MAX_LENGTH).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'~' | b'-'))
        && text != "."
        && text != ".."
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Rc<str>);

        impl $name {
            /// Returns `None` if `text` is not an identifier.
            pub fn parse(text: &str) -> Option<Self> {
                is_identifier(text).then(|| Self(text.into()))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

identifier! {
    /// An organization: the tenant to which credentials and connectors belong.
    OrgName
}
identifier! {
    /// A connector: one MCP server behind the gateway.
    ConnectorId
}

/// Whether `text` can be the id of an API key or of a client. The id becomes part of the name of a principal.
pub fn is_record_id(text: &str) -> bool {
    is_identifier(text)
}

/// Whether `character` can be printed in a log line. Control characters and line separators break the line. Characters
/// that change the direction of the text around them (Unicode's `Bidi_Control`), and invisible ones, deceive its reader.
/// Joiners (U+200C, U+200D) are allowed, because scripts and emoji need them.
pub fn is_plain(character: char) -> bool {
    let deceives = matches!(
        character,
        '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}'
    );
    !character.is_control() && !deceives
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_contain_no_separators() {
        for good in ["a", "acme-corp", "Acme.Corp_1~", "...", &"x".repeat(128)] {
            assert!(OrgName::parse(good).is_some(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a%2fb", "a b", "a:b", "a\\b", "ä", "a\0", "a;b", &"x".repeat(129)] {
            assert!(OrgName::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn control_and_invisible_characters_are_not_plain() {
        for good in ["ci agent", "Größe – \u{201e}x\u{201c}", "\u{645}\u{6cc}\u{200c}\u{62e}", "👩\u{200d}💻", "%\"\\"] {
            assert!(good.chars().all(is_plain), "{good:?}");
        }
        let marks = ['\u{61c}', '\u{200b}', '\u{200e}', '\u{202a}', '\u{202e}', '\u{2066}', '\u{2069}', '\u{feff}', '\u{e0041}'];
        for bad in ['\0', '\n', '\r', '\t', '\u{1b}', '\u{7f}', '\u{85}', '\u{2028}', '\u{2029}'].into_iter().chain(marks) {
            assert!(!is_plain(bad), "{bad:?}");
        }
    }
}
