//! The one replica that gives entries their place in the log.
//!
//! A group's id is drawn while its rows are locked, so that what rests on an
//! earlier group has a higher one, and sees it committed. Whatever is committed
//! is therefore taken in the order of ids; a group that commits later than its
//! neighbours comes later in the log, and nothing before it rested on it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use audit::leaf_hash;
use sqlx::{PgConnection, raw_sql};

use super::{
    PostgresError, draft,
    session::{Commit, Session},
    values::{from_i64, to_i64},
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

struct Waiting {
    id: i64,
    epoch: u64,
    time_ms: Millis,
}

/// A group with its place.
struct Placed {
    id: i64,
    first: u64,
    time_ms: Millis,
    prev: Hash,
    leaves: Vec<u8>,
}

impl Sequencer {
    pub(crate) fn new() -> Self {
        let mut replica = [0; 16];
        rand::fill(&mut replica);
        Self {
            replica,
            fence: None,
            renewed: Instant::now(),
        }
    }

    pub(crate) fn holds(&self) -> bool {
        self.fence.is_some()
    }

    /// Takes the lease when nobody has it, and keeps it. The server's clock counts.
    ///
    /// # Errors
    /// When the server does not answer; whether it is held is not known.
    pub(crate) async fn lease(&mut self, conn: &mut PgConnection) -> Result<(), PostgresError> {
        if self.fence.is_some() && self.renewed.elapsed() < LEASE / 3 {
            return Ok(());
        }
        self.fence = sqlx::query_scalar(
            "UPDATE sequencer SET holder = $1, until = clock_timestamp() + $2 * interval '1 ms', \
               fence = CASE WHEN holder = $1 AND fence = $3 THEN fence ELSE fence + 1 END \
             WHERE (holder = $1 AND fence = $3) OR until < clock_timestamp() RETURNING fence",
        )
        .bind(self.replica.as_slice())
        .bind(i64::try_from(LEASE.as_millis()).unwrap_or(i64::MAX))
        .bind(self.fence.unwrap_or(-1))
        .fetch_optional(conn)
        .await?;
        self.renewed = Instant::now();
        Ok(())
    }

    /// Lets others have the lease at once.
    pub(crate) async fn release(&mut self, conn: &mut PgConnection) {
        if let Some(fence) = self.fence.take() {
            // Without this they have it when its time is over.
            let _ = sqlx::query(
                "UPDATE sequencer SET until = 'epoch' WHERE fence = $1 AND holder = $2",
            )
            .bind(fence)
            .bind(self.replica.as_slice())
            .execute(conn)
            .await;
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
        if !is_waiting(&mut session.conn).await? {
            return Ok(None);
        }
        raw_sql("BEGIN ISOLATION LEVEL READ COMMITTED")
            .execute(&mut session.conn)
            .await?;
        // The row is locked until the commit: whoever takes the lease waits for
        // it, and who lost the lease finds no row.
        let mine: Option<(i64, Hash, i64)> = sqlx::query_as(
            "SELECT entries, head, time_ms FROM sequencer WHERE fence = $1 AND holder = $2 \
             FOR UPDATE",
        )
        .bind(fence)
        .bind(self.replica.as_slice())
        .fetch_optional(&mut session.conn)
        .await?;
        let Some((entries, leaf, time_ms)) = mine else {
            self.fence = None;
            session.rollback().await;
            return Ok(None);
        };
        let head = Head {
            entries: from_i64(entries),
            leaf,
            time_ms: from_i64(time_ms),
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
    let begun = Instant::now();
    // Others may go on to commit: what is left is placed under the locks.
    while begun.elapsed() < AT_MOST && is_waiting(&mut session.conn).await? {
        raw_sql("BEGIN ISOLATION LEVEL READ COMMITTED")
            .execute(&mut session.conn)
            .await?;
        let head = locked(&mut session.conn).await?;
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
pub(crate) async fn place_rest(conn: &mut PgConnection) -> Result<Head, PostgresError> {
    let mut head = locked(conn).await?;
    while is_waiting(conn).await? {
        head = place(conn, head).await?;
    }
    Ok(head)
}

async fn locked(conn: &mut PgConnection) -> Result<Head, PostgresError> {
    let (entries, leaf, time_ms): (i64, Hash, i64) =
        sqlx::query_as("SELECT entries, head, time_ms FROM sequencer FOR UPDATE")
            .fetch_one(conn)
            .await?;
    Ok(Head {
        entries: from_i64(entries),
        leaf,
        time_ms: from_i64(time_ms),
    })
}

async fn is_waiting(conn: &mut PgConnection) -> Result<bool, PostgresError> {
    let found = sqlx::query_scalar("SELECT EXISTS (SELECT FROM groups WHERE first_index IS NULL)")
        .fetch_one(conn)
        .await?;
    Ok(found)
}

async fn place(conn: &mut PgConnection, mut head: Head) -> Result<Head, PostgresError> {
    let waiting: Vec<(i64, i64, i64)> = sqlx::query_as(
        "SELECT id, epoch, time_ms FROM groups WHERE first_index IS NULL ORDER BY id LIMIT $1",
    )
    .bind(GROUPS)
    .fetch_all(&mut *conn)
    .await?;
    let ids: Vec<i64> = waiting.iter().map(|(id, ..)| *id).collect();
    let drafts: Vec<(i64, String, Vec<u8>)> = sqlx::query_as(
        "SELECT group_id, kind, head FROM entries WHERE group_id = ANY($1) ORDER BY group_id, n",
    )
    .bind(&ids)
    .fetch_all(&mut *conn)
    .await?;
    let mut by_group: HashMap<i64, Vec<(String, Vec<u8>)>> = HashMap::new();
    for (id, kind, start) in drafts {
        by_group.entry(id).or_default().push((kind, start));
    }
    let mut placed = Vec::with_capacity(waiting.len());
    for (id, epoch, time_ms) in waiting {
        let group = Waiting {
            id,
            epoch: from_i64(epoch),
            time_ms: from_i64(time_ms),
        };
        let drafts = by_group.remove(&id).unwrap_or_default();
        placed.push(group.place(&drafts, &mut head));
    }
    write(conn, &placed, &head).await?;
    Ok(head)
}

impl Waiting {
    fn place(&self, drafts: &[(String, Vec<u8>)], head: &mut Head) -> Placed {
        // Replicas' clocks may differ: the log's time does not go back.
        head.time_ms = head.time_ms.max(self.time_ms);
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

async fn write(
    conn: &mut PgConnection,
    placed: &[Placed],
    head: &Head,
) -> Result<(), PostgresError> {
    let ids: Vec<i64> = placed.iter().map(|g| g.id).collect();
    let firsts: Vec<i64> = placed.iter().map(|g| to_i64(g.first)).collect();
    let times: Vec<i64> = placed.iter().map(|g| to_i64(g.time_ms)).collect();
    let prevs: Vec<Hash> = placed.iter().map(|g| g.prev).collect();
    let leaves: Vec<&[u8]> = placed.iter().map(|g| g.leaves.as_slice()).collect();
    sqlx::query(
        "UPDATE groups g SET first_index = n.first, line_time_ms = n.time, prev = n.prev, \
         leaves = n.leaves \
         FROM unnest($1::int8[], $2::int8[], $3::int8[], $4::bytea[], $5::bytea[]) \
           n (id, first, time, prev, leaves) WHERE g.id = n.id AND g.first_index IS NULL",
    )
    .bind(&ids)
    .bind(&firsts)
    .bind(&times)
    .bind(&prevs)
    .bind(&leaves)
    .execute(&mut *conn)
    .await?;
    sqlx::query("UPDATE sequencer SET entries = $1, head = $2, time_ms = $3")
        .bind(to_i64(head.entries))
        .bind(head.leaf)
        .bind(to_i64(head.time_ms))
        .execute(conn)
        .await?;
    Ok(())
}
