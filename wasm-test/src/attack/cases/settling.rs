//! After a row's requests: all of it is in the log as it has to be, and nothing ran
//! twice.

use std::time::{Duration, Instant};

use capability::Reason;
use serde_json::json;

use super::{FAULTS, Run};
use crate::Error;
use crate::attack::check::holds;
use crate::attack::told::Told;
use crate::client::Answer;
use crate::stage::PATIENCE;

impl Run<'_> {
    /// Everything is in the log as it has to be, and nothing ran twice.
    ///
    /// # Errors
    /// The first few faults.
    pub async fn end(mut self) -> Result<String, Error> {
        let logged = self.logged().await;
        if let Err(problem) = logged {
            self.fault("the log", problem.to_string());
        }
        if let Some((jti, times)) = self.stage.uses()?.iter().find(|(_, times)| **times != 1) {
            let what = format!("{jti} reached it {times} times");
            self.fault("the upstream", what);
        }
        if self.stage.arrived()? != self.arrived {
            self.fault("the upstream", "something came late");
        }
        let told: Vec<&str> = self
            .faults
            .iter()
            .take(FAULTS)
            .map(String::as_str)
            .collect();
        let more = self.faults.len().saturating_sub(told.len());
        let told = format!("{} (and {more} more)", told.join("; "));
        holds(self.faults.is_empty(), told)?;
        let (tried, passed) = (self.tried, self.passed);
        let entries = self.denials.len() + self.refused.len();
        Ok(format!(
            "{tried} requests: {passed} passed, {entries} refused with an entry, {} counted or refused by Envoy; {} proofs at the token endpoint as well",
            tried.saturating_sub(passed).saturating_sub(entries),
            self.at_endpoint,
        ))
    }

    pub(super) async fn logged(&mut self) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            // A worker sends its counts along with its next entry.
            self.denied().await?;
            tokio::time::sleep(Duration::from_millis(400)).await;
            let told = Told::read(self.stage)?;
            let missing = self.missing(&told);
            match missing {
                None => return self.none_too_many(&told),
                Some(what) if start.elapsed() > PATIENCE => return Err(Error::Unexpected(what)),
                Some(_) => {}
            }
        }
    }

    pub(super) fn missing(&self, told: &Told) -> Option<String> {
        for (reason, wanted) in &self.counts {
            let got = told
                .counted(reason)
                .saturating_sub(self.before.counted(reason));
            if got < *wanted {
                return Some(format!("{got} of {wanted} {reason} are counted"));
            }
        }
        let gone = |all: &[(String, String)], wanted: &[(String, String)], kind: &str| {
            let gone = wanted.iter().find(|it| !all.contains(it));
            gone.map(|(token, reason)| format!("no {kind} {reason} of the token {token}"))
        };
        gone(&told.denials, &self.denials, "edge_denial")
            .or_else(|| gone(&told.refused, &self.refused, "question_refused"))
    }

    pub(super) fn none_too_many(&self, told: &Told) -> Result<(), Error> {
        for (reason, all) in &told.counts {
            let got = all.saturating_sub(self.before.counted(reason));
            let wanted = self.counts.get(reason.as_str()).copied().unwrap_or(0);
            // What waits for the start of a proxy sends requests without credentials.
            let fine = got == wanted || (reason == "missing_credentials" && got > wanted);
            holds(
                fine,
                format!("{got} instead of {wanted} {reason} are counted"),
            )?;
        }
        Ok(())
    }

    /// An authenticated refusal, which spends nothing.
    pub(super) async fn denied(&mut self) -> Result<(), Error> {
        let token = self.issue(&self.forger.agent).await?;
        let row = json!({
            "name": "another query", "expect": "action_mismatch", "authenticated": true,
            "request": {"path": "/files/a.txt?v=2"}, "token": {"raw": token},
        });
        let built = self.build(&row).await?;
        let bytes = self.bytes(&built);
        // Whichever worker it is this time.
        let mut other = self.stage.connect().await?;
        for connection in [&mut self.connection, &mut other] {
            if connection.send(&bytes).await.is_ok() {
                drop(connection.answer().await);
            }
        }
        Ok(())
    }
}

/// The challenge (RFC 9449, section 7.1) and the problem (RFC 9457) of a refusal.
pub(super) fn well_formed(answer: &Answer, reason: Reason) -> bool {
    let all = answer.headers.iter();
    let challenges: Vec<&String> = all
        .filter(|(name, _)| name == "www-authenticate")
        .map(|(_, value)| value)
        .collect();
    let demanded = usize::from(matches!(reason.status(), 401 | 403));
    let fits = |challenge: &&String| {
        let named = match reason.oauth_error() {
            Some(error) => challenge.contains(&format!("error=\"{error}\"")),
            None => !challenge.contains("error="),
        };
        named && challenge.starts_with("DPoP ") && challenge.contains(r#"algs="ES256 Ed25519""#)
    };
    challenges.len() == demanded
        && challenges.iter().all(fits)
        && answer.header("content-type") == Some("application/problem+json")
        && answer.header("cache-control") == Some("no-store")
}
