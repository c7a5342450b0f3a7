//! The tables, and how older ones are brought up to date.

use sqlx::{
    SqlSafeStr as _,
    migrate::{Migration, MigrationType},
};

/// Each is applied once, in order, and its digest is kept: none is ever changed.
pub(crate) fn migrations() -> Vec<Migration> {
    [
        (
            1,
            "ledger",
            include_str!("../../migrations/0001_ledger.sql"),
        ),
        (
            2,
            "restored",
            include_str!("../../migrations/0002_restored.sql"),
        ),
        (
            3,
            "rights",
            include_str!("../../migrations/0003_rights.sql"),
        ),
        (
            4,
            "proofs",
            include_str!("../../migrations/0004_proofs.sql"),
        ),
        (5, "seen", include_str!("../../migrations/0005_seen.sql")),
        (
            6,
            "format",
            include_str!("../../migrations/0006_format.sql"),
        ),
        (
            7,
            "denied",
            include_str!("../../migrations/0007_denied.sql"),
        ),
    ]
    .into_iter()
    .map(|(version, name, sql)| {
        let sql = sql.into_sql_str();
        Migration::new(version, name.into(), MigrationType::Simple, sql, false)
    })
    .collect()
}
