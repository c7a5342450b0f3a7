//! Who is at the other end of a connection: its client certificate, as TLS had
//! it. No header is asked.

use crate::host;
use capability::x509::Leaf;
use std::rc::Rc;

/// Connections whose certificates are remembered, per worker. The ids of a host's
/// connections count up: each has the place of its id, and the one that was there
/// before is read again when it comes back.
const PEERS_MAX: usize = 1_024;

/// The certificates of connections, by the host's ids, which it never uses again.
#[derive(Default)]
pub struct Peers {
    known: Vec<Option<(u64, Rc<Leaf>)>>,
}

impl Peers {
    /// The client certificate of the connection of the request in force; none
    /// when it showed none. One that can't be read is nobody's.
    pub fn of_request(&mut self) -> Option<Rc<Leaf>> {
        let connection = host::number_property(&["connection", "id"]);
        if let Some((id, place)) = connection.and_then(|id| Some((id, self.place(id)?)))
            && let Some((known, leaf)) = place
            && *known == id
        {
            return Some(Rc::clone(leaf));
        }
        let pem = host::bytes_property(&["connection", "peer_certificate"])?;
        let leaf = Rc::new(Leaf::from_pem(&pem).unwrap_or_else(|_| Leaf::of_nobody()));
        if let Some((id, place)) = connection.and_then(|id| Some((id, self.place(id)?))) {
            *place = Some((id, Rc::clone(&leaf)));
        }
        Some(leaf)
    }

    fn place(&mut self, id: u64) -> Option<&mut Option<(u64, Rc<Leaf>)>> {
        if self.known.is_empty() {
            self.known.resize(PEERS_MAX, None);
        }
        // What is above 16 bits tells no places apart; the id beside it does.
        let [a, b, ..] = id.to_le_bytes();
        let place = usize::from(u16::from_le_bytes([a, b])) % PEERS_MAX;
        self.known.get_mut(place)
    }
}
