//! What servers make of the same bytes: three that are in use, and each takes
//! some requests for others than the one before.

use super::record::Record;

/// How a server reads a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// As it stands, after one decoding.
    Strict,
    /// A servlet container: what follows a `;` in a segment is a parameter, dot
    /// segments and empty ones go after the decoding, a backslash is a slash, and
    /// it obeys the headers and fields that override method and path.
    Servlet,
    /// A proxy behind a proxy: decoded twice, dot segments go after it, and what
    /// follows a NUL is not there.
    Twice,
}

impl Reading {
    /// All of them.
    pub const ALL: [Reading; 3] = [Reading::Strict, Reading::Servlet, Reading::Twice];

    /// Method, and path with query, that this server would serve.
    pub fn action(self, record: &Record) -> (String, String) {
        let (mut method, mut target) = (record.method.clone(), record.path.clone());
        if self == Reading::Servlet {
            for name in ["x-original-url", "x-rewrite-url", "x-original-uri"] {
                if let Some(other) = record.header(name) {
                    other.clone_into(&mut target);
                }
            }
            for name in [
                "x-http-method-override",
                "x-http-method",
                "x-method-override",
            ] {
                if let Some(other) = record.header(name) {
                    other.clone_into(&mut method);
                }
            }
        }
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        if self == Reading::Servlet {
            let fields = query.split('&').filter_map(|pair| pair.split_once('='));
            if let Some((_, other)) = fields.into_iter().find(|(name, _)| *name == "_method") {
                method = other.to_ascii_uppercase();
            }
        }
        let query = target.split_once('?').map(|(_, query)| query);
        let path = self.path(path.as_bytes());
        let path = String::from_utf8_lossy(&path).into_owned();
        let whole = query.map_or_else(|| path.clone(), |query| format!("{path}?{query}"));
        (method, whole)
    }

    fn path(self, path: &[u8]) -> Vec<u8> {
        match self {
            Reading::Strict => decoded(path),
            Reading::Servlet => {
                let bare: Vec<Vec<u8>> =
                    path.split(|b| *b == b'/').map(without_parameters).collect();
                let path = decoded(&bare.join(&b'/'));
                let slashes: Vec<u8> = path
                    .iter()
                    .map(|b| if *b == b'\\' { b'/' } else { *b })
                    .collect();
                normal(&slashes)
            }
            Reading::Twice => {
                let path = decoded(&decoded(path));
                let end = path.iter().position(|b| *b == 0).unwrap_or(path.len());
                normal(path.get(..end).unwrap_or_default())
            }
        }
    }
}

fn without_parameters(segment: &[u8]) -> Vec<u8> {
    let end = segment.iter().position(|b| *b == b';');
    segment
        .get(..end.unwrap_or(segment.len()))
        .unwrap_or_default()
        .to_vec()
}

/// Percent-encodings decoded; broken ones stay.
fn decoded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let [byte, after @ ..] = rest {
        let digits = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let octet = digits.and_then(|two| u8::from_str_radix(two, 16).ok());
        match (byte, octet) {
            (b'%', Some(octet)) => {
                out.push(octet);
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    out
}

/// Without empty and dot segments.
fn normal(path: &[u8]) -> Vec<u8> {
    let mut out: Vec<&[u8]> = Vec::new();
    for segment in path.split(|b| *b == b'/') {
        match segment {
            b"" | b"." => {}
            b".." => drop(out.pop()),
            _ => out.push(segment),
        }
    }
    let mut whole = b"/".to_vec();
    whole.extend(out.join(&b'/'));
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &str, headers: &[(&str, &str)]) -> [(String, String); 3] {
        let headers = headers
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        let record = Record {
            method: "GET".to_owned(),
            path: path.to_owned(),
            headers: headers.collect(),
            ..Record::default()
        };
        Reading::ALL.map(|reading| reading.action(&record))
    }

    #[test]
    fn each_is_deceived_by_what_deceives_such_servers() {
        let paths = |path| read(path, &[]).map(|(_, path)| path);
        assert_eq!(paths("/a/b?x=%2f"), ["/a/b?x=%2f"; 3]);
        assert_eq!(paths("/a/..;/k"), ["/a/..;/k", "/k", "/a/..;/k"]);
        assert_eq!(
            paths("/a/%252e%252e/k"),
            ["/a/%2e%2e/k", "/a/%2e%2e/k", "/k"]
        );
        assert_eq!(paths("/a/%2e%2e/k"), ["/a/../k", "/k", "/k"]);
        assert_eq!(paths("/a\\..\\k"), ["/a\\..\\k", "/k", "/a\\..\\k"]);
        assert_eq!(paths("/a%00b"), ["/a\0b", "/a\0b", "/a"]);
        let methods = |path, headers: &[(&str, &str)]| read(path, headers).map(|(m, _)| m);
        assert_eq!(methods("/a?_method=delete", &[]), ["GET", "DELETE", "GET"]);
        let overriding = [("x-http-method-override", "PUT")];
        assert_eq!(methods("/a", &overriding), ["GET", "PUT", "GET"]);
        let elsewhere = read("/a", &[("x-original-url", "/k")]);
        assert_eq!(elsewhere[1].1, "/k");
    }
}
