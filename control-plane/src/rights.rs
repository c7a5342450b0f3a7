//! What the config declares of agents, brought into the registry.

use crate::config::{Agent, Config};
use ledger::Ledger;
use ledger::model::{AgentChange, AgentState, Command, Refused, Rights};
use std::collections::BTreeSet;

/// Who changes the registry where the config file does.
pub const CONFIG: &str = "config";

/// Changes that wait for the ledger together, so that it has room for others.
const AT_ONCE: usize = 1024;

/// Why a declared agent is suspended that is declared no longer.
const GONE: &str = "it is not in the config any more";

/// What the registry has to learn of the config.
fn changes(agents: &[Agent], rights: &Rights) -> Vec<(String, AgentChange)> {
    let mut all = Vec::new();
    for declared in agents {
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
    let declared: BTreeSet<&str> = agents
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
    let changes = changes(&config.agents, &ledger.rights());
    let runs = changes.chunk_by(|a, b| a.0 != b.0);
    for batch in runs.flat_map(|run| run.chunks(AT_ONCE)) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use ledger::model::AgentRecord;
    use std::sync::Arc;

    const ID: &str = "spiffe://writ.example/agent/a";

    fn config(declared: Option<(&str, bool)>) -> Vec<Agent> {
        declared
            .into_iter()
            .map(|(owner, active)| Agent {
                spiffe_id: ID.into(),
                owner: owner.into(),
                active,
            })
            .collect()
    }

    fn rights(known: Option<(AgentState, &str)>) -> Rights {
        let mut rights = Rights::default();
        if let Some((state, by)) = known {
            let record = AgentRecord {
                agent: ID.into(),
                owner: "team".into(),
                purpose: String::new(),
                environment: String::new(),
                state,
                created_ms: 1,
                changed_ms: 1,
                changed_by: by.into(),
                why: String::new(),
                expires_ms: None,
                void_ms: 0,
            };
            rights.agents.insert(ID.into(), Arc::new(record));
        }
        rights
    }

    #[test]
    fn what_the_file_says_and_a_person_said_make_one_record() {
        use AgentState::{Active, Decommissioned, Suspended};
        let table = [
            (Some(("team", true)), None, vec![Some(Active)]),
            (
                Some(("team", false)),
                None,
                vec![Some(Active), Some(Suspended)],
            ),
            (Some(("team", true)), Some((Active, CONFIG)), vec![]),
            (Some(("other", true)), Some((Active, CONFIG)), vec![None]),
            (
                Some(("team", false)),
                Some((Active, "ann")),
                vec![Some(Suspended)],
            ),
            (
                Some(("team", true)),
                Some((Suspended, CONFIG)),
                vec![Some(Active)],
            ),
            // What a person took away no file gives back.
            (Some(("team", true)), Some((Suspended, "ann")), vec![]),
            (Some(("team", true)), Some((Decommissioned, "ann")), vec![]),
            (None, Some((Active, CONFIG)), vec![Some(Suspended)]),
            (None, Some((Active, "ann")), vec![]),
            (None, None, vec![]),
        ];
        for (declared, known, wanted) in table {
            let found = changes(&config(declared), &rights(known));
            let states: Vec<_> = found.iter().map(|(_, change)| change.state).collect();
            assert_eq!(states, wanted, "{declared:?} {known:?}");
        }
    }
}
