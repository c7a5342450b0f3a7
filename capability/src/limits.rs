//! The named limits on what is read, with their defaults and ceilings.

/// Sizes are in bytes. [`Limits::default`] has the defaults; [`Limits::checked`]
/// refuses what is over a ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// All header names and values together; 32 KiB, at most 64 KiB.
    pub header_block: usize,
    /// A capability token; 4 KiB, at most 8 KiB.
    pub token: usize,
    /// A DPoP proof; 4 KiB, at most 8 KiB.
    pub proof: usize,
    /// How deep JSON nests; 16, at most 32. The outermost container counts as 1.
    pub json_depth: usize,
    /// Members of one JSON object, or elements of one array; 64, at most 128.
    pub json_members: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_block: 32 * 1024,
            token: 4 * 1024,
            proof: 4 * 1024,
            json_depth: 16,
            json_members: 64,
        }
    }
}

/// A limit in the configuration is zero or over its ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("limit `{name}` is {value}, but has to be from 1 to {ceiling}: change it in the config")]
pub struct LimitError {
    /// The field of [`Limits`].
    pub name: &'static str,
    /// What was asked for.
    pub value: usize,
    /// The most that can be asked for.
    pub ceiling: usize,
}

impl Limits {
    /// The most that each limit can be set to.
    pub const CEILING: Self = Self {
        header_block: 64 * 1024,
        token: 8 * 1024,
        proof: 8 * 1024,
        json_depth: 32,
        json_members: 128,
    };

    /// Gives the limits back when each is from 1 to its ceiling.
    ///
    /// # Errors
    /// The first limit that is not.
    pub fn checked(self) -> Result<Self, LimitError> {
        let top = Self::CEILING;
        for (name, value, ceiling) in [
            ("header_block", self.header_block, top.header_block),
            ("token", self.token, top.token),
            ("proof", self.proof, top.proof),
            ("json_depth", self.json_depth, top.json_depth),
            ("json_members", self.json_members, top.json_members),
        ] {
            if value == 0 || value > ceiling {
                return Err(LimitError {
                    name,
                    value,
                    ceiling,
                });
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::Limits;

    #[test]
    fn defaults_and_ceilings_pass_and_beyond_is_refused() {
        assert!(Limits::default().checked().is_ok());
        assert!(Limits::CEILING.checked().is_ok());
        let over = Limits {
            proof: 8 * 1024 + 1,
            ..Limits::default()
        };
        assert_eq!(over.checked().unwrap_err().name, "proof");
        let none = Limits {
            json_depth: 0,
            ..Limits::default()
        };
        assert_eq!(none.checked().unwrap_err().name, "json_depth");
    }
}
