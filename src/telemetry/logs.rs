//! Logs on standard error: text for people, one JSON object per line for machines.
//!
//! Libraries that speak often at INFO are quiet unless the filter names them: what an operator reads by
//! default is the story of the node.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// Put in front of every filter; a later directive for the same target wins. What sled has to say comes back
/// as an error too, and is told once, by whoever meets it.
const QUIET: &str =
    "openraft=error,sled=off,h2=warn,hyper=warn,hyper_util=warn,tonic=warn,tower=warn";

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Time, level, spans, message and fields on one line; in colour on a terminal.
    Text,
    /// An object per line: `timestamp`, `level`, `target`, `message`, the event's fields, `span`.
    Json,
}

/// Logging could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter cannot be read.
    #[error("read the log filter {filter:?}")]
    Filter {
        /// The filter as given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logging was not started, or its end is gone.
    #[error("change the log filter")]
    Gone,
    /// Something else has already taken the process's logs.
    #[error("start logging")]
    Taken(#[from] tracing_subscriber::util::TryInitError),
}

/// Starts logging for the whole process, once.
///
/// # Errors
/// [`LogError`] when the filter cannot be read or logging was already started.
pub fn start(filter: &str, style: Style) -> Result<(), LogError> {
    let lines =
        tracing_subscriber::fmt().with_env_filter(env_filter(filter)?).with_writer(std::io::stderr);
    match style {
        Style::Text => {
            let lines = lines.with_ansi(std::io::stderr().is_terminal()).with_filter_reloading();
            let handle = lines.reload_handle();
            lines.finish().try_init()?;
            let _ = CHANGE.set(Box::new(move |filter| handle.reload(filter).is_ok()));
        }
        Style::Json => {
            let lines = lines.json().flatten_event(true).with_span_list(false);
            let lines = lines.with_filter_reloading();
            let handle = lines.reload_handle();
            lines.finish().try_init()?;
            let _ = CHANGE.set(Box::new(move |filter| handle.reload(filter).is_ok()));
        }
    }
    Ok(())
}

/// Puts another filter in place of the one that runs; says whether it did.
static CHANGE: OnceLock<Box<dyn Fn(EnvFilter) -> bool + Send + Sync>> = OnceLock::new();

/// Changes what is logged from now on.
///
/// # Errors
/// [`LogError`] when the filter cannot be read, or logging was not started here.
pub fn set_filter(filter: &str) -> Result<(), LogError> {
    let filter = env_filter(filter)?;
    let changed = CHANGE.get().is_some_and(|change| change(filter));
    if changed { Ok(()) } else { Err(LogError::Gone) }
}

fn env_filter(filter: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(format!("{QUIET},{filter}"))
        .map_err(|source| LogError::Filter { filter: filter.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_quiet_unless_named() {
        let parts = |filter: &str| {
            let text = env_filter(filter).unwrap().to_string();
            text.split(',').map(str::to_owned).collect::<Vec<_>>()
        };
        assert!(parts("debug").contains(&"debug".to_owned()));
        assert!(parts("debug").contains(&"openraft=error".to_owned()));
        assert!(parts("info,openraft=trace").contains(&"openraft=trace".to_owned()));
        assert!(!parts("info,openraft=trace").contains(&"openraft=error".to_owned()));
    }
}
