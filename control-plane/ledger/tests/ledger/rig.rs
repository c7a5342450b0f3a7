//! One suite for both stores: a place to open ledgers in, and how to look at
//! what they wrote.

use std::path::Path;

use ledger::{
    Ledger, Options,
    model::{Command, Hash, Limits},
    postgres::{LogReader, PostgresOptions},
};

use crate::{
    common::{SEGMENT, START, TestClock, lines},
    postgres::server::{Database, Server},
};

/// Where a test's ledgers are.
pub enum Home {
    Files(tempfile::TempDir),
    Postgres(Database),
}

/// A test's clock and store.
pub struct Rig {
    pub clock: TestClock,
    pub home: Home,
}

/// Instantiates tests that take a [`Rig`] for each store.
macro_rules! on_both_stores {
    ($($name:ident),+ $(,)?) => {
        mod files {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $name() {
                super::$name($crate::rig::Rig::files()).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $name() {
                if let Some(rig) = $crate::rig::Rig::postgres().await {
                    super::$name(rig).await;
                }
            })+
        }
    };
}
pub(crate) use on_both_stores;

impl Rig {
    pub fn files() -> Self {
        Self {
            clock: TestClock::new(),
            home: Home::Files(tempfile::tempdir().unwrap()),
        }
    }

    /// `None`, loudly, where there is no server.
    pub async fn postgres() -> Option<Self> {
        Some(Self {
            clock: TestClock::new(),
            home: Home::Postgres(Server::shared()?.database().await),
        })
    }

    pub fn is_postgres(&self) -> bool {
        matches!(self.home, Home::Postgres(_))
    }

    /// Waits until a replica counts anew what owners have.
    pub async fn counted(&self) {
        if self.is_postgres() {
            tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
        }
    }

    pub async fn open(&self) -> Ledger {
        self.open_with(Limits::default()).await
    }

    pub async fn open_with(&self, limits: Limits) -> Ledger {
        match &self.home {
            Home::Files(dir) => {
                let options = Options {
                    limits,
                    segment_len: SEGMENT,
                    ..self.clock.options(dir.path())
                };
                Ledger::open(options).unwrap().0
            }
            Home::Postgres(database) => {
                let options = PostgresOptions {
                    limits,
                    ..self.postgres_options(database)
                };
                Ledger::open_postgres(options).await.unwrap().0
            }
        }
    }

    pub fn postgres_options(&self, database: &Database) -> PostgresOptions {
        let clock = self.clock.options(Path::new("")).clock;
        PostgresOptions {
            connections: 6,
            ..PostgresOptions::new(database.url.clone(), clock)
        }
    }

    /// The ledger ends and is opened in a new epoch: in files every start is one,
    /// a database looks as if a standby had taken over, which an admin has to confirm.
    pub async fn next_epoch(&self, ledger: Ledger, limits: Limits) -> Ledger {
        ledger.shutdown().await;
        drop(ledger);
        if let Home::Postgres(database) = &self.home {
            database.run("UPDATE meta SET timeline = 'another'").await;
        }
        let ledger = self.open_with(limits).await;
        if let Some(suspended) = ledger.suspended() {
            let confirmed = ledger.commit(Command::ConfirmRestore {
                restored: suspended.index,
                by: "admin".into(),
            });
            confirmed.await.unwrap();
        }
        ledger
    }

    /// How many entries say that.
    pub fn epoch_entries(&self) -> u64 {
        if self.is_postgres() { 3 } else { 1 }
    }

    /// Waits until what was committed was also heard of by way of the database.
    pub async fn settle(&self) {
        if self.is_postgres() {
            tokio::time::sleep(std::time::Duration::from_millis(400)).await;
        }
    }

    /// The head, once everything that was committed has its place.
    pub async fn head(&self, ledger: &Ledger) -> (u64, Hash) {
        if let Home::Postgres(database) = &self.home {
            for _ in 0..400 {
                let waiting = "SELECT count(*) FROM groups WHERE first_index IS NULL";
                let placed = "SELECT entries FROM sequencer";
                if database.count(waiting).await == 0
                    && u64::try_from(database.count(placed).await).unwrap() == ledger.head().0
                {
                    return ledger.head();
                }
                tokio::time::sleep(std::time::Duration::from_millis(25)).await;
            }
            panic!("entries did not get their places");
        }
        ledger.head()
    }

    /// The lines, once everything that was committed has its place.
    pub async fn lines(&self, ledger: &Ledger) -> Vec<audit::Line> {
        let (entries, _) = self.head(ledger).await;
        self.read(entries).await
    }

    /// The first entries' lines.
    pub async fn read(&self, entries: u64) -> Vec<audit::Line> {
        match &self.home {
            Home::Files(dir) => lines(dir.path()).into_iter().map(|e| e.line).collect(),
            Home::Postgres(database) => {
                let options = self.postgres_options(database);
                let mut reader = LogReader::connect(&options, 0).await.unwrap();
                let mut all = Vec::new();
                while let Some(entry) = reader.next().await.unwrap() {
                    all.push(audit::Line::decode(&entry.line).unwrap());
                }
                assert!(all.len() as u64 >= entries);
                all
            }
        }
    }

    /// Verifies the log as an auditor would.
    pub async fn verify(&self, head: Option<(u64, Hash)>) -> audit::Report {
        match &self.home {
            Home::Files(dir) => audit::verify(dir.path(), head),
            Home::Postgres(database) => {
                let options = self.postgres_options(database);
                ledger::postgres::verify(&options, head).await.unwrap()
            }
        }
    }

    /// What a commit says of its index: a database gives it later.
    pub fn index(&self, index: u64) -> Option<u64> {
        (!self.is_postgres()).then_some(index)
    }
}

#[tokio::test]
async fn a_rig_starts_where_its_clock_does() {
    let rig = Rig::files();
    assert_eq!(rig.open().await.now(), START);
}
