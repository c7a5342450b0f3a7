//! What else names a request's target: query, authority, method.

use super::check::{holds, same};
use super::edge::{Audit, BOTH, Mark, Over, Shot, Want, next_good};
use super::stages::Stages;
use super::table::Table;
use super::{How, Row};
use crate::Error;
use crate::raw::field;
use crate::stage::text_at;
use crate::upstream::REPORT;

/// The rows, by their ids.
pub const ROWS: &[Row] = &[
    Row {
        id: "F11",
        how: How::Live(|it| Box::pin(queries(it))),
    },
    Row {
        id: "F12",
        how: How::Live(|it| Box::pin(one_form(it))),
    },
    Row {
        id: "F20",
        how: How::Live(|it| Box::pin(authorities(it))),
    },
    Row {
        id: "F21",
        how: How::Live(|it| Box::pin(host_alone(it))),
    },
    Row {
        id: "F33",
        how: How::Live(|it| Box::pin(methods(it))),
    },
];

/// The action of the rows about queries.
const PAY: &str = "/echo/pay?amount=1&to=ada";

/// Other queries than [`PAY`]'s, for one server or another.
const QUERIES: [&str; 21] = [
    "",
    "?",
    "?amount=1000&to=ada",
    "?to=ada&amount=1",
    "?amount=1&to=ada&amount=1000",
    "?amount=1000&amount=1&to=ada",
    "?amount=1&amount=1&to=ada",
    "?amount=1;to=ada",
    "?amount=1&to=ada;amount=1000",
    "?amount=1&to=ada&",
    "?&amount=1&to=ada",
    "?amount=1&&to=ada",
    "?amount=1&to=ada&amount=",
    "?amount=1&to=ada&amount",
    "?amount=1&to=ada&AMOUNT=1000",
    "?amount=1&to=ada&_method=DELETE",
    "?amount%5B%5D=1&to=ada",
    "?amount=1&amount%5B%5D=1000&to=ada",
    "?amount=+1&to=ada",
    "?amount=1%26amount=1000&to=ada",
    "??amount=1&to=ada",
];

/// Queries that no URL has.
const BROKEN: [&str; 6] = [
    "?amount=%1",
    "?amount=1&to=%",
    "?amount=%u0031",
    "?amount[]=1&to=ada",
    "?amount=1&amount[]=1000&to=ada",
    "?amount=1&to=ada%00",
];

const UNPROVEN: Want = Want::No(401, "proof_target");
const MISMATCH: Want = Want::No(403, "action_mismatch");

async fn queries(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let mut table = Table::of(stage, "GET", PAY).await?;
    for over in BOTH {
        for query in QUERIES {
            let mut shot = table.right();
            shot.target = format!("/echo/pay{query}").into_bytes();
            table.expect(query, &shot, over, MISMATCH).await?;
        }
        for broken in BROKEN {
            let mut shot = table.right();
            shot.target = format!("/echo/pay{broken}").into_bytes();
            table.expect(broken, &shot, over, UNPROVEN).await?;
        }
        let right = table.right();
        table
            .expect("its own query", &right, over, Want::Served)
            .await?;
    }
    let said = table.finish().await?;
    // A token may be had for a query with any of that in it, and is for that one.
    let mut tokens = 0;
    for query in QUERIES.iter().filter(|query| query.len() > 1) {
        let path = format!("/echo/pay{query}");
        let answer = stage.agent.exchange("GET", &path).await?;
        if answer.status == 200 {
            let mark = Mark::now(stage)?;
            let token = text_at(&answer.json(), "/access_token");
            let shot = Shot::get(stage, path.as_str()).with(stage, ("GET", &path), &token);
            same(query, shot.fire(Over::Http1).await?.status, 200)?;
            let arrived = mark.records(stage)?;
            let lines: Vec<&str> = arrived.iter().map(|it| it.line.as_str()).collect();
            same(
                "the bytes",
                lines,
                vec![format!("GET {path} HTTP/1.1").as_str()],
            )?;
            tokens += 1;
        }
    }
    holds(
        tokens > 10,
        format!("only {tokens} queries can be had a token for"),
    )?;
    Ok(format!(
        "{said}; of {tokens} queries with a token each, each arrived as its bytes"
    ))
}

/// Targets that stand for the kinds of case that URL parsers differ in: each byte
/// as it is and encoded, in a segment, at its edge and in a query; and segments of
/// dots and slashes in each combination.
fn targets() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = Vec::new();
    for byte in 0..=u8::MAX {
        let raw = [byte];
        let encoded = format!("%{byte:02X}");
        let small = format!("%{byte:02x}");
        let twice = format!("%25{byte:02X}");
        for piece in [
            &raw[..],
            encoded.as_bytes(),
            small.as_bytes(),
            twice.as_bytes(),
        ] {
            all.push([b"/echo/a", piece, b"b"].concat());
        }
        all.push([b"/echo/x?a", &raw[..], b"b"].concat());
        all.push([b"/echo/x?a", encoded.as_bytes(), b"b"].concat());
    }
    let segments = ["", ".", "..", "%2e", ".%2E", "a", "..;", "%2f", "*"];
    for one in segments {
        for two in segments {
            all.push(format!("/echo/{one}/{two}").into_bytes());
            all.push(format!("/echo/{one}/{two}/b?c=/../").into_bytes());
        }
    }
    all
}

