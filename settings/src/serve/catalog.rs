//! All parts of the policy in memory, and the pages that gateways get of them. The database is not needed to answer.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use apexmcp_core::policy::page::Page;
use apexmcp_core::policy::parts::{OrgPart, PartName, Sum};
use apexmcp_core::policy::publication::{Document, DocumentOrg};
use apexmcp_core::policy::raw::Members;
use serde_json::value::RawValue;

use crate::failure::{Failure, Reason};
use crate::parts::{Changes, KEPT_VERSIONS};

/// Length of the parts in a page, in bytes, after which the next page begins. A gateway takes a page in some milliseconds.
const PAGE_LENGTH: usize = 1 << 20;

/// A version of the policy. Versions of a restored database have other tags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) version: i64,
    tag: String,
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.version, self.tag)
    }
}

/// A part with its name. `None`: the part is gone.
type NamedPart<'p> = (String, Option<&'p RawValue>);

/// What a gateway has, as it says in its requests.
enum Position {
    /// The whole policy in this state.
    At(State),
    /// A transfer from one state to another, of which the gateway has the parts up to the name `after`.
    Between { from: Option<State>, to: State, after: String },
}

#[derive(Debug)]
struct Stored {
    version: i64,
    /// `None`: the part is gone.
    text: Option<Arc<RawValue>>,
}

/// All parts of the policy.
#[derive(Debug)]
pub(super) struct Catalog {
    state: State,
    tags: BTreeMap<i64, String>,
    parts: BTreeMap<Arc<str>, Stored>,
    by_version: BTreeSet<(i64, Arc<str>)>,
    sum: Sum,
    length: usize,
    page_length: usize,
}

impl Default for Catalog {
    fn default() -> Self {
        Self {
            state: State::default(),
            tags: BTreeMap::new(),
            parts: BTreeMap::new(),
            by_version: BTreeSet::new(),
            sum: Sum::default(),
            length: 0,
            page_length: PAGE_LENGTH,
        }
    }
}

impl Catalog {
    /// The present state.
    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// The version and the tag after which [`crate::parts::changes_since`] continues.
    pub(super) fn since(&self) -> (i64, &str) {
        (self.state.version, &self.state.tag)
    }

    /// The length of all parts, in bytes.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Takes over what changed since the present state.
    ///
    /// # Errors
    /// If a part is not JSON.
    pub(super) fn apply(&mut self, changes: Changes) -> Result<(), Failure> {
        for (name, version, text) in changes.parts {
            let name: Arc<str> = name.into();
            let text: Option<Arc<RawValue>> =
                text.map(|text| RawValue::from_string(text).map(Arc::from)).transpose().map_err(broken())?;
            if let Some(text) = &text {
                self.sum = self.sum.with(&name, text.get());
                self.length = self.length.saturating_add(text.get().len());
            }
            if let Some(before) = self.parts.insert(Arc::clone(&name), Stored { version, text }) {
                if let Some(text) = &before.text {
                    self.sum = self.sum.without(&name, text.get());
                    self.length = self.length.saturating_sub(text.get().len());
                }
                self.by_version.remove(&(before.version, Arc::clone(&name)));
            }
            self.by_version.insert((version, name));
        }
        self.tags.extend(changes.tags);
        // A server may run for years. Gateways with an older state get all parts.
        self.tags = self.tags.split_off(&changes.version.saturating_sub(KEPT_VERSIONS).saturating_add(1));
        let tag = self.tags.get(&changes.version).cloned().unwrap_or_default();
        self.state = State { version: changes.version, tag };
        Ok(())
    }

    /// The next page for a gateway that named this state. `None`: it has the present state.
    ///
    /// # Errors
    /// If the page cannot be written.
    pub(super) fn page(&self, named: Option<&str>) -> Result<Option<String>, Failure> {
        let page = match named.and_then(|named| self.position(named)) {
            Some(Position::At(state)) if state == self.state => return Ok(None),
            Some(Position::At(from)) => self.change(&from).unwrap_or_else(|| self.transfer(Some(&from), &self.state, "")),
            Some(Position::Between { from, to, after }) => {
                let page = self.transfer(from.as_ref(), &to, &after);
                // Parts may have changed since `to`. A gateway never names a state of which it has other parts: a backup of that
                // state may be restored.
                if page.is_last && to != self.state { self.last(page, &to) } else { page }
            }
            // The gateway has nothing, or a state that this database does not know.
            None => return write(&self.transfer(None, &self.state, "")).map(Some),
        };
        write(&Page { since: named.map(Cow::Borrowed), ..page }).map(Some)
    }

    fn position(&self, named: &str) -> Option<Position> {
        let state = |text: &str| {
            let (version, tag) = text.split_once('-')?;
            let version = version.parse().ok()?;
            (self.tags.get(&version)? == tag).then(|| State { version, tag: tag.to_owned() })
        };
        let mut words = named.splitn(3, '.');
        let (first, second, third) = (words.next()?, words.next(), words.next());
        match (second, third) {
            (None, _) => state(first).map(Position::At),
            (Some(to), Some(after)) => {
                let from = if first == NOTHING { None } else { Some(state(first)?) };
                let (to, newest) = to.split_once('~').unwrap_or((to, to));
                // Some of its parts are those of `newest`, which a restored backup does not have.
                state(newest)?;
                Some(Position::Between { from, to: state(to)?, after: after.to_owned() })
            }
            (Some(_), None) => None,
        }
    }

