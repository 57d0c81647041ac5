//! An answer's body: where it ends (RFC 9112, section 6), and its bytes in place.
//!
//! The HTTP library's own reader would copy each piece once more, refuse chunk extensions of over
//! 20 bytes, and take a reset for the end of a body that the connection's close delimits.

use std::sync::Arc;
use std::time::Instant;

use super::http::Connection;
use super::pool::Pool;
use super::wire::{Input, Pump};
use super::{Limits, timeout};
use crate::error::{Error, ErrorKind, words};

/// How a body ends, and how far it has come.
#[derive(Debug)]
pub(super) enum Framing {
    /// So many bytes more.
    Length(u64),
    Chunked(Chunked),
    /// Where the service closes the connection.
    UntilClose,
}

/// Where in a chunked body we are.
#[derive(Debug, Clone, Copy)]
pub(super) enum Chunked {
    /// In the digits of a chunk's size.
    Size {
        size: u64,
        digits: u8,
    },
    /// Behind the size, up to the line's end.
    Extension {
        size: u64,
        length: u32,
    },
    Data(u64),
    /// The line end behind a chunk's data; whether its CR has come.
    DataEnd {
        cr: bool,
    },
    /// A line of the trailer: how much of it, and of all of them.
    Trailer {
        line: u32,
        all: u32,
    },
    Ended,
    /// It is not as it should be.
    Bad(&'static str),
}

/// The longest extension, and the longest trailer, in bytes.
const MAX_EXTRA: u32 = 64 << 10;

/// What stands at the beginning of the input.
struct Piece {
    /// Bytes of framing before the data.
    skip: usize,
    /// Bytes of data.
    len: usize,
    ended: bool,
}

impl Framing {
    /// The next piece of data in the input.
    fn next(&mut self, input: &[u8]) -> Result<Piece, &'static str> {
        match self {
            Framing::UntilClose => Ok(Piece {
                skip: 0,
                len: input.len(),
                ended: false,
            }),
            Framing::Length(left) => {
                let len = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(input.len());
                *left -= len as u64;
                Ok(Piece {
                    skip: 0,
                    len,
                    ended: *left == 0 && len == 0,
                })
            }
            Framing::Chunked(state) => state.next(input),
        }
    }

    /// Throws away what has come of a body; whether it has ended.
    pub fn skip(&mut self, input: &mut Input) -> Result<bool, &'static str> {
        loop {
            let piece = self.next(input.unread())?;
            input.consume(piece.skip + piece.len);
            if piece.ended || piece.len == 0 {
                return Ok(piece.ended);
            }
        }
    }
}

impl Chunked {
    pub const START: Chunked = Chunked::Size { size: 0, digits: 0 };

