//! Who a request speaks for, once a credential has proved it.

use std::fmt;
use std::rc::Rc;

use crate::limits::Subjects;
use crate::names::OrgName;
use crate::scope::ScopeSet;

/// The way in which a principal proved itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// A static API key.
    ApiKey,
    /// A token of the gateway itself.
    Oauth,
    /// A token of the customer's own identity provider.
    Byoidp,
}

impl Method {
    /// The word used in headers, logs and metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::ApiKey => "api_key",
            Self::Oauth => "oauth",
            Self::Byoidp => "byoidp",
        }
    }
}

/// What the forwarded request and the access log say of a principal, by these names.
pub const ATTRIBUTES: [&str; 5] = ["org", "principal", "subject", "method", "scope"];

/// A proven identity. Only the checks of this crate make one: of an API key in [`crate::policy`], of a token in [`crate::gateway`].
#[derive(Debug, PartialEq, Eq)]
pub struct Principal {
    org: OrgName,
    method: Method,
    scopes: ScopeSet,
    /// Stable and unique: `<org>/key/<id>`, `<org>/client/<client_id>` or `<org>/idp/<issuer>#<sub>`.
    name: Box<str>,
    /// The key's id, the client's or the token's `sub`.
    subject: Box<str>,
    /// `scopes`, rendered once.
    scope: Box<str>,
    limits: Subjects,
}

impl Principal {
    /// Whoever holds the API key `id`.
    pub(crate) fn of_api_key(org: &OrgName, id: &str, scopes: ScopeSet, limits: Subjects) -> Rc<Self> {
        Self::new(org, Method::ApiKey, format!("{org}/key/{id}"), id.to_owned(), scopes, limits)
    }

    /// The OAuth client `id`.
    pub(crate) fn of_client(org: &OrgName, id: &str, scopes: ScopeSet, limits: Subjects) -> Rc<Self> {
        Self::new(org, Method::Oauth, format!("{org}/client/{id}"), id.to_owned(), scopes, limits)
    }

    /// Whom `issuer`, an identity provider of the org, calls `sub`.
    pub(crate) fn of_identity_provider(org: &OrgName, issuer: &str, sub: &str, scopes: ScopeSet, limits: Subjects) -> Rc<Self> {
        let subject = HeaderSafe(sub).to_string();
        Self::new(org, Method::Byoidp, format!("{org}/idp/{}#{subject}", HeaderSafe(issuer)), subject, scopes, limits)
    }

    fn new(org: &OrgName, method: Method, name: String, subject: String, scopes: ScopeSet, limits: Subjects) -> Rc<Self> {
        let scope = scopes.to_string().into();
        Rc::new(Self { org: org.clone(), method, scopes, name: name.into(), subject: subject.into(), scope, limits })
    }

    /// The org to which the credential belongs.
    pub fn org(&self) -> &OrgName {
        &self.org
    }

    /// The way in which it was proven.
    pub fn method(&self) -> Method {
        self.method
    }

    /// What it may do.
    pub fn scopes(&self) -> &ScopeSet {
        &self.scopes
    }

    /// What its requests are counted at.
    pub fn limits(&self) -> &Subjects {
        &self.limits
    }

    /// Its values for [`ATTRIBUTES`], in their order: visible ASCII and single spaces.
    pub fn attributes(&self) -> [&str; ATTRIBUTES.len()] {
        [self.org.as_str(), &self.name, &self.subject, self.method.word(), &self.scope]
    }
}

/// Text from a token as part of a header value: what is not visible ASCII, and `%` itself, is percent-encoded,
/// so that nothing can break out of the header and no two texts become one.
struct HeaderSafe<'a>(&'a str);

impl fmt::Display for HeaderSafe<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            if byte.is_ascii_graphic() && byte != b'%' {
                write!(formatter, "{}", char::from(byte))?;
            } else {
                write!(formatter, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn subject(sub: &str) -> String {
        let org = OrgName::parse("acme").unwrap();
        Principal::of_identity_provider(&org, "https://idp", sub, ScopeSet::default(), Subjects::default()).subject.to_string()
    }

    #[test]
    fn a_subject_cannot_break_out_of_its_header() {
        assert_eq!(subject("auth0|user@example"), "auth0|user@example");
        assert_eq!(subject("a\r\nx-apexmcp-org: b"), "a%0D%0Ax-apexmcp-org:%20b");
        assert_eq!(subject("100%"), "100%25");
        assert_eq!(subject("ä"), "%C3%A4");
    }

    proptest! {
        #[test]
        fn no_two_subjects_become_one(one: String, other: String) {
            prop_assert_eq!(subject(&one) == subject(&other), one == other);
            prop_assert!(subject(&one).bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }
}
