//! One request and the header of its answer. The only file that names ureq.
//!
//! ureq writes the request and reads the header; the waiting is ours. Its agent runs over a
//! [`Connector`], a [`Resolver`] and a [`Transport`] that open nothing and hardly wait: the
//! connection stands already, the request goes into the [`Wire`]'s buffer, and where the answer
//! is not there within a slice the run is abandoned.
//!
//! ```text
//!          ┌──────────────────────── run ────────────────────────┐
//!   Wire ─▶│ ureq writes the request, reads the header ──▶ Answer │─▶ Wire, at its body
//!          │        └─ no header within a slice: WouldBlock       │
//!          └──────────┬───────────────────────────────────────────┘
//!                     ▼ the wire comes back, with what was queued and received
//!   pump: send the rest, receive, slice by slice, the caller's hand on it between two
//!                     │
//!                     ▼ the header is there: run again, what ureq writes is not sent again
//! ```
//!
//! A fast service costs one run. A slow one costs a second run of a few microseconds, whatever
//! the wait. In exchange no callback ever runs inside ureq, and a run never outlives a slice.
//!
//! Each connection has an agent of its own, with ureq's pool left empty: an agent's lock is then
//! never contended, and never copied locked into the child of a fork.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use std::{fmt, io};

use ureq::http::HeaderMap;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};
use ureq::{Agent, http};

use super::body::{Body, Chunked, Framing};
use super::connect::Connecting;
use super::pool::{Pool, Route};
use super::wire::{Pump, Turn, Wire};
use super::{Limits, timeout};
use crate::error::{Error, ErrorKind};

/// The longest header, in bytes: of the answer and of the informational ones (1xx) before it.
const MAX_HEADER: usize = 64 << 10;

/// What to ask a service.
pub(crate) struct Request {
    /// With the query.
    pub url: String,
    /// As it may be shown.
    pub shown_url: String,
    pub headers: Vec<(&'static str, String)>,
    /// The user's own, which replace those of the same name. In lower case.
    pub user_headers: Vec<(String, String)>,
    /// `Some`: POST; `None`: GET.
    pub body: Option<String>,
}

/// An answer's header, and its body to be read.
pub(crate) struct Answer {
    pub status: u16,
    headers: HeaderMap,
    pub body: Body,
}

impl Answer {
    /// A header's value, where it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// A request on its way.
pub(crate) struct Exchange {
    pool: Arc<Pool>,
    route: Arc<Route>,
    request: Request,
    limits: Limits,
    state: State,
    /// A dead idle connection has been replaced by a new one already.
    replaced: bool,
}

enum State {
    Start,
    Connecting(Box<Connecting>),
    Talking(Talk),
    Over,
}

/// A request on a connection.
struct Talk {
    connection: Connection,
    /// When the last byte of the request was sent, or the talk began.
    since: Instant,
    /// There is something new for ureq to read.
    due: bool,
    /// How much of the input has been searched for the header's end.
    searched: usize,
}

impl Exchange {
    pub fn new(pool: Arc<Pool>, route: Arc<Route>, request: Request, limits: Limits) -> Exchange {
        Exchange {
            pool,
            route,
            request,
            limits,
            state: State::Start,
            replaced: false,
        }
    }

    /// The request's URL as it may be shown.
    pub fn shown_url(&self) -> &str {
        &self.request.shown_url
    }

    /// One step; `None`: nothing yet.
    pub fn advance(&mut self) -> Result<Option<Answer>, Error> {
        self.limits
            .check_total(Instant::now(), &self.request.shown_url)?;
        match std::mem::replace(&mut self.state, State::Over) {
            State::Start => {
                let idle = if self.replaced {
                    None
                } else {
                    self.pool.take(&self.route)
                };
                self.state = match idle {
                    Some(connection) => State::Talking(Talk::new(connection)),
                    None => {
                        let connecting = Connecting::new(self.route.clone(), &self.limits);
                        State::Connecting(Box::new(connecting))
                    }
                };
                Ok(None)
            }
            State::Connecting(mut connecting) => {
                self.state = match connecting.advance()? {
                    Some(wire) => State::Talking(Talk::new(Connection::new(wire))),
                    None => State::Connecting(connecting),
                };
                Ok(None)
            }
            State::Talking(talk) => self.talk(talk),
            State::Over => Err(Error::new(
                ErrorKind::Internal,
                "an exchange that is over was used",
            )),
        }
    }

    fn talk(&mut self, mut talk: Talk) -> Result<Option<Answer>, Error> {
        if !talk.due {
            let sent = talk.connection.wire.sent;
            match talk.connection.wire.pump() {
                Pump::Data => talk.look(),
                Pump::Pending => {}
                over => return self.died(talk, over),
            }
            if talk.connection.wire.sent != sent {
                talk.since = Instant::now();
            }
        }
        if talk.due {
            talk.due = false;
            talk.searched = 0;
            let (connection, ran) = self.run(talk.connection)?;
            talk.connection = connection;
            match ran {
                Ran::Header(response) => return self.answer(talk.connection, response).map(Some),
                Ran::NotYet => {}
                Ran::Over(over) => return self.died(talk, over),
            }
        }
        match self.limits.response {
            Some(limit) if talk.since.elapsed() >= limit => Err(timeout(
                "response_timeout",
                format!(
                    "{} did not answer within {} ms (response_timeout_ms)",
                    self.request.shown_url,
                    limit.as_millis()
                ),
            )),
            _ => {
                self.state = State::Talking(talk);
                Ok(None)
            }
        }
    }