    fn next(&mut self, input: &[u8]) -> Result<Piece, &'static str> {
        let mut at = 0;
        loop {
            if let Chunked::Data(left) = self {
                let len = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(input.len() - at);
                *left -= len as u64;
                if *left == 0 {
                    *self = Chunked::DataEnd { cr: false };
                }
                return Ok(Piece {
                    skip: at,
                    len,
                    ended: false,
                });
            }
            if let Chunked::Bad(why) = self {
                return Err(why);
            }
            let ended = matches!(self, Chunked::Ended);
            let Some(&byte) = input.get(at).filter(|_| !ended) else {
                return Ok(Piece {
                    skip: at,
                    len: 0,
                    ended,
                });
            };
            *self = self.after(byte).unwrap_or_else(Chunked::Bad);
            at += 1;
        }
    }

    /// The next data where what stands before it is as with most chunks: how much is to be skipped,
    /// and how much is data.
    #[inline]
    fn next_chunk(&mut self, input: &[u8]) -> Option<(usize, usize)> {
        let digits = match (&*self, input) {
            (Chunked::DataEnd { cr: false }, [b'\r', b'\n', digits @ ..]) => digits,
            (Chunked::Size { digits: 0, .. }, digits) => digits,
            _ => return None,
        };
        let (mut size, mut at) = (0, 0);
        // Seven digits at most: more might not fit.
        while at < 7 {
            let byte = *digits.get(at)?;
            let digit = match byte {
                b'0'..=b'9' => byte - b'0',
                b'a'..=b'f' => byte - b'a' + 10,
                _ => break,
            };
            size = size << 4 | usize::from(digit);
            at += 1;
        }
        let data = digits
            .get(at..)?
            .strip_prefix(b"\r\n")
            .filter(|_| size > 0)?;
        let len = size.min(data.len());
        *self = match size - len {
            0 => Chunked::DataEnd { cr: false },
            left => Chunked::Data(left as u64),
        };
        Some((input.len() - data.len(), len))
    }

    /// One byte of framing.
    fn after(self, byte: u8) -> Result<Chunked, &'static str> {
        Ok(match (self, byte) {
            (Chunked::Size { size, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                // 15 digits are 2^60 bytes: the sum below cannot overflow.
                if digits == 15 {
                    return Err("a chunk size has too many digits");
                }
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                Chunked::Size {
                    size: size * 16 + u64::from(digit),
                    digits: digits + 1,
                }
            }
            (Chunked::Size { digits: 0, .. }, _) => return Err("a chunk size is not a number"),
            (Chunked::Size { size, .. } | Chunked::Extension { size, .. }, b'\n') => match size {
                0 => Chunked::Trailer { line: 0, all: 0 },
                size => Chunked::Data(size),
            },
            (Chunked::Size { size, .. }, b';' | b' ' | b'\t' | b'\r') => {
                Chunked::Extension { size, length: 0 }
            }
            (Chunked::Size { .. }, _) => return Err("a chunk size is not a number"),
            (Chunked::Extension { size, length }, _) if length < MAX_EXTRA => Chunked::Extension {
                size,
                length: length + 1,
            },
            (Chunked::DataEnd { cr: false }, b'\r') => Chunked::DataEnd { cr: true },
            (Chunked::DataEnd { .. }, b'\n') => Chunked::START,
            (Chunked::DataEnd { .. }, _) => return Err("a chunk is longer than its size"),
            (Chunked::Trailer { line: 0, .. }, b'\n') => Chunked::Ended,
            (Chunked::Trailer { all, .. }, b'\n') => Chunked::Trailer { line: 0, all },
            (Chunked::Trailer { line, all }, _) if all < MAX_EXTRA => Chunked::Trailer {
                // The CR before the LF of an empty line is no content.
                line: line + u32::from(byte != b'\r'),
                all: all + 1,
            },
            (Chunked::Extension { .. } | Chunked::Trailer { .. }, _) => {
                return Err("a chunk's extension or the trailer is too long");
            }
            (Chunked::Data(_) | Chunked::Ended | Chunked::Bad(_), _) => self,
        })
    }
}

/// A body being read.
pub(crate) struct Body {
    /// `None` when it has ended or failed.
    connection: Option<Connection>,
    framing: Framing,
    /// Whether the connection may serve another request.
    reusable: bool,
    pool: Arc<Pool>,
    limits: Limits,
    url: String,
    /// When a byte came last.
    last: Instant,
    /// How many bytes of data stand at the beginning of the input.
    ready: usize,
    /// What the last [wait](Body::wait) brought, and when.
    pumped: Option<(Instant, Pump)>,
}

/// What reading brought.
pub(crate) enum Part<'a> {
    Data(&'a [u8]),
    /// Nothing yet.
    Pending,
    /// The body has come to its end, in good order.
    End,
}

enum Step {
    Data,
    Pending,
    End,
}

impl Body {
    pub(super) fn new(
        connection: Connection,
        framing: Framing,
        reusable: bool,
        pool: Arc<Pool>,
        limits: Limits,
        url: String,
    ) -> Body {
        Body {
            connection: Some(connection),
            reusable: reusable && !matches!(framing, Framing::UntilClose),
            framing,
            pool,
            limits,
            url,
            last: Instant::now(),
            ready: 0,
            pumped: None,
        }
    }

    /// Whether [`read`](Body::read) brings something at once.
    #[inline]
    pub fn is_ready(&mut self) -> bool {
        self.pumped.is_some() || self.unframe() != Ok(false) || self.ready > 0
    }

    /// What has come and is not [consumed](Body::consume), where there is something.
    #[inline]
    pub fn ready(&mut self) -> Option<&[u8]> {
        if self.ready == 0 {
            // Of an end or a bad body, `read` tells.
            let _ = self.unframe();
        }
        let connection = self.connection.as_ref().filter(|_| self.ready > 0)?;
        Some(&connection.wire.input.unread()[..self.ready])
    }