    /// All changes since a state, if they fit into one page.
    fn change(&self, from: &State) -> Option<Page<'_>> {
        let first = (from.version.saturating_add(1), Arc::from(""));
        let mut length = 0_usize;
        let mut parts = Vec::new();
        for (_, name) in self.by_version.range(first..) {
            let text = self.parts.get(name)?.text.as_deref();
            length = length.saturating_add(length_of(name, text));
            if length > self.page_length {
                return None;
            }
            parts.push((name.to_string(), text));
        }
        Some(self.page_of(self.state.to_string(), &self.state, true, parts))
    }

    /// The end of a transfer, and all changes since the state `to`, whatever their length.
    fn last<'p>(&'p self, page: Page<'p>, to: &State) -> Page<'p> {
        let changes = self.transfer_of(Some(to), "", usize::MAX).0;
        let changed: BTreeSet<&str> = changes.iter().map(|(name, _)| name.as_str()).collect();
        let kept = page.parts.0.into_iter().filter(|(name, _)| !changed.contains(name.as_str()));
        let parts = kept.chain(changes.clone()).collect();
        self.page_of(self.state.to_string(), &self.state, true, parts)
    }

    /// A page of a transfer, with the parts after the name `after`.
    fn transfer(&self, from: Option<&State>, to: &State, after: &str) -> Page<'_> {
        let (parts, is_last) = self.transfer_of(from, after, self.page_length);
        let next = match parts.last() {
            Some((last, _)) if !is_last => {
                let from = from.map_or_else(|| NOTHING.to_owned(), State::to_string);
                let newest = if *to == self.state { String::new() } else { format!("~{}", self.state) };
                format!("{from}.{to}{newest}.{last}")
            }
            _ => to.to_string(),
        };
        self.page_of(next, to, is_last, parts)
    }

    /// The parts after the name `after` that changed since `from`, up to this length, and whether these are all.
    fn transfer_of(&self, from: Option<&State>, after: &str, longest: usize) -> (Vec<NamedPart<'_>>, bool) {
        let mut length = 0_usize;
        let mut parts = Vec::new();
        for (name, stored) in self.parts.range::<str, _>((Bound::Excluded(after), Bound::Unbounded)) {
            let is_new = match from {
                Some(from) => stored.version > from.version,
                None => stored.text.is_some(),
            };
            if !is_new {
                continue;
            }
            if length >= longest {
                return (parts, false);
            }
            let text = stored.text.as_deref();
            length = length.saturating_add(length_of(name, text));
            parts.push((name.to_string(), text));
        }
        (parts, true)
    }

    fn page_of<'p>(&self, next: String, to: &State, is_last: bool, parts: Vec<NamedPart<'p>>) -> Page<'p> {
        Page {
            since: None,
            next: next.into(),
            version: to.version.to_string().into(),
            is_last,
            // Only the present state has a known sum.
            sum: (is_last && *to == self.state).then(|| self.sum.to_string().into()),
            parts: Members(parts),
        }
    }

    /// The whole policy as one document, for a reader that takes no pages.
    ///
    /// # Errors
    /// If a part has another form.
    pub(super) fn document(&self) -> Result<String, Failure> {
        let mut orgs: BTreeMap<String, DocumentOrg<'_>> = BTreeMap::new();
        let mut document = Document { version: Some(self.state.version.to_string()), ..Document::default() };
        let stored = self.parts.iter().filter_map(|(name, stored)| Some((PartName::parse(name)?, stored.text.as_ref()?.get())));
        for (name, text) in stored {
            let part = match name {
                PartName::Org(_) => serde_json::from_str::<OrgPart<Document<'_>>>(text).map(|part| part.policy),
                _ => serde_json::from_str(text),
            };
            let part = part.map_err(broken())?;
            document.signing_keys = part.signing_keys.or(document.signing_keys);
            for (name, part) in part.orgs.0 {
                let org = orgs.entry(name).or_default();
                org.api_keys.extend(part.api_keys);
                org.oauth_clients.extend(part.oauth_clients);
                org.identity_providers.extend(part.identity_providers);
                org.revoked_tokens = part.revoked_tokens.or(org.revoked_tokens);
                org.limits = part.limits.or(org.limits);
            }
        }
        document.orgs = orgs.into();
        serde_json::to_string(&document).map_err(broken())
    }
}

/// Stands for the state of a gateway that has nothing.
const NOTHING: &str = "0";

fn length_of(name: &str, text: Option<&RawValue>) -> usize {
    name.len().saturating_add(text.map_or(0, |text| text.get().len()))
}

fn write(page: &Page<'_>) -> Result<String, Failure> {
    serde_json::to_string(page).map_err(broken())
}

fn broken() -> impl Fn(serde_json::Error) -> Failure {
    |error| Failure::new(Reason::DatabaseInvalid, format!("a part of the policy cannot be read: {error}"))
}

#[cfg(test)]
mod tests;
