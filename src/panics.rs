//! What a panic does: it is logged, and once the node serves it ends the process.
//!
//! While the node starts, a panic unwinds, so that opening a damaged store (sled panics where others return
//! errors) can be caught and told as one clear message. After start-up a panic means that some thread may
//! hold half a change in memory; going on could acknowledge what is not true, so the process aborts and the
//! log on disk decides at the next start. The server calls [`abort_from_now_on`] when it is up.

use std::backtrace::Backtrace;
use std::io::Write;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, Ordering};

static ABORT: AtomicBool = AtomicBool::new(false);

/// Installs the hook. Called once, before anything else; tests that run a server in-process do without.
pub fn install() {
    std::panic::set_hook(Box::new(|info| {
        tell(info);
        if ABORT.load(Ordering::SeqCst) {
            std::process::abort();
        }
    }));
}

/// Ends the start-up: from here on every panic, in whichever thread, aborts the process.
///
/// Without [`install`] it changes nothing.
pub fn abort_from_now_on() {
    ABORT.store(true, Ordering::SeqCst);
}

fn tell(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let message = info.payload_as_str().unwrap_or("(no text)");
    // Not forced: RUST_BACKTRACE decides, since resolving symbols takes a while and the process is dying.
    let backtrace = Backtrace::capture();
    if tracing::dispatcher::has_been_set() {
        tracing::error!(thread, location, %backtrace, "panic: {message}");
    } else {
        let _ = writeln!(
            std::io::stderr(),
            "panic in thread {thread} at {location}: {message}\n{backtrace}"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    const CHILD: &str = "DURAHUB_TEST_PANIC";

    /// The hook belongs to a whole process, so this test runs itself again as one of its own.
    #[test]
    fn a_panic_unwinds_during_start_up_and_aborts_after_it() {
        let panics = || std::thread::spawn(|| panic!("sample")).join().is_err();
        match std::env::var(CHILD).as_deref() {
            Ok("after") => {
                install();
                abort_from_now_on();
                panics();
            }
            Ok(_) => {
                install();
                assert!(panics());
            }
            Err(_) => {
                let run = |when: &str| {
                    let mut child = Command::new(std::env::current_exe().unwrap());
                    let name = "panics::tests::a_panic_unwinds_during_start_up_and_aborts_after_it";
                    child.args(["--exact", "--nocapture", name]).env(CHILD, when).output().unwrap()
                };
                let (during, after) = (run("during"), run("after"));
                assert!(during.status.success(), "{during:?}");
                assert_eq!(after.status.signal(), Some(6), "{after:?}");
                for output in [during, after] {
                    let text = String::from_utf8(output.stderr).unwrap();
                    assert!(
                        text.contains("panic in thread") && text.contains(": sample"),
                        "{text}"
                    );
                }
            }
        }
    }
}
