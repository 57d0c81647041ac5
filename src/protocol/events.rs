//! An answer that streams: from the bytes of its body to its events, and to its end.
//!
//! ```text
//! Body ──▶ Lines ──▶ data lines ──▶ JSON ──▶ Dialect::event ──▶ Out
//!            └─ `{` or `[` where a line begins: bare JSON, gathered until its last bracket
//! ```

use std::borrow::Cow;

use super::hot::{Fed, Field, Hot};
use super::json::{Brackets, Halves, parse_event};
use super::{EXCERPT, MAX_JSON, MAX_SECRET, Out, Step};
use crate::error::{Error, ErrorKind};
use crate::json::Json;
use crate::sse::{self, LineTooLong, Lines, MAX_LINE};
use crate::transport::{Body, Part};

/// How far the white space before bare JSON is looked through.
const MAX_INDENT: usize = 4096;

/// What a protocol makes of its stream.
pub(super) trait Dialect {
    /// Each data line is an event of its own, and no other field means anything. Otherwise the
    /// data lines of an event are joined, as the standard says.
    fn lines_are_events(&self) -> bool;

    /// Each event has the whole reply so far.
    fn is_cumulative(&self) -> bool;

    /// The names of the members that [`string`](Dialect::string) may be.
    fn strings(&self) -> &'static [&'static str];

    /// Reads an event.
    fn event(&mut self, event: &Event<'_>, url: &str, out: &mut Out) -> Result<Step, Error>;

    /// The one string of an event that says something; `None` where anything else in it would,
    /// were the event the same as the one before it but for that string.
    fn string<'a>(&self, json: &'a Json<'_>) -> Option<(Field, &'a str)>;

    /// How many bytes of text [`again`](Dialect::again) takes as they are, without an error.
    fn room(&self, out: &Out) -> usize;

    /// The last event again, with another string: where it [is cumulative](Dialect::is_cumulative),
    /// with this behind it.
    fn again(&mut self, field: Field, text: &str, url: &str, out: &mut Out) -> Result<(), Error>;

    /// Whether an event has brought the beginning of a reply.
    fn has_begun(&self) -> bool;

    /// Whether the reply is complete where the body ends in good order without a `[DONE]`.
    fn is_complete(&self, out: &Out) -> bool;
}

/// An event of a stream.
pub(super) struct Event<'a> {
    pub json: Json<'a>,
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

/// A JSON document without a field name, being gathered.
#[derive(Default)]
struct Bare {
    bytes: Vec<u8>,
    brackets: Brackets,
}

impl Reading {
    /// `advice` is for an answer that is of something else than was meant.
    pub fn new(url: String, body: Body, advice: &'static str) -> Reading {
        Reading {
            body,
            lines: Lines::default(),
            events: Events {
                url,
                advice,
                pending: Vec::new(),
                origin: Origin::Data,
                seen: Vec::new(),
                stray: Vec::new(),
                hot: Hot::new(),
                has_event: false,
                begun: false,
            },
            bare: None,
        }
    }

    /// Whether a line begins, with which an event may begin that is known.
    fn may_be_hot(&self, out: &Out) -> bool {
        self.lines.is_at_start() && self.bare.is_none() && self.events.may_be_hot(out)
    }

    /// Takes a run of events that have come, each the one before it but for its text. Whether there was
    /// one.
    #[inline]
    pub fn run(&mut self, dialect: &mut dyn Dialect, out: &mut Out) -> Result<bool, Error> {
        if !self.may_be_hot(out) {
            return Ok(false);
        }
        let hot = &mut self.events.hot;
        let field = hot.field();
        let longest = match field {
            Field::Text => out.run,
            Field::Reasoning => 1,
        };
        if !hot.begin_run(longest, dialect.room(out)) {
            return Ok(false);
        }
        let mut is_run = false;
        while let Some(part) = self.body.ready() {
            let used = hot.take_run(part);
            if used == 0 {
                break;
            }
            self.body.consume(used);
            is_run = true;
        }
        if is_run {
            let (text, ends) = hot.run();
            if field == Field::Text {
                out.cut(ends);
            }
            dialect.again(field, text, &self.events.url, out)?;
        }
        Ok(is_run)
    }

