//! Two replicas and one database.

use std::time::{Duration, Instant};

use ledger::{Ledger, model::*};
use sqlx::Connection as _;

use super::server::{Database, Server};
use crate::{
    common::*,
    rig::{Home, Rig},
};

pub fn database(rig: &Rig) -> Database {
    match &rig.home {
        Home::Postgres(database) => database.clone(),
        Home::Files(_) => panic!("the rig has no database"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_replicas_one_wins_each_token() {
    // H01, H03.
    let Some(rig) = Rig::postgres().await else {
        return;
    };
    let limits = Limits {
        outstanding_per_agent: 2_000,
        ..Limits::default()
    };
    let (one, two) = (
        rig.open_with(limits.clone()).await,
        rig.open_with(limits).await,
    );
    let tokens = 1_000;
    let issuing: Vec<_> = (0..tokens)
        .map(|n| {
            let ledger = if n % 2 == 0 { one.clone() } else { two.clone() };
            tokio::spawn(async move { ledger.commit(issue(token(&format!("t{n}")))).await })
        })
        .collect();
    for issued in issuing {
        issued.await.unwrap().unwrap();
    }
    let spending: Vec<_> = (0..tokens)
        .flat_map(|n| [(n, one.clone(), "one"), (n, two.clone(), "two")])
        .map(|(n, ledger, replica)| {
            tokio::spawn(async move {
                let attempt = format!("{replica}-{n}");
                (
                    n,
                    ledger.commit(allow(&format!("t{n}"), &attempt, None)).await,
                )
            })
        })
        .collect();
    let mut won = vec![0; tokens];
    for spent in spending {
        match spent.await.unwrap() {
            (n, Ok(_)) => won[n] += 1,
            (_, Err(Refused::NotOutstanding(Some(first)))) => {
                assert_eq!(first.outcome, FirstUse::Unknown);
            }
            (n, Err(other)) => panic!("t{n}: {other:?}"),
        }
    }
    assert!(won.iter().all(|times| *times == 1), "{won:?}");
    let head = rig.head(&one).await;
    assert_eq!(head.0, 1 + 2 * tokens as u64);
    let report = rig.verify(Some(head)).await;
    assert!(report.whole && report.entries == head.0, "{report:?}");
    let lines = rig.lines(&one).await;
    let allowed = lines.iter().filter(|line| line.kind == "allow").count();
    assert_eq!(allowed, tokens);
    // A token is spent after it was issued, in the log too.
    let mut issued = std::collections::HashSet::new();
    for line in &lines {
        match line.kind.as_str() {
            "issue" => {
                issued.insert(line.body["token"]["token_hash"].clone());
            }
            "allow" => assert!(issued.contains(&line.body["token"]["hash"])),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn limits_hold_over_replicas() {
    let Some(rig) = Rig::postgres().await else {
        return;
    };
    let limits = Limits {
        outstanding_per_agent: 10,
        held_total: 7,
        held_per_agent: 7,
        evidence_total: 5,
        approvals_open: 3,
        discovered: 4,
        ..Limits::default()
    };
    let replicas = [
        rig.open_with(limits.clone()).await,
        rig.open_with(limits).await,
    ];
    let race = async |make: &dyn Fn(usize) -> Command, count: usize| {
        let tasks: Vec<_> = (0..count)
            .map(|n| {
                let (ledger, command) = (replicas[n % 2].clone(), make(n));
                tokio::spawn(async move { ledger.commit(command).await })
            })
            .collect();
        let mut done = 0;
        for task in tasks {
            match task.await.unwrap() {
                Ok(_) => done += 1,
                Err(Refused::Limit(_)) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
        done
    };
    assert_eq!(race(&|n| issue(token(&format!("o{n}"))), 40).await, 10);
    let mut issued = Vec::new();
    for n in 0..40 {
        let name = format!("o{n}");
        if replicas[0].token(&hash(&name)).await.unwrap().is_some() {
            issued.push(name);
        }
    }
    assert_eq!(issued.len(), 10);
    let evidence = |n: usize| {
        let mut command = issue(TokenRecord {
            agent: format!("spiffe://writ.example/agent/{n}"),
            ..token(&format!("e{n}"))
        });
        if let Command::Issue { evidence_id, .. } = &mut command {
            *evidence_id = hash(&format!("evidence {n}"));
        }
        command
    };
    assert_eq!(race(&evidence, 40).await, 4, "one is counted already");
    let held = |n: usize| {
        let name = &issued[n];
        hold(
            name,
            name,
            approval(&format!("apr{n}"), [u8::try_from(n % 3).unwrap(); 32]),
        )
    };
    assert_eq!(race(&held, 10).await, 7);
    for ledger in &replicas {
        wait(|| ledger.approvals().len() == 3).await;
    }
    let discover = |n: usize| Command::Discover {
        agent: format!("new {n}"),
    };
    assert_eq!(race(&discover, 20).await, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_replicas_one_uses_each_proof() {
    // E06.
    let Some(rig) = Rig::postgres().await else {
        return;
    };
    let replicas = [rig.open().await, rig.open().await];
    let mut waiting = Vec::new();
    for n in 0..50_u8 {
        for (at, ledger) in replicas.iter().enumerate() {
            let ledger = ledger.clone();
            // One key may be several agents', which lock nothing in common.
            let agent = format!("spiffe://writ.example/agent/{at}");
            let name = format!("{n}-{at}");
            let token = TokenRecord {
                agent,
                ..token(&name)
            };
            let command = proven(issue(token), [n; 32], &name);
            waiting.push((n, tokio::spawn(async move { ledger.commit(command).await })));
        }
    }
    let mut used = [0; 50];
    for (n, answer) in waiting {
        match answer.await.unwrap() {
            Ok(_) => used[usize::from(n)] += 1,
            Err(refused) => assert_eq!(refused, Refused::ProofUsed, "{n}"),
        }
    }
    assert_eq!(used, [1; 50]);
    assert!(rig.verify(None).await.whole);
    // An epoch forgets them (epochs.rs); the exchange takes no proof from before it.
    let rows = "SELECT count(*) FROM proofs";
    let mut conn = database(&rig).connect().await;
    let count: i64 = sqlx::query_scalar(rows).fetch_one(&mut conn).await.unwrap();
    assert_eq!(count, 50);
    // What is past its end is swept.
    rig.clock.set(START + PROVEN_MS + 6_000);
    for ledger in &replicas {
        ledger.commit(issue(token("later"))).await.ok();
    }
    let begun = Instant::now();
    while sqlx::query_scalar::<_, i64>(rows)
        .fetch_one(&mut conn)
        .await
        .unwrap()
        > 0
    {
        assert!(begun.elapsed() < Duration::from_secs(20), "it is not swept");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn wait(mut until: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !until() {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "it took too long"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_approval_wakes_a_hold_on_another_replica() {
    let Some(rig) = Rig::postgres().await else {
        return;
    };
    let (holder, decider) = (rig.open().await, rig.open().await);
    let digest = [7; 32];
    holder.commit(issue(token("a"))).await.unwrap();
    holder
        .commit(hold("a", "1", approval("apr", digest)))
        .await
        .unwrap();
    wait(|| decider.approval("apr").is_some()).await;
    let mut slowest = Duration::ZERO;
    rig.settle().await;
    let mut changes = holder.subscribe_approvals();
    changes.borrow_and_update();
    let asked = Instant::now();
    decider.commit(answer("apr", digest, true)).await.unwrap();
    while holder.approval("apr").unwrap().state != ApprovalState::Approved {
        changes.changed().await.unwrap();
        slowest = asked.elapsed();
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    }
    eprintln!("another replica heard of it after {slowest:?}");
    holder
        .commit(allow("a", "1", Some(("apr", digest))))
        .await
        .unwrap();
    wait(|| decider.approval("apr").unwrap().state == ApprovalState::Consumed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_lost_the_lease_cannot_write() {
    let Some(rig) = Rig::postgres().await else {
        return;
    };
    let database = database(&rig);
    let ledger = rig.open().await;
    ledger.commit(issue(token("a"))).await.unwrap();
    rig.head(&ledger).await;
    // Another takes the lease while this one believes that it has it.
    let mut other = database.connect().await;
    let mut taking = other.begin().await.unwrap();
    sqlx::raw_sql(
        "UPDATE sequencer SET fence = fence + 1, holder = '\\x00', \
         until = clock_timestamp() + interval '1 hour'",
    )
    .execute(&mut *taking)
    .await
    .unwrap();
    ledger.commit(allow("a", "1", None)).await.unwrap();
    // It waits for the row; then it finds that it is not the one.
    tokio::time::sleep(Duration::from_millis(300)).await;
    taking.commit().await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    ledger.commit(outcome("1", 200)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(database.count("SELECT entries FROM sequencer").await, 2);
    let waiting = "SELECT count(*) FROM groups WHERE first_index IS NULL";
    assert_eq!(database.count(waiting).await, 2);
    // When the other's time is over, it has it again.
    database.run("UPDATE sequencer SET until = 'epoch'").await;
    let head = rig.head(&ledger).await;
    assert_eq!(head.0, 4);
    assert!(rig.verify(Some(head)).await.whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn much_that_waits_for_its_place_keeps_the_house_from_nothing() {
    let Some(rig) = Rig::postgres().await else {
        return;
    };
    let database = database(&rig);
    let ledger = rig.open().await;
    ledger.commit(note("config", 0)).await.unwrap();
    rig.head(&ledger).await;
    // Giving places is slow, and so much waits for it that it takes half a minute.
    database
        .run(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM pg_sleep(0.1); RETURN NEW; END $$; \
             CREATE TRIGGER slow BEFORE UPDATE OF entries ON sequencer \
             FOR EACH ROW EXECUTE FUNCTION slow(); \
             INSERT INTO entries SELECT 1000 + i, 0, e.kind, e.head, e.attached \
             FROM generate_series(1, 20000) i, \
               (SELECT * FROM entries ORDER BY group_id DESC LIMIT 1) e; \
             INSERT INTO groups (id, token, epoch, time_ms, count) \
             SELECT 1000 + n, decode(lpad(to_hex(n), 32, '0'), 'hex'), 1, 1, 1 \
             FROM generate_series(1, 20000) n",
        )
        .await;
    let begun = Instant::now();
    let (mut head, mut polls, mut latest) = (ledger.head().0, 0, Instant::now());
    while begun.elapsed() < Duration::from_secs(6) {
        let late = "SELECT count(*) FROM sequencer WHERE until < clock_timestamp()";
        assert_eq!(database.count(late).await, 0, "the lease is kept");
        if ledger.head().0 != head {
            (head, polls, latest) = (ledger.head().0, polls + 1, Instant::now());
        }
        assert!(latest.elapsed() < Duration::from_secs(3), "it is not asked");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(polls >= 4, "{polls}");
    let waiting = "SELECT count(*) FROM groups WHERE first_index IS NULL";
    assert!(database.count(waiting).await > 0, "it was not enough");
    database.run("DROP TRIGGER slow ON sequencer").await;
    let head = rig.head(&ledger).await;
    assert!(rig.verify(Some(head)).await.whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_changed_in_the_database_is_found() {
    let Some(server) = Server::shared() else {
        return;
    };
    for (change, problem) in [
        (
            "UPDATE entries SET head = head || ' ' WHERE group_id = 3",
            audit::Problem::Changed,
        ),
        (
            "UPDATE entries SET attached = '\\x00' WHERE group_id = 2",
            audit::Problem::Changed,
        ),
        (
            "DELETE FROM entries WHERE group_id = 3",
            audit::Problem::Gap,
        ),
        ("DELETE FROM groups WHERE id = 2", audit::Problem::Gap),
        (
            "UPDATE meta SET log = substring(sha256('other') FOR 16)",
            audit::Problem::Changed,
        ),
        (
            "DELETE FROM groups WHERE id = 3; UPDATE sequencer SET entries = 2",
            audit::Problem::Cut,
        ),
    ] {
        let rig = Rig {
            clock: TestClock::new(),
            home: Home::Postgres(server.database().await),
        };
        let ledger = rig.open().await;
        ledger.commit(issue(token("a"))).await.unwrap();
        ledger.commit(allow("a", "1", None)).await.unwrap();
        let head = rig.head(&ledger).await;
        ledger.shutdown().await;
        let lines = "SELECT count(*) FROM log l JOIN groups g ON g.first_index = l.index \
                     WHERE l.leaf = sha256('\\x00'::bytea || convert_to(l.line, 'UTF8'))";
        assert_eq!(
            database(&rig).count(lines).await,
            3,
            "the view has the lines"
        );
        assert!(rig.verify(Some(head)).await.whole);
        database(&rig).run(change).await;
        let report = rig.verify(Some(head)).await;
        assert_eq!(report.problem, Some(problem), "{change}: {report:?}");
    }
}

#[tokio::test]
async fn both_stores_say_the_same_of_a_head_that_cannot_be() {
    for rig in [Some(Rig::files()), Rig::postgres().await] {
        let Some(rig) = rig else {
            return;
        };
        let ledger = rig.open().await;
        ledger.commit(issue(token("a"))).await.unwrap();
        let (entries, leaf) = rig.head(&ledger).await;
        ledger.shutdown().await;
        for (head, wanted) in [
            ((0, [1; 32]), (audit::Problem::Changed, Some(0))),
            ((1, leaf), (audit::Problem::Changed, Some(0))),
            ((entries + 1, leaf), (audit::Problem::Cut, Some(entries))),
        ] {
            let report = rig.verify(Some(head)).await;
            assert_eq!((report.problem, report.index), (Some(wanted.0), wanted.1));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn listings_are_of_the_newest_entries() {
    let Some(rig) = Rig::postgres().await else {
        return;
    };
    let (one, two): (Ledger, Ledger) = (rig.open().await, rig.open().await);
    one.commit(issue(token("a"))).await.unwrap();
    one.commit(allow("a", "1", None)).await.unwrap();
    for ledger in [&one, &two] {
        wait(|| ledger.listing(None, 10).len() == 3).await;
        let listed = ledger.listing(None, 2);
        let of: Vec<_> = listed
            .iter()
            .map(|e| (e.index, e.kind.as_str(), e.agent.as_deref()))
            .collect();
        assert_eq!(of, [(2, "allow", Some(AGENT)), (1, "issue", Some(AGENT))]);
        assert_eq!(ledger.listing(Some(1), 10).len(), 1);
    }
}

/// When agents were last seen is beside the log: the later time stands, whoever has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_replica_learns_when_agents_were_last_seen() {
    const ALL: Millis = Millis::MAX;
    let Some(rig) = Rig::postgres().await else {
        return;
    };
    let (one, two) = (
        rig.open_with(Limits::default()).await,
        rig.open_with(Limits::default()).await,
    );
    let seen = |times: &[(&str, Millis)]| {
        let times = times.iter();
        let times = times.map(|(agent, at)| ((*agent).to_owned(), *at));
        times.collect::<Vec<_>>()
    };
    let trade = async |ledger: &Ledger, times: &[(&str, Millis)], within| {
        let mut known = ledger.trade_seen(seen(times), within).await.unwrap();
        known.sort();
        known
    };
    assert_eq!(trade(&one, &[("a", 50), ("b", 60)], ALL).await.len(), 2);
    // In another order, one of them older, one named twice.
    let known = trade(&two, &[("c", 10), ("b", 55), ("c", 11), ("a", 70)], ALL).await;
    assert_eq!(known, seen(&[("a", 70), ("b", 60), ("c", 11)]));
    assert_eq!(trade(&one, &[], 0).await, []);
    // What counts is when it was written, however long before that it was seen.
    const MINUTE: Millis = 60_000;
    let back = "UPDATE seen SET written_ms = written_ms - 120000";
    database(&rig).run(back).await;
    assert_eq!(trade(&one, &[], MINUTE).await, []);
    let late = seen(&[("late", 1)]);
    assert_eq!(trade(&two, &[("late", 1), ("a", 69)], MINUTE).await, late);
    assert_eq!(trade(&one, &[], MINUTE).await, late);
    assert_eq!(trade(&one, &[], ALL).await.len(), 4);
    // Both at once, and many: nobody waits for the other for ever.
    let many = |from: usize| -> Vec<(String, Millis)> {
        (0..4_000)
            .map(|n| (format!("n{}", (n * 7 + from) % 4_000), 100 + n as Millis))
            .collect()
    };
    let (left, right) = tokio::join!(one.trade_seen(many(1), ALL), two.trade_seen(many(2), ALL));
    assert!(left.is_ok() && right.is_ok());
    assert_eq!(trade(&two, &[], ALL).await.len(), 4_004);
    assert_eq!(rig.head(&one).await.0, 1, "no entry is made for it");
}

/// Each replica counts for itself: together they stay within as much for each, and a little
/// later all know of all.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn replicas_count_what_owners_have_and_nobody_waits_for_it() {
    let Some(rig) = Rig::postgres().await else {
        return;
    };
    let limits = Limits {
        outstanding_per_owner: 20,
        ..Limits::default()
    };
    let replicas = [
        rig.open_with(limits.clone()).await,
        rig.open_with(limits).await,
    ];
    let agent = |n: usize| format!("spiffe://writ.example/agent/{n}");
    for n in 0..10 {
        let change = AgentChange {
            owner: Some("team".into()),
            state: Some(AgentState::Active),
            ..AgentChange::default()
        };
        let put = Command::PutAgent {
            agent: agent(n),
            change,
            by: "ann".into(),
        };
        replicas[0].commit(put).await.unwrap();
    }
    let issued_ms = replicas[0].now() + 1;
    let wave = async |name: &str| {
        let all: Vec<_> = (0..100)
            .map(|n| {
                let token = TokenRecord {
                    agent: agent(n % 10),
                    issued_ms,
                    ..token(&format!("{name}{n}"))
                };
                let ledger = replicas[n % 2].clone();
                tokio::spawn(async move { ledger.commit(issue(token)).await })
            })
            .collect();
        let mut done = 0;
        for one in all {
            match one.await.unwrap() {
                Ok(_) => done += 1,
                Err(refused) => assert_eq!(refused, Refused::Limit("outstanding tokens per owner")),
            }
        }
        done
    };
    let done = wave("a").await;
    assert!((10..=40).contains(&done), "{done}");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let more = wave("b").await;
    assert!(done + more <= 40 && done + more >= 20, "{done} {more}");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(wave("c").await, 0, "all know of all");
}
