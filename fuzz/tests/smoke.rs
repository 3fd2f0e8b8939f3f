//! Runs every target on its corpus and on thousands of mutants. This takes seconds, while `make fuzz` takes hours.

use std::path::{Path, PathBuf};

use apexmcp_fuzz::targets;
use fastrand::Rng;

/// Number of mutants for each target. In an unoptimized build, all targets together take a few seconds.
const MUTANTS: usize = 3000;
/// The environment variable with the seed of the mutants. Without it, each run has the same mutants.
const SEED: &str = "FUZZ_SEED";

/// Parts of JSON, HTTP and the product's own forms. With them, some mutants get beyond the first parser.
const WORDS: [&str; 40] = [
    "\"",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "null",
    "true",
    "-1",
    "1e400",
    "0.5",
    "\\u0061",
    "\\",
    "\n",
    "\r\n",
    "\r",
    " ",
    "%2e",
    "%",
    "/",
    "..",
    ";",
    "&",
    "=",
    "+",
    "data: ",
    "\u{feff}",
    "notes__",
    "clock__",
    "mcp:call",
    "name",
    "result",
    "tools",
    "params",
    "alg",
    "kid",
    "Bearer ",
    "x-apexmcp-org: other",
    "\0",
];

/// The number of seeds that each target accepts.
const TAKEN: [(&str, usize); 11] = [
    ("admission", 8),
    ("claims", 2),
    ("config", 4),
    ("credential", 2),
    ("jwk_set", 5),
    ("jws", 3),
    ("list", 6),
    ("message", 11),
    ("path", 2),
    ("policy", 6),
    ("token_form", 6),
];

struct Input<'a> {
    target: &'a str,
    seed: u64,
    bytes: &'a [u8],
}

// Prints the input if a check panics.
impl Drop for Input<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}, {SEED}={}: {}", self.target, self.seed, self.bytes.escape_ascii());
        }
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

fn mutant(seeds: &[Vec<u8>], random: &mut Rng) -> Vec<u8> {
    let mut bytes = seeds[random.usize(..seeds.len())].clone();
    for _ in 0..random.usize(1..5) {
        let start = random.usize(..=bytes.len());
        let end = random.usize(start..=bytes.len().min(start + 16));
        match random.u8(..5) {
            0 => drop(bytes.drain(start..end)),
            1 => drop(bytes.splice(start..start, WORDS[random.usize(..WORDS.len())].bytes())),
            2 => drop(bytes.splice(start..end, WORDS[random.usize(..WORDS.len())].bytes())),
            3 => {
                let other = &seeds[random.usize(..seeds.len())];
                let from = random.usize(..=other.len());
                bytes.splice(start..end, other[from..random.usize(from..=other.len())].iter().copied());
            }
            _ => {
                if let Some(byte) = bytes.get_mut(start) {
                    *byte ^= 1 << random.u8(..8);
                }
            }
        }
    }
    bytes
}

#[test]
fn every_invariant_holds_for_the_corpus_and_its_mutants() {
    let seed = std::env::var(SEED).map_or(7, |text| text.parse().unwrap());
    let mut taken = Vec::new();
    for (name, check) in targets::ALL {
        let seeds = corpus(name);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        let mut random = Rng::with_seed(seed);
        let mutants = (0..MUTANTS).map(|_| mutant(&seeds, &mut random));
        let judge = |bytes: &Vec<u8>| {
            let input = Input { target: name, seed, bytes };
            check(input.bytes)
        };
        taken.push((name, seeds.iter().filter(|bytes| judge(bytes)).count()));
        for bytes in mutants {
            judge(&bytes);
        }
    }
    assert_eq!(taken, TAKEN);
}