/// Filter, control plane and Envoy agree on what a target is, or it is refused.
async fn one_form(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let audit = Audit::begin(stage)?;
    let spare = stage.agent.token("GET", REPORT).await?;
    let (mut agreed, mut refused_by_all, mut refused_at_the_edge) = (0, 0, 0);
    let targets = targets();
    for target in &targets {
        let what = target.escape_ascii().to_string();
        // What the control plane takes it for.
        let minted = match std::str::from_utf8(target) {
            Ok(path) => {
                Some(stage.agent.exchange("GET", path).await?).filter(|it| it.status == 200)
            }
            Err(_) => None,
        };
        let token = minted
            .as_ref()
            .map(|it| text_at(&it.json(), "/access_token"));
        let location = minted
            .as_ref()
            .map(|it| text_at(&it.json(), "/authorization_details/0/locations/0"));
        let sent = String::from_utf8_lossy(target);
        let mark = Mark::now(stage)?;
        let shot = Shot::get(stage, target.as_slice());
        let shot = shot.with(stage, ("GET", &sent), token.as_ref().unwrap_or(&spare));
        let seen = shot.fire(Over::Http1).await?;
        if seen.status == 200 {
            let records = mark.records(stage)?;
            let [record] = records.as_slice() else {
                return Err(Error::Unexpected(format!("{what}: {records:?}")));
            };
            let arrived = stage.agent.url(&record.path);
            same(
                &format!("{what}: what arrived, and what the token names"),
                canonical(&arrived),
                location.as_deref().map(canonical).unwrap_or_default(),
            )?;
            agreed += 1;
        } else {
            holds(seen.is_refusal(), format!("{what}: {seen:?}"))?;
            mark.nothing(&what, stage)?;
            match token {
                Some(_) => refused_at_the_edge += 1,
                None => refused_by_all += 1,
            }
        }
    }
    next_good(stage).await?;
    drop(audit.settled(stage).await?);
    holds(
        agreed > 300,
        format!("only {agreed} of {} were served", targets.len()),
    )?;
    Ok(format!(
        "{} targets: {agreed} are one URL for control plane, Envoy, filter and upstream, {refused_by_all} are refused by all of them, {refused_at_the_edge} that a token could be had for are refused in this spelling; none is read in two ways",
        targets.len()
    ))
}

