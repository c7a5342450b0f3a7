//! The plugin's configuration: strict JSON, written by the control plane and
//! read once. All errors are found at once; any error refuses the whole, and
//! the host keeps what it had.

mod bodies;
mod routes;

use crate::host::Upstream;
use crate::verify::Crypto;
pub use bodies::{Bodies, BodyRule};
use capability::decide::Mode;
use capability::gates::{EdgeConfig, TokenCheck};
use capability::key::PublicKey;
use capability::url::{Origin, Target};
use capability::{Limits, json};
pub use routes::Route;
use routes::{Authorities, METADATA, metadata, routes, sites};
use serde_json::{Map, Value};
use std::rc::Rc;

/// A configuration is at most this long; bytes.
pub const SIZE_MAX: usize = 256 * 1024;
/// The configuration's version that this filter reads.
const VERSION: u64 = 1;
const NAME_MAX: usize = 256;

/// What a filter works by.
pub struct Settings {
    /// What the gates check.
    pub edge: EdgeConfig,
    /// Who checks ES256.
    pub crypto: Crypto,
    /// Where the control plane is.
    pub upstream: Upstream,
    /// How long a question may go without an answer; milliseconds.
    pub decision_deadline_ms: u64,
    /// How long a request may be held; milliseconds.
    pub hold_ms: u64,
    /// Questions without an answer, per worker.
    pub questions: usize,
    /// Requests that went on and are not over, per worker.
    pub open: usize,
    /// Refusals that wait to be sent, per worker.
    pub denials: usize,
    /// Which requests' bodies this instance reads.
    pub bodies: Bodies,
    /// How long a body may take to come; milliseconds.
    pub body_deadline_ms: u64,
    /// Requests whose bodies wait here at a time, per worker.
    pub bodies_at_once: usize,
    /// What this module is called besides its version: `+` and the beginning of its
    /// digest; empty when nobody says.
    pub module: String,
    routes: Vec<Route>,
    documents: Documents,
}

/// Where the origins' metadata are, by their authorities.
#[derive(Default)]
struct Documents(Vec<(String, Rc<str>)>);

impl Documents {
    fn add(&mut self, origin: &Origin, url: Option<String>) {
        if let Some(url) = url {
            self.0.push((origin.authority().to_owned(), url.into()));
        }
    }
}

impl Settings {
    /// Reads a configuration.
    ///
    /// # Errors
    /// Every fault that was found, one line each.
    pub fn parse(bytes: &[u8]) -> Result<Self, Vec<String>> {
        let value =
            json::parse_object(bytes, &Limits::CEILING).map_err(|error| vec![error.to_string()])?;
        let mut faults = Faults::default();
        let settings = Self::read(&Members::new("", &value), &mut faults);
        match settings {
            Some(settings) if faults.0.is_empty() => Ok(settings),
            _ => Err(faults.0),
        }
    }

