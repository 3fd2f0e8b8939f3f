//! The audit log: each change with its actor and its time.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::org;
use crate::access::Actor;
use crate::clock::Moment;
use crate::failure::Failure;
use crate::sql::{Part, Range, Row, Sql, first, part, values};

/// Maximum length of a part of an actor's name in a search, in characters.
const MAX_SEARCH: usize = 64;

/// Every action that a change can record, sorted. A test compares the list with the sources.
pub const ACTIONS: &[&str] = &[
    "admin-token.create",
    "admin-token.revoke",
    "client.create",
    "client.drop-secret",
    "client.revoke",
    "client.rotate-secret",
    "client.update",
    "database.decrypt",
    "database.encrypt",
    "ecds.disable",
    "ecds.enable",
    "key.create",
    "key.revoke",
    "key.roll",
    "key.update",
    "limits.clear",
    "limits.set",
    "member.add",
    "member.remove",
    "member.update",
    "org.create",
    "org.delete",
    "policy.import",
    "session.begin",
    "session.end",
    "session.link",
    "signing-key.create",
    "signing-key.remove",
    "signing-key.use",
    "sso.configure",
    "sso.remove",
    "token.revoke",
];

#[derive(Debug, Serialize, ToSchema)]
pub struct Entry {
    /// The version of the policy after the change.
    pub version: i64,
    pub at: String,
    pub actor: String,
    /// Such as `key.create`.
    pub action: String,
    pub org: Option<String>,
    /// The name or id of what was changed.
    pub subject: String,
    /// A JSON object without any secret.
    #[schema(value_type = Object)]
    pub details: Value,
}

impl Entry {
    fn read(row: &Row<'_>) -> Result<Self, Failure> {
        Ok(Self {
            version: row.get("version")?,
            at: row.get("at")?,
            actor: row.get("actor")?,
            action: row.get("action")?,
            org: row.get("org")?,
            subject: row.get("subject")?,
            details: row.json("details")?.unwrap_or_default(),
        })
    }
}

/// Which changes are wanted.
#[derive(Debug, Default)]
pub struct Filter {
    pub org: Option<String>,
    pub actor: Option<String>,
    /// A part of the name of the actor. Its letters match in both cases. Empty: all.
    pub actor_part: String,
    pub action: Option<String>,
    /// At this time or later.
    pub from: Option<Moment>,
    /// Before this time.
    pub to: Option<Moment>,
}

impl Filter {
    /// Whether many changes may have to be read. An index has those of an org.
    pub fn is_search(&self) -> bool {
        let Self { org: _, actor, actor_part, action, from, to } = self;
        actor.is_some() || !actor_part.is_empty() || action.is_some() || from.is_some() || to.is_some()
    }
}

/// The changes that the actor may read, the latest first.
///
/// # Errors
/// If the actor may not read the changes of the wanted org, or a value is not allowed.
pub fn latest(connection: &dyn Sql, actor: &Actor, filter: &Filter, range: &Range) -> Result<Part<Entry>, Failure> {
    let org = filter.org.as_deref().or(actor.role.org());
    if let Some(org) = org {
        actor.check_read(org, || org::unknown(org))?;
    }
    if filter.actor_part.chars().count() > MAX_SEARCH {
        return Err(Failure::of("actor", format!("must have at most {MAX_SEARCH} characters")));
    }
    let [before, _] = &range.after;
    let wrong = || Failure::of("cursor", "must be the next of an answer to the same request");
    let before = if before.is_empty() { i64::MAX } else { before.parse().map_err(|_| wrong())? };
    // An earlier org of the same name may have been that of other people.
    let born = first(
        connection,
        "SELECT max(version) AS born FROM audit WHERE org = ? AND action = 'org.create'",
        values![actor.role.org()],
        |row| row.get::<Option<i64>>("born"),
    )?;
    let born = born.flatten().unwrap_or(0);
    let query = "SELECT * FROM audit WHERE version < ? AND version >= ?
            AND (CAST(? AS TEXT) IS NULL OR org = ?) AND (CAST(? AS TEXT) IS NULL OR actor = ?)
            AND (CAST(? AS TEXT) = '' OR replace(lower(actor), ?, '') <> lower(actor))
            AND (CAST(? AS TEXT) IS NULL OR action = ?) AND (CAST(? AS TEXT) IS NULL OR at >= ?)
            AND (CAST(? AS TEXT) IS NULL OR at < ?)
        ORDER BY version DESC LIMIT ?";
    let (by, action) = (filter.actor.as_deref(), filter.action.as_deref());
    // Not LIKE: its time grows with the product of both lengths.
    let part_of_by = filter.actor_part.to_ascii_lowercase();
    let (from, to) = (filter.from, filter.to);
    let values =
        values![before, born, org, org, by, by, &part_of_by, &part_of_by, action, action, from, from, to, to, range.with_next()];
    part(connection, query, values, range, Entry::read)
}

/// The changes as CSV (RFC 4180), with a line of names.
pub fn csv(entries: &[Entry]) -> String {
    let lines = entries.iter().map(|entry| {
        let (version, details) = (entry.version.to_string(), entry.details.to_string());
        let org = entry.org.as_deref().unwrap_or_default();
        [&version, &entry.at, &entry.actor, &entry.action, org, &entry.subject, &details].map(cell).join(",") + "\r\n"
    });
    std::iter::once("version,at,actor,action,org,subject,details\r\n".to_owned()).chain(lines).collect()
}

/// A cell of CSV. A spreadsheet must not take the text for a formula.
fn cell(text: &str) -> String {
    let guard = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    // Some spreadsheets separate cells by semicolons.
    let text = ['=', '+', '-', '@']
        .iter()
        .fold(text.replace('"', "\"\""), |text, sign| text.replace(&format!(";{sign}"), &format!(";'{sign}")));
    format!("\"{guard}{text}\"")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::{ACTIONS, cell};

    #[test]
    fn a_spreadsheet_takes_no_cell_for_a_formula() {
        for (text, expected) in [("=1", "\"'=1\""), ("a;=1;b", "\"a;'=1;b\""), ("say \"x\"", "\"say \"\"x\"\"\"")] {
            assert_eq!(cell(text), expected);
        }
    }

    fn sources(folder: &Path) -> Vec<PathBuf> {
        let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        paths.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
    }

    /// Whether a text is written like an action: `signing-key.create`.
    fn is_action(text: &str) -> bool {
        let is_word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        text.split_once('.').is_some_and(|(kind, verb)| is_word(kind) && is_word(verb))
    }

    /// Each text of the sources that record changes and that is written like an action is in the list, and the other way round.
    #[test]
    fn the_list_has_every_action() {
        let own = Path::new(file!()).file_name().unwrap();
        let found: BTreeSet<String> = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
            .iter()
            .filter(|path| path.file_name() != Some(own))
            .map(|path| fs::read_to_string(path).unwrap())
            .filter_map(|text| text.split("#[cfg(test)]").next().filter(|text| text.contains("Record {")).map(str::to_owned))
            .flat_map(|text| text.split('"').filter(|text| is_action(text)).map(str::to_owned).collect::<Vec<_>>())
            .collect();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ACTIONS);
    }
}
