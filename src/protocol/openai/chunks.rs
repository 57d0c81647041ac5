//! The chunks of a reply, read as leniently as services write them.
//!
//! Every member may be missing, null or empty. What carries the reply and has a type that cannot be
//! read is an error: its text would be lost without a word.

use std::borrow::Cow;

use serde_json::Value;

use super::seam::Seam;
use super::tools::{Calls, MAX_CALLS};
use crate::error::Error;
use crate::protocol::events::{Dialect, Event, Origin, empty, too_long};
use crate::protocol::json::{Halves, text_of};
use crate::protocol::refusal::reported;
use crate::protocol::{Out, Step};

/// A reply being put together.
pub(super) struct Chunks {
    /// Which of several choices is the reply: the first one that came.
    choice: Option<u64>,
    text: Seam,
    reasoning: Seam,
    calls: Calls,
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
        };
        // Gemini puts an array around its errors.
        let json = match &event.json {
            Value::Array(items) => items.first().unwrap_or(&Value::Null),
            json => json,
        };
        if let Some(error) = error_in(json, event.origin) {
            return Err(reported(error, url, out));
        }
        match json {
            Value::Object(_) => {}
            Value::Null => return Ok(Step::Going),
            _ => return Err(at.bad("that is not an object", out)),
        }
        if event.origin == Origin::Bare && json.get("choices").is_none() {
            return Err(empty(url, event.text.as_bytes(), out));
        }
        self.chunk(json, at, out)?;
        Ok(Step::Going)
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
            has_message: false,
            taken: 0,
            limit,
        }
    }

    /// The reply is over, in whatever way.
    pub fn end(&mut self, out: &mut Out) {
        out.add_reasoning(self.reasoning.end());
        out.add_text(self.text.end());
        out.reply.tool_calls = self.calls.finish();
    }

    fn chunk(&mut self, json: &Value, at: At<'_>, out: &mut Out) -> Result<(), Error> {
        describe(json, out);
        let choices = match json.get("choices") {
            None | Some(Value::Null) => return Ok(()),
            Some(Value::Array(choices)) => choices,
            Some(_) => return Err(at.bad("whose choices are not an array", out)),
        };
        for choice in choices {
            let index = choice.get("index").and_then(Value::as_u64).unwrap_or(0);
            if *self.choice.get_or_insert(index) == index {
                self.choice(choice, at, out)?;
            }
        }
        Ok(())
    }

    fn choice(&mut self, choice: &Value, at: At<'_>, out: &mut Out) -> Result<(), Error> {
        let object = |name| choice.get(name).filter(|value| !value.is_null());
        match (object("delta"), object("message")) {
            (Some(delta @ Value::Object(_)), _) => self.delta(delta, at, out)?,
            (None, Some(message @ Value::Object(_))) => {
                self.has_message = true;
                // A last chunk that repeats the whole message brings nothing new.
                if self.taken == 0 {
                    self.delta(message, at, out)?;
                }
            }
            (None, None) => {}
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
            Some(_) => return Err(at.bad("whose content is not text", out)),
        }
        // What a model says in place of an answer is what it says.
        if let Some(refusal) = delta.get("refusal").and_then(Value::as_str) {
            self.say(refusal, at, out)?;
        }
        let calls = delta.get("tool_calls").and_then(Value::as_array);
        for call in calls.into_iter().flatten() {
            let added = self.calls.add(call, at.halves);
            self.take(added, at)?;
        }
        if self.calls.len() > MAX_CALLS {
            return Err(too_long(at.url, "more than 1024 tool calls", "tool_calls"));
        }
        Ok(())
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
fn describe(json: &Value, out: &mut Out) {
    let reply = &mut out.reply;
    let text = |name| {
        json.get(name)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
    };
    if let Some(model) = text("model").filter(|model| reply.model.as_deref() != Some(model)) {
        reply.model = Some(model.to_owned());
    }
    if let (None, Some(id)) = (&reply.request_id, text("id")) {
        reply.request_id = Some(id.to_owned());
    }
    // Beside the choices, in a choice (Moonshot), in an object of Groq's.
    let usage = |owner: Option<&'_ Value>| {
        let usage = owner?.get("usage")?;
        let is_empty = usage.as_object()?.is_empty();
        (!is_empty).then(|| usage.clone())
    };
    let choice = json.get("choices").and_then(|choices| choices.get(0));
    let owners = [Some(json), choice, json.get("x_groq")];
    if let Some(usage) = owners.into_iter().find_map(usage) {
        reply.usage = Some(usage);
    }
}

/// The text in a part: a string, an object that has it under one of its names, a list of those.
fn words(part: &Value) -> Cow<'_, str> {
    match part {
        Value::String(text) => Cow::Borrowed(text),
        Value::Array(parts) => Cow::Owned(parts.iter().map(words).collect()),
        Value::Object(members) => ["text", "thinking", "summary", "content"]
            .iter()
            .find_map(|name| members.get(*name))
            .map(words)
            .unwrap_or_default(),
        _ => Cow::Borrowed(""),
    }
}

/// Where an event says that something failed. Wherever an `error` stands, it is one.
fn error_in(json: &Value, origin: Origin) -> Option<&Value> {
    let choice = json.get("choices").and_then(|choices| choices.get(0));
    let inner = ["delta", "message"].map(|name| choice.and_then(|choice| choice.get(name)));
    let places = [Some(json), choice, inner[0], inner[1]];
    if let Some(place) = places
        .into_iter()
        .flatten()
        .find(|place| holds_error(place))
    {
        return Some(place);
    }
    let is_called_error = |name| json.get(name).and_then(Value::as_str) == Some("error");
    let has_no_reply = json.get("choices").is_none();
    let is_error = match origin {
        Origin::ErrorField => true,
        Origin::NamedError => has_no_reply,
        Origin::Bare => has_no_reply && (is_failure(json) || says_something(json)),
        Origin::Data => has_no_reply && is_failure(json),
    };
    (is_error || is_called_error("object") || is_called_error("type")).then_some(json)
}

fn holds_error(place: &Value) -> bool {
    match place.get("error") {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::String(words)) => !words.is_empty(),
        Some(Value::Object(members)) => !members.is_empty() || place.get("choices").is_none(),
        Some(_) => true,
    }
}

/// The shapes of FastAPI and of gateways, which have no `error`.
fn is_failure(json: &Value) -> bool {
    let status = |name| json.get(name).and_then(text_of)?.parse::<u16>().ok();
    let is_bad = |name| status(name).is_some_and(|status| (400..600).contains(&status));
    is_bad("code") || is_bad("status") || json.get("detail").is_some()
}

fn says_something(json: &Value) -> bool {
    ["message", "msg"]
        .iter()
        .any(|name| json.get(name).is_some_and(Value::is_string))
}
