use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{chain::EMPTY, evidence::AttachmentRef};

fn header(first: u64) -> Header {
    Header {
        log: [9; 16],
        segment: 3,
        group: 5,
        first,
        durable: first,
        count: 0,
        lines_len: 0,
        total_len: 0,
        head: EMPTY,
    }
}

/// A group of `n` lines, each with one attachment.
fn group(n: u64) -> Vec<u8> {
    let mut builder = Builder::default();
    let mut prev = EMPTY;
    for index in 0..n {
        let salted = [
            [u8::try_from(index).unwrap() + 1; 32].as_slice(),
            b"evidence",
        ]
        .concat();
        let line = Line {
            index,
            time_ms: 1000 + index,
            prev,
            epoch: 1,
            kind: "note".into(),
            body: json!({"n": index}),
            attachments: vec![AttachmentRef::new(
                "proof",
                salted[..32].try_into().unwrap(),
                b"evidence",
            )],
        };
        let bytes = line.encode().unwrap();
        prev = leaf_hash(&bytes);
        builder.push(&bytes, [salted.as_slice()]);
    }
    builder.finish(header(0)).unwrap().1
}

#[test]
fn a_group_reads_back() {
    let mut bytes = group(3);
    let len = bytes.len();
    bytes.extend_from_slice(&[0; 700]);
    let group = Group::decode(&bytes).unwrap();
    assert_eq!(
        (group.len(), group.entries.len(), group.header.count),
        (len, 3, 3)
    );
    assert!(group.entries.iter().all(Entry::attachments_match));
    assert_eq!(group.entries[2].line.prev, group.entries[1].leaf);
    assert_eq!(group.header.head, group.entries[2].leaf);
    assert_eq!(&group.entries[1].attached[0][32..], b"evidence");
}

#[test]
fn every_flipped_bit_is_found() {
    let good = group(2);
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let found = match Group::decode(&bad) {
            Err(_) => true,
            Ok(group) => !group.entries.iter().all(Entry::attachments_match),
        };
        assert!(found, "bit {bit}");
        assert!(
            !is_unfinished(&bad),
            "bit {bit} looks like a write that stopped"
        );
    }
}

#[test]
fn every_stopped_write_is_unfinished() {
    let good = group(9);
    let mut room = vec![0; good.len() + 4 * BLOCK];
    for end in 0..good.len() {
        room[..end].copy_from_slice(&good[..end]);
        assert!(is_unfinished(&room), "stopped at {end}");
        assert!(Group::decode(&room).is_err(), "stopped at {end}");
    }
    for block in 0..good.len() / BLOCK {
        let mut lost = good.clone();
        lost[block * BLOCK..(block + 1) * BLOCK].fill(0);
        assert!(is_unfinished(&lost), "block {block} lost");
    }
    room[..good.len()].copy_from_slice(&good);
    assert!(!is_unfinished(&room));
}

#[test]
fn too_much_is_refused_when_writing() {
    assert_eq!(
        Builder::default().finish(header(0)),
        Err(GroupError::Lengths)
    );
    let mut builder = Builder::default();
    builder.push(b"{}", [vec![1; MAX_GROUP].as_slice()]);
    assert!(builder.len_with(0) > MAX_GROUP);
    assert_eq!(builder.finish(header(0)), Err(GroupError::Lengths));
}

/// Sets the digest right again, as somebody who rewrites a group would.
fn seal(bytes: &mut [u8]) {
    let lines_end = HEADER_LEN + as_usize(u32::from_be_bytes(bytes[64..68].try_into().unwrap()));
    let Some(lines) = bytes.get(HEADER_LEN..lines_end) else {
        return;
    };
    let digest = Sha256::new()
        .chain_update(&bytes[..DIGESTED])
        .chain_update(lines)
        .finalize();
    bytes[DIGESTED..HEADER_LEN].copy_from_slice(&digest);
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let _ = Group::decode(&bytes);
        let _ = is_unfinished(&bytes);
    }

    #[test]
    fn no_resealed_change_panics(changes in prop::collection::vec((0usize..1536, any::<u8>()), 1..8)) {
        let mut bytes = group(2);
        let len = bytes.len();
        for (at, to) in changes {
            bytes[at % len] = to;
        }
        seal(&mut bytes);
        if let Ok(group) = Group::decode(&bytes) {
            prop_assert!(group.len() <= len);
        }
    }
}
