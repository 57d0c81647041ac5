//! Opening a connection, in steps: resolve, TCP to one address after another, TLS to the proxy,
//! the tunnel through it, TLS to the service.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pool::Route;
use super::tunnel::{Say, Tunnel};
use super::wire::{Io, Pump, Tls, Wire};
use super::{Limits, is_not_yet, timeout, tls};
use crate::error::{Error, ErrorKind, words};
#[cfg(gptalk_fuzzing)]
use crate::fuzzing::Socket;
use crate::proxy::ProxyScheme;
#[cfg(not(gptalk_fuzzing))]
use crate::sys::Socket;
use crate::url::{is_private, is_private_host};

/// A connection being opened.
pub(super) struct Connecting {
    route: Arc<Route>,
    limit: Option<Duration>,
    /// Counted from the end of the name resolution.
    deadline: Option<Instant>,
    /// What the proxy is asked for.
    target: String,
    step: Step,
}

enum Step {
    Resolve,
    Tcp(Attempts),
    ProxyTls(Box<Tls>),
    Tunnel(Box<Wire>, Tunnel),
    Tls(Box<Tls>),
    /// Failed or handed out.
    Over,
}

/// The addresses of a host, tried one after the other.
struct Attempts {
    /// The next one last.
    rest: Vec<SocketAddr>,
    current: Option<Attempt>,
    failure: Option<(SocketAddr, io::Error)>,
}

struct Attempt {
    addr: SocketAddr,
    socket: Socket,
    deadline: Option<Instant>,
}

impl Connecting {
    pub fn new(route: Arc<Route>, limits: &Limits) -> Connecting {
        Connecting {
            target: route.host.clone(),
            route,
            limit: limits.connect,
            deadline: None,
            step: Step::Resolve,
        }
    }

    /// One step; `None`: nothing yet. An error is from before the request: nothing was sent.
    pub fn advance(&mut self) -> Result<Option<Wire>, Error> {
        let result = self.step();
        if result.is_err() {
            self.step = Step::Over;
        }
        result.map_err(Error::with_repeatable)
    }

    fn step(&mut self) -> Result<Option<Wire>, Error> {
        if self
            .deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
        {
            return Err(self.timed_out());
        }
        match std::mem::replace(&mut self.step, Step::Over) {
            Step::Resolve => {
                self.step = Step::Tcp(self.resolve()?);
                self.deadline = self.limit.map(|limit| Instant::now() + limit);
            }
            Step::Tcp(mut attempts) => match attempts.advance(self.deadline) {
                Ok(Some(socket)) => return self.connected(socket),
                Ok(None) => self.step = Step::Tcp(attempts),
                Err((addr, error)) => return Err(self.refused(addr, &error)),
            },
            Step::ProxyTls(mut tls) => match tls.handshake() {
                Ok(true) => self.begin_tunnel(Io::Tls(tls)),
                Err(error) if !is_not_yet(&error) => {
                    return Err(self.proxy_failed(&format!("TLS: {}", tls::reason(&error))));
                }
                _ => self.step = Step::ProxyTls(tls),
            },
            Step::Tunnel(wire, tunnel) => return self.tunnel(wire, tunnel),
            Step::Tls(mut tls) => match tls.handshake() {
                Ok(true) => return Ok(Some(Wire::new(Io::Tls(tls), self.route.clone()))),
                Err(error) if !is_not_yet(&error) => {
                    return Err(Error::new(
                        ErrorKind::Tls,
                        format!(
                            "no TLS connection to {}: {}",
                            self.peer(),
                            tls::reason(&error)
                        ),
                    ));
                }
                _ => self.step = Step::Tls(tls),
            },
            Step::Over => {
                return Err(Error::new(
                    ErrorKind::Internal,
                    "a connection that failed was used",
                ));
            }
        }
        Ok(None)
    }

