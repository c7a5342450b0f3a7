//! The trust domain's files: private, and whole or not there.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use crate::TrustDomainError;

/// Nothing that is kept here is larger.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Makes the directory for its owner alone, or checks that it is so.
pub(crate) fn prepare_dir(dir: &Path) -> Result<(), TrustDomainError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| TrustDomainError::file(dir, error))?;
    require_private(dir)
}

/// Reads a private file; `None` when it isn't there.
pub(crate) fn read(path: &Path) -> Result<Option<String>, TrustDomainError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
            Err(TrustDomainError::BadFile { path: path.into() })
        }
        Ok(_) => {
            require_private(path)?;
            fs::read_to_string(path)
                .map(Some)
                .map_err(|error| TrustDomainError::file(path, error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(TrustDomainError::file(path, error)),
    }
}

/// Writes a private file so that a crash leaves the old one or the new one.
pub(crate) fn write(dir: &Path, name: &str, content: &str) -> Result<(), TrustDomainError> {
    let path = dir.join(name);
    let temporary = dir.join(format!(".{name}.new"));
    let written = (|| {
        // A left-over of a crash; only our own user can have put it there.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(dir)?.sync_all()
    })();
    written.map_err(|error| TrustDomainError::file(&path, error))
}

fn require_private(path: &Path) -> Result<(), TrustDomainError> {
    let metadata = fs::metadata(path).map_err(|error| TrustDomainError::file(path, error))?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(TrustDomainError::NotPrivate { path: path.into() });
    }
    Ok(())
}
