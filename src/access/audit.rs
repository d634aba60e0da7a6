//! The audit log: who did what, and what was decided, one JSON line each. Never a payload.
//!
//! Lines are written by a thread of its own: a slow disk does not slow calls. It is not woken for each of many: a line
//! after a pause is in the file at once, those that follow within [`PAUSE`] of it are there together; a stop waits for
//! the last ones, however many they are, and the log of the node tells if they are not written in time. If the thread
//! cannot keep up, lines are counted instead, and the next one that is written tells how many are missing. Refusals of
//! callers that nobody knows are bounded to a few per second, so that a stranger cannot fill the disk.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::oneshot;

use crate::clock::Clock;

/// Lines that wait to be written.
const WAITING: usize = 16_384;
/// Time between two looks for lines, while there are some.
const PAUSE: Duration = Duration::from_millis(10);
/// Longest time for the last lines to be written when the node stops.
const LAST: Duration = Duration::from_secs(2);
/// Refusals of strangers that are written per second.
const STRANGERS_PER_SECOND: u32 = 10;

/// What is noted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    /// Name and kind of the caller; `None` for one that nobody knows.
    pub(super) who: Option<(&'a str, &'a str)>,
    /// Where the call came from.
    pub(super) from: &'a str,
    /// The call, as in `StartInstance`.
    pub(super) what: &'a str,
    /// The task hub, or empty.
    pub(super) hub: &'a str,
    /// The instance or the node that it was about, or empty.
    pub(super) subject: &'a str,
    /// Whether it was allowed.
    pub(super) allowed: bool,
    /// gRPC code of the answer; `None` while there is none.
    pub(super) code: Option<i32>,
    /// How many instances were removed, by status, where nobody named them.
    pub(super) removed: &'a [(&'a str, usize)],
}

/// The audit log; a cheap handle. The default keeps none.
#[derive(Clone, Default)]
pub struct Audit(Option<Arc<Shared>>);

struct Shared {
    lines: SyncSender<Line>,
    /// The file is to be opened again.
    reopen: Arc<AtomicBool>,
    lost: AtomicU64,
    clock: Clock,
    /// Second that is running, and refusals of strangers in it.
    strangers: Mutex<(i64, u32)>,
}

enum Line {
    Text(String),
    /// There is something else to do.
    Wake,
    /// Whoever waits is told that what came before is written.
    Written(oneshot::Sender<()>),
}

enum Target {
    Output,
    File(BufWriter<File>),
}

fn open(path: &Path) -> std::io::Result<Target> {
    if path.as_os_str() == "-" {
        return Ok(Target::Output);
    }
    Ok(Target::File(BufWriter::new(OpenOptions::new().create(true).append(true).open(path)?)))
}

