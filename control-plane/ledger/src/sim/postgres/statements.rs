//! What each statement does, as its SQL does it.

use std::collections::BTreeSet;

use crate::{
    embedded::state::partial::{EvidenceRow, TokenRow, UseRow},
    model::{Approval, Hash, Millis, ProofUse},
    postgres::{
        database::{Began, Settings},
        ground::Ground,
        load::Lane,
        values::to_i64,
    },
    sim::postgres::{
        conn::{Code, Conn, Done},
        core::{Key, Lock, Mode, T},
        tables::{ApprovalRow, Tables},
    },
};

pub(super) const READ: Mode = Mode::AccessShare;
pub(super) const LOCK: Mode = Mode::RowShare;
pub(super) const WRITE: Mode = Mode::RowExclusive;

pub(super) fn ended(row: &TokenRow) -> i64 {
    to_i64(row.record.expires_ms)
}

/// As the column has it: what is held does not end.
pub(super) fn until(row: &UseRow) -> i64 {
    to_i64(row.spent.as_ref().map_or(Millis::MAX, |s| s.expires_ms))
}

fn count<T>(rows: impl Iterator<Item = T>) -> i64 {
    i64::try_from(rows.count()).unwrap_or(i64::MAX)
}

/// What needs its order comes in it, unless that was forgotten.
pub(super) fn in_order<K: Ord + Clone>(conn: &Conn, keys: impl IntoIterator<Item = K>) -> Vec<K> {
    let sorted: BTreeSet<K> = keys.into_iter().collect();
    let mut keys: Vec<K> = sorted.into_iter().collect();
    if planted!(LocksUnsorted) {
        for at in (1..keys.len()).rev() {
            let other = conn.core().rng.below(at + 1);
            keys.swap(at, other);
        }
    }
    keys
}

impl Conn {
    pub(crate) async fn settings(&mut self) -> Done<Settings> {
        self.ask(&[]).await?;
        let fsync = self.core().fsync;
        let replicated = self.core().replicated;
        let standby = self.standby.is_some() && !planted!(StandbyTaken);
        self.told(Ok(Settings {
            synchronous_commit: "on".into(),
            fsync: if fsync || planted!(SettingsUnchecked) {
                "on".into()
            } else {
                "off".into()
            },
            full_page_writes: "on".into(),
            standbys: if replicated {
                "s1".into()
            } else {
                String::new()
            },
            standby,
            read_only: "off".into(),
            version: 180_000,
        }))
        .await
    }

    pub(crate) async fn keep_commit(&mut self, _: String) -> Done<()> {
        self.ask(&[]).await?;
        self.told(Ok(())).await
    }

    pub(crate) async fn be_patient(&mut self) -> Done<()> {
        self.ask(&[]).await?;
        self.timeout = std::time::Duration::from_secs(30);
        self.told(Ok(())).await
    }

    pub(crate) async fn migrate(&mut self) -> Done<()> {
        self.ask(&[]).await?;
        self.told(Ok(())).await
    }

    pub(crate) async fn begin(&mut self, lane: Lane) -> Done<Began> {
        self.open();
        let lock = match lane {
            Lane::Shared => None,
            Lane::NewEvidence => (!planted!(EvidenceNotLocked)).then_some(3),
            Lane::Serial | Lane::Rights => (!planted!(SerialNotLocked)).then_some(2),
        };
        self.ask(&[]).await?;
        let lock = lock.map(|lock| (Lock::Advisory(lock), Mode::Exclusive));
        let mode = match lane {
            Lane::Rights if !planted!(RightsNotLocked) => Mode::Exclusive,
            _ => Mode::RowShare,
        };
        let lock = lock.into_iter().chain([(Lock::Advisory(4), mode)]);
        let tables = [T::Meta, T::Sequencer].map(|table| (Lock::Table(table), READ));
        for (lock, mode) in lock.chain(tables) {
            if let Err(code) = self.acquire(&lock, mode).await {
                return self.told(Err(code)).await;
            }
        }
        // What waits for a lock is a statement of its own: this one sees what is there now.
        let seen = self.view();
        let Some(meta) = &seen.meta else {
            return Err(sqlx::Error::RowNotFound.into());
        };
        let began = Began {
            ground: Ground {
                epoch: meta.epoch,
                tables: i64::from(self.core().system),
            },
            suspended: meta.suspended.clone(),
            time_ms: seen.sequencer.head.time_ms,
            entries: seen.sequencer.head.entries,
            rights: meta.rights,
        };
        self.told(Ok(began)).await
    }

    pub(crate) async fn begin_plain(&mut self) -> Done<()> {
        self.open();
        self.ask(&[]).await?;
        self.told(Ok(())).await
    }

