//! What the scripted host knows: contexts, streams, metrics, and the lies it
//! has been told to tell.

use decision_api::FromFilter;
use p256::ecdsa::signature::Verifier;
use p256::pkcs8::DecodePublicKey;
use prost::Message;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Statuses of the proxy-wasm ABI.
pub const OK: i32 = 0;
pub const NOT_FOUND: i32 = 1;
pub const BAD_ARGUMENT: i32 = 2;
pub const EMPTY: i32 = 7;
pub const INTERNAL_FAILURE: i32 = 10;

/// The root context's id.
pub const ROOT: u32 = 1;

/// How the host answers `verify_signature`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostCrypto {
    /// Rightly.
    #[default]
    Honest,
    /// Every signature is good.
    AlwaysGood,
    /// Every signature is bad.
    AlwaysBad,
    /// There is no such function.
    Missing,
}

/// One request as the host sees it.
#[derive(Debug, Default)]
pub struct Http {
    pub headers: Vec<(String, Vec<u8>)>,
    pub trailers: Vec<(String, Vec<u8>)>,
    /// The upstream's answer.
    pub response: Vec<(String, Vec<u8>)>,
    /// False once the client has gone: every edit is then a bad argument.
    pub alive: bool,
    pub resumed: usize,
    /// How often both sides of it were reset.
    pub reset: usize,
    pub reply: Option<Reply>,
    pub reason: String,
    /// What of its body has come and waits in the host.
    pub body: Vec<u8>,
    /// What was left for the access log besides the reason.
    pub facts: BTreeMap<String, String>,
    pub properties: BTreeMap<String, Vec<u8>>,
}

/// A local reply.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u32,
    pub headers: BTreeMap<String, String>,
    pub body: serde_json::Value,
}

/// One gRPC stream of the root context.
#[derive(Debug, Default)]
pub struct Stream {
    pub upstream: Vec<u8>,
    pub method: String,
    pub open: bool,
    pub sent: Vec<FromFilter>,
}

#[derive(Debug, Default)]
pub struct World {
    pub crypto: HostCrypto,
    pub configuration: Vec<u8>,
    /// What the host says that its route is called.
    pub route_name: String,
    pub now_ns: u64,
    pub http: BTreeMap<u32, Http>,
    pub streams: BTreeMap<u32, Stream>,
    /// Contexts that cannot be put in force, though they live.
    pub unenterable: BTreeSet<u32>,
    pub control_plane_reachable: bool,
    pub received: Vec<u8>,
    pub metrics: BTreeMap<u32, (String, i64)>,
    pub log: Vec<String>,
    pub tick_ms: u32,
    pub verifications: usize,
    pub host_calls: usize,
    pub current: u32,
    pub effective: u32,
    /// Properties of the connection that requests come on.
    pub connection: BTreeMap<String, Vec<u8>>,
    /// How often a client certificate was asked for.
    pub certificates_read: Cell<usize>,
    /// The shared queue, which outlives the VM in a real host.
    pub queue: VecDeque<Vec<u8>>,
}

impl World {
    /// A callback begins: its own context is in force.
    pub fn enter_callback(&mut self, context: u32) {
        self.current = context;
        self.effective = 0;
    }

    pub fn in_force(&self) -> u32 {
        if self.effective == 0 {
            self.current
        } else {
            self.effective
        }
    }

    pub fn set_effective(&mut self, context: u32) -> i32 {
        let known = context == ROOT || self.http.contains_key(&context);
        if !known || self.unenterable.contains(&context) {
            return BAD_ARGUMENT;
        }
        self.effective = context;
        OK
    }

    /// The request in force, if it lives: what edits and resumes act on.
    pub fn request(&mut self) -> Option<&mut Http> {
        let context = self.in_force();
        self.http.get_mut(&context).filter(|http| http.alive)
    }

    pub fn property(&self, path: &str) -> Option<Vec<u8>> {
        let http = self.http.get(&self.in_force())?;
        if path == "connection.peer_certificate" {
            self.certificates_read.update(|times| times + 1);
        }
        let own = http.properties.get(path);
        own.or_else(|| self.connection.get(path)).cloned()
    }

    pub fn open_stream(&mut self, upstream: Vec<u8>, method: String) -> Result<u32, i32> {
        if !self.control_plane_reachable {
            return Err(INTERNAL_FAILURE);
        }
        assert_eq!(self.in_force(), ROOT, "streams belong to the root context");
        let token = 100 + u32::try_from(self.streams.len()).unwrap();
        self.streams.insert(
            token,
            Stream {
                upstream,
                method,
                open: true,
                sent: Vec::new(),
            },
        );
        Ok(token)
    }

    pub fn send(&mut self, token: u32, message: &[u8]) -> i32 {
        // A stream is known to the context that opened it, and to no other.
        if self.in_force() != ROOT {
            return NOT_FOUND;
        }
        match self.streams.get_mut(&token).filter(|stream| stream.open) {
            Some(stream) => {
                stream.sent.push(FromFilter::decode(message).unwrap());
                OK
            }
            None => NOT_FOUND,
        }
    }

    pub fn metric(&self, name: &str) -> i64 {
        self.metrics
            .values()
            .find(|(known, _)| known == name)
            .map_or(0, |(_, value)| *value)
    }

    /// `verify_signature` as Envoy has it, with other arithmetic.
    pub fn verify_signature(&mut self, arguments: &[u8]) -> Result<Vec<u8>, i32> {
        self.verifications += 1;
        let good = match self.crypto {
            HostCrypto::Missing => return Err(NOT_FOUND),
            HostCrypto::AlwaysGood => true,
            HostCrypto::AlwaysBad => false,
            HostCrypto::Honest => verify(&Arguments::decode(arguments).unwrap()),
        };
        Ok(Verdict {
            result: good,
            error: String::new(),
        }
        .encode_to_vec())
    }
}

#[derive(Clone, PartialEq, Message)]
struct Arguments {
    #[prost(string, tag = "1")]
    hash: String,
    #[prost(bytes = "vec", tag = "2")]
    public_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    signature: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    text: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Verdict {
    #[prost(bool, tag = "1")]
    result: bool,
    #[prost(string, tag = "2")]
    error: String,
}

fn verify(arguments: &Arguments) -> bool {
    let key = p256::PublicKey::from_public_key_der(&arguments.public_key)
        .map(p256::ecdsa::VerifyingKey::from);
    let signature = p256::ecdsa::Signature::from_der(&arguments.signature);
    match (arguments.hash.as_str(), key, signature) {
        ("sha256", Ok(key), Ok(signature)) => key.verify(&arguments.text, &signature).is_ok(),
        _ => false,
    }
}
