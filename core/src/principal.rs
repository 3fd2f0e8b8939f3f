//! The principal of a request: the identity that its credential proved.

use std::fmt;
use std::rc::Rc;

use serde::Deserialize;

use crate::limits::Subjects;
use crate::names::OrgName;
use crate::scope::ScopeSet;

/// How a principal authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    ApiKey,
    /// A token that the gateway issued.
    Oauth,
    /// "Bring your own identity provider": a token that an identity provider of the organization issued.
    Byoidp,
}

impl Method {
    /// The word in headers, logs and metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::ApiKey => "api_key",
            Self::Oauth => "oauth",
            Self::Byoidp => "byoidp",
        }
    }
}

/// A part of an identity, for the headers of the forwarded request and for the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attribute {
    Org,
    /// The name of the principal.
    Principal,
    /// The id of the key or of the client, or the `sub` of the token.
    Subject,
    Method,
    /// All scopes, separated by spaces.
    Scope,
}

impl Attribute {
    /// All attributes, in the order in which headers and filter state are written.
    pub const ALL: [Self; 5] = [Self::Org, Self::Principal, Self::Subject, Self::Method, Self::Scope];

    /// The name of the identity header after its prefix.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Org => "org",
            Self::Principal => "principal",
            Self::Subject => "subject",
            Self::Method => "method",
            Self::Scope => "scope",
        }
    }

    /// The name of the filter state, which is the same with both modules.
    pub const fn filter_state(self) -> &'static str {
        match self {
            Self::Org => "wasm.apexmcp_org",
            Self::Principal => "wasm.apexmcp_principal",
            Self::Subject => "wasm.apexmcp_subject",
            Self::Method => "wasm.apexmcp_method",
            Self::Scope => "wasm.apexmcp_scope",
        }
    }
}

/// A proven identity. Only the checks of this crate create one: of API keys in [`crate::policy`], of tokens in
/// [`crate::gateway`].
#[derive(Debug, PartialEq, Eq)]
pub struct Principal {
    org: OrgName,
    method: Method,
    scopes: ScopeSet,
    /// The name, followed by `scopes`. The name is stable and unique: `<org>/key/<id>`, `<org>/client/<client_id>` or
    /// `<org>/idp/<issuer>#<sub>`. It is one allocation because each request reads it, and reading memory in many places
    /// is slow.
    text: Box<str>,
    /// The offset in `text` at which the subject begins: the id of the key or of the client, or the `sub` of the token.
    subject_at: usize,
    /// The offset in `text` at which the name and the subject end.
    name_end: usize,
    limits: Subjects,
    has_unread_grant: bool,
}

impl Principal {
    /// The principal of the API key `id`.
    pub(crate) fn of_api_key(org: &OrgName, id: &str, scopes: ScopeSet, limits: Subjects) -> Rc<Self> {
        Self::new(org, Method::ApiKey, format!("{org}/key/"), id, scopes, limits)
    }

    /// The principal of the OAuth client `id`.
    pub(crate) fn of_client(org: &OrgName, id: &str, scopes: ScopeSet, limits: Subjects) -> Rc<Self> {
        Self::new(org, Method::Oauth, Self::name_of_client(org, ""), id, scopes, limits)
    }

    /// The name of the principal of the OAuth client `id`.
    pub fn name_of_client(org: &OrgName, id: &str) -> String {
        format!("{org}/client/{id}")
    }

    /// The principal that `issuer`, an identity provider of the org, calls `sub`.
    pub(crate) fn of_identity_provider(org: &OrgName, issuer: &str, sub: &str, scopes: ScopeSet, limits: Subjects) -> Rc<Self> {
        Self::new(org, Method::Byoidp, Self::namespace_of_issuer(org.as_str(), issuer), HeaderSafe(sub), scopes, limits)
    }

    /// The prefix of the names of all subjects of `issuer`. A `#` in the issuer is encoded, so that the first `#` ends the
    /// issuer. Otherwise the issuer `a#b` with the subject `c` would equal the issuer `a` with the subject `b#c`.
    pub fn namespace_of_issuer(org: &str, issuer: &str) -> String {
        format!("{org}/idp/{}#", HeaderSafe(issuer).to_string().replace('#', "%23"))
    }

    /// Like [`Self::of_identity_provider`], without any scope: the token seems to have a grant that could not be read.
    pub(crate) fn of_unread_grant(org: &OrgName, issuer: &str, sub: &str, limits: Subjects) -> Rc<Self> {
        let mut principal = Self::of_identity_provider(org, issuer, sub, ScopeSet::default(), limits);
        if let Some(principal) = Rc::get_mut(&mut principal) {
            principal.has_unread_grant = true;
        }
        principal
    }

    /// The principal with the name `namespace` followed by `subject`.
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

    pub fn method(&self) -> Method {
        self.method
    }

    pub fn scopes(&self) -> &ScopeSet {
        &self.scopes
    }

    /// Whether the default scopes do not apply, because the token seems to carry a grant that could not be read.
    pub fn has_unread_grant(&self) -> bool {
        self.has_unread_grant
    }

    /// The limits that count its requests.
    pub fn limits(&self) -> &Subjects {
        &self.limits
    }

    /// The value of an attribute. It consists of visible ASCII and single spaces.
    pub fn attribute(&self, attribute: Attribute) -> &str {
        let (name, scope) = self.text.split_at_checked(self.name_end).unwrap_or_default();
        match attribute {
            Attribute::Org => self.org.as_str(),
            Attribute::Principal => name,
            Attribute::Subject => name.get(self.subject_at..).unwrap_or_default(),
            Attribute::Method => self.method.word(),
            Attribute::Scope => scope,
        }
    }
}

/// Text from a token for a header value. Bytes that are not visible ASCII, and `%` itself, are percent-encoded. So no
/// text can break out of the header, and different texts stay different.
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
        Principal::of_identity_provider(&org, "https://idp", sub, ScopeSet::default(), Subjects::default())
            .attribute(Attribute::Subject)
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
        Principal::of_identity_provider(&org, issuer, sub, ScopeSet::default(), Subjects::default())
            .attribute(Attribute::Principal)
            .to_owned()
    }

    #[test]
    fn issuer_and_subject_stay_distinct_if_the_issuer_is_not_a_url() {
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
        fn different_principals_have_different_names(one in "[a#%]{1,3}", other in "[a#%]{1,3}", sub in "[a#%]{1,3}", sub2 in "[a#%]{1,3}") {
            prop_assert_eq!(name(&one, &sub) == name(&other, &sub2), (one, sub) == (other, sub2));
        }

        #[test]
        fn different_subjects_stay_different(one: String, other: String) {
            prop_assert_eq!(subject(&one) == subject(&other), one == other);
            prop_assert!(subject(&one).bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }
}
