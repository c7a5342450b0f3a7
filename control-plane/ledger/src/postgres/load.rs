//! Locking and reading the rows that a batch names.
//!
//! Everywhere in one order, so that no two batches wait for each other: what is
//! serial, new evidence, agents by name, evidence by id, tokens and uses by hash,
//! approvals (which only what is serial touches).

use sqlx::{PgConnection, Row as _, postgres::PgRow, raw_sql};

use super::{
    PostgresError,
    batch::{Elsewhere, Keys},
    ground::{Ground, Remembered},
    session::Session,
    values::{UseText, first_use, from_i64, to_count, to_i64},
};
use crate::{
    embedded::state::partial::{EvidenceRow, Held, Rows, TokenRow, UseRow, forgotten_by},
    model::{Approval, Hash, Limits, Millis, SpentRecord},
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
}

/// The rows, or what has to be there before.
pub(crate) enum Loaded {
    Rows(Box<Rows>, Elsewhere),
    /// These agents have no row yet.
    Agents(Vec<String>),
    /// Begin again as [`Lane::NewEvidence`].
    Evidence,
}

const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; \
     SELECT m.epoch, m.suspended, s.time_ms, m.tableoid::int8, s.entries \
     FROM meta m, sequencer s";
const BEGIN_EVIDENCE: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; \
     SELECT pg_advisory_xact_lock(1465010516, 3); \
     SELECT m.epoch, m.suspended, s.time_ms, m.tableoid::int8, s.entries \
     FROM meta m, sequencer s";
const BEGIN_SERIAL: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; \
     SELECT pg_advisory_xact_lock(1465010516, 2); \
     SELECT m.epoch, m.suspended, s.time_ms, m.tableoid::int8, s.entries \
     FROM meta m, sequencer s";

/// What a replica knows before it begins a transaction.
pub(crate) struct Before {
    /// The latest ledger time that it knows of.
    pub(crate) time_ms: Millis,
    pub(crate) remembered: Remembered,
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
    let begin = match lane {
        Lane::Shared => BEGIN,
        Lane::NewEvidence => BEGIN_EVIDENCE,
        Lane::Serial => BEGIN_SERIAL,
    };
    let read = raw_sql(begin).fetch_all(&mut *conn).await?;
    let meta = read.last().ok_or(sqlx::Error::RowNotFound)?;
    let found = Ground {
        epoch: from_i64(meta.try_get(0)?),
        tables: meta.try_get(3)?,
    };
    let Remembered { epoch, head } = before.remembered;
    let lost = epoch == found.epoch && from_i64(meta.try_get(4)?) < head.entries;
    if found != ground || lost {
        return Err(PostgresError::Moved);
    }
    let suspended: Option<Vec<u8>> = meta.try_get(1)?;
    let mut rows = Rows {
        epoch: found.epoch,
        suspended: suspended
            .map(|json| serde_json::from_slice(&json))
            .transpose()?,
        time_ms: before.time_ms.max(from_i64(meta.try_get(2)?)),
        ..Rows::default()
    };
    let mut elsewhere = Elsewhere::default();
    if !keys.agents.is_empty() {
        let missing = agents(conn, keys, &mut rows, limits).await?;
        if !missing.is_empty() {
            return Ok(Loaded::Agents(missing));
        }
        if !evidence(conn, keys, &mut rows, &mut elsewhere, lane).await? {
            return Ok(Loaded::Evidence);
        }
    }
    let overdue = overdue(conn, keys).await?;
    tokens(conn, keys, &overdue, &mut rows).await?;
    uses(conn, keys, &overdue, &mut rows).await?;
    if lane == Lane::Serial {
        serial(conn, keys, &mut rows, &mut elsewhere).await?;
    }
    Ok(Loaded::Rows(Box::new(rows), elsewhere))
}

/// Locks the rows of agents that get tokens; gives those that have none.
async fn agents(
    conn: &mut PgConnection,
    keys: &Keys,
    rows: &mut Rows,
    limits: &Limits,
) -> Result<Vec<String>, PostgresError> {
    let names: Vec<&str> = keys.agents.keys().map(String::as_str).collect();
    let found: Vec<(String, i64)> = sqlx::query_as(
        "SELECT agent, outstanding FROM agents WHERE agent = ANY($1) ORDER BY agent \
         FOR NO KEY UPDATE",
    )
    .bind(&names)
    .fetch_all(&mut *conn)
    .await?;
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
            count.saturating_add(more) > limits.outstanding_per_agent
        })
        .map(|(agent, _)| agent.as_str())
        .collect();
    if full.is_empty() {
        return Ok(Vec::new());
    }
    let counted: Vec<(String, i64)> = sqlx::query_as(
        "SELECT a, (SELECT count(*) FROM tokens WHERE agent = a \
         AND (held_by IS NOT NULL OR expires_ms > $2)) FROM unnest($1::text[]) a",
    )
    .bind(&full)
    .bind(to_i64(forgotten_by(rows.time_ms)))
    .fetch_all(conn)
    .await?;
    for (agent, count) in counted {
        if let Some(found) = rows.outstanding.iter_mut().find(|(a, _)| *a == agent) {
            found.1 = to_count(count);
        }
    }
    Ok(Vec::new())
}

