//! The stream: cumulative lines in, deltas out.

use std::borrow::Cow;

use serde_json::Value;

use crate::error::{Error, ErrorKind};
use crate::protocol::json::{excerpt, parse_event, parse_json, service_words, text_of};
use crate::protocol::{EXCERPT, MAX_JSON, Out, Step};
use crate::reply::Reply;
use crate::sse::{self, LineTooLong, Lines};
use crate::transport::{Body, Part};

/// A stream being read.
pub(super) struct Reading {
    url: String,
    body: Body,
    lines: Lines,
    /// The beginning of what came, for an error where no event does.
    seen: Vec<u8>,
    events: u64,
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
            events: 0,
            whole: None,
        }
    }

    /// The reply is complete: what follows its `[DONE]` is not read.
    pub fn leave(self) {
        self.body.leave();
    }

    /// One step.
    pub fn advance(
        &mut self,
        content: &mut Content,
        reply: &mut Reply,
        out: &mut Out,
    ) -> Result<Step, Error> {
        let part = match self.body.read() {
            Ok(Part::Data(part)) => part,
            Ok(Part::Pending) => return Ok(Step::Pending),
            Ok(Part::End) => return self.ended(content, reply, out),
            Err(error) => return Err(error),
        };
        if self.events == 0 && self.seen.len() < EXCERPT {
            let room = EXCERPT - self.seen.len();
            self.seen.extend_from_slice(&part[..part.len().min(room)]);
        }
        if self.events == 0 && self.whole.is_none() && begins_json(&self.seen) {
            self.whole = Some(Vec::new());
        }
        if let Some(whole) = &mut self.whole {
            let n = part.len();
            whole.extend_from_slice(part);
            self.body.consume(n);
            if whole.len() > MAX_JSON {
                return Err(Error::new(
                    ErrorKind::Limit,
                    format!("{} answered with more than 1 MiB of JSON", self.url),
                ));
            }
            return Ok(Step::Progress);
        }
        let mut left = part;
        let line = self.lines.next(&mut left).map_err(|LineTooLong| {
            Error::new(
                ErrorKind::Limit,
                format!("{} sent a line of more than 16 MiB", self.url),
            )
            .with_code("line")
        })?;
        let used = part.len() - left.len();
        let step = match line.and_then(sse::data) {
            Some(data) => event(data, &mut self.events, &self.url, content, reply, out),
            None => Ok(Step::Progress),
        };
        self.body.consume(used);
        step
    }

    /// The body has come to its end, in good order.
    fn ended(
        &mut self,
        content: &mut Content,
        reply: &mut Reply,
        out: &mut Out,
    ) -> Result<Step, Error> {
        if let Some(whole) = self.whole.take() {
            return self.answered_whole(&whole, content, reply, out);
        }
        // A last line without its end counts where it is whole.
        let rest = self.lines.rest();
        let mut is_cut = false;
        if let Some(data) = sse::data(rest).filter(|data| !data.trim_ascii().is_empty()) {
            if is_done(data) || parse_event(&text(data)).is_ok() {
                let step = event(data, &mut self.events, &self.url, content, reply, out)?;
                if step == Step::Done {
                    return Ok(step);
                }
            } else {
                is_cut = true;
            }
        }
        if self.events == 0 && !is_cut {
            return Err(empty(&self.url, &self.seen));
        }
        Err(Error::new(
            ErrorKind::Truncated,
            format!(
                "the reply from {} ended without its [DONE]: it was cut",
                self.url
            ),
        ))
    }

    /// A JSON answer where a stream was asked for: the reply, or the error in it.
    fn answered_whole(
        &mut self,
        bytes: &[u8],
        content: &mut Content,
        reply: &mut Reply,
        out: &mut Out,
    ) -> Result<Step, Error> {
        let Some(json) = parse_json(bytes) else {
            return Err(empty(&self.url, &self.seen));
        };
        let inner = json
            .get("data")
            .filter(|data| data.get("content").is_some())
            .unwrap_or(&json);
        let text = inner.to_string();
        self.events = 0;
        event(
            text.as_bytes(),
            &mut self.events,
            &self.url,
            content,
            reply,
            out,
        )?;
        if reply.text.is_empty() {
            return Err(empty(&self.url, &self.seen));
        }
        Ok(Step::Done)
    }
}

