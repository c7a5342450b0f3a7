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
/// A prefix has exactly this many bytes.
const PREFIX_BYTES: usize = 16;

/// What stands between this VM context and the control plane.
pub struct Stream {
    link: Link,
    retry_ms: u64,
    prefix: Vec<u8>,
    heard_ms: u64,
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
            heard_ms: 0,
        }
    }

    /// Opens what is due, and gives up on a greeting that does not come. True
    /// when a stream was opened.
    pub fn tick(&mut self, now_ms: u64, upstream: &Upstream, module: &str) -> bool {
        match self.link {
            Link::Greeting { since_ms, .. }
                if now_ms >= since_ms.saturating_add(WELCOME_WITHIN_MS) =>
            {
                self.drop_link(now_ms);
                false
            }
            Link::Down { retry_at_ms } if now_ms >= retry_at_ms => {
                self.open(now_ms, upstream, module)
            }
            Link::Down { .. } | Link::Greeting { .. } | Link::Up { .. } => false,
        }
    }

    fn open(&mut self, now_ms: u64, upstream: &Upstream, module: &str) -> bool {
        let Ok(stream) = host::open_stream(upstream, SERVICE, METHOD) else {
            self.back_off(now_ms);
            return false;
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
        true
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
        self.retry_ms = RETRY_FLOOR_MS;
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

    /// The prefix of new questions' ids; empty before the first Welcome.
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// Notes that the peer said something.
    pub fn heard(&mut self, now_ms: u64) {
        self.heard_ms = now_ms;
    }

    /// True when the peer has said nothing since then.
    pub fn silent_since(&self, then_ms: u64) -> bool {
        self.heard_ms <= then_ms
    }

    fn back_off(&mut self, now_ms: u64) {
        self.link = Link::Down {
            retry_at_ms: now_ms.saturating_add(self.retry_ms),
        };
        self.retry_ms = self.retry_ms.saturating_mul(2).min(RETRY_CEILING_MS);
    }
}
