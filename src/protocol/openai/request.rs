//! The request: its URL, its body, and what is changed about it where a service refuses it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::Value;

use crate::config::Config;
use crate::message::{Conversation, RequestBody};
use crate::url::Url;

/// What a client's service does not take. Kept for the client's next chats, as long as they go to
/// the same `base_url` and `model`.
#[derive(Default)]
pub(crate) struct Repairs {
    /// It refuses `stream_options` (Mistral, Databricks, some of Azure's).
    no_stream_options: AtomicBool,
    /// It takes `max_completion_tokens` where others take `max_tokens` (OpenAI's newer models).
    completion_tokens: AtomicBool,
}

/// Where to send it, without the query: `base_url` may be a host, a path such as `/v1`, or the full
/// endpoint.
pub(super) fn endpoint(base_url: &Url) -> String {
    const ENDPOINT: &str = "/chat/completions";
    let tail = match base_url.path.as_str() {
        "" => "/v1/chat/completions",
        path if path.ends_with(ENDPOINT) => "",
        _ => ENDPOINT,
    };
    base_url.join(tail)
}

/// The request's body: our members, replaced by the request's own, and those by the `body`
/// option's. A member that the user gave is never changed.
pub(super) struct Body {
    talk: Conversation,
    /// Whether `stream_options` is ours to add, and has been refused.
    stream_options: Member,
    /// The same of `max_tokens`, which then goes by its other name.
    max_tokens: Member,
    /// The model is the option's: what it takes may be known.
    has_known_model: bool,
}

struct Member {
    is_ours: bool,
    is_refused: bool,
    /// It was found out in this chat: once is enough.
    is_news: bool,
}

impl Body {
    pub fn new(config: &Config, repairs: &Repairs, talk: Conversation) -> Body {
        let given =
            |name: &str| talk.members().contains_key(name) || config.body.contains_key(name);
        let has_known_model = !given("model");
        Body {
            stream_options: Member {
                is_ours: !given("stream_options"),
                is_refused: repairs.no_stream_options.load(Relaxed),
                is_news: false,
            },
            max_tokens: Member {
                is_ours: config.max_tokens.is_some()
                    && !given("max_tokens")
                    && !given("max_completion_tokens"),
                is_refused: has_known_model && repairs.completion_tokens.load(Relaxed),
                is_news: false,
            },
            has_known_model,
            talk,
        }
    }

    /// In JSON.
    pub fn write(&self, config: &Config) -> Vec<u8> {
        let mut body = RequestBody::new(&self.talk, &config.body);
        body.messages();
        if let Some(model) = &config.model {
            body.text("model", model);
        }
        body.json("stream", true);
        if let Some(temperature) = &config.temperature {
            body.json("temperature", temperature);
        }
        if let Some(max_tokens) = config.max_tokens.filter(|_| self.max_tokens.is_ours) {
            body.json(self.max_tokens_names().0, max_tokens);
        }
        // OpenAI refuses it where the answer is not to be streamed.
        let streams = body
            .given("stream")
            .is_none_or(|it| *it == Value::Bool(true));
        if self.stream_options.is_ours && !self.stream_options.is_refused && streams {
            body.json("stream_options", r#"{"include_usage":true}"#);
        }
        body.finish()
    }

    /// Changes the member of ours that a service's refusal names; what was done, if anything.
    pub fn repair(&mut self, refusal: &str) -> Option<String> {
        let refusal = refusal.to_lowercase();
        let member = &mut self.stream_options;
        if member.is_ours && !member.is_refused && refusal.contains("stream_options") {
            (member.is_refused, member.is_news) = (true, true);
            return Some("stream_options was refused: trying without it".into());
        }
        let (name, other) = self.max_tokens_names();
        // The name has to be refused, not the number: a limit is never dropped.
        const REFUSALS: &[&str] = &[
            "unsupported",
            "not supported",
            "unrecognized",
            "not recognized",
            "invalid parameter",
            "unknown",
            "unexpected",
            "extra",
            "not permitted",
            "not allowed",
            "deprecated",
        ];
        const NUMBERS: &[&str] = &[
            "too large",
            "at most",
            "at least",
            "less than",
            "greater than",
            "maximum",
            "minimum",
            "exceed",
            "must be",
            "range",
        ];
        let says = |texts: &[&str]| texts.iter().any(|text| refusal.contains(text));
        let is_refused = says(&[name]) && (says(&[other]) || says(REFUSALS)) && !says(NUMBERS);
        let member = &mut self.max_tokens;
        if member.is_ours && !member.is_news && is_refused {
            (member.is_refused, member.is_news) = (!member.is_refused, true);
            return Some(format!("{name} was refused: trying {other}"));
        }
        None
    }

    /// The service has taken the request: what was found out counts for the next ones.
    pub fn accepted(&self, repairs: &Repairs) {
        if self.stream_options.is_news {
            repairs.no_stream_options.store(true, Relaxed);
        }
        if self.max_tokens.is_news && self.has_known_model {
            let is_refused = self.max_tokens.is_refused;
            repairs.completion_tokens.store(is_refused, Relaxed);
        }
    }

    /// The name of `max_tokens` for this service, and its other one.
    fn max_tokens_names(&self) -> (&'static str, &'static str) {
        match self.max_tokens.is_refused {
            true => ("max_completion_tokens", "max_tokens"),
            false => ("max_tokens", "max_completion_tokens"),
        }
    }
}
