//! Beginning a transaction, and the rows that a batch names.

use sqlx::{PgConnection, Row as _, postgres::PgRow, raw_sql};

use super::Done;
use crate::{
    embedded::state::partial::{EvidenceRow, Held, TokenRow, UseRow},
    model::{Approval, Hash, ProofUse, SpentRecord},
    postgres::{
        PostgresError,
        database::Began,
        ground::Ground,
        load::Lane,
        values::{UseText, first_use, from_i64},
    },
};

// Rights change while no batch is under way that rests on them: such a batch shares a
// lock, and what changes them has it alone. What is read behind it is the newest.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; \
     SELECT pg_advisory_xact_lock_shared(1465010516, 4); \
     SELECT m.epoch, m.suspended, s.time_ms, m.tableoid::int8, s.entries, m.rights \
     FROM meta m, sequencer s";
const BEGIN_EVIDENCE: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; \
     SELECT pg_advisory_xact_lock(1465010516, 3); \
     SELECT pg_advisory_xact_lock_shared(1465010516, 4); \
     SELECT m.epoch, m.suspended, s.time_ms, m.tableoid::int8, s.entries, m.rights \
     FROM meta m, sequencer s";
const BEGIN_SERIAL: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; \
     SELECT pg_advisory_xact_lock(1465010516, 2); \
     SELECT pg_advisory_xact_lock_shared(1465010516, 4); \
     SELECT m.epoch, m.suspended, s.time_ms, m.tableoid::int8, s.entries, m.rights \
     FROM meta m, sequencer s";
const BEGIN_RIGHTS: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; \
     SELECT pg_advisory_xact_lock(1465010516, 2); \
     SELECT pg_advisory_xact_lock(1465010516, 4); \
     SELECT m.epoch, m.suspended, s.time_ms, m.tableoid::int8, s.entries, m.rights \
     FROM meta m, sequencer s";

pub(crate) async fn begin(conn: &mut PgConnection, lane: Lane) -> Done<Began> {
    let begin = match lane {
        Lane::Shared => BEGIN,
        Lane::NewEvidence => BEGIN_EVIDENCE,
        Lane::Serial => BEGIN_SERIAL,
        Lane::Rights => BEGIN_RIGHTS,
    };
    let read = raw_sql(begin).fetch_all(conn).await?;
    let meta = read.last().ok_or(sqlx::Error::RowNotFound)?;
    let suspended: Option<Vec<u8>> = meta.try_get(1)?;
    Ok(Began {
        ground: Ground {
            epoch: from_i64(meta.try_get(0)?),
            tables: meta.try_get(3)?,
        },
        suspended: suspended
            .map(|json| serde_json::from_slice(&json))
            .transpose()?,
        time_ms: from_i64(meta.try_get(2)?),
        entries: from_i64(meta.try_get(4)?),
        rights: meta.try_get(5)?,
    })
}

pub(crate) async fn begin_plain(conn: &mut PgConnection) -> Done<()> {
    raw_sql("BEGIN ISOLATION LEVEL READ COMMITTED")
        .execute(conn)
        .await?;
    Ok(())
}

pub(crate) async fn lock_agents(
    conn: &mut PgConnection,
    names: &[&str],
) -> Done<Vec<(String, i64)>> {
    Ok(sqlx::query_as(
        "SELECT agent, outstanding FROM agents WHERE agent = ANY($1) ORDER BY agent \
         FOR NO KEY UPDATE",
    )
    .bind(names)
    .fetch_all(conn)
    .await?)
}

pub(crate) async fn count_outstanding(
    conn: &mut PgConnection,
    names: &[&str],
    ended: i64,
) -> Done<Vec<(String, i64)>> {
    Ok(sqlx::query_as(
        "SELECT a, (SELECT count(*) FROM tokens WHERE agent = a \
         AND (held_by IS NOT NULL OR expires_ms > $2)) FROM unnest($1::text[]) a",
    )
    .bind(names)
    .bind(ended)
    .fetch_all(conn)
    .await?)
}

