//! A PKCS#11 token that holds keys: one thread speaks with its module, and all others
//! ask that thread.

mod module;

use super::KeyError;
use super::signer::{Point, SIGNATURE};
use crate::config::Pkcs11;
use module::Module;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// What may wait for the token; more are refused at once.
const QUEUE_MAX: usize = 64;
/// Nobody waits longer for a signature.
const SIGN_WITHIN: Duration = Duration::from_secs(2);
/// A token that says nothing for so long is away.
const LOOK_WITHIN: Duration = Duration::from_secs(2);
/// Nobody waits longer for a new key, or for the token at a start.
const MAKE_WITHIN: Duration = Duration::from_secs(30);

/// What is signed, by which key.
pub(super) struct Wanted {
    /// The key's id in the token (CKA_ID).
    pub id: Vec<u8>,
    /// Its public half, which the signature has to fit.
    pub point: Point,
    pub input: Vec<u8>,
}

type Reply<T> = SyncSender<Result<T, KeyError>>;

enum Job {
    Sign(Wanted, oneshot::Sender<Result<[u8; SIGNATURE], KeyError>>),
    Make(Vec<u8>, Reply<Point>),
    Destroy(Vec<u8>, Reply<()>),
    Look(Reply<()>),
}

/// The token, as the rest of us knows it.
pub struct Hsm {
    // Before `_thread`: it ends when there is nobody left to ask it.
    jobs: SyncSender<Job>,
    _thread: Thread,
    failing: AtomicBool,
    /// Why it was never opened.
    never: Option<String>,
}

/// The thread that speaks with the module. Dropping it waits until the module is
/// closed, since a process that ends meanwhile pulls away what the module stands on,
/// and crashes with its work done.
#[derive(Default)]
struct Thread(Option<std::thread::JoinHandle<()>>);

