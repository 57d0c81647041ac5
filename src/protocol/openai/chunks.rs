//! The chunks of a reply, read as leniently as services write them.
//!
//! Every member may be missing, null or empty. What carries the reply and has a type that cannot be
//! read is an error: its text would be lost without a word.

use std::borrow::Cow;

use serde_json::Value;

use super::seam::Seam;
use super::tools::{Calls, TooMany};
use crate::error::Error;
use crate::json::Json;
use crate::protocol::events::{Dialect, Event, Origin, reply_too_long, too_long};
use crate::protocol::hot::Field;
use crate::protocol::json::{Halves, is_empty, text_of};
use crate::protocol::refusal::reported;
use crate::protocol::{Out, Step};

/// Where thoughts are. The same ones may be in several of these.
const THOUGHTS: &[&str] = &[
    "reasoning_content",
    "reasoning",
    "reasoning_details",
    "thinking",
];

/// A reply being put together.
pub(super) struct Chunks {
    /// Which of several choices is the reply: the first one that came.
    choice: Option<u64>,
    text: Seam,
    reasoning: Seam,
    calls: Calls,
    /// What has come in parts: a whole message that follows only repeats it.
    parts: Parts,
    /// Words that are an error, unless a reply follows them.
    suspect: Option<Error>,
    /// A whole message has come, not a part of one.
    has_message: bool,
    /// Bytes of text, reasoning and tool calls, and how many there may be.
    taken: u64,
    limit: u64,
}

/// What a message, or a part of one, has.
#[derive(Clone, Copy, Default)]
struct Parts {
    text: bool,
    reasoning: bool,
    calls: bool,
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
    fn lines_are_events(&self) -> bool {
        false
    }

    fn is_cumulative(&self) -> bool {
        false
    }

