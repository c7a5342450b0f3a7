//! What is told when the server, or the way to it, fails.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ledger::{Ledger, model::*, postgres::PostgresOptions};

use super::{
    proxy::{Cut, Proxy},
    server::{Database, Server},
};
use crate::{
    common::*,
    rig::{Home, Rig},
};

struct Behind {
    rig: Rig,
    database: Database,
    proxy: Proxy,
    ledger: Ledger,
}

/// A ledger whose connections go through a proxy.
async fn behind_a_proxy() -> Option<Behind> {
    let server = Server::shared()?;
    let database = server.database().await;
    let proxy = Proxy::start(server.socket_dir()).await;
    let rig = Rig {
        clock: TestClock::new(),
        home: Home::Postgres(database.clone()),
    };
    let options = PostgresOptions {
        url: proxy.url(&database.name),
        plaintext_loopback: true,
        ..rig.postgres_options(&database)
    };
    let (ledger, _) = Ledger::open_postgres(options).await.unwrap();
    Some(Behind {
        rig,
        database,
        proxy,
        ledger,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_commit_that_is_cut_is_told_as_it_is() {
    // H07.
    let Some(behind) = behind_a_proxy().await else {
        return;
    };
    let Behind { ledger, proxy, .. } = &behind;
    for name in ["lost", "kept"] {
        ledger.commit(issue(token(name))).await.unwrap();
    }
    // The server never heard of it: nobody can prove that it never will.
    proxy.set(Cut::Before);
    let cut = ledger.commit(allow("lost", "1", None)).await;
    assert_eq!(cut, Err(Refused::Unknown));
    proxy.set(Cut::Nothing);
    let again = ledger.commit(allow("lost", "2", None)).await;
    assert!(again.is_ok(), "it was not: {again:?}");
    // It was committed, the answer was lost: while all answers are, there is no proof.
    proxy.set(Cut::After);
    let cut = ledger.commit(allow("kept", "3", None)).await;
    assert_eq!(cut, Err(Refused::Unknown));
    proxy.set(Cut::Nothing);
    let again = ledger.commit(allow("kept", "4", None)).await;
    assert!(
        matches!(again, Err(Refused::NotOutstanding(Some(_)))),
        "{again:?}"
    );
    let head = behind.rig.head(ledger).await;
    assert!(behind.rig.verify(Some(head)).await.whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn cuts_at_commit_lose_nothing_and_double_nothing() {
    // H07, many times: never Ok without proof, never twice.
    let Some(behind) = behind_a_proxy().await else {
        return;
    };
    let Behind { ledger, proxy, .. } = &behind;
    let tokens = 150;
    for n in 0..tokens {
        ledger.commit(issue(token(&format!("t{n}")))).await.unwrap();
    }
    proxy.set(Cut::Some);
    let spending: Vec<_> = (0..tokens)
        .map(|n| {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                let mut told = Vec::new();
                for attempt in 0..4 {
                    let attempt = format!("{n}.{attempt}");
                    let spent = ledger.commit(allow(&format!("t{n}"), &attempt, None)).await;
                    told.push((attempt, spent));
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                told
            })
        })
        .collect();
    let (mut acknowledged, mut unknown) = (Vec::new(), 0);
    for spent in spending {
        let told = spent.await.unwrap();
        let yes: Vec<_> = told.iter().filter(|(_, spent)| spent.is_ok()).collect();
        assert!(yes.len() <= 1, "{told:?}");
        acknowledged.extend(yes.iter().map(|(attempt, _)| attempt.clone()));
        unknown += told
            .iter()
            .filter(|(_, s)| *s == Err(Refused::Unknown))
            .count();
    }
    proxy.set(Cut::Nothing);
    let head = behind.rig.head(ledger).await;
    assert!(behind.rig.verify(Some(head)).await.whole);
    let lines = behind.rig.lines(ledger).await;
    let allowed: Vec<&serde_json::Value> = lines
        .iter()
        .filter(|line| line.kind == "allow")
        .map(|line| &line.body)
        .collect();
    for attempt in &acknowledged {
        let there = allowed
            .iter()
            .filter(|body| body["attempt"] == **attempt)
            .count();
        assert_eq!(there, 1, "{attempt}");
    }
    let mut hashes: Vec<String> = allowed
        .iter()
        .map(|b| b["token"]["hash"].to_string())
        .collect();
    let before = hashes.len();
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), before, "a token was spent twice");
    eprintln!(
        "{} COMMITs, {} acknowledged, {unknown} told as unknown, {before} committed",
        proxy.commits(),
        acknowledged.len()
    );
    assert!(!acknowledged.is_empty());
    drop(behind.database);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_transaction_that_failed_is_not_committed_by_commit() {
    // The server answers COMMIT with ROLLBACK then, and with no error.
    let Some(behind) = behind_a_proxy().await else {
        return;
    };
    let Behind { ledger, proxy, .. } = &behind;
    ledger.commit(issue(token("a"))).await.unwrap();
    // The next COMMIT is the one below: none gives places any more.
    behind.rig.head(ledger).await;
    let commits = proxy.commits();
    proxy.set(Cut::Fail);
    ledger.commit(allow("a", "1", None)).await.unwrap();
    let again = ledger.commit(allow("a", "2", None)).await;
    let known = matches!(again, Err(Refused::NotOutstanding(Some(_))));
    assert!(known, "it was committed when it was tried again: {again:?}");
    assert!(proxy.commits() >= commits + 2);
    let lines = behind.rig.lines(ledger).await;
    let allowed = lines.iter().filter(|line| line.kind == "allow").count();
    assert_eq!(allowed, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_notice_at_commit_is_an_unknown_result_until_proven() {
    let Some(rig) = Rig::postgres().await else {
        return;
    };
    let Home::Postgres(database) = &rig.home else {
        panic!("no database");
    };
    let ledger = rig.open().await;
    for name in ["a", "b"] {
        ledger.commit(issue(token(name))).await.unwrap();
    }
    // A deferred trigger speaks when COMMIT runs: for every commit, and then for
    // all but those that prove (which write barriers).
    let speak = "CREATE FUNCTION speak() RETURNS trigger LANGUAGE plpgsql AS \
                 $$ BEGIN RAISE WARNING 'at commit'; RETURN NULL; END $$;";
    database.run(speak).await;
    let on = |table: &str| {
        format!(
            "CREATE CONSTRAINT TRIGGER speak_{table} AFTER INSERT OR UPDATE ON {table} \
             DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION speak()"
        )
    };
    database.run(&on("groups")).await;
    let proven = ledger.commit(allow("a", "1", None)).await;
    assert!(proven.is_ok(), "the next commit proves it: {proven:?}");
    database.run(&on("barriers")).await;
    let unproven = ledger.commit(allow("b", "2", None)).await;
    assert_eq!(unproven, Err(Refused::Unknown));
    let again = ledger.commit(allow("b", "3", None)).await;
    assert!(
        matches!(again, Err(Refused::NotOutstanding(Some(_)))),
        "{again:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_wait_for_a_standby_that_is_cut_short_is_no_commit() {
    let rig = Rig::files();
    let Some(server) = Server::start(&[]) else {
        return;
    };
    let database = server.database().await;
    let options = rig.postgres_options(&database);
    let (ledger, _) = Ledger::open_postgres(options).await.unwrap();
    for name in ["a", "b"] {
        ledger.commit(issue(token(name))).await.unwrap();
    }
    // From now on every commit waits for a standby that there is not.
    database
        .run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        .await;
    database.run("SELECT pg_reload_conf()").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let cancelling = tokio::spawn(async move {
        for _ in 0..100 {
            let cancelled = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity \
                             WHERE wait_event = 'SyncRep'";
            database.count(cancelled).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let spent = ledger.commit(allow("a", "1", None)).await;
    assert_eq!(
        spent,
        Err(Refused::Unknown),
        "the server said COMMIT, with a warning"
    );
    cancelling.abort();
    let spent = ledger.commit(allow("b", "2", None)).await;
    assert_eq!(
        spent,
        Err(Refused::Unknown),
        "it did not say anything in time"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_server_that_is_killed_has_every_acknowledged_commit() {
    let rig = Rig::files();
    let Some(mut server) = Server::start(&[]) else {
        return;
    };
    let database = server.database().await;
    let options = rig.postgres_options(&database);
    let (ledger, _) = Ledger::open_postgres(options).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let working: Vec<_> = (0..16)
        .map(|task| {
            let (ledger, stop) = (ledger.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                let mut n = 0;
                while !stop.load(Ordering::SeqCst) {
                    let name = format!("{task}.{n}");
                    n += 1;
                    let mut record = token(&name);
                    record.agent = format!("spiffe://writ.example/agent/{task}");
                    if ledger.commit(issue(record)).await.is_ok()
                        && ledger.commit(allow(&name, &name, None)).await.is_ok()
                    {
                        acknowledged.push(name);
                    } else {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
                acknowledged
            })
        })
        .collect();
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        server = tokio::task::spawn_blocking(move || {
            server.crash_and_restart();
            server
        })
        .await
        .unwrap();
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    stop.store(true, Ordering::SeqCst);
    let mut acknowledged = Vec::new();
    for task in working {
        acknowledged.extend(task.await.unwrap());
    }
    let rig = Rig {
        clock: rig.clock,
        home: Home::Postgres(database),
    };
    let head = rig.head(&ledger).await;
    assert!(rig.verify(Some(head)).await.whole);
    let lines = rig.lines(&ledger).await;
    let mut allowed: Vec<String> = lines
        .iter()
        .filter(|line| line.kind == "allow")
        .map(|line| line.body["attempt"].as_str().unwrap().to_owned())
        .collect();
    let committed = allowed.len();
    allowed.sort();
    allowed.dedup();
    assert_eq!(allowed.len(), committed, "spent twice");
    let lost = acknowledged
        .iter()
        .filter(|name| allowed.binary_search(name).is_err());
    assert_eq!(lost.count(), 0);
    assert!(acknowledged.len() > 10, "{}", acknowledged.len());
    eprintln!("{} acknowledged, {committed} committed", acknowledged.len());
    assert_eq!(ledger.epoch(), 1, "a crash is no other timeline");
    ledger.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn serialization_failures_are_tried_again_once_each() {
    // H06.
    let Some(rig) = Rig::postgres().await else {
        return;
    };
    let Home::Postgres(database) = &rig.home else {
        panic!("no database");
    };
    let ledger = rig.open().await;
    for name in ["a", "b", "c"] {
        ledger.commit(issue(token(name))).await.unwrap();
    }
    // Each state is raised for two batches, then no more: sequences do not roll back.
    let inject = "CREATE SEQUENCE injected; CREATE FUNCTION inject() RETURNS trigger \
         LANGUAGE plpgsql AS $$ BEGIN IF nextval('injected') <= 2 THEN \
         RAISE EXCEPTION 'injected' USING ERRCODE = TG_ARGV[0]; END IF; RETURN NULL; END $$;";
    database.run(inject).await;
    for (name, code) in [("a", "40001"), ("b", "40P01")] {
        for deferred in ["", "DEFERRABLE INITIALLY DEFERRED"] {
            let attempt = format!("{name}{}", deferred.len());
            if !deferred.is_empty() {
                ledger.commit(issue(token(&attempt))).await.unwrap();
            }
            let target = if deferred.is_empty() { name } else { &attempt };
            let trigger = format!(
                "SELECT setval('injected', 1, false); \
                 CREATE CONSTRAINT TRIGGER inject AFTER INSERT ON groups {deferred} \
                 FOR EACH ROW EXECUTE FUNCTION inject('{code}')"
            );
            database.run(&trigger).await;
            let spent = ledger.commit(allow(target, &attempt, None)).await;
            assert!(spent.is_ok(), "{code} {deferred}: {spent:?}");
            database.run("DROP TRIGGER inject ON groups").await;
        }
    }
    // Any other failure is no commit, and is not tried.
    let trigger = "SELECT setval('injected', 1, false); \
         CREATE CONSTRAINT TRIGGER inject AFTER INSERT ON groups \
         FOR EACH ROW EXECUTE FUNCTION inject('58030')";
    database.run(trigger).await;
    let failed = ledger.commit(allow("c", "c", None)).await;
    assert_eq!(failed, Err(Refused::Unavailable));
    database.run("DROP TRIGGER inject ON groups").await;
    ledger.commit(allow("c", "c", None)).await.unwrap();
    let lines = rig.lines(&ledger).await;
    let allowed = lines.iter().filter(|line| line.kind == "allow").count();
    assert_eq!(allowed, 5, "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rows_that_others_lock_are_waited_for_within_the_deadline() {
    // H30.
    let Some(rig) = Rig::postgres().await else {
        return;
    };
    let Home::Postgres(database) = &rig.home else {
        panic!("no database");
    };
    let options = PostgresOptions {
        deadline: Duration::from_millis(300),
        queue_entries: 20,
        ..rig.postgres_options(database)
    };
    let (ledger, _) = Ledger::open_postgres(options).await.unwrap();
    ledger.commit(issue(token("a"))).await.unwrap();
    use sqlx::Connection as _;
    let mut other = database.connect().await;
    let mut locked = other.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE tokens IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *locked)
        .await
        .unwrap();
    let begun = Instant::now();
    let waiting: Vec<_> = (0..100)
        .map(|n| {
            let ledger = ledger.clone();
            tokio::spawn(async move { ledger.commit(allow("a", &format!("{n}"), None)).await })
        })
        .collect();
    for spent in waiting {
        assert_eq!(spent.await.unwrap(), Err(Refused::Unavailable));
    }
    let slowest = begun.elapsed();
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    eprintln!("100 were turned away within {slowest:?}");
    locked.rollback().await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    ledger.commit(allow("a", "last", None)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_command_that_cannot_be_stored_is_refused_alone() {
    let Some(rig) = Rig::postgres().await else {
        return;
    };
    let ledger = rig.open().await;
    for n in 0..20 {
        ledger.commit(issue(token(&format!("t{n}")))).await.unwrap();
    }
    let spending: Vec<_> = (0..20)
        .map(|n| {
            let ledger = ledger.clone();
            tokio::spawn(async move {
                let attempt = match n % 4 {
                    0 => format!("{n}\0"),
                    1 => format!("{n}{}", "x".repeat(5_000)),
                    _ => n.to_string(),
                };
                (
                    n,
                    ledger.commit(allow(&format!("t{n}"), &attempt, None)).await,
                )
            })
        })
        .collect();
    for spent in spending {
        match spent.await.unwrap() {
            (n, Err(Refused::TooLarge)) if n % 4 < 2 => {}
            (n, Ok(_)) if n % 4 >= 2 => {}
            (n, other) => panic!("{n}: {other:?}"),
        }
    }
}
