//! What surrounds each page: the navigation, who is signed in, and what the last form did.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::access::{Actor, Role};
use crate::failure::{Failure, Reason, capitalized};

/// The messages that a page shows after a change. The redirect after a form has the word in its query, never the sentence:
/// a link from elsewhere cannot show its own text.
macro_rules! messages {
    ($($name:ident $word:literal $sentence:literal)*) => {
        #[derive(Clone, Copy, Debug)]
        pub(super) enum Done {
            $($name,)*
        }

        impl Done {
            /// The word in the query.
            pub(super) fn word(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }

            fn sentence(self) -> &'static str {
                match self {
                    $(Self::$name => $sentence,)*
                }
            }

            fn of_word(word: &str) -> Option<Self> {
                match word {
                    $($word => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

messages! {
    KeySaved "key-saved" "The API key is saved. Gateways apply the change within a second."
    KeyRevoked "key-revoked" "The API key is revoked. Gateways refuse it within a second."
    ClientRevoked "client-revoked" "The OAuth client is revoked. Gateways refuse its tokens within a second."
    SecretDropped "secret-dropped" "The older secret is removed. The client keeps the newer one."
    ProviderSaved "provider-saved" "The identity provider is saved. Gateways accept its tokens within a second."
    ProviderForced "provider-forced" "The identity provider is saved, although a check failed. Gateways accept its tokens when they can fetch its keys."
    ProviderRemoved "provider-removed" "The identity provider is removed. Gateways refuse its tokens within a second."
    LimitsSaved "limits-saved" "The limits are saved. Gateways apply them within a second."
    MemberAdded "member-added" "The member is added. Next, choose “Create a sign-in link” in their row, and send them the link."
    RoleChanged "role-changed" "The role is changed. It applies to open sessions, too."
    MemberRemoved "member-removed" "The member is removed, and their sessions are ended."
    OrgCreated "org-created" "The organization is created."
    OrgDeleted "org-deleted" "The organization is deleted."
    SessionEnded "session-ended" "The session is ended."
    KeyCreated "signing-key-created" "The signing key is published. Wait one minute, and then choose “Sign with it”."
    KeySigns "signing-key-signs" "The gateway signs with this key within a second."
    KeyRemoved "signing-key-removed" "The signing key is removed."
}

/// What the last form did, if this page follows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told(Option<Done>);

impl<S: Sync> FromRequestParts<S> for Told {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let pairs = parts.uri.query().unwrap_or_default().split('&');
        Ok(Self(pairs.filter_map(|pair| pair.strip_prefix("done=")).find_map(Done::of_word)))
    }
}

/// The frame of a page.
pub(super) struct Frame {
    pub(super) title: String,
    /// The org that the page is about.
    pub(super) org: Option<String>,
    /// The entry of the navigation that the page belongs to.
    pub(super) section: &'static str,
    pub(super) who: String,
    pub(super) role: String,
    pub(super) is_operator: bool,
    /// Whether the person may change the records of the org.
    pub(super) can_change: bool,
    /// What the last form did.
    pub(super) done: Option<&'static str>,
}

/// An entry of the navigation.
pub(super) struct Entry {
    pub(super) name: &'static str,
    pub(super) href: String,
}

impl Frame {
    pub(super) fn new(actor: &Actor, org: Option<&str>, section: &'static str, title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            org: org.or(actor.role.org()).map(str::to_owned),
            section,
            who: actor.name.clone(),
            role: capitalized(&actor.role.to_string()),
            is_operator: actor.role == Role::Operator,
            can_change: !matches!(actor.role, Role::Viewer(_)),
            done: None,
        }
    }

    /// The same frame, which also says what the last form did.
    pub(super) fn after(self, Told(done): Told) -> Self {
        Self { done: done.map(Done::sentence), ..self }
    }

    /// The entries of the org.
    pub(super) fn of_org(&self) -> Vec<Entry> {
        let Some(org) = &self.org else { return Vec::new() };
        let entry = |name, path: &str| Entry { name, href: format!("/orgs/{org}/{path}") };
        vec![
            entry("API keys", "keys"),
            entry("OAuth clients", "clients"),
            entry("SSO", "sso"),
            entry("Limits and usage", "limits"),
            entry("Members", "members"),
            entry("Audit log", "audit"),
        ]
    }

    /// The entries for operators.
    pub(super) fn of_operator(&self) -> Vec<Entry> {
        let entry = |name, href: &str| Entry { name, href: href.to_owned() };
        match self.is_operator {
            true => vec![
                entry("Organizations", "/orgs"),
                entry("Signing keys", "/signing-keys"),
                entry("Gateways", "/gateways"),
                entry("All changes", "/audit"),
            ],
            false => Vec::new(),
        }
    }
}

/// A failure of a form.
#[derive(Default)]
pub(super) struct Wrong {
    pub(super) field: &'static str,
    pub(super) line: String,
}

impl Wrong {
    /// What is wrong with this field. Empty: nothing.
    pub(super) fn at(&self, field: &str) -> &str {
        if self.field == field { &self.line } else { "" }
    }

    /// What is wrong with the form as a whole.
    pub(super) fn other(&self) -> &str {
        self.at("")
    }
}

impl Wrong {
    /// A failure of an identity provider. If it needs an operator, the line says how to go on.
    pub(super) fn of_provider(failure: Failure, is_operator: bool) -> Self {
        let needs_operator = failure.reason == Reason::PrivateAddress;
        let wrong = Self::from(failure);
        let next = match (needs_operator, is_operator) {
            (false, _) => return wrong,
            (true, true) => "Tick “Allow addresses in a private network, and http”.",
            (true, false) => "Send an operator of this gateway the issuer URL and your audience.",
        };
        Self { line: format!("{} {next}", wrong.line), ..wrong }
    }
}

impl From<Failure> for Wrong {
    /// The fields of forms have the names that the API uses.
    fn from(failure: Failure) -> Self {
        Self { field: failure.field.unwrap_or_default(), line: failure.line_of_field() }
    }
}
