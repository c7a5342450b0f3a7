//! What a replica keeps in memory of the database, for showing and for waking who
//! waits: it may be a moment behind. No decision rests on it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::{
    PostgresError,
    database::{Conn, ListedRow},
    draft,
    ground::Remembered,
    load::rights_of,
    sequencer::Head,
    values::from_i64,
    values::to_i64,
};
use crate::{
    embedded::listing::ListedEntry,
    event::Entry,
    lines::Place,
    model::{Approval, ApprovalState, Given, Hash, Millis, Right, Rights, Suspension},
};

/// Approvals that ended and are still shown: so many that people said no to, and of all
/// others as many.
const ENDED: usize = 1024;
/// The newest entries, which pages list.
const LISTED: usize = 512;

#[derive(Default)]
pub(crate) struct View {
    /// With the version that it had.
    approvals: BTreeMap<String, (i64, Approval)>,
    discovered: BTreeMap<String, Millis>,
    /// What was polled up to: of approvals, and of discovered agents. They are asked
    /// for one after the other, and what is committed between is in one only.
    version: i64,
    discoveries: i64,
    pub(crate) suspended: Option<Suspension>,
    /// With their version; less than 0: to be read anew.
    rights: (i64, Arc<Rights>),
    pub(crate) head: Head,
    /// The latest ledger time that is known here.
    pub(crate) time_ms: Millis,
    pub(crate) epoch: u64,
    /// The epoch that connections stand on, and when one first did.
    stands: (u64, Millis),
    listed: VecDeque<ListedEntry>,
}

/// What a poll brought.
#[derive(Default)]
pub(crate) struct News {
    approvals: Vec<(i64, Approval)>,
    discovered: Vec<(i64, String, Millis)>,
    suspended: Option<Suspension>,
    rights: Option<(i64, Arc<Rights>)>,
    head: Head,
    epoch: u64,
    /// The log is not the one that was known: all that was known is void.
    anew: bool,
    listed: Vec<ListedEntry>,
}

/// What the news changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) entries: bool,
    pub(crate) approvals: bool,
}

impl View {
    pub(crate) fn approval(&self, id: &str) -> Option<&Approval> {
        self.approvals.get(id).map(|(_, approval)| approval)
    }

    pub(crate) fn approvals(&self) -> impl Iterator<Item = &Approval> {
        self.approvals.values().map(|(_, approval)| approval)
    }

    /// The newest approval of a digest that may be used at `now`.
    pub(crate) fn usable(&self, digest: &Hash, now: Millis) -> Option<&Approval> {
        let rights = &self.rights.1;
        let usable = |a: &&Approval| {
            a.digest == *digest
                && a.state == ApprovalState::Approved
                && a.expires_ms > now
                && rights.bar(&Given::from(*a), now).is_none()
        };
        let found = self.approvals().filter(usable);
        found.max_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)))
    }

    pub(crate) fn discovered(&self) -> &BTreeMap<String, Millis> {
        &self.discovered
    }

    pub(crate) fn listing(&self, before: u64, limit: usize) -> Vec<ListedEntry> {
        let older = self.listed.iter().rev().filter(|e| e.index < before);
        older.take(limit).cloned().collect()
    }

    /// Takes in what this replica itself committed.
    pub(crate) fn committed(
        &mut self,
        time_ms: Millis,
        approvals: impl Iterator<Item = (i64, Approval)>,
        discovered: &[(String, Millis)],
        confirmed: bool,
    ) {
        self.time_ms = self.time_ms.max(time_ms);
        for (version, approval) in approvals {
            self.put(version, approval);
        }
        self.discovered.extend(discovered.iter().cloned());
        if confirmed {
            self.suspended = None;
        }
    }

    /// The rights that are known, and their version.
    pub(crate) fn rights(&self) -> (i64, Arc<Rights>) {
        (self.rights.0, Arc::clone(&self.rights.1))
    }

    /// Takes in rights that this replica itself changed. Another's changes of before
    /// may not be known here: then they are read anew, and these shown at once.
    pub(crate) fn righted(&mut self, version: i64, changed: &[Right]) {
        if changed.is_empty() {
            return;
        }
        let rights = Arc::make_mut(&mut self.rights.1);
        for right in changed {
            if let Right::Agent(record) = right {
                self.discovered.remove(&record.agent);
            }
            rights.put(right.clone());
        }
        let next = self
            .rights
            .0
            .saturating_add(i64::try_from(changed.len()).unwrap_or(i64::MAX));
        self.rights.0 = if version == next { version } else { -1 };
    }

    fn put(&mut self, version: i64, approval: Approval) -> bool {
        let known = self.approvals.get(&approval.id);
        if known.is_some_and(|(known, _)| *known >= version) {
            return false;
        }
        self.approvals
            .insert(approval.id.clone(), (version, approval));
        true
    }

    /// Takes in what a poll brought.
    pub(crate) fn merge(&mut self, news: News) -> Changed {
        if news.anew {
            *self = Self {
                rights: (-1, Arc::clone(&self.rights.1)),
                time_ms: self.time_ms,
                stands: self.stands,
                ..Self::default()
            };
        }
        let mut changed = Changed {
            entries: news.anew || news.head.entries > self.head.entries,
            approvals: news.anew,
        };
        for (version, approval) in news.approvals {
            self.version = self.version.max(version);
            changed.approvals |= self.put(version, approval);
        }
        for (version, agent, at) in news.discovered {
            self.discoveries = self.discoveries.max(version);
            self.discovered.insert(agent, at);
        }
        if planted!(OneVersionOfTwo) {
            self.version = self.version.max(self.discoveries);
        }
        if let Some((version, rights)) = news.rights
            && (version > self.rights.0 || news.anew)
        {
            self.discovered
                .retain(|agent, _| rights.agent(agent).is_none());
            self.rights = (version, rights);
            changed.approvals = true;
        }
        Rights::sweep(&mut self.rights.1, self.time_ms);
        self.forget();
        self.suspended = news.suspended;
        if changed.entries {
            self.head = news.head;
        }
        self.time_ms = self.time_ms.max(news.head.time_ms);
        self.epoch = news.epoch;
        let newest = self.listed.back().map(|e| e.index);
        let fresh = news.listed.into_iter().filter(|e| Some(e.index) > newest);
        self.listed.extend(fresh);
        let over = self.listed.len().saturating_sub(LISTED);
        self.listed.drain(..over);
        changed
    }

    /// Those that ended first are forgotten first.
    fn forget(&mut self) {
        let open =
            |a: &Approval| matches!(a.state, ApprovalState::Pending | ApprovalState::Approved);
        for is_denied in [true, false] {
            let kind = |a: &Approval| (a.state == ApprovalState::Denied) == is_denied;
            let ended = self.approvals.values();
            let ended = ended.filter(|(_, a)| !open(a) && kind(a));
            let mut ended: Vec<(i64, String)> = ended.map(|(v, a)| (*v, a.id.clone())).collect();
            if ended.len() > ENDED {
                ended.sort_unstable();
                let over = ended.len() - ENDED;
                for (_, id) in ended.into_iter().take(over) {
                    self.approvals.remove(&id);
                }
            }
        }
    }

    pub(crate) fn since(&self) -> Since {
        Since {
            version: self.version,
            discoveries: if planted!(OneVersionOfTwo) {
                self.version
            } else {
                self.discoveries
            },
            entries: self.head.entries,
            rights: self.rights(),
            epoch: self.epoch,
        }
    }

    /// A connection stands on this epoch, and is used from now on.
    pub(crate) fn stand(&mut self, epoch: u64, now: Millis) {
        if self.stands.0 != epoch {
            self.stands = (epoch, now);
            // Versions may be counted from elsewhere.
            self.rights.0 = -1;
        }
    }

    /// When this replica first stood on the epoch that it stands on: it had begun then.
    pub(crate) fn stands_since(&self) -> Millis {
        self.stands.1
    }

    pub(crate) fn remembered(&self) -> Remembered {
        Remembered {
            epoch: self.epoch,
            head: self.head,
        }
    }
}

