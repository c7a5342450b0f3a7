//! What the statements that write do, as their SQL does it.

use crate::{
    embedded::state::partial::{EvidenceRow, TokenRow, UseRow},
    model::{Approval, ApprovalState, Hash, Millis, ProofUse, Right},
    postgres::{
        batch::Writes,
        database::Spent,
        ground::Ground,
        save::GroupToken,
        values::{from_i64, to_i64},
    },
    sim::postgres::{
        conn::{Code, Conn, Done},
        core::{Key, Lock, Mode, T},
        statements::{READ, WRITE, ended, in_order, until},
        tables::{ApprovalRow, Change, Group, Tables},
    },
};

impl Conn {
    pub(crate) async fn spend(
        &mut self,
        writes: &Writes,
        token: &GroupToken,
        ground: &Ground,
    ) -> Done<Spent> {
        let tables = [
            (T::Tokens, WRITE),
            (T::Uses, WRITE),
            (T::Groups, WRITE),
            (T::Meta, READ),
        ];
        let seen = self.ask(&tables).await?;
        let result = self.spending(writes, token, ground, &seen).await;
        self.told(result).await
    }

    async fn spending(
        &mut self,
        writes: &Writes,
        token: &GroupToken,
        ground: &Ground,
        seen: &Tables,
    ) -> Result<Spent, Code> {
        let mut spent = Spent {
            gone: 0,
            used: 0,
            lines: 0,
        };
        for hash in writes.gone.iter().filter(|h| seen.tokens.contains_key(*h)) {
            self.acquire_row(T::Tokens, Key::Hash(*hash)).await?;
            if self.view().tokens.contains_key(hash) {
                self.change(Change::Token(*hash, None));
                spent.gone += 1;
            }
        }
        if planted!(SpendUnchecked) {
            spent.gone = writes.gone.len();
        }
        for row in &writes.uses {
            self.acquire_row(T::Uses, Key::Hash(row.hash)).await?;
            let attempt = Lock::Attempt(row.attempt.clone());
            self.acquire(&attempt, Mode::Exclusive).await?;
            let newest = self.view();
            match newest.uses.get(&row.hash) {
                Some(there) if there.attempt != row.attempt => continue,
                Some(_) => {}
                None if newest.uses.values().any(|u| u.attempt == row.attempt) => {
                    return Err(Code("23505"));
                }
                None => {}
            }
            self.change(Change::Use(row.hash, Some(row.clone())));
            spent.used += 1;
        }
        let meta = seen.meta.as_ref();
        let tables = i64::from(self.core().system);
        let here = meta.is_some_and(|meta| meta.epoch == ground.epoch) && tables == ground.tables;
        if here && !writes.drafts.is_empty() {
            let id = {
                let mut core = self.core();
                core.group_ids += 1;
                core.group_ids
            };
            let group = Group {
                token: *token,
                epoch: ground.epoch,
                time_ms: writes.time_ms,
                entries: writes.drafts.clone().into(),
                placed: None,
            };
            spent.lines = writes.drafts.len();
            let change = Change::Group(id, group);
            if planted!(EntryOutside) {
                let mut core = self.core();
                let alone = core.begin();
                if let Some(tx) = core.tx(alone) {
                    tx.changes.push(change);
                }
                core.commit(alone, true);
            } else {
                self.change(change);
            }
        }
        Ok(spent)
    }

    pub(crate) async fn issue(&mut self, rows: &[TokenRow]) -> Done<()> {
        self.ask(&[(T::Tokens, WRITE)]).await?;
        let result = self.issuing(rows).await;
        self.told(result).await
    }

    async fn issuing(&mut self, rows: &[TokenRow]) -> Result<(), Code> {
        for row in rows {
            let hash = row.record.token_hash;
            self.acquire_row(T::Tokens, Key::Hash(hash)).await?;
            if self.view().tokens.contains_key(&hash) {
                return Err(Code("23505"));
            }
            self.change(Change::Token(hash, Some(row.clone())));
        }
        Ok(())
    }

