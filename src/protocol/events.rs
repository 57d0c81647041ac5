//! An answer that streams: from the bytes of its body to its events, and to its end.
//!
//! ```text
//! Body ──▶ Lines ──▶ data lines ──▶ JSON ──▶ Dialect::event ──▶ Out
//!            └─ `{` or `[` where a line begins: JSON where a stream was asked for, gathered whole
//! ```

use serde_json::Value;

use super::json::{Halves, parse_event, value_length};
use super::{EXCERPT, MAX_JSON, Out, Step};
use crate::error::{Error, ErrorKind};
use crate::sse::{self, LineTooLong, Lines, MAX_LINE};
use crate::transport::{Body, Part};

/// How far the white space before bare JSON is looked through.
const MAX_INDENT: usize = 256;

/// What a protocol makes of its stream.
pub(super) trait Dialect {
    /// Each data line is an event of its own, and no other field means anything. Otherwise the
    /// data lines of an event are joined, as the standard says.
    const LINES_ARE_EVENTS: bool;

    /// Reads an event.
    fn event(&mut self, event: Event<'_>, url: &str, out: &mut Out) -> Result<Step, Error>;

    /// Whether the reply is complete where the body ends in good order without a `[DONE]`.
    fn is_complete(&self, out: &Out) -> bool;
}

/// An event of a stream.
pub(super) struct Event<'a> {
    pub json: Value,
    /// As it came; what is not UTF-8 is U+FFFD.
    pub text: &'a str,
    pub halves: Halves,
    pub origin: Origin,
}

/// Where an event was.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// In `data` fields.
    Data,
    /// In `data` fields, behind the field `event: error`.
    NamedError,
    /// In a field `error`: JSON, or words, which are a JSON string then.
    ErrorField,
    /// Bare, where a stream was asked for.
    Bare,
}

/// A stream being read.
pub(super) struct Reading {
    body: Body,
    lines: Lines,
    events: Events,
    bare: Option<Bare>,
}

/// JSON without a field name, being gathered.
#[derive(Default)]
struct Bare {
    bytes: Vec<u8>,
    /// How much of it was found not to be whole.
    looked_at: usize,
}

impl Reading {
    pub fn new(url: String, body: Body) -> Reading {
        Reading {
            body,
            lines: Lines::default(),
            events: Events {
                url,
                pending: Vec::new(),
                origin: Origin::Data,
                seen: Vec::new(),
                begun: false,
            },
            bare: None,
        }
    }

    /// The reply is complete: what follows is not read.
    pub fn leave(self) {
        self.body.leave();
    }

    /// One step: at most one line.
    pub fn advance<D: Dialect>(&mut self, dialect: &mut D, out: &mut Out) -> Result<Step, Error> {
        let part = match self.body.read() {
            Ok(Part::Data(part)) => part,
            // Whoever has sent a whole document need not close the connection too.
            Ok(Part::Pending) => return self.settle(false, dialect, out),
            Ok(Part::End) => return self.ended(dialect, out),
            Err(error) => return self.broke(error, dialect, out),
        };
        let may_be_bare = !self.events.begun || !D::LINES_ARE_EVENTS;
        if self.bare.is_none() && may_be_bare && opens_json(self.lines.peek(part)) {
            self.bare = Some(Bare {
                bytes: std::mem::take(&mut self.lines).into_rest(),
                looked_at: 0,
            });
        }
        if let Some(bare) = &mut self.bare {
            bare.bytes.extend_from_slice(part);
            let used = part.len();
            self.body.consume(used);
            return match bare.bytes.len() {
                0..=MAX_JSON => Ok(Step::Going),
                _ => Err(too_long(
                    &self.events.url,
                    "more than 1 MiB of JSON",
                    "json",
                )),
            };
        }
        let mut left = part;
        let line = self
            .lines
            .next(&mut left)
            .map_err(|LineTooLong| line_too_long(&self.events.url))?;
        let used = part.len() - left.len();
        self.events.see(&part[..used]);
        let step = match line {
            Some(line) => self.events.line(line, dialect, out),
            None => Ok(Step::Going),
        };
        self.body.consume(used);
        step
    }

    /// Reads the bare JSON that was gathered, if it is whole, and what is glued to it.
    fn settle<D: Dialect>(
        &mut self,
        ended: bool,
        dialect: &mut D,
        out: &mut Out,
    ) -> Result<Step, Error> {
        let Some(mut bare) = self.bare.take() else {
            return Ok(Step::Going);
        };
        if !ended && bare.looked_at == bare.bytes.len() {
            self.bare = Some(bare);
            return Ok(Step::Going);
        }
        let text = String::from_utf8_lossy(&bare.bytes);
        let text = text.trim_start_matches('\u{FEFF}').trim();
        self.events.see(&bare.bytes);
        if is_done(text.as_bytes()) {
            return self.events.done(out);
        }
        let Some(length) = value_length(text) else {
            if ended {
                return Err(self.events.cut_bare(out));
            }
            bare.looked_at = bare.bytes.len();
            self.bare = Some(bare);
            return Ok(Step::Going);
        };
        let (value, rest) = text.split_at(length);
        if self.events.bare(value, dialect, out)? == Step::Done {
            return Ok(Step::Done);
        }
        for line in rest.lines() {
            let line = line.trim_start().as_bytes();
            if is_done(line) || self.events.line(line, dialect, out)? == Step::Done {
                return Ok(Step::Done);
            }
        }
        match dialect.is_complete(out) {
            true => Ok(Step::Done),
            false => Ok(Step::Going),
        }
    }

