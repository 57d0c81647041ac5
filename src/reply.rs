//! What a chat brought.

use std::time::Duration;

use serde_json::{Value, json};

/// The outcome of a chat: the reply's text and all that is known about it.
///
/// `None` means that the service did not report it. The GPTalk protocol knows neither
/// `finish_reason`, `usage` nor `model`.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Reply {
    /// The reply's text. Where the service [rewrote](Reply::rewritten) earlier text, this is the
    /// final text, not the pieces joined.
    pub text: String,
    /// A reasoning model's thoughts.
    pub reasoning: String,
    /// Whether the service changed text that had been delivered already.
    pub rewritten: bool,
    /// The tools that the model wants called, as the service's JSON, put together from its pieces:
    /// `{"id": ..., "type": "function", "function": {"name": ..., "arguments": "{...}"}}`. Known at
    /// the end of the chat; of a reply that was cut, the last one may be in part.
    pub tool_calls: Vec<Value>,
    /// Why the model stopped, in the service's words: `stop`, `length`, `tool_calls`.
    pub finish_reason: Option<String>,
    /// Token counts, as the service's JSON; of several, the last.
    pub usage: Option<Value>,
    /// The model that answered, as the service names it.
    pub model: Option<String>,
    /// The service's own name for this exchange: the header `x-request-id`, else the `id` in the
    /// first chunk.
    pub request_id: Option<String>,
    /// The URL of the last request, without its query.
    pub url: Option<String>,
    /// The HTTP status of the last answer.
    pub http_status: Option<u16>,
    /// How many times the chat was tried: 1 and the retries.
    pub attempts: u32,
    /// How many pieces of text were delivered.
    pub pieces: u64,
    /// From the start of the chat to the first piece of text.
    pub first_text: Option<Duration>,
    /// From the start of the chat to its end. Zero while it runs.
    pub duration: Duration,
}

impl Reply {
    /// How many tokens the request had.
    pub fn prompt_tokens(&self) -> Option<u64> {
        self.count(&["prompt_tokens"])
    }

    /// How many tokens the reply had, its reasoning included.
    pub fn completion_tokens(&self) -> Option<u64> {
        self.count(&["completion_tokens"])
    }

    /// Both together.
    pub fn total_tokens(&self) -> Option<u64> {
        self.count(&["total_tokens"])
    }

    /// How many of the reply's tokens were thoughts.
    pub fn reasoning_tokens(&self) -> Option<u64> {
        self.count(&["completion_tokens_details", "reasoning_tokens"])
            .or_else(|| self.count(&["reasoning_tokens"]))
    }

    /// How many of the request's tokens the service had in its cache.
    pub fn cached_tokens(&self) -> Option<u64> {
        self.count(&["prompt_tokens_details", "cached_tokens"])
            // DeepSeek's name, and Moonshot's.
            .or_else(|| self.count(&["prompt_cache_hit_tokens"]))
            .or_else(|| self.count(&["cached_tokens"]))
    }

    fn count(&self, path: &[&str]) -> Option<u64> {
        let usage = self.usage.as_ref()?;
        path.iter()
            .try_fold(usage, |value, name| value.get(name))?
            .as_u64()
    }

    /// The assistant's message as JSON, tool calls included, ready to be
    /// [pushed](crate::Conversation::push_json) on the conversation.
    pub fn message(&self) -> Value {
        self.message_of(&self.text)
    }

    /// The same, of a part of the text.
    pub(crate) fn message_of(&self, text: &str) -> Value {
        if self.tool_calls.is_empty() {
            return json!({"role": "assistant", "content": text});
        }
        let content = Some(text).filter(|text| !text.is_empty());
        json!({"role": "assistant", "content": content, "tool_calls": self.tool_calls})
    }
}
