//! PostgreSQL's faults: the server is killed under load, connections are cut at
//! COMMIT, standbys take over. The ledger runs here, and its server is what fails.

mod check;
mod load;

use std::time::Duration;

use ledger::{
    Ledger,
    model::{Command, Limits, Refused},
    postgres::PostgresOptions,
};
use serde_json::{Value, json};

use crate::{Failure, check::Counts, now, proxy, server};
use check::{Case, Log};
use load::Load;
use proxy::{Cut, Proxy};
use server::Server;

/// Under load before something fails, and after it.
const BEFORE: Duration = Duration::from_millis(600);
const AFTER: Duration = Duration::from_millis(1_500);
const CONNECTIONS: usize = 12;

/// What all of PostgreSQL's cases came to, beside what they add to the counts.
#[derive(Default)]
pub struct Faults {
    kills: u64,
    cuts: u64,
    takeovers: u64,
    takeovers_behind: u64,
    acknowledged: u64,
    unknown: u64,
    /// Acknowledged by a primary that is gone, and not by the standby; said so.
    told_as_restored: u64,
}

impl Faults {
    pub fn json(&self) -> Value {
        json!({
            "cases": self.kills + self.cuts + self.takeovers + self.takeovers_behind,
            "kills": self.kills,
            "cuts_at_commit": self.cuts,
            "takeovers": self.takeovers,
            "takeovers_behind": self.takeovers_behind,
            "acknowledged": self.acknowledged,
            "unknown": self.unknown,
            "told_as_restored": self.told_as_restored,
        })
    }
}

/// `rounds` kills and as many cuts, a third as many of each kind of takeover, at
/// least one. `None`, loudly, where there is no PostgreSQL.
///
/// # Errors
/// When a server or the ledger does not come back.
pub fn run(rounds: u32, counts: &mut Counts) -> Result<Option<Faults>, Failure> {
    if rounds == 0 {
        return Ok(None);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut faults = Faults::default();
        let Some(mut server) = Server::start(&[]) else {
            return Ok(None);
        };
        for round in 0..rounds {
            let seen = kill(&mut server).await?;
            faults.kills += 1;
            faults.add(&format!("SIGKILL {round} of the server"), seen, counts);
        }
        for round in 0..rounds {
            let cut = match round % 3 {
                0 => Cut::Some,
                1 => Cut::After,
                _ => Cut::Before,
            };
            let seen = cuts(&server, cut).await?;
            faults.cuts += 1;
            faults.add(&format!("cut {round} at COMMIT ({cut:?})"), seen, counts);
        }
        drop(server);
        for round in 0..rounds.div_ceil(3) {
            let seen = take_over(true).await?;
            faults.takeovers += 1;
            faults.add(&format!("takeover {round}"), seen, counts);
            let seen = take_over(false).await?;
            faults.takeovers_behind += 1;
            faults.add(&format!("takeover {round} from behind"), seen, counts);
        }
        Ok(Some(faults))
    })
}

impl Faults {
    fn add(&mut self, what: &str, case: Case, counts: &mut Counts) {
        self.acknowledged += case.acknowledged;
        self.unknown += case.unknown;
        self.told_as_restored += case.told_as_restored;
        counts.add(
            case.acknowledged,
            case.lost,
            case.double_spent,
            case.silent_gaps,
        );
        for problem in &case.problems {
            eprintln!("after {what}: {problem}");
        }
        eprintln!(
            "{what}: {} acknowledged, {} unknown, {} entries",
            case.acknowledged, case.unknown, case.entries
        );
    }
}

fn options(url: String, replicated: bool) -> PostgresOptions {
    PostgresOptions {
        connections: CONNECTIONS,
        replicated,
        plaintext_loopback: true,
        limits: Limits {
            outstanding_per_agent: 65_536,
            ..Limits::default()
        },
        ..PostgresOptions::new(url, std::sync::Arc::new(now))
    }
}

