//! Locking and reading the rows that a batch names.
//!
//! Everywhere in one order, so that no two batches wait for each other: what is
//! serial, new evidence, agents by name, evidence by id, tokens and uses by hash,
//! approvals (which only what is serial touches).

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use super::{
    PostgresError,
    batch::{Elsewhere, Keys},
    database::Conn,
    ground::Remembered,
    owners::{Owners, Reserved, reserve},
    session::Session,
    values::{from_i64, to_count, to_i64},
};
use crate::{
    embedded::state::partial::{EvidenceRow, Rows, forgotten_by},
    model::{Approval, Hash, Limits, Millis, Rights},
};

/// How a batch is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Beside others.
    Shared,
    /// Beside others, but no other brings new evidence.
    NewEvidence,
    /// One after the other, in all replicas.
    Serial,
    /// The same, and beside no other of any kind: rights change.
    Rights,
}

/// The rows, or what has to be there before.
pub(crate) enum Loaded {
    /// With what the batch may issue, until it is over.
    Rows(Box<Rows>, Elsewhere, Option<Reserved>),
    /// These agents have no row yet.
    Agents(Vec<String>),
    /// Begin again as [`Lane::NewEvidence`].
    Evidence,
}

/// What a replica knows before it begins a transaction.
pub(crate) struct Before {
    /// The latest ledger time that it knows of.
    pub(crate) time_ms: Millis,
    pub(crate) remembered: Remembered,
    /// The rights that are known, and their version.
    pub(crate) rights: (i64, Arc<Rights>),
    /// What it counts of owners.
    pub(crate) owners: Arc<Owners>,
}

/// Begins a transaction and loads what `keys` name.
///
/// # Errors
/// The transaction has to be rolled back. [`PostgresError::Moved`]: the tables, the
/// epoch or the log are not what the session was checked against.
pub(crate) async fn begin(
    session: &mut Session,
    lane: Lane,
    keys: &Keys,
    before: &Before,
    limits: &Limits,
) -> Result<Loaded, PostgresError> {
    let ground = session.ground;
    let conn = &mut session.conn;
    let began = conn.begin(lane).await?;
    let Remembered { epoch, head } = before.remembered;
    let lost = epoch == began.ground.epoch && began.entries < head.entries;
    if began.ground != ground || lost {
        return Err(PostgresError::Moved);
    }
    let (known, rights) = &before.rights;
    let rights = match began.rights == *known || planted!(RightsNotRead) {
        true => Arc::clone(rights),
        false => rights_of(conn, *known, began.rights, rights).await?,
    };
    let mut rows = Rows {
        rights,
        epoch: began.ground.epoch,
        suspended: began.suspended,
        time_ms: before.time_ms.max(began.time_ms),
        ..Rows::default()
    };
    let mut elsewhere = Elsewhere::default();
    let mut reserved = None;
    if !keys.agents.is_empty() {
        let missing = agents(conn, keys, &mut rows, limits).await?;
        if !missing.is_empty() {
            return Ok(Loaded::Agents(missing));
        }
        let ended = to_i64(forgotten_by(rows.time_ms));
        let rights = (began.rights, &*rows.rights);
        let owners = reserve(conn, &before.owners, keys, rights, ended, limits).await?;
        rows.outstanding_of = owners.0;
        reserved = Some(owners.1);
    }
    if !keys.evidence.is_empty() && !evidence(conn, keys, &mut rows, &mut elsewhere, lane).await? {
        return Ok(Loaded::Evidence);
    }
    let overdue = overdue(conn, keys).await?;
    if !keys.proofs.is_empty() {
        // Not locked: they never change, and of two that use one both can't write it.
        let ids: Vec<Hash> = keys.proofs.iter().copied().collect();
        rows.proofs = conn.proofs(&ids).await?;
    }
    tokens(conn, keys, &overdue, &mut rows).await?;
    uses(conn, keys, &overdue, &mut rows).await?;
    if matches!(lane, Lane::Serial | Lane::Rights) {
        serial(conn, keys, &mut rows, &mut elsewhere).await?;
    }
    Ok(Loaded::Rows(Box::new(rows), elsewhere, reserved))
}

