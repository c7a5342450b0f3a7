//! How a changed module reaches the proxies: at once, or first those of some groups,
//! then all, each step watched, and taken back by itself when it goes wrong.

mod judge;
mod kept;

use super::ServeError;
use super::edge::{self, Module, Pinned, called, modified};
use crate::config::Config;
use crate::state::Core;
use judge::Sight;
use ledger::model::Command;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use xds::Ads;

/// The key of the warning.
const WARNING: &str = "rollout";
/// Taking back waits no longer for its entry.
const ENTRY_WITHIN: Duration = Duration::from_secs(2);
/// Letters of a reason in an entry.
const WHY_MAX: usize = 256;

/// Who gets it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    First,
    All,
}

/// A module on its way.
struct Trial {
    module: Module,
    step: Step,
    /// When its step began, or its first proxy was seen.
    since: Instant,
    /// Whether a proxy that should run it was seen.
    seen: bool,
    /// When it was looked at last.
    looked: Instant,
    /// How long contexts of it were missing, less how long none was.
    missed: Duration,
}

impl Trial {
    fn new(module: Module, step: Step) -> Self {
        Self {
            module,
            step,
            since: Instant::now(),
            seen: false,
            looked: Instant::now(),
            missed: Duration::ZERO,
        }
    }

    /// Whether this is what a filter calls the module.
    fn is_named(&self, name: &str) -> bool {
        let digest = name.rsplit_once('+').map_or("", |(_, digest)| digest);
        digest == called(&self.module.sha256)
    }
}

/// The modules that proxies run, and the keys that they know.
pub struct Rollout {
    core: Arc<Core>,
    ads: Ads,
    /// What everybody ran before.
    good: Module,
    trial: Option<Trial>,
    pinned: Pinned,
    /// The ids of the keys that are in the journal as known to proxies.
    keys: Vec<String>,
    /// Whether Envoy has to be told something.
    due: bool,
}

/// What a start begins with: the module that was good last, when things are watched
/// and nobody has tried that of the file; else that of the file.
pub fn begin_with(config: &Config, module: &Module) -> Module {
    if config.edge.rollout.watch_s == 0 {
        kept::remove(config);
        return module.clone();
    }
    let begin = kept::read(config).unwrap_or_else(|| module.clone());
    if begin.sha256 != module.sha256 {
        tracing::warn!(
            sha256 = begin.sha256,
            waits = module.sha256,
            "the start is with the module that was good last; edge.module has another, which is tried"
        );
    }
    begin
}

/// Writes down what the pinned groups run.
///
/// # Errors
/// When an entry is not taken.
pub async fn say_pinned(core: &Core, pinned: &Pinned) -> Result<(), ServeError> {
    for (group, module) in pinned {
        let body = json!({
            "event": "pinned", "module": module.sha256_hex(), "before": "",
            "first": [group], "why": "",
        });
        if !note(core, "rollout", body).await {
            return Err(ServeError::FirstEntry);
        }
    }
    Ok(())
}

async fn note(core: &Core, kind: &'static str, body: serde_json::Value) -> bool {
    let committed = core.ledger.commit(Command::Note { kind, body }).await;
    if let Err(error) = &committed {
        tracing::error!(%error, "a new module or other keys could not be recorded, so they are not pushed");
    }
    committed.is_ok()
}

/// A file that is looked at.
struct Watched {
    path: PathBuf,
    seen: Option<SystemTime>,
    /// What was read last, and has not been taken in hand.
    waits: Option<Module>,
    sha256: String,
}

impl Watched {
    /// Reads the file when it has changed and rests.
    async fn look(&mut self, config: &Config) {
        let now = modified(&self.path);
        if now.is_none() || now == self.seen {
            return;
        }
        // A file that is still being written changes again; wait for it to rest.
        tokio::time::sleep(Duration::from_millis(300)).await;
        if modified(&self.path) != now {
            return;
        }
        self.seen = now;
        match Module::read(&config.edge) {
            Ok(module) if module.sha256 == self.sha256 => {}
            Ok(module) => {
                self.sha256.clone_from(&module.sha256);
                self.waits = Some(module);
            }
            Err(error) => tracing::error!(
                error,
                "the changed module is not pushed; proxies keep the last one"
            ),
        }
    }
}

