//! A whole system in one state directory: demo upstream, control plane, Envoy.
//!
//! It is started in that order and stopped in the other. Everything it writes
//! lies in the state directory, which only its owner may enter.

mod certified;
mod config;
mod dir;
mod envoys;
mod ready;
mod replica;
mod settled;
mod variants;
mod wait;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::child::Child;
use crate::cut::{Cut, Target};
use crate::ports::{self, Ports};
use crate::tools::Tools;
use crate::upstream::Upstream;
use crate::{Error, client};
use dir::StateDir;
use envoys::Envoys;
pub use ready::{Demo, Pids, Ready, ServeReady};
pub use replica::Beside;
pub use variants::Variant;
pub use wait::until;

/// The SPIFFE ID that any process of this uid attests as.
pub const AGENT: &str = "spiffe://writ.example/agent/demo";
/// The SPIFFE ID of the system's Envoy.
pub const PROXY: &str = "spiffe://writ.example/proxy";

/// How long the control plane and Envoy may take to answer.
pub const START_DEADLINE: Duration = Duration::from_secs(60);

/// What a system should be like; [`Options::default`] is a small one for tests.
#[derive(Clone, Debug)]
pub struct Options {
    /// Ports to take when they are free; else any.
    pub wanted_ports: Option<Ports>,
    /// Envoys on the one control plane. All listen on the same port, and the
    /// kernel gives each connection to one of them.
    pub envoys: usize,
    /// Worker threads of each Envoy.
    pub concurrency: u32,
    /// How long Envoy holds a request for a person, in seconds.
    pub hold_s: u64,
    /// How long a token lives, in seconds.
    pub token_lifetime_s: u64,
    /// The Cedar policy; `None` is the starter policy.
    pub policy: Option<PathBuf>,
    /// More `[[edge.route]]` tables in TOML, in which `{upstream}` stands for the
    /// address of the upstream.
    pub routes: String,
    /// More listeners of Envoy's own, as YAML below `static_resources.listeners`.
    pub listeners: String,
    /// TOML that is laid over the control plane's config, table by table. In it
    /// `{upstream}` stands for the demo upstream's address.
    pub extra_config: String,
    /// More environment for the control plane.
    pub env: Vec<(String, String)>,
    /// The URL of the PostgreSQL database that holds the log; `None` is files.
    pub store: Option<String>,
    /// What agents take the token endpoint's base URL for, where it is not the
    /// control plane's own address.
    pub issuer: Option<String>,
    /// What agents take the guarded origin for, where it is not Envoy's address.
    pub origin: Option<String>,
    /// What it shares with another system, when it is a replica of that.
    pub beside: Option<Beside>,
    /// Whether Envoy's listener demands client certificates, and the token
    /// endpoint is served for them as well.
    pub client_certificates: bool,
    /// Whether its Envoys reach the control plane through a [`System::cut`].
    pub cut: bool,
    /// Whether its Envoys have a [`Variant`] of each kind as well.
    pub variants: bool,
    /// Whether its Envoys have a listener whose guard is what
    /// [`System::write_guard`] has written; that has to be done before one starts.
    pub guard_from_file: bool,
    /// Whether its Envoys have a listener whose route turns the guard off.
    pub unguarded: bool,
    /// Whether its Envoys have a listener of somebody else's, with the guard from
    /// the control plane.
    pub own_listener: bool,
    /// The filter's module; `None` is the one that the environment names.
    pub module: Option<PathBuf>,
    /// More arguments for Envoy.
    pub envoy_args: Vec<String>,
    /// Whether the upstream keeps a log.
    pub upstream_log: bool,
    /// Whether the state directory stays when the system has stopped.
    pub keep: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            wanted_ports: None,
            envoys: 1,
            concurrency: 2,
            hold_s: 5,
            token_lifetime_s: 30,
            policy: None,
            routes: String::new(),
            listeners: String::new(),
            extra_config: String::new(),
            env: Vec::new(),
            store: None,
            issuer: None,
            origin: None,
            beside: None,
            client_certificates: false,
            cut: false,
            variants: false,
            guard_from_file: false,
            unguarded: false,
            own_listener: false,
            module: None,
            envoy_args: Vec::new(),
            upstream_log: true,
            keep: false,
        }
    }
}

/// A running system. Dropping it stops all of it.
// Fields drop in their order, which is the order in which parts must stop.
#[derive(Debug)]
pub struct System {
    envoys: Envoys,
    cut: Option<Cut>,
    control_plane: Option<Child>,
    upstream: Option<Upstream>,
    serve: ServeReady,
    ports: Ports,
    // The token endpoint for client certificates, when it is served.
    mtls_port: u16,
    variants: Vec<Variant>,
    options: Options,
    tools: Tools,
    dir: StateDir,
}

