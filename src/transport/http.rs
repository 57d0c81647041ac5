//! HTTP over a wire: a request and its answer's header. The only file that names ureq.
//!
//! ureq reads the header; the waiting is ours, and so is the request. Its agent runs over a
//! [`Connector`], a [`Resolver`] and a [`Transport`] that open nothing and never wait: the
//! connection stands already, and where the header is not whole the run is abandoned.
//!
//! ```text
//!   ask: the request is queued as output
//!     │
//!     ▼
//!   pump: send the rest, receive, slice by slice, the caller's hand on it between two ◀───┐
//!     │                                                                                   │
//!     ▼ the first bytes are there, and then the header's end                              │
//!   run: ureq reads what is there ── the header is not whole: the wire comes back ────────┘
//!     │
//!     └──▶ Head, and the wire, at its body
//! ```
//!
//! At the level `trace` ureq logs what it is asked, URL and headers and all, and a program that uses
//! us may have a logger: so no secret of ours comes to its ears. It is told of a bare `GET`, which it
//! writes into a buffer that goes nowhere; out goes what [`Request::new`] wrote.
//!
//! A run costs some microseconds, whatever the wait was. No callback ever runs inside ureq.
//!
//! A service's headers often are the same, byte by byte: those are read once on a connection.
//!
//! Each connection has an agent of its own, with ureq's pool left empty: an agent's lock is then
//! never contended, and never copied locked into the child of a fork.

use std::sync::{Arc, Mutex};
use std::{fmt, io};

use once_cell::sync::Lazy;
use ureq::http::HeaderMap;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};
use ureq::{Agent, http};

use super::wire::{Progress, Wire};
use crate::error::{Error, ErrorKind};
use crate::sys::lock;

/// The longest header, in bytes: of the answer and of the informational ones (1xx) before it.
pub(super) const MAX_HEADER: usize = 64 << 10;
/// The longest header that is kept, and how many of a connection are: a GPTalk service has three.
const MAX_KEPT: usize = 1 << 10;
const KEPT: usize = 4;

/// What to ask a service.
pub(crate) struct Request {
    /// Without the query, as it may be shown.
    pub shown_url: String,
    /// As it goes over the wire.
    bytes: Vec<u8>,
}

impl Request {
    /// With a body it is a POST, else a GET. The user's headers, in lower case, replace those of ours
    /// that have the same name.
    ///
    /// The form is RFC 9112's, sections 3 and 6. All that is in it was checked where it came from:
    /// no line can be smuggled in.
    pub fn new<'a>(
        url: String,
        query: Option<&str>,
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
        user_headers: &'a [(String, String)],
        body: Option<&[u8]>,
    ) -> Request {
        let rest = url.split_once("://").map_or("", |(_, rest)| rest);
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = if path.is_empty() { "/" } else { path };
        let method = if body.is_some() { "POST " } else { "GET " };
        let theirs = user_headers.iter().map(|(name, value)| (&**name, &**value));
        let is_replaced = |name: &str| user_headers.iter().any(|(theirs, _)| theirs == name);
        let ours = headers.into_iter().filter(|(name, _)| !is_replaced(name));

        let mut bytes = Vec::with_capacity(512 + body.map_or(0, <[u8]>::len));
        let mut line = |parts: &[&str]| {
            parts
                .iter()
                .for_each(|part| bytes.extend_from_slice(part.as_bytes()));
            bytes.extend_from_slice(b"\r\n");
        };
        match query {
            Some(query) => line(&[method, path, "?", query, " HTTP/1.1"]),
            None => line(&[method, path, " HTTP/1.1"]),
        }
        line(&["host: ", host]);
        for (name, value) in ours.chain(theirs) {
            line(&[name, ": ", value]);
        }
        if let Some(body) = body {
            line(&["content-length: ", &body.len().to_string()]);
        }
        line(&[]);
        bytes.extend_from_slice(body.unwrap_or_default());
        Request {
            shown_url: url,
            bytes,
        }
    }
}

/// An answer's status and header.
pub(super) struct Head {
    pub status: u16,
    pub is_http10: bool,
    headers: HeaderMap,
}

