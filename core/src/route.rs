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
}
