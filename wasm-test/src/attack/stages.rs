//! The systems that rows share, started when the first row needs them.

use std::time::Duration;

use crate::postgres;
use crate::stage::{Pair, Stage};
use crate::system::Options;
use crate::{Error, postgres::POSTGRES};

/// What is running.
pub struct Stages {
    /// How many tokens are raced over replicas.
    pub tokens: usize,
    /// How long the run at full load is.
    pub soak: Duration,
    single: Option<Stage>,
    pair: Option<Pair>,
    varied: Option<Stage>,
}

/// What all stages have in common.
pub fn options() -> Options {
    Options {
        token_lifetime_s: 120,
        hold_s: 3,
        extra_config: "[token]\nproof_window_s = 10\n[limits]\noutstanding_per_agent = 65536\n"
            .to_owned(),
        ..Options::default()
    }
}

impl Stages {
    /// Nothing is running yet.
    pub fn new(tokens: usize, soak: Duration) -> Stages {
        Stages {
            tokens,
            soak,
            single: None,
            pair: None,
            varied: None,
        }
    }

    /// One control plane with two Envoys, behind a line that can be cut.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn single(&mut self) -> Result<&mut Stage, Error> {
        if self.single.is_none() {
            let options = Options {
                envoys: 2,
                cut: true,
                ..options()
            };
            self.single = Some(Stage::start(options).await?);
        }
        self.single
            .as_mut()
            .ok_or_else(|| Error::Unexpected("the stage is gone".to_owned()))
    }

    /// Two replicas on one PostgreSQL, each with an Envoy of four workers.
    ///
    /// # Errors
    /// When it can't be started, or there is no PostgreSQL.
    pub async fn pair(&mut self) -> Result<&mut Pair, Error> {
        if self.pair.is_none() {
            let bin = postgres::find()?.ok_or_else(|| {
                Error::Setup(format!("this row needs PostgreSQL: set {POSTGRES}"))
            })?;
            let options = Options {
                concurrency: 4,
                ..options()
            };
            self.pair = Some(Pair::start(&bin, options).await?);
        }
        self.pair
            .as_mut()
            .ok_or_else(|| Error::Unexpected("the stage is gone".to_owned()))
    }

    /// One Envoy that listens with each setting of its paths as well.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn varied(&mut self) -> Result<&mut Stage, Error> {
        if self.varied.is_none() {
            let options = Options {
                variants: true,
                ..options()
            };
            self.varied = Some(Stage::start(options).await?);
        }
        self.varied
            .as_mut()
            .ok_or_else(|| Error::Unexpected("the stage is gone".to_owned()))
    }

    /// The next good requests pass on whatever is running, and nothing has ended.
    ///
    /// # Errors
    /// When that isn't so.
    pub async fn are_well(&mut self) -> Result<(), Error> {
        let pair = self.pair.as_mut();
        let of_pair = pair.map(|pair| [&mut pair.first, &mut pair.second]);
        let alone = [self.single.as_mut(), self.varied.as_mut()];
        let all = of_pair
            .into_iter()
            .flatten()
            .chain(alone.into_iter().flatten());
        for stage in all {
            if let Some((_, problem)) = stage.system.ended().into_iter().next() {
                return Err(problem);
            }
            stage.recovers().await?;
        }
        Ok(())
    }

    /// Ends everything at once; the next row starts anew.
    pub fn abandon(&mut self) {
        self.pair = None;
        self.single = None;
        self.varied = None;
    }

    /// Ends everything in order.
    pub async fn stop(self) {
        if let Some(pair) = self.pair {
            pair.stop().await;
        }
        for stage in [self.single, self.varied].into_iter().flatten() {
            stage.stop().await;
        }
    }
}
