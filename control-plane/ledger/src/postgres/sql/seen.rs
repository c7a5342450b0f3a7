//! When agents were last seen.

use sqlx::PgConnection;

use super::Done;

/// Keeps the later time of each; rows are locked in the order of their agents.
pub(crate) async fn keep_seen(conn: &mut PgConnection, agents: &[&str], times: &[i64]) -> Done<()> {
    sqlx::query(
        "INSERT INTO seen (agent, seen_ms, written_ms) \
         SELECT agent, max(at), (extract(epoch FROM clock_timestamp()) * 1000)::int8 FROM unnest($1::text[], $2::int8[]) n (agent, at) \
         GROUP BY agent ORDER BY agent \
         ON CONFLICT (agent) DO UPDATE \
         SET seen_ms = excluded.seen_ms, written_ms = excluded.written_ms \
         WHERE seen.seen_ms < excluded.seen_ms",
    )
    .bind(agents)
    .bind(times)
    .execute(conn)
    .await?;
    Ok(())
}

/// Those that were written within so many milliseconds. The time of writing counts: who was
/// seen long before it was written would be missed by one who had looked in between.
pub(crate) async fn seen_within(conn: &mut PgConnection, within: i64) -> Done<Vec<(String, i64)>> {
    Ok(sqlx::query_as(
        "SELECT agent, seen_ms FROM seen \
         WHERE written_ms > (extract(epoch FROM clock_timestamp()) * 1000)::int8 - $1",
    )
    .bind(within)
    .fetch_all(conn)
    .await?)
}
