//! The rows of the settings table about who may connect and do what: TLS, authentication, audit.
//!
//! Paths are only noted here; what the files hold is read and judged when the node starts, and again when
//! they change ([`access`](crate::access)).

use std::path::PathBuf;
use std::time::Duration;

use super::access::{AuthMode, Plaintext};
use super::settings::{Setting, put, quoted, time};
use super::values::{self, Value};

/// A file, or none.
pub(super) fn path(value: &Value) -> Option<Option<PathBuf>> {
    value.text().map(|text| (!text.is_empty()).then(|| PathBuf::from(text)))
}

/// The same, as TOML.
pub(super) fn show_path(path: Option<&PathBuf>) -> String {
    quoted(&path.map(|path| path.display().to_string()).unwrap_or_default())
}

fn show_list(items: &[String]) -> String {
    format!("[{}]", items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", "))
}

/// Words without blanks around them; none may be empty, none twice.
fn words(value: &Value) -> Option<Vec<String>> {
    if value.text() == Some("") {
        return Some(Vec::new());
    }
    let words: Vec<String> = match value {
        Value::Other => return None,
        _ => value.items().iter().map(|word| word.trim().to_owned()).collect(),
    };
    let unique = (1..words.len()).all(|i| !words[..i].contains(&words[i]));
    (unique && words.iter().all(|word| !word.is_empty())).then_some(words)
}

/// `none`, or ways to authenticate, none twice.
fn modes(value: &Value) -> Option<Vec<AuthMode>> {
    let words = words(value)?;
    if words == ["none"] {
        return Some(Vec::new());
    }
    words.iter().map(|word| AuthMode::parse(word)).collect()
}

/// An address of a key set: https, or http on this machine.
fn keys_url(value: &Value) -> Option<Option<String>> {
    let text = value.text()?;
    if text.is_empty() {
        return Some(None);
    }
    let uri: axum::http::Uri = text.parse().ok()?;
    let host = uri.host()?;
    let here = matches!(host, "localhost" | "127.0.0.1" | "[::1]");
    let sound = uri.scheme_str() == Some("https") || (uri.scheme_str() == Some("http") && here);
    sound.then(|| Some(text.to_owned()))
}

