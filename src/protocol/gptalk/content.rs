//! The stream: cumulative lines in, deltas out.

use serde_json::Value;

use crate::error::{Error, ErrorKind};
use crate::protocol::json::{parse_event, service_words, text_of};
use crate::protocol::{EXCERPT, MAX_JSON, Out, Step};
use crate::sse::{self, LineTooLong, Lines};
use crate::transport::{Body, Part};

/// A stream being read.
pub(super) struct Reading {
    url: String,
    body: Body,
    lines: Lines,
    /// What came before the first event, as far as an error would show it.
    seen: Vec<u8>,
    /// There has been an event.
    begun: bool,
    /// A JSON answer where a stream was asked for, gathered whole.
    whole: Option<Vec<u8>>,
}

impl Reading {
    pub fn new(url: String, body: Body) -> Reading {
        Reading {
            url,
            body,
            lines: Lines::default(),
            seen: Vec::new(),
            begun: false,
            whole: None,
        }
    }

    /// The reply is complete: what follows its `[DONE]` is not read.
    pub fn leave(self) {
        self.body.leave();
    }

    /// One step: at most one line.
    pub fn advance(&mut self, content: &mut Content, out: &mut Out) -> Result<Step, Error> {
        let part = match self.body.read() {
            Ok(Part::Data(part)) => part,
            Ok(Part::Pending) => return Ok(Step::Going),
            Ok(Part::End) => return self.ended(content, out),
            Err(error) => return self.broke(error, content, out),
        };
        if !self.begun && self.whole.is_none() && begins_json(&self.seen, part) {
            self.whole = Some(self.seen.clone());
        }
        if let Some(whole) = &mut self.whole {
            whole.extend_from_slice(part);
            let used = part.len();
            self.body.consume(used);
            return match whole.len() {
                0..=MAX_JSON => Ok(Step::Going),
                _ => Err(too_long(&self.url, "more than 1 MiB of JSON", "json")),
            };
        }
        let mut left = part;
        let line = self
            .lines
            .next(&mut left)
            .map_err(|LineTooLong| too_long(&self.url, "a line of more than 16 MiB", "line"))?;
        let used = part.len() - left.len();
        let step = match line.and_then(sse::data).filter(|data| !is_blank(data)) {
            Some(data) => {
                let begun = std::mem::replace(&mut self.begun, true);
                event(data, begun, &self.url, content, out)
            }
            None => Ok(Step::Going),
        };
        if !self.begun && self.seen.len() < EXCERPT {
            self.seen.extend_from_slice(&part[..used.min(EXCERPT)]);
        }
        self.body.consume(used);
        step
    }

    /// The body has come to its end, in good order.
    fn ended(&mut self, content: &mut Content, out: &mut Out) -> Result<Step, Error> {
        if let Some(whole) = self.whole.take() {
            return answered_whole(&whole, &self.url, content, out);
        }
        match self.last_line(content, out)? {
            LastLine::Done => Ok(Step::Done),
            LastLine::None if !self.begun => Err(empty(&self.url, &self.seen, out)),
            _ => Err(Error::new(
                ErrorKind::Truncated,
                format!(
                    "the reply from {} ended without its [DONE]: it was cut",
                    self.url
                ),
            )),
        }
    }

    /// The connection broke, or a time limit passed: what has arrived is handed out.
    fn broke(&mut self, error: Error, content: &mut Content, out: &mut Out) -> Result<Step, Error> {
        match self.last_line(content, out) {
            Ok(LastLine::Done) => Ok(Step::Done),
            _ => Err(error),
        }
    }

    /// A last line without its end counts where it is whole.
    fn last_line(&mut self, content: &mut Content, out: &mut Out) -> Result<LastLine, Error> {
        let Some(data) = sse::data(self.lines.rest()).filter(|data| !is_blank(data)) else {
            return Ok(LastLine::None);
        };
        if !is_done(data) && parse_event(&String::from_utf8_lossy(data)).is_err() {
            return Ok(LastLine::Cut);
        }
        let begun = std::mem::replace(&mut self.begun, true);
        Ok(match event(data, begun, &self.url, content, out)? {
            Step::Done => LastLine::Done,
            _ => LastLine::Whole,
        })
    }
}

enum LastLine {
    None,
    /// A part of an event.
    Cut,
    Whole,
    /// `[DONE]`.
    Done,
}

/// A JSON answer where a stream was asked for: the reply, or the error in it.
fn answered_whole(
    bytes: &[u8],
    url: &str,
    content: &mut Content,
    out: &mut Out,
) -> Result<Step, Error> {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_start_matches('\u{FEFF}');
    let Ok((json, _)) = parse_event(text) else {
        return Err(empty(url, bytes, out));
    };
    // The other answers of the protocol have what counts in "data".
    let inner = json
        .get("data")
        .filter(|data| data.get("content").is_some());
    let text = match inner {
        Some(data) => data.to_string(),
        None => text.to_owned(),
    };
    event(text.as_bytes(), true, url, content, out)?;
    match out.reply.text.is_empty() {
        true => Err(empty(url, bytes, out)),
        false => Ok(Step::Done),
    }
}