    fn read(members: &Members<'_>, faults: &mut Faults) -> Option<Self> {
        members.only(
            &[
                "version",
                "issuer",
                "resource",
                "origin",
                "keys",
                "token_check",
                "crypto",
                "client_certificates",
                "cluster",
                "decision_deadline_ms",
                "hold_ms",
                "limits",
                "routes",
                "bodies",
                "body_deadline_ms",
                "module",
                "sites",
                METADATA,
            ],
            faults,
        );
        // Each part is read before any is missed, so that all faults are told.
        let version = members.number("version", None, (VERSION, VERSION), faults);
        let issuer = members
            .text("issuer", faults)
            .filter(|text| faults.url("issuer", text));
        let resource = members
            .text("resource", faults)
            .filter(|text| faults.url("resource", text));
        let origin = members.text("origin", faults).and_then(|text| {
            Origin::parse(text)
                .map_err(|error| faults.add(format!("origin: {error}")))
                .ok()
        });
        let keys = keys(members, faults);
        let token_check = members.choice(
            "token_check",
            &[("edge", TokenCheck::Edge), ("record", TokenCheck::Record)],
            faults,
        );
        let crypto = members.choice(
            "crypto",
            &[("host", Crypto::Host), ("portable", Crypto::Portable)],
            faults,
        );
        let require_peer = members.choice(
            "client_certificates",
            &[("none", false), ("required", true)],
            faults,
        );
        let upstream = members.text("cluster", faults).and_then(|name| {
            let upstream = Upstream::cluster(name);
            if upstream.is_none() {
                faults.add(format!(
                    "cluster: must be 1 to {} letters, digits or any of _-.:|",
                    Upstream::NAME_MAX
                ));
            }
            upstream
        });
        let decision_deadline_ms =
            members.number("decision_deadline_ms", Some(2_000), (1, 10_000), faults);
        let hold_ms = members.number("hold_ms", Some(25_000), (0, 55_000), faults);
        let bodies = members.choice("bodies", &Bodies::WORDS, faults);
        let body_deadline_ms =
            members.number("body_deadline_ms", Some(10_000), (1, 60_000), faults);
        let module = match members.map.get("module") {
            None => Some(String::new()),
            Some(_) => members
                .text("module", faults)
                .map(|text| format!("+{text}")),
        };
        let metadata = metadata(members, faults);
        let sites = sites(members, origin.as_ref(), resource, faults);
        let authorities = Authorities::of(origin.as_ref(), sites.as_deref());
        let routes = routes(members, &authorities, faults);
        let none = Map::new();
        let numbers = members
            .object("limits", "limits.", faults)
            .unwrap_or_else(|| Members::new("limits.", &none));
        let numbers = Numbers::read(&numbers, faults);
        version?;
        let numbers = numbers?;
        let mut edge = EdgeConfig::new(issuer?, resource?, origin?);
        edge.keys = keys?;
        let mut documents = Documents::default();
        documents.add(&edge.origin, metadata);
        for named in sites? {
            documents.add(&named.site.origin, named.metadata);
            edge.sites.push(named.site);
        }
        edge.token_check = token_check?;
        edge.require_peer = require_peer?;
        edge.limits = numbers.limits;
        edge.proof_window_s = numbers.proof_window_s;
        edge.token_skew_s = numbers.token_skew_s;
        edge.token_lifetime_max_s = numbers.token_lifetime_max_s;
        Some(Self {
            edge,
            crypto: crypto?,
            upstream: upstream?,
            decision_deadline_ms: decision_deadline_ms?,
            hold_ms: hold_ms?,
            questions: numbers.questions,
            open: numbers.open,
            denials: numbers.denials,
            bodies: bodies?,
            body_deadline_ms: body_deadline_ms?,
            bodies_at_once: numbers.bodies_at_once,
            routes: routes?,
            documents,
            module: module?,
        })
    }

    /// The route of this authority, as [`EdgeConfig::authority_of`] has it, with
    /// the longest prefix of this path.
    pub fn route(&self, authority: &str, path: &str) -> Option<&Route> {
        routes::find(&self.routes, authority, path)
    }

    /// Where the metadata of this authority's origin is, where that is served.
    pub fn metadata_of(&self, authority: &str) -> Option<&Rc<str>> {
        let mut all = self.documents.0.iter();
        let found = all.find(|(known, _)| known == authority)?;
        Some(&found.1)
    }

    /// How the bodies of this authority's path are read, on a route that reads them.
    pub fn body_rule(&self, authority: &str, path: &str) -> Option<&Rc<BodyRule>> {
        self.route(authority, path)?.body.as_ref()
    }

    /// How many routes only observe.
    pub fn observing(&self) -> usize {
        let observing = |route: &&Route| route.mode == Mode::Observe;
        self.routes.iter().filter(observing).count()
    }
}

/// The numbers under `limits`, each with its default and its bounds.
struct Numbers {
    limits: Limits,
    proof_window_s: u64,
    token_skew_s: u64,
    token_lifetime_max_s: u64,
    questions: usize,
    open: usize,
    denials: usize,
    bodies_at_once: usize,
}

