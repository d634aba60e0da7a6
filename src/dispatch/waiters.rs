//! Calls that wait for an instance to start or to end (section 2.3).
//!
//! A waiter is woken once the instance may have reached what it waits for; it then reads again. Waking
//! costs nothing for instances that nobody waits for.

use std::collections::HashMap;
use std::sync::Arc;

use durahub_proto::wire::OrchestrationStatus;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::engine::Address;
use crate::engine::state::is_terminal;

/// What a call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Any status but pending (R2.33).
    Started,
    /// A terminal status (R2.34).
    Completed,
}

impl Wanted {
    /// Whether a status satisfies the wish.
    pub fn is_met_by(self, status: OrchestrationStatus) -> bool {
        match self {
            Wanted::Started => status != OrchestrationStatus::Pending,
            Wanted::Completed => is_terminal(status),
        }
    }
}

type Waiting = HashMap<Address, Vec<(Wanted, oneshot::Sender<()>)>>;

/// All waiting calls of this node.
#[derive(Clone, Default)]
pub(crate) struct Waiters(Arc<Mutex<Waiting>>);

impl Waiters {
    /// Registers a wait. Register first, then read, then await: a change in between is not missed.
    pub(crate) fn register(&self, at: &Address, wanted: Wanted) -> Waiter {
        let (sender, receiver) = oneshot::channel();
        self.0.lock().entry(at.clone()).or_default().push((wanted, sender));
        Waiter { all: self.clone(), at: at.clone(), receiver }
    }

    /// How many wait for an instance.
    #[cfg(test)]
    pub(crate) fn count(&self, at: &Address) -> usize {
        self.0.lock().get(at).map_or(0, Vec::len)
    }

    /// An instance changed.
    pub(crate) fn changed(&self, at: &Address, status: OrchestrationStatus) {
        let mut waiting = self.0.lock();
        let Some(list) = waiting.get_mut(at) else { return };
        for (_, sender) in list.extract_if(.., |(wanted, _)| wanted.is_met_by(status)) {
            // A caller that went away does not mind.
            let _ = sender.send(());
        }
        if list.is_empty() {
            waiting.remove(at);
        }
    }
}

impl Waiters {
    /// An instance is gone: whoever waits for it must hear of that (R2.37).
    pub(crate) fn gone(&self, at: &Address) {
        // Dropped senders wake their waiters.
        self.0.lock().remove(at);
    }
}

/// One registered wait; dropping it ends it.
pub struct Waiter {
    all: Waiters,
    at: Address,
    receiver: oneshot::Receiver<()>,
}

impl Waiter {
    /// Waits until the instance may have got there.
    pub async fn woken(&mut self) {
        // A closed channel means the same: look again.
        let _ = (&mut self.receiver).await;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.receiver.close();
        let mut waiting = self.all.0.lock();
        if let Some(list) = waiting.get_mut(&self.at) {
            list.retain(|(_, sender)| !sender.is_closed());
            if list.is_empty() {
                waiting.remove(&self.at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_waiter_is_woken_by_what_it_waits_for_and_leaves_nothing_behind() {
        let waiters = Waiters::default();
        let at = Address::new(1, "o1");
        let mut started = waiters.register(&at, Wanted::Started);
        let completed = waiters.register(&at, Wanted::Completed);
        waiters.changed(&at, OrchestrationStatus::Pending);
        assert!(started.receiver.try_recv().is_err());
        waiters.changed(&at, OrchestrationStatus::Running);
        started.woken().await;
        assert_eq!(waiters.0.lock()[&at].len(), 1);
        drop((started, completed));
        assert!(waiters.0.lock().is_empty());
    }

    #[tokio::test]
    async fn every_waiter_hears_that_an_instance_is_gone() {
        let waiters = Waiters::default();
        let at = Address::new(1, "o1");
        let mut started = waiters.register(&at, Wanted::Started);
        let mut completed = waiters.register(&at, Wanted::Completed);
        waiters.gone(&at);
        tokio::join!(started.woken(), completed.woken());
        assert!(waiters.0.lock().is_empty());
    }
}
