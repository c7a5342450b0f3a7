//! The command line. Data goes to stdout, messages to stderr. Exit codes: 0 done,
//! 1 refused or damaged, 2 could not be done or misused.

#[macro_use]
mod print;

mod approval;
mod approvals;
mod audit;
mod call;
mod completion;
mod edge;
mod keys;
mod ledger;
mod links;
mod local;
mod policy;
mod rights;
mod sidecar;
mod stops;
mod token;

use clap::{Args, CommandFactory, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// `writ`: one action, one token, once.
#[derive(Parser)]
#[command(
    name = "writ",
    version,
    about = "One action, one token, once",
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the control plane
    #[command(after_help = "Example:\n  writ serve --config /etc/writ/writ.toml")]
    Serve(Serve),
    /// Make one call as an agent: identity, exchange, proof, request
    #[command(
        after_help = "Examples:\n  writ call http://127.0.0.1:8400/files/report.txt\n  writ call -X POST -d '{\"a\":1}' URL\n\nExit codes: 0 answered with 2xx or 3xx, 1 refused or answered with an error, 2 not sent or unknown."
    )]
    Call(call::Call),
    /// Get a token for one action, and a proof to show with it
    Token(token::Token),
    /// Be a proxy on this machine for an agent that knows nothing of Writ
    #[command(
        after_help = "Example:\n  writ sidecar --listen 127.0.0.1:8401 --target http://127.0.0.1:8400\n  curl http://127.0.0.1:8401/files/report.txt\n\nA request to http://127.0.0.1:8401/PATH goes to TARGET/PATH with a token of its own. Exit codes: 0 stopped by a signal, 2 it could not start."
    )]
    Sidecar(sidecar::Sidecar),
    /// List approvals, and decide them with a human's session
    Approvals {
        #[command(subcommand)]
        command: approvals::Approvals,
    },
    /// Sign in with a login link, read from standard input, so that this terminal may approve
    Login(approvals::Login),
    /// Make a login link for an administrator or an approver, as root or the control plane's user; or one for yourself
    #[command(
        after_help = "Example:\n  writ login-link --as bob@example.com\n\nHand it to that person and to nobody else: it signs in once, within ten minutes."
    )]
    LoginLink(links::LoginLink),
    /// What runs, as the control plane on this machine sees it
    Status(approvals::Status),
    /// The audit log
    Audit {
        #[command(subcommand)]
        command: audit::Audit,
    },
    /// The ledger's journal: look at it, verify it, restore it
    Ledger {
        #[command(subcommand)]
        command: ledger::Ledger,
    },
    /// Try to open listings, for `writ serve`
    #[command(name = crate::serve::probe::SUBCOMMAND, hide = true)]
    ProbeListings {
        /// Their directory
        dir: PathBuf,
    },
    /// The keys that sign tokens
    Keys {
        #[command(subcommand)]
        command: keys::Keys,
    },
    /// The registry of agents
    Agents {
        #[command(subcommand)]
        command: rights::Agents,
    },
    /// Take rights away at once: an agent's, an owner's, a user's, a key's, everybody's
    Revoke(rights::Revoke),
    /// What is stopped
    Stops(stops::Stops),
    /// Policy
    Policy {
        #[command(subcommand)]
        command: policy::Policy,
    },
    /// What Envoy runs on
    Edge {
        #[command(subcommand)]
        command: edge::Edge,
    },
    /// Print what makes a shell complete `writ` commands and options
    #[command(
        after_help = "Examples:\n  writ completion bash > /etc/bash_completion.d/writ\n  writ completion zsh > \"${fpath[1]}/_writ\"\n  writ completion fish > ~/.config/fish/completions/writ.fish\n\nOr for this shell alone: source <(writ completion bash)"
    )]
    Completion(completion::Completion),
}

#[derive(Args)]
struct Serve {
    /// The config file
    #[arg(
        long,
        value_name = "FILE",
        env = "WRIT_CONFIG",
        default_value = "/etc/writ/writ.toml"
    )]
    config: PathBuf,
    /// A PostgreSQL database that holds the log, in place of ledger.store; a password goes into the file that PGPASSFILE names
    #[arg(long, value_name = "URL", env = "WRIT_STORE", hide_env_values = true, value_parser = store_url)]
    store: Option<String>,
    /// Say as JSON in FILE (mode 0600) where everything is, once it answers
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Print a one-time login link for the approver's page
    #[arg(long)]
    login_link: bool,
    /// Check the config and the policy, say what is wrong, and start nothing
    #[arg(long)]
    check: bool,
    /// Log as JSON lines
    #[arg(long)]
    log_json: bool,
}