impl Thread {
    fn spawn(run: impl FnOnce() + Send + 'static) -> Result<Self, KeyError> {
        let thread = std::thread::Builder::new().name("pkcs11".to_owned());
        let spawned = thread.spawn(run);
        let handle = spawned.map_err(|error| KeyError::TokenAway(error.to_string()))?;
        Ok(Self(Some(handle)))
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        let Some(handle) = self.0.take() else {
            return;
        };
        let start = Instant::now();
        while !handle.is_finished() {
            // A token that hangs keeps no process alive.
            if start.elapsed() > LOOK_WITHIN {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ended = handle.join();
    }
}

impl Hsm {
    /// Loads the module, finds the token and logs in, in a thread of its own. A token
    /// that is away is no error here: what needs it says so, until it is back.
    ///
    /// # Errors
    /// When the module can't be loaded, there is no PIN, or the token refused it,
    /// which is tried once.
    pub fn open(config: &Pkcs11) -> Result<Self, KeyError> {
        config.pin().map_err(KeyError::Pin)?;
        let (jobs, todo) = sync_channel(QUEUE_MAX);
        let (reply, loaded) = sync_channel(1);
        let settings = config.clone();
        let thread = Thread::spawn(move || match Module::load(&settings) {
            Ok(module) => {
                let _left = reply.try_send(Ok(()));
                work(module, &todo);
            }
            Err(error) => drop(reply.try_send(Err(error))),
        })?;
        // At once, so that also one that loads too late is told that nobody waits for it.
        let hsm = Self {
            jobs,
            _thread: thread,
            failing: AtomicBool::new(false),
            never: None,
        };
        let late = || away("its module was not loaded in time");
        loaded
            .recv_timeout(MAKE_WITHIN)
            .unwrap_or_else(|_| Err(late()))?;
        match hsm.ask(Job::Look, MAKE_WITHIN) {
            Err(error @ KeyError::TokenAway(_)) => {
                tracing::error!("{error}; nothing is issued until it is back");
            }
            looked => looked?,
        }
        Ok(hsm)
    }

    /// One that can't be opened, for this reason: what needs it says so.
    #[must_use]
    pub fn never(why: &KeyError) -> Self {
        Self {
            jobs: sync_channel(0).0,
            _thread: Thread::default(),
            failing: AtomicBool::new(true),
            never: Some(why.to_string()),
        }
    }

    /// Signs, never on the caller's thread. What comes back was verified.
    pub(super) async fn sign(&self, wanted: Wanted) -> Result<[u8; SIGNATURE], KeyError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.send(Job::Sign(wanted, reply));
        let done = match sent {
            Ok(()) => match tokio::time::timeout(SIGN_WITHIN, answer).await {
                Ok(Ok(done)) => done,
                Ok(Err(_)) => Err(away("its thread ended")),
                Err(_) => Err(away("it did not sign in time")),
            },
            Err(error) => Err(error),
        };
        self.failing.store(done.is_err(), Ordering::Relaxed);
        done
    }

    /// Whether the last signature that was asked for was none.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Makes a key with this id, which never leaves the token. Waits: not for async
    /// threads.
    pub(super) fn make(&self, id: &[u8]) -> Result<Point, KeyError> {
        self.ask(|reply| Job::Make(id.to_vec(), reply), MAKE_WITHIN)
    }

    /// Removes the key with this id. Waits.
    pub(super) fn destroy(&self, id: &[u8]) -> Result<(), KeyError> {
        self.ask(|reply| Job::Destroy(id.to_vec(), reply), MAKE_WITHIN)
    }

    /// Whether the token is there, and lets us in. Waits.
    ///
    /// # Errors
    /// Why not.
    pub fn look(&self) -> Result<(), KeyError> {
        self.ask(Job::Look, LOOK_WITHIN)
    }

    fn ask<T>(&self, job: impl FnOnce(Reply<T>) -> Job, within: Duration) -> Result<T, KeyError> {
        let (reply, answer) = sync_channel(1);
        self.send(job(reply))?;
        let answer = answer.recv_timeout(within);
        answer.unwrap_or_else(|_| Err(away("it did not answer in time")))
    }

    fn send(&self, job: Job) -> Result<(), KeyError> {
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => away("too many wait for it"),
            TrySendError::Disconnected(_) => {
                away(self.never.as_deref().unwrap_or("its thread ended"))
            }
        })
    }
}

fn away(why: &str) -> KeyError {
    KeyError::TokenAway(why.to_owned())
}

/// What speaks with the token.
trait Speaks {
    fn sign(&mut self, wanted: &Wanted) -> Result<[u8; SIGNATURE], KeyError>;
    fn make(&mut self, id: &[u8]) -> Result<Point, KeyError>;
    fn destroy(&mut self, id: &[u8]) -> Result<(), KeyError>;
    fn look(&mut self) -> Result<(), KeyError>;
}

