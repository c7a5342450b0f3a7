//! Who is at the other end of a connection on this machine, as the kernel says.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::AsyncReadExt;

/// The kernel's table of sockets is read up to this size, each of both; bytes.
const TABLE_MAX: u64 = 16 * 1024 * 1024;
/// A table that changes while it is read may leave a line out: it is read at most
/// so many times.
const LOOKS: u32 = 3;
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// The state of a connection that is open (`TCP_ESTABLISHED`). Others may have no
/// owner any more, which the table shows as uid 0.
const ESTABLISHED: &str = "01";

/// The uid of the process that opened a loopback TCP connection.
///
/// # Errors
/// When the kernel's tables can't be read, or don't say.
pub async fn uid_of(client: SocketAddr, server: SocketAddr) -> io::Result<u32> {
    for look in 0..LOOKS {
        if look > 0 {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let mut uids = Vec::new();
        for name in ["/proc/net/tcp", "/proc/net/tcp6"] {
            match table(name).await {
                Ok(text) => uids.extend(owners(&text, client, server)),
                // A kernel without IPv6 has no table of it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if let Some(uid) = the_one(&uids)? {
            return Ok(uid);
        }
    }
    Err(io::Error::other("the kernel names no owner of it"))
}

async fn table(name: &str) -> io::Result<String> {
    let mut text = String::new();
    let file = tokio::fs::File::open(name).await?;
    let read = file.take(TABLE_MAX + 1).read_to_string(&mut text).await?;
    if u64::try_from(read).unwrap_or(u64::MAX) > TABLE_MAX {
        return Err(io::Error::other(format!(
            "{name} is larger than {TABLE_MAX} bytes"
        )));
    }
    Ok(text)
}

/// All the same, or nobody.
fn the_one(uids: &[u32]) -> io::Result<Option<u32>> {
    match uids {
        [] => Ok(None),
        [uid, rest @ ..] if rest.iter().all(|other| other == uid) => Ok(Some(*uid)),
        _ => Err(io::Error::other("the kernel names several owners of it")),
    }
}

/// The uids of the open sockets that lead from `client` to `server`, out of the
/// text of /proc/net/tcp or tcp6 (proc_pid_net(5)). Lines that are not understood
/// say nothing.
fn owners(text: &str, client: SocketAddr, server: SocketAddr) -> Vec<u32> {
    let wanted = (plain(client), plain(server));
    let owner = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        fields.next()?.strip_suffix(':')?;
        let ends = (address(fields.next()?)?, address(fields.next()?)?);
        let is_open = fields.next()? == ESTABLISHED;
        let uid = fields.nth(3)?.parse::<u32>().ok()?;
        // A socket that no file holds any more has no inode, and no owner.
        let inode = fields.nth(1)?.parse::<u64>().ok()?;
        (is_open && inode != 0 && ends == wanted).then_some(uid)
    };
    text.lines().skip(1).filter_map(owner).collect()
}

/// IPv4 in IPv6's clothes is IPv4.
fn plain(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip().to_canonical(), address.port())
}

/// `0100007F:1F90`: words in the machine's own order, the port as people write it.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (host, port) = text.split_once(':')?;
    let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !hex(host) || !hex(port) || port.len() != 4 {
        return None;
    }
    let word = |at: usize| {
        let digits = host.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip = match host.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
            let octets: [u8; 16] = words.try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        }
        _ => return None,
    };
    Some((ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
#[path = "peer_tests.rs"]
mod tests;
