//! The module: loaded once, with one session, which is made anew when the token was
//! away. Only the token's thread is in here.

use super::super::KeyError;
use super::super::signer::{Point, SIGNATURE};
use crate::config::Pkcs11 as Settings;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// DER of the OID of P-256: what CKA_EC_PARAMS has.
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// A token that was away is not asked again before.
const AGAIN: Duration = Duration::from_millis(500);
/// What people see in the token.
const LABEL: &[u8] = b"writ token key";

pub(super) struct Module {
    settings: Settings,
    /// The session first: it ends before the module does.
    session: Option<Session>,
    context: Option<Pkcs11>,
    handles: BTreeMap<Vec<u8>, ObjectHandle>,
    /// Why the token refused the PIN. It is not tried again: tokens lock themselves.
    refused: Option<String>,
    /// When it was tried last without success, and what came of it.
    failed: Option<(Instant, String)>,
}

impl Module {
    pub fn load(settings: &Settings) -> Result<Self, KeyError> {
        settings.pin().map_err(KeyError::Pin)?;
        let mut module = Self {
            settings: settings.clone(),
            session: None,
            context: None,
            handles: BTreeMap::new(),
            refused: None,
            failed: None,
        };
        // One that is loaded and does not begin has a token that is away.
        match module.initialized() {
            Ok(context) => module.context = Some(context),
            Err(error @ KeyError::Module(..)) => return Err(error),
            Err(_) => {}
        }
        Ok(module)
    }

    fn initialized(&self) -> Result<Pkcs11, KeyError> {
        let path = &self.settings.module;
        let unusable = |error: Error| KeyError::Module(path.clone(), error.to_string());
        let context = Pkcs11::new(path).map_err(unusable)?;
        match context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(context),
            Err(error) => Err(KeyError::TokenAway(error.to_string())),
        }
    }

    /// Whether the token is there. It reads from each of our private keys: some
    /// modules answer everything else from memory.
    pub fn look(&mut self) -> Result<(), KeyError> {
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

    pub fn sign(&mut self, id: &[u8], digest: &[u8; 32]) -> Result<[u8; SIGNATURE], KeyError> {
        let signature = self.with(|session, handles| {
            let handle = match handles.get(id) {
                Some(handle) => *handle,
                None => {
                    let handle = private(session, id)?;
                    handles.insert(id.to_vec(), handle);
                    handle
                }
            };
            session.sign(&Mechanism::Ecdsa, handle, digest)
        })?;
        signature.try_into().map_err(|_| KeyError::Sign)
    }

    pub fn make(&mut self, id: &[u8]) -> Result<Point, KeyError> {
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
        private.extend([
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
        ]);
        let made = self.with(|session, _| {
            let (open, held) =
                session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private)?;
            let point = session.get_attributes(open, &[AttributeType::EcPoint])?;
            let kept = session.get_attributes(
                held,
                &[
                    AttributeType::Sensitive,
                    AttributeType::Extractable,
                    AttributeType::Local,
                ],
            )?;
            Ok((point, kept))
        });
        let (point, kept) = made?;
        // What the token says of it counts, not what it was asked for.
        let safe = [
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Local(true),
        ];
        if !safe.iter().all(|wanted| kept.contains(wanted)) {
            let _gone = self.destroy(id);
            return Err(KeyError::Extractable);
        }
        let point = point.into_iter().find_map(|attribute| match attribute {
            Attribute::EcPoint(bytes) => uncompressed(&bytes),
            _ => None,
        });
        point.ok_or(KeyError::Sign)
    }

    pub fn destroy(&mut self, id: &[u8]) -> Result<(), KeyError> {
        self.with(|session, handles| {
            handles.remove(id);
            for object in session.find_objects(&[Attribute::Id(id.to_vec())])? {
                session.destroy_object(object)?;
            }
            Ok(())
        })
    }

    /// Does something with a session; once more with a new one where that failed.
    fn with<T>(
        &mut self,
        work: impl Fn(&Session, &mut BTreeMap<Vec<u8>, ObjectHandle>) -> Result<T, Error>,
    ) -> Result<T, KeyError> {
        let fresh = self.session.is_none();
        self.connect()?;
        let mut done = self.work(&work);
        if done.is_err() && !fresh {
            self.disconnect();
            self.connect()?;
            done = self.work(&work);
        }
        done.map_err(|error| {
            self.disconnect();
            self.away(&error.to_string())
        })
    }

    fn work<T>(
        &mut self,
        work: impl Fn(&Session, &mut BTreeMap<Vec<u8>, ObjectHandle>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match &self.session {
            Some(session) => work(session, &mut self.handles),
            None => Err(Error::InvalidValue),
        }
    }

    fn away(&mut self, why: &str) -> KeyError {
        self.failed = Some((Instant::now(), why.to_owned()));
        KeyError::TokenAway(why.to_owned())
    }

    fn disconnect(&mut self) {
        self.handles.clear();
        self.session = None;
        // Some modules see what was plugged in again only after a new start.
        if let Some(context) = self.context.take() {
            let _ended = context.finalize();
        }
    }

    fn connect(&mut self) -> Result<(), KeyError> {
        if let Some(why) = &self.refused {
            return Err(KeyError::PinRefused(why.clone()));
        }
        if self.session.is_some() {
            return Ok(());
        }
        if let Some((at, why)) = &self.failed
            && at.elapsed() < AGAIN
        {
            return Err(KeyError::TokenAway(why.clone()));
        }
        let context = match self.context.take() {
            Some(context) => context,
            None => match self.initialized() {
                Ok(context) => context,
                Err(error) => return Err(self.away(&error.to_string())),
            },
        };
        let session = self.session_of(&context);
        self.context = Some(context);
        match session {
            Ok(session) => {
                self.session = Some(session);
                self.failed = None;
                Ok(())
            }
            Err(KeyError::TokenAway(why)) => {
                self.disconnect();
                Err(self.away(&why))
            }
            Err(error) => Err(error),
        }
    }

    fn session_of(&mut self, context: &Pkcs11) -> Result<Session, KeyError> {
        let label = &self.settings.token;
        let gone = |error: Error| KeyError::TokenAway(error.to_string());
        let slot = slot(context, label)?;
        let info = context.get_token_info(slot).map_err(gone)?;
        // One that the next wrong PIN locks is not asked at all.
        if info.user_pin_locked() || info.user_pin_final_try() {
            let why =
                "its PIN is locked, or the next wrong one locks it: log in once by other means";
            self.refused = Some(why.to_owned());
            return Err(KeyError::PinRefused(why.to_owned()));
        }
        let pin = self.settings.pin().map_err(KeyError::Pin)?;
        let pin = AuthPin::from(pin.as_str().to_owned());
        let session = context.open_rw_session(slot).map_err(gone)?;
        match session.login(UserType::User, Some(&pin)) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(session),
            Err(Error::Pkcs11(
                error @ (RvError::PinIncorrect
                | RvError::PinInvalid
                | RvError::PinLenRange
                | RvError::PinExpired
                | RvError::PinLocked),
                _,
            )) => {
                self.refused = Some(error.to_string());
                Err(KeyError::PinRefused(error.to_string()))
            }
            Err(error) => Err(gone(error)),
        }
    }
}

