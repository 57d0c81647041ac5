//! The GPTalk protocol: log in, submit the text, read the stream.
//!
//! ```text
//!           ┌───────── 401, 403 on a token of an earlier chat ─────────┐
//!           ▼                                                          │
//!   Token ──┬── a token has a use left ───────────────────────▶ Submit ┴─▶ Open ──▶ Read ──▶ Over
//!           └── none ──▶ LogIn ──▶ (its first use) ───────────────▲
//! ```
//!
//! Every fact of the wire is of the protocol's description: the GPTalk provider, its known client.

mod content;
mod submission;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use self::content::Content;
use super::events::{Dialect, Reading};
use super::fetch::{Fetch, is_success};
use super::json::{parse_json, text_of};
use super::refusal::{refusal, service_error};
use super::{MAX_SECRET, Out, Setting, Step};
use crate::auth::{self, Identity, Lease, Login, Next};
use crate::config::is_header_byte;
use crate::error::{Error, ErrorKind};
use crate::json::Json;
use crate::message::Conversation;
use crate::transport::{Exchange, Request, SLICE};

const LOGIN: &str = "/api/chatgpt/user/login";
const TEXT: &str = "/api/chatgpt/chatapi/text";
const STREAM: &str = "/api/chatgpt/chatapi/stream";

/// RFC 3986's unreserved characters stand for themselves.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A chat in the GPTalk protocol.
pub(crate) struct Chat {
    setting: Setting,
    identity: Arc<Identity>,
    /// The text request's body.
    submission: Vec<u8>,
    /// The moment of the chat, as the headers tell it.
    moment: String,
    phase: Phase,
    /// The number of the token that this chat itself has logged in for.
    own_token: Option<u64>,
    /// A token was refused to this chat: it takes none that is as old, and no second refusal.
    newer_than: Option<u64>,
    content: Content,
}

enum Phase {
    Token,
    LogIn(Login, Box<Fetch>),
    Submit(Lease, Box<Fetch>),
    Open(Box<Exchange>),
    Read(Box<Reading>),
    /// The stream was refused: reading why.
    Refused(Box<Fetch>),
    Over,
}

impl Chat {
    pub fn new(setting: Setting, conversation: &Conversation) -> Result<Chat, Error> {
        let config = &setting.config;
        let submission = submission::body(config, setting.moment, conversation)?;
        Ok(Chat {
            submission,
            moment: setting.moment.to_string(),
            identity: config.identity.clone(),
            phase: Phase::Token,
            own_token: None,
            newer_than: None,
            content: Content::new(config.max_reply_bytes),
            setting,
        })
    }

    /// The text is submitted anew: another try of the same chat.
    pub fn restart(&mut self) {
        self.phase = Phase::Token;
    }

    /// The chat is over: lets go of its connection, its login and its lease.
    pub fn stop(&mut self) {
        self.phase = Phase::Over;
    }

    /// The chat is left for a callback: says so where others wait for its login.
    pub fn park(&self) {
        if let Phase::LogIn(login, _) = &self.phase {
            login.park();
        }
    }

    /// The chat goes on after a callback.
    pub fn unpark(&self) {
        if let Phase::LogIn(login, _) = &self.phase {
            login.unpark();
        }
    }

    /// The reply, where it is being read, and what is made of it.
    pub(super) fn reading(&mut self) -> Option<(&mut Reading, &mut dyn Dialect)> {
        match &mut self.phase {
            Phase::Read(reading) => Some((reading, &mut self.content)),
            _ => None,
        }
    }

