//! Manners that a compiler does not check: every file tells its story and none grows out of hand.

use crate::source::Source;

/// A longer file is read by nobody.
pub(crate) const LONGEST_FILE: usize = 800;

/// What is untidy about one file.
pub(crate) fn violations(path: &str, text: &str, source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    // A bench target and the like may need an attribute above its story.
    let story = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!"));
    if !story.is_some_and(|line| line.starts_with("//!")) {
        found.push(format!("{path}:1: does not open with its story (//!)"));
    }
    let lines = text.lines().count();
    if lines > LONGEST_FILE {
        found.push(format!(
            "{path}: {lines} lines; split by command, by record or by property at {LONGEST_FILE}"
        ));
    }
    for pair in source.all_tokens.windows(2) {
        if matches!(pair[0].text.as_str(), "todo" | "dbg" | "unimplemented") && pair[1].text == "!"
        {
            found.push(format!(
                "{path}:{}: {}! is not for committed code",
                pair[0].line, pair[0].text
            ));
        }
    }
    for mark in ["FIXME", "XXX"] {
        if source.comments.contains(mark) {
            found.push(format!("{path}: {mark} in a comment; do it, or file an issue"));
        }
    }
    found
}

/// What is untidy about the folders: each one with source files under a `src/` has a `mod.rs` (or `lib.rs`)
/// that opens with its story. `files` are all files as path and text.
pub(crate) fn folder_violations(files: &[(String, String)]) -> Vec<String> {
    let mut folders: Vec<_> = files
        .iter()
        .filter(|(path, _)| path.starts_with("src/") || path.contains("/src/"))
        .filter_map(|(path, _)| path.rsplit_once('/').map(|(folder, _)| folder))
        .collect();
    folders.sort_unstable();
    folders.dedup();
    let has_story = |folder: &str| {
        let heads = [format!("{folder}/mod.rs"), format!("{folder}/lib.rs")];
        files.iter().any(|(path, text)| heads.contains(path) && text.starts_with("//!"))
    };
    folders
        .iter()
        .filter(|folder| !has_story(folder))
        .map(|folder| format!("{folder}/: needs a mod.rs that opens with the folder's story (//!)"))
        .collect()
}
