//! All that is asked of the database, one method for one round trip.
//!
//! Decisions are made on this side of it; on the other is SQL (`sql`), or, in unit
//! tests, a database in memory with row locks and faults under one seed. What is
//! asked has the meaning that it has in a transaction of isolation level READ
//! COMMITTED: what is locked is the newest that was committed, what is read is what
//! was committed when the statement began.

use std::time::Duration;

use sqlx::{PgConnection, postgres::PgConnectOptions};

use super::{
    PostgresError,
    batch::Writes,
    ground::{Ground, Known, Place},
    load::Lane,
    notices::Notices,
    save::GroupToken,
    sequencer::{Head, Placed, Waiting},
    sql::{self, Listener},
};
use crate::{
    embedded::state::partial::{EvidenceRow, TokenRow, UseRow},
    model::{Approval, Hash, Millis, ProofUse, Right, Suspension},
};

/// Where connections are made to.
#[derive(Clone)]
pub(crate) enum Server {
    /// A server.
    Postgres(Box<PgConnectOptions>),
    /// The database that is simulated.
    #[cfg(test)]
    Simulated(crate::sim::postgres::Client),
}

impl Server {
    /// Connects.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub(crate) async fn connect(&self) -> Result<Conn, PostgresError> {
        match self {
            Self::Postgres(to) => Ok(Conn::Server(Box::new(sql::connect(to).await?))),
            #[cfg(test)]
            Self::Simulated(client) => {
                let conn = client.connect().await?;
                Ok(Conn::Simulated(Box::new(conn)))
            }
        }
    }

    /// Connects, and listens for what [`Conn::notify`] tells.
    ///
    /// # Errors
    /// When it cannot be reached in time, or must not be used.
    pub(crate) async fn listen(
        &self,
        deadline: Duration,
        replicated: bool,
    ) -> Result<Ear, PostgresError> {
        match self {
            Self::Postgres(to) => {
                let listener = sql::listen(to, deadline, replicated).await?;
                Ok(Ear::Server(Box::new(listener)))
            }
            #[cfg(test)]
            Self::Simulated(client) => client.listen().await.map(Ear::Simulated),
        }
    }
}

/// A connection that listens.
pub(crate) enum Ear {
    /// To a server.
    Server(Box<Listener>),
    /// To the database that is simulated.
    #[cfg(test)]
    Simulated(crate::sim::postgres::Ear),
}

impl Ear {
    /// Waits until something is told. False: the connection is gone.
    ///
    /// # Errors
    /// The same.
    pub(crate) async fn hear(&mut self) -> Result<bool, PostgresError> {
        match self {
            Self::Server(listener) => listener.hear().await,
            #[cfg(test)]
            Self::Simulated(ear) => ear.hear().await,
        }
    }
}

/// A connection.
pub(crate) enum Conn {
    /// To a server.
    Server(Box<Wire>),
    /// To the database that is simulated.
    #[cfg(test)]
    Simulated(Box<crate::sim::postgres::Conn>),
}

/// A connection to a server, and what it says beside its answers.
pub(crate) struct Wire {
    pub(crate) conn: PgConnection,
    pub(crate) notices: Notices,
}

/// What decides whether a server keeps its promises.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) synchronous_commit: String,
    pub(crate) fsync: String,
    pub(crate) full_page_writes: String,
    pub(crate) standbys: String,
    /// Whether it is a standby itself.
    pub(crate) standby: bool,
    pub(crate) read_only: String,
    pub(crate) version: i32,
}

/// What a transaction stands on, read as it begins.
pub(crate) struct Began {
    pub(crate) ground: Ground,
    pub(crate) suspended: Option<Suspension>,
    pub(crate) time_ms: Millis,
    /// How long the log is.
    pub(crate) entries: u64,
    /// The newest version of rights.
    pub(crate) rights: i64,
}

/// How many rows the statement that writes a batch has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spent {
    pub(crate) gone: usize,
    pub(crate) used: usize,
    pub(crate) lines: usize,
}

/// What is answered to COMMIT.
pub(crate) struct Said {
    /// Whether there was an answer to what goes before it, too; `None`: no answer
    /// came in time.
    pub(crate) answer: Option<Result<bool, sqlx::Error>>,
    /// Whether something was said beside it.
    pub(crate) notice: bool,
}

/// The newest of what pollers ask for.
pub(crate) struct Newest {
    pub(crate) epoch: u64,
    pub(crate) suspended: Option<Suspension>,
    pub(crate) head: Head,
    pub(crate) restored: u64,
    pub(crate) rights: i64,
}

/// An entry that has its place, as it is listed.
pub(crate) struct ListedRow {
    pub(crate) index: u64,
    pub(crate) time_ms: Millis,
    pub(crate) kind: String,
    pub(crate) head: Vec<u8>,
}

/// A group that has its place: its id, first index, epoch, time, the leaf hash
/// before it, and its own.
pub(crate) type GroupRow = (i64, i64, i64, i64, Hash, Vec<u8>);