fn work(mut module: impl Speaks, todo: &Receiver<Job>) {
    while let Ok(job) = todo.recv() {
        match job {
            // Whoever asked has left: nothing is signed for nobody.
            Job::Sign(_, reply) if reply.is_closed() => {}
            Job::Sign(wanted, reply) => drop(reply.send(module.sign(&wanted))),
            Job::Make(id, reply) => {
                let made = module.make(&id);
                let is_made = made.is_ok();
                // A key that nobody heard of would stay in the token for ever.
                if reply.try_send(made).is_err()
                    && is_made
                    && let Err(error) = module.destroy(&id)
                {
                    let object = hex::encode(id);
                    tracing::error!(object, %error, "a key that came too late is left in the token; remove it there");
                }
            }
            Job::Destroy(id, reply) => drop(reply.try_send(module.destroy(&id))),
            Job::Look(reply) => drop(reply.try_send(module.look())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Writes down what it is asked.
    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<String>>>);

    impl Heard {
        fn note<T>(&self, what: &str, id: &[u8], answer: T) -> Result<T, KeyError> {
            self.0.lock().unwrap().push(format!("{what} {id:?}"));
            Ok(answer)
        }
    }

    impl Speaks for Heard {
        fn sign(&mut self, wanted: &Wanted) -> Result<[u8; SIGNATURE], KeyError> {
            self.note("sign", &wanted.id, [0; SIGNATURE])
        }
        fn make(&mut self, id: &[u8]) -> Result<Point, KeyError> {
            self.note("make", id, Point([0; 64]))
        }
        fn destroy(&mut self, id: &[u8]) -> Result<(), KeyError> {
            self.note("destroy", id, ())
        }
        fn look(&mut self) -> Result<(), KeyError> {
            self.note("look", &[], ())
        }
    }

    fn wanted(number: u8) -> Wanted {
        Wanted {
            id: vec![number],
            point: Point([0; 64]),
            input: Vec::new(),
        }
    }

    #[test]
    fn what_nobody_waits_for_is_not_signed_and_not_kept() {
        let (jobs, todo) = sync_channel(QUEUE_MAX);
        let (left, _) = oneshot::channel();
        let (stays, signed) = oneshot::channel();
        let (late, _) = sync_channel(1);
        let (waits, made) = sync_channel(1);
        for job in [
            Job::Sign(wanted(1), left),
            Job::Sign(wanted(2), stays),
            Job::Make(vec![3], late),
            Job::Make(vec![4], waits),
        ] {
            assert!(jobs.try_send(job).is_ok());
        }
        drop(jobs);
        let heard = Heard::default();
        work(heard.clone(), &todo);
        assert!(signed.blocking_recv().unwrap().is_ok());
        assert!(made.recv().unwrap().is_ok());
        let heard = heard.0.lock().unwrap();
        assert_eq!(*heard, ["sign [2]", "make [3]", "destroy [3]", "make [4]"]);
    }

    #[test]
    fn who_lets_go_of_a_token_waits_until_it_is_closed() {
        struct Slow(Arc<AtomicBool>);
        impl Drop for Slow {
            fn drop(&mut self) {
                std::thread::sleep(Duration::from_millis(200));
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let closed = Arc::new(AtomicBool::new(false));
        let (jobs, todo) = sync_channel::<Job>(QUEUE_MAX);
        let module = Slow(closed.clone());
        let thread = Thread::spawn(move || {
            let _module = module;
            while todo.recv().is_ok() {}
        });
        drop(Hsm {
            jobs,
            _thread: thread.unwrap(),
            failing: AtomicBool::new(false),
            never: None,
        });
        assert!(closed.load(Ordering::SeqCst));
    }

    #[test]
    fn a_token_that_hangs_keeps_nobody_from_leaving() {
        let (_never, waits) = sync_channel::<()>(0);
        let thread = Thread::spawn(move || while waits.recv().is_ok() {}).unwrap();
        let start = Instant::now();
        drop(thread);
        assert!(start.elapsed() >= LOOK_WITHIN);
    }

    #[tokio::test]
    async fn nobody_waits_for_ever_and_no_queue_is_endless() {
        // One that never does anything.
        let (jobs, _todo) = sync_channel(QUEUE_MAX);
        let hsm = Arc::new(Hsm {
            jobs,
            _thread: Thread::default(),
            failing: AtomicBool::new(false),
            never: None,
        });
        let all = (0..QUEUE_MAX).map(|_| hsm.sign(wanted(1)));
        let all = futures::future::join_all(all).await;
        let why = |done: &Result<_, KeyError>| done.as_ref().unwrap_err().to_string();
        assert!(
            all.iter()
                .all(|it| why(it).contains("did not sign in time"))
        );
        assert!(hsm.is_failing());
        let start = Instant::now();
        assert!(why(&hsm.sign(wanted(1)).await).contains("too many wait for it"));
        assert!(start.elapsed() < SIGN_WITHIN, "at once");
        assert!(hsm.look().unwrap_err().to_string().contains("too many"));
    }
}
