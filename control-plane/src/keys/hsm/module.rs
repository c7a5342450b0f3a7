//! The module: loaded once, with one session, which is made anew when the token was
//! away. Only the token's thread is in here.

use super::super::KeyError;
use super::super::signer::{Point, SIGNATURE, verified};
use super::{Speaks, Wanted};
use crate::config::Pkcs11 as Settings;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// DER of the OID of P-256: what CKA_EC_PARAMS has.
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// A token that was away is not asked again before.
const AGAIN: Duration = Duration::from_millis(500);
/// What people see in the token.
const LABEL: &[u8] = b"writ token key";

/// Why a call came to nothing.
enum Fault {
    /// The module said so.
    Call(Error),
    /// What it signed is no signature by this key.
    Wrong,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Call(error)
    }
}

/// What comes of it, and why; said again while it is not tried again.
type Failure = (fn(String) -> KeyError, String);

type Handles = BTreeMap<Vec<u8>, ObjectHandle>;

pub(super) struct Module {
    settings: Settings,
    library: Pkcs11,
    /// C_Initialize was called.
    begun: bool,
    session: Option<Session>,
    /// When the session was made.
    since: Instant,
    handles: Handles,
    /// The PIN that the token refused. It is not tried again: tokens lock themselves.
    refused: Option<Zeroizing<String>>,
    /// When it was tried last without success, and what came of it.
    failed: Option<(Instant, Failure)>,
}

impl Module {
    pub fn load(settings: &Settings) -> Result<Self, KeyError> {
        let path = &settings.module;
        let library =
            Pkcs11::new(path).map_err(|error| KeyError::Module(path.clone(), error.to_string()))?;
        // It stays loaded: some have threads of their own, which would run on in
        // what is no longer there.
        let _kept = ManuallyDrop::new(library.clone());
        Ok(Self {
            settings: settings.clone(),
            library,
            begun: false,
            session: None,
            since: Instant::now(),
            handles: BTreeMap::new(),
            refused: None,
            failed: None,
        })
    }

    fn try_out(&mut self, id: &[u8], point: Point) -> Result<[u8; SIGNATURE], KeyError> {
        self.sign(&Wanted {
            id: id.to_vec(),
            point,
            input: super::super::signer::TRIAL.to_vec(),
        })
    }

    /// Does something with a session; once more with a new one where that failed.
    fn with<T>(
        &mut self,
        work: impl Fn(&Session, &mut Handles) -> Result<T, Fault>,
    ) -> Result<T, KeyError> {
        self.connect()?;
        let mut done = self.work(&work);
        // One that is made just now would be no other.
        if done.is_err() && self.since.elapsed() >= AGAIN {
            self.disconnect();
            self.connect()?;
            done = self.work(&work);
        }
        done.map_err(|fault| match fault {
            Fault::Call(error) => {
                self.disconnect();
                self.failed(away(error.to_string()))
            }
            Fault::Wrong => {
                self.handles.clear();
                KeyError::WrongSignature
            }
        })
    }

    fn work<T>(
        &mut self,
        work: impl Fn(&Session, &mut Handles) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        match &self.session {
            Some(session) => work(session, &mut self.handles),
            None => Err(Fault::Call(Error::InvalidValue)),
        }
    }

    fn failed(&mut self, (kind, why): Failure) -> KeyError {
        self.failed = Some((Instant::now(), (kind, why.clone())));
        kind(why)
    }

    fn disconnect(&mut self) {
        self.handles.clear();
        self.session = None;
        // Some modules see what was plugged in again only after a new start.
        if std::mem::take(&mut self.begun) {
            let _ended = self.library.clone().finalize();
        }
    }

    fn connect(&mut self) -> Result<(), KeyError> {
        if self.session.is_some() {
            return Ok(());
        }
        if let Some((at, (kind, why))) = &self.failed
            && at.elapsed() < AGAIN
        {
            return Err(kind(why.clone()));
        }
        match self.new_session() {
            Ok(session) => {
                self.session = Some(session);
                self.since = Instant::now();
                self.failed = None;
                Ok(())
            }
            Err(failure) => {
                self.disconnect();
                Err(self.failed(failure))
            }
        }
    }

