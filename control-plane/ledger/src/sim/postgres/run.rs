//! What runs when: one thread, virtual time, and the next task that is drawn.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    rc::Rc,
    sync::{Arc, Mutex},
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use crate::sim::rng::Rng;

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Tasks that end together, as those of one process.
pub(crate) type Group = u32;
/// What goes on in the database by itself, and in the network.
pub(crate) const NATURE: Group = 0;

struct Flag {
    id: u64,
    ready: Arc<Mutex<BTreeSet<u64>>>,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.ready.lock().unwrap().insert(self.id);
    }
}

/// One simulation.
pub(crate) struct Run {
    base: Instant,
    now: Cell<Duration>,
    rng: RefCell<Rng>,
    next: Cell<u64>,
    group: Cell<Group>,
    tasks: RefCell<BTreeMap<u64, (Group, Option<Task>)>>,
    ready: Arc<Mutex<BTreeSet<u64>>>,
    timers: RefCell<BTreeMap<(Duration, u64), Waker>>,
    /// Processes that sleep, and until when.
    frozen: RefCell<BTreeMap<Group, Duration>>,
}

thread_local! {
    static RUN: RefCell<Option<Rc<Run>>> = const { RefCell::new(None) };
}

pub(crate) fn current() -> Option<Rc<Run>> {
    RUN.with_borrow(Clone::clone)
}

impl Run {
    /// Begins a simulation on this thread.
    pub(crate) fn begin(rng: Rng) -> Rc<Self> {
        let run = Rc::new(Self {
            base: Instant::now(),
            now: Cell::new(Duration::from_secs(1_000)),
            rng: RefCell::new(rng),
            next: Cell::new(1),
            group: Cell::new(NATURE),
            tasks: RefCell::default(),
            ready: Arc::default(),
            timers: RefCell::default(),
            frozen: RefCell::default(),
        });
        RUN.set(Some(Rc::clone(&run)));
        run
    }

    /// Ends it: every task goes.
    pub(crate) fn end(&self) {
        let groups: BTreeSet<Group> = self.tasks.borrow().values().map(|(g, _)| *g).collect();
        for group in groups {
            self.kill(group);
        }
        self.kill(NATURE);
        RUN.set(None);
    }

    pub(crate) fn now(&self) -> Duration {
        self.now.get()
    }

    fn number(&self) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        number
    }

    pub(crate) fn spawn_in(&self, group: Group, task: impl Future<Output = ()> + 'static) {
        let id = self.number();
        self.tasks
            .borrow_mut()
            .insert(id, (group, Some(Box::pin(task))));
        self.ready.lock().unwrap().insert(id);
    }

    /// A process is killed: what its tasks have is dropped.
    pub(crate) fn kill(&self, group: Group) {
        loop {
            let ids: Vec<u64> = {
                let tasks = self.tasks.borrow();
                let of = tasks.iter().filter(|(_, (of, _))| *of == group);
                of.map(|(id, _)| *id).collect()
            };
            if ids.is_empty() {
                break;
            }
            for id in ids {
                let task = self.tasks.borrow_mut().remove(&id);
                self.ready.lock().unwrap().remove(&id);
                drop(task);
            }
        }
        self.frozen.borrow_mut().remove(&group);
    }

    /// A process sleeps: nothing of it runs.
    pub(crate) fn freeze(&self, group: Group, longest: Duration) {
        self.frozen.borrow_mut().insert(group, self.now() + longest);
    }

    pub(crate) fn thaw_all(&self) {
        self.frozen.borrow_mut().clear();
    }

    /// One task runs until it waits, or time goes on to what is due next, but not
    /// past `until`. False: that time has come, or nothing will ever happen.
    pub(crate) fn step(&self, until: Duration) -> bool {
        let now = self.now();
        self.frozen.borrow_mut().retain(|_, until| *until > now);
        let able: Vec<u64> = {
            let frozen = self.frozen.borrow();
            let tasks = self.tasks.borrow();
            let mut ready = self.ready.lock().unwrap();
            ready.retain(|id| tasks.contains_key(id));
            let able = ready
                .iter()
                .filter(|id| tasks.get(id).is_some_and(|(g, _)| !frozen.contains_key(g)));
            able.copied().collect()
        };
        let drawn = self.rng.borrow_mut().pick(&able).copied();
        if let Some(id) = drawn {
            self.poll(id);
            return true;
        }
        let timer = self.timers.borrow().keys().next().map(|(at, _)| *at);
        let thaw = self.frozen.borrow().values().min().copied();
        // Time passes also where nobody is left that waits.
        let Some(at) = timer
            .into_iter()
            .chain(thaw)
            .min()
            .filter(|at| *at <= until)
        else {
            self.now.set(until.max(now));
            return false;
        };
        self.now.set(at.max(now));
        let mut due = self.timers.borrow_mut();
        let later = due.split_off(&(self.now(), u64::MAX));
        let due = std::mem::replace(&mut *due, later);
        due.into_values().for_each(Waker::wake);
        true
    }

    fn poll(&self, id: u64) {
        self.ready.lock().unwrap().remove(&id);
        let taken = {
            let mut tasks = self.tasks.borrow_mut();
            tasks.get_mut(&id).and_then(|(g, t)| Some((*g, t.take()?)))
        };
        let Some((group, mut task)) = taken else {
            return;
        };
        self.group.set(group);
        let waker = Waker::from(Arc::new(Flag {
            id,
            ready: Arc::clone(&self.ready),
        }));
        let polled = task.as_mut().poll(&mut Context::from_waker(&waker));
        if polled.is_pending() {
            if let Some(place) = self.tasks.borrow_mut().get_mut(&id) {
                place.1 = Some(task);
                self.group.set(NATURE);
                return;
            }
        } else {
            self.tasks.borrow_mut().remove(&id);
        }
        drop(task);
        self.group.set(NATURE);
    }
}

/// Takes a task to the simulation that runs on this thread; gives it back when none does.
pub(crate) fn spawn<F: Future<Output = ()> + 'static>(task: F) -> Option<F> {
    let Some(run) = current() else {
        return Some(task);
    };
    run.spawn_in(run.group.get(), task);
    None
}

/// Fills bytes by the seed. False: no simulation runs.
pub(crate) fn fill(bytes: &mut [u8]) -> bool {
    let Some(run) = current() else {
        return false;
    };
    run.rng.borrow_mut().fill(bytes);
    true
}

/// Now, in virtual time where a simulation runs.
pub(crate) fn now() -> Instant {
    current().map_or_else(Instant::now, |run| run.base + run.now())
}

/// Waits.
pub(crate) async fn sleep(time: Duration) {
    let until = current().map(|run| run.now() + time);
    match until {
        Some(until) => Sleep { until, timer: None }.await,
        None => tokio::time::sleep(time).await,
    }
}

/// It took too long.
#[derive(Debug)]
pub(crate) struct Late;

/// Waits, but not for longer than that.
///
/// # Errors
/// [`Late`].
pub(crate) async fn timeout<F: Future>(time: Duration, what: F) -> Result<F::Output, Late> {
    tokio::select! {
        biased;
        done = what => Ok(done),
        () = sleep(time) => Err(Late),
    }
}

struct Sleep {
    until: Duration,
    timer: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(run) = current() else {
            return Poll::Ready(());
        };
        if run.now() >= self.until {
            return Poll::Ready(());
        }
        let number = *self.timer.get_or_insert_with(|| run.number());
        run.timers
            .borrow_mut()
            .insert((self.until, number), context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let (Some(number), Some(run)) = (self.timer, current()) {
            run.timers.borrow_mut().remove(&(self.until, number));
        }
    }
}
