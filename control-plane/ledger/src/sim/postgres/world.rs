//! Replicas, their callers, and everything that goes wrong: all of it decided by
//! one seed, and judged after each step.

use std::{
    collections::BTreeSet,
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{
    Clock,
    model::{Command, Hash, Limits},
    postgres::{Postgres, PostgresOptions, database::Server, options::Target},
    sim::{
        Broken, Invariant,
        callers::Callers,
        kinds::Kind,
        postgres::{
            conn::{Client, Shared, lock},
            core::{Core, Weather},
            judge::{Answered, Judge, is_marked},
            run::{self, Group, NATURE, Run},
        },
        rng::Rng,
        world::START_MS,
    },
};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What a run did, to see that a simulation is worth its time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) asked: u64,
    pub(crate) committed: u64,
    pub(crate) unknown: u64,
    pub(crate) refused: u64,
    pub(crate) entries: u64,
    pub(crate) epochs: u64,
    pub(crate) starts: u64,
    pub(crate) kills: u64,
    pub(crate) sleeps: u64,
    pub(crate) crashes: u64,
    pub(crate) failovers: u64,
    pub(crate) losses: u64,
    pub(crate) faults: u64,
    pub(crate) waits: u64,
    pub(crate) looks: u64,
}

impl Counts {
    fn all(&mut self) -> [&mut u64; 15] {
        [
            &mut self.asked,
            &mut self.committed,
            &mut self.unknown,
            &mut self.refused,
            &mut self.entries,
            &mut self.epochs,
            &mut self.starts,
            &mut self.kills,
            &mut self.sleeps,
            &mut self.crashes,
            &mut self.failovers,
            &mut self.losses,
            &mut self.faults,
            &mut self.waits,
            &mut self.looks,
        ]
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let mut other = *other;
        for (sum, more) in self.all().into_iter().zip(other.all()) {
            *sum += *more;
        }
    }
}

type Slot = Arc<Mutex<Option<Postgres>>>;

struct Replica {
    group: Group,
    handle: Slot,
    ahead_ms: u64,
    lives: bool,
}

#[derive(Default)]
struct Heard {
    answers: Vec<(Command, String, u64, Answered)>,
    /// A token that was spent before somebody looked was shown as outstanding.
    stale: Option<String>,
}

pub(crate) struct World {
    rng: Rng,
    run: Rc<Run>,
    core: Shared,
    judge: Judge,
    callers: Callers,
    limits: Limits,
    replicas: Vec<Replica>,
    heard: Arc<Mutex<Heard>>,
    groups: Group,
    marks: u64,
    issued: BTreeSet<Hash>,
    counts: Counts,
    down_until: Option<Duration>,
}

impl Drop for World {
    fn drop(&mut self) {
        for replica in &self.replicas {
            replica.handle.lock().unwrap().take();
        }
        self.run.end();
    }
}

impl World {
    pub(crate) fn new(seed: u64, trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let run = Run::begin(rng.fork());
        let replicated = rng.percent(50);
        let core = Core::new(rng.fork(), replicated, trace);
        let core: Shared = Arc::new(Mutex::new(core));
        // So few that several replicas together come past what they may.
        let kind = Kind::of(seed);
        let limits = kind.limits(1);
        let mut world = Self {
            judge: Judge::new(&core, limits.clone()),
            callers: Callers::new(rng.fork(), kind),
            limits,
            run,
            core,
            replicas: Vec::new(),
            heard: Arc::default(),
            groups: NATURE,
            marks: 0,
            issued: BTreeSet::new(),
            counts: Counts::default(),
            down_until: None,
            rng,
        };
        let count = world.rng.one(&[2, 2, 3]);
        world.judge.counts_for(count);
        for _ in 0..count {
            let ahead_ms = world.rng.one(&[0, 0, 300, 2_500]);
            world.replicas.push(Replica {
                group: NATURE,
                handle: Slot::default(),
                ahead_ms,
                lives: false,
            });
        }
        world
    }

    fn say(&self, what: impl FnOnce() -> String) {
        lock(&self.core).say(what);
    }

    pub(crate) fn trace(&self) -> Vec<String> {
        lock(&self.core).trace.take().unwrap_or_default()
    }

