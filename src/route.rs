//! What a route says of itself in its metadata, with `gateway.route_metadata` on.

use crate::config::Mode;
use crate::names::{ConnectorId, OrgName};

/// The settings of one route. All are optional.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RouteSettings {
    /// The org of this route, whatever its path.
    pub org: Option<OrgName>,
    /// The connector behind it.
    pub connector: Option<ConnectorId>,
    /// What the filter does on it.
    pub mode: Option<RouteMode>,
}

/// What the filter does on a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteMode {
    /// Nothing: requests pass untouched.
    Disabled,
    /// As the configuration's `mode` of the same name.
    Active(Mode),
}

/// A route says something that has no meaning. It is refused rather than guessed at.
#[derive(Debug, PartialEq, Eq)]
pub struct RouteInvalid;

impl RouteSettings {
    /// Reads the map as Envoy hands it to a module: the number of members, the lengths of each name and value, then
    /// those, each with a zero byte behind it; numbers are 32-bit little-endian.
    ///
    /// # Errors
    /// [`RouteInvalid`] where it is no such map, and as [`RouteSettings::from_members`].
    pub fn from_serialized_map(map: &[u8]) -> Result<Self, RouteInvalid> {
        let (count, rest) = u32_le(map).ok_or(RouteInvalid)?;
        let mut lengths = Vec::new();
        let mut rest = rest;
        for _ in 0..count {
            let (name, after) = u32_le(rest).ok_or(RouteInvalid)?;
            let (value, after) = u32_le(after).ok_or(RouteInvalid)?;
            lengths.push((name, value));
            rest = after;
        }
        let mut members = Vec::new();
        for (name, value) in lengths {
            let (name, after) = zero_terminated(rest, name).ok_or(RouteInvalid)?;
            let (value, after) = zero_terminated(after, value).ok_or(RouteInvalid)?;
            members.push((name, value));
            rest = after;
        }
        Self::from_members(members)
    }

    /// Reads the members of `filter_metadata.apexmcp`.
    ///
    /// # Errors
    /// [`RouteInvalid`] on an unknown member or value.
    pub fn from_members<'m>(members: impl IntoIterator<Item = (&'m [u8], &'m [u8])>) -> Result<Self, RouteInvalid> {
        let mut settings = Self::default();
        for (name, value) in members {
            let value = std::str::from_utf8(value).map_err(|_| RouteInvalid)?;
            match name {
                b"org" => settings.org = Some(OrgName::parse(value).ok_or(RouteInvalid)?),
                b"connector" => settings.connector = Some(ConnectorId::parse(value).ok_or(RouteInvalid)?),
                b"mode" => {
                    settings.mode = Some(match value {
                        "disabled" => RouteMode::Disabled,
                        "enforce" => RouteMode::Active(Mode::Enforce),
                        "shadow" => RouteMode::Active(Mode::Shadow),
                        _ => return Err(RouteInvalid),
                    });
                }
                _ => return Err(RouteInvalid),
            }
        }
        Ok(settings)
    }
}

fn u32_le(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    Some((usize::try_from(u32::from_le_bytes(*number)).ok()?, rest))
}

fn zero_terminated(bytes: &[u8], length: usize) -> Option<(&[u8], &[u8])> {
    let (text, rest) = bytes.split_at_checked(length)?;
    Some((text, rest.strip_prefix(&[0])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(members: &[(&str, &str)]) -> Result<RouteSettings, RouteInvalid> {
        RouteSettings::from_members(members.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
    }

    #[test]
    fn what_a_route_may_say() {
        assert_eq!(read(&[]), Ok(RouteSettings::default()));
        let full = read(&[("org", "acme"), ("connector", "github"), ("mode", "shadow")]).unwrap();
        assert_eq!(full.org.unwrap().as_str(), "acme");
        assert_eq!(full.connector.unwrap().as_str(), "github");
        assert_eq!(full.mode, Some(RouteMode::Active(Mode::Shadow)));
        for bad in [("mode", "off"), ("mode", ""), ("org", ""), ("org", "a/b"), ("connector", "*"), ("orgs", "a")] {
            assert_eq!(read(&[bad]), Err(RouteInvalid), "{bad:?}");
        }
    }

    #[test]
    fn maps_as_envoy_serializes_them() {
        let map = b"\x02\0\0\0\x03\0\0\0\x04\0\0\0\x04\0\0\0\x08\0\0\0org\0acme\0mode\0disabled\0";
        let settings = RouteSettings::from_serialized_map(map).unwrap();
        assert_eq!(settings, read(&[("org", "acme"), ("mode", "disabled")]).unwrap());
        for end in 0..map.len() {
            assert_eq!(RouteSettings::from_serialized_map(&map[..end]), Err(RouteInvalid), "{end}");
        }
        assert_eq!(RouteSettings::from_serialized_map(&[0; 4]), Ok(RouteSettings::default()));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(map: Vec<u8>) {
            let _ = RouteSettings::from_serialized_map(&map);
        }
    }
}
