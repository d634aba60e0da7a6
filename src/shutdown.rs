//! Signals: the first asks the node to drain, the second ends it at once.
//!
//! SIGTERM and Ctrl-C mean the same. Draining is the server's affair and bounded by `limits.drain_timeout`;
//! whoever does not want to wait signals again and gets the exit code that a shell gives for the signal.
//! Unix only: the server is built for Linux and, for development, macOS.

use std::io;

use tokio::signal::unix::{self, SignalKind};

/// A signal that asks the process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C, SIGINT.
    Interrupt,
    /// SIGTERM, as sent by Kubernetes, systemd and `docker stop`.
    Terminate,
}

impl Signal {
    /// Exit code of a process that this signal ended: 128 plus the signal's number.
    #[must_use]
    pub fn exit_code(self) -> i32 {
        match self {
            Signal::Interrupt => 130,
            Signal::Terminate => 143,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Signal::Interrupt => "SIGINT",
            Signal::Terminate => "SIGTERM",
        }
    }
}

/// The signals of this process, caught from [`Signals::listen`] on.
#[derive(Debug)]
pub struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
}

impl Signals {
    /// Starts to catch signals; before this they end the process, as is their default.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn listen() -> io::Result<Signals> {
        let interrupt = unix::signal(SignalKind::interrupt())?;
        let terminate = unix::signal(SignalKind::terminate())?;
        Ok(Signals { interrupt, terminate })
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }

    /// Ends with the first signal, and leaves a task behind that exits the process at the second.
    pub async fn first_then_exit_on_second(mut self) {
        let signal = self.next().await;
        tracing::info!(
            signal = signal.name(),
            "draining; a second signal ends the process at once"
        );
        tokio::spawn(async move {
            let signal = self.next().await;
            tracing::warn!(signal = signal.name(), "second signal: exit without draining");
            std::process::exit(signal.exit_code());
        });
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, Command, Stdio};

    use super::*;

    const CHILD: &str = "DURAHUB_TEST_SIGNALS";

    /// Exiting takes the whole process, so this test runs itself again as one of its own.
    #[test]
    fn the_first_signal_drains_and_the_second_exits_with_its_code() {
        if std::env::var(CHILD).is_ok() {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let signals = Signals::listen().unwrap();
                writeln!(std::io::stderr(), "ready").unwrap();
                signals.first_then_exit_on_second().await;
                writeln!(std::io::stderr(), "draining").unwrap();
                tokio::time::sleep(std::time::Duration::from_secs(30)).await;
            });
            return;
        }
        for (first, second, code) in [("INT", "TERM", 143), ("TERM", "INT", 130)] {
            let mut child = Command::new(std::env::current_exe().unwrap());
            let name =
                "shutdown::tests::the_first_signal_drains_and_the_second_exits_with_its_code";
            child.args(["--exact", "--nocapture", name]).env(CHILD, "1");
            let mut child = child.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            let mut lines =
                BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
            let mut signal = |child: &Child, after: &str, name: &str| {
                assert!(lines.any(|line| line.ends_with(after)));
                Command::new("sh")
                    .args(["-c", &format!("kill -s {name} {}", child.id())])
                    .status()
                    .unwrap();
            };
            signal(&child, "ready", first);
            signal(&child, "draining", second);
            assert_eq!(child.wait().unwrap().code(), Some(code));
        }
    }
}
