//! A person is asked: the approval that a held request would wait for, without one.

use super::super::error::Element;
use super::super::mint::Failed;
use super::super::{Asking, Exchange, ExchangeError};
use super::Submitted;
use crate::decide::Foreseen;
use crate::state;
use ledger::model::{
    ActionRecord, Approval, ApprovalState, Command, Evidence, Given, PolicyFacts, Refused,
};
use std::time::Duration;

/// How often an approval that moves while it is asked for is looked at.
const LOOKS: usize = 4;
/// How long until what another replica did is shown here, or looked for again.
const LOOK_AFTER: Duration = Duration::from_millis(150);

/// A commit of which nobody knows may have happened: its proof stays used.
fn failed(error: ExchangeError) -> Failed {
    Failed {
        nothing_happened: error != ExchangeError::Unavailable,
        error,
    }
}

impl Exchange {
    /// Opens the approval, or joins an equal one; none where the request passes meanwhile.
    pub(in super::super) async fn asked(
        &self,
        asking: Asking<'_>,
        (action, policy): (&ActionRecord, &PolicyFacts),
        mut approval: Box<Approval>,
        submitted: &Submitted,
    ) -> Result<Option<Box<Approval>>, Failed> {
        let known = || (Some(action.clone()), Some(policy.clone()));
        let refused = async |error| {
            let (action, policy) = known();
            failed(self.refused(asking.caller, action, policy, error).await)
        };
        // Nobody is asked for who is stopped: an approval knows no key.
        if let Some(error) = self.stopped(asking) {
            return Err(refused(error).await);
        }
        if let Err(error) = self.show(asking).await {
            return Err(refused(error).await);
        }
        let bytes = submitted.body.as_deref().unwrap_or_default();
        let mut given = false;
        for look in 0..LOOKS {
            if look > 0 {
                tokio::time::sleep(LOOK_AFTER).await;
            }
            let ask = self.ask_command(asking, &approval, policy, bytes);
            let why = match self.core.ledger.commit(ask).await {
                Ok(committed) => {
                    let approval = committed.approval.ok_or(ExchangeError::Internal)?;
                    if !bytes.is_empty() {
                        self.core.bodies.keep(&approval.id, bytes.into());
                    }
                    return Ok(Some(approval));
                }
                Err(why) => why,
            };
            match why {
                Refused::ApprovalState(Some(ApprovalState::Denied)) => {
                    return Err(refused(ExchangeError::ApprovalDenied).await);
                }
                // Somebody gave, or ended, an equal one: look again.
                Refused::ApprovalState(state) => {
                    given = state == Some(ApprovalState::Approved);
                    match self.foreseen(asking, action, submitted.content()) {
                        Foreseen::Asks(_, again) => approval = again,
                        _ => return Ok(None),
                    }
                }
                why => {
                    return Err(match self.of_commit(asking, why).await {
                        Ok(error) => refused(error).await,
                        Err(error) => failed(error),
                    });
                }
            }
        }
        Err(refused(match given {
            // There is a yes, and it lifts nothing: who gave it may not any more.
            true => ExchangeError::Denied(Box::new(Element {
                index: 0,
                element: state::element(action),
                why: self.core.policies.told(&approval.rules),
            })),
            false => ExchangeError::Unavailable,
        })
        .await)
    }

    /// Whether anything that the caller shows is stopped.
    pub(in super::super) fn stopped(&self, asking: Asking<'_>) -> Option<ExchangeError> {
        let record = self.record(asking, None);
        let given = Given {
            at_ms: asking.now_ms,
            ..Given::from(&record)
        };
        let rights = self.core.ledger.rights();
        let bar = rights.bar(&given, asking.now_ms);
        bar.map(|_| ExchangeError::Stopped)
    }

    fn ask_command(
        &self,
        asking: Asking<'_>,
        approval: &Approval,
        policy: &PolicyFacts,
        bytes: &[u8],
    ) -> Command {
        let mut attachments = vec![Evidence::new("proof", asking.proof.as_bytes())];
        if !bytes.is_empty() {
            attachments.push(Evidence::new("body", bytes));
        }
        Command::Ask {
            request_id: asking.caller.id.to_owned(),
            policy: PolicyFacts {
                version: policy.version.clone(),
                determining: approval.rules.clone(),
            },
            approval: approval.clone(),
            attachments,
        }
    }
}
