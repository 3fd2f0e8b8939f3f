//! Settings of a route. The filter reads them from the route's metadata if `gateway.route_metadata` is true.

use crate::config::Mode;
use crate::names::{ConnectorId, OrgName};

/// The settings of one route. All are optional.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RouteSettings {
    /// The org of this route. It replaces the org in the path.
    pub org: Option<OrgName>,
    /// The connector to which this route leads.
    pub connector: Option<ConnectorId>,
    pub mode: Option<RouteMode>,
}

/// What the filter does on a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteMode {
    /// Requests pass unchanged.
    Disabled,
    /// The filter works as with this `mode` in the configuration.
    Active(Mode),
}

/// The metadata of a route has an unknown member or value. The filter refuses it and does not guess its meaning.
#[derive(Debug, PartialEq, Eq)]
pub struct RouteInvalid;

impl RouteSettings {
    /// Reads the members of `filter_metadata.apexmcp`.
    ///
    /// # Errors
    /// [`RouteInvalid`] if a member or a value is unknown.
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
    fn known_settings_are_read_and_others_are_refused() {
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
