//! Health: whether this node takes work, and if not, why.
//!
//! Readiness is a list of named checks, fixed when the [`Health`] is made, each with a reason while it does
//! not pass. The node is *starting* until all have passed once, *ready* while all pass, *unready* when one
//! fails later (a lost quorum, a stalled partition), and *draining* once it was asked to stop, whatever the
//! checks say. Rooms report what they see with [`Health::pass`] and [`Health::fail`]; probes, the gRPC
//! health service and the metrics read it.
//!
//! Liveness is not here: a process that answers is alive. Quorum must never enter it, or an orchestrator
//! would restart the remaining nodes of a cluster that has just lost one.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use crate::telemetry::metrics as names;

/// Whether a node takes work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not all checks have passed yet.
    Starting,
    /// All checks pass: send work here.
    Ready,
    /// All checks passed once, and now one fails.
    Unready,
    /// Asked to stop: finishes what runs and takes nothing new.
    Draining,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Starting => "starting",
            Phase::Ready => "ready",
            Phase::Unready => "unready",
            Phase::Draining => "draining",
        })
    }
}

/// One check as last seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Name, such as `storage`.
    pub name: &'static str,
    /// Why it does not pass; `None` when it passes.
    pub problem: Option<String>,
}

/// The health of a node at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Whether it takes work.
    pub phase: Phase,
    /// All checks, in the order in which they were named.
    pub checks: Vec<Check>,
}

/// The health of this node, shared by all who report or read it; cheap to clone.
#[derive(Clone, Debug)]
pub struct Health {
    state: Arc<watch::Sender<Report>>,
}

impl Health {
    /// A node that is starting, with these checks still to pass. Without checks it is ready at once.
    #[must_use]
    pub fn new(checks: &[&'static str]) -> Health {
        let check = |name: &&'static str| Check { name, problem: Some("starting".to_owned()) };
        let phase = if checks.is_empty() { Phase::Ready } else { Phase::Starting };
        let report = Report { phase, checks: checks.iter().map(check).collect() };
        Health { state: Arc::new(watch::Sender::new(report)) }
    }

    /// A check passes. Unknown names are ignored, and told in debug builds.
    pub fn pass(&self, name: &'static str) {
        self.set(name, None);
    }

    /// A check fails, for a reason that an operator understands. Unknown names are ignored, and told in
    /// debug builds.
    pub fn fail(&self, name: &'static str, reason: impl Into<String>) {
        self.set(name, Some(reason.into()));
    }

    /// The node was asked to stop. There is no way back.
    pub fn drain(&self) {
        self.change(|report| report.phase = Phase::Draining);
    }

    /// The health at this moment.
    #[must_use]
    pub fn report(&self) -> Report {
        self.state.borrow().clone()
    }

    /// The phase at this moment.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.state.borrow().phase
    }

    /// Sees every change from now on, the present state first.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Report> {
        self.state.subscribe()
    }

    fn set(&self, name: &'static str, problem: Option<String>) {
        self.change(|report| {
            let check = report.checks.iter_mut().find(|check| check.name == name);
            debug_assert!(check.is_some(), "no health check is named {name}");
            let Some(check) = check else { return };
            check.problem = problem;
            let all_pass = report.checks.iter().all(|check| check.problem.is_none());
            report.phase = match report.phase {
                Phase::Draining => Phase::Draining,
                _ if all_pass => Phase::Ready,
                Phase::Starting => Phase::Starting,
                Phase::Ready | Phase::Unready => Phase::Unready,
            };
        });
    }

    /// Applies a change, tells it when it is one, and keeps the metric true.
    fn change(&self, change: impl FnOnce(&mut Report)) {
        self.state.send_if_modified(|report| {
            let before = report.clone();
            change(report);
            if before.phase != report.phase {
                tracing::info!(phase = %report.phase, problems = %problems(report), "health");
                metrics::gauge!(names::READY).set(if report.phase == Phase::Ready {
                    1.0
                } else {
                    0.0
                });
            }
            before != *report
        });
    }
}

/// The checks that do not pass, with their reasons, on one line.
fn problems(report: &Report) -> String {
    let told =
        |check: &Check| check.problem.as_ref().map(|problem| format!("{}: {problem}", check.name));
    report.checks.iter().filter_map(told).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_once_every_check_passed_and_unready_when_one_fails_later() {
        let health = Health::new(&["storage", "partitions"]);
        assert_eq!(health.phase(), Phase::Starting);
        health.pass("storage");
        health.fail("partitions", "3 of 8 have no leader");
        assert_eq!(health.phase(), Phase::Starting);
        assert_eq!(problems(&health.report()), "partitions: 3 of 8 have no leader");
        health.pass("partitions");
        assert_eq!(health.phase(), Phase::Ready);
        health.fail("storage", "disk full");
        assert_eq!(health.phase(), Phase::Unready);
        health.pass("storage");
        assert_eq!(health.phase(), Phase::Ready);
    }

    #[test]
    fn draining_has_no_way_back() {
        let health = Health::new(&["storage"]);
        health.drain();
        health.pass("storage");
        assert_eq!(health.phase(), Phase::Draining);
    }

    #[test]
    fn readers_are_woken_by_changes_only() {
        let health = Health::new(&["storage"]);
        let mut seen = health.subscribe();
        health.fail("storage", "starting");
        assert!(!seen.has_changed().unwrap());
        health.pass("storage");
        assert!(seen.has_changed().unwrap());
        assert_eq!(seen.borrow_and_update().phase, Phase::Ready);
    }
}
