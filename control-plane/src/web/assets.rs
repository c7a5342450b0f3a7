//! The style sheet, the script and the mark, in the binary.
//!
//! Their names carry their content's hash, so they may be cached for good.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

/// Addresses of the assets, as pages name them.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) css: String,
    pub(super) js: String,
    pub(super) icon: String,
}

struct Asset {
    content_type: &'static str,
    text: &'static str,
}

const CSS: Asset = Asset {
    content_type: "text/css; charset=utf-8",
    text: include_str!("../../assets/app.css"),
};
const JS: Asset = Asset {
    content_type: "text/javascript; charset=utf-8",
    text: include_str!("../../assets/app.js"),
};
const ICON: Asset = Asset {
    content_type: "image/svg+xml",
    text: include_str!("../../assets/mark.svg"),
};

static NAMES: LazyLock<Names> = LazyLock::new(|| {
    let name = |stem: &str, asset: &Asset, end: &str| {
        let hash = hex::encode(Sha256::digest(asset.text.as_bytes()));
        format!("/assets/{stem}.{}.{end}", hash.get(..16).unwrap_or(&hash))
    };
    Names {
        css: name("app", &CSS, "css"),
        js: name("app", &JS, "js"),
        icon: name("mark", &ICON, "svg"),
    }
});

pub(super) fn names() -> &'static Names {
    &NAMES
}

pub(super) async fn serve(Path(name): Path<String>) -> Response {
    let wanted = format!("/assets/{name}");
    let Some((_, asset)) = [(&NAMES.css, &CSS), (&NAMES.js, &JS), (&NAMES.icon, &ICON)]
        .into_iter()
        .find(|(known, _)| **known == wanted)
    else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, asset.content_type),
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable"),
    ];
    (headers, asset.text).into_response()
}