    fn start(&mut self, at: usize) {
        self.groups += 1;
        self.counts.starts += 1;
        let group = self.groups;
        self.say(|| format!("replica {at} starts as {group}"));
        let replica = &mut self.replicas[at];
        replica.group = group;
        replica.lives = true;
        replica.handle = Slot::default();
        let ahead_ms = replica.ahead_ms;
        let clock: Clock = Arc::new(move || {
            let now = run::current().map_or(0, |run| run.now().as_millis() as u64);
            START_MS + now + ahead_ms
        });
        let replicated = lock(&self.core).replicated;
        let options = PostgresOptions {
            limits: self.limits.clone(),
            connections: 6,
            queue_entries: 24,
            replicated,
            ..PostgresOptions::new("postgres://sim", clock)
        };
        let client = Client {
            core: Arc::clone(&self.core),
            by: group,
        };
        let slot = Arc::clone(&replica.handle);
        self.run.spawn_in(group, async move {
            loop {
                let target = Target {
                    server: Server::Simulated(client.clone()),
                    replicated,
                    deadline: options.deadline,
                };
                match Postgres::open_at(options.clone(), target).await {
                    Ok((postgres, _)) => {
                        *slot.lock().unwrap() = Some(postgres);
                        break;
                    }
                    Err(error) => {
                        lock(&client.core).say(|| format!("no start of {group}: {error}"));
                        run::sleep(ms(300)).await;
                    }
                }
            }
        });
    }

    fn kill(&mut self, at: usize) {
        self.say(|| format!("replica {at} is killed"));
        self.counts.kills += 1;
        let replica = &mut self.replicas[at];
        replica.lives = false;
        replica.handle.lock().unwrap().take();
        self.run.kill(replica.group);
    }

    fn handle(&self, at: usize) -> Option<Postgres> {
        self.replicas[at].handle.lock().unwrap().clone()
    }

    /// Time passes, and whatever happens meanwhile is judged.
    fn passes(&mut self, time: Duration) -> Result<(), Broken> {
        let until = self.run.now() + time;
        while self.run.step(until) {
            self.judge()?;
        }
        if self.down_until.is_some_and(|at| self.run.now() >= at) {
            self.up();
        }
        Ok(())
    }

    fn judge(&mut self) -> Result<(), Broken> {
        self.judge.commits()?;
        let heard = std::mem::take(&mut *self.heard.lock().unwrap());
        if let Some(stale) = heard.stale {
            return Err(Broken(Invariant::State, stale));
        }
        for (command, mark, epoch, answer) in heard.answers {
            self.say(|| format!("{mark} is answered: {:?}", answer.as_ref().err()));
            self.judge.answered(&command, &mark, &answer)?;
            match answer {
                Ok(done) => {
                    self.counts.committed += 1;
                    self.callers.learn(&command, &done, epoch);
                }
                Err(crate::model::Refused::Unknown) => self.counts.unknown += 1,
                Err(_) => self.counts.refused += 1,
            }
        }
        Ok(())
    }

    fn epoch(&self) -> u64 {
        let core = lock(&self.core);
        core.tables.meta.as_ref().map_or(0, |meta| meta.epoch)
    }

    fn ask(&mut self, at: usize, mut command: Command) {
        let Some(postgres) = self.handle(at) else {
            return;
        };
        if let Command::Issue { token, .. } = &command
            && !self.issued.insert(token.token_hash)
        {
            // In another epoch it would be another token.
            return;
        }
        self.marks += 1;
        self.counts.asked += 1;
        let mark = self.marks.to_string();
        put_mark(&mut command, &mark);
        let about = crate::sim::callers::brief(&command);
        self.say(|| {
            let (kind, attempt) = (about.kind, about.attempt.unwrap_or_default());
            let token = about.token.unwrap_or_default();
            let token = token.get(..8).unwrap_or_default();
            format!("{mark} asks {at}: {kind} {token} {attempt}")
        });
        let (heard, epoch) = (Arc::clone(&self.heard), self.epoch());
        self.run.spawn_in(self.replicas[at].group, async move {
            let answer = postgres.commit(command.clone()).await;
            let mut heard = heard.lock().unwrap();
            heard.answers.push((command, mark, epoch, answer));
        });
    }

    fn look(&mut self, at: usize) {
        let spent: Vec<Hash> = self.judge.spent.keys().copied().collect();
        let (Some(postgres), Some(hash)) = (self.handle(at), self.rng.pick(&spent).copied()) else {
            return;
        };
        self.counts.looks += 1;
        let heard = Arc::clone(&self.heard);
        self.run.spawn_in(self.replicas[at].group, async move {
            if let Ok(Some((token, _))) = postgres.token(&hash).await {
                let what = format!("{} is spent and is shown", token.jti);
                heard.lock().unwrap().stale = Some(what);
            }
        });
    }