    fn strings(&self) -> &'static [&'static str] {
        &["content", "reasoning_content", "reasoning"]
    }

    fn event(&mut self, event: &Event<'_>, url: &str, out: &mut Out) -> Result<Step, Error> {
        let at = At {
            url,
            text: event.text,
            halves: event.halves,
            origin: event.origin,
        };
        match &event.json {
            // Gemini puts an array around its errors.
            Json::Array(items) => items.iter().try_for_each(|item| self.item(item, at, out))?,
            item => self.item(item, at, out)?,
        }
        // A whole message needs no further end.
        Ok(match self.has_message && event.origin == Origin::Bare {
            true => Step::Done,
            false => Step::Going,
        })
    }

    /// Of one delta's members, its role aside, the only one that is not empty; where nothing stands
    /// around it but what a second reading would find as it was.
    fn string<'a>(&self, json: &'a Json<'_>) -> Option<(Field, &'a str)> {
        let [choice] = json.get("choices")?.as_array()? else {
            return None;
        };
        let is_ours = self.choice == Some(index_of(choice));
        let is_said = |name| has(choice, name);
        if !is_ours
            || ["message", "text", "finish_reason"]
                .into_iter()
                .any(is_said)
            || error_in(json, Origin::Data).is_some()
            || usage_in(json).is_some()
        {
            return None;
        }
        let delta = choice.get("delta")?;
        let members = delta.as_object()?.iter();
        let mut said = members.filter(|(name, value)| name != "role" && !is_empty(value));
        let (name, string) = said.next().filter(|_| said.next().is_none())?;
        // Of two members of this name the last one counts, which may be empty.
        if !delta
            .get(name)
            .is_some_and(|last| std::ptr::eq(last, string))
        {
            return None;
        }
        let field = match &**name {
            "content" => Field::Text,
            name if THOUGHTS.contains(&name) => Field::Reasoning,
            _ => return None,
        };
        Some((field, string.as_str()?))
    }

    fn room(&self, _: &Out) -> usize {
        match self.text.is_closed() && self.reasoning.is_closed() {
            true => usize::try_from(self.limit - self.taken).unwrap_or(usize::MAX),
            false => 0,
        }
    }

    fn again(&mut self, field: Field, text: &str, url: &str, out: &mut Out) -> Result<(), Error> {
        self.suspect = None;
        self.take(text.len(), url)?;
        match field {
            Field::Text => out.add_text(&self.text.join(text, Halves::default())),
            Field::Reasoning => out.add_reasoning(&self.reasoning.join(text, Halves::default())),
        }
        Ok(())
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
            parts: Parts::default(),
            suspect: None,
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

    /// Fails where the service has said something in place of the reply, or of its end.
    pub fn unsuspected(&mut self) -> Result<(), Error> {
        self.suspect.take().map_or(Ok(()), Err)
    }

    /// The tool calls that have come.
    pub fn tool_calls(&mut self) -> Vec<Value> {
        self.calls.finish()
    }

    /// A chunk, or what stands in its place.
    fn item(&mut self, json: &Json<'_>, at: At<'_>, out: &mut Out) -> Result<(), Error> {
        let error = error_in(json, at.origin).map(|error| reported(error, at.text, at.url, out));
        if says_something(json) && out.reply.finish_reason.is_none() {
            self.suspect = Some(reported(json, at.text, at.url, out));
        }
        let read = match json {
            Json::Object(_) => self.chunk(json, at, out),
            Json::Null => Ok(()),
            _ => Err(at.bad("that is not an object", out)),
        };
        // The last words before the error have been read.
        error.map_or(read, Err)
    }

    fn chunk(&mut self, json: &Json<'_>, at: At<'_>, out: &mut Out) -> Result<(), Error> {
        describe(json, at.text.len(), out);
        let choices = match json.get("choices") {
            Some(Json::Array(choices)) => choices,
            Some(other) if !is_empty(other) => {
                return Err(at.bad("whose choices are not an array", out));
            }
            _ => return Ok(()),
        };
        let is_whole = json
            .get("object")
            .is_some_and(|kind| kind.as_str() == Some("chat.completion"));
        let is_message = |choice: &Json<'_>| {
            choice.get("message").is_some_and(Json::is_object)
                || choice.get("text").is_some_and(Json::is_string)
        };
        self.has_message |=
            (is_whole || at.origin == Origin::Bare) && choices.iter().any(is_message);
        for choice in choices {
            self.suspect = None;
            let index = index_of(choice);
            if *self.choice.get_or_insert(index) == index {
                self.choice(choice, at, out)?;
            }
        }
        Ok(())
    }

    fn choice(&mut self, choice: &Json<'_>, at: At<'_>, out: &mut Out) -> Result<(), Error> {
        let part = |name| match choice.get(name) {
            Some(part @ Json::Object(_)) => Ok(Some(part)),
            part if part.is_none_or(is_empty) => Ok(None),
            _ => Err(at.bad("whose delta is not an object", out)),
        };
        let (delta, message) = (part("delta")?, part("message")?);
        if !choice.is_object() && !is_empty(choice) {
            return Err(at.bad("whose choice is not an object", out));
        }
        if let Some(delta) = delta {
            let length = |out: &Out| (out.reply.text.len(), out.reply.reasoning.len());
            let ((text, reasoning), calls) = (length(out), self.calls.len());
            self.delta(delta, Parts::default(), at, out)?;
            self.parts.text |= length(out).0 > text;
            self.parts.reasoning |= length(out).1 > reasoning;
            self.parts.calls |= self.calls.len() > calls;
        }
        if let Some(message) = message {
            self.delta(message, self.parts, at, out)?;
        }
        // As completions were before there were chats.
        if let (None, None, Some(text)) = (delta, message, choice.get("text")) {
            self.say(&words(text), at, out)?;
        }
        // Ollama, SGLang and LocalAI send "", KoboldCpp "null": none yet.
        let reason = choice.get("finish_reason").and_then(Json::as_str);
        if let Some(reason) = reason.filter(|reason| !matches!(*reason, "" | "null")) {
            out.reply.finish_reason = Some(reason.to_owned());
        }
        Ok(())
    }

    /// Reads a message or a part of one, but for what is known.
    fn delta(
        &mut self,
        delta: &Json<'_>,
        known: Parts,
        at: At<'_>,
        out: &mut Out,
    ) -> Result<(), Error> {
        let thoughts = THOUGHTS.iter().filter_map(|name| delta.get(name));
        let thoughts = thoughts.map(words).find(|words| !words.is_empty());
        if let Some(thoughts) = thoughts.filter(|_| !known.reasoning) {
            self.think(&thoughts, at, out)?;
        }
        match delta.get("content").filter(|_| !known.text) {
            None | Some(Json::Null) => {}
            Some(Json::String(text)) => self.say(text, at, out)?,
            // Mistral: parts, of which some are thoughts.
            Some(Json::Array(parts)) => {
                for part in parts {
                    match part.get("type").and_then(Json::as_str) {
                        Some("thinking" | "reasoning") => self.think(&words(part), at, out)?,
                        _ => self.say(&words(part), at, out)?,
                    }
                }
            }
            Some(part @ Json::Object(_)) => self.say(&words(part), at, out)?,
            Some(Json::Bool(false)) => {}
            Some(_) => return Err(at.bad("whose content is not text", out)),
        }
        // What a model says in place of an answer is what it says.
        let refusal = delta.get("refusal").and_then(Json::as_str);
        if let Some(refusal) = refusal.filter(|_| !known.text) {
            self.say(refusal, at, out)?;
        }
        let calls = delta.get("tool_calls").filter(|calls| !is_empty(calls));
        match (calls, delta.get("function_call")) {
            _ if known.calls => Ok(()),
            (Some(Json::Array(calls)), _) => calls.iter().try_for_each(|call| self.call(call, at)),
            (Some(call), _) => self.call(call, at),
            // As a call was before there were several.
            (None, Some(function @ Json::Object(_))) if !is_empty(function) => {
                let call = Json::Object(vec![("function".into(), function.clone())]);
                self.call(&call, at)
            }
            (None, _) => Ok(()),
        }
    }

    fn call(&mut self, call: &Json<'_>, at: At<'_>) -> Result<(), Error> {
        let added = self
            .calls
            .add(call, at.halves)
            .map_err(|TooMany| too_long(at.url, "more than 1024 tool calls", "tool_calls"))?;
        self.take(added, at.url)
    }

    #[inline]
    fn say(&mut self, text: &str, at: At<'_>, out: &mut Out) -> Result<(), Error> {
        self.take(text.len(), at.url)?;
        out.add_text(&self.text.join(text, at.halves));
        Ok(())
    }

    fn think(&mut self, thoughts: &str, at: At<'_>, out: &mut Out) -> Result<(), Error> {
        self.take(thoughts.len(), at.url)?;
        out.add_reasoning(&self.reasoning.join(thoughts, at.halves));
        Ok(())
    }

    /// Counts what came, and refuses what passes the limit.
    #[inline]
    fn take(&mut self, bytes: usize, url: &str) -> Result<(), Error> {
        let taken = self.taken + bytes as u64;
        if taken > self.limit {
            return Err(reply_too_long(url, self.limit));
        }
        self.taken = taken;
        Ok(())
    }
}

