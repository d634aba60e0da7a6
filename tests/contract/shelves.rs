//! Where tests stand, and the text of each: Rust functions, engine scripts, programs of the SDKs.

use std::path::{Path, PathBuf};

/// A test and its text.
pub(crate) struct Shown {
    pub(crate) test: String,
    pub(crate) text: String,
}

/// Every test of the project.
pub(crate) fn tests_of(root: &Path) -> Vec<Shown> {
    let mut tests = Vec::new();
    for path in files(root, &["src", "tests", "cluster", "proto"], "rs") {
        let name = name_of(root, &path);
        // This check itself shows nothing.
        if !name.starts_with("tests/contract") {
            let text = read(&path);
            tests.extend(
                functions(&text)
                    .map(|(function, text)| Shown { test: format!("{name}::{function}"), text }),
            );
        }
    }
    for path in files(root, &["src/engine/testscripts"], "") {
        let file = path.file_name().and_then(|it| it.to_str()).unwrap_or_default();
        tests.push(Shown { test: format!("script {file}"), text: read(&path) });
    }
    let run = read(&root.join("tests/sdk/suite.rs"));
    for (sdk, file, begins) in [
        ("python", "tests/sdk/python/programs.py", "def "),
        ("python", "tests/sdk/python/entities.py", "def "),
        ("javascript", "tests/sdk/javascript/programs.mjs", "programs."),
        ("javascript", "tests/sdk/javascript/entities.mjs", "entities."),
    ] {
        let listed = listed(&run, sdk);
        for (program, text) in programs(&read(&root.join(file)), begins) {
            if listed.contains(&program) {
                tests.push(Shown { test: format!("{sdk} {program}"), text });
            }
        }
    }
    tests
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn name_of(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string().replace('\\', "/")
}

fn files(root: &Path, folders: &[&str], extension: &str) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.extend((entry.file_name() != "target").then_some(path));
            } else if path.extension().and_then(|it| it.to_str()).unwrap_or_default() == extension {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The test functions of a Rust file, each with its doc comment.
fn functions(text: &str) -> impl Iterator<Item = (String, String)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let attribute = line.trim();
        if attribute != "#[test]" && !attribute.starts_with("#[tokio::test") {
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let comment = lines[..index].iter().rev();
        let comment: Vec<&str> =
            comment.take_while(|line| line.trim_start().starts_with("//")).copied().collect();
        let end = format!("{}}}", " ".repeat(indent));
        let body: Vec<&str> =
            lines[index..].iter().take_while(|line| **line != end).copied().collect();
        let name = body.iter().find_map(|line| {
            let (_, name) = line.split_once("fn ")?;
            name.split('(').next()
        });
        let name = name.unwrap_or("?").to_owned();
        found.push((name, comment.into_iter().rev().chain(body).collect::<Vec<_>>().join("\n")));
    }
    found.into_iter()
}

/// The programs that `tests/sdk/suite.rs` runs with an SDK.
fn listed(run: &str, sdk: &str) -> Vec<String> {
    let list = run.split_once(&format!("    {sdk} {{")).map_or("", |(_, list)| list);
    let list = list.split('}').next().unwrap_or_default();
    list.split_whitespace().map(str::to_owned).collect()
}

/// Top-level blocks of a file whose first line begins so, by name.
fn programs(text: &str, begins: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix(begins) {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            found.push((rest[..end].to_owned(), String::new()));
        }
        if let Some((_, block)) = found.last_mut() {
            *block += line;
            *block += "\n";
        }
    }
    found
}