impl Numbers {
    fn read(members: &Members<'_>, faults: &mut Faults) -> Option<Self> {
        members.only(
            &[
                "header_block",
                "token",
                "proof",
                "json_depth",
                "json_members",
                "proof_window_s",
                "token_skew_s",
                "token_lifetime_max_s",
                "questions_in_flight",
                "open_requests",
                "denials_buffered",
                "bodies_at_once",
            ],
            faults,
        );
        let (default, ceiling) = (Limits::default(), Limits::CEILING);
        let header_block = members.size(
            "header_block",
            default.header_block,
            ceiling.header_block,
            faults,
        );
        let token = members.size("token", default.token, ceiling.token, faults);
        let proof = members.size("proof", default.proof, ceiling.proof, faults);
        let json_depth = members.size("json_depth", default.json_depth, ceiling.json_depth, faults);
        let json_members = members.size(
            "json_members",
            default.json_members,
            ceiling.json_members,
            faults,
        );
        let proof_window_s = members.number("proof_window_s", Some(300), (1, 300), faults);
        let token_skew_s = members.number("token_skew_s", Some(10), (0, 10), faults);
        let token_lifetime_max_s =
            members.number("token_lifetime_max_s", Some(300), (1, 300), faults);
        let questions = members.size("questions_in_flight", 4_096, 65_536, faults);
        let open = members.size("open_requests", 16_384, 16_384, faults);
        let denials = members.size("denials_buffered", 1_024, 65_536, faults);
        let bodies_at_once = members.size("bodies_at_once", 256, 4_096, faults);
        Some(Self {
            limits: Limits {
                header_block: header_block?,
                token: token?,
                proof: proof?,
                json_depth: json_depth?,
                json_members: json_members?,
            },
            proof_window_s: proof_window_s?,
            token_skew_s: token_skew_s?,
            token_lifetime_max_s: token_lifetime_max_s?,
            questions: questions?,
            open: open?,
            denials: denials?,
            bodies_at_once: bodies_at_once?,
        })
    }
}

fn keys(members: &Members<'_>, faults: &mut Faults) -> Option<Vec<(String, PublicKey)>> {
    let list = members.list("keys", true, faults)?;
    if list.is_empty() {
        faults.add("keys: must name at least one key, or no token can be checked".to_owned());
    }
    let mut keys: Vec<(String, PublicKey)> = Vec::new();
    for (at, jwk) in list.iter().enumerate() {
        let kid = jwk
            .get("kid")
            .and_then(Value::as_str)
            .filter(|kid| !kid.is_empty() && kid.len() <= NAME_MAX);
        match (kid, PublicKey::from_jwk(jwk)) {
            (None, _) => faults.add(format!(
                "keys[{at}].kid: must be a string of 1 to {NAME_MAX} bytes"
            )),
            (Some(_), Err(error)) => faults.add(format!("keys[{at}]: {error}")),
            (Some(kid), Ok(_)) if keys.iter().any(|(known, _)| known == kid) => {
                faults.add(format!("keys[{at}].kid: the same as an earlier key's"));
            }
            (Some(kid), Ok(key)) => keys.push((kid.to_owned(), key)),
        }
    }
    Some(keys)
}

/// What is wrong, one line each.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn add(&mut self, line: String) {
        self.0.push(line);
    }

    /// What a member has to be.
    #[cold]
    #[inline(never)]
    fn must_be(&mut self, label: &str, name: &str, what: &str) {
        self.add([label, name, ": must be ", what].concat());
    }

    /// True for an absolute http or https URL.
    #[inline(never)]
    fn url(&mut self, name: &str, text: &str) -> bool {
        match Target::location(text) {
            Ok(_) => true,
            Err(error) => {
                self.add(format!("{name}: {error}"));
                false
            }
        }
    }
}