    pub(crate) async fn count_uses(&mut self, rows: &[TokenRow]) -> Done<u64> {
        let seen = self.ask(&[(T::Tokens, WRITE)]).await?;
        let result = self.counting(rows, &seen).await;
        self.told(result).await
    }

    async fn counting(&mut self, rows: &[TokenRow], seen: &Tables) -> Result<u64, Code> {
        let mut changed = 0;
        for row in rows {
            let hash = row.record.token_hash;
            if !seen.tokens.contains_key(&hash) {
                continue;
            }
            self.acquire_row(T::Tokens, Key::Hash(hash)).await?;
            if self.view().tokens.contains_key(&hash) {
                self.change(Change::Token(hash, Some(row.clone())));
                changed += 1;
            }
        }
        Ok(changed)
    }

    pub(crate) async fn hold(&mut self, row: &TokenRow) -> Done<u64> {
        let seen = self.ask(&[(T::Tokens, WRITE)]).await?;
        let hash = row.record.token_hash;
        if !seen.tokens.contains_key(&hash) {
            return self.told(Ok(0)).await;
        }
        let locked = self.acquire_row(T::Tokens, Key::Hash(hash)).await;
        let there = self.view().tokens.contains_key(&hash);
        if locked.is_ok() && there {
            self.change(Change::Token(hash, Some(row.clone())));
        }
        self.told(locked.map(|()| u64::from(there))).await
    }

    pub(crate) async fn put_evidence(&mut self, rows: &[EvidenceRow]) -> Done<()> {
        self.ask(&[(T::Evidence, WRITE)]).await?;
        for row in rows {
            let locked = self.acquire_row(T::Evidence, Key::Hash(row.id)).await;
            if let Err(code) = locked {
                return self.told(Err(code)).await;
            }
            self.change(Change::Evidence(row.id, Some(row.clone())));
        }
        self.told(Ok(())).await
    }

    pub(crate) async fn put_proofs(&mut self, rows: &[ProofUse]) -> Done<()> {
        self.ask(&[(T::Proofs, WRITE)]).await?;
        for id in in_order(self, rows.iter().map(|row| row.id)) {
            let locked = self.acquire_row(T::Proofs, Key::Hash(id)).await;
            if let Err(code) = locked {
                return self.told(Err(code)).await;
            }
            if self.view().proofs.contains_key(&id) && !planted!(ProofOverwritten) {
                return self.told(Err(Code("23505"))).await;
            }
            let row = rows.iter().find(|row| row.id == id);
            self.change(Change::Proof(id, row.cloned()));
        }
        self.told(Ok(())).await
    }

    pub(crate) async fn put_outstanding(&mut self, counts: &[(String, usize)]) -> Done<()> {
        let seen = self.ask(&[(T::Agents, WRITE)]).await?;
        let there = counts.iter().filter(|(a, _)| seen.agents.contains_key(a));
        for (agent, count) in there {
            let locked = self.acquire_row(T::Agents, Key::Name(agent.clone())).await;
            if let Err(code) = locked {
                return self.told(Err(code)).await;
            }
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            self.change(Change::Agent(agent.clone(), count));
        }
        self.told(Ok(())).await
    }

    pub(crate) async fn put_approval(&mut self, approval: &Approval) -> Done<i64> {
        self.ask(&[(T::Approvals, WRITE)]).await?;
        let key = Key::Name(approval.id.clone());
        if let Err(code) = self.acquire_row(T::Approvals, key).await {
            return self.told(Err(code)).await;
        }
        let version = {
            let mut core = self.core();
            core.changes += 1;
            core.changes
        };
        let open = matches!(
            approval.state,
            ApprovalState::Pending | ApprovalState::Approved
        );
        let there = self.view().approvals.get(&approval.id).cloned();
        let row = ApprovalRow {
            record: approval.clone(),
            opened: there.as_ref().map_or(version, |row| row.opened),
            ended: there
                .and_then(|row| row.ended)
                .or((!open).then_some(version)),
            version,
        };
        self.change(Change::Approval(approval.id.clone(), Some(row)));
        self.told(Ok(version)).await
    }

