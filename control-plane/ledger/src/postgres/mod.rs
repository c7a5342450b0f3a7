//! The log in PostgreSQL, which several replicas share.
//!
//! Replicas commit batches, each in one transaction: the rows that its commands
//! name are locked in one order, the same `State` as the embedded store's checks
//! and applies, and what changed is written beside the entries. One replica at a
//! time gives entries their place in the log. docs/decisions/0007-postgresql-ledger.md
//! says why it is so.

pub(crate) mod batch;
mod commits;
pub(crate) mod database;
pub(crate) mod draft;
mod epoch;
mod error;
mod export;
pub(crate) mod ground;
mod house;
mod lane;
pub(crate) mod load;
mod migrations;
mod notices;
pub(crate) mod options;
mod outside;
pub(crate) mod owners;
mod queue;
mod reader;
pub(crate) mod save;
mod seen;
pub(crate) mod sequencer;
mod session;
mod sql;
pub(crate) mod values;
mod view;

use std::{
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Mutex, Notify, mpsc, watch};

pub use error::PostgresError;
pub use export::{LogEntry, LogReader, verify};
pub use options::{LEAST_CONNECTIONS, MOST_CONNECTIONS, PostgresOptions, has_password, is_url};

use crate::{
    Clock, OpenReport,
    embedded::{listing::ListedEntry, state::partial::is_remembered},
    model::{
        Approval, Command, Committed, Hash, Limits, Millis, Refused, Rights, SpentRecord,
        Suspension, TokenRecord, TokenState,
    },
};
use batch::Writes;
use epoch::{Asker, Begun};
use ground::Remembered;
use load::{Before, Lane};
use options::Target;
use queue::Queue;
use reader::{Found, Look};
use session::Session;
use view::{Changed, News, View};

/// How long a refused caller waits for what it is refused for to be in the view.
const CATCH_UP: Duration = Duration::from_secs(1);

type CommitQueue = Queue<Command, Result<Committed, Refused>>;

/// What lanes, readers and the housekeeper share.
struct Inner {
    target: Target,
    limits: Limits,
    clock: Clock,
    deadline: Duration,
    spends: CommitQueue,
    serial: CommitQueue,
    looks: Queue<Look, Result<Found, Refused>>,
    view: RwLock<View>,
    groups: watch::Sender<u64>,
    approvals: watch::Sender<u64>,
    /// Something changed in another replica, or here.
    stirred: Notify,
    /// Looks at what is new that were begun, and the newest of which the news is in
    /// the view.
    looking: AtomicU64,
    looked: watch::Sender<u64>,
    /// Whether the server's settings are still those of a server that keeps its word.
    healthy: AtomicBool,
    owners: Arc<owners::Owners>,
    /// When agents were last seen, until who keeps house takes it.
    trade: std::sync::Mutex<Option<seen::Trade>>,
    stop: watch::Sender<bool>,
}

struct Handle {
    inner: Arc<Inner>,
    ended: Mutex<(Ended, Ended)>,
}

/// Yields `None` once all the tasks of a kind have ended.
type Ended = mpsc::Receiver<()>;

impl Drop for Handle {
    fn drop(&mut self) {
        self.inner.close();
        self.inner.stop.send_replace(true);
    }
}

/// A handle to the store; clones share it. Its tasks end when the last is dropped
/// or [`Postgres::shutdown`] is called.
#[derive(Clone)]
pub(crate) struct Postgres {
    handle: Arc<Handle>,
}

