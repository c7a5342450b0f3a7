//! How many files what nobody has authenticated may keep open.

use rustix::process::{Resource, getrlimit};

/// `most`, and never more than one in `parts` of the files that this process
/// may have open: the journal needs some as well.
pub(crate) fn share(most: usize, parts: u64) -> usize {
    of(getrlimit(Resource::Nofile).current, most, parts)
}

/// `None` is no limit.
fn of(limit: Option<u64>, most: usize, parts: u64) -> usize {
    let share = limit.map_or(u64::MAX, |limit| limit / parts.max(1));
    usize::try_from(share).unwrap_or(usize::MAX).clamp(1, most)
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn a_share_is_never_more_than_its_part_and_never_nothing() {
        assert_eq!(of(None, 1024, 8), 1024);
        assert_eq!(of(Some(65_536), 1024, 8), 1024);
        assert_eq!(of(Some(1024), 1024, 8), 128);
        assert_eq!(of(Some(4), 1024, 8), 1);
    }
}
