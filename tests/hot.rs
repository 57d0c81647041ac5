//! The hot path: an event that repeats the one before it but for a string takes no parser, and tells
//! what it would tell with one.
//!
//! Where events are wanted each of them is parsed. So every stream here is two chats, one that wants
//! them and one that does not, which must not differ; and in C, where pieces of text are taken ahead
//! of the callback, as many chats as there are forms.

mod programs;
mod random;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::{fs, mem, thread};

use gptalk::{Client, Error, ErrorKind, Event, Protocol, Stream};
use gptalk_service::{Endpoint, Peer, Service};
use programs::{ROOT, wait_until};
use random::Random;
use serde_json::{Value, json};

const PROTOCOLS: [Protocol; 2] = [Protocol::Gptalk, Protocol::Openai];

// ---- how a stream arrives ----

/// How an answer is framed, and how its bytes are dealt out.
#[derive(Clone, Copy, Debug)]
struct Way {
    framing: Framing,
    /// The longest write.
    write: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Framing {
    /// Each chunk has so many bytes at most, and is a part of its own to the reader, wherever the
    /// network splits it.
    Chunks(usize),
    /// Each chunk ends where a line may.
    Lines,
    Length,
    Close,
}

use Framing::{Chunks, Close, Length, Lines};

const ALL: usize = usize::MAX;

const WAYS: [Way; 7] = [
    way(Chunks(ALL), ALL),
    way(Chunks(1), ALL),
    way(Chunks(20), 100),
    way(Chunks(300), ALL),
    way(Lines, ALL),
    way(Length, 60),
    way(Close, 500),
];

const fn way(framing: Framing, write: usize) -> Way {
    Way { framing, write }
}

/// What a service writes.
#[derive(Clone, Default)]
struct Answer {
    writes: Vec<Vec<u8>>,
    /// It closes the connection then.
    closes: bool,
}

impl Answer {
    fn send_to(&self, peer: &mut Peer) {
        for (nth, write) in self.writes.iter().enumerate() {
            if nth > 0 {
                // Most of the writes arrive in reads of their own. Nothing depends on it.
                thread::yield_now();
            }
            peer.send(write);
        }
        if self.closes {
            peer.close();
        }
    }
}

impl Random {
    fn of(seed: u64) -> Random {
        Random((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Once in so many times.
    fn rarely(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// In parts of so many bytes at most.
    fn split<'a>(&mut self, mut bytes: &'a [u8], most: usize) -> Vec<&'a [u8]> {
        let mut parts = Vec::new();
        while !bytes.is_empty() {
            let length = match most {
                ALL => bytes.len(),
                _ => 1 + self.below(most.min(bytes.len())),
            };
            let (part, rest) = bytes.split_at(length);
            parts.push(part);
            bytes = rest;
        }
        parts
    }

    /// An answer with this body, or with one that this is the beginning of.
    fn answer(&mut self, body: &[u8], way: Way, is_whole: bool) -> Answer {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
        let mut bytes = head.as_bytes().to_vec();
        match way.framing {
            Chunks(_) | Lines => {
                bytes.extend(b"transfer-encoding: chunked\r\n\r\n");
                let parts = match way.framing {
                    Chunks(most) => self.split(body, most),
                    _ => body
                        .split_inclusive(|byte| b"\r\n".contains(byte) && !self.rarely(4))
                        .collect(),
                };
                for part in parts {
                    let size = part.len();
                    let line = match self.below(12) {
                        0 => format!("{size:X}\r\n"),
                        1 => format!("{size:07x}\r\n"),
                        2 => format!("{size:015X}\r\n"),
                        3 => format!("{size:x};a=b\r\n"),
                        4 => format!("{size:X} ; x=\"y; z\"\r\n"),
                        5 => format!("{size:x}\n"),
                        _ => format!("{size:x}\r\n"),
                    };
                    bytes.extend(line.as_bytes());
                    bytes.extend(part);
                    bytes.extend(b"\r\n");
                }
                if is_whole {
                    let ends = ["0\r\n\r\n", "000;a\r\nX-Trailer: 1\r\nY: 2\r\n\r\n"];
                    bytes.extend(self.one(&ends).as_bytes());
                }
            }
            Length => {
                let length = body.len() + if is_whole { 0 } else { 7 };
                bytes.extend(format!("content-length: {length}\r\n\r\n").as_bytes());
                bytes.extend(body);
            }
            Close => {
                bytes.extend(b"connection: close\r\n\r\n");
                bytes.extend(body);
            }
        }
        let writes = self.split(&bytes, way.write).into_iter();
        Answer {
            writes: writes.map(<[u8]>::to_vec).collect(),
            closes: !is_whole || way.framing == Close,
        }
    }
}

// ---- what a chat tells ----

/// All that a chat tells, but for the time.
#[derive(Debug, PartialEq)]
struct Told {
    pieces: Vec<Piece>,
    text: String,
    reasoning: String,
    /// Whatever else the reply has.
    reply: Value,
    error: Option<Failure>,
}

#[derive(Debug, PartialEq)]
struct Failure {
    kind: ErrorKind,
    code: Option<String>,
    words: String,
    status: Option<u16>,
}

/// A piece, and what the reply was when it was handed out.
#[derive(Clone, Debug, PartialEq)]
struct Piece {
    is_text: bool,
    piece: String,
    text: String,
    pieces: u64,
}

impl Told {
    fn by(mut stream: Stream) -> Told {
        let mut pieces = Vec::new();
        while let Some(event) = stream.next_event() {
            let (is_text, piece) = match event {
                Event::Text(piece) => (true, piece.to_owned()),
                Event::Reasoning(piece) => (false, piece.to_owned()),
                _ => continue,
            };
            assert_ne!(piece, "");
            pieces.push(Piece {
                is_text,
                piece,
                text: stream.reply().text.clone(),
                pieces: stream.reply().pieces,
            });
        }
        let (reply, error) = match stream.finish() {
            Ok(reply) => (reply, None),
            Err(error) => (error.reply().expect("what has come").clone(), Some(error)),
        };
        let of = |is_text| {
            let pieces = pieces.iter().filter(move |piece| piece.is_text == is_text);
            pieces.map(|piece| &*piece.piece)
        };
        assert_eq!(reply.pieces, of(true).count() as u64);
        assert!(reply.rewritten || of(true).collect::<String>() == reply.text);
        assert_eq!(of(false).collect::<String>(), reply.reasoning);
        Told {
            pieces,
            reply: json!({
                "rewritten": reply.rewritten,
                "tool_calls": reply.tool_calls.iter().cloned().map(with_made_id).collect::<Value>(),
                "finish_reason": reply.finish_reason,
                "usage": reply.usage,
                "model": reply.model,
                "request_id": reply.request_id,
                "url": reply.url,
                "http_status": reply.http_status,
                "attempts": reply.attempts,
                "pieces": reply.pieces,
            }),
            text: reply.text,
            reasoning: reply.reasoning,
            error: error.map(|error| Failure::of(&error)),
        }
    }
}

impl Failure {
    fn of(error: &Error) -> Failure {
        assert_ne!(error.kind(), ErrorKind::Internal, "{error}");
        let mut words = error.to_string();
        // What follows a bare document is shown as far as it has come by then.
        if error.code() == Some("json") {
            words.truncate(words.find("): ").unwrap_or(words.len()));
        }
        Failure {
            kind: error.kind(),
            code: error.code().map(str::to_owned),
            words,
            status: error.http_status(),
        }
    }
}

/// An id of the library's making is another one each time.
fn with_made_id(mut call: Value) -> Value {
    let id = call["id"].as_str().unwrap_or_default();
    if id.starts_with("call_") && id.len() == 21 {
        call["id"] = json!("made");
    }
    call
}

// ---- the service ----

/// A stream, and how it arrives.
#[derive(Clone)]
struct Case {
    protocol: Protocol,
    body: Vec<u8>,
    way: Way,
    is_whole: bool,
    limit: Option<usize>,
    /// Of the splits.
    seed: u64,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (protocol, way, limit, seed) = (self.protocol, self.way, self.limit, self.seed);
        let end = if self.is_whole { "" } else { ", cut" };
        writeln!(
            f,
            "{protocol:?}, {way:?}{end}, limit {limit:?}, split by {seed}:"
        )?;
        write!(f, "{:?}", String::from_utf8_lossy(&self.body))
    }
}

/// A service and its clients, for any number of chats.
struct Stage {
    service: Service,
    clients: [Client; 2],
    app_id: String,
    next: Arc<Mutex<Answer>>,
}

impl Stage {
    fn new() -> Stage {
        // No other test shares its logins: a port may come back, an `app_id` does not.
        static STAGES: AtomicU32 = AtomicU32::new(1);
        let app_id = format!("hot-{}", STAGES.fetch_add(1, Ordering::Relaxed));
        let next: Arc<Mutex<Answer>> = Arc::default();
        let mut service = Service::builder();
        for endpoint in [Endpoint::Stream, Endpoint::Chat] {
            let next = next.clone();
            service = service.on(endpoint, move |_, peer| {
                let answer = next.lock().unwrap().clone();
                answer.send_to(peer);
            });
        }
        let service = service.start();
        let clients = PROTOCOLS.map(|protocol| {
            let client = Client::builder().protocol(protocol).retries(0);
            let client = client.base_url(&service.url()).app_id(&app_id);
            client.build().unwrap()
        });
        Stage {
            service,
            clients,
            app_id,
            next,
        }
    }

