//! Reads that decisions begin with: always of the primary, many at a time.

use std::collections::HashMap;

use super::{
    Inner, PostgresError,
    outside::{now, timeout},
    session::Session,
};
use crate::{
    embedded::state::partial::{TokenRow, UseRow},
    model::{Hash, Refused},
};

/// Most rows that are asked for at a time.
const AT_ONCE: usize = 256;

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Token(Hash),
    Use(Hash),
}

/// What was found.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "moved once, to its asker")]
pub(super) enum Found {
    Token(TokenRow),
    Use(UseRow),
    Nothing,
}

/// Answers until the queue is closed and empty.
pub(super) async fn run(inner: &Inner) {
    let mut session = None;
    let mut rests_until = now();
    while let Some(mut taken) = inner.looks.take(AT_ONCE).await {
        let jobs = std::mem::take(&mut taken.jobs);
        if session.is_none() && inner.is_healthy() && now() >= rests_until {
            match inner.connect().await {
                Ok(opened) => session = Some(opened),
                Err(error) => {
                    tracing::warn!(%error, "no connection to the database");
                    rests_until = now() + inner.deadline / 8;
                }
            }
        }
        let looks: Vec<Look> = jobs.iter().map(|job| job.question).collect();
        let found = match &mut session {
            Some(session) if inner.is_healthy() => {
                match timeout(inner.deadline, find(session, &looks)).await {
                    Ok(Ok(found)) => Some(found),
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "the database cannot be read");
                        None
                    }
                    Err(_) => None,
                }
            }
            _ => None,
        };
        match found {
            Some(found) => {
                for (job, found) in jobs.into_iter().zip(found) {
                    let _ = job.answer.send(Ok(found));
                }
            }
            None => {
                session = None;
                for job in jobs {
                    let _ = job.answer.send(Err(Refused::Unavailable));
                }
            }
        }
    }
}

async fn find(session: &mut Session, looks: &[Look]) -> Result<Vec<Found>, PostgresError> {
    let tokens: Vec<Hash> = looks
        .iter()
        .filter_map(|look| match look {
            Look::Token(hash) => Some(*hash),
            Look::Use(_) => None,
        })
        .collect();
    let uses: Vec<Hash> = looks
        .iter()
        .filter_map(|look| match look {
            Look::Use(hash) => Some(*hash),
            Look::Token(_) => None,
        })
        .collect();
    let mut tokens_found = HashMap::new();
    if !tokens.is_empty() {
        for row in session.conn.tokens_now(&tokens).await? {
            tokens_found.insert(row.record.token_hash, row);
        }
    }
    let mut uses_found = HashMap::new();
    if !uses.is_empty() {
        for row in session.conn.uses_now(&uses).await? {
            uses_found.insert(row.hash, row);
        }
    }
    let found = looks.iter().map(|look| match look {
        Look::Token(hash) => tokens_found
            .get(hash)
            .map_or(Found::Nothing, |row| Found::Token(row.clone())),
        Look::Use(hash) => uses_found
            .get(hash)
            .map_or(Found::Nothing, |row| Found::Use(row.clone())),
    });
    Ok(found.collect())
}
