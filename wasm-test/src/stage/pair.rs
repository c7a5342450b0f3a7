//! Two replicas on one PostgreSQL, each with its own Envoy and its own line to
//! the database that can be cut.

use std::path::Path;

use super::Stage;
use crate::Error;
use crate::cut::{Cut, Target};
use crate::postgres::Postgres;
use crate::system::Options;

/// The two; the upstream is the first one's.
#[derive(Debug)]
pub struct Pair {
    /// The replica that was started first.
    pub first: Stage,
    /// The other, with the same keys, names and upstream.
    pub second: Stage,
    /// Their lines to the database.
    pub lines: [Cut; 2],
    /// The database.
    pub postgres: Postgres,
}

impl Pair {
    /// Starts both, with the same options.
    ///
    /// # Errors
    /// When a part can't be started.
    pub async fn start(bin: &Path, options: Options) -> Result<Pair, Error> {
        let postgres = Postgres::start(bin, &[])?;
        let line = || Cut::start(0, Target::Socket(postgres.socket()));
        let lines = [line()?, line()?];
        let [one, two] = [0, 1].map(|index: usize| {
            let port = lines.get(index).map_or(0, Cut::port);
            Options {
                store: Some(Postgres::url_at(port)),
                extra_config: format!(
                    "{}\n[ledger]\nstore_plaintext_loopback = true\n",
                    options.extra_config
                ),
                ..options.clone()
            }
        });
        let first = Stage::start(one).await?;
        let beside = first.system.beside();
        let second = Stage::start(Options {
            beside: Some(beside),
            ..two
        })
        .await?;
        Ok(Pair {
            first,
            second,
            lines,
            postgres,
        })
    }

    /// Waits until good requests pass at both.
    ///
    /// # Errors
    /// When they don't.
    pub async fn recovers(&self) -> Result<(), Error> {
        self.first.recovers().await?;
        self.second.recovers().await
    }

    /// Stops all of it.
    pub async fn stop(self) {
        self.second.stop().await;
        self.first.stop().await;
    }
}