    fn resolve(&mut self) -> Result<Attempts, Error> {
        let (host, port) = match &self.route.proxy {
            Some(proxy) => {
                // A `socks5` proxy is asked for an address, a `socks5h` proxy for a name.
                if proxy.scheme == ProxyScheme::Socks5 {
                    let addrs = lookup(&self.route.host, self.route.port)?;
                    self.target = addrs[0].ip().to_string();
                }
                if self.route.private_only && !is_private_host(&self.target) {
                    return Err(self.exposed(&self.target));
                }
                (&proxy.host, proxy.port)
            }
            None => (&self.route.host, self.route.port),
        };
        let mut rest = lookup(host, port)?;
        if self.route.private_only {
            let first = rest[0].ip();
            rest.retain(|addr| is_private(addr.ip()));
            if rest.is_empty() {
                return Err(self.exposed(&first.to_string()));
            }
        }
        rest.reverse();
        Ok(Attempts {
            rest,
            current: None,
            failure: None,
        })
    }

    /// TCP stands: what comes on top of it.
    fn connected(&mut self, socket: Socket) -> Result<Option<Wire>, Error> {
        let io = Io::Tcp(socket);
        match &self.route.proxy {
            None => self.secured(io),
            Some(proxy) if proxy.scheme == ProxyScheme::Https => {
                let tls = tls::wrap(io, &proxy.host, self.route.ca_file.as_ref())?;
                self.step = Step::ProxyTls(Box::new(tls));
                Ok(None)
            }
            Some(_) => {
                self.begin_tunnel(io);
                Ok(None)
            }
        }
    }

    /// The way to the service stands: TLS where it wants it.
    fn secured(&mut self, io: Io) -> Result<Option<Wire>, Error> {
        if !self.route.https {
            return Ok(Some(Wire::new(io, self.route.clone())));
        }
        let tls = tls::wrap(io, &self.route.host, self.route.ca_file.as_ref())?;
        self.step = Step::Tls(Box::new(tls));
        Ok(None)
    }

    fn begin_tunnel(&mut self, io: Io) {
        if let Some(proxy) = self.route.proxy.clone() {
            let tunnel = Tunnel::new(proxy, self.target.clone(), self.route.port);
            let wire = Wire::new(io, self.route.clone());
            self.step = Step::Tunnel(Box::new(wire), tunnel);
        }
    }

    fn tunnel(&mut self, mut wire: Box<Wire>, mut tunnel: Tunnel) -> Result<Option<Wire>, Error> {
        match tunnel
            .next(wire.input.unread())
            .map_err(|why| self.proxy_failed(&why))?
        {
            Say::Done(used) => {
                wire.input.consume(used);
                // The service speaks after us: bytes that are here already are not its own.
                if !wire.input.unread().is_empty() {
                    return Err(self.proxy_failed("sent more than its answer"));
                }
                return self.secured(wire.io);
            }
            Say::Bytes(used, bytes) => {
                wire.input.consume(used);
                wire.output.extend_from_slice(&bytes);
            }
            Say::More => {}
        }
        match wire.pump() {
            Pump::Data | Pump::Pending => {}
            Pump::Ended => return Err(self.proxy_failed("closed the connection")),
            Pump::Failed(error) => {
                let why = format!("broke the connection: {}", tls::reason(&error));
                return Err(self.proxy_failed(&why));
            }
        }
        self.step = Step::Tunnel(wire, tunnel);
        Ok(None)
    }

    /// Who is on the other end, for an error.
    fn peer(&self) -> String {
        let host = crate::url::bracketed(&self.route.host);
        match &self.route.proxy {
            Some(proxy) => format!("{host}:{} (proxy {proxy})", self.route.port),
            None => format!("{host}:{}", self.route.port),
        }
    }