/// Locks evidence. False: some is new, and others may bring new evidence too.
async fn evidence(
    conn: &mut PgConnection,
    keys: &Keys,
    rows: &mut Rows,
    elsewhere: &mut Elsewhere,
    lane: Lane,
) -> Result<bool, PostgresError> {
    let ids: Vec<Hash> = keys.evidence.iter().copied().collect();
    let now = to_i64(rows.time_ms);
    let found: Vec<(Hash, String, Vec<u8>, i64)> = sqlx::query_as(
        "SELECT id, agent, keys, until_ms FROM evidence WHERE id = ANY($1) ORDER BY id FOR UPDATE",
    )
    .bind(&ids)
    .fetch_all(&mut *conn)
    .await?;
    for (id, agent, keys, until_ms) in found {
        rows.evidence.push(EvidenceRow {
            id,
            agent,
            keys: serde_json::from_slice(&keys)?,
            until_ms: from_i64(until_ms),
        });
    }
    let live = |e: &&EvidenceRow| e.until_ms > rows.time_ms;
    let loaded = rows.evidence.iter().filter(live).count();
    if loaded == keys.evidence.len() {
        return Ok(true);
    }
    if lane != Lane::NewEvidence {
        return Ok(false);
    }
    let total: i64 = sqlx::query_scalar("SELECT count(*) FROM evidence WHERE until_ms > $1")
        .bind(now)
        .fetch_one(&mut *conn)
        .await?;
    elsewhere.evidence = to_count(total).saturating_sub(loaded);
    let names: Vec<&str> = keys.agents.keys().map(String::as_str).collect();
    let of: Vec<(String, i64)> = sqlx::query_as(
        "SELECT agent, count(*) FROM evidence WHERE agent = ANY($1) AND until_ms > $2 \
         GROUP BY agent",
    )
    .bind(&names)
    .bind(now)
    .fetch_all(conn)
    .await?;
    rows.evidence_of = of.into_iter().map(|(a, n)| (a, to_count(n))).collect();
    Ok(true)
}

/// Which tokens are held for too long. They are locked with the others, by hash.
async fn overdue(conn: &mut PgConnection, keys: &Keys) -> Result<Vec<Hash>, PostgresError> {
    let Some((before, most)) = keys.overdue else {
        return Ok(Vec::new());
    };
    let found = sqlx::query_scalar(
        "SELECT hash FROM tokens WHERE held_by IS NOT NULL AND held_since_ms < $1 \
         ORDER BY held_since_ms, hash LIMIT $2",
    )
    .bind(to_i64(before))
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
    .fetch_all(conn)
    .await?;
    Ok(found)
}

async fn tokens(
    conn: &mut PgConnection,
    keys: &Keys,
    overdue: &[Hash],
    rows: &mut Rows,
) -> Result<(), PostgresError> {
    if keys.tokens.is_empty() && overdue.is_empty() {
        return Ok(());
    }
    let hashes: Vec<Hash> = keys.tokens.iter().chain(overdue).copied().collect();
    let found = sqlx::query(
        "SELECT record, held_by, held_since_ms, request_id FROM tokens WHERE hash = ANY($1) \
         ORDER BY hash FOR UPDATE",
    )
    .bind(&hashes)
    .fetch_all(conn)
    .await?;
    for row in &found {
        rows.tokens.push(token_row(row)?);
    }
    Ok(())
}

pub(crate) fn token_row(row: &PgRow) -> Result<TokenRow, PostgresError> {
    let record: Vec<u8> = row.try_get(0)?;
    let held_by: Option<String> = row.try_get(1)?;
    let since: Option<i64> = row.try_get(2)?;
    let request_id: Option<Vec<u8>> = row.try_get(3)?;
    Ok(TokenRow {
        record: serde_json::from_slice(&record)?,
        held: held_by.map(|attempt| Held {
            attempt,
            since_ms: from_i64(since.unwrap_or_default()),
            request_id: String::from_utf8_lossy(&request_id.unwrap_or_default()).into_owned(),
        }),
    })
}