impl System {
    /// Starts everything and returns once all of it answers. `say` is told
    /// each step as it begins.
    ///
    /// # Errors
    /// When a part can't be started or doesn't answer within
    /// [`START_DEADLINE`]; what had been started is stopped.
    pub async fn start(
        tools: &Tools,
        options: Options,
        say: &mut (dyn FnMut(&str) + Send),
    ) -> Result<System, Error> {
        let dir = StateDir::create(&tools.root, options.keep)?;
        let ports = ports::free(options.wanted_ports)?;
        let mtls_port = match options.client_certificates {
            true => ports::one()?,
            false => 0,
        };
        let mut system = System {
            envoys: Envoys::none(ports.admin, options.envoys)?,
            cut: None,
            control_plane: None,
            upstream: None,
            serve: ServeReady::default(),
            ports,
            mtls_port,
            variants: Vec::new(),
            options,
            tools: tools.clone(),
            dir,
        };
        if let Some(beside) = &system.options.beside {
            beside.copy_keys(&system.dir.data())?;
        }
        if system.options.cut {
            system.cut = Some(Cut::start(0, Target::Port(ports.grpc))?);
        }
        if system.options.variants {
            system.variants = variants::all()?;
        }
        if system.options.guard_from_file {
            system.variants.push(variants::one(true, false)?);
        }
        if system.options.unguarded {
            system.variants.push(variants::one(false, true)?);
        }
        if system.options.own_listener {
            system.variants.push(variants::one(false, false)?);
        }
        config::write(&system)?;
        if system.options.beside.is_none() {
            say("starting the demo upstream");
            let log = system.dir.upstream_log();
            let log = system.options.upstream_log.then_some(log.as_path());
            system.upstream = Some(Upstream::start(ports.upstream, log)?);
        }
        say("starting the control plane");
        system.start_control_plane().await?;
        say("starting Envoy");
        system.start_envoy().await?;
        system.dir.started();
        Ok(system)
    }

    /// As [`System::start`] with the tools that the environment names and
    /// without telling anybody: what tests call.
    ///
    /// # Errors
    /// As [`System::start`], and when the environment names no tools.
    pub async fn for_test(options: Options) -> Result<System, Error> {
        System::start(&Tools::from_env()?, options, &mut |_| {}).await
    }

    /// Stops Envoy, then the control plane, then the upstream.
    pub async fn stop(mut self) {
        self.stop_envoy().await;
        self.stop_control_plane().await;
        self.upstream = None;
    }

    /// Starts the control plane (again), on the same ports and data.
    ///
    /// # Errors
    /// When it ends or doesn't answer in time.
    pub async fn start_control_plane(&mut self) -> Result<(), Error> {
        let ready_file = self.dir.serve_ready();
        // The one of the run before would look like this run's.
        drop(std::fs::remove_file(&ready_file));
        let mut command = Command::new(&self.tools.writ);
        command
            .arg("serve")
            .arg("--config")
            .arg(self.dir.config())
            .arg("--ready-file")
            .arg(&ready_file)
            // Whoever runs this may have a database of their own in mind.
            .env_remove("WRIT_STORE")
            .envs(self.options.env.iter().map(|(k, v)| (k, v)))
            .current_dir(self.dir.path());
        if let Some(url) = &self.options.store {
            command.arg("--store").arg(url);
        }
        let mut child = Child::spawn(
            "the control plane",
            &mut command,
            &self.dir.log("control-plane"),
        )?;
        let serve = wait::for_ready_file(&mut child, &ready_file).await;
        // Kept also when it isn't ready, so that it is stopped with the rest.
        self.control_plane = Some(child);
        self.serve = serve?;
        Ok(())
    }

    /// Ends the control plane by SIGTERM and waits.
    pub async fn stop_control_plane(&mut self) {
        if let Some(mut child) = self.control_plane.take() {
            child.stop().await;
        }
    }

    /// Ends the control plane as a crash would, by SIGKILL.
    pub fn kill_control_plane(&mut self) {
        if let Some(mut child) = self.control_plane.take() {
            child.kill();
        }
    }

    /// Stops the control plane and starts it again.
    ///
    /// # Errors
    /// As [`System::start_control_plane`].
    pub async fn restart_control_plane(&mut self) -> Result<(), Error> {
        self.stop_control_plane().await;
        self.start_control_plane().await
    }

    /// The processes that have ended without being stopped, each with an
    /// error that has its last lines.
    pub fn ended(&mut self) -> Vec<(&'static str, Error)> {
        self.control_plane
            .iter_mut()
            .chain(self.envoys.running_mut())
            .filter_map(|child| {
                child
                    .still_running()
                    .err()
                    .map(|error| (child.name(), error))
            })
            .collect()
    }

    /// An agent with a fresh DPoP key.
    ///
    /// # Errors
    /// When the Workload API can't be reached.
    pub async fn agent(&self) -> Result<client::Agent, Error> {
        let agent =
            client::Agent::connect(&self.issuer(), &self.origin(), &self.workload_api()).await?;
        let agent = agent.with_client(self.prober()?);
        // What it signs says one thing, and where it connects may be another.
        Ok(agent.by_way_of(&self.http_url(), &self.proxy_url()))
    }

    /// Signs an approver in with the login link of the control plane's start,
    /// which works once.
    ///
    /// # Errors
    /// When the link is refused.
    pub async fn approver(&self) -> Result<client::Approver, Error> {
        client::Approver::login_at(&self.serve.approver_login, &self.http_url()).await
    }

