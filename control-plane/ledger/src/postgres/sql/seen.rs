//! When agents were last seen.

use sqlx::PgConnection;

use super::Done;

/// Keeps the later time of each; rows are locked in the order of their agents.
pub(crate) async fn keep_seen(conn: &mut PgConnection, agents: &[&str], times: &[i64]) -> Done<()> {
    sqlx::query(
        "INSERT INTO seen (agent, seen_ms) \
         SELECT agent, max(at) FROM unnest($1::text[], $2::int8[]) n (agent, at) \
         GROUP BY agent ORDER BY agent \
         ON CONFLICT (agent) DO UPDATE SET seen_ms = excluded.seen_ms \
         WHERE seen.seen_ms < excluded.seen_ms",
    )
    .bind(agents)
    .bind(times)
    .execute(conn)
    .await?;
    Ok(())
}

/// Those that were seen at that time or later.
pub(crate) async fn seen_since(conn: &mut PgConnection, since: i64) -> Done<Vec<(String, i64)>> {
    Ok(
        sqlx::query_as("SELECT agent, seen_ms FROM seen WHERE seen_ms >= $1")
            .bind(since)
            .fetch_all(conn)
            .await?,
    )
}
