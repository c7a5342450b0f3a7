//! The lease of who gives places, and the places.

use sqlx::PgConnection;

use super::Done;
use crate::{
    model::Hash,
    postgres::{
        sequencer::{Head, Placed, Waiting},
        values::{from_i64, to_i64},
    },
};

pub(crate) async fn lease(
    conn: &mut PgConnection,
    replica: &[u8; 16],
    ms: i64,
    fence: i64,
) -> Done<Option<i64>> {
    Ok(sqlx::query_scalar(
        "UPDATE sequencer SET holder = $1, until = clock_timestamp() + $2 * interval '1 ms', \
           fence = CASE WHEN holder = $1 AND fence = $3 THEN fence ELSE fence + 1 END \
         WHERE (holder = $1 AND fence = $3) OR until < clock_timestamp() RETURNING fence",
    )
    .bind(replica.as_slice())
    .bind(ms)
    .bind(fence)
    .fetch_optional(conn)
    .await?)
}

pub(crate) async fn release(conn: &mut PgConnection, replica: &[u8; 16], fence: i64) -> Done<()> {
    sqlx::query("UPDATE sequencer SET until = 'epoch' WHERE fence = $1 AND holder = $2")
        .bind(fence)
        .bind(replica.as_slice())
        .execute(conn)
        .await?;
    Ok(())
}

fn head((entries, leaf, time_ms): (i64, Hash, i64)) -> Head {
    Head {
        entries: from_i64(entries),
        leaf,
        time_ms: from_i64(time_ms),
    }
}

pub(crate) async fn lock_head_of(
    conn: &mut PgConnection,
    replica: &[u8; 16],
    fence: i64,
) -> Done<Option<Head>> {
    let found: Option<(i64, Hash, i64)> = sqlx::query_as(
        "SELECT entries, head, time_ms FROM sequencer WHERE fence = $1 AND holder = $2 \
         FOR UPDATE",
    )
    .bind(fence)
    .bind(replica.as_slice())
    .fetch_optional(conn)
    .await?;
    Ok(found.map(head))
}

pub(crate) async fn lock_head(conn: &mut PgConnection) -> Done<Head> {
    let found = sqlx::query_as("SELECT entries, head, time_ms FROM sequencer FOR UPDATE")
        .fetch_one(conn)
        .await?;
    Ok(head(found))
}

pub(crate) async fn is_waiting(conn: &mut PgConnection) -> Done<bool> {
    Ok(
        sqlx::query_scalar("SELECT EXISTS (SELECT FROM groups WHERE first_index IS NULL)")
            .fetch_one(conn)
            .await?,
    )
}

pub(crate) async fn waiting(conn: &mut PgConnection, most: i64) -> Done<Vec<Waiting>> {
    let found: Vec<(i64, i64, i64)> = sqlx::query_as(
        "SELECT id, epoch, time_ms FROM groups WHERE first_index IS NULL ORDER BY id LIMIT $1",
    )
    .bind(most)
    .fetch_all(conn)
    .await?;
    let waiting = found.into_iter().map(|(id, epoch, time_ms)| Waiting {
        id,
        epoch: from_i64(epoch),
        time_ms: from_i64(time_ms),
    });
    Ok(waiting.collect())
}

pub(crate) async fn drafts(
    conn: &mut PgConnection,
    ids: &[i64],
) -> Done<Vec<(i64, String, Vec<u8>)>> {
    Ok(sqlx::query_as(
        "SELECT group_id, kind, head FROM entries WHERE group_id = ANY($1) ORDER BY group_id, n",
    )
    .bind(ids)
    .fetch_all(conn)
    .await?)
}

pub(crate) async fn put_places(conn: &mut PgConnection, placed: &[Placed]) -> Done<()> {
    let ids: Vec<i64> = placed.iter().map(|g| g.id).collect();
    let firsts: Vec<i64> = placed.iter().map(|g| to_i64(g.first)).collect();
    let times: Vec<i64> = placed.iter().map(|g| to_i64(g.time_ms)).collect();
    let prevs: Vec<Hash> = placed.iter().map(|g| g.prev).collect();
    let leaves: Vec<&[u8]> = placed.iter().map(|g| g.leaves.as_slice()).collect();
    sqlx::query(
        "UPDATE groups g SET first_index = n.first, line_time_ms = n.time, prev = n.prev, \
         leaves = n.leaves \
         FROM unnest($1::int8[], $2::int8[], $3::int8[], $4::bytea[], $5::bytea[]) \
           n (id, first, time, prev, leaves) WHERE g.id = n.id AND g.first_index IS NULL",
    )
    .bind(&ids)
    .bind(&firsts)
    .bind(&times)
    .bind(&prevs)
    .bind(&leaves)
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn put_head(conn: &mut PgConnection, head: &Head) -> Done<()> {
    sqlx::query("UPDATE sequencer SET entries = $1, head = $2, time_ms = $3")
        .bind(to_i64(head.entries))
        .bind(head.leaf)
        .bind(to_i64(head.time_ms))
        .execute(conn)
        .await?;
    Ok(())
}
