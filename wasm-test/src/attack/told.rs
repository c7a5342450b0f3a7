//! What the log says of refusals at the edge.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use serde_json::Value;

use crate::Error;
use crate::stage::{Stage, text_at};

/// Refusals, by what the log has of them.
#[derive(Debug, Default)]
pub struct Told {
    /// Of callers whom nobody has authenticated: how many of each reason.
    pub counts: BTreeMap<String, u64>,
    /// The token's SHA-256 and the reason, of each `edge_denial`.
    pub denials: Vec<(String, String)>,
    /// The same of each `question_refused`.
    pub refused: Vec<(String, String)>,
}

impl Told {
    /// Reads the log line by line: it may be long.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn read(stage: &Stage) -> Result<Told, Error> {
        let mut command = stage.tail();
        let run = Error::file("run", &stage.system.tools().writ);
        let mut child = command.stdout(Stdio::piped()).spawn().map_err(run)?;
        let mut told = Told::default();
        let lines = child.stdout.take().map(|out| BufReader::new(out).lines());
        for line in lines.into_iter().flatten().map_while(Result::ok) {
            told.take(&line);
        }
        let whole = child.wait().is_ok_and(|status| status.success());
        let cut = || Error::Unexpected("the log can't be read to its end".to_owned());
        whole.then_some(told).ok_or_else(cut)
    }

    fn take(&mut self, line: &str) {
        let ours = ["edge_counts", "edge_denial", "question_refused"];
        if !ours.iter().any(|kind| line.contains(kind)) {
            return;
        }
        let entry: Value = serde_json::from_str(line).unwrap_or_default();
        let about = || {
            (
                text_at(&entry, "/body/token"),
                text_at(&entry, "/body/reason"),
            )
        };
        match text_at(&entry, "/kind").as_str() {
            "edge_counts" => {
                let counts = entry.pointer("/body/counts").and_then(Value::as_object);
                for (reason, count) in counts.into_iter().flatten() {
                    *self.counts.entry(reason.clone()).or_default() += count.as_u64().unwrap_or(0);
                }
            }
            "edge_denial" => self.denials.push(about()),
            "question_refused" => self.refused.push(about()),
            _ => {}
        }
    }

    /// How many of this reason are counted.
    pub fn counted(&self, reason: &str) -> u64 {
        self.counts.get(reason).copied().unwrap_or(0)
    }
}
