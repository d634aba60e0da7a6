//! Looks at all sources once a second, and more often while the disk fills fast, off the threads of the runtime.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::pace::Pace;
use super::{Pressure, Room, Source, disk, memory};

/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Looks at the room of a node, again and again.
pub struct Watch {
    pressure: Pressure,
    /// The data folder; `None` for a node that keeps nothing.
    folder: Option<PathBuf>,
    /// Sources of which it was said already that they cannot be looked up.
    told: [bool; Source::COUNT],
    /// How fast the disk fills.
    pace: Pace,
    looked: Instant,
    pause: Duration,
}

impl Watch {
    /// Looks for the first time. A look that fails changes nothing.
    pub async fn start(pressure: Pressure, folder: Option<PathBuf>) -> Watch {
        let mut watch = Watch {
            pressure,
            folder,
            told: [false; Source::COUNT],
            pace: Pace::default(),
            looked: Instant::now(),
            pause: LOOK,
        };
        watch.look().await;
        watch
    }

    /// Goes on to look until it is dropped.
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(self.pause).await;
            self.look().await;
        }
    }

    async fn look(&mut self) {
        let (folder, budget) = (self.folder.clone(), self.pressure.memory_budget());
        // A network file system may take its time.
        let looked = tokio::task::spawn_blocking(move || {
            let disk = folder.map(|folder| (Source::Disk, disk::look(&folder)));
            let memory = budget.map(|budget| (Source::Memory, memory::look(budget)));
            [disk, memory]
        });
        let Ok(looked) = looked.await else { return };
        let after = self.looked.elapsed();
        (self.looked, self.pause) = (Instant::now(), LOOK);
        if let Some((source, Ok(room))) = &looked[0] {
            self.pause = self.pace.pause(*room, after, &self.pressure.marks(*source));
        }
        for (source, room) in looked.into_iter().flatten() {
            self.see(source, room);
        }
    }

    fn see(&mut self, source: Source, room: io::Result<Room>) {
        let told = &mut self.told[source as usize];
        match room {
            Ok(room) => {
                *told = false;
                self.pressure.see(source, room);
            }
            Err(error) => {
                if !std::mem::replace(told, true) {
                    tracing::warn!(source = source.label(), %error, "room cannot be looked up");
                }
            }
        }
    }
}
