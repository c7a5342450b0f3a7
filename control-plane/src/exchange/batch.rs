//! Several capabilities at once: one proof, one token for each action.
//!
//! For calls in parallel, and for what is fetched ahead. Each token is for one action as
//! any other is, and each action that is refused is said so beside those that are not.

use super::mint::{Failed, Signed};
use super::presented::Shows;
use super::{Asking, Exchange, ExchangeError, Issued};
use ledger::model::{ActionRecord, PolicyFacts, Refused};
use serde_json::Value;

/// Where they are asked for.
pub(super) const PATH: &str = "/api/v1/capabilities";
/// Actions of one batch.
pub(super) const BATCH_MAX: usize = 32;

/// What came of each action, in their order.
pub type Each = Vec<Result<Issued, ExchangeError>>;

impl Exchange {
    /// Answers a batch for whom the session, or the client certificate, says it is.
    ///
    /// # Errors
    /// When none of it is looked at.
    pub(super) async fn batch(
        &self,
        elements: &[Value],
        shows: Shows<'_>,
    ) -> Result<Each, ExchangeError> {
        if elements.is_empty() || elements.len() > BATCH_MAX {
            return Err(ExchangeError::Details(format!(
                "authorization_details has 1 to {BATCH_MAX} elements here, one action each"
            )));
        }
        let shown = self.presented(PATH, shows).await?;
        let asking = shown.asking();
        let mut judged = Vec::with_capacity(elements.len());
        for element in elements.iter().enumerate() {
            judged.push(self.judge(asking, element, None).await);
        }
        // Last before the mint: a batch that gets nothing has used up no proof.
        if judged.iter().any(Result::is_ok)
            && let Err(error) = self.use_up(&shown)
        {
            return Err(self.refused(asking.caller, None, None, error).await);
        }
        let minted = self.together(asking, judged).await;
        let nothing =
            |it: &Result<Issued, Failed>| it.as_ref().is_err_and(|failed| failed.nothing_happened);
        if minted.iter().all(nothing) {
            self.give_back(&shown);
        }
        let each = minted.into_iter();
        Ok(each.map(|it| it.map_err(|failed| failed.error)).collect())
    }

    /// Signs all that may be, and records it in one commit.
    async fn together(
        &self,
        asking: Asking<'_>,
        judged: Vec<Result<(ActionRecord, PolicyFacts), ExchangeError>>,
    ) -> Vec<Result<Issued, Failed>> {
        let signed = judged.into_iter().map(|judged| async move {
            match judged {
                Ok(judged) => self.signed(asking, judged, true).await,
                Err(error) => Err(Failed::from(error)),
            }
        });
        let mut commands = Vec::new();
        let signed: Vec<Result<Signed, Failed>> = futures::future::join_all(signed)
            .await
            .into_iter()
            .map(|it| {
                it.map(|(signed, command)| {
                    commands.push(command);
                    signed
                })
            })
            .collect();
        let mut outcomes = self.core.ledger.commit_all(commands).await.into_iter();
        let mut minted = Vec::with_capacity(signed.len());
        for signed in signed {
            minted.push(match signed {
                Ok(signed) => {
                    let outcome = outcomes.next().unwrap_or(Err(Refused::Unknown));
                    self.recorded(asking, signed, outcome).await
                }
                Err(failed) => Err(failed),
            });
        }
        minted
    }
}
