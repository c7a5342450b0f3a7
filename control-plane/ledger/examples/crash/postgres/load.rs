//! Callers that issue tokens and race for each, and what they were told.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ledger::{
    Ledger,
    model::{Command, Refused},
};
use tokio::task::JoinHandle;

use crate::{
    Failure,
    worker::{self, EACH, allow, code_and_stop, issue},
};

const CALLERS: u64 = 24;
/// Tokens that were acknowledged as spent and are shown again.
const SHOWN_AGAIN: usize = 400;

/// What became of one token.
#[derive(Debug, Default)]
pub struct Told {
    pub name: String,
    pub issued: bool,
    /// The attempts that were told yes.
    pub allowed: Vec<String>,
    pub unknown: u64,
}

impl Told {
    /// What is known of an entry beside the usual ones.
    fn of((kind, name, outcome): worker::Told) -> Self {
        let unknown = u64::from(matches!(outcome, Err(Refused::Unknown)));
        let allowed = match (kind, outcome.is_ok()) {
            ("allow", true) => vec![format!("{name}.0")],
            _ => Vec::new(),
        };
        Self {
            issued: kind == "issue" && outcome.is_ok(),
            allowed,
            unknown,
            name,
        }
    }
}

/// Callers at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    callers: Vec<JoinHandle<Vec<Told>>>,
}

impl Load {
    pub fn start(ledger: &Ledger) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let callers = (0..CALLERS).map(|caller| {
            let (ledger, stop) = (ledger.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut told = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let name = format!("{caller}.{}", told.len());
                    let one = one(&ledger, name).await;
                    if one.allowed.is_empty() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    } else if (told.len() as u64).is_multiple_of(EACH) {
                        let all = code_and_stop(&ledger, &one.name).await;
                        told.extend(all.into_iter().map(Told::of));
                    }
                    told.push(one);
                }
                told
            })
        });
        Self {
            callers: callers.collect(),
            stop,
        }
    }

    /// What all callers were told.
    pub async fn stop(self) -> Result<Vec<Told>, Failure> {
        self.stop.store(true, Ordering::SeqCst);
        let mut told = Vec::new();
        for caller in self.callers {
            told.extend(caller.await?);
        }
        Ok(told)
    }
}

/// One token, spent by three attempts at once: one may win.
async fn one(ledger: &Ledger, name: String) -> Told {
    let token_hash = audit::leaf_hash(name.as_bytes());
    let mut told = Told::default();
    let unknown = |result: &Result<_, Refused>| u64::from(*result == Err(Refused::Unknown));
    let issued = ledger.commit(issue(&name, token_hash)).await;
    told.unknown += unknown(&issued);
    told.issued = issued.is_ok();
    if told.issued {
        let race = (0..3).map(|n| {
            let (ledger, attempt) = (ledger.clone(), format!("{name}.{n}"));
            tokio::spawn(async move {
                let allowed = ledger.commit(allow(token_hash, attempt.clone())).await;
                (attempt, allowed)
            })
        });
        for tried in race.collect::<Vec<_>>() {
            let Ok((attempt, allowed)) = tried.await else {
                continue;
            };
            told.unknown += unknown(&allowed);
            if allowed.is_ok() {
                told.allowed.push(attempt);
            }
        }
    }
    told.name = name;
    told
}

/// A few more, until some are acknowledged: the ledger goes on.
///
/// # Errors
/// When it does not.
pub async fn some(ledger: &Ledger) -> Result<Vec<Told>, Failure> {
    let mut all = Vec::new();
    let mut done = 0;
    for n in 0..300 {
        let told = one(ledger, format!("after.{n}")).await;
        done += usize::from(!told.allowed.is_empty());
        all.push(told);
        if done == 10 {
            return Ok(all);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err("nothing is acknowledged any more".into())
}

/// Shows what was acknowledged as spent once more; how many were spent again.
///
/// # Errors
/// When the ledger does not answer.
pub async fn spend_again(ledger: &Ledger, told: &[Told]) -> Result<u64, Failure> {
    let spent = told.iter().rev().filter(|t| !t.allowed.is_empty());
    let mut again = 0;
    for token in spent.take(SHOWN_AGAIN) {
        let command = || {
            let hash = audit::leaf_hash(token.name.as_bytes());
            allow(hash, format!("{}.again", token.name))
        };
        let mut answer = ledger.commit(command()).await;
        for _ in 0..100 {
            if !matches!(answer, Err(Refused::Unavailable | Refused::Unknown)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            answer = ledger.commit(command()).await;
        }
        match answer {
            Ok(_) => again += 1,
            Err(Refused::NotOutstanding(_)) => {}
            Err(other) => return Err(format!("{} shown again: {other:?}", token.name).into()),
        }
    }
    Ok(again)
}

/// A spend of what never was: says whether the ledger decides, and writes nothing.
pub fn probe() -> Command {
    allow([0; 32], "probe".to_owned())
}

/// The names of tokens of which two attempts were told yes.
pub fn doubled(told: &[Told]) -> HashSet<&str> {
    let twice = told.iter().filter(|token| token.allowed.len() > 1);
    twice.map(|token| token.name.as_str()).collect()
}
