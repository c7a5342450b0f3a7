//! The one stream to the control plane: opened on the tick, greeted, and opened
//! again when it ends. Everything here needs the root context in force.

use crate::host::{self, Upstream};
use decision_api::from_filter::Message as Body;
use decision_api::{FromFilter, Hello, PROTOCOL, Welcome};
use prost::Message;

const SERVICE: &str = "writ.decision.v1.Decisions";
const METHOD: &str = "Stream";
/// A peer that has not said Welcome after this is given up; milliseconds.
const WELCOME_WITHIN_MS: u64 = 2_000;
/// The pause after the first failure, doubled up to the ceiling; milliseconds.
const RETRY_FLOOR_MS: u64 = 50;
const RETRY_CEILING_MS: u64 = 1_000;
/// A peer that has welcomed us and then says nothing for so long is given up;
/// milliseconds. It sends a heartbeat about each second.
const SILENCE_MS: u64 = 3_000;
/// A tick that comes late counts as at most so much silence; milliseconds. What
/// the peer said meanwhile may not have been read either.
const TICK_COUNTS_MS: u64 = 400;
/// A prefix has exactly this many bytes.
const PREFIX_BYTES: usize = 16;
/// Nonces that are kept, and letters of one.
const NONCES_MAX: usize = 4;
const NONCE_MAX: usize = 128;

/// What stands between this VM context and the control plane.
pub struct Stream {
    link: Link,
    retry_ms: u64,
    prefix: Vec<u8>,
    /// Those that the peer says are good now. Without a stream there are none.
    nonces: Vec<String>,
    heard_ms: u64,
    silence: Silence,
    /// The last stream ended in silence, and no other is up yet.
    fell_silent: bool,
}

/// How long the peer has said nothing. Ticks are counted, each by what the host's
/// clock says of it: no less than its period, so that a clock that is set back
/// hides nothing, and not much more, so that one that jumps, a machine that slept or
/// a thread that was busy is not taken for a peer that is silent.
#[derive(Default)]
struct Silence {
    for_ms: u64,
    ticked_ms: Option<u64>,
}

impl Silence {
    fn tick(&mut self, period_ms: u64, here_ms: Option<u64>) -> u64 {
        let before_ms = std::mem::replace(&mut self.ticked_ms, here_ms);
        let passed_ms = here_ms
            .zip(before_ms)
            .map_or(0, |(now_ms, before_ms)| now_ms.saturating_sub(before_ms));
        let counted_ms = passed_ms.min(TICK_COUNTS_MS).max(period_ms);
        self.for_ms = self.for_ms.saturating_add(counted_ms);
        self.for_ms
    }
}

#[derive(Clone, Copy)]
enum Link {
    Down { retry_at_ms: u64 },
    Greeting { stream: u32, since_ms: u64 },
    Up { stream: u32 },
}

/// The message did not leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSent;

/// What a tick did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ticked {
    /// Nothing.
    Nothing,
    /// A stream was opened.
    Opened,
    /// One was given up, since its peer is silent.
    FellSilent,
}

/// What a Welcome brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// The same prefix as before: the peer remembers this context.
    Resumed,
    /// A prefix that was not in use here.
    New,
    /// The peer speaks something else; the stream is closed.
    Refused,
}

impl Stream {
    /// No stream yet; the next tick opens one.
    pub fn new() -> Self {
        Self {
            link: Link::Down { retry_at_ms: 0 },
            retry_ms: RETRY_FLOOR_MS,
            prefix: Vec::new(),
            nonces: Vec::new(),
            heard_ms: 0,
            silence: Silence::default(),
            fell_silent: false,
        }
    }

    /// Opens what is due, and gives up on a greeting that does not come and on a
    /// peer that is silent. A tick is every `period_ms`.
    pub fn tick(
        &mut self,
        (now_ms, period_ms): (u64, u64),
        upstream: &Upstream,
        module: &str,
    ) -> Ticked {
        let silent_ms = self.silence.tick(period_ms, host::now_ms().ok());
        match self.link {
            Link::Up { .. } if silent_ms >= SILENCE_MS => {
                self.drop_link(now_ms);
                self.fell_silent = true;
                Ticked::FellSilent
            }
            Link::Greeting { since_ms, .. }
                if now_ms >= since_ms.saturating_add(WELCOME_WITHIN_MS) =>
            {
                self.drop_link(now_ms);
                Ticked::Nothing
            }
            Link::Down { retry_at_ms } if now_ms >= retry_at_ms => {
                self.open(now_ms, upstream, module)
            }
            Link::Down { .. } | Link::Greeting { .. } | Link::Up { .. } => Ticked::Nothing,
        }
    }

