//! Base URLs: what a user may write, and what it means.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use crate::error::Error;

/// An `http` or `https` URL, taken apart and checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Url {
    pub https: bool,
    /// A name, an IPv4 address, or an IPv6 address without its brackets; in lower case.
    pub host: String,
    pub port: u16,
    /// `scheme://host[:port]`, the port where it is not the scheme's own.
    pub origin: String,
    /// Empty, or begins with a slash and does not end with one.
    pub path: String,
    pub query: Option<String>,
}

impl Url {
    /// Reads a URL as a user would write it. Without a scheme it is `http` for loopback and
    /// private addresses, else `https`. `option` is what the error calls it.
    pub fn parse(option: &str, text: &str) -> Result<Url, Error> {
        let bad = |why: &str| Err(Error::misuse(format!("{option}: {why}")));
        if text.len() > 8 << 10 {
            return bad("the URL is longer than 8 KiB");
        }
        if text.is_empty() {
            return bad("the URL is empty: give one such as http://127.0.0.1:8080");
        }
        if let Some(at) = text.bytes().position(|b| !(0x21..=0x7e).contains(&b)) {
            return bad(&format!(
                "the URL has a space, a control character or a non-ASCII character at byte {at}: \
                 percent-encode it, or write the host in Punycode"
            ));
        }
        if text.contains(['"', '<', '>', '\\', '^', '`', '{', '|', '}']) {
            return bad("the URL has a character that URLs do not have: percent-encode it");
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, text),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        if authority.contains('@') {
            return bad("the URL has user information before an @: leave it out");
        }
        if tail.contains('#') {
            return bad("the URL has a fragment (#): leave it out");
        }
        let (host, port) =
            split_port(authority).map_err(|why| Error::misuse(format!("{option}: {why}")))?;
        let https = match scheme.map(str::to_ascii_lowercase).as_deref() {
            Some("https") => true,
            Some("http") => false,
            Some(other) => {
                return bad(&format!("the scheme \"{other}\" is not http or https"));
            }
            None => !is_private_host(&host),
        };
        let (path, query) = match tail.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (tail, None),
        };
        let (scheme, default) = if https { ("https", 443) } else { ("http", 80) };
        let port = port.unwrap_or(default);
        let mut origin = format!("{scheme}://{}", bracketed(&host));
        if port != default {
            origin.push_str(&format!(":{port}"));
        }
        Ok(Url {
            https,
            host,
            port,
            origin,
            path: path.trim_end_matches('/').to_owned(),
            query,
        })
    }

    /// The URL of something below it, without a query.
    pub fn join(&self, tail: &str) -> String {
        [&self.origin, &self.path, tail].concat()
    }
}

/// The URL without its query.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.path)
    }
}

/// Splits `host[:port]`, `[v6][:port]`; checks both parts.
pub(crate) fn split_port(authority: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let Some((host, port)) = rest.split_once(']') else {
                return Err("an IPv6 address without its closing bracket".into());
            };
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(format!("\"{host}\" is not an IPv6 address"));
            }
            match port.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if port.is_empty() => (host, None),
                None => return Err("something other than a port behind the bracket".into()),
            }
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
    if host.is_empty() || !host.bytes().all(plain) {
        return Err(format!("\"{host}\" is not a host name"));
    }
    let port = match port {
        None => None,
        Some(digits) => match digits.parse::<u16>() {
            Ok(port) if port > 0 && digits.bytes().all(|b| b.is_ascii_digit()) => Some(port),
            _ => return Err(format!("the port \"{digits}\" is not between 1 and 65535")),
        },
    };
    Ok((host.to_ascii_lowercase(), port))
}

/// A host as it stands in a URL: an IPv6 address in brackets.
pub(crate) fn bracketed(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

/// Whether a host is this machine.
pub(crate) fn is_loopback_host(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(ip) => ip.is_loopback() || ip == IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Err(_) => host == "localhost" || host.ends_with(".localhost"),
    }
}

/// Whether a host is this machine or an address of a private network.
pub(crate) fn is_private_host(host: &str) -> bool {
    is_loopback_host(host) || host.parse::<IpAddr>().is_ok_and(is_private)
}

/// Whether an address is this machine's or a private network's.
pub(crate) fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            ip.is_loopback() || ip.is_unspecified() || ip.is_private() || ip.is_link_local()
        }
        IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_unique_local()
                || ip.is_unicast_link_local()
        }
    }
}
