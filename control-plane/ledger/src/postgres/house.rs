//! What goes on beside the lanes: giving places, looking what is new, forgetting
//! what ended, and turning away who waited for too long.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::{select, sync::watch};

use super::{
    Inner, PostgresError,
    database::Conn,
    ground,
    options::Target,
    outside::{Instant, elapsed, now, sleep, timeout},
    seen,
    sequencer::Sequencer,
    session::{self, Session},
    values::{from_i64, to_i64},
    view,
};
use crate::{
    embedded::state::partial::forgotten_by,
    model::{Millis, OUTCOMES_AWAITED, Refused},
};

/// How long committed entries gather before they get their places.
const GATHER: Duration = Duration::from_millis(50);
/// How often the database is asked what is new, and whether its settings are right.
const POLL: Duration = Duration::from_secs(1);
/// How long places are given, and how long what ended is forgotten, before the
/// rest of the house is seen to.
const AT_A_TIME: Duration = Duration::from_millis(500);
/// How often what ended is forgotten.
const SWEEP: Duration = Duration::from_secs(2);
/// Rows that are forgotten in one transaction.
const SWEPT: i64 = 5_000;
/// Approvals that ended and are still kept.
const ENDED_APPROVALS: i64 = 1024;

/// Runs until it is told to stop; then what is committed gets its places.
pub(super) async fn keep(inner: &Inner) {
    let mut stop = inner.stop.subscribe();
    let mut house = House {
        sequencer: Sequencer::new(),
        polled: None,
        swept: Some(now()),
        behind: false,
    };
    let mut session = None;
    loop {
        let stopping = *stop.borrow_and_update();
        match turn(inner, &mut house, &mut session).await {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(%error, "the database's house is not kept");
                session = None;
                house.behind = false;
            }
        }
        if stopping {
            // What has no place yet gets it from another replica, or the next start.
            break;
        }
        if house.behind {
            continue;
        }
        select! {
            biased;
            () = sleep(GATHER) => {}
            _ = stop.changed() => {}
        }
        if !*stop.borrow() && house.may_rest() {
            select! {
                biased;
                () = sleep(GATHER * 4) => {}
                () = inner.stirred.notified() => house.polled = None,
                _ = stop.changed() => {}
            }
        }
    }
    if let Some(mut session) = session {
        house.sequencer.release(&mut session.conn).await;
    }
}

struct House {
    sequencer: Sequencer,
    polled: Option<Instant>,
    /// When nothing that had ended was left; `None` while there is more.
    swept: Option<Instant>,
    /// More waits for its place than was given one at a time.
    behind: bool,
}

impl House {
    /// Nothing is due at once.
    fn may_rest(&self) -> bool {
        self.polled.is_some()
    }

    /// Gives places for a while, and keeps the lease meanwhile. Whether any was given.
    async fn drain(&mut self, session: &mut Session) -> Result<bool, PostgresError> {
        let begun = now();
        let mut moved = false;
        self.behind = false;
        loop {
            self.sequencer.lease(&mut session.conn).await?;
            if self.sequencer.drain(session).await?.is_none() {
                return Ok(moved);
            }
            moved = true;
            if elapsed(begun) >= AT_A_TIME {
                self.behind = true;
                return Ok(moved);
            }
        }
    }
}

async fn turn(
    inner: &Inner,
    house: &mut House,
    session: &mut Option<Session>,
) -> Result<(), PostgresError> {
    if session.is_none() {
        *session = Some(inner.connect().await.inspect_err(|error| {
            let lasts = matches!(
                error,
                PostgresError::Setting { .. } | PostgresError::Content(_)
            );
            if lasts {
                inner.set_health(Err(error));
            }
        })?);
    }
    let Some(session) = session else {
        return Ok(());
    };
    let due = inner.deadline * 4;
    let all = async {
        let moved = house.drain(session).await?;
        let old = |at| elapsed(at) >= POLL && !planted!(OnlyWhenTold);
        if moved || house.polled.is_none_or(old) {
            let remembered = inner.read().remembered();
            ground::check(session, &remembered).await?;
            let health = session::check(&mut session.conn, inner.target.replicated).await;
            let look = inner.looking.fetch_add(1, Ordering::SeqCst) + 1;
            let since = inner.read().since();
            let news = view::poll(&mut session.conn, since).await?;
            inner.set_health(health.as_ref().copied());
            inner.merge(news);
            inner.looked.send_replace(look);
            house.polled = Some(now());
        }
        seen::trade(inner, &mut session.conn).await?;
        if house.sequencer.holds() && house.swept.is_none_or(|at| elapsed(at) >= SWEEP) {
            let all = sweep(&mut session.conn, inner.time()).await?;
            house.swept = all.then(now);
        }
        Ok(())
    };
    timeout(due, all)
        .await
        .unwrap_or(Err(PostgresError::Slow(due)))
}

