//! What a host calls: it writes an input where it is told to, runs a probe, and
//! reads the verdict. One call after the other, as wasm has one thread.

use std::cell::RefCell;

use crate::PROBES;

thread_local! {
    static INPUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static OUTPUT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Makes room for an input of `size` bytes, and says where.
#[expect(unsafe_code, reason = "a name that the host knows")]
#[unsafe(no_mangle)]
extern "C" fn probe_input(size: u32) -> *mut u8 {
    let size = usize::try_from(size).unwrap_or(0);
    INPUT.with_borrow_mut(|input| {
        input.clear();
        input.resize(size, 0);
        input.as_mut_ptr()
    })
}

/// Runs the probe at this place of the list over the input; the verdict's size
/// in bytes, 0 when there is no such probe.
#[expect(unsafe_code, reason = "a name that the host knows")]
#[unsafe(no_mangle)]
extern "C" fn probe_run(place: u32) -> u32 {
    let place = usize::try_from(place).ok();
    let probe = place.and_then(|place| PROBES.get(place));
    let verdict = INPUT.with_borrow(|input| probe.map(|(_, probe)| probe(input)));
    OUTPUT.with_borrow_mut(|output| {
        *output = verdict.unwrap_or_default();
        u32::try_from(output.len()).unwrap_or(0)
    })
}

/// Where the verdict is.
#[expect(unsafe_code, reason = "a name that the host knows")]
#[unsafe(no_mangle)]
extern "C" fn probe_output() -> *const u8 {
    OUTPUT.with_borrow(|output| output.as_ptr())
}
