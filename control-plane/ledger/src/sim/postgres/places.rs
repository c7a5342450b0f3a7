//! What the statements of the sequencer, of epochs and of pollers do, as their SQL
//! does it.

use std::collections::BTreeMap;

use crate::{
    model::{Approval, Right, Suspension},
    postgres::{
        database::{EntryRow, GroupRow, ListedRow, Newest},
        ground::{Known, Place},
        sequencer::{Head, Placed, Waiting},
        values::{from_i64, to_i64},
    },
    sim::postgres::{
        conn::{Code, Conn, Done},
        core::{Key, Lock, Mode, T, Word},
        run,
        statements::{LOCK, READ, WRITE},
        tables::{ApprovalRow, Change, Group, Meta, Placing, Tables},
    },
};

fn clock() -> u128 {
    run::current().map_or(0, |run| run.now().as_millis())
}

/// Giving places.
impl Conn {
    pub(crate) async fn lease(
        &mut self,
        replica: &[u8; 16],
        ms: i64,
        fence: i64,
    ) -> Done<Option<i64>> {
        self.leased = true;
        let seen = self.ask(&[(T::Sequencer, WRITE)]).await?;
        let may = |tables: &Tables| {
            let s = &tables.sequencer;
            let own = s.holder == Some(*replica) && s.fence == fence;
            (own || s.until < clock()).then_some(if own { s.fence } else { s.fence + 1 })
        };
        if may(&seen).is_none() {
            return self.told(Ok(None)).await;
        }
        if let Err(code) = self.acquire_row(T::Sequencer, Key::One).await {
            return self.told(Err(code)).await;
        }
        let taken = may(&self.view());
        if let Some(fence) = taken {
            let until = clock() + u128::from(from_i64(ms));
            self.change(Change::Lease(fence, Some(*replica), until));
        }
        self.told(Ok(taken)).await
    }

    pub(crate) async fn release(&mut self, replica: &[u8; 16], fence: i64) -> Done<()> {
        self.ask(&[(T::Sequencer, WRITE)]).await?;
        let locked = self.acquire_row(T::Sequencer, Key::One).await;
        let s = self.view().sequencer;
        if locked.is_ok() && s.holder == Some(*replica) && s.fence == fence {
            self.change(Change::Lease(fence, s.holder, 0));
        }
        self.told(locked).await
    }

    fn word(&mut self, word: Word) {
        let tx = self.tx.unwrap_or_default();
        if let Some(tx) = self.core().tx(tx) {
            tx.word = Some(word);
        }
    }

    pub(crate) async fn lock_head_of(
        &mut self,
        replica: &[u8; 16],
        fence: i64,
    ) -> Done<Option<Head>> {
        let seen = self.ask(&[(T::Sequencer, LOCK)]).await?;
        let mine = |tables: &Tables| {
            let s = &tables.sequencer;
            (s.holder == Some(*replica) && s.fence == fence).then_some(s.head)
        };
        if mine(&seen).is_none() {
            return self.told(Ok(None)).await;
        }
        self.word(Word::Lease(*replica, fence));
        if planted!(LeaseNotLocked) {
            return self.told(Ok(mine(&seen))).await;
        }
        let locked = self.acquire_row(T::Sequencer, Key::One).await;
        let head = mine(&self.view());
        self.told(locked.map(|()| head)).await
    }

    pub(crate) async fn lock_head(&mut self) -> Done<Head> {
        self.ask(&[(T::Sequencer, LOCK)]).await?;
        self.word(if self.leased {
            Word::Nobody
        } else {
            Word::Anybody
        });
        let locked = self.acquire_row(T::Sequencer, Key::One).await;
        let head = self.view().sequencer.head;
        self.told(locked.map(|()| head)).await
    }

    pub(crate) async fn is_waiting(&mut self) -> Done<bool> {
        let seen = self.ask(&[(T::Groups, READ)]).await?;
        let waits = !waiting(&seen).is_empty();
        self.told(Ok(waits)).await
    }

    pub(crate) async fn waiting(&mut self, most: i64) -> Done<Vec<Waiting>> {
        let seen = self.ask(&[(T::Groups, READ)]).await?;
        let mut groups = waiting(&seen);
        if planted!(PlacesUnordered) {
            groups.reverse();
        }
        groups.truncate(usize::try_from(most).unwrap_or(usize::MAX));
        let groups = groups.into_iter().map(|(id, group)| Waiting {
            id,
            epoch: group.epoch,
            time_ms: group.time_ms,
        });
        self.told(Ok(groups.collect())).await
    }