pub(crate) async fn lock_evidence(conn: &mut PgConnection, ids: &[Hash]) -> Done<Vec<EvidenceRow>> {
    let found: Vec<(Hash, String, Vec<u8>, i64)> = sqlx::query_as(
        "SELECT id, agent, keys, until_ms FROM evidence WHERE id = ANY($1) ORDER BY id FOR UPDATE",
    )
    .bind(ids)
    .fetch_all(conn)
    .await?;
    let mut rows = Vec::with_capacity(found.len());
    for (id, agent, keys, until_ms) in found {
        rows.push(EvidenceRow {
            id,
            agent,
            keys: serde_json::from_slice(&keys)?,
            until_ms: from_i64(until_ms),
        });
    }
    Ok(rows)
}

pub(crate) async fn proofs(conn: &mut PgConnection, ids: &[Hash]) -> Done<Vec<ProofUse>> {
    let found: Vec<(Hash, String, i64)> =
        sqlx::query_as("SELECT id, used_by, until_ms FROM proofs WHERE id = ANY($1)")
            .bind(ids)
            .fetch_all(conn)
            .await?;
    let row = |(id, by, until_ms)| ProofUse {
        id,
        by,
        until_ms: from_i64(until_ms),
    };
    Ok(found.into_iter().map(row).collect())
}

pub(crate) async fn count_evidence(conn: &mut PgConnection, now: i64) -> Done<i64> {
    Ok(
        sqlx::query_scalar("SELECT count(*) FROM evidence WHERE until_ms > $1")
            .bind(now)
            .fetch_one(conn)
            .await?,
    )
}

pub(crate) async fn count_evidence_of(
    conn: &mut PgConnection,
    names: &[&str],
    now: i64,
) -> Done<Vec<(String, i64)>> {
    Ok(sqlx::query_as(
        "SELECT agent, count(*) FROM evidence WHERE agent = ANY($1) AND until_ms > $2 \
         GROUP BY agent",
    )
    .bind(names)
    .bind(now)
    .fetch_all(conn)
    .await?)
}

pub(crate) async fn overdue(conn: &mut PgConnection, before: i64, most: i64) -> Done<Vec<Hash>> {
    Ok(sqlx::query_scalar(
        "SELECT hash FROM tokens WHERE held_by IS NOT NULL AND held_since_ms < $1 \
         ORDER BY held_since_ms, hash LIMIT $2",
    )
    .bind(before)
    .bind(most)
    .fetch_all(conn)
    .await?)
}

pub(crate) async fn lock_tokens(conn: &mut PgConnection, hashes: &[Hash]) -> Done<Vec<TokenRow>> {
    let found = sqlx::query(
        "SELECT record, held_by, held_since_ms, request_id FROM tokens WHERE hash = ANY($1) \
         ORDER BY hash FOR UPDATE",
    )
    .bind(hashes)
    .fetch_all(conn)
    .await?;
    found.iter().map(token_row).collect()
}

pub(crate) async fn tokens_now(conn: &mut PgConnection, hashes: &[Hash]) -> Done<Vec<TokenRow>> {
    let found = sqlx::query(
        "SELECT record, held_by, held_since_ms, request_id FROM tokens WHERE hash = ANY($1)",
    )
    .bind(hashes)
    .fetch_all(conn)
    .await?;
    found.iter().map(token_row).collect()
}

