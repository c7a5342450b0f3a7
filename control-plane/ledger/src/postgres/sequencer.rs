//! The one replica that gives entries their place in the log.
//!
//! A group's id is drawn while its rows are locked, so that what rests on an
//! earlier group has a higher one, and sees it committed. Whatever is committed
//! is therefore taken in the order of ids; a group that commits later than its
//! neighbours comes later in the log, and nothing before it rested on it.

use std::{collections::HashMap, time::Duration};

use audit::leaf_hash;

use super::{
    PostgresError,
    database::Conn,
    draft,
    outside::{self, Instant, elapsed, now},
    session::{Commit, Session},
};
use crate::{
    lines::Place,
    model::{Hash, Millis},
};

/// Groups that get their places in one transaction.
const GROUPS: i64 = 64;
/// How long a lease lasts: so long the log may stand still when its holder dies.
const LEASE: Duration = Duration::from_secs(3);

/// How long places are given before an epoch begins, where others still commit.
const AT_MOST: Duration = Duration::from_millis(500);

/// How far the log has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) entries: u64,
    pub(crate) leaf: Hash,
    pub(crate) time_ms: Millis,
}

/// This replica's part in it.
pub(crate) struct Sequencer {
    replica: [u8; 16],
    fence: Option<i64>,
    renewed: Instant,
}

/// A group that waits for its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub(crate) id: i64,
    pub(crate) epoch: u64,
    pub(crate) time_ms: Millis,
}

/// A group with its place.
pub(crate) struct Placed {
    pub(crate) id: i64,
    pub(crate) first: u64,
    pub(crate) time_ms: Millis,
    pub(crate) prev: Hash,
    pub(crate) leaves: Vec<u8>,
}

impl Sequencer {
    pub(crate) fn new() -> Self {
        let mut replica = [0; 16];
        outside::fill(&mut replica);
        Self {
            replica,
            fence: None,
            renewed: now(),
        }
    }

    pub(crate) fn holds(&self) -> bool {
        self.fence.is_some()
    }

    /// Takes the lease when nobody has it, and keeps it. The server's clock counts.
    ///
    /// # Errors
    /// When the server does not answer; whether it is held is not known.
    pub(crate) async fn lease(&mut self, conn: &mut Conn) -> Result<(), PostgresError> {
        if self.fence.is_some() && elapsed(self.renewed) < LEASE / 3 {
            return Ok(());
        }
        let ms = i64::try_from(LEASE.as_millis()).unwrap_or(i64::MAX);
        let fence = self.fence.unwrap_or(-1);
        self.fence = conn.lease(&self.replica, ms, fence).await?;
        self.renewed = now();
        Ok(())
    }

    /// Lets others have the lease at once.
    pub(crate) async fn release(&mut self, conn: &mut Conn) {
        if let Some(fence) = self.fence.take() {
            // Without this they have it when its time is over.
            let _ = conn.release(&self.replica, fence).await;
        }
    }

    /// Gives places to what is committed and waits, at most [`GROUPS`] groups; the
    /// new head, or `None` when there was nothing to do or another has the lease.
    ///
    /// # Errors
    /// What the transaction did is not known; the next one goes on from what is there.
    pub(crate) async fn drain(
        &mut self,
        session: &mut Session,
    ) -> Result<Option<Head>, PostgresError> {
        let Some(fence) = self.fence else {
            return Ok(None);
        };
        if !session.conn.is_waiting().await? {
            return Ok(None);
        }
        session.conn.begin_plain().await?;
        // The row is locked until the commit: whoever takes the lease waits for
        // it, and who lost the lease finds no row.
        let mine = if planted!(FenceIgnored) {
            Some(session.conn.lock_head().await?)
        } else {
            session.conn.lock_head_of(&self.replica, fence).await?
        };
        let Some(head) = mine else {
            self.fence = None;
            session.give_up().await?;
            return Ok(None);
        };
        let head = place(&mut session.conn, head).await?;
        match session.commit().await {
            Commit::Proven => Ok(Some(head)),
            Commit::RolledBack => Ok(None),
            Commit::InDoubt => Err(PostgresError::Unknown),
        }
    }
}

/// Gives places to whatever is committed, whoever has the lease: under the lock of
/// its row there is no other.
///
/// # Errors
/// When the server does not answer; what has its place by then keeps it.
pub(crate) async fn catch_up(session: &mut Session) -> Result<(), PostgresError> {
    let begun = now();
    // Others may go on to commit: what is left is placed under the locks.
    while elapsed(begun) < AT_MOST && session.conn.is_waiting().await? {
        session.conn.begin_plain().await?;
        let head = session.conn.lock_head().await?;
        place(&mut session.conn, head).await?;
        if session.commit().await != Commit::Proven {
            return Err(PostgresError::Unknown);
        }
    }
    Ok(())
}

/// The same in a transaction that nobody can commit a group beside; the head.
///
/// # Errors
/// The transaction has to be rolled back.
pub(crate) async fn place_rest(conn: &mut Conn) -> Result<Head, PostgresError> {
    let mut head = conn.lock_head().await?;
    while conn.is_waiting().await? {
        head = place(conn, head).await?;
    }
    Ok(head)
}

async fn place(conn: &mut Conn, mut head: Head) -> Result<Head, PostgresError> {
    let waiting = conn.waiting(GROUPS).await?;
    let ids: Vec<i64> = waiting.iter().map(|group| group.id).collect();
    let mut by_group: HashMap<i64, Vec<(String, Vec<u8>)>> = HashMap::new();
    for (id, kind, start) in conn.drafts(&ids).await? {
        by_group.entry(id).or_default().push((kind, start));
    }
    let mut placed = Vec::with_capacity(waiting.len());
    for group in waiting {
        let drafts = by_group.remove(&group.id).unwrap_or_default();
        placed.push(group.place(&drafts, &mut head));
    }
    conn.put_places(&placed).await?;
    conn.put_head(&head).await?;
    Ok(head)
}

impl Waiting {
    fn place(&self, drafts: &[(String, Vec<u8>)], head: &mut Head) -> Placed {
        // Replicas' clocks may differ: the log's time does not go back.
        if self.time_ms > head.time_ms || planted!(TimeGoesBack) {
            head.time_ms = self.time_ms;
        }
        let mut placed = Placed {
            id: self.id,
            first: head.entries,
            time_ms: head.time_ms,
            prev: head.leaf,
            leaves: Vec::with_capacity(drafts.len().saturating_mul(32)),
        };
        for (kind, start) in drafts {
            let place = Place {
                index: head.entries,
                time_ms: head.time_ms,
                epoch: self.epoch,
                prev: head.leaf,
            };
            head.leaf = leaf_hash(&draft::line(start, kind, &place));
            head.entries = head.entries.saturating_add(1);
            placed.leaves.extend_from_slice(&head.leaf);
        }
        placed
    }
}
