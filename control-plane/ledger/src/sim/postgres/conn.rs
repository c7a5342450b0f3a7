//! A connection: how a statement gets there, what becomes of it, and how its
//! answer comes back.

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sqlx::error::{DatabaseError, ErrorKind};
use tokio::sync::mpsc;

use crate::{
    postgres::{PostgresError, database::Said},
    sim::postgres::{
        core::{By, Core, Lock, Mode, T},
        run::{self, NATURE},
        tables::{Change, Tables},
    },
};

/// As a target sets it: `lock_timeout` and `statement_timeout`.
const TIMEOUT: Duration = Duration::from_secs(2);
const DEADLOCK: Duration = Duration::from_secs(1);
/// `idle_in_transaction_session_timeout`.
const IDLE: Duration = Duration::from_secs(10);

pub(crate) type Shared = Arc<Mutex<Core>>;
pub(crate) type Done<T> = Result<T, PostgresError>;

pub(crate) fn lock(core: &Shared) -> MutexGuard<'_, Core> {
    core.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error of the server, by its code.
#[derive(Debug)]
pub(crate) struct Code(pub(crate) &'static str);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "simulated error {}", self.0)
    }
}

impl std::error::Error for Code {}

impl DatabaseError for Code {
    fn message(&self) -> &str {
        self.0
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        Some(self.0.into())
    }

    fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
        self
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Other
    }
}

fn lost() -> sqlx::Error {
    std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()
}

/// What a process connects with.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) core: Shared,
    pub(crate) by: By,
}

impl Client {
    pub(crate) async fn connect(&self) -> Done<Conn> {
        travel(&self.core).await;
        let mut core = lock(&self.core);
        if !core.up || core.loses() {
            return Err(lost().into());
        }
        let weather = core.weather.standby;
        let behind = core.rng.percent(weather).then(|| {
            let at = core.history.len().saturating_sub(1 + core.rng.below(6));
            core.history.get(at).map(|(_, tables, _)| tables.clone())
        });
        Ok(Conn {
            core: Arc::clone(&self.core),
            by: self.by,
            boot: core.boot,
            dead: false,
            tx: None,
            explicit: false,
            failed: false,
            leased: false,
            timeout: TIMEOUT,
            active: now(),
            standby: behind.flatten(),
        })
    }

    pub(crate) async fn listen(&self) -> Done<Ear> {
        travel(&self.core).await;
        let mut core = lock(&self.core);
        if !core.up {
            return Err(lost().into());
        }
        let (to, ear) = mpsc::unbounded_channel();
        let id = core.number();
        core.ears.insert(id, to);
        Ok(Ear { ear })
    }
}

/// What listens.
pub(crate) struct Ear {
    ear: mpsc::UnboundedReceiver<()>,
}

impl Ear {
    pub(crate) async fn hear(&mut self) -> Done<bool> {
        Ok(self.ear.recv().await.is_some())
    }
}

fn now() -> Duration {
    run::current().map_or(Duration::ZERO, |run| run.now())
}

/// A moment on the way, or a long one.
async fn travel(core: &Shared) {
    let time = {
        let mut core = lock(core);
        let slow = core.slows();
        let most = if slow { 5_000_000 } else { 1_500 };
        Duration::from_micros(20 + core.rng.below(most) as u64)
    };
    run::sleep(time).await;
}

pub(crate) struct Conn {
    pub(crate) core: Shared,
    by: By,
    boot: u32,
    dead: bool,
    pub(crate) tx: Option<u64>,
    explicit: bool,
    failed: bool,
    /// The lease was asked for: this is the connection of who gives places.
    pub(crate) leased: bool,
    pub(crate) timeout: Duration,
    active: Duration,
    /// What a standby has, if this is one.
    pub(crate) standby: Option<Tables>,
}

impl Drop for Conn {
    fn drop(&mut self) {
        let (Some(tx), Some(run)) = (self.tx, run::current()) else {
            return;
        };
        // The server notices in its own time; until then there are its locks.
        let core = Arc::clone(&self.core);
        let after = Duration::from_millis(lock(&core).rng.one(&[0, 1, 20, 400, 3_000]));
        run.spawn_in(NATURE, async move {
            run::sleep(after).await;
            lock(&core).abort(tx);
        });
    }
}

