//! Reads a Markdown file: its blocks of code, its links, and its anchors.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

use crate::repository;

/// How the comment before a command block that no test runs begins. A reason follows.
const NOT_RUN: &str = "<!-- not run: ";

/// A Markdown file.
#[derive(Debug)]
pub struct Document {
    /// The path from the root folder of the repository.
    pub path: PathBuf,
    text: String,
}

/// A fenced block of code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The word after the fence, such as `sh` or `yaml,envoy`.
    pub kind: String,
    /// The lines between the fences.
    pub text: String,
    /// The line of the file at which the block begins.
    pub line: usize,
    /// Why no test runs the block, by the comment before it.
    pub not_run: Option<String>,
}

impl Document {
    /// Reads the file at `path`, from the root folder of the repository.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref().to_path_buf();
        Ok(Self { text: fs::read_to_string(repository().join(&path))?, path })
    }

    /// All documents: the Markdown files in the root folder and below `docs/`, in the order of their paths.
    ///
    /// # Errors
    /// If a file or folder cannot be read.
    pub fn all() -> io::Result<Vec<Self>> {
        let mut paths = Vec::new();
        let is_page = |path: &Path| path.extension().is_some_and(|extension| extension == "md");
        let mut folders = vec![PathBuf::from("docs")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(repository().join(&folder))? {
                let entry = entry?;
                let path = folder.join(entry.file_name());
                if entry.file_type()?.is_dir() {
                    folders.push(path);
                } else if is_page(&path) {
                    paths.push(path);
                }
            }
        }
        for entry in fs::read_dir(repository())? {
            let name = PathBuf::from(entry?.file_name());
            paths.extend(is_page(&name).then_some(name));
        }
        paths.sort();
        paths.into_iter().map(Self::read).collect()
    }

    /// The text of the file.
    pub fn text(&self) -> &str {
        &self.text
    }

    fn events(&self) -> impl Iterator<Item = (Event<'_>, usize)> {
        let options = Options::ENABLE_TABLES | Options::ENABLE_FOOTNOTES | Options::ENABLE_STRIKETHROUGH;
        let line_of = |offset: usize| self.text.get(..offset).unwrap_or_default().matches('\n').count() + 1;
        Parser::new_ext(&self.text, options).into_offset_iter().map(move |(event, range)| (event, line_of(range.start)))
    }

    /// The fenced blocks, in their order.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let (mut open, mut not_run) = (None::<Block>, None);
        for (event, line) in self.events() {
            match event {
                Event::Html(html) => {
                    let reason = html.trim().strip_prefix(NOT_RUN).and_then(|rest| rest.strip_suffix("-->"));
                    not_run = reason.map(|reason| reason.trim().to_owned()).or(not_run);
                }
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(kind))) => {
                    open = Some(Block { kind: kind.to_string(), text: String::new(), line, not_run: not_run.take() });
                }
                Event::End(TagEnd::CodeBlock) => blocks.extend(open.take()),
                Event::Text(text) => match &mut open {
                    Some(block) => block.text.push_str(&text),
                    None => not_run = None,
                },
                _ => {}
            }
        }
        blocks
    }

    /// The targets of all links and pictures, with the line at which each begins.
    pub fn links(&self) -> Vec<(String, usize)> {
        let target = |(event, line)| match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => Some((dest_url.to_string(), line)),
            _ => None,
        };
        self.events().filter_map(target).collect()
    }

    /// The headings, with their level.
    pub fn headings(&self) -> Vec<(usize, String)> {
        let (mut headings, mut open) = (Vec::new(), None::<(usize, String)>);
        for (event, _) in self.events() {
            match event {
                Event::Start(Tag::Heading { level, .. }) => open = Some((level as usize, String::new())),
                Event::End(TagEnd::Heading(_)) => headings.extend(open.take()),
                Event::Text(text) | Event::Code(text) => {
                    if let Some((_, heading)) = &mut open {
                        heading.push_str(&text);
                    }
                }
                _ => {}
            }
        }
        headings
    }

    /// The anchors of the headings, as GitHub and mdBook make them.
    pub fn anchors(&self) -> Vec<String> {
        let mut seen = HashMap::<String, usize>::new();
        self.headings()
            .into_iter()
            .map(|(_, heading)| {
                let is_kept = |character: &char| character.is_alphanumeric() || matches!(character, ' ' | '-' | '_');
                let anchor = heading.to_lowercase().chars().filter(is_kept).collect::<String>().replace(' ', "-");
                let count = seen.entry(anchor.clone()).or_default();
                *count += 1;
                if *count == 1 { anchor } else { format!("{anchor}-{}", *count - 1) }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Document {
        Document { path: "a.md".into(), text: text.to_owned() }
    }

    #[test]
    fn blocks_have_their_kind_and_the_reason_why_they_are_not_run() {
        let text =
            "# A\n\n```sh\na\nb\n```\n\n<!-- not run: needs a cluster -->\n\n```sh,server\nc\n```\n\ntext\n\n```json\n{}\n```\n";
        let block = |kind: &str, text: &str, line, not_run: Option<&str>| Block {
            kind: kind.to_owned(),
            text: text.to_owned(),
            line,
            not_run: not_run.map(str::to_owned),
        };
        let expected = [
            block("sh", "a\nb\n", 3, None),
            block("sh,server", "c\n", 10, Some("needs a cluster")),
            block("json", "{}\n", 16, None),
        ];
        assert_eq!(document(text).blocks(), expected);
    }

    #[test]
    fn a_reason_counts_only_for_the_next_block() {
        let text = "<!-- not run: no -->\n\nText between.\n\n```sh\na\n```\n";
        assert_eq!(document(text).blocks()[0].not_run, None);
    }

    #[test]
    fn anchors_are_those_of_the_web_pages() {
        let text = "# `apexmcp key create`\n## The image\n## The image\n### What is `jwks.max_stale`?\n";
        let expected = ["apexmcp-key-create", "the-image", "the-image-1", "what-is-jwksmax_stale"];
        assert_eq!(document(text).anchors(), expected);
    }

    #[test]
    fn links_are_found_outside_of_code() {
        let text = "[a](b.md#c) `[d](e)` ![f](g.svg)\n\n```\n[h](i)\n```\n";
        assert_eq!(document(text).links(), [("b.md#c".to_owned(), 1), ("g.svg".to_owned(), 1)]);
    }
}
