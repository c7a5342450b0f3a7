//! What a person has said no to is not asked again for a while, in both stores.

use crate::{
    common::*,
    rig::{Rig, on_both_stores},
};
use ledger::model::*;

on_both_stores! {
    nobody_is_asked_again_what_one_has_just_said_no_to,
    without_a_time_for_that_people_are_asked_at_once,
    a_no_is_not_forgotten_by_a_restart,
    a_no_is_not_forgotten_for_what_else_ends,
}

const COOL: Millis = 5_000;

fn limits(denied_ms: Millis) -> Limits {
    Limits {
        denied_ms,
        ..Limits::default()
    }
}

fn no_yet<T>() -> Result<T, Refused> {
    Err(Refused::ApprovalState(Some(ApprovalState::Denied)))
}

fn ask(id: &str, digest: Hash, rule: &str) -> Command {
    Command::Ask {
        request_id: format!("req {id}"),
        policy: policy(),
        approval: Approval {
            rules: vec![rule.into()],
            ..approval(id, digest)
        },
        attachments: Vec::new(),
    }
}

async fn nobody_is_asked_again_what_one_has_just_said_no_to(rig: Rig) {
    let ledger = rig.open_with(limits(COOL)).await;
    for name in ["one", "two", "three", "four"] {
        ledger.commit(issue(token(name))).await.unwrap();
    }
    let digest = [0xd1; 32];
    let one = hold("one", "1", approval("first", digest));
    ledger.commit(one).await.unwrap();
    // Who joins it before the no waits for the same.
    let joined = ledger.commit(ask("joins", digest, "ask")).await.unwrap();
    assert_eq!(joined.approval.unwrap().id, "first");
    ledger.commit(answer("first", digest, false)).await.unwrap();

    let again = hold("two", "2", approval("again", digest));
    assert_eq!(ledger.commit(again.clone()).await, no_yet());
    assert_eq!(ledger.commit(ask("ahead", digest, "ask")).await, no_yet());
    // Another action, and what other rules want to know, is another question.
    let other = hold("three", "3", approval("other", [0xd2; 32]));
    ledger.commit(other).await.unwrap();
    ledger
        .commit(ask("by another rule", digest, "ask-more"))
        .await
        .unwrap();

    rig.clock.set(START + COOL - 1);
    assert_eq!(ledger.commit(again.clone()).await, no_yet());
    rig.clock.set(START + COOL);
    let opened = ledger.commit(again).await.unwrap().approval.unwrap();
    assert_eq!(
        (opened.id.as_str(), opened.state),
        ("again", ApprovalState::Pending)
    );
    // A yes in the end is one.
    ledger.commit(answer("again", digest, true)).await.unwrap();
    let approved = ledger.commit(ask("after", digest, "ask")).await;
    let yes = Err(Refused::ApprovalState(Some(ApprovalState::Approved)));
    assert_eq!(approved, yes);
}

async fn without_a_time_for_that_people_are_asked_at_once(rig: Rig) {
    let ledger = rig.open_with(limits(0)).await;
    let digest = [0xd1; 32];
    for id in ["first", "second", "third"] {
        let asked = ledger.commit(ask(id, digest, "ask")).await.unwrap();
        assert_eq!(asked.approval.unwrap().id, id);
        ledger.commit(answer(id, digest, false)).await.unwrap();
    }
}

async fn a_no_is_not_forgotten_by_a_restart(rig: Rig) {
    let ledger = rig.open_with(limits(COOL)).await;
    let digest = [0xd1; 32];
    ledger.commit(ask("first", digest, "ask")).await.unwrap();
    ledger.commit(answer("first", digest, false)).await.unwrap();
    ledger.shutdown().await;
    let ledger = rig.open_with(limits(COOL)).await;
    assert_eq!(ledger.commit(ask("again", digest, "ask")).await, no_yet());
    rig.clock.set(START + COOL);
    ledger.commit(ask("again", digest, "ask")).await.unwrap();
}

async fn a_no_is_not_forgotten_for_what_else_ends(rig: Rig) {
    let day = limits(86_400_000);
    let many = Limits {
        approvals_open: 2_000,
        approvals_open_per_agent: 2_000,
        ..day
    };
    let ledger = rig.open_with(many).await;
    let digest = [0xd1; 32];
    ledger.commit(ask("first", digest, "ask")).await.unwrap();
    ledger.commit(answer("first", digest, false)).await.unwrap();
    // More than are remembered of those that ended.
    let others = (0..1_100_u64).map(|number| {
        let mut other = [0; 32];
        other[..8].copy_from_slice(&number.to_be_bytes());
        ledger.commit(ask(&format!("other {number}"), other, "ask"))
    });
    for asked in futures::future::join_all(others).await {
        asked.unwrap();
    }
    rig.clock.set(START + 900_000);
    while ledger.commit(Command::ExpireApprovals).await.is_ok() {}
    // A database forgets a while later.
    for _ in 0..300 {
        if ledger.approval("other 0").is_none() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(ledger.approval("other 0").is_none());
    // Its rows go each two seconds.
    for _ in 0..30 {
        assert_eq!(ledger.commit(ask("again", digest, "ask")).await, no_yet());
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let no = ledger.approval("first").map(|it| it.state);
    assert_eq!(no, Some(ApprovalState::Denied));
}
