//! What goes on beside the lanes: giving places, looking what is new, forgetting
//! what ended, and turning away who waited for too long.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use sqlx::{
    PgConnection,
    postgres::{PgListener, PgPoolOptions},
};
use tokio::{select, sync::watch, time::sleep};

use super::{
    Inner, PostgresError, ground,
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
        swept: Some(Instant::now()),
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
            () = sleep(GATHER) => {}
            _ = stop.changed() => {}
        }
        if !*stop.borrow() && house.may_rest() {
            select! {
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
        let begun = Instant::now();
        let mut moved = false;
        self.behind = false;
        loop {
            self.sequencer.lease(&mut session.conn).await?;
            if self.sequencer.drain(session).await?.is_none() {
                return Ok(moved);
            }
            moved = true;
            if begun.elapsed() >= AT_A_TIME {
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
            if matches!(error, PostgresError::Setting { .. }) {
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
        if moved || house.polled.is_none_or(|at| at.elapsed() >= POLL) {
            let remembered = inner.read().remembered();
            ground::check(session, &remembered).await?;
            let health = session::check(&mut session.conn, inner.target.replicated).await;
            let look = inner.looking.fetch_add(1, Ordering::SeqCst) + 1;
            let since = inner.read().since();
            let news = view::poll(&mut session.conn, since).await?;
            inner.set_health(health.as_ref().copied());
            inner.merge(news);
            inner.looked.send_replace(look);
            house.polled = Some(Instant::now());
        }
        if house.sequencer.holds() && house.swept.is_none_or(|at| at.elapsed() >= SWEEP) {
            let all = sweep(&mut session.conn, inner.time()).await?;
            house.swept = all.then(Instant::now);
        }
        Ok(())
    };
    tokio::time::timeout(due, all)
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
pub(super) async fn last_time(conn: &mut PgConnection) -> Result<Millis, PostgresError> {
    let last: Option<i64> =
        sqlx::query_scalar("SELECT max(time_ms) FROM groups WHERE first_index IS NULL")
            .fetch_one(conn)
            .await?;
    Ok(from_i64(last.unwrap_or_default()))
}

/// Forgets what ended. Rows that a batch has locked are left for the next time,
/// so that this never waits, and nobody waits for it for long. False: there may be
/// more.
async fn sweep(conn: &mut PgConnection, time_ms: Millis) -> Result<bool, PostgresError> {
    let begun = Instant::now();
    let mut all = true;
    let ended = to_i64(forgotten_by(time_ms));
    sqlx::query(
        "DELETE FROM tokens WHERE hash IN (SELECT hash FROM tokens \
           WHERE held_by IS NULL AND expires_ms <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED)",
    )
    .bind(ended)
    .bind(SWEPT)
    .execute(&mut *conn)
    .await?;
    // What still awaits its outcome stays; the oldest of them do not stay for ever.
    loop {
        let gone = sqlx::query(
            "DELETE FROM uses WHERE hash IN (SELECT hash FROM uses \
               WHERE until_ms <= $1 AND NOT awaited LIMIT $2 FOR UPDATE SKIP LOCKED)",
        )
        .bind(ended)
        .bind(SWEPT)
        .execute(&mut *conn)
        .await?
        .rows_affected();
        if gone < from_i64(SWEPT) {
            break;
        }
        if begun.elapsed() >= AT_A_TIME {
            all = false;
            break;
        }
    }
    sqlx::query(
        "DELETE FROM uses WHERE hash IN (SELECT hash FROM uses WHERE awaited AND until_ms <= $1 \
           ORDER BY until_ms DESC OFFSET $2 LIMIT $3 FOR UPDATE SKIP LOCKED)",
    )
    .bind(ended)
    .bind(i64::try_from(OUTCOMES_AWAITED).unwrap_or(i64::MAX))
    .bind(SWEPT * 8)
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "DELETE FROM evidence WHERE id IN (SELECT id FROM evidence WHERE until_ms <= $1 \
           LIMIT $2 FOR UPDATE SKIP LOCKED)",
    )
    .bind(to_i64(time_ms))
    .bind(SWEPT)
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "DELETE FROM approvals WHERE id IN (SELECT id FROM approvals WHERE ended IS NOT NULL \
           ORDER BY ended DESC OFFSET $1 LIMIT $2 FOR UPDATE SKIP LOCKED)",
    )
    .bind(ENDED_APPROVALS)
    .bind(SWEPT)
    .execute(conn)
    .await?;
    Ok(all)
}

/// Hears of approvals in other replicas, on a connection of its own.
pub(super) async fn listen(inner: &Inner) {
    let mut stop = inner.stop.subscribe();
    while !*stop.borrow() {
        select! {
            heard = hear(inner) => {
                if let Err(error) = heard {
                    tracing::debug!(%error, "not listening; the database is asked each second");
                }
            }
            _ = stop.changed() => return,
        }
        select! {
            () = sleep(POLL) => {}
            _ = stop.changed() => return,
        }
    }
}

async fn hear(inner: &Inner) -> Result<(), sqlx::Error> {
    let replicated = inner.target.replicated;
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(inner.deadline)
        .after_connect(move |conn, _| {
            Box::pin(async move {
                let checked = session::check(conn, replicated).await;
                checked.map_err(|error| sqlx::Error::Configuration(error.to_string().into()))
            })
        })
        .connect_with(inner.target.connect.clone())
        .await?;
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen("writ_approvals").await?;
    // What changed before it listened.
    inner.stirred.notify_one();
    while listener.try_recv().await?.is_some() {
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
            () = sleep(inner.deadline / 20) => {}
            _ = stop.changed() => {}
        }
    }
}
