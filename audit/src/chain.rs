//! Hashes over lines: the chain that each line continues, and the Merkle tree
//! (RFC 6962, section 2.1) over the same leaves.

use sha2::{Digest, Sha256};

/// SHA-256.
pub type Hash = [u8; 32];

/// The `prev` of the first line, and the head of an empty journal.
pub const EMPTY: Hash = [0; 32];

/// The leaf hash of a line, SHA-256(0x00 ‖ line); the line has no newline.
#[must_use]
pub fn leaf_hash(line: &[u8]) -> Hash {
    Sha256::new()
        .chain_update([0])
        .chain_update(line)
        .finalize()
        .into()
}

/// An interior node, SHA-256(0x01 ‖ left ‖ right).
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new()
        .chain_update([1])
        .chain_update(left)
        .chain_update(right)
        .finalize()
        .into()
}

/// A Merkle tree that grows at its right edge and keeps only what its root needs:
/// one hash for each bit of its size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    /// Roots of the perfect subtrees, largest first.
    edge: Vec<Hash>,
}

impl Tree {
    /// Appends a leaf hash.
    pub fn push(&mut self, leaf: Hash) {
        let mut node = leaf;
        // One perfect subtree is completed for each low bit that is set.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.edge.pop() {
                node = node_hash(&left, &node);
            }
        }
        self.edge.push(node);
        self.size = self.size.saturating_add(1);
    }

    /// Leaves so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The tree head: SHA-256 of nothing for an empty tree.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut edge = self.edge.iter().rev();
        let Some(last) = edge.next() else {
            return Sha256::digest([]).into();
        };
        edge.fold(*last, |right, left| node_hash(left, &right))
    }
}

/// The Merkle tree head over leaf hashes, in order.
#[must_use]
pub fn root<I: IntoIterator<Item = Hash>>(leaves: I) -> Hash {
    let mut tree = Tree::default();
    for leaf in leaves {
        tree.push(leaf);
    }
    tree.root()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6962's recursive definition, word for word.
    fn recursive(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => Sha256::digest([]).into(),
            [one] => *one,
            many => {
                let k = many.len().next_power_of_two() / 2;
                node_hash(&recursive(&many[..k]), &recursive(&many[k..]))
            }
        }
    }

    #[test]
    fn roots_are_rfc_6962s() {
        // The well-known inputs of the certificate-transparency test suite.
        let inputs = [
            "",
            "00",
            "10",
            "2021",
            "3031",
            "40414243",
            "5051525354555657",
            "606162636465666768696a6b6c6d6e6f",
        ];
        let roots = [
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
            "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
            "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
        ];
        let leaves: Vec<Hash> = inputs
            .iter()
            .map(|i| leaf_hash(&hex::decode(i).unwrap()))
            .collect();
        for (n, expected) in roots.iter().enumerate() {
            assert_eq!(
                hex::encode(root(leaves[..=n].iter().copied())),
                *expected,
                "{} leaves",
                n + 1
            );
        }
    }

    #[test]
    fn growing_agrees_with_the_definition() {
        let leaves: Vec<Hash> = (0u32..130).map(|n| leaf_hash(&n.to_be_bytes())).collect();
        for n in 0..=leaves.len() {
            assert_eq!(
                root(leaves[..n].iter().copied()),
                recursive(&leaves[..n]),
                "{n} leaves"
            );
        }
    }
}
