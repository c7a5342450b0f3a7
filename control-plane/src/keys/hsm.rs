//! A PKCS#11 token that holds keys: one thread speaks with its module, and all others
//! ask that thread.

mod module;

use super::KeyError;
use super::signer::{Point, SIGNATURE};
use crate::config::Pkcs11;
use module::Module;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// What may wait for the token; more are refused at once.
const QUEUE_MAX: usize = 64;
/// Nobody waits longer for a signature.
const SIGN_WITHIN: Duration = Duration::from_secs(2);
/// Nobody waits longer for a new key, or for the token at a start.
const MAKE_WITHIN: Duration = Duration::from_secs(30);

enum Job {
    Sign {
        id: Vec<u8>,
        digest: [u8; 32],
        reply: oneshot::Sender<Result<[u8; SIGNATURE], KeyError>>,
    },
    Make(Vec<u8>, SyncSender<Result<Point, KeyError>>),
    Destroy(Vec<u8>, SyncSender<Result<(), KeyError>>),
    Look(SyncSender<Result<(), KeyError>>),
}

/// The token, as the rest of us knows it.
pub struct Hsm {
    jobs: SyncSender<Job>,
    trouble: std::sync::Arc<Mutex<Option<String>>>,
}

impl Hsm {
    /// Loads the module, finds the token and logs in, in a thread of its own. A token
    /// that is away is no error here: what needs it says so, until it is back.
    ///
    /// # Errors
    /// When the module can't be loaded, the PIN file can't be used, or the token
    /// refused the PIN, which is tried once.
    pub fn open(config: &Pkcs11) -> Result<Self, KeyError> {
        let (jobs, todo) = sync_channel(QUEUE_MAX);
        let trouble = std::sync::Arc::new(Mutex::new(None));
        let module = Module::load(config)?;
        let told = trouble.clone();
        let thread = std::thread::Builder::new().name("pkcs11".to_owned());
        thread
            .spawn(move || work(module, &todo, &told))
            .map_err(|error| KeyError::TokenAway(error.to_string()))?;
        let hsm = Self { jobs, trouble };
        match hsm.look() {
            Ok(()) => {}
            Err(KeyError::TokenAway(why)) => {
                tracing::error!("{why}; no token is signed until it is back");
            }
            Err(error) => return Err(error),
        }
        Ok(hsm)
    }

    /// Signs a digest. Never on the caller's thread.
    pub(super) async fn sign(
        &self,
        id: &[u8],
        digest: [u8; 32],
    ) -> Result<[u8; SIGNATURE], KeyError> {
        let (reply, answer) = oneshot::channel();
        let id = id.to_vec();
        self.send(Job::Sign { id, digest, reply })?;
        match tokio::time::timeout(SIGN_WITHIN, answer).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(away("its thread ended")),
            Err(_) => Err(away("it did not sign in time")),
        }
    }

    /// Makes a key with this id, which never leaves the token. Waits: not for async
    /// threads.
    pub(super) fn make(&self, id: &[u8]) -> Result<Point, KeyError> {
        self.ask(|reply| Job::Make(id.to_vec(), reply))
    }

    /// Removes the key with this id. Waits.
    pub(super) fn destroy(&self, id: &[u8]) -> Result<(), KeyError> {
        self.ask(|reply| Job::Destroy(id.to_vec(), reply))
    }

    /// Whether the token is there, and lets us in. Waits.
    ///
    /// # Errors
    /// Why not.
    pub fn look(&self) -> Result<(), KeyError> {
        self.ask(Job::Look)
    }

    /// What was wrong with the token the last time that somebody asked it.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let held = self.trouble.lock();
        held.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn ask<T>(
        &self,
        job: impl FnOnce(SyncSender<Result<T, KeyError>>) -> Job,
    ) -> Result<T, KeyError> {
        let (reply, answer) = sync_channel(1);
        self.send(job(reply))?;
        let answer = answer.recv_timeout(MAKE_WITHIN);
        answer.unwrap_or_else(|_| Err(away("it did not answer in time")))
    }

    fn send(&self, job: Job) -> Result<(), KeyError> {
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => away("too many wait for it"),
            TrySendError::Disconnected(_) => away("its thread ended"),
        })
    }
}

fn away(why: &str) -> KeyError {
    KeyError::TokenAway(why.to_owned())
}

fn work(mut module: Module, todo: &Receiver<Job>, trouble: &Mutex<Option<String>>) {
    while let Ok(job) = todo.recv() {
        let problem = match job {
            // Whoever asked has left: nothing is signed for nobody.
            Job::Sign { reply, .. } if reply.is_closed() => continue,
            Job::Sign { id, digest, reply } => {
                let done = module.sign(&id, &digest);
                let problem = done.as_ref().err().map(ToString::to_string);
                let _left = reply.send(done);
                problem
            }
            Job::Make(id, reply) => answer(&reply, module.make(&id)),
            Job::Destroy(id, reply) => answer(&reply, module.destroy(&id)),
            Job::Look(reply) => answer(&reply, module.look()),
        };
        *trouble.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

fn answer<T>(reply: &SyncSender<Result<T, KeyError>>, done: Result<T, KeyError>) -> Option<String> {
    let problem = done.as_ref().err().map(ToString::to_string);
    let _left = reply.try_send(done);
    problem
}