    /// One step.
    pub fn advance(&mut self, out: &mut Out) -> Result<Step, Error> {
        if let Phase::Read(reading) = &mut self.phase {
            let step = reading.advance(&mut self.content, out);
            return match step {
                Ok(Step::Going) => step,
                over => self.over(over, out),
            };
        }
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Token => self.token(out),
            // A login may happen twice: one whose connection broke is worth another try.
            Phase::LogIn(login, mut fetch) => {
                match fetch.advance().map_err(Error::with_repeatable)? {
                    Some((answer, bytes)) => {
                        out.reply.http_status = Some(answer.status);
                        let url = fetch.shown_url();
                        out.note(|| format!("POST {url}: HTTP {}", answer.status));
                        if !is_success(answer.status) {
                            let error = refusal(
                                "the login",
                                url,
                                &answer,
                                &bytes,
                                &self.setting.config,
                                out,
                            );
                            return Err(error);
                        }
                        let (token, expires_at) = read_login(url, &bytes, out)?;
                        out.add_secret(&token);
                        let lease = login.succeeded(&token, expires_at);
                        self.own_token = Some(lease.token_id());
                        self.submit(lease, out);
                        Ok(Step::Going)
                    }
                    None => {
                        self.phase = Phase::LogIn(login, fetch);
                        Ok(Step::Going)
                    }
                }
            }
            Phase::Submit(mut lease, mut fetch) => {
                let step = fetch.advance();
                // If the chat is left here, or fails without an answer, the service may count the
                // use all the same.
                lease.set_in_doubt(fetch.is_sent());
                match step? {
                    Some((answer, bytes)) => {
                        lease.set_in_doubt(false);
                        out.reply.http_status = Some(answer.status);
                        let url = fetch.shown_url();
                        out.note(|| format!("POST {url}: HTTP {}", answer.status));
                        let read = if is_success(answer.status) {
                            read_text(url, &bytes, out)
                        } else {
                            Err(refusal(
                                "the text",
                                url,
                                &answer,
                                &bytes,
                                &self.setting.config,
                                out,
                            ))
                        };
                        match read {
                            Ok(token) => {
                                lease.served();
                                self.open(&token, out);
                                Ok(Step::Going)
                            }
                            Err(error) if error.kind() == ErrorKind::Auth => {
                                let own = self.own_token == Some(lease.token_id());
                                let newest = lease.refused();
                                if own || self.newer_than.is_some() {
                                    return Err(error);
                                }
                                self.newer_than = Some(newest);
                                out.note(|| "the login token was refused: logging in anew".into());
                                self.phase = Phase::Token;
                                Ok(Step::Going)
                            }
                            Err(error) => Err(error),
                        }
                    }
                    None => {
                        self.phase = Phase::Submit(lease, fetch);
                        Ok(Step::Going)
                    }
                }
            }
            Phase::Open(mut exchange) => match exchange.advance()? {
                Some(answer) => {
                    out.reply.http_status = Some(answer.status);
                    out.reply.request_id = answer.header("x-request-id").map(|id| out.shown(id));
                    let url = exchange.shown_url().to_owned();
                    out.note(|| format!("GET {url}: HTTP {}", answer.status));
                    self.phase = if is_success(answer.status) {
                        Phase::Read(Box::new(Reading::new(url, answer.body, "")))
                    } else {
                        Phase::Refused(Box::new(Fetch::rest_of(*exchange, answer)))
                    };
                    Ok(Step::Going)
                }
                None => {
                    self.phase = Phase::Open(exchange);
                    Ok(Step::Going)
                }
            },
            Phase::Refused(mut fetch) => match fetch.advance()? {
                Some((answer, bytes)) => {
                    let (url, config) = (fetch.shown_url(), &self.setting.config);
                    let error = refusal("the stream", url, &answer, &bytes, config, out);
                    // The service may have had the first request, and its token serves once.
                    if error.kind() == ErrorKind::Auth && fetch.was_sent_again() {
                        let status = answer.status;
                        let what = format!(
                            "{url} broke the connection without an answer, and refused the stream \
                             when asked again (HTTP {status})"
                        );
                        let body = error.body().unwrap_or_default().to_owned();
                        let error = Error::new(ErrorKind::Network, what);
                        return Err(error.with_code("closed").with_body(body));
                    }
                    Err(error)
                }
                None => {
                    self.phase = Phase::Refused(fetch);
                    Ok(Step::Going)
                }
            },
            Phase::Read(_) | Phase::Over => Err(Error::new(
                ErrorKind::Internal,
                "a chat that is over went on",
            )),
        }
    }

    /// The reply has come to its end, or failed.
    fn over(&mut self, step: Result<Step, Error>, out: &mut Out) -> Result<Step, Error> {
        let reading = std::mem::replace(&mut self.phase, Phase::Over);
        let ended = self.content.end(&self.url(STREAM), out);
        // The reply's end is the step's error, whatever becomes of a half.
        if let (Ok(_), Phase::Read(reading)) = (&step, reading) {
            ended?;
            reading.leave();
        }
        step
    }

    fn token(&mut self, out: &mut Out) -> Result<Step, Error> {
        match auth::lease(&self.identity, self.newer_than.unwrap_or(0), SLICE) {
            Next::Use(lease) => {
                out.add_secret(lease.token());
                out.note(|| "a login token has a use left".into());
                self.submit(lease, out);
                Ok(Step::Going)
            }
            Next::LogIn(login) => {
                out.note(|| "no login token: logging in".into());
                let fetch = self.log_in()?;
                out.reply.url = Some(fetch.shown_url().to_owned());
                self.phase = Phase::LogIn(login, Box::new(fetch));
                Ok(Step::Going)
            }
            Next::Wait => {
                let url = self.url(LOGIN);
                self.setting.limits.check_total(Instant::now(), &url)?;
                self.phase = Phase::Token;
                Ok(Step::Going)
            }
        }
    }

    fn log_in(&self) -> Result<Fetch, Error> {
        let fingerprint = match &self.setting.config.fingerprint {
            Some(fingerprint) => fingerprint.clone(),
            None => random_fingerprint()?,
        };
        let body = json!({"fingerprint": fingerprint, "platform": "fingerprint"}).to_string();
        let exchange = self.request(LOGIN, None, None, Some(body.as_bytes()));
        Ok(Fetch::new(exchange))
    }

    fn submit(&mut self, lease: Lease, out: &mut Out) {
        let bearer = format!("Bearer {}", lease.token());
        let exchange = self.request(TEXT, None, Some(&bearer), Some(&self.submission));
        out.reply.url = Some(exchange.shown_url().to_owned());
        self.phase = Phase::Submit(lease, Box::new(Fetch::new(exchange)));
    }

    fn open(&mut self, token: &str, out: &mut Out) {
        let encoded = Cow::from(utf8_percent_encode(token, QUERY));
        out.add_secret(token);
        out.add_secret(&encoded);
        let query = ["token=", &encoded].concat();
        let exchange = self.request(STREAM, Some(&query), None, None);
        out.reply.url = Some(exchange.shown_url().to_owned());
        self.phase = Phase::Open(Box::new(exchange));
    }

    fn url(&self, path: &str) -> String {
        self.setting.config.base_url.join(path)
    }

    fn request(
        &self,
        path: &str,
        query: Option<&str>,
        bearer: Option<&str>,
        body: Option<&[u8]>,
    ) -> Exchange {
        let config = &self.setting.config;
        let authorization = bearer.map(|bearer| ("authorization", bearer));
        let headers = [
            ("accept", "*/*"),
            ("content-type", "application/json"),
            ("origin", &config.base_url.origin),
            ("user-agent", &config.user_agent),
            ("x-auth-appid", &config.app_id),
            ("x-auth-openid", ""),
            ("x-auth-platform", ""),
            ("x-auth-timestamp", &self.moment),
        ];
        self.setting.exchange(Request::new(
            self.url(path),
            query,
            authorization.into_iter().chain(headers),
            &config.headers,
            body,
        ))
    }
}

