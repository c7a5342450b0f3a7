//! What a client submits for a person to see, and what its request will say of it. These
//! parameters are our own.

use super::super::ExchangeError;
use super::super::form::Params;
use crate::decide::Content;

/// The body that a person has to see, base64url. These three are our own.
pub(super) const CONTENT: &str = "writ_content";
/// Its `content-type`, as the request will have it.
pub(super) const CONTENT_TYPE: &str = "writ_content_type";
/// Its `content-encoding`.
pub(super) const CONTENT_ENCODING: &str = "writ_content_encoding";

/// A body that is submitted is at most so long, in bytes.
const CONTENT_MAX: usize = 16 * 1024;
/// What says of what kind it is, in bytes each: the filter takes no more.
const CONTENT_NAME_MAX: usize = 256;

/// What goes with the action, of the client's own words.
#[derive(Default)]
pub(in super::super) struct Submitted {
    media_type: String,
    encoding: String,
    pub(super) body: Option<Vec<u8>>,
}

impl Submitted {
    pub(super) fn of(params: &Params) -> Result<Self, ExchangeError> {
        let name = |name: &str| {
            let text = params.get(name).unwrap_or_default();
            let plain = text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
            if text.len() > CONTENT_NAME_MAX
                || !plain
                || (name == CONTENT_TYPE && text.contains(','))
            {
                return Err(ExchangeError::Request(format!(
                    "`{name}` is what the request's header will say, of at most {CONTENT_NAME_MAX} printable ASCII letters"
                )));
            }
            Ok(text.to_owned())
        };
        let body = params.get(CONTENT).map(|text| {
            let bytes = capability::b64::decode(text);
            bytes.filter(|it| it.len() <= CONTENT_MAX).ok_or_else(|| {
                ExchangeError::Request(format!(
                    "`{CONTENT}` is the body in base64url without padding, of at most {CONTENT_MAX} bytes; hold a longer one at the edge: ask without completion_mode"
                ))
            })
        });
        Ok(Self {
            media_type: name(CONTENT_TYPE)?,
            encoding: name(CONTENT_ENCODING)?,
            body: body.transpose()?,
        })
    }

    pub(super) fn content(&self) -> Content<'_> {
        Content {
            media_type: &self.media_type,
            encoding: &self.encoding,
            body: self.body.as_deref(),
        }
    }
}