async fn uses(
    conn: &mut PgConnection,
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
    let sql = if keys.outcomes {
        "SELECT hash, attempt, record, until_ms, outcome, awaited FROM uses \
         WHERE hash = ANY($1) OR attempt = ANY($2) ORDER BY hash FOR UPDATE"
    } else {
        "SELECT hash, attempt, record, until_ms, outcome, awaited FROM uses \
         WHERE hash = ANY($1) OR attempt = ANY($2)"
    };
    let found = sqlx::query(sql)
        .bind(&hashes)
        .bind(&attempts)
        .fetch_all(conn)
        .await?;
    for row in &found {
        rows.uses.push(use_row(row)?);
    }
    Ok(())
}

pub(crate) fn use_row(row: &PgRow) -> Result<UseRow, PostgresError> {
    let text: Vec<u8> = row.try_get(2)?;
    let text: UseText = serde_json::from_slice(&text)?;
    let until_ms: i64 = row.try_get(3)?;
    let outcome: Option<i32> = row.try_get(4)?;
    let spent = outcome.map(|outcome| SpentRecord {
        jti: text.jti,
        expires_ms: from_i64(until_ms),
        request_id: text.request_id,
        outcome: first_use(outcome),
    });
    Ok(UseRow {
        hash: row.try_get(0)?,
        attempt: row.try_get(1)?,
        spent,
        awaited: row.try_get(5)?,
    })
}

/// What only serial batches need: approvals, and what is counted over all agents.
async fn serial(
    conn: &mut PgConnection,
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
        let found: Vec<(String, i64)> =
            sqlx::query_as("SELECT agent, at_ms FROM discovered WHERE agent = ANY($1)")
                .bind(&names)
                .fetch_all(&mut *conn)
                .await?;
        let total: i64 = sqlx::query_scalar("SELECT count(*) FROM discovered")
            .fetch_one(&mut *conn)
            .await?;
        elsewhere.discovered = to_count(total).saturating_sub(found.len());
        rows.discovered = found.into_iter().map(|(a, at)| (a, from_i64(at))).collect();
    }
    Ok(())
}

async fn approvals(
    conn: &mut PgConnection,
    keys: &Keys,
    rows: &mut Rows,
) -> Result<(), PostgresError> {
    if keys.approvals.is_empty() && keys.digests.is_empty() && keys.expiring == 0 {
        return Ok(());
    }
    let ids: Vec<&str> = keys.approvals.iter().map(String::as_str).collect();
    let digests: Vec<Hash> = keys.digests.iter().copied().collect();
    // A little more than is over by the time that is known: the clock goes on.
    let found: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT record FROM approvals WHERE id = ANY($1) \
         OR (ended IS NULL AND digest = ANY($2)) \
         OR id IN (SELECT id FROM approvals WHERE ended IS NULL \
                   ORDER BY expires_ms, id LIMIT $3) \
         ORDER BY opened",
    )
    .bind(&ids)
    .bind(&digests)
    .bind(i64::try_from(keys.expiring).unwrap_or(i64::MAX))
    .fetch_all(conn)
    .await?;
    for record in found {
        rows.approvals
            .push(serde_json::from_slice::<Approval>(&record)?);
    }
    Ok(())
}

async fn counts(
    conn: &mut PgConnection,
    keys: &Keys,
    rows: &mut Rows,
    elsewhere: &mut Elsewhere,
) -> Result<(), PostgresError> {
    let held: i64 = sqlx::query_scalar("SELECT count(*) FROM tokens WHERE held_by IS NOT NULL")
        .fetch_one(&mut *conn)
        .await?;
    let open: i64 = sqlx::query_scalar("SELECT count(*) FROM approvals WHERE ended IS NULL")
        .fetch_one(&mut *conn)
        .await?;
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
    let of: Vec<(String, i64, i64)> = sqlx::query_as(
        "SELECT a, (SELECT count(*) FROM tokens WHERE agent = a AND held_by IS NOT NULL), \
         (SELECT count(*) FROM approvals WHERE agent = a AND ended IS NULL) \
         FROM (SELECT DISTINCT unnest($1::text[]) a) n",
    )
    .bind(&names)
    .fetch_all(conn)
    .await?;
    for (agent, held, open) in of {
        rows.held_of.push((agent.clone(), to_count(held)));
        rows.open_of.push((agent, to_count(open)));
    }
    Ok(())
}
