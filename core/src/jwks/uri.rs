//! Where a key set is published, and the cluster through which Envoy reaches it.

use http::Uri;

/// The `Accept` header of fetches of key sets. RFC 7517 §8.5.2 registers the media type, and a Kubernetes API server offers
/// only this one. Some providers offer only JSON, or send a wrong `Content-Type`: the document is judged by its content.
pub const ACCEPT: &str = "application/jwk-set+json, application/json;q=0.9, */*;q=0.1";

/// The Envoy clusters through which key sets are fetched.
#[derive(Clone, Debug, Default)]
pub struct Clusters {
    /// The cluster for `https` URIs.
    pub https: Option<String>,
    /// The cluster for `http` URIs. `None`: such URIs are refused.
    pub http: Option<String>,
}

impl Clusters {
    /// The cluster through which `uri` is fetched.
    ///
    /// # Errors
    /// The setting that is missing, if there is no such cluster.
    pub fn of(&self, uri: &JwksUri) -> Result<&str, &'static str> {
        match uri.scheme {
            Scheme::Https => self.https.as_deref().ok_or("needs jwks.https_cluster"),
            Scheme::Http => self.http.as_deref().ok_or("must be https, unless jwks.http_cluster is set"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Https,
    Http,
}

/// The URL of a key set, RFC 8414 §2 `jwks_uri`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwksUri {
    pub(super) text: Box<str>,
    scheme: Scheme,
    authority: Box<str>,
    path: Box<str>,
}

impl JwksUri {
    /// Reads an absolute `https` or `http` URI without user information or fragment.
    ///
    /// # Errors
    /// The reason why `text` is refused.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let wrong = "must be a URL such as https://idp.example.com/oauth2/v1/keys";
        let uri: Uri = text.parse().map_err(|_| wrong)?;
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            // RFC 3986 §2. `Uri` does not check this: it accepts other characters in a path.
            return Err(wrong);
        }
        let scheme = match uri.scheme_str() {
            Some("https") => Scheme::Https,
            Some("http") => Scheme::Http,
            _ => return Err(wrong),
        };
        let authority = uri.authority().ok_or(wrong)?;
        if authority.as_str().contains('@') || authority.host().is_empty() || text.contains('#') {
            return Err(wrong);
        }
        let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        Ok(Self { text: text.into(), scheme, authority: authority.as_str().into(), path: path.into() })
    }

    /// The URI as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The `:scheme` of a fetch.
    pub fn scheme(&self) -> &'static str {
        match self.scheme {
            Scheme::Https => "https",
            Scheme::Http => "http",
        }
    }

    /// The `:authority` of a fetch.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The `:path` of a fetch.
    pub fn path(&self) -> &str {
        &self.path
    }
}
