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
    /// The name, stable and unique: `<org>/key/<id>`, `<org>/client/<client_id>` or `<org>/idp/<issuer>#<sub>`; behind it
    /// `scopes`. In one piece, for each request reads it, and what lies in many places comes slowly.
    text: Box<str>,
    /// Where in `text` the subject begins: the key's id, the client's or the token's `sub`.
    subject_at: usize,
    /// Where in `text` the name and the subject end.
    name_end: usize,
    limits: Subjects,
    has_unread_grant: bool,
}

impl Principal {
    /// Whoever holds the API key `id`.
    pub(crate) fn of_api_key(org: &OrgName, id: &str, scopes: ScopeSet, limits: Subjects) -> Rc<Self> {
        Self::new(org, Method::ApiKey, format!("{org}/key/"), id, scopes, limits)
    }

    /// The OAuth client `id`.
    pub(crate) fn of_client(org: &OrgName, id: &str, scopes: ScopeSet, limits: Subjects) -> Rc<Self> {
        Self::new(org, Method::Oauth, Self::name_of_client(org, ""), id, scopes, limits)
    }

    /// The name of the principal of the OAuth client `id`.
    pub fn name_of_client(org: &OrgName, id: &str) -> String {
        format!("{org}/client/{id}")
    }

    /// Whom `issuer`, an identity provider of the org, calls `sub`.
    pub(crate) fn of_identity_provider(org: &OrgName, issuer: &str, sub: &str, scopes: ScopeSet, limits: Subjects) -> Rc<Self> {
        Self::new(org, Method::Byoidp, Self::namespace_of_issuer(org.as_str(), issuer), HeaderSafe(sub), scopes, limits)
    }

    /// The prefix of the names of all subjects of `issuer`. A `#` in the issuer is encoded, so that the first `#` ends the
    /// issuer. Otherwise the issuer `a#b` with the subject `c` would equal the issuer `a` with the subject `b#c`.
    pub fn namespace_of_issuer(org: &str, issuer: &str) -> String {
        format!("{org}/idp/{}#", HeaderSafe(issuer).to_string().replace('#', "%23"))
    }

    /// A subject of an identity provider without any scope: its token seems to carry a grant that could not be read.
    pub(crate) fn of_unread_grant(org: &OrgName, issuer: &str, sub: &str, limits: Subjects) -> Rc<Self> {
        let mut principal = Self::of_identity_provider(org, issuer, sub, ScopeSet::default(), limits);
        if let Some(principal) = Rc::get_mut(&mut principal) {
            principal.has_unread_grant = true;
        }
        principal
    }

    /// Whose name is `namespace` and then `subject`.
    fn new(
        org: &OrgName,
        method: Method,
        namespace: String,
        subject: impl fmt::Display,
        scopes: ScopeSet,
        limits: Subjects,
    ) -> Rc<Self> {
        let subject_at = namespace.len();
        let name = format!("{namespace}{subject}");
        let name_end = name.len();
        let text = format!("{name}{scopes}").into();
        Rc::new(Self { org: org.clone(), method, scopes, text, subject_at, name_end, limits, has_unread_grant: false })
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

    /// Whether the default scopes do not apply, because the token seems to carry a grant that could not be read.
    pub fn has_unread_grant(&self) -> bool {
        self.has_unread_grant
    }

    /// What its requests are counted at.
    pub fn limits(&self) -> &Subjects {
        &self.limits
    }

    /// Its values for [`ATTRIBUTES`], in their order: visible ASCII and single spaces.
    pub fn attributes(&self) -> [&str; ATTRIBUTES.len()] {
        let (name, scope) = self.text.split_at_checked(self.name_end).unwrap_or_default();
        let subject = name.get(self.subject_at..).unwrap_or_default();
        [self.org.as_str(), name, subject, self.method.word(), scope]
    }
}

/// Text from a token as part of a header value: what is not visible ASCII, and `%` itself, is percent-encoded,
/// so that nothing can break out of the header and no two texts become one.
struct HeaderSafe<'a>(&'a str);

impl fmt::Display for HeaderSafe<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_safe = |byte: u8| byte.is_ascii_graphic() && byte != b'%';
        for run in self.0.as_bytes().chunk_by(|one, other| is_safe(*one) && is_safe(*other)) {
            match std::str::from_utf8(run) {
                Ok(text) if text.bytes().all(is_safe) => formatter.write_str(text)?,
                _ => run.iter().try_for_each(|byte| write!(formatter, "%{byte:02X}"))?,
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
        Principal::of_identity_provider(&org, "https://idp", sub, ScopeSet::default(), Subjects::default()).attributes()[2]
            .to_owned()
    }

    #[test]
    fn a_subject_cannot_break_out_of_its_header() {
        assert_eq!(subject("auth0|user@example"), "auth0|user@example");
        assert_eq!(subject("a\r\nx-apexmcp-org: b"), "a%0D%0Ax-apexmcp-org:%20b");
        assert_eq!(subject("100%"), "100%25");
        assert_eq!(subject("ä"), "%C3%A4");
    }

    fn name(issuer: &str, sub: &str) -> String {
        let org = OrgName::parse("acme").unwrap();
        Principal::of_identity_provider(&org, issuer, sub, ScopeSet::default(), Subjects::default()).attributes()[1].to_owned()
    }

    #[test]
    fn an_issuer_that_is_no_url_is_told_from_its_subject() {
        for (issuer, sub, expected) in [
            ("accounts.example.com", "u1", "acme/idp/accounts.example.com#u1"),
            ("agent@project.iam.example.com", "a#b", "acme/idp/agent@project.iam.example.com#a#b"),
            ("did:web:idp.example#key", "u1", "acme/idp/did:web:idp.example%23key#u1"),
            ("did:web:idp.example%23key", "u1", "acme/idp/did:web:idp.example%2523key#u1"),
            ("Our provider \u{e4}", "u1", "acme/idp/Our%20provider%20%C3%A4#u1"),
        ] {
            assert_eq!(name(issuer, sub), expected);
        }
    }

    proptest! {
        #[test]
        fn no_two_principals_have_one_name(one in "[a#%]{1,3}", other in "[a#%]{1,3}", sub in "[a#%]{1,3}", sub2 in "[a#%]{1,3}") {
            prop_assert_eq!(name(&one, &sub) == name(&other, &sub2), (one, sub) == (other, sub2));
        }

        #[test]
        fn no_two_subjects_become_one(one: String, other: String) {
            prop_assert_eq!(subject(&one) == subject(&other), one == other);
            prop_assert!(subject(&one).bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }
}
