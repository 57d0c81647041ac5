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

use std::sync::Arc;
use std::time::Instant;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};

use super::{
    Fetch, MAX_JSON, Out, Setting, Step, excerpt, is_success, parse_json, refusal, service_words,
    text_of,
};
use crate::auth::{self, Identity, Lease, Login, Next};
use crate::config::{Config, is_header_byte};
use crate::error::{Error, ErrorKind};
use crate::message::Conversation;
use crate::reply::Reply;
use crate::sse::{self, LineTooLong, Lines};
use crate::transport::{Body, Exchange, Part, Request, SLICE};

const LOGIN: &str = "/api/chatgpt/user/login";
const TEXT: &str = "/api/chatgpt/chatapi/text";
const STREAM: &str = "/api/chatgpt/chatapi/stream";

/// The model where none is given.
const DEFAULT_MODEL: &str = "gpt-3.5-turbo";

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
    submission: String,
    phase: Phase,
    /// The number of the token that this chat itself has logged in for.
    own_token: Option<u64>,
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

/// A stream being read.
struct Reading {
    url: String,
    body: Body,
    lines: Lines,
    /// The beginning of what came, for an error where no event does.
    seen: Vec<u8>,
    events: u64,
    /// A JSON answer where a stream was asked for, gathered whole.
    whole: Option<Vec<u8>>,
}

