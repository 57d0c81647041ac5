//! The hot path: an event that is the one before it, but for a string.
//!
//! Nearly all of a reply's events are: the bytes around the string in them never change. Such an
//! event takes no parser.
//!
//! ```text
//! data: {"id":"7","choices":[{"index":0,"delta":{"content":" joke"}}]}
//! └────────────────────── head ──────────────────────────┘└string┘└tail┘
//! ```
//!
//! Where each event has the whole reply so far, the string begins as the one before it did. There
//! the head takes each string in, and only what is new in the next one is looked at.
//!
//! It is sound by construction. Any valid string may stand where one has stood, and makes the same
//! event with another string; and such an event, [`Dialect::string`] has found, says nothing but its
//! string, or nothing that it had not said before. Whatever differs in a byte, or is not valid, goes the long way with all that has been
//! read of it, and so does every event where somebody wants events.

use std::ops::Range;

use super::events::Dialect;
use super::json::unescape;
use crate::json::parse;
use crate::sse::{Lines, MAX_LINE};

/// What the string of an event is.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Field {
    /// Text of the reply.
    Text,
    /// Thoughts.
    Reasoning,
}

/// An event that may come again.
pub(super) struct Hot {
    /// The head of the event's line and, as far as it has come, the string.
    line: Vec<u8>,
    /// How much of that is the head.
    head: usize,
    /// From the quote behind the string to the end of the line, and the line ends that followed when
    /// it came last.
    tail: Vec<u8>,
    /// How much of that is in the line.
    line_tail: usize,
    field: Field,
    /// The string is the whole reply so far.
    is_cumulative: bool,
    place: Place,
    /// There is a backslash in the string.
    has_escapes: bool,
    /// The string without its escapes.
    text: String,
    run: Run,
    /// Where the strings of the run end.
    ends: Vec<usize>,
    /// It has come again.
    has_hit: bool,
    /// How many events in a row were learned in vain, and how many are not tried for that.
    misses: u32,
    pause: u32,
}

/// A run of events, whose strings come one after the other.
#[derive(Default)]
struct Run {
    /// Where in [`Hot::line`] the strings begin, and where they have to end.
    start: usize,
    end: usize,
    /// How many more events there may be.
    left: usize,
}

/// The bytes that a string has between its quotes, where it is as most are.
const IS_PLAIN: [bool; 256] = {
    let mut is_plain = [true; 256];
    let mut control = 0;
    while control < b' ' {
        is_plain[control as usize] = false;
        control += 1;
    }
    is_plain[b'"' as usize] = false;
    is_plain[b'\\' as usize] = false;
    is_plain
};

/// How far an event has come.
#[derive(Clone, Copy)]
enum Place {
    /// None is known.
    Unknown,
    /// Where a line begins.
    Start,
    /// So many bytes of the head have come.
    Head(usize),
    /// In the string; whether behind a backslash.
    String { escaped: bool },
    /// All of the string has come, and so many bytes of the tail.
    Tail(usize),
}

/// What a part of a stream is.
pub(super) enum Fed<'a> {
    /// All of it is the known event's, whose end has not come.
    More,
    /// With so many bytes the known event has come, with this string.
    Event(usize, Field, &'a str),
    /// So many bytes are the known event's, and what follows is not: [`Hot::spill`].
    Other(usize),
}

impl Hot {
    pub fn new() -> Hot {
        Hot {
            line: Vec::new(),
            head: 0,
            tail: Vec::new(),
            line_tail: 0,
            field: Field::Text,
            is_cumulative: false,
            place: Place::Unknown,
            has_escapes: false,
            text: String::new(),
            run: Run::default(),
            ends: Vec::new(),
            has_hit: false,
            misses: 0,
            pause: 0,
        }
    }

    /// A run of events may begin: so many at most, whose strings together have so many bytes at most.
    /// `false`: none can, for none is known as far as to its line ends, or one has come in part.
    pub fn begin_run(&mut self, longest: usize, room: usize) -> bool {
        let has_line_ends = self.tail.len() > self.line_tail;
        if !matches!(self.place, Place::Start) || !has_line_ends {
            return false;
        }
        self.line.truncate(self.head);
        self.run = Run {
            start: self.head,
            end: self.head.saturating_add(room),
            left: longest,
        };
        self.ends.clear();
        true
    }

