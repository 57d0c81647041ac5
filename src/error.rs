//! The one error type.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use crate::reply::Reply;

/// Why a chat failed: what `gptalk_status` is in C, without its `GPTALK_OK`.
///
/// The numbers are frozen. New kinds may be added: take an unknown one as a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(i32)]
pub enum ErrorKind {
    /// The chat was cancelled by a [`CancelHandle`](crate::CancelHandle) or by the callback.
    Cancelled = 1,
    /// The caller's input cannot be used: bad JSON, an unknown option, a bad value.
    Misuse = 2,
    /// The C client is already in a chat. Rust's [`Client`](crate::Client) is never busy.
    Busy = 3,
    /// The login or the key was refused: HTTP 401 or 403, or a login answer without a token.
    Auth = 4,
    /// HTTP 429, or a quota: see [`Error::retry_after`].
    RateLimit = 5,
    /// The service refused the request: any other 4xx, or a redirect.
    Request = 6,
    /// The service failed: 5xx, or an error that it reported with status 200.
    Server = 7,
    /// Name resolution, connect, reset, proxy.
    Network = 8,
    /// The TLS handshake failed, or a certificate was refused.
    Tls = 9,
    /// One of the time limits passed.
    Timeout = 10,
    /// The service's answer is not of the protocol.
    Protocol = 11,
    /// The reply was cut. What had arrived has been delivered.
    Truncated = 12,
    /// A line, a header or the reply is beyond its limit.
    Limit = 13,
    /// A defect of this library, contained.
    Internal = 14,
}

impl ErrorKind {
    /// The kind's stable name, as `gptalk_status_name` gives it: `"rate_limit"`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Misuse => "misuse",
            Self::Busy => "busy",
            Self::Auth => "auth",
            Self::RateLimit => "rate_limit",
            Self::Request => "request",
            Self::Server => "server",
            Self::Network => "network",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Protocol => "protocol",
            Self::Truncated => "truncated",
            Self::Limit => "limit",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a chat failed.
///
/// Its text is one sentence that says what happened, to which URL, and what to do. It never
/// holds a secret. What had arrived of the reply is kept: see [`Error::reply`].
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: String,
    code: Option<Cow<'static, str>>,
    body: Option<String>,
    http_status: Option<u16>,
    retry_after: Option<Duration>,
    retryable: bool,
    repeatable: bool,
    /// What came in place of an answer, to be quoted once secrets are out of it.
    quote: Option<String>,
    reply: Option<Reply>,
}

/// How much of a quote is shown, in characters.
const QUOTE: usize = 80;

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            kind,
            message: message.into(),
            code: None,
            body: None,
            http_status: None,
            retry_after: None,
            retryable: matches!(
                kind,
                ErrorKind::Network
                    | ErrorKind::Timeout
                    | ErrorKind::RateLimit
                    | ErrorKind::Server
                    | ErrorKind::Truncated
            ),
            repeatable: false,
            quote: None,
            reply: None,
        }))
    }

    pub(crate) fn misuse(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Misuse, message)
    }

    pub(crate) fn protocol(message: impl Into<String>) -> Self {
        Error::new(ErrorKind::Protocol, message)
    }

    pub(crate) fn with_code(mut self, code: impl Into<Cow<'static, str>>) -> Self {
        self.0.code = Some(code.into());
        self
    }

    /// The service's own code, where it gave one.
    pub(crate) fn with_service_code(self, code: Option<String>) -> Self {
        match code {
            Some(code) => self.with_code(code),
            None => self,
        }
    }

    pub(crate) fn with_body(mut self, body: String) -> Self {
        self.0.body = Some(body);
        self
    }

    pub(crate) fn with_http_status(mut self, status: u16) -> Self {
        self.0.http_status = Some(status);
        self
    }

    pub(crate) fn with_retry_after(mut self, wait: Option<Duration>) -> Self {
        self.0.retry_after = wait;
        self
    }

    pub(crate) fn with_retryable(mut self, retryable: bool) -> Self {
        self.0.retryable = retryable;
        self
    }

    /// Marks an error after which the request may be sent again without happening twice: nothing
    /// of it was sent, or it is harmless to repeat.
    pub(crate) fn with_repeatable(mut self) -> Self {
        self.0.repeatable = true;
        self
    }

    pub(crate) fn with_quote(mut self, quote: String) -> Self {
        self.0.quote = Some(quote);
        self
    }

    pub(crate) fn with_reply(mut self, reply: Reply) -> Self {
        self.0.reply = Some(reply);
        self
    }

    /// Puts a sentence in front: where the error came from.
    pub(crate) fn prefixed(mut self, prefix: impl fmt::Display) -> Self {
        self.0.message = format!("{prefix}{}", self.0.message);
        self
    }

    /// Adds a sentence: what to do.
    pub(crate) fn hinted(mut self, hint: &str) -> Self {
        self.0.message.push_str(hint);
        self
    }

    /// Replaces every secret in what a user may see.
    pub(crate) fn redact(&mut self, redact: impl Fn(&mut String)) {
        redact(&mut self.0.message);
        if let Some(mut quote) = self.0.quote.take() {
            redact(&mut quote);
            let quote: String = quote.chars().take(QUOTE).collect();
            self.0.message.push_str(&format!(": {quote:?}"));
        }
        if let Some(body) = &mut self.0.body {
            redact(body);
        }
        if let Some(Cow::Owned(code)) = &mut self.0.code {
            redact(code);
        }
    }

    pub(crate) fn is_repeatable(&self) -> bool {
        self.0.repeatable
    }

    /// What went wrong, to match on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The service's own code, or a stable word of this library such as `dns`, `proxy`, `empty`.
    pub fn code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// The first 4 KiB of the service's error answer.
    pub fn body(&self) -> Option<&str> {
        self.0.body.as_deref()
    }

    /// The HTTP status of the answer that was refused.
    pub fn http_status(&self) -> Option<u16> {
        self.0.http_status
    }

    /// How long the service asked to wait, at most 120 s.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Whether nothing was delivered and another try may help.
    pub fn is_retryable(&self) -> bool {
        self.0.retryable && self.0.reply.as_ref().is_none_or(|reply| reply.pieces == 0)
    }

    /// What had arrived when the chat failed; `None` where the chat had not begun.
    pub fn reply(&self) -> Option<&Reply> {
        self.0.reply.as_ref()
    }

    /// Takes what had arrived out of the error.
    pub fn into_reply(self) -> Option<Reply> {
        self.0.reply
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("message", &self.0.message)
            .field("code", &self.0.code)
            .field("http_status", &self.0.http_status)
            .finish_non_exhaustive()
    }
}

impl std::error::Error for Error {}

/// An I/O error without its number.
pub(crate) fn words(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused".into(),
        ErrorKind::ConnectionReset => "connection reset".into(),
        ErrorKind::BrokenPipe => "connection closed".into(),
        ErrorKind::TimedOut => "timed out".into(),
        ErrorKind::HostUnreachable => "host unreachable".into(),
        ErrorKind::NetworkUnreachable => "network unreachable".into(),
        _ => {
            let text = error.to_string();
            match text.split_once(" (os error ") {
                Some((words, _)) => words.to_owned(),
                None => text,
            }
        }
    }
}
