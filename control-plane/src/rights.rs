//! What the config declares of agents, brought into the registry, and what ends
//! when rights are taken away.

use crate::config::Config;
use crate::state::Core;
use ledger::Ledger;
use ledger::model::{AgentChange, AgentState, Command, Refused, Rights};
use std::collections::BTreeSet;

/// Who changes the registry where the config file does.
pub const CONFIG: &str = "config";

/// Why a declared agent is suspended that is declared no longer.
const GONE: &str = "it is not in the config any more";

/// What the registry has to learn of the config.
fn changes(config: &Config, rights: &Rights) -> Vec<(String, AgentChange)> {
    let mut all = Vec::new();
    for declared in &config.agents {
        let wanted = if declared.active {
            AgentState::Active
        } else {
            AgentState::Suspended
        };
        let change = |state| AgentChange {
            owner: Some(declared.owner.clone()),
            state,
            ..AgentChange::default()
        };
        let name = declared.spiffe_id.clone();
        let Some(known) = rights.agent(&name) else {
            // One that is not to act was active once, for the registry's sake.
            all.push((name.clone(), change(Some(AgentState::Active))));
            if wanted == AgentState::Suspended {
                all.push((name, change(Some(wanted))));
            }
            continue;
        };
        // What a person said of it stands, whatever the file says.
        let by_config = known.changed_by == CONFIG;
        let state = match (known.state, wanted) {
            (AgentState::Active, AgentState::Suspended) => Some(wanted),
            (AgentState::Suspended, AgentState::Active) if by_config => Some(wanted),
            _ => None,
        };
        if state.is_some() || known.owner != declared.owner {
            all.push((name, change(state)));
        }
    }
    let declared: BTreeSet<&str> = config
        .agents
        .iter()
        .map(|agent| agent.spiffe_id.as_str())
        .collect();
    for known in rights.agents.values() {
        let gone = known.changed_by == CONFIG && !declared.contains(known.agent.as_str());
        if gone && known.state == AgentState::Active {
            let change = AgentChange {
                state: Some(AgentState::Suspended),
                why: GONE.into(),
                ..AgentChange::default()
            };
            all.push((known.agent.clone(), change));
        }
    }
    all
}

/// Brings the agents that the config declares into the registry: new ones, changed
/// owners, those that it suspends, and those that it has no more. What a person
/// suspended stays so.
///
/// # Errors
/// When the ledger does not take it.
pub async fn declare(config: &Config, ledger: &Ledger) -> Result<(), Refused> {
    let changes = changes(config, &ledger.rights());
    for batch in changes.chunk_by(|a, b| a.0 != b.0) {
        // Many at once share a sync; those of one agent keep their order.
        let commits = batch.iter().cloned().map(|(agent, change)| {
            ledger.commit(Command::PutAgent {
                agent,
                change,
                by: CONFIG.into(),
            })
        });
        for done in futures::future::join_all(commits).await {
            match done {
                Ok(_) | Err(Refused::Transition(_)) => {}
                Err(refused) => return Err(refused),
            }
        }
    }
    Ok(())
}

/// Ends the open approvals of what is stopped, until there is none.
pub async fn cancel_approvals(core: &Core) {
    loop {
        match core.ledger.commit(Command::CancelApprovals).await {
            Ok(_) => {}
            Err(Refused::ApprovalState(_)) => return,
            Err(error) => {
                tracing::warn!(%error, "approvals of what was stopped could not be ended; they will be, and none of them can be used");
                return;
            }
        }
    }
}
