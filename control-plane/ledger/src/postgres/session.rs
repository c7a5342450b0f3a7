//! One connection, checked when it is made.

use std::time::Duration;

use super::{
    PostgresError,
    database::{Conn, Settings},
    error::{is_aborted, is_rolled_back},
    ground::Ground,
    options::Target,
    outside::timeout,
};

/// A session that loses nothing that it acknowledged: see [`check`].
pub(crate) struct Session {
    pub(crate) conn: Conn,
    /// What it was found to stand on, once that was looked at.
    pub(crate) ground: Ground,
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
            let mut conn = target.server.connect().await?;
            check(&mut conn, target.replicated).await?;
            Ok(Self {
                conn,
                ground: Ground::default(),
                deadline: target.deadline,
            })
        };
        timeout(target.deadline, opened)
            .await
            .unwrap_or(Err(PostgresError::Slow(target.deadline)))
    }

    /// COMMIT. Only an answer that is exactly one is proof: a notice beside it may
    /// say that the wait for a standby was cut short.
    pub(crate) async fn commit(&mut self) -> Commit {
        let said = self.conn.commit(self.deadline).await;
        match (said.answer, said.notice) {
            (Some(Ok(true)), notice) if !notice || planted!(NoticeIgnored) => Commit::Proven,
            (Some(Err(error)), false) if is_rolled_back(&error) => Commit::RolledBack,
            (Some(Err(error)), false) if is_aborted(&error) => {
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

    /// Gives up the transaction.
    ///
    /// # Errors
    /// When that was not answered: the connection must not be used any more.
    pub(crate) async fn give_up(&mut self) -> Result<(), PostgresError> {
        if self.rollback().await {
            Ok(())
        } else {
            Err(PostgresError::Slow(self.deadline))
        }
    }

    /// Gives up the transaction. False: the connection cannot be used any more.
    pub(crate) async fn rollback(&mut self) -> bool {
        matches!(
            timeout(self.deadline, self.conn.rollback()).await,
            Ok(Ok(()))
        )
    }
}

/// The oldest server that is used.
const OLDEST: i32 = 140_000;

/// Refuses a server that may lose what it acknowledged, and any that is not the
/// primary. What was right stays so for this connection, whatever is reloaded.
///
/// # Errors
/// [`PostgresError::Setting`], which names the setting and what to do.
pub(crate) async fn check(conn: &mut Conn, replicated: bool) -> Result<(), PostgresError> {
    let settings = conn.settings().await?;
    sound(&settings, replicated)?;
    conn.keep_commit(settings.synchronous_commit).await
}

/// The same of what was read.
///
/// # Errors
/// The same.
pub(super) fn sound(settings: &Settings, replicated: bool) -> Result<(), PostgresError> {
    let Settings {
        synchronous_commit: commit,
        fsync,
        full_page_writes: pages,
        standbys,
        standby,
        read_only,
        version,
    } = settings;
    let setting = |name, value: &str, todo| PostgresError::Setting {
        name,
        value: value.to_owned(),
        todo,
    };
    // `local` is `on` where there is no standby, but not what was promised where there is.
    let durable = ["on", "remote_write", "remote_apply"];
    if *version < OLDEST {
        let version = version.to_string();
        return Err(setting(
            "server_version_num",
            &version,
            "use PostgreSQL 14 or newer",
        ));
    }
    if *standby {
        return Err(setting(
            "pg_is_in_recovery",
            "true",
            "it is a standby, and may be behind: name the primary",
        ));
    }
    if read_only != "off" {
        return Err(setting("transaction_read_only", read_only, "set it to off"));
    }
    if !durable.contains(&commit.as_str()) {
        let todo =
            "set it to on (for the database, the role and the server), or commits may be lost";
        return Err(setting("synchronous_commit", commit, todo));
    }
    for (name, value) in [("fsync", fsync), ("full_page_writes", pages)] {
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
        return Err(setting("synchronous_standby_names", standbys, todo));
    }
    Ok(())
}
