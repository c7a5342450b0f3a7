//! How many tokens the agents of one owner have outstanding, as one replica counts it.
//!
//! No row stands for an owner: all of its agents would wait for each other at it. A replica
//! counts in the tables, keeps that for a while, and adds what it issues itself. So several
//! replicas together may go past the limit, by what they issue while they don't know of each
//! other; and never past the limit for each of them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    PostgresError,
    batch::Keys,
    database::Conn,
    outside::{Instant, elapsed, now},
    values::to_count,
};
use crate::{
    embedded::state::partial::TokenRow,
    model::{Limits, Rights},
};

/// So long a count is good for while less than half of the limit is there.
const FAR: Duration = Duration::from_secs(10);
/// And so long where there is more: what was spent meanwhile still counts until then.
const NEAR: Duration = Duration::from_millis(500);
/// Who owns which agents is gathered anew at most so often, where rights change.
const GATHER: Duration = Duration::from_secs(1);

/// What one replica knows.
#[derive(Default)]
pub(crate) struct Owners {
    counts: Mutex<HashMap<String, Count>>,
    agents: Mutex<Option<Gathered>>,
}

#[derive(Default)]
struct Count {
    counted: Option<Instant>,
    /// What was in the tables then.
    there: usize,
    /// What was issued here since.
    since: usize,
    /// What is being issued here.
    under_way: usize,
}

impl Count {
    fn all(&self) -> usize {
        self.there
            .saturating_add(self.since)
            .saturating_add(self.under_way)
    }

    fn is_due(&self, more: usize, most: usize) -> bool {
        let good_for = match self.all().saturating_add(more) <= most / 2 {
            true => FAR,
            false => NEAR,
        };
        self.counted.is_none_or(|at| elapsed(at) >= good_for)
    }
}

/// The agents of each owner, by the rights of this version.
struct Gathered {
    version: i64,
    at: Instant,
    by_owner: Arc<HashMap<String, Vec<String>>>,
}

/// What a batch is about to issue, by owner: until it is dropped it is under way.
pub(crate) struct Reserved {
    owners: Arc<Owners>,
    more: BTreeMap<String, usize>,
    /// The owners of the batch's agents.
    owner_of: HashMap<String, String>,
    issued: BTreeMap<String, usize>,
}

impl Reserved {
    /// The batch is about to be committed with these.
    pub(crate) fn issues(&mut self, tokens: &[TokenRow]) {
        for row in tokens {
            if let Some(owner) = self.owner_of.get(&row.record.agent) {
                let sum = self.issued.entry(owner.clone()).or_default();
                *sum = sum.saturating_add(1);
            }
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut counts = self.owners.lock();
        for (owner, more) in &self.more {
            if let Some(count) = counts.get_mut(owner) {
                let issued = self.issued.get(owner).copied().unwrap_or_default();
                count.under_way = count.under_way.saturating_sub(*more);
                count.since = count.since.saturating_add(issued);
            }
        }
    }
}

impl Owners {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Count>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The agents of each owner.
    fn gathered(&self, version: i64, rights: &Rights) -> Arc<HashMap<String, Vec<String>>> {
        let mut known = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*known
            && (known.version == version || elapsed(known.at) < GATHER)
        {
            return Arc::clone(&known.by_owner);
        }
        let mut by_owner: HashMap<String, Vec<String>> = HashMap::new();
        for record in rights.agents.values() {
            let agents = by_owner.entry(record.owner.clone()).or_default();
            agents.push(record.agent.clone());
        }
        // Of an owner that has no agent any more nothing is counted.
        self.lock()
            .retain(|owner, count| count.under_way > 0 || by_owner.contains_key(owner));
        let by_owner = Arc::new(by_owner);
        *known = Some(Gathered {
            version,
            at: now(),
            by_owner: Arc::clone(&by_owner),
        });
        by_owner
    }
}

/// What the owners of these agents have outstanding; what the batch may issue is added for
/// those that come after it.
///
/// # Errors
/// The transaction has to be rolled back.
pub(crate) async fn reserve(
    conn: &mut Conn,
    owners: &Arc<Owners>,
    keys: &Keys,
    (version, rights): (i64, &Rights),
    ended: i64,
    limits: &Limits,
) -> Result<(Vec<(String, usize)>, Reserved), PostgresError> {
    let mut more: BTreeMap<String, usize> = BTreeMap::new();
    let mut owner_of = HashMap::new();
    for (agent, count) in &keys.agents {
        if let Some(record) = rights.agent(agent) {
            owner_of.insert(agent.clone(), record.owner.clone());
            let sum = more.entry(record.owner.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
    }
    let most = limits.outstanding_per_owner;
    for (owner, more) in &more {
        let mark = {
            let mut counts = owners.lock();
            let count = counts.entry(owner.clone()).or_default();
            count.is_due(*more, most).then_some(count.since)
        };
        let Some(mark) = mark else {
            continue;
        };
        let by_owner = owners.gathered(version, rights);
        let agents = by_owner.get(owner).map(Vec::as_slice).unwrap_or_default();
        let names: Vec<&str> = agents.iter().map(String::as_str).collect();
        let counted = match planted!(OwnersNotCounted) {
            true => Vec::new(),
            false => conn.count_outstanding(&names, ended).await?,
        };
        let there = counted.into_iter().map(|(_, count)| to_count(count));
        let there = there.fold(0, usize::saturating_add);
        let mut counts = owners.lock();
        let count = counts.entry(owner.clone()).or_default();
        // What was issued before it was counted is in it; what was meanwhile may be twice.
        count.there = there;
        count.since = count.since.saturating_sub(mark);
        count.counted = Some(now());
    }
    let mut counts = owners.lock();
    let mut all = Vec::with_capacity(more.len());
    for (owner, more) in &more {
        let count = counts.entry(owner.clone()).or_default();
        all.push((owner.clone(), count.all()));
        count.under_way = count.under_way.saturating_add(*more);
    }
    drop(counts);
    let owners = Arc::clone(owners);
    let reserved = Reserved {
        owners,
        more,
        owner_of,
        issued: BTreeMap::new(),
    };
    Ok((all, reserved))
}