impl Rollout {
    /// Everybody runs `good`, but for the pinned groups.
    pub fn new(core: Arc<Core>, ads: Ads, good: Module, pinned: Pinned) -> Self {
        let keys = edge::kids(&core);
        Self {
            core,
            ads,
            good,
            trial: None,
            pinned,
            keys,
            due: false,
        }
    }

    /// Rolls a module out when its file changes, and with it the keys when they do;
    /// what can't be used is said and the last one stays. `first` is what the file
    /// had at the start. The answer is what all get.
    pub fn run(
        mut self,
        first: Module,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> watch::Receiver<Option<String>> {
        let (show, shown) = watch::channel(Some(self.good.sha256.clone()));
        let stop = stop.clone();
        let mut file = Watched {
            path: self.core.config.edge.module.clone(),
            seen: first.modified,
            sha256: first.sha256.clone(),
            waits: None,
        };
        if first.sha256 != self.good.sha256 {
            file.waits = Some(first);
        } else if self.watched() {
            kept::write(&self.core.config, &first);
        }
        tasks.spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_secs(1));
            let mut turned = Instant::now();
            loop {
                tokio::select! { () = stop.cancelled() => return, _ = tick.tick() => {} }
                // What is not in the journal is not pushed, whatever comes with it.
                if !self.keys().await {
                    continue;
                }
                self.look().await;
                // What a trial is compared with is of about as long a time.
                if self.trial.is_none() && turned.elapsed() >= self.window() {
                    self.core.fleet.turn();
                    turned = Instant::now();
                }
                file.look(&self.core.config).await;
                if let Some(module) = file.waits.take()
                    && !self.take(&module).await
                {
                    file.waits = Some(module);
                }
                if self.due {
                    self.push();
                    show.send_replace(Some(self.for_all().sha256.clone()));
                }
            }
        });
        shown
    }

    /// Reads the list of keys; whether those that proxies are to know are recorded.
    async fn keys(&mut self) -> bool {
        if let Err(error) = self.core.keys.reload() {
            tracing::error!(%error, "the changed list of keys can't be used; the last one stays");
        }
        // They change with the time as well.
        let known = edge::kids(&self.core);
        if known == self.keys {
            return true;
        }
        if !self.say_config(&known, self.for_all()).await {
            return false;
        }
        self.keys = known;
        self.due = true;
        true
    }

    /// A module has come: the first get it, or all. False when it has to wait.
    async fn take(&mut self, module: &Module) -> bool {
        if let Some(trial) = self.trial.take() {
            // Nobody knows what that one is worth, and nobody is left with it.
            self.back(&trial, "its file has another one").await;
        }
        if module.sha256 == self.good.sha256 {
            self.core.warnings.lower(WARNING);
            return true;
        }
        if !self.watched() {
            let recorded = self.say_config(&self.keys, module).await;
            if recorded {
                self.good = module.clone();
                self.due = true;
            }
            return recorded;
        }
        let trial = Trial::new(module.clone(), Step::First);
        let there = self.ads.status();
        let is_there = |peer: &str, node: &str| {
            let mut connected = there.iter().filter(|it| it.connected);
            connected.any(|it| it.peer.as_str() == peer && it.node_id == node)
        };
        let fleet = &self.core.fleet;
        fleet.begin(|name| trial.is_named(name), is_there);
        let step = if self.core.config.edge.rollout.first.is_empty() {
            Step::All
        } else {
            Step::First
        };
        self.step(module, step).await
    }

    /// The entry comes before the push: what runs is never unknown to the log.
    async fn step(&mut self, module: &Module, step: Step) -> bool {
        if step == Step::All && !self.say_config(&self.keys, module).await {
            return false;
        }
        if !self.say(step.word(), module, "").await {
            return false;
        }
        let first = &self.core.config.edge.rollout.first;
        let who = match step {
            Step::First => format!("the groups {}", first.join(", ")),
            Step::All => "all proxies".to_owned(),
        };
        let text = format!("the module {} is tried on {who}", called(&module.sha256));
        tracing::info!(sha256 = module.sha256, "{text}");
        self.core.warnings.raise(WARNING, &text);
        self.trial = Some(Trial::new(module.clone(), step));
        self.due = true;
        true
    }

    fn window(&self) -> Duration {
        Duration::from_secs(self.core.config.edge.rollout.watch_s)
    }

    fn watched(&self) -> bool {
        !self.window().is_zero()
    }

    /// What proxies of no group get.
    fn for_all(&self) -> &Module {
        match &self.trial {
            Some(trial) if trial.step == Step::All => &trial.module,
            _ => &self.good,
        }
    }

    fn for_group(&self, name: &str) -> &xds::Module {
        let first = &self.core.config.edge.rollout.first;
        match (self.pinned.get(name), &self.trial) {
            (Some(own), _) => own,
            (None, Some(trial)) if first.iter().any(|it| it == name) => &trial.module.inner,
            _ => &self.for_all().inner,
        }
    }

    /// Tells each proxy what it should run; what has not changed is not told again.
    fn push(&mut self) {
        let groups = self.core.config.edge.groups.iter();
        let mut told = groups.map(|it| (Some(it.name.as_str()), self.for_group(&it.name)));
        let others = std::iter::once((None, &self.for_all().inner));
        let pushed = told.by_ref().chain(others).try_for_each(|(group, module)| {
            let settings = edge::settings(&self.core, module)?;
            let updated = self.ads.update_group(group, &settings);
            updated.map(drop).map_err(|error| error.to_string())
        });
        match pushed {
            Ok(()) => {
                tracing::info!(
                    sha256 = self.for_all().sha256,
                    "another module, or other keys, are pushed"
                );
                self.due = false;
            }
            Err(error) => tracing::error!(error, "a new module or other keys can't be pushed"),
        }
    }

    /// Judges the module that is on its way, and goes on, or back.
    async fn look(&mut self) {
        let Some(mut trial) = self.trial.take() else {
            return;
        };
        let window = self.window();
        let proxies = self.proxies(trial.step);
        match judge::look(&mut trial, &proxies, &self.core.fleet, window) {
            Sight::Well => {}
            Sight::Wait => {
                self.trial = Some(trial);
                return;
            }
            Sight::Fault(fault) => {
                self.back(&trial, &fault).await;
                return;
            }
        }
        let went_on = match trial.step {
            Step::First => self.step(&trial.module, Step::All).await,
            Step::All => self.done(&trial.module).await,
        };
        if !went_on {
            self.trial = Some(trial);
        }
    }

    async fn done(&mut self, module: &Module) -> bool {
        let said = self.say("done", module, "").await;
        if said {
            self.core.warnings.lower(WARNING);
            kept::write(&self.core.config, module);
            self.good = module.clone();
        }
        said
    }

    /// The connected proxies that a step is about.
    fn proxies(&self, step: Step) -> Vec<xds::ProxyStatus> {
        let first = &self.core.config.edge.rollout.first;
        let mut all = self.ads.status();
        all.retain(|proxy| {
            let group = proxy.group.as_ref();
            let concerned = match step {
                Step::First => group.is_some_and(|it| first.contains(it)),
                Step::All => !group.is_some_and(|it| self.pinned.contains_key(it)),
            };
            proxy.connected && concerned
        });
        all
    }

    /// Takes a module back: who has it gets the one before. That one is known to the
    /// log, so a log that takes nothing now does not leave a bad module running.
    async fn back(&mut self, trial: &Trial, fault: &str) {
        let module = &trial.module;
        let text = format!(
            "the module {} was taken back: {fault}",
            called(&module.sha256)
        );
        tracing::error!(sha256 = module.sha256, to = self.good.sha256, "{text}");
        self.core.warnings.raise(WARNING, &text);
        let said = tokio::time::timeout(ENTRY_WITHIN, self.say("back", module, fault)).await;
        if said != Ok(true) {
            tracing::error!("that a module was taken back could not be recorded");
        }
        self.due = true;
    }

    /// An entry for each step.
    async fn say(&self, step: &'static str, module: &Module, why: &str) -> bool {
        let first = &self.core.config.edge.rollout.first;
        let why: String = why.chars().take(WHY_MAX).collect();
        let body = json!({
            "event": step, "module": module.sha256, "before": self.good.sha256,
            "first": first, "why": why,
        });
        let said = note(&self.core, "rollout", body).await;
        if said {
            self.core.metrics.rolled(step);
        }
        said
    }

    async fn say_config(&self, keys: &[String], module: &Module) -> bool {
        let config = &self.core.config;
        let body = json!({ "keys": keys, "module": module.sha256, "config": config.version, "policy": self.core.policies.version(), "exempt": config.edge.exempt.told_to_journal() });
        note(&self.core, "config", body).await
    }
}