    /// The body has come to its end, in good order.
    fn ended<D: Dialect>(&mut self, dialect: &mut D, out: &mut Out) -> Result<Step, Error> {
        if self.settle(true, dialect, out)? == Step::Done {
            return Ok(Step::Done);
        }
        match self.events.last_line(self.lines.rest(), dialect, out)? {
            LastLine::Done => Ok(Step::Done),
            LastLine::Whole if !self.events.begun => Err(self.events.empty(out)),
            LastLine::Whole if dialect.is_complete(out) => Ok(Step::Done),
            _ => Err(self.events.cut()),
        }
    }

    /// The connection broke, or a time limit passed: what has arrived is handed out.
    fn broke<D: Dialect>(
        &mut self,
        error: Error,
        dialect: &mut D,
        out: &mut Out,
    ) -> Result<Step, Error> {
        let rest = self.lines.rest();
        if let Ok(LastLine::Done) = self.events.last_line(rest, dialect, out) {
            return Ok(Step::Done);
        }
        self.events.see(rest);
        self.events
            .see(self.bare.as_ref().map_or(&[], |b| &b.bytes));
        let seen = out.excerpt(&self.events.seen);
        // Words without an event, and then silence: they may say why.
        Err(match self.events.begun || seen.is_empty() {
            true => error,
            false => error.hinted(&format!("; what had come is no event: {seen}")),
        })
    }
}

/// Whether a line begins like JSON. A byte order mark, spaces and tabs do not count.
fn opens_json<'a>(line: impl Iterator<Item = &'a u8>) -> bool {
    let mut first = line
        .take(MAX_INDENT)
        .filter(|byte| !b" \t\xef\xbb\xbf".contains(byte));
    matches!(first.next(), Some(b'{' | b'['))
}

enum LastLine {
    /// A part of an event.
    Cut,
    /// An event, or nothing.
    Whole,
    /// `[DONE]`.
    Done,
}

/// Lines in, events out.
struct Events {
    url: String,
    /// The data lines of an event whose end has not come.
    pending: Vec<u8>,
    /// Of the event that the next data line is a part of.
    origin: Origin,
    /// What came before the first event, as far as an error would show it.
    seen: Vec<u8>,
    /// There has been an event.
    begun: bool,
}

impl Events {
    fn see(&mut self, bytes: &[u8]) {
        if !self.begun {
            let room = EXCERPT.saturating_sub(self.seen.len());
            self.seen.extend_from_slice(&bytes[..room.min(bytes.len())]);
        }
    }

    fn line<D: Dialect>(
        &mut self,
        line: &[u8],
        dialect: &mut D,
        out: &mut Out,
    ) -> Result<Step, Error> {
        if line.is_empty() {
            return self.end_of_event(dialect, out);
        }
        match sse::field(line) {
            (b"data", data) => self.data(data, dialect, out),
            (b"event", name) if !D::LINES_ARE_EVENTS => {
                self.origin = match name {
                    b"error" => Origin::NamedError,
                    _ => Origin::Data,
                };
                Ok(Step::Going)
            }
            (b"error", value) if !D::LINES_ARE_EVENTS => {
                let text = String::from_utf8_lossy(value);
                let (json, halves) =
                    parse_event(&text).unwrap_or_else(|_| (Value::from(&*text), Halves::default()));
                self.hand_over(json, halves, &text, Origin::ErrorField, dialect, out)
            }
            _ => Ok(Step::Going),
        }
    }

    fn data<D: Dialect>(
        &mut self,
        data: &[u8],
        dialect: &mut D,
        out: &mut Out,
    ) -> Result<Step, Error> {
        if !self.pending.is_empty() {
            self.join(data)?;
            return Ok(Step::Going);
        }
        // Gateways send `data: : keepalive`: a comment that lost its way.
        if is_blank(data) || data.starts_with(b":") {
            return Ok(Step::Going);
        }
        if is_done(data) {
            return self.done(out);
        }
        // An event whose one line is whole does not wait for the blank line behind it.
        let text = String::from_utf8_lossy(data);
        match parse_event(&text) {
            Ok((json, halves)) => self.hand_over(json, halves, &text, self.origin, dialect, out),
            Err(error) if D::LINES_ARE_EVENTS => Err(self.malformed(data, &error, out)),
            Err(_) => {
                self.pending.extend_from_slice(data);
                Ok(Step::Going)
            }
        }
    }