/// The one slot whose token has this label.
fn slot(context: &Pkcs11, label: &str) -> Result<Slot, KeyError> {
    let gone = |error: Error| KeyError::TokenAway(error.to_string());
    let mut found = Vec::new();
    for slot in context.get_slots_with_initialized_token().map_err(gone)? {
        let info = context.get_token_info(slot);
        if info.is_ok_and(|info| info.label().trim_end() == label) {
            found.push(slot);
        }
    }
    match found.as_slice() {
        [slot] => Ok(*slot),
        [] => Err(KeyError::TokenAway(format!("there is no token `{label}`"))),
        _ => Err(KeyError::TokenAway(format!(
            "there are several tokens `{label}`"
        ))),
    }
}

fn private(session: &Session, id: &[u8]) -> Result<ObjectHandle, Error> {
    let found = session.find_objects(&[
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::Id(id.to_vec()),
    ])?;
    match found.as_slice() {
        [handle] => Ok(*handle),
        _ => Err(Error::Pkcs11(
            RvError::KeyHandleInvalid,
            cryptoki::context::Function::FindObjects,
        )),
    }
}

/// x ‖ y of CKA_EC_POINT: a DER octet string, or its content alone.
fn uncompressed(bytes: &[u8]) -> Option<Point> {
    let point = bytes.strip_prefix(&[0x04, 0x41]).unwrap_or(bytes);
    let point = point.strip_prefix(&[0x04])?;
    Some(Point(point.try_into().ok()?))
}
