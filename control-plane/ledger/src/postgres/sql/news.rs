//! What is new, and forgetting what ended.

use sqlx::{PgConnection, Row as _};

use super::Done;
use crate::{
    model::{Approval, Right},
    postgres::{
        database::{EntryRow, GroupRow, ListedRow, Newest},
        sequencer::Head,
        values::from_i64,
    },
};

pub(crate) async fn newest(conn: &mut PgConnection) -> Done<Newest> {
    let row = sqlx::query(
        "SELECT m.epoch, m.suspended, s.entries, s.head, s.time_ms, m.restored, m.rights \
         FROM meta m, sequencer s",
    )
    .fetch_one(conn)
    .await?;
    let suspended: Option<Vec<u8>> = row.try_get(1)?;
    Ok(Newest {
        epoch: from_i64(row.try_get(0)?),
        suspended: suspended
            .map(|json| serde_json::from_slice(&json))
            .transpose()?,
        head: Head {
            entries: from_i64(row.try_get(2)?),
            leaf: row.try_get(3)?,
            time_ms: from_i64(row.try_get(4)?),
        },
        restored: from_i64(row.try_get(5)?),
        rights: row.try_get(6)?,
    })
}

pub(crate) async fn approvals_since(
    conn: &mut PgConnection,
    version: i64,
) -> Done<Vec<(i64, Approval)>> {
    let found: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT version, record FROM approvals WHERE version > $1 ORDER BY version")
            .bind(version)
            .fetch_all(conn)
            .await?;
    let mut approvals = Vec::with_capacity(found.len());
    for (version, record) in found {
        approvals.push((version, serde_json::from_slice(&record)?));
    }
    Ok(approvals)
}

pub(crate) async fn discovered_since(
    conn: &mut PgConnection,
    version: i64,
) -> Done<Vec<(i64, String, i64)>> {
    Ok(sqlx::query_as(
        "SELECT version, agent, at_ms FROM discovered WHERE version > $1 ORDER BY version",
    )
    .bind(version)
    .fetch_all(conn)
    .await?)
}

pub(crate) async fn rights_since(conn: &mut PgConnection, version: i64) -> Done<Vec<(i64, Right)>> {
    let found: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT version, record FROM rights WHERE version > $1 ORDER BY version")
            .bind(version)
            .fetch_all(conn)
            .await?;
    let mut rights = Vec::with_capacity(found.len());
    for (version, record) in found {
        rights.push((version, serde_json::from_slice(&record)?));
    }
    Ok(rights)
}

pub(crate) async fn listed(conn: &mut PgConnection, from: i64, to: i64) -> Done<Vec<ListedRow>> {
    let rows: Vec<(i64, i64, String, Vec<u8>)> = sqlx::query_as(
        "SELECT g.first_index + e.n, g.line_time_ms, e.kind, e.head \
         FROM (SELECT id, first_index, line_time_ms FROM groups \
               WHERE first_index > $1 - 4096 AND first_index < $2 ) g \
         JOIN entries e ON e.group_id = g.id \
         WHERE g.first_index + e.n >= $1 AND g.first_index + e.n < $2 ORDER BY 1",
    )
    .bind(from)
    .bind(to)
    .fetch_all(conn)
    .await?;
    let listed = rows.into_iter().map(|(index, time, kind, head)| ListedRow {
        index: from_i64(index),
        time_ms: from_i64(time),
        kind,
        head,
    });
    Ok(listed.collect())
}

pub(crate) async fn last_time(conn: &mut PgConnection) -> Done<Option<i64>> {
    Ok(
        sqlx::query_scalar("SELECT max(time_ms) FROM groups WHERE first_index IS NULL")
            .fetch_one(conn)
            .await?,
    )
}