/// The letters of percent-encodings and needless ones are no difference (RFC 3986,
/// sections 6.2.2.1 and 6.2.2.2).
fn canonical(url: &str) -> String {
    let mut out = String::new();
    let mut rest = url;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let digits = after.get(..2).unwrap_or(after);
        let octet = u8::from_str_radix(digits, 16).unwrap_or_default();
        if octet.is_ascii_alphanumeric() || b"-._~".contains(&octet) {
            out.push(char::from(octet));
        } else {
            out.push('%');
            out.push_str(&digits.to_ascii_uppercase());
        }
        rest = after.get(2..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// Hosts, and what comes of them over HTTP/1.
fn hosts(own: &str, port: &str) -> Vec<(Vec<String>, Want)> {
    let of = |host: String, want| (vec![host], want);
    vec![
        (vec![], Want::Envoy(400)),
        of(String::new(), UNPROVEN),
        of(format!("{own}/files/report.txt?x="), Want::Envoy(400)),
        of(format!("{own}/admin/keys.txt?x="), Want::Envoy(400)),
        of(format!("{own}?x="), Want::Envoy(400)),
        of(format!("{own}#x"), Want::Envoy(400)),
        of(format!("user@{own}"), UNPROVEN),
        of(format!("user:pass@{own}"), UNPROVEN),
        of(format!("127.0.0.1.:{port}"), UNPROVEN),
        of(format!("127.0.0.1:0{port}"), UNPROVEN),
        of(format!("127.0.0.1:{port}0"), UNPROVEN),
        of("127.0.0.1".to_owned(), UNPROVEN),
        of("127.0.0.1:".to_owned(), UNPROVEN),
        of(format!("localhost:{port}"), UNPROVEN),
        of(format!("2130706433:{port}"), UNPROVEN),
        of(format!("0x7f.1:{port}"), UNPROVEN),
        of(format!("127.1:{port}"), UNPROVEN),
        of(format!("[::ffff:127.0.0.1]:{port}"), UNPROVEN),
        of("other.example".to_owned(), UNPROVEN),
        of(format!("{own}, other.example"), Want::Envoy(400)),
        of(format!("{own},{own}"), UNPROVEN),
        of(format!("{own} other.example"), Want::Envoy(400)),
        of(format!("{own}\t"), Want::Served),
        (vec![own.to_owned(), "other.example".to_owned()], UNPROVEN),
        (vec!["other.example".to_owned(), own.to_owned()], UNPROVEN),
        (vec![own.to_owned(), own.to_owned()], UNPROVEN),
    ]
}

async fn authorities(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let own = stage.agent.authority().to_owned();
    let port = own.rsplit(':').next().unwrap_or_default().to_owned();
    let mut table = Table::of(stage, "GET", REPORT).await?;
    for (hosts, want) in hosts(&own, &port) {
        let mut shot = table.right();
        shot.authority = hosts.iter().map(|host| host.clone().into_bytes()).collect();
        table
            .expect(&format!("Host {hosts:?}"), &shot, Over::Http1, want)
            .await?;
        // One pseudo header is all that HTTP/2 has for it.
        if let [host] = hosts.as_slice() {
            let want = match want {
                Want::Served | Want::Envoy(_) => Want::Envoy(0),
                want if host.is_empty() || host.contains('@') => {
                    // Its HTTP/2 is stricter than its HTTP/1.
                    same("over HTTP/1", want, UNPROVEN)?;
                    Want::Envoy(0)
                }
                want => want,
            };
            table
                .expect(&format!(":authority {host:?}"), &shot, Over::Http2, want)
                .await?;
        }
    }
    // The absolute form names the authority itself (RFC 9112, section 3.2.2).
    for (url, host, want) in [
        (
            format!("http://{own}{REPORT}"),
            "other.example".to_owned(),
            Want::Served,
        ),
        (
            format!("http://other.example{REPORT}"),
            own.clone(),
            UNPROVEN,
        ),
        (
            format!("http://user@{own}{REPORT}"),
            own.clone(),
            Want::Served,
        ),
    ] {
        let mut shot = table.right();
        shot.target = url.clone().into_bytes();
        shot.authority = vec![host.into_bytes()];
        table.expect(&url, &shot, Over::Http1, want).await?;
    }
    table.finish().await
}

/// HTTP/2 with `host` in the place of `:authority`, and beside it.
async fn host_alone(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let own = stage.agent.authority().to_owned();
    let mut table = Table::of(stage, "GET", REPORT).await?;
    let cases: [(&[&str], &[&str], Want); 6] = [
        (&[], &[&own], Want::Served),
        (&[], &["other.example"], UNPROVEN),
        // The pseudo header counts, and the other goes no further.
        (&[&own], &["other.example"], Want::Served),
        (&["other.example"], &[&own], UNPROVEN),
        (&[], &[&own, "other.example"], Want::Envoy(0)),
        (&[], &[], Want::Envoy(0)),
    ];
    for (authorities, hosts, want) in cases {
        let mut shot = table.right();
        shot.authority = authorities
            .iter()
            .map(|it| it.as_bytes().to_vec())
            .collect();
        shot.headers
            .extend(hosts.iter().map(|host| field("host", *host)));
        let what = format!(":authority {authorities:?}, host {hosts:?}");
        table.expect(&what, &shot, Over::Http2, want).await?;
    }
    table.finish().await
}

async fn methods(stages: &mut Stages) -> Result<String, Error> {
    let stage = stages.single().await?;
    let mut table = Table::of(stage, "GET", REPORT).await?;
    let unproven = Want::No(401, "proof_method");
    // What answers a HEAD has no body, and so no reason; a second space is Envoy's to
    // take away.
    let cases: [(&[u8], Want, Want); 16] = [
        (b"get", Want::Envoy(400), unproven),
        (b"Get", Want::Envoy(400), unproven),
        (b"FOO", Want::Envoy(400), unproven),
        (b"TRACE", unproven, unproven),
        (b"TRACK", Want::Envoy(400), unproven),
        (b"DEBUG", Want::Envoy(400), unproven),
        (b"PROPFIND", unproven, unproven),
        (b"PURGE", unproven, unproven),
        (b"PRI", Want::Envoy(400), unproven),
        (b"HEAD", unproven, Want::Envoy(401)),
        (b"POST", unproven, unproven),
        (b"GET ", Want::Served, Want::Envoy(0)),
        (b" GET", Want::Envoy(400), Want::Envoy(0)),
        (b"GET\x01", Want::Envoy(400), Want::Envoy(0)),
        (b"GET\0", Want::Envoy(400), Want::Envoy(0)),
        (b"", Want::Envoy(400), Want::Envoy(0)),
    ];
    for (method, http1, http2) in cases {
        for (over, want) in [(Over::Http1, http1), (Over::Http2, http2)] {
            // Its answer has no body, whatever its length says.
            if method == b"HEAD" && over == Over::Http1 {
                continue;
            }
            let mut shot = table.right();
            shot.method = method.to_vec();
            table
                .expect(
                    &format!("{:?}", method.escape_ascii().to_string()),
                    &shot,
                    over,
                    want,
                )
                .await?;
        }
    }
    table.finish().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_of_encodings_are_the_one_difference() {
        assert_eq!(canonical("http://a/%2f%zz%2D%2"), "http://a/%2F%ZZ-%2");
        assert_eq!(targets().len(), 256 * 6 + 2 * 81);
    }
}
