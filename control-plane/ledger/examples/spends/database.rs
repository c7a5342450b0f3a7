//! Beside the journal: the ledger on PostgreSQL, and what PostgreSQL and SQLite do
//! with one inserted row a transaction, and nothing decided.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ledger::{Ledger, postgres::PostgresOptions};
use serde_json::Value;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection};

use crate::{Failure, Plan, cpu, load, now, server::Server};

/// The table that rows are inserted into.
const TABLE: &str = "CREATE TABLE spent (token BYTEA PRIMARY KEY, line BYTEA NOT NULL)";

/// Spends with the ledger's state in a PostgreSQL of its own.
pub async fn spends(plan: &Plan) -> Result<Value, Failure> {
    let server = Server::start(&[]).ok_or("no PostgreSQL: name one in WRIT_POSTGRES")?;
    let mut options = PostgresOptions::new(server.url("postgres"), Arc::new(now));
    options.connections = plan.connections;
    options.deadline = Duration::from_secs(10);
    options.limits.outstanding_per_agent = usize::MAX >> 1;
    let (ledger, _) = Ledger::open_postgres(options).await?;
    load::closed_on(plan, "postgres", ledger).await
}

/// Single-row inserts, each a transaction of its own, over as many connections.
pub async fn inserts(plan: &Plan) -> Result<Value, Failure> {
    let server = Server::start(&[]).ok_or("no PostgreSQL: name one in WRIT_POSTGRES")?;
    let url = server.url("postgres");
    let mut first = PgConnection::connect(&url).await?;
    sqlx::raw_sql(TABLE).execute(&mut first).await?;
    let next = Arc::new(AtomicUsize::new(0));
    let (begun, used) = (Instant::now(), cpu());
    let mut callers = Vec::new();
    for _ in 0..plan.connections {
        let options: sqlx::postgres::PgConnectOptions = url.parse()?;
        let mut conn = options.disable_statement_logging().connect().await?;
        let (next, count, line) = (Arc::clone(&next), plan.count, vec![b'x'; plan.entry]);
        callers.push(tokio::spawn(async move {
            let mut waits = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return Ok::<_, sqlx::Error>(waits);
                }
                let asked = Instant::now();
                sqlx::query("INSERT INTO spent VALUES ($1, $2)")
                    .bind(load::hash(n).as_slice())
                    .bind(line.as_slice())
                    .execute(&mut conn)
                    .await?;
                waits.push(asked.elapsed());
            }
        }));
    }
    let mut waits = Vec::new();
    for caller in callers {
        waits.extend(caller.await??);
    }
    let (elapsed, used) = (begun.elapsed(), cpu().saturating_sub(used));
    Ok(load::row("inserts", plan, plan.count, elapsed, used, waits))
}

/// The same on SQLite, write-ahead log and `synchronous = FULL`: it has one writer.
#[cfg(feature = "sqlite")]
pub async fn sqlite(plan: &Plan) -> Result<Value, Failure> {
    use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};

    let mut conn = SqliteConnectOptions::new()
        .filename(plan.dir.join("spent.sqlite"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .disable_statement_logging()
        .connect()
        .await?;
    sqlx::raw_sql(TABLE).execute(&mut conn).await?;
    let line = vec![b'x'; plan.entry];
    let (begun, used) = (Instant::now(), cpu());
    let mut waits = Vec::new();
    for n in 0..plan.count {
        let asked = Instant::now();
        sqlx::query("INSERT INTO spent VALUES ($1, $2)")
            .bind(load::hash(n).as_slice())
            .bind(line.as_slice())
            .execute(&mut conn)
            .await?;
        waits.push(asked.elapsed());
    }
    let (elapsed, used) = (begun.elapsed(), cpu().saturating_sub(used));
    Ok(load::row("sqlite", plan, plan.count, elapsed, used, waits))
}

/// Built without SQLite.
#[cfg(not(feature = "sqlite"))]
pub async fn sqlite(_: &Plan) -> Result<Value, Failure> {
    Err("built without SQLite: `cargo xtask bench ledger` builds with it".into())
}