fn token_row(row: &PgRow) -> Result<TokenRow, PostgresError> {
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

pub(crate) async fn uses(
    conn: &mut PgConnection,
    hashes: &[Hash],
    attempts: &[&str],
) -> Done<Vec<UseRow>> {
    let found = sqlx::query(
        "SELECT hash, attempt, record, until_ms, outcome, awaited FROM uses \
         WHERE hash = ANY($1) OR attempt = ANY($2)",
    )
    .bind(hashes)
    .bind(attempts)
    .fetch_all(conn)
    .await?;
    found.iter().map(use_row).collect()
}

pub(crate) async fn lock_uses(
    conn: &mut PgConnection,
    hashes: &[Hash],
    attempts: &[&str],
) -> Done<Vec<UseRow>> {
    let found = sqlx::query(
        "SELECT hash, attempt, record, until_ms, outcome, awaited FROM uses \
         WHERE hash = ANY($1) OR attempt = ANY($2) ORDER BY hash FOR UPDATE",
    )
    .bind(hashes)
    .bind(attempts)
    .fetch_all(conn)
    .await?;
    found.iter().map(use_row).collect()
}

pub(crate) async fn uses_now(conn: &mut PgConnection, hashes: &[Hash]) -> Done<Vec<UseRow>> {
    let found = sqlx::query(
        "SELECT hash, attempt, record, until_ms, outcome, awaited FROM uses \
         WHERE hash = ANY($1)",
    )
    .bind(hashes)
    .fetch_all(conn)
    .await?;
    found.iter().map(use_row).collect()
}

fn use_row(row: &PgRow) -> Result<UseRow, PostgresError> {
    let text: Vec<u8> = row.try_get(2)?;
    let text: UseText = serde_json::from_slice(&text)?;
    let until_ms: i64 = row.try_get(3)?;
    let outcome: Option<i32> = row.try_get(4)?;
    let spent = outcome.map(|outcome| SpentRecord {
        jti: text.jti,
        expires_ms: from_i64(until_ms),
        request_id: text.request_id,
        outcome: first_use(outcome),
        grant: text.grant,
    });
    Ok(UseRow {
        hash: row.try_get(0)?,
        attempt: row.try_get(1)?,
        spent,
        awaited: row.try_get(5)?,
    })
}

pub(crate) async fn approvals(
    conn: &mut PgConnection,
    ids: &[&str],
    digests: &[Hash],
    expiring: i64,
) -> Done<Vec<Approval>> {
    let found: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT record FROM approvals WHERE id = ANY($1) \
         OR digest = ANY($2) \
         OR id IN (SELECT id FROM approvals WHERE ended IS NULL \
                   ORDER BY expires_ms, id LIMIT $3) \
         ORDER BY opened",
    )
    .bind(ids)
    .bind(digests)
    .bind(expiring)
    .fetch_all(conn)
    .await?;
    read_approvals(found)
}

pub(super) fn read_approvals(records: Vec<Vec<u8>>) -> Done<Vec<Approval>> {
    let mut approvals = Vec::with_capacity(records.len());
    for record in records {
        approvals.push(serde_json::from_slice(&record)?);
    }
    Ok(approvals)
}

pub(crate) async fn count_held(conn: &mut PgConnection) -> Done<i64> {
    Ok(
        sqlx::query_scalar("SELECT count(*) FROM tokens WHERE held_by IS NOT NULL")
            .fetch_one(conn)
            .await?,
    )
}

pub(crate) async fn count_open(conn: &mut PgConnection) -> Done<i64> {
    Ok(
        sqlx::query_scalar("SELECT count(*) FROM approvals WHERE ended IS NULL")
            .fetch_one(conn)
            .await?,
    )
}

pub(crate) async fn counts_of(
    conn: &mut PgConnection,
    names: &[&str],
) -> Done<Vec<(String, i64, i64)>> {
    Ok(sqlx::query_as(
        "SELECT a, (SELECT count(*) FROM tokens WHERE agent = a AND held_by IS NOT NULL), \
         (SELECT count(*) FROM approvals WHERE agent = a AND ended IS NULL) \
         FROM (SELECT DISTINCT unnest($1::text[]) a) n",
    )
    .bind(names)
    .fetch_all(conn)
    .await?)
}

pub(crate) async fn discovered(
    conn: &mut PgConnection,
    names: &[&str],
) -> Done<Vec<(String, i64)>> {
    Ok(
        sqlx::query_as("SELECT agent, at_ms FROM discovered WHERE agent = ANY($1)")
            .bind(names)
            .fetch_all(conn)
            .await?,
    )
}

pub(crate) async fn count_discovered(conn: &mut PgConnection) -> Done<i64> {
    Ok(sqlx::query_scalar("SELECT count(*) FROM discovered")
        .fetch_one(conn)
        .await?)
}
