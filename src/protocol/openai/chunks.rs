//! The chunks of a reply, read as leniently as services write them.
//!
//! Every member may be missing, null or empty. What carries the reply and has a type that cannot be
//! read is an error: its text would be lost without a word.

use std::borrow::Cow;

use serde_json::Value;

use super::seam::Seam;
use super::tools::{Calls, TooMany};
use crate::error::Error;
use crate::protocol::events::{Dialect, Event, Origin, too_long};
use crate::protocol::json::{Halves, is_empty, text_of};
use crate::protocol::refusal::reported;
use crate::protocol::{Out, Step};

/// A reply being put together.
pub(super) struct Chunks {
    /// Which of several choices is the reply: the first one that came.
    choice: Option<u64>,
    text: Seam,
    reasoning: Seam,
    calls: Calls,
    /// A part of a message has come: a whole one that follows only repeats it.
    has_delta: bool,
    /// A whole message has come, not a part of one.
    has_message: bool,
    /// Bytes of text, reasoning and tool calls, and how many there may be.
    taken: u64,
    limit: u64,
}

/// The event that is being read.
#[derive(Clone, Copy)]
struct At<'a> {
    url: &'a str,
    text: &'a str,
    halves: Halves,
    origin: Origin,
}

impl At<'_> {
    fn bad(&self, what: &str, out: &Out) -> Error {
        let seen = out.excerpt(self.text.as_bytes());
        Error::protocol(format!("{} sent an event {what}: {seen}", self.url))
    }
}

impl Dialect for Chunks {
    const LINES_ARE_EVENTS: bool = false;

    fn event(&mut self, event: Event<'_>, url: &str, out: &mut Out) -> Result<Step, Error> {
        let at = At {
            url,
            text: event.text,
            halves: event.halves,
            origin: event.origin,
        };
        match &event.json {
            // Gemini puts an array around its errors.
            Value::Array(items) => items.iter().try_for_each(|item| self.item(item, at, out))?,
            item => self.item(item, at, out)?,
        }
        // A whole message needs no further end.
        Ok(match self.has_message && event.origin == Origin::Bare {
            true => Step::Done,
            false => Step::Going,
        })
    }

    fn has_begun(&self) -> bool {
        self.choice.is_some()
    }

    fn is_complete(&self, out: &Out) -> bool {
        self.has_message || out.reply.finish_reason.is_some()
    }
}

impl Chunks {
    pub fn new(limit: u64) -> Chunks {
        Chunks {
            choice: None,
            text: Seam::default(),
            reasoning: Seam::default(),
            calls: Calls::default(),
            has_delta: false,
            has_message: false,
            taken: 0,
            limit,
        }
    }

    /// The reply is over: halves that waited will not come whole.
    pub fn end(&mut self, out: &mut Out) {
        out.add_reasoning(self.reasoning.end());
        out.add_text(self.text.end());
    }

    /// The tool calls that have come.
    pub fn tool_calls(&mut self) -> Vec<Value> {
        self.calls.finish()
    }

    /// A chunk, or what stands in its place.
    fn item(&mut self, json: &Value, at: At<'_>, out: &mut Out) -> Result<(), Error> {
        let error = error_in(json, at.origin).map(|error| reported(error, at.text, at.url, out));
        let read = match json {
            Value::Object(_) => self.chunk(json, at, out),
            Value::Null => Ok(()),
            _ => Err(at.bad("that is not an object", out)),
        };
        // The last words before the error have been read.
        error.map_or(read, Err)
    }

    fn chunk(&mut self, json: &Value, at: At<'_>, out: &mut Out) -> Result<(), Error> {
        describe(json, at.text.len(), out);
        let choices = match json.get("choices") {
            Some(Value::Array(choices)) => choices,
            Some(other) if !is_empty(other) => {
                return Err(at.bad("whose choices are not an array", out));
            }
            _ => return Ok(()),
        };
        let is_whole = json
            .get("object")
            .is_some_and(|kind| kind == "chat.completion");
        self.has_message |= (is_whole || at.origin == Origin::Bare)
            && choices
                .iter()
                .any(|choice| choice.get("message").is_some_and(Value::is_object));
        for choice in choices {
            let index = choice.get("index").and_then(Value::as_u64).unwrap_or(0);
            if *self.choice.get_or_insert(index) == index {
                self.choice(choice, at, out)?;
            }
        }
        Ok(())
    }

    fn choice(&mut self, choice: &Value, at: At<'_>, out: &mut Out) -> Result<(), Error> {
        let part = |name| choice.get(name).filter(|value| !is_empty(value));
        match (part("delta"), part("message")) {
            (Some(delta @ Value::Object(_)), _) => {
                let taken = self.taken;
                self.delta(delta, at, out)?;
                self.has_delta |= self.taken > taken;
            }
            (None, Some(message @ Value::Object(_))) if !self.has_delta => {
                self.delta(message, at, out)?;
            }
            (None, None | Some(Value::Object(_))) => {}
            _ => return Err(at.bad("whose delta is not an object", out)),
        }
        // Ollama, SGLang and LocalAI send "", KoboldCpp "null": none yet.
        let reason = choice.get("finish_reason").and_then(Value::as_str);
        if let Some(reason) = reason.filter(|reason| !matches!(*reason, "" | "null")) {
            out.reply.finish_reason = Some(reason.to_owned());
        }
        Ok(())
    }