/// An entry as it is stored: its group, its place in it, kind, head and what is beside it.
pub(crate) type EntryRow = (i64, i32, String, Vec<u8>, Vec<u8>);

macro_rules! statements {
    ($($(#[$doc:meta])+ fn $name:ident($($arg:ident: $of:ty),*) -> $gives:ty;)+) => {
        impl Conn {
            $(
                $(#[$doc])+
                ///
                /// # Errors
                /// When the server refused it, or did not answer.
                pub(crate) async fn $name(&mut self, $($arg: $of),*)
                    -> Result<$gives, PostgresError>
                {
                    match self {
                        Self::Server(wire) => sql::$name(&mut wire.conn, $($arg),*).await,
                        #[cfg(test)]
                        Self::Simulated(conn) => conn.$name($($arg),*).await,
                    }
                }
            )+
        }
    };
}

statements! {
    // A connection.
    /// The settings that decide whether the server keeps its promises.
    fn settings() -> Settings;
    /// Keeps `synchronous_commit` as it is for this connection.
    fn keep_commit(synchronous_commit: String) -> ();
    /// Gives the statements that follow, which may take long, all the time they need.
    fn be_patient() -> ();
    /// Creates the tables or brings them up to date.
    fn migrate() -> ();

    // Transactions.
    /// Begins one, with the lock that the lane needs, and reads what it stands on.
    fn begin(lane: Lane) -> Began;
    /// Begins one that reads nothing yet.
    fn begin_plain() -> ();

    // Loading what a batch names. What is locked is locked in the order of its keys.
    /// Locks agents' rows; the count of outstanding tokens that is in each.
    fn lock_agents(names: &[&str]) -> Vec<(String, i64)>;
    /// Outstanding tokens of agents that did not end by then.
    fn count_outstanding(names: &[&str], ended: i64) -> Vec<(String, i64)>;
    /// Locks pieces of evidence.
    fn lock_evidence(ids: &[Hash]) -> Vec<EvidenceRow>;
    /// Pieces of evidence that go on after `now`.
    fn count_evidence(now: i64) -> i64;
    /// The same by agent; those that have none are left out.
    fn count_evidence_of(names: &[&str], now: i64) -> Vec<(String, i64)>;
    /// Proofs that were used.
    fn proofs(ids: &[Hash]) -> Vec<ProofUse>;
    /// Tokens that are held since before then, those held longest first.
    fn overdue(before: i64, most: i64) -> Vec<Hash>;
    /// Locks tokens.
    fn lock_tokens(hashes: &[Hash]) -> Vec<TokenRow>;
    /// Uses by token or by attempt.
    fn uses(hashes: &[Hash], attempts: &[&str]) -> Vec<UseRow>;
    /// The same, locked.
    fn lock_uses(hashes: &[Hash], attempts: &[&str]) -> Vec<UseRow>;
    /// Approvals by id, by digest, and those open ones that end first.
    fn approvals(ids: &[&str], digests: &[Hash], expiring: i64) -> Vec<Approval>;
    /// Held tokens.
    fn count_held() -> i64;
    /// Open approvals.
    fn count_open() -> i64;
    /// Both, by agent.
    fn counts_of(names: &[&str]) -> Vec<(String, i64, i64)>;
    /// Discovered agents among these.
    fn discovered(names: &[&str]) -> Vec<(String, i64)>;
    /// Discovered agents.
    fn count_discovered() -> i64;
    /// Tokens as they are now, not locked.
    fn tokens_now(hashes: &[Hash]) -> Vec<TokenRow>;
    /// Uses as they are now, not locked.
    fn uses_now(hashes: &[Hash]) -> Vec<UseRow>;

    // Writing back.
    /// Deletes what is gone, writes uses, and the group with its entries where the
    /// epoch and the tables are still those.
    fn spend(writes: &Writes, token: &GroupToken, ground: &Ground) -> Spent;
    /// New tokens.
    fn issue(rows: &[TokenRow]) -> ();
    /// A token comes to be held. How many rows changed.
    fn hold(row: &TokenRow) -> u64;
    /// Grants as they are now. How many rows changed.
    fn count_uses(rows: &[TokenRow]) -> u64;
    /// Evidence as it is now.
    fn put_evidence(rows: &[EvidenceRow]) -> ();
    /// Proofs that are used now: whoever comes second is refused all of it.
    fn put_proofs(rows: &[ProofUse]) -> ();
    /// How many tokens agents have outstanding.
    fn put_outstanding(counts: &[(String, usize)]) -> ();
    /// An approval as it is now; its version.
    fn put_approval(approval: &Approval) -> i64;
    /// A discovered agent.
    fn put_discovered(agent: &str, at_ms: Millis) -> ();
    /// An agent or a stop as it is now; its version.
    fn put_right(right: &Right) -> i64;
    /// Agents are not suspended any more.
    fn confirm() -> ();
    /// Tells whoever listens, once this commits.
    fn notify() -> ();
    /// Rows for agents that have none, in a transaction of their own, sorted.
    fn add_agents(names: &[String]) -> ();

    // Asking what became of a commit.
    /// Whether a group is there.
    fn find_group(token: &GroupToken) -> bool;
    /// Writes something.
    fn barrier(id: i32) -> ();

    // Giving places.
    /// Takes or keeps the lease for so many ms; the fence, when it is this replica's.
    fn lease(replica: &[u8; 16], ms: i64, fence: i64) -> Option<i64>;
    /// Lets others have the lease.
    fn release(replica: &[u8; 16], fence: i64) -> ();
    /// Locks the sequencer's row where the lease is this replica's, and gives the head.
    fn lock_head_of(replica: &[u8; 16], fence: i64) -> Option<Head>;
    /// Locks the sequencer's row, and gives the head.
    fn lock_head() -> Head;
    /// Whether a group waits for its place.
    fn is_waiting() -> bool;
    /// Those that wait, in the order of their ids.
    fn waiting(most: i64) -> Vec<Waiting>;
    /// Their entries' kinds and heads, in their order.
    fn drafts(ids: &[i64]) -> Vec<(i64, String, Vec<u8>)>;
    /// Gives groups their places, those that have none.
    fn put_places(placed: &[Placed]) -> ();
    /// How far the log has come.
    fn put_head(head: &Head) -> ();

    // Epochs.
    /// Begins a transaction with all locks that a batch takes, in its order.
    fn lock_all() -> ();
    /// The database's first row.
    fn put_first(log: &[u8; 16], here: &Place) -> ();
    /// The epoch and where it is; whether it counts as a restore.
    fn put_epoch(epoch: i64, here: &Place, restored: bool) -> ();
    /// Forgets what lives for one epoch.
    fn forget() -> ();
    /// The log's name.
    fn log_name() -> Vec<u8>;
    /// Approvals that are open, in the order of their opening.
    fn open_approvals() -> Vec<Approval>;
    /// Agents are suspended.
    fn suspend(suspended: &Suspension) -> ();
    /// Where the tables are.
    fn place() -> Place;
    /// What the database says of itself.
    fn known() -> Option<Known>;
    /// The leaf hash of the entry with this index.
    fn leaf_at(index: i64) -> Option<Vec<u8>>;

    // What is new.
    /// The epoch and the head.
    fn newest() -> Newest;
    /// Approvals that changed since, by version.
    fn approvals_since(version: i64) -> Vec<(i64, Approval)>;
    /// Discovered agents since, by version.
    fn discovered_since(version: i64) -> Vec<(i64, String, i64)>;
    /// Agents and stops that changed since, by version.
    fn rights_since(version: i64) -> Vec<(i64, Right)>;
    /// Entries from one index up to another.
    fn listed(from: i64, to: i64) -> Vec<ListedRow>;
    /// The latest time of what is committed and has no place yet.
    fn last_time() -> Option<i64>;

    // The log read back.
    /// How long it is.
    fn log_len() -> i64;
    /// Its name; `None` where none was begun.
    fn log_of() -> Option<[u8; 16]>;
    /// Groups that have their place, from the one on that the entry with this index is in.
    fn groups_from(index: i64, most: i64) -> Vec<GroupRow>;
    /// Their entries.
    fn entries_of(ids: &[i64]) -> Vec<EntryRow>;

    // Forgetting, a statement each. Rows that are locked are left.
    /// Tokens that are not held and ended by then.
    fn sweep_tokens(ended: i64, most: i64) -> ();
    /// Uses that ended by then and await nothing; how many went.
    fn sweep_uses(ended: i64, most: i64) -> u64;
    /// Of those that ended and await something, all but the newest `kept`.
    fn sweep_awaited(ended: i64, kept: i64, most: i64) -> ();
    /// Proofs that would not be taken any more; how many went.
    fn sweep_proofs(now: i64, most: i64) -> u64;
    /// Evidence that ended by then.
    fn sweep_evidence(now: i64, most: i64) -> ();
    /// Stops that ended by then.
    fn sweep_rights(now: i64, most: i64) -> ();
    /// Approvals that ended, by a no or otherwise, all but the newest `kept`.
    fn sweep_approvals(denied: bool, kept: i64, most: i64) -> ();
}

impl Conn {
    /// COMMIT, behind something that only a transaction that lives answers.
    pub(crate) async fn commit(&mut self, deadline: Duration) -> Said {
        match self {
            Self::Server(wire) => sql::commit(wire, deadline).await,
            #[cfg(test)]
            Self::Simulated(conn) => conn.commit(deadline).await,
        }
    }

    /// ROLLBACK.
    ///
    /// # Errors
    /// When the server did not answer.
    pub(crate) async fn rollback(&mut self) -> Result<(), PostgresError> {
        match self {
            Self::Server(wire) => sql::rollback(&mut wire.conn).await,
            #[cfg(test)]
            Self::Simulated(conn) => conn.rollback().await,
        }
    }

    /// Ends the connection in good form.
    pub(crate) async fn close(self) {
        match self {
            Self::Server(wire) => sql::close(*wire).await,
            #[cfg(test)]
            Self::Simulated(conn) => conn.close().await,
        }
    }
}