    fn new_session(&mut self) -> Result<Session, Failure> {
        let gone = |error: Error| away(error.to_string());
        let pin = self.settings.pin();
        let pin = pin.map_err(|why| (KeyError::Pin as fn(String) -> KeyError, why))?;
        if self.refused.as_ref() == Some(&pin) {
            return Err((KeyError::PinRefused, self.settings.pin_from.to_string()));
        }
        if !self.begun {
            let flags = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
            match self.library.initialize(flags) {
                Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
                Err(error) => return Err(gone(error)),
            }
            self.begun = true;
        }
        let slot = slot(&self.library, &self.settings.token)?;
        let info = self.library.get_token_info(slot).map_err(gone)?;
        // One that the next wrong PIN locks is not asked at all.
        if info.user_pin_locked() || info.user_pin_final_try() {
            let why = "its PIN is locked, or the next wrong one locks it: log in by other means";
            return Err(away(why.to_owned()));
        }
        let session = self.library.open_rw_session(slot).map_err(gone)?;
        let given = AuthPin::from(pin.as_str().to_owned());
        match session.login(UserType::User, Some(&given)) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {
                self.refused = None;
                Ok(session)
            }
            Err(Error::Pkcs11(
                RvError::PinIncorrect
                | RvError::PinInvalid
                | RvError::PinLenRange
                | RvError::PinExpired
                | RvError::PinLocked,
                _,
            )) => {
                self.refused = Some(pin);
                Err((KeyError::PinRefused, self.settings.pin_from.to_string()))
            }
            Err(error) => Err(gone(error)),
        }
    }
}

impl Speaks for Module {
    /// Whether the token is there. It reads from each of our private keys: some
    /// modules answer everything else from memory.
    fn look(&mut self) -> Result<(), KeyError> {
        self.with(|session, _| {
            session.get_session_info()?;
            let ours = [
                Attribute::Class(ObjectClass::PRIVATE_KEY),
                Attribute::Label(LABEL.to_vec()),
            ];
            for handle in session.find_objects(&ours)? {
                session.get_attributes(handle, &[AttributeType::Sign])?;
            }
            Ok(())
        })
    }

    fn sign(&mut self, wanted: &Wanted) -> Result<[u8; SIGNATURE], KeyError> {
        let Wanted { id, point, input } = wanted;
        let digest = Sha256::digest(input);
        let signed = self.with(|session, handles| {
            let handle = match handles.get(id) {
                Some(handle) => *handle,
                None => match private(session, id)? {
                    Some(handle) => {
                        handles.insert(id.clone(), handle);
                        handle
                    }
                    None => return Ok(None),
                },
            };
            let bytes = session.sign(&Mechanism::Ecdsa, handle, &digest)?;
            verified(point, input, &bytes).ok_or(Fault::Wrong).map(Some)
        })?;
        signed.ok_or_else(|| {
            let id = hex::encode(id);
            KeyError::TokenAway(format!("it has not one private key with the id {id}"))
        })
    }

    fn make(&mut self, id: &[u8]) -> Result<Point, KeyError> {
        let (public, private) = templates(id);
        let (point, held) = self.with(|session, _| {
            let (open, held) =
                session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)?;
            let point = session.get_attributes(open, &[AttributeType::EcPoint])?;
            Ok((point, session.get_attributes(held, &ASKED)?))
        })?;
        let point = point.into_iter().find_map(|attribute| match attribute {
            Attribute::EcPoint(bytes) => uncompressed(&bytes),
            _ => None,
        });
        let made = match point {
            _ if !is_bound(&held) => Err(KeyError::Loose),
            // It has to work before anybody is told of it.
            Some(point) => self.try_out(id, point).map(|_| point),
            None => Err(KeyError::WrongSignature),
        };
        if made.is_err() {
            let _gone = self.destroy(id);
        }
        made
    }

    fn destroy(&mut self, id: &[u8]) -> Result<(), KeyError> {
        self.with(|session, handles| {
            handles.remove(id);
            for object in session.find_objects(&[Attribute::Id(id.to_vec())])? {
                session.destroy_object(object)?;
            }
            Ok(())
        })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        self.disconnect();
    }
}

fn away(why: String) -> Failure {
    (KeyError::TokenAway, why)
}

/// The one slot whose token has this label.
fn slot(library: &Pkcs11, label: &str) -> Result<Slot, Failure> {
    let gone = |error: Error| away(error.to_string());
    let mut found = Vec::new();
    for slot in library.get_slots_with_initialized_token().map_err(gone)? {
        let info = library.get_token_info(slot);
        if info.is_ok_and(|info| info.label().trim_end() == label) {
            found.push(slot);
        }
    }
    match found.as_slice() {
        [slot] => Ok(*slot),
        [] => Err(away(format!("there is no token `{label}`"))),
        _ => Err(away(format!("there are several tokens `{label}`"))),
    }
}

