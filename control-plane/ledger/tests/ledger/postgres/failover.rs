//! A standby takes over: one that nothing acknowledged can be missing from, and one
//! that was behind.

use ledger::{Ledger, model::*, postgres::PostgresOptions};

use super::{
    epochs::wait_for_suspension,
    proxy::Proxy,
    replicas::database,
    server::{Database, Server},
};
use crate::{
    common::*,
    rig::{Home, Rig},
};

/// A primary and what follows it, reached by an address that moves with the primary.
struct Cluster {
    primary: Server,
    standby: Server,
    /// Follows the standby.
    third: Option<Server>,
    proxy: Proxy,
    rig: Rig,
    database: Database,
}

impl Cluster {
    async fn new(synchronous: bool) -> Option<Self> {
        let mut primary = Server::start(&[])?;
        let database = primary.database().await;
        let waits = |name: &str| format!("synchronous_standby_names = '{name}'");
        let (second, third) = (waits("second"), waits("third"));
        let own: &[&str] = if synchronous { &[&second] } else { &[] };
        let settings: &[&str] = if synchronous { &[&third] } else { &[] };
        let mut standby = primary.standby("second", settings, own);
        let third = synchronous.then(|| standby.standby("third", &[&waits("nobody")], &[]));
        let proxy = Proxy::start(primary.socket_dir()).await;
        let rig = Rig {
            clock: TestClock::new(),
            home: Home::Postgres(Database {
                url: standby.url(&database.name),
                name: database.name.clone(),
            }),
        };
        Some(Self {
            primary,
            standby,
            third,
            proxy,
            rig,
            database,
        })
    }

    async fn open(&self, replicated: bool) -> Ledger {
        let options = PostgresOptions {
            url: self.proxy.url(&self.database.name),
            plaintext_loopback: true,
            replicated,
            ..self.rig.postgres_options(&self.database)
        };
        Ledger::open_postgres(options).await.unwrap().0
    }

    async fn fail_over(&mut self) {
        self.primary.crash();
        self.standby.promote().await;
        self.proxy.retarget(self.standby.socket_dir());
    }
}

/// Two tokens, one spent, and an approval that is used.
async fn use_some(ledger: &Ledger) {
    for name in ["spent", "used", "left"] {
        ledger.commit(issue(token(name))).await.unwrap();
    }
    ledger.commit(allow("spent", "1", None)).await.unwrap();
    let wanted = approval("apr", [1; 32]);
    ledger.commit(hold("used", "2", wanted)).await.unwrap();
    ledger.commit(answer("apr", [1; 32], true)).await.unwrap();
}