impl Audit {
    /// Adds lines to a file, or writes them to standard output for `-`.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn start(path: PathBuf, clock: Clock) -> std::io::Result<Audit> {
        let target = open(&path)?;
        let (audit, waiting, reopen) = Audit::waiting(WAITING, clock);
        std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || write(&path, target, &waiting, &reopen))?;
        Ok(audit)
    }

    /// A log of which so many lines may wait, and what its thread needs.
    fn waiting(lines: usize, clock: Clock) -> (Audit, Receiver<Line>, Arc<AtomicBool>) {
        let (lines, waiting) = sync_channel(lines);
        let reopen = Arc::<AtomicBool>::default();
        let (lost, strangers) = Default::default();
        let shared = Shared { lines, reopen: reopen.clone(), lost, clock, strangers };
        (Audit(Some(Arc::new(shared))), waiting, reopen)
    }

    /// Whether lines could be added to a file. It is not created: whether it could be is not known then, but
    /// whether there is a folder for it.
    ///
    /// # Errors
    /// When they could not.
    pub fn check(path: &Path) -> std::io::Result<()> {
        match OpenOptions::new().append(true).open(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                std::fs::metadata(folder.unwrap_or_else(|| Path::new("."))).map(drop)
            }
            opened => opened.map(drop),
        }
    }

    /// Opens the file again, under its name: whoever rotates logs has moved the old one away.
    pub fn reopen(&self) {
        if let Some(shared) = &self.0 {
            shared.reopen.store(true, Ordering::Release);
            // Where too many lines wait for this one, the thread is awake.
            let _ = shared.lines.try_send(Line::Wake);
        }
    }

    /// Notes what a node has removed of a task hub by itself: how many instances, by status.
    pub fn note_removed<'a>(
        &self,
        node: u64,
        hub: &str,
        by_status: impl IntoIterator<Item = (&'a str, usize)>,
    ) {
        self.note(&Entry {
            who: Some((&format!("node {node}"), "server")),
            from: "retention",
            what: "RemoveInstances",
            hub,
            subject: "",
            allowed: true,
            code: None,
            removed: &by_status.into_iter().collect::<Vec<_>>(),
        });
    }

    /// Waits until the lines so far are in the file, but not for long: what is missing is logged.
    pub async fn written(&self) {
        let Some(shared) = &self.0 else { return };
        let written = async {
            let (told, hears) = oneshot::channel();
            let mut last = Line::Written(told);
            // Behind all that wait, however many do.
            while let Err(TrySendError::Full(line)) = shared.lines.try_send(last) {
                last = line;
                tokio::time::sleep(PAUSE).await;
            }
            hears.await
        };
        if !matches!(tokio::time::timeout(LAST, written).await, Ok(Ok(()))) {
            tracing::error!("the last lines of the audit log were not written in time");
        }
        let lost = shared.lost.load(Ordering::Relaxed);
        if lost > 0 {
            tracing::warn!(lost, "lines are missing at the end of the audit log");
        }
    }

    pub(super) fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    pub(super) fn note(&self, entry: &Entry<'_>) {
        let Some(shared) = &self.0 else { return };
        let now = shared.clock.now();
        if entry.who.is_none() && !shared.take_stranger(now.div_euclid(1_000_000_000)) {
            shared.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let lost = shared.lost.swap(0, Ordering::Relaxed);
        let line = line(entry, now, lost);
        if shared.lines.try_send(Line::Text(line)).is_err() {
            shared.lost.fetch_add(lost + 1, Ordering::Relaxed);
        }
    }
}

impl Shared {
    fn take_stranger(&self, second: i64) -> bool {
        let mut strangers = self.strangers.lock();
        if strangers.0 != second {
            *strangers = (second, 0);
        }
        strangers.1 += 1;
        strangers.1 <= STRANGERS_PER_SECOND
    }
}

fn line(entry: &Entry<'_>, now: i64, lost: u64) -> String {
    let (seconds, nanos) = (now.div_euclid(1_000_000_000), now.rem_euclid(1_000_000_000));
    let time = prost_types::Timestamp { seconds, nanos: nanos as i32 };
    let mut line = json!({
        "time": time.to_string(),
        "who": entry.who.map(|(name, _)| name),
        "identity": entry.who.map_or("unknown", |(_, kind)| kind),
        "from": entry.from,
        "what": entry.what,
        "decision": if entry.allowed { "allowed" } else { "denied" },
    });
    let mut add = |key: &str, value: serde_json::Value| line[key] = value;
    if !entry.hub.is_empty() {
        add("hub", entry.hub.into());
    }
    if !entry.subject.is_empty() {
        add("instance", entry.subject.into());
    }
    if let Some(code) = entry.code {
        add("code", code.into());
    }
    if !entry.removed.is_empty() {
        let counts =
            entry.removed.iter().map(|(status, count)| ((*status).to_owned(), (*count).into()));
        add("removed", serde_json::Value::Object(counts.collect()));
    }
    if lost > 0 {
        add("linesLost", lost.into());
    }
    format!("{line}\n")
}