    /// Whether the next step has something to read, and waits for nothing.
    pub fn is_ready(&mut self) -> bool {
        self.body.is_ready()
    }

    /// Waits for something to read, a slice at most.
    pub fn wait(&mut self) {
        self.body.wait();
    }

    /// The reply is complete: what follows is not read.
    pub fn leave(self) {
        self.body.leave();
    }

    /// One step: at most one line.
    pub fn advance(&mut self, dialect: &mut dyn Dialect, out: &mut Out) -> Result<Step, Error> {
        let may_be_hot = self.may_be_hot(out);
        let mut part = match self.body.read() {
            Ok(Part::Data(part)) => part,
            Ok(Part::Pending) => return Ok(Step::Going),
            Ok(Part::End) => return self.ended(dialect, out),
            Err(error) => return self.broke(error, dialect, out),
        };
        let mut used_before = 0;
        if !may_be_hot {
            // Events may be wanted from the middle of one on.
            self.events.hot.spill(&mut self.lines);
        } else {
            match self.events.hot.feed(part) {
                Fed::Event(used, field, text) => {
                    dialect.again(field, text, &self.events.url, out)?;
                    self.body.consume(used);
                    return Ok(Step::Going);
                }
                Fed::More => {
                    let used = part.len();
                    self.body.consume(used);
                    return Ok(Step::Going);
                }
                Fed::Other(used) => {
                    self.events.hot.spill(&mut self.lines);
                    part = &part[used..];
                    used_before = used;
                }
            }
        }
        let may_be_bare = !self.events.begun || !dialect.lines_are_events();
        if self.bare.is_none() && may_be_bare && opens_json(self.lines.peek(part)) {
            let mut bare = Bare {
                bytes: std::mem::take(&mut self.lines).into_rest(),
                ..Bare::default()
            };
            bare.brackets.feed(&bare.bytes);
            self.bare = Some(bare);
        }
        let (used, step) = match &mut self.bare {
            Some(bare) => {
                let end = bare.brackets.feed(part);
                let used = end.map_or(part.len(), |end| end + 1);
                bare.bytes.extend_from_slice(&part[..used]);
                self.events.see(&part[..used]);
                if bare.bytes.len() > MAX_JSON {
                    let what = "more than 1 MiB of JSON";
                    return Err(too_long(&self.events.url, what, "json"));
                }
                // Whoever has sent a whole document need not close the connection too.
                let whole = end.and_then(|_| self.bare.take());
                let step = match whole {
                    Some(bare) => self.events.bare(&bare.bytes, &part[used..], dialect, out),
                    None => Ok(Step::Going),
                };
                (used, step)
            }
            None => {
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
                (used, step)
            }
        };
        self.body.consume(used_before + used);
        step
    }

    /// The body has come to its end, in good order.
    fn ended(&mut self, dialect: &mut dyn Dialect, out: &mut Out) -> Result<Step, Error> {
        if self.bare.is_some() {
            return Err(self.events.cut(b"", out));
        }
        self.events.hot.spill(&mut self.lines);
        let rest = self.lines.rest();
        match self.events.last_line(rest, dialect, out)? {
            LastLine::Done => Ok(Step::Done),
            LastLine::Whole if self.events.begun && dialect.is_complete(out) => Ok(Step::Done),
            _ => Err(self.events.cut(rest, out)),
        }
    }

    /// The connection broke, or a time limit passed: what has arrived is handed out.
    fn broke(
        &mut self,
        error: Error,
        dialect: &mut dyn Dialect,
        out: &mut Out,
    ) -> Result<Step, Error> {
        self.events.hot.spill(&mut self.lines);
        let rest = self.lines.rest();
        match self.events.last_line(rest, dialect, out) {
            Ok(LastLine::Done) => return Ok(Step::Done),
            // The service's own words say more.
            Err(error) if error.kind() == ErrorKind::Server => return Err(error),
            _ => {}
        }
        // Words, and then silence: they may say why.
        Err(match self.events.begun {
            true => error.hinted(&self.events.last_words(rest, out)),
            false if self.events.seen.is_empty() => error,
            false => {
                let seen = out.excerpt(&self.events.seen);
                error.hinted(&format!("; all that had come: {seen}"))
            }
        })
    }
}

