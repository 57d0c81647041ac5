//! JSON as services send it: byte order marks, lone surrogates, escapes.

use crate::json::{Json, parse};

/// A string or a number as text; an object or an array as JSON; nothing where it is empty.
pub(super) fn text_of(value: &Json<'_>) -> Option<String> {
    let text = match value {
        Json::Null => return None,
        Json::String(text) => text.to_string(),
        other => other.to_string(),
    };
    (!text.is_empty()).then_some(text)
}

/// A whole answer's JSON: a byte order mark is dropped.
pub(super) fn parse_json(text: &str) -> Option<Json<'_>> {
    let (json, _) = parse_event(text.trim_start_matches('\u{FEFF}')).ok()?;
    Some(json)
}

/// The halves of a character at the edges of the strings of an event: a lone low surrogate where
/// one begins, a lone high one where one ends. In the text each stands as U+FFFD.
#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) struct Halves {
    pub low: Option<u16>,
    pub high: Option<u16>,
}

/// Parses an event; serde_json refuses lone surrogates (serde-rs/json#495): they are mended.
pub(crate) fn parse_event(text: &str) -> Result<(Json<'_>, Halves), serde_json::Error> {
    match parse(text) {
        Ok(json) => Ok((json, Halves::default())),
        Err(error) if text.contains("\\u") => {
            let (mended, halves) = mend_surrogates(text);
            parse(&mended)
                .map(|json| (json.into_owned(), halves))
                .map_err(|_| error)
        }
        Err(error) => Err(error),
    }
}

/// Reads what stands between a string's quotes; `None` where it is not valid.
pub(super) fn unescape(raw: &str, text: &mut String) -> Option<()> {
    text.clear();
    let mut rest = raw;
    while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
        text.push_str(&rest[..at]);
        let (character, length) = match rest.as_bytes().get(at + 1)? {
            b'n' => ('\n', 2),
            b'"' => ('"', 2),
            b'\\' => ('\\', 2),
            b'/' => ('/', 2),
            b't' => ('\t', 2),
            b'r' => ('\r', 2),
            b'b' => ('\u{8}', 2),
            b'f' => ('\u{c}', 2),
            b'u' => {
                let first = utf16_unit(rest, at)?;
                let second = utf16_unit(rest, at + 6).unwrap_or_default();
                let mut characters = char::decode_utf16([first, second]);
                let character = characters.next()?.ok()?;
                (character, 6 * character.len_utf16())
            }
            _ => return None,
        };
        text.push(character);
        rest = &rest[at + length..];
    }
    text.push_str(rest);
    Some(())
}

/// The UTF-16 code unit whose escape stands there.
fn utf16_unit(text: &str, at: usize) -> Option<u16> {
    let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
    let is_number = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u16::from_str_radix(digits, 16).ok().filter(|_| is_number)
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
pub(super) fn is_empty(value: &Json<'_>) -> bool {
    match value {
        Json::Null | Json::Bool(false) => true,
        Json::Bool(true) => false,
        Json::Number(number) => number.as_f64() == Some(0.0),
        Json::String(text) => text.is_empty(),
        Json::Array(items) => items.is_empty(),
        Json::Object(members) => members.iter().all(|(_, value)| is_empty(value)),
    }
}

/// Replaces escapes of lone surrogates by U+FFFD.
fn mend_surrogates(text: &str) -> (String, Halves) {
    let unit = |at| utf16_unit(text, at);
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