    /// What the next chats are answered.
    fn set(&self, answer: Answer) {
        *self.next.lock().unwrap() = answer;
    }

    fn stream(&self, protocol: Protocol, limit: Option<usize>) -> Stream {
        let client = &self.clients[usize::from(protocol == Protocol::Openai)];
        let Some(limit) = limit else {
            return client.stream("Hi").unwrap();
        };
        let mut client = client.clone();
        let limit = limit.to_string();
        client.set("max_reply_bytes", Some(&limit)).unwrap();
        client.stream("Hi").unwrap()
    }

    /// What the case tells with a parser and without.
    fn both(&self, case: &Case) -> [Told; 2] {
        let mut random = Random::of(case.seed);
        self.set(random.answer(&case.body, case.way, case.is_whole));
        let stream = || self.stream(case.protocol, case.limit);
        [Told::by(stream().with_events()), Told::by(stream())]
    }

    /// Both tell the same, which this is.
    #[track_caller]
    fn hold(&self, case: &Case) -> Told {
        let [slow, fast] = self.both(case);
        if slow != fast {
            let case = self.smallest(case);
            let [slow, fast] = self.both(&case);
            panic!("{case:?}\ntells {slow:#?}\nor, without a parser, {fast:#?}");
        }
        slow
    }

    /// The case without the lines that it differs without too.
    fn smallest(&self, case: &Case) -> Case {
        let mut smallest = case.clone();
        let lines = case.body.split_inclusive(|byte| b"\r\n".contains(byte));
        let mut lines: Vec<&[u8]> = lines.collect();
        let mut length = lines.len() / 2;
        while length > 0 {
            let mut at = 0;
            while at < lines.len() {
                let end = (at + length).min(lines.len());
                let smaller = Case {
                    body: [&lines[..at], &lines[end..]].concat().concat(),
                    ..case.clone()
                };
                let [slow, fast] = self.both(&smaller);
                if slow != fast {
                    lines.drain(at..end);
                    smallest = smaller;
                } else {
                    at = end;
                }
            }
            length /= 2;
        }
        smallest
    }
}

/// Deals cases out to two stages.
fn each_on_a_stage<T: Sync>(cases: &[T], hold: impl Fn(&Stage, &T) + Sync) {
    thread::scope(|scope| {
        for worker in 0..2 {
            let hold = &hold;
            scope.spawn(move || {
                let stage = Stage::new();
                let mine = cases.iter().skip(worker).step_by(2);
                mine.for_each(|case| hold(&stage, case));
            });
        }
    });
}

// ---- the corpus ----

/// The streams that the fuzzers have found; each once more with every line three times, so that
/// whatever is in it comes again.
#[test]
fn the_fuzzers_streams_tell_the_same() {
    let mut bodies = Vec::new();
    for target in ["gptalk_stream", "openai_stream", "sse", "http"] {
        let folder = format!("{ROOT}/fuzz/corpus/{target}");
        for file in fs::read_dir(folder).expect("a corpus") {
            let mut body = fs::read(file.unwrap().path()).unwrap();
            // How it arrives, and how it is cut, is said behind it.
            body.truncate(body.len().saturating_sub(3));
            // Of a whole answer, what is behind its header.
            let header = body.windows(4).position(|bytes| bytes == b"\r\n\r\n");
            if let Some(end) = header.filter(|_| target == "http") {
                body.drain(..end + 4);
            }
            let lines = body.split_inclusive(|byte| b"\r\n".contains(byte));
            let thrice: Vec<_> = lines.map(|line| line.repeat(3)).collect();
            bodies.push(thrice.concat());
            bodies.push(body);
        }
    }
    assert!(bodies.len() > 400, "{}", bodies.len());
    each_on_a_stage(&bodies, |stage, body| {
        for protocol in PROTOCOLS {
            for (nth, way) in WAYS.into_iter().enumerate() {
                stage.hold(&Case {
                    protocol,
                    body: body.clone(),
                    way,
                    is_whole: nth % 3 != 2,
                    limit: None,
                    seed: nth as u64,
                });
            }
        }
    });
}

// ---- random streams ----

const PLAIN: &[&str] = &[
    "a", " word", "Hello", ", ", "Grü", "漢字", "😀", "é", "{}", ":", "[DONE]", "data: ", "\u{7f}",
    "\u{2028}", "\u{fffd}", "\u{feff}", "\u{85}",
];
const ESCAPES: &[&str] = &[
    r"\n",
    r#"\""#,
    r"\\",
    r"\/",
    r"\b\f\r\t",
    r"\u0041",
    r"\u00E9",
    r"\u20ac",
    r"\ud83d\ude00",
    r"\uD83D\uDe00",
    r"\u0000",
    r"\\n",
    r#"\",\"content\":\"no"#,
    r"\ufffd",
];
/// Halves of characters, and what is no part of a string, or of a text.
const ODD: &[&[u8]] = &[
    br"\ud83d",
    br"\ud83d",
    br"\ude00",
    br"\ude00",
    br"\ud83d\u0041",
    br"\ud83d\ud83d",
    b"\xff",
    b"\xe6\xbc",
    b"\xed\xa0\xbd",
    b"\x01",
    b"\t",
    br"\x",
    br"\u12",
    br"\u+123",
    br"\u00e",
    b"\"",
    b"\\",
];

/// Members that say nothing, or something, or are not what they should be. N is another number at
/// each event, L another length.
const IN_DELTA: &[&str] = &[
    r#""role":"assistant""#,
    r#""role":"assistant""#,
    r#""content":"""#,
    r#""content":null"#,
    r#""content":"other""#,
    r#""content":false"#,
    r#""reasoning_content":null"#,
    r#""reasoning_content":"""#,
    r#""reasoning":"""#,
    r#""reasoning":"other""#,
    r#""refusal":null"#,
    r#""refusal":"""#,
    r#""tool_calls":[]"#,
    r#""tool_calls":null"#,
    r#""function_call":null"#,
    r#""function_call":{}"#,
    r#""function_call":{"name":"","arguments":""}"#,
    r#""function_call":{"arguments":{}}"#,
    r#""x":0"#,
    r#""y":{"content":""}"#,
    r#""error":null"#,
];
const IN_CHOICE: &[&str] = &[
    r#""index":0"#,
    r#""index":0"#,
    r#""index":1"#,
    r#""finish_reason":null"#,
    r#""finish_reason":null"#,
    r#""finish_reason":"""#,
    r#""finish_reason":"null""#,
    r#""finish_reason":"stop""#,
    r#""logprobs":null"#,
    r#""logprobs":{"content":[{"token":"x","logprob":-N}]}"#,
    r#""message":null"#,
    r#""message":{}"#,
    r#""message":{"content":"whole"}"#,
    r#""text":"""#,
    r#""text":"other""#,
    r#""usage":{}"#,
    r#""usage":{"total_tokens":N}"#,
    r#""error":{}"#,
    r#""delta":{"content":"other"}"#,
    r#""delta":null"#,
];
const IN_CHUNK: &[&str] = &[
    r#""id":"chatcmpl-7""#,
    r#""id":"chatcmpl-7""#,
    r#""id":"N""#,
    r#""object":"chat.completion.chunk""#,
    r#""object":"chat.completion.chunk""#,
    r#""object":"chat.completion""#,
    r#""created":1700000000"#,
    r#""created":N"#,
    r#""model":"tiny""#,
    r#""model":"tiny""#,
    r#""model":"m-N""#,
    r#""usage":null"#,
    r#""usage":{"total_tokens":7}"#,
    r#""usage":{"total_tokens":N}"#,
    r#""obfuscation":"L""#,
    r#""obfuscation":"L""#,
    r#""x_groq":{"id":"N"}"#,
    r#""x_groq":{"usage":{"total_tokens":N}}"#,
    r#""error":null"#,
    r#""error":{}"#,
    r#""choices":[]"#,
    r#""choices":[{"index":1,"delta":{"content":"other"}}]"#,
    r#""code":0"#,
    r#""message":"words""#,
    r#""status":500"#,
];
/// The one string of an event. T is where it is.
const SAYS: &[&str] = &[
    r#""content":"T""#,
    r#""content":"T""#,
    r#""content":"T""#,
    r#""content":"T""#,
    r#""reasoning_content":"T""#,
    r#""reasoning_content":"T""#,
    r#""reasoning":"T""#,
    r#""thinking":"T""#,
    r#""refusal":"T""#,
    r#""content":[{"type":"text","text":"T"}]"#,
    r#""reasoning":"T","content":"T""#,
    r#""cont\u0065nt":"T""#,
];
const OTHER_CHUNKS: &[&str] = &[
    r#"{"choices":[],"usage":{"total_tokens":N}}"#,
    r#"{"choices":[],"usage":{"total_tokens":N}}"#,
    r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
    r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
    r#"{"choices":[{"index":1,"delta":{"content":"two"}}]}"#,
    r#"{"choices":[{"index":0,"delta":{"content":"one"}},{"index":1,"delta":{"content":"two"}}]}"#,
    r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":"{"}}]}}]}"#,
    r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"}"}}]}}]}"#,
    r#"[{"choices":[{"delta":{"content":"in an array"}}]}]"#,
    r#"{"choices":[]}"#,
    r#"{"choices":[{"delta":{}}]}"#,
    r#"{}"#,
    r#"{"message":"the model is overloaded"}"#,
    r#"{"message":"the model is overloaded"}"#,
    r#"{"choices":[{"delta":{"content":"x"},"error":{"message":"broke"}}]}"#,
    r#"{"error":{"message":"broke","code":"N"}}"#,
    r#"{"object":"chat.completion","choices":[{"message":{"content":"whole"}}]}"#,
    r#"{"choices":[{"delta":{"content":5}}]}"#,
    r#"null"#,
    r#"nonsense"#,
];
const IN_LINE: &[&str] = &[
    r#""id":7"#,
    r#""id":N"#,
    r#""code":200"#,
    r#""code":500"#,
    r#""error":null"#,
    r#""error":"broke""#,
    r#""content":null"#,
    r#""content":"""#,
    r#""content":"other""#,
    r#""data":{"content":"no"}"#,
    r#""padding":"L""#,
    r#""x":"\ud83d""#,
];
const OTHER_LINES: &[&str] = &[
    r#"{"content":null}"#,
    r#"{"id":N}"#,
    r#"{}"#,
    r#"{"code":0,"msg":"ok"}"#,
    r#"{"content":"something else"}"#,
    r#"{"content":""}"#,
    r#"{"code":500,"msg":"broke"}"#,
    r#"{"error":"broke"}"#,
    r#"{"content":5}"#,
    r#"nonsense"#,
];
/// Lines that are no event's, most of them.
const ASIDES: &[&str] = &[
    ": ping",
    ": ping",
    "",
    "event: message",
    "event: message",
    "event: error",
    "id: 5",
    "retry: 10",
    "data:",
    "data: ",
    "data: : ping",
    "words",
    "{",
    "error: broke",
    "data: [DONE]",
];
/// What stands behind an event in its line.
const BEHIND: &[&str] = &[" ", "  \t", "x", ",", "}", "\"", "{}", "data: [DONE]", "\0"];