/// Whether a line begins like a JSON object, or an array of them. A byte order mark, spaces and
/// tabs do not count.
fn opens_json<'a>(line: impl Iterator<Item = &'a u8>) -> bool {
    let mut first = line
        .take(MAX_INDENT)
        .filter(|byte| !b" \t\xef\xbb\xbf".contains(byte));
    match first.next() {
        Some(b'{') => true,
        // `[DONE]` and `[ERROR] no more memory` are not.
        Some(b'[') => matches!(first.next(), Some(b'{' | b'\n' | b'\r')),
        _ => false,
    }
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
    advice: &'static str,
    /// The data lines of an event whose end has not come.
    pending: Vec<u8>,
    /// Of the event that the next data line is a part of.
    origin: Origin,
    /// What came before the reply began, as far as an error would show it.
    seen: Vec<u8>,
    /// The last line that is no field of an event.
    stray: Vec<u8>,
    hot: Hot,
    /// There has been an event.
    has_event: bool,
    /// The reply has begun.
    begun: bool,
}

impl Events {
    fn see(&mut self, bytes: &[u8]) {
        if !self.begun {
            // Enough for a secret at the edge of the excerpt to be found whole.
            let room = (EXCERPT + MAX_SECRET).saturating_sub(self.seen.len());
            self.seen.extend_from_slice(&bytes[..room.min(bytes.len())]);
        }
    }

    /// Whether nothing of an event has come yet, and nobody wants to see it.
    fn may_be_hot(&self, out: &Out) -> bool {
        !out.wants_events && self.pending.is_empty() && self.origin == Origin::Data
    }

    fn line(
        &mut self,
        line: &[u8],
        dialect: &mut dyn Dialect,
        out: &mut Out,
    ) -> Result<Step, Error> {
        if line.is_empty() {
            return self.end_of_event(dialect, out);
        }
        // Glued to a bare document.
        if is_done(line) && !dialect.lines_are_events() {
            self.end_of_event(dialect, out)?;
            return self.done(out);
        }
        match sse::field(line) {
            (b"data", data) => self.data(line, data, dialect, out),
            (b"event", name) if !dialect.lines_are_events() => {
                self.origin = match name {
                    b"error" => Origin::NamedError,
                    _ => Origin::Data,
                };
                Ok(Step::Going)
            }
            (b"error", value) if !dialect.lines_are_events() => {
                let text = String::from_utf8_lossy(value);
                let (json, halves) = parse_event(&text)
                    .unwrap_or_else(|_| (Json::String(text.as_ref().into()), Halves::default()));
                let event = Event {
                    json,
                    text: &text,
                    halves,
                    origin: Origin::ErrorField,
                };
                self.hand_over(&event, dialect, out)
            }
            (b"" | b"event" | b"id" | b"retry", _) => Ok(Step::Going),
            _ => {
                self.stray.clear();
                let room = (EXCERPT + MAX_SECRET).min(line.len());
                self.stray.extend_from_slice(&line[..room]);
                Ok(Step::Going)
            }
        }
    }

