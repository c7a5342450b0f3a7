//! How a changed module or `[edge]` reaches the proxies: at once, or first those of some
//! groups, then all, each step watched, and taken back by itself when it goes wrong.

mod begin;
mod judge;
mod kept;
mod watched;
mod who;

use super::edge::{self, Module, Pinned, Release};
use crate::edges::called;
use crate::state::Core;
pub use begin::{begin_with, say_pinned};
use judge::{Refusal, Sight};
use ledger::model::Command;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use watched::Watched;
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

/// A module, an `[edge]`, or both, on their way.
struct Trial {
    release: Release,
    /// Whether Envoy is told of other things than another filter.
    config_too: bool,
    /// What proxies refused before it.
    standing: Vec<Refusal>,
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
    fn new(release: Release, good: &Release, step: Step, standing: Vec<Refusal>) -> Self {
        Self {
            config_too: release.edge.version != good.edge.version,
            standing,
            release,
            step,
            since: Instant::now(),
            seen: false,
            looked: Instant::now(),
            missed: Duration::ZERO,
        }
    }
}

/// What proxies run, and the keys that they know.
pub struct Rollout {
    core: Arc<Core>,
    ads: Ads,
    /// What everybody ran before.
    good: Release,
    trial: Option<Trial>,
    pinned: Pinned,
    /// The ids of the keys that are in the journal as known to proxies.
    keys: Vec<String>,
    /// Since when a proxy that is to try things runs what is good: a trial is compared
    /// with that.
    based: Option<Instant>,
    /// The version of an `[edge]` that was taken back since this start.
    spoilt: Option<String>,
    /// Whether Envoy has to be told something.
    due: bool,
}

async fn note(core: &Core, kind: &'static str, body: serde_json::Value) -> bool {
    let committed = core.ledger.commit(Command::Note { kind, body }).await;
    if let Err(error) = &committed {
        tracing::error!(%error, "a new module or other keys could not be recorded, so they are not pushed");
    }
    committed.is_ok()
}