/// The rows, in the order of the configuration reference.
pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "tls.cert_file",
        value_name: "FILE",
        help: "Certificate of this server for clients, PEM: its own first, then those that signed it. With tls.key_file it turns TLS on at the gRPC and HTTP ports. Read again when it changes.",
        allowed: "the path of a PEM file, or empty",
        emulator: None,
        set: |c, v| put(&mut c.tls.cert_file, path(v)),
        show: |c| show_path(c.tls.cert_file.as_ref()),
    },
    Setting {
        key: "tls.key_file",
        value_name: "FILE",
        help: "Private key of tls.cert_file, PEM.",
        allowed: "the path of a PEM file, or empty",
        emulator: None,
        set: |c, v| put(&mut c.tls.key_file, path(v)),
        show: |c| show_path(c.tls.key_file.as_ref()),
    },
    Setting {
        key: "tls.client_ca_file",
        value_name: "FILE",
        help: "Certificates that sign those of clients, PEM. A client may then show a certificate: with auth.mode certificate it is its identity. One that shows none needs another identity.",
        allowed: "the path of a PEM file, or empty",
        emulator: None,
        set: |c, v| put(&mut c.tls.client_ca_file, path(v)),
        show: |c| show_path(c.tls.client_ca_file.as_ref()),
    },
    Setting {
        key: "tls.plaintext",
        value_name: "WHO",
        help: "Whose connections without TLS are taken although TLS is on: loopback (programs on this machine), never, or always. Without TLS, connections are always plain.",
        allowed: "loopback, never or always",
        emulator: None,
        set: |c, v| put(&mut c.tls.plaintext, Plaintext::parse(v.text()?)),
        show: |c| quoted(c.tls.plaintext.name()),
    },
    Setting {
        key: "tls.http",
        value_name: "BOOL",
        help: "Serve the HTTP port over TLS too. false leaves it plain, for probes and scrapers that know no TLS.",
        allowed: "true or false",
        emulator: None,
        set: |c, v| put(&mut c.tls.http, values::flag(v)),
        show: |c| c.tls.http.to_string(),
    },
    Setting {
        key: "peer_tls.cert_file",
        value_name: "FILE",
        help: "Certificate of this node for other nodes, PEM, good for servers and clients. With key and CA it turns mutual TLS on at the peer port; every node of the cluster needs it then.",
        allowed: "the path of a PEM file, or empty",
        emulator: None,
        set: |c, v| put(&mut c.peer_tls.cert_file, path(v)),
        show: |c| show_path(c.peer_tls.cert_file.as_ref()),
    },
    Setting {
        key: "peer_tls.key_file",
        value_name: "FILE",
        help: "Private key of peer_tls.cert_file, PEM.",
        allowed: "the path of a PEM file, or empty",
        emulator: None,
        set: |c, v| put(&mut c.peer_tls.key_file, path(v)),
        show: |c| show_path(c.peer_tls.key_file.as_ref()),
    },
    Setting {
        key: "peer_tls.ca_file",
        value_name: "FILE",
        help: "Certificates that sign those of the nodes, PEM. Nobody else's are trusted at the peer port.",
        allowed: "the path of a PEM file, or empty",
        emulator: None,
        set: |c, v| put(&mut c.peer_tls.ca_file, path(v)),
        show: |c| show_path(c.peer_tls.ca_file.as_ref()),
    },
    Setting {
        key: "peer_tls.name",
        value_name: "NAME",
        help: "Name that the certificate of every node carries. Empty: each carries the host of its own peer address (a wildcard will do), and both ends check it; a node then cannot come back under another host, and whoever has a certificate of that CA may join under its own host.",
        allowed: "a DNS name or an IP address, or empty",
        emulator: None,
        set: |c, v| {
            let text = v.text()?;
            let sound = text.is_empty() || rustls_pki_types::ServerName::try_from(text).is_ok();
            let name = (!text.is_empty()).then(|| text.to_owned());
            put(&mut c.peer_tls.name, sound.then_some(name))
        },
        show: |c| quoted(c.peer_tls.name.as_deref().unwrap_or_default()),
    },
    Setting {
        key: "auth.mode",
        value_name: "MODES",
        help: "How callers say who they are, comma separated: token (auth.tokens_file), jwt (auth.jwt.*), certificate (tls.client_ca_file). none: everybody may do everything.",
        allowed: "none, or a list of token, jwt and certificate",
        emulator: None,
        set: |c, v| put(&mut c.auth.mode, modes(v)),
        show: |c| match c.auth.mode.as_slice() {
            [] => quoted("none"),
            modes => {
                show_list(&modes.iter().map(|mode| mode.name().to_owned()).collect::<Vec<_>>())
            }
        },
    },
    Setting {
        key: "auth.tokens_file",
        value_name: "FILE",
        help: "Static tokens, TOML: tables [[token]] with name, sha256 (of the token, in hex; durahub token new makes one), grants such as [\"worker@orders\"], and expires if it shall. Read again when it changes.",
        allowed: "the path of a TOML file, or empty",
        emulator: None,
        set: |c, v| put(&mut c.auth.tokens_file, path(v)),
        show: |c| show_path(c.auth.tokens_file.as_ref()),
    },
    Setting {
        key: "auth.grants",
        value_name: "GRANTS",
        help: "Who may do what, comma separated: NAME=ROLE@HUB for a token, a subject or a certificate; claim.CLAIM:VALUE=ROLE@HUB for tokens with that claim. Roles: reader, worker, contributor, admin. Hub * is all.",
        allowed: "a list of WHO=ROLE@HUB, or empty",
        emulator: None,
        set: |c, v| {
            let sound = |rules: &Vec<String>| {
                rules.iter().all(|rule| crate::access::Rule::parse(rule).is_some())
            };
            put(&mut c.auth.grants, words(v).filter(sound))
        },
        show: |c| show_list(&c.auth.grants),
    },
    Setting {
        key: "auth.grants_file",
        value_name: "FILE",
        help: "More grants, TOML: grants = [\"NAME=ROLE@HUB\"]. Read again when it changes.",
        allowed: "the path of a TOML file, or empty",
        emulator: None,
        set: |c, v| put(&mut c.auth.grants_file, path(v)),
        show: |c| show_path(c.auth.grants_file.as_ref()),
    },
    Setting {
        key: "auth.open_metrics",
        value_name: "BOOL",
        help: "Answer /metrics without asking who scrapes. Probes (/livez, /readyz, /health) are always open.",
        allowed: "true or false",
        emulator: None,
        set: |c, v| put(&mut c.auth.open_metrics, values::flag(v)),
        show: |c| c.auth.open_metrics.to_string(),
    },
    Setting {
        key: "auth.jwt.jwks_file",
        value_name: "FILE",
        help: "Public keys that sign tokens, a JSON Web Key Set. Read again when it changes.",
        allowed: "the path of a JSON file, or empty",
        emulator: None,
        set: |c, v| put(&mut c.auth.jwt.jwks_file, path(v)),
        show: |c| show_path(c.auth.jwt.jwks_file.as_ref()),
    },
    Setting {
        key: "auth.jwt.jwks_url",
        value_name: "URL",
        help: "Where the public keys that sign tokens are, a JSON Web Key Set. Asked at start, then every auth.jwt.jwks_refresh, and when a token names a key that is not known.",
        allowed: "an https:// URL (http:// on this machine only), or empty",
        emulator: None,
        set: |c, v| put(&mut c.auth.jwt.jwks_url, keys_url(v)),
        show: |c| quoted(c.auth.jwt.jwks_url.as_deref().unwrap_or_default()),
    },
    Setting {
        key: "auth.jwt.jwks_ca_file",
        value_name: "FILE",
        help: "Certificates that sign that of auth.jwt.jwks_url, PEM. Empty: those that this machine trusts.",
        allowed: "the path of a PEM file, or empty",
        emulator: None,
        set: |c, v| put(&mut c.auth.jwt.jwks_ca_file, path(v)),
        show: |c| show_path(c.auth.jwt.jwks_ca_file.as_ref()),
    },
    Setting {
        key: "auth.jwt.jwks_refresh",
        value_name: "TIME",
        help: "How often auth.jwt.jwks_url is asked again.",
        allowed: "a time from 1s to 24h",
        emulator: None,
        set: |c, v| {
            let range = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
            put(&mut c.auth.jwt.jwks_refresh, values::duration(v, range))
        },
        show: |c| time(c.auth.jwt.jwks_refresh),
    },
    Setting {
        key: "auth.jwt.issuer",
        value_name: "TEXT",
        help: "Issuer (claim iss) that every token must have.",
        allowed: "a text, or empty without auth.mode jwt",
        emulator: None,
        set: |c, v| put(&mut c.auth.jwt.issuer, v.text().map(str::to_owned)),
        show: |c| quoted(&c.auth.jwt.issuer),
    },
    Setting {
        key: "auth.jwt.audience",
        value_name: "TEXTS",
        help: "Audiences, comma separated: every token must have one of them (claim aud).",
        allowed: "a list of texts, or empty without auth.mode jwt",
        emulator: None,
        set: |c, v| put(&mut c.auth.jwt.audience, words(v)),
        show: |c| show_list(&c.auth.jwt.audience),
    },
    Setting {
        key: "auth.jwt.clock_skew",
        value_name: "TIME",
        help: "How far the clock of the issuer may be off when a token begins and ends.",
        allowed: "a time from 0s to 10m",
        emulator: None,
        set: |c, v| {
            let range = Duration::ZERO..=Duration::from_secs(600);
            put(&mut c.auth.jwt.clock_skew, values::duration(v, range))
        },
        show: |c| time(c.auth.jwt.clock_skew),
    },
    Setting {
        key: "auth.jwt.name_claim",
        value_name: "CLAIM",
        help: "Claim that names the caller, for grants by name and for the audit log.",
        allowed: "the name of a claim",
        emulator: None,
        set: |c, v| {
            let name = v.text().filter(|text| !text.is_empty()).map(str::to_owned);
            put(&mut c.auth.jwt.name_claim, name)
        },
        show: |c| quoted(&c.auth.jwt.name_claim),
    },
    Setting {
        key: "audit.file",
        value_name: "FILE",
        help: "Where every administrative or lifecycle action is noted, one JSON line each: who, what, hub, instance, decision; never a payload. What retention removes stands there too, one line for each pass and task hub: how many instances, by status. - is standard output. Empty: nowhere. Opened again on SIGHUP.",
        allowed: "the path of a file, -, or empty",
        emulator: None,
        set: |c, v| put(&mut c.audit.file, path(v)),
        show: |c| show_path(c.audit.file.as_ref()),
    },
];
