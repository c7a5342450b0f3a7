//! The frame of a wasm module: its sections, one behind the other, up to the
//! last byte. A file that was cut or added to shows here, before a proxy gets it.

/// Magic number and version.
const HEADER_BYTES: usize = 8;
/// The highest section id that WebAssembly has (tags).
const LAST_SECTION: u8 = 13;

/// Walks over the sections of `module`, which begins with the header.
///
/// # Errors
/// Where the section begins that is none or ends beyond the file.
pub(crate) fn check(module: &[u8]) -> Result<(), usize> {
    let mut at = HEADER_BYTES;
    while let Some(rest) = module.get(at..).filter(|rest| !rest.is_empty()) {
        let after = section(rest).ok_or(at)?;
        at = module.len().saturating_sub(after.len());
    }
    Ok(())
}

/// What comes after the section that `bytes` begin with.
fn section(bytes: &[u8]) -> Option<&[u8]> {
    let (id, bytes) = bytes.split_first()?;
    let (size, bytes) = number(bytes)?;
    let (body, after) = bytes.split_at_checked(size)?;
    match *id {
        // A custom section begins with its name.
        0 => {
            let (name, body) = number(body)?;
            body.get(..name)?;
        }
        1..=LAST_SECTION => {}
        _ => return None,
    }
    Some(after)
}

/// An unsigned LEB128 of at most 32 bits, and what comes after it.
fn number(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0_u64;
    for (at, byte) in bytes.iter().take(5).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            let value = u32::try_from(value).ok()?;
            return Some((
                usize::try_from(value).ok()?,
                bytes.get(at.checked_add(1)?..)?,
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn a_frame_is_whole_or_says_where_it_is_not() {
        let long = {
            let mut bytes = vec![10, 0x80, 0x02];
            bytes.extend([0; 256]);
            bytes
        };
        let table: [(&[u8], Result<(), usize>); 10] = [
            (&[], Ok(())),
            (&[1, 1, 0], Ok(())),
            (&[0, 2, 1, b'a'], Ok(())),
            (&long, Ok(())),
            // Cut, and added to.
            (&[0, 4, 1, b'a', b'A'], Err(8)),
            (&[1, 1, 0, 10, 2, 0], Err(11)),
            (&[1], Err(8)),
            // No section has this id, this name, this length.
            (&[14, 0], Err(8)),
            (&[0, 2, 2, b'a'], Err(8)),
            (&[1, 0xff, 0xff, 0xff, 0xff, 0x7f], Err(8)),
        ];
        for (sections, expected) in table {
            let module = [b"\0asm\x01\0\0\0".as_slice(), sections].concat();
            assert_eq!(check(&module), expected, "{sections:?}");
        }
    }
}