    /// The replicas start, one after the other or at once.
    pub(crate) fn begin(&mut self) -> Result<(), Broken> {
        for at in 0..self.replicas.len() {
            self.start(at);
            let time = self.rng.one(&[0, 1, 50]);
            self.passes(ms(time))?;
        }
        self.passes(ms(100))
    }

    /// One thing happens.
    pub(crate) fn event(&mut self) -> Result<(), Broken> {
        let at = self.rng.below(self.replicas.len());
        match self.rng.below(100) {
            0..66 => {
                for _ in 0..=self.rng.below(5) {
                    let at = self.rng.below(self.replicas.len());
                    let command = self.callers.next(self.time(), self.epoch());
                    // Two ask for the same thing, of different replicas.
                    let issues = matches!(command, Command::Issue { .. });
                    if !issues && self.rng.percent(25) {
                        let other = self.rng.below(self.replicas.len());
                        self.ask(other, command.clone());
                    }
                    self.ask(at, command);
                }
            }
            66..71 => self.look(at),
            71..75 if self.replicas[at].lives => self.kill(at),
            75..80 if self.replicas[at].lives => {
                let time = self.rng.one(&[200, 3_500, 3_500, 7_000, 12_000]);
                self.say(|| format!("replica {at} sleeps for {time} ms"));
                self.counts.sleeps += 1;
                self.run.freeze(self.replicas[at].group, ms(time));
            }
            80..84 => self.server_ends(),
            84..90 => self.weather(),
            90..94 => {
                let suspended = self.handle(at).and_then(|postgres| postgres.suspended());
                if let Some(suspended) = suspended {
                    let confirm = Command::ConfirmRestore {
                        restored: suspended.index,
                        by: "ops".into(),
                    };
                    self.ask(at, confirm);
                }
            }
            94 => self.passes(ms(40_000))?,
            95..97 => {
                self.say(|| "an operator says that the tables were set back".into());
                lock(&self.core).said_to_be_elsewhere();
            }
            _ => {
                let time = self.rng.one(&[1_000, 3_000, 6_000]);
                self.passes(ms(time))?;
            }
        }
        if !self.replicas[at].lives && self.rng.percent(60) {
            self.start(at);
        }
        let time = self.rng.one(&[300, 1_000, 3_000, 10_000, 30_000, 300_000]);
        self.passes(Duration::from_micros(time))
    }

    fn time(&self) -> u64 {
        START_MS + self.run.now().as_millis() as u64
    }

    fn weather(&mut self) {
        let worse = self.rng.percent(70);
        let mut core = lock(&self.core);
        core.weather = if worse {
            Weather {
                lost: self.rng.one(&[0, 50, 200]),
                failed: self.rng.one(&[0, 50, 200]),
                slow: self.rng.one(&[0, 0, 50, 200]),
                commits: self.rng.one(&[0, 20, 50]),
                standby: self.rng.one(&[0, 30]),
                deaf: self.rng.one(&[0, 50, 100]),
            }
        } else {
            Weather::default()
        };
        let weather = core.weather;
        core.say(|| format!("{weather:?}"));
    }

    /// The server crashes; it comes back, or a standby takes over, or a backup
    /// stands in.
    fn server_ends(&mut self) {
        if self.down_until.is_some() {
            return;
        }
        lock(&self.core).crash();
        self.counts.crashes += 1;
        self.say(|| "the server ends".into());
        let time = self.rng.one(&[0, 1, 100, 1_500]);
        self.down_until = Some(self.run.now() + ms(time));
    }

    fn up(&mut self) {
        self.down_until = None;
        let which = self.rng.below(10);
        let mut core = lock(&self.core);
        let safe = if core.replicated {
            core.standby
        } else {
            core.lsn
        };
        // What a server without fsync has not written yet is lost with it.
        let unsafe_from = core.unsafe_from.take();
        let lsns: Vec<u64> = core.history.iter().map(|(lsn, ..)| *lsn).collect();
        let last = lsns.last().copied().unwrap_or_default();
        let older = |least: u64, rng: &mut Rng| {
            let able: Vec<u64> = lsns.iter().copied().filter(|at| *at >= least).collect();
            let at = able.len().saturating_sub(1 + rng.below(8));
            able.get(at).copied().unwrap_or(least.min(last))
        };
        let to = match which {
            0..4 => {
                core.timeline += 1;
                self.counts.failovers += 1;
                let least = if core.replicated { core.standby } else { 1 };
                older(least, &mut self.rng)
            }
            4 => {
                core.system += 1;
                older(1, &mut self.rng)
            }
            _ => match unsafe_from {
                Some(from) => older(from, &mut self.rng),
                None => last,
            },
        };
        if which == 9 {
            core.unsafe_from = Some(to);
        }
        core.fsync = core.unsafe_from.is_none();
        let lossy = to < last;
        core.go_back(to);
        core.standby = core.lsn;
        core.up = true;
        let timeline = core.timeline_name();
        core.say(|| format!("a server is there on timeline {timeline}, with {to} of {last}"));
        let promised = which < 5;
        drop(core);
        if lossy {
            self.counts.losses += 1;
            let lost = self.judge.lose(to, safe, promised);
            if let Err(broken) = lost {
                lock(&self.core).broken.get_or_insert(broken);
            }
        }
    }

