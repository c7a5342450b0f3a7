//! What can be wrong with a database, by what has to be done about it.

/// Why a database is not used. Nothing was committed for anybody by it.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// Not a connection string.
    #[error("the store's URL is not a PostgreSQL URL: {0}")]
    Url(String),
    /// Others could read the connection, or answer for the server.
    #[error("{}", plaintext(*.loopback))]
    Plaintext {
        /// Whether it is a loopback address, for which there is a key.
        loopback: bool,
    },
    /// A number that cannot be.
    #[error("{what} is {value}: it must be {least} to {most}")]
    Number {
        /// Which.
        what: &'static str,
        /// What it is.
        value: usize,
        /// The least that it may be.
        least: usize,
        /// The most.
        most: usize,
    },
    /// The server does not keep what it acknowledges, or cannot be written.
    #[error("the server's {name} is {value:?}: {todo}")]
    Setting {
        /// The setting's name.
        name: &'static str,
        /// What it is.
        value: String,
        /// What to do.
        todo: &'static str,
    },
    /// The tables are not this version's.
    #[error(
        "the database's tables cannot be brought up to date: {0}; use the version that wrote them, or an empty database"
    )]
    Schema(#[source] sqlx::migrate::MigrateError),
    /// What a table holds is not what this version writes.
    #[error(
        "the database holds what cannot be read: {0}; it was written by another version, or changed"
    )]
    Content(String),
    /// It cannot be reached, does not answer in time, or said no.
    #[error("the database cannot be used: {0}")]
    Database(#[source] sqlx::Error),
    /// It is not known whether the epoch was begun; the next start finds out.
    #[error("it is not known whether the epoch was begun: start again")]
    Unknown,
    /// It is not what the connection was checked against.
    #[error(
        "the database is not the one that was checked: its place, its epoch or its log changed"
    )]
    Moved,
    /// It did not answer within the deadline.
    #[error("the database did not answer within {0:?}")]
    Slow(std::time::Duration),
}

fn plaintext(loopback: bool) -> String {
    let more = if loopback {
        ", or, for a loopback address, set ledger.store_plaintext_loopback"
    } else {
        ""
    };
    format!(
        "the connection is not verified TLS: add sslmode=verify-full (and sslrootcert=FILE), \
         or use a Unix socket (host=/DIRECTORY){more}"
    )
}

impl From<sqlx::Error> for PostgresError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::Decode(error) => Self::Content(error.to_string()),
            other => Self::Database(other),
        }
    }
}

impl From<serde_json::Error> for PostgresError {
    fn from(error: serde_json::Error) -> Self {
        Self::Content(error.to_string())
    }
}

/// What an error of a statement before COMMIT means: the transaction is rolled back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Others were in the way: the same again may do.
    Conflict,
    /// The server refused what was in it: the commands are to blame, or one of them.
    Command,
    /// The connection or the server.
    Store,
}

pub(crate) fn fault(error: &sqlx::Error) -> Fault {
    let Some(code) = error.as_database_error().and_then(|e| e.code()) else {
        return Fault::Store;
    };
    match code.as_ref() {
        // Serialization, deadlock, unique violation (somebody else was first), lock timeout.
        "40001" | "40P01" | "23505" | "55P03" => Fault::Conflict,
        code if ["22", "23", "54"]
            .iter()
            .any(|class| code.starts_with(class)) =>
        {
            Fault::Command
        }
        _ => Fault::Store,
    }
}

/// Whether an error in answer to COMMIT says for sure that nothing was committed.
pub(crate) fn is_rolled_back(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(|e| e.code())
        .is_some_and(|code| matches!(code.as_ref(), "40001" | "40P01"))
}

/// Whether an error says that the transaction had failed before it.
pub(crate) fn is_aborted(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    code.is_some_and(|code| code == "25P02")
}
