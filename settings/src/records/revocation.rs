//! Revocations of tokens that have not expired: those of the gateway and those of identity providers.

use std::time::Duration;

use apexmcp_core::names::is_plain;
use apexmcp_core::principal::Principal;
use serde_json::json;

use super::{client, org, provider};
use crate::access::Actor;
use crate::clock::Moment;
use crate::database::{Change, Check, Record};
use crate::failure::{Failure, Reason};
use crate::sql::{Sql, first, values};

/// Maximum lifetime of a gateway token: `tokens.ttl` is at most a day, and `tokens.clock_skew` ten minutes. An older revocation
/// has no effect any more.
const LONGEST_LIFE: Duration = Duration::from_secs(25 * 60 * 60);

/// Maximum length of a `jti`, in bytes. Those of the gateway have 32 characters.
const MAX_JTI_LENGTH: usize = 256;

/// Maximum length of a principal. An issuer has at most 2,048 characters, and real subjects have below 256.
const MAX_PRINCIPAL_LENGTH: usize = 4096;

/// A moment that is older than every valid gateway token. The clock of this machine may be ahead. So the earlier one counts of
/// the present time and the time of the last change.
fn outlived(change: &Change<'_>, actor: &Actor) -> Result<String, Failure> {
    let noted: Option<String> =
        first(change, "SELECT at FROM audit ORDER BY version DESC LIMIT 1", values![], |row| row.get("at"))?;
    let noted = noted.and_then(|at| Moment::parse(&at).ok()).unwrap_or(actor.now);
    Ok(noted.min(actor.now).minus(LONGEST_LIFE).to_string())
}

/// The moment before which all tokens are older than now. `iat` has whole seconds, and tokens of the present second count too.
///
/// # Errors
/// If there is no later time.
pub fn until_now(actor: &Actor) -> Result<Moment, Failure> {
    actor.now.plus(Duration::from_secs(1))
}

/// Revokes the token with this `jti`.
///
/// # Errors
/// If the org does not exist, or `jti` is not allowed.
pub fn of_token(change: &Change<'_>, actor: &Actor, org: &str, jti: &str) -> Result<(), Failure> {
    org::require_change(change, actor, org)?;
    if jti.is_empty() || jti.len() > MAX_JTI_LENGTH || !jti.chars().all(is_plain) {
        return Err(Failure::of("jti", format!("must be the jti claim of a token, at most {MAX_JTI_LENGTH} bytes")));
    }
    // A provider decides how long its tokens live. So the revocations of an org with providers are never deleted.
    change.execute(
        "DELETE FROM revoked_tokens WHERE revoked_at < ? AND org NOT IN (SELECT org FROM identity_providers)",
        values![outlived(change, actor)?],
    )?;
    change.execute(
        "INSERT INTO revoked_tokens (org, jti, revoked_at) VALUES (?, ?, ?)
            ON CONFLICT (org, jti) DO UPDATE SET revoked_at = excluded.revoked_at",
        values![org, jti, actor.now.to_string()],
    )?;
    change.record(
        actor,
        &Record { action: "token.revoke", org: Some(org), subject: jti, details: json!({}), check: Check::Nothing },
    )
}

/// Revokes all tokens of a client that were issued before this moment.
///
/// # Errors
/// If the org has no such client, or the moment is in the future.
pub fn of_client(change: &Change<'_>, actor: &Actor, org: &str, client_id: &str, issued_before: Moment) -> Result<(), Failure> {
    org::require_change(change, actor, org)?;
    if client::show(change, actor, client_id)?.org != org {
        return Err(Failure::new(Reason::NotFound, format!("{client_id} is not a client of {org}"))
            .hint(format!("Run 'apexmcp client list --org {org}' to see its clients")));
    }
    revoke_until(change, actor, org, client_id, issued_before)
}

/// Revokes all tokens of a principal of an identity provider that were issued before this moment.
///
/// # Errors
/// If the org or the provider does not exist, `principal` is not the name of such a principal, or the moment is in the future.
pub fn of_principal(
    change: &Change<'_>,
    actor: &Actor,
    org: &str,
    principal: &str,
    issued_before: Moment,
) -> Result<(), Failure> {
    org::require_change(change, actor, org)?;
    // The gateway writes an issuer into the name of a principal in the same way.
    let belongs_to = |issuer: &str| {
        let subject = principal.strip_prefix(&Principal::namespace_of_issuer(org, issuer));
        subject.is_some_and(|subject| !subject.is_empty())
    };
    if !provider::list(change, actor, org)?.iter().any(|provider| belongs_to(&provider.issuer)) {
        let line = format!("{principal:?} must be {org}/idp/<issuer>#<sub> with an issuer of this org, as in the access log");
        return Err(Failure::of("principal", line)
            .because(Reason::NotFound)
            .hint(format!("'apexmcp sso list --org {org}' shows the issuers")));
    }
    if principal.len() > MAX_PRINCIPAL_LENGTH || !principal.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Failure::of(
            "principal",
            format!(
                "must be at most {MAX_PRINCIPAL_LENGTH} characters of visible ASCII: copy the name from the access log, where \
                 other characters are percent-encoded"
            ),
        ));
    }
    revoke_until(change, actor, org, principal, issued_before)
}

