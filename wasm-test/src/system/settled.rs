//! When what was started again has come to rest.

use super::{System, wait};
use crate::Error;

impl System {
    /// Waits until Envoy and the control plane have found each other again:
    /// a request with a made-up token is refused as such and not for want of
    /// the control plane.
    ///
    /// # Errors
    /// When that takes longer than [`super::START_DEADLINE`].
    pub async fn settled(&self) -> Result<(), Error> {
        // A worker that is about to change to what was sent anew has a stream too, and
        // none for a moment after.
        self.configured().await?;
        // One request asks one worker; the others must be there as well.
        let http = reqwest::Client::new();
        for admin in self.admin_urls() {
            wait::until("every worker has a stream to the control plane", || async {
                let open = wait::streams_are_open(&http, &admin, self.filter_threads()).await;
                open.is_ok()
            })
            .await?;
        }
        let agent = self.agent().await?;
        wait::until("Envoy asks the control plane again", || async {
            match agent.call("GET", crate::upstream::REPORT).await {
                Ok(answer) => answer.status == 200,
                Err(_) => false,
            }
        })
        .await
    }

    /// Threads that run the filter, each instance of it: the main one does as
    /// well, though it serves nobody.
    pub(super) fn filter_threads(&self) -> u64 {
        // Where bodies are read, a second instance does that.
        let reads = self.options.routes.contains(r#"body = "read""#);
        let instances = if reads { 2 } else { 1 };
        let threads = u64::from(self.options.concurrency).saturating_add(1);
        threads.saturating_mul(instances)
    }
}
