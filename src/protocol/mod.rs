//! The wire protocols, and what they have in common: the setting of a chat, what it hands out,
//! whole answers, and the errors that answers mean.

pub(crate) mod gptalk;
mod json;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use self::json::{parse_json, service_words};
use crate::config::Config;
use crate::error::{Error, ErrorKind};
use crate::reply::Reply;
use crate::transport::{Answer, Exchange, Limits, Part, Pool, Request, Route};

/// The longest answer that is read whole, in bytes.
const MAX_JSON: usize = 1 << 20;
/// How much of an error answer is read, and how much of that is shown.
const MAX_ERROR: usize = 64 << 10;
const SHOWN_ERROR: usize = 4 << 10;
/// The longest excerpt in an error.
const EXCERPT: usize = 512;
/// The longest wait that a service may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);

/// All that the requests of a chat have in common.
pub(crate) struct Setting {
    pub config: Arc<Config>,
    pub pool: Arc<Pool>,
    pub route: Arc<Route>,
    pub limits: Limits,
    /// The moment of the chat, in Unix seconds.
    pub moment: i64,
}

impl Setting {
    fn exchange(&self, request: Request) -> Exchange {
        Exchange::new(self.pool.clone(), self.route.clone(), request, self.limits)
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
    /// New text of the reply.
    pub text: String,
    /// New text of the model's thoughts.
    pub reasoning: String,
    /// An event's JSON as it came; only where somebody wants it.
    pub event: String,
    pub wants_events: bool,
    /// Lines for the log; only where somebody wants them.
    pub log: VecDeque<String>,
    pub wants_log: bool,
    /// What no error and no log line may show.
    secrets: Vec<String>,
}

impl Out {
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
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
            && self.reasoning.is_empty()
            && self.event.is_empty()
            && self.log.is_empty()
    }

    /// Forgets what has not been handed out.
    pub fn clear(&mut self) {
        self.text.clear();
        self.reasoning.clear();
        self.event.clear();
        self.log.clear();
    }

    pub fn add_secret(&mut self, secret: &str) {
        // A very short one would tear holes into every text, and is no secret.
        if secret.len() >= 4 && !self.secrets.iter().any(|known| known == secret) {
            self.secrets.push(secret.to_owned());
            // The longest first: one may be the beginning of another.
            self.secrets
                .sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        }
    }

    pub fn redact(&self, text: &mut String) {
        for secret in &self.secrets {
            if text.contains(secret.as_str()) {
                *text = text.replace(secret.as_str(), "***");
            }
        }
    }
}

/// An answer that is wanted whole.
struct Fetch {
    exchange: Exchange,
    answer: Option<Answer>,
    bytes: Vec<u8>,
}

impl Fetch {
    fn new(exchange: Exchange) -> Fetch {
        Fetch {
            exchange,
            answer: None,
            bytes: Vec::new(),
        }
    }

    /// One that has begun: the rest of an error answer.
    fn rest_of(exchange: Exchange, answer: Answer) -> Fetch {
        Fetch {
            exchange,
            answer: Some(answer),
            bytes: Vec::new(),
        }
    }

    fn shown_url(&self) -> &str {
        self.exchange.shown_url()
    }

    /// One step; `None`: nothing yet. Of an error answer, no more than its beginning.
    fn advance(&mut self) -> Result<Option<(Answer, Vec<u8>)>, Error> {
        let Some(answer) = &mut self.answer else {
            self.answer = self.exchange.advance()?;
            return Ok(None);
        };
        let is_error = !is_success(answer.status);
        let limit = if is_error { MAX_ERROR } else { MAX_JSON };
        let ended = match answer.body.read() {
            Ok(Part::Data(part)) => {
                let n = part.len();
                self.bytes.extend_from_slice(part);
                answer.body.consume(n);
                self.bytes.len() > limit
            }
            Ok(Part::Pending) => false,
            Ok(Part::End) => true,
            // The status says more than the way the body ended.
            Err(_) if is_error => true,
            Err(error) => return Err(error),
        };
        if self.bytes.len() > limit && !is_error {
            return Err(Error::new(
                ErrorKind::Limit,
                format!("{} answered with more than 1 MiB of JSON", self.shown_url()),
            ));
        }
        if !ended {
            return Ok(None);
        }
        self.bytes.truncate(limit);
        let bytes = std::mem::take(&mut self.bytes);
        Ok(self.answer.take().map(|answer| (answer, bytes)))
    }
}

fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}

/// The error that an answer with another status than 2xx means. `what` was asked for at `url`.
fn refusal(what: &str, url: &str, answer: &Answer, bytes: &[u8], out: &Out) -> Error {
    let status = answer.status;
    let kind = match status {
        401 | 403 => ErrorKind::Auth,
        429 => ErrorKind::RateLimit,
        300..=499 => ErrorKind::Request,
        500..=599 => ErrorKind::Server,
        _ => ErrorKind::Protocol,
    };
    let (words, code) = parse_json(bytes)
        .map(|json| service_words(&json))
        .unwrap_or_default();
    let words = words.map_or_else(|| out.excerpt(bytes), |words| out.excerpt(words.as_bytes()));
    let advice = match status {
        300..=399 => {
            let target = answer.header("location").unwrap_or("nowhere");
            let target = target.split(['?', '#']).next().unwrap_or_default();
            format!("; redirects are not followed, this one leads to {target}: set base_url to it")
        }
        401 | 403 => "; it does not accept who you are".into(),
        404 | 405 => "; is base_url the right one?".into(),
        429 => "; wait before the next try".into(),
        500..=599 => "; try again later".into(),
        _ => String::new(),
    };
    let colon = if words.is_empty() { "" } else { ": " };
    let is_final = code.as_deref() == Some("insufficient_quota");
    let error = Error::new(
        kind,
        format!("{url} refused {what} with HTTP {status}{colon}{words}{advice}"),
    )
    .with_http_status(status)
    .with_retry_after(retry_after(answer))
    .with_retryable(matches!(status, 408 | 409 | 429 | 500..=599) && !is_final)
    .with_body(out.beginning(bytes, SHOWN_ERROR));
    match code {
        Some(code) => error.with_code(code),
        None => error,
    }
}

/// How long the service asks to wait: `retry-after-ms`, or `Retry-After` as seconds or a date
/// (RFC 9110, section 10.2.3). Nonsense is as good as nothing.
fn retry_after(answer: &Answer) -> Option<Duration> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let date = |text: &str| {
        let until = httpdate::parse_http_date(text.trim()).ok()?;
        let wait = until.duration_since(SystemTime::now()).unwrap_or_default();
        Some(wait.as_secs_f64())
    };
    let sane = |seconds: &f64| seconds.is_finite() && *seconds >= 0.0;
    let ms = answer.header("retry-after-ms").and_then(number);
    let seconds = ms.map(|ms| ms / 1000.0).filter(sane).or_else(|| {
        let text = answer.header("retry-after")?;
        number(text).or_else(|| date(text)).filter(sane)
    })?;
    Some(Duration::from_secs_f64(
        seconds.min(MAX_RETRY_AFTER.as_secs_f64()),
    ))
}