/// From where on a poll asks.
#[derive(Clone, Debug)]
pub(crate) struct Since {
    rights: (i64, Arc<Rights>),
    version: i64,
    discoveries: i64,
    entries: u64,
    epoch: u64,
}

/// Asks the primary what is new.
///
/// # Errors
/// When it does not answer, or what it holds is of another version.
pub(crate) async fn poll(conn: &mut Conn, mut since: Since) -> Result<News, PostgresError> {
    let newest = conn.newest().await?;
    let mut news = News {
        epoch: newest.epoch,
        suspended: newest.suspended,
        head: newest.head,
        anew: newest.restored > since.epoch,
        ..News::default()
    };
    if news.anew {
        // Versions, too, are counted from where the backup was.
        (since.version, since.discoveries, since.entries) = (0, 0, 0);
    }
    news.approvals = conn.approvals_since(since.version).await?;
    let discovered = conn.discovered_since(since.discoveries).await?;
    news.discovered = discovered
        .into_iter()
        .map(|(version, agent, at)| (version, agent, from_i64(at)))
        .collect();
    let (known, rights) = &since.rights;
    if newest.rights != *known || news.anew {
        let known = if news.anew { -1 } else { *known };
        let read = rights_of(conn, known, newest.rights, rights).await?;
        news.rights = Some((newest.rights, read));
    }
    if news.head.entries > since.entries {
        news.listed = listed(conn, since.entries, news.head.entries).await?;
    }
    Ok(news)
}

/// The newest entries of those from `from` to `to`.
async fn listed(conn: &mut Conn, from: u64, to: u64) -> Result<Vec<ListedEntry>, PostgresError> {
    let kept = u64::try_from(LISTED).unwrap_or(u64::MAX);
    let from = from.max(to.saturating_sub(kept));
    let rows = conn.listed(to_i64(from), to_i64(to)).await?;
    let mut listed = Vec::with_capacity(rows.len());
    for ListedRow {
        index,
        time_ms,
        kind,
        head,
    } in rows
    {
        let place = Place {
            index,
            time_ms,
            epoch: 0,
            prev: [0; 32],
        };
        let line = audit::Line::decode(&draft::line(&head, &kind, &place))
            .map_err(|error| PostgresError::Content(format!("entry {index}: {error}")))?;
        listed.push(ListedEntry {
            index: place.index,
            time_ms: place.time_ms,
            kind,
            agent: Entry::agent_of(&line.body).map(str::to_owned),
        });
    }
    Ok(listed)
}
