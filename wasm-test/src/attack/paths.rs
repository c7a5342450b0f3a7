//! Spellings of a path that two readers read in two ways: refused, or exactly
//! the action that the token names, for every way of setting Envoy and every
//! upstream's way of reading.

use tokio::task::JoinSet;

use super::check::{holds, same};
use super::edge::{Audit, BOTH, Mark, Over, Seen, Shot, Want, next_good, reads_as, wanted};
use super::stages::Stages;
use super::{How, Row};
use crate::Error;
use crate::stage::{Stage, jti};
use crate::upstream::REPORT;

use Class::{Bad, Dotted, Envoy, Normal, Other, Query};

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    row("F01", |it| Box::pin(spellings(it, ENCODED_SLASHES))),
    row("F02", |it| Box::pin(spellings(it, SEGMENTS))),
    row("F03", |it| Box::pin(spellings(it, PARAMETERS))),
    row("F04", |it| Box::pin(spellings(it, ENCODED_DOTS))),
    row("F05", |it| Box::pin(spellings(it, SPECIAL_BYTES))),
    row("F06", |it| Box::pin(spellings(it, CASES))),
    row("F07", |it| Box::pin(spellings(it, DELIMITERS))),
    row("F08", |it| Box::pin(spellings(it, NOT_ASCII))),
    row("F09", |it| Box::pin(spellings(it, FORMS))),
    row("F10", |it| Box::pin(spellings(it, TEMPLATES))),
    row("F45", |it| Box::pin(spellings(it, AUTHORITIES))),
];

const fn row(id: &'static str, work: super::Live) -> Row {
    Row {
        id,
        how: How::Live(work),
    }
}

/// What a spelling is at Writ's own listener.
#[derive(Clone, Copy, Debug)]
enum Class {
    /// Envoy refuses it itself, with this status; 0 for an end without one.
    Envoy(u16),
    /// No proof can be made for it.
    Bad,
    /// A path of its own, which the token doesn't name.
    Other,
    /// The action's path, with a query that it doesn't have.
    Query,
    /// Envoy writes it normally before anybody looks: it is the action.
    Normal,
    /// A dot segment with a parameter: [`Class::Normal`] for Envoys that take it away,
    /// and [`Class::Bad`] for older ones, which leave it.
    Dotted,
}

impl Class {
    /// As it is with an Envoy of this version.
    fn with(self, envoy: &str) -> Class {
        let minor = envoy.split('.').nth(1).and_then(|it| it.parse().ok());
        match self {
            Dotted if minor.is_some_and(|it: u32| it < TAKES_DOTS_AWAY) => Bad,
            Dotted => Normal,
            other => other,
        }
    }
}

/// The first minor version that takes away a dot segment with a parameter.
const TAKES_DOTS_AWAY: u32 = 39;

