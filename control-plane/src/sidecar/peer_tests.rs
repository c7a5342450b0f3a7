use super::*;

const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";

/// A little-endian machine's spelling; the tests' own machine is asked below.
fn word(bytes: [u8; 4]) -> String {
    format!("{:08X}", u32::from_ne_bytes(bytes))
}

fn spelled(address: SocketAddr) -> String {
    let host = match address.ip() {
        IpAddr::V4(ip) => word(ip.octets()),
        IpAddr::V6(ip) => {
            let octets = ip.octets();
            let words = octets.chunks(4).map(|four| word(four.try_into().unwrap()));
            words.collect()
        }
    };
    format!("{host}:{:04X}", address.port())
}

fn line(client: &str, server: &str, state: &str, uid: &str, inode: &str) -> String {
    let (client, server) = (client.parse().unwrap(), server.parse().unwrap());
    format!(
        "   7: {} {} {state} 00000000:00000000 02:000A 00000000 {uid}        0 {inode} 2 0000000000000000 20 4 30 10 -1\n",
        spelled(client),
        spelled(server)
    )
}

#[test]
fn owners_are_read_from_the_kernels_table() {
    const A: &str = "127.0.0.1:40000";
    const B: &str = "127.0.0.1:8400";
    let rows: [(&str, String, &[u32]); 13] = [
        ("its own line", line(A, B, "01", "1000", "77"), &[1000]),
        ("the server's end", line(B, A, "01", "1000", "77"), &[]),
        (
            "another port",
            line("127.0.0.1:40001", B, "01", "1000", "77"),
            &[],
        ),
        (
            "another address",
            line("127.0.0.2:40000", B, "01", "1000", "77"),
            &[],
        ),
        (
            "another server",
            line(A, "127.0.0.1:8401", "01", "1000", "77"),
            &[],
        ),
        (
            "TIME_WAIT, which shows uid 0",
            line(A, B, "06", "0", "0"),
            &[],
        ),
        (
            "an orphan, which shows uid 0",
            line(A, B, "01", "0", "0"),
            &[],
        ),
        ("one that is closing", line(A, B, "05", "1000", "77"), &[]),
        ("root's", line(A, B, "01", "0", "77"), &[0]),
        (
            "IPv4 by an IPv6 socket",
            line(
                "[::ffff:127.0.0.1]:40000",
                "[::ffff:127.0.0.1]:8400",
                "01",
                "5",
                "77",
            ),
            &[5],
        ),
        ("no number", line(A, B, "01", "-1", "77"), &[]),
        (
            "cut off",
            "   7: 0100007F:9C40 0100007F:20D0 01\n".to_owned(),
            &[],
        ),
        (
            "two that differ",
            line(A, B, "01", "1", "77") + &line(A, B, "01", "2", "78"),
            &[1, 2],
        ),
    ];
    let (client, server) = (A.parse().unwrap(), B.parse().unwrap());
    for (what, lines, uids) in rows {
        let table = format!("{HEAD}{lines}");
        assert_eq!(owners(&table, client, server), uids, "{what}");
    }
    let six = line("[::1]:40000", "[::1]:8400", "01", "9", "77");
    let ends = (
        "[::1]:40000".parse().unwrap(),
        "[::1]:8400".parse().unwrap(),
    );
    assert_eq!(owners(&format!("{HEAD}{six}"), ends.0, ends.1), [9]);
    assert_eq!(owners(&format!("{HEAD}{six}"), client, server), [0_u32; 0]);
}

#[test]
fn addresses_of_a_little_endian_machine() {
    if cfg!(target_endian = "little") {
        let four = address("0100007F:1F90").unwrap();
        assert_eq!(four, ("127.0.0.1".parse().unwrap(), 8080));
        let six = address("00000000000000000000000001000000:0050").unwrap();
        assert_eq!(six, ("::1".parse().unwrap(), 80));
    }
    for bad in [
        "",
        ":",
        "0100007F",
        "0100007F:",
        "0100007F:1F9",
        "0100007F:1F900",
        "+100007F:1F90",
        "0100007é:1F90",
        "0100007F00:1F90",
    ] {
        assert_eq!(address(bad), None, "{bad}");
    }
}

#[test]
fn nobody_is_chosen_among_several() {
    assert_eq!(the_one(&[]).unwrap(), None);
    assert_eq!(the_one(&[4, 4]).unwrap(), Some(4));
    assert!(the_one(&[4, 5]).is_err());
}

#[tokio::test]
async fn the_kernel_names_this_process() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    let client = tokio::net::TcpStream::connect(server).await.unwrap();
    let ours = rustix::process::geteuid().as_raw();
    let from = client.local_addr().unwrap();
    assert_eq!(uid_of(from, server).await.unwrap(), ours);
    drop(client);
    assert!(
        uid_of(from, server).await.is_err(),
        "nobody owns it any more"
    );
}

proptest::proptest! {
    #[test]
    fn what_is_spelled_is_read_back(ip: [u8; 16], v4: bool, port: u16, uid: u32) {
        let ip = if v4 {
            IpAddr::V4(Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3]))
        } else {
            IpAddr::V6(Ipv6Addr::from(ip))
        };
        let client = SocketAddr::new(ip, port);
        let server = SocketAddr::new(ip, port.wrapping_add(1));
        proptest::prop_assert_eq!(address(&spelled(client)), Some(plain(client)));
        let row = line(&client.to_string(), &server.to_string(), "01", &uid.to_string(), "7");
        let table = format!("{HEAD}{row}");
        proptest::prop_assert_eq!(owners(&table, client, server), vec![uid]);
        proptest::prop_assert_eq!(owners(&table, server, client), Vec::<u32>::new());
    }

    #[test]
    fn no_text_is_too_strange(text: String, lines: Vec<String>) {
        let end = "127.0.0.1:1".parse().unwrap();
        owners(&text, end, end);
        owners(&lines.join("\n"), end, end);
        address(&text);
    }
}
