//! The caller and its role. Each operation on the records checks the role itself, so that no caller of it can forget the check.

use std::fmt;

use crate::clock::Moment;
use crate::failure::{Failure, Reason};

/// What a caller may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everything, in all orgs.
    Operator,
    /// Changes the keys, clients and identity providers of this org.
    Admin(String),
    /// Reads the records of this org.
    Viewer(String),
}

impl Role {
    /// The role with this name. A role of one org needs the org.
    ///
    /// # Errors
    /// If there is no such role, or the org is missing or not needed.
    pub fn of(name: &str, org: Option<&str>) -> Result<Self, Failure> {
        match (name, org) {
            ("operator", None) => Ok(Self::Operator),
            ("admin", Some(org)) => Ok(Self::Admin(org.to_owned())),
            ("viewer", Some(org)) => Ok(Self::Viewer(org.to_owned())),
            ("operator", Some(_)) => {
                Err(Failure::of("org", "is not for operators, who may change all orgs: leave it out, or choose the role admin"))
            }
            ("admin" | "viewer", None) => Err(Failure::of("org", format!("is missing: the role {name} is one of an org"))),
            _ => Err(Failure::of("role", "must be operator, admin or viewer")),
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Admin(_) => "admin",
            Self::Viewer(_) => "viewer",
        }
    }

    /// The org to which the role is limited.
    pub fn org(&self) -> Option<&str> {
        match self {
            Self::Operator => None,
            Self::Admin(org) | Self::Viewer(org) => Some(org),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())?;
        self.org().map_or(Ok(()), |org| write!(formatter, " of {org}"))
    }
}

/// A caller, and the time of its request.
#[derive(Clone, Debug)]
pub struct Actor {
    /// The name in the audit log: of the user of this process, or of an admin token.
    pub name: String,
    pub now: Moment,
    pub role: Role,
    /// When the token of the actor expires.
    pub expires_at: Option<Moment>,
}

impl Actor {
    /// A process that can open the database has the role operator.
    pub fn operator(name: impl Into<String>, now: Moment) -> Self {
        Self { name: name.into(), now, role: Role::Operator, expires_at: None }
    }

    /// Checks that the actor is an operator.
    ///
    /// # Errors
    /// If it is not.
    pub fn check_operator(&self) -> Result<(), Failure> {
        match self.role {
            Role::Operator => Ok(()),
            _ => Err(self.forbidden("only an operator may do this")),
        }
    }

    /// Checks that the actor may read the records of `org`.
    ///
    /// # Errors
    /// `unknown` if it may not. This is also the failure for a record that does not exist, so the caller cannot find out which
    /// records other orgs have.
    pub fn check_read(&self, org: &str, unknown: impl FnOnce() -> Failure) -> Result<(), Failure> {
        if self.role.org().is_none_or(|own| own == org) { Ok(()) } else { Err(unknown()) }
    }

    /// Checks that the actor may change the records of `org`.
    ///
    /// # Errors
    /// If it may not. If it may not even read them, the failure is `unknown`.
    pub fn check_change(&self, org: &str, unknown: impl FnOnce() -> Failure) -> Result<(), Failure> {
        self.check_read(org, unknown)?;
        match self.role {
            Role::Viewer(_) => Err(self.forbidden(&format!("only an operator or an admin of {org} may do this"))),
            _ => Ok(()),
        }
    }

    fn forbidden(&self, line: &str) -> Failure {
        Failure::new(Reason::Forbidden, format!("{line}, and your role is {}", self.role))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_reads_and_changes_its_own() {
        let unknown = || Failure::new(Reason::NotFound, "no such org");
        let own = |role: fn(String) -> Role| role("acme".to_owned());
        for (role, org, reads, changes) in [
            (Role::Operator, "acme", None, None),
            (own(Role::Admin), "acme", None, None),
            (own(Role::Admin), "other", Some(Reason::NotFound), Some(Reason::NotFound)),
            (own(Role::Viewer), "acme", None, Some(Reason::Forbidden)),
            (own(Role::Viewer), "other", Some(Reason::NotFound), Some(Reason::NotFound)),
        ] {
            let actor = Actor { role, ..Actor::operator("test", Moment::now()) };
            let reason = |checked: Result<(), Failure>| checked.err().map(|failure| failure.reason);
            assert_eq!(reason(actor.check_read(org, unknown)), reads, "{actor:?} {org}");
            assert_eq!(reason(actor.check_change(org, unknown)), changes, "{actor:?} {org}");
            assert_eq!(actor.check_operator().is_ok(), actor.role == Role::Operator);
        }
    }
}
