//! The documents as their readers use them: the commands of each page run in their order, Envoy accepts the files that the
//! pages show, and the pages of the book fit on a screen and on a phone.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use apexmcp_book::{Block, Document};
use http_body_util::Full;
use hyper::Response;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use wasm_test::process::{Folder, Process, argument, free_port, run, try_run};
use wasm_test::server::Server;
use wasm_test::{eventually, repository};

/// Number of pages whose commands run at the same time.
const PAGES_AT_ONCE: usize = 2;

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_every_page_run_and_print_what_the_page_shows() {
    let turns = Arc::new(Semaphore::new(PAGES_AT_ONCE));
    let mut pages = JoinSet::new();
    for document in Document::all().expect("the documents") {
        let blocks = document.blocks();
        if blocks.iter().any(|block| block.kind.starts_with("sh") && block.not_run.is_none()) {
            let turns = Arc::clone(&turns);
            pages.spawn(async move {
                let _turn = turns.acquire_owned().await.expect("a turn");
                Reader::new(document).follow(&blocks).await
            });
        }
    }
    let found: Vec<Result<(), String>> = pages.join_all().await;
    let problems: Vec<String> = found.iter().filter_map(|found| found.clone().err()).collect();
    assert!(!found.is_empty() && problems.is_empty(), "{}", problems.join("\n\n"));
}

/// Where a port stands in commands and files.
const BEFORE_PORTS: [&str; 6] = ["127.0.0.1:", "0.0.0.0:", "localhost:", "port_value: ", "--port ", "\"port_value\": "];

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
        fs::create_dir_all(here("dist")).expect("a folder");
        fs::create_dir_all(here("demo")).expect("a folder");
        for name in ["dist/apexmcp", "dist/apexmcp_auth.wasm", "demo/connectors", "demo/idp", ".tools"] {
            symlink(root.join(name), here(name)).expect("a link");
        }
        let output = || fs::File::options().create(true).append(true).open(folder.file("output")).expect("its output");
        let shell = Command::new("bash")
            .current_dir(here(""))
            .stdin(Stdio::piped())
            .stdout(output())
            .stderr(output())
            .process_group(0)
            .spawn()
            .expect("bash starts");
        let mut reader = Self { document, folder, shell, ports: BTreeMap::new() };
        reader.copy(&root.join("envoy"), "envoy");
        let program = fs::read_to_string(root.join("demo/run.py")).expect("the program of `make run`");
        let program = ["10000", "9901"].iter().fold(program, |program, port| program.replace(port, &reader.free(port)));
        fs::write(here("demo/run.py"), program).expect("a copy");
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

    /// Replaces the ports of 127.0.0.1 by free ones. Nothing listens on other addresses.
    fn with_free_ports(&mut self, text: &str) -> String {
        let mut replaced = text.replace("address: 0.0.0.0", "address: 127.0.0.1");
        for before in BEFORE_PORTS {
            let mut parts = replaced.split(before);
            let mut whole = parts.next().unwrap_or_default().to_owned();
            for part in parts {
                let port: String = part.chars().take_while(char::is_ascii_digit).collect();
                let rest = &part[port.len()..];
                let is_port = port.len() >= 4;
                whole += before;
                whole += &if is_port { self.free(&port) } else { port };
                whole += rest;
            }
            replaced = whole;
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
            let found = output.rmatch_indices(prefix).find_map(|(index, _)| {
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

/// Whether `printed` has these lines, in this order. In each line, … stands for any text.
fn shows(printed: &str, expected: &str) -> Result<(), String> {
    let mut lines = printed.lines();
    for wanted in expected.lines().filter(|line| !line.trim().is_empty()) {
        if !lines.any(|line| fits(line.trim(), wanted.trim())) {
            return Err(format!("the page shows this line, but it was not printed: {wanted}"));
        }
    }
    Ok(())
}

fn fits(line: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('…');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
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
    for (const table of shown.querySelectorAll(".content table")) {
      const wrapper = table.closest(".table-wrapper") ?? table;
      if (wrapper.scrollWidth > wrapper.clientWidth + 1) say(`the table after "${table.closest("main").innerText.slice(0, 0)}${table.innerText.slice(0, 40)}" is ${wrapper.scrollWidth} wide in ${wrapper.clientWidth}`);
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
    let found = eventually("Chromium has shown all pages", async || found.lock().expect("the report").clone()).await;
    assert_eq!(found, json!([]));
}