/// SIGKILL of the whole server under load; it starts again and recovers.
async fn kill(server: &mut Server) -> Result<Case, Failure> {
    let database = server.database().await;
    let direct = options(database.url, false);
    let (ledger, _) = Ledger::open_postgres(direct.clone()).await?;
    let load = Load::start(&ledger);
    pause(BEFORE).await;
    let head = ledger.head();
    tokio::task::block_in_place(|| server.crash_and_restart());
    pause(AFTER).await;
    finish(ledger, load, Log::of(direct).with_head(head)).await
}

/// Connections are cut at COMMIT: before the server has it, or after.
async fn cuts(server: &Server, cut: Cut) -> Result<Case, Failure> {
    let database = server.database().await;
    let proxy = Proxy::start(server.socket_dir()).await;
    let through = options(proxy.url(&database.name), false);
    let (ledger, _) = Ledger::open_postgres(through).await?;
    let load = Load::start(&ledger);
    pause(BEFORE).await;
    let head = ledger.head();
    proxy.set(cut);
    pause(BEFORE * 2).await;
    proxy.set(Cut::Nothing);
    pause(AFTER).await;
    if proxy.commits() == 0 {
        return Err("no COMMIT came by".into());
    }
    let direct = options(database.url, false);
    finish(ledger, load, Log::of(direct).with_head(head)).await
}

/// The primary is killed under load and a standby takes over: one that every commit
/// waited for, or one that had stopped to follow.
async fn take_over(synchronous: bool) -> Result<Case, Failure> {
    let mut primary = Server::start(&[]).ok_or("PostgreSQL is gone")?;
    let database = primary.database().await;
    let (own, settings): (&[&str], &[&str]) = if synchronous {
        (
            &["synchronous_standby_names = 'second'"],
            &["synchronous_standby_names = 'third'"],
        )
    } else {
        (&[], &[])
    };
    let mut standby = primary.standby("second", settings, own);
    // Whom the second waits for, once it is the primary.
    let third =
        synchronous.then(|| standby.standby("third", &["synchronous_standby_names = 'none'"], &[]));
    let proxy = Proxy::start(primary.socket_dir()).await;
    let through = options(proxy.url(&database.name), synchronous);
    let (ledger, _) = Ledger::open_postgres(through).await?;
    let load = Load::start(&ledger);
    pause(BEFORE).await;
    let head = ledger.head();
    if !synchronous {
        standby.stop_following().await;
        pause(BEFORE).await;
    }
    tokio::task::block_in_place(|| primary.crash());
    standby.promote().await;
    proxy.retarget(standby.socket_dir());
    pause(AFTER * 2).await;
    let url = standby.url(&database.name);
    let log = Log::of(options(url, false));
    let log = if synchronous {
        log.with_head(head)
    } else {
        log
    };
    let case = finish(ledger, load, log.behind(!synchronous)).await;
    drop(third);
    case
}

/// Stops the load, looks what there is, and whether anything can be spent again.
async fn finish(ledger: Ledger, load: Load, log: Log) -> Result<Case, Failure> {
    let mut told = load.stop().await?;
    confirm(&ledger).await?;
    // It goes on, and a few more are acknowledged.
    told.extend(load::some(&ledger).await?);
    let again = load::spend_again(&ledger, &told).await?;
    let case = log.compare(&ledger, &told, again).await;
    ledger.shutdown().await;
    case
}

/// An admin confirms a restore, where there was one.
async fn confirm(ledger: &Ledger) -> Result<(), Failure> {
    for _ in 0..100 {
        let probed = ledger.commit(load::probe()).await;
        match probed {
            Err(Refused::Suspended) => {}
            Err(Refused::NotOutstanding(None)) => return Ok(()),
            _ => {
                pause(Duration::from_millis(100)).await;
                continue;
            }
        }
        if let Some(suspended) = ledger.suspended() {
            let confirm = Command::ConfirmRestore {
                restored: suspended.index,
                by: "admin".into(),
            };
            let _ = ledger.commit(confirm).await;
        }
        pause(Duration::from_millis(100)).await;
    }
    Err("the ledger does not come back".into())
}

async fn pause(time: Duration) {
    tokio::time::sleep(time).await;
}
