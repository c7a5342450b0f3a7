//! When an epoch begins, what it ends, and that nobody goes on in an old one.

use std::time::Duration;

use ledger::{Ledger, model::*};

use super::{
    replicas::database,
    server::{Database, Server},
};
use crate::{
    common::*,
    rig::{Home, Rig},
};

async fn confirm(ledger: &Ledger) {
    let restored = ledger.suspended().unwrap().index;
    let by = "admin".into();
    let confirm = Command::ConfirmRestore { restored, by };
    ledger.commit(confirm).await.unwrap();
}

pub async fn wait_for_suspension(ledger: &Ledger) -> Suspension {
    for _ in 0..400 {
        if let Some(suspended) = ledger.suspended() {
            return suspended;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("agents are not suspended");
}

/// The one entry `restored` of the log, and its index.
async fn restored(rig: &Rig, ledger: &Ledger) -> (u64, serde_json::Value) {
    let lines = rig.lines(ledger).await;
    let mut of: Vec<_> = lines
        .into_iter()
        .filter(|line| line.kind == "restored")
        .collect();
    assert_eq!(of.len(), 1, "{of:?}");
    let line = of.remove(0);
    (line.index, line.body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_start_forgets_nothing_and_another_timeline_everything() {
    let Some(rig) = Rig::postgres().await else {
        return;
    };
    let one = rig.open().await;
    for name in ["a", "b", "d"] {
        one.commit(issue(token(name))).await.unwrap();
    }
    for (name, id, n) in [("b", "pending", 1), ("d", "approved", 2)] {
        let wanted = approval(id, [n; 32]);
        one.commit(hold(name, name, wanted)).await.unwrap();
    }
    one.commit(answer("approved", [2; 32], true)).await.unwrap();
    let two = rig.open().await;
    assert_eq!((one.epoch(), two.epoch()), (1, 1));
    two.commit(allow("a", "1", None)).await.unwrap();
    assert_eq!(
        two.approval("pending").unwrap().state,
        ApprovalState::Pending
    );
    one.shutdown().await;

    two.commit(issue(token("c"))).await.unwrap();
    let before = rig.head(&two).await;
    two.shutdown().await;
    database(&rig)
        .run("UPDATE meta SET timeline = 'another'")
        .await;
    let two = rig.open().await;
    assert_eq!(two.epoch(), 2);
    // What was approved may have been used by what was lost.
    for id in ["pending", "approved"] {
        assert_eq!(two.approval(id).unwrap().state, ApprovalState::Expired);
    }
    assert_eq!(two.approved_unused(&[2; 32]), None);
    for name in ["a", "b", "c", "d"] {
        let late = two.commit(allow(name, name, None)).await;
        assert_eq!(late, Err(Refused::Suspended), "{name}");
    }
    let suspended = two.suspended().unwrap();
    confirm(&two).await;
    for name in ["a", "b", "c", "d"] {
        let late = two.commit(allow(name, name, None)).await;
        assert_eq!(late, Err(Refused::NotOutstanding(None)), "{name}");
    }
    two.commit(issue(token("e"))).await.unwrap();
    let used = allow("e", "e", Some(("approved", [2; 32])));
    assert_eq!(
        two.commit(used).await,
        Err(Refused::ApprovalState(Some(ApprovalState::Expired)))
    );
    let head = rig.head(&two).await;
    assert!(rig.verify(Some(head)).await.whole);
    let (index, body) = restored(&rig, &two).await;
    assert_eq!(index, suspended.index);
    assert_eq!((suspended.entries, suspended.head), before);
    assert_eq!(body["entries"], before.0);
    let epochs: Vec<u64> = rig
        .lines(&two)
        .await
        .iter()
        .map(|line| line.epoch)
        .collect();
    assert_eq!(epochs[8..], [1, 2, 2, 2, 2], "epoch, restored, confirmed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tables_that_stand_elsewhere_are_a_restore() {
    let Some(rig) = Rig::postgres().await else {
        return;
    };
    let one = rig.open().await;
    one.commit(issue(token("a"))).await.unwrap();
    one.commit(hold("a", "a", approval("apr", [1; 32])))
        .await
        .unwrap();
    one.shutdown().await;
    let elsewhere = "UPDATE meta SET identity = 'another server'";
    database(&rig).run(elsewhere).await;
    let two = rig.open().await;
    assert_eq!(two.approval("apr").unwrap().state, ApprovalState::Expired);
    let suspended = two.suspended().unwrap();
    assert_eq!(two.commit(issue(token("b"))).await, Err(Refused::Suspended));
    let other = Command::ConfirmRestore {
        restored: suspended.index + 1,
        by: "admin".into(),
    };
    assert_eq!(two.commit(other).await, Err(Refused::AttemptKnown));
    confirm(&two).await;
    assert_eq!(two.suspended(), None);
    two.commit(issue(token("b"))).await.unwrap();
    let kinds: Vec<String> = rig.lines(&two).await.into_iter().map(|l| l.kind).collect();
    let end = &kinds[3..];
    assert_eq!(end, ["epoch", "restored", "confirmed", "issue"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_suspension_names_the_entry_that_says_so() {
    // Also when entries of the epoch before have no place yet.
    let Some(rig) = Rig::postgres().await else {
        return;
    };
    let one = rig.open().await;
    one.commit(issue(token("a"))).await.unwrap();
    rig.head(&one).await;
    let another = "UPDATE sequencer SET fence = fence + 1, holder = '\\x00', \
                   until = clock_timestamp() + interval '1 hour'";
    database(&rig).run(another).await;
    for n in 0..100 {
        one.commit(note("config", n)).await.unwrap();
    }
    one.shutdown().await;
    let waiting = "SELECT count(*) FROM groups WHERE first_index IS NULL";
    assert_eq!(database(&rig).count(waiting).await, 100);
    database(&rig)
        .run("UPDATE meta SET identity = 'another server'; UPDATE sequencer SET until = 'epoch'")
        .await;
    let two = rig.open().await;
    let suspended = two.suspended().unwrap();
    let (index, body) = restored(&rig, &two).await;
    assert_eq!(
        (suspended.index, suspended.entries, index),
        (103, 102, 103),
        "behind all that was committed, and the epoch's own"
    );
    assert_eq!(body["head"], hex::encode(suspended.head));
    let head = rig.head(&two).await;
    assert!(rig.verify(Some((102, suspended.head))).await.whole);
    assert!(rig.verify(Some(head)).await.whole);
}

/// A server of its own, with a ledger that has one spent and one approved use.
struct Used {
    server: Server,
    rig: Rig,
    ledger: Ledger,
    database: Database,
}

impl Used {
    async fn new() -> Option<Self> {
        let server = Server::start(&[])?;
        let database = server.database().await;
        let rig = Rig {
            clock: TestClock::new(),
            home: Home::Postgres(database.clone()),
        };
        let ledger = rig.open().await;
        for name in ["a", "b"] {
            ledger.commit(issue(token(name))).await.unwrap();
        }
        let wanted = approval("apr", [1; 32]);
        ledger.commit(hold("b", "b", wanted)).await.unwrap();
        ledger.commit(answer("apr", [1; 32], true)).await.unwrap();
        rig.head(&ledger).await;
        Some(Self {
            server,
            rig,
            ledger,
            database,
        })
    }

    async fn spend(&self) {
        self.ledger.commit(allow("a", "1", None)).await.unwrap();
        let used = allow("b", "b", Some(("apr", [1; 32])));
        self.ledger.commit(used).await.unwrap();
        // It is remembered from here on.
        self.rig.head(&self.ledger).await;
    }

    /// What came back is not taken: not at once, and not when it is confirmed.
    async fn nothing_returned(&self) -> Suspension {
        let again = [
            allow("a", "2", None),
            allow("b", "b", Some(("apr", [1; 32]))),
        ];
        for command in again.clone() {
            let late = self.ledger.commit(command).await;
            let refused = Err(Refused::Suspended);
            assert!(
                late == refused || late == Err(Refused::Unavailable),
                "{late:?}"
            );
        }
        let suspended = wait_for_suspension(&self.ledger).await;
        assert_eq!(self.ledger.epoch(), 2);
        assert_eq!(
            self.ledger.approval("apr").unwrap().state,
            ApprovalState::Expired
        );
        confirm(&self.ledger).await;
        for command in again {
            let late = self.ledger.commit(command).await;
            assert_eq!(late, Err(Refused::NotOutstanding(None)));
        }
        self.ledger.commit(issue(token("c"))).await.unwrap();
        self.ledger.commit(allow("c", "c", None)).await.unwrap();
        let head = self.rig.head(&self.ledger).await;
        assert!(self.rig.verify(Some(head)).await.whole);
        suspended
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_backup_that_is_restored_under_open_connections_is_noticed() {
    let Some(used) = Used::new().await else {
        return;
    };
    let file = used.server.socket_dir().join("backup");
    let run = |program: &str, args: &[&str]| {
        let mut command = used.server.command(program);
        command.args(["-U", "writ", "-h"]);
        command.arg(used.server.socket_dir()).args(args);
        let done = command.output().unwrap();
        assert!(done.status.success(), "{program}: {done:?}");
    };
    let name = used.database.name.as_str();
    let path = file.to_str().unwrap();
    run("pg_dump", &["-Fc", "-f", path, name]);
    // Once they are back an epoch may have ended them before anybody can look.
    let mut listed = used.server.command("pg_restore");
    listed.args(["--data-only", "-t", "tokens", "-f", "-", path]);
    let listed = String::from_utf8(listed.output().unwrap().stdout).unwrap();
    let rows = listed.lines().skip_while(|line| !line.starts_with("COPY "));
    let rows = rows.skip(1).take_while(|line| *line != "\\.");
    assert_eq!(rows.count(), 2, "{listed}");
    used.spend().await;
    run(
        "pg_restore",
        &["--clean", "--single-transaction", "-d", name, path],
    );
    used.nothing_returned().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rows_that_are_set_back_under_open_connections_are_noticed() {
    // As a snapshot of the disk is, or a restore of data alone: place and timeline
    // are the same, but a replica remembers the log.
    let Some(used) = Used::new().await else {
        return;
    };
    let tables = [
        "meta",
        "agents",
        "tokens",
        "uses",
        "evidence",
        "approvals",
        "groups",
        "entries",
        "sequencer",
    ];
    let (mut keep, mut back) = (String::new(), String::from("BEGIN;"));
    for table in tables {
        keep += &format!("CREATE TABLE was_{table} AS TABLE {table};");
        back += &format!("TRUNCATE {table}; INSERT INTO {table} SELECT * FROM was_{table};");
    }
    used.database.run(&keep).await;
    used.spend().await;
    let seen = used.ledger.head();
    used.database.run(&format!("{back} COMMIT")).await;
    let suspended = used.nothing_returned().await;
    let (_, body) = restored(&used.rig, &used.ledger).await;
    assert_eq!(suspended.entries, seen.0 - 2);
    assert_eq!(body["instead_of"][0]["entries"], seen.0);
    assert_eq!(body["instead_of"][0]["head"], hex::encode(seen.1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_batch_that_was_under_way_when_an_epoch_began_is_not_of_it() {
    let Some(rig) = Rig::postgres().await else {
        return;
    };
    let ledger = rig.open().await;
    ledger.commit(issue(token("a"))).await.unwrap();
    let database = database(&rig);
    // A batch has read the epoch and waits for its agent's row, while another begins.
    use sqlx::Connection as _;
    let mut other = database.connect().await;
    let mut locked = other.begin().await.unwrap();
    sqlx::raw_sql("SELECT FROM agents FOR UPDATE")
        .execute(&mut *locked)
        .await
        .unwrap();
    let waiting = {
        let ledger = ledger.clone();
        tokio::spawn(async move { ledger.commit(issue(token("b"))).await })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    let begins = "UPDATE meta SET epoch = 2, restored = 2, suspended = \
         convert_to('{\"index\":2,\"time_ms\":0,\"entries\":2,\"head\":\"' || repeat('00', 32) \
         || '\"}', 'UTF8')";
    sqlx::raw_sql(begins).execute(&mut *locked).await.unwrap();
    locked.commit().await.unwrap();
    assert_eq!(waiting.await.unwrap(), Err(Refused::Suspended));
    assert_eq!(database.count("SELECT count(*) FROM tokens").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_epoch_forgets_which_proofs_were_used() {
    // The exchange takes no proof from before it; files forget them the same way.
    for rig in [Some(Rig::files()), Rig::postgres().await] {
        let Some(rig) = rig else {
            return;
        };
        let ledger = rig.open().await;
        let used = |name: &str| proven(issue(token(name)), [7; 32], name);
        ledger.commit(used("a")).await.unwrap();
        assert_eq!(ledger.commit(used("b")).await, Err(Refused::ProofUsed));
        let ledger = rig.next_epoch(ledger, Limits::default()).await;
        if rig.is_postgres() {
            let rows = database(&rig).count("SELECT count(*) FROM proofs").await;
            assert_eq!(rows, 0);
        }
        ledger.commit(used("c")).await.unwrap();
    }
}

/// Tables of before are brought up to date, and a replica of before stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_database_of_another_format_is_brought_up_to_date_or_refused() {
    let Some(rig) = Rig::postgres().await else {
        return;
    };
    let ledger = rig.open().await;
    ledger.commit(issue(token("a"))).await.unwrap();
    ledger.shutdown().await;
    let database = database(&rig);
    let before = "DROP TABLE seen, proofs; UPDATE meta SET format = 1; \
                  ALTER TABLE approvals DROP COLUMN denied; \
                  DELETE FROM _sqlx_migrations WHERE version > 3";
    database.run(before).await;
    let ledger = rig.open().await;
    ledger.commit(allow("a", "1", None)).await.unwrap();
    let format = "SELECT format::int8 FROM meta";
    assert_eq!(database.count(format).await, 3);
    assert_eq!((ledger.epoch(), ledger.suspended()), (1, None));
    // To the one that runs, what comes next is what this one is to those of before.
    database.run("UPDATE meta SET format = 4").await;
    let mut n = 0;
    while ledger.commit(note("config", n)).await.is_ok() {
        n += 1;
        assert!(n < 400, "it goes on with a format that it does not know");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let late = ledger.commit(note("config", n)).await;
    assert_eq!(late, Err(Refused::Unavailable));
    ledger.shutdown().await;
    let options = rig.postgres_options(&database);
    let refused = Ledger::open_postgres(options)
        .await
        .map(|_| ())
        .unwrap_err();
    let said = refused.to_string();
    assert!(
        said.contains("format 4, where this version writes 3"),
        "{said}"
    );
}