    pub(crate) async fn drafts(&mut self, ids: &[i64]) -> Done<Vec<(i64, String, Vec<u8>)>> {
        let seen = self.ask(&[(T::Groups, READ)]).await?;
        let groups = ids.iter().filter_map(|id| Some((id, seen.groups.get(id)?)));
        let drafts = groups.flat_map(|(id, group)| {
            let entries = group.entries.iter();
            entries.map(|draft| (*id, draft.kind.clone(), draft.head.clone()))
        });
        self.told(Ok(drafts.collect())).await
    }

    pub(crate) async fn put_places(&mut self, placed: &[Placed]) -> Done<()> {
        let seen = self.ask(&[(T::Groups, WRITE)]).await?;
        let waits = |tables: &Tables, id: &i64| {
            let group = tables.groups.get(id);
            group.is_some_and(|group| group.placed.is_none())
        };
        for group in placed.iter().filter(|group| waits(&seen, &group.id)) {
            if let Err(code) = self.acquire_row(T::Groups, Key::Id(group.id)).await {
                return self.told(Err(code)).await;
            }
            let newest = self.view();
            if !waits(&newest, &group.id) {
                continue;
            }
            let mut others = newest.groups.values().filter_map(|g| g.placed.as_ref());
            if others.any(|other| other.first == group.first) {
                return self.told(Err(Code("23505"))).await;
            }
            let placing = Placing {
                first: group.first,
                time_ms: group.time_ms,
                prev: group.prev,
                leaves: group.leaves.clone(),
            };
            self.change(Change::Placed(group.id, placing));
        }
        self.told(Ok(())).await
    }

    pub(crate) async fn put_head(&mut self, head: &Head) -> Done<()> {
        self.ask(&[(T::Sequencer, WRITE)]).await?;
        let locked = self.acquire_row(T::Sequencer, Key::One).await;
        if locked.is_ok() {
            self.change(Change::Head(*head));
        }
        self.told(locked).await
    }
}

/// Groups that wait, by id.
fn waiting(seen: &Tables) -> Vec<(i64, Group)> {
    let last = seen.groups.iter().filter(|(_, g)| g.placed.is_some());
    let last = last.map(|(id, _)| *id).max();
    let all = seen.groups.iter();
    all.filter(|(id, group)| {
        group.placed.is_none() && !(planted!(LateSkipped) && Some(**id) < last)
    })
    .map(|(id, group)| (*id, group.clone()))
    .collect()
}

/// Epochs.
impl Conn {
    pub(crate) async fn lock_all(&mut self) -> Done<()> {
        self.open();
        self.ask(&[]).await?;
        let all = [
            (Lock::Advisory(2), Mode::Exclusive),
            (Lock::Advisory(1), Mode::Exclusive),
            (Lock::Table(T::Meta), Mode::AccessExclusive),
            (Lock::Table(T::Agents), Mode::Exclusive),
            (Lock::Table(T::Evidence), Mode::AccessExclusive),
            (Lock::Table(T::Tokens), Mode::AccessExclusive),
            (Lock::Table(T::Uses), Mode::AccessExclusive),
            (Lock::Table(T::Sequencer), Mode::RowShare),
            (Lock::Row(T::Sequencer, Key::One), Mode::Exclusive),
            (Lock::Table(T::Groups), Mode::Exclusive),
        ];
        for (lock, mode) in all {
            let forgotten = match lock {
                Lock::Table(T::Meta) => planted!(TablesNotLocked) || planted!(MetaNotLocked),
                Lock::Table(_) => planted!(TablesNotLocked),
                _ => false,
            };
            if forgotten {
                continue;
            }
            if let Err(code) = self.acquire(&lock, mode).await {
                return self.told(Err(code)).await;
            }
        }
        self.told(Ok(())).await
    }

