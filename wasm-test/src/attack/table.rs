//! Many requests of one action, each with what should come of it.

use super::check::holds;
use super::edge::{Audit, Mark, Over, Shot, Want, next_good, wanted};
use crate::Error;
use crate::stage::Stage;
use crate::upstream::Record;

/// Requests of one token's action, one after the other, each with what should
/// come of it.
pub struct Table<'a> {
    /// Where.
    pub stage: &'a Stage,
    /// What the log should have of it.
    pub audit: Audit,
    /// Gates spend nothing: it is good until it is served.
    pub token: String,
    action: (&'a str, &'a str),
    sent: usize,
    served: usize,
    faults: Vec<String>,
}

impl<'a> Table<'a> {
    /// With a token for this method and path.
    ///
    /// # Errors
    /// When there is none.
    pub async fn of(stage: &'a Stage, method: &'a str, path: &'a str) -> Result<Table<'a>, Error> {
        Ok(Table {
            stage,
            audit: Audit::begin(stage)?,
            token: stage.agent.token(method, path).await?,
            action: (method, path),
            sent: 0,
            served: 0,
            faults: Vec::new(),
        })
    }

    /// The action itself, with its credentials.
    pub fn right(&self) -> Shot {
        let (method, path) = self.action;
        let mut shot = Shot::get(self.stage, path).with(self.stage, self.action, &self.token);
        shot.method = method.into();
        shot
    }

    /// Sends one: what reached the upstream, when it was to be served.
    ///
    /// # Errors
    /// When there is no answer at all; what is wrong with one is kept for the end.
    pub async fn expect(
        &mut self,
        what: &str,
        shot: &Shot,
        over: Over,
        want: Want,
    ) -> Result<Option<Record>, Error> {
        let what = format!("{what} over {over:?}");
        let mark = Mark::now(self.stage)?;
        let seen = shot.fire(over).await?;
        self.sent += 1;
        let mut judged = wanted(&what, &seen, want);
        let mut served = None;
        if seen.status == 200 {
            self.served += 1;
            let (method, path) = self.action;
            match mark.exactly(&what, self.stage, method, path) {
                Ok(record) => served = Some(record),
                Err(fault) => judged = judged.and(Err(fault)),
            }
            self.token = self.stage.agent.token(method, path).await?;
        } else {
            judged = judged.and_then(|()| mark.nothing(&what, self.stage));
            self.audit.note(want, &self.token);
        }
        if let Err(fault) = judged {
            self.faults.push(fault.to_string());
        }
        Ok(served)
    }

    /// Something else is wrong with what came.
    pub fn judge(&mut self, judged: Result<(), Error>) {
        self.faults
            .extend(judged.err().map(|fault| fault.to_string()));
    }

    /// Everything was as it should be, the log has it, and the next requests pass.
    ///
    /// # Errors
    /// With all that was not.
    pub async fn finish(self) -> Result<String, Error> {
        holds(self.faults.is_empty(), self.faults.join("\n"))?;
        next_good(self.stage).await?;
        let logged = self.audit.settled(self.stage).await?;
        Ok(format!(
            "{} requests, {} of them served, each as the action; {logged}",
            self.sent, self.served
        ))
    }
}
