//! What the command line and the management API share: how a change is made, and how an identity provider is examined.

use apexmcp_core::problem::Problem;
use serde::Serialize;

use crate::access::Actor;
use crate::advice;
use crate::database::{Change, Database, Done, Location};
use crate::ecds;
use crate::failure::{Failure, Reason};
use crate::issuer::{self, Finding, Inspection, Reach};
use crate::records::{org, provider};
use crate::sql::Sql;

/// A change that was made.
#[derive(Debug)]
pub struct Changed<T> {
    pub value: T,
    /// What gateways would warn of.
    pub warnings: Vec<Problem>,
    /// Why the file for Envoy was not written after the change.
    pub file: Option<Failure>,
}

/// Changes the database, then writes the file for Envoy if one is enabled.
///
/// # Errors
/// If `action` fails, gateways would refuse the changed policy, or the file could not be written. Nothing is changed then.
pub fn change<T>(
    database: &mut Database,
    location: &Location,
    action: impl FnOnce(&Change<'_>) -> Result<T, Failure>,
) -> Result<Changed<T>, Failure> {
    let Done { value, warnings } = database.change_if(action, |change| can_write_file(change, location))?;
    let file = ecds::write(database).err().map(|failure| {
        Failure::new(
            Reason::EcdsNotWritten,
            format!(
                "the change is made, but the file for Envoy was not written: {failure}; fix that, then run 'apexmcp ecds write'"
            ),
        )
    });
    Ok(Changed { value, warnings, file })
}

/// Checks that the file for Envoy could be written after a change. A policy that gateways refuse would also block every
/// later change, including revocations.
fn can_write_file(change: &Change<'_>, location: &Location) -> Result<(), Failure> {
    let Err(failure) = ecds::check(change) else { return Ok(()) };
    // A second connection sees the state before this change. If the file was already wrong, the change is made anyway,
    // because it may be a revocation.
    match Database::open(location)?.read(ecds::check) {
        Ok(()) => Err(Failure::new(
            Reason::EcdsRefused,
            format!("nothing was changed, because the file for Envoy could not be written after the change: {failure}"),
        )),
        Err(_) => Ok(()),
    }
}

/// An identity provider that somebody wants to save.
#[derive(Debug)]
pub struct Wanted<'a> {
    pub org: &'a str,
    pub issuer: &'a str,
    pub jwks_uri: &'a str,
    pub audience: &'a [String],
    /// The chosen scopes. `None`: the default.
    pub client_scopes: Option<&'a [String]>,
}

/// What an identity provider publishes, and what fits the record.
#[derive(Debug, Serialize)]
pub struct Examined {
    pub findings: Vec<Finding>,
    /// The scopes of the provider that clients should request, if it names them.
    pub proposed_client_scopes: Option<Vec<String>>,
}

impl Examined {
    /// The number of failed checks.
    pub fn failed(&self) -> usize {
        self.findings.iter().filter(|finding| !finding.ok).count()
    }
}

/// Checks that a provider could be saved, before anything is fetched. Returns the other orgs that would accept the same tokens.
///
/// # Errors
/// If the provider cannot be saved in any case.
pub fn sharing(sql: &dyn Sql, actor: &Actor, wanted: &Wanted<'_>) -> Result<Vec<String>, Failure> {
    org::require_change(sql, actor, wanted.org)?;
    provider::require_room(sql, actor, wanted.org, wanted.issuer)?;
    sharing_orgs(sql, actor, wanted)
}

/// The other orgs that would accept the same tokens. The org of the provider need not exist yet.
///
/// # Errors
/// If the database fails.
pub fn sharing_orgs(sql: &dyn Sql, actor: &Actor, wanted: &Wanted<'_>) -> Result<Vec<String>, Failure> {
    let Wanted { org, issuer, audience, .. } = *wanted;
    let sharing = provider::sharing(sql, org, issuer, audience)?;
    // Only operators may know which orgs there are.
    let whose = |other: String| actor.check_operator().map_or_else(|_| "another org".to_owned(), |()| format!("the org {other}"));
    Ok(sharing.into_iter().map(whose).collect())
}

/// Fetches what an identity provider publishes, and compares it with the wanted record. This takes long, and needs no database.
///
/// # Errors
/// If the provider cannot be saved in any case.
pub fn examine(sharing: &[String], wanted: &Wanted<'_>, reach: Reach) -> Result<Examined, Failure> {
    let Wanted { issuer, jwks_uri, audience, client_scopes, .. } = *wanted;
    let Inspection { mut findings, scopes_supported } = issuer::inspect(issuer, jwks_uri, reach)?;
    let proposal = advice::client_scopes(client_scopes, scopes_supported.as_deref());
    findings.extend(proposal.finding.map(Finding::warning));
    findings.extend(audience.iter().filter_map(|audience| {
        let why = advice::audience_of_many(issuer, audience)?;
        Some(Finding::warning(format!("audience {audience}: {why}")))
    }));
    findings.extend(sharing.iter().map(|other| {
        Finding::warning(format!(
            "{other} has the same issuer and one of these audiences: a token for one of the two orgs is accepted in both"
        ))
    }));
    Ok(Examined { findings, proposed_client_scopes: proposal.client_scopes })
}
