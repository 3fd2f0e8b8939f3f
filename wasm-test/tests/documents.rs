//! The documents as their readers use them: the commands of each page run in their order, Envoy accepts the files that the
//! pages show, and the pages of the book fit on a screen and on a phone.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use apexmcp_book::{Block, Document};
use http_body_util::Full;
use hyper::Response;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, LocalSet};
use wasm_test::process::{Folder, Process, argument, free_port, try_run};
use wasm_test::server::Server;
use wasm_test::{eventually, repository};

/// Number of pages whose commands run at the same time.
const PAGES_AT_ONCE: usize = 2;

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_every_page_run_and_print_what_the_page_shows() {
    let turns = Arc::new(Semaphore::new(PAGES_AT_ONCE));
    let follow_all = async {
        let mut pages = JoinSet::new();
        for document in Document::all().expect("the documents") {
            let blocks = document.blocks();
            if blocks.iter().any(|block| block.kind.starts_with("sh") && block.not_run.is_none()) {
                let turns = Arc::clone(&turns);
                pages.spawn_local(async move {
                    let _turn = turns.acquire_owned().await.expect("a turn");
                    Reader::new(document).follow(&blocks).await
                });
            }
        }
        pages.join_all().await
    };
    let found: Vec<Result<(), String>> = LocalSet::new().run_until(follow_all).await;
    let problems: Vec<String> = found.iter().filter_map(|found| found.clone().err()).collect();
    assert!(!found.is_empty() && problems.is_empty(), "{}", problems.join("\n\n"));
}

/// The ports that the pages and their files use. The test uses free ports instead.
const PORTS: [&str; 12] = ["10000", "10001", "10101", "10102", "6070", "6379", "8080", "8081", "9901", "9902", "9903", "9911"];

/// A reader who types the commands of a page into a shell, in a folder like the root of the repository after
/// `make setup build`.
struct Reader {
    document: Document,
    folder: Folder,
    shell: Child,
    /// Free ports, by the ports of the page.
    ports: BTreeMap<String, u16>,
}

/// What the shell runs first. The commands of a page may begin before a server listens that the page has started. A reader
/// waits then, and so does `curl` here. `make setup build` did its work before.
const PRELUDE: &str = r#"
set -e
PATH="$PWD/.tools/bin:$PATH"
make() {
  case "$*" in
    "setup build"|setup|build) ;;
    run) exec .tools/bin/python demo/run.py;;
    *) echo "make $*: not in this test"; return 1;;
  esac
}
curl() {
  local argument authority
  for argument in "$@"; do
    case "$argument" in
      http://127.0.0.1:*)
        authority="${argument#http://127.0.0.1:}"
        until (exec 3<>"/dev/tcp/127.0.0.1/${authority%%/*}") 2>/dev/null; do read -rt 0.05 <> <(:) || true; done;;
    esac
  done
  command curl "$@"
}
"#;