impl Rollout {
    /// Everybody runs `good`, but for the pinned groups.
    pub fn new(core: Arc<Core>, ads: Ads, good: Release, pinned: Pinned) -> Self {
        let keys = edge::kids(&core);
        Self {
            core,
            ads,
            good,
            trial: None,
            pinned,
            keys,
            based: None,
            spoilt: None,
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
        let (show, shown) = watch::channel(Some(self.good.module.sha256.clone()));
        let stop = stop.clone();
        let mut file = Watched {
            path: self.core.config.edge.module.clone(),
            seen: first.modified,
            sha256: first.sha256.clone(),
            waits: None,
        };
        if self.of_files(&first).name() != self.good.name() {
            file.waits = Some(first);
        }
        if self.watched() {
            kept::write(&self.core.config, &self.good);
        } else {
            kept::remove(&self.core.config);
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
                    show.send_replace(Some(self.for_all().module.sha256.clone()));
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

    /// This module, and the config file's `[edge]`; once that was taken back, the good
    /// one: else no other module could be tried before the next start.
    fn of_files(&self, module: &Module) -> Release {
        let file = self.core.edges.file();
        let spoilt = self.spoilt.as_ref() == Some(&file.version);
        Release {
            module: module.clone(),
            edge: if spoilt { &self.good.edge } else { file }.clone(),
        }
    }

    /// A module has come, or the `[edge]` of this start: the first get it, or all.
    /// False when it has to wait.
    async fn take(&mut self, module: &Module) -> bool {
        let release = self.of_files(module);
        if let Some(trial) = self.trial.take() {
            // Nobody knows what that one is worth, and nobody is left with it.
            self.back(&trial, "its file has another one").await;
        }
        if release.name() == self.good.name() {
            self.core.warnings.lower(WARNING);
            return true;
        }
        if !self.watched() {
            let recorded = self.say_config(&self.keys, &release).await;
            if recorded {
                self.good = release;
                self.due = true;
            }
            return recorded;
        }
        if !self.has_base() {
            let text = format!(
                "{} waits until what was good has been watched",
                self.shown(&release)
            );
            self.core.warnings.raise(WARNING, &text);
            return false;
        }
        let there = self.ads.status();
        let is_there = |peer: &str, node: &str| {
            let mut connected = there.iter().filter(|it| it.connected);
            connected.any(|it| it.peer.as_str() == peer && it.node_id == node)
        };
        let fleet = &self.core.fleet;
        let names = self.names(&release);
        fleet.begin(
            |own| names.iter().any(|name| judge::says(own, name)),
            is_there,
        );
        self.step(&release, self.first_step()).await
    }

    /// The entry comes before the push: what runs is never unknown to the log.
    async fn step(&mut self, release: &Release, step: Step) -> bool {
        if step == Step::All && !self.say_config(&self.keys, release).await {
            return false;
        }
        if !self.say(step.word(), release, "").await {
            return false;
        }
        let first = &self.core.config.edge.rollout.first;
        let who = match step {
            Step::First => format!("the groups {}", first.join(", ")),
            Step::All => "all proxies".to_owned(),
        };
        let text = format!("{} is tried on {who}", self.shown(release));
        tracing::info!(
            module = release.module.sha256,
            edge = release.edge.version,
            "{text}"
        );
        self.core.warnings.raise(WARNING, &text);
        let standing = self.ads.status().iter().flat_map(judge::refused).collect();
        self.trial = Some(Trial::new(release.clone(), &self.good, step, standing));
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
    fn for_all(&self) -> &Release {
        match &self.trial {
            Some(trial) if trial.step == Step::All => &trial.release,
            _ => &self.good,
        }
    }

    fn for_group(&self, name: Option<&str>) -> &Release {
        let first = &self.core.config.edge.rollout.first;
        match &self.trial {
            Some(trial) if first.iter().any(|it| Some(it.as_str()) == name) => &trial.release,
            _ => self.for_all(),
        }
    }

    /// What is new in it, for people.
    fn shown(&self, release: &Release) -> String {
        let (module, edge) = (&release.module.sha256, &release.edge.version);
        let other = (
            *module != self.good.module.sha256,
            *edge != self.good.edge.version,
        );
        match other {
            (_, false) => format!("the module {}", called(module)),
            (false, true) => format!("the [edge] {}", called(edge)),
            (true, true) => format!(
                "the module {} with the [edge] {}",
                called(module),
                called(edge)
            ),
        }
    }

    /// Tells each proxy what it should run; what has not changed is not told again.
    fn push(&mut self) {
        let edges = &self.core.edges;
        // Before they are told: a question may come at once.
        edges.set_for_all(self.for_all().edge.version == edges.file().version);
        let groups = self.core.config.edge.groups.iter();
        let groups = groups.map(|it| Some(it.name.as_str()));
        let pushed = groups.chain([None]).try_for_each(|group| {
            let release = self.for_group(group);
            let settings = release.settings_for(&self.core, group, &self.pinned)?;
            let updated = self.ads.update_group(group, &settings);
            updated.map(drop).map_err(|error| error.to_string())
        });
        match pushed {
            Ok(()) => {
                tracing::info!(
                    all = self.for_all().name(),
                    first = self.trial.as_ref().map(|it| it.release.name()),
                    "what proxies run, or the keys that they know, is pushed"
                );
                self.due = false;
            }
            Err(error) => tracing::error!(
                error,
                "a new module or [edge], or other keys, can't be pushed"
            ),
        }
    }

    /// Judges what is on its way, and goes on, or back.
    async fn look(&mut self) {
        let Some(mut trial) = self.trial.take() else {
            return;
        };
        let window = self.window();
        let proxies = self.proxies(trial.step, &trial.release);
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
            Step::First => self.step(&trial.release, Step::All).await,
            Step::All => self.done(&trial.release).await,
        };
        if !went_on {
            self.trial = Some(trial);
        }
    }

    async fn done(&mut self, release: &Release) -> bool {
        let said = self.say("done", release, "").await;
        if said {
            let text = format!(
                "{} is with all proxies, and nothing was wrong",
                self.shown(release)
            );
            tracing::info!("{text}");
            self.core.warnings.lower(WARNING);
            kept::write(&self.core.config, release);
            self.good = release.clone();
        }
        said
    }

    /// Takes it back: who has it gets what was before. That is known to the log, so a
    /// log that takes nothing now does not leave a bad one running.
    async fn back(&mut self, trial: &Trial, fault: &str) {
        let release = &trial.release;
        let text = format!("{} was taken back: {fault}", self.shown(release));
        tracing::error!(release = release.name(), to = self.good.name(), "{text}");
        self.core.warnings.raise(WARNING, &text);
        if release.edge.version != self.good.edge.version {
            self.spoilt = Some(release.edge.version.clone());
        }
        let said = tokio::time::timeout(ENTRY_WITHIN, self.say("back", release, fault)).await;
        if said != Ok(true) {
            tracing::error!("that something was taken back could not be recorded");
        }
        self.due = true;
    }

    /// An entry for each step.
    async fn say(&self, step: &'static str, release: &Release, why: &str) -> bool {
        let first = &self.core.config.edge.rollout.first;
        let why: String = why.chars().take(WHY_MAX).collect();
        let body = json!({
            "event": step,
            "module": release.module.sha256, "before": self.good.module.sha256,
            "edge": release.edge.version, "edge_before": self.good.edge.version,
            "first": first, "why": why,
        });
        let said = note(&self.core, "rollout", body).await;
        if said {
            self.core.metrics.rolled(step);
        }
        said
    }

    async fn say_config(&self, keys: &[String], release: &Release) -> bool {
        let config = &self.core.config;
        let body = json!({
            "keys": keys, "module": release.module.sha256, "edge": release.edge.version,
            "config": config.version, "policy": self.core.policies.version(),
            "exempt": self.core.edges.exempt_for_journal(),
        });
        note(&self.core, "config", body).await
    }
}
