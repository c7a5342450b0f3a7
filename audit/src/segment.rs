//! Segments: the files that groups stand in, zero-filled to their size before use.

use crate::group::{BLOCK, Group};

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

/// The first whole group at or after `from`, at any place where a group may
/// start, which satisfies `wanted`.
pub fn find_group<'a>(
    bytes: &'a [u8],
    from: usize,
    mut wanted: impl FnMut(&Group<'a>) -> bool,
) -> Option<(usize, Group<'a>)> {
    let mut at = from.next_multiple_of(BLOCK);
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        match Group::decode(rest) {
            Ok(group) if wanted(&group) => return Some((at, group)),
            _ => at = at.saturating_add(BLOCK),
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
