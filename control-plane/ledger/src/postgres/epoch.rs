//! Which server the database is on, and what happens when it is another.
//!
//! A replica's start begins no epoch: others may be at work. One begins with the
//! database, when the server's timeline changed (a standby took over, or a point
//! in time was restored: what was spent last may be unspent again), and when the
//! tables are on another server or made anew (a backup was restored). Every
//! connection looks before it is used.

use sqlx::{Connection as _, PgConnection, migrate::Migrator, raw_sql};

use super::{
    PostgresError,
    batch::Writes,
    draft::Draft,
    migrations::migrations,
    save,
    session::{Commit, Session},
    values::{from_i64, to_i64},
};
use crate::{
    embedded::state::{Stamp, State, partial::Rows},
    event::{Entry, Event, Restored},
    model::{Approval, Hash, Millis},
};

/// The format of the tables' contents.
const FORMAT: i32 = 1;

/// What a connection found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch {
    pub(crate) number: u64,
    /// It began the database.
    pub(crate) created: bool,
    /// It began this epoch.
    pub(crate) begun: bool,
}

/// Where tables are: the server, database and table; and the server's timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    identity: String,
    timeline: String,
}

/// Creates the tables or brings them up to date.
///
/// # Errors
/// When they are another version's, or the role may not.
pub(crate) async fn migrate(conn: &mut PgConnection) -> Result<(), PostgresError> {
    Migrator::with_migrations(migrations())
        .run(conn)
        .await
        .map_err(PostgresError::Schema)
}

/// Begins an epoch where one is due.
///
/// # Errors
/// When it could not, or it is not known whether it could: the connection must
/// not be used.
pub(crate) async fn ensure(session: &mut Session, now: Millis) -> Result<Epoch, PostgresError> {
    let here = place(&mut session.conn).await?;
    if let Some((found, number)) = known(&mut session.conn).await?
        && found == here
    {
        return Ok(Epoch {
            number,
            created: false,
            begun: false,
        });
    }
    raw_sql(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock(1465010516, 2); \
         SELECT pg_advisory_xact_lock(1465010516, 1)",
    )
    .execute(&mut session.conn)
    .await?;
    // Somebody else may have been first.
    let known = known(&mut session.conn).await?;
    if let Some((found, number)) = &known
        && *found == here
    {
        session.rollback().await;
        return Ok(Epoch {
            number: *number,
            created: false,
            begun: false,
        });
    }
    let created = known.is_none();
    let number = begin(&mut session.conn, &here, known, now).await?;
    match session.commit().await {
        Commit::Proven => Ok(Epoch {
            number,
            created,
            begun: true,
        }),
        Commit::RolledBack | Commit::InDoubt => Err(PostgresError::Unknown),
    }
}

async fn place(conn: &mut PgConnection) -> Result<Place, PostgresError> {
    let (identity, timeline) = sqlx::query_as(
        "SELECT system_identifier::text || '/' || \
           (SELECT oid::text FROM pg_database WHERE datname = current_database()) || '/' || \
           'meta'::regclass::oid::text, \
         left(pg_walfile_name(pg_current_wal_lsn()), 8) FROM pg_control_system()",
    )
    .fetch_one(conn)
    .await?;
    Ok(Place { identity, timeline })
}

async fn known(conn: &mut PgConnection) -> Result<Option<(Place, u64)>, PostgresError> {
    let found: Option<(String, String, i64, i32)> =
        sqlx::query_as("SELECT identity, timeline, epoch, format FROM meta")
            .fetch_optional(conn)
            .await?;
    let Some((identity, timeline, epoch, format)) = found else {
        return Ok(None);
    };
    if format != FORMAT {
        let what = format!("format {format}, where this version writes {FORMAT}");
        return Err(PostgresError::Content(what));
    }
    Ok(Some((Place { identity, timeline }, from_i64(epoch))))
}

