//! Optional encryption of the private signing keys in the database.
//!
//! Each signing key is encrypted with a random data key, and the data key with the operator's master key (AES-256-GCM-SIV,
//! RFC 8452, for both). The id of the signing key is authenticated, so that two entries cannot be exchanged.

use std::fmt;
use std::path::Path;

use aes_gcm_siv::Aes256GcmSiv;
use aes_gcm_siv::aead::{Aead, KeyInit, Payload};
use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use sha2::{Digest, Sha256};

use crate::failure::{Failure, Reason};
use crate::secret;

/// The environment variable with the master key.
pub const KEY: &str = "APEXMCP_DB_KEY";
/// The environment variable with the path of a file that contains the master key.
pub const KEY_FILE: &str = "APEXMCP_DB_KEY_FILE";
/// The environment variable with the master key before a rotation.
pub const PREVIOUS_KEY: &str = "APEXMCP_DB_KEY_PREVIOUS";
/// The beginning of an encrypted value. The rest has three parts: the id of the master key, the data key and the text.
const PREFIX: &str = "encrypted:1:";
/// Length of a nonce in bytes (RFC 8452 §4).
const NONCE: usize = 12;

/// The master keys of this process.
#[derive(Default)]
pub struct Keyring {
    present: Option<MasterKey>,
    previous: Option<MasterKey>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("master keys")
    }
}

struct MasterKey {
    bytes: [u8; 32],
    /// Tells which key encrypted a value, and reveals nothing of the key.
    id: String,
}

impl MasterKey {
    fn parse(name: &str, text: &str) -> Result<Self, Failure> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.trim(), &mut bytes).map_err(|_| {
            let line = format!("{name} must be 32 bytes as 64 hexadecimal digits. Run: export {KEY}=$(openssl rand -hex 32)");
            Failure::new(Reason::InvalidArgument, line)
        })?;
        let digest = Sha256::new().chain_update("apexmcp master key").chain_update(bytes).finalize();
        let id = hex::encode(digest).chars().take(8).collect();
        Ok(Self { bytes, id })
    }
}

impl Keyring {
    /// The keys that environment variables name. `variable` looks one up.
    ///
    /// # Errors
    /// If a key has the wrong form, or the file cannot be read.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self, Failure> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let present = match (variable(KEY), variable(KEY_FILE)) {
            (Some(_), Some(_)) => {
                return Err(Failure::new(Reason::InvalidArgument, format!("set either {KEY} or {KEY_FILE}, not both")));
            }
            (Some(key), None) => Some(MasterKey::parse(KEY, &key)?),
            (None, Some(file)) => {
                let unreadable = Failure::during(Reason::FileUnreadable, format!("{KEY_FILE}: {file} cannot be read"));
                let key = std::fs::read_to_string(Path::new(&file)).map_err(unreadable)?;
                Some(MasterKey::parse(KEY_FILE, &key)?)
            }
            (None, None) => None,
        };
        let previous = variable(PREVIOUS_KEY).map(|key| MasterKey::parse(PREVIOUS_KEY, &key)).transpose()?;
        Ok(Self { present, previous })
    }

    /// Whether there is a key with which values are encrypted.
    pub fn encrypts(&self) -> bool {
        self.present.is_some()
    }

    /// Whether a value of the database is encrypted.
    pub fn is_encrypted(value: &str) -> bool {
        value.starts_with(PREFIX)
    }

    /// Whether a value is encrypted with the present key.
    pub fn is_sealed(&self, value: &str) -> bool {
        let id = value.strip_prefix(PREFIX).and_then(|rest| rest.split(':').next());
        self.present.as_ref().is_some_and(|key| id == Some(&key.id))
    }

    /// The value of the database for a private key. Without a master key, it is the private key itself.
    ///
    /// # Errors
    /// If the operating system returns no random numbers.
    pub fn seal(&self, kid: &str, private_key: &str) -> Result<String, Failure> {
        let Some(master) = &self.present else { return Ok(private_key.to_owned()) };
        let data_key: [u8; 32] = secret::random()?;
        let wrapped = encrypt(&master.bytes, kid, &data_key)?;
        let sealed = encrypt(&data_key, kid, private_key.as_bytes())?;
        Ok(format!("{PREFIX}{}:{wrapped}:{sealed}", master.id))
    }

    /// The private key of a value of the database.
    ///
    /// # Errors
    /// If the value is encrypted, and no key of this process opens it.
    pub fn open(&self, kid: &str, value: &str) -> Result<String, Failure> {
        let Some(rest) = value.strip_prefix(PREFIX) else { return Ok(value.to_owned()) };
        let mut parts = rest.splitn(3, ':');
        let (Some(id), Some(wrapped), Some(sealed)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(damaged(kid));
        };
        let master = [&self.present, &self.previous].into_iter().flatten().find(|key| key.id == id);
        let master = master.ok_or_else(|| {
            let line = format!(
                "the signing key {kid} is encrypted with the master key {id}, which this process does not have: set {KEY} or \
                 {KEY_FILE} to it"
            );
            Failure::new(Reason::KeyMissing, line)
        })?;
        let data_key = decrypt(&master.bytes, kid, wrapped).and_then(|key| <[u8; 32]>::try_from(key).ok());
        let opened = data_key.and_then(|key| decrypt(&key, kid, sealed)).and_then(|text| String::from_utf8(text).ok());
        opened.ok_or_else(|| damaged(kid))
    }
}