pub(crate) async fn sweep_tokens(conn: &mut PgConnection, ended: i64, most: i64) -> Done<()> {
    sqlx::query(
        "DELETE FROM tokens WHERE hash IN (SELECT hash FROM tokens \
           WHERE held_by IS NULL AND expires_ms <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED)",
    )
    .bind(ended)
    .bind(most)
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn sweep_uses(conn: &mut PgConnection, ended: i64, most: i64) -> Done<u64> {
    let done = sqlx::query(
        "DELETE FROM uses WHERE hash IN (SELECT hash FROM uses \
           WHERE until_ms <= $1 AND NOT awaited LIMIT $2 FOR UPDATE SKIP LOCKED)",
    )
    .bind(ended)
    .bind(most)
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

pub(crate) async fn sweep_awaited(
    conn: &mut PgConnection,
    ended: i64,
    kept: i64,
    most: i64,
) -> Done<()> {
    sqlx::query(
        "DELETE FROM uses WHERE hash IN (SELECT hash FROM uses WHERE awaited AND until_ms <= $1 \
           ORDER BY until_ms DESC OFFSET $2 LIMIT $3 FOR UPDATE SKIP LOCKED)",
    )
    .bind(ended)
    .bind(kept)
    .bind(most)
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn sweep_proofs(conn: &mut PgConnection, now: i64, most: i64) -> Done<u64> {
    let done = sqlx::query(
        "DELETE FROM proofs WHERE id IN (SELECT id FROM proofs WHERE until_ms <= $1 \
           LIMIT $2 FOR UPDATE SKIP LOCKED)",
    )
    .bind(now)
    .bind(most)
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

pub(crate) async fn sweep_evidence(conn: &mut PgConnection, now: i64, most: i64) -> Done<()> {
    sqlx::query(
        "DELETE FROM evidence WHERE id IN (SELECT id FROM evidence WHERE until_ms <= $1 \
           LIMIT $2 FOR UPDATE SKIP LOCKED)",
    )
    .bind(now)
    .bind(most)
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn sweep_rights(conn: &mut PgConnection, now: i64, most: i64) -> Done<()> {
    sqlx::query(
        "DELETE FROM rights WHERE key IN (SELECT key FROM rights WHERE until_ms <= $1 \
           LIMIT $2 FOR UPDATE SKIP LOCKED)",
    )
    .bind(now)
    .bind(most)
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn sweep_approvals(
    conn: &mut PgConnection,
    denied: bool,
    kept: i64,
    most: i64,
) -> Done<()> {
    sqlx::query(
        "DELETE FROM approvals WHERE id IN (SELECT id FROM approvals WHERE ended IS NOT NULL \
           AND denied = $3 ORDER BY ended DESC OFFSET $1 LIMIT $2 FOR UPDATE SKIP LOCKED)",
    )
    .bind(kept)
    .bind(most)
    .bind(denied)
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn log_len(conn: &mut PgConnection) -> Done<i64> {
    Ok(sqlx::query_scalar("SELECT entries FROM sequencer")
        .fetch_one(conn)
        .await?)
}

pub(crate) async fn log_of(conn: &mut PgConnection) -> Done<Option<[u8; 16]>> {
    Ok(sqlx::query_scalar("SELECT log FROM meta")
        .fetch_optional(conn)
        .await?)
}

pub(crate) async fn groups_from(
    conn: &mut PgConnection,
    index: i64,
    most: i64,
) -> Done<Vec<GroupRow>> {
    Ok(sqlx::query_as(
        "SELECT id, first_index, epoch, line_time_ms, prev, leaves FROM groups \
         WHERE first_index >= coalesce((SELECT max(first_index) FROM groups \
                                        WHERE first_index <= $1), 0) \
           AND first_index + count > $1 ORDER BY first_index LIMIT $2",
    )
    .bind(index)
    .bind(most)
    .fetch_all(conn)
    .await?)
}

pub(crate) async fn entries_of(conn: &mut PgConnection, ids: &[i64]) -> Done<Vec<EntryRow>> {
    Ok(sqlx::query_as(
        "SELECT group_id, n, kind, head, attached FROM entries WHERE group_id = ANY($1) \
         ORDER BY group_id, n",
    )
    .bind(ids)
    .fetch_all(conn)
    .await?)
}