/// Reads the login's answer: the token, and when it expires in Unix seconds.
fn read_login(url: &str, bytes: &[u8], out: &Out) -> Result<(String, Option<i64>), Error> {
    let text = String::from_utf8_lossy(bytes);
    let json = answer_json("the login", url, &text, out)?;
    let data = json.get("data").unwrap_or(&Json::Null);
    let token = data
        .get("token")
        .and_then(Json::as_str)
        .filter(|token| !token.is_empty());
    let Some(token) = token else {
        return Err(without_token(ErrorKind::Auth, "the login", url, &json, out));
    };
    // It goes into a header.
    if token.len() > MAX_SECRET || !token.bytes().all(is_header_byte) {
        return Err(Error::protocol(format!(
            "{url} gave a login token that no header can hold, by its length or its characters"
        ))
        .with_code("token"));
    }
    let expires_at = match data.get("expires_at") {
        None | Some(Json::Null) => None,
        Some(value) => Some(unix_seconds(value).ok_or_else(|| {
            Error::protocol(format!(
                "{url} gave a login token whose expires_at is not a number: {}",
                out.excerpt(value.to_string().as_bytes())
            ))
            .with_code("expires_at")
        })?),
    };
    Ok((token.to_owned(), expires_at))
}

/// Whole seconds of a number, or of one in a string; what is beyond the range is at its end.
fn unix_seconds(value: &Json<'_>) -> Option<i64> {
    match value {
        Json::Number(number) => number
            .as_i64()
            .or_else(|| number.as_f64().map(|s| s as i64)),
        Json::String(text) => {
            let text = text.trim();
            let seconds = text
                .parse::<f64>()
                .ok()
                .filter(|seconds| !seconds.is_nan())?;
            Some(text.parse().unwrap_or(seconds as i64))
        }
        _ => None,
    }
}

