//! How to reach the database, and what is refused before it is tried.

use std::{fmt, str::FromStr, time::Duration};

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::{PostgresError, database::Server};
use crate::{Clock, model::Limits};

/// Fewest connections: a lane for what is spent, one for what humans decide, one
/// that reads, one that keeps house, one that listens.
pub const LEAST_CONNECTIONS: usize = 5;
/// Most connections of one replica.
pub const MOST_CONNECTIONS: usize = 64;

/// How to open a ledger on PostgreSQL; [`PostgresOptions::new`] has the defaults.
#[derive(Clone)]
pub struct PostgresOptions {
    /// `postgres://…`. A password is better kept in a file that PGPASSFILE names.
    pub url: String,
    /// Named limits; all replicas should have the same.
    pub limits: Limits,
    /// The clock. Ledger time is max(last, now).
    pub clock: Clock,
    /// Connections of this replica: 16 unless set, [`LEAST_CONNECTIONS`] to
    /// [`MOST_CONNECTIONS`].
    pub connections: usize,
    /// Commands that may wait: 16,384 unless set.
    pub queue_entries: usize,
    /// Bytes of commands that may wait: 64 MiB unless set.
    pub queue_bytes: usize,
    /// How long a command may wait, a connection take, and a statement run: 2 s
    /// each unless set.
    pub deadline: Duration,
    /// Whether the server must have a synchronous standby.
    pub replicated: bool,
    /// Whether a loopback address may be spoken to without TLS.
    pub plaintext_loopback: bool,
}

impl PostgresOptions {
    /// The defaults, for the database that `url` names.
    #[must_use]
    pub fn new(url: impl Into<String>, clock: Clock) -> Self {
        Self {
            url: url.into(),
            limits: Limits::default(),
            clock,
            connections: 16,
            queue_entries: 16_384,
            queue_bytes: 64 * 1024 * 1024,
            deadline: Duration::from_secs(2),
            replicated: false,
            plaintext_loopback: false,
        }
    }
}

impl fmt::Debug for PostgresOptions {
    // The URL may have a password in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("connections", &self.connections)
            .field("replicated", &self.replicated)
            .finish_non_exhaustive()
    }
}

/// Where to connect, checked.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) server: Server,
    pub(crate) replicated: bool,
    pub(crate) deadline: Duration,
}

impl Target {
    pub(crate) fn new(options: &PostgresOptions) -> Result<Self, PostgresError> {
        let connect = connect_options(&options.url, options.plaintext_loopback)?;
        let deadline_ms = options.deadline.as_millis().max(1).to_string();
        let connect = connect.application_name("writ").options([
            ("statement_timeout", deadline_ms.as_str()),
            ("lock_timeout", deadline_ms.as_str()),
            // A replica that hangs must not keep others from what it locked.
            ("idle_in_transaction_session_timeout", "10000"),
            ("tcp_user_timeout", "10000"),
            ("client_min_messages", "notice"),
        ]);
        Ok(Self {
            server: Server::Postgres(Box::new(connect)),
            replicated: options.replicated,
            deadline: options.deadline,
        })
    }
}

/// Whether it looks like the URL of a database.
#[must_use]
pub fn is_url(text: &str) -> bool {
    text.starts_with("postgres://") || text.starts_with("postgresql://")
}

/// Whether the URL has a password in it, which every process of the machine may
/// read where it is an argument.
#[must_use]
pub fn has_password(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    let asked = rest.split_once('?').map_or("", |(_, query)| query);
    user.contains(':') || asked.split('&').any(|pair| pair.starts_with("password="))
}

/// Reads the URL, and refuses a connection that others could read or answer.
///
/// # Errors
/// [`PostgresError::Url`] and [`PostgresError::Plaintext`], which say what to do.
pub(crate) fn connect_options(
    url: &str,
    plaintext_loopback: bool,
) -> Result<PgConnectOptions, PostgresError> {
    if !is_url(url) {
        return Err(PostgresError::Url(
            "it does not begin with postgres://".into(),
        ));
    }
    // The error of the parser may quote the URL, and with it a password.
    let options = PgConnectOptions::from_str(url)
        .map_err(|_| PostgresError::Url("it cannot be parsed".into()))?;
    let host = options.get_host();
    let socket = options.get_socket().is_some() || host.starts_with('/');
    let verified = matches!(options.get_ssl_mode(), PgSslMode::VerifyFull);
    let loopback = host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    if socket || verified || (loopback && plaintext_loopback) {
        return Ok(options);
    }
    Err(PostgresError::Plaintext { loopback })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_verified_tls_a_socket_or_a_loopback_by_name() {
        // K14.
        let to = |url: &str, loopback| connect_options(url, loopback).map(|_| ());
        for url in [
            "postgres://writ@db.example/writ?sslmode=verify-full",
            "postgres://writ@%2Frun%2Fpostgresql/writ",
            "postgres://writ@localhost/writ?host=/run/postgresql",
        ] {
            assert!(to(url, false).is_ok(), "{url}");
        }
        for url in [
            "postgres://writ@db.example/writ",
            "postgres://writ@db.example/writ?sslmode=disable",
            "postgres://writ@db.example/writ?sslmode=require",
            "postgres://writ@db.example/writ?sslmode=verify-ca",
        ] {
            for loopback in [false, true] {
                let refused = to(url, loopback);
                let plain = matches!(refused, Err(PostgresError::Plaintext { loopback: false }));
                assert!(plain, "{url}: {refused:?}");
            }
        }
        for url in [
            "postgres://writ@127.0.0.1/writ",
            "postgres://writ@[::1]/writ",
        ] {
            assert!(to(url, false).is_err(), "{url}");
            assert!(to(url, true).is_ok(), "{url}");
        }
        assert!(has_password("postgres://writ:secret@db.example/writ"));
        assert!(has_password(
            "postgres://db.example/writ?a=b&password=secret"
        ));
        assert!(!has_password(
            "postgres://writ@db.example/writ?host=/run/a:b@c"
        ));
        let wrong = to("mysql://writ:secret@db.example/writ", false);
        assert!(!format!("{wrong:?}").contains("secret"), "{wrong:?}");
    }
}
