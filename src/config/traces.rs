//! What a node is told about a collector of traces, and the rows of the settings table about it.
//!
//! The variables that OpenTelemetry gives every program are understood where there is one for the same thing.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::access_settings::{path, show_path};
use super::settings::{Setting, put, quoted};
use super::values::Value;

/// Where spans go, and which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracing {
    /// URL of the collector, `http` or `https`; `None`: nothing is recorded.
    pub endpoint: Option<String>,
    /// PEM file with the certificates that sign that of an `https` collector; `None`: those that the machine trusts.
    pub ca_file: Option<PathBuf>,
    /// File with headers for the collector, `name: value` on each line.
    pub headers_file: Option<PathBuf>,
    /// Share of the traces that begin here that are recorded.
    pub sampling_ratio: Ratio,
    /// How the server is called in traces.
    pub service_name: String,
    /// More of what is said of this server, by key.
    pub resource_attributes: BTreeMap<String, String>,
}

/// A share from 0 to 1, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio(u32);

impl Ratio {
    /// All.
    pub const ALL: Ratio = Ratio(1_000_000);

    /// The share as a number from 0 to 1.
    #[must_use]
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 1e6
    }

    fn parse(text: &str) -> Option<Ratio> {
        let ratio: f64 = text.parse().ok()?;
        (0.0..=1.0).contains(&ratio).then(|| Ratio((ratio * 1e6).round() as u32))
    }
}

impl Default for Tracing {
    fn default() -> Self {
        Tracing {
            endpoint: None,
            ca_file: None,
            headers_file: None,
            sampling_ratio: Ratio::ALL,
            service_name: "durahub".to_owned(),
            resource_attributes: BTreeMap::new(),
        }
    }
}

/// `http` or `https`, a host, and nothing behind it.
fn collector(value: &Value) -> Option<Option<String>> {
    let text = value.text()?;
    if text.is_empty() {
        return Some(None);
    }
    let uri: axum::http::Uri = text.parse().ok()?;
    let sound = matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
    let bare = uri.path() == "/" && uri.query().is_none();
    // It is written to the log: passwords have a file for headers.
    let bare = bare && !uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    (sound && bare).then(|| Some(text.to_owned()))
}

/// `KEY=VALUE`, none twice.
fn attributes(value: &Value) -> Option<BTreeMap<String, String>> {
    let mut attributes = BTreeMap::new();
    if value.text() == Some("") {
        return Some(attributes);
    }
    if *value == Value::Other {
        return None;
    }
    for item in value.items() {
        let (key, text) = item.split_once('=')?;
        let (key, text) = (key.trim(), text.trim());
        if key.is_empty() || attributes.insert(key.to_owned(), text.to_owned()).is_some() {
            return None;
        }
    }
    Some(attributes)
}

/// The rows, in the order of the configuration reference.
pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "tracing.endpoint",
        value_name: "URL",
        help: "Collector that is told what the server does with calls and work items, as spans below those of the SDKs (OTLP over gRPC). Empty: nothing is recorded.",
        allowed: "http://HOST:PORT or https://HOST:PORT, or empty",
        emulator: Some("OTEL_EXPORTER_OTLP_ENDPOINT"),
        set: |c, v| put(&mut c.tracing.endpoint, collector(v)),
        show: |c| quoted(c.tracing.endpoint.as_deref().unwrap_or_default()),
    },
    Setting {
        key: "tracing.ca_file",
        value_name: "FILE",
        help: "Certificates that sign that of an https collector, PEM. Empty: those that this machine trusts.",
        allowed: "the path of a PEM file, or empty",
        emulator: None,
        set: |c, v| put(&mut c.tracing.ca_file, path(v)),
        show: |c| show_path(c.tracing.ca_file.as_ref()),
    },
    Setting {
        key: "tracing.headers_file",
        value_name: "FILE",
        help: "Headers for the collector, such as a key: NAME: VALUE on each line; lines that begin with # say nothing. Read with each call, so a key may be replaced.",
        allowed: "the path of a file, or empty",
        emulator: None,
        set: |c, v| put(&mut c.tracing.headers_file, path(v)),
        show: |c| show_path(c.tracing.headers_file.as_ref()),
    },
    Setting {
        key: "tracing.sampling_ratio",
        value_name: "SHARE",
        help: "Share of the traces that begin at this server that are recorded, the same on all nodes. Where an SDK gives a context, that says whether it is recorded.",
        allowed: "a number from 0 to 1",
        emulator: None,
        set: |c, v| put(&mut c.tracing.sampling_ratio, Ratio::parse(v.text()?)),
        show: |c| format!("{:?}", c.tracing.sampling_ratio.as_f64()),
    },
    Setting {
        key: "tracing.service_name",
        value_name: "NAME",
        help: "How the server is called in traces (service.name).",
        allowed: "a name",
        emulator: Some("OTEL_SERVICE_NAME"),
        set: |c, v| {
            let name = v.text().filter(|name| !name.is_empty()).map(str::to_owned);
            put(&mut c.tracing.service_name, name)
        },
        show: |c| quoted(&c.tracing.service_name),
    },
    Setting {
        key: "tracing.resource_attributes",
        value_name: "ATTRIBUTES",
        help: "More that traces say of this server, comma separated: KEY=VALUE, such as deployment.environment.name=test.",
        allowed: "a list of KEY=VALUE with different keys, or empty",
        emulator: Some("OTEL_RESOURCE_ATTRIBUTES"),
        set: |c, v| put(&mut c.tracing.resource_attributes, attributes(v)),
        show: |c| {
            let all = c.tracing.resource_attributes.iter();
            let all = all.map(|(key, value)| quoted(&format!("{key}={value}")));
            format!("[{}]", all.collect::<Vec<_>>().join(", "))
        },
    },
];
