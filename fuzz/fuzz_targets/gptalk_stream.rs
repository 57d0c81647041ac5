//! A reply in the GPTalk protocol, whatever the service sends: the same as a slow reading of the
//! whole stream gives, however it arrives, and whether or not each event is parsed.

#![no_main]

use gptalk::{Conversation, ErrorKind, Protocol};
use gptalk_fuzz::{How, OK, Outcome, before_the_stream, body_and_how, chat, client, hot_chat};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let (body, how) = body_and_how(data);
    let limit = if how.choice & 1 == 0 { 1 << 20 } else { 20 };
    let client = client(Protocol::Gptalk).max_reply_bytes(limit);
    let client = client.build().unwrap();
    let talk = Conversation::from("Hi");
    let chat = |answer| {
        let answers = before_the_stream().into_iter().chain([answer]);
        match how.choice & 2 {
            0 => hot_chat(&client, &talk, answers),
            _ => chat(&client, &talk, answers),
        }
    };
    let outcome = chat(how.in_parts(OK, body));
    match Slow::read(body, how, limit as usize) {
        Some(expected) => expected.is(&outcome),
        None => assert_eq!(outcome.essence(), chat(how.at_once(OK, body)).essence()),
    }
});

/// Half a character, while the event that it ends is read.
const HALF: char = '\u{10FFFE}';

/// A slow reading of a stream.
#[derive(Debug, Default)]
struct Slow {
    pieces: Vec<String>,
    text: String,
    rewritten: bool,
    /// The last content ended in half a character.
    half: bool,
    delivered: usize,
    limit: usize,
    end: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Done,
    Failed(ErrorKind),
}

impl Slow {
    /// `None` for a body that has what is used here as a mark.
    fn read(body: &[u8], how: How, limit: usize) -> Option<Slow> {
        let mut slow = Slow {
            limit,
            ..Slow::default()
        };
        let text = String::from_utf8_lossy(body);
        if text.contains(HALF) || text.to_lowercase().contains("dbff") {
            return None;
        }
        let mut begun = false;
        let mut rest = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
        loop {
            // A document without a field name, in place of a stream.
            if !begun && opens_json(rest) {
                match end_of_json(rest) {
                    Some(end) => slow.document(&rest[..end]),
                    None => slow.failed(if how.is_whole() {
                        ErrorKind::Protocol
                    } else {
                        ErrorKind::Truncated
                    }),
                }
                break;
            }
            let end = rest.iter().position(|byte| b"\r\n".contains(byte));
            let (line, next) = match end {
                Some(end) if rest[end..].starts_with(b"\r\n") => (&rest[..end], &rest[end + 2..]),
                Some(end) => (&rest[..end], &rest[end + 1..]),
                None => (rest, &rest[..0]),
            };
            begun |= slow.line(line, begun, end.is_some());
            // A line that has no end: that the connection broke is told rather than nonsense in it.
            let is_end = match (end, slow.end) {
                (Some(_), told) => told.is_some(),
                (None, Some(End::Done | End::Failed(ErrorKind::Server))) => true,
                (None, told) => told.is_some() && how.is_whole(),
            };
            if is_end {
                break;
            }
            if end.is_none() {
                slow.failed(match begun || !how.is_whole() {
                    true => ErrorKind::Truncated,
                    false => ErrorKind::Protocol,
                });
                break;
            }
            rest = next;
        }
        Some(slow)
    }

    fn failed(&mut self, kind: ErrorKind) {
        self.end = Some(End::Failed(kind));
    }

    /// Reads a line; whether it was an event.
    fn line(&mut self, line: &[u8], begun: bool, is_whole: bool) -> bool {
        let Some(data) = line.strip_prefix(b"data:") else {
            return false;
        };
        let trimmed = data.trim_ascii();
        if trimmed.is_empty() || trimmed.starts_with(b":") {
            return false;
        }
        if trimmed == b"[DONE]" {
            self.end = Some(match begun {
                true => End::Done,
                false => End::Failed(ErrorKind::Protocol),
            });
            return false;
        }
        match parse(data) {
            Some(event) => self.event(event, data),
            // Cut.
            None if !is_whole => return false,
            None => self.failed(ErrorKind::Protocol),
        }
        true
    }

    fn document(&mut self, json: &[u8]) {
        let bytes = json;
        let Some(mut json) = parse(bytes) else {
            return self.failed(ErrorKind::Protocol);
        };
        if json["data"].get("content").is_some() {
            json = json["data"].take();
        }
        self.event(json, bytes);
        if self.end.is_none() {
            self.end = Some(match self.text.is_empty() {
                true => End::Failed(ErrorKind::Protocol),
                false => End::Done,
            });
        }
    }