/// A target, and what it is over HTTP/1 and over HTTP/2.
type Case = (&'static [u8], Class, Class);

const ENCODED_SLASHES: &[Case] = &[
    (b"/files%2Freport.txt", Envoy(400), Envoy(400)),
    (b"/files%2freport.txt", Envoy(400), Envoy(400)),
    (b"/files%5Creport.txt", Envoy(400), Envoy(400)),
    (b"/files%5creport.txt", Envoy(400), Envoy(400)),
    (b"/files/..%2fadmin%2fkeys.txt", Envoy(400), Envoy(400)),
    (b"/files/report.txt%2F", Envoy(400), Envoy(400)),
    (
        b"/files/report.txt%2F..%2F..%2Fadmin/keys.txt",
        Envoy(400),
        Envoy(400),
    ),
    (b"/files/report.txt?x=%2F", Query, Query),
];

const SEGMENTS: &[Case] = &[
    (b"//files/report.txt", Normal, Normal),
    (b"/files//report.txt", Normal, Normal),
    (b"/files/report.txt//", Other, Other),
    (b"/./files/report.txt", Normal, Normal),
    (b"/files/./report.txt", Normal, Normal),
    (b"/files/x/../report.txt", Normal, Normal),
    (b"/../files/report.txt", Normal, Normal),
    (b"/../../../../files/report.txt", Normal, Normal),
    (b"/files/../admin/keys.txt", Other, Other),
    (b"/files/report.txt/../../admin/keys.txt", Other, Other),
    (b"/files/report.txt/..", Other, Other),
    (b"/files/report.txt/.", Other, Other),
    (b"/files/...//report.txt", Other, Other),
    (b"/files/report.txt/", Other, Other),
];

const PARAMETERS: &[Case] = &[
    (b"/files/..;/admin/keys.txt", Bad, Bad),
    (b"/files/..;foo=bar/admin/keys.txt", Bad, Bad),
    (b"/files/.;/report.txt", Dotted, Dotted),
    (b"/files/report.txt;a=b", Bad, Bad),
    (b"/files/report.txt;", Bad, Bad),
    (b"/files;jsessionid=1/report.txt", Bad, Bad),
    (b"/;/files/report.txt", Bad, Bad),
    (b"/files/..%3b/admin/keys.txt", Bad, Bad),
    (b"/files/..%3B/admin/keys.txt", Bad, Bad),
    (b"/files/report.txt%3Ba=b", Bad, Bad),
];

const ENCODED_DOTS: &[Case] = &[
    (b"/files/%2e%2e/admin/keys.txt", Other, Other),
    (b"/files/%2E%2E/files/report.txt", Normal, Normal),
    (b"/files/.%2e/admin/keys.txt", Other, Other),
    (b"/files/%252e%252e/admin/keys.txt", Bad, Bad),
    (b"/files/%252E%252E%252Fadmin/keys.txt", Bad, Bad),
    (b"/files/%25%37%30ort.txt", Bad, Bad),
    (b"/files/%2572eport.txt", Bad, Bad),
    (b"/files/report%2etxt", Normal, Normal),
    (b"/files/%72eport.txt", Normal, Normal),
    (b"/%66iles/report.txt", Normal, Normal),
    (b"/%c0%ae%c0%ae/admin/keys.txt", Bad, Bad),
    (b"/files/%c0%afreport.txt", Bad, Bad),
    (b"/files/%e0%80%afreport.txt", Bad, Bad),
    (b"/files/%u002e%u002e/admin/keys.txt", Bad, Bad),
    (b"/files/rep%u006frt.txt", Bad, Bad),
    (b"/files/report.txt%", Bad, Bad),
    (b"/files/report.txt%2", Bad, Bad),
    (b"/files/rep%zzrt.txt", Bad, Bad),
];

const SPECIAL_BYTES: &[Case] = &[
    (b"/files\\report.txt", Normal, Normal),
    (b"/files\\..\\admin\\keys.txt", Other, Other),
    (b"/files/report.txt\0", Envoy(400), Envoy(0)),
    (b"/files/report.txt%00", Envoy(400), Envoy(400)),
    (b"/files/report.txt%00.html", Envoy(400), Envoy(400)),
    (b"/files/report.txt\rx: y", Envoy(400), Envoy(0)),
    (
        b"/files/report.txt\r\nx-writ-agent: admin",
        Envoy(426),
        Envoy(0),
    ),
    (b"/files/report.txt%0d%0ax-writ-agent:%20admin", Bad, Bad),
    (b"/files/report.txt%0A", Bad, Bad),
    (b"/files/report.txt%09", Bad, Bad),
    (b"/files/report.txt ", Normal, Envoy(0)),
    (b"/files/report.txt%20", Bad, Bad),
    (b"/files/%20report.txt", Bad, Bad),
    (b"/files/report.txt\t", Normal, Envoy(0)),
    (b"/files/report.txt\x7f", Envoy(400), Envoy(0)),
    (b"/files/report.txt%7F", Bad, Bad),
    (b"/files/<report.txt>", Bad, Bad),
    (b"/files/\"report.txt\"", Bad, Bad),
    (b"/files/report.txt|", Bad, Bad),
    (b"/files/report.txt^", Bad, Bad),
    (b"/files/`report.txt`", Bad, Bad),
];

const CASES: &[Case] = &[
    (b"/FILES/report.txt", Other, Other),
    (b"/files/REPORT.TXT", Other, Other),
    (b"/Files/Report.txt", Other, Other),
    (b"/files/r\x65port.tXt", Other, Other),
    (b"/files/%52eport.txt", Other, Other),
];

const DELIMITERS: &[Case] = &[
    (b"/files/report.txt%23", Bad, Bad),
    (b"/files/report.txt%3Fall=1", Bad, Bad),
    (b"/files/report.txt%3fall=1", Bad, Bad),
    (b"/files/report.txt#frag", Envoy(400), Envoy(400)),
    (b"/files/report.txt?#frag", Envoy(400), Envoy(400)),
    (b"/files/report.txt#", Envoy(400), Envoy(400)),
    (
        b"/admin/keys.txt#/../files/report.txt",
        Envoy(400),
        Envoy(400),
    ),
    (b"/files/report.txt?", Query, Query),
    (b"/files/report.txt??", Query, Query),
];

const NOT_ASCII: &[Case] = &[
    ("/files/r\u{e9}port.txt".as_bytes(), Envoy(400), Bad),
    ("/files/re\u{301}port.txt".as_bytes(), Envoy(400), Bad),
    ("/files/report.txt\u{2215}".as_bytes(), Envoy(400), Bad),
    ("/files\u{ff0f}report.txt".as_bytes(), Envoy(400), Bad),
    (
        "/files/\u{ff0e}\u{ff0e}/admin/keys.txt".as_bytes(),
        Envoy(400),
        Bad,
    ),
    (b"/files/r\xe9port.txt", Envoy(400), Bad),
    (b"/files/\xff\xfe", Envoy(400), Bad),
    (b"/files/%EF%BC%8Freport.txt", Other, Other),
    (b"/files/re%CC%81port.txt", Other, Other),
    (b"/files/r%C3%A9port.txt", Other, Other),
    (b"/files/r%E9port.txt", Bad, Bad),
];

const FORMS: &[Case] = &[
    (b"", Envoy(400), Envoy(0)),
    (b"*", Envoy(400), Envoy(0)),
    (b"files/report.txt", Envoy(400), Envoy(0)),
    (b"?x=1", Envoy(400), Envoy(0)),
    (b"#", Envoy(400), Envoy(0)),
    (b"http:/files/report.txt", Envoy(400), Envoy(0)),
    (b"http:files/report.txt", Envoy(400), Envoy(0)),
    (b"http://other.example/files/report.txt", Bad, Envoy(0)),
    (
        b"https://other.example/files/report.txt",
        Envoy(403),
        Envoy(0),
    ),
    (
        b"ftp://other.example/files/report.txt",
        Envoy(400),
        Envoy(0),
    ),
    (b"http://", Envoy(400), Envoy(0)),
    (b"other.example:443", Envoy(400), Envoy(0)),
    (b"/\t/files/report.txt", Envoy(400), Envoy(0)),
];

const TEMPLATES: &[Case] = &[
    (b"/files/*", Bad, Bad),
    (b"/files/**", Bad, Bad),
    (b"/*/report.txt", Bad, Bad),
    (b"/files/{x}", Bad, Bad),
    (b"/files/{report.txt}", Bad, Bad),
    (b"/files/%7Bx%7D", Bad, Bad),
    (b"/files/%2A", Bad, Bad),
    (b"/files/[a-z]*.txt", Bad, Bad),
    (b"/files/report.tx$", Other, Other),
];

const AUTHORITIES: &[Case] = &[
    (b"//b.example/files/report.txt", Other, Other),
    (b"//b.example//files/report.txt", Other, Other),
    (b"///files/report.txt", Normal, Normal),
    (b"////b.example/files/report.txt", Other, Other),
    (b"/\\b.example/files/report.txt", Other, Other),
    (b"\\\\b.example/files/report.txt", Envoy(400), Envoy(0)),
    (b"//user@b.example:80/files/report.txt", Other, Other),
    (
        b"//files/report.txt/../../b.example/files/report.txt",
        Other,
        Other,
    ),
];

/// Tries each target over both protocols, with a proof for the action and with
/// one for what is sent, at Writ's listener and at each other setting of Envoy.
async fn spellings(stages: &mut Stages, cases: &[Case]) -> Result<String, Error> {
    let envoy = super::envoys_version()?;
    let stage = stages.varied().await?;
    let addresses = [stage.address()].into_iter();
    let others = stage
        .system
        .variants()
        .iter()
        .map(crate::system::Variant::address);
    let mut edges = Vec::new();
    for address in addresses.chain(others) {
        let token = stage.agent.token("GET", REPORT).await?;
        edges.push((address, token));
    }
    let mut tries = Tries {
        stage,
        audit: Audit::begin(stage)?,
        edges,
        sent: 0,
        served: 0,
        faults: Vec::new(),
    };
    for (target, http1, http2) in cases {
        for over in BOTH {
            let class = if over == Over::Http1 { http1 } else { http2 };
            for proof_for_sent in [false, true] {
                let class = class.with(&envoy);
                tries.volley(target, class, over, proof_for_sent).await?;
            }
        }
    }
    holds(tries.faults.is_empty(), tries.faults.join("\n"))?;
    let Tries {
        audit,
        sent,
        served,
        edges,
        ..
    } = tries;
    next_good(stage).await?;
    let logged = audit.settled(stage).await?;
    Ok(format!(
        "{} spellings in {sent} requests to {} settings of Envoy: {served} arrived, each as the action; {logged}",
        cases.len(),
        edges.len()
    ))
}

struct Tries<'a> {
    stage: &'a Stage,
    audit: Audit,
    /// Where to, Writ's own listener first, each with a token: gates spend
    /// nothing, so it is good until it is served.
    edges: Vec<(String, String)>,
    sent: usize,
    served: usize,
    faults: Vec<String>,
}

