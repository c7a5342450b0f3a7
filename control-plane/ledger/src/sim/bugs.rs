//! Bugs that tests plant, one at a time, to see that they are found.
//!
//! Those of the ledger's own code are where [`planted!`] stands in it; the others
//! are calls that the simulated disk leaves out or does at the wrong time, as if
//! the ledger had not made them, or not then. None of it is compiled outside tests.

use std::cell::Cell;

use audit::group::{BLOCK, HEADER_LEN, Header};
use sha2::{Digest, Sha256};

use crate::sim::Invariant;

macro_rules! bugs {
    ($($(#[doc = $what:literal])+ $bug:ident: $($found:ident)|+,)+) => {
        /// One planted bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Bug {
            $($(#[doc = $what])+ $bug,)+
        }

        /// All of them, with the invariants that may find each.
        pub(crate) const BUGS: &[(Bug, &[Invariant])] = &[
            $((Bug::$bug, &[$(Invariant::$found),+]),)+
        ];
    };
}

bugs! {
    // The order of writing, syncing and answering.
    /// A group is not synced.
    NoSync: EarlyAnswer | Durable,
    /// A group is synced before it is written.
    SyncBeforeWrite: EarlyAnswer | Durable,
    /// A sync that failed counts as done.
    SyncErrorIgnored: EarlyAnswer | Durable | Chain,
    /// A write that failed counts as done.
    WriteErrorIgnored: EarlyAnswer | Durable | Chain,
    /// Callers are answered before the sync.
    AnswerBeforeSync: EarlyAnswer | Refusal,
    /// State is published before the sync.
    PublishBeforeSync: State,
    /// A refusal, and what came before it, is answered before the sync.
    RefusalBeforeSync: EarlyAnswer | Refusal,
    // Files and names.
    /// A new file is not synced before it is put in place.
    NewFileNotSynced: EarlyAnswer | Durable | Start | Reserve,
    /// The directory is not synced after recovery put the last segment in place.
    RecoveryDirNotSynced: EarlyAnswer | Durable,
    /// The directory is not synced after the spare was made.
    SpareDirNotSynced: Reserve,
    /// The directory is not synced after the spare became a segment.
    RollDirNotSynced: EarlyAnswer | Durable,
    /// That there was no room counts as written.
    FullIgnored: Layout | Reserve | EarlyAnswer | Durable,
    /// A spare that does not hold zeros is used.
    SpareNotZeroed: Reserve | Durable | Start | Gap | Chain,
    /// A group reaches past the end of its segment.
    PastTheEnd: Layout,
    /// Going on to the next segment leaves the number as it was.
    StaleSegment: Chain | EarlyAnswer | Durable,
    /// Group numbers begin anew in each segment.
    GroupsRestart: Chain,
    /// The lock is not taken.
    LockNotTaken: Owner,
    // The chain.
    /// A line names the head that was published, not the line before it.
    StalePrev: Chain | Start,
    /// A group says that it begins with entry 0.
    StaleFirst: Chain,
    /// The clock may go back.
    ClockBack: Chain,
    /// A refused command takes an index.
    RefusalCounts: Chain | Refusal,
    // Recovery.
    /// The last segment is not written anew.
    TailNotRewritten: Durable | Start | Chain | EarlyAnswer,
    /// A torn tail stays where it is.
    TornKept: Chain | Gap | Durable | Start,
    /// No room is left at a segment's end for what recovery has to say.
    NoRecoveryRoom: Gap,
    /// A snapshot is believed that no entry proves.
    SnapshotUnproven: State | Durable | Chain | Start,
    /// A torn tail is cut without an entry.
    CutSilently: Gap,
    /// A new epoch has the number of the last one.
    EpochReused: Epoch,
    /// The last group is not replayed.
    LastGroupSkipped: Durable | EarlyAnswer | Start,
    /// The last group's attachments are not checked.
    AttachmentsUnchecked: Chain | Gap | Durable,
    /// A group's digest is not checked.
    DigestUnchecked: Damage | Chain | Gap,
    /// Damage in a segment that has a successor is cut.
    SealedCut: Damage | Durable | Start,
    /// Damage before a group that proves it is cut.
    ProofIgnored: Damage | Durable,
    /// A journal that is gone is begun anew.
    BegunAnew: Damage | Durable,
    // What a full disk leaves.
    /// Everything is taken on a full disk.
    FullTakesAll: Essential,
    /// Nothing is taken on a full disk.
    FullRefusesAll: Essential,
    /// A start on a full disk leaves what is reserved alone.
    ReserveNotUsed: Start,
    /// A start on a full disk takes everything again.
    FullStartTakesAll: Essential,
    // What may happen.
    /// A new epoch keeps what was outstanding.
    EpochKeepsTokens: Spend | State | Token,
    /// A spent token can be spent again.
    SpendKeepsToken: Spend | Token,
    /// A held token can be spent by another attempt.
    HeldByOther: Token,
    /// An attempt can be used again for another token.
    AttemptUnchecked: Token,
    /// An expired token can be spent.
    ExpiredSpent: Token,
    /// An approval can be used again.
    ApprovalTwice: Approval,
    /// An approval can be used for another action.
    ApprovalDigestUnchecked: Approval,
    /// An approval can be used after its end.
    ApprovalExpiryUnchecked: Approval,
    /// One more key per piece of evidence than the limit.
    KeysOverrun: Limit,
    /// One more outstanding token per agent than the limit.
    OutstandingOverrun: Limit,
    /// One more held request per agent than the limit.
    HeldOverrun: Limit,
    /// One request can have many outcomes.
    OutcomeTwice: Token,
    /// What is too long for the line of an approval is not kept beside it.
    CutApprovalNotKept: State,
}

thread_local! {
    static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Whether this thread runs with the bug.
pub(crate) fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Runs with a bug, or with none.
pub(crate) fn with<T>(bug: Option<Bug>, run: impl FnOnce() -> T) -> T {
    PLANTED.set(bug);
    let result = run();
    PLANTED.set(None);
    result
}

/// Gives every group the digest that it should have, whatever it holds.
pub(crate) fn right_digests(bytes: &mut [u8]) {
    for at in (0..bytes.len()).step_by(BLOCK) {
        let Ok(header) = Header::decode(&bytes[at..]) else {
            continue;
        };
        let end = at + HEADER_LEN + header.lines_len as usize;
        if end > bytes.len() {
            continue;
        }
        let digest = Sha256::new()
            .chain_update(&bytes[at..at + 128])
            .chain_update(&bytes[at + HEADER_LEN..end])
            .finalize();
        bytes[at + 128..at + HEADER_LEN].copy_from_slice(&digest);
    }
}