impl Head {
    /// A header's value, where it is text.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether a header that is a list has a word.
    pub fn has(&self, name: &str, word: &str) -> bool {
        let values = self.headers.get_all(name).iter();
        values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|item| item.trim().eq_ignore_ascii_case(word))
    }
}

/// What a run came to.
pub(super) enum Ran {
    Header(Arc<Head>),
    NotYet,
    /// What came is no header.
    Bad(Error),
}

/// Made once, with the library's first use: ureq looks for a proxy in the environment, whatever it is
/// told of one, and a host may change its environment later on.
static CONFIG: Lazy<ureq::config::Config> = Lazy::new(|| {
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_response_header_size(MAX_HEADER)
        .max_idle_connections(0)
        .proxy(None)
        .user_agent("")
        .accept("")
        .accept_encoding("")
        .build()
});

/// What ureq is told that it asks for.
static NOWHERE: Lazy<http::Uri> = Lazy::new(|| http::Uri::from_static("http://gptalk"));

/// What is made once, and looks at the environment.
pub(crate) fn prepare() {
    Lazy::force(&CONFIG);
    Lazy::force(&NOWHERE);
}

/// A wire and the agent that runs over it.
pub(super) struct Connection {
    pub wire: Box<Wire>,
    link: Link,
    kept: Vec<Kept>,
}

/// A header that was read: where the same bytes come again, it is the same.
struct Kept {
    bytes: Vec<u8>,
    head: Arc<Head>,
}

struct Link {
    agent: Agent,
    slot: Slot,
}

/// Where the wire is on its way to ureq's transport and back.
#[derive(Clone, Default)]
struct Slot(Arc<Mutex<Option<Box<Wire>>>>);

impl Slot {
    fn put(&self, wire: Box<Wire>) {
        *lock(&self.0) = Some(wire);
    }

    fn take(&self) -> Option<Box<Wire>> {
        lock(&self.0).take()
    }
}

impl Connection {
    pub fn new(wire: Wire) -> Connection {
        let slot = Slot::default();
        let agent = Agent::with_parts(CONFIG.clone(), slot.clone(), NoResolver);
        Connection {
            wire: Box::new(wire),
            link: Link { agent, slot },
            kept: Vec::new(),
        }
    }

    /// Queues a request. Head and body go in one segment where they fit.
    pub fn ask(&mut self, request: &Request) {
        self.wire.progress = Progress::default();
        self.wire.output.extend_from_slice(&request.bytes);
    }

    /// Reads what there is of the header. `url` is for errors.
    pub fn run(mut self, url: &str) -> Result<(Connection, Ran), Error> {
        let input = self.wire.input.unread();
        let mut kept = self.kept.iter();
        if let Some(kept) = kept.find(|kept| input.starts_with(&kept.bytes)) {
            let head = kept.head.clone();
            self.wire.input.consume(kept.bytes.len());
            return Ok((self, Ran::Header(head)));
        }
        let Connection {
            wire,
            link,
            mut kept,
        } = self;
        let result = link.run(wire);
        let Some(mut wire) = link.slot.take() else {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("{url}: a connection was lost"),
            ));
        };
        let ran = match result {
            Ok(response) => {
                let (head, ()) = response.into_parts();
                let head = Arc::new(Head {
                    status: head.status.as_u16(),
                    is_http10: head.version == http::Version::HTTP_10,
                    headers: head.headers,
                });
                let bytes = std::mem::take(&mut wire.progress.header);
                if bytes.len() <= MAX_KEPT {
                    kept.truncate(KEPT - 1);
                    let head = head.clone();
                    kept.insert(0, Kept { bytes, head });
                }
                Ran::Header(head)
            }
            Err(ureq::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                match wire.input.unread().len() < MAX_HEADER {
                    true => Ran::NotYet,
                    false => Ran::Bad(header_limit(url)),
                }
            }
            Err(ureq::Error::LargeResponseHeader(..)) => Ran::Bad(header_limit(url)),
            Err(ureq::Error::Protocol(error)) => {
                let input = wire.input.unread();
                let seen = String::from_utf8_lossy(&input[..input.len().min(MAX_HEADER)]);
                let words = error.to_string();
                Ran::Bad(if words.contains("too many headers") {
                    header_limit(url)
                } else {
                    Error::protocol(format!("{url} did not answer in HTTP ({words})"))
                        .with_quote(seen.into_owned())
                })
            }
            Err(error) => {
                return Err(Error::new(ErrorKind::Internal, format!("{url}: {error}")));
            }
        };
        Ok((Connection { wire, link, kept }, ran))
    }
}