    /// The key would travel in plain text.
    fn exposed(&self, address: &str) -> Error {
        Error::misuse(format!(
            "the API key would go to {} in plain text, and {address} is no loopback or private \
             address: give a base_url with https://, or no key (api_key, OPENAI_API_KEY)",
            self.peer()
        ))
        .with_code("plain_http")
    }

    fn refused(&self, addr: SocketAddr, error: &io::Error) -> Error {
        if self.route.proxy.is_some() {
            return self.proxy_failed(&format!("cannot be reached: {}", words(error)));
        }
        // The system has a time limit of its own.
        let is_ours = error.raw_os_error().is_none();
        if error.kind() == io::ErrorKind::TimedOut && is_ours && self.limit.is_some() {
            return self.timed_out();
        }
        Error::new(
            ErrorKind::Network,
            format!(
                "no connection to {} ({addr}): {}",
                self.peer(),
                words(error)
            ),
        )
        .with_code("connect")
    }

    fn proxy_failed(&self, why: &str) -> Error {
        let proxy = self
            .route
            .proxy
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default();
        Error::new(
            ErrorKind::Network,
            format!(
                "the proxy {proxy} {why}, on the way to {}:{}",
                crate::url::bracketed(&self.route.host),
                self.route.port
            ),
        )
        .with_code("proxy")
    }

    fn timed_out(&self) -> Error {
        let limit = self.limit.unwrap_or_default().as_millis();
        let (what, advice) = match self.step {
            Step::Tls(_) => ("TLS handshake with", "; is it an http:// service?"),
            _ => ("connection to", ""),
        };
        timeout(
            "connect_timeout",
            format!(
                "no {what} {} within {limit} ms (connect_timeout_ms){advice}",
                self.peer()
            ),
        )
    }
}

impl Attempts {
    /// One step; an error where every address has failed.
    fn advance(
        &mut self,
        deadline: Option<Instant>,
    ) -> Result<Option<Socket>, (SocketAddr, io::Error)> {
        if let Some(attempt) = self.current.take() {
            match attempt.outcome() {
                Ok(true) => return Ok(Some(attempt.socket)),
                Ok(false) => self.current = Some(attempt),
                Err(error) => self.failure = Some((attempt.addr, error)),
            }
        } else if let Some(addr) = self.rest.pop() {
            // The last address has all the time that is left, one before it half of that.
            let now = Instant::now();
            let left = deadline.map(|deadline| deadline.saturating_duration_since(now));
            let share = left.map(|left| now + if self.rest.is_empty() { left } else { left / 2 });
            match Socket::connect(addr) {
                Ok(socket) => {
                    self.current = Some(Attempt {
                        addr,
                        socket,
                        deadline: share,
                    });
                }
                Err(error) => self.failure = Some((addr, error)),
            }
        } else {
            let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
            return Err(self
                .failure
                .take()
                .unwrap_or((unspecified, io::ErrorKind::AddrNotAvailable.into())));
        }
        Ok(None)
    }
}

impl Attempt {
    /// Whether it is connected; waits a slice.
    fn outcome(&self) -> io::Result<bool> {
        if self.socket.is_connected()? {
            return Ok(true);
        }
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(false),
        }
    }
}

/// The addresses of a host: one or more.
fn lookup(host: &str, port: u16) -> Result<Vec<SocketAddr>, Error> {
    let unknown = |why: &str| {
        Error::new(
            ErrorKind::Network,
            format!("the host name \"{host}\" (port {port}) cannot be resolved: {why}"),
        )
        .with_code("dns")
    };
    #[cfg(gptalk_fuzzing)]
    let host = crate::fuzzing::resolved(host);
    let addrs = (host, port).to_socket_addrs().map_err(|error| {
        let text = error.to_string();
        unknown(
            text.strip_prefix("failed to lookup address information: ")
                .unwrap_or(&text),
        )
    })?;
    let addrs: Vec<_> = addrs.collect();
    if addrs.is_empty() {
        return Err(unknown("it has no address"));
    }
    Ok(addrs)
}