    /// Lets ureq write the request, or skip it, and read what there is of the header.
    fn run(&self, connection: Connection) -> Result<(Connection, Ran), Error> {
        let url = &self.request.shown_url;
        let Connection { wire, link } = connection;
        let result = link.run(wire, &self.request);
        let Some(mut wire) = link.slot.take() else {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("{url}: a connection was lost"),
            ));
        };
        let ran = match result {
            Ok(response) => Ran::Header(response),
            Err(ureq::Error::Io(error)) => match wire.turn.over.take() {
                Some(over) => Ran::Over(over),
                None if error.kind() == io::ErrorKind::WouldBlock => Ran::NotYet,
                None => Ran::Over(Pump::Failed(error)),
            },
            Err(ureq::Error::LargeResponseHeader(..)) => return Err(header_limit(url)),
            Err(ureq::Error::Protocol(error)) => {
                let input = wire.input.unread();
                let seen = String::from_utf8_lossy(&input[..input.len().min(80)]);
                let words = error.to_string();
                return Err(if words.contains("too many headers") {
                    header_limit(url)
                } else {
                    Error::protocol(format!("{url} did not answer in HTTP ({words}): {seen:?}"))
                });
            }
            Err(error) => {
                return Err(Error::new(ErrorKind::Internal, format!("{url}: {error}")));
            }
        };
        Ok((Connection { wire, link }, ran))
    }

    /// The connection ended before the header was whole.
    fn died(&mut self, talk: Talk, over: Pump) -> Result<Option<Answer>, Error> {
        let how = match over {
            Pump::Failed(error) => format!("broke the connection ({error})"),
            _ => "closed the connection".to_owned(),
        };
        let url = &self.request.shown_url;
        if !talk.connection.wire.turn.answered && talk.connection.wire.reused && !self.replaced {
            // The service had closed it while it was idle, or closes it as we write.
            self.replaced = true;
            self.state = State::Start;
            return Ok(None);
        }
        let when = match talk.connection.wire.turn.answered {
            true => "in the middle of its answer's header",
            false => "without an answer",
        };
        Err(Error::new(ErrorKind::Network, format!("{url} {how} {when}")).with_code("closed"))
    }

    fn answer(
        &self,
        connection: Connection,
        response: http::Response<()>,
    ) -> Result<Answer, Error> {
        let url = &self.request.shown_url;
        let (head, ()) = response.into_parts();
        let says = |name, word: &str| {
            head.headers
                .get_all(name)
                .iter()
                .filter_map(|value| value.to_str().ok())
                .any(|value| {
                    value
                        .split(',')
                        .any(|item| item.trim().eq_ignore_ascii_case(word))
                })
        };
        let encoding = head
            .headers
            .get("content-encoding")
            .map(|v| v.as_bytes().to_ascii_lowercase());
        if encoding.is_some_and(|encoding| encoding != b"identity" && !encoding.is_empty()) {
            return Err(Error::protocol(format!(
                "{url} compressed its answer (Content-Encoding), which nobody asked for"
            )));
        }
        let http10 = head.version == http::Version::HTTP_10;
        let mut reusable = match http10 {
            true => says("connection", "keep-alive"),
            false => !says("connection", "close"),
        };
        // ureq has checked that the lengths are numbers and agree.
        let length = head
            .headers
            .get("content-length")
            .and_then(|v| v.to_str().ok());
        let length = length.and_then(|v| v.split(',').next()?.trim().parse().ok());
        let framing = if matches!(head.status.as_u16(), 101 | 204 | 304) {
            Framing::Length(0)
        } else if !http10 && says("transfer-encoding", "chunked") {
            // Both, chunked and a length, smell of smuggling: chunked counts, once.
            reusable &= length.is_none();
            Framing::Chunked(Chunked::START)
        } else {
            length.map_or(Framing::UntilClose, Framing::Length)
        };
        let is_sent = connection.wire.is_sent();
        let body = Body::new(
            connection,
            framing,
            // What is not sent of this request would be taken for the next one's beginning.
            reusable && is_sent && head.status != http::StatusCode::SWITCHING_PROTOCOLS,
            self.pool.clone(),
            self.limits,
            url.clone(),
        );
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        })
    }
}

fn header_limit(url: &str) -> Error {
    Error::new(
        ErrorKind::Limit,
        format!("{url} answered with a header of more than 64 KiB or 128 lines"),
    )
    .with_code("header")
}

impl Talk {
    fn new(mut connection: Connection) -> Talk {
        connection.wire.turn = Turn::default();
        Talk {
            connection,
            since: Instant::now(),
            due: true,
            searched: 0,
        }
    }

