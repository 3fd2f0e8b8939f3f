//! Finds the present record that an entry of the file means, for records that are known by an id or by a name.

use std::collections::{BTreeMap, BTreeSet};

use crate::failure::{Failure, Reason};

/// An entry of the file.
pub(super) struct Entry<'a> {
    pub(super) path: &'a str,
    pub(super) id: Option<&'a str>,
    pub(super) name: &'a str,
}

/// A record that is not revoked.
pub(super) struct Record<'a> {
    pub(super) id: &'a str,
    pub(super) name: &'a str,
    pub(super) is_expired: bool,
}

/// The words in messages.
pub(super) struct Words {
    /// Such as `API key`.
    pub(super) kind: &'static str,
    /// The member of an entry that has the id.
    pub(super) id: &'static str,
    /// The noun of the commands.
    pub(super) command: &'static str,
}

/// The index of the record that each entry means. `None`: there is none yet.
///
/// # Errors
/// If an entry means no record or several, or two entries mean the same one.
pub(super) fn find(
    org: &str,
    words: &Words,
    entries: &[Entry<'_>],
    records: &[Record<'_>],
) -> Result<Vec<Option<usize>>, Failure> {
    let Words { kind, id: member, command } = *words;
    let by_id: BTreeMap<&str, usize> = records.iter().enumerate().map(|(index, record)| (record.id, index)).collect();
    let mut by_name: BTreeMap<&str, Vec<(usize, &Record<'_>)>> = BTreeMap::new();
    for (index, record) in records.iter().enumerate() {
        by_name.entry(record.name).or_default().push((index, record));
    }
    let mut chosen = BTreeSet::new();
    for (path, id) in entries.iter().filter_map(|entry| Some((entry.path, entry.id?))) {
        let unknown = || {
            let line = format!(
                "{path}.{member}: {org} has no {kind} with the id {id:?} that is in force: leave out {member} to create one"
            );
            Failure::new(Reason::NotFound, line).hint(format!("Run 'apexmcp {command} list --org {org}' to see the ids"))
        };
        if !chosen.insert(*by_id.get(id).ok_or_else(unknown)?) {
            return Err(Failure::new(
                Reason::FileInvalid,
                format!("{path}.{member}: another entry has the same id: remove one of the two"),
            ));
        }
    }
    let mut names = BTreeSet::new();
    let mut found = Vec::with_capacity(entries.len());
    for Entry { path, id, name } in entries {
        if let Some(id) = id {
            found.push(by_id.get(id).copied());
            continue;
        }
        if !names.insert(*name) {
            let line = format!(
                "{path}.name: another entry has the same name: give the two different names, or write the {member} of each"
            );
            return Err(Failure::new(Reason::FileInvalid, line));
        }
        let free = by_name.get(name).into_iter().flatten().filter(|(index, _)| !chosen.contains(index));
        let free: Vec<_> = free.copied().collect();
        // The key that was rolled expires, and its successor has the same name.
        let valid: Vec<_> = free.iter().filter(|(_, record)| !record.is_expired).copied().collect();
        match (free.as_slice(), valid.as_slice()) {
            ([], _) => found.push(None),
            ([(index, _)], _) | (_, [(index, _)]) => found.push(Some(*index)),
            _ => {
                let ids: Vec<&str> = free.iter().map(|(_, record)| record.id).collect();
                let line = format!(
                    "{path}.name: {org} has {} records of the kind {kind} with the name {name:?}: write the {member} of the one that is \
                     meant, or revoke the others: {}",
                    ids.len(),
                    ids.join(", ")
                );
                return Err(Failure::new(Reason::Conflict, line));
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: Words = Words { kind: "API key", id: "id", command: "key" };

    fn found(
        entries: &[(Option<&'static str>, &'static str)],
        records: &[(&str, &str, bool)],
    ) -> Result<Vec<Option<usize>>, Reason> {
        let entries: Vec<_> = entries.iter().map(|(id, name)| Entry { path: "p", id: *id, name }).collect();
        let records: Vec<_> = records.iter().map(|(id, name, is_expired)| Record { id, name, is_expired: *is_expired }).collect();
        find("acme", &WORDS, &entries, &records).map_err(|failure| failure.reason)
    }

    #[test]
    fn a_name_or_an_id_finds_one_record() {
        let records =
            [("1", "a", false), ("2", "b", false), ("3", "b", false), ("4", "c", true), ("5", "c", false), ("6", "d", true)];
        for (entries, expected) in [
            (&[(None, "a"), (None, "new")][..], Ok(vec![Some(0), None])),
            (&[(None, "b")], Err(Reason::Conflict)),
            (&[(Some("3"), "b")], Ok(vec![Some(2)])),
            // The other one is what is left.
            (&[(None, "b"), (Some("3"), "b")], Ok(vec![Some(1), Some(2)])),
            (&[(Some("1"), "renamed")], Ok(vec![Some(0)])),
            (&[(None, "c"), (None, "d")], Ok(vec![Some(4), Some(5)])),
            (&[(Some("9"), "a")], Err(Reason::NotFound)),
            (&[(Some("1"), "a"), (Some("1"), "b")], Err(Reason::FileInvalid)),
            (&[(None, "new"), (None, "new")], Err(Reason::FileInvalid)),
        ] {
            assert_eq!(found(entries, &records), expected, "{entries:?}");
        }
    }
}