/// Whether an answer begins like a JSON document, byte order mark and white space aside.
fn begins_json(bytes: &[u8]) -> bool {
    let bytes = bytes
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(bytes)
        .trim_ascii_start();
    matches!(bytes.first(), Some(b'{' | b'['))
}

fn empty(url: &str, seen: &[u8]) -> Error {
    let seen = excerpt(seen);
    let what = match seen.as_str() {
        "" => "nothing".to_owned(),
        _ => format!("no event, but: {seen}"),
    };
    Error::protocol(format!("{url} answered the stream request with {what}")).with_code("empty")
}

fn is_done(data: &[u8]) -> bool {
    data.trim_ascii() == b"[DONE]"
}

/// A line's text; invalid UTF-8 becomes U+FFFD.
fn text(data: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(data)
}

/// One data line of the stream.
fn event(
    data: &[u8],
    events: &mut u64,
    url: &str,
    content: &mut Content,
    reply: &mut Reply,
    out: &mut Out,
) -> Result<Step, Error> {
    if data.trim_ascii().is_empty() {
        return Ok(Step::Progress);
    }
    if is_done(data) {
        return match events {
            0 => Err(empty(url, data)),
            _ => Ok(Step::Done),
        };
    }
    *events += 1;
    let text = text(data);
    let (json, ends_in_half) = parse_event(&text).map_err(|error| {
        Error::protocol(format!(
            "{url} sent an event that is not JSON ({error}): {}",
            excerpt(data)
        ))
        .with_code("json")
    })?;
    if out.wants_events {
        out.event.push_str(&text);
    }
    let Value::Object(mut event) = json else {
        return Err(Error::protocol(format!(
            "{url} sent an event that is not an object: {}",
            excerpt(data)
        )));
    };
    match event.remove("content") {
        Some(Value::String(whole)) => content.update(whole, ends_in_half, url, reply, out),
        None | Some(Value::Null) => match stream_error(&Value::Object(event), url) {
            Some(error) => Err(error),
            None => Ok(Step::Progress),
        },
        Some(_) => Err(Error::protocol(format!(
            "{url} sent an event whose content is not text: {}",
            excerpt(data)
        ))),
    }
}

/// The error in an event without content, if there is one.
fn stream_error(event: &Value, url: &str) -> Option<Error> {
    let has_error = event.get("error").is_some_and(|error| !error.is_null());
    if !has_error && is_good_code(event.get("code")) {
        return None;
    }
    let (words, code) = service_words(event);
    let words = words.unwrap_or_else(|| event.to_string());
    let error = Error::new(
        ErrorKind::Server,
        format!(
            "{url} reported an error inside the stream: {}",
            excerpt(words.as_bytes())
        ),
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

/// The reply so far, and how its next version becomes a delta.
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
        reply: &mut Reply,
        out: &mut Out,
    ) -> Result<Step, Error> {
        self.half = ends_in_half && whole.ends_with('\u{FFFD}');
        if self.half {
            whole.pop();
        }
        let delta = match whole.strip_prefix(reply.text.as_str()) {
            Some(delta) => delta,
            None => {
                reply.rewritten = true;
                let characters = reply.text.chars().count();
                whole
                    .char_indices()
                    .nth(characters)
                    .map_or("", |(at, _)| &whole[at..])
            }
        };
        self.delivered += delta.len() as u64;
        if self.delivered.max(whole.len() as u64) > self.limit {
            return Err(Error::new(
                ErrorKind::Limit,
                format!(
                    "the reply from {url} is longer than {} bytes (max_reply_bytes)",
                    self.limit
                ),
            )
            .with_code("reply"));
        }
        out.text.push_str(delta);
        reply.text = whole;
        Ok(Step::Progress)
    }

    /// The reply is over: half a character that waited will not come whole.
    pub fn end(&mut self, reply: &mut Reply, out: &mut Out) {
        if std::mem::take(&mut self.half) {
            out.text.push('\u{FFFD}');
            reply.text.push('\u{FFFD}');
        }
    }
}
