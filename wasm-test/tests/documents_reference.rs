//! Compares pages in `docs/reference/` with sources that no other crate can compare: the metrics of the module, the alerts,
//! and the limits of all crates. The file is long because it lists every limit with its test.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use apexmcp_shell::Family;
use serde_json::Value;
use wasm_test::repository;

fn text(file: &str) -> String {
    std::fs::read_to_string(repository().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn page(name: &str) -> String {
    text(&format!("docs/reference/{name}.md"))
}

/// The code spans in a line.
fn codes(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

/// The sections of level 3 whose heading is a code span, below the heading `above` of level 2. Each has its lines joined.
fn sections(page: &str, above: &str) -> BTreeMap<String, String> {
    let part = page.split_once(&format!("\n## {above}\n")).unwrap_or_else(|| panic!("no {above:?}")).1;
    let part = part.split("\n## ").next().unwrap_or_default();
    let sections = part.split("\n### ").skip(1).map(|section| section.split_once('\n').expect("a text"));
    sections.map(|(heading, text)| (codes(heading)[0].to_owned(), text.trim().replace("\n  ", " "))).collect()
}

/// The string literals in a source.
fn literals(source: &str) -> impl Iterator<Item = &str> {
    source.split('"').skip(1).step_by(2)
}

#[test]
fn every_metric_is_documented_with_its_labels() {
    let page = page("metrics");
    let documented = sections(&page, "Metrics of the filter");
    let owned = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect::<Vec<_>>();
    let metrics: BTreeMap<String, Vec<String>> =
        Family::ALL.iter().map(|family| (family.name.to_owned(), owned(family.labels))).collect();
    let labels =
        |text: &str| text.lines().filter_map(|line| line.strip_prefix("- ")).map(|line| codes(line)[0].to_owned()).collect();
    let found: BTreeMap<String, Vec<String>> = documented.iter().map(|(name, text)| (name.clone(), labels(text))).collect();
    assert_eq!(found, metrics);

    let values = |metric: &str, label: &str| {
        let line = documented[metric].lines().find(|line| line.starts_with(&format!("- `{label}`"))).expect("the label");
        codes(line).into_iter().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    let is_word = |literal: &&str| !literal.is_empty() && literal.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let source = text("shell/src/metrics.rs");
    let (_, of_values) = source.split_once("pub fn values(").expect("the values");
    let words: BTreeSet<String> = literals(of_values).filter(is_word).map(str::to_owned).collect();
    let mut documented_words = BTreeSet::from(["none".to_owned()]);
    documented_words.extend(values("apexmcp_requests", "result"));
    for metric in ["apexmcp_token_cache", "apexmcp_rate_limit_service", "apexmcp_jwks_fetches"] {
        documented_words.extend(values(metric, "outcome"));
    }
    assert_eq!(documented_words, words);
    let poll = text("core/src/policy/poll.rs");
    let counted = poll.split_once("let counted = match answer {").expect("the outcomes").1.split("};").next().unwrap_or_default();
    let failed = poll.split("counted: Some(\"").skip(1).map(|rest| rest.split('"').next().unwrap_or_default());
    let outcomes: BTreeSet<String> = literals(counted).chain(failed).map(str::to_owned).collect();
    assert_eq!(values("apexmcp_policy_fetches", "outcome").into_iter().collect::<BTreeSet<_>>(), outcomes);
}

#[test]
fn every_alert_is_documented_with_its_severity() {
    let page = page("metrics");
    let documented = sections(&page, "Alerts");
    let severity = |text: &str| text.split_once('.').expect("a severity").0.to_lowercase();
    let documented: BTreeMap<String, String> = documented.iter().map(|(name, text)| (name.clone(), severity(text))).collect();
    let alerts: Value = serde_saphyr::from_str(&text("envoy/alerts.yaml")).expect("YAML");
    let word = |value: &Value| value.as_str().expect("a text").to_owned();
    let rules = alerts["groups"][0]["rules"].as_array().expect("rules").iter();
    assert_eq!(documented, rules.map(|rule| (word(&rule["alert"]), word(&rule["labels"]["severity"]))).collect());
}

/// The alert looks for each reason of a 503.
#[test]
fn the_alert_for_undecided_requests_has_every_reason_of_503() {
    let page = page("reasons");
    let documented: BTreeSet<String> = sections(&page, "503").into_keys().collect();
    let alerts = text("envoy/alerts.yaml");
    let reasons = alerts.split_once("apexmcp_requests{reason=~\"").expect("the alert").1.split('"').next().unwrap_or_default();
    assert_eq!(documented, reasons.split('|').map(str::to_owned).collect());
}

/// A row of docs/reference/numbers.md.
struct Row {
    /// The first cell.
    what: &'static str,
    /// The second cell.
    limit: &'static str,
    /// Where the code has the number: a file, and a part of it.
    code: [(&'static str, &'static str); 2],
    /// A test of the limit and of one beyond it: a file and a name. Empty if there is none.
    test: (&'static str, &'static str),
}

const fn row(
    what: &'static str,
    limit: &'static str,
    code: (&'static str, &'static str),
    test: (&'static str, &'static str),
) -> Row {
    Row { what, limit, code: [code, ("", "")], test }
}

const fn pair(
    what: &'static str,
    limit: &'static str,
    code: [(&'static str, &'static str); 2],
    test: (&'static str, &'static str),
) -> Row {
    Row { what, limit, code, test }
}

const NONE: (&str, &str) = ("", "");
const BUDGET: &str = "core/src/budget.rs";
const SHARE_OF_ORG: (&str, &str) = (BUDGET, "SHARE_OF_ORG: Amount = Amount { places: 1_024, bytes: 32 << 20 }");
const SHARE_OF_MANY: (&str, &str) = (BUDGET, "SHARE_OF_MANY: Amount = Amount { places: 2_048, bytes: 48 << 20 }");
const SHARES: (&str, &str) = ("core/src/budget/tests.rs", "an_account_cannot_exceed_its_share_of_places");
const COMMANDS: &str = "settings/tests/program/commands.rs";
const VALUES: (&str, &str) = (COMMANDS, "values_up_to_the_documented_limits_are_accepted");

/// All rows, in the order of the page.
const ROWS: &[Row] = &[
    row(
        "bearer token",
        "16 KiB",
        ("core/src/credential.rs", "MAX_TOKEN_LENGTH: usize = 16 * 1024"),
        ("core/src/credential.rs", "a_request_has_exactly_one_well_formed_credential"),
    ),
    row(
        "JSON nesting of header and claims",
        "16 levels",
        ("core/src/json.rs", "MAX_DEPTH: usize = 16"),
        ("core/src/json.rs", "malformed_ambiguous_and_deep_json_is_refused"),
    ),
    row(
        "`kid`, `typ` of a token",
        "256 bytes",
        ("core/src/jose/compact.rs", "MAX_HEADER_VALUE_LENGTH: usize = 256"),
        ("core/src/jose/compact.rs", "only_headers_with_rs256_and_without_extensions_are_accepted"),
    ),
    row(
        "a date in claims",
        "the year 9999",
        ("core/src/jose/claims.rs", "LATEST: f64 = 253_402_300_799.0"),
        ("core/src/jose/claims.rs", "times_are_checked_at_their_limits"),
    ),
    row(
        "names of absent keys that each key set remembers",
        "64 retired, 64 missing",
        ("core/src/jwks/absent.rs", "MAX_NAMES: usize = 64"),
        ("core/src/jwks/absent.rs", "names_survive_shared_data_and_are_bounded"),
    ),
    pair(
        "claim of a refused token in the log",
        "200 bytes, 4 values",
        [("core/src/unproven.rs", "MAX_LENGTH: usize = 200"), ("core/src/unproven.rs", "MAX_VALUES: usize = 4")],
        ("core/src/unproven.rs", "foreign_values_are_cut_and_quoted"),
    ),
    row(
        "keys tried for a token",
        "4",
        ("core/src/jose/jwk.rs", "MAX_CANDIDATES: usize = 4"),
        ("core/src/jose/jwk/tests.rs", "candidates_are_chosen_by_kid_and_bounded"),
    ),
    row(
        "length of these keys together",
        "16,384 bits",
        ("core/src/jose/jwk.rs", "MAX_CANDIDATE_BITS: usize = 16_384"),
        ("core/src/jose/jwk/tests.rs", "candidates_are_chosen_by_kid_and_bounded"),
    ),
    row(
        "verified tokens that a worker keeps",
        "`tokens.cache_size`",
        NONE,
        ("core/src/token_cache.rs", "the_cache_is_bounded_and_can_be_turned_off"),
    ),
    row(
        "path, with `unmatched_paths: allow`",
        "8 KiB",
        ("core/src/path.rs", "MAX_LENGTH: usize = 8 * 1024"),
        ("core/src/path.rs", "a_path_over_the_limit_counts_as_an_mcp_path"),
    ),
    row(
        "decodings of a path",
        "3",
        ("core/src/path.rs", "MAX_DECODINGS: usize = 3"),
        ("core/src/path.rs", "only_the_plain_form_is_a_resource"),
    ),
    row(
        "rest of a refused request, for which the refusal waits",
        "16 KiB",
        ("core/src/exchange/refusal.rs", "MAX_REST_LENGTH: usize = 16 * 1024"),
        ("core/src/exchange/tests/waiting.rs", "a_refusal_waits_for_the_rest_of_a_short_request"),
    ),
    row(
        "time for which it waits",
        "250 ms",
        ("core/src/exchange/refusal.rs", "REST_TIMEOUT: Duration = Duration::from_millis(250)"),
        ("core/src/exchange/tests/waiting.rs", "a_refusal_waits_for_the_rest_of_a_short_request"),
    ),
    row(
        "HTTP/2 stream window",
        "Envoy's: 1 MiB in envoy.yaml",
        ("envoy/envoy.yaml", "initial_stream_window_size: 1048576"),
        ("wasm-test/tests/variants.rs", "the_longest_message_is_read_over_http_2"),
    ),
    row(
        "headers of a request",
        "Envoy's: 60 KiB, and 100 in envoy.yaml",
        ("envoy/envoy.yaml", "max_headers_count: 100"),
        NONE, // `make hostile` sends 56 KiB of headers.
    ),
    row(
        "origin of a web page",
        "512 bytes",
        ("core/src/origin.rs", "MAX_LENGTH: usize = 512"),
        ("core/src/origin.rs", "origins_are_compared_as_rfc_6454_serializes_them"),
    ),
    row(
        "message that the filter has to read",
        "1 MiB",
        ("core/src/mcp/message.rs", "MAX_LENGTH: usize = 1 << 20"),
        ("core/src/exchange/tests/messages.rs", "a_message_decides"),
    ),
    row(
        "nesting of a message",
        "64 levels",
        ("core/src/mcp/message/reader.rs", "MAX_DEPTH: usize = 64"),
        ("core/src/mcp/message/tests.rs", "a_body_that_can_be_read_in_two_ways_is_refused"),
    ),
    row(
        "filtered list",
        "4 MiB, in an event stream for each event",
        ("core/src/mcp/reply.rs", "MAX_LENGTH: usize = 4 << 20"),
        ("core/src/mcp/reply.rs", "an_unreadable_list_becomes_an_error"),
    ),
    row(
        "entries of a filtered list",
        "65,536",
        ("core/src/mcp/list.rs", "MAX_ENTRIES: usize = 65_536"),
        ("core/src/mcp/list.rs", "a_list_has_at_most_65536_entries"),
    ),
    row(
        "issued token",
        "16 KiB",
        ("core/src/credential.rs", "MAX_TOKEN_LENGTH: usize = 16 * 1024"),
        ("core/src/oauth/token_endpoint/tests.rs", "no_token_is_longer_than_the_filter_accepts"),
    ),
    row(
        "length of the form",
        "16 KiB",
        ("core/src/oauth/token_endpoint.rs", "MAX_BODY_LENGTH: usize = 16 * 1024"),
        ("core/src/oauth/token_endpoint/tests.rs", "bad_requests_are_refused"),
    ),
    row(
        "time in which the form arrives",
        "10 s",
        ("core/src/exchange/form.rs", "FORM_TIMEOUT: Duration = Duration::from_secs(10)"),
        ("core/src/exchange/tests/waiting.rs", "a_body_that_does_not_come_is_not_waited_for_forever"),
    ),
    row(
        "lifetime of an assertion",
        "10 minutes",
        ("core/src/oauth/token_endpoint.rs", "MAX_ASSERTION_LIFETIME: Duration = Duration::from_secs(600)"),
        ("core/src/oauth/token_endpoint/tests.rs", "an_assertion_is_accepted_once_and_within_its_limits"),
    ),
    row(
        "expired `jti`s kept for a client",
        "256",
        ("core/src/oauth/replay.rs", "MAX_OVER: usize = 256"),
        ("core/src/oauth/replay.rs", "a_used_id_stays_used_when_the_clock_is_set_back"),
    ),
    row(
        "used `jti`s of a client",
        "4,096",
        ("core/src/oauth/replay.rs", "MAX_IN_LIST: usize = 4096"),
        ("core/src/oauth/replay.rs", "a_full_list_refuses_more_uses"),
    ),
    pair(
        "tokens issued to a client",
        "10 a second, 300 at once",
        [
            ("core/src/limits/subject.rs", "requests: NonZeroU32::new(10).unwrap(), per: Unit::Second"),
            ("core/src/limits/subject.rs", "burst: NonZeroU32::new(300).unwrap()"),
        ],
        ("wasm-test/tests/limits.rs", "the_number_of_tokens_of_a_client_is_limited"),
    ),
    row(
        "wrong secrets of a client id without a wait",
        "10",
        ("core/src/oauth/attempts.rs", "FREE: u32 = 10"),
        ("core/src/oauth/attempts.rs", "ten_failures_are_free_and_then_one_in_six_seconds"),
    ),
    row(
        "after that, time for each wrong secret",
        "6 s",
        ("core/src/oauth/attempts.rs", "REFILL: Duration = Duration::from_secs(6)"),
        ("core/src/oauth/attempts.rs", "ten_failures_are_free_and_then_one_in_six_seconds"),
    ),
    row(
        "client ids with failed attempts",
        "4,096 in a worker",
        ("core/src/oauth/attempts.rs", "MAX_IDS: NonZeroUsize = NonZeroUsize::new(4096).unwrap()"),
        ("core/src/oauth/attempts.rs", "at_most_4096_ids_are_remembered"),
    ),
    row(
        "everything that a worker holds",
        "8,192 places, 160 MiB",
        (BUDGET, "TOTAL: Amount = Amount { places: 8_192, bytes: 160 << 20 }"),
        ("core/src/budget/tests.rs", "a_full_budget_takes_from_the_largest"),
    ),
    row(
        "all lists that it filters",
        "4,096 places, 80 MiB",
        (BUDGET, "TOTAL_OF_LISTS: Amount = Amount { places: 4_096, bytes: 80 << 20 }"),
        ("core/src/budget/tests.rs", "lists_leave_room_for_requests"),
    ),
    row("forms at the token endpoint that are incomplete", "2,048 places, 48 MiB", SHARE_OF_MANY, SHARES),
    row("refused requests that are incomplete", "2,048 places, 48 MiB", SHARE_OF_MANY, SHARES),
    row("requests before the first policy", "2,048 places, 48 MiB", SHARE_OF_MANY, SHARES),
    row(
        "requests of one organization that wait for keys",
        "1,024 places, 32 MiB",
        SHARE_OF_ORG,
        ("core/src/exchange/tests/waiting.rs", "one_org_holds_up_no_other"),
    ),
    row(
        "requests that wait for one key set",
        "2,048 places, 48 MiB",
        SHARE_OF_MANY,
        ("core/src/budget/tests.rs", "a_key_set_has_a_share_that_one_org_cannot_take"),
    ),
    row("incomplete messages of one organization", "1,024 places, 32 MiB", SHARE_OF_ORG, SHARES),
    row(
        "lists of one organization that are filtered",
        "1,024 places, 32 MiB",
        SHARE_OF_ORG,
        ("core/src/mcp/reply.rs", "the_lists_of_one_org_leave_room_for_those_of_another"),
    ),
    row(
        "questions of one organization to the rate limit service",
        "128 places, 32 MiB",
        (BUDGET, "SHARE_OF_QUESTIONS: Amount = Amount { places: 128, bytes: 32 << 20 }"),
        ("core/src/exchange/tests/limits.rs", "questions_to_the_rate_limit_service_are_bounded_for_each_org"),
    ),
    row(
        "fetches in flight, in all threads",
        "64",
        ("core/src/jwks/fetch_slots.rs", "MAX_FETCHES: usize = 64"),
        ("core/src/jwks/fetch_slots.rs", "all_orgs_together_have_64_slots"),
    ),
    row(
        "fetches in flight of one organization",
        "2",
        ("core/src/jwks/fetch_slots.rs", "MAX_FETCHES_PER_ORG: usize = 2"),
        ("core/src/jwks/fetch_slots.rs", "an_org_has_two_slots_until_it_releases_one"),
    ),
    row(
        "fetches of an organization in a second",
        "20", // Two slots, each with ten pauses in a second.
        ("core/src/jwks/fetch_slots.rs", "PAUSE: Duration = Duration::from_millis(100)"),
        (
            "wasm-test/tests/neighbor_key_sets.rs",
            "providers_with_new_keys_in_each_answer_are_fetched_at_most_twenty_times_a_second",
        ),
    ),
    row(
        "organizations that a key set remembers",
        "32",
        ("core/src/jwks/set.rs", "MAX_ORGS: usize = MAX_FETCHES / MAX_FETCHES_PER_ORG"),
        ("core/src/jwks/tests.rs", "a_set_remembers_the_orgs_that_used_it_last"),
    ),
    row(
        "JWKS document",
        "256 KiB",
        ("core/src/jose/jwk.rs", "MAX_DOCUMENT_LENGTH: usize = 256 * 1024"),
        ("core/src/jose/jwk/tests.rs", "malformed_and_oversized_documents_are_refused"),
    ),
    row(
        "keys of a JWKS document",
        "100",
        ("core/src/jose/jwk.rs", "MAX_KEYS: usize = 100"),
        ("core/src/jose/jwk/tests.rs", "malformed_and_oversized_documents_are_refused"),
    ),
    row(
        "unusable keys of a set for which the log gives reasons",
        "5",
        ("core/src/jose/jwk.rs", "MAX_PROBLEMS: usize = 5"),
        ("core/src/jose/jwk/tests.rs", "a_set_without_usable_keys_says_why_for_each_key"),
    ),
    row(
        "RSA key",
        "2048 to 8192 bits",
        ("core/src/jose/jwk.rs", "= 2048..=8192"),
        ("core/src/jose/jwk/tests.rs", "key_sizes_are_limited"),
    ),
    row(
        "exponent of an RSA key",
        "17 bits",
        ("core/src/jose/jwk.rs", "MAX_EXPONENT_BITS: usize = 17"),
        ("core/src/jose/jwk/tests.rs", "key_sizes_are_limited"),
    ),
    row(
        "pauses after failed fetches",
        "1 s, doubled, up to 30 s",
        ("core/src/jwks/record.rs", "first: Duration::from_secs(1), longest: Duration::from_secs(30)"),
        ("core/src/jwks/tests.rs", "failures_back_off_and_the_stale_set_serves_until_max_stale"),
    ),
    row(
        "lifetime of a claim to fetch",
        "`jwks.timeout` plus 1 s",
        ("core/src/jwks/timing.rs", "CLAIM_MARGIN: Duration = Duration::from_secs(1)"),
        ("core/src/jwks/tests.rs", "a_claim_whose_thread_died_expires"),
    ),
    row(
        "policy document",
        "32 MiB",
        ("core/src/policy/publication.rs", "MAX_DOCUMENT_LENGTH: usize = 32 << 20"),
        ("wasm-test/tests/remote_policy.rs", "the_longest_document_is_accepted_and_a_longer_one_is_not"),
    ),
    row(
        "pauses after failed requests for the policy",
        "1 s, doubled, up to 10 s",
        ("core/src/policy/poll.rs", "first: Duration::from_secs(1), longest: Duration::from_secs(10)"),
        ("core/src/policy/poll/tests.rs", "failures_back_off"),
    ),
    pair(
        "lifetime of a claim to ask for the policy",
        "3 s; 60 s while the thread processes the document",
        [
            ("core/src/policy/poll.rs", "LEASE: Duration = Duration::from_secs(3)"),
            ("core/src/policy/poll.rs", "WORK: Duration = Duration::from_secs(60)"),
        ],
        ("core/src/policy/poll/tests.rs", "a_claim_holds_while_it_is_renewed_and_no_longer"),
    ),
    row(
        "problems of a document that are logged",
        "20",
        ("core/src/policy/poll.rs", "MAX_PROBLEMS: usize = 20"),
        ("wasm-test/tests/remote_policy.rs", "the_longest_document_is_accepted_and_a_longer_one_is_not"),
    ),
    row(
        "keys in a part of a remote policy",
        "4",
        ("core/src/policy/parts.rs", "KEYS_IN_PART: u32 = 4"),
        ("core/src/policy/remote/tests.rs", "parts_are_bounded_in_length_and_in_number"),
    ),
    row(
        "parts of a remote policy that a worker keeps",
        "16,384",
        ("core/src/policy/remote.rs", "MAX_PARTS: NonZeroUsize = NonZeroUsize::new(16_384).unwrap()"),
        ("core/src/policy/remote/tests.rs", "parts_are_bounded_in_length_and_in_number"),
    ),
    row(
        "identity providers of an organization",
        "32",
        ("core/src/policy/mod.rs", "MAX_IDENTITY_PROVIDERS: usize = 32"),
        ("core/src/policy/remote/tests.rs", "the_providers_of_an_org_beyond_the_limit_are_left_out"),
    ),
    row(
        "`client_scopes` of a provider",
        "16",
        ("core/src/policy/mod.rs", "MAX_CLIENT_SCOPES: usize = 16"),
        ("core/src/config/tests.rs", "client_scopes_are_scopes_of_rfc_6749"),
    ),
    row(
        "length of one of them",
        "256 bytes",
        ("core/src/policy/mod.rs", "MAX_CLIENT_SCOPE_LENGTH: usize = 256"),
        ("core/src/config/tests.rs", "client_scopes_are_scopes_of_rfc_6749"),
    ),
    row(
        "names of organizations and connectors, ids of keys and clients",
        "128 characters",
        ("core/src/names.rs", "MAX_LENGTH: usize = 128"),
        ("core/src/names.rs", "identifiers_contain_no_separators"),
    ),
    row(
        "`kid` of a signing key",
        "256 bytes",
        ("core/src/jose/compact.rs", "MAX_HEADER_VALUE_LENGTH: usize = 256"),
        ("core/src/config/tests.rs", "names_neither_break_a_line_nor_deceive_its_reader"),
    ),
    row(
        "`gateway.connector_separator`",
        "16 characters",
        ("core/src/config/mod.rs", "MAX_SEPARATOR_LENGTH: usize = 16"),
        ("core/src/config/tests.rs", "ranges_end_where_they_are_said_to"),
    ),
    row(
        "rates, bursts and quotas",
        "4,294,967,295",
        ("core/src/limits/document.rs", "must be from 1 to 4294967295"),
        ("core/src/config/tests.rs", "limits_are_checked"),
    ),
    row(
        "answer of the rate limit service",
        "64 KiB",
        ("core/src/limits/service.rs", "MAX_ANSWER_LENGTH: usize = 64 * 1024"),
        ("wasm-test/tests/rate_limit_faults.rs", "a_large_answer_that_comes_in_time_is_an_error"),
    ),
    row(
        "cluster of the rate limit service",
        "125 bytes",
        ("core/src/limits/service.rs", "MAX_CLUSTER_LENGTH: usize = 125"),
        ("core/src/config/tests.rs", "limits_are_checked"),
    ),
    // A thread would have to be stopped for ten seconds.
    row(
        "delay of a thread that writes a token bucket",
        "10 s",
        ("core/src/limits/local.rs", "LATENESS: Duration = Duration::from_secs(10)"),
        NONE,
    ),
    // `limits/local` tests what happens after the last attempt.
    row(
        "attempts to write shared data while other threads write too",
        "64",
        ("src/hostcalls.rs", "CAS_ATTEMPTS: usize = 64"),
        NONE,
    ),
    row(
        "credentials that a thread counts one by one between two reports",
        "20,000",
        ("core/src/usage/counts.rs", "MAX_NAMES: usize = 20_000"),
        ("core/src/usage/counts.rs", "the_memory_is_bounded_and_no_request_is_lost"),
    ),
    row(
        "hours that a thread counts separately while no report arrives",
        "24",
        ("core/src/usage/counts.rs", "MAX_HOURS: usize = 24"),
        ("core/src/usage/counts.rs", "the_memory_is_bounded_while_no_report_arrives"),
    ),
    row("display names", "200 characters", ("settings/src/records/checks.rs", "MAX_NAME: usize = 200"), VALUES),
    row("audiences of a provider", "16", ("settings/src/records/provider.rs", "MAX_AUDIENCES: usize = 16"), VALUES),
    row("length of an audience", "512 bytes", ("settings/src/records/provider.rs", "MAX_AUDIENCE_LENGTH: usize = 512"), VALUES),
    row("connectors or scopes of a record", "256", ("settings/src/records/checks.rs", "MAX_LIST: usize = 256"), VALUES),
    row(
        "part of the policy after an addition",
        "1 MiB",
        ("settings/src/database/mod.rs", "MAX_PART_LENGTH: usize = 1 << 20"),
        (COMMANDS, "an_addition_that_makes_a_part_too_long_is_refused"),
    ),
    row(
        "`kid` of a client's key",
        "256 bytes",
        ("settings/src/records/client.rs", "MAX_KID_LENGTH: usize = 256"),
        (COMMANDS, "a_client_authenticates_with_its_own_keys"),
    ),
    row("revoked `jti`", "256 bytes", ("settings/src/records/revocation.rs", "MAX_JTI_LENGTH: usize = 256"), VALUES),
    row("revoked principal", "4,096 bytes", ("settings/src/records/revocation.rs", "MAX_PRINCIPAL_LENGTH: usize = 4096"), NONE),
    row("URL of a provider", "2,048 characters", ("settings/src/issuer.rs", "MAX_URL_LENGTH: usize = 2048"), VALUES),
    row("documents of a provider", "256 KiB", ("settings/src/issuer.rs", "MAX_LENGTH: u64 = 256 << 10"), VALUES),
    row(
        "file that `policy check` reads",
        "32 MiB",
        ("core/src/policy/publication.rs", "MAX_DOCUMENT_LENGTH: usize = 32 << 20"),
        (COMMANDS, "policy_check_finds_errors_and_unwise_settings"),
    ),
    row(
        "file that `policy import` or `apply` reads",
        "1 GiB",
        ("settings/src/commands/input.rs", "MAX_IMPORT_LENGTH: usize = 1 << 30"),
        NONE,
    ),
    row(
        "warnings that `policy import` or `apply` prints",
        "20",
        ("settings/src/commands/policy.rs", "MAX_WARNINGS: usize = 20"),
        NONE,
    ),
    row(
        "token of the gateways",
        "16 characters or more",
        ("settings/src/commands/serve.rs", "MIN_TOKEN_LENGTH: usize = 16"),
        ("settings/tests/program/serve.rs", "serve_does_not_start_without_a_good_token"),
    ),
    row(
        "token of usage",
        "16 characters or more",
        ("settings/src/commands/serve.rs", "MIN_TOKEN_LENGTH: usize = 16"),
        ("settings/tests/program/usage.rs", "serve_does_not_start_with_a_bad_token_of_usage_and_collects_nothing_without_one"),
    ),
    row(
        "report of usage",
        "1 MiB",
        ("settings/src/serve/usage.rs", "MAX_REPORT_LENGTH: usize = 1 << 20"),
        ("settings/tests/program/usage.rs", "a_report_needs_the_token_of_usage_and_a_form_that_can_be_read"),
    ),
    row(
        "credentials or organizations in a report of usage",
        "2,000",
        ("settings/src/usage/batch.rs", "MAX_CREDENTIALS: usize = 2_000"),
        ("settings/src/usage/batch.rs", "a_wrong_report_is_refused_with_the_place_of_the_error"),
    ),
    row(
        "requests in one number of a report",
        "1,000,000,000,000",
        ("settings/src/usage/batch.rs", "MAX_COUNT: u64 = 1_000_000_000_000"),
        ("settings/src/usage/batch.rs", "a_wrong_report_is_refused_with_the_place_of_the_error"),
    ),
    row("reports of usage at the same time", "8", ("settings/src/serve/usage.rs", "MAX_REPORTS: usize = 8"), NONE),
    row(
        "time in which a report arrives",
        "10 s",
        ("settings/src/serve/usage.rs", "REPORT_TIMEOUT: Duration = Duration::from_secs(10)"),
        NONE,
    ),
    row(
        "sums of usage by hour, and numbers of reports",
        "14 days",
        ("settings/src/usage/expiry.rs", "KEPT_HOURS_DAYS: i64 = 14"),
        ("settings/tests/program/usage.rs", "old_usage_is_deleted"),
    ),
    row(
        "sums of usage by day",
        "400 days",
        ("settings/src/usage/expiry.rs", "KEPT_DAYS: i64 = 400"),
        ("settings/tests/program/usage.rs", "old_usage_is_deleted"),
    ),
    row(
        "rows of old usage that one transaction deletes",
        "2,000",
        ("settings/src/usage/expiry.rs", "MAX_ROWS: u32 = 2_000"),
        NONE,
    ),
    row(
        "wait for a change",
        "5 minutes",
        ("settings/src/serve/routes.rs", "MAX_WAIT: Duration = Duration::from_secs(300)"),
        ("settings/src/serve/routes.rs", "a_wait_is_at_most_300_seconds"),
    ),
    row(
        "head of a request to `serve`",
        "16 KiB",
        ("settings/src/serve/mod.rs", "MAX_HEAD_LENGTH: usize = 16 << 10"),
        ("settings/src/serve/mod.rs", "a_head_over_16_kib_is_refused"),
    ),
    row(
        "time in which the head arrives",
        "10 s",
        ("settings/src/serve/mod.rs", "HEAD_TIMEOUT: Duration = Duration::from_secs(10)"),
        ("settings/src/serve/mod.rs", "a_client_that_never_reads_or_never_completes_its_head_is_disconnected"),
    ),
    row(
        "time in which a client reads nothing of an answer of `serve`",
        "30 s",
        ("settings/src/serve/mod.rs", "WRITE_TIMEOUT: Duration = Duration::from_secs(30)"),
        ("settings/src/serve/mod.rs", "a_slow_reader_gets_the_whole_document"),
    ),
    row(
        "connections to `serve`",
        "4,096",
        ("settings/src/serve/mod.rs", "MAX_CONNECTIONS: usize = 4096"),
        ("settings/tests/program/crowd.rs", "connections_beyond_the_limit_wait_until_one_ends"),
    ),
    row("connections to the management API", "512", ("settings/src/serve/mod.rs", "MAX_API_CONNECTIONS: usize = 512"), NONE),
    row(
        "requests of the management API that use the database",
        "8",
        ("settings/src/database/pool.rs", "MAX_CONNECTIONS: usize = 8"),
        NONE,
    ),
    row(
        "body of a request to the management API",
        "256 KiB",
        ("settings/src/api/call.rs", "MAX_BODY_LENGTH: usize = 256 << 10"),
        ("settings/tests/program/api.rs", "a_request_that_cannot_be_read_is_refused_with_a_problem"),
    ),
    row(
        "time in which the body arrives",
        "30 s",
        ("settings/src/api/call.rs", "BODY_TIMEOUT: Duration = Duration::from_secs(30)"),
        NONE,
    ),
    row(
        "`Idempotency-Key`",
        "255 characters",
        ("settings/src/api/call.rs", "MAX_IDEMPOTENCY_KEY_LENGTH: usize = 255"),
        ("settings/tests/program/api.rs", "a_repeated_request_with_an_idempotency_key_changes_nothing_and_shows_no_secret"),
    ),
    row(
        "records in one answer of the management API, and in an export of the audit log",
        "1,000",
        ("settings/src/api/call.rs", "MAX_PAGE: u32 = 1_000"),
        ("settings/tests/program/api.rs", "lists_have_pages"),
    ),
    row(
        "requests that fetch from identity providers, or create signing keys",
        "8, and 2 of one organization",
        ("settings/src/database/pool.rs", "MAX_OTHERS: usize = 8"),
        NONE,
    ),
    row(
        "searches in lists of keys and in the audit log at the same time",
        "2",
        ("settings/src/database/pool.rs", "MAX_SEARCHES: usize = 2"),
        NONE,
    ),
    row(
        "text of a search for a key, or for the author of a change",
        "64 characters",
        ("settings/src/records/api_key.rs", "MAX_SEARCH: usize = 64"),
        NONE,
    ),
    row("form with a sign-in link", "1 KiB", ("settings/src/console/sign_in.rs", "MAX_LINK_FORM_LENGTH: usize = 1024"), NONE),
    row("form of the console", "256 KiB", ("settings/src/console/sign_in.rs", "MAX_FORM_LENGTH: usize = 256 << 10"), NONE),
    row("address of a member", "254 characters", ("settings/src/records/member.rs", "MAX_EMAIL_LENGTH: usize = 254"), NONE),
    row(
        "use of a sign-in link",
        "10 minutes",
        ("settings/src/records/session.rs", "LINK_LIFE: Duration = Duration::from_secs(10 * 60)"),
        NONE,
    ),
    row(
        "session of the console",
        "12 hours",
        ("settings/src/records/session.rs", "LIFE: Duration = Duration::from_secs(12 * 60 * 60)"),
        NONE,
    ),
    row("sessions of a person in an organization", "20", ("settings/src/records/session.rs", "MAX_SESSIONS: usize = 20"), NONE),
    row("sessions in the list of the console", "1,000", ("settings/src/records/session.rs", "MAX_LISTED: usize = 1_000"), NONE),
    row(
        "requests of one admin token or session",
        "200 a second, 400 at once",
        ("settings/src/throttle.rs", "CREDENTIAL_BURST: u32 = 400"),
        ("settings/src/throttle.rs", "a_credential_has_400_requests_and_200_more_each_second"),
    ),
    row(
        "invalid credentials from one address",
        "1 a second, 30 at once",
        ("settings/src/throttle.rs", "FAILURE_BURST: u32 = 30"),
        ("settings/src/throttle.rs", "an_address_has_30_failed_attempts_and_one_more_each_second"),
    ),
    row(
        "tokens, sessions and addresses that are counted",
        "10,000 each",
        ("settings/src/throttle.rs", "MAX_REMEMBERED: usize = 10_000"),
        ("settings/src/throttle.rs", "many_addresses_share_one_limit_when_no_more_can_be_remembered"),
    ),
    row(
        "gateways in the list",
        "10,000",
        ("settings/src/serve/gateways.rs", "MAX_GATEWAYS: usize = 10_000"),
        ("settings/src/serve/gateways.rs", "the_number_of_gateways_is_bounded"),
    ),
    row(
        "gateway in the list after its last request",
        "24 hours",
        ("settings/src/serve/gateways.rs", "REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60)"),
        ("settings/src/serve/gateways.rs", "a_gateway_is_behind_from_its_first_request_without_the_present_state"),
    ),
    row(
        "documents of the provider for sign-in",
        "60 s; 10 s after a failure",
        ("settings/src/oidc.rs", "MAX_AGE: Duration = Duration::from_secs(60)"),
        NONE,
    ),
    row("requests to this provider at the same time", "4", ("settings/src/oidc.rs", "MAX_REQUESTS: usize = 4"), NONE),
    row("answer of this provider", "256 KiB", ("settings/src/oidc.rs", "MAX_ANSWER_LENGTH: u64 = 256 << 10"), NONE),
    // A test of the last three would take as long.
    row(
        "answer of an identity provider",
        "10 s",
        ("settings/src/issuer.rs", "TIMEOUT: Duration = Duration::from_secs(10)"),
        NONE,
    ),
    row(
        "wait until another process leaves the database",
        "10 s",
        ("settings/src/database/sqlite.rs", "BUSY_TIMEOUT: Duration = Duration::from_secs(10)"),
        NONE,
    ),
    row("stop of `serve`", "10 s", ("settings/src/serve/mod.rs", "STOP_TIMEOUT: Duration = Duration::from_secs(10)"), NONE),
];

/// Constants that begin with `MAX_` and limit nothing that an operator or a client notices, or that stand in the text of a page.
const UNLISTED: &[(&str, &str)] = &[
    ("core/src/budget.rs", "MAX_GIVEN_UP"),
    ("core/src/exchange/form.rs", "MAX_FORM_READ"),
    ("core/src/exchange/held.rs", "MAX_GIVEN_UP_ANSWERED"),
    ("core/src/exchange/held.rs", "MAX_WOKEN"),
    ("core/src/exchange/message.rs", "MAX_MESSAGE_READ"),
    ("core/src/gateway.rs", "MAX_QUOTED"),
    ("core/src/jose/jwk.rs", "MAX_QUOTE"),
    ("core/src/jose/jwk.rs", "MAX_THUMBPRINT_LENGTH"),
    ("core/src/jwks/set.rs", "MAX_ASKED"),
    ("core/src/jwks/timing.rs", "MAX_TIMEOUT"),
    ("core/src/limits/service.rs", "MAX_KEY_LENGTH"),
    ("core/src/oauth/discovery.rs", "MAX_AGE"),
    ("core/src/origin.rs", "MAX_AGE"),
    ("core/src/mcp/call.rs", "MAX_LENGTH"),
    ("core/src/usage/reporter.rs", "MAX_ANSWER_LENGTH"),
    ("core/src/usage/reporter.rs", "MAX_NAMES"),
    ("core/src/usage/reporter.rs", "MAX_NAME_BYTES"),
    ("settings/src/database/pool.rs", "MAX_WAIT"),
    ("settings/src/explain.rs", "MAX_FETCHES"),
    ("settings/src/issuer.rs", "MAX_SHOWN_KEYS"),
    ("settings/src/oidc.rs", "MAX_AGE_OF_FAILURE"),
    ("settings/src/console/sign_in.rs", "MAX_LOGGED"),
    ("settings/src/database/pool.rs", "MAX_OTHERS_OF_ORG"),
    ("settings/src/oidc.rs", "MAX_NAME_LENGTH"),
    ("settings/src/oidc.rs", "MAX_VALUE_LENGTH"),
    ("settings/src/serve/gateways.rs", "MAX_NAME_LENGTH"),
    ("settings/src/records/audit.rs", "MAX_SEARCH"),
    ("settings/src/sql.rs", "MAX_PART_LENGTH"),
];

/// The cells of a row of a table.
fn cells(line: &str) -> Vec<&str> {
    line.trim_matches('|').split(" | ").map(str::trim).collect()
}

#[test]
fn every_limit_is_documented_with_its_number() {
    let page = page("numbers");
    let rows = page.lines().filter(|line| line.starts_with('|')).map(cells);
    let rows = rows.filter(|cells| !["what", "account", "---"].contains(&cells[0]));
    let documented: Vec<(&str, &str)> = rows.map(|cells| (cells[0], cells[1])).collect();
    assert_eq!(documented, ROWS.iter().map(|row| (row.what, row.limit)).collect::<Vec<_>>());
    for Row { what, code, test, .. } in ROWS {
        for (file, part) in code.iter().filter(|(file, _)| !file.is_empty()) {
            assert!(
                text(file).contains(part),
                "{what}: {file} does not contain {part:?}. Is the number on the page still right?"
            );
        }
        let (file, name) = test;
        assert!(file.is_empty() || text(file).contains(&format!("fn {name}(")), "{what}: {file} has no test {name}");
    }
}

#[test]
fn no_limit_of_the_code_is_missing() {
    let mut missing = Vec::new();
    for folder in ["core/src", "src", "settings/src"] {
        for file in sources(&repository().join(folder)) {
            let name = file.strip_prefix(repository()).expect("a file of the repository").to_str().expect("a name").to_owned();
            for line in text(&name).lines().filter(|line| !line.trim_start().starts_with("//")) {
                let Some((_, rest)) = line.split_once("const MAX_") else { continue };
                let constant = format!("MAX_{}", rest.split(':').next().unwrap_or_default());
                let is_listed = ROWS
                    .iter()
                    .flat_map(|row| row.code)
                    .any(|(file, part)| file == name && (part.starts_with(&format!("{constant}:")) || line.contains(part)));
                if !is_listed && !UNLISTED.contains(&(name.as_str(), constant.as_str())) {
                    missing.push(format!("{name}: {constant}"));
                }
            }
        }
    }
    assert!(missing.is_empty(), "add these to docs/reference/numbers.md and to ROWS, or to UNLISTED: {missing:#?}");
}

/// All Rust files below `folder`, except for tests.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if path.is_dir() && name != "tests" {
            found.extend(sources(&path));
        } else if name.ends_with(".rs") && name != "tests.rs" {
            found.push(path);
        }
    }
    found
}