/// Forgets what lives for one epoch, and writes the entries that say so.
async fn begin(
    conn: &mut PgConnection,
    here: &Place,
    known: Option<(Place, u64)>,
    now: Millis,
) -> Result<u64, PostgresError> {
    let (epoch, restored) = match &known {
        Some((was, epoch)) => (epoch.saturating_add(1), was.identity != here.identity),
        None => (1, false),
    };
    if known.is_none() {
        let mut log = [0_u8; 16];
        rand::fill(&mut log);
        sqlx::query(
            "INSERT INTO meta (log, format, epoch, identity, timeline) VALUES ($1, $2, 1, $3, $4)",
        )
        .bind(log.as_slice())
        .bind(FORMAT)
        .bind(&here.identity)
        .bind(&here.timeline)
        .execute(&mut *conn)
        .await?;
    } else {
        sqlx::query("UPDATE meta SET epoch = $1, identity = $2, timeline = $3")
            .bind(to_i64(epoch))
            .bind(&here.identity)
            .bind(&here.timeline)
            .execute(&mut *conn)
            .await?;
    }
    raw_sql(
        "TRUNCATE tokens, uses, evidence; UPDATE agents SET outstanding = 0 WHERE outstanding <> 0",
    )
    .execute(&mut *conn)
    .await?;
    let log: Vec<u8> = sqlx::query_scalar("SELECT log FROM meta")
        .fetch_one(&mut *conn)
        .await?;
    let (entries, head, time_ms, waiting): (i64, Hash, i64, Option<i64>) = sqlx::query_as(
        "SELECT entries, head, time_ms, \
         (SELECT max(time_ms) FROM groups WHERE first_index IS NULL) FROM sequencer",
    )
    .fetch_one(&mut *conn)
    .await?;
    let last = from_i64(time_ms).max(from_i64(waiting.unwrap_or_default()));
    let mut events = vec![Event::Epoch {
        log: hex::encode(log),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }];
    if restored {
        events.push(Event::Restored(Restored {
            entries: from_i64(entries),
            head,
            instead_of: Vec::new(),
        }));
    }
    let index = from_i64(entries);
    write(conn, events, index, epoch, now.max(last)).await?;
    Ok(epoch)
}

/// Writes the epoch's first entries, and what a restore does to approvals and agents.
async fn write(
    conn: &mut PgConnection,
    events: Vec<Event>,
    index: u64,
    epoch: u64,
    time_ms: Millis,
) -> Result<(), PostgresError> {
    let open: Vec<Vec<u8>> =
        sqlx::query_scalar("SELECT record FROM approvals WHERE ended IS NULL ORDER BY opened")
            .fetch_all(&mut *conn)
            .await?;
    let mut approvals: Vec<Approval> = Vec::with_capacity(open.len());
    for record in open {
        approvals.push(serde_json::from_slice(&record)?);
    }
    let mut state = State::from_rows(Rows {
        time_ms,
        epoch,
        approvals: approvals.clone(),
        ..Rows::default()
    });
    let mut writes = Writes {
        time_ms,
        ..Writes::default()
    };
    for event in events {
        let entry = Entry::Event(Box::new(event));
        let draft = Draft::new(&entry, Vec::new())
            .map_err(|_| PostgresError::Content("an epoch's entry has no line".into()))?;
        writes.drafts.push(draft);
        let stamp = Stamp {
            index,
            time_ms,
            epoch,
            leaf: [0; 32],
        };
        state.apply(stamp, &entry);
    }
    writes.approvals = approvals
        .iter()
        .filter_map(|was| state.approval(&was.id).filter(|is| *is != was).cloned())
        .collect();
    if let Some(suspended) = &state.suspended {
        sqlx::query("UPDATE meta SET suspended = $1")
            .bind(serde_json::to_vec(suspended)?)
            .execute(&mut *conn)
            .await?;
    }
    let mut token = [0; 16];
    rand::fill(&mut token);
    save::save(conn, &writes, &token).await?;
    Ok(())
}

/// Ends a connection in good form, where that is quick.
pub(crate) async fn close(session: Session) {
    let _ = session.conn.close().await;
}
