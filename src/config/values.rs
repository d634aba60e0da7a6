//! Values as people write them, and the small parsers that read them.
//!
//! A TOML file, a variable and a flag all arrive as a [`Value`], so one parser serves the three and a
//! number may be written as `8` or as `"8"`. A parser answers `None` for what it does not understand; the
//! text that tells the reader what is allowed stands beside the key, in the settings table.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::FreeSpace;

/// Shortest time that ended instances may be kept.
const RETENTION_MIN: Duration = Duration::from_secs(1);
/// Longest time that ended instances may be kept: ten years.
const RETENTION_MAX: Duration = Duration::from_secs(315_576_000);

/// What one source gives for one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// One word: a flag, a variable, or a TOML text, number or boolean.
    Text(String),
    /// A TOML array.
    List(Vec<String>),
    /// A TOML table, date or mixed array: nothing that any setting takes.
    Other,
}

impl Value {
    /// Reads a TOML value.
    pub(super) fn from_toml(value: &toml::Value) -> Value {
        let value = match value {
            toml::Value::Array(items) => {
                items.iter().map(word).collect::<Option<_>>().map(Value::List)
            }
            other => word(other).map(Value::Text),
        };
        value.unwrap_or(Value::Other)
    }

    /// The one word, without surrounding blanks.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text.trim()),
            Value::List(_) | Value::Other => None,
        }
    }

    /// The items of a list; a single text is split at its commas.
    pub(super) fn items(&self) -> Vec<String> {
        match self {
            Value::Text(text) => text.split(',').map(|item| item.trim().to_owned()).collect(),
            Value::List(items) => items.clone(),
            Value::Other => Vec::new(),
        }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Text(text) => write!(f, "{text:?}"),
            Value::List(items) => write!(f, "{items:?}"),
            Value::Other => f.write_str("{ … }"),
        }
    }
}

fn word(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => None,
    }
}

/// A whole number within `range`.
pub(super) fn whole(value: &Value, range: RangeInclusive<u64>) -> Option<u64> {
    value.text()?.parse().ok().filter(|number| range.contains(number))
}

/// How many there may be; 0 means no limit.
pub(super) fn count(value: &Value) -> Option<u32> {
    whole(value, 0..=1_000_000_000).and_then(|number| u32::try_from(number).ok())
}

/// `true` or `false`, as the three sources spell them.
pub(super) fn flag(value: &Value) -> Option<bool> {
    match value.text()?.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

/// A duration such as `250ms`, `30s`, `5m`, `1h 30m`, within `range`.
pub(super) fn duration(value: &Value, range: RangeInclusive<Duration>) -> Option<Duration> {
    humantime::parse_duration(value.text()?).ok().filter(|duration| range.contains(duration))
}

/// How long something is kept: `off` for ever, or a time from a second to ten years.
pub(super) fn retention(value: &Value) -> Option<Option<Duration>> {
    match value.text()? {
        "off" => Some(None),
        _ => duration(value, RETENTION_MIN..=RETENTION_MAX).map(Some),
    }
}

/// How long something is kept, as TOML.
pub(super) fn show_retention(time: Option<Duration>) -> String {
    let text =
        time.map_or_else(|| "off".to_owned(), |time| humantime::format_duration(time).to_string());
    format!("{text:?}")
}

/// A number of bytes, plain or with the unit `KiB`, `MiB` or `GiB`, within `range`.
pub(super) fn bytes(value: &Value, range: RangeInclusive<usize>) -> Option<usize> {
    let text = value.text()?.to_ascii_lowercase();
    let units = [("kib", 10), ("mib", 20), ("gib", 30)];
    let (digits, shift) = units
        .iter()
        .find_map(|(unit, shift)| text.strip_suffix(unit).map(|digits| (digits.trim_end(), *shift)))
        .unwrap_or((&text, 0));
    let number: usize = digits.parse().ok()?;
    number.checked_mul(1 << shift).filter(|number| range.contains(number))
}

/// A number of bytes in the largest unit that states it exactly.
pub(super) fn show_bytes(bytes: usize) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.iter().find(|(shift, _)| bytes > 0 && bytes.is_multiple_of(1 << shift)) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => bytes.to_string(),
    }
}