    /// Waits for bytes, a slice at most. What comes of it, [`read`](Body::read) tells.
    pub fn wait(&mut self) {
        if let Some(connection) = &mut self.connection {
            let now = Instant::now();
            // A service may answer before it has read the whole request: this sends on.
            self.pumped = Some((now, connection.wire.pump()));
        }
    }

    /// The bytes that have come and are not [consumed](Body::consume); where there are none,
    /// waits at most a slice for some.
    #[inline]
    pub fn read(&mut self) -> Result<Part<'_>, Error> {
        match (self.advance(), &mut self.connection) {
            (Ok(Step::Data), Some(connection)) => {
                Ok(Part::Data(&connection.wire.input.unread()[..self.ready]))
            }
            (Ok(Step::Pending), _) => Ok(Part::Pending),
            (Ok(_), _) => Ok(Part::End),
            (Err(error), connection) => {
                *connection = None;
                Err(error)
            }
        }
    }

    /// So many bytes of what was read are done with.
    #[inline]
    pub fn consume(&mut self, n: usize) {
        if let Some(connection) = &mut self.connection {
            connection.wire.input.consume(n);
            self.ready -= n;
        }
    }

    /// Sets the next data apart, where some has come; whether the body has ended.
    fn unframe(&mut self) -> Result<bool, &'static str> {
        let Some(connection) = &mut self.connection else {
            return Ok(true);
        };
        if self.ready > 0 {
            return Ok(false);
        }
        let input = &mut connection.wire.input;
        if let Framing::Chunked(state) = &mut self.framing {
            if let Some((skip, len)) = state.next_chunk(input.unread()) {
                input.consume(skip);
                self.ready = len;
                return Ok(false);
            }
        }
        let piece = self.framing.next(input.unread())?;
        input.consume(piece.skip);
        self.ready = piece.len;
        Ok(piece.ended)
    }

    fn advance(&mut self) -> Result<Step, Error> {
        let mut received = false;
        loop {
            if self.ready > 0 {
                return Ok(Step::Data);
            }
            let ended = self.unframe().map_err(|why| {
                Error::protocol(format!("{} answered with a bad body: {why}", self.url))
            })?;
            if ended {
                self.release(None);
                return Ok(Step::End);
            }
            if self.ready > 0 {
                return Ok(Step::Data);
            }
            // One receive a step: framing alone, without data, keeps nobody here.
            if std::mem::replace(&mut received, true) {
                return Ok(Step::Pending);
            }
            if self.pumped.is_none() {
                self.wait();
            }
            let Some((now, pumped)) = self.pumped.take() else {
                return Ok(Step::End);
            };
            self.limits.check_total(now, &self.url)?;
            match pumped {
                Pump::Data => self.last = now,
                Pump::Pending => {
                    self.check_idle(now)?;
                    return Ok(Step::Pending);
                }
                Pump::Ended if matches!(self.framing, Framing::UntilClose) => {
                    self.connection = None;
                    return Ok(Step::End);
                }
                Pump::Ended => return Err(self.cut("closed the connection")),
                Pump::Failed(error) => {
                    return Err(self.cut(&format!("broke the connection ({})", words(&error))));
                }
            }
        }
    }

    fn check_idle(&self, now: Instant) -> Result<(), Error> {
        match self.limits.idle {
            Some(idle) if now.duration_since(self.last) >= idle => Err(timeout(
                "idle_timeout",
                format!(
                    "{} went silent in the middle of its answer for {} ms (idle_timeout_ms)",
                    self.url,
                    idle.as_millis()
                ),
            )),
            _ => Ok(()),
        }
    }

    fn cut(&self, what: &str) -> Error {
        Error::new(
            ErrorKind::Truncated,
            format!("{} {what} in the middle of its answer", self.url),
        )
    }

    /// The reader needs no more. Keeps the connection where its body's end may still come.
    pub fn leave(mut self) {
        let framing = std::mem::replace(&mut self.framing, Framing::UntilClose);
        self.release(Some(framing));
    }

    fn release(&mut self, undrained: Option<Framing>) {
        if let Some(mut connection) = self.connection.take().filter(|_| self.reusable) {
            connection
                .wire
                .input
                .consume(std::mem::take(&mut self.ready));
            self.pool.put(connection, undrained);
        }
    }
}
