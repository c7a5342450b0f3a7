//! Whether the database is still the one that a replica knows.
//!
//! Three things tell: the server's timeline, the place of the tables (server,
//! database, table), and the log that a running replica remembers. Tables that
//! were restored under open connections are other tables, or hold less of the log.

use super::{PostgresError, database::Conn, sequencer::Head, session::Session, values::to_i64};

/// The format of the tables' contents. It is raised, with a migration that sets it, whenever
/// records get what a replica of before can't read: such a one stops at its next look.
pub(crate) const FORMAT: i32 = 3;

/// Where tables are: the server, database and table; and the server's timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) identity: String,
    pub(crate) timeline: String,
    /// The table `meta` by its number, which no other table has.
    pub(crate) tables: i64,
}

/// What a session's transactions stand on; on any other they must not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ground {
    pub(crate) epoch: u64,
    pub(crate) tables: i64,
}

/// What a replica remembers of the log; nothing before its first poll.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) epoch: u64,
    pub(crate) head: Head,
}

/// What the database says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) identity: String,
    pub(crate) timeline: String,
    pub(crate) epoch: u64,
    /// The last epoch that began with a restore.
    pub(crate) restored: u64,
}

/// Why an epoch is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// There is none.
    First,
    /// A standby took over, or a point in time was restored.
    Timeline,
    /// A backup was restored: the tables stand elsewhere, or were made anew.
    Elsewhere,
    /// The log is not the one that this replica has seen.
    Behind,
}

/// Whether an epoch is due, and why.
pub(crate) async fn due(
    conn: &mut Conn,
    known: Option<&Known>,
    here: &Place,
    remembered: &Remembered,
) -> Result<Option<Why>, PostgresError> {
    let Some(known) = known else {
        return Ok(Some(Why::First));
    };
    if known.identity != here.identity {
        return Ok(Some(Why::Elsewhere));
    }
    if is_behind(conn, known, remembered).await? {
        return Ok(Some(Why::Behind));
    }
    let moved = known.timeline != here.timeline && !planted!(TimelineIgnored);
    Ok(moved.then_some(Why::Timeline))
}

/// Whether the log lacks what this replica has seen, and no restore since says so.
async fn is_behind(
    conn: &mut Conn,
    known: &Known,
    remembered: &Remembered,
) -> Result<bool, PostgresError> {
    let Remembered { epoch, head } = *remembered;
    if known.restored > epoch {
        return Ok(false);
    }
    if known.epoch < epoch {
        return Ok(true);
    }
    let Some(last) = head.entries.checked_sub(1) else {
        return Ok(false);
    };
    let leaf = conn.leaf_at(to_i64(last)).await?;
    Ok(leaf.as_deref() != Some(head.leaf.as_slice()))
}

/// Whether a session still stands where it did: asked again while it is in use.
///
/// # Errors
/// [`PostgresError::Moved`]: the session must not be used any more.
pub(crate) async fn check(
    session: &mut Session,
    remembered: &Remembered,
) -> Result<(), PostgresError> {
    let conn = &mut session.conn;
    let here = conn.place().await?;
    let known = conn.known().await?;
    let due = due(conn, known.as_ref(), &here, remembered).await?;
    let ground = known.map(|known| Ground {
        epoch: known.epoch,
        tables: here.tables,
    });
    match due {
        None if ground == Some(session.ground) => Ok(()),
        _ => Err(PostgresError::Moved),
    }
}
