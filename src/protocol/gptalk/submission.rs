//! The text request's body, and the prompt in it.

use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::error::Error;
use crate::message::Conversation;

/// The model where none is given.
const DEFAULT_MODEL: &str = "gpt-3.5-turbo";

/// The body of the text request. The request's own members, and then the `body` option's, replace
/// those of the same name.
pub(super) fn body(config: &Config, moment: i64, talk: &Conversation) -> Result<String, Error> {
    let temperature = config.temperature.clone().map_or(json!(0), Value::Number);
    let mut body = Map::new();
    for (name, value) in [
        ("content", json!(prompt(talk)?)),
        ("accept", json!("stream")),
        ("from", json!(1)),
        (
            "model",
            json!(config.model.as_deref().unwrap_or(DEFAULT_MODEL)),
        ),
        ("is_mobile", json!(0)),
        ("user_agent", json!(config.user_agent)),
        ("is_open_ctx", json!(0)),
        ("prompt", json!("")),
        ("roid", json!(111)),
        ("temperature", temperature),
        ("ctx_msg_count", json!(3)),
        ("created_at", json!(moment)),
    ] {
        body.insert(name.to_owned(), value);
    }
    for (name, value) in talk.members().iter().chain(&config.body) {
        body.insert(name.clone(), value.clone());
    }
    Ok(Value::Object(body).to_string())
}

/// The messages as one text: a single one as it is, several as lines `Role: content`.
fn prompt(talk: &Conversation) -> Result<String, Error> {
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
    Ok(prompt)
}

/// Content as text: a string, or parts that are all text.
fn plain_text(content: &Value) -> Option<String> {
    match content {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => parts
            .iter()
            .map(|part| part.get("text")?.as_str())
            .collect(),
        _ => None,
    }
}
