//! Reads of a partition from any node: here where this node holds the rows, else at the leader.
//!
//! There is one way to write a read, the [`Query`]. A node that holds the partition answers it from its own rows, once
//! these have everything that was committed before; nothing is encoded for it. Any other node sends it to the leader.
//! What is read of a tree comes in parts, which [`see`] puts together.

use durahub_cluster::Error;
use tokio::task::JoinError;

use crate::engine::read::{Known, OfTree, Query, Seen, Tree};
use crate::machine::{Partition, RowsView};

/// Reads what was committed before, on a thread that may wait for a disk.
///
/// # Errors
/// When no leader is found with a quorum behind it.
pub async fn look<Q: Query>(partition: &Partition, query: Q) -> Result<Q::Answer, Error> {
    reach(partition).await?.look(query).await
}

/// Looks at instances of one partition, and whom each knows below it. Those that are gone, or are somebody else's by
/// now, are left out.
///
/// # Errors
/// When no leader is found with a quorum behind it.
pub async fn see(partition: &Partition, hub: u32, known: &[Known]) -> Result<Vec<Seen>, Error> {
    let (mut all, mut rest) = (Vec::new(), known);
    while !rest.is_empty() {
        let query = OfTree { hub, known: rest.to_vec(), from: 0, in_parts: true };
        let Tree { seen, looked } = look(partition, query).await?;
        for seen in seen {
            let known = rest.iter().find(|known| known.instance == seen.target.instance);
            match known.filter(|_| seen.more.is_some()) {
                Some(known) => all.extend(see_one(partition, hub, known, seen).await?),
                None => all.push(seen),
            }
        }
        // Of an answer that is not whole, one at least.
        rest = looked.and_then(|looked| rest.get(looked.max(1) as usize..)).unwrap_or_default();
    }
    Ok(all)
}

/// The same of one instance of which some has been seen.
async fn see_one(
    partition: &Partition,
    hub: u32,
    known: &Known,
    mut seen: Seen,
) -> Result<Option<Seen>, Error> {
    while let Some(from) = seen.more {
        let query = |from| OfTree { hub, known: vec![known.clone()], from, in_parts: true };
        let Some(next) = look(partition, query(from)).await?.seen.pop() else { return Ok(None) };
        if next.target == seen.target {
            seen.children.extend(next.children);
            seen.more = next.more;
            continue;
        }
        // It has begun anew, with other children.
        let Some(anew) = look(partition, query(0)).await?.seen.pop() else { return Ok(None) };
        seen = anew;
    }
    Ok(Some(seen))
}

/// Waits until what was committed before can be read.
///
/// # Errors
/// When no leader is found with a quorum behind it.
pub async fn reach(partition: &Partition) -> Result<Reach<'_>, Error> {
    Ok(Reach { partition, is_here: partition.catch_up().await? })
}

/// A partition that can be read: what was committed before it was reached will be seen.
pub struct Reach<'a> {
    partition: &'a Partition,
    is_here: bool,
}

impl Reach<'_> {
    /// Whether the rows here are the ones that are read: they are here, and not far behind.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.is_here
    }

    /// Reads a row or two.
    ///
    /// # Errors
    /// When the rows are elsewhere and no leader is found.
    pub async fn glance<Q: Query>(&self, query: Q) -> Result<Q::Answer, Error> {
        if self.is_here
            && let Some(answer) = self.partition.look(|rows| query.run(&RowsView(rows)))
        {
            return Ok(answer);
        }
        self.ask(query).await
    }

    /// Reads on a thread that may wait for a disk.
    ///
    /// # Errors
    /// When the rows are elsewhere and no leader is found.
    pub async fn look<Q: Query>(&self, query: Q) -> Result<Q::Answer, Error> {
        if !self.is_here {
            return self.ask(query).await;
        }
        let partition = self.partition.clone();
        let looking = tokio::task::spawn_blocking(move || {
            let answer = partition.look(|rows| query.run(&RowsView(rows)));
            answer.ok_or(query)
        });
        match looking.await.map_err(JoinError::try_into_panic) {
            Ok(Ok(answer)) => Ok(answer),
            // The rows went away meanwhile.
            Ok(Err(query)) => self.ask(query).await,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // The node stops.
            Err(Err(_)) => Err(Error::Stopping),
        }
    }

    async fn ask<Q: Query>(&self, query: Q) -> Result<Q::Answer, Error> {
        let answer = self.partition.query(query.into_bytes()).await?;
        prost::Message::decode(answer).map_err(|error| Error::Unavailable(error.to_string()))
    }
}
