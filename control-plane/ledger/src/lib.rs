//! See the crate's description; filled in by the first slices.
