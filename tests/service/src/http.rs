//! Requests, and reading the head of one.

use serde_json::Value;

/// The most a request's head may measure, in bytes.
pub(crate) const HEAD_LIMIT: usize = 64 * 1024;

/// What a request is for, by its path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Endpoint {
    /// `/api/chatgpt/user/login`
    Login,
    /// `/api/chatgpt/chatapi/text`
    Text,
    /// `/api/chatgpt/chatapi/stream`
    Stream,
    /// `/v1/chat/completions`
    Chat,
    /// Any other path.
    Other,
}

impl Endpoint {
    /// The endpoint of a request's target, in a service whose paths are below `prefix`.
    fn of(target: &str, prefix: &str) -> Endpoint {
        let path = target.split('?').next().unwrap_or(target);
        match path.strip_prefix(prefix) {
            Some("/api/chatgpt/user/login") => Endpoint::Login,
            Some("/api/chatgpt/chatapi/text") => Endpoint::Text,
            Some("/api/chatgpt/chatapi/stream") => Endpoint::Stream,
            Some("/v1/chat/completions") => Endpoint::Chat,
            _ => Endpoint::Other,
        }
    }

    /// The name in [`Service::refusals`](crate::Service::refusals).
    pub(crate) fn name(self) -> &'static str {
        match self {
            Endpoint::Login => "login",
            Endpoint::Text => "text",
            Endpoint::Stream => "stream",
            Endpoint::Chat => "chat",
            Endpoint::Other => "other",
        }
    }
}

/// A request, fully read.
#[derive(Clone, Debug)]
pub struct Request {
    /// What it is for.
    pub endpoint: Endpoint,
    /// The connection it came on: 0 is the first that was accepted.
    pub connection: usize,
    /// `GET`, `POST`, ...
    pub method: String,
    /// Path and query, as they were sent.
    pub target: String,
    /// Names, in lower case, and values, in the order they were sent.
    pub headers: Vec<(String, String)>,
    /// The body; empty if there was none.
    pub body: Vec<u8>,
}

impl Request {
    /// The value of the first header of that name, given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers(name).next()
    }

    /// The values of all headers of that name.
    pub(crate) fn headers(&self, name: &str) -> impl Iterator<Item = &str> {
        let named = self.headers.iter().filter(move |(n, _)| n == name);
        named.map(|(_, value)| value.as_str())
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A request, its body still to be read, from a head without the empty line at its end.
    pub(crate) fn parse(head: &[u8], connection: usize, prefix: &str) -> Result<Request, String> {
        let head = std::str::from_utf8(head).map_err(|_| "the head is not UTF-8")?;
        let mut lines = head.split("\r\n");
        let request_line: Vec<&str> = lines.next().unwrap_or("").split(' ').collect();
        let [method, target, "HTTP/1.1"] = request_line[..] else {
            return Err("the request line is malformed".into());
        };
        Ok(Request {
            endpoint: Endpoint::of(target, prefix),
            connection,
            method: method.to_owned(),
            target: target.to_owned(),
            headers: lines.map(parse_header).collect::<Result<_, _>>()?,
            body: Vec::new(),
        })
    }

    /// How long the body is, by its `content-length`: the only framing a client may use.
    pub(crate) fn body_length(&self) -> Result<usize, String> {
        if self.header("transfer-encoding").is_some() {
            return Err("transfer-encoding is not for requests".into());
        }
        let mut lengths = self.headers("content-length");
        let length = lengths.next().unwrap_or("0");
        if lengths.next().is_some() {
            return Err("content-length is given twice".into());
        }
        // `parse` alone would take a sign.
        if !length.bytes().all(|b| b.is_ascii_digit()) {
            return Err("content-length is not a number".into());
        }
        length
            .parse()
            .map_err(|_| "content-length is not a number".into())
    }
}

/// The name, in lower case, and the value of a header line.
fn parse_header(line: &str) -> Result<(String, String), String> {
    let (name, value) = line.split_once(':').ok_or("a header has no colon")?;
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(format!("{name:?} is no name for a header"));
    }
    let value = value.trim_matches([' ', '\t']);
    if value.contains(|c: char| c.is_ascii_control() && c != '\t') {
        return Err(format!("{name} contains a control character"));
    }
    Ok((name.to_ascii_lowercase(), value.to_owned()))
}
