//! Which proxy serves a host: the `proxy` option, and the environment as curl reads it.

use std::fmt;
use std::net::IpAddr;

use percent_encoding::percent_decode_str;

use crate::error::Error;
use crate::url::{Url, bracketed, is_loopback_host, split_port};

/// How to speak to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ProxyScheme {
    /// `CONNECT` over plain TCP.
    Http,
    /// `CONNECT` over TLS.
    Https,
    /// SOCKS5, names resolved here.
    Socks5,
    /// SOCKS5, names resolved by the proxy.
    Socks5h,
}

/// A proxy's address and its credentials.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Proxy {
    pub scheme: ProxyScheme,
    pub host: String,
    pub port: u16,
    /// User name and password, percent-decoded.
    pub credentials: Option<(String, String)>,
}

impl Proxy {
    /// Reads `scheme://[user:password@]host[:port]`; without a scheme it is `http`, as in curl.
    /// `option` is what the error calls it; the error never shows the URL, for it may hold a
    /// password.
    pub fn parse(option: &str, text: &str) -> Result<Proxy, Error> {
        let bad = |why: &str| {
            Error::misuse(format!(
                "{option}: {why}; give http://, https://, socks5:// or socks5h:// and a host, \
                 or \"none\" to connect directly"
            ))
        };
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let (scheme, default_port) = match scheme.to_ascii_lowercase().as_str() {
            // As in curl.
            "http" => (ProxyScheme::Http, 1080),
            "https" => (ProxyScheme::Https, 443),
            "socks5" => (ProxyScheme::Socks5, 1080),
            "socks5h" => (ProxyScheme::Socks5h, 1080),
            _ => return Err(bad("its scheme is not supported")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (user_info, authority) = match rest.rsplit_once('@') {
            Some((user_info, authority)) => (Some(user_info), authority),
            None => (None, rest),
        };
        let (host, port) =
            split_port(authority).map_err(|_| bad("its host and port cannot be read"))?;
        let credentials = user_info
            .map(|info| {
                let (user, password) = info.split_once(':').unwrap_or((info, ""));
                let decode = |part: &str| Some(percent_decode_str(part).decode_utf8().ok()?.into());
                Some((decode(user)?, decode(password)?))
            })
            .map(|decoded| {
                decoded
                    .filter(|(user, password): &(String, String)| {
                        // SOCKS5 (RFC 1929) counts each in one byte; a header takes no controls.
                        let fits =
                            |part: &str| part.len() <= 255 && !part.contains(char::is_control);
                        fits(user) && fits(password)
                    })
                    .ok_or_else(|| bad("the user name or password is too long or not text"))
            })
            .transpose()?;
        Ok(Proxy {
            scheme,
            host,
            port: port.unwrap_or(default_port),
            credentials,
        })
    }
}

/// `host:port`, without credentials.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", bracketed(&self.host), self.port)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({:?} {self})", self.scheme)
    }
}

/// The environment's proxy for a URL, as curl reads it: `http_proxy` in lower case only (a CGI
/// program's `HTTP_PROXY` is a request header), the others in both cases, lower case first;
/// `no_proxy` heeded; never for loopback.
pub(crate) fn from_env(
    url: &Url,
    var: impl Fn(&str) -> Option<String>,
) -> Result<Option<Proxy>, Error> {
    if is_loopback_host(&url.host) {
        return Ok(None);
    }
    let names: &[&str] = if url.https {
        &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]
    } else {
        &["http_proxy", "all_proxy", "ALL_PROXY"]
    };
    let found = |names: &[&'static str]| {
        names
            .iter()
            .find_map(|name| Some((*name, var(name).filter(|value| !value.is_empty())?)))
    };
    let Some((name, value)) = found(names) else {
        return Ok(None);
    };
    if found(&["no_proxy", "NO_PROXY"]).is_some_and(|(_, list)| is_exempt(url, &list)) {
        return Ok(None);
    }
    Proxy::parse(name, &value).map(Some)
}

/// Whether a `no_proxy` list names the URL's host: `*` alone; the host itself or a parent domain,
/// with or without a dot before or behind it; an address, or a network as `10.0.0.0/8`. An entry
/// with a port counts for that port alone.
fn is_exempt(url: &Url, list: &str) -> bool {
    if list.trim() == "*" {
        return true;
    }
    let host = url.host.trim_end_matches('.');
    let ip = host.parse::<IpAddr>().ok();
    list.split([',', ' ', '\t'])
        .filter(|e| !e.is_empty())
        .any(|entry| {
            if let Some(ip) = ip {
                if is_in_network(ip, entry) {
                    return true;
                }
            }
            let entry = entry.trim_start_matches('.');
            let Ok((name, port)) = split_port(entry) else {
                return false;
            };
            if port.is_some_and(|port| port != url.port) {
                return false;
            }
            match ip {
                Some(ip) => name.parse() == Ok(ip),
                None => host
                    .strip_suffix(name.trim_end_matches('.'))
                    .is_some_and(|head| head.is_empty() || head.ends_with('.')),
            }
        })
}

/// Whether an address is this one, or in this network.
fn is_in_network(ip: IpAddr, network: &str) -> bool {
    let (base, bits) = match network.split_once('/') {
        Some((base, bits)) => (base, bits.parse().ok()),
        None => (network, Some(128)),
    };
    let (Ok(base), Some(bits)) = (base.parse::<IpAddr>(), bits) else {
        return false;
    };
    let width = if base.is_ipv4() { 32 } else { 128 };
    if network.contains('/') && bits > width {
        return false;
    }
    let is_same = |a: u128, b: u128, width: u32| {
        (a ^ b).checked_shr(width.saturating_sub(bits)).unwrap_or(0) == 0
    };
    match (ip, base) {
        (IpAddr::V4(a), IpAddr::V4(b)) => is_same(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => is_same(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}