/// `auto`, which is `None`, or a number of bytes within `range`.
pub(super) fn auto_bytes(value: &Value, range: RangeInclusive<usize>) -> Option<Option<usize>> {
    match value.text()? {
        "auto" => Some(None),
        _ => bytes(value, range).map(Some),
    }
}

/// The same, as TOML.
pub(super) fn show_auto_bytes(bytes: Option<usize>) -> String {
    format!("{:?}", bytes.map_or_else(|| "auto".to_owned(), show_bytes))
}

/// How much of a disk stays free: `auto`, a size up to 1 TiB, or a share of 1% to 90%.
pub(super) fn free_space(value: &Value) -> Option<FreeSpace> {
    let text = value.text()?;
    if text == "auto" {
        return Some(FreeSpace::Auto);
    }
    if let Some(share) = text.strip_suffix('%') {
        let share = share.trim_end().parse().ok().filter(|share| (1..=90).contains(share))?;
        return Some(FreeSpace::Percent(share));
    }
    bytes(value, 0..=1 << 40).map(|bytes| FreeSpace::Bytes(bytes as u64))
}

/// How much of a disk stays free, as TOML.
pub(super) fn show_free_space(space: FreeSpace) -> String {
    let text = match space {
        FreeSpace::Auto => "auto".to_owned(),
        FreeSpace::Bytes(bytes) => show_bytes(bytes as usize),
        FreeSpace::Percent(share) => format!("{share}%"),
    };
    format!("{text:?}")
}

/// An address to listen on: `IP:PORT`.
pub(super) fn address(value: &Value) -> Option<SocketAddr> {
    value.text()?.parse().ok()
}

/// An address that others dial: `HOST:PORT`, a name or an IP address, port 1 to 65535.
pub(super) fn host_and_port(value: &Value) -> Option<String> {
    let text = value.text()?;
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let sound = match bracketed {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let letter = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            !host.is_empty() && host.len() <= 253 && host.chars().all(letter)
        }
    };
    (sound && port > 0).then(|| text.to_owned())
}

/// Nodes of a cluster: `1=HOST:PORT,2=HOST:PORT`, ids from 1, no id or address twice.
pub(super) fn cluster_members(value: &Value) -> Option<BTreeMap<u64, String>> {
    let mut members = BTreeMap::new();
    for item in value.items().into_iter().filter(|item| !item.is_empty()) {
        let (id, address) = item.split_once('=')?;
        let id = id.trim().parse().ok().filter(|id| (1..1 << 53).contains(id))?;
        let address = host_and_port(&Value::Text(address.trim().to_owned()))?;
        if members.values().any(|known| *known == address) || members.insert(id, address).is_some()
        {
            return None;
        }
    }
    Some(members)
}

/// Addresses of nodes: `HOST:PORT`, any number of them.
pub(super) fn addresses(value: &Value) -> Option<Vec<String>> {
    let items = value.items().into_iter().filter(|item| !item.is_empty());
    items.map(|item| host_and_port(&Value::Text(item))).collect()
}

/// Name of a zone: up to 64 characters `A-Z a-z 0-9 - _ . /`, or empty.
pub(super) fn zone(value: &Value) -> Option<String> {
    let letter = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let text = value.text()?;
    (text.len() <= 64 && text.chars().all(letter)).then(|| text.to_owned())
}

/// Names of task hubs: at least one, each of 1 to 64 characters `A-Z a-z 0-9 - _`, none twice.
pub(super) fn hub_names(value: &Value) -> Option<Vec<String>> {
    let names = value.items();
    let letter = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let sound = |name: &String| (1..=64).contains(&name.len()) && name.chars().all(letter);
    let unique = (1..names.len()).all(|i| !names[..i].contains(&names[i]));
    (!names.is_empty() && unique && names.iter().all(sound)).then_some(names)
}

