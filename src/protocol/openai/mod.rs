//! OpenAI-compatible chat completions: one request, whose answer streams.
//!
//! ```text
//!             ┌── 400, 422 that names a member we added: once without it ──┐
//!             ▼                                                            │
//!   Start ──▶ Open ──┬──▶ Read ──▶ Over                                    │
//!                    └──▶ Refused ─────────────────────────────────────────┴──▶ Over
//! ```
//!
//! The protocol is OpenAI's (<https://platform.openai.com/docs/api-reference/chat>), as it is
//! spoken by Ollama, llama.cpp, vLLM, LM Studio, LiteLLM, OpenRouter, Azure and many more, each in
//! its own way.

mod chunks;
mod request;
mod seam;
mod tools;

use self::chunks::Chunks;
use self::request::{Body, endpoint};
use super::events::{Dialect, Reading};
use super::fetch::{Fetch, is_success};
use super::refusal::{WHERE_TO_LOOK, complaint, refusal};
use super::{Out, Setting, Step};
use crate::error::{Error, ErrorKind};
use crate::message::Conversation;
use crate::reply::Reply;
use crate::transport::{Answer, Exchange, Request};

pub(crate) use self::request::Repairs;

/// A chat with an OpenAI-compatible service.
pub(crate) struct Chat {
    setting: Setting,
    body: Body,
    phase: Phase,
    chunks: Chunks,
}

enum Phase {
    Start,
    Open(Box<Exchange>),
    Read(Box<Reading>),
    /// Reading why the request was refused.
    Refused(Box<Fetch>),
    Over,
}

impl Chat {
    pub fn new(setting: Setting, talk: Conversation) -> Chat {
        Chat {
            body: Body::new(&setting.config, &setting.repairs, talk),
            phase: Phase::Start,
            chunks: Chunks::new(setting.config.max_reply_bytes),
            setting,
        }
    }

    /// The request is sent anew: another try of the same chat.
    pub fn restart(&mut self) {
        self.phase = Phase::Start;
    }

    /// The chat is over: lets go of its connection.
    pub fn stop(&mut self, reply: &mut Reply) {
        self.phase = Phase::Over;
        reply.tool_calls = self.chunks.tool_calls();
    }

    /// The reply, where it is being read, and what is made of it.
    pub(super) fn reading(&mut self) -> Option<(&mut Reading, &mut dyn Dialect)> {
        match &mut self.phase {
            Phase::Read(reading) => Some((reading, &mut self.chunks)),
            _ => None,
        }
    }

    /// One step.
    pub fn advance(&mut self, out: &mut Out) -> Result<Step, Error> {
        if let Phase::Read(reading) = &mut self.phase {
            let step = reading.advance(&mut self.chunks, out);
            return match step {
                Ok(Step::Going) => step,
                over => self.over(over, out),
            };
        }
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Start => {
                let exchange = self.request();
                out.reply.url = Some(exchange.shown_url().to_owned());
                self.phase = Phase::Open(Box::new(exchange));
            }
            Phase::Open(mut exchange) => {
                self.phase = match exchange.advance()? {
                    Some(answer) => self.answered(*exchange, answer, out),
                    None => Phase::Open(exchange),
                };
            }
            Phase::Refused(mut fetch) => {
                self.phase = match fetch.advance()? {
                    Some((answer, bytes)) => self.refused(&fetch, &answer, &bytes, out)?,
                    None => Phase::Refused(fetch),
                };
            }
            Phase::Read(_) | Phase::Over => {
                return Err(Error::new(
                    ErrorKind::Internal,
                    "a chat that is over went on",
                ));
            }
        }
        Ok(Step::Going)
    }

    /// The reply has come to its end, or failed.
    fn over(&mut self, step: Result<Step, Error>, out: &mut Out) -> Result<Step, Error> {
        self.chunks.end(out);
        let reading = std::mem::replace(&mut self.phase, Phase::Over);
        match step {
            Ok(step) => {
                if let Phase::Read(reading) = reading {
                    reading.leave();
                }
                self.chunks.unsuspected().map(|()| step)
            }
            // The service's own words say more.
            Err(error) => match (self.chunks.unsuspected(), error.kind()) {
                (Err(said), ErrorKind::Truncated | ErrorKind::Protocol) => Err(said),
                (Err(said), _) => Err(error.hinted(&format!("; before that, {said}"))),
                (Ok(()), _) => Err(error),
            },
        }
    }

    fn answered(&self, exchange: Exchange, answer: Answer, out: &mut Out) -> Phase {
        let url = exchange.shown_url();
        out.reply.http_status = Some(answer.status);
        out.reply.request_id = answer.header("x-request-id").map(|id| out.shown(id));
        out.note(|| format!("POST {url}: HTTP {}", answer.status));
        if !is_success(answer.status) {
            return Phase::Refused(Box::new(Fetch::rest_of(exchange, answer)));
        }
        self.body.accepted(&self.setting.repairs);
        Phase::Read(Box::new(Reading::new(
            url.to_owned(),
            answer.body,
            WHERE_TO_LOOK,
        )))
    }

    /// What follows a refusal: the request without what was refused, or the error.
    fn refused(
        &mut self,
        fetch: &Fetch,
        answer: &Answer,
        bytes: &[u8],
        out: &mut Out,
    ) -> Result<Phase, Error> {
        let repaired = match answer.status {
            400 | 422 => self.body.repair(&complaint(bytes)),
            _ => None,
        };
        let Some(repaired) = repaired else {
            let (url, config) = (fetch.shown_url(), &self.setting.config);
            return Err(refusal("the chat", url, answer, bytes, config, out));
        };
        out.note(|| repaired);
        Ok(Phase::Start)
    }

    fn request(&self) -> Exchange {
        let config = &self.setting.config;
        let bearer = config.api_key.as_ref().map(|key| format!("Bearer {key}"));
        let headers = [
            ("accept", "*/*"),
            ("content-type", "application/json"),
            ("user-agent", &config.user_agent),
        ];
        let authorization = bearer.iter().map(|bearer| ("authorization", &**bearer));
        self.setting.exchange(Request::new(
            endpoint(&config.base_url),
            config.base_url.query.as_deref(),
            headers.into_iter().chain(authorization),
            &config.headers,
            Some(&self.body.write(config)),
        ))
    }
}
