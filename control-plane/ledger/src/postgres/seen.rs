//! When agents were last seen, over all replicas: beside the log, and no decision reads it.
//!
//! Who keeps house writes it, on the connection that is there for that, and only rows that
//! nobody else locks: no lane waits for it.

use std::sync::PoisonError;

use sqlx::PgConnection;
use tokio::sync::oneshot;

use super::{
    Inner, Postgres, PostgresError,
    database::Conn,
    outside,
    sql::{keep_seen, seen_within},
    values::{from_i64, to_i64},
};
use crate::model::{Millis, Refused};

/// What is kept, what is asked for, and who waits for it.
pub(super) struct Trade {
    seen: Vec<(String, Millis)>,
    within: Millis,
    answer: oneshot::Sender<Vec<(String, Millis)>>,
}

impl Postgres {
    pub(crate) async fn trade_seen(
        &self,
        seen: Vec<(String, Millis)>,
        within: Millis,
    ) -> Result<Vec<(String, Millis)>, Refused> {
        let inner = self.inner();
        let (answer, answered) = oneshot::channel();
        let trade = Trade {
            seen,
            within,
            answer,
        };
        // One that nobody took yet is given up by this.
        *inner.trade.lock().unwrap_or_else(PoisonError::into_inner) = Some(trade);
        let answered = outside::timeout(inner.deadline * 4, answered).await;
        let answered = answered.map_err(|_| Refused::Unavailable)?;
        answered.map_err(|_| Refused::Unavailable)
    }
}

/// Does what waits.
///
/// # Errors
/// When the database does not answer; who waits is told so.
pub(super) async fn trade(inner: &Inner, conn: &mut Conn) -> Result<(), PostgresError> {
    let waiting = inner
        .trade
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    let Some(trade) = waiting else {
        return Ok(());
    };
    match conn {
        Conn::Server(wire) => trade_with(&mut wire.conn, trade).await,
        // Nobody asks for it there: nothing that is promised rests on it.
        #[cfg(test)]
        Conn::Simulated(_) => Ok(()),
    }
}

async fn trade_with(conn: &mut PgConnection, trade: Trade) -> Result<(), PostgresError> {
    let seen = trade.seen.iter();
    let (agents, times): (Vec<&str>, Vec<i64>) = seen
        .map(|(agent, at)| (agent.as_str(), to_i64(*at)))
        .unzip();
    if !agents.is_empty() {
        keep_seen(conn, &agents, &times).await?;
    }
    let found = seen_within(conn, to_i64(trade.within)).await?;
    let found = found.into_iter().map(|(agent, at)| (agent, from_i64(at)));
    // Who does not wait any more asks again.
    let _ = trade.answer.send(found.collect());
    Ok(())
}
