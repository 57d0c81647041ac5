//! One request, from the connection to the header of its answer.
//!
//! ```text
//!   Start ── an idle connection ──▶ Talking ──▶ Answer
//!     │                               ▲  │
//!     └── none ──▶ Connecting ────────┘  └── it was idle and is dead: Start, with a new one, once
//! ```

use std::sync::Arc;
use std::time::Instant;

use super::body::{Body, Chunked, Framing};
use super::connect::Connecting;
use super::http::{Connection, Head, MAX_HEADER, Ran, Request};
use super::pool::{Pool, Route};
use super::wire::Pump;
use super::{Limits, timeout, tls};
use crate::error::{Error, ErrorKind, words};

/// An answer's header, and its body to be read.
pub(crate) struct Answer {
    pub status: u16,
    head: Arc<Head>,
    pub body: Body,
}

impl Answer {
    /// A header's value, where it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.get(name)
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
    /// The whole request has been sent, be it on a connection that has ended since.
    sent: bool,
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
            sent: false,
        }
    }

    /// The request's URL as it may be shown.
    pub fn shown_url(&self) -> &str {
        &self.request.shown_url
    }

    /// Whether the service may have the whole request.
    pub fn is_sent(&self) -> bool {
        self.sent
    }

    /// Whether the request went out again, on a new connection, since the one before had broken.
    pub fn was_sent_again(&self) -> bool {
        self.replaced
    }

    /// One step; `None`: nothing yet.
    pub fn advance(&mut self) -> Result<Option<Answer>, Error> {
        if self.limits.total.is_some() {
            self.limits
                .check_total(Instant::now(), &self.request.shown_url)?;
        }
        match std::mem::replace(&mut self.state, State::Over) {
            State::Start => {
                let idle = if self.replaced {
                    None
                } else {
                    self.pool.take(&self.route)
                };
                if let Some(connection) = idle {
                    return self.talk(Talk::new(connection, &self.request));
                }
                let connecting = Connecting::new(self.route.clone(), &self.limits);
                self.state = State::Connecting(Box::new(connecting));
                Ok(None)
            }
            State::Connecting(mut connecting) => {
                self.state = match connecting.advance()? {
                    Some(wire) => State::Talking(Talk::new(Connection::new(wire), &self.request)),
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
        let sent = talk.connection.wire.sent;
        let pumped = talk.connection.wire.pump();
        self.sent |= talk.is_sent();
        let is_due = match pumped {
            Pump::Data => talk.is_due(),
            Pump::Pending => false,
            over => return self.died(talk, over),
        };
        if talk.connection.wire.sent != sent {
            talk.since = Instant::now();
        }
        if is_due {
            talk.searched = 0;
            let (connection, ran) = talk.connection.run(&self.request.shown_url)?;
            talk.connection = connection;
            match ran {
                Ran::Header(head) => return self.answer(talk.connection, head).map(Some),
                Ran::NotYet => {}
                Ran::Bad(error) => return Err(error),
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

    /// The connection ended before the header was whole.
    fn died(&mut self, talk: Talk, over: Pump) -> Result<Option<Answer>, Error> {
        let answered = talk.connection.wire.progress.answered;
        let refusal = match &over {
            Pump::Failed(error) if !answered && tls::is_refusal(error) => Some(tls::reason(error)),
            _ => None,
        };
        let how = match over {
            Pump::Failed(error) => format!("broke the connection ({})", words(&error)),
            _ => "closed the connection".to_owned(),
        };
        let url = &self.request.shown_url;
        if !answered && talk.connection.wire.reused && !self.replaced {
            // The service had closed it while it was idle, or closes it as we write.
            self.replaced = true;
            self.state = State::Start;
            return Ok(None);
        }
        if let Some(why) = refusal {
            return Err(Error::new(
                ErrorKind::Tls,
                format!("no TLS connection to {url}: {why}"),
            ));
        }
        let when = match answered {
            true => "in the middle of its answer's header",
            false => "without an answer",
        };
        Err(Error::new(ErrorKind::Network, format!("{url} {how} {when}")).with_code("closed"))
    }

    fn answer(&self, connection: Connection, head: Arc<Head>) -> Result<Answer, Error> {
        let url = &self.request.shown_url;
        let encoding = head.get("content-encoding").unwrap_or_default();
        if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
            return Err(Error::protocol(format!(
                "{url} compressed its answer (Content-Encoding), which nobody asked for"
            )));
        }
        let mut reusable = match head.is_http10 {
            true => head.has("connection", "keep-alive"),
            false => !head.has("connection", "close"),
        };
        // It is checked already that the lengths are numbers and agree.
        let length = head
            .get("content-length")
            .and_then(|value| value.split(',').next());
        let length = length.and_then(|value| value.trim().parse().ok());
        let framing = if matches!(head.status, 101 | 204 | 304) {
            Framing::Length(0)
        } else if !head.is_http10 && head.has("transfer-encoding", "chunked") {
            // Both, chunked and a length, smell of smuggling: chunked counts, once.
            reusable &= length.is_none();
            Framing::Chunked(Chunked::START)
        } else {
            length.map_or(Framing::UntilClose, Framing::Length)
        };
        // What is not sent of this request would be taken for the next one's beginning.
        reusable &= connection.wire.is_sent() && head.status != 101;
        let (pool, url) = (self.pool.clone(), url.clone());
        Ok(Answer {
            status: head.status,
            head,
            body: Body::new(connection, framing, reusable, pool, self.limits, url),
        })
    }
}

impl Talk {
    fn new(mut connection: Connection, request: &Request) -> Talk {
        connection.ask(request);
        Talk {
            connection,
            since: Instant::now(),
            searched: 0,
        }
    }

    fn is_sent(&self) -> bool {
        let wire = &self.connection.wire;
        wire.is_sent() && !wire.progress.torn
    }

    /// Bytes arrived: whether they are to be read. The first ones are, at once, so that garbage is told
    /// early; then it waits for the whole header, so that one in drops is not read at every drop.
    fn is_due(&mut self) -> bool {
        let wire = &mut self.connection.wire;
        let input = wire.input.unread();
        let new = &input[self.searched.saturating_sub(2)..];
        let is_due = !wire.progress.answered
            || input.len() > MAX_HEADER
            || memchr::memmem::find(new, b"\n\r\n").is_some()
            || memchr::memmem::find(new, b"\n\n").is_some();
        self.searched = input.len();
        wire.progress.answered = true;
        is_due
    }
}
