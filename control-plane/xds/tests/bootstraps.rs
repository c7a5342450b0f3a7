//! The two bootstraps that users copy: one configuration, but for who may reach
//! Envoy's admin interface.

#![expect(clippy::unwrap_used, reason = "tests fail loudly")]

/// What Envoy reads of a file: its lines without the comments.
fn lines(name: &str) -> Vec<String> {
    let path = format!("{}/../../envoy/{name}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    lines.map(str::to_owned).collect()
}

/// The admin section, and everything else.
fn admin(lines: Vec<String>) -> (Vec<String>, Vec<String>) {
    let mut within = false;
    lines.into_iter().partition(|line| {
        if !line.is_empty() && !line.starts_with(' ') {
            within = line == "admin:";
        }
        within
    })
}

#[test]
fn they_differ_in_the_admin_interface_alone() {
    let (loopback, rest) = admin(lines("bootstrap.yaml"));
    let (socket, package_rest) = admin(lines("bootstrap-package.yaml"));
    assert_eq!(rest, package_rest);
    assert!(rest.len() > 50);
    let loopback = loopback.join("\n");
    assert!(loopback.contains("{ address: 127.0.0.1, port_value: 9901 }"));
    let socket = socket.join("\n");
    let mode = u32::from_str_radix("600", 8).unwrap();
    let wanted = format!("pipe: {{ path: /run/writ-envoy/admin.sock, mode: {mode} }}");
    assert!(socket.contains(&wanted), "{socket}");
    assert!(!socket.contains("socket_address"), "{socket}");
}

#[test]
fn the_service_makes_the_admin_sockets_directory_for_its_user_alone() {
    let path = format!(
        "{}/../../deploy/systemd/writ-envoy.service",
        env!("CARGO_MANIFEST_DIR")
    );
    let unit = std::fs::read_to_string(path).unwrap();
    for line in [
        "RuntimeDirectory=writ-envoy",
        "RuntimeDirectoryMode=0700",
        "User=writ-envoy",
    ] {
        assert!(unit.lines().any(|has| has == line), "{line}");
    }
}