    /// Locks rows one after the other, and gives the newest version of each that is
    /// still there: those that the statement saw as it began.
    async fn locked<R>(
        &mut self,
        table: T,
        keys: Vec<Key>,
        newest: impl Fn(&Tables, &Key) -> Option<R>,
    ) -> Result<Vec<R>, Code> {
        let mut rows = Vec::with_capacity(keys.len());
        for key in keys {
            self.acquire_row(table, key.clone()).await?;
            rows.extend(newest(&self.view(), &key));
        }
        Ok(rows)
    }

    pub(crate) async fn lock_agents(&mut self, names: &[&str]) -> Done<Vec<(String, i64)>> {
        let seen = self.ask(&[(T::Agents, LOCK)]).await?;
        let there = names.iter().filter(|name| seen.agents.contains_key(**name));
        let there = in_order(self, there.map(|name| (*name).to_owned()));
        if planted!(AgentsNotLocked) {
            let rows = there.into_iter().filter_map(|name| {
                let count = *seen.agents.get(&name)?;
                Some((name, count))
            });
            let rows: Vec<_> = rows.collect();
            return self.told(Ok(rows)).await;
        }
        let keys = there.into_iter().map(Key::Name).collect();
        let rows = self.locked(T::Agents, keys, |tables, key| match key {
            Key::Name(name) => tables.agents.get(name).map(|n| (name.clone(), *n)),
            _ => None,
        });
        let rows = rows.await;
        self.told(rows).await
    }

    pub(crate) async fn count_outstanding(
        &mut self,
        names: &[&str],
        by: i64,
    ) -> Done<Vec<(String, i64)>> {
        let seen = self.ask(&[(T::Tokens, READ)]).await?;
        let of = |name: &&str| {
            let own = seen
                .tokens
                .values()
                .filter(|row| row.record.agent == **name);
            let left = own.filter(|row| row.held.is_some() || ended(row) > by);
            ((*name).to_owned(), count(left))
        };
        self.told(Ok(names.iter().map(of).collect())).await
    }

    pub(crate) async fn lock_evidence(&mut self, ids: &[Hash]) -> Done<Vec<EvidenceRow>> {
        let seen = self.ask(&[(T::Evidence, LOCK)]).await?;
        let there = ids.iter().filter(|id| seen.evidence.contains_key(*id));
        let keys = in_order(self, there.copied());
        let keys = keys.into_iter().map(Key::Hash).collect();
        let rows = self.locked(T::Evidence, keys, |tables, key| match key {
            Key::Hash(id) => tables.evidence.get(id).cloned(),
            _ => None,
        });
        let rows = rows.await;
        self.told(rows).await
    }

    pub(crate) async fn count_evidence(&mut self, now: i64) -> Done<i64> {
        let seen = self.ask(&[(T::Evidence, READ)]).await?;
        let live = seen.evidence.values();
        let live = count(live.filter(|row| to_i64(row.until_ms) > now));
        self.told(Ok(live)).await
    }

    pub(crate) async fn count_evidence_of(
        &mut self,
        names: &[&str],
        now: i64,
    ) -> Done<Vec<(String, i64)>> {
        let seen = self.ask(&[(T::Evidence, READ)]).await?;
        let of = |name: &&str| {
            let own = seen.evidence.values().filter(|row| row.agent == **name);
            let live = count(own.filter(|row| to_i64(row.until_ms) > now));
            (live > 0).then(|| ((*name).to_owned(), live))
        };
        self.told(Ok(names.iter().filter_map(of).collect())).await
    }

    pub(crate) async fn proofs(&mut self, ids: &[Hash]) -> Done<Vec<ProofUse>> {
        let seen = self.ask(&[(T::Proofs, READ)]).await?;
        let there = ids.iter().filter_map(|id| seen.proofs.get(id).cloned());
        self.told(Ok(there.collect())).await
    }

    pub(crate) async fn overdue(&mut self, before: i64, most: i64) -> Done<Vec<Hash>> {
        let seen = self.ask(&[(T::Tokens, READ)]).await?;
        let held = seen.tokens.iter().filter_map(|(hash, row)| {
            let since = to_i64(row.held.as_ref()?.since_ms);
            (since < before).then_some((since, *hash))
        });
        let held: BTreeSet<(i64, Hash)> = held.collect();
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let first = held.into_iter().take(most).map(|(_, hash)| hash);
        self.told(Ok(first.collect())).await
    }

    pub(crate) async fn lock_tokens(&mut self, hashes: &[Hash]) -> Done<Vec<TokenRow>> {
        let seen = self.ask(&[(T::Tokens, LOCK)]).await?;
        let there = hashes.iter().filter(|hash| seen.tokens.contains_key(*hash));
        let keys = in_order(self, there.copied());
        if planted!(TokensNotLocked) || planted!(SpendUnchecked) {
            let rows = keys
                .iter()
                .filter_map(|hash| seen.tokens.get(hash).cloned());
            return self.told(Ok(rows.collect())).await;
        }
        let keys = keys.into_iter().map(Key::Hash).collect();
        let rows = self.locked(T::Tokens, keys, |tables, key| match key {
            Key::Hash(hash) => tables.tokens.get(hash).cloned(),
            _ => None,
        });
        let rows = rows.await;
        self.told(rows).await
    }