    /// Takes the events that part begins with, in the usual case: all of the event is there, and no
    /// escape is in its string. How many bytes they are.
    pub fn take_run(&mut self, part: &[u8]) -> usize {
        let mut rest = part;
        while self.run.left > 0 {
            let Some(string) = rest.strip_prefix(&self.line[..self.head]) else {
                break;
            };
            let (mut length, mut bits) = (0, 0);
            let behind = loop {
                match string.get(length) {
                    Some(&byte) if IS_PLAIN[usize::from(byte)] => bits |= byte,
                    Some(_) => break string[length..].strip_prefix(&*self.tail),
                    None => break None,
                }
                length += 1;
            };
            let string = &string[..length];
            let Some(behind) = behind else {
                break;
            };
            let is_too_long = rest.len() - behind.len() > MAX_LINE
                || self.line.len() + length > self.run.end
                || !bits.is_ascii() && std::str::from_utf8(string).is_err();
            if is_too_long {
                break;
            }
            self.line.extend_from_slice(string);
            if self.is_cumulative {
                self.head = self.line.len();
            }
            // An empty piece is none.
            if length > 0 {
                self.ends.push(self.line.len() - self.run.start);
            }
            self.run.left -= 1;
            self.has_hit = true;
            rest = behind;
        }
        part.len() - rest.len()
    }

    /// The strings of the run, and where each ends.
    pub fn run(&mut self) -> (&str, &mut Vec<usize>) {
        let text = std::str::from_utf8(&self.line[self.run.start..]);
        (text.unwrap_or_default(), &mut self.ends)
    }

    /// What the events' string is.
    pub fn field(&self) -> Field {
        self.field
    }

    /// Looks at what goes on with the stream, where a line begins or where this was left: the event
    /// may be split anywhere, and its string have escapes.
    pub fn feed(&mut self, part: &[u8]) -> Fed<'_> {
        let mut at = 0;
        loop {
            match self.place {
                Place::Unknown => return Fed::Other(at),
                Place::Start => {
                    at += blank(part);
                    self.line.truncate(self.head);
                    self.place = Place::Head(0);
                }
                Place::Head(come) => match goes_on(&self.line[come..self.head], &part[at..]) {
                    None => return Fed::Other(at),
                    Some(n) => {
                        at += n;
                        if come + n < self.head {
                            self.place = Place::Head(come + n);
                            return Fed::More;
                        }
                        self.has_escapes = false;
                        self.place = Place::String { escaped: false };
                    }
                },
                Place::String { mut escaped } => {
                    let mut end = at;
                    let quote = loop {
                        match part.get(end) {
                            None => break false,
                            Some(..0x20) => return Fed::Other(at),
                            _ if escaped => escaped = false,
                            Some(b'"') => break true,
                            Some(b'\\') => (escaped, self.has_escapes) = (true, true),
                            Some(_) => {}
                        }
                        end += 1;
                    };
                    if self.line.len() + end - at + self.line_tail > MAX_LINE {
                        return Fed::Other(at);
                    }
                    self.line.extend_from_slice(&part[at..end]);
                    at = end;
                    if !quote {
                        self.place = Place::String { escaped };
                        return Fed::More;
                    }
                    self.place = Place::Tail(0);
                }
                Place::Tail(come) => {
                    let Some(n) = goes_on(&self.tail[come..self.line_tail], &part[at..]) else {
                        return Fed::Other(at);
                    };
                    at += n;
                    self.place = Place::Tail(come + n);
                    match part.get(at) {
                        None => return Fed::More,
                        Some(b'\n' | b'\r') if come + n == self.line_tail => {}
                        Some(_) => return Fed::Other(at),
                    }
                    let Ok(raw) = std::str::from_utf8(&self.line[self.head..]) else {
                        return Fed::Other(at);
                    };
                    if self.has_escapes && unescape(raw, &mut self.text).is_none() {
                        return Fed::Other(at);
                    }
                    let line_ends = &part[at..at + blank(&part[at..])];
                    self.tail.truncate(self.line_tail);
                    self.tail.extend_from_slice(line_ends);
                    self.place = Place::Start;
                    self.has_hit = true;
                    if self.is_cumulative {
                        self.head = self.line.len();
                    }
                    let text = if self.has_escapes { &self.text } else { raw };
                    return Fed::Event(at + line_ends.len(), self.field, text);
                }
            }
        }
    }

    /// What has come of a line goes the long way.
    pub fn spill(&mut self, lines: &mut Lines) {
        match self.place {
            Place::Unknown | Place::Start => return,
            Place::Head(come) => lines.begin_with(&[&self.line[..come]]),
            Place::String { .. } => lines.begin_with(&[&self.line]),
            Place::Tail(come) => lines.begin_with(&[&self.line, &self.tail[..come]]),
        }
        self.line.truncate(self.head);
        self.place = Place::Start;
    }

    /// Another event has come: the one that was known is not the last any more.
    pub fn forget(&mut self) {
        if !matches!(self.place, Place::Unknown) {
            self.place = Place::Unknown;
            self.misses = if self.has_hit { 0 } else { self.misses + 1 };
            self.pause = (1 << self.misses.min(10)) / 4;
        }
    }

    /// Learns the event that has come last: what stands before its data in the line, the data, and what
    /// of that is its string.
    pub fn learn(
        &mut self,
        before: &[u8],
        data: &str,
        string: (Field, &str),
        dialect: &dyn Dialect,
    ) {
        if self.pause > 0 {
            self.pause -= 1;
            return;
        }
        let (field, text) = string;
        let place = place_of(text, data).or_else(|| {
            let mut names = dialect.strings().iter();
            names.find_map(|name| {
                find_string(data, name).filter(|place| tells(data, place, dialect))
            })
        });
        let Some(place) = place else {
            return;
        };
        self.is_cumulative = dialect.is_cumulative();
        let head = if self.is_cumulative {
            place.end
        } else {
            place.start
        };
        self.line.clear();
        self.line.extend_from_slice(before);
        self.line.extend_from_slice(&data.as_bytes()[..head]);
        self.head = self.line.len();
        self.tail.clear();
        self.tail.extend_from_slice(&data.as_bytes()[place.end..]);
        self.line_tail = self.tail.len();
        self.field = field;
        self.has_hit = false;
        self.place = Place::Start;
    }
}