impl Random {
    /// What may stand between the quotes of a string, and what may not.
    fn string(&mut self, is_odd: bool) -> Vec<u8> {
        let mut string = Vec::new();
        for _ in 0..self.one(&[0, 1, 1, 1, 2, 3]) {
            match self.below(12) {
                0..8 => string.extend(self.one(PLAIN).as_bytes()),
                8..11 => string.extend(self.one(ESCAPES).as_bytes()),
                _ if is_odd && self.rarely(2) => string.extend(self.one(ODD)),
                _ => string.extend("long ".repeat(self.below(300)).as_bytes()),
            }
        }
        string
    }

    /// An object with this member, and others among which it stands.
    fn object(&mut self, member: &str, others: &[&str]) -> String {
        let mut members = vec![member.to_owned()];
        for _ in 0..self.one(&[0, 0, 1, 1, 2]) {
            let at = self.below(members.len() + 1);
            members.insert(at, self.one(others).to_owned());
        }
        let gap = self.one(&["", "", "", " ", "\t "]);
        format!("{{{gap}{}{gap}}}", members.join(&format!(",{gap}")))
    }

    fn chunk(&mut self) -> String {
        let says = self.one(SAYS);
        let delta = self.object(says, IN_DELTA);
        let choice = self.object(&format!("\"delta\":{delta}"), IN_CHOICE);
        self.object(&format!("\"choices\":[{choice}]"), IN_CHUNK)
    }