impl Inner {
    fn read(&self) -> RwLockReadGuard<'_, View> {
        self.view.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, View> {
        self.view.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latest ledger time that is known here.
    fn time(&self) -> Millis {
        self.read().time_ms
    }

    fn now(&self) -> Millis {
        self.time().max((self.clock)())
    }

    fn before(&self) -> Before {
        let view = self.read();
        Before {
            time_ms: view.time_ms,
            remembered: view.remembered(),
            rights: view.rights(),
            owners: Arc::clone(&self.owners),
        }
    }

    fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::SeqCst)
    }

    fn close(&self) {
        self.spends.close();
        self.serial.close();
        self.looks.close();
    }

    /// A connection to the primary, checked, in the database's epoch.
    async fn connect(&self) -> Result<Session, PostgresError> {
        let mut session = Session::open(&self.target).await?;
        let asker = Asker {
            now: self.now(),
            replicated: self.target.replicated,
            remembered: self.read().remembered(),
        };
        let ensured = epoch::ensure(&mut session, asker);
        let epoch = outside::timeout(self.deadline * 2, ensured)
            .await
            .unwrap_or(Err(PostgresError::Slow(self.deadline * 2)))?;
        let now = self.now();
        self.write().stand(epoch.number, now);
        if let Some(Begun { why, restored }) = epoch.begun {
            tracing::warn!(
                epoch = epoch.number,
                ?why,
                restored,
                "the server or what it holds is another: a new epoch has begun"
            );
            self.stirred.notify_one();
        }
        Ok(session)
    }

    /// Shows what was committed here, before anybody is answered.
    fn publish(&self, writes: &Writes, versions: save::Versions) {
        let approvals = versions
            .approvals
            .into_iter()
            .zip(writes.approvals.iter().cloned());
        let mut view = self.write();
        view.committed(
            writes.time_ms,
            approvals,
            &writes.discovered,
            writes.confirmed,
        );
        view.righted(versions.rights, &writes.rights);
        let entries = view.head.entries;
        drop(view);
        self.stirred.notify_one();
        if writes.holds_changed {
            self.approvals.send_replace(entries);
            self.groups.send_replace(entries);
        }
    }

    /// Shows what was polled.
    fn merge(&self, news: News) {
        let mut view = self.write();
        let Changed { entries, approvals } = view.merge(news);
        let head = view.head.entries;
        drop(view);
        if entries || approvals {
            self.groups.send_replace(head);
        }
        if approvals {
            self.approvals.send_replace(head);
        }
    }
}

/// How the connections are shared out.
struct Share {
    readers: usize,
    spending: usize,
}

impl Share {
    fn of(connections: usize) -> Result<Self, PostgresError> {
        if !(LEAST_CONNECTIONS..=MOST_CONNECTIONS).contains(&connections) {
            return Err(PostgresError::Number {
                what: "the number of connections",
                value: connections,
                least: LEAST_CONNECTIONS,
                most: MOST_CONNECTIONS,
            });
        }
        // One listens, one keeps house, one is for what is serial.
        let readers = (connections / 8).max(1);
        let spending = connections.saturating_sub(readers.saturating_add(3)).max(1);
        Ok(Self { readers, spending })
    }
}

impl Postgres {
    /// Connects, brings the tables up to date, begins an epoch where one is due,
    /// and starts the tasks. Needs a tokio runtime, as everything here does.
    ///
    /// # Errors
    /// A [`PostgresError`] that says what was found and what to do.
    pub(crate) async fn open(
        options: PostgresOptions,
    ) -> Result<(Self, OpenReport), PostgresError> {
        let target = Target::new(&options)?;
        Self::open_at(options, target).await
    }

    pub(crate) async fn open_at(
        options: PostgresOptions,
        target: Target,
    ) -> Result<(Self, OpenReport), PostgresError> {
        let share = Share::of(options.connections)?;
        let mut session = Session::open(&target).await?;
        // Tables may be large, and another replica may be at it.
        session.conn.be_patient().await?;
        session.conn.migrate().await?;
        let asker = Asker {
            now: (options.clock)(),
            replicated: options.replicated,
            remembered: Remembered::default(),
        };
        let epoch = epoch::ensure(&mut session, asker).await?;
        let mut view = View::default();
        let news = view::poll(&mut session.conn, view.since()).await?;
        view.merge(news);
        view.time_ms = view.time_ms.max(house::last_time(&mut session.conn).await?);
        epoch::close(session).await;
        let report = OpenReport {
            created: epoch.created,
            entries: view.head.entries,
            head: view.head.leaf,
            epoch: epoch.number,
            suspended: view.suspended.clone(),
            ..OpenReport::default()
        };
        let entries = view.head.entries;
        let inner = Arc::new(Inner {
            target,
            limits: options.limits,
            clock: options.clock,
            deadline: options.deadline,
            spends: Queue::new(options.queue_entries, options.queue_bytes),
            serial: Queue::new(options.queue_entries, options.queue_bytes),
            looks: Queue::new(options.queue_entries, options.queue_bytes),
            view: RwLock::new(view),
            groups: watch::channel(entries).0,
            approvals: watch::channel(entries).0,
            stirred: Notify::new(),
            looking: AtomicU64::new(0),
            looked: watch::channel(0).0,
            healthy: AtomicBool::new(true),
            owners: Arc::default(),
            trade: std::sync::Mutex::default(),
            stop: watch::channel(false).0,
        });
        let ended = Mutex::new(start(&inner, &share));
        let handle = Arc::new(Handle { inner, ended });
        Ok((Self { handle }, report))
    }

    fn inner(&self) -> &Inner {
        &self.handle.inner
    }