/// Reads the text's answer: the stream token.
fn read_text(url: &str, bytes: &[u8], out: &Out) -> Result<String, Error> {
    let text = String::from_utf8_lossy(bytes);
    let json = answer_json("the text", url, &text, out)?;
    let token = json
        .get("data")
        .and_then(|data| data.get("token"))
        .and_then(Json::as_str);
    if let Some(token) = token.filter(|token| !token.is_empty()) {
        if token.len() > MAX_SECRET {
            return Err(Error::protocol(format!(
                "{url} gave a stream token of {} bytes",
                token.len()
            ))
            .with_code("token"));
        }
        return Ok(token.to_owned());
    }
    let kind = match json.get("code").and_then(text_of).as_deref() {
        Some("401" | "403") => ErrorKind::Auth,
        Some("429") => ErrorKind::RateLimit,
        Some(_) => ErrorKind::Server,
        None => ErrorKind::Protocol,
    };
    Err(without_token(kind, "the text", url, &json, out))
}

fn answer_json<'a>(what: &str, url: &str, text: &'a str, out: &Out) -> Result<Json<'a>, Error> {
    parse_json(text).ok_or_else(|| {
        let seen = out.excerpt(text.as_bytes());
        if seen.is_empty() {
            return Error::protocol(format!("{url} answered {what} with nothing"))
                .with_code("empty");
        }
        // JSON but for a brace too many may hold a token that nobody has told us of.
        let colon = if seen.contains("token") {
            String::new()
        } else {
            format!(": {seen}")
        };
        Error::protocol(format!(
            "{url} answered {what} with something that is not JSON{colon}"
        ))
        .with_code("json")
    })
}

fn without_token(kind: ErrorKind, what: &str, url: &str, json: &Json<'_>, out: &Out) -> Error {
    let said = service_error(json);
    let words = said.words.map_or_else(String::new, |words| {
        format!(": {}", out.excerpt(words.as_bytes()))
    });
    Error::new(
        kind,
        format!("{url} answered {what} without a token{words}"),
    )
    .with_service_code(said.code)
}

fn random_fingerprint() -> Result<String, Error> {
    let bits = auth::random_fingerprint().map_err(|error| {
        let what = format!("the system gives no random numbers: {error}");
        Error::new(ErrorKind::Internal, what)
    })?;
    Ok(format!("{:032x}", u128::from_be_bytes(bits)))
}