/// The private key with this id, where there is one and no other.
fn private(session: &Session, id: &[u8]) -> Result<Option<ObjectHandle>, Error> {
    let found = session.find_objects(&[
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::Id(id.to_vec()),
    ])?;
    Ok(match found.as_slice() {
        [handle] => Some(*handle),
        _ => None,
    })
}

/// What a pair is made by: its public half and its private one.
fn templates(id: &[u8]) -> (Vec<Attribute>, Vec<Attribute>) {
    let both = |class| {
        vec![
            Attribute::Class(class),
            Attribute::KeyType(KeyType::EC),
            Attribute::Token(true),
            Attribute::Label(LABEL.to_vec()),
            Attribute::Id(id.to_vec()),
        ]
    };
    let mut public = both(ObjectClass::PUBLIC_KEY);
    public.extend([
        Attribute::EcParams(P256.to_vec()),
        Attribute::Verify(true),
        Attribute::Private(false),
    ]);
    let mut private = both(ObjectClass::PRIVATE_KEY);
    private.push(Attribute::Private(true));
    private.extend(MUST);
    private.extend(MAY_NOT);
    (public, private)
}

/// What a private key has to be.
const MUST: [Attribute; 3] = [
    Attribute::Sensitive(true),
    Attribute::Extractable(false),
    Attribute::Sign(true),
];
/// What a private key may not be for; a token need not know of it.
const MAY_NOT: [Attribute; 4] = [
    Attribute::Decrypt(false),
    Attribute::SignRecover(false),
    Attribute::Unwrap(false),
    Attribute::Derive(false),
];
/// What the token is asked of a key that it made.
const ASKED: [AttributeType; 8] = [
    AttributeType::Sensitive,
    AttributeType::Extractable,
    AttributeType::Sign,
    AttributeType::Local,
    AttributeType::Decrypt,
    AttributeType::SignRecover,
    AttributeType::Unwrap,
    AttributeType::Derive,
];

/// Whether a key stays in the token and only signs: what the token says of it counts,
/// not what it was asked for.
fn is_bound(held: &[Attribute]) -> bool {
    let mut must = MUST.iter().chain(&[Attribute::Local(true)]);
    let more = [
        Attribute::Decrypt(true),
        Attribute::SignRecover(true),
        Attribute::Unwrap(true),
        Attribute::Derive(true),
    ];
    must.all(|wanted| held.contains(wanted)) && !more.iter().any(|it| held.contains(it))
}

/// x ‖ y of CKA_EC_POINT: a DER octet string, or its content alone.
fn uncompressed(bytes: &[u8]) -> Option<Point> {
    let point = match bytes.len() {
        67 => bytes.strip_prefix(&[0x04, 0x41])?,
        _ => bytes,
    };
    let point = point.strip_prefix(&[0x04])?;
    Some(Point(point.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_read_in_both_forms_and_no_other() {
        // An x that begins with 0x41 looks like the length of the longer form.
        for first in [0x00, 0x04, 0x41, 0xff] {
            let mut plain = vec![0x04, first];
            plain.extend([7; 63]);
            let wanted = Some(Point(plain[1..].try_into().unwrap()));
            assert_eq!(uncompressed(&plain), wanted, "{first:x}");
            let der = [&[0x04, 0x41], plain.as_slice()].concat();
            assert_eq!(uncompressed(&der), wanted, "{first:x}");
            plain[0] = 0x02;
            assert_eq!(uncompressed(&plain), None, "{first:x}");
            assert_eq!(uncompressed(&der[..66]), None, "{first:x}");
        }
        assert_eq!(uncompressed(&[]), None);
    }

    #[test]
    fn a_key_that_could_leave_or_does_more_than_sign_is_not_taken() {
        let mut good = MUST.to_vec();
        good.push(Attribute::Local(true));
        assert!(is_bound(&good), "a token need not know the other uses");
        good.extend(MAY_NOT);
        assert!(is_bound(&good));
        let turned = [
            Attribute::Sensitive(false),
            Attribute::Extractable(true),
            Attribute::Sign(false),
            Attribute::Local(false),
            Attribute::Decrypt(true),
            Attribute::SignRecover(true),
            Attribute::Unwrap(true),
            Attribute::Derive(true),
        ];
        for other in turned {
            let kind = other.attribute_type();
            let mut held: Vec<_> = good
                .iter()
                .filter(|it| it.attribute_type() != kind)
                .cloned()
                .collect();
            held.push(other);
            assert!(!is_bound(&held), "{kind}");
        }
        for missing in 0..4 {
            let mut held = good.clone();
            held.remove(missing);
            assert!(!is_bound(&held), "{missing}");
        }
    }
}
