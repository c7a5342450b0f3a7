//! What the embedded ledger answered, and what it does on a full disk, against what
//! must always be true.

use super::{
    Broken, Invariant,
    callers::is_essential,
    process::Answered,
    world::{World, lock},
};
use crate::model::{Command, Refused};

impl World {
    /// What was answered must be durable, and be what was asked for.
    pub(super) fn judge_answers(
        &mut self,
        answers: &[(Command, Option<Answered>)],
        before: u64,
        failed: bool,
        (was_short, excused, stays): (bool, bool, bool),
    ) -> Result<(), Broken> {
        let (mut committed, mut gives) = (0, false);
        let journal = self.process.as_ref().map(|process| &process.writer.journal);
        let full =
            was_short && !failed && journal.is_some_and(|journal| journal.is_short()) && stays;
        for (command, answer) in answers {
            match answer {
                Some(Ok(done)) => {
                    committed += 1;
                    gives |= !is_essential(command);
                    if full && !is_essential(command) {
                        let what = format!("{command:?} is taken on a full disk");
                        return Err(Broken(Invariant::Essential, what));
                    }
                    self.durable.acknowledged(command, done)?;
                    self.callers
                        .learn(command, done, self.durable.history.epoch);
                }
                Some(Err(refused)) => self.judge_refusal(command, refused, excused, stays)?,
                None if failed => {}
                None => {
                    return Err(Broken(
                        Invariant::Refusal,
                        format!("no answer to {command:?}"),
                    ));
                }
            }
        }
        self.counts.committed += committed;
        if gives && stays && !failed {
            self.judge_last_part()?;
        }
        let new = self.durable.commands_since(before);
        if (failed && new < committed) || (!failed && new != committed) {
            let what =
                format!("{new} entries are new and {committed} commands were answered with yes");
            return Err(Broken(Invariant::Refusal, what));
        }
        Ok(())
    }

    /// The last part of a segment is for what takes rights away, for as long as it
    /// is not known that there is a next one.
    fn judge_last_part(&self) -> Result<(), Broken> {
        let journal = self.process.as_ref().map(|process| &process.writer.journal);
        let Some(journal) = journal.filter(|journal| journal.spare().is_making()) else {
            return Ok(());
        };
        let room = journal.room();
        if room < self.options.segment_len / 8 {
            let what = format!("{room} bytes are left, and nobody knows of a next segment");
            return Err(Broken(Invariant::Essential, what));
        }
        Ok(())
    }

    /// A full disk refuses what gives rights and takes what takes them away.
    fn judge_refusal(
        &self,
        command: &Command,
        refused: &Refused,
        excused: bool,
        stays: bool,
    ) -> Result<(), Broken> {
        let Some(process) = &self.process else {
            return Ok(());
        };
        if *refused != Refused::Full {
            return Ok(());
        }
        let journal = &process.writer.journal;
        let essential = is_essential(command);
        let room = journal.room() >= audit::MAX_LINE + 512;
        let short = excused || journal.is_short();
        if !short || (essential && room && stays) {
            let what = format!("{command:?} is refused with {} bytes left", journal.room());
            return Err(Broken(Invariant::Essential, what));
        }
        Ok(())
    }

    /// What must be true whenever the ledger rests.
    pub(crate) fn judge_running(&mut self) -> Result<(), Broken> {
        let Some(process) = &self.process else {
            return Ok(());
        };
        let machine = lock(&self.machine);
        self.durable.judge_published(&process.shared.read())?;
        if !process.disk.is_busy() {
            self.durable
                .judge_files(&machine, process.writer.journal.is_short())?;
        }
        Ok(())
    }

    /// Who starts on a full disk, in what is reserved, takes nothing but what takes
    /// rights away.
    pub(super) fn judge_full_start(&self, full: bool) -> Result<(), Broken> {
        // Else the room of what it replaced is free.
        let exchanges = self.machine().exchanges;
        let journal = self.process.as_ref().map(|process| &process.writer.journal);
        if full && exchanges && journal.is_some_and(|journal| !journal.is_short()) {
            let what = "it started on a full disk, and takes everything";
            return Err(Broken(Invariant::Essential, what.into()));
        }
        Ok(())
    }
}
