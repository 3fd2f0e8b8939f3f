//! `apexmcp apply`

mod show;

use std::cell::Cell;

use apexmcp_core::problem::Problem;

use super::input::read_import;
use super::policy::MAX_WARNINGS;
use super::session::Session;
use crate::apply::file::{self, Org, Provider};
use crate::apply::plan::{Action, Step, Target};
use crate::apply::run;
use crate::cli::ApplyArgs;
use crate::failure::{Failure, Reason};
use crate::issuer::Reach;
use crate::output::Answer;
use crate::records::provider;
use crate::service::{self, Examined, Wanted};

pub(super) fn run(session: &Session<'_>, arguments: &ApplyArgs) -> Result<Answer, Failure> {
    let name = arguments.file.display().to_string();
    let in_file = |failure: Failure| failure.within(&name);
    let orgs = &file::read(&read_import(&arguments.file)?).map_err(in_file)?;
    let steps = session.open()?.read(|sql| run::plan(sql, &session.actor, orgs, arguments.prune).map_err(in_file))?;
    let is_private = arguments.allow_private_address;
    if arguments.plan || steps.is_empty() {
        try_out(session, &steps, is_private, in_file)?;
        return Ok(show::planned(&steps));
    }
    if show::count(&steps, Action::Remove) > 0 && !arguments.yes {
        try_out(session, &steps, is_private, in_file)?;
        let line =
            "is required, because the plan removes records; nothing was changed: check the plan, then run the command with --yes";
        return Ok(show::planned(&steps).but(Failure::of("yes", line)));
    }
    let checked = examine(session, orgs, &steps, is_private, in_file)?;
    if !arguments.force
        && let Some(answer) = show::refused(&steps, &checked)
    {
        return Ok(answer);
    }
    session.change_with_warnings(
        |change, actor| {
            // The records may have changed since the plan was computed and the providers were examined.
            if run::plan(change, actor, orgs, arguments.prune).map_err(in_file)? != steps {
                let line = "somebody changed the same records meanwhile, and nothing was applied: run the command again";
                return Err(Failure::new(Reason::Conflict, line));
            }
            run::steps(change, actor, &steps, is_private).map_err(in_file)
        },
        |made, warnings| {
            let warnings = warnings.iter().take(MAX_WARNINGS).map(Problem::to_string).collect();
            Answer { warnings, ..show::applied(&steps, &made, &checked) }
        },
    )
}

/// Carries out the steps and takes them back, so that a plan is shown only if it can be applied.
fn try_out(
    session: &Session<'_>,
    steps: &[Step<'_>],
    is_private: bool,
    in_file: impl FnOnce(Failure) -> Failure,
) -> Result<(), Failure> {
    if steps.is_empty() {
        return Ok(());
    }
    let is_good = Cell::new(false);
    let tried = session.open()?.change_if(
        |change| run::steps(change, &session.actor, steps, is_private).map(drop).map_err(in_file),
        |_| {
            is_good.set(true);
            // Any failure takes back the transaction.
            Err(Failure::new(Reason::Conflict, "the plan is only shown"))
        },
    );
    if is_good.get() { Ok(()) } else { tried.map(drop) }
}

/// A provider of the plan, and what it publishes.
struct Checked<'f> {
    org: &'f str,
    issuer: &'f str,
    examined: Examined,
}

/// Examines the new and changed providers, without a transaction: a provider may be slow.
fn examine<'f>(
    session: &Session<'_>,
    orgs: &[Org],
    steps: &[Step<'f>],
    is_private: bool,
    in_file: impl Fn(Failure) -> Failure,
) -> Result<Vec<Checked<'f>>, Failure> {
    let of_step = |step: &Step<'f>| match step.target {
        Target::Provider(provider) => Some((step.org, step.action, provider)),
        _ => None,
    };
    let providers: Vec<(&str, Action, &Provider)> = steps.iter().filter_map(of_step).collect();
    if providers.is_empty() {
        return Ok(Vec::new());
    }
    let known = session.open()?.read(|sql| {
        let known = providers.iter().map(|(org, action, declared)| {
            let mut client_scopes = declared.client_scopes.clone();
            if client_scopes.is_none() && *action == Action::Change {
                client_scopes = Some(provider::show(sql, &session.actor, org, &declared.issuer)?.client_scopes);
            }
            let client_scopes = client_scopes.flatten();
            let wanted = wanted(org, declared, client_scopes.as_deref());
            let mut sharing = service::sharing_orgs(sql, &session.actor, &wanted)?;
            sharing.extend(sharing_in_file(orgs, org, declared));
            sharing.sort();
            sharing.dedup();
            let provider = [*org, declared.issuer.as_str(), declared.jwks_uri.as_str()];
            let is_allowed = provider::permission(sql, &session.actor, provider, is_private.then_some(true))?;
            Ok((sharing, client_scopes, Reach::allowing_private(is_allowed)))
        });
        known.collect::<Result<Vec<_>, Failure>>()
    })?;
    let examined = providers.into_iter().zip(known).map(|((org, _, declared), (sharing, client_scopes, reach))| {
        let examined = service::examine(&sharing, &wanted(org, declared, client_scopes.as_deref()), reach);
        let examined = examined.map_err(|failure| in_file(failure.within(&declared.path)))?;
        Ok(Checked { org, issuer: &declared.issuer, examined })
    });
    examined.collect()
}

fn wanted<'a>(org: &'a str, declared: &'a Provider, client_scopes: Option<&'a [String]>) -> Wanted<'a> {
    let Provider { issuer, jwks_uri, audience, .. } = declared;
    Wanted { org, issuer, jwks_uri, audience, client_scopes }
}

/// The other orgs of the file that would accept the same tokens. They may not be in the database yet.
fn sharing_in_file(orgs: &[Org], org: &str, declared: &Provider) -> Vec<String> {
    let is_shared = |other: &Provider| {
        other.issuer == declared.issuer && other.audience.iter().any(|audience| declared.audience.contains(audience))
    };
    let others = orgs.iter().filter(|other| other.name != org);
    let others = others.filter(|other| other.identity_providers.iter().flatten().any(is_shared));
    others.map(|other| format!("the org {}", other.name)).collect()
}