impl Tries<'_> {
    /// One target to each listener at once.
    async fn volley(
        &mut self,
        target: &[u8],
        class: Class,
        over: Over,
        proof_for_sent: bool,
    ) -> Result<(), Error> {
        let about = if proof_for_sent { "it" } else { "the action" };
        let what = format!("{} over {over:?}, proof for {about}", target.escape_ascii());
        let sent = String::from_utf8_lossy(target);
        let proof_for = if proof_for_sent { &*sent } else { REPORT };
        let mark = Mark::now(self.stage)?;
        let mut shots = JoinSet::new();
        for (at, (address, token)) in self.edges.iter().enumerate() {
            let shot = Shot::get(self.stage, target)
                .with(self.stage, ("GET", proof_for), token)
                .to(address.clone());
            shots.spawn(async move { Ok::<_, Error>((at, shot.fire(over).await?)) });
        }
        let mut served = Vec::new();
        while let Some(shot) = shots.join_next().await {
            let (at, seen) = shot.map_err(|it| Error::Unexpected(it.to_string()))??;
            self.sent += 1;
            let (address, token) = self.edges.get(at).cloned().unwrap_or_default();
            let what = format!("{what} at {address}");
            let judged = if at == 0 {
                self.own(&what, &seen, class, proof_for_sent, &token)
            } else {
                self.other(&what, &seen, &token)
            };
            if let Err(fault) = judged {
                self.faults.push(fault.to_string());
            }
            if seen.status == 200 {
                served.push(at);
            }
        }
        if let Err(fault) = self.arrived(&what, mark, &served) {
            self.faults.push(fault.to_string());
        }
        for at in served {
            self.served += 1;
            let fresh = self.stage.agent.token("GET", REPORT).await?;
            if let Some((_, token)) = self.edges.get_mut(at) {
                *token = fresh;
            }
        }
        Ok(())
    }

    /// At Writ's own listener, where it is known what comes.
    fn own(
        &mut self,
        what: &str,
        seen: &Seen,
        class: Class,
        proof_for_sent: bool,
        token: &str,
    ) -> Result<(), Error> {
        let unproven = Want::No(401, "proof_target");
        let mismatch = Want::No(403, "action_mismatch");
        let want = match class {
            Envoy(status) => Want::Envoy(status),
            Bad => unproven,
            Query => mismatch,
            // Envoy may have made another path of it than the one that the proof
            // is for; what counts is that it is not the action.
            Other if proof_for_sent && seen.status == 403 => mismatch,
            Other => unproven,
            Normal if proof_for_sent && seen.status == 401 => unproven,
            Normal => Want::Served,
            Dotted => return Err(Error::Unexpected(format!("{what}: of no Envoy"))),
        };
        wanted(what, seen, want)?;
        self.audit.note(want, token);
        Ok(())
    }

    /// At a listener of somebody else's: refused, or the action.
    fn other(&mut self, what: &str, seen: &Seen, token: &str) -> Result<(), Error> {
        // A client that is sent elsewhere has to come again, with another proof.
        let ok = [200, 307].contains(&seen.status) || seen.is_refusal();
        holds(ok, format!("{what}: {seen:?}"))?;
        match seen.reason.as_str() {
            "" => {}
            "proof_target" => self.audit.count("proof_target"),
            "action_mismatch" => self.audit.entry(token, "action_mismatch"),
            other => return Err(Error::Unexpected(format!("{what}: refused as {other}"))),
        }
        Ok(())
    }

    /// What was served has arrived once, each as the action, and nothing else has.
    fn arrived(&self, what: &str, mark: Mark, served: &[usize]) -> Result<(), Error> {
        let arrived = mark.arrived(self.stage)?;
        let count = u64::try_from(served.len()).unwrap_or(u64::MAX);
        same(&format!("{what}: reached the upstream"), arrived, count)?;
        if served.is_empty() {
            return Ok(());
        }
        let records = mark.records(self.stage)?;
        for (_, token) in served.iter().filter_map(|at| self.edges.get(*at)) {
            let id = jti(token);
            let mut of_token = records
                .iter()
                .filter(|it| it.header("x-writ-token-id") == Some(&id));
            match (of_token.next(), of_token.next()) {
                (Some(record), None) => reads_as(what, record, "GET", REPORT)?,
                _ => return Err(Error::Unexpected(format!("{what}: not one record of {id}"))),
            }
        }
        Ok(())
    }
}