    async fn look(&self, look: Look) -> Result<Found, Refused> {
        let queue = &self.inner().looks;
        let answer = queue.push(look, size_of::<Look>());
        let answer = answer.ok_or(Refused::Unavailable)?.await;
        answer.unwrap_or(Err(Refused::Unavailable))
    }

    pub(crate) async fn token(
        &self,
        hash: &Hash,
    ) -> Result<Option<(TokenRecord, TokenState)>, Refused> {
        match self.look(Look::Token(*hash)).await? {
            Found::Token(row) if row.remembered(self.inner().time()) => {
                let state = row.state();
                Ok(Some((row.record, state)))
            }
            _ => Ok(None),
        }
    }

    pub(crate) async fn spent(&self, hash: &Hash) -> Result<Option<SpentRecord>, Refused> {
        match self.look(Look::Use(*hash)).await? {
            Found::Use(row) => Ok(row
                .spent
                .filter(|spent| is_remembered(spent.expires_ms, self.inner().time()))),
            _ => Ok(None),
        }
    }

    pub(crate) fn approval(&self, id: &str) -> Option<Approval> {
        self.inner().read().approval(id).cloned()
    }

    pub(crate) fn approved_unused(&self, digest: &Hash) -> Option<Approval> {
        let now = self.now();
        self.inner().read().usable(digest, now).cloned()
    }

    pub(crate) fn approvals(&self) -> Vec<Approval> {
        let mut all: Vec<Approval> = self.inner().read().approvals().cloned().collect();
        all.sort_by(|a, b| {
            b.created_ms
                .cmp(&a.created_ms)
                .then_with(|| a.id.cmp(&b.id))
        });
        all
    }

    pub(crate) fn discovered(&self) -> Vec<(String, Millis)> {
        let view = self.inner().read();
        let all = view.discovered().iter();
        all.map(|(agent, at)| (agent.clone(), *at)).collect()
    }

    pub(crate) fn rights(&self) -> Arc<Rights> {
        self.inner().read().rights().1
    }

    pub(crate) fn suspended(&self) -> Option<Suspension> {
        self.inner().read().suspended.clone()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.inner().groups.subscribe()
    }

    pub(crate) fn subscribe_approvals(&self) -> watch::Receiver<u64> {
        self.inner().approvals.subscribe()
    }

    pub(crate) fn head(&self) -> (u64, Hash) {
        let head = self.inner().read().head;
        (head.entries, head.leaf)
    }

    pub(crate) fn now(&self) -> Millis {
        self.inner().now()
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.inner().read().epoch
    }

    pub(crate) fn stands_since(&self) -> Millis {
        self.inner().read().stands_since()
    }

    pub(crate) fn listing(&self, before: Option<u64>, limit: usize) -> Vec<ListedEntry> {
        let before = before.unwrap_or(u64::MAX);
        self.inner().read().listing(before, limit)
    }

    pub(crate) async fn shutdown(&self) {
        self.inner().close();
        let mut ended = self.handle.ended.lock().await;
        let (lanes, house) = &mut *ended;
        while lanes.recv().await.is_some() {}
        self.inner().stop.send_replace(true);
        while house.recv().await.is_some() {}
    }
}

/// Starts the tasks; each keeps a sender for as long as it runs.
fn start(inner: &Arc<Inner>, share: &Share) -> (Ended, Ended) {
    let (lanes, lanes_ended) = mpsc::channel(1);
    let (house, house_ended) = mpsc::channel(1);
    let serial = std::iter::once(Lane::Serial);
    for lane in serial.chain(std::iter::repeat_n(Lane::Shared, share.spending)) {
        let worker = lane::Worker::new(Arc::clone(inner), lane);
        let running = lanes.clone();
        outside::spawn(async move {
            worker.run().await;
            drop(running);
        });
    }
    for _ in 0..share.readers {
        let (inner, running) = (Arc::clone(inner), lanes.clone());
        outside::spawn(async move {
            reader::run(&inner).await;
            drop(running);
        });
    }
    let (keeper, running) = (Arc::clone(inner), house.clone());
    outside::spawn(async move {
        house::keep(&keeper).await;
        drop(running);
    });
    let (hearer, running) = (Arc::clone(inner), house.clone());
    outside::spawn(async move {
        house::listen(&hearer).await;
        drop(running);
    });
    let (clerk, running) = (Arc::clone(inner), house);
    outside::spawn(async move {
        house::turn_away(&clerk).await;
        drop(running);
    });
    (lanes_ended, house_ended)
}