impl Conn {
    pub(crate) fn core(&self) -> MutexGuard<'_, Core> {
        lock(&self.core)
    }

    fn is_gone(&self) -> bool {
        self.dead || self.core().boot != self.boot
    }

    fn dies(&mut self) -> PostgresError {
        self.dead = true;
        lost().into()
    }

    /// The statement arrives, and gets the locks of its tables: then it sees what
    /// is committed by then.
    pub(crate) async fn ask(&mut self, tables: &[(T, Mode)]) -> Done<Tables> {
        travel(&self.core).await;
        if self.is_gone() {
            return Err(self.dies());
        }
        let idle = now().saturating_sub(self.active);
        self.active = now();
        if self.explicit && idle > IDLE {
            self.end();
            return Err(self.dies());
        }
        if self.core().loses() {
            return Err(self.dies());
        }
        if self.failed {
            return Err(sqlx::Error::from(Code("25P02")).into());
        }
        if let Some(standby) = &self.standby {
            let writes = tables.iter().any(|(_, mode)| *mode > Mode::AccessShare);
            if writes {
                return Err(sqlx::Error::from(Code("25006")).into());
            }
            return Ok(standby.clone());
        }
        let tx = match self.tx {
            Some(tx) => tx,
            None => self.core().begin(),
        };
        self.tx = Some(tx);
        if self.core().fails() {
            let code = self.core().rng.one(&["53200", "40001", "57014", "22003"]);
            return self.told(Err(Code(code))).await;
        }
        for (table, mode) in tables {
            if let Err(code) = self.acquire(&Lock::Table(*table), *mode).await {
                return self.told(Err(code)).await;
            }
        }
        Ok(self.view())
    }

    /// What is committed now, and the transaction's own.
    pub(crate) fn view(&self) -> Tables {
        self.core().view(self.tx.unwrap_or_default())
    }

    pub(crate) fn change(&mut self, change: Change) {
        let tx = self.tx.unwrap_or_default();
        if let Some(tx) = self.core().tx(tx) {
            tx.changes.push(change);
        }
    }

    /// Waits for a lock until its end: a transaction has it until it ends.
    pub(crate) async fn acquire(&mut self, what: &Lock, mode: Mode) -> Result<(), Code> {
        let begun = now();
        let mut looked = begun;
        loop {
            let released = Arc::clone(&self.core().released);
            let changed = released.notified();
            if self.is_gone() {
                return Err(Code("08006"));
            }
            let tx = self.tx.unwrap_or_default();
            if self.core().try_lock(tx, what, mode).is_empty() {
                return Ok(());
            }
            let left = (looked + DEADLOCK).min(begun + self.timeout);
            let left = left.saturating_sub(now());
            let _ = run::timeout(left, changed).await;
            if now() >= looked + DEADLOCK {
                looked = now();
                if self.core().deadlocked(tx) {
                    return Err(Code("40P01"));
                }
            }
            if now() >= begun + self.timeout {
                return Err(Code("55P03"));
            }
        }
    }

    pub(crate) async fn acquire_row(
        &mut self,
        table: T,
        key: super::core::Key,
    ) -> Result<(), Code> {
        self.acquire(&Lock::Row(table, key), Mode::Exclusive).await
    }

    /// The answer comes back. A statement that stands alone is committed by it; one
    /// that failed ends its transaction.
    pub(crate) async fn told<R>(&mut self, result: Result<R, Code>) -> Done<R> {
        if self.is_gone() {
            return Err(self.dies());
        }
        let result = match result {
            Ok(result) => result,
            Err(code) => {
                self.core().say(|| format!("a statement fails: {}", code.0));
                self.core().conflicts += 1;
                self.end();
                self.failed = self.explicit;
                return Err(sqlx::Error::from(code).into());
            }
        };
        if !self.explicit
            && let Some(tx) = self.tx.take()
        {
            self.core().commit(tx, true);
        }
        self.active = now();
        if self.core().loses() {
            return Err(self.dies());
        }
        Ok(result)
    }

    /// The transaction is given up.
    fn end(&mut self) {
        if let Some(tx) = self.tx.take() {
            self.core().abort(tx);
        }
    }

    /// BEGIN, which goes before the first statement in one message.
    pub(crate) fn open(&mut self) {
        self.explicit = true;
        self.failed = false;
    }

    pub(crate) async fn rollback(&mut self) -> Done<()> {
        travel(&self.core).await;
        if self.is_gone() {
            return Err(self.dies());
        }
        self.end();
        self.explicit = false;
        self.failed = false;
        Ok(())
    }

    pub(crate) async fn close(mut self) {
        travel(&self.core).await;
        self.end();
    }

    pub(crate) async fn commit(&mut self, deadline: Duration) -> Said {
        travel(&self.core).await;
        let error = |error| Said {
            answer: Some(Err(error)),
            notice: false,
        };
        if self.is_gone() {
            self.dead = true;
            return error(lost());
        }
        if self.explicit && now().saturating_sub(self.active) > IDLE {
            self.end();
            self.dead = true;
            return error(lost());
        }
        if self.failed {
            return error(Code("25P02").into());
        }
        let Some(tx) = self.tx else {
            self.explicit = false;
            return Said {
                answer: Some(Ok(true)),
                notice: false,
            };
        };
        let wrong = self.core().spoils();
        let (by, replicated) = (self.by, self.core().replicated);
        if let Some(how) = wrong {
            self.core()
                .say(|| format!("process {by}: its commit goes wrong, {how}"));
        }
        match wrong {
            // It never got there; the server finds out when the connection is dropped.
            Some(0) => {
                self.dead = true;
                error(lost())
            }
            // It is there, and will be done, whatever becomes of who asked.
            Some(how @ (1 | 2)) => {
                self.tx = None;
                self.later(tx);
                self.dead = true;
                if how == 2 {
                    run::sleep(deadline).await;
                    return Said {
                        answer: None,
                        notice: false,
                    };
                }
                error(lost())
            }
            Some(3) => {
                self.end();
                self.explicit = false;
                error(Code("40001").into())
            }
            Some(4) => {
                self.tx = None;
                self.core().commit(tx, true);
                self.dead = true;
                error(lost())
            }
            // The wait for the standby was cut short.
            Some(5) if replicated => {
                self.tx = None;
                self.explicit = false;
                self.core().commit(tx, false);
                Said {
                    answer: Some(Ok(true)),
                    notice: true,
                }
            }
            _ => {
                self.tx = None;
                self.explicit = false;
                self.core().commit(tx, true);
                Said {
                    answer: Some(Ok(true)),
                    notice: false,
                }
            }
        }
    }

    /// COMMIT is done a while later.
    fn later(&self, tx: u64) {
        let core = Arc::clone(&self.core);
        let after = Duration::from_millis(self.core().rng.one(&[0, 1, 20, 400, 2_500]));
        if let Some(run) = run::current() {
            run.spawn_in(NATURE, async move {
                run::sleep(after).await;
                lock(&core).commit(tx, true);
            });
        }
    }
}
