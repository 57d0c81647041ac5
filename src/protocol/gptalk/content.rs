//! The events of the stream: the whole reply so far in each, deltas out.

use crate::error::Error;
use crate::json::Json;
use crate::protocol::events::{Dialect, Event, Origin, empty, reply_too_long};
use crate::protocol::hot::Field;
use crate::protocol::json::text_of;
use crate::protocol::refusal::reported;
use crate::protocol::{Out, Step};

/// How half a character stands in the text.
const HALF: &str = "\u{FFFD}";

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

    /// What is in an event's `content`.
    fn content(
        &mut self,
        json: &Json<'_>,
        event: &Event<'_>,
        url: &str,
        out: &mut Out,
    ) -> Result<Step, Error> {
        let bad = |what: &str, out: &Out| {
            let seen = out.excerpt(event.text.as_bytes());
            Error::protocol(format!("{url} sent an event {what}: {seen}"))
        };
        if !json.is_object() {
            return Err(bad("that is not an object", out));
        }
        match json.get("content") {
            Some(Json::String(whole)) => self.update(whole, event.halves.high.is_some(), url, out),
            None | Some(Json::Null) => match stream_error(json, event.text, url, out) {
                Some(error) => Err(error),
                None => Ok(Step::Going),
            },
            Some(_) => Err(bad("whose content is not text", out)),
        }
    }

    /// A line's content: the whole reply so far. Hands out what it has beyond the number of
    /// characters of the line before.
    fn update(
        &mut self,
        mut whole: &str,
        ends_in_half: bool,
        url: &str,
        out: &mut Out,
    ) -> Result<Step, Error> {
        let without_half = whole.strip_suffix(HALF).filter(|_| ends_in_half);
        self.half = without_half.is_some();
        whole = without_half.unwrap_or(whole);
        let (delta, is_rewritten) = match whole.strip_prefix(out.reply.text.as_str()) {
            Some(delta) => (delta, false),
            None => {
                let characters = out.reply.text.chars().count();
                let start = whole.char_indices().nth(characters);
                (start.map_or("", |(at, _)| &whole[at..]), true)
            }
        };
        if self.reserve(delta.len(), whole.len()).is_err() {
            self.half = false;
            return Err(reply_too_long(url, self.limit));
        }
        match is_rewritten {
            true => out.rewrite(whole, whole.len() - delta.len()),
            false => out.add_text(delta),
        }
        Ok(Step::Going)
    }

    /// The reply is over: half a character that waited will not come whole.
    pub fn end(&mut self, url: &str, out: &mut Out) -> Result<(), Error> {
        if std::mem::take(&mut self.half) {
            self.reserve(HALF.len(), out.reply.text.len() + HALF.len())
                .map_err(|()| reply_too_long(url, self.limit))?;
            out.add_text(HALF);
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
}

impl Dialect for Content {
    fn lines_are_events(&self) -> bool {
        true
    }

    fn is_cumulative(&self) -> bool {
        true
    }

    fn strings(&self) -> &'static [&'static str] {
        &["content"]
    }

    fn event(&mut self, event: &Event<'_>, url: &str, out: &mut Out) -> Result<Step, Error> {
        if event.origin != Origin::Bare {
            return self.content(&event.json, event, url, out);
        }
        // The other answers of the protocol have what counts in "data".
        let data = event
            .json
            .get("data")
            .filter(|data| data.get("content").is_some());
        self.content(data.unwrap_or(&event.json), event, url, out)?;
        match out.reply.text.is_empty() {
            true => Err(empty(url, event.text.as_bytes(), "", out)),
            false => Ok(Step::Done),
        }
    }

    /// Where there is content, nothing else is looked at.
    fn string<'a>(&self, json: &'a Json<'_>) -> Option<(Field, &'a str)> {
        Some((Field::Text, json.get("content")?.as_str()?))
    }

    fn room(&self, out: &Out) -> usize {
        let longest = self.delivered.max(out.reply.text.len() as u64);
        usize::try_from(self.limit.saturating_sub(longest)).unwrap_or(usize::MAX)
    }

    fn again(&mut self, _: Field, new: &str, url: &str, out: &mut Out) -> Result<(), Error> {
        self.reserve(new.len(), out.reply.text.len() + new.len())
            .map_err(|()| reply_too_long(url, self.limit))?;
        out.add_text(new);
        Ok(())
    }

    fn has_begun(&self) -> bool {
        true
    }

    /// This protocol's end is its `[DONE]` alone.
    fn is_complete(&self, _: &Out) -> bool {
        false
    }
}

/// The error in an event without content, if there is one.
fn stream_error(event: &Json<'_>, text: &str, url: &str, out: &Out) -> Option<Error> {
    let has_error = event
        .get("error")
        .is_some_and(|error| !matches!(error, Json::Null));
    if !has_error && is_good_code(event.get("code")) {
        return None;
    }
    Some(reported(event, text, url, out))
}

fn is_good_code(code: Option<&Json<'_>>) -> bool {
    match code.and_then(text_of) {
        Some(code) => code == "0" || code == "200",
        None => true,
    }
}