    /// `data` is the end of `line`.
    fn data(
        &mut self,
        line: &[u8],
        data: &[u8],
        dialect: &mut dyn Dialect,
        out: &mut Out,
    ) -> Result<Step, Error> {
        if !self.pending.is_empty() {
            self.join(data)?;
            return Ok(Step::Going);
        }
        if is_blank(data) || is_comment(data) {
            return Ok(Step::Going);
        }
        if is_done(data) {
            return self.done(out);
        }
        // An event whose one line is whole does not wait for the blank line behind it.
        let text = match std::str::from_utf8(data) {
            Ok(text) => Cow::Borrowed(text),
            // Slower, even for what is UTF-8.
            Err(_) => String::from_utf8_lossy(data),
        };
        match parse_event(&text) {
            Ok((json, halves)) => {
                let event = Event {
                    json,
                    text: &text,
                    halves,
                    origin: self.origin,
                };
                let step = self.hand_over(&event, dialect, out)?;
                let is_as_it_came = matches!(text, Cow::Borrowed(_)) && halves == Halves::default();
                if is_as_it_came && self.may_be_hot(out) {
                    if let Some(string) = dialect.string(&event.json) {
                        let before = &line[..line.len() - data.len()];
                        self.hot.learn(before, &text, string, dialect);
                    }
                }
                Ok(step)
            }
            Err(error) if dialect.lines_are_events() => Err(self.malformed(data, &error, out)),
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
    fn end_of_event(&mut self, dialect: &mut dyn Dialect, out: &mut Out) -> Result<Step, Error> {
        let origin = std::mem::replace(&mut self.origin, Origin::Data);
        if self.pending.is_empty() {
            return Ok(Step::Going);
        }
        let data = std::mem::take(&mut self.pending);
        let text = String::from_utf8_lossy(&data);
        let (json, halves) = match parse_event(&text) {
            Ok(parsed) => parsed,
            Err(_) if origin == Origin::NamedError => {
                (Json::String(text.as_ref().into()), Halves::default())
            }
            Err(error) => return Err(self.malformed(&data, &error, out)),
        };
        let event = Event {
            json,
            text: &text,
            halves,
            origin,
        };
        self.hand_over(&event, dialect, out)
    }

    /// The last line, which has no line end, counts where it is whole; so do the lines before it.
    fn last_line(
        &mut self,
        line: &[u8],
        dialect: &mut dyn Dialect,
        out: &mut Out,
    ) -> Result<LastLine, Error> {
        let is_cut = |pending: &[u8]| {
            let parsed = parse_event(&String::from_utf8_lossy(pending)).map(drop);
            parsed.is_err_and(|error| error.is_eof())
        };
        let step = match sse::field(line) {
            _ if is_done(line) => self.line(line, dialect, out)?,
            (b"data", data) if !self.pending.is_empty() => {
                self.join(data)?;
                match parse_event(&String::from_utf8_lossy(&self.pending)) {
                    Ok(_) => self.end_of_event(dialect, out)?,
                    Err(_) => return Ok(LastLine::Cut),
                }
            }
            (b"data", data) if self.origin == Origin::NamedError => {
                match self.data(line, data, dialect, out)? {
                    Step::Going => self.end_of_event(dialect, out)?,
                    Step::Done => Step::Done,
                }
            }
            (b"data", data) if !is_blank(data) => {
                let is_whole = is_done(data)
                    || is_comment(data)
                    || parse_event(&String::from_utf8_lossy(data)).is_ok();
                match is_whole {
                    true => self.data(line, data, dialect, out)?,
                    false => return Ok(LastLine::Cut),
                }
            }
            (b"error", _) => self.line(line, dialect, out)?,
            _ if !self.pending.is_empty() && is_cut(&self.pending) => return Ok(LastLine::Cut),
            _ => self.end_of_event(dialect, out)?,
        };
        Ok(match step {
            Step::Done => LastLine::Done,
            Step::Going => LastLine::Whole,
        })
    }

    /// A bare document, and what has come behind it.
    fn bare(
        &mut self,
        bytes: &[u8],
        rest: &[u8],
        dialect: &mut dyn Dialect,
        out: &mut Out,
    ) -> Result<Step, Error> {
        self.end_of_event(dialect, out)?;
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_start_matches('\u{FEFF}').trim();
        match parse_event(text) {
            Ok((json, halves)) => {
                // A chunk without a choice may be the first one.
                let is_chunk = json.get("choices").is_some_and(Json::is_array)
                    || json.as_object().is_some_and(<[_]>::is_empty);
                let event = Event {
                    json,
                    text,
                    halves,
                    origin: Origin::Bare,
                };
                let step = self.hand_over(&event, dialect, out)?;
                match self.begun || is_chunk {
                    true => Ok(step),
                    // It is an answer to something else.
                    false => Err(self.empty(out)),
                }
            }
            Err(error) => Err(self.malformed(&[bytes, rest].concat(), &error, out)),
        }
    }

    fn hand_over(
        &mut self,
        event: &Event<'_>,
        dialect: &mut dyn Dialect,
        out: &mut Out,
    ) -> Result<Step, Error> {
        self.hot.forget();
        if out.wants_events {
            out.event.push_str(event.text);
        }
        self.has_event |= event.origin != Origin::Bare;
        let step = dialect.event(event, &self.url, out);
        self.begun = dialect.has_begun();
        step
    }

    /// `[DONE]` has come.
    fn done(&self, out: &Out) -> Result<Step, Error> {
        match self.begun {
            true => Ok(Step::Done),
            false => Err(self.empty(out)),
        }
    }

    fn empty(&self, out: &Out) -> Error {
        empty(&self.url, &self.seen, self.advice, out)
    }

    fn malformed(&self, data: &[u8], error: &serde_json::Error, out: &Out) -> Error {
        Error::protocol(format!(
            "{} sent an event that is not JSON ({error}): {}",
            self.url,
            out.excerpt(data)
        ))
        .with_code("json")
    }

    /// The body ended in good order, in the middle of the reply, or of what came in its place.
    fn cut(&self, rest: &[u8], out: &Out) -> Error {
        if !self.has_event && !self.begun {
            return self.empty(out);
        }
        let words = match self.begun {
            true => self.last_words(rest, out),
            false => format!("; all that had come: {}", out.excerpt(&self.seen)),
        };
        let url = &self.url;
        Error::new(
            ErrorKind::Truncated,
            format!("the reply from {url} ended before its end was told: it was cut{words}"),
        )
    }

    /// What came behind the reply and is no part of an event: it may say why there is no more.
    fn last_words(&self, rest: &[u8], out: &Out) -> String {
        let rest = match sse::field(rest) {
            (b"data", data) => data,
            _ => rest,
        };
        let candidates = [rest, &self.pending, &self.stray];
        let is_words = |words: &&[u8]| !is_blank(words) && !opens_json(words.iter());
        match candidates.into_iter().find(is_words) {
            Some(words) => format!("; the last words were: {}", out.excerpt(words)),
            None => String::new(),
        }
    }
}

/// A stream without a reply; `seen` is the beginning of what came instead. A page, or another API's
/// answer, is worth the advice.
pub(super) fn empty(url: &str, seen: &[u8], advice: &str, out: &Out) -> Error {
    let seen = out.excerpt(seen);
    let is_elsewhere = seen.len() > 2 && seen.starts_with(['<', '{', '[']);
    let what = match seen.as_str() {
        "" => "nothing".to_owned(),
        _ if is_elsewhere => format!("no reply, but: {seen}{advice}"),
        _ => format!("no reply, but: {seen}"),
    };
    Error::protocol(format!("{url} answered the stream request with {what}")).with_code("empty")
}

/// Something of a stream is longer than it may be.
pub(super) fn too_long(url: &str, what: &str, code: &'static str) -> Error {
    Error::new(ErrorKind::Limit, format!("{url} sent {what}")).with_code(code)
}

/// A reply is longer than `max_reply_bytes`.
pub(super) fn reply_too_long(url: &str, limit: u64) -> Error {
    let what = format!("a reply of more than {limit} bytes (max_reply_bytes)");
    too_long(url, &what, "reply")
}

fn line_too_long(url: &str) -> Error {
    too_long(url, "a line of more than 16 MiB", "line")
}

fn is_blank(data: &[u8]) -> bool {
    data.trim_ascii().is_empty()
}

/// Gateways send `data: : keepalive`: a comment that lost its way.
fn is_comment(data: &[u8]) -> bool {
    data.trim_ascii_start().starts_with(b":")
}

fn is_done(data: &[u8]) -> bool {
    data.trim_ascii() == b"[DONE]"
}