/// The rights of this version. What is known may be of tables that were set back.
pub(crate) async fn rights_of(
    conn: &mut Conn,
    known: i64,
    version: i64,
    rights: &Arc<Rights>,
) -> Result<Arc<Rights>, PostgresError> {
    let (since, mut rights) = if version < known || known < 0 {
        (0, Rights::default())
    } else {
        (known, Rights::clone(rights))
    };
    for (_, right) in conn.rights_since(since).await? {
        rights.put(right);
    }
    Ok(Arc::new(rights))
}

/// Locks the rows of agents that get tokens; gives those that have none.
async fn agents(
    conn: &mut Conn,
    keys: &Keys,
    rows: &mut Rows,
    limits: &Limits,
) -> Result<Vec<String>, PostgresError> {
    let names: Vec<&str> = keys.agents.keys().map(String::as_str).collect();
    let found = conn.lock_agents(&names).await?;
    if found.len() < keys.agents.len() {
        let known: Vec<&String> = found.iter().map(|(agent, _)| agent).collect();
        let missing = keys.agents.keys().filter(|agent| !known.contains(agent));
        return Ok(missing.cloned().collect());
    }
    rows.outstanding = found
        .into_iter()
        .map(|(agent, count)| (agent, to_count(count)))
        .collect();
    // Spending does not count down, so that spends never wait for each other:
    // a count that would refuse is taken anew.
    let full: Vec<&str> = rows
        .outstanding
        .iter()
        .filter(|(agent, count)| {
            let more = keys.agents.get(agent).copied().unwrap_or_default();
            let most = match keys.granted.contains(agent) {
                true => limits.outstanding_with_grants(),
                false => limits.outstanding_per_agent,
            };
            count.saturating_add(more) > most
        })
        .map(|(agent, _)| agent.as_str())
        .collect();
    if full.is_empty() {
        return Ok(Vec::new());
    }
    let ended = to_i64(forgotten_by(rows.time_ms));
    let counted = conn.count_outstanding(&full, ended).await?;
    for (agent, count) in counted {
        if let Some(found) = rows.outstanding.iter_mut().find(|(a, _)| *a == agent) {
            found.1 = to_count(count);
        }
    }
    Ok(Vec::new())
}

/// Locks evidence. False: some is new, and others may bring new evidence too.
async fn evidence(
    conn: &mut Conn,
    keys: &Keys,
    rows: &mut Rows,
    elsewhere: &mut Elsewhere,
    lane: Lane,
) -> Result<bool, PostgresError> {
    let ids: Vec<Hash> = keys.evidence.iter().copied().collect();
    let now = to_i64(rows.time_ms);
    rows.evidence = conn.lock_evidence(&ids).await?;
    let live = |e: &&EvidenceRow| e.until_ms > rows.time_ms;
    let loaded = rows.evidence.iter().filter(live).count();
    if loaded == keys.evidence.len() {
        return Ok(true);
    }
    if lane != Lane::NewEvidence {
        return Ok(false);
    }
    let total = conn.count_evidence(now).await?;
    elsewhere.evidence = to_count(total).saturating_sub(loaded);
    let names: BTreeSet<&str> = keys
        .agents
        .keys()
        .chain(&keys.showing)
        .map(String::as_str)
        .collect();
    let names: Vec<&str> = names.into_iter().collect();
    let of = conn.count_evidence_of(&names, now).await?;
    rows.evidence_of = of.into_iter().map(|(a, n)| (a, to_count(n))).collect();
    Ok(true)
}

/// Which tokens are held for too long. They are locked with the others, by hash.
async fn overdue(conn: &mut Conn, keys: &Keys) -> Result<Vec<Hash>, PostgresError> {
    let Some((before, most)) = keys.overdue else {
        return Ok(Vec::new());
    };
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    conn.overdue(to_i64(before), most).await
}

async fn tokens(
    conn: &mut Conn,
    keys: &Keys,
    overdue: &[Hash],
    rows: &mut Rows,
) -> Result<(), PostgresError> {
    if keys.tokens.is_empty() && overdue.is_empty() {
        return Ok(());
    }
    let hashes: Vec<Hash> = keys.tokens.iter().chain(overdue).copied().collect();
    rows.tokens = conn.lock_tokens(&hashes).await?;
    Ok(())
}