/// Where in a text a part of it is, if it is one: not by what it says, but by where it lies.
fn place_of(part: &str, text: &str) -> Option<Range<usize>> {
    let start = part.as_ptr().addr().checked_sub(text.as_ptr().addr())?;
    let end = start + part.len();
    (end <= text.len()).then_some(start..end)
}

/// Whether the string at this place is the one that [tells](Dialect::string) something: whether
/// another one in its place is.
fn tells(data: &str, place: &Range<usize>, dialect: &dyn Dialect) -> bool {
    let other = [&data[..place.start], "x", &data[place.end..]].concat();
    parse(&other).is_ok_and(|json| {
        let told = dialect
            .string(&json)
            .map(|(_, text)| place_of(text, &other));
        told == Some(Some(place.start..place.start + 1))
    })
}

/// How many bytes at the beginning are line ends: blank lines between two events say nothing.
fn blank(part: &[u8]) -> usize {
    let is_line_end = |byte: &&u8| matches!(byte, b'\n' | b'\r');
    part.iter().take_while(is_line_end).count()
}

/// How many bytes of `part` are the first ones of `known`; `None`: others come.
fn goes_on(known: &[u8], part: &[u8]) -> Option<usize> {
    let n = known.len().min(part.len());
    (known[..n] == part[..n]).then_some(n)
}

/// Where in a JSON text the first string stands that is a member of this name, without its quotes.
fn find_string(json: &str, name: &str) -> Option<Range<usize>> {
    let quoted = format!("\"{name}\"");
    json.match_indices(&quoted).find_map(|(at, _)| {
        let value = json[at + quoted.len()..].trim_start().strip_prefix(':')?;
        let string = value.trim_start().strip_prefix('"')?;
        let start = json.len() - string.len();
        let mut end = start;
        loop {
            end += memchr::memchr2(b'"', b'\\', json.as_bytes().get(end..)?)?;
            match json.as_bytes()[end] {
                b'"' => return Some(start..end),
                _ => end += 2,
            }
        }
    })
}