/// Commits until the store is there again.
async fn first_answer(ledger: &Ledger, command: Command) -> Result<Committed, Refused> {
    for _ in 0..400 {
        match ledger.commit(command.clone()).await {
            Err(Refused::Unavailable | Refused::Unknown) => {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            answer => return answer,
        }
    }
    panic!("the store does not come back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_synchronous_standby_takes_over_and_nobody_is_suspended() {
    let Some(mut cluster) = Cluster::new(true).await else {
        return;
    };
    let ledger = cluster.open(true).await;
    use_some(&ledger).await;
    let used = allow("used", "2", Some(("apr", [1; 32])));
    ledger.commit(used).await.unwrap();
    ledger.commit(issue(token("more"))).await.unwrap();
    let wanted = approval("open", [2; 32]);
    ledger.commit(hold("more", "m", wanted)).await.unwrap();
    cluster.fail_over().await;
    for name in ["spent", "used", "left", "more"] {
        let again = first_answer(&ledger, allow(name, "9", None)).await;
        assert_eq!(again, Err(Refused::NotOutstanding(None)), "{name}");
    }
    assert_eq!(ledger.suspended(), None);
    first_answer(&ledger, issue(token("new"))).await.unwrap();
    let allowed = first_answer(&ledger, allow("new", "n", None)).await;
    allowed.unwrap();
    let head = cluster.rig.head(&ledger).await;
    assert!(cluster.rig.verify(Some(head)).await.whole);
    assert_eq!(ledger.epoch(), 2);
    let state = |id: &str| ledger.approval(id).map(|a| a.state);
    assert_eq!(state("apr"), Some(ApprovalState::Consumed));
    assert_eq!(state("open"), Some(ApprovalState::Expired));
    let lines = cluster.rig.lines(&ledger).await;
    let kinds: Vec<&str> = lines.iter().map(|l| l.kind.as_str()).collect();
    // All that was acknowledged, and what the epoch ended.
    assert_eq!(
        kinds[1..],
        [
            "issue",
            "issue",
            "issue",
            "allow",
            "hold",
            "approval",
            "allow",
            "issue",
            "hold",
            "epoch",
            "approvals_expired",
            "issue",
            "allow"
        ]
    );
    assert_eq!(lines[11].body["ids"], serde_json::json!(["open"]));
    drop(cluster.third);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_asynchronous_standby_brings_nothing_back() {
    let Some(mut cluster) = Cluster::new(false).await else {
        return;
    };
    let ledger = cluster.open(false).await;
    use_some(&ledger).await;
    // The standby has all this, and hears of nothing more.
    cluster.rig.head(&ledger).await;
    cluster.standby.stop_following().await;
    ledger.commit(allow("left", "3", None)).await.unwrap();
    let used = allow("used", "2", Some(("apr", [1; 32])));
    ledger.commit(used).await.unwrap();
    let tokens = "SELECT count(*) FROM tokens";
    assert_eq!(cluster.database.count(tokens).await, 0);
    assert_eq!(
        database(&cluster.rig).count(tokens).await,
        2,
        "they are back"
    );
    cluster.fail_over().await;
    let again = first_answer(&ledger, allow("left", "9", None)).await;
    assert_eq!(again, Err(Refused::Suspended));
    let suspended = wait_for_suspension(&ledger).await;
    let by = "admin".into();
    let confirm = Command::ConfirmRestore {
        restored: suspended.index,
        by,
    };
    first_answer(&ledger, confirm).await.unwrap();
    for command in [
        allow("left", "9", None),
        allow("used", "2", Some(("apr", [1; 32]))),
    ] {
        let again = first_answer(&ledger, command).await;
        assert_eq!(again, Err(Refused::NotOutstanding(None)));
    }
    first_answer(&ledger, issue(token("new"))).await.unwrap();
    let used = allow("new", "n", Some(("apr", [1; 32])));
    assert_eq!(
        ledger.commit(used).await,
        Err(Refused::ApprovalState(Some(ApprovalState::Expired)))
    );
    let head = cluster.rig.head(&ledger).await;
    assert!(cluster.rig.verify(Some(head)).await.whole);
    let lines = cluster.rig.lines(&ledger).await;
    let restored = &lines[usize::try_from(suspended.index).unwrap()];
    assert_eq!(restored.kind, "restored");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_was_just_started_vouches_for_no_takeover() {
    // A point in time that was restored while nobody ran looks the same to it.
    let Some(mut cluster) = Cluster::new(true).await else {
        return;
    };
    let ledger = cluster.open(true).await;
    use_some(&ledger).await;
    ledger.shutdown().await;
    cluster.fail_over().await;
    let ledger = cluster.open(true).await;
    let suspended = ledger.suspended().unwrap();
    let state = ledger.approval("apr").map(|approval| approval.state);
    assert_eq!(state, Some(ApprovalState::Expired));
    assert_eq!(
        ledger.commit(issue(token("new"))).await,
        Err(Refused::Suspended)
    );
    let lines = cluster.rig.lines(&ledger).await;
    let restored = &lines[usize::try_from(suspended.index).unwrap()];
    assert_eq!(restored.kind, "restored");
    drop(cluster.third);
}
