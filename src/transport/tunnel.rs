//! What is said to a proxy before the connection is the service's: HTTP `CONNECT` (RFC 9110,
//! section 9.3.6) and SOCKS5 (RFC 1928, RFC 1929). Bytes in, bytes out; knows no sockets.
//!
//! `CONNECT` is used for plain `http` services too, so that a proxy never sees a token.

use std::net::IpAddr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::proxy::{Proxy, ProxyScheme};
use crate::url::bracketed;

/// The longest answer of a proxy that is read.
const MAX_ANSWER: usize = 64 << 10;

/// What to do next.
pub(super) enum Say {
    /// Send this and come back with the answer; the number of bytes of the last answer used.
    Bytes(usize, Vec<u8>),
    /// Read more.
    More,
    /// The tunnel stands; the number of bytes of the last answer used.
    Done(usize),
}

/// A tunnel being made.
pub(super) struct Tunnel {
    proxy: Proxy,
    host: String,
    port: u16,
    step: Step,
}

enum Step {
    Greet,
    Connected,
    SocksMethod,
    SocksPassword,
    SocksReply,
}

impl Tunnel {
    /// `host` is a name, or an address where the name was resolved here (`socks5`).
    pub fn new(proxy: Proxy, host: String, port: u16) -> Tunnel {
        Tunnel {
            proxy,
            host,
            port,
            step: Step::Greet,
        }
    }

    /// Goes on with what the proxy has answered so far; an error says what the proxy did.
    pub fn next(&mut self, answer: &[u8]) -> Result<Say, String> {
        match self.step {
            Step::Greet => Ok(self.greet()),
            Step::Connected => connected(answer),
            Step::SocksMethod => self.method(answer),
            Step::SocksPassword => match answer {
                [_, 0, ..] => self.ask(2),
                [_, _, ..] => Err("refused the user name and password".into()),
                _ => Ok(Say::More),
            },
            Step::SocksReply => reply(answer),
        }
    }

    fn greet(&mut self) -> Say {
        let bytes = match self.proxy.scheme {
            ProxyScheme::Http | ProxyScheme::Https => {
                self.step = Step::Connected;
                let target = format!("{}:{}", bracketed(&self.host), self.port);
                let mut head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
                if let Some((user, password)) = &self.proxy.credentials {
                    let token = BASE64_STANDARD.encode(format!("{user}:{password}"));
                    head.push_str(&format!("Proxy-Authorization: Basic {token}\r\n"));
                }
                head.push_str("\r\n");
                head.into_bytes()
            }
            ProxyScheme::Socks5 | ProxyScheme::Socks5h => {
                self.step = Step::SocksMethod;
                // Version 5, the methods on offer: none (0), and a password (2) where we have one.
                match self.proxy.credentials {
                    Some(_) => vec![5, 2, 0, 2],
                    None => vec![5, 1, 0],
                }
            }
        };
        Say::Bytes(0, bytes)
    }

    fn method(&mut self, answer: &[u8]) -> Result<Say, String> {
        match (answer, &self.proxy.credentials) {
            ([5, 0, ..], _) => self.ask(2),
            ([5, 2, ..], Some((user, password))) => {
                self.step = Step::SocksPassword;
                let mut bytes = vec![1];
                for part in [user, password] {
                    bytes.push(part.len() as u8);
                    bytes.extend_from_slice(part.as_bytes());
                }
                Ok(Say::Bytes(2, bytes))
            }
            ([5, _, ..], None) => Err("wants a user name and password".into()),
            ([5, _, ..], Some(_)) => Err("takes no user name and password".into()),
            ([5] | [], _) => Ok(Say::More),
            _ => Err("does not speak SOCKS5".into()),
        }
    }

    fn ask(&mut self, used: usize) -> Result<Say, String> {
        self.step = Step::SocksReply;
        let mut bytes = vec![5, 1, 0];
        match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V4(ip)) => {
                bytes.push(1);
                bytes.extend_from_slice(&ip.octets());
            }
            Ok(IpAddr::V6(ip)) => {
                bytes.push(4);
                bytes.extend_from_slice(&ip.octets());
            }
            Err(_) => {
                let Ok(length) = u8::try_from(self.host.len()) else {
                    return Err("cannot be asked for a host name of more than 255 bytes".into());
                };
                bytes.extend_from_slice(&[3, length]);
                bytes.extend_from_slice(self.host.as_bytes());
            }
        }
        bytes.extend_from_slice(&self.port.to_be_bytes());
        Ok(Say::Bytes(used, bytes))
    }
}

fn connected(answer: &[u8]) -> Result<Say, String> {
    const START: &[u8] = b"HTTP/1.";
    let length = answer.len().min(START.len());
    if answer[..length] != START[..length] {
        return Err("does not speak HTTP".into());
    }
    let Some(end) = memchr::memmem::find(answer, b"\r\n\r\n") else {
        return if answer.len() > MAX_ANSWER {
            Err("sent a header without end".into())
        } else {
            Ok(Say::More)
        };
    };
    let line = String::from_utf8_lossy(answer.split(|b| *b == b'\r').next().unwrap_or(&[]));
    let status = line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1));
    match status {
        Some(code) if code.len() == 3 && code.starts_with('2') => Ok(Say::Done(end + 4)),
        Some(code @ ("401" | "407")) => Err(format!(
            "wants a user name and password (HTTP {code}), or others"
        )),
        Some(code) if code.len() == 3 && code.bytes().all(|b| b.is_ascii_digit()) => {
            Err(format!("refused the tunnel (HTTP {code})"))
        }
        _ => Err("does not speak HTTP".into()),
    }
}

fn reply(answer: &[u8]) -> Result<Say, String> {
    match answer {
        [5, 0, ..] => {}
        [5, code, ..] => {
            let why = match code {
                1 => "general failure",
                2 => "not allowed by its rules",
                3 => "network unreachable",
                4 => "host unreachable",
                5 => "connection refused",
                6 => "timed out",
                7 | 8 => "not supported",
                _ => "unknown reason",
            };
            return Err(format!("could not connect to the service: {why}"));
        }
        [5] | [] => return Ok(Say::More),
        _ => return Err("does not speak SOCKS5".into()),
    }
    // Version, code, reserved, then the bound address and a port, which nobody needs.
    let length = match answer.get(3) {
        Some(1) => 4 + 4 + 2,
        Some(4) => 4 + 16 + 2,
        Some(3) => match answer.get(4) {
            Some(n) => 5 + usize::from(*n) + 2,
            None => return Ok(Say::More),
        },
        Some(_) => return Err("answered with an unknown address type".into()),
        None => return Ok(Say::More),
    };
    Ok(if answer.len() >= length {
        Say::Done(length)
    } else {
        Say::More
    })
}
