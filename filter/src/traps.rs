//! Faults on demand, for tests of what the proxy does when this filter dies.
//!
//! They are in builds with the feature `traps` alone. In every other build these
//! are empty functions, and a test looks for their words in the released module.

#[cfg(not(feature = "traps"))]
pub use none::{arm, at, in_configuration};
#[cfg(feature = "traps")]
pub use some::{arm, at, in_configuration};

#[cfg(not(feature = "traps"))]
mod none {
    use crate::host::Header;

    #[inline(always)]
    pub fn arm(_headers: &[Header]) {}
    #[inline(always)]
    pub fn at(_place: &str) {}
    #[inline(always)]
    pub fn in_configuration(_bytes: &[u8]) {}
}

#[cfg(feature = "traps")]
mod some {
    use crate::host::Header;
    use std::cell::RefCell;
    use std::hint::black_box;

    /// `trap-now: PLACE HOW` arms the next callback of that place in this VM.
    const ARMING: &[u8] = b"trap-now";
    /// In a plugin configuration: the callback that reads it dies.
    const IN_CONFIGURATION: &[u8] = b"trap-now-configure";
    /// Memory is taken in pieces of this many bytes.
    const PIECE: usize = 1024 * 1024;

    thread_local! {
        static ARMED: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
    }

    /// Reads what a request asks for.
    pub fn arm(headers: &[Header]) {
        let value = headers.iter().find(|(name, _)| name == ARMING);
        let text = value.map(|(_, value)| String::from_utf8_lossy(value).into_owned());
        let Some((place, how)) = text.as_deref().and_then(|text| text.split_once(' ')) else {
            return;
        };
        ARMED.set(Some((place.to_owned(), how.to_owned())));
    }

    /// Here a callback begins, or ends.
    pub fn at(place: &str) {
        let how = ARMED.with_borrow_mut(|armed| {
            let here = armed.as_ref().is_some_and(|(wanted, _)| wanted == place);
            if here { armed.take() } else { None }
        });
        if let Some((_, how)) = how {
            spring(&how);
        }
    }

    /// Here a configuration is read.
    pub fn in_configuration(bytes: &[u8]) {
        let mut windows = bytes.windows(IN_CONFIGURATION.len());
        if windows.any(|window| window == IN_CONFIGURATION) {
            spring("panic");
        }
    }

    #[expect(clippy::panic, reason = "this is the fault that was asked for")]
    fn spring(how: &str) {
        match how {
            "grow" => {
                let mut all: Vec<Vec<u8>> = Vec::new();
                loop {
                    all.push(vec![1; PIECE]);
                    black_box(&all);
                }
            }
            "recurse" => {
                black_box(deeper(black_box(0)));
            }
            _ => panic!("a trap"),
        }
    }

    #[expect(
        unconditional_recursion,
        clippy::only_used_in_recursion,
        reason = "this is the fault that was asked for"
    )]
    fn deeper(depth: u64) -> u64 {
        let room = black_box([depth; 64]);
        deeper(depth.wrapping_add(1)).wrapping_add(room.iter().sum())
    }
}