async fn uses(
    conn: &mut Conn,
    keys: &Keys,
    overdue: &[Hash],
    rows: &mut Rows,
) -> Result<(), PostgresError> {
    if keys.tokens.is_empty() && keys.attempts.is_empty() && overdue.is_empty() {
        return Ok(());
    }
    let hashes: Vec<Hash> = keys.tokens.iter().chain(overdue).copied().collect();
    let attempts: Vec<&str> = keys.attempts.iter().map(String::as_str).collect();
    // An outcome is taken once: its row is locked. A spend's is, by its token.
    rows.uses = if keys.outcomes {
        conn.lock_uses(&hashes, &attempts).await?
    } else {
        conn.uses(&hashes, &attempts).await?
    };
    Ok(())
}

/// What only serial batches need: approvals, and what is counted over all agents.
async fn serial(
    conn: &mut Conn,
    keys: &Keys,
    rows: &mut Rows,
    elsewhere: &mut Elsewhere,
) -> Result<(), PostgresError> {
    // Serial batches count down no agent: these are never written back.
    let agents = rows.tokens.iter().map(|t| t.record.agent.clone());
    rows.outstanding = agents.map(|agent| (agent, usize::MAX >> 1)).collect();
    approvals(conn, keys, rows).await?;
    if !keys.asking.is_empty() {
        counts(conn, keys, rows, elsewhere).await?;
    }
    if !keys.discovered.is_empty() {
        let names: Vec<&str> = keys.discovered.iter().map(String::as_str).collect();
        let found = conn.discovered(&names).await?;
        let total = conn.count_discovered().await?;
        elsewhere.discovered = to_count(total).saturating_sub(found.len());
        rows.discovered = found.into_iter().map(|(a, at)| (a, from_i64(at))).collect();
    }
    Ok(())
}

async fn approvals(conn: &mut Conn, keys: &Keys, rows: &mut Rows) -> Result<(), PostgresError> {
    if keys.approvals.is_empty()
        && keys.digests.is_empty()
        && keys.expiring == 0
        && !keys.cancelling
    {
        return Ok(());
    }
    let ids: Vec<&str> = keys.approvals.iter().map(String::as_str).collect();
    let digests: Vec<Hash> = keys.digests.iter().copied().collect();
    // A little more than is over by the time that is known: the clock goes on.
    let expiring = i64::try_from(keys.expiring).unwrap_or(i64::MAX);
    rows.approvals = conn.approvals(&ids, &digests, expiring).await?;
    if keys.cancelling {
        let known: HashSet<String> = rows.approvals.iter().map(|a| a.id.clone()).collect();
        let open = conn.open_approvals().await?.into_iter();
        rows.approvals
            .extend(open.filter(|a| !known.contains(&a.id)));
    }
    Ok(())
}

async fn counts(
    conn: &mut Conn,
    keys: &Keys,
    rows: &mut Rows,
    elsewhere: &mut Elsewhere,
) -> Result<(), PostgresError> {
    let held = conn.count_held().await?;
    let open = conn.count_open().await?;
    let loaded_held = rows.tokens.iter().filter(|t| t.held.is_some()).count();
    let is_open = |a: &&Approval| {
        use crate::model::ApprovalState::{Approved, Pending};
        matches!(a.state, Pending | Approved)
    };
    let loaded_open = rows.approvals.iter().filter(is_open).count();
    elsewhere.held = to_count(held).saturating_sub(loaded_held);
    elsewhere.approvals = to_count(open).saturating_sub(loaded_open);
    // Holds are counted by the token's agent, approvals by their own.
    let mut names: Vec<&str> = keys.asking.iter().map(String::as_str).collect();
    names.extend(rows.tokens.iter().map(|t| t.record.agent.as_str()));
    let of = conn.counts_of(&names).await?;
    for (agent, held, open) in of {
        rows.held_of.push((agent.clone(), to_count(held)));
        rows.open_of.push((agent, to_count(open)));
    }
    Ok(())
}
