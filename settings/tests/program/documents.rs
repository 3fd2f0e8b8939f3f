//! Compares the pages in `docs/reference/` with the program: its commands, codes of failures, paths and metrics.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;

use apexmcp_settings::cli::Cli;
use apexmcp_settings::failure::Reason;
use clap::{Arg, Command, CommandFactory};

use crate::support::Settings;

/// The end of the part of the page that people write.
const MARK: &str = "<!-- Generated from here on. The test that compares it with the program says how to renew it. -->\n";
const RENEW: &str = "RENEW=1 cargo test --locked --package apexmcp-settings --test program the_page_of_the";
const LINE_LENGTH: usize = 100;

fn file(name: &str) -> PathBuf {
    PathBuf::from(format!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/{}.md"), name))
}

fn page(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap()
}

/// The code span with which a line begins, after `start`.
fn first_code<'l>(line: &'l str, start: &str) -> Option<&'l str> {
    line.strip_prefix(start)?.strip_prefix('`')?.split('`').next()
}

#[test]
fn the_page_of_the_command_line_is_that_of_the_program() {
    compare("command-line", &commands());
}

/// Compares the generated part of a page.
fn compare(name: &str, expected: &str) {
    let page = page(name);
    let (written, generated) = page.split_once(MARK).unwrap_or_else(|| panic!("the page has no line {MARK:?}"));
    if std::env::var_os("RENEW").is_some() {
        std::fs::write(file(name), format!("{written}{MARK}{expected}")).unwrap();
        return;
    }
    let different = expected.lines().zip(generated.lines()).find(|(expected, found)| expected != found);
    assert!(generated == expected, "docs/reference/{name}.md is out of date: run {RENEW}\n{different:?}");
}

#[test]
fn the_page_of_the_management_api_is_that_of_the_program() {
    let settings = Settings::new();
    let description = settings.api(&["operator"]).get("/openapi.json").json;
    let mut table = "\n| operation | role | meaning |\n| --- | --- | --- |\n".to_owned();
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let (role, summary) = (operation["x-role"].as_str().unwrap(), operation["summary"].as_str().unwrap());
            writeln!(table, "| `{} {path}` | `{role}` | {summary} |", method.to_uppercase()).unwrap();
        }
    }
    compare("management-api", &table);

    let page = page("management-api");
    let rows = page.split_once("| code | status | meaning |\n| --- | --- | --- |\n").unwrap().1;
    let listed = rows.lines().map_while(|row| first_code(row, "| ")).map(|code| format!("urn:apexmcp:problem:{code}"));
    let types = description["components"]["schemas"]["Problem"]["properties"]["type"]["enum"].as_array().unwrap();
    assert_eq!(listed.collect::<Vec<_>>(), types.iter().map(|code| code.as_str().unwrap().to_owned()).collect::<Vec<_>>());
}

/// The generated part of the page: each command with its options, from the same declarations as `--help`.
fn commands() -> String {
    let mut program = Cli::command();
    program.build();
    let mut page = "\n## Options of every command\n".to_owned();
    options(&mut page, program.get_arguments().filter(|option| option.is_global_set()));
    for noun in program.get_subcommands().filter(|command| command.get_name() != "help") {
        describe(&mut page, "##", noun);
        for verb in noun.get_subcommands().filter(|command| command.get_name() != "help") {
            describe(&mut page, "###", verb);
        }
    }
    page
}

fn describe(page: &mut String, level: &str, command: &Command) {
    let path = command.get_bin_name().unwrap();
    write!(page, "\n{level} {path}\n\n").unwrap();
    let about = command.get_long_about().or(command.get_about()).unwrap().to_string();
    wrap(page, "", &marked(&about));
    if !command.has_subcommands() {
        let usage = command.clone().render_usage().to_string();
        page.push('\n');
        wrap(
            page,
            "",
            &format!("Usage: `{}`", usage.trim_start_matches("Usage: ").split_whitespace().collect::<Vec<_>>().join(" ")),
        );
        options(page, command.get_arguments().filter(|option| !option.is_global_set() && !is_of_clap(option)));
    }
    if let Some(more) = command.get_after_help() {
        write!(page, "\n```text\n{}\n```\n", more.to_string().trim_end()).unwrap();
    }
}