    fn delta(&mut self, delta: &Value, at: At<'_>, out: &mut Out) -> Result<(), Error> {
        // The same thoughts may stand in several of these.
        const THOUGHTS: &[&str] = &[
            "reasoning_content",
            "reasoning",
            "reasoning_details",
            "thinking",
        ];
        let thoughts = THOUGHTS.iter().filter_map(|name| delta.get(name));
        if let Some(thoughts) = thoughts.map(words).find(|words| !words.is_empty()) {
            self.think(&thoughts, at, out)?;
        }
        match delta.get("content") {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => self.say(text, at, out)?,
            // Mistral: parts, of which some are thoughts.
            Some(Value::Array(parts)) => {
                for part in parts {
                    match part.get("type").and_then(Value::as_str) {
                        Some("thinking" | "reasoning") => self.think(&words(part), at, out)?,
                        _ => self.say(&words(part), at, out)?,
                    }
                }
            }
            Some(part @ Value::Object(_)) => self.say(&words(part), at, out)?,
            Some(other) if is_empty(other) => {}
            Some(_) => return Err(at.bad("whose content is not text", out)),
        }
        // What a model says in place of an answer is what it says.
        if let Some(refusal) = delta.get("refusal").and_then(Value::as_str) {
            self.say(refusal, at, out)?;
        }
        match delta.get("tool_calls") {
            Some(Value::Array(calls)) => calls.iter().try_for_each(|call| self.call(call, at)),
            Some(call @ Value::Object(_)) => self.call(call, at),
            _ => Ok(()),
        }
    }

    fn call(&mut self, call: &Value, at: At<'_>) -> Result<(), Error> {
        let added = self
            .calls
            .add(call, at.halves)
            .map_err(|TooMany| too_long(at.url, "more than 1024 tool calls", "tool_calls"))?;
        self.take(added, at)
    }

    fn say(&mut self, text: &str, at: At<'_>, out: &mut Out) -> Result<(), Error> {
        self.take(text.len(), at)?;
        out.add_text(&self.text.join(text, at.halves));
        Ok(())
    }

    fn think(&mut self, thoughts: &str, at: At<'_>, out: &mut Out) -> Result<(), Error> {
        self.take(thoughts.len(), at)?;
        out.add_reasoning(&self.reasoning.join(thoughts, at.halves));
        Ok(())
    }

    /// Counts what came, and refuses what passes the limit.
    fn take(&mut self, bytes: usize, at: At<'_>) -> Result<(), Error> {
        let taken = self.taken + bytes as u64;
        if taken > self.limit {
            let what = format!(
                "a reply of more than {} bytes (max_reply_bytes)",
                self.limit
            );
            return Err(too_long(at.url, &what, "reply"));
        }
        self.taken = taken;
        Ok(())
    }
}

/// What stands around the choices. Counts are for the whole reply: the last ones replace the
/// others.
fn describe(json: &Value, length: usize, out: &mut Out) {
    /// What is longer than this are not counts.
    const MAX_LENGTH: usize = 64 << 10;
    let text = |name| {
        json.get(name)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    if let Some(model) = text("model").filter(|model| out.reply.model.as_deref() != Some(model)) {
        out.reply.model = Some(out.shown(model));
    }
    if let (None, Some(id)) = (&out.reply.request_id, text("id")) {
        out.reply.request_id = Some(out.shown(id));
    }
    // Beside the choices, in a choice (Moonshot), in an object of Groq's.
    let usage = |owner: Option<&'_ Value>| {
        let usage = owner?.get("usage")?;
        let is_empty = usage.as_object()?.is_empty();
        (!is_empty).then(|| usage.clone())
    };
    let choice = json.get("choices").and_then(|choices| choices.get(0));
    let owners = [Some(json), choice, json.get("x_groq")];
    let owners = owners.into_iter().filter(|_| length <= MAX_LENGTH);
    if let Some(usage) = owners.into_iter().find_map(usage) {
        out.reply.usage = Some(usage);
    }
}

/// The text in a part: a string, an object that has it under one of its names, a list of those.
fn words(part: &Value) -> Cow<'_, str> {
    match part {
        Value::String(text) => Cow::Borrowed(text),
        Value::Array(parts) => Cow::Owned(parts.iter().map(words).collect()),
        Value::Object(members) => ["text", "thinking", "summary", "content"]
            .iter()
            .filter_map(|name| members.get(*name))
            .map(words)
            .find(|words| !words.is_empty())
            .unwrap_or_default(),
        _ => Cow::Borrowed(""),
    }
}

/// Where an event says that something failed. Wherever an `error` stands, it is one.
fn error_in(json: &Value, origin: Origin) -> Option<&Value> {
    let has = |owner: &Value, name: &str| owner.get(name).is_some_and(|value| !is_empty(value));
    let choice = json.get("choices").and_then(|choices| choices.get(0));
    let inner = ["delta", "message"].map(|name| choice.and_then(|choice| choice.get(name)));
    let places = [Some(json), choice, inner[0], inner[1]];
    if let Some(place) = places
        .into_iter()
        .flatten()
        .find(|place| has(place, "error"))
    {
        return Some(place);
    }
    let is_called_error = |name| json.get(name).is_some_and(|value| value == "error");
    let has_choices = has(json, "choices");
    // The shapes of FastAPI, and of gateways, which have no `error`.
    let status = |name| json.get(name).and_then(text_of)?.parse::<u16>().ok();
    let is_bad = |name| status(name).is_some_and(|status| (400..600).contains(&status));
    let is_failure =
        || has(json, "errors") || is_bad("code") || is_bad("status") || has(json, "detail");
    let says_something = || {
        let is_text = |name| json.get(name).is_some_and(|words| words.is_string());
        let is_chunk = json.get("object").is_some() || json.get("usage").is_some();
        !is_chunk && (is_text("message") || is_text("msg"))
    };
    let is_error = match origin {
        Origin::ErrorField => true,
        Origin::NamedError => !has_choices,
        Origin::Data | Origin::Bare => !has_choices && (is_failure() || says_something()),
    };
    (is_error || is_called_error("object") || is_called_error("type")).then_some(json)
}