    /// Bytes arrived. The first ones are for ureq at once, so that garbage is told early; then
    /// it waits for the whole header, so that a header in drops is not parsed at every drop.
    fn look(&mut self) {
        let wire = &mut self.connection.wire;
        let input = wire.input.unread();
        let new = &input[self.searched.saturating_sub(2)..];
        self.due = !wire.turn.answered
            || input.len() > MAX_HEADER
            || memchr::memmem::find(new, b"\n\r\n").is_some()
            || memchr::memmem::find(new, b"\n\n").is_some();
        self.searched = input.len();
        wire.turn.answered = true;
    }
}

/// What a run of ureq's came to.
enum Ran {
    Header(http::Response<()>),
    NotYet,
    Over(Pump),
}

/// A wire and the agent that runs over it.
pub(super) struct Connection {
    pub wire: Box<Wire>,
    link: Link,
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
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(wire);
    }

    fn take(&self) -> Option<Box<Wire>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Connection {
    fn new(wire: Wire) -> Connection {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_response_header_size(MAX_HEADER)
            .max_idle_connections(0)
            .proxy(None)
            .build();
        let slot = Slot::default();
        let agent = Agent::with_parts(config, slot.clone(), NoResolver);
        Connection {
            wire: Box::new(wire),
            link: Link { agent, slot },
        }
    }
}

impl Link {
    /// Runs the agent over the wire, which is in the slot afterwards.
    fn run(&self, wire: Box<Wire>, request: &Request) -> Result<http::Response<()>, ureq::Error> {
        self.slot.put(wire);
        let mut builder = http::Request::builder()
            .method(if request.body.is_some() {
                "POST"
            } else {
                "GET"
            })
            .uri(&request.url);
        let replaced = |name: &str| {
            request
                .user_headers
                .iter()
                .any(|(theirs, _)| theirs == name)
        };
        for (name, value) in request.headers.iter().filter(|(name, _)| !replaced(name)) {
            builder = builder.header(*name, value);
        }
        for (name, value) in &request.user_headers {
            builder = builder.header(name, value);
        }
        let response = match &request.body {
            Some(body) => self.agent.run(builder.body(body)?),
            None => self.agent.run(builder.body(())?),
        }?;
        // Without its body, which holds the transport: dropping it brings the wire back.
        Ok(response.map(drop))
    }
}

/// The wire as ureq's transport. Dropped, it puts the wire back into the slot.
struct Lent {
    wire: Option<Box<Wire>>,
    slot: Slot,
    /// The last look at the input used some of it: there may be more to use.
    progress: bool,
    /// This run has waited for input.
    pumped: bool,
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
            progress: true,
            pumped: false,
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

    /// Queues. The head and the body of a request leave in one segment.
    fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), ureq::Error> {
        let wire = self.wire()?;
        // A run that is taken up again writes what is queued, or sent, already.
        if !wire.turn.queued {
            wire.output.extend_from_slice(&wire.scratch[..amount]);
        }
        Ok(())
    }

    fn await_input(&mut self, _: NextTimeout) -> Result<bool, ureq::Error> {
        // Once in a run: a header in drops would keep the run going for as long as it drips.
        let pumped = std::mem::replace(&mut self.pumped, true);
        let wire = self.wire()?;
        wire.turn.queued = true;
        if pumped {
            return Err(io::Error::from(io::ErrorKind::WouldBlock).into());
        }
        if wire.turn.skipped > MAX_HEADER {
            return Err(ureq::Error::LargeResponseHeader(
                wire.turn.skipped,
                MAX_HEADER,
            ));
        }
        match wire.pump() {
            Pump::Data => {
                wire.turn.answered = true;
                Ok(true)
            }
            Pump::Pending => Err(io::Error::from(io::ErrorKind::WouldBlock).into()),
            over => {
                wire.turn.over = Some(over);
                Ok(false)
            }
        }
    }

    /// Asked at the end of a body, which is read elsewhere.
    fn is_open(&mut self) -> bool {
        false
    }

    fn is_tls(&self) -> bool {
        self.wire.as_ref().is_some_and(|wire| wire.io.is_tls())
    }
}

impl Buffers for Lent {
    fn output(&mut self) -> &mut [u8] {
        match &mut self.wire {
            Some(wire) => {
                // ureq wants room for a whole header line.
                wire.scratch.resize(MAX_HEADER, 0);
                &mut wire.scratch
            }
            None => &mut [],
        }
    }

    fn input(&self) -> &[u8] {
        self.wire.as_ref().map_or(&[], |wire| wire.input.unread())
    }

    // Input is appended by the wire itself.
    fn input_append_buf(&mut self) -> &mut [u8] {
        &mut []
    }

    fn input_appended(&mut self, _: usize) {}

    fn input_consume(&mut self, amount: usize) {
        self.progress = amount > 0;
        if let Some(wire) = &mut self.wire {
            wire.input.consume(amount);
            wire.turn.skipped += amount;
        }
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        (&mut [], self.output())
    }

    fn can_use_input(&self) -> bool {
        self.progress && !self.input().is_empty()
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