impl Chat {
    pub fn new(setting: Setting, conversation: &Conversation) -> Result<Chat, Error> {
        let config = &setting.config;
        let submission = submission(config, setting.moment, conversation)?;
        let identity = Arc::new(identity(config));
        Ok(Chat {
            submission,
            identity,
            phase: Phase::Token,
            own_token: None,
            content: Content {
                limit: config.max_reply_bytes,
                ..Content::default()
            },
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

    /// One step.
    pub fn advance(&mut self, reply: &mut Reply, out: &mut Out) -> Result<Step, Error> {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Token => self.token(reply, out),
            // A login may happen twice: one whose connection broke is worth another try.
            Phase::LogIn(login, mut fetch) => match fetch.advance().map_err(Error::with_unsent)? {
                Some((answer, bytes)) => {
                    reply.http_status = Some(answer.status);
                    let url = fetch.shown_url();
                    out.note(|| format!("POST {url}: HTTP {}", answer.status));
                    if !is_success(answer.status) {
                        let error = refusal("the login", url, &answer, &bytes);
                        return Err(error);
                    }
                    let (token, expires_at) = read_login(url, &bytes)?;
                    out.add_secret(&token);
                    let lease = login.succeeded(&token, expires_at);
                    self.own_token = Some(lease.token_id());
                    self.submit(lease, reply);
                    Ok(Step::Progress)
                }
                None => {
                    self.phase = Phase::LogIn(login, fetch);
                    Ok(Step::Pending)
                }
            },
            Phase::Submit(lease, mut fetch) => match fetch.advance()? {
                Some((answer, bytes)) => {
                    reply.http_status = Some(answer.status);
                    let url = fetch.shown_url().to_owned();
                    out.note(|| format!("POST {url}: HTTP {}", answer.status));
                    let read = if is_success(answer.status) {
                        read_text(&url, &bytes)
                    } else {
                        Err(refusal("the text", &url, &answer, &bytes))
                    };
                    match read {
                        Ok(token) => {
                            lease.served();
                            self.open(&token, reply, out);
                            Ok(Step::Progress)
                        }
                        Err(error) if error.kind() == ErrorKind::Auth => {
                            let own = self.own_token == Some(lease.token_id());
                            lease.refused();
                            if own {
                                return Err(error);
                            }
                            out.note(|| "the login token was refused: logging in anew".into());
                            self.phase = Phase::Token;
                            Ok(Step::Progress)
                        }
                        Err(error) => Err(error),
                    }
                }
                None => {
                    self.phase = Phase::Submit(lease, fetch);
                    Ok(Step::Pending)
                }
            },
            Phase::Open(mut exchange) => match exchange.advance()? {
                Some(answer) => {
                    reply.http_status = Some(answer.status);
                    reply.request_id = answer.header("x-request-id").map(str::to_owned);
                    let url = exchange.shown_url().to_owned();
                    out.note(|| format!("GET {url}: HTTP {}", answer.status));
                    self.phase = if is_success(answer.status) {
                        Phase::Read(Box::new(Reading {
                            url,
                            body: answer.body,
                            lines: Lines::default(),
                            seen: Vec::new(),
                            events: 0,
                            whole: None,
                        }))
                    } else {
                        Phase::Refused(Box::new(Fetch::rest_of(*exchange, answer)))
                    };
                    Ok(Step::Progress)
                }
                None => {
                    self.phase = Phase::Open(exchange);
                    Ok(Step::Pending)
                }
            },
            Phase::Refused(mut fetch) => match fetch.advance()? {
                Some((answer, bytes)) => {
                    Err(refusal("the stream", fetch.shown_url(), &answer, &bytes))
                }
                None => {
                    self.phase = Phase::Refused(fetch);
                    Ok(Step::Pending)
                }
            },
            Phase::Read(mut reading) => {
                let step = reading.advance(&mut self.content, reply, out);
                if matches!(step, Ok(Step::Pending | Step::Progress)) {
                    self.phase = Phase::Read(reading);
                } else {
                    self.content.end(reply, out);
                    if matches!(step, Ok(Step::Done)) {
                        reading.body.leave();
                    }
                }
                step
            }
            Phase::Over => Err(Error::new(
                ErrorKind::Internal,
                "a chat that is over went on",
            )),
        }
    }

    fn token(&mut self, reply: &mut Reply, out: &mut Out) -> Result<Step, Error> {
        match auth::lease(&self.identity, SLICE) {
            Next::Use(lease) => {
                out.add_secret(lease.token());
                out.note(|| "a login token has a use left".into());
                self.submit(lease, reply);
                Ok(Step::Progress)
            }
            Next::LogIn(login) => {
                out.note(|| "no login token: logging in".into());
                let fetch = self.log_in()?;
                reply.url = Some(fetch.shown_url().to_owned());
                self.phase = Phase::LogIn(login, Box::new(fetch));
                Ok(Step::Progress)
            }
            Next::Wait => {
                let url = self.url(LOGIN);
                self.setting.limits.check_total(Instant::now(), &url)?;
                self.phase = Phase::Token;
                Ok(Step::Pending)
            }
        }
    }

    fn log_in(&self) -> Result<Fetch, Error> {
        let fingerprint = match &self.setting.config.fingerprint {
            Some(fingerprint) => fingerprint.clone(),
            None => random_fingerprint()?,
        };
        let body = json!({"fingerprint": fingerprint, "platform": "fingerprint"}).to_string();
        Ok(Fetch::new(self.request(
            LOGIN,
            None,
            Vec::new(),
            Some(body),
        )))
    }

    fn submit(&mut self, lease: Lease, reply: &mut Reply) {
        let authorization = vec![("authorization", format!("Bearer {}", lease.token()))];
        let exchange = self.request(TEXT, None, authorization, Some(self.submission.clone()));
        reply.url = Some(exchange.shown_url().to_owned());
        self.phase = Phase::Submit(lease, Box::new(Fetch::new(exchange)));
    }

    fn open(&mut self, token: &str, reply: &mut Reply, out: &mut Out) {
        let encoded = utf8_percent_encode(token, QUERY).to_string();
        out.add_secret(token);
        out.add_secret(&encoded);
        let exchange = self.request(STREAM, Some(format!("token={encoded}")), Vec::new(), None);
        reply.url = Some(exchange.shown_url().to_owned());
        self.phase = Phase::Open(Box::new(exchange));
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.setting.config.base_url)
    }

    fn request(
        &self,
        path: &str,
        query: Option<String>,
        mut headers: Vec<(&'static str, String)>,
        body: Option<String>,
    ) -> Exchange {
        let config = &self.setting.config;
        let shown_url = self.url(path);
        headers.extend([
            ("accept", "*/*".to_owned()),
            ("content-type", "application/json".to_owned()),
            ("origin", config.base_url.origin()),
            ("user-agent", config.user_agent.clone()),
            ("x-auth-appid", config.app_id.clone()),
            ("x-auth-openid", String::new()),
            ("x-auth-platform", String::new()),
            ("x-auth-timestamp", self.setting.moment.to_string()),
        ]);
        self.setting.exchange(Request {
            url: match query {
                Some(query) => format!("{shown_url}?{query}"),
                None => shown_url.clone(),
            },
            shown_url,
            headers,
            user_headers: config.headers.clone(),
            body,
        })
    }
}

impl Reading {
    fn advance(
        &mut self,
        content: &mut Content,
        reply: &mut Reply,
        out: &mut Out,
    ) -> Result<Step, Error> {
        let part = match self.body.read() {
            Ok(Part::Data(part)) => part,
            Ok(Part::Pending) => return Ok(Step::Pending),
            Ok(Part::End) => return self.ended(content, reply, out),
            Err(error) => return Err(error),
        };
        if self.events == 0 && self.seen.len() < super::EXCERPT {
            let room = super::EXCERPT - self.seen.len();
            self.seen.extend_from_slice(&part[..part.len().min(room)]);
        }
        if self.events == 0 && self.whole.is_none() && begins_json(&self.seen) {
            self.whole = Some(Vec::new());
        }
        if let Some(whole) = &mut self.whole {
            let n = part.len();
            whole.extend_from_slice(part);
            self.body.consume(n);
            if whole.len() > MAX_JSON {
                return Err(Error::new(
                    ErrorKind::Limit,
                    format!("{} answered with more than 1 MiB of JSON", self.url),
                ));
            }
            return Ok(Step::Progress);
        }
        let mut left = part;
        let line = self.lines.next(&mut left).map_err(|LineTooLong| {
            Error::new(
                ErrorKind::Limit,
                format!("{} sent a line of more than 16 MiB", self.url),
            )
            .with_code("line")
        })?;
        let used = part.len() - left.len();
        let step = match line.and_then(sse::data) {
            Some(data) => event(data, &mut self.events, &self.url, content, reply, out),
            None => Ok(Step::Progress),
        };
        self.body.consume(used);
        step
    }

    /// The body has come to its end, in good order.
    fn ended(
        &mut self,
        content: &mut Content,
        reply: &mut Reply,
        out: &mut Out,
    ) -> Result<Step, Error> {
        if let Some(whole) = self.whole.take() {
            return self.answered_whole(&whole, content, reply, out);
        }
        // A last line without its end counts where it is whole.
        let rest = self.lines.rest();
        let mut is_cut = false;
        if let Some(data) = sse::data(rest).filter(|data| !data.trim_ascii().is_empty()) {
            if is_done(data) || parse_event(&text(data)).is_ok() {
                let step = event(data, &mut self.events, &self.url, content, reply, out)?;
                if step == Step::Done {
                    return Ok(step);
                }
            } else {
                is_cut = true;
            }
        }
        if self.events == 0 && !is_cut {
            return Err(empty(&self.url, &self.seen));
        }
        Err(Error::new(
            ErrorKind::Truncated,
            format!(
                "the reply from {} ended without its [DONE]: it was cut",
                self.url
            ),
        ))
    }

    /// A JSON answer where a stream was asked for: the reply, or the error in it.
    fn answered_whole(
        &mut self,
        bytes: &[u8],
        content: &mut Content,
        reply: &mut Reply,
        out: &mut Out,
    ) -> Result<Step, Error> {
        let Some(json) = parse_json(bytes) else {
            return Err(empty(&self.url, &self.seen));
        };
        let inner = json
            .get("data")
            .filter(|data| data.get("content").is_some())
            .unwrap_or(&json);
        let text = inner.to_string();
        self.events = 0;
        event(
            text.as_bytes(),
            &mut self.events,
            &self.url,
            content,
            reply,
            out,
        )?;
        if reply.text.is_empty() {
            return Err(empty(&self.url, &self.seen));
        }
        Ok(Step::Done)
    }
}

/// Whether an answer begins like a JSON document, byte order mark and white space aside.
fn begins_json(bytes: &[u8]) -> bool {
    let bytes = bytes
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(bytes)
        .trim_ascii_start();
    matches!(bytes.first(), Some(b'{' | b'['))
}

fn empty(url: &str, seen: &[u8]) -> Error {
    let seen = excerpt(seen);
    let what = match seen.as_str() {
        "" => "nothing".to_owned(),
        _ => format!("no event, but: {seen}"),
    };
    Error::protocol(format!("{url} answered the stream request with {what}")).with_code("empty")
}

fn is_done(data: &[u8]) -> bool {
    data.trim_ascii() == b"[DONE]"
}

/// A line's text; invalid UTF-8 becomes U+FFFD.
fn text(data: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(data)
}

/// One data line of the stream.
fn event(
    data: &[u8],
    events: &mut u64,
    url: &str,
    content: &mut Content,
    reply: &mut Reply,
    out: &mut Out,
) -> Result<Step, Error> {
    if data.trim_ascii().is_empty() {
        return Ok(Step::Progress);
    }
    if is_done(data) {
        return match events {
            0 => Err(empty(url, data)),
            _ => Ok(Step::Done),
        };
    }
    *events += 1;
    let text = text(data);
    let (json, ends_in_half) = parse_event(&text).map_err(|error| {
        Error::protocol(format!(
            "{url} sent an event that is not JSON ({error}): {}",
            excerpt(data)
        ))
        .with_code("json")
    })?;
    if out.wants_events {
        out.event.push_str(&text);
    }
    let Value::Object(mut event) = json else {
        return Err(Error::protocol(format!(
            "{url} sent an event that is not an object: {}",
            excerpt(data)
        )));
    };
    match event.remove("content") {
        Some(Value::String(whole)) => content.update(whole, ends_in_half, url, reply, out),
        None | Some(Value::Null) => match stream_error(&Value::Object(event), url) {
            Some(error) => Err(error),
            None => Ok(Step::Progress),
        },
        Some(_) => Err(Error::protocol(format!(
            "{url} sent an event whose content is not text: {}",
            excerpt(data)
        ))),
    }
}

/// The error in an event without content, if there is one.
fn stream_error(event: &Value, url: &str) -> Option<Error> {
    let has_error = event.get("error").is_some_and(|error| !error.is_null());
    if !has_error && is_good_code(event.get("code")) {
        return None;
    }
    let (words, code) = service_words(event);
    let words = words.unwrap_or_else(|| event.to_string());
    let error = Error::new(
        ErrorKind::Server,
        format!(
            "{url} reported an error inside the stream: {}",
            excerpt(words.as_bytes())
        ),
    );
    Some(match code {
        Some(code) => error.with_code(code),
        None => error,
    })
}

fn is_good_code(code: Option<&Value>) -> bool {
    match code.and_then(text_of) {
        Some(code) => code == "0" || code == "200",
        None => true,
    }
}

/// Parses an event; says whether a string in it ended with a lone high surrogate.
fn parse_event(text: &str) -> Result<(Value, bool), serde_json::Error> {
    match serde_json::from_str(text) {
        Ok(json) => Ok((json, false)),
        // serde_json refuses lone surrogates (serde-rs/json#495): mend them and parse again.
        Err(error) if text.contains("\\u") => {
            let (mended, ends_in_half) = mend_surrogates(text);
            serde_json::from_str(&mended)
                .map(|json| (json, ends_in_half))
                .map_err(|_| error)
        }
        Err(error) => Err(error),
    }
}

/// Replaces escapes of lone surrogates by U+FFFD; says whether one was a high surrogate at the
/// very end of a string, whose other half may come in the next line.
fn mend_surrogates(text: &str) -> (String, bool) {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let (mut mended, mut ends_in_half) = (String::with_capacity(text.len()), false);
    let (mut at, mut copied) = (0, 0);
    while let Some(found) = memchr::memchr(b'\\', &text.as_bytes()[at..]) {
        at += found;
        let is_high = |unit: u16| (0xD800..0xDC00).contains(&unit);
        let is_low = |unit: u16| (0xDC00..0xE000).contains(&unit);
        match unit(at) {
            Some(high) if is_high(high) && unit(at + 6).is_some_and(is_low) => at += 12,
            Some(lone) if is_high(lone) || is_low(lone) => {
                mended.push_str(&text[copied..at]);
                mended.push('\u{FFFD}');
                at += 6;
                copied = at;
                ends_in_half |= is_high(lone) && text[at..].starts_with('"');
            }
            Some(_) => at += 6,
            // Another escape: two characters, the second of which may be a backslash.
            None => at += 2,
        }
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at += 1;
        }
    }
    mended.push_str(&text[copied..]);
    (mended, ends_in_half)
}

/// The reply so far, and how its next version becomes a delta.
#[derive(Default)]
struct Content {
    /// Half a character stands at the end of the last line's content.
    half: bool,
    /// Bytes handed out, and how many there may be.
    delivered: u64,
    limit: u64,
}

impl Content {
    /// A line's content: the whole reply so far. Hands out what it has beyond the number of
    /// characters of the line before.
    fn update(
        &mut self,
        mut whole: String,
        ends_in_half: bool,
        url: &str,
        reply: &mut Reply,
        out: &mut Out,
    ) -> Result<Step, Error> {
        self.half = ends_in_half && whole.ends_with('\u{FFFD}');
        if self.half {
            whole.pop();
        }
        let delta = match whole.strip_prefix(reply.text.as_str()) {
            Some(delta) => delta,
            None => {
                reply.rewritten = true;
                let characters = reply.text.chars().count();
                whole
                    .char_indices()
                    .nth(characters)
                    .map_or("", |(at, _)| &whole[at..])
            }
        };
        self.delivered += delta.len() as u64;
        if self.delivered.max(whole.len() as u64) > self.limit {
            return Err(Error::new(
                ErrorKind::Limit,
                format!(
                    "the reply from {url} is longer than {} bytes (max_reply_bytes)",
                    self.limit
                ),
            )
            .with_code("reply"));
        }
        out.text.push_str(delta);
        reply.text = whole;
        Ok(Step::Progress)
    }

