//! What surrounds each page: the navigation, and who is signed in.

use crate::access::{Actor, Role};

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
            role: actor.role.to_string(),
            is_operator: actor.role == Role::Operator,
            can_change: !matches!(actor.role, Role::Viewer(_)),
        }
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

impl From<crate::failure::Failure> for Wrong {
    /// The fields of forms have the names that the API uses.
    fn from(failure: crate::failure::Failure) -> Self {
        Self { field: failure.field.unwrap_or_default(), line: failure.line_of_field() }
    }
}
