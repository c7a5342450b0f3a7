//! The Envoys of one control plane.

use std::process::Command;

use serde_json::Value;

use super::{System, wait};
use crate::child::Child;
use crate::{Error, ports};

/// Each with its own admin interface and its own log; `None` is stopped.
#[derive(Debug)]
pub struct Envoys {
    all: Vec<Envoy>,
}

#[derive(Debug)]
struct Envoy {
    admin: u16,
    child: Option<Child>,
}

impl Envoys {
    /// So many that have not been started, at least one.
    ///
    /// # Errors
    /// When no ports are left for their admin interfaces.
    pub fn none(first_admin: u16, count: usize) -> Result<Envoys, Error> {
        let mut all = vec![Envoy {
            admin: first_admin,
            child: None,
        }];
        for _ in 1..count {
            all.push(Envoy {
                admin: ports::one()?,
                child: None,
            });
        }
        Ok(Envoys { all })
    }

    /// How many there are, running or not.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// The port of one's admin interface; 0 when there is no such Envoy.
    pub fn admin_port(&self, index: usize) -> u16 {
        self.all.get(index).map_or(0, |envoy| envoy.admin)
    }

    /// Those that were started and not stopped.
    pub fn running_mut(&mut self) -> impl Iterator<Item = &mut Child> {
        self.all.iter_mut().filter_map(|envoy| envoy.child.as_mut())
    }

    fn pid(&self, index: usize) -> u32 {
        let child = self.all.get(index).and_then(|envoy| envoy.child.as_ref());
        child.map_or(0, Child::pid)
    }
}

impl System {
    /// Starts the Envoys that don't run and waits until each refuses a request
    /// without credentials, which only the filter does.
    ///
    /// # Errors
    /// When one ends or doesn't answer in time.
    pub async fn start_envoy(&mut self) -> Result<(), Error> {
        for index in 0..self.envoys.count() {
            if self.envoys.pid(index) == 0 {
                self.spawn_envoy(index)?;
            }
        }
        let (proxy, threads) = (self.proxy_url(), self.filter_threads());
        let prober = self.prober()?;
        for envoy in &mut self.envoys.all {
            if let Some(child) = &mut envoy.child {
                let admin = format!("http://127.0.0.1:{}", envoy.admin);
                wait::for_guard(child, &prober, &admin, &proxy, threads).await?;
            }
        }
        Ok(())
    }

    /// Starts one Envoy and waits for nothing.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn_envoy(&mut self, index: usize) -> Result<(), Error> {
        let mut command = Command::new(&self.tools.envoy);
        command
            .arg("-c")
            .arg(self.dir.bootstrap_of(index))
            .arg("--concurrency")
            .arg(self.options.concurrency.to_string())
            .arg("--disable-hot-restart")
            .args(&self.options.envoy_args)
            .current_dir(self.dir.path());
        let child = Child::spawn("Envoy", &mut command, &self.dir.envoy_log(index))?;
        if let Some(envoy) = self.envoys.all.get_mut(index) {
            envoy.child = Some(child);
        }
        Ok(())
    }

    /// Ends all Envoys by SIGTERM and waits.
    pub async fn stop_envoy(&mut self) {
        for child in self.envoys.running_mut() {
            child.terminate();
        }
        for envoy in &mut self.envoys.all {
            if let Some(mut child) = envoy.child.take() {
                child.stop().await;
            }
        }
    }

    /// Asks one Envoy to end, by SIGTERM, and waits until it has.
    pub async fn terminate_envoy(&mut self, index: usize) {
        if let Some(envoy) = self.envoys.all.get_mut(index)
            && let Some(mut child) = envoy.child.take()
        {
            child.stop().await;
        }
    }

    /// Ends one Envoy as a crash would, by SIGKILL.
    pub fn kill_envoy(&mut self, index: usize) {
        if let Some(envoy) = self.envoys.all.get_mut(index)
            && let Some(mut child) = envoy.child.take()
        {
            child.kill();
        }
    }

    /// Waits until each Envoy that runs has said of its filter that it takes or
    /// refuses it. A control plane that has started again sends it anew, and a
    /// worker that changes to it has no stream for a moment.
    ///
    /// # Errors
    /// When that takes longer than [`super::START_DEADLINE`].
    pub async fn configured(&self) -> Result<(), Error> {
        let wanted = self.admin_urls().len();
        wait::until("each proxy has its configuration", || async {
            self.proxies_that_answered() >= wanted
        })
        .await
    }

    /// What `writ status --json` says; nothing when it can't be asked.
    pub fn status(&self) -> Value {
        let Ok(output) = self.writ().args(["status", "--json"]).output() else {
            return Value::Null;
        };
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn proxies_that_answered(&self) -> usize {
        let status = self.status();
        let proxies = status.get("proxies").and_then(Value::as_array);
        let answered = |proxy: &&Value| {
            let text = |name: &str| proxy.get(name).and_then(Value::as_str).unwrap_or_default();
            let has_filter = text("detail").contains(" Filter ");
            let connected = proxy.get("connected") == Some(&Value::Bool(true));
            let judged = !text("detail").contains(" Filter none") || !text("problem").is_empty();
            connected && has_filter && judged
        };
        proxies.map_or(0, |all| all.iter().filter(answered).count())
    }

    /// The first Envoy's process id; 0 when it is stopped.
    pub fn envoy_pid(&self) -> u32 {
        self.envoys.pid(0)
    }

    /// Each Envoy's process id; 0 for one that is stopped.
    pub fn envoy_pids(&self) -> Vec<u32> {
        let all = 0..self.envoys.count();
        all.map(|index| self.envoys.pid(index)).collect()
    }

    /// The admin interface of each Envoy that runs.
    pub fn admin_urls(&self) -> Vec<String> {
        let running = self.envoys.all.iter().filter(|it| it.child.is_some());
        let url = |envoy: &Envoy| format!("http://127.0.0.1:{}", envoy.admin);
        running.map(url).collect()
    }
}