    fn open(&mut self, now_ms: u64, upstream: &Upstream, module: &str) -> Ticked {
        let Ok(stream) = host::open_stream(upstream, SERVICE, METHOD) else {
            self.back_off(now_ms);
            return Ticked::Nothing;
        };
        self.link = Link::Greeting {
            stream,
            since_ms: now_ms,
        };
        let hello = Hello {
            protocol: PROTOCOL,
            resume_prefix: self.prefix.clone(),
            module_version: format!("{}{module}", env!("CARGO_PKG_VERSION")),
            node: host::text_property(&["xds", "node", "id"]).unwrap_or_default(),
        };
        if host::send(
            stream,
            &FromFilter {
                message: Some(Body::Hello(hello)),
                outcomes: Vec::new(),
            }
            .encode_to_vec(),
        )
        .is_err()
        {
            self.drop_link(now_ms);
        }
        Ticked::Opened
    }

    /// The peer's first message.
    pub fn welcomed(&mut self, welcome: Welcome, now_ms: u64) -> Greeting {
        let Link::Greeting { stream, .. } = self.link else {
            // A second Welcome would change the prefix under open questions.
            self.drop_link(now_ms);
            return Greeting::Refused;
        };
        if welcome.protocol != PROTOCOL || welcome.prefix.len() != PREFIX_BYTES {
            host::warn(
                "writ: the control plane speaks another version of the decision protocol; upgrade the older side",
            );
            self.retry_ms = RETRY_CEILING_MS;
            self.drop_link(now_ms);
            return Greeting::Refused;
        }
        self.link = Link::Up { stream };
        self.fell_silent = false;
        self.retry_ms = RETRY_FLOOR_MS;
        self.told(welcome.nonces);
        if self.prefix == welcome.prefix {
            return Greeting::Resumed;
        }
        self.prefix = welcome.prefix;
        Greeting::New
    }

    /// The host says that a stream ended.
    pub fn closed(&mut self, stream: u32, now_ms: u64) {
        if self.is(stream) {
            self.back_off(now_ms);
        }
    }

    /// Gives the stream up, for instance since its peer is silent.
    pub fn drop_link(&mut self, now_ms: u64) {
        if let Link::Greeting { stream, .. } | Link::Up { stream } = self.link {
            host::cancel_stream(stream);
        }
        self.back_off(now_ms);
    }

    /// Sends a message, when the peer has welcomed us.
    pub fn send(&mut self, body: Body, now_ms: u64) -> Result<(), NotSent> {
        self.send_encoded(
            &FromFilter {
                message: Some(body),
                outcomes: Vec::new(),
            }
            .encode_to_vec(),
            now_ms,
        )
    }

    /// Sends a message that is serialised already.
    pub fn send_encoded(&mut self, message: &[u8], now_ms: u64) -> Result<(), NotSent> {
        let Link::Up { stream } = self.link else {
            return Err(NotSent);
        };
        if host::send(stream, message).is_err() {
            // The host no longer knows the stream.
            self.back_off(now_ms);
            return Err(NotSent);
        }
        Ok(())
    }

    /// True for the stream in use; a message on any other is not for us.
    pub fn is(&self, candidate: u32) -> bool {
        matches!(self.link, Link::Greeting { stream, .. } | Link::Up { stream } if stream == candidate)
    }

    /// True once the peer has welcomed us.
    pub fn is_up(&self) -> bool {
        matches!(self.link, Link::Up { .. })
    }

    /// The peer says which nonces are good from now on. What is none (RFC 9449,
    /// section 8.1) is left out: it would be told to clients.
    pub fn told(&mut self, nonces: Vec<String>) {
        let is_letter = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\');
        let is_one =
            |nonce: &String| (1..=NONCE_MAX).contains(&nonce.len()) && nonce.bytes().all(is_letter);
        self.nonces = nonces.into_iter().filter(is_one).take(NONCES_MAX).collect();
    }

    /// The nonces that are good now, first the one to tell clients; none before the
    /// peer has said any, and without a stream.
    pub fn nonces(&self) -> &[String] {
        &self.nonces
    }

    /// The prefix of new questions' ids; empty before the first Welcome.
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// Notes that the peer said something.
    pub fn heard(&mut self, now_ms: u64) {
        self.heard_ms = now_ms;
        self.silence.for_ms = 0;
    }

    /// True when there is no stream, since the peer of the last one fell silent.
    pub fn fell_silent(&self) -> bool {
        self.fell_silent
    }

    /// True when the peer has said nothing since then.
    pub fn silent_since(&self, then_ms: u64) -> bool {
        self.heard_ms <= then_ms
    }

    fn back_off(&mut self, now_ms: u64) {
        self.nonces.clear();
        self.link = Link::Down {
            retry_at_ms: now_ms.saturating_add(self.retry_ms),
        };
        self.retry_ms = self.retry_ms.saturating_mul(2).min(RETRY_CEILING_MS);
    }
}