    /// The reply is over: half a character that waited will not come whole.
    fn end(&mut self, reply: &mut Reply, out: &mut Out) {
        if std::mem::take(&mut self.half) {
            out.text.push('\u{FFFD}');
            reply.text.push('\u{FFFD}');
        }
    }
}

/// Reads the login's answer: the token, and when it expires in Unix seconds.
fn read_login(url: &str, bytes: &[u8]) -> Result<(String, Option<i64>), Error> {
    let json = answer_json("the login", url, bytes)?;
    let data = json.get("data").unwrap_or(&Value::Null);
    let token = data
        .get("token")
        .and_then(Value::as_str)
        .filter(|token| !token.is_empty());
    let Some(token) = token else {
        return Err(without_token(ErrorKind::Auth, "the login", url, &json));
    };
    // It goes into a header.
    if !token.bytes().all(is_header_byte) {
        return Err(Error::protocol(format!(
            "{url} gave a login token with characters that no header can hold"
        ))
        .with_code("token"));
    }
    let expires_at = match data.get("expires_at") {
        None | Some(Value::Null) => None,
        Some(value) => Some(unix_seconds(value).ok_or_else(|| {
            Error::protocol(format!(
                "{url} gave a login token whose expires_at is not a number: {}",
                excerpt(value.to_string().as_bytes())
            ))
            .with_code("expires_at")
        })?),
    };
    Ok((token.to_owned(), expires_at))
}

/// Whole seconds of a number, or of one in a string; what is beyond the range is at its end.
fn unix_seconds(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number
            .as_i64()
            .or_else(|| number.as_f64().map(|s| s as i64)),
        Value::String(text) => {
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
fn read_text(url: &str, bytes: &[u8]) -> Result<String, Error> {
    let json = answer_json("the text", url, bytes)?;
    let token = json
        .get("data")
        .and_then(|data| data.get("token"))
        .and_then(Value::as_str);
    if let Some(token) = token.filter(|token| !token.is_empty()) {
        return Ok(token.to_owned());
    }
    let kind = match json.get("code").and_then(text_of).as_deref() {
        Some("401" | "403") => ErrorKind::Auth,
        Some("429") => ErrorKind::RateLimit,
        Some(_) => ErrorKind::Server,
        None => ErrorKind::Protocol,
    };
    Err(without_token(kind, "the text", url, &json))
}

fn answer_json(what: &str, url: &str, bytes: &[u8]) -> Result<Value, Error> {
    parse_json(bytes).ok_or_else(|| match excerpt(bytes).as_str() {
        "" => Error::protocol(format!("{url} answered {what} with nothing")).with_code("empty"),
        seen => Error::protocol(format!(
            "{url} answered {what} with something that is not JSON: {seen}"
        ))
        .with_code("json"),
    })
}

fn without_token(kind: ErrorKind, what: &str, url: &str, json: &Value) -> Error {
    let (words, code) = service_words(json);
    let words = words.map_or_else(String::new, |words| {
        format!(": {}", excerpt(words.as_bytes()))
    });
    let error = Error::new(
        kind,
        format!("{url} answered {what} without a token{words}"),
    );
    match code {
        Some(code) => error.with_code(code),
        None => error,
    }
}

fn random_fingerprint() -> Result<String, Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::new(
            ErrorKind::Internal,
            format!("the system gives no random numbers: {error}"),
        )
    })?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

/// What the service tells users apart by: the application, the fingerprint, and what the user's
/// own headers say of them.
fn identity(config: &Config) -> Identity {
    let mut who = vec![
        config.app_id.clone(),
        config.fingerprint.clone().unwrap_or_default(),
    ];
    let headers = config.headers.iter().filter(|(name, _)| {
        name.starts_with("x-auth-") || name == "authorization" || name == "cookie"
    });
    who.extend(headers.map(|(name, value)| format!("{name}: {value}")));
    Identity {
        service: config.base_url.to_string(),
        who,
    }
}

/// The body of the text request. The request's own members, and then the `body` option's, replace
/// those of the same name.
fn submission(config: &Config, moment: i64, talk: &Conversation) -> Result<String, Error> {
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
    if talk.is_empty() {
        return Err(Error::misuse("the conversation has no message: push one"));
    }
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
