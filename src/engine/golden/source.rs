//! What the sources declare: read as text, since the messages themselves cannot be asked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The text of every file of the engine.
fn texts() -> Vec<String> {
    let mut folders = vec![PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/engine"))];
    let mut texts = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path if path.extension().is_some_and(|extension| extension == "rs") => {
                    texts.push(std::fs::read_to_string(path).unwrap());
                }
                _ => {}
            }
        }
    }
    texts
}

/// The numbers behind `tag = "` and `tags = "` in a piece of source.
fn tags(source: &str) -> BTreeSet<u32> {
    let lists = ["tag = \"", "tags = \""].into_iter().flat_map(|key| source.split(key).skip(1));
    lists
        .filter_map(|rest| rest.split_once('"'))
        .flat_map(|(list, _)| list.split(',').map(|tag| tag.trim().parse().unwrap()))
        .collect()
}

/// The body of an item: up to the brace that stands alone at the start of a line.
fn body(rest: &str) -> &str {
    rest.split_once("\n}").map_or(rest, |(body, _)| body)
}

/// Every message of the engine, with the tags of its fields.
pub(super) fn messages() -> BTreeMap<String, BTreeSet<u32>> {
    let mut messages = BTreeMap::new();
    for text in texts() {
        for rest in text.split("prost::Message)]\n").skip(1) {
            let (head, rest) = rest.split_once('{').unwrap();
            let name = head.rsplit("struct ").next().unwrap().trim();
            messages.insert(name.to_owned(), tags(body(rest)));
        }
    }
    messages
}

/// The tags of `enum Command`.
pub(super) fn command_tags() -> BTreeSet<u32> {
    let texts = texts();
    let rest = texts.iter().find_map(|text| text.split("\npub enum Command {").nth(1));
    tags(body(rest.expect("the commands are found")))
}
