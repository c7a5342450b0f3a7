//! `cargo xtask demo`: the tour. Each stop is done on a running system of its
//! own, printed, and checked; the first that differs ends it with an error.

mod log;
mod stops;

use crate::client::{Agent, Answer, Approver};
use crate::system::{Options, System};
use crate::tools::Tools;
use crate::{Error, upstream};

// Long enough for the tour's own approver, which is quick.
const HOLD_S: u64 = 20;

/// What every stop works with.
struct Tour {
    system: System,
    agent: Agent,
    approver: Approver,
    stop: u32,
}

/// Starts a system, takes the tour, stops the system.
///
/// # Errors
/// At the first stop that differs from what it should be.
pub async fn run() -> Result<(), Error> {
    let tools = Tools::from_env()?;
    let options = Options {
        hold_s: HOLD_S,
        ..Options::default()
    };
    let system = System::start(&tools, options, &mut |step| println!("· {step}")).await?;
    let mut tour = Tour {
        agent: system.agent().await?,
        approver: system.approver().await?,
        system,
        stop: 0,
    };
    tour.take().await?;
    println!("\nThe tour is over: everything was as it should be.");
    tour.system.stop().await;
    Ok(())
}

impl Tour {
    async fn take(&mut self) -> Result<(), Error> {
        stops::allowed_then_replayed(self).await?;
        stops::another_key(self).await?;
        stops::another_action(self).await?;
        stops::policy_says_no(self).await?;
        stops::held_and_approved(self).await?;
        stops::held_and_denied(self).await?;
        stops::control_plane_gone_and_back(self).await?;
        log::verified(self)?;
        log::tampering_found(self)
    }

    /// Opens a stop.
    fn begin(&mut self, title: &str) {
        self.stop += 1;
        println!("\n{}. {title}", self.stop);
    }

    /// Checks status and reason, and whether the request reached the upstream.
    fn check(
        &self,
        what: &str,
        answer: &Answer,
        expected: (u16, &str),
        reached: Reached,
        before: u64,
    ) -> Result<(), Error> {
        let (status, reason) = expected;
        let right = answer.status == status && answer.reason() == reason;
        if !right {
            return Err(Error::Unexpected(format!(
                "{what}: expected {status} {reason}, got {}: {}",
                answer.summary(),
                answer.text()
            )));
        }
        let grew = self.arrived()?.saturating_sub(before);
        if grew != reached.requests() {
            return Err(Error::Unexpected(format!(
                "{what}: {grew} requests reached the upstream, expected {}",
                reached.requests()
            )));
        }
        let note = reached.note();
        println!("   {what:<52} {}  ({note})", answer.summary());
        Ok(())
    }

    fn arrived(&self) -> Result<u64, Error> {
        Ok(self.system.upstream()?.arrived())
    }
}

/// Whether a request got to the upstream.
#[derive(Clone, Copy)]
enum Reached {
    Upstream,
    Nobody,
}

impl Reached {
    fn requests(self) -> u64 {
        match self {
            Reached::Upstream => 1,
            Reached::Nobody => 0,
        }
    }

    fn note(self) -> &'static str {
        match self {
            Reached::Upstream => "reached the upstream",
            Reached::Nobody => "nothing reached the upstream",
        }
    }
}

const ALLOWED: &str = upstream::REPORT;
const DENIED: &str = upstream::KEYS;
const HELD: &str = upstream::PAYROLL;
