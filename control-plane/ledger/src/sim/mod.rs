//! The embedded ledger under deterministic simulation: one seed decides what
//! callers, clock and disk do, and when the process or the power ends. What is
//! durable is judged after each step by rules of its own. `postgres` has the same for
//! replicas over a database.
//!
//! `WRIT_SIM_SEED=n` runs one seed and prints what happened; `WRIT_SIM_SEEDS=n`
//! runs that many instead of a few. See `docs/decisions/0008-simulation.md`.

mod asking;
pub(crate) mod bugs;
mod callers;
mod damage;
mod disk;
mod durable;
mod exhaustive;
pub(crate) mod grants;
mod history;
mod judging;
mod kinds;
mod machine;
pub(crate) mod postgres;
mod process;
pub(crate) mod rights;
mod rng;
mod tests;
mod whom;
mod world;

/// What must always be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Invariant {
    /// What was durable stays, byte by byte: so what was acknowledged does.
    Durable,
    /// What was answered was durable before, and is what was asked for.
    EarlyAnswer,
    /// A token is spent once, in the epoch that issued it.
    Spend,
    /// Tokens and attempts go from state to state as they may.
    Token,
    /// Approvals do.
    Approval,
    /// What is stopped gets nothing.
    Stopped,
    /// What may be shown once is taken once.
    Once,
    /// With a grant whom it is for gets what it covers, as often as it says.
    Grant,
    /// No limit is overrun.
    Limit,
    /// Lines and groups continue each other; the verifier agrees.
    Chain,
    /// Each start has an epoch, one more than the last.
    Epoch,
    /// What was cut has an entry that says so.
    Gap,
    /// What is shown is what the durable entries say.
    State,
    /// What was refused changed nothing.
    Refusal,
    /// On a full disk what takes rights away goes on, and nothing else.
    Essential,
    /// While the disk is not full a spare is there, for good.
    Reserve,
    /// Segments have their length.
    Layout,
    /// A start refuses for a reason only.
    Start,
    /// Damage to what was durable is not started over.
    Damage,
    /// One process owns the directory.
    Owner,
    /// Who lost the lease continues no log.
    Fence,
    /// Locks are taken in one order.
    Deadlock,
    /// A replica shows what there is, within seconds.
    View,
    /// When nothing goes wrong any more, everything works.
    Stuck,
}

/// An invariant that does not hold, and what was seen.
#[derive(Clone, Debug)]
pub(crate) struct Broken(pub(crate) Invariant, pub(crate) String);
