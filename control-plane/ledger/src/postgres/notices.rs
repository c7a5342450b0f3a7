//! Hears what the server says beside its answers.
//!
//! A commit that was cut short while it waited for a standby is answered as a
//! commit, with a warning. The driver only traces such notices, so a commit runs
//! under a subscriber that counts them.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use tracing::{
    Dispatch, Event, Metadata, Subscriber,
    instrument::WithSubscriber as _,
    level_filters::LevelFilter,
    span::{Attributes, Id, Record},
};

/// The target of the driver's events, one for each notice.
const TARGET: &str = "sqlx::postgres::notice";

/// Runs futures and counts the notices that arrive meanwhile.
pub(crate) struct Notices {
    heard: Arc<AtomicU32>,
    dispatch: Dispatch,
}

struct Counter(Arc<AtomicU32>);

impl Notices {
    pub(crate) fn new() -> Self {
        let heard = Arc::new(AtomicU32::new(0));
        let dispatch = Dispatch::new(Counter(Arc::clone(&heard)));
        Self { heard, dispatch }
    }

    /// What the future gives, and whether the server said anything beside it.
    pub(crate) async fn during<F: Future>(&self, future: F) -> (F::Output, bool) {
        let before = self.heard.load(Ordering::SeqCst);
        let output = future.with_subscriber(self.dispatch.clone()).await;
        (output, self.heard.load(Ordering::SeqCst) != before)
    }
}

impl Subscriber for Counter {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Whether it would be heard is asked before, as something that is no event.
        metadata.target() == TARGET
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }

    fn event(&self, event: &Event<'_>) {
        if event.metadata().target() == TARGET {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_drivers_notices_meanwhile_count() {
        let notices = Notices::new();
        tracing::event!(target: TARGET, tracing::Level::WARN, "before");
        let said = async {
            // As the driver does.
            if tracing::enabled!(target: TARGET, tracing::Level::INFO) {
                tracing::event!(target: TARGET, tracing::Level::INFO, "x");
            }
        };
        assert!(notices.during(said).await.1);
        let other = async { tracing::event!(target: "sqlx::query", tracing::Level::WARN, "x") };
        assert!(!notices.during(other).await.1);
        assert_eq!(notices.during(async { 7 }).await, (7, false));
    }
}