    /// As [`System::approver`], for who takes rights away.
    ///
    /// # Errors
    /// When the link is refused.
    pub async fn operator(&self) -> Result<client::Operator, Error> {
        client::Operator::login_at(&self.serve.approver_login, &self.http_url()).await
    }

    /// What the ready file says.
    pub fn ready(&self) -> Ready {
        let env = BTreeMap::from([
            ("WRIT_ISSUER".to_owned(), self.issuer()),
            (
                "WRIT_WORKLOAD_API".to_owned(),
                display(&self.workload_api()),
            ),
            ("WRIT_CONFIG".to_owned(), display(&self.dir.config())),
            (
                "WRIT_ADMIN_SOCKET".to_owned(),
                display(&self.admin_socket()),
            ),
            (
                "SPIFFE_ENDPOINT_SOCKET".to_owned(),
                format!("unix:{}", self.workload_api().display()),
            ),
        ]);
        Ready {
            issuer: self.issuer(),
            proxy: self.proxy_url(),
            ui: self.serve.ui.clone(),
            envoy_admin: self.admin_url(),
            workload_api: self.workload_api(),
            admin_socket: self.admin_socket(),
            audit_dir: self.audit_dir(),
            approver_login: self.serve.approver_login.clone(),
            writ: self.tools.writ.clone(),
            env,
            pids: Pids {
                control_plane: self.control_plane_pid(),
                envoy: self.envoy_pid(),
            },
            demo: Demo {
                agent: AGENT.to_owned(),
                allowed: crate::upstream::REPORT.to_owned(),
                denied: crate::upstream::KEYS.to_owned(),
                held: crate::upstream::PAYROLL.to_owned(),
                upstream_log: self.dir.upstream_log(),
            },
        }
    }

    /// Where its parts listen.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// The token endpoint's base URL; replicas share it.
    pub fn issuer(&self) -> String {
        let beside = self.options.beside.as_ref().map(|it| &it.issuer);
        let named = beside.or(self.options.issuer.as_ref());
        named.map_or_else(|| self.http_url(), ToOwned::to_owned)
    }

    /// The guarded origin; replicas share it.
    pub fn origin(&self) -> String {
        let beside = self.options.beside.as_ref().map(|it| &it.origin);
        let named = beside.or(self.options.origin.as_ref());
        named.map_or_else(|| self.proxy_url(), ToOwned::to_owned)
    }

    /// Where this control plane itself answers.
    pub fn http_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.http)
    }

    /// Where this system's Envoys listen.
    pub fn proxy_url(&self) -> String {
        let scheme = match self.options.client_certificates {
            true => "https",
            false => "http",
        };
        format!("{scheme}://127.0.0.1:{}", self.ports.proxy)
    }

    /// Envoy's admin interface.
    pub fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.admin)
    }

    /// The Workload API's socket.
    pub fn workload_api(&self) -> PathBuf {
        self.dir.socket("workload.sock")
    }

    /// The control plane's local command socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.dir.socket("admin.sock")
    }

    /// What `writ audit` reads: the journal's directory, or the database's URL.
    pub fn audit_dir(&self) -> PathBuf {
        let url = || self.options.store.clone().unwrap_or_default().into();
        self.serve.audit_dir.clone().unwrap_or_else(url)
    }

    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        self.dir.path()
    }

    /// The module file that the control plane reads; replacing its content
    /// pushes a new module.
    pub fn module_file(&self) -> PathBuf {
        self.dir.module()
    }

    /// What the control plane said when it was ready.
    pub fn serve_ready(&self) -> &ServeReady {
        &self.serve
    }

    /// The control plane's process id; 0 when it is stopped.
    pub fn control_plane_pid(&self) -> u32 {
        self.control_plane.as_ref().map_or(0, Child::pid)
    }

    /// The demo upstream.
    ///
    /// # Errors
    /// When it has been stopped, or is the first replica's.
    pub fn upstream(&self) -> Result<&Upstream, Error> {
        self.upstream
            .as_ref()
            .ok_or_else(|| Error::Setup("the upstream is not this system's, or stopped".to_owned()))
    }

    /// What stands between Envoy and the control plane.
    ///
    /// # Errors
    /// When [`Options::cut`] was not set.
    pub fn cut(&self) -> Result<&Cut, Error> {
        self.cut
            .as_ref()
            .ok_or_else(|| Error::Setup("nothing stands before the control plane".to_owned()))
    }

    /// The listeners beside its own, when [`Options::variants`] was set.
    pub fn variants(&self) -> &[Variant] {
        &self.variants
    }

    /// The log file of a part: `control-plane` or `envoy`.
    pub fn log(&self, part: &str) -> PathBuf {
        self.dir.log(part)
    }

    /// The programs it runs.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// A `writ` command with the environment that finds this system.
    pub fn writ(&self) -> Command {
        let mut command = Command::new(&self.tools.writ);
        command
            .env_remove("WRIT_STORE")
            .envs(self.ready().env)
            .env("HOME", self.dir.path())
            .current_dir(self.dir.path());
        command
    }
}

fn display(path: &Path) -> String {
    path.display().to_string()
}
