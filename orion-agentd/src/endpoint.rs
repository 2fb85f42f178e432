//! Where the control plane listens for agents.

use http::uri::PathAndQuery;
use http::{HeaderValue, Uri};

pub(crate) const REGISTER: &str = "/api/workers/register";
pub(crate) const BEAT: &str = "/api/workers/beat";

/// Where the control plane listens for agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Host and port as the URL says them.
    pub(crate) authority: HeaderValue,
    pub(crate) register: PathAndQuery,
    pub(crate) beat: PathAndQuery,
}

impl Endpoint {
    /// Takes a base URL (`http://orion.example`, `http://10.0.0.1:8081/orion/`) or the full URL of the register path.
    ///
    /// # Errors
    /// A sentence about what it must be.
    pub fn parse(text: &str) -> Result<Self, String> {
        const MUST: &str = "must be a URL like http://orion.example or http://10.0.0.1:8081";
        let uri: Uri = text.trim().parse().map_err(|_| MUST.to_owned())?;
        if uri.scheme_str() == Some("https") {
            return Err("must begin with http://: agents speak plain HTTP".to_owned());
        }
        let authority = uri.authority().ok_or(MUST)?;
        if uri.scheme_str() != Some("http")
            || authority.as_str().contains('@')
            || uri.query().is_some()
        {
            return Err(MUST.to_owned());
        }
        let path = uri.path().trim_end_matches('/');
        let base = path
            .strip_suffix(REGISTER)
            .unwrap_or(path)
            .trim_end_matches('/');
        let below_base = |path: &str| format!("{base}{path}").parse().map_err(|_| MUST.to_owned());
        let host = authority.host();
        if host.is_empty() {
            return Err(MUST.to_owned());
        }
        Ok(Self {
            host: host
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| MUST.to_owned())?,
            register: below_base(REGISTER)?,
            beat: below_base(BEAT)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_and_the_full_url_mean_the_same() {
        for text in [
            "http://orion.example",
            "http://orion.example/",
            "http://orion.example/api/workers/register",
            "http://orion.example/api/workers/register/",
        ] {
            let endpoint = Endpoint::parse(text).expect(text);
            assert_eq!(
                (endpoint.host.as_str(), endpoint.port),
                ("orion.example", 80)
            );
            assert_eq!(endpoint.register, "/api/workers/register");
            assert_eq!(endpoint.beat, "/api/workers/beat");
        }
        let endpoint = Endpoint::parse("http://[::1]:8081/orion/").expect("good");
        assert_eq!((endpoint.host.as_str(), endpoint.port), ("::1", 8081));
        assert_eq!(endpoint.authority, "[::1]:8081");
        assert_eq!(endpoint.beat, "/orion/api/workers/beat");
    }

    #[test]
    fn what_is_no_plain_http_url_is_refused() {
        for text in [
            "",
            "orion.example",
            "orion.example:80",
            "https://orion.example",
            "ftp://orion.example",
            "http://",
            "http://:80",
            "http://a:b@orion.example",
            "http://orion.example/?a=b",
            "http://orion example",
        ] {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
    }
}