    pub(crate) async fn put_discovered(&mut self, agent: &str, at_ms: Millis) -> Done<()> {
        self.ask(&[(T::Discovered, WRITE)]).await?;
        let key = Key::Name(agent.to_owned());
        let locked = self.acquire_row(T::Discovered, key).await;
        if let Err(code) = locked {
            return self.told(Err(code)).await;
        }
        if self.view().discovered.contains_key(agent) {
            return self.told(Err(Code("23505"))).await;
        }
        let version = {
            let mut core = self.core();
            core.changes += 1;
            core.changes
        };
        self.change(Change::Discovered(agent.to_owned(), at_ms, version));
        self.told(Ok(())).await
    }

    pub(crate) async fn put_right(&mut self, right: &Right) -> Done<i64> {
        self.ask(&[(T::Rights, WRITE), (T::Meta, WRITE)]).await?;
        for (table, key) in [(T::Rights, Key::Name(right.key())), (T::Meta, Key::One)] {
            if let Err(code) = self.acquire_row(table, key).await {
                return self.told(Err(code)).await;
            }
        }
        let version = {
            let mut core = self.core();
            core.changes += 1;
            core.changes
        };
        self.change(Change::Right(right.clone(), version));
        self.told(Ok(version)).await
    }

    pub(crate) async fn confirm(&mut self) -> Done<()> {
        self.ask(&[(T::Meta, WRITE)]).await?;
        let locked = self.acquire_row(T::Meta, Key::One).await;
        if locked.is_ok() {
            self.change(Change::Confirmed);
        }
        self.told(locked).await
    }

    pub(crate) async fn notify(&mut self) -> Done<()> {
        self.ask(&[]).await?;
        let tx = self.tx.unwrap_or_default();
        if let Some(tx) = self.core().tx(tx) {
            tx.notify = true;
        }
        self.told(Ok(())).await
    }

    pub(crate) async fn add_agents(&mut self, names: &[String]) -> Done<()> {
        self.ask(&[(T::Agents, WRITE)]).await?;
        for name in in_order(self, names.iter().cloned()) {
            let locked = self.acquire_row(T::Agents, Key::Name(name.clone())).await;
            if let Err(code) = locked {
                return self.told(Err(code)).await;
            }
            if !self.view().agents.contains_key(&name) {
                self.change(Change::Agent(name, 0));
            }
        }
        self.told(Ok(())).await
    }

    pub(crate) async fn find_group(&mut self, token: &GroupToken) -> Done<bool> {
        let seen = self.ask(&[(T::Groups, READ)]).await?;
        let found = seen.groups.values().any(|group| group.token == *token);
        self.told(Ok(found)).await
    }

    pub(crate) async fn barrier(&mut self, id: i32) -> Done<()> {
        self.ask(&[(T::Barriers, WRITE)]).await?;
        let key = Key::Id(i64::from(id));
        let locked = self.acquire_row(T::Barriers, key).await;
        if locked.is_ok() {
            self.change(Change::Barrier(id));
        }
        self.told(locked).await
    }

    pub(crate) async fn sweep_tokens(&mut self, by: i64, most: i64) -> Done<()> {
        let seen = self.ask(&[(T::Tokens, WRITE)]).await?;
        let over = |row: &TokenRow| row.held.is_none() && ended(row) <= by;
        let rows = seen.tokens.iter().filter(|(_, row)| over(row));
        let keys: Vec<Hash> = rows.map(|(hash, _)| *hash).collect();
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        for hash in keys.into_iter().take(most) {
            if self.skips(T::Tokens, Key::Hash(hash)) {
                continue;
            }
            if self.view().tokens.get(&hash).is_some_and(over) {
                self.change(Change::Token(hash, None));
            }
        }
        self.told(Ok(())).await
    }

