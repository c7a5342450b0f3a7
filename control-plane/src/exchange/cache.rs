//! Public documents that may be kept for a while (RFC 9111), and asked for again by
//! their tag (RFC 9110, section 13).

use axum::Json;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64ct::{Base64UrlUnpadded, Encoding};
use sha2::{Digest, Sha256};

/// Bytes of a digest that make a tag.
const TAG: usize = 16;

/// The document, or 304 where whoever asks has this very one. It may be gone by for
/// `max_age_s`, and no longer.
pub fn json(body: &serde_json::Value, max_age_s: u64, asked: &HeaderMap) -> Response {
    let digest = Sha256::digest(body.to_string().as_bytes());
    let tag = digest.get(..TAG).unwrap_or_default();
    let tag = format!("\"{}\"", Base64UrlUnpadded::encode_string(tag));
    let headers: [(HeaderName, String); 2] = [
        (
            header::CACHE_CONTROL,
            format!("public, max-age={max_age_s}, must-revalidate"),
        ),
        (header::ETAG, tag.clone()),
    ];
    if has(asked, &tag) {
        (StatusCode::NOT_MODIFIED, headers).into_response()
    } else {
        (headers, Json(body)).into_response()
    }
}

/// Whether `If-None-Match` names this tag: the weak comparison (RFC 9110, section
/// 8.8.3.2).
fn has(asked: &HeaderMap, tag: &str) -> bool {
    let all = asked.get_all(header::IF_NONE_MATCH).iter();
    let mut tags = all.filter_map(|value| value.to_str().ok());
    tags.any(|list| {
        let mut each = list.split(',').map(str::trim);
        each.any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;
    use serde_json::json;

    fn ask(tag: Option<&str>) -> Response {
        let mut headers = HeaderMap::new();
        if let Some(tag) = tag {
            headers.append(header::IF_NONE_MATCH, HeaderValue::from_str(tag).unwrap());
        }
        super::json(&json!({"keys": [1]}), 5, &headers)
    }

    #[test]
    fn who_has_it_is_told_so_and_who_has_another_gets_it() {
        let first = ask(None);
        assert_eq!(first.status(), 200);
        let tag = first.headers()[header::ETAG].to_str().unwrap().to_owned();
        for (asked, status) in [
            (tag.clone(), 304),
            (format!("W/{tag}"), 304),
            (format!("\"other\", {tag}"), 304),
            ("*".to_owned(), 304),
            ("\"other\"".to_owned(), 200),
            (tag.trim_matches('"').to_owned(), 200),
            (String::new(), 200),
        ] {
            let answer = ask(Some(&asked));
            assert_eq!(answer.status(), status, "{asked}");
            let headers = answer.headers();
            assert_eq!(headers[header::ETAG], tag);
            let kept = "public, max-age=5, must-revalidate";
            assert_eq!(headers[header::CACHE_CONTROL], kept);
        }
        let other = super::json(&json!({"keys": [2]}), 5, &HeaderMap::new());
        assert_ne!(other.headers()[header::ETAG], tag);
    }
}
