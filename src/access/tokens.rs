//! Static tokens: long random texts, stored as their SHA-256 only.
//!
//! A fast hash is right here and would be wrong for passwords: a token that [`new_token`] made has 256 random
//! bits, so nobody can try them all.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::UNIX_EPOCH;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use serde::Deserialize;

use super::roles::Grant;

/// SHA-256 of a token.
pub(super) type Hash = [u8; 32];

/// A token that may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) name: String,
    pub(super) grants: Vec<Grant>,
    /// Nanoseconds since the epoch from which on it counts no more.
    pub(super) expires: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    token: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    sha256: String,
    #[serde(default)]
    grants: Vec<String>,
    expires: Option<toml::value::Datetime>,
}

pub(super) fn hash(token: &[u8]) -> Hash {
    let mut hash = Hash::default();
    hash.copy_from_slice(digest(&SHA256, token).as_ref());
    hash
}

fn from_hex(text: &str) -> Option<Hash> {
    let digits = text.as_bytes();
    let mut hash = Hash::default();
    if digits.len() != 2 * hash.len() {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Draws a token; returns it and the SHA-256 that belongs into the file of tokens.
///
/// # Errors
/// When the system gives no random numbers.
pub fn new_token() -> Result<(String, String), ring::error::Unspecified> {
    let mut random = [0; 32];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut random)?;
    let token = format!("durahub_{}", URL_SAFE_NO_PAD.encode(random));
    let hash = to_hex(&hash(token.as_bytes()));
    Ok((token, hash))
}

/// Reads a file of tokens. All that is wrong with it is told at once, and no hash is.
pub(super) fn read(path: &Path, problems: &mut Vec<String>) -> BTreeMap<Hash, Token> {
    let shown = path.display();
    let mut tokens = BTreeMap::new();
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            problems.push(format!("{shown}: cannot be read: {error}"));
            return tokens;
        }
    };
    let file: File = match toml::from_str(&text) {
        Ok(file) => file,
        Err(error) => {
            problems.push(format!("{shown}: {}", error.message()));
            return tokens;
        }
    };
    for Entry { name, sha256, grants, expires } in file.token {
        let mut wrong = |text: String| problems.push(format!("{shown}: token {name:?}: {text}"));
        if name.is_empty() {
            wrong("needs a name".into());
        }
        let parsed: Vec<_> = grants.iter().filter_map(|grant| Grant::parse(grant)).collect();
        for grant in grants.iter().filter(|grant| Grant::parse(grant).is_none()) {
            wrong(format!("grant {grant:?} is not ROLE@HUB"));
        }
        let instant = expires.map(|at| humantime::parse_rfc3339(&at.to_string()));
        let expires = match instant.transpose() {
            Ok(at) => at
                .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
                .map(|since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)),
            Err(_) => {
                wrong("expires is not a time in UTC such as 2030-01-31T00:00:00Z".into());
                None
            }
        };
        let Some(hash) = from_hex(&sha256) else {
            wrong("sha256 is not 64 hex digits".into());
            continue;
        };
        if tokens.insert(hash, Token { name: name.clone(), grants: parsed, expires }).is_some() {
            wrong("has the sha256 of another one".into());
        }
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_token_is_found_by_its_hash() {
        let ((token, sha256), other) = (new_token().unwrap(), new_token().unwrap());
        assert_ne!(token, other.0);
        assert_eq!(from_hex(&sha256), Some(hash(token.as_bytes())));
        assert_eq!(to_hex(&hash(b"abc"))[..16], *"ba7816bf8f01cfea");
    }

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.toml");
        let (_, sha256) = new_token().unwrap();
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let mut problems = Vec::new();
            let tokens = read(&path, &mut problems);
            (tokens, problems)
        };
        let good = format!(
            "[[token]]\nname = 'ci'\nsha256 = '{sha256}'\ngrants = ['reader@*']\n\
             expires = 2030-01-31T00:00:00Z\n"
        );
        let (tokens, problems) = read(&good);
        assert!(problems.is_empty(), "{problems:?}");
        let token = tokens.values().next().unwrap();
        assert_eq!((token.name.as_str(), token.expires), ("ci", Some(1_896_048_000_000_000_000)));

        let bad = format!(
            "{good}[[token]]\nname = 'b'\nsha256 = '{sha256}'\ngrants = ['owner@x']\n\
             [[token]]\nname = 'c'\nsha256 = 'zz'\nexpires = 2030-01-31\n"
        );
        let problems = read(&bad).1;
        for (problem, part) in problems.iter().zip(["owner@x", "another one", "expires", "sha256"])
        {
            assert!(problem.contains(part), "{problems:?}");
        }
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert!(read("[[token]]\nname = 'a'\npassword = 'x'\n").1[0].contains("password"));
    }
}