    pub(crate) async fn sweep_uses(&mut self, by: i64, most: i64) -> Done<u64> {
        let seen = self.ask(&[(T::Uses, WRITE)]).await?;
        let over = |row: &UseRow| until(row) <= by && !row.awaited;
        let rows = seen.uses.iter().filter(|(_, row)| over(row));
        let keys: Vec<Hash> = rows.map(|(hash, _)| *hash).collect();
        let mut gone = 0;
        for hash in keys {
            if gone >= from_i64(most) || self.skips(T::Uses, Key::Hash(hash)) {
                continue;
            }
            if self.view().uses.get(&hash).is_some_and(over) {
                self.change(Change::Use(hash, None));
                gone += 1;
            }
        }
        self.told(Ok(gone)).await
    }

    /// There are never so many that some of them would go.
    pub(crate) async fn sweep_awaited(&mut self, _: i64, _: i64, _: i64) -> Done<()> {
        self.ask(&[(T::Uses, WRITE)]).await?;
        self.told(Ok(())).await
    }

    pub(crate) async fn sweep_evidence(&mut self, now: i64, _: i64) -> Done<()> {
        let seen = self.ask(&[(T::Evidence, WRITE)]).await?;
        let over = |row: &EvidenceRow| to_i64(row.until_ms) <= now;
        let rows = seen.evidence.iter().filter(|(_, row)| over(row));
        let keys: Vec<Hash> = rows.map(|(id, _)| *id).collect();
        for id in keys {
            if self.skips(T::Evidence, Key::Hash(id)) {
                continue;
            }
            if self.view().evidence.get(&id).is_some_and(over) {
                self.change(Change::Evidence(id, None));
            }
        }
        self.told(Ok(())).await
    }

    pub(crate) async fn sweep_proofs(&mut self, now: i64, _: i64) -> Done<u64> {
        let seen = self.ask(&[(T::Proofs, WRITE)]).await?;
        let over = |row: &ProofUse| to_i64(row.until_ms) <= now;
        let rows = seen.proofs.iter().filter(|(_, row)| over(row));
        let keys: Vec<Hash> = rows.map(|(id, _)| *id).collect();
        for id in keys {
            if self.skips(T::Proofs, Key::Hash(id)) {
                continue;
            }
            if self.view().proofs.get(&id).is_some_and(over) {
                self.change(Change::Proof(id, None));
            }
        }
        self.told(Ok(0)).await
    }

    pub(crate) async fn sweep_rights(&mut self, now: i64, _: i64) -> Done<()> {
        let seen = self.ask(&[(T::Rights, WRITE)]).await?;
        let over = |(right, _): &(Right, i64)| right.until_ms().is_some_and(|at| to_i64(at) <= now);
        let rows = seen.rights.iter().filter(|(_, row)| over(row));
        let keys: Vec<String> = rows.map(|(key, _)| key.clone()).collect();
        for key in keys {
            if self.skips(T::Rights, Key::Name(key.clone())) {
                continue;
            }
            if self.view().rights.get(&key).is_some_and(over) {
                self.change(Change::RightGone(key));
            }
        }
        self.told(Ok(())).await
    }

    /// There are never so many that some of them would go.
    pub(crate) async fn sweep_approvals(&mut self, _: bool, _: i64, _: i64) -> Done<()> {
        self.ask(&[(T::Approvals, WRITE)]).await?;
        self.told(Ok(())).await
    }

    /// SKIP LOCKED. False: it is locked now.
    fn skips(&self, table: T, key: Key) -> bool {
        let tx = self.tx.unwrap_or_default();
        let lock = Lock::Row(table, key);
        let mut core = self.core();
        if core.is_locked(tx, &lock) {
            return true;
        }
        core.try_lock(tx, &lock, Mode::Exclusive);
        false
    }
}
