//! When an epoch begins, and what it forgets.
//!
//! A replica's start begins none: others may be at work. One begins with the
//! database; when the server's timeline changed (a standby took over, or a point
//! in time was restored); when the tables are on another server or made anew (a
//! backup was restored); and when the log lacks what a running replica has seen.
//! What was outstanding, and every approval that was open, ends: what was used
//! last may be unused again. All but the first, and a timeline of a server that
//! loses nothing acknowledged, count as a restore. Every connection looks before
//! it is used.

use super::{
    PostgresError,
    batch::Writes,
    database::Conn,
    draft::Draft,
    ground::{Ground, Known, Place, Remembered, Why, due},
    outside, save,
    sequencer::{self, Head},
    session::{Commit, Session},
    values::to_i64,
};
use crate::{
    embedded::state::{Stamp, State, partial::Rows},
    event::{Entry, Event, Restored, Superseded},
    model::{Approval, ApprovalState, EXPIRED_PER_ENTRY, Millis},
};

/// What a connection found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch {
    pub(crate) number: u64,
    /// It began the database.
    pub(crate) created: bool,
    /// It began this epoch, which may count as a restore.
    pub(crate) begun: Option<Begun>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Begun {
    pub(crate) why: Why,
    pub(crate) restored: bool,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    pub(crate) now: Millis,
    /// Whether nothing acknowledged can be missing after a standby took over.
    pub(crate) replicated: bool,
    pub(crate) remembered: Remembered,
}

/// Begins an epoch where one is due, and has the session stand on the one there is.
///
/// # Errors
/// When it could not, or it is not known whether it could: the connection must
/// not be used.
pub(crate) async fn ensure(session: &mut Session, by: Asker) -> Result<Epoch, PostgresError> {
    let here = session.conn.place().await?;
    let before = session.conn.known().await?;
    let why = due(&mut session.conn, before.as_ref(), &here, &by.remembered).await?;
    if let (Some(known), None) = (&before, why) {
        return Ok(stand(session, &here, known));
    }
    // However much there is: under the locks there is little left.
    sequencer::catch_up(session).await?;
    session.conn.lock_all().await?;
    // Somebody else may have been first.
    let before = session.conn.known().await?;
    let why = due(&mut session.conn, before.as_ref(), &here, &by.remembered).await?;
    let why = match (&before, why) {
        (Some(known), None) => {
            session.give_up().await?;
            return Ok(stand(session, &here, known));
        }
        (_, why) => why.unwrap_or(Why::First),
    };
    let restored = match why {
        Why::First => false,
        _ if planted!(RestoreUnsaid) => false,
        // Only who has seen the log on the timeline before can say that nothing of
        // it is missing: a point in time that was restored looks like a takeover.
        Why::Timeline => !(by.replicated && by.remembered.head.entries > 0),
        Why::Elsewhere | Why::Behind => true,
    };
    let begun = Begun { why, restored };
    let number = begin(&mut session.conn, &here, before.as_ref(), begun, &by).await?;
    match session.commit().await {
        Commit::Proven => {
            session.ground = Ground {
                epoch: number,
                tables: here.tables,
            };
            Ok(Epoch {
                number,
                created: before.is_none(),
                begun: Some(begun),
            })
        }
        Commit::RolledBack | Commit::InDoubt => Err(PostgresError::Unknown),
    }
}

fn stand(session: &mut Session, here: &Place, known: &Known) -> Epoch {
    session.ground = Ground {
        epoch: known.epoch,
        tables: here.tables,
    };
    Epoch {
        number: known.epoch,
        created: false,
        begun: None,
    }
}

/// Forgets what lives for one epoch, and writes the entries that say so.
async fn begin(
    conn: &mut Conn,
    here: &Place,
    known: Option<&Known>,
    begun: Begun,
    by: &Asker,
) -> Result<u64, PostgresError> {
    // What was restored may know of fewer epochs than this replica does.
    let last = known.map_or(0, |known| known.epoch.max(by.remembered.epoch));
    let epoch = last.saturating_add(u64::from(known.is_none() || !planted!(NumberReused)));
    if known.is_none() {
        let mut log = [0_u8; 16];
        outside::fill(&mut log);
        conn.put_first(&log, here).await?;
    } else {
        conn.put_epoch(to_i64(epoch), here, begun.restored).await?;
    }
    conn.forget().await?;
    let log = conn.log_name().await?;
    // All that is committed gets its place first: nothing comes between it and
    // this epoch's first entry, and the head is what was there before.
    let head = sequencer::place_rest(conn).await?;
    let open = if planted!(ApprovalsKept) {
        Vec::new()
    } else {
        conn.open_approvals().await?
    };
    let ground = Ground {
        epoch,
        tables: here.tables,
    };
    let events = events(&log, &head, begun, by, &open);
    write(conn, events, &open, &ground, &head, by.now, known.is_some()).await?;
    Ok(epoch)
}

/// What an epoch begins with.
fn events(log: &[u8], head: &Head, begun: Begun, by: &Asker, open: &[Approval]) -> Vec<Event> {
    let log = hex::encode(log);
    let mut events = vec![Event::Epoch {
        log: log.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }];
    if begun.restored {
        let seen = by.remembered.head;
        let lost = begun.why == Why::Behind && seen.entries > 0;
        events.push(Event::Restored(Restored {
            entries: head.entries,
            head: head.leaf,
            instead_of: lost
                .then_some(Superseded {
                    log,
                    entries: seen.entries,
                    head: seen.leaf,
                })
                .into_iter()
                .collect(),
        }));
    } else {
        // A restore ends them by itself.
        events.extend(open.chunks(EXPIRED_PER_ENTRY).map(|some| {
            let ids = some.iter().map(|approval| approval.id.clone()).collect();
            Event::ApprovalsExpired { ids }
        }));
    }
    events
}

/// Writes the epoch's first entries, and what they do to approvals and agents.
async fn write(
    conn: &mut Conn,
    events: Vec<Event>,
    open: &[Approval],
    ground: &Ground,
    head: &Head,
    now: Millis,
    heard: bool,
) -> Result<(), PostgresError> {
    let time_ms = now.max(head.time_ms);
    let mut state = State::from_rows(Rows {
        time_ms,
        epoch: ground.epoch,
        ..Rows::default()
    });
    let mut writes = Writes {
        time_ms,
        // Whatever was held is not any more.
        holds_changed: heard,
        ..Writes::default()
    };
    for (index, event) in (head.entries..).zip(events) {
        let entry = Entry::Event(Box::new(event));
        let draft = Draft::new(&entry, Vec::new())
            .map_err(|_| PostgresError::Content("an epoch's entry has no line".into()))?;
        writes.drafts.push(draft);
        let stamp = Stamp {
            index,
            time_ms,
            epoch: ground.epoch,
            leaf: [0; 32],
        };
        state.apply(stamp, &entry);
    }
    // All of them, where a state keeps only the newest that ended.
    writes.approvals = open
        .iter()
        .map(|approval| Approval {
            state: ApprovalState::Expired,
            ..approval.clone()
        })
        .collect();
    if let Some(suspended) = &state.suspended {
        conn.suspend(suspended).await?;
    }
    let mut token = [0; 16];
    outside::fill(&mut token);
    save::save(conn, &writes, &token, ground).await?;
    Ok(())
}

/// Ends a connection in good form, where that is quick.
pub(crate) async fn close(session: Session) {
    session.conn.close().await;
}