/// The column `client_id` of the table also contains principals. A principal contains a `/`, and a client id never does.
fn revoke_until(change: &Change<'_>, actor: &Actor, org: &str, whose: &str, issued_before: Moment) -> Result<(), Failure> {
    // One second more than now, so that tokens of the present second are revoked too. A later moment would also revoke tokens
    // that are issued in the future.
    if issued_before > actor.now.plus(Duration::from_secs(1))? {
        return Err(Failure::of("issued_before", "must not be in the future")
            .hint("To revoke a client for good, run 'apexmcp client revoke'"));
    }
    // A provider decides how long its tokens live. So the revocations of its principals are never deleted.
    change.execute(
        "DELETE FROM revoked_clients WHERE issued_before < ? AND client_id NOT LIKE '%/%'",
        values![outlived(change, actor)?],
    )?;
    change.execute(
        "INSERT INTO revoked_clients (org, client_id, issued_before) VALUES (?, ?, ?)
            ON CONFLICT (org, client_id) DO UPDATE SET issued_before = excluded.issued_before
            WHERE excluded.issued_before > revoked_clients.issued_before",
        values![org, whose, issued_before.to_string()],
    )?;
    let details = json!({"issued_before": issued_before.to_string()});
    change.record(actor, &Record { action: "token.revoke", org: Some(org), subject: whose, details, check: Check::Nothing })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::{Database, Location};
    use crate::sql::rows;

    #[test]
    fn a_clock_that_is_ahead_deletes_no_revocation_that_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        let mut database = Database::create(&Location::from(&*folder.path().join("test.db")), |_| Ok(())).unwrap();
        let now = Moment::parse("2026-01-01T00:00:00Z").unwrap();
        let ahead = now.plus(LONGEST_LIFE * 100).unwrap();
        let mut revoked = |now: Moment, jti: &str| -> Vec<String> {
            let actor = Actor::operator("test", now);
            let read = |change: &Change<'_>| {
                rows(change, "SELECT jti FROM revoked_tokens ORDER BY jti", values![], |row| row.get("jti"))
            };
            database
                .change(|change| {
                    if jti == "1" {
                        org::create(change, &actor, "acme")?;
                    }
                    of_token(change, &actor, "acme", jti)?;
                    read(change)
                })
                .unwrap()
                .value
        };
        assert_eq!(revoked(now, "1"), ["1"]);
        assert_eq!(revoked(ahead, "2"), ["1", "2"], "no earlier change has such a time");
        assert_eq!(revoked(now, "3"), ["1", "2", "3"]);
        assert_eq!(revoked(ahead, "4"), ["1", "2", "3", "4"]);
        assert_eq!(revoked(ahead, "5"), ["2", "4", "5"], "old revocations are deleted");
    }

    /// A provider decides how long its tokens live.
    #[test]
    fn revocations_of_an_org_with_a_provider_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut database = Database::create(&Location::from(&*folder.path().join("test.db")), |_| Ok(())).unwrap();
        let now = Moment::parse("2026-01-01T00:00:00Z").unwrap();
        let later = |times| Actor::operator("test", now.plus(LONGEST_LIFE * times).unwrap());
        let principal = "with/idp/https://idp.example/a%2525b#agent-7";
        let kept = database
            .change(|change| {
                for org in ["with", "without"] {
                    org::create(change, &later(0), org)?;
                }
                change.execute(
                    "INSERT INTO identity_providers (org, issuer, jwks_uri, audiences, configured_at)
                        VALUES ('with', 'https://idp.example/a%25b', 'https://idp.example/keys', '[\"a\"]', '2026-01-01T00:00:00Z')",
                    values![],
                )?;
                of_principal(change, &later(0), "with", principal, now)?;
                for (number, org) in [(0, "with"), (0, "without"), (2, "with"), (4, "with")] {
                    of_token(change, &later(number), org, &format!("{org} {number}"))?;
                }
                for (org, whose) in [
                    ("without", principal),
                    ("with", "with/idp/https://idp.example#agent-7"),
                    ("with", "with/idp/https://idp.example/a%2525b#"),
                    ("with", "with/idp/https://idp.example/a%2525b#a b"),
                    ("with", "with/key/key_1"),
                    ("with", "agent-7"),
                ] {
                    assert!(of_principal(change, &later(0), org, whose, now).is_err(), "{org} {whose}");
                }
                let jtis = rows(change, "SELECT jti FROM revoked_tokens ORDER BY jti", values![], |row| row.get("jti"))?;
                let principals: Vec<String> =
                    rows(change, "SELECT client_id FROM revoked_clients", values![], |row| row.get("client_id"))?;
                Ok([jtis, principals].concat())
            })
            .unwrap()
            .value;
        assert_eq!(
            kept,
            ["with 0", "with 2", "with 4", principal],
            "the old revocation of the org without a provider is deleted"
        );
    }
}
