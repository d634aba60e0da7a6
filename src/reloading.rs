//! What a running node takes over when its files change, and what it tells of it.
//!
//! Each part is read apart: one that cannot be used stays as it was, is told once, and is tried again until it can
//! be used, or until its file says something else.

use std::future::Future;

use anyhow::Context as _;

use crate::config::Config;
use crate::connections::Connections;
use crate::dispatch::Dispatcher;
use crate::pressure::Pressure;
use crate::reload::{self, Cause};
use crate::security::Security;
use crate::server::{Source, rules, set_pressure, shares};
use crate::telemetry::logs;
use crate::throttle::Throttle;

/// Everything that changes while the node runs.
pub(crate) struct Reloading {
    pub(crate) started_with: Config,
    pub(crate) source: Source,
    pub(crate) security: Security,
    pub(crate) throttle: Throttle,
    pub(crate) pressure: Pressure,
    pub(crate) connections: Connections,
    pub(crate) dispatcher: Dispatcher,
}

/// What was told of the last time, so that it is not told each time.
#[derive(Default, PartialEq)]
struct Told {
    /// What could not be used, and why.
    problems: Vec<(&'static str, String)>,
    /// Settings that wait for a restart.
    waiting: Vec<&'static str>,
}

impl Reloading {
    /// Reads files again when they change, or at SIGHUP.
    ///
    /// # Errors
    /// When the signal cannot be caught.
    pub(crate) fn run(self) -> anyhow::Result<impl Future<Output = ()> + Send> {
        let files = self.security.files.iter().chain(&self.source.file).cloned().collect();
        let mut told = Told::default();
        let reload = move |cause: Cause| {
            if cause != Cause::Again {
                tracing::info!(?cause, "reading files again");
            }
            let now = self.read(cause, &told);
            told = now;
            if cause == Cause::Signal {
                self.security.reopen_audit();
            }
            told.problems.is_empty()
        };
        reload::run(files, reload).context("listen for SIGHUP")
    }

    fn read(&self, cause: Cause, before: &Told) -> Told {
        let mut now = Told::default();
        let mut parts = self.security.reload();
        parts.push(("configuration", self.read_config(&mut now.waiting)));
        for (what, result) in parts {
            let failed_before = before.problems.iter().find(|(known, _)| *known == what);
            match result {
                Ok(()) if cause == Cause::Again && failed_before.is_none() => {}
                Ok(()) => tracing::info!(what, "read again"),
                Err(error) => {
                    let error = format!("{error:#}");
                    let is_known = failed_before.is_some_and(|(_, known)| *known == error);
                    if cause != Cause::Again || !is_known {
                        tracing::error!(what, error, "not read again, the old one stays");
                    }
                    now.problems.push((what, error));
                }
            }
        }
        if !now.waiting.is_empty() && now.waiting != before.waiting {
            tracing::warn!(waiting = ?now.waiting, "changed settings that wait for a restart");
        }
        now
    }

    /// Takes over all that can be, or nothing.
    fn read_config(&self, waiting: &mut Vec<&'static str>) -> anyhow::Result<()> {
        let config = (self.source.load)()?;
        // The only part that can fail goes first.
        logs::set_filter(&config.log_level).context("change the log level")?;
        self.throttle.set(shares(&config));
        self.connections.set(&config.limits);
        set_pressure(&self.pressure, &config);
        self.dispatcher.set_rules(rules(&config, self.started_with.limits.max_message_bytes));
        *waiting = self.started_with.waiting(&config);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;
    use crate::config::Retention;
    use crate::dispatch::CurrentRules;
    use crate::server::dispatch_settings;
    use crate::spans::Spans;

    /// Nothing logs here, so no log level can be set: then nothing else of the file counts either.
    #[tokio::test]
    async fn a_file_is_taken_over_whole_or_not_at_all() {
        let started_with = Config::default();
        let newer = || {
            let completed = Some(Duration::from_secs(60));
            let retention = Retention { completed, ..Retention::default() };
            Ok(Config { retention, cache_mb: 64, ..Config::default() })
        };
        let current = CurrentRules::new(rules(&started_with, 1 << 20));
        let settings = dispatch_settings(&started_with, current.clone(), Spans::off());
        let clock = Clock::manual(0);
        let reloading = Reloading {
            source: Source { file: None, load: Box::new(newer) },
            security: Security::start(&started_with, &clock).await.unwrap(),
            throttle: Throttle::new(shares(&started_with), clock.clone()),
            pressure: Pressure::new(),
            connections: Connections::new(&started_with.limits),
            dispatcher: Dispatcher::new(settings, clock, Vec::new()),
            started_with,
        };
        let mut waiting = Vec::new();
        let error = reloading.read_config(&mut waiting).unwrap_err();
        assert!(format!("{error:#}").contains("log"), "{error:#}");
        assert_eq!((current.get().retention.completed, waiting), (None, Vec::new()));
    }
}
