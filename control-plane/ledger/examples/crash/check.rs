//! What must hold after a fault: read from the journal's bytes, and by opening it.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use audit::reader::Reader;
use ledger::{Ledger, OpenError, Options};
use serde_json::{Value, json};

use crate::now;

/// One acknowledged entry.
#[derive(Clone, Debug)]
pub struct Ack {
    index: u64,
    kind: String,
    name: String,
}

impl Ack {
    /// Reads a worker's line, which it wrote at once: a pipe takes so few bytes
    /// whole or not at all.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        Some(Self {
            index: words.next()?.parse().ok()?,
            kind: words.next()?.to_owned(),
            name: words.next()?.to_owned(),
        })
    }
}

/// What all cases came to.
#[derive(Default)]
pub struct Counts {
    pub cases: u64,
    pub acknowledged: u64,
    lost: u64,
    double_spent: u64,
    silent_gaps: u64,
    torn_tails: u64,
}

impl Counts {
    /// One more case.
    pub fn add(&mut self, acknowledged: u64, lost: u64, double_spent: u64, silent_gaps: u64) {
        self.cases += 1;
        self.acknowledged += acknowledged;
        self.lost += lost;
        self.double_spent += double_spent;
        self.silent_gaps += silent_gaps;
    }

    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.double_spent == 0 && self.silent_gaps == 0
    }

    pub fn json(&self) -> Value {
        json!({
            "cases": self.cases,
            "acknowledged": self.acknowledged,
            "torn_tails": self.torn_tails,
            "lost": self.lost,
            "double_spent": self.double_spent,
            "silent_gaps": self.silent_gaps,
        })
    }
}

/// Everything that one journal's workers acknowledged.
#[derive(Default)]
pub struct Seen {
    acks: Vec<Ack>,
    new: usize,
    /// Tails that were cut from this journal.
    torn: usize,
}

impl Seen {
    pub fn add(&mut self, acks: Vec<Ack>) {
        self.new = acks.len();
        self.acks.extend(acks);
    }

    /// Recovers the journal and compares it with what was acknowledged.
    ///
    /// # Errors
    /// What is wrong; it is counted.
    pub fn check(&mut self, dir: &Path, counts: &mut Counts) -> Result<(), String> {
        counts.acknowledged += u64::try_from(self.new).unwrap_or(0);
        let mut options = Options::new(dir, Arc::new(now));
        options.segment_len = 64 * 1024;
        options.init = self.acks.is_empty();
        let torn = match Ledger::open(options) {
            Ok((ledger, report)) => {
                drop(ledger);
                report.torn.is_some()
            }
            Err(OpenError::NoJournal(_)) if self.acks.is_empty() => return Ok(()),
            Err(error) => {
                counts.silent_gaps += 1;
                return Err(format!("it does not open: {error}"));
            }
        };
        counts.torn_tails += u64::from(torn);
        self.torn += usize::from(torn);
        let report = wait_whole(dir);
        if !report.whole {
            counts.silent_gaps += 1;
            return Err(format!("it does not verify: {report:?}"));
        }
        let found = read(dir).inspect_err(|_| counts.silent_gaps += 1)?;
        if found.torn != self.torn {
            counts.silent_gaps += 1;
            let (said, cut) = (found.torn, self.torn);
            return Err(format!("{cut} tails were cut, and {said} entries say so"));
        }
        let doubled = found.spent.values().filter(|times| **times > 1).count();
        if doubled > 0 {
            counts.double_spent += u64::try_from(doubled).unwrap_or(u64::MAX);
            return Err(format!("{doubled} tokens were spent twice"));
        }
        counts.double_spent += found.after_stop;
        if found.after_stop > 0 {
            return Err(format!(
                "{} tokens passed after their stop",
                found.after_stop
            ));
        }
        let mut allowed = HashSet::new();
        let mut lost = 0;
        for ack in &self.acks {
            if ack.kind == "allow" && !allowed.insert(&ack.name) {
                counts.double_spent += 1;
                return Err(format!("two uses of {} were acknowledged", ack.name));
            }
            let there = found.lines.get(&ack.index);
            if there.is_none_or(|(kind, jti)| *kind != ack.kind || *jti != ack.name) {
                lost += 1;
            }
        }
        counts.lost += lost;
        if lost > 0 {
            return Err(format!("{lost} acknowledged entries are not there"));
        }
        Ok(())
    }
}

/// The ledger's thread ends a moment after its handle: until then a group may
/// be on its way.
fn wait_whole(dir: &Path) -> audit::Report {
    let mut report = audit::verify(dir, None);
    for _ in 0..50 {
        if report.whole {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        report = audit::verify(dir, None);
    }
    report
}

struct Found {
    lines: HashMap<u64, (String, String)>,
    /// Tokens and codes by how often they were used.
    spent: HashMap<String, u32>,
    after_stop: u64,
    torn: usize,
}

fn read(dir: &Path) -> Result<Found, String> {
    let mut found = Found {
        lines: HashMap::new(),
        spent: HashMap::new(),
        after_stop: 0,
        torn: 0,
    };
    let mut stopped = HashSet::new();
    // What a stop names by its hash alone.
    let mut names: HashMap<String, String> = HashMap::new();
    let mut reader = Reader::new(dir);
    while let Some(group) = reader.next_group().map_err(|error| error.to_string())? {
        for entry in group {
            let text = |at: &str| entry.line.body.pointer(at).and_then(Value::as_str);
            let mut jti = text("/token/jti").unwrap_or_default().to_owned();
            let kind = entry.line.kind.clone();
            found.torn += usize::from(kind == "torn");
            if kind == "allow" || kind == "deny" {
                *found.spent.entry(jti.clone()).or_default() += 1;
                let known = text("/token/hash").is_some_and(|hash| stopped.contains(hash));
                found.after_stop += u64::from(known && kind == "allow");
            }
            if let Some(code) = text("/under") {
                *found.spent.entry(code.to_owned()).or_default() += 1;
            }
            if let Some(hash) = text("/target/token") {
                stopped.insert(hash.to_owned());
                jti = names.get(hash).cloned().unwrap_or_default();
            } else if let Some(hash) = text("/token/token_hash") {
                names.insert(hash.to_owned(), jti.clone());
            }
            found.lines.insert(entry.line.index, (kind, jti));
        }
    }
    Ok(found)
}