fn write(path: &Path, mut target: Target, lines: &Receiver<Line>, reopen: &AtomicBool) {
    let mut failing = false;
    loop {
        let next = match lines.try_recv() {
            Ok(line) => line,
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {
                if let Target::File(file) = &mut target {
                    tell(path, &mut failing, file.flush());
                }
                std::thread::sleep(PAUSE);
                let Ok(line) = lines.recv() else { return };
                line
            }
        };
        if reopen.swap(false, Ordering::Acquire)
            && let Target::File(file) = &mut target
        {
            tell(path, &mut failing, file.flush());
            match open(path) {
                Ok(opened) => target = opened,
                Err(error) => tell(path, &mut failing, Err(error)),
            }
        }
        match (next, &mut target) {
            (Line::Text(text), Target::Output) => {
                tell(path, &mut failing, std::io::stdout().lock().write_all(text.as_bytes()));
            }
            (Line::Text(text), Target::File(file)) => {
                tell(path, &mut failing, file.write_all(text.as_bytes()));
            }
            (Line::Wake, _) => {}
            (Line::Written(told), target) => {
                if let Target::File(file) = target {
                    tell(path, &mut failing, file.flush());
                }
                let _ = told.send(());
            }
        }
    }
}

/// Logs the first failure after a success, and nothing else.
fn tell(path: &Path, failing: &mut bool, result: std::io::Result<()>) {
    match result {
        Ok(()) => *failing = false,
        Err(error) if !*failing => {
            *failing = true;
            tracing::error!(path = %path.display(), %error, "the audit log cannot be written");
        }
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: Entry<'_> = Entry {
        who: Some(("ci", "token")),
        from: "127.0.0.1:5",
        what: "StartInstance",
        hub: "orders",
        subject: "a\"b\n",
        allowed: true,
        code: Some(0),
        removed: &[],
    };

    #[test]
    fn a_line_is_one_json_object() {
        let text = line(&ENTRY, 1_500_000_000, 3);
        assert_eq!(text.matches('\n').count(), 1);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["time"], "1970-01-01T00:00:01.500Z");
        assert_eq!((&json["who"], &json["instance"]), (&"ci".into(), &"a\"b\n".into()));
        assert_eq!((&json["decision"], &json["linesLost"]), (&"allowed".into(), &3.into()));
    }

    /// As when a node stops: no line is left that was noted before.
    #[tokio::test]
    async fn what_was_noted_is_written_before_anybody_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        let audit = Audit::start(path.clone(), Clock::manual(0)).unwrap();
        let mut noted = 0;
        for some in [1, 1000, 3] {
            for _ in 0..some {
                audit.note(&ENTRY);
            }
            noted += some;
            audit.written().await;
            assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), noted);
        }
    }

    /// However many lines wait, a stop waits behind them, and a file that was moved away is left.
    #[tokio::test]
    async fn a_full_queue_loses_no_wish() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        let (audit, waiting, reopen) = Audit::waiting(3, Clock::manual(0));
        for _ in 0..5 {
            audit.note(&ENTRY);
        }
        let target = open(&path).unwrap();
        std::fs::rename(&path, folder.path().join("moved")).unwrap();
        audit.reopen();
        let mut stop = Box::pin(audit.written());
        assert!(futures::poll!(&mut stop).is_pending(), "three lines wait");
        let file = path.clone();
        std::thread::spawn(move || write(&file, target, &waiting, &reopen));
        stop.await;
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 3);
    }

    #[test]
    fn strangers_cannot_fill_the_disk_and_their_number_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (path, clock) = (folder.path().join("audit"), Clock::manual(5_000_000_000));
        let audit = Audit::start(path.clone(), clock).unwrap();
        for _ in 0..100 {
            audit.note(&Entry { who: None, allowed: false, ..ENTRY });
        }
        audit.note(&ENTRY);
        let lines = || -> Vec<serde_json::Value> {
            let text = std::fs::read_to_string(&path).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap_or_default()).collect()
        };
        let found = loop {
            let lines = lines();
            if lines.last().is_some_and(|line| line["who"] == "ci") {
                break lines;
            }
            std::thread::yield_now();
        };
        assert_eq!(found.len(), STRANGERS_PER_SECOND as usize + 1);
        assert_eq!(found.last().unwrap()["linesLost"], 90);
    }
}
