//! The outcome of a chat, by key.

use std::collections::BTreeMap;
use std::ffi::c_char;

use serde_json::Value;

use crate::error::Error;
use crate::json::parse_value;
use crate::protocol::parse_event;
use crate::reply::Reply;

/// What there is to tell.
pub(super) struct Facts<'a> {
    pub reply: &'a Reply,
    /// The reply's text, and how many pieces of it, as far as they have been handed out.
    pub text: &'a str,
    pub pieces: u64,
    /// Why the last chat failed.
    pub error: Option<&'a Error>,
    /// Why the last option was refused, where that came after the chat.
    pub refusal: Option<&'a Error>,
    /// Whether there has been a chat.
    pub begun: bool,
}

impl Facts<'_> {
    /// The value of a text key; of one that is JSON, a slash and the rest of a JSON pointer may
    /// stand behind it.
    pub fn text(&self, key: &str) -> Option<String> {
        match key.split_once('/') {
            None => self.whole_text(key),
            Some((key @ ("message" | "usage"), pointer)) => inside(&self.whole_text(key)?, pointer),
            Some(_) => None,
        }
    }

    fn whole_text(&self, key: &str) -> Option<String> {
        let newest = self.refusal.or(self.error);
        let reply = self.reply;
        match key {
            "error" => newest.map(Error::to_string),
            "error_code" => newest.and_then(Error::code).map(str::to_owned).or_else(|| {
                (reply.rewritten && self.refusal.is_none()).then(|| "rewritten".to_owned())
            }),
            "error_body" => self.error.and_then(Error::body).map(str::to_owned),
            "text" => self.begun.then(|| self.text.to_owned()),
            "reasoning" => Some(reply.reasoning.clone()).filter(|text| !text.is_empty()),
            "message" => {
                let is_empty = self.text.is_empty() && reply.tool_calls.is_empty();
                let is_there = self.begun && (self.error.is_none() || !is_empty);
                is_there.then(|| reply.message_of(self.text).to_string())
            }
            "finish_reason" => reply.finish_reason.clone(),
            "usage" => reply.usage.as_ref().map(Value::to_string),
            "model" => reply.model.clone(),
            "request_id" => reply.request_id.clone(),
            "url" => reply.url.clone(),
            _ => None,
        }
    }

    /// The value of a number key.
    pub fn number(&self, key: &str) -> Option<i64> {
        let reply = self.reply;
        let ms = |time: std::time::Duration| time.as_millis() as i64;
        let count = |tokens: Option<u64>| tokens.and_then(|n| i64::try_from(n).ok());
        if !self.begun {
            return None;
        }
        match key {
            "http_status" => reply.http_status.map(i64::from),
            "retry_after_ms" => self.error.and_then(Error::retry_after).map(ms),
            "retryable" => Some(self.error.is_some_and(Error::is_retryable).into()),
            "attempts" => Some(reply.attempts.into()),
            "prompt_tokens" => count(reply.prompt_tokens()),
            "completion_tokens" => count(reply.completion_tokens()),
            "total_tokens" => count(reply.total_tokens()),
            "reasoning_tokens" => count(reply.reasoning_tokens()),
            "cached_tokens" => count(reply.cached_tokens()),
            "text_len" => Some(self.text.len() as i64),
            "pieces" => Some(self.pieces as i64),
            "first_text_ms" => reply.first_text.map(ms),
            // Zero until the end.
            "duration_ms" => (!reply.duration.is_zero()).then(|| ms(reply.duration)),
            _ => None,
        }
    }
}

/// What a pointer (RFC 6901) leads to in a JSON text: a string as it is, another value as JSON. A
/// string on the way is JSON itself, as a tool call's arguments are.
fn inside(json: &str, pointer: &str) -> Option<String> {
    let mut value = parse_value(json).ok()?;
    for name in pointer.split('/') {
        if let Value::String(text) = &value {
            value = parse_event(text).ok()?.0.to_value();
        }
        let name = name.replace("~1", "/").replace("~0", "~");
        value = match value {
            Value::Object(mut members) => members.remove(&name)?,
            Value::Array(mut items) => {
                let at: usize = name.parse().ok()?;
                // No sign, and no zero in front.
                if at >= items.len() || at.to_string() != name {
                    return None;
                }
                items.swap_remove(at)
            }
            _ => return None,
        };
    }
    match value {
        Value::Null => None,
        // C would take it for a shorter one: a path, for a tool, that the model has not named.
        Value::String(text) if text.contains('\0') => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    }
}

/// The texts that were handed out: each is kept until a new chat; while a chat runs, until its key is
/// asked for again.
#[derive(Default)]
pub(super) struct Kept {
    texts: BTreeMap<String, Box<[u8]>>,
    replaced: Vec<Box<[u8]>>,
}

impl Kept {
    /// Keeps a text under its key; the pointer to it, which a NUL ends.
    pub fn keep(&mut self, key: &str, text: String, runs: bool) -> *const c_char {
        let mut bytes = text.into_bytes();
        bytes.push(0);
        let kept = match self.texts.get_mut(key) {
            // The same again: the old pointer stays good.
            Some(kept) if **kept == *bytes => kept,
            Some(kept) => {
                let old = std::mem::replace(kept, bytes.into());
                if !runs {
                    self.replaced.push(old);
                }
                kept
            }
            None => self
                .texts
                .entry(key.to_owned())
                .or_insert_with(|| bytes.into()),
        };
        kept.as_ptr().cast()
    }
}
