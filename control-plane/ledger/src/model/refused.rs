//! What is answered to a command.

use super::{AgentState, Approval, ApprovalState, Millis, SpentRecord};

/// A commit that is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The entry's index, where the store knows it already: with PostgreSQL the
    /// place in the log is given within a second after the commit.
    pub index: Option<u64>,
    /// The ledger's time of it.
    pub time_ms: Millis,
    /// The approval that was opened or joined (hold), decided, or consumed.
    pub approval: Option<Box<Approval>>,
}

/// Why a command was not committed. Nothing was spent by it, [`Refused::Unknown`] apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such outstanding token, or no such allowed request; what is known of
    /// the token's first use.
    #[error("the token is not outstanding")]
    NotOutstanding(Option<SpentRecord>),
    /// The token ended before the commit.
    #[error("the token expired")]
    TokenExpired,
    /// The token is held by another attempt.
    #[error("the token is held by another request")]
    HeldElsewhere,
    /// The attempt was committed before.
    #[error("this attempt has been decided already")]
    AttemptKnown,
    /// A named limit is reached, or a note is of no known kind or no canonical form.
    #[error("limit reached: {0}")]
    Limit(&'static str),
    /// No such approval, or not in the state that the command needs.
    #[error("the approval is {0:?}")]
    ApprovalState(Option<ApprovalState>),
    /// The digest is not the approval's.
    #[error("the approval covers another action")]
    ApprovalDigest,
    /// A stop covers it; of what kind.
    #[error("it is stopped, by {0}")]
    Stopped(&'static str),
    /// The agent, or one in the chain, is not active.
    #[error("the agent is not active")]
    Inactive,
    /// Something that may be shown once was shown before.
    #[error("it was shown before")]
    Shown,
    /// The proof was used by another exchange.
    #[error("the proof was used before")]
    ProofUsed,
    /// No such grant, or it does not cover this, or has ended.
    #[error("there is no such grant, or it does not cover this")]
    NoGrant,
    /// The registry knows no such agent, and nobody was named who answers for it.
    #[error("this agent is not registered yet, so that it needs an owner too")]
    NoOwner,
    /// There is no such stop.
    #[error("nothing to lift: this is not stopped")]
    NotStopped,
    /// An agent can't go to that state from where it stands.
    #[error("an agent that is {} does not become that", .0.as_str())]
    Transition(AgentState),
    /// The entry would be longer than a line may be.
    #[error("the entry would be larger than a line may be")]
    TooLarge,
    /// Agents are suspended since a restore, until an admin confirms.
    #[error("agents are suspended since a restore, until an admin confirms it")]
    Suspended,
    /// There is no room for the journal to grow, and this is not what takes rights
    /// away. Nothing was written.
    #[error("no space is left for the journal, so only what takes rights away is taken")]
    Full,
    /// The queue is full, the command waited in it for too long, or the ledger
    /// is stopping. Nothing was written.
    #[error("the ledger does not take this now")]
    Unavailable,
    /// The store was asked to commit and its answer is not known: it may have
    /// been written. What it spends counts as spent, what it grants as not granted.
    #[error("it is not known whether this was committed")]
    Unknown,
}