/// A log filter: a level, or a comma-separated list of levels and `target=level`.
///
/// The level names of .NET, which the managed emulator takes, are understood in both places.
pub(super) fn log_filter(value: &Value) -> Option<String> {
    let part = |part: &str| match part.rsplit_once('=') {
        Some((target, name)) if !target.trim().is_empty() => {
            Some(format!("{}={}", target.trim(), level(name)?))
        }
        Some(_) => None,
        None => level(part).map(str::to_owned),
    };
    let filter = value.items().iter().map(|item| part(item)).collect::<Option<Vec<_>>>()?.join(",");
    // Targets may hold span filters; only the library that reads them can judge those.
    let sound = !filter.is_empty() && tracing_subscriber::EnvFilter::try_new(&filter).is_ok();
    sound.then_some(filter)
}

fn level(name: &str) -> Option<&'static str> {
    match name.trim().to_ascii_lowercase().as_str() {
        "off" | "none" => Some("off"),
        "error" | "critical" => Some("error"),
        "warn" | "warning" => Some("warn"),
        "info" | "information" => Some("info"),
        "debug" => Some("debug"),
        "trace" => Some("trace"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn hub_names_hold_1_to_64_letters_digits_dashes_and_underscores() {
        let longest = "x".repeat(64);
        for good in ["default", "Orders-2_b", "a,b", " a , b ", longest.as_str()] {
            assert!(hub_names(&text(good)).is_some(), "{good:?}");
        }
        let too_long = "x".repeat(65);
        for bad in ["", "a,,b", "a,", "a b", "häuser", "a/b", "a.b", "a,a", too_long.as_str()] {
            assert_eq!(hub_names(&text(bad)), None, "{bad:?}");
        }
        assert_eq!(hub_names(&Value::List(vec![])), None);
        assert_eq!(hub_names(&text("a, b")), Some(vec!["a".into(), "b".into()]));
    }

    #[test]
    fn bytes_take_binary_units() {
        let all = 0..=usize::MAX;
        for (written, number) in
            [("5", 5), ("64MiB", 64 << 20), ("1 gib", 1 << 30), ("3KiB", 3 << 10)]
        {
            assert_eq!(bytes(&text(written), all.clone()), Some(number), "{written}");
        }
        for bad in ["", "MiB", "-1", "1.5MiB", "64MB", "99999999999GiB"] {
            assert_eq!(bytes(&text(bad), all.clone()), None, "{bad}");
        }
        assert_eq!(
            [0, 5, 1 << 10, 64 << 20, 1 << 30].map(show_bytes),
            ["0", "5", "1KiB", "64MiB", "1GiB"]
        );
    }

    #[test]
    fn free_space_is_a_size_or_a_share() {
        for (written, space, shown) in [
            ("auto", FreeSpace::Auto, "\"auto\""),
            ("0", FreeSpace::Bytes(0), "\"0\""),
            ("1024 MiB", FreeSpace::Bytes(1 << 30), "\"1GiB\""),
            ("5 %", FreeSpace::Percent(5), "\"5%\""),
        ] {
            assert_eq!(free_space(&text(written)), Some(space), "{written}");
            assert_eq!(show_free_space(space), shown);
        }
        for bad in ["", "%", "0%", "91%", "-1", "2000GiB", "none"] {
            assert_eq!(free_space(&text(bad)), None, "{bad}");
        }
    }

    #[test]
    fn addresses_that_others_dial_have_a_host_and_a_port() {
        for good in ["node-1:8083", "10.0.0.7:1", "[::1]:8083", "d-0.d.ns.svc.cluster.local:8083"] {
            assert!(host_and_port(&text(good)).is_some(), "{good}");
        }
        for bad in [
            "",
            "node",
            "node:",
            "node:0",
            "node:70000",
            ":8083",
            "::1:8083",
            "http://node:8083",
            "[x]:1",
        ] {
            assert_eq!(host_and_port(&text(bad)), None, "{bad}");
        }
    }

    #[test]
    fn log_filters_are_levels_and_targets() {
        for (written, filter) in [
            ("info", "info"),
            ("Information", "info"),
            ("WARNING", "warn"),
            ("Critical", "error"),
            ("info, durahub::engine=Trace", "info,durahub::engine=trace"),
        ] {
            assert_eq!(log_filter(&text(written)).as_deref(), Some(filter), "{written}");
        }
        for bad in ["", "loud", "info,", "=info", "durahub=", "durahub=loud"] {
            assert_eq!(log_filter(&text(bad)), None, "{bad:?}");
        }
    }
}
