//! The documents: all pages are listed, all links lead somewhere, and the blocks have the form that their kind promises.
//! `wasm-test/tests/documents.rs` runs the blocks.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use apexmcp_book::{Document, build, repository};
use apexmcp_core::config::Config;
use apexmcp_core::testing::signing_key_pem;
use serde_json::{Value, json};

fn documents() -> Vec<Document> {
    Document::all().expect("the documents are read")
}

/// The pages of the book.
fn pages() -> Vec<Document> {
    let is_page = |path: &Path| path.starts_with("docs") && !path.ends_with("SUMMARY.md");
    documents().into_iter().filter(|document| is_page(&document.path)).collect()
}

/// The path of a link's target from the root of the repository.
fn resolve(page: &Path, target: &str) -> PathBuf {
    let mut path = page.parent().unwrap_or(Path::new("")).to_path_buf();
    for component in Path::new(target).components() {
        match component {
            Component::ParentDir => assert!(path.pop(), "{}: {target} leaves the repository", page.display()),
            Component::CurDir => {}
            part => path.push(part),
        }
    }
    path
}

#[test]
fn all_pages_are_listed() {
    let summary = Document::read("docs/SUMMARY.md").expect("the list of the pages");
    let listed: BTreeSet<PathBuf> = summary.links().into_iter().map(|(target, _)| resolve(&summary.path, &target)).collect();
    let existing: BTreeSet<PathBuf> = pages().into_iter().map(|page| page.path).collect();
    let listed: BTreeSet<PathBuf> = listed.into_iter().filter(|path| path != Path::new("docs")).collect();
    assert_eq!(listed, existing);
}

#[test]
fn all_links_lead_to_existing_files_and_headings() {
    let mut broken = Vec::new();
    for document in documents() {
        for (target, line) in document.links() {
            let is_elsewhere = target.contains("://") || target.starts_with("mailto:") || target.is_empty();
            if is_elsewhere {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let path = if file.is_empty() { document.path.clone() } else { resolve(&document.path, file) };
            let exists = repository().join(&path).exists();
            let has_anchor =
                anchor.is_empty() || Document::read(&path).is_ok_and(|there| there.anchors().iter().any(|there| there == anchor));
            if !exists || !has_anchor {
                broken.push(format!("{}:{line}: {target}", document.path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// The kinds of blocks. CONTRIBUTING.md says what is tested of each.
const KINDS: [&str; 15] = [
    "http",
    "json",
    "json,configuration",
    "json,policy",
    "mermaid",
    "promql",
    "rust",
    "sh",
    "sh,server",
    "text",
    "text,output",
    "toml",
    "yaml,envoy",
    "yaml,fragment",
    "yaml,policy-check",
];

#[test]
fn all_blocks_have_a_known_kind_and_its_form() {
    let mut problems = Vec::new();
    for document in documents() {
        for block in document.blocks() {
            let found = match block.kind.as_str() {
                kind if !KINDS.contains(&kind) => Err(format!("unknown kind {kind:?}")),
                "json" => serde_json::from_str::<Value>(&block.text).map(drop).map_err(|error| error.to_string()),
                "json,configuration" => is_accepted(&block.text),
                "json,policy" => match serde_json::from_str::<Value>(&block.text) {
                    Ok(policy) => is_accepted(
                        &json!({
                            "gateway": {"origin": "https://gateway.example"},
                            "jwks": {"https_cluster": "jwks_https"},
                            "policy": {"inline": policy},
                        })
                        .to_string(),
                    ),
                    Err(error) => Err(error.to_string()),
                },
                kind if kind.starts_with("yaml") => {
                    serde_saphyr::from_multiple::<Value>(&block.text).map(drop).map_err(|error| error.to_string())
                }
                _ => Ok(()),
            };
            if let Err(problem) = found {
                problems.push(format!("{}:{}: {problem}", document.path.display(), block.line));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Whether the filter accepts a configuration. Each variable of the environment that it names has a value.
fn is_accepted(configuration: &str) -> Result<(), String> {
    let value = |name: &str| if name.contains("TOKEN") { "a-token-of-a-document" } else { signing_key_pem() };
    let variable = |name: &str| Some(value(name).to_owned());
    Config::parse(configuration.as_bytes(), &variable).map(drop).map_err(|problems| format!("{problems:?}"))
}

#[test]
fn the_short_documents_are_short() {
    for (path, max) in [("README.md", 150), ("ARCHITECTURE.md", 200)] {
        let lines = Document::read(path).expect("the document").text().lines().count();
        assert!(lines <= max, "{path} has {lines} lines");
    }
}

#[test]
fn the_book_is_built_with_all_pages_the_search_and_the_files_that_it_links_to() {
    let folder = repository().join("target/book-test");
    build(&folder).expect("the book is built");
    for page in pages() {
        let page = page.path.strip_prefix("docs").expect("a page of the book").with_extension("html");
        assert!(folder.join(&page).is_file(), "{}", page.display());
    }
    let files = |prefix: &str| {
        let names = std::fs::read_dir(&folder).expect("the book").filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| name.starts_with(prefix)).count()
    };
    assert!(files("searchindex") > 0 && files("mermaid.tiny.js") == 1 && files("pictures.js") == 1);
    assert!(folder.join("files/envoy/envoy.yaml").is_file());
}