    pub(crate) async fn put_first(&mut self, log: &[u8; 16], here: &Place) -> Done<()> {
        self.ask(&[(T::Meta, WRITE)]).await?;
        let locked = self.acquire_row(T::Meta, Key::One).await;
        if let Err(code) = locked {
            return self.told(Err(code)).await;
        }
        if self.view().meta.is_some() {
            return self.told(Err(Code("23505"))).await;
        }
        self.change(Change::Meta(Meta {
            log: *log,
            epoch: 1,
            identity: here.identity.clone(),
            timeline: here.timeline.clone(),
            suspended: None,
            restored: 0,
            rights: 0,
        }));
        self.told(Ok(())).await
    }

    pub(crate) async fn put_epoch(&mut self, epoch: i64, here: &Place, restored: bool) -> Done<()> {
        self.ask(&[(T::Meta, WRITE)]).await?;
        let locked = self.acquire_row(T::Meta, Key::One).await;
        if locked.is_ok() {
            self.change(Change::Epoch(from_i64(epoch), here.clone(), restored));
        }
        self.told(locked).await
    }

    pub(crate) async fn forget(&mut self) -> Done<()> {
        let all = Mode::AccessExclusive;
        let tables = [(T::Evidence, all), (T::Tokens, all), (T::Uses, all)];
        self.ask(if planted!(TablesNotLocked) {
            &[]
        } else {
            &tables
        })
        .await?;
        if !planted!(RowsKept) {
            self.change(Change::Truncated);
        }
        self.change(Change::NoOutstanding);
        self.told(Ok(())).await
    }

    pub(crate) async fn log_name(&mut self) -> Done<Vec<u8>> {
        let seen = self.ask(&[(T::Meta, READ)]).await?;
        let log = seen.meta.map(|meta| meta.log.to_vec());
        self.told(Ok(log.unwrap_or_default())).await
    }

    pub(crate) async fn open_approvals(&mut self) -> Done<Vec<Approval>> {
        let seen = self.ask(&[(T::Approvals, READ)]).await?;
        let open = seen.approvals.values().filter(|row| row.ended.is_none());
        let mut open: Vec<&ApprovalRow> = open.collect();
        open.sort_by_key(|row| row.opened);
        let open = open.into_iter().map(|row| row.record.clone());
        self.told(Ok(open.collect())).await
    }

    pub(crate) async fn suspend(&mut self, suspended: &Suspension) -> Done<()> {
        self.ask(&[(T::Meta, WRITE)]).await?;
        self.change(Change::Suspended(suspended.clone()));
        self.told(Ok(())).await
    }

    pub(crate) async fn place(&mut self) -> Done<Place> {
        self.ask(&[]).await?;
        if self.standby.is_some() && !planted!(StandbyTaken) {
            return self.told(Err(Code("55000"))).await;
        }
        let place = {
            let core = self.core();
            Place {
                identity: core.identity(),
                timeline: core.timeline_name(),
                tables: i64::from(core.system),
            }
        };
        self.told(Ok(place)).await
    }

    pub(crate) async fn known(&mut self) -> Done<Option<Known>> {
        let seen = self.ask(&[(T::Meta, READ)]).await?;
        let known = seen.meta.map(|meta| Known {
            identity: meta.identity,
            timeline: meta.timeline,
            epoch: meta.epoch,
            restored: meta.restored,
        });
        self.told(Ok(known)).await
    }

    pub(crate) async fn leaf_at(&mut self, index: i64) -> Done<Option<Vec<u8>>> {
        let seen = self.ask(&[(T::Groups, READ)]).await?;
        let placed = seen.groups.values().filter_map(|g| g.placed.as_ref());
        let before = placed.filter(|placing| to_i64(placing.first) <= index);
        let leaf = before.max_by_key(|placing| placing.first).map(|placing| {
            let at = from_i64(index - to_i64(placing.first));
            let at = usize::try_from(at).unwrap_or(usize::MAX).saturating_mul(32);
            let rest = placing.leaves.get(at..).unwrap_or_default();
            rest.get(..32).unwrap_or_default().to_vec()
        });
        self.told(Ok(leaf)).await
    }
}

/// What is new, and the log.
impl Conn {
    pub(crate) async fn newest(&mut self) -> Done<Newest> {
        let seen = self.ask(&[(T::Meta, READ), (T::Sequencer, READ)]).await?;
        let Some(meta) = seen.meta else {
            return Err(sqlx::Error::RowNotFound.into());
        };
        self.told(Ok(Newest {
            epoch: meta.epoch,
            suspended: meta.suspended,
            head: seen.sequencer.head,
            restored: meta.restored,
            rights: meta.rights,
        }))
        .await
    }

