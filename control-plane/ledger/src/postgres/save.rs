//! Writing back what a batch changed, in the transaction that loaded it.

use super::{
    PostgresError,
    batch::Writes,
    database::{Conn, Spent},
    ground::Ground,
};

/// What a committed batch is known by.
pub(crate) type GroupToken = [u8; 16];

/// The versions of what was written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Versions {
    pub(crate) approvals: Vec<i64>,
    /// The newest; 0: no right changed.
    pub(crate) rights: i64,
}

/// Writes a batch, and gives the versions of what it wrote. Nothing is durable
/// before the commit.
///
/// # Errors
/// The transaction has to be rolled back. [`PostgresError::Moved`]: another epoch
/// began meanwhile. `RowNotFound`: somebody else spent what was locked here, which
/// cannot be, or the rows are not what they were.
pub(crate) async fn save(
    conn: &mut Conn,
    writes: &Writes,
    token: &GroupToken,
    ground: &Ground,
) -> Result<Versions, PostgresError> {
    let done = conn.spend(writes, token, ground).await?;
    if done.lines == 0 && !writes.drafts.is_empty() {
        return Err(PostgresError::Moved);
    }
    let meant = Spent {
        gone: writes.gone.len(),
        used: writes.uses.len(),
        lines: writes.drafts.len(),
    };
    if done != meant {
        return Err(sqlx::Error::RowNotFound.into());
    }
    if !writes.issued.is_empty() {
        conn.issue(&writes.issued).await?;
    }
    let mut held = 0;
    for row in &writes.held {
        held += conn.hold(row).await?;
    }
    if !writes.counted.is_empty() {
        held += conn.count_uses(&writes.counted).await?;
    }
    let meant = writes.held.len() + writes.counted.len();
    if usize::try_from(held).ok() != Some(meant) {
        return Err(sqlx::Error::RowNotFound.into());
    }
    if !writes.evidence.is_empty() {
        conn.put_evidence(&writes.evidence).await?;
    }
    if !writes.outstanding.is_empty() {
        conn.put_outstanding(&writes.outstanding).await?;
    }
    // After all that is locked: of two batches that use one proof the second waits here,
    // and is begun anew.
    if !writes.proofs.is_empty() {
        conn.put_proofs(&writes.proofs).await?;
    }
    // Under the serial lane's lock, so that versions are committed in their order.
    let mut versions = Vec::with_capacity(writes.approvals.len());
    for approval in &writes.approvals {
        versions.push(conn.put_approval(approval).await?);
    }
    for (agent, at_ms) in &writes.discovered {
        conn.put_discovered(agent, *at_ms).await?;
    }
    let mut rights = 0;
    for right in &writes.rights {
        rights = conn.put_right(right).await?;
    }
    if writes.confirmed {
        conn.confirm().await?;
    }
    if writes.holds_changed {
        // Told when this commits, to whoever waits in another replica. What takes the
        // lock of notifications is rare: only what humans are asked about.
        conn.notify().await?;
    }
    Ok(Versions {
        approvals: versions,
        rights,
    })
}