/// An object's members, and its name in front of theirs. Configurations are read
/// seldom, and a copy of its code for each member would be a part of every VM.
struct Members<'a> {
    label: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Members<'a> {
    fn new(label: &'a str, map: &'a Map<String, Value>) -> Self {
        Self { label, map }
    }

    /// A misspelt member must not pass for a default.
    #[inline(never)]
    fn only(&self, known: &[&str], faults: &mut Faults) {
        for name in self
            .map
            .keys()
            .filter(|name| !known.contains(&name.as_str()))
        {
            faults.add(format!(
                "{}{}: not a known member",
                self.label,
                name.escape_default()
            ));
        }
    }

    fn text(&self, name: &str, faults: &mut Faults) -> Option<&'a str> {
        self.text_within(name, NAME_MAX, faults)
    }

    #[inline(never)]
    fn text_within(&self, name: &str, most: usize, faults: &mut Faults) -> Option<&'a str> {
        let text = self
            .map
            .get(name)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty() && text.len() <= most);
        if text.is_none() {
            let what = format!("a string of 1 to {most} bytes");
            faults.must_be(self.label, name, &what);
        }
        text
    }

    /// A number from `least` to `most`; without a default it must be there.
    #[inline(never)]
    fn number(
        &self,
        name: &str,
        default: Option<u64>,
        (least, most): (u64, u64),
        faults: &mut Faults,
    ) -> Option<u64> {
        let number = match (self.map.get(name), default) {
            (None, Some(default)) => return Some(default),
            (value, _) => value
                .and_then(json::integer)
                .filter(|number| (least..=most).contains(number)),
        };
        if number.is_none() {
            let what = format!("a whole number from {least} to {most}");
            faults.must_be(self.label, name, &what);
        }
        number
    }

    /// A limit: from 1 to its ceiling.
    #[inline(never)]
    fn size(
        &self,
        name: &str,
        default: usize,
        ceiling: usize,
        faults: &mut Faults,
    ) -> Option<usize> {
        let (default, ceiling) = (u64::try_from(default).ok()?, u64::try_from(ceiling).ok()?);
        self.number(name, Some(default), (1, ceiling), faults)
            .and_then(|number| usize::try_from(number).ok())
    }

    /// One of these words; the first when the member is absent.
    fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)], faults: &mut Faults) -> Option<T> {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let chosen = self.word(name, &words, faults)?;
        choices.get(chosen).map(|(_, choice)| *choice)
    }

    /// Which of these words it is.
    #[inline(never)]
    fn word(&self, name: &str, words: &[&str], faults: &mut Faults) -> Option<usize> {
        let Some(value) = self.map.get(name) else {
            return Some(0);
        };
        let chosen = words.iter().position(|word| value.as_str() == Some(word));
        if chosen.is_none() {
            let what = format!("one of: {}", words.join(", "));
            faults.must_be(self.label, name, &what);
        }
        chosen
    }

    /// True or false; false when the member is absent.
    #[inline(never)]
    fn truth(&self, name: &str, faults: &mut Faults) -> Option<bool> {
        let truth = self.map.get(name).map_or(Some(false), Value::as_bool);
        if truth.is_none() {
            faults.must_be(self.label, name, "true or false");
        }
        truth
    }

    #[inline(never)]
    fn list(&self, name: &str, required: bool, faults: &mut Faults) -> Option<&'a [Value]> {
        match self.map.get(name) {
            None if !required => Some(&[]),
            value => {
                let list = value.and_then(Value::as_array);
                if list.is_none() {
                    faults.must_be(self.label, name, "a list");
                }
                list.map(Vec::as_slice)
            }
        }
    }

    /// An object that may be absent.
    #[inline(never)]
    fn object(&self, name: &str, label: &'a str, faults: &mut Faults) -> Option<Members<'a>> {
        let map = self.map.get(name)?.as_object();
        if map.is_none() {
            faults.must_be(self.label, name, "an object");
        }
        map.map(|map| Members { label, map })
    }
}