impl Reader {
    fn new(document: Document) -> Self {
        let folder = Folder::new().expect("a folder");
        let root = repository().canonicalize().expect("the root");
        let here = |name: &str| folder.file(&format!("root/{name}"));
        for name in ["dist", "demo", ".tools/bin"] {
            fs::create_dir_all(here(name)).expect("a folder");
        }
        let tools = fs::read_dir(root.join(".tools/bin"))
            .expect("the tools")
            .filter_map(|tool| tool.ok()?.file_name().into_string().ok());
        let tools = tools.filter(|tool| tool != "envoy").map(|tool| format!(".tools/bin/{tool}"));
        let others = ["dist/apexmcp", "dist/apexmcp_auth.wasm", "dist/libapexmcp_auth.so", "demo/connectors", "demo/idp"]
            .map(str::to_owned);
        for name in tools.chain(others) {
            symlink(root.join(&name), here(&name)).expect("a link");
        }
        for entry in fs::read_dir(root.join(".tools")).expect("the tools").filter_map(Result::ok) {
            let name = format!(".tools/{}", entry.file_name().display());
            if name != ".tools/bin" {
                symlink(entry.path(), here(&name)).expect("a link");
            }
        }
        // Other tests run Envoys, too, and two of them cannot have the same number.
        let envoy = format!("#!/bin/sh\nexec {} --use-dynamic-base-id \"$@\"\n", root.join(".tools/bin/envoy").display());
        fs::write(here(".tools/bin/envoy"), envoy).expect("a script");
        fs::set_permissions(here(".tools/bin/envoy"), fs::Permissions::from_mode(0o755)).expect("it can be run");
        let output = || fs::File::options().create(true).append(true).open(folder.file("output")).expect("its output");
        let shell = Command::new("bash")
            .current_dir(here(""))
            .stdin(Stdio::piped())
            .stdout(output())
            .stderr(output())
            .process_group(0)
            .spawn()
            .expect("bash starts");
        let copy_of_program = here("demo/run.py");
        let mut reader = Self { document, folder, shell, ports: BTreeMap::new() };
        reader.copy(&root.join("envoy"), "envoy");
        let program = fs::read_to_string(root.join("demo/run.py")).expect("the program of `make run`");
        fs::write(copy_of_program, reader.with_free_ports(&program)).expect("a copy");
        reader
    }

    /// The free port that replaces this port of the page.
    fn free(&mut self, port: &str) -> String {
        self.ports.entry(port.to_owned()).or_insert_with(free_port).to_string()
    }

    /// Copies a folder with other ports.
    fn copy(&mut self, from: &Path, name: &str) {
        fs::create_dir_all(self.folder.file(&format!("root/{name}"))).expect("a folder");
        for entry in fs::read_dir(from).expect("the folder") {
            let entry = entry.expect("a file");
            let name = format!("{name}/{}", entry.file_name().display());
            if entry.file_type().expect("its type").is_dir() {
                self.copy(&entry.path(), &name);
            } else {
                let text = self.with_free_ports(&fs::read_to_string(entry.path()).expect("text"));
                fs::write(self.folder.file(&format!("root/{name}")), text).expect("a copy");
            }
        }
    }

    /// Replaces the ports of the pages by free ones. Nothing listens on other addresses than 127.0.0.1.
    fn with_free_ports(&mut self, text: &str) -> String {
        let text = text.replace("address: 0.0.0.0", "address: 127.0.0.1");
        let mut replaced = String::new();
        for part in text.split_inclusive(|character: char| !character.is_ascii_digit()) {
            let number = part.trim_end_matches(|character: char| !character.is_ascii_digit());
            let rest = part.strip_prefix(number).unwrap_or_default();
            replaced += &if PORTS.contains(&number) { self.free(number) } else { number.to_owned() };
            replaced += rest;
        }
        replaced
    }

    /// Types a line into the shell.
    fn enter(&mut self, line: &str) {
        use std::io::Write;
        let mut input = self.shell.stdin.as_ref().expect("its input");
        // A shell that a failed command has ended reads nothing more, and its output says why.
        let _ = writeln!(input, "{line}");
    }

    fn output(&self) -> String {
        self.folder.read("output")
    }

    /// Replaces each word that ends with … by the last word with the same beginning that was printed.
    async fn filled(&self, text: &str) -> String {
        let what = format!("something is printed for each … in\n{text}");
        eventually(&what, async || Self::filled_from(&self.output(), text)).await
    }

    fn filled_from(output: &str, text: &str) -> Option<String> {
        let is_in_word = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-' | '.');
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('…') {
            let start = before.rfind(|character| !is_in_word(character)).map_or(0, |index| index + 1);
            let prefix = &before[start..];
            let begins_word = |index: usize| !output[..index].ends_with(is_in_word);
            let found = output.rmatch_indices(prefix).filter(|(index, _)| begins_word(*index)).find_map(|(index, _)| {
                let word: String = output[index..].chars().take_while(|character| is_in_word(*character)).collect();
                (word.len() > prefix.len()).then_some(word)
            });
            filled += &before[..start];
            filled += &found.filter(|_| !prefix.is_empty())?;
            rest = after;
        }
        Some(filled + rest)
    }

