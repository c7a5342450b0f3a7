//! Writing back what a batch changed.

use sqlx::PgConnection;

use super::Done;
use crate::{
    embedded::state::partial::{EvidenceRow, TokenRow, UseRow},
    model::{Approval, ApprovalState, Hash, Millis, ProofUse, Right},
    postgres::{
        PostgresError,
        batch::Writes,
        database::Spent,
        draft::Draft,
        ground::Ground,
        save::GroupToken,
        values::{UseText, outcome, to_count, to_i64},
    },
};

/// The hot path is one statement. `DELETE … RETURNING` decides: whoever is not
/// the one that removed a token did not spend it. A group is of the epoch that the
/// batch was decided in, or it is not written.
const SPEND: &str = "WITH gone AS (DELETE FROM tokens WHERE hash = ANY($1) RETURNING hash), \
     used AS (INSERT INTO uses (hash, attempt, record, until_ms, outcome, awaited) \
       SELECT * FROM unnest($2::bytea[], $3::text[], $4::bytea[], $5::int8[], $6::int4[], $7::bool[]) \
       ON CONFLICT (hash) DO UPDATE SET record = excluded.record, until_ms = excluded.until_ms, \
         outcome = excluded.outcome, awaited = excluded.awaited \
         WHERE uses.attempt = excluded.attempt RETURNING hash), \
     new AS (INSERT INTO groups (id, token, epoch, time_ms, count) \
       SELECT nextval('group_ids'), $8, epoch, $9, $10 FROM meta \
       WHERE epoch = $14 AND tableoid::int8 = $15 RETURNING id), \
     lines AS (INSERT INTO entries (group_id, n, kind, head, attached) \
       SELECT new.id, e.n - 1, e.kind, e.head, e.attached \
       FROM new, unnest($11::text[], $12::bytea[], $13::bytea[]) \
         WITH ORDINALITY e (kind, head, attached, n) RETURNING n) \
     SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM used), (SELECT count(*) FROM lines)";

pub(crate) async fn spend(
    conn: &mut PgConnection,
    writes: &Writes,
    token: &GroupToken,
    ground: &Ground,
) -> Done<Spent> {
    let uses = Uses::new(&writes.uses)?;
    let (kinds, heads, attached) = columns(&writes.drafts);
    let (gone, used, lines) = sqlx::query_as(SPEND)
        .bind(&writes.gone)
        .bind(&uses.hashes)
        .bind(&uses.attempts)
        .bind(&uses.records)
        .bind(&uses.until)
        .bind(&uses.outcomes)
        .bind(&uses.awaited)
        .bind(token.as_slice())
        .bind(to_i64(writes.time_ms))
        .bind(i32::try_from(writes.drafts.len()).unwrap_or(i32::MAX))
        .bind(&kinds)
        .bind(&heads)
        .bind(&attached)
        .bind(to_i64(ground.epoch))
        .bind(ground.tables)
        .fetch_one(conn)
        .await?;
    Ok(Spent {
        gone: to_count(gone),
        used: to_count(used),
        lines: to_count(lines),
    })
}

#[derive(Default)]
struct Uses<'a> {
    hashes: Vec<Hash>,
    attempts: Vec<&'a str>,
    records: Vec<Vec<u8>>,
    until: Vec<i64>,
    outcomes: Vec<Option<i32>>,
    awaited: Vec<bool>,
}

impl<'a> Uses<'a> {
    fn new(rows: &'a [UseRow]) -> Result<Self, PostgresError> {
        let mut columns = Self::default();
        for row in rows {
            let spent = row.spent.as_ref();
            let text = UseText {
                jti: spent.map_or_else(String::new, |s| s.jti.clone()),
                request_id: spent.map_or_else(String::new, |s| s.request_id.clone()),
                grant: spent.and_then(|s| s.grant.clone()),
            };
            columns.hashes.push(row.hash);
            columns.attempts.push(&row.attempt);
            columns.records.push(serde_json::to_vec(&text)?);
            // While it is held, it does not end.
            let until = row.spent.as_ref().map_or(Millis::MAX, |s| s.expires_ms);
            columns.until.push(to_i64(until));
            columns
                .outcomes
                .push(row.spent.as_ref().map(|s| outcome(s.outcome)));
            columns.awaited.push(row.awaited);
        }
        Ok(columns)
    }
}

type Columns<'a> = (Vec<&'a str>, Vec<&'a [u8]>, Vec<&'a [u8]>);

fn columns(drafts: &[Draft]) -> Columns<'_> {
    let mut columns: Columns<'_> = Default::default();
    for draft in drafts {
        columns.0.push(&draft.kind);
        columns.1.push(&draft.head);
        columns.2.push(&draft.attached);
    }
    columns
}

