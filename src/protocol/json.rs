//! JSON as services send it: byte order marks, lone surrogates, errors in every shape.

use serde_json::Value;

/// The longest error code that is one.
const MAX_CODE: usize = 256;

/// What a service says of an error, and its code: every shape that is known.
pub(super) fn service_words(json: &Value) -> (Option<String>, Option<String>) {
    let json = json.get(0).unwrap_or(json);
    let error = json.get("error").filter(|error| !error.is_null());
    let inner = error.filter(|error| error.is_object()).unwrap_or(json);
    let words = ["message", "msg", "detail"]
        .iter()
        .find_map(|name| inner.get(name).and_then(text_of))
        .or_else(|| error.and_then(text_of));
    let code = ["code", "type"]
        .iter()
        .find_map(|name| inner.get(name).and_then(text_of));
    (words, code.filter(|code| code.len() <= MAX_CODE))
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

/// Parses an event; says whether a string in it ended with a lone high surrogate.
pub(super) fn parse_event(text: &str) -> Result<(Value, bool), serde_json::Error> {
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