    /// Runs all blocks.
    async fn follow(mut self, blocks: &[Block]) -> Result<(), String> {
        self.enter(PRELUDE);
        let mut printed = String::new();
        for (index, block) in blocks.iter().enumerate() {
            let found = match block.kind.as_str() {
                "sh" | "sh,server" if block.not_run.is_none() => self.run(index, block).await.map(|output| printed = output),
                "text,output" => shows(&printed, &self.with_free_ports(&block.text)),
                _ => Ok(()),
            };
            if let Err(problem) = found {
                let output = self.output();
                return Err(format!("{}:{}: {problem}\n{output}", self.document.path.display(), block.line));
            }
        }
        Ok(())
    }

    /// Runs a block, and returns what it printed.
    async fn run(&mut self, index: usize, block: &Block) -> Result<String, String> {
        let text = self.with_free_ports(&block.text);
        let commands = self.filled(&text).await;
        let file = self.folder.file(&format!("block-{index}.sh"));
        fs::write(&file, &commands).expect("the commands are written");
        let before = self.output().len();
        let (start, end) = (format!("source {}", file.display()), format!("<end of block {index}>"));
        if block.kind == "sh,server" {
            self.enter(&format!("({start}) & echo '{end}'"));
        } else {
            self.enter(&format!("{start}; echo '{end}'"));
        }
        eventually(&format!("the end of block {index} of {}", self.document.path.display()), async || {
            let has_ended = self.shell.try_wait().expect("its state").is_some();
            (has_ended || self.output().contains(&end)).then_some(())
        })
        .await;
        let output = self.output();
        let printed = output.get(before..).unwrap_or_default();
        match printed.split_once(&end) {
            Some((printed, _)) => Ok(printed.to_owned()),
            None => Err(format!("a command failed:\n{commands}")),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // The group of the shell has everything that the page started.
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", self.shell.id())]).status();
        let _ = self.shell.wait();
    }
}

/// Whether `printed` has lines that contain these lines, in this order. In each line, … stands for any text.
fn shows(printed: &str, expected: &str) -> Result<(), String> {
    let mut lines = printed.lines();
    for wanted in expected.lines().filter(|line| !line.trim().is_empty()) {
        if !lines.any(|line| contains(line, wanted.trim())) {
            return Err(format!("the page shows this line, but it was not printed: {wanted}"));
        }
    }
    Ok(())
}

fn contains(mut line: &str, pattern: &str) -> bool {
    pattern.split('…').all(|part| {
        let rest = line.split_once(part).map(|(_, rest)| rest);
        line = rest.unwrap_or_default();
        rest.is_some()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_and_policy_check_accept_the_files_that_the_pages_show() {
    let mut problems = Vec::new();
    for document in Document::all().expect("the documents") {
        for block in document.blocks() {
            let folder = Folder::new().expect("a folder");
            folder.write("shown.yaml", &block.text).expect("the file is written");
            let file = folder.file("shown.yaml");
            let found = match block.kind.as_str() {
                "yaml,envoy" => try_run("envoy", &["--mode", "validate", "--log-level", "error", "-c", argument(&file)]).await,
                "yaml,policy-check" => {
                    let program = repository().join("dist/apexmcp");
                    try_run(argument(&program), &["policy", "check", argument(&file)]).await
                }
                _ => continue,
            };
            problems.extend(found.err().map(|said| format!("{}:{}: {said}", document.path.display(), block.line)));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));
}

/// The widths of a screen and of a phone, in CSS pixels.
const WIDTHS: [u32; 2] = [1_280, 390];

/// Shows all pages one after the other in a frame, and reports what is wrong.
const LOOKER: &str = r#"<!doctype html><meta charset="utf-8"><iframe id="frame" style="border:0;height:900px"></iframe>
<script type="module">
const { pages, widths } = await (await fetch("/pages.json")).json();
const frame = document.getElementById("frame");
const found = [];
for (const width of widths) {
  frame.style.width = `${width}px`;
  for (const page of pages) {
    await new Promise((resolve) => { frame.onload = resolve; frame.src = `/${page}`; });
    const shown = frame.contentDocument;
    const undrawn = () => [...shown.querySelectorAll("pre.mermaid")].filter((picture) => !picture.querySelector("svg"));
    const deadline = performance.now() + 20000;
    while (undrawn().length > 0 && performance.now() < deadline) await new Promise((resolve) => setTimeout(resolve, 20));
    const say = (problem) => found.push(`${page} at ${width}: ${problem}`);
    if (undrawn().length > 0) say("a picture is not drawn");
    if (shown.querySelector("pre.mermaid .error-icon, pre.mermaid svg[aria-roledescription=error]")) say("a picture has an error");
    const root = shown.documentElement;
    if (root.scrollWidth > root.clientWidth) say(`the page is ${root.scrollWidth} wide`);
    // On a phone, a wide table scrolls by itself.
    for (const table of shown.querySelectorAll(".content table")) {
      const frame = table.closest(".table-wrapper");
      if (frame.scrollWidth > frame.clientWidth + 1 && (width > 1000 || getComputedStyle(frame).overflowX !== "auto")) {
        say(`the table with "${table.innerText.slice(0, 40)}" is ${frame.scrollWidth} wide in ${frame.clientWidth}`);
      }
    }
    if (!shown.querySelector("main h1")) say("the page has no title");
  }
}
await fetch("/found", { method: "POST", body: JSON.stringify(found) });
</script>"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_of_the_book_fit_on_a_screen_and_on_a_phone() {
    let folder = Folder::new().expect("a folder");
    let book = folder.file("book");
    apexmcp_book::build(&book).expect("the book is built");
    let pages: Vec<String> = Document::all()
        .expect("the documents")
        .into_iter()
        .filter_map(|document| Some(document.path.strip_prefix("docs").ok()?.with_extension("html").display().to_string()))
        .filter(|page| page != "SUMMARY.html")
        .collect();
    let found = Arc::<Mutex<Option<Value>>>::default();
    let (list, report) = (json!({"pages": pages, "widths": WIDTHS}), Arc::clone(&found));
    let server = Server::start(move |request| {
        let path = request.uri().path().to_owned();
        let (kind, body) = match path.as_str() {
            "/look.html" => ("text/html", LOOKER.into()),
            "/pages.json" => ("application/json", list.to_string().into()),
            "/found" => {
                *report.lock().expect("the report") = serde_json::from_slice(request.body()).ok();
                ("text/plain", String::new().into())
            }
            path => {
                let kind = match path.rsplit('.').next().unwrap_or_default() {
                    "html" => "text/html",
                    "js" => "text/javascript",
                    "css" => "text/css",
                    "svg" => "image/svg+xml",
                    _ => "application/octet-stream",
                };
                (kind, fs::read(book.join(path.trim_start_matches('/'))).unwrap_or_default().into())
            }
        };
        let answer: Response<Full<hyper::body::Bytes>> =
            Response::builder().header("content-type", kind).body(Full::new(body)).expect("an answer");
        async move { Some(answer) }
    })
    .await;
    let profile = format!("--user-data-dir={}", folder.file("profile").display());
    let page = format!("http://{}/look.html", server.authority());
    let flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", &profile, &page];
    let _chromium = Process::start("chromium", &flags, &folder).expect("Chromium starts");
    let mut requests = 0;
    let found = loop {
        let report = || found.lock().expect("the report").clone();
        let more = async || (report().is_some() || server.requests() > requests).then(|| server.requests());
        requests = eventually("Chromium shows the next page", more).await;
        if let Some(found) = report() {
            break found;
        }
    };
    assert_eq!(found, json!([]));
}
