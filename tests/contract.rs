//! Which test shows which rule of the contract.
//!
//! Tests cite the rules that they show, by number, in their own text: a doc comment, a comment, the message of
//! an assertion, the head of a script. This test gathers the citations of every test in the project, holds them
//! against the rules marked **[M]** in `proto/CONTRACT.md`, and fails when a rule has no test, when a test cites
//! a rule that does not exist, and when a rule stands on the list of what is owed though it is shown.
//!
//! `cargo test --test contract -- --nocapture` prints the count of each section; the whole list, rule by rule,
//! is written to `target/contract.txt`.

#![allow(clippy::print_stdout, reason = "the counts are the point")]

#[path = "contract/owed.rs"]
mod owed;
#[path = "contract/shelves.rs"]
mod shelves;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use owed::OWED;
use shelves::{Shown, tests_of};

/// Sections that tests must show; 9 (BackendService) is an issue of its own.
const SECTIONS: [u32; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

/// A rule: `R3.58`, or `R1.13a` with its letter.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Rule {
    section: u32,
    number: u32,
    letter: Option<char>,
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let letter = self.letter.map(String::from).unwrap_or_default();
        write!(f, "R{}.{}{letter}", self.section, self.number)
    }
}

impl Rule {
    /// Reads a rule at the beginning of a text; the rest behind it.
    fn read(text: &str) -> Option<(Rule, &str)> {
        let number = |text: &str| {
            let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            Some((text[..digits].parse::<u32>().ok()?, text[digits..].to_owned()))
        };
        let (section, rest) = number(text.strip_prefix('R')?)?;
        let (number, rest) = number(rest.strip_prefix('.')?)?;
        let letter = rest.chars().next().filter(|c| *c == 'a');
        let rest = &text[text.len() - rest.len() + usize::from(letter.is_some())..];
        Some((Rule { section, number, letter }, rest))
    }
}

/// All rules that a text cites: one by one, and ranges (`R4.55 to R4.61`).
fn cited(text: &str) -> BTreeSet<Rule> {
    let mut rules = BTreeSet::new();
    let mut rest = text;
    let mut before = ' ';
    while let Some(c) = rest.chars().next() {
        let rule = if before.is_alphanumeric() { None } else { Rule::read(rest) };
        let Some((rule, after)) = rule else {
            before = c;
            rest = &rest[c.len_utf8()..];
            continue;
        };
        rules.insert(rule);
        let range = after.strip_prefix(" to ").and_then(Rule::read);
        if let Some((last, _)) = range.filter(|(last, _)| last.section == rule.section) {
            let between = rule.number..=last.number;
            rules.extend(between.map(|number| Rule { number, letter: None, ..rule }));
        }
        (before, rest) = ('0', after);
    }
    rules
}

/// The rules of the contract, and whether each is a must.
fn contract() -> BTreeMap<Rule, bool> {
    let text = std::fs::read_to_string(root().join("proto/CONTRACT.md")).expect("the contract");
    let rules = text.lines().filter_map(|line| {
        let (rule, rest) = Rule::read(line.strip_prefix("- ")?)?;
        Some((rule, rest.trim_start().starts_with("**[M]**")))
    });
    rules.collect()
}

fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// Which tests show each rule.
fn shown(root: &Path) -> BTreeMap<Rule, Vec<String>> {
    let mut shown: BTreeMap<Rule, Vec<String>> = BTreeMap::new();
    for Shown { test, text } in tests_of(root) {
        for rule in cited(&text) {
            shown.entry(rule).or_default().push(test.clone());
        }
    }
    shown
}

#[test]
fn every_must_of_the_contract_is_shown_by_a_test() {
    let contract = contract();
    let shown = shown(&root());
    let owed: BTreeMap<Rule, &str> = OWED
        .iter()
        .flat_map(|(rules, why)| cited(rules).into_iter().map(move |rule| (rule, *why)))
        // A range also names rules that are no musts.
        .filter(|(rule, _)| contract.get(rule) == Some(&true))
        .collect();
    let mut wrong = Vec::new();
    for (rule, tests) in &shown {
        if !contract.contains_key(rule) {
            wrong.push(format!("{rule} is cited by {} and stands nowhere", tests.join(", ")));
        }
    }
    let mut list = String::new();
    for section in SECTIONS {
        let musts: Vec<Rule> = contract
            .iter()
            .filter(|(rule, must)| rule.section == section && **must)
            .map(|(rule, _)| *rule)
            .collect();
        let (mut tested, mut owing) = (0, 0);
        for rule in &musts {
            match (shown.get(rule), owed.get(rule)) {
                (Some(tests), None) => {
                    tested += 1;
                    writeln!(list, "{rule}: {}", tests.join(", ")).expect("a string");
                }
                (None, Some(why)) => {
                    owing += 1;
                    writeln!(list, "{rule}: owed: {why}").expect("a string");
                }
                (Some(tests), Some(_)) => wrong.push(format!(
                    "{rule} is shown by {}: take it off the list in tests/contract/owed.rs",
                    tests.join(", ")
                )),
                (None, None) => wrong.push(format!("{rule} is shown by no test")),
            }
        }
        println!("section {section}: {tested} of {} rules are shown, {owing} owed", musts.len());
    }
    std::fs::write(root().join("target/contract.txt"), list).expect("write target/contract.txt");
    assert!(wrong.is_empty(), "{} problems:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn citations_are_read_from_text() {
    let rules = |text: &str| cited(text).iter().map(Rule::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(rules("(R1.8 to R1.10, R3.5)"), "R1.8 R1.9 R1.10 R3.5");
    assert_eq!(rules("R1.13a, and R2.7: x"), "R1.13a R2.7");
    assert_eq!(rules("XR1.2 R2 R3.x R 4.5 WR1.9"), "");
    assert_eq!(rules("R1.2 to R2.5"), "R1.2 R2.5", "a range stays in its section");
}

#[test]
fn the_contract_and_the_tests_are_found() {
    let contract = contract();
    assert!(contract.values().filter(|must| **must).count() > 200);
    let shown = shown(&root());
    let by = |rule: &str| shown[&Rule::read(rule).expect("a rule").0].join(" ");
    // One of each kind of test.
    assert!(by("R1.9").contains("tests/wire.rs::bad_input_is_refused_by_name"), "{}", by("R1.9"));
    assert!(by("R3.53").contains("src/dispatch/tests/workers.rs::"), "{}", by("R3.53"));
    assert!(by("R4.22").contains("script an_empty_turn_waits"), "{}", by("R4.22"));
    assert!(by("R2.28").contains("python continue_as_new"), "{}", by("R2.28"));
    assert!(by("R2.28").contains("javascript continue_as_new"), "{}", by("R2.28"));
}
