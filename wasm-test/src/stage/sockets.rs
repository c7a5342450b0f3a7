//! Which of several processes has a connection, by what the kernel says.

use std::path::Path;

/// The place in `pids` of the process that has accepted the loopback connection
/// from this port; none while nobody has, or where there is no `/proc`.
pub fn owner(from: u16, pids: &[u32]) -> Option<usize> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let inode = inode(&table, from)?;
    let wanted = format!("socket:[{inode}]");
    let has = |pid: &u32| {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd"));
        files.is_ok_and(|files| {
            let mut links = files
                .flatten()
                .filter_map(|file| std::fs::read_link(file.path()).ok());
            links.any(|link| link == Path::new(&wanted))
        })
    };
    pids.iter().position(has)
}

/// The inode of the socket whose peer is this loopback port.
fn inode(table: &str, peer: u16) -> Option<&str> {
    let peer = format!("0100007F:{peer:04X}");
    table.lines().find_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let inode = columns.get(9).copied().filter(|inode| *inode != "0");
        (columns.get(2) == Some(&peer.as_str()))
            .then_some(inode)
            .flatten()
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn our_own_connection_is_ours() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = listener.accept().unwrap();
        let port = client.local_addr().unwrap().port();
        assert_eq!(owner(port, &[1_000_000_000, std::process::id()]), Some(1));
        drop(accepted);
    }
}
