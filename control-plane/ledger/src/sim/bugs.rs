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
    (
        $($(#[doc = $what:literal])+ $bug:ident: $($found:ident)|+,)+;
        $($(#[doc = $other:literal])+ $postgres:ident: $($finds:ident)|+,)+
    ) => {
        /// One planted bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Bug {
            $($(#[doc = $what])+ $bug,)+
            $($(#[doc = $other])+ $postgres,)+
        }

        /// All of the embedded ledger, with the invariants that may find each.
        pub(crate) const BUGS: &[(Bug, &[Invariant])] = &[
            $((Bug::$bug, &[$(Invariant::$found),+]),)+
        ];

        /// The same of the ledger on PostgreSQL.
        pub(crate) const POSTGRES_BUGS: &[(Bug, &[Invariant])] = &[
            $((Bug::$postgres, &[$(Invariant::$finds),+]),)+
        ];
    };
}

bugs! {
    // Rights.
    /// What is stopped may go on.
    StopUnchecked: Stopped,
    /// One person lifts the stop of everything.
    OneLifts: Stopped,
    /// What may be shown once is taken twice.
    OnceTwice: Once,
    /// A proof is used by two exchanges.
    ProofTwice: Once,
    /// An agent acts after the end of its registration.
    EndUnchecked: Stopped,
    /// What an agent had at its registration's end comes back when that is renewed.
    EndForgotten: Stopped,
    /// What is done for a user who is stopped goes on.
    UserUnchecked: Stopped,
    /// What an agent does for a user goes on when that is stopped.
    DelegationUnchecked: Stopped,
    // Grants.
    /// What was got with a grant that is stopped goes on.
    LineageUnchecked: Stopped,
    /// What was passed on goes on when the key is stopped of whom it came from.
    AncestorsUnchecked: Stopped,
    /// An agent gets grants while half of its room is taken.
    GrantsOverrun: Limit,
    /// A delegation brings more than its uses.
    UsesOverrun: Grant,
    /// A delegation is used by another agent than its holder.
    HolderUnchecked: Grant,
    /// What is got with a grant is for another user.
    GrantUserUnchecked: Grant,
    /// A deferral brings a token for another action.
    DeferralWidened: Grant,
    /// What is got with a grant outlives it.
    GrantTimeUnchecked: Grant,
    /// A refresh token is used twice.
    RefreshTwice: Grant | Spend | State | Token,
    /// A grant lets a request pass.
    GrantPasses: Grant,
    // The order of writing, syncing and answering.
    /// A group is not synced.
    NoSync: EarlyAnswer | Durable,
    /// A group is synced before it is written.
    SyncBeforeWrite: EarlyAnswer | Durable,
    /// A sync that failed counts as done.
    SyncErrorIgnored: EarlyAnswer | Durable | Chain,
    /// A write that failed counts as done.
    WriteErrorIgnored: EarlyAnswer | Durable | Chain | State,
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
    /// The last part of a segment is taken before it is known that there is a next one.
    ReserveNotAwaited: Essential,
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
    /// People are asked again what one has just said no to.
    DeniedAskedAgain: Approval,
    /// One more key per piece of evidence than the limit.
    KeysOverrun: Limit,
    /// One more outstanding token per agent than the limit.
    OutstandingOverrun: Limit,
    /// One more outstanding token per owner than the limit.
    OwnerOverrun: Limit,
    /// What an agent has stays with the owner that it had.
    OwnerKept: Limit | State | Refusal,
    /// One more held request per agent than the limit.
    HeldOverrun: Limit,
    /// One request can have many outcomes.
    OutcomeTwice: Token,
    /// What is too long for the line of an approval is not kept beside it.
    CutApprovalNotKept: State,
    ;
    // Locks.
    /// Rows are locked in no order.
    LocksUnsorted: Deadlock,
    /// Tokens are read and not locked.
    TokensNotLocked: Token | Spend | Limit | Refusal | Deadlock,
    /// Tokens are read and not locked, and it is not asked how many a delete took.
    SpendUnchecked: Spend | Token | Deadlock,
    /// Agents' rows are read and not locked.
    AgentsNotLocked: Limit,
    /// A proof that somebody used meanwhile is written over.
    ProofOverwritten: Once,
    /// A replica knows of what it issues itself alone, and that for a while.
    OwnersNotCounted: Limit,
    /// New evidence is brought side by side.
    EvidenceNotLocked: Limit | Once,
    /// What humans decide is committed side by side.
    SerialNotLocked: Limit | Approval | Token | View | State | Deadlock,
    // Commits.
    /// Callers are answered before the commit.
    AnswerBeforeCommit: EarlyAnswer,
    /// A commit that was not answered counts as done.
    DoubtIsYes: EarlyAnswer,
    /// A commit that was not answered counts as not done.
    DoubtIsNo: Refusal,
    /// A commit that was not answered is tried again.
    DoubtRetried: Refusal | Durable,
    /// A group that is there counts as durable.
    FoundIsProof: EarlyAnswer,
    /// What the server says beside a commit's answer is not heard.
    NoticeIgnored: EarlyAnswer,
    /// Entries are committed apart from what they say.
    EntryOutside: Refusal | Durable | Token | Spend | State | Approval | Limit | Epoch | Chain,
    /// A server that loses what it acknowledged is used.
    SettingsUnchecked: Durable | Gap | EarlyAnswer | Chain,
    /// A standby is used.
    StandbyTaken: State | Stuck | View | Deadlock,
    // The log.
    /// Who lost the lease is not stopped.
    FenceIgnored: Fence,
    /// The lease is looked at and not locked.
    LeaseNotLocked: Chain | Fence | Gap | Deadlock,
    /// A group that is committed after later ones gets no place: what rests on it may show
    /// that first.
    LateSkipped: Gap | Approval,
    /// Groups get their places in another order than theirs: whatever rests on what came
    /// before it may show that.
    PlacesUnordered: Token | Spend | Approval | Epoch | Chain | Limit | Stopped | Grant,
    /// The log's time goes back with a replica's clock.
    TimeGoesBack: Chain,
    // Epochs.
    /// A changed timeline begins no epoch.
    TimelineIgnored: Epoch | Durable | Gap,
    /// A new epoch has the number of the last one.
    NumberReused: Epoch | Token | Spend,
    /// A new epoch keeps what was outstanding.
    RowsKept: Spend | Token | State | Limit,
    /// Approvals stay open in a new epoch.
    ApprovalsKept: Approval | State,
    /// What was lost is not said.
    RestoreUnsaid: Gap | Approval,
    /// Tables are not locked while an epoch begins.
    TablesNotLocked: Epoch | Spend | Token | State | Limit | Chain | EarlyAnswer | Deadlock,
    /// An epoch locks tables, and not what every batch reads first.
    MetaNotLocked: Deadlock | Stuck,
    // Rights.
    /// Rights change beside batches that rest on them.
    RightsNotLocked: Stopped,
    /// A replica goes on with the rights that it knew.
    RightsNotRead: Stopped | Chain,
    // Showing.
    /// What was asked for first counts as seen up to what was asked for next.
    OneVersionOfTwo: View,
    /// A replica looks for what is new only when it is told.
    OnlyWhenTold: View | Stuck,
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
