//! Where the tables are, and what an epoch begins with.

use sqlx::{PgConnection, raw_sql};

use super::{Done, load::read_approvals};
use crate::{
    model::{Approval, Suspension},
    postgres::{
        PostgresError,
        ground::{FORMAT, Known, Place},
        values::from_i64,
    },
};

/// What every batch reads first, so that each is committed before the epoch begins or
/// sees that it did: a batch of outcomes comes to `uses` before `tokens`, and others the
/// other way, so that no order of the tables would suit both. Then all that is written
/// without that, and the sequencer, each in its order.
const LOCKS: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; \
     SELECT pg_advisory_xact_lock(1465010516, 2); SELECT pg_advisory_xact_lock(1465010516, 1); \
     LOCK TABLE meta IN ACCESS EXCLUSIVE MODE; \
     LOCK TABLE agents IN EXCLUSIVE MODE; \
     LOCK TABLE evidence, tokens, uses, proofs IN ACCESS EXCLUSIVE MODE; \
     SELECT fence FROM sequencer FOR UPDATE; LOCK TABLE groups IN EXCLUSIVE MODE";

pub(crate) async fn lock_all(conn: &mut PgConnection) -> Done<()> {
    raw_sql(LOCKS).execute(conn).await?;
    Ok(())
}

pub(crate) async fn put_first(conn: &mut PgConnection, log: &[u8; 16], here: &Place) -> Done<()> {
    sqlx::query(
        "INSERT INTO meta (log, format, epoch, identity, timeline) VALUES ($1, $2, 1, $3, $4)",
    )
    .bind(log.as_slice())
    .bind(FORMAT)
    .bind(&here.identity)
    .bind(&here.timeline)
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn put_epoch(
    conn: &mut PgConnection,
    epoch: i64,
    here: &Place,
    restored: bool,
) -> Done<()> {
    sqlx::query(
        "UPDATE meta SET epoch = $1, identity = $2, timeline = $3, \
         restored = CASE WHEN $4 THEN $1 ELSE restored END",
    )
    .bind(epoch)
    .bind(&here.identity)
    .bind(&here.timeline)
    .bind(restored)
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn forget(conn: &mut PgConnection) -> Done<()> {
    raw_sql(
        "TRUNCATE evidence, tokens, uses, proofs; UPDATE agents SET outstanding = 0 WHERE outstanding <> 0",
    )
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn log_name(conn: &mut PgConnection) -> Done<Vec<u8>> {
    Ok(sqlx::query_scalar("SELECT log FROM meta")
        .fetch_one(conn)
        .await?)
}

pub(crate) async fn open_approvals(conn: &mut PgConnection) -> Done<Vec<Approval>> {
    let open =
        sqlx::query_scalar("SELECT record FROM approvals WHERE ended IS NULL ORDER BY opened")
            .fetch_all(conn)
            .await?;
    read_approvals(open)
}

pub(crate) async fn suspend(conn: &mut PgConnection, suspended: &Suspension) -> Done<()> {
    sqlx::query("UPDATE meta SET suspended = $1")
        .bind(serde_json::to_vec(suspended)?)
        .execute(conn)
        .await?;
    Ok(())
}

pub(crate) async fn place(conn: &mut PgConnection) -> Done<Place> {
    let (identity, timeline, tables) = sqlx::query_as(
        "SELECT system_identifier::text || '/' || \
           (SELECT oid::text FROM pg_database WHERE datname = current_database()) || '/' || \
           'meta'::regclass::oid::text, \
         left(pg_walfile_name(pg_current_wal_lsn()), 8), 'meta'::regclass::oid::int8 \
         FROM pg_control_system()",
    )
    .fetch_one(conn)
    .await?;
    Ok(Place {
        identity,
        timeline,
        tables,
    })
}

pub(crate) async fn known(conn: &mut PgConnection) -> Done<Option<Known>> {
    let found: Option<(String, String, i64, i64, i32)> =
        sqlx::query_as("SELECT identity, timeline, epoch, restored, format FROM meta")
            .fetch_optional(conn)
            .await?;
    let Some((identity, timeline, epoch, restored, format)) = found else {
        return Ok(None);
    };
    if format != FORMAT {
        let what = format!("format {format}, where this version writes {FORMAT}");
        return Err(PostgresError::Content(what));
    }
    Ok(Some(Known {
        identity,
        timeline,
        epoch: from_i64(epoch),
        restored: from_i64(restored),
    }))
}

pub(crate) async fn leaf_at(conn: &mut PgConnection, index: i64) -> Done<Option<Vec<u8>>> {
    Ok(sqlx::query_scalar(
        "SELECT substring(leaves FROM least(32 * ($1 - first_index) + 1, 1000000000)::int4 FOR 32) \
         FROM groups WHERE first_index <= $1 ORDER BY first_index DESC LIMIT 1",
    )
    .bind(index)
    .fetch_optional(conn)
    .await?)
}
