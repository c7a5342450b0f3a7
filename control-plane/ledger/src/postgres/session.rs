//! One connection, checked when it is made.

use std::time::Duration;

use sqlx::{Connection as _, PgConnection, raw_sql};
use tokio::time::timeout;

use super::{
    PostgresError,
    error::{is_aborted, is_rolled_back},
    ground::Ground,
    notices::Notices,
    options::Target,
};

/// A session that loses nothing that it acknowledged: see [`check`].
pub(crate) struct Session {
    pub(crate) conn: PgConnection,
    /// What it was found to stand on, once that was looked at.
    pub(crate) ground: Ground,
    notices: Notices,
    deadline: Duration,
}

/// What is known after COMMIT was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Commit {
    /// The server said so, and nothing beside it.
    Proven,
    /// It said for sure that nothing was committed.
    RolledBack,
    /// Anything else.
    InDoubt,
}

impl Session {
    /// Connects to the primary and checks it.
    ///
    /// # Errors
    /// When it cannot be reached in time, or must not be used.
    pub(crate) async fn open(target: &Target) -> Result<Self, PostgresError> {
        let opened = async {
            let mut conn = PgConnection::connect_with(&target.connect).await?;
            check(&mut conn, target.replicated).await?;
            Ok(Self {
                conn,
                ground: Ground::default(),
                notices: Notices::new(),
                deadline: target.deadline,
            })
        };
        timeout(target.deadline, opened)
            .await
            .unwrap_or(Err(PostgresError::Slow(target.deadline)))
    }

    /// COMMIT. Only an answer that is exactly one is proof: a notice beside it may
    /// say that the wait for a standby was cut short. A transaction that failed is
    /// answered as if COMMIT had been done, but for a word that the driver keeps to
    /// itself; so something is asked just before, which only one that lives answers,
    /// and without which the server goes on to no COMMIT.
    pub(crate) async fn commit(&mut self) -> Commit {
        let commit = raw_sql("SELECT 1; COMMIT").execute(&mut self.conn);
        let commit = timeout(self.deadline, commit);
        match self.notices.during(commit).await {
            (Ok(Ok(done)), false) if done.rows_affected() == 1 => Commit::Proven,
            (Ok(Err(error)), false) if is_rolled_back(&error) => Commit::RolledBack,
            (Ok(Err(error)), false) if is_aborted(&error) => {
                tracing::error!(%error, "a transaction that had failed was to be committed");
                self.rollback().await;
                Commit::RolledBack
            }
            (answer, notice) => {
                tracing::warn!(?answer, notice, "the result of a commit is not known");
                Commit::InDoubt
            }
        }
    }

    /// Gives up the transaction. False: the connection cannot be used any more.
    pub(crate) async fn rollback(&mut self) -> bool {
        let rollback = raw_sql("ROLLBACK").execute(&mut self.conn);
        matches!(timeout(self.deadline, rollback).await, Ok(Ok(_)))
    }
}

/// What decides whether a server keeps its promises; also asked again while in use.
const SETTINGS: &str = "SELECT current_setting('synchronous_commit'), current_setting('fsync'), \
     current_setting('full_page_writes'), current_setting('synchronous_standby_names'), \
     pg_is_in_recovery(), current_setting('transaction_read_only'), \
     current_setting('server_version_num')::int4";

/// The oldest server that is used.
const OLDEST: i32 = 140_000;

/// Refuses a server that may lose what it acknowledged, and any that is not the primary.
///
/// # Errors
/// [`PostgresError::Setting`], which names the setting and what to do.
pub(crate) async fn check(conn: &mut PgConnection, replicated: bool) -> Result<(), PostgresError> {
    let (commit, fsync, pages, standbys, standby, read_only, version): (
        String,
        String,
        String,
        String,
        bool,
        String,
        i32,
    ) = sqlx::query_as(SETTINGS).fetch_one(&mut *conn).await?;
    let setting = |name, value: &str, todo| PostgresError::Setting {
        name,
        value: value.to_owned(),
        todo,
    };
    // `local` is `on` where there is no standby, but not what was promised where there is.
    let durable = ["on", "remote_write", "remote_apply"];
    if version < OLDEST {
        let version = version.to_string();
        return Err(setting(
            "server_version_num",
            &version,
            "use PostgreSQL 14 or newer",
        ));
    }
    if standby {
        return Err(setting(
            "pg_is_in_recovery",
            "true",
            "it is a standby, and may be behind: name the primary",
        ));
    }
    if read_only != "off" {
        return Err(setting(
            "transaction_read_only",
            &read_only,
            "set it to off",
        ));
    }
    if !durable.contains(&commit.as_str()) {
        let todo =
            "set it to on (for the database, the role and the server), or commits may be lost";
        return Err(setting("synchronous_commit", &commit, todo));
    }
    for (name, value) in [("fsync", &fsync), ("full_page_writes", &pages)] {
        if value != "on" {
            return Err(setting(
                name,
                value,
                "set it to on, or a crash may lose commits",
            ));
        }
    }
    if replicated && standbys.trim().is_empty() {
        let todo = "name a standby, or take back the promise (ledger.store_replicated)";
        return Err(setting("synchronous_standby_names", &standbys, todo));
    }
    // What was right stays so for this session, whatever is reloaded.
    sqlx::query("SELECT set_config('synchronous_commit', $1, false)")
        .bind(commit)
        .execute(conn)
        .await?;
    Ok(())
}
