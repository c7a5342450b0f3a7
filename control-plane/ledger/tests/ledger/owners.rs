//! What all agents of one owner have between them, in both stores.

use crate::{
    common::*,
    rig::{Rig, on_both_stores},
};
use ledger::model::*;

on_both_stores! {
    owners_have_a_limit,
}

/// All agents of one owner have so many between them, whoever it is that they belong to by now.
async fn owners_have_a_limit(rig: Rig) {
    let limits = Limits {
        outstanding_per_agent: 4,
        outstanding_per_owner: 5,
        ..Limits::default()
    };
    let ledger = rig.open_with(limits).await;
    let of = |name: &str, agent: &str| {
        issue(TokenRecord {
            agent: agent.into(),
            issued_ms: ledger.now() + 1,
            ..token(name)
        })
    };
    let owned = async |agent: &str, owner: &str| {
        let change = AgentChange {
            owner: Some(owner.into()),
            state: Some(AgentState::Active),
            ..AgentChange::default()
        };
        let put = Command::PutAgent {
            agent: agent.into(),
            change,
            by: "ann".into(),
        };
        ledger.commit(put).await.unwrap();
    };
    for agent in ["a", "b"] {
        owned(agent, "team").await;
    }
    owned("c", "others").await;
    let full = Err(Refused::Limit("outstanding tokens per owner"));
    for (name, agent) in [("1", "a"), ("2", "a"), ("3", "a"), ("4", "b"), ("5", "b")] {
        ledger.commit(of(name, agent)).await.unwrap();
    }
    for agent in ["a", "b"] {
        assert_eq!(ledger.commit(of("6", agent)).await, full);
    }
    ledger.commit(of("7", "c")).await.unwrap();
    // One of nobody's is nobody's.
    ledger.commit(of("8", "stranger")).await.unwrap();
    ledger.commit(allow("1", "at-1", None)).await.unwrap();
    ledger.commit(deny("4", "at-4")).await.unwrap();
    rig.counted().await;
    ledger.commit(of("9", "b")).await.unwrap();
    ledger.commit(of("10", "b")).await.unwrap();
    rig.counted().await;
    assert_eq!(ledger.commit(of("11", "b")).await, full);
    // What an agent has goes with it: the others have room, and who gets it has less.
    owned("b", "others").await;
    rig.counted().await;
    ledger.commit(of("12", "a")).await.unwrap();
    ledger.commit(of("13", "c")).await.unwrap();
    rig.counted().await;
    assert_eq!(ledger.commit(of("14", "c")).await, full);
}