    fn join(&mut self, data: &[u8]) -> Result<(), Error> {
        if self.pending.len() + data.len() > MAX_LINE {
            return Err(line_too_long(&self.url));
        }
        self.pending.push(b'\n');
        self.pending.extend_from_slice(data);
        Ok(())
    }

    /// A blank line: the data lines before it are an event.
    fn end_of_event<D: Dialect>(&mut self, dialect: &mut D, out: &mut Out) -> Result<Step, Error> {
        let origin = std::mem::replace(&mut self.origin, Origin::Data);
        if self.pending.is_empty() {
            return Ok(Step::Going);
        }
        let data = std::mem::take(&mut self.pending);
        let text = String::from_utf8_lossy(&data);
        match parse_event(&text) {
            Ok((json, halves)) => self.hand_over(json, halves, &text, origin, dialect, out),
            Err(error) => Err(self.malformed(&data, &error, out)),
        }
    }

    /// The last line, which has no line end, counts where it is whole; so do the lines before it.
    fn last_line<D: Dialect>(
        &mut self,
        line: &[u8],
        dialect: &mut D,
        out: &mut Out,
    ) -> Result<LastLine, Error> {
        let step = match sse::field(line) {
            (b"data", data) if !self.pending.is_empty() => {
                self.join(data)?;
                match parse_event(&String::from_utf8_lossy(&self.pending)) {
                    Ok(_) => self.end_of_event(dialect, out)?,
                    Err(_) => return Ok(LastLine::Cut),
                }
            }
            (b"data", data) if !is_blank(data) => {
                let is_whole = is_done(data)
                    || data.starts_with(b":")
                    || parse_event(&String::from_utf8_lossy(data)).is_ok();
                match is_whole {
                    true => self.data(data, dialect, out)?,
                    false => return Ok(LastLine::Cut),
                }
            }
            (b"error", _) => self.line(line, dialect, out)?,
            _ => self.end_of_event(dialect, out)?,
        };
        Ok(match step {
            Step::Done => LastLine::Done,
            Step::Going => LastLine::Whole,
        })
    }

    /// A bare document.
    fn bare<D: Dialect>(
        &mut self,
        text: &str,
        dialect: &mut D,
        out: &mut Out,
    ) -> Result<Step, Error> {
        match parse_event(text) {
            Ok((json, halves)) => self.hand_over(json, halves, text, Origin::Bare, dialect, out),
            Err(_) if !self.begun => Err(self.empty(out)),
            Err(error) => Err(self.malformed(text.as_bytes(), &error, out)),
        }
    }

    fn hand_over<D: Dialect>(
        &mut self,
        json: Value,
        halves: Halves,
        text: &str,
        origin: Origin,
        dialect: &mut D,
        out: &mut Out,
    ) -> Result<Step, Error> {
        self.begun = true;
        if out.wants_events {
            out.event.push_str(text);
        }
        let event = Event {
            json,
            text,
            halves,
            origin,
        };
        dialect.event(event, &self.url, out)
    }

    /// `[DONE]` has come.
    fn done(&self, out: &Out) -> Result<Step, Error> {
        match self.begun {
            true => Ok(Step::Done),
            false => Err(self.empty(out)),
        }
    }

    fn empty(&self, out: &Out) -> Error {
        empty(&self.url, &self.seen, out)
    }

    fn malformed(&self, data: &[u8], error: &serde_json::Error, out: &Out) -> Error {
        Error::protocol(format!(
            "{} sent an event that is not JSON ({error}): {}",
            self.url,
            out.excerpt(data)
        ))
        .with_code("json")
    }

    fn cut(&self) -> Error {
        Error::new(
            ErrorKind::Truncated,
            format!(
                "the reply from {} ended before its end was told: it was cut",
                self.url
            ),
        )
    }

    /// A bare document ended in its middle.
    fn cut_bare(&self, out: &Out) -> Error {
        match self.begun {
            true => self.cut(),
            false => self.empty(out),
        }
    }
}

/// A stream without an event; `seen` is the beginning of what came instead.
pub(super) fn empty(url: &str, seen: &[u8], out: &Out) -> Error {
    let seen = out.excerpt(seen);
    let what = match seen.as_str() {
        "" => "nothing".to_owned(),
        _ => format!("no event, but: {seen}"),
    };
    Error::protocol(format!("{url} answered the stream request with {what}")).with_code("empty")
}

/// Something of a stream is longer than it may be.
pub(super) fn too_long(url: &str, what: &str, code: &'static str) -> Error {
    Error::new(ErrorKind::Limit, format!("{url} sent {what}")).with_code(code)
}

fn line_too_long(url: &str) -> Error {
    too_long(url, "a line of more than 16 MiB", "line")
}

fn is_blank(data: &[u8]) -> bool {
    data.trim_ascii().is_empty()
}

fn is_done(data: &[u8]) -> bool {
    data.trim_ascii() == b"[DONE]"
}
