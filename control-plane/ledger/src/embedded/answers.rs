//! How callers learn what became of their commands.

use tokio::{runtime::Handle, sync::mpsc, sync::oneshot};

use crate::model::{Committed, Refused};

/// Where one caller waits.
pub(crate) type Answer = oneshot::Sender<Result<Committed, Refused>>;
/// What the callers of one group are told.
pub(crate) type Told = Vec<(Answer, Result<Committed, Refused>)>;

/// Tells callers.
pub(crate) enum Answers {
    /// On the ledger's own thread.
    Here,
    /// A whole group at a time, by a task among the callers. Woken from outside,
    /// each of them would cost the ledger's thread a system call.
    Among(mpsc::UnboundedSender<Told>),
}

impl Answers {
    /// By a task where there is a runtime. What it has yet to tell is bounded by the
    /// callers that wait.
    pub(crate) fn new() -> Self {
        let Ok(runtime) = Handle::try_current() else {
            return Self::Here;
        };
        let (sender, mut groups) = mpsc::unbounded_channel();
        runtime.spawn(async move {
            while let Some(group) = groups.recv().await {
                tell(group);
            }
        });
        Self::Among(sender)
    }

    /// Tells all of them, and leaves the list empty.
    pub(crate) fn tell(&self, all: &mut Told) {
        if all.is_empty() {
            return;
        }
        let group = std::mem::take(all);
        match self {
            Self::Here => tell(group),
            // A runtime that ended took the task with it, and likely the callers.
            Self::Among(task) => {
                if let Err(mpsc::error::SendError(group)) = task.send(group) {
                    tell(group);
                }
            }
        }
    }
}

fn tell(group: Told) {
    for (answer, result) in group {
        // A caller that left has nothing to be told; its commit stands.
        let _ = answer.send(result);
    }
}