pub(crate) async fn issue(conn: &mut PgConnection, rows: &[TokenRow]) -> Done<()> {
    let mut records = Vec::with_capacity(rows.len());
    for row in rows {
        records.push(serde_json::to_vec(&row.record)?);
    }
    let of = |row: &TokenRow| row.record.token_hash;
    let hashes: Vec<Hash> = rows.iter().map(of).collect();
    let agents: Vec<&str> = rows.iter().map(|r| r.record.agent.as_str()).collect();
    let ends: Vec<i64> = rows.iter().map(|r| to_i64(r.record.expires_ms)).collect();
    let held = |row: &TokenRow| row.held.clone();
    let holders: Vec<Option<String>> = rows.iter().map(|r| held(r).map(|h| h.attempt)).collect();
    let since: Vec<Option<i64>> = rows
        .iter()
        .map(|r| held(r).map(|h| to_i64(h.since_ms)))
        .collect();
    let requests: Vec<Option<Vec<u8>>> = rows
        .iter()
        .map(|r| held(r).map(|h| h.request_id.into_bytes()))
        .collect();
    sqlx::query(
        "INSERT INTO tokens (hash, agent, expires_ms, record, held_by, held_since_ms, request_id) \
         SELECT * FROM unnest($1::bytea[], $2::text[], $3::int8[], $4::bytea[], $5::text[], \
         $6::int8[], $7::bytea[])",
    )
    .bind(&hashes)
    .bind(&agents)
    .bind(&ends)
    .bind(&records)
    .bind(&holders)
    .bind(&since)
    .bind(&requests)
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn hold(conn: &mut PgConnection, row: &TokenRow) -> Done<u64> {
    let Some(held) = &row.held else {
        return Ok(0);
    };
    let done = sqlx::query(
        "UPDATE tokens SET held_by = $2, held_since_ms = $3, request_id = $4 WHERE hash = $1",
    )
    .bind(row.record.token_hash)
    .bind(&held.attempt)
    .bind(to_i64(held.since_ms))
    .bind(held.request_id.as_bytes())
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

pub(crate) async fn count_uses(conn: &mut PgConnection, rows: &[TokenRow]) -> Done<u64> {
    let mut records = Vec::with_capacity(rows.len());
    for row in rows {
        records.push(serde_json::to_vec(&row.record)?);
    }
    let hashes: Vec<Hash> = rows.iter().map(|row| row.record.token_hash).collect();
    let done = sqlx::query(
        "UPDATE tokens SET record = n.record \
         FROM unnest($1::bytea[], $2::bytea[]) n (hash, record) WHERE tokens.hash = n.hash",
    )
    .bind(&hashes)
    .bind(&records)
    .execute(conn)
    .await?;
    Ok(done.rows_affected())
}

pub(crate) async fn put_evidence(conn: &mut PgConnection, rows: &[EvidenceRow]) -> Done<()> {
    let mut keys = Vec::with_capacity(rows.len());
    for row in rows {
        keys.push(serde_json::to_vec(&row.keys)?);
    }
    let ids: Vec<Hash> = rows.iter().map(|e| e.id).collect();
    let agents: Vec<&str> = rows.iter().map(|e| e.agent.as_str()).collect();
    let until: Vec<i64> = rows.iter().map(|e| to_i64(e.until_ms)).collect();
    sqlx::query(
        "INSERT INTO evidence AS e (id, agent, keys, until_ms) \
         SELECT * FROM unnest($1::bytea[], $2::text[], $3::bytea[], $4::int8[]) \
         ON CONFLICT (id) DO UPDATE SET agent = excluded.agent, keys = excluded.keys, \
         until_ms = excluded.until_ms \
         WHERE (e.agent, e.keys, e.until_ms) \
           IS DISTINCT FROM (excluded.agent, excluded.keys, excluded.until_ms)",
    )
    .bind(&ids)
    .bind(&agents)
    .bind(&keys)
    .bind(&until)
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn put_proofs(conn: &mut PgConnection, rows: &[ProofUse]) -> Done<()> {
    let ids: Vec<Hash> = rows.iter().map(|proof| proof.id).collect();
    let by: Vec<&str> = rows.iter().map(|proof| proof.by.as_str()).collect();
    let until: Vec<i64> = rows.iter().map(|proof| to_i64(proof.until_ms)).collect();
    sqlx::query(
        "INSERT INTO proofs (id, used_by, until_ms) \
         SELECT * FROM unnest($1::bytea[], $2::text[], $3::int8[]) n (id) ORDER BY n.id",
    )
    .bind(&ids)
    .bind(&by)
    .bind(&until)
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn put_outstanding(
    conn: &mut PgConnection,
    counts: &[(String, usize)],
) -> Done<()> {
    let of = |(agent, count): &(String, usize)| {
        (agent.clone(), i64::try_from(*count).unwrap_or(i64::MAX))
    };
    let (agents, counts): (Vec<String>, Vec<i64>) = counts.iter().map(of).unzip();
    sqlx::query(
        "UPDATE agents SET outstanding = n.count \
         FROM unnest($1::text[], $2::int8[]) n (agent, count) WHERE agents.agent = n.agent",
    )
    .bind(&agents)
    .bind(&counts)
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn put_approval(conn: &mut PgConnection, approval: &Approval) -> Done<i64> {
    let open = matches!(
        approval.state,
        ApprovalState::Pending | ApprovalState::Approved
    );
    Ok(sqlx::query_scalar(
        "INSERT INTO approvals AS a \
           (id, digest, agent, expires_ms, record, version, opened, ended, denied) \
         SELECT $1, $2, $3, $4, $5, v, v, CASE WHEN $6 THEN NULL ELSE v END, $7 \
         FROM nextval('changes') v \
         ON CONFLICT (id) DO UPDATE SET expires_ms = excluded.expires_ms, \
           record = excluded.record, version = excluded.version, \
           ended = coalesce(a.ended, excluded.ended), denied = excluded.denied \
         RETURNING version",
    )
    .bind(&approval.id)
    .bind(approval.digest)
    .bind(&approval.agent)
    .bind(to_i64(approval.expires_ms))
    .bind(serde_json::to_vec(approval)?)
    .bind(open)
    .bind(approval.state == ApprovalState::Denied)
    .fetch_one(conn)
    .await?)
}

pub(crate) async fn put_discovered(
    conn: &mut PgConnection,
    agent: &str,
    at_ms: Millis,
) -> Done<()> {
    sqlx::query(
        "INSERT INTO discovered (agent, at_ms, version) VALUES ($1, $2, nextval('changes'))",
    )
    .bind(agent)
    .bind(to_i64(at_ms))
    .execute(conn)
    .await?;
    Ok(())
}

/// Under the lock that all batches share: no other changes `meta.rights`.
pub(crate) async fn put_right(conn: &mut PgConnection, right: &Right) -> Done<i64> {
    if let Right::Agent(record) = right {
        sqlx::query("DELETE FROM discovered WHERE agent = $1")
            .bind(&record.agent)
            .execute(&mut *conn)
            .await?;
    }
    Ok(sqlx::query_scalar(
        "WITH put AS (INSERT INTO rights (key, record, until_ms, version) \
           VALUES ($1, $2, $3, nextval('changes')) \
           ON CONFLICT (key) DO UPDATE SET record = excluded.record, \
             until_ms = excluded.until_ms, version = excluded.version RETURNING version) \
         UPDATE meta SET rights = put.version FROM put RETURNING meta.rights",
    )
    .bind(right.key())
    .bind(serde_json::to_vec(right)?)
    .bind(right.until_ms().map(to_i64))
    .fetch_one(conn)
    .await?)
}

pub(crate) async fn confirm(conn: &mut PgConnection) -> Done<()> {
    sqlx::query("UPDATE meta SET suspended = NULL")
        .execute(conn)
        .await?;
    Ok(())
}

pub(crate) async fn notify(conn: &mut PgConnection) -> Done<()> {
    sqlx::query("SELECT pg_notify('writ_approvals', '')")
        .execute(conn)
        .await?;
    Ok(())
}

pub(crate) async fn add_agents(conn: &mut PgConnection, names: &[String]) -> Done<()> {
    sqlx::query(
        "INSERT INTO agents (agent) SELECT a FROM unnest($1::text[]) a ORDER BY a \
         ON CONFLICT DO NOTHING",
    )
    .bind(names)
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn find_group(conn: &mut PgConnection, token: &GroupToken) -> Done<bool> {
    Ok(
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM groups WHERE token = $1)")
            .bind(token.as_slice())
            .fetch_one(conn)
            .await?,
    )
}

pub(crate) async fn barrier(conn: &mut PgConnection, id: i32) -> Done<()> {
    sqlx::query(
        "INSERT INTO barriers AS b (id, n) VALUES ($1, 0) \
         ON CONFLICT (id) DO UPDATE SET n = b.n + 1",
    )
    .bind(id)
    .execute(conn)
    .await?;
    Ok(())
}
