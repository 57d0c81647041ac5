//! The wire protocols, and what they have in common: the setting of a chat, what it hands out,
//! whole answers, and the errors that answers mean.

mod events;
mod fetch;
mod gptalk;
mod hot;
mod json;
mod openai;
mod refusal;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;

use percent_encoding::percent_decode_str;

use self::events::{Dialect, Reading};
use crate::config::{Config, Protocol};
use crate::error::Error;
use crate::message::Conversation;
use crate::reply::Reply;
use crate::transport::{Exchange, Limits, Pool, Request, Route};

pub(crate) use json::parse_event;
pub(crate) use openai::Repairs;
pub(crate) use refusal::hint;

/// The longest answer that is read whole, in bytes.
const MAX_JSON: usize = 1 << 20;
/// How much of an error answer is read, and how much of that is shown.
const MAX_ERROR: usize = 64 << 10;
const SHOWN_ERROR: usize = 4 << 10;
/// The longest excerpt in an error.
const EXCERPT: usize = 512;
/// The longest key or token, in bytes.
const MAX_SECRET: usize = 8 << 10;

/// All that the requests of a chat have in common.
pub(crate) struct Setting {
    pub config: Arc<Config>,
    pub pool: Arc<Pool>,
    pub route: Arc<Route>,
    pub limits: Limits,
    /// The moment of the chat, in Unix seconds.
    pub moment: i64,
    /// What this client's service has refused before.
    pub repairs: Arc<Repairs>,
}

impl Setting {
    fn exchange(&self, request: Request) -> Exchange {
        Exchange::new(self.pool.clone(), self.route.clone(), request, self.limits)
    }
}

/// A chat in one of the protocols.
pub(crate) enum Chat {
    Gptalk(Box<gptalk::Chat>),
    Openai(Box<openai::Chat>),
}

impl Chat {
    pub fn new(setting: Setting, talk: Conversation) -> Result<Chat, Error> {
        if talk.is_empty() {
            return Err(Error::misuse("the conversation has no message: push one"));
        }
        Ok(match setting.config.protocol {
            Protocol::Gptalk => Chat::Gptalk(Box::new(gptalk::Chat::new(setting, &talk)?)),
            Protocol::Openai => Chat::Openai(Box::new(openai::Chat::new(setting, talk))),
        })
    }

    /// Takes the events that have come and are the last one again but for their text. Whether there
    /// were any.
    pub fn run(&mut self, out: &mut Out) -> Result<bool, Error> {
        match self.reading() {
            Some((reading, dialect)) => reading.run(dialect, out),
            None => Ok(false),
        }
    }

    /// Whether the next step has something to do, and waits for nothing.
    pub fn is_ready(&mut self) -> bool {
        self.reading()
            .is_some_and(|(reading, _)| reading.is_ready())
    }

    /// Waits for what goes on with the reply, a slice at most. Not before there is one: `false`.
    pub fn wait(&mut self) -> bool {
        self.reading().map(|(reading, _)| reading.wait()).is_some()
    }

    fn reading(&mut self) -> Option<(&mut Reading, &mut dyn Dialect)> {
        match self {
            Chat::Gptalk(chat) => chat.reading(),
            Chat::Openai(chat) => chat.reading(),
        }
    }

    /// One step.
    pub fn advance(&mut self, out: &mut Out) -> Result<Step, Error> {
        match self {
            Chat::Gptalk(chat) => chat.advance(out),
            Chat::Openai(chat) => chat.advance(out),
        }
    }

    /// Another try of the same chat.
    pub fn restart(&mut self) {
        match self {
            Chat::Gptalk(chat) => chat.restart(),
            Chat::Openai(chat) => chat.restart(),
        }
    }

    /// The chat is over: lets go of its connection and whatever else it holds.
    pub fn stop(&mut self, reply: &mut Reply) {
        match self {
            Chat::Gptalk(chat) => chat.stop(),
            Chat::Openai(chat) => chat.stop(reply),
        }
    }

    /// The chat is left for a callback: says so where others wait for its login.
    pub fn park(&self) {
        if let Chat::Gptalk(chat) = self {
            chat.park();
        }
    }

    /// The chat goes on after a callback.
    pub fn unpark(&self) {
        if let Chat::Gptalk(chat) = self {
            chat.unpark();
        }
    }
}

/// What a step of a protocol came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Hand out what is in [`Out`], look around, and come again.
    Going,
    /// The reply is complete.
    Done,
}

/// What a chat has brought, and what of it is to be handed out next.
#[derive(Default)]
pub(crate) struct Out {
    pub reply: Reply,
    /// How much of the reply's text has been handed out, and of the model's thoughts.
    told: (usize, usize),
    /// How many pieces of text may come at once, ahead of what is handed out, and where those that
    /// have come so end.
    pub run: usize,
    ends: Vec<usize>,
    /// An event's JSON as it came; only where somebody wants it.
    pub event: String,
    pub wants_events: bool,
    /// Lines for the log; only where somebody wants them.
    pub log: VecDeque<String>,
    pub wants_log: bool,
    /// What no error and no log line may show.
    secrets: Vec<String>,
}