    /// Everything works again: all that was acknowledged is there, and every replica
    /// shows it.
    pub(crate) fn end(&mut self) -> Result<Counts, Broken> {
        lock(&self.core).weather = Weather::default();
        self.run.thaw_all();
        if self.down_until.is_none() && !lock(&self.core).fsync {
            self.server_ends();
        }
        self.passes(ms(2_000))?;
        while !lock(&self.core).fsync {
            self.server_ends();
            self.passes(ms(2_000))?;
        }
        for at in 0..self.replicas.len() {
            if !self.replicas[at].lives {
                self.start(at);
            }
        }
        self.passes(ms(12_000))?;
        for at in 0..self.replicas.len() {
            self.shows(at)?;
        }
        for at in 0..self.replicas.len() {
            self.still_commits(at)?;
        }
        self.passes(ms(4_000))?;
        self.judge.end()?;
        for at in 0..self.replicas.len() {
            self.shows(at)?;
        }
        let core = lock(&self.core);
        self.counts.entries = self.judge.history.len();
        self.counts.epochs = self.judge.epochs;
        self.counts.faults = core.faults;
        self.counts.waits = core.waited;
        Ok(self.counts)
    }

    /// A lane that had its connection cut says once that it takes nothing now.
    fn still_commits(&mut self, at: usize) -> Result<(), Broken> {
        for _ in 0..8 {
            let committed = self.counts.committed;
            let note = Command::Note {
                kind: "shutdown",
                body: serde_json::Value::Null,
            };
            self.ask(at, note);
            self.passes(ms(500))?;
            if self.counts.committed > committed {
                return Ok(());
            }
        }
        Err(Broken(Invariant::Stuck, format!("{at} commits nothing")))
    }

    /// A replica shows what there is.
    fn shows(&self, at: usize) -> Result<(), Broken> {
        let Some(postgres) = self.handle(at) else {
            return Err(Broken(Invariant::Stuck, format!("{at} does not start")));
        };
        let tables = lock(&self.core).tables.clone();
        let view = |what: String| Err(Broken(Invariant::View, format!("replica {at}: {what}")));
        for (id, row) in &*tables.approvals {
            let shown = postgres.approval(id);
            if shown.as_ref() != Some(&row.record) {
                let shown = shown.map(|approval| approval.state);
                return view(format!("{id} is {:?}, and {shown:?}", row.record.state));
            }
        }
        let head = tables.sequencer.head;
        if postgres.head() != (head.entries, head.leaf) {
            return view(format!("its head is {:?}", postgres.head().0));
        }
        let Some(meta) = &tables.meta else {
            return view("there is no epoch".into());
        };
        if postgres.epoch() != meta.epoch || postgres.suspended() != meta.suspended {
            return view(format!("its epoch is {}", postgres.epoch()));
        }
        Ok(())
    }
}

/// Marks a command, to know its line again.
fn put_mark(command: &mut Command, mark: &str) {
    let mark = format!("~{mark}~");
    match command {
        // What lines about the token repeat is not its.
        Command::Issue { policy, .. } => policy.version = mark,
        Command::Allow { request, .. }
        | Command::Deny { request, .. }
        | Command::Hold { request, .. } => request.request_id = mark,
        Command::ExchangeRefused { request_id, .. } | Command::Ask { request_id, .. } => {
            *request_id = mark;
        }
        Command::DecideApproval { by, .. } | Command::ConfirmRestore { by, .. } => *by = mark,
        Command::Outcome { details, .. } => *details = mark,
        Command::PutAgent { change, .. } => change.why = mark,
        // Its lift repeats it.
        Command::Stop { why, .. } => *why = mark,
        Command::Note { body, .. } => *body = serde_json::json!({ "text": mark }),
        _ => debug_assert!(!is_marked(command)),
    }
}
