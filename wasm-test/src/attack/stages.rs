//! The systems that rows share, started when the first row needs them.

use std::time::Duration;

use super::certificates::Guarded;
use super::forge::Forger;
use super::minting::Minting;
use crate::postgres;
use crate::stage::{Pair, Stage};
use crate::system::Options;
use crate::{Error, postgres::POSTGRES};

/// The policy of the stage whose routes read bodies, below the repository's root.
const BODIES_POLICY: &str = "wasm-test/tests/e2e_edge/bodies.cedar";

/// A path of the route that asks for nonces, on the stages that have one.
pub const ASKS: &str = "/echo/asks/a";
/// That route.
const ASKING: &str = r#"
[[edge.route]]
name = "asks"
path_prefix = "/echo/asks"
upstream = "{upstream}"
nonce = true
"#;
/// Where nonces are waited out: each is told for so many seconds.
const SOON: &str = "[edge]\nnonce_s = 4\n";

/// What is running.
pub struct Stages {
    /// How many tokens are raced over replicas.
    pub tokens: usize,
    /// How many tokens are raced over two Envoys.
    pub rounds: usize,
    /// How many minutes the soak and the outage last; 0 is a short one of each.
    pub minutes: u64,
    /// How many proxies come back at once.
    pub proxies: usize,
    single: Option<Stage>,
    bodies: Option<Stage>,
    pair: Option<Pair>,
    guarded: Option<Guarded>,
    varied: Option<Stage>,
    named: Option<Named>,
    minting: Option<Minting>,
}

/// A system whose names are not where it listens, and what forges for it.
pub struct Named {
    /// It.
    pub stage: Stage,
    /// What has its keys.
    pub forger: Forger,
}

/// What all stages have in common.
pub fn options() -> Options {
    Options {
        token_lifetime_s: 120,
        hold_s: 3,
        extra_config: "[token]\nproof_window_s = 10\n[limits]\noutstanding_per_agent = 65536\n\
            exchanges_per_agent = 1000000\nexchanges_per_owner = 1000000\n"
            .to_owned(),
        ..Options::default()
    }
}

impl Stages {
    /// Nothing is running yet.
    pub fn new(tokens: usize) -> Stages {
        Stages {
            tokens,
            rounds: 500,
            minutes: 0,
            proxies: 2,
            single: None,
            bodies: None,
            pair: None,
            guarded: None,
            varied: None,
            named: None,
            minting: None,
        }
    }

    /// How long the soak and the outage last; none is a short one.
    pub fn lasts(&self) -> Duration {
        Duration::from_secs(self.minutes.saturating_mul(60))
    }

    /// One control plane with two Envoys, behind a line that can be cut.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn single(&mut self) -> Result<&mut Stage, Error> {
        if self.single.is_none() {
            let mut options = Options {
                envoys: 2,
                cut: true,
                routes: ASKING.to_owned(),
                ..options()
            };
            // Row A40 makes a key old.
            options.extra_config += "[keys]\nrotate_every_days = 1\n";
            options.extra_config += SOON;
            self.single = Some(Stage::start(options).await?);
        }
        self.single
            .as_mut()
            .ok_or_else(|| Error::Unexpected("the stage is gone".to_owned()))
    }

    /// As [`Stages::single`], with routes that read bodies.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn bodies(&mut self) -> Result<&mut Stage, Error> {
        if self.bodies.is_none() {
            let mut options = Options {
                envoys: 2,
                cut: true,
                routes: super::bodies::ROUTES.to_owned(),
                policy: Some(crate::tools::root().join(BODIES_POLICY)),
                ..options()
            };
            options
                .extra_config
                .push_str("[edge]\nbody_deadline_ms = 2000\ndecision_deadline_ms = 8000\n");
            self.bodies = Some(Stage::start(options).await?);
        }
        self.bodies
            .as_mut()
            .ok_or_else(|| Error::Unexpected("the stage is gone".to_owned()))
    }

    /// One Envoy behind the names that `capability`'s own tests have: the origin
    /// is https, as where something in front of Envoy ends TLS.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn named(&mut self) -> Result<&mut Named, Error> {
        if self.named.is_none() {
            let options = Options {
                issuer: Some("https://issuer.example".to_owned()),
                origin: Some("https://tools.example".to_owned()),
                extra_config: "[limits]\noutstanding_per_agent = 65536\n\
                    exchanges_per_agent = 1000000\nexchanges_per_owner = 1000000\n"
                    .to_owned(),
                hold_s: 1,
                routes: ASKING.to_owned(),
                ..Options::default()
            };
            let stage = Stage::start(options).await?;
            let forger = Forger::of(&stage.system)?;
            self.named = Some(Named { stage, forger });
        }
        self.named
            .as_mut()
            .ok_or_else(|| Error::Unexpected("the stage is gone".to_owned()))
    }

    /// One Envoy that demands client certificates.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn guarded(&mut self) -> Result<&mut Guarded, Error> {
        if self.guarded.is_none() {
            self.guarded = Some(Guarded::start(options()).await?);
        }
        self.guarded
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
                routes: ASKING.to_owned(),
                ..options()
            };
            self.pair = Some(Pair::start(&bin, options).await?);
        }
        self.pair
            .as_mut()
            .ok_or_else(|| Error::Unexpected("the stage is gone".to_owned()))
    }

    /// One Envoy, and a token endpoint that knows users and a client.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn minting(&mut self) -> Result<&mut Minting, Error> {
        if self.minting.is_none() {
            self.minting = Some(Minting::start(options()).await?);
        }
        self.minting
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
        let named = self.named.as_mut().map(|named| &mut named.stage);
        let all = of_pair.into_iter().flatten();
        let all = all
            .chain(self.single.as_mut())
            .chain(self.bodies.as_mut())
            .chain(self.varied.as_mut())
            .chain(named)
            .chain(self.minting.as_mut().map(|it| &mut it.stage));
        for stage in all {
            if let Some((_, problem)) = stage.system.ended().into_iter().next() {
                return Err(problem);
            }
            stage.recovers().await?;
        }
        if let Some(guarded) = &mut self.guarded {
            if let Some((_, problem)) = guarded.stage.system.ended().into_iter().next() {
                return Err(problem);
            }
            guarded.recovers().await?;
        }
        Ok(())
    }

    /// Ends everything at once; the next row starts anew.
    pub fn abandon(&mut self) {
        self.pair = None;
        self.single = None;
        self.varied = None;
        self.bodies = None;
        self.named = None;
        self.minting = None;
        self.guarded = None;
    }

    /// Ends everything in order.
    pub async fn stop(self) {
        if let Some(pair) = self.pair {
            pair.stop().await;
        }
        if let Some(named) = self.named {
            named.stage.stop().await;
        }
        if let Some(minting) = self.minting {
            minting.stage.stop().await;
        }
        for stage in [self.single, self.bodies, self.varied]
            .into_iter()
            .flatten()
        {
            stage.stop().await;
        }
        if let Some(guarded) = self.guarded {
            guarded.stage.stop().await;
        }
    }
}