impl Link {
    /// Runs the agent over the wire, which is in the slot afterwards.
    fn run(&self, wire: Box<Wire>) -> Result<http::Response<()>, ureq::Error> {
        self.slot.put(wire);
        let mut request = http::Request::new(());
        *request.uri_mut() = NOWHERE.clone();
        let response = self.agent.run(request)?;
        // Without its body, which holds the transport: dropping it brings the wire back.
        Ok(response.map(drop))
    }
}

/// The wire as ureq's transport. Dropped, it puts the wire back into the slot.
struct Lent {
    wire: Option<Box<Wire>>,
    slot: Slot,
    /// Where ureq writes its request: room for a whole header line.
    scratch: [u8; 256],
    /// The last look at the input used some of it: there may be more to use.
    is_usable: bool,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(wire) = self.wire.take() {
            self.slot.put(wire);
        }
    }
}

impl Connector for Slot {
    type Out = Lent;

    /// The connection stands already.
    fn connect(&self, _: &ConnectionDetails, _: Option<()>) -> Result<Option<Lent>, ureq::Error> {
        Ok(self.take().map(|wire| Lent {
            wire: Some(wire),
            slot: self.clone(),
            scratch: [0; 256],
            is_usable: true,
        }))
    }
}

impl Lent {
    fn wire(&mut self) -> Result<&mut Wire, ureq::Error> {
        self.wire
            .as_deref_mut()
            .ok_or(ureq::Error::ConnectionFailed)
    }
}

impl Transport for Lent {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self
    }

    /// What it writes goes nowhere.
    fn transmit_output(&mut self, _: usize, _: NextTimeout) -> Result<(), ureq::Error> {
        Ok(())
    }

    /// There is no more than there is.
    fn await_input(&mut self, _: NextTimeout) -> Result<bool, ureq::Error> {
        let skipped = self.wire()?.progress.skipped;
        if skipped > MAX_HEADER {
            return Err(ureq::Error::LargeResponseHeader(skipped, MAX_HEADER));
        }
        Err(io::Error::from(io::ErrorKind::WouldBlock).into())
    }

    /// Asked at the end of a body, which is read elsewhere.
    fn is_open(&mut self) -> bool {
        false
    }
}

impl Buffers for Lent {
    fn output(&mut self) -> &mut [u8] {
        &mut self.scratch
    }

    /// As much as a header may be: behind an informational one ureq takes what follows, a body as well,
    /// for more of a header.
    fn input(&self) -> &[u8] {
        let input = self
            .wire
            .as_ref()
            .map_or(&[][..], |wire| wire.input.unread());
        &input[..input.len().min(MAX_HEADER)]
    }

    // Input is appended by the wire itself.
    fn input_append_buf(&mut self) -> &mut [u8] {
        &mut []
    }

    fn input_appended(&mut self, _: usize) {}

    fn input_consume(&mut self, amount: usize) {
        self.is_usable = amount > 0;
        if let Some(wire) = &mut self.wire {
            wire.progress.header.clear();
            let header = &wire.input.unread()[..amount.min(MAX_KEPT + 1)];
            wire.progress.header.extend_from_slice(header);
            wire.input.consume(amount);
            wire.progress.skipped += amount;
        }
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        (&mut [], self.output())
    }

    fn can_use_input(&self) -> bool {
        self.is_usable && !self.input().is_empty()
    }
}

/// Names are resolved when a connection is opened, not at each request.
#[derive(Debug)]
struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(
        &self,
        _: &http::Uri,
        _: &ureq::config::Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        Ok(self.empty())
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lent")
    }
}

fn header_limit(url: &str) -> Error {
    Error::new(
        ErrorKind::Limit,
        format!("{url} answered with a header of more than 64 KiB or 128 lines"),
    )
    .with_code("header")
}