fn is_of_clap(option: &Arg) -> bool {
    matches!(option.get_id().as_str(), "help" | "version")
}

fn options<'a>(page: &mut String, options: impl Iterator<Item = &'a Arg>) {
    for (index, option) in options.enumerate() {
        if index == 0 {
            page.push('\n');
        }
        let mut text = format!("- `{option}`");
        if option.is_required_set() {
            text.push_str(" (required)");
        }
        let help = option.get_long_help().or(option.get_help()).unwrap().to_string();
        write!(text, ": {}", marked(&help)).unwrap();
        let takes_value = option.get_action().takes_values();
        let values = option.get_possible_values();
        if takes_value && !values.is_empty() {
            let values: Vec<String> = values.iter().map(|value| format!("`{}`", value.get_name())).collect();
            write!(text, " Values: {}.", values.join(", ")).unwrap();
        }
        if let [default] = option.get_default_values()
            && takes_value
        {
            write!(text, " Default: `{}`.", default.to_str().unwrap()).unwrap();
        }
        if let Some(variable) = option.get_env() {
            write!(text, " Environment: `{}`.", variable.to_str().unwrap()).unwrap();
        }
        wrap(page, "  ", &text);
    }
}

/// A text of the program as Markdown: `<` is not the start of a tag, and a sentence ends with a period.
fn marked(text: &str) -> String {
    let text = text.replace('<', "\\<");
    if text.ends_with(['.', '-']) { text } else { format!("{text}.") }
}

/// Writes `text` in lines. All but the first begin with `indent`. A code span is not divided, and no line begins with a
/// number, which Markdown could read as an item of a list.
fn wrap(page: &mut String, indent: &str, text: &str) {
    let mut words: Vec<String> = Vec::new();
    let mut is_in_code = false;
    for part in text.split_whitespace() {
        let is_number = part.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        match words.last_mut().filter(|_| is_in_code || is_number) {
            Some(word) => write!(word, " {part}").unwrap(),
            None => words.push(part.to_owned()),
        }
        is_in_code ^= part.matches('`').count() % 2 == 1;
    }
    let mut line = String::new();
    for word in words {
        if line.len() + 1 + word.len() > LINE_LENGTH {
            writeln!(page, "{line}").unwrap();
            line = format!("{indent}{word}");
        } else if line.is_empty() {
            line = word;
        } else {
            write!(line, " {word}").unwrap();
        }
    }
    writeln!(page, "{line}").unwrap();
}

#[test]
fn the_page_lists_the_code_of_each_failure() {
    let page = page("command-line");
    let table = page.split_once("| `code` | meaning |\n| --- | --- |\n").unwrap().1;
    let listed: Vec<&str> = table.lines().map_while(|row| first_code(row, "| ")).collect();
    let codes: Vec<&str> = Reason::ALL.iter().map(|reason| reason.code()).collect();
    assert_eq!(listed, codes);
}

#[test]
fn the_page_lists_the_metrics_and_the_paths_of_serve() {
    let settings = Settings::new();
    let server = settings.serve();
    let metrics = server.get("/metrics", &[]).body;
    let served: BTreeSet<(String, String)> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
        .collect();
    let page_of_metrics = page("metrics");
    let part = page_of_metrics.split_once("## Metrics of `apexmcp serve`").unwrap().1.split_once("\n## ").unwrap().0;
    let listed = part.lines().filter_map(|line| {
        let kind = line.split_once(": ")?.1.split(',').next()?;
        Some((first_code(line, "- ")?.to_owned(), kind.to_owned()))
    });
    assert_eq!(listed.collect::<BTreeSet<_>>(), served);

    let page_of_endpoints = page("endpoints");
    let part = page_of_endpoints.split_once("## Paths of `apexmcp serve`").unwrap().1;
    let paths: Vec<&str> = part.lines().filter_map(|line| first_code(line, "| ")?.strip_prefix("GET ")).collect();
    let [first, second, third] = paths[..] else { panic!("{paths:?}") };
    assert_eq!(server.get("/", &[]).body, format!("the paths are {first}, {second} and {third}\n"));
    for path in paths {
        assert_ne!(server.get(path, &[]).status, 404, "{path}");
    }
}