fn damaged(kid: &str) -> Failure {
    Failure::new(
        Reason::DatabaseInvalid,
        format!("the signing key {kid} is damaged: restore a copy of the database, or rotate the signing key"),
    )
}

/// Encrypts `text`. The result begins with the nonce.
fn encrypt(key: &[u8; 32], kid: &str, text: &[u8]) -> Result<String, Failure> {
    let nonce: [u8; NONCE] = secret::random()?;
    let payload = Payload { msg: text, aad: kid.as_bytes() };
    let encrypted = Aes256GcmSiv::new(key.into()).encrypt(&nonce.into(), payload);
    let encrypted = encrypted.map_err(|_| Failure::new(Reason::SystemFailed, "the encryption failed"))?;
    Ok(BASE64_STANDARD_NO_PAD.encode([nonce.as_slice(), &encrypted].concat()))
}

fn decrypt(key: &[u8; 32], kid: &str, value: &str) -> Option<Vec<u8>> {
    let bytes = BASE64_STANDARD_NO_PAD.decode(value).ok()?;
    let (nonce, encrypted) = bytes.split_first_chunk::<NONCE>()?;
    let payload = Payload { msg: encrypted, aad: kid.as_bytes() };
    Aes256GcmSiv::new(key.into()).decrypt(&(*nonce).into(), payload).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyring(present: Option<&str>, previous: Option<&str>) -> Keyring {
        let values = [(KEY, present), (PREVIOUS_KEY, previous)];
        let variable = |name: &str| values.iter().find(|(known, _)| *known == name)?.1.map(|digit| digit.repeat(64));
        Keyring::from_environment(variable).unwrap()
    }

    #[test]
    fn a_value_opens_with_its_key_and_its_id_only() {
        let one = keyring(Some("1"), None);
        let value = one.seal("a", "PEM").unwrap();
        assert!(value.starts_with(PREFIX) && !value.contains("PEM"));
        assert_ne!(value, one.seal("a", "PEM").unwrap(), "each value has its own data key");
        assert_eq!(one.open("a", &value).unwrap(), "PEM");
        assert_eq!(one.open("b", &value).unwrap_err().reason, Reason::DatabaseInvalid);
        assert_eq!(keyring(Some("2"), Some("1")).open("a", &value).unwrap(), "PEM", "during a rotation");
        let failure = keyring(Some("2"), None).open("a", &value).unwrap_err();
        assert!(failure.reason == Reason::KeyMissing && failure.to_string().contains(KEY), "{failure}");
        assert!(keyring(None, None).open("a", &value).is_err());
    }

    #[test]
    fn a_changed_value_is_refused() {
        let one = keyring(Some("1"), None);
        let value = one.seal("a", "PEM").unwrap();
        for index in PREFIX.len()..value.len() {
            let mut changed = value.clone().into_bytes();
            changed[index] = if changed[index] == b'A' { b'B' } else { b'A' };
            assert!(one.open("a", &String::from_utf8(changed).unwrap()).is_err(), "{index}");
        }
        for short in ["encrypted:1:", "encrypted:1:a:b", "encrypted:1:::"] {
            assert!(one.open("a", short).is_err(), "{short}");
        }
    }

    #[test]
    fn without_a_key_values_stay_as_they_are() {
        let none = keyring(None, None);
        assert_eq!((none.seal("a", "PEM").unwrap(), none.open("a", "PEM").unwrap()), ("PEM".to_owned(), "PEM".to_owned()));
        assert_eq!(keyring(Some("1"), None).open("a", "PEM").unwrap(), "PEM", "a value from before the encryption");
        let both = |name: &str| Some(name.to_owned());
        assert!(Keyring::from_environment(both).unwrap_err().to_string().contains("not both"));
        let short = |name: &str| (name == KEY).then(|| "12".to_owned());
        assert!(Keyring::from_environment(short).unwrap_err().to_string().contains("64 hexadecimal digits"));
    }
}
