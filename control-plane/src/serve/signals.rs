//! What ends us, and what does not.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A hangup ends nothing here.
pub fn outlive_hangups() {
    tokio::spawn(async {
        // The default action would end the process without a drain.
        if let Ok(mut hangups) = signal(SignalKind::hangup()) {
            while hangups.recv().await.is_some() {
                tracing::info!(
                    "SIGHUP: the module's file is watched anyway; a changed config or policy needs a restart"
                );
            }
        }
    });
}

/// A token that SIGINT and SIGTERM cancel.
pub fn stop_on_signal() -> CancellationToken {
    let stop = CancellationToken::new();
    let token = stop.clone();
    let (term, int) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    );
    tokio::spawn(async move {
        match (term, int) {
            (Ok(mut term), Ok(mut int)) => {
                tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "signals can't be caught; stop this process with SIGKILL");
                std::future::pending::<()>().await;
            }
        }
        token.cancel();
    });
    stop
}
