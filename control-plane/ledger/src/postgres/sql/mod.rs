//! What is asked of the database, as SQL: a statement each, and no decision.

mod epochs;
mod load;
mod news;
mod places;
mod save;
mod seen;

use std::time::Duration;

use sqlx::{
    Connection as _, PgConnection,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
    raw_sql,
};
use tokio::time::timeout;

pub(super) use self::{
    epochs::{
        forget, known, leaf_at, lock_all, log_name, open_approvals, place, put_epoch, put_first,
        suspend,
    },
    load::{
        approvals, begin, begin_plain, count_discovered, count_evidence, count_evidence_of,
        count_held, count_open, count_outstanding, counts_of, discovered, lock_agents,
        lock_evidence, lock_tokens, lock_uses, overdue, proofs, tokens_now, uses, uses_now,
    },
    news::{
        approvals_since, discovered_since, entries_of, groups_from, last_time, listed, log_len,
        log_of, newest, rights_since, sweep_approvals, sweep_awaited, sweep_evidence, sweep_proofs,
        sweep_rights, sweep_tokens, sweep_uses,
    },
    places::{
        drafts, is_waiting, lease, lock_head, lock_head_of, put_head, put_places, release, waiting,
    },
    save::{
        add_agents, barrier, confirm, count_uses, find_group, hold, issue, notify, put_approval,
        put_discovered, put_evidence, put_outstanding, put_proofs, put_right, spend,
    },
    seen::{keep_seen, seen_within},
};
use super::{
    PostgresError,
    database::{Said, Settings, Wire},
    migrations::migrations,
    notices::Notices,
    session,
};

type Done<T> = Result<T, PostgresError>;

/// Connects.
pub(super) async fn connect(to: &PgConnectOptions) -> Done<Wire> {
    Ok(Wire {
        conn: PgConnection::connect_with(to).await?,
        notices: Notices::new(),
    })
}

/// A connection that listens.
pub(crate) struct Listener {
    listener: PgListener,
}

/// Connects, checks, and listens.
pub(super) async fn listen(
    to: &PgConnectOptions,
    deadline: Duration,
    replicated: bool,
) -> Done<Listener> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(deadline)
        .after_connect(move |conn, _| {
            Box::pin(async move {
                let checked = async {
                    let settings = settings(conn).await?;
                    session::sound(&settings, replicated)?;
                    keep_commit(conn, settings.synchronous_commit).await
                };
                let checked: Done<()> = checked.await;
                checked.map_err(|error| sqlx::Error::Configuration(error.to_string().into()))
            })
        })
        .connect_with(to.clone())
        .await?;
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen("writ_approvals").await?;
    Ok(Listener { listener })
}

impl Listener {
    /// Waits until something is told. False: the connection is gone.
    pub(super) async fn hear(&mut self) -> Done<bool> {
        Ok(self.listener.try_recv().await?.is_some())
    }
}

const SETTINGS: &str = "SELECT current_setting('synchronous_commit'), current_setting('fsync'), \
     current_setting('full_page_writes'), current_setting('synchronous_standby_names'), \
     pg_is_in_recovery(), current_setting('transaction_read_only'), \
     current_setting('server_version_num')::int4";

pub(super) async fn settings(conn: &mut PgConnection) -> Done<Settings> {
    let (synchronous_commit, fsync, full_page_writes, standbys, standby, read_only, version) =
        sqlx::query_as(SETTINGS).fetch_one(conn).await?;
    Ok(Settings {
        synchronous_commit,
        fsync,
        full_page_writes,
        standbys,
        standby,
        read_only,
        version,
    })
}

pub(super) async fn keep_commit(conn: &mut PgConnection, synchronous_commit: String) -> Done<()> {
    sqlx::query("SELECT set_config('synchronous_commit', $1, false)")
        .bind(synchronous_commit)
        .execute(conn)
        .await?;
    Ok(())
}

pub(super) async fn be_patient(conn: &mut PgConnection) -> Done<()> {
    raw_sql("SET statement_timeout = 0; SET lock_timeout = '30s'")
        .execute(conn)
        .await?;
    Ok(())
}

pub(super) async fn migrate(conn: &mut PgConnection) -> Done<()> {
    Migrator::with_migrations(migrations())
        .run(conn)
        .await
        .map_err(PostgresError::Schema)
}

/// A transaction that failed is answered as if COMMIT had been done, but for a word
/// that the driver keeps to itself; so something is asked just before, which only
/// one that lives answers, and without which the server goes on to no COMMIT.
pub(super) async fn commit(wire: &mut Wire, deadline: Duration) -> Said {
    let commit = raw_sql("SELECT 1; COMMIT").execute(&mut wire.conn);
    let (answer, notice) = wire.notices.during(timeout(deadline, commit)).await;
    Said {
        answer: answer
            .ok()
            .map(|done| done.map(|done| done.rows_affected() == 1)),
        notice,
    }
}

pub(super) async fn rollback(conn: &mut PgConnection) -> Done<()> {
    raw_sql("ROLLBACK").execute(conn).await?;
    Ok(())
}

pub(super) async fn close(wire: Wire) {
    let _ = wire.conn.close().await;
}
