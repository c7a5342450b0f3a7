//! What must hold after a fault: read from the log in the database.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use ledger::{
    Ledger,
    model::Hash,
    postgres::{LogReader, PostgresOptions, verify},
};
use serde_json::Value;

use super::load::{self, Told};
use crate::Failure;

/// What one case came to.
#[derive(Default)]
pub struct Case {
    pub acknowledged: u64,
    pub unknown: u64,
    pub entries: u64,
    pub lost: u64,
    pub double_spent: u64,
    pub silent_gaps: u64,
    pub told_as_restored: u64,
    pub problems: Vec<String>,
}

/// A log, and what is known of it.
pub struct Log {
    options: PostgresOptions,
    head: Option<(u64, Hash)>,
    behind: bool,
}

/// The log's lines, by what acknowledged entries name.
#[derive(Default)]
struct Found {
    issued: HashMap<String, u64>,
    /// By attempt, and by token.
    allowed: HashMap<String, u64>,
    spent: HashMap<String, u64>,
    stopped: HashSet<String>,
    after_stop: u64,
    restored: bool,
    epochs: u64,
}

impl Log {
    pub fn of(options: PostgresOptions) -> Self {
        Self {
            options,
            head: None,
            behind: false,
        }
    }

    /// It must go on from this head, which was shown before the fault.
    pub fn with_head(self, head: (u64, Hash)) -> Self {
        Self {
            head: Some(head),
            ..self
        }
    }

    /// It may lack what was acknowledged, and must say so.
    pub fn behind(self, behind: bool) -> Self {
        Self { behind, ..self }
    }

    /// Compares the log with what was told.
    ///
    /// # Errors
    /// When it cannot be read, or entries never get their places.
    pub async fn compare(
        &self,
        ledger: &Ledger,
        told: &[Told],
        again: u64,
    ) -> Result<Case, Failure> {
        self.placed(ledger).await?;
        let report = verify(&self.options, self.head).await?;
        let mut case = Case {
            entries: report.entries,
            unknown: told.iter().map(|token| token.unknown).sum(),
            double_spent: again,
            ..Case::default()
        };
        if again > 0 {
            case.say(format!("{again} tokens were spent again"));
        }
        if !report.whole {
            case.silent_gaps += 1;
            case.say(format!("the log is not whole: {report:?}"));
        }
        let found = self.read().await?;
        let doubled = found.spent.values().filter(|times| **times > 1).count();
        let doubled = doubled.max(load::doubled(told).len());
        if doubled > 0 {
            case.double_spent += u64::try_from(doubled)?;
            case.say(format!("{doubled} tokens were spent twice"));
        }
        if found.after_stop > 0 {
            case.double_spent += found.after_stop;
            case.say(format!(
                "{} tokens passed after their stop",
                found.after_stop
            ));
        }
        let mut missing = 0;
        for token in told {
            let issued = [(&token.name, &found.issued)];
            let allowed = token.allowed.iter().map(|name| (name, &found.allowed));
            let acknowledged = issued.into_iter().filter(|_| token.issued).chain(allowed);
            for (name, there) in acknowledged {
                case.acknowledged += 1;
                missing += u64::from(there.get(name) != Some(&1));
            }
        }
        match (missing, self.behind, found.restored) {
            (0, false, _) => {}
            (_, true, true) => case.told_as_restored = missing,
            (_, true, false) => {
                case.silent_gaps += 1;
                case.say(format!("{missing} are missing, and no entry says so"));
            }
            (_, false, _) => {
                case.lost += missing;
                case.say(format!("{missing} acknowledged entries are not there"));
            }
        }
        if self.behind && found.epochs < 2 {
            case.silent_gaps += 1;
            case.say("no epoch began".to_owned());
        }
        Ok(case)
    }

    /// Waits until all that was committed has its place, and was polled.
    async fn placed(&self, ledger: &Ledger) -> Result<(), Failure> {
        let mut reader = LogReader::connect(&self.options, u64::MAX).await?;
        let mut last = 0;
        for _ in 0..200 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let entries = reader.entries().await?;
            if entries == last && ledger.head().0 == entries {
                return Ok(());
            }
            last = entries;
        }
        Err("entries do not get their places".into())
    }

    async fn read(&self) -> Result<Found, Failure> {
        let mut found = Found::default();
        let mut reader = LogReader::connect(&self.options, 0).await?;
        while let Some(entry) = reader.next().await? {
            let line = audit::Line::decode(&entry.line)?;
            let text = |at: &str| line.body.pointer(at).and_then(Value::as_str);
            let jti = text("/token/jti").unwrap_or_default().to_owned();
            let attempt = text("/attempt").unwrap_or_default().to_owned();
            match line.kind.as_str() {
                "issue" => {
                    *found.issued.entry(jti).or_default() += 1;
                    if let Some(code) = text("/under") {
                        *found.spent.entry(code.to_owned()).or_default() += 1;
                    }
                }
                "stop" => {
                    let token = text("/target/token").unwrap_or_default();
                    found.stopped.insert(token.to_owned());
                }
                "allow" => {
                    *found.allowed.entry(attempt).or_default() += 1;
                    *found.spent.entry(jti).or_default() += 1;
                    let token = text("/token/hash").unwrap_or_default();
                    found.after_stop += u64::from(found.stopped.contains(token));
                }
                "restored" => found.restored = true,
                "epoch" => found.epochs += 1,
                _ => {}
            }
        }
        Ok(found)
    }
}

impl Case {
    fn say(&mut self, problem: String) {
        self.problems.push(problem);
    }
}