    pub(crate) async fn approvals_since(&mut self, version: i64) -> Done<Vec<(i64, Approval)>> {
        let seen = self.ask(&[(T::Approvals, READ)]).await?;
        let newer = seen.approvals.values().filter(|row| row.version > version);
        let newer: BTreeMap<i64, Approval> =
            newer.map(|row| (row.version, row.record.clone())).collect();
        self.told(Ok(newer.into_iter().collect())).await
    }

    pub(crate) async fn discovered_since(&mut self, version: i64) -> Done<Vec<(i64, String, i64)>> {
        let seen = self.ask(&[(T::Discovered, READ)]).await?;
        let newer = seen.discovered.iter().filter(|(_, (_, v))| *v > version);
        let mut newer: Vec<(i64, String, i64)> = newer
            .map(|(agent, (at, v))| (*v, agent.clone(), to_i64(*at)))
            .collect();
        newer.sort();
        self.told(Ok(newer)).await
    }

    pub(crate) async fn rights_since(&mut self, version: i64) -> Done<Vec<(i64, Right)>> {
        let seen = self.ask(&[(T::Rights, READ)]).await?;
        let newer = seen.rights.values().filter(|(_, v)| *v > version);
        let newer: BTreeMap<i64, Right> = newer.map(|(right, v)| (*v, right.clone())).collect();
        self.told(Ok(newer.into_iter().collect())).await
    }

    pub(crate) async fn listed(&mut self, from: i64, to: i64) -> Done<Vec<ListedRow>> {
        let seen = self.ask(&[(T::Groups, READ)]).await?;
        let mut rows = BTreeMap::new();
        for group in seen.groups.values() {
            let Some(placing) = &group.placed else {
                continue;
            };
            for (index, draft) in (placing.first..).zip(group.entries.iter()) {
                let row = ListedRow {
                    index,
                    time_ms: placing.time_ms,
                    kind: draft.kind.clone(),
                    head: draft.head.clone(),
                };
                if (from..to).contains(&to_i64(index)) {
                    rows.insert(index, row);
                }
            }
        }
        self.told(Ok(rows.into_values().collect())).await
    }

    pub(crate) async fn last_time(&mut self) -> Done<Option<i64>> {
        let seen = self.ask(&[(T::Groups, READ)]).await?;
        let last = waiting(&seen).into_iter().map(|(_, g)| to_i64(g.time_ms));
        self.told(Ok(last.max())).await
    }

    pub(crate) async fn log_len(&mut self) -> Done<i64> {
        let seen = self.ask(&[(T::Sequencer, READ)]).await?;
        self.told(Ok(to_i64(seen.sequencer.head.entries))).await
    }

    pub(crate) async fn log_of(&mut self) -> Done<Option<[u8; 16]>> {
        let seen = self.ask(&[(T::Meta, READ)]).await?;
        self.told(Ok(seen.meta.map(|meta| meta.log))).await
    }

    pub(crate) async fn groups_from(&mut self, index: i64, most: i64) -> Done<Vec<GroupRow>> {
        let seen = self.ask(&[(T::Groups, READ)]).await?;
        let mut rows = BTreeMap::new();
        for (id, group) in &*seen.groups {
            let Some(p) = &group.placed else {
                continue;
            };
            let end = to_i64(p.first) + to_i64(group.entries.len() as u64);
            if end > index {
                let row: GroupRow = (
                    *id,
                    to_i64(p.first),
                    to_i64(group.epoch),
                    to_i64(p.time_ms),
                    p.prev,
                    p.leaves.clone(),
                );
                rows.insert(p.first, row);
            }
        }
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        self.told(Ok(rows.into_values().take(most).collect())).await
    }

    pub(crate) async fn entries_of(&mut self, ids: &[i64]) -> Done<Vec<EntryRow>> {
        let seen = self.ask(&[(T::Groups, READ)]).await?;
        let groups = ids.iter().filter_map(|id| Some((id, seen.groups.get(id)?)));
        let entries = groups.flat_map(|(id, group)| {
            (0..).zip(group.entries.iter()).map(|(n, draft)| {
                let (kind, head) = (draft.kind.clone(), draft.head.clone());
                (*id, n, kind, head, draft.attached.clone())
            })
        });
        self.told(Ok(entries.collect())).await
    }
}