/// Exit code of a refusal, or of damage that was found.
pub(crate) const REFUSED: u8 = 1;
/// Exit code of what could not be done.
pub(crate) const FAILED: u8 = 2;

/// The command line's shape: what docs/reference/cli.md is tested against.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command line.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // One provider for the whole process, before anything makes a TLS session.
    if rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .is_err()
    {
        return fail("the TLS provider was set up twice");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("can't start: {error}")),
    };
    let code = runtime.block_on(run(cli.command));
    runtime.shutdown_background();
    code
}

async fn run(command: Command) -> ExitCode {
    match command {
        Command::Serve(serve) => run_serve(serve).await,
        Command::Call(call) => call.run().await,
        Command::Token(token) => token.run().await,
        Command::Sidecar(sidecar) => sidecar.run().await,
        Command::Approvals { command } => command.run().await,
        Command::Login(login) => login.run().await,
        Command::LoginLink(link) => link.run().await,
        Command::Status(status) => status.run().await,
        Command::Audit { command } => command.run().await,
        Command::Ledger { command } => command.run().await,
        Command::ProbeListings { dir } => crate::serve::probe::run(&dir),
        Command::Keys { command } => command.run().await,
        Command::Agents { command } => command.run().await,
        Command::Revoke(revoke) => revoke.run().await,
        Command::Stops(stops) => stops.run().await,
        Command::Policy { command } => command.run(),
        Command::Edge { command } => command.run(),
        Command::Completion(completion) => completion.run(),
    }
}

async fn run_serve(serve: Serve) -> ExitCode {
    log_to_stderr(serve.log_json);
    if serve.check {
        return policy::check_config(crate::config::Config::read_to_serve(&serve.config));
    }
    let options = crate::serve::ServeOptions {
        config: serve.config,
        ready_file: serve.ready_file,
        print_login: serve.login_link,
        store: serve.store,
    };
    match crate::serve::serve(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error.to_string()),
    }
}

/// A database's URL as an argument: arguments are everybody's to read.
pub(crate) fn store_url(text: &str) -> Result<String, String> {
    if !::ledger::postgres::is_url(text) {
        return Err("it does not begin with postgres://".into());
    }
    if ::ledger::postgres::has_password(text) {
        return Err(
            "it has a password in it, which every process may read: name a file in PGPASSFILE"
                .into(),
        );
    }
    Ok(text.to_owned())
}

fn log_to_stderr(json: bool) {
    let wanted = std::env::var("WRIT_LOG")
        .ok()
        .filter(|text| !text.is_empty());
    let parsed = wanted.map(|text| text.parse::<tracing_subscriber::EnvFilter>());
    let (filter, problem) = match parsed {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => ("info".into(), Some(error)),
        None => ("info".into(), None),
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if json {
        subscriber.json().init();
    } else {
        // A log file has no use for colours, and attacker bytes must not make any.
        subscriber.with_ansi(false).init();
    }
    if let Some(error) = problem {
        tracing::warn!("WRIT_LOG is not understood ({error}); logging at info");
    }
}

/// Says what could not be done.
pub(crate) fn fail(message: &str) -> ExitCode {
    eprintln!("writ: {message}");
    ExitCode::from(FAILED)
}

/// Says what was refused.
pub(crate) fn refuse(message: &str) -> ExitCode {
    eprintln!("writ: {message}");
    ExitCode::from(REFUSED)
}

/// What agents sent, as a terminal may show it: nothing that acts, hides or moves.
pub(crate) fn plain(text: &str) -> String {
    let mut is_hidden = crate::hidden::hiding();
    text.chars()
        .map(|c| if is_hidden(c) { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn a_terminal_is_shown_nothing_hidden() {
        for (text, shown) in [
            ("GET /a?b=é 日本 ~", "GET /a?b=é 日本 ~"),
            ("a\u{1b}[2Jb\tc\u{7f}", "a\u{fffd}[2Jb\u{fffd}c\u{fffd}"),
            ("pay \u{202e}001\u{202c} to", "pay \u{fffd}001\u{fffd} to"),
            ("a\u{200b}b\u{2066}c\u{2069}", "a\u{fffd}b\u{fffd}c\u{fffd}"),
            ("a\u{2028}b\u{feff}c", "a\u{fffd}b\u{fffd}c"),
            ("\u{e0041}\u{e007f}.\u{a0}", "\u{fffd}\u{fffd}.\u{fffd}"),
            ("e\u{301}\u{302}\u{303}", "e\u{301}\u{302}\u{fffd}"),
        ] {
            assert_eq!(plain(text), shown, "{}", text.escape_unicode());
        }
    }
}
