//! JSON as services send it: byte order marks, lone surrogates, errors in every shape.

use serde_json::Value;

/// The longest error code that is one.
const MAX_CODE: usize = 256;

/// What a service says of an error.
#[derive(Default)]
pub(super) struct ServiceError {
    pub words: Option<String>,
    pub code: Option<String>,
    /// The quota is used up.
    pub is_quota: bool,
    /// It says that the request is wrong.
    pub is_request: bool,
}

/// Reads an error: every shape that is known.
pub(super) fn service_error(json: &Value) -> ServiceError {
    let json = json.get(0).unwrap_or(json);
    // Cloudflare has a list of them.
    let error = json.get("error").filter(|error| !error.is_null());
    let error = error.or_else(|| json.get("errors")?.get(0));
    let inner = error.filter(|error| error.is_object()).unwrap_or(json);
    let words = ["message", "msg", "detail"]
        .iter()
        .find_map(|name| inner.get(name).and_then(text_of))
        .or_else(|| error.and_then(text_of));
    // OpenRouter has the words of the service behind it here.
    let raw = inner.get("metadata").and_then(|data| data.get("raw"));
    let words = match (words, raw.and_then(text_of)) {
        (Some(words), Some(raw)) => Some(format!("{words}: {raw}")),
        (words, raw) => words.or(raw),
    };
    let codes: Vec<String> = ["code", "error_code", "type"]
        .iter()
        .filter_map(|name| inner.get(name).and_then(text_of))
        .filter(|code| code.len() <= MAX_CODE)
        .collect();
    ServiceError {
        words,
        is_quota: codes.iter().any(|code| code == "insufficient_quota"),
        is_request: codes.iter().any(|code| is_of_the_request(code)),
        code: codes.into_iter().next(),
    }
}

/// Whether a code says that the same request will fail again.
fn is_of_the_request(code: &str) -> bool {
    const WORDS: &[&str] = &[
        "authentication_error",
        "context_length_exceeded",
        "exceed_context_size_error",
        "invalid_api_key",
        "invalid_request_error",
        "model_not_found",
        "not_found_error",
        "permission_error",
    ];
    match code.parse() {
        Ok(status) => matches!(status, 400..=499) && !matches!(status, 408 | 409 | 429),
        Err(_) => WORDS.contains(&code),
    }
}

/// A string or a number as text; an object or an array as JSON; nothing where it is empty.
pub(super) fn text_of(value: &Value) -> Option<String> {
    let text = match value {
        Value::Null => return None,
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    (!text.is_empty()).then_some(text)
}

/// A whole answer's JSON: a byte order mark is dropped, what is not UTF-8 becomes U+FFFD.
pub(super) fn parse_json(bytes: &[u8]) -> Option<Value> {
    let text = String::from_utf8_lossy(bytes);
    let (json, _) = parse_event(text.trim_start_matches('\u{FEFF}')).ok()?;
    Some(json)
}

/// The halves of a character at the edges of the strings of an event: a lone low surrogate where
/// one begins, a lone high one where one ends. In the text each stands as U+FFFD.
#[derive(Clone, Copy, Default)]
pub(crate) struct Halves {
    pub low: Option<u16>,
    pub high: Option<u16>,
}

/// Parses an event; serde_json refuses lone surrogates (serde-rs/json#495): they are mended.
pub(crate) fn parse_event(text: &str) -> Result<(Value, Halves), serde_json::Error> {
    match serde_json::from_str(text) {
        Ok(json) => Ok((json, Halves::default())),
        Err(error) if text.contains("\\u") => {
            let (mended, halves) = mend_surrogates(text);
            serde_json::from_str(&mended)
                .map(|json| (json, halves))
                .map_err(|_| error)
        }
        Err(error) => Err(error),
    }
}

/// Finds where an object or an array ends, by its brackets, as its text arrives.
#[derive(Default)]
pub(crate) struct Brackets {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The last bracket has come.
    pub closed: bool,
}

impl Brackets {
    /// Looks at all that follows: whether the last bracket has come, and nothing was opened
    /// behind it, is [`closed`](Brackets::closed).
    pub fn feed_all(&mut self, mut bytes: &[u8]) {
        while let Some(end) = self.feed(bytes) {
            bytes = &bytes[end + 1..];
        }
    }

    /// Looks at what follows; where in it the last bracket stands, if it has come.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<usize> {
        for (at, byte) in bytes.iter().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' | b'[' => {
                    self.depth += 1;
                    self.closed = false;
                }
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        self.closed = true;
                        return Some(at);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// Whether a value says nothing: null, false, 0, an empty string, array or object, or an object of
/// such values.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.values().all(is_empty),
    }
}

/// Replaces escapes of lone surrogates by U+FFFD.
fn mend_surrogates(text: &str) -> (String, Halves) {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    let is_high = |unit: u16| (0xD800..0xDC00).contains(&unit);
    let is_low = |unit: u16| (0xDC00..0xE000).contains(&unit);
    let (mut mended, mut halves) = (String::with_capacity(text.len()), Halves::default());
    let (mut at, mut copied) = (0, 0);
    while let Some(found) = memchr::memchr(b'\\', &text.as_bytes()[at..]) {
        at += found;
        match unit(at) {
            Some(high) if is_high(high) && unit(at + 6).is_some_and(is_low) => at += 12,
            Some(lone) if is_high(lone) || is_low(lone) => {
                mended.push_str(&text[copied..at]);
                mended.push('\u{FFFD}');
                if is_low(lone) && text[..at].ends_with('"') {
                    halves.low = Some(lone);
                }
                at += 6;
                copied = at;
                if is_high(lone) && text[at..].starts_with('"') {
                    halves.high = Some(lone);
                }
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
    (mended, halves)
}
