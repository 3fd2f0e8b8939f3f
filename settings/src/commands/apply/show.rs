//! The answer of `apexmcp apply`: the plan, the results of the checks, and the secrets of new records.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};

use super::Checked;
use crate::apply::plan::{Action, Field, Kind, Step, Value};
use crate::apply::run::Made;
use crate::commands::limits;
use crate::failure::{Failure, Reason};
use crate::output::Answer;

/// The number of steps of a kind.
pub(super) fn count(steps: &[Step<'_>], action: Action) -> usize {
    steps.iter().filter(|step| step.action == action).count()
}

/// A plan that was not carried out.
pub(super) fn planned(steps: &[Step<'_>]) -> Answer {
    if steps.is_empty() {
        return Answer::new("Nothing to change.", document(false, steps, &[], &[]));
    }
    let counts = [Action::Create, Action::Change, Action::Remove].map(|action| count(steps, action));
    let [created, changed, removed] = counts;
    let text = format!("{}\nPlan: {created} to create, {changed} to change, {removed} to remove.", lines(steps));
    Answer::new(text, document(false, steps, &[], &[]))
}

/// The failed checks of identity providers. `None`: no check failed.
pub(super) fn refused(steps: &[Step<'_>], checked: &[Checked<'_>]) -> Option<Answer> {
    let sum = |of: fn(&Checked<'_>) -> usize| checked.iter().map(of).fold(0, usize::saturating_add);
    let (failed, all) = (sum(|one| one.examined.failed()), sum(|one| one.examined.findings.len()));
    if failed == 0 {
        return None;
    }
    let text = format!(
        "{}\nNothing was changed. Fix the failed checks, or pass --force to save the providers anyway.",
        findings(checked)
    );
    let answer = Answer::new(text, document(false, steps, &[], checked));
    let why = format!("nothing was changed: {failed} of {all} checks of identity providers failed");
    Some(answer.but(Failure::new(Reason::ProviderCheckFailed, why)))
}

/// A plan that was carried out.
pub(super) fn applied(steps: &[Step<'_>], made: &[Made], checked: &[Checked<'_>]) -> Answer {
    let counts = [Action::Create, Action::Change, Action::Remove].map(|action| count(steps, action));
    let [created, changed, removed] = counts;
    let mut text = format!("{}{}\nCreated {created}, changed {changed}, removed {removed}.", findings(checked), lines(steps));
    let secrets: Vec<String> = steps
        .iter()
        .zip(made)
        .filter_map(|(step, made)| {
            let (id, (_, secret)) = (made.id.as_deref()?, made.secret.as_ref()?);
            Some(format!("  {}: {} {id}: {secret}", step.org, subject(step)))
        })
        .collect();
    if !secrets.is_empty() {
        let heading = "Store these secrets in a secret manager: they cannot be shown again.";
        text = format!("{text}\n\n{heading}\n{}", secrets.join("\n"));
    }
    Answer::new(text, document(true, steps, made, checked))
}

/// The document for programs. `made` is empty if nothing was carried out.
fn document(is_applied: bool, steps: &[Step<'_>], made: &[Made], checked: &[Checked<'_>]) -> Json {
    let mut made = made.iter();
    let entry = |step: &Step<'_>| {
        let made = made.next();
        let id = step.id.as_ref().or(made.and_then(|made| made.id.as_ref()));
        let mut entry = json!({
            "action": step.action, "org": step.org, "kind": step.kind, "id": id, "name": step.name, "changes": step.fields,
        });
        if let (Some((name, secret)), Some(members)) = (made.and_then(|made| made.secret.as_ref()), entry.as_object_mut()) {
            members.insert((*name).to_owned(), json!(secret));
        }
        entry
    };
    let all: Vec<Json> = steps.iter().map(entry).collect();
    let providers: Vec<Json> = checked
        .iter()
        .map(|Checked { org, issuer, examined }| {
            json!({
                "org": org, "issuer": issuer, "findings": examined.findings,
                "proposed_client_scopes": examined.proposed_client_scopes,
            })
        })
        .collect();
    json!({
        "applied": is_applied,
        "create": count(steps, Action::Create),
        "change": count(steps, Action::Change),
        "remove": count(steps, Action::Remove),
        "steps": all,
        "identity_providers": providers,
    })
}

/// A block of lines for each org.
fn lines(steps: &[Step<'_>]) -> String {
    let mut blocks: BTreeMap<&str, String> = BTreeMap::new();
    for step in steps {
        let block = blocks.entry(step.org).or_insert_with(|| format!("{}\n", step.org));
        block.push_str(&format!("  {}\n", line(step)));
    }
    blocks.into_values().collect::<Vec<_>>().join("\n")
}

fn line(step: &Step<'_>) -> String {
    let subject = subject(step);
    // The id of a provider or a member is its name.
    let id = step.id.as_ref().filter(|id| **id != step.name).map(|id| format!(" {id}")).unwrap_or_default();
    let of = |field: &Field, text: String| if step.kind == Kind::Limits { text } else { format!("{}: {text}", field.field) };
    let after = |field: &Field| of(field, shown(field.field, &field.after));
    let both =
        |field: &Field| of(field, format!("{} -> {}", shown(field.field, &field.before), shown(field.field, &field.after)));
    let joined = |show: &dyn Fn(&Field) -> String| step.fields.iter().map(show).collect::<Vec<_>>().join("; ");
    match step.action {
        Action::Create if step.fields.is_empty() => format!("+ {subject}"),
        Action::Create if step.kind == Kind::Limits => format!("+ {subject}: {}", joined(&after)),
        Action::Create => format!("+ {subject} ({})", joined(&after)),
        Action::Change => format!("~ {subject}{id}: {}", joined(&both)),
        Action::Remove => format!("- {subject}{id}"),
    }
}

/// The kind and the name of a record.
fn subject(step: &Step<'_>) -> String {
    let name = &step.name;
    match step.kind {
        Kind::Org => "org".to_owned(),
        Kind::Limits => "limits".to_owned(),
        Kind::ApiKey => format!("API key \"{name}\""),
        Kind::OauthClient => format!("OAuth client \"{name}\""),
        Kind::IdentityProvider => format!("identity provider {name}"),
        Kind::Member => format!("member {name}"),
    }
}

/// A value in one line. The text of a default depends on the member.
fn shown(field: &str, value: &Value) -> String {
    match value {
        Value::Text(Some(text)) => text.clone(),
        Value::List(Some(list)) if list.is_empty() => "none".to_owned(),
        Value::List(Some(list)) => list.join(" "),
        Value::Limits(limits) => limits::described(limits.as_ref()),
        Value::Text(None) | Value::List(None) => match field {
            "connectors" => "all".to_owned(),
            "expires_at" => "never".to_owned(),
            _ => "default".to_owned(),
        },
    }
}

/// The results of the checks, a block for each provider.
fn findings(checked: &[Checked<'_>]) -> String {
    let block = |Checked { org, issuer, examined }: &Checked<'_>| {
        let lines = examined.findings.iter().map(|finding| format!("  {}  {}\n", finding.mark(), finding.finding));
        format!("{org}: identity provider {issuer}\n{}\n", lines.collect::<String>())
    };
    checked.iter().map(block).collect()
}
