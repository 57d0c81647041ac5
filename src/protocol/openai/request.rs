//! The request: its URL, its body, and what is changed about it where a service refuses it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::message::Conversation;
use crate::url::Url;

/// What a client's service does not take. Kept for the client's next chats, as long as they go to
/// the same service and model.
#[derive(Default)]
pub(crate) struct Repairs {
    /// It refuses `stream_options` (Mistral, Databricks, some of Azure's).
    no_stream_options: AtomicBool,
    /// It takes `max_completion_tokens` where others take `max_tokens` (OpenAI's newer models).
    completion_tokens: AtomicBool,
}

/// How this chat's request departs from the usual one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    no_stream_options: bool,
    completion_tokens: bool,
}

impl Repairs {
    pub(super) fn shape(&self) -> Shape {
        Shape {
            no_stream_options: self.no_stream_options.load(Relaxed),
            completion_tokens: self.completion_tokens.load(Relaxed),
        }
    }

    /// The service has taken a request of this shape.
    pub(super) fn remember(&self, shape: Shape) {
        self.no_stream_options
            .store(shape.no_stream_options, Relaxed);
        self.completion_tokens
            .store(shape.completion_tokens, Relaxed);
    }
}

/// Where to send it: `base_url` may be a host, a path such as `/v1`, or the full endpoint.
/// The URL with its query, and as it may be shown.
pub(super) fn endpoint(base_url: &Url) -> (String, String) {
    const ENDPOINT: &str = "/chat/completions";
    let tail = match base_url.path.as_str() {
        "" => "/v1/chat/completions",
        path if path.ends_with(ENDPOINT) => "",
        _ => ENDPOINT,
    };
    let shown_url = format!("{base_url}{tail}");
    let url = match &base_url.query {
        Some(query) => format!("{shown_url}?{query}"),
        None => shown_url.clone(),
    };
    (url, shown_url)
}

/// The request's body: our members, replaced by the request's own, and those by the `body`
/// option's.
pub(super) struct Body {
    talk: Conversation,
    /// Which of the members that a service may refuse are ours.
    adds_stream_options: bool,
    adds_max_tokens: bool,
}

impl Body {
    pub fn new(config: &Config, talk: Conversation) -> Body {
        let given =
            |name: &str| talk.members().contains_key(name) || config.body.contains_key(name);
        Body {
            adds_stream_options: !given("stream_options"),
            adds_max_tokens: config.max_tokens.is_some()
                && !given("max_tokens")
                && !given("max_completion_tokens"),
            talk,
        }
    }

    /// In JSON.
    pub fn write(&self, config: &Config, shape: Shape) -> String {
        let mut members = Map::new();
        let mut add = |name: &str, value: Value| drop(members.insert(name.to_owned(), value));
        if let Some(model) = &config.model {
            add("model", json!(model));
        }
        add("stream", json!(true));
        if let Some(temperature) = &config.temperature {
            add("temperature", json!(temperature));
        }
        if let Some(max_tokens) = config.max_tokens.filter(|_| self.adds_max_tokens) {
            add(shape.max_tokens(), json!(max_tokens));
        }
        for (name, value) in self.talk.members().iter().chain(&config.body) {
            add(name, value.clone());
        }
        // OpenAI refuses it where the answer is not to be streamed.
        let streams = members.get("stream") == Some(&Value::Bool(true));
        if self.adds_stream_options && !shape.no_stream_options && streams {
            let value = json!({"include_usage": true});
            members.insert("stream_options".to_owned(), value);
        }
        if members.contains_key("messages") {
            return Value::Object(members).to_string();
        }
        // The messages may be long: they are not copied into the object.
        let messages = self.talk.messages_json();
        let members = Value::Object(members).to_string();
        format!("{{\"messages\":{messages},{}", &members[1..])
    }

    /// The shape to try next, where a service's refusal names a member that we added.
    pub fn repaired(&self, shape: Shape, refusal: &str) -> Option<Shape> {
        if self.adds_stream_options
            && !shape.no_stream_options
            && refusal.contains("stream_options")
        {
            return Some(Shape {
                no_stream_options: true,
                ..shape
            });
        }
        // The name is refused, not the number.
        const NUMBERS: &[&str] = &[
            "too large",
            "at most",
            "at least",
            "less than",
            "greater than",
        ];
        let is_number = NUMBERS.iter().any(|words| refusal.contains(words));
        if self.adds_max_tokens && !is_number && refusal.contains(shape.max_tokens()) {
            return Some(Shape {
                completion_tokens: !shape.completion_tokens,
                ..shape
            });
        }
        None
    }
}

impl Shape {
    fn max_tokens(self) -> &'static str {
        match self.completion_tokens {
            true => "max_completion_tokens",
            false => "max_tokens",
        }
    }
}