    /// An event of this shape.
    fn event(&mut self, shape: &str, string: &[u8]) -> Vec<u8> {
        let mut event = Vec::new();
        for byte in shape.bytes() {
            match byte {
                b'T' => event.extend(string),
                b'N' => event.extend(self.below(1000).to_string().as_bytes()),
                b'L' => event.resize(event.len() + self.below(9), b'#'),
                _ => event.push(byte),
            }
        }
        event
    }

    /// The next version of a cumulative reply, which is in the pieces that it came in.
    fn grow(&mut self, whole: &mut Vec<Vec<u8>>, string: Vec<u8>, is_odd: bool) -> Vec<u8> {
        match self.below(if is_odd { 12 } else { 40 }) {
            0 => {}
            1 => whole.truncate(self.below(whole.len() + 1)),
            2 if !whole.is_empty() => {
                let at = self.below(whole.len());
                whole[at] = string;
            }
            // The half of a character that is made whole.
            3..6 if whole.last().is_some_and(|last| last.ends_with(br"\ud83d")) => {
                whole.push(br"\ude00".to_vec());
            }
            _ => whole.push(string),
        }
        whole.concat()
    }

    /// A stream of events that repeat each other, and of what stands between them; half of the
    /// streams have what services had better not send.
    fn body(&mut self, protocol: Protocol) -> Vec<u8> {
        let (is_openai, is_odd) = (protocol == Protocol::Openai, self.rarely(2));
        let shape = |random: &mut Random| match is_openai {
            true => random.chunk(),
            false => random.object(r#""content":"T""#, IN_LINE),
        };
        let (mut now, mut before) = (shape(self), shape(self));
        let line_end = self.one(&["\n", "\n", "\r\n", "\r"]);
        let line_ends = self.one(&[1, 2, 2, 2, 3]);
        let name = self.one(&["data: ", "data: ", "data:", "data:  "]);
        let first = self.one(&["", "", "\u{feff}", "\n", ": hello\n\n"]);
        let mut body = first.as_bytes().to_vec();
        let mut whole = Vec::new();
        for _ in 0..self.one(&[3, 10, 10, 30]) {
            match self.below(16) {
                0 => body.extend([self.one(ASIDES), line_end].concat().bytes()),
                1 if is_odd => {
                    let other = self.one(if is_openai { OTHER_CHUNKS } else { OTHER_LINES });
                    body.extend(name.bytes());
                    body.extend(self.event(other, b""));
                    body.extend(line_end.repeat(line_ends).bytes());
                }
                2 => mem::swap(&mut now, &mut before),
                3 if is_odd => now = shape(self),
                _ => {}
            }
            let mut string = self.string(is_odd);
            if !is_openai {
                string = self.grow(&mut whole, string, is_odd);
            }
            let mut event = self.event(&now, &string);
            if is_odd && self.rarely(30) {
                // In two lines.
                let at = event.iter().position(|byte| *byte == b',').unwrap_or(0) + 1;
                event.splice(at..at, [line_end, name].concat().bytes());
            }
            if is_odd && self.rarely(30) {
                event.extend(self.one(BEHIND).bytes());
            }
            body.extend(if self.rarely(20) { "data:" } else { name }.bytes());
            body.extend(event);
            body.extend(
                match self.below(if is_odd { 20 } else { 40 }) {
                    0 => self.one(&["\r", "\n\r", "\r\r", "\n\n\n"]).to_owned(),
                    1 => line_end.to_owned(),
                    _ => line_end.repeat(line_ends),
                }
                .bytes(),
            );
        }
        match self.below(4) {
            0 => body.extend(br#"data: {"choices":[{"delta":{},"finish_reason":"stop"}]}"#),
            1 => body.truncate(self.below(body.len() + 1)),
            _ => body.extend(b"data: [DONE]\n\n"),
        }
        body
    }

    fn case(&mut self, protocol: Protocol) -> Case {
        let mut body = self.body(protocol);
        if self.rarely(8) {
            for _ in 0..=self.below(3) {
                let at = self.below(body.len() + 1);
                let end = (at + self.below(20)).min(body.len());
                let mess = self.one(&["", "\n", "\n\n", "\r", "{", "}", "\"", "[", "data:", "\\"]);
                body.splice(at..end, mess.bytes());
            }
        }
        Case {
            protocol,
            body,
            way: self.one(&WAYS),
            is_whole: !self.rarely(4),
            limit: self.rarely(4).then(|| self.below(200)),
            seed: self.0,
        }
    }
}

fn random_streams(protocol: Protocol) {
    let seeds: Vec<u64> = (0..2500).collect();
    each_on_a_stage(&seeds, |stage, seed| {
        let case = Random::of(*seed).case(protocol);
        let held = catch_unwind(AssertUnwindSafe(|| stage.hold(&case)));
        assert!(held.is_ok(), "seed {seed}");
    });
}

#[test]
fn random_gptalk_streams_tell_the_same() {
    random_streams(Protocol::Gptalk);
}

#[test]
fn random_openai_streams_tell_the_same() {
    random_streams(Protocol::Openai);
}

// ---- what the bytes around a string do not tell ----

/// Events that begin like one that came before, or are the same around a string, and are not the
/// same. `T` is another text at each event.
const ALIKE: &[(Protocol, &str, &[&str])] = &[
    // What follows the string goes on.
    (Protocol::Gptalk, "\n", &[LINE, r#"{"content":"T"}x"#]),
    (Protocol::Gptalk, "\r", &[LINE, r#"{"content":"T"} "#]),
    (
        Protocol::Gptalk,
        "\n",
        &[LINE, r#"{"content":"T"}data: [DONE]"#],
    ),
    (Protocol::Openai, "\n", &[TEXT, TEXT_AND_MORE]),
    (Protocol::Openai, "\n\n", &[TEXT, TEXT, TEXT_AND_MORE]),
    // Of members of the same name the last counts.
    (
        Protocol::Openai,
        "\n",
        &[r#"{"choices":[{"delta":{"content":"T","content":""}}]}"#; 4],
    ),
    (
        Protocol::Openai,
        "\n",
        &[r#"{"choices":[{"delta":{"content":"T","content":null}}]}"#; 4],
    ),
    (
        Protocol::Openai,
        "\n",
        &[r#"{"choices":[{"delta":{"reasoning":"T","reasoning":""}}]}"#; 4],
    ),
    (
        Protocol::Openai,
        "\n",
        &[r#"{"choices":[{"delta":{"content":"T"}}],"choices":[{"delta":{"content":"no"}}]}"#; 4],
    ),
    (
        Protocol::Gptalk,
        "\n",
        &[r#"{"content":"T","content":null}"#; 4],
    ),
    (
        Protocol::Gptalk,
        "\n",
        &[r#"{"content":null,"content":"T"}"#; 4],
    ),
    (
        Protocol::Gptalk,
        "\n",
        &[r#"{"data":{"content":"T"},"content":"x"}"#; 4],
    ),
    // What is as good as nothing adds to the reply, each time.
    (
        Protocol::Openai,
        "\n",
        &[r#"{"choices":[{"delta":{"content":"T","function_call":{"arguments":{}}}}]}"#; 4],
    ),
    // The line before says what it is.
    (Protocol::Openai, "\n\nevent: error\n", &[TEXT; 4]),
    (Protocol::Openai, "\n\nevent: error\n\n", &[TEXT; 4]),
    (Protocol::Openai, "\ndata: {\n", &[TEXT; 4]),
    (Protocol::Openai, "\n\n{}\n\n", &[TEXT; 4]),
    (Protocol::Openai, "\n\n\u{feff}", &[TEXT; 4]),
    (Protocol::Gptalk, "\n\u{feff}", &[LINE; 4]),
    // A half of a character waits.
    (
        Protocol::Openai,
        "\n",
        &[TEXT, TEXT, TEXT_AND_HALF, TEXT, TEXT],
    ),
    (
        Protocol::Openai,
        "\n",
        &[
            r#"{"choices":[{"delta":{"reasoning":"\ud83d"}}]}"#,
            TEXT,
            TEXT,
            TEXT,
            r#"{"choices":[{"delta":{"reasoning":"\ude00"}}]}"#,
        ],
    ),
    (
        Protocol::Gptalk,
        "\n",
        &[
            r#"{"content":"a\ud83d"}"#,
            r#"{"content":"a\ud83d b"}"#,
            r#"{"content":"a\ud83d b c"}"#,
        ],
    ),
    // Of two choices the first counts.
    (
        Protocol::Openai,
        "\n",
        &[
            TEXT,
            TEXT,
            OTHER_CHOICE,
            OTHER_CHOICE,
            OTHER_CHOICE,
            TEXT,
            TEXT,
        ],
    ),
    // Words are the error, unless a reply follows them.
    (
        Protocol::Openai,
        "\n",
        &[TEXT, TEXT, r#"{"message":"T"}"#, r#"{"message":"T"}"#],
    ),
    (
        Protocol::Openai,
        "\n",
        &[TEXT, TEXT, r#"{"message":"T"}"#, TEXT, TEXT],
    ),
];
const LINE: &str = r#"{"content":"T"}"#;
const TEXT: &str = r#"{"choices":[{"index":0,"delta":{"content":"T"}}]}"#;
const TEXT_AND_MORE: &str = r#"{"choices":[{"index":0,"delta":{"content":"T"}}]}}"#;
const TEXT_AND_HALF: &str = r#"{"choices":[{"index":0,"delta":{"content":"T\ud83d"}}]}"#;
const OTHER_CHOICE: &str = r#"{"choices":[{"index":1,"delta":{"content":"T"}}]}"#;

#[test]
fn events_that_only_look_alike_tell_the_same() {
    each_on_a_stage(ALIKE, |stage, (protocol, between, events)| {
        let mut body = String::new();
        let mut text = String::new();
        for (nth, event) in events.iter().enumerate() {
            text = match protocol {
                Protocol::Openai => format!(" word{nth}"),
                _ => format!("{text} word{nth}"),
            };
            body += &format!("data: {}{between}", event.replace('T', &text));
        }
        for end in ["", "data: [DONE]\n\n"] {
            for way in WAYS {
                stage.hold(&Case {
                    protocol: *protocol,
                    body: format!("{body}{end}").into_bytes(),
                    way,
                    is_whole: true,
                    limit: None,
                    seed: 1,
                });
            }
        }
    });
}

/// An event that is known is not learned for ever, where others come between.
#[test]
fn events_of_two_kinds_in_turns_tell_the_same() {
    let stage = Stage::new();
    let thought = TEXT.replace("content", "reasoning");
    let mut body = String::new();
    for nth in 0..3000 {
        let event = if nth % 2 == 0 || nth > 2000 {
            TEXT
        } else {
            &thought
        };
        body += &format!("data: {}\n\n", event.replace('T', &nth.to_string()));
    }
    stage.hold(&Case {
        protocol: Protocol::Openai,
        body: body.into_bytes(),
        way: WAYS[3],
        is_whole: false,
        limit: None,
        seed: 1,
    });
}

#[test]
fn a_line_is_too_long_at_the_same_byte() {
    const MAX_LINE: usize = 16 << 20;
    let stage = Stage::new();
    for protocol in PROTOCOLS {
        let before = long_body(protocol, 3, |_| "a".into());
        let before = before.strip_suffix(b"data: [DONE]\n\n").unwrap();
        let mut line = long_body(protocol, 1, |_| "aaaaL".into());
        line.truncate(line.iter().position(|byte| *byte == b'\n').unwrap());
        let at = line.iter().position(|byte| *byte == b'L').unwrap();
        for over in [0, 1] {
            let long = "x".repeat(MAX_LINE + over - (line.len() - 1));
            let long = [&line[..at], long.as_bytes(), &line[at + 1..]].concat();
            assert_eq!(long.len(), MAX_LINE + over);
            let case = Case {
                protocol,
                body: [before, &*long, b"\n\ndata: [DONE]\n\n"].concat(),
                way: way(Chunks(1 << 20), ALL),
                is_whole: true,
                limit: None,
                seed: 1,
            };
            // Nobody wants to read it.
            let [slow, fast] = stage.both(&case);
            assert!(slow == fast, "{protocol:?}, {over} byte over");
            let kind = slow.error.map(|error| error.kind);
            assert_eq!(kind, (over > 0).then_some(ErrorKind::Limit));
        }
    }
}

/// Whoever comes to want events in the middle of one loses nothing of it.
#[test]
fn events_may_be_wanted_in_the_middle_of_one() {
    thread::scope(|scope| {
        for protocol in PROTOCOLS {
            // In the head, in the string, and behind it.
            for cut in [1, 2, 3, 10, 22, 30, 40, 60, 63, 70] {
                scope.spawn(move || want_events_late(protocol, cut));
            }
        }
    });
}

/// So many bytes of an event have come that needs no parser.
fn want_events_late(protocol: Protocol, cut: usize) {
    let body = long_body(protocol, 6, |nth| format!(" word{nth}"));
    let mut ends = (0..body.len()).filter(|at| body[*at..].starts_with(b"\n\n"));
    let (begun, rest) = body.split_at(ends.nth(2).unwrap() + 2 + cut);
    let (begun, rest) = (begun.to_vec(), rest.to_vec());
    let is_wanted = Arc::new(AtomicBool::new(false));
    let gate = is_wanted.clone();
    let endpoint = match protocol {
        Protocol::Openai => Endpoint::Chat,
        _ => Endpoint::Stream,
    };
    let service = Service::builder().on(endpoint, move |_, peer| {
        peer.sse_head();
        peer.chunk(&begun);
        wait_until(|| gate.load(Ordering::SeqCst));
        peer.chunk(&rest);
        peer.last_chunk();
    });
    let service = service.start();
    let client = Client::builder()
        .protocol(protocol)
        .base_url(&service.url());
    let mut stream = client.build().unwrap().stream("Hi").unwrap();
    let mut text = String::new();
    loop {
        match stream.next_event().expect("a chat that runs") {
            Event::Text(piece) => text += piece,
            // It has read what there is.
            Event::Tick if text.contains("word2") => break,
            _ => {}
        }
    }
    let mut stream = stream.with_events();
    is_wanted.store(true, Ordering::SeqCst);
    while let Some(event) = stream.next_event() {
        if let Event::Text(piece) = event {
            text += piece;
        }
    }
    let said: String = (0..6).map(|nth| format!(" word{nth}")).collect();
    assert_eq!(text, said, "{protocol:?}, cut at {cut}");
    assert!(stream.error().is_none(), "{:?}", stream.error());
}

/// A stream of so many events, all of which but the first need no parser.
fn long_body(protocol: Protocol, events: usize, string: impl Fn(usize) -> String) -> Vec<u8> {
    let mut body = String::new();
    let mut whole = String::new();
    for nth in 0..events {
        let string = string(nth);
        whole += &string;
        let (shape, string) = match protocol {
            Protocol::Openai => (TEXT, &string),
            _ => (LINE, &whole),
        };
        body += &format!("data: {}\n\n", shape.replace('T', string));
    }
    (body + "data: [DONE]\n\n").into_bytes()
}

// ---- in C ----

#[cfg(target_os = "linux")]
mod in_c {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::path::PathBuf;
    use std::process::{Child, ChildStdout, Stdio};
    use std::sync::OnceLock;

    use super::*;
    use crate::programs::{command, compile_shared, compiler, has_cpp, left_out};

    /// `tests/c/hot.c`, which chats as it is told.
    struct Player {
        child: Child,
        stdout: BufReader<ChildStdout>,
    }

    /// A chat in C: its pieces, the name of its status, and the reply's text and pieces at its end.
    #[derive(Debug, PartialEq)]
    struct Played {
        pieces: Vec<Piece>,
        status: String,
        /// Where the client is still there.
        outcome: Option<(String, u64)>,
    }

    impl Player {
        /// As C++, where there is a compiler for it: exceptions are thrown then.
        fn start(stage: &Stage) -> Player {
            static BUILT: OnceLock<PathBuf> = OnceLock::new();
            let path = BUILT.get_or_init(|| match has_cpp() {
                true => {
                    let source = ["-std=c++17", "-x", "c++", "tests/c/hot.c", "-x", "none"];
                    compile_shared("hot", compiler("c++", &source))
                }
                false => {
                    left_out("exceptions: there is no c++");
                    compile_shared("hot", compiler("cc", &["-std=c99", "tests/c/hot.c"]))
                }
            });
            let mut command = command(path);
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().expect("a child");
            let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
            let mut player = Player { child, stdout };
            player.set("base_url", &stage.service.url());
            player.set("app_id", &stage.app_id);
            player.set("retries", "0");
            player
        }

        fn say(&mut self, words: impl fmt::Display) {
            let stdin = self.child.stdin.as_mut().expect("a pipe");
            writeln!(stdin, "{words}").expect("a program that runs");
        }

        fn set(&mut self, key: &str, value: &str) {
            self.say(format_args!("set {key} {value}"));
        }

        fn play(&mut self, words: impl fmt::Display) -> Played {
            self.say(words);
            let mut pieces = Vec::new();
            loop {
                let mut line = String::new();
                self.stdout.read_line(&mut line).expect("a line");
                let words: Vec<&str> = line.split_whitespace().collect();
                let [kind, length, text, count] = words[..] else {
                    panic!("tests/c/hot.c: {line}");
                };
                let piece = self.text(length.parse().expect("a length"));
                let is_freed = text == "-1";
                let text = self.text(text.parse().unwrap_or(0));
                let count = count.parse().unwrap_or(0);
                if !matches!(kind, "t" | "r") {
                    return Played {
                        pieces,
                        status: kind.to_owned(),
                        outcome: (!is_freed).then_some((text, count)),
                    };
                }
                pieces.push(Piece {
                    is_text: kind == "t",
                    piece,
                    text,
                    pieces: count,
                });
            }
        }

        fn text(&mut self, length: usize) -> String {
            let mut bytes = vec![0; length];
            self.stdout.read_exact(&mut bytes).expect("a text");
            String::from_utf8(bytes).expect("valid UTF-8")
        }
    }

    impl Drop for Player {
        fn drop(&mut self) {
            drop(self.child.stdin.take());
            let is_over = wait_until(|| self.child.try_wait().expect("a child").is_some());
            if !is_over {
                let _ = self.child.kill();
            }
            let status = self.child.wait().expect("a child");
            if !thread::panicking() {
                assert!(status.success(), "tests/c/hot.c: {status}");
            }
        }
    }

    const FORMS: [&str; 4] = ["calls", "events", "pulls", "line"];

    /// How a chat is left at a piece of text, in which forms, and its status then.
    const LEAVES: [(&str, &[&str], &str); 8] = [
        ("return", &FORMS, "cancelled"),
        ("cancel", &FORMS, "cancelled"),
        ("thread", &FORMS, "cancelled"),
        ("finish", &["pulls"], "cancelled"),
        ("throw", &["calls", "events", "line"], "thrown"),
        // Which does not end it.
        ("free", &["calls", "events"], ""),
        ("free_return", &["calls", "events"], "cancelled"),
        ("free_throw", &["calls", "events"], "thrown"),
    ];

    impl Stage {
        /// Each form of C tells what Rust tells with a parser, whole and left at these pieces.
        fn hold_in_c(&self, player: &mut Player, case: &Case, at: &[usize]) {
            let told = self.hold(case);
            let status = told.error.as_ref().map_or("ok", |error| error.kind.name());
            player.set("protocol", &format!("{:?}", case.protocol).to_lowercase());
            let limit = case.limit.map(|limit| limit.to_string());
            player.set("max_reply_bytes", &limit.unwrap_or_default());
            // The one-liner has no further channels.
            let of_form = |form: &str| -> Vec<Piece> {
                let is_told = |piece: &&Piece| piece.is_text || form != "line";
                told.pieces.iter().filter(is_told).cloned().collect()
            };
            for form in FORMS {
                let played = player.play(format_args!("{form} - 0"));
                let expected = Played {
                    pieces: of_form(form),
                    status: status.to_owned(),
                    outcome: Some((told.text.clone(), told.pieces())),
                };
                assert_eq!(played, expected, "{form}: {case:?}");
            }
            for (leave, forms, status_then) in LEAVES {
                if leave.contains("throw") && !has_cpp() {
                    continue;
                }
                for (form, at) in forms
                    .iter()
                    .flat_map(|form| at.iter().map(move |at| (form, at)))
                {
                    let mut pieces = of_form(form);
                    let texts = pieces.iter().enumerate().filter(|(_, piece)| piece.is_text);
                    let Some((last, _)) = texts.clone().nth(at - 1) else {
                        continue;
                    };
                    let mut expected = Played {
                        status: status_then.to_owned(),
                        outcome: Some((pieces[last].text.clone(), *at as u64)),
                        pieces: Vec::new(),
                    };
                    if leave == "free" {
                        expected.status = status.to_owned();
                    } else {
                        pieces.truncate(last + 1);
                    }
                    if leave.starts_with("free") {
                        expected.outcome = None;
                        for piece in &mut pieces[last + 1..] {
                            (piece.text, piece.pieces) = (String::new(), 0);
                        }
                    }
                    expected.pieces = pieces;
                    let played = player.play(format_args!("{form} {leave} {at}"));
                    assert_eq!(played, expected, "{form}, {leave} at {at}: {case:?}");
                }
            }
        }
    }

    impl Told {
        fn pieces(&self) -> u64 {
            self.pieces.iter().filter(|piece| piece.is_text).count() as u64
        }
    }

    #[test]
    fn each_form_of_c_tells_the_same_and_may_be_left_at_any_piece() {
        let stage = Stage::new();
        let mut player = Player::start(&stage);
        for protocol in PROTOCOLS {
            let plain = long_body(protocol, 200, |nth| format!(" word{nth}"));
            let mixed = long_body(protocol, 200, |nth| match nth % 7 {
                0 => String::new(),
                1 => "\\n".into(),
                2 => "\\u0000".into(),
                3 => "Grüße 😀".into(),
                _ => "a".into(),
            });
            let case = |body: &[u8], way: Way, limit: Option<usize>| Case {
                protocol,
                body: body.to_vec(),
                way,
                is_whole: true,
                limit,
                seed: 7,
            };
            stage.hold_in_c(
                &mut player,
                &case(&plain, WAYS[0], None),
                &[1, 2, 3, 64, 65, 66, 130, 199, 200],
            );
            stage.hold_in_c(&mut player, &case(&mixed, WAYS[3], None), &[1, 40, 150]);
            stage.hold_in_c(
                &mut player,
                &case(&mixed, WAYS[0], Some(300)),
                &[1, 2, 3, 40, 41],
            );
            // Wherever in a run the limit is.
            for limit in 480..490 {
                stage.hold_in_c(&mut player, &case(&plain, WAYS[0], Some(limit)), &[]);
            }
            let thoughts = String::from_utf8(plain).unwrap();
            let thoughts = thoughts.replace("content", "reasoning_content");
            stage.hold_in_c(&mut player, &case(thoughts.as_bytes(), WAYS[0], None), &[]);
        }
    }

    /// What counts is what has been handed out, and how long the reply is.
    #[test]
    fn a_reply_that_was_rewritten_meets_its_limit_at_the_same_piece() {
        let stage = Stage::new();
        let mut player = Player::start(&stage);
        // Longer than it became, and shorter in characters than in bytes.
        for (first, then) in [
            ("long ".repeat(20), "L".into()),
            ("a".repeat(20), "é".repeat(20)),
        ] {
            let mut body = format!("data: {}\n\n", LINE.replace('T', &first)).into_bytes();
            body.extend(long_body(Protocol::Gptalk, 60, |nth| match nth {
                0 => then.clone(),
                _ => "ab".into(),
            }));
            for limit in (100..220).step_by(3).chain(40..60) {
                let case = Case {
                    protocol: Protocol::Gptalk,
                    body: body.clone(),
                    way: WAYS[0],
                    is_whole: true,
                    limit: Some(limit),
                    seed: 1,
                };
                stage.hold_in_c(&mut player, &case, &[]);
            }
        }
    }

    #[test]
    fn random_streams_tell_the_same_in_c() {
        let stage = Stage::new();
        let mut player = Player::start(&stage);
        for seed in 0..40 {
            let mut random = Random::of(1000 + seed);
            let case = random.case(PROTOCOLS[seed as usize % 2]);
            let at = [1, 1 + random.below(5), 1 + random.below(30)];
            let held = catch_unwind(AssertUnwindSafe(|| {
                stage.hold_in_c(&mut player, &case, &at)
            }));
            assert!(held.is_ok(), "seed {seed}");
        }
    }

    /// What another thread is told of the reply only grows.
    #[test]
    fn another_thread_is_told_no_more_than_was_handed_out() {
        let stage = Stage::new();
        let mut player = Player::start(&stage);
        for protocol in PROTOCOLS {
            player.set("protocol", &format!("{protocol:?}").to_lowercase());
            let body = long_body(protocol, 2000, |_| "word ".into());
            let answer = Random::of(0).answer(&body, WAYS[3], true);
            stage.set(answer);
            for _ in 0..5 {
                let played = player.play("read");
                assert_eq!(played.status, "ok");
                assert_eq!(played.outcome, Some(("word ".repeat(2000), 2000)));
            }
        }
    }
}