/// Pieces of text that came together.
#[derive(Default)]
pub(crate) struct Pieces {
    /// The text, and a NUL.
    pub bytes: Vec<u8>,
    /// Where each piece ends.
    pub ends: Vec<usize>,
}

impl Pieces {
    /// One piece.
    pub fn set(&mut self, text: &str) {
        self.bytes.clear();
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        self.ends.clear();
        self.ends.push(text.len());
    }
}

impl Out {
    /// New text at the end of the reply.
    #[inline]
    pub fn add_text(&mut self, text: &str) {
        self.reply.text.push_str(text);
    }

    /// New thoughts.
    pub fn add_reasoning(&mut self, thoughts: &str) {
        self.reply.reasoning.push_str(thoughts);
    }

    /// The reply's text is another one, of which so much counts as handed out.
    pub fn rewrite(&mut self, text: &str, told: usize) {
        text.clone_into(&mut self.reply.text);
        self.reply.rewritten = true;
        self.told.0 = told;
    }

    /// The text that is to be handed out.
    pub fn text(&self) -> &str {
        self.reply.text.get(self.told.0..).unwrap_or_default()
    }

    #[inline]
    pub fn has_text(&self) -> bool {
        self.told.0 < self.reply.text.len()
    }

    /// The thoughts that are to be handed out.
    pub fn reasoning(&self) -> &str {
        self.reply.reasoning.get(self.told.1..).unwrap_or_default()
    }

    #[inline]
    pub fn has_reasoning(&self) -> bool {
        self.told.1 < self.reply.reasoning.len()
    }

    /// The text has been handed out.
    pub fn told_text(&mut self) {
        self.told.0 = self.reply.text.len();
    }

    /// The thoughts have been handed out.
    pub fn told_reasoning(&mut self) {
        self.told.1 = self.reply.reasoning.len();
    }

    /// The text that follows is a run of pieces, which end there.
    pub fn cut(&mut self, ends: &mut Vec<usize>) {
        std::mem::swap(&mut self.ends, ends);
    }

    /// Hands out all the text there is, in its pieces.
    pub fn take_texts(&mut self, pieces: &mut Pieces) {
        pieces.set(self.text());
        if self.ends.last() == pieces.ends.last() {
            std::mem::swap(&mut self.ends, &mut pieces.ends);
        }
        self.ends.clear();
        self.told_text();
    }

    /// So much at the end of the text was not handed out after all.
    pub fn give_back(&mut self, bytes: usize) {
        let length = self.reply.text.len().saturating_sub(bytes);
        if self.reply.text.is_char_boundary(length) {
            self.reply.text.truncate(length);
        }
    }

    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if self.wants_log {
            let mut line = line();
            self.redact(&mut line);
            self.log.push_back(line.replace(['\n', '\r'], " "));
        }
    }

    /// The beginning of something that a service sent, in one line, for an error.
    pub fn excerpt(&self, bytes: &[u8]) -> String {
        let text = self.beginning(bytes, EXCERPT);
        text.trim().replace(|c: char| c.is_control(), " ")
    }

    /// The beginning of something that a service sent, at most `limit` bytes, without secrets:
    /// cut after they are, so that none is cut in two and shown in part.
    pub fn beginning(&self, bytes: &[u8], limit: usize) -> String {
        let mut text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_ERROR)]).into_owned();
        self.redact(&mut text);
        let mut end = limit.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text
    }

    /// Whether there is nothing to be handed out.
    #[inline]
    pub fn is_empty(&self) -> bool {
        !self.has_text() && !self.has_reasoning() && self.event.is_empty() && self.log.is_empty()
    }

    /// Forgets what has not been handed out.
    pub fn clear(&mut self) {
        self.told_text();
        self.told_reasoning();
        self.event.clear();
        self.log.clear();
    }

    pub fn add_secret(&mut self, secret: &str) {
        let decoded = percent_decode_str(secret).decode_utf8_lossy();
        // PHP writes JSON like this.
        let escaped = match secret.contains('/') {
            true => Cow::from(secret.replace('/', "\\/")),
            false => Cow::from(secret),
        };
        for form in [secret, &*decoded, &*escaped] {
            // A very short one would tear holes into every text, and is no secret.
            if form.len() >= 4 && !self.secrets.iter().any(|known| known == form) {
                // The longest first: one may be the beginning of another.
                let at = self
                    .secrets
                    .partition_point(|known| known.len() >= form.len());
                self.secrets.insert(at, form.to_owned());
            }
        }
    }

    /// A header's or a chunk's word for something, to be shown.
    pub fn shown(&self, text: &str) -> String {
        let mut text = text.to_owned();
        self.redact(&mut text);
        text
    }

    pub fn redact(&self, text: &mut String) {
        for secret in &self.secrets {
            if text.contains(secret.as_str()) {
                *text = text.replace(secret.as_str(), "***");
            }
        }
    }
}
