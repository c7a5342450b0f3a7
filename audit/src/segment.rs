//! Segments: the files that groups stand in, zero-filled to their size before use.

use crate::group::{Group, MAGIC};

/// The usual size of a segment in bytes.
pub const SEGMENT_LEN: usize = 8 * 1024 * 1024;
/// The reserved, zero-filled file that becomes the next segment.
pub const SPARE: &str = "spare.seg";

/// The file name of a segment: its number in 16 digits.
#[must_use]
pub fn file_name(number: u64) -> String {
    format!("{number:016}.seg")
}

/// The segment that a file name names, if it names one.
#[must_use]
pub fn number_of(file_name: &str) -> Option<u64> {
    let digits = file_name.strip_suffix(".seg")?;
    let good = digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_digit());
    if good { digits.parse().ok() } else { None }
}

/// The first whole group at or after `from` which satisfies `wanted`. Every byte
/// is looked at, not only where groups start: a byte that was put in or taken
/// out moves all that follow it.
pub fn find_group<'a>(
    bytes: &'a [u8],
    from: usize,
    mut wanted: impl FnMut(&Group<'a>) -> bool,
) -> Option<(usize, Group<'a>)> {
    let mut at = from;
    while let Some(rest) = bytes.get(at..) {
        let ahead = rest
            .windows(MAGIC.len())
            .position(|window| window == MAGIC)?;
        at = at.saturating_add(ahead);
        match Group::decode(bytes.get(at..)?) {
            Ok(group) if wanted(&group) => return Some((at, group)),
            _ => at = at.saturating_add(1),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sixteen_digits_name_a_segment() {
        assert_eq!(number_of(&file_name(42)), Some(42));
        for other in [
            SPARE,
            "lock",
            "42.seg",
            "000000000000004x.seg",
            "+000000000000042.seg",
            "0000000000000042.seg~",
        ] {
            assert_eq!(number_of(other), None, "{other}");
        }
    }
}