/// What stands around the choices. Counts are for the whole reply: the last ones replace the
/// others.
fn describe(json: &Json<'_>, length: usize, out: &mut Out) {
    /// What is longer than this are not counts.
    const MAX_LENGTH: usize = 64 << 10;
    let text = |name| {
        json.get(name)
            .and_then(Json::as_str)
            .filter(|text| !text.is_empty())
    };
    if let Some(model) = text("model").filter(|model| out.reply.model.as_deref() != Some(model)) {
        out.reply.model = Some(out.shown(model));
    }
    if let (None, Some(id)) = (&out.reply.request_id, text("id")) {
        out.reply.request_id = Some(out.shown(id));
    }
    if let Some(usage) = usage_in(json) {
        if length <= MAX_LENGTH || usage.to_string().len() <= MAX_LENGTH {
            out.reply.usage = Some(usage.to_value());
        }
    }
}

/// Token counts: beside the choices, in a choice (Moonshot), in an object of Groq's.
fn usage_in<'a>(json: &'a Json<'a>) -> Option<&'a Json<'a>> {
    let choice = json.get("choices").and_then(Json::first);
    let owners = [Some(json), choice, json.get("x_groq")];
    let mut usages = owners
        .into_iter()
        .flatten()
        .filter_map(|owner| owner.get("usage"));
    usages.find(|usage| usage.as_object().is_some_and(|counts| !counts.is_empty()))
}

fn index_of(choice: &Json<'_>) -> u64 {
    choice.get("index").and_then(Json::as_u64).unwrap_or(0)
}

/// The text in a part: a string, an object that has it under one of its names, a list of those.
fn words<'a>(part: &'a Json<'_>) -> Cow<'a, str> {
    match part {
        Json::String(text) => Cow::Borrowed(text),
        Json::Array(parts) => Cow::Owned(parts.iter().map(words).collect()),
        Json::Object(_) => ["text", "thinking", "summary", "content"]
            .iter()
            .filter_map(|name| part.get(name))
            .map(words)
            .find(|words| !words.is_empty())
            .unwrap_or_default(),
        _ => Cow::Borrowed(""),
    }
}

/// Where an event says that something failed. Wherever an `error` stands, it is one.
fn error_in<'a>(json: &'a Json<'a>, origin: Origin) -> Option<&'a Json<'a>> {
    let has_choices = has(json, "choices");
    let choices = json.get("choices").and_then(Json::as_array);
    let inside = choices.into_iter().flatten().flat_map(|choice| {
        let inside = ["delta", "message"].map(|name| choice.get(name));
        [Some(choice), inside[0], inside[1]].into_iter().flatten()
    });
    let mut places = [Some(json), json.get("x_groq")]
        .into_iter()
        .flatten()
        .chain(inside);
    // One of empty members is none beside a reply only.
    let has_empty_error = json.get("error").is_some_and(Json::is_object) && !has_choices;
    if let Some(place) = places.find(|place| has(place, "error")) {
        return Some(place);
    }
    // The shapes of FastAPI, and of gateways, which have no `error`.
    let status = |name| json.get(name).and_then(text_of)?.parse::<u16>().ok();
    let is_bad = |name| status(name).is_some_and(|status| (400..600).contains(&status));
    let is_failure = || {
        has(json, "errors")
            || has(json, "detail")
            || json.get("object").is_none() && (is_bad("code") || is_bad("status"))
    };
    let is_called_error = |name| json.get(name).and_then(Json::as_str) == Some("error");
    let is_error = match origin {
        Origin::ErrorField => true,
        Origin::NamedError => !has_choices,
        Origin::Bare => !has_choices && (is_failure() || says_something(json)),
        Origin::Data => !has_choices && is_failure(),
    };
    (is_error || has_empty_error || is_called_error("object") || is_called_error("type"))
        .then_some(json)
}

/// Whether an event is words, and no part of a reply.
fn says_something(json: &Json<'_>) -> bool {
    let is_text = |name| json.get(name).is_some_and(Json::is_string);
    let is_chunk = has(json, "choices") || has(json, "object") || has(json, "usage");
    !is_chunk && (is_text("message") || is_text("msg"))
}

fn has(object: &Json<'_>, name: &str) -> bool {
    object.get(name).is_some_and(|value| !is_empty(value))
}
