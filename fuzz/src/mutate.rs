//! Changed inputs from good ones, the same for the same seed: enough to notice
//! in seconds what a change has broken. libFuzzer, which learns from coverage,
//! is for finding what nobody has thought of.

/// Pieces that parsers here care about.
const PIECES: [&[u8]; 24] = [
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b".",
    b"..",
    b"/",
    b"//",
    b"%",
    b"%2f",
    b"%00",
    b"?",
    b"#",
    b";",
    b"@",
    b"=",
    b"\\u0070",
    b"\xff",
    b"null",
    b"9007199254740993",
];

/// Changes inputs by a sequence of numbers that its seed gives.
pub struct Mutator(u64);

impl Mutator {
    /// A sequence of its own for each seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 when there is none.
    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX);
        let number = self.next().checked_rem(bound).unwrap_or(0);
        usize::try_from(number).unwrap_or(0)
    }

    /// A changed copy of one of these inputs, at most 64 KiB long.
    #[must_use]
    pub fn changed(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let chosen = self.below(inputs.len());
        let mut input = inputs.get(chosen).cloned().unwrap_or_default();
        for _ in 0..=self.below(3) {
            self.change(&mut input, inputs);
        }
        input.truncate(64 * 1024);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, inputs: &[Vec<u8>]) {
        let at = self.below(input.len());
        let end = at.saturating_add(self.below(16)).min(input.len());
        match self.below(7) {
            // A bit, a byte, a cut, a copy, a piece, a tail of another, an end.
            0 => {
                let bit = 1_u8 << self.below(8);
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= bit;
                }
            }
            1 => {
                let [new, ..] = self.next().to_le_bytes();
                if let Some(byte) = input.get_mut(at) {
                    *byte = new;
                }
            }
            2 => drop(input.drain(at..end)),
            3 => {
                let copy = input.get(at..end).unwrap_or_default().to_vec();
                drop(input.splice(at..at, copy));
            }
            4 => {
                let piece = self.below(PIECES.len());
                let piece = PIECES.get(piece).copied().unwrap_or_default();
                drop(input.splice(at..end, piece.iter().copied()));
            }
            5 => {
                let other = self.below(inputs.len());
                let other = inputs.get(other).map(Vec::as_slice).unwrap_or_default();
                let from = self.below(other.len());
                input.truncate(at);
                input.extend_from_slice(other.get(from..).unwrap_or_default());
            }
            _ => input.truncate(at),
        }
    }
}