impl Inner {
    /// A server whose settings were changed is not used until they are right again.
    fn set_health(&self, health: Result<(), &PostgresError>) {
        let healthy = health.is_ok();
        let was = self.healthy.swap(healthy, Ordering::SeqCst);
        match health {
            Err(error) if was => tracing::error!(%error, "the database is not used any more"),
            Ok(()) if !was => tracing::warn!("the database is used again"),
            _ => {}
        }
    }
}

/// The latest time of what is committed and has no place yet.
///
/// # Errors
/// When the database does not answer.
pub(super) async fn last_time(conn: &mut Conn) -> Result<Millis, PostgresError> {
    let last = conn.last_time().await?;
    Ok(from_i64(last.unwrap_or_default()))
}

/// Forgets what ended. Rows that a batch has locked are left for the next time,
/// so that this never waits, and nobody waits for it for long. False: there may be
/// more.
async fn sweep(conn: &mut Conn, time_ms: Millis) -> Result<bool, PostgresError> {
    let begun = now();
    let mut all = true;
    let ended = to_i64(forgotten_by(time_ms));
    conn.sweep_tokens(ended, SWEPT).await?;
    // What still awaits its outcome stays; the oldest of them do not stay for ever.
    while conn.sweep_uses(ended, SWEPT).await? >= from_i64(SWEPT) {
        if elapsed(begun) >= AT_A_TIME {
            all = false;
            break;
        }
    }
    while conn.sweep_proofs(ended, SWEPT).await? >= from_i64(SWEPT) {
        if elapsed(begun) >= AT_A_TIME {
            all = false;
            break;
        }
    }
    let awaited = i64::try_from(OUTCOMES_AWAITED).unwrap_or(i64::MAX);
    conn.sweep_awaited(ended, awaited, SWEPT * 8).await?;
    conn.sweep_evidence(to_i64(time_ms), SWEPT).await?;
    conn.sweep_rights(to_i64(time_ms), SWEPT).await?;
    for denied in [true, false] {
        conn.sweep_approvals(denied, ENDED_APPROVALS, SWEPT).await?;
    }
    Ok(all)
}

/// Hears of approvals in other replicas, on a connection of its own.
pub(super) async fn listen(inner: &Inner) {
    let mut stop = inner.stop.subscribe();
    while !*stop.borrow() {
        select! {
            biased;
            heard = hear(inner) => {
                if let Err(error) = heard {
                    tracing::debug!(%error, "not listening; the database is asked each second");
                }
            }
            _ = stop.changed() => return,
        }
        select! {
            biased;
            () = sleep(POLL) => {}
            _ = stop.changed() => return,
        }
    }
}

async fn hear(inner: &Inner) -> Result<(), PostgresError> {
    let Target {
        server, replicated, ..
    } = &inner.target;
    let mut ear = server.listen(inner.deadline, *replicated).await?;
    // What changed before it listened.
    inner.stirred.notify_one();
    while ear.hear().await? {
        inner.told();
    }
    Ok(())
}

impl Inner {
    /// Another replica, or this one, committed something about an approval or a hold.
    fn told(&self) {
        self.stirred.notify_one();
        let entries = self.read().head.entries;
        self.approvals.send_replace(entries);
    }
}

/// Turns away what has waited for longer than the deadline: no lane took it, so
/// nothing was done for it.
pub(super) async fn turn_away(inner: &Inner) {
    let mut stop: watch::Receiver<bool> = inner.stop.subscribe();
    while !*stop.borrow_and_update() {
        for queue in [&inner.spends, &inner.serial] {
            for job in queue.take_late(inner.deadline) {
                let _ = job.answer.send(Err(Refused::Unavailable));
            }
        }
        for job in inner.looks.take_late(inner.deadline) {
            let _ = job.answer.send(Err(Refused::Unavailable));
        }
        select! {
            biased;
            () = sleep(inner.deadline / 20) => {}
            _ = stop.changed() => {}
        }
    }
}
