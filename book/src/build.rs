//! Builds the book with mdBook.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;

use mdbook_driver::MDBook;
use mdbook_driver::book::{Book, BookItem};
use mdbook_driver::errors::Result;
use mdbook_preprocessor::{Preprocessor, PreprocessorContext};

use crate::repository;

/// The scripts that draw the pictures.
const SCRIPTS: [&str; 2] = ["book/web/node_modules/@mermaid-js/tiny/dist/mermaid.tiny.js", "book/web/pictures.js"];

/// The folder of the book in which copies of the repository's files are.
const FILES: &str = "files";

/// Builds the book into `folder`. What was in the folder is removed.
///
/// # Errors
/// If a page is missing, or if a file cannot be read or written.
pub fn build(folder: &Path) -> Result<()> {
    let folder = std::path::absolute(folder)?;
    let root = repository().canonicalize()?;
    let mut book = MDBook::load(root.join("docs"))?;
    book.config.build.build_dir = folder.clone();
    let files = &*Box::leak(Box::<Mutex<BTreeSet<PathBuf>>>::default());
    book.with_preprocessor(Adapter { files });
    book.build()?;
    for file in files.lock().unwrap_or_else(std::sync::PoisonError::into_inner).iter() {
        let copy = folder.join(FILES).join(file);
        fs::create_dir_all(copy.parent().unwrap_or(&folder))?;
        fs::copy(root.join(file), copy)?;
    }
    for script in SCRIPTS.map(Path::new) {
        fs::copy(root.join(script), folder.join(script.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

/// Adapts pages that also GitHub shows: pictures become elements that the script `pictures.js` draws, and links to files of
/// the repository lead to copies of these files.
struct Adapter {
    /// The files to copy.
    files: &'static Mutex<BTreeSet<PathBuf>>,
}

impl Preprocessor for Adapter {
    fn name(&self) -> &str {
        "adapter"
    }

    fn run(&self, _context: &PreprocessorContext, mut book: Book) -> Result<Book> {
        book.for_each_mut(|item| {
            if let BookItem::Chapter(chapter) = item
                && let Some(path) = &chapter.source_path
            {
                chapter.content = self.adapt(&chapter.content, path);
            }
        });
        Ok(book)
    }
}

impl Adapter {
    fn adapt(&self, content: &str, page: &Path) -> String {
        let mut adapted = String::with_capacity(content.len());
        let mut fence = None;
        for line in content.lines() {
            match fence {
                None if line == "```mermaid" => {
                    fence = Some("</pre>\n");
                    adapted.push_str("<pre class=\"mermaid\">");
                }
                Some(end) if line == "```" => {
                    fence = None;
                    adapted.push_str(end);
                }
                None if line.starts_with("```") => {
                    fence = Some("```");
                    adapted.push_str(line);
                }
                Some("</pre>\n") => adapted.push_str(&line.replace('&', "&amp;").replace('<', "&lt;")),
                Some(_) => adapted.push_str(line),
                None => adapted.push_str(&self.with_copies(line, page)),
            }
            adapted.push('\n');
        }
        adapted
    }

    /// Directs the links of a line that lead out of `docs/` to the copies.
    fn with_copies(&self, line: &str, page: &Path) -> String {
        let mut adapted = String::with_capacity(line.len());
        let mut rest = line;
        while let Some((before, link)) = rest.split_once("](../") {
            adapted.push_str(before);
            let Some((target, after)) = link.split_once(')') else {
                adapted.push_str("](../");
                rest = link;
                continue;
            };
            let target = format!("../{target}");
            match outside(page, &target) {
                Some(file) if repository().join(&file).is_file() => {
                    let up = "../".repeat(page.components().count().saturating_sub(1));
                    adapted.push_str(&format!("]({up}{FILES}/{})", file.display()));
                    self.files.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(file);
                }
                _ => adapted.push_str(&format!("]({target})")),
            }
            rest = after;
        }
        adapted.push_str(rest);
        adapted
    }
}

/// The path of a link's target from the root of the repository. `None` if the target is below `docs/`.
fn outside(page: &Path, target: &str) -> Option<PathBuf> {
    let target = target.split('#').next().unwrap_or_default();
    let mut path = Path::new("docs").join(page.parent()?);
    for component in Path::new(target).components() {
        match component {
            Component::ParentDir => {
                path.pop();
            }
            Component::Normal(name) => path.push(name),
            _ => return None,
        }
    }
    (!path.starts_with("docs")).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapt(content: &str) -> (String, Vec<PathBuf>) {
        let files = &*Box::leak(Box::<Mutex<BTreeSet<PathBuf>>>::default());
        let adapted = Adapter { files }.adapt(content, Path::new("guides/a.md"));
        (adapted, files.lock().unwrap().iter().cloned().collect())
    }

    #[test]
    fn pictures_become_elements() {
        let (adapted, _) = adapt("a\n```mermaid\nflowchart LR\n  A[\"<b>\"] --> B\n```\n```sh\n```\n");
        assert_eq!(adapted, "a\n<pre class=\"mermaid\">\nflowchart LR\n  A[\"&lt;b>\"] --> B\n</pre>\n\n```sh\n```\n");
    }

    #[test]
    fn links_to_files_of_the_repository_lead_to_copies() {
        let (adapted, files) = adapt("[a](../../Makefile), [b](../concepts/c.md), [d](../../missing) and `](../x`\n");
        assert_eq!(adapted, "[a](../files/Makefile), [b](../concepts/c.md), [d](../../missing) and `](../x`\n");
        assert_eq!(files, [PathBuf::from("Makefile")]);
    }
}
