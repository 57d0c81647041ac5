//! The text request's body, and the prompt in it.

use std::borrow::Cow;

use serde_json::Value;

use crate::config::Config;
use crate::error::Error;
use crate::message::{Conversation, RequestBody};

/// The model where none is given.
const DEFAULT_MODEL: &str = "gpt-3.5-turbo";

/// The body of the text request. The request's own members, and then the `body` option's, replace
/// those of the same name.
pub(super) fn body(config: &Config, moment: i64, talk: &Conversation) -> Result<Vec<u8>, Error> {
    let temperature = config.temperature.clone();
    let mut body = RequestBody::new(talk, &config.body);
    body.text("content", &prompt(talk)?);
    body.text("accept", "stream");
    body.json("from", 1);
    body.text("model", config.model.as_deref().unwrap_or(DEFAULT_MODEL));
    body.json("is_mobile", 0);
    body.text("user_agent", &config.user_agent);
    body.json("is_open_ctx", 0);
    body.text("prompt", "");
    body.json("roid", 111);
    body.json("temperature", temperature.unwrap_or(0.into()));
    body.json("ctx_msg_count", 3);
    body.json("created_at", moment);
    Ok(body.finish())
}

/// The messages as one text: a single one as it is, several as lines `Role: content`.
fn prompt(talk: &Conversation) -> Result<Cow<'_, str>, Error> {
    let mut prompt = String::new();
    for (at, (role, content)) in talk.messages().enumerate() {
        let content = plain_text(content).ok_or_else(|| {
            Error::misuse(format!(
                "messages[{at}]: its content is not text, and the gptalk protocol carries no other"
            ))
        })?;
        if talk.len() == 1 {
            return Ok(content);
        }
        let mut letters = role.chars();
        prompt.extend(letters.next().into_iter().flat_map(char::to_uppercase));
        prompt.push_str(&letters.as_str().to_lowercase());
        prompt.push_str(": ");
        prompt.push_str(&content);
        prompt.push('\n');
    }
    prompt.push_str("Assistant:");
    Ok(prompt.into())
}

/// Content as text: a string, or parts that are all text.
fn plain_text(content: &Value) -> Option<Cow<'_, str>> {
    match content {
        Value::String(text) => Some(text.into()),
        Value::Array(parts) => parts
            .iter()
            .map(|part| part.get("text")?.as_str())
            .collect(),
        _ => None,
    }
}