    fn event(&mut self, event: Value, bytes: &[u8]) {
        let Value::Object(event) = event else {
            return self.failed(ErrorKind::Protocol);
        };
        match event.get("content") {
            Some(Value::String(whole)) => {
                // Which of its strings ended in half a character is not told apart.
                let has_half = mended(bytes).contains(HALF);
                let half = has_half && whole.ends_with([HALF, '\u{FFFD}']);
                self.content(&whole.replace(HALF, "\u{FFFD}"), half);
            }
            None | Some(Value::Null) => {
                let has_error = event.get("error").is_some_and(|error| !error.is_null());
                let code = match event.get("code") {
                    None | Some(Value::Null) => String::new(),
                    Some(Value::String(code)) => code.clone(),
                    Some(other) => other.to_string(),
                };
                if has_error || !["", "0", "200"].contains(&&*code) {
                    self.failed(ErrorKind::Server);
                }
            }
            Some(_) => self.failed(ErrorKind::Protocol),
        }
    }

    fn content(&mut self, whole: &str, half: bool) {
        let whole = whole
            .strip_suffix('\u{FFFD}')
            .filter(|_| half)
            .unwrap_or(whole);
        let delta: String = whole.chars().skip(self.text.chars().count()).collect();
        if self.delivered + delta.len() > self.limit || whole.len() > self.limit {
            self.half = false;
            return self.failed(ErrorKind::Limit);
        }
        self.half = half;
        self.delivered += delta.len();
        self.rewritten |= !whole.starts_with(&self.text);
        self.text = whole.to_owned();
        if !delta.is_empty() {
            self.pieces.push(delta);
        }
    }

    #[track_caller]
    fn is(&self, outcome: &Outcome) {
        let end = match outcome.kind() {
            None => End::Done,
            Some(kind) => End::Failed(kind),
        };
        let (mut pieces, mut text) = (self.pieces.clone(), self.text.clone());
        let mut expected = self.end;
        // At the end it is a whole one, if there is room for it.
        if self.half {
            let length = self.delivered.max(text.len()) + '\u{FFFD}'.len_utf8();
            match length <= self.limit {
                true => {
                    text.push('\u{FFFD}');
                    pieces.push("\u{FFFD}".into());
                }
                false if expected == Some(End::Done) => {
                    expected = Some(End::Failed(ErrorKind::Limit));
                }
                false => {}
            }
        }
        assert_eq!(Some(end), expected);
        assert_eq!(outcome.reply.text, text);
        assert_eq!(outcome.reply.rewritten, self.rewritten);
        // With the last line, or behind it.
        assert_eq!(outcome.pieces().concat(), pieces.concat());
        let is_one = outcome.pieces().len() + 1 == pieces.len() && self.half;
        assert!(is_one || outcome.pieces() == pieces);
    }
}

/// Whether a line begins like an object, or an array of them.
fn opens_json(line: &[u8]) -> bool {
    let is_blank = |byte: &&u8| b" \t\xef\xbb\xbf".contains(byte);
    let mut bytes = line.iter().take(4096).filter(|byte| !is_blank(byte));
    match bytes.next() {
        Some(b'{') => true,
        Some(b'[') => bytes.next().is_some_and(|byte| b"{\r\n".contains(byte)),
        _ => false,
    }
}

/// Behind its last bracket.
fn end_of_json(bytes: &[u8]) -> Option<usize> {
    let (mut depth, mut in_string, mut at) = (0, false, 0);
    while at < bytes.len() {
        match (bytes[at], in_string) {
            (b'"', _) => in_string = !in_string,
            (b'\\', true) => at += 1,
            (b'{' | b'[', false) => depth += 1,
            (b'}' | b']', false) => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 && matches!(bytes[at - 1], b'}' | b']') && !in_string {
            return Some(at);
        }
    }
    None
}

fn parse(bytes: &[u8]) -> Option<Value> {
    serde_json::from_str(&mended(bytes)).ok()
}

/// JSON, whose lone surrogates are U+FFFD, but for a high one at the end of a string: [`HALF`].
fn mended(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_start_matches('\u{feff}');
    let characters: Vec<char> = text.chars().collect();
    let unit = |at: usize| {
        let digits: String = characters.get(at + 2..at + 6)?.iter().collect();
        let is_escape = characters[at] == '\\' && characters[at + 1] == 'u';
        u32::from_str_radix(&digits, 16).ok().filter(|_| is_escape)
    };
    let (mut mended, mut at) = (String::new(), 0);
    while at < characters.len() {
        let length = match (unit(at), unit(at + 6)) {
            (Some(0xD800..0xDC00), Some(0xDC00..0xE000)) => 12,
            (Some(0xD800..0xDC00), _) => {
                let ends = characters.get(at + 6) == Some(&'"');
                mended.push(if ends { HALF } else { '\u{FFFD}' });
                at += 6;
                continue;
            }
            (Some(0xDC00..0xE000), _) => {
                mended.push('\u{FFFD}');
                at += 6;
                continue;
            }
            _ if characters[at] == '\\' => 2,
            _ => 1,
        };
        let end = (at + length).min(characters.len());
        mended.extend(&characters[at..end]);
        at = end;
    }
    mended
}