/// Whether an answer begins like a JSON document: `seen` is what was used of it, `part` what
/// follows. A byte order mark and white space do not count.
fn begins_json(seen: &[u8], part: &[u8]) -> bool {
    let mut first = seen
        .iter()
        .chain(part)
        .filter(|byte| !byte.is_ascii_whitespace() && !b"\xef\xbb\xbf".contains(byte));
    matches!(first.next(), Some(b'{' | b'['))
}

fn too_long(url: &str, what: &str, code: &'static str) -> Error {
    Error::new(ErrorKind::Limit, format!("{url} sent {what}")).with_code(code)
}

fn empty(url: &str, seen: &[u8], out: &Out) -> Error {
    let seen = out.excerpt(seen);
    let what = match seen.as_str() {
        "" => "nothing".to_owned(),
        _ => format!("no event, but: {seen}"),
    };
    Error::protocol(format!("{url} answered the stream request with {what}")).with_code("empty")
}

fn is_blank(data: &[u8]) -> bool {
    data.trim_ascii().is_empty()
}

fn is_done(data: &[u8]) -> bool {
    data.trim_ascii() == b"[DONE]"
}

/// One data line of the stream; `begun`: it is not the first.
fn event(
    data: &[u8],
    begun: bool,
    url: &str,
    content: &mut Content,
    out: &mut Out,
) -> Result<Step, Error> {
    if is_done(data) {
        return match begun {
            true => Ok(Step::Done),
            false => Err(empty(url, data, out)),
        };
    }
    let bad = |what: &str, out: &Out| {
        Error::protocol(format!("{url} sent an event {what}: {}", out.excerpt(data)))
    };
    // Invalid UTF-8 becomes U+FFFD.
    let text = String::from_utf8_lossy(data);
    let (json, ends_in_half) = parse_event(&text)
        .map_err(|error| bad(&format!("that is not JSON ({error})"), out).with_code("json"))?;
    if out.wants_events {
        out.event.push_str(&text);
    }
    let Value::Object(mut event) = json else {
        return Err(bad("that is not an object", out));
    };
    match event.remove("content") {
        Some(Value::String(whole)) => content.update(whole, ends_in_half, url, out),
        None | Some(Value::Null) => match stream_error(&Value::Object(event), url, out) {
            Some(error) => Err(error),
            None => Ok(Step::Going),
        },
        Some(_) => Err(bad("whose content is not text", out)),
    }
}

/// The error in an event without content, if there is one.
fn stream_error(event: &Value, url: &str, out: &Out) -> Option<Error> {
    let has_error = event.get("error").is_some_and(|error| !error.is_null());
    if !has_error && is_good_code(event.get("code")) {
        return None;
    }
    let (words, code) = service_words(event);
    let words = out.excerpt(words.unwrap_or_else(|| event.to_string()).as_bytes());
    let error = Error::new(
        ErrorKind::Server,
        format!("{url} reported an error inside the stream: {words}"),
    );
    Some(match code {
        Some(code) => error.with_code(code),
        None => error,
    })
}

fn is_good_code(code: Option<&Value>) -> bool {
    match code.and_then(text_of) {
        Some(code) => code == "0" || code == "200",
        None => true,
    }
}

/// How the versions of the reply become deltas.
pub(super) struct Content {
    /// Half a character stands at the end of the last line's content.
    half: bool,
    /// Bytes handed out, and how many there may be.
    delivered: u64,
    limit: u64,
}

impl Content {
    pub fn new(limit: u64) -> Content {
        Content {
            half: false,
            delivered: 0,
            limit,
        }
    }

    /// A line's content: the whole reply so far. Hands out what it has beyond the number of
    /// characters of the line before.
    fn update(
        &mut self,
        mut whole: String,
        ends_in_half: bool,
        url: &str,
        out: &mut Out,
    ) -> Result<Step, Error> {
        self.half = ends_in_half && whole.ends_with('\u{FFFD}');
        if self.half {
            whole.pop();
        }
        let delta = match whole.strip_prefix(out.reply.text.as_str()) {
            Some(delta) => delta,
            None => {
                out.reply.rewritten = true;
                let characters = out.reply.text.chars().count();
                let start = whole.char_indices().nth(characters);
                start.map_or("", |(at, _)| &whole[at..])
            }
        };
        if self.reserve(delta.len(), whole.len()).is_err() {
            self.half = false;
            return Err(self.too_long(url));
        }
        out.text.push_str(delta);
        out.reply.text = whole;
        Ok(Step::Going)
    }

    /// The reply is over: half a character that waited will not come whole.
    pub fn end(&mut self, url: &str, out: &mut Out) -> Result<(), Error> {
        const HALF: &str = "\u{FFFD}";
        if std::mem::take(&mut self.half) {
            self.reserve(HALF.len(), out.reply.text.len() + HALF.len())
                .map_err(|()| self.too_long(url))?;
            out.text.push_str(HALF);
            out.reply.text.push_str(HALF);
        }
        Ok(())
    }

    /// Counts a delta, and refuses it where it, or the whole reply, passes the limit.
    fn reserve(&mut self, delta: usize, whole: usize) -> Result<(), ()> {
        let delivered = self.delivered + delta as u64;
        if delivered.max(whole as u64) > self.limit {
            return Err(());
        }
        self.delivered = delivered;
        Ok(())
    }

    fn too_long(&self, url: &str) -> Error {
        let what = format!(
            "a reply of more than {} bytes (max_reply_bytes)",
            self.limit
        );
        too_long(url, &what, "reply")
    }
}