    pub(crate) async fn tokens_now(&mut self, hashes: &[Hash]) -> Done<Vec<TokenRow>> {
        let seen = self.ask(&[(T::Tokens, READ)]).await?;
        let rows = hashes.iter().filter_map(|hash| seen.tokens.get(hash));
        self.told(Ok(rows.cloned().collect())).await
    }

    pub(crate) async fn uses(&mut self, hashes: &[Hash], attempts: &[&str]) -> Done<Vec<UseRow>> {
        let seen = self.ask(&[(T::Uses, READ)]).await?;
        let rows = seen.uses.values();
        let rows = rows.filter(|row| is_named(row, hashes, attempts)).cloned();
        self.told(Ok(rows.collect())).await
    }

    pub(crate) async fn lock_uses(
        &mut self,
        hashes: &[Hash],
        attempts: &[&str],
    ) -> Done<Vec<UseRow>> {
        let seen = self.ask(&[(T::Uses, LOCK)]).await?;
        let named = seen.uses.values();
        let named = named.filter(|row| is_named(row, hashes, attempts));
        let keys = in_order(self, named.map(|row| row.hash));
        let keys = keys.into_iter().map(Key::Hash).collect();
        let rows = self.locked(T::Uses, keys, |tables, key| match key {
            Key::Hash(hash) => tables
                .uses
                .get(hash)
                .filter(|row| is_named(row, hashes, attempts))
                .cloned(),
            _ => None,
        });
        let rows = rows.await;
        self.told(rows).await
    }

    pub(crate) async fn uses_now(&mut self, hashes: &[Hash]) -> Done<Vec<UseRow>> {
        self.uses(hashes, &[]).await
    }

    pub(crate) async fn approvals(
        &mut self,
        ids: &[&str],
        digests: &[Hash],
        expiring: i64,
    ) -> Done<Vec<Approval>> {
        let seen = self.ask(&[(T::Approvals, READ)]).await?;
        let open = seen.approvals.values().filter(|row| row.ended.is_none());
        let ends: BTreeSet<(Millis, &str)> = open
            .map(|row| (row.record.expires_ms, row.record.id.as_str()))
            .collect();
        let most = usize::try_from(expiring).unwrap_or(usize::MAX);
        let ending: BTreeSet<&str> = ends.into_iter().take(most).map(|(_, id)| id).collect();
        let mut found: Vec<&ApprovalRow> = seen
            .approvals
            .values()
            .filter(|row| {
                ids.contains(&row.record.id.as_str())
                    || digests.contains(&row.record.digest)
                    || ending.contains(row.record.id.as_str())
            })
            .collect();
        found.sort_by_key(|row| row.opened);
        let found = found.into_iter().map(|row| row.record.clone()).collect();
        self.told(Ok(found)).await
    }

    pub(crate) async fn count_held(&mut self) -> Done<i64> {
        let seen = self.ask(&[(T::Tokens, READ)]).await?;
        let held = count(seen.tokens.values().filter(|row| row.held.is_some()));
        self.told(Ok(held)).await
    }

    pub(crate) async fn count_open(&mut self) -> Done<i64> {
        let seen = self.ask(&[(T::Approvals, READ)]).await?;
        let open = count(seen.approvals.values().filter(|row| row.ended.is_none()));
        self.told(Ok(open)).await
    }

    pub(crate) async fn counts_of(&mut self, names: &[&str]) -> Done<Vec<(String, i64, i64)>> {
        let seen = self.ask(&[(T::Tokens, READ), (T::Approvals, READ)]).await?;
        let names: BTreeSet<&str> = names.iter().copied().collect();
        let of = |name: &str| {
            let held = seen.tokens.values();
            let held = held.filter(|row| row.held.is_some() && row.record.agent == name);
            let open = seen.approvals.values();
            let open = open.filter(|row| row.ended.is_none() && row.record.agent == name);
            (name.to_owned(), count(held), count(open))
        };
        self.told(Ok(names.into_iter().map(of).collect())).await
    }

    pub(crate) async fn discovered(&mut self, names: &[&str]) -> Done<Vec<(String, i64)>> {
        let seen = self.ask(&[(T::Discovered, READ)]).await?;
        let found = names.iter().filter_map(|name| {
            let (at, _) = seen.discovered.get(*name)?;
            Some(((*name).to_owned(), to_i64(*at)))
        });
        self.told(Ok(found.collect())).await
    }

    pub(crate) async fn count_discovered(&mut self) -> Done<i64> {
        let seen = self.ask(&[(T::Discovered, READ)]).await?;
        self.told(Ok(count(seen.discovered.iter()))).await
    }
}

fn is_named(row: &UseRow, hashes: &[Hash], attempts: &[&str]) -> bool {
    hashes.contains(&row.hash) || attempts.contains(&row.attempt.as_str())
}
