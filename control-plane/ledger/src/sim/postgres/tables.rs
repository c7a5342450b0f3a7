//! What the tables hold, and one change of a row.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    embedded::state::partial::{EvidenceRow, TokenRow, UseRow},
    model::{Approval, Hash, Millis, ProofUse, Right, Suspension},
    postgres::{draft::Draft, ground::Place, save::GroupToken, sequencer::Head},
};

#[derive(Clone, Debug)]
pub(crate) struct Meta {
    pub(crate) log: [u8; 16],
    pub(crate) epoch: u64,
    pub(crate) identity: String,
    pub(crate) timeline: String,
    pub(crate) suspended: Option<Suspension>,
    pub(crate) restored: u64,
    pub(crate) rights: i64,
}

#[derive(Clone, Debug)]
pub(crate) struct ApprovalRow {
    pub(crate) record: Approval,
    pub(crate) opened: i64,
    pub(crate) ended: Option<i64>,
    pub(crate) version: i64,
}

#[derive(Clone, Debug)]
pub(crate) struct Placing {
    pub(crate) first: u64,
    pub(crate) time_ms: Millis,
    pub(crate) prev: Hash,
    pub(crate) leaves: Vec<u8>,
}

#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) token: GroupToken,
    pub(crate) epoch: u64,
    pub(crate) time_ms: Millis,
    pub(crate) entries: Arc<[Draft]>,
    pub(crate) placed: Option<Placing>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Sequencer {
    pub(crate) fence: i64,
    pub(crate) holder: Option<[u8; 16]>,
    /// By the server's clock, in ms of virtual time.
    pub(crate) until: u128,
    pub(crate) head: Head,
}

type Table<K, V> = Arc<BTreeMap<K, V>>;

/// All that is committed, or seen by a statement.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tables {
    pub(crate) meta: Option<Meta>,
    pub(crate) agents: Table<String, i64>,
    pub(crate) tokens: Table<Hash, TokenRow>,
    pub(crate) uses: Table<Hash, UseRow>,
    pub(crate) evidence: Table<Hash, EvidenceRow>,
    pub(crate) proofs: Table<Hash, ProofUse>,
    pub(crate) approvals: Table<String, ApprovalRow>,
    pub(crate) discovered: Table<String, (Millis, i64)>,
    pub(crate) rights: Table<String, (Right, i64)>,
    pub(crate) groups: Table<i64, Group>,
    pub(crate) sequencer: Sequencer,
    pub(crate) barriers: Table<i32, i64>,
}

/// A row as a transaction leaves it.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Meta(Meta),
    Confirmed,
    Suspended(Suspension),
    Epoch(u64, Place, bool),
    Agent(String, i64),
    NoOutstanding,
    Token(Hash, Option<TokenRow>),
    Use(Hash, Option<UseRow>),
    Evidence(Hash, Option<EvidenceRow>),
    Proof(Hash, Option<ProofUse>),
    Approval(String, Option<ApprovalRow>),
    Discovered(String, Millis, i64),
    Right(Right, i64),
    RightGone(String),
    Group(i64, Group),
    Placed(i64, Placing),
    Head(Head),
    Lease(i64, Option<[u8; 16]>, u128),
    Truncated,
    Barrier(i32),
}

fn put<K: Ord + Clone, V: Clone>(table: &mut Table<K, V>, key: &K, row: Option<&V>) {
    let table = Arc::make_mut(table);
    match row {
        Some(row) => table.insert(key.clone(), row.clone()),
        None => table.remove(key),
    };
}

impl Tables {
    pub(crate) fn apply(&mut self, change: &Change) {
        match change {
            Change::Meta(meta) => self.meta = Some(meta.clone()),
            Change::Confirmed => {
                if let Some(meta) = &mut self.meta {
                    meta.suspended = None;
                }
            }
            Change::Suspended(suspended) => {
                if let Some(meta) = &mut self.meta {
                    meta.suspended = Some(suspended.clone());
                }
            }
            Change::Epoch(epoch, here, restored) => {
                if let Some(meta) = &mut self.meta {
                    meta.epoch = *epoch;
                    meta.identity.clone_from(&here.identity);
                    meta.timeline.clone_from(&here.timeline);
                    if *restored {
                        meta.restored = *epoch;
                    }
                }
            }
            Change::Agent(agent, count) => put(&mut self.agents, agent, Some(count)),
            Change::NoOutstanding => {
                for count in Arc::make_mut(&mut self.agents).values_mut() {
                    *count = 0;
                }
            }
            Change::Token(hash, row) => put(&mut self.tokens, hash, row.as_ref()),
            Change::Use(hash, row) => put(&mut self.uses, hash, row.as_ref()),
            Change::Evidence(id, row) => put(&mut self.evidence, id, row.as_ref()),
            Change::Proof(id, row) => put(&mut self.proofs, id, row.as_ref()),
            Change::Approval(id, row) => put(&mut self.approvals, id, row.as_ref()),
            Change::Discovered(agent, at, version) => {
                put(&mut self.discovered, agent, Some(&(*at, *version)));
            }
            Change::Right(right, version) => {
                if let Right::Agent(record) = right {
                    put(&mut self.discovered, &record.agent, None);
                }
                put(
                    &mut self.rights,
                    &right.key(),
                    Some(&(right.clone(), *version)),
                );
                if let Some(meta) = &mut self.meta {
                    meta.rights = *version;
                }
            }
            Change::RightGone(key) => put(&mut self.rights, key, None),
            Change::Group(id, group) => put(&mut self.groups, id, Some(group)),
            Change::Placed(id, placing) => {
                if let Some(group) = Arc::make_mut(&mut self.groups).get_mut(id) {
                    group.placed = Some(placing.clone());
                }
            }
            Change::Head(head) => self.sequencer.head = *head,
            Change::Lease(fence, holder, until) => {
                self.sequencer.fence = *fence;
                self.sequencer.holder = *holder;
                self.sequencer.until = *until;
            }
            Change::Truncated => {
                self.tokens = Arc::default();
                self.uses = Arc::default();
                self.evidence = Arc::default();
                self.proofs = Arc::default();
            }
            Change::Barrier(id) => {
                *Arc::make_mut(&mut self.barriers).entry(*id).or_default() += 1;
            }
        }
    }
}
