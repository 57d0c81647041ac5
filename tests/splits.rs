//! Answers in two reads, and cut for good, at every byte: status line, header, framing and body alike.
//!
//! Where the network splits an answer makes no difference. One that is cut has brought what had come
//! of it, and is not taken for whole: not before its `[DONE]` is there.

mod programs;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use gptalk::{Client, ErrorKind, Protocol, Reply};
use gptalk_service::{Builder, Endpoint, Peer, Service};
use programs::sweep_keeps;

// ---- what is sent ----

/// What a line brings once its last byte is there, whether or not its end follows.
#[derive(Clone, Copy, PartialEq)]
enum Brings {
    /// No event.
    Nothing,
    /// An event that says nothing.
    Event,
    Text(&'static str),
    /// Text, and then half a character, which waits for the next one.
    Half(&'static str),
    Thought(&'static str),
    Arguments(&'static str),
    Finish,
    Usage,
    Done,
}

use Brings::{Arguments, Done, Event, Finish, Half, Nothing, Text, Thought, Usage};

/// Lines, their ends, and what they bring.
type Lines = &'static [(&'static str, &'static str, Brings)];

const GPTALK: Lines = &[
    ("\u{feff}: hi", "\r\n", Nothing),
    (r#"data: {"content":"Grü"}"#, "\r\n\r\n", Text("Grü")),
    ("event: x", "\r", Nothing),
    (r#"data:{"content":"Grüße €"}"#, "\r", Text("ße €")),
    (r#": {"content": "no"}"#, "\n", Nothing),
    (r#"data: {"content": "Grüße € \ud83d"}"#, "\n\n", Half(" ")),
    (
        r#"data: {"content": "Grüße € \ud83d\ude00 💥"}"#,
        "\r\n",
        Text("😀 💥"),
    ),
    (r#"data: {"content":null}"#, "\r\n\r\n", Event),
    (
        r#"data: {"content": "Grüße € 😀 💥\r\n\u00fcber \"uns\""}"#,
        "\r\n",
        Text("\r\nüber \"uns\""),
    ),
    ("data: [DONE]", "\r\n\r\n", Done),
];
const GPTALK_REPLY: &str = "Grüße € 😀 💥\r\nüber \"uns\"";

const OPENAI: Lines = &[
    ("\u{feff}: PROCESSING", "\r\n\r\n", Nothing),
    (
        r#"data: {"model":"tiny","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#,
        "\r\n\r\n",
        Event,
    ),
    (
        r#"data: {"choices":[{"delta":{"reasoning_content":"Hm\u2026 ‽"}}]}"#,
        "\n\n",
        Thought("Hm… ‽"),
    ),
    (
        r#"data: {"choices":[{"delta":{"content":"Grü"}}]}"#,
        "\r\n\r\n",
        Text("Grü"),
    ),
    (r#"data:{"choices":["#, "\r\n", Nothing),
    (
        r#"data: {"delta":{"content":"ße €"}}]}"#,
        "\r\n\r\n",
        Text("ße €"),
    ),
    ("event: message", "\r", Nothing),
    (
        r#"data: {"choices":[{"delta":{"content":" \ud83d"}}]}"#,
        "\r\r",
        Half(" "),
    ),
    (
        r#"data: {"choices":[{"delta":{"content":"\ude00\r\n💥"}}]}"#,
        "\n\n",
        Text("😀\r\n💥"),
    ),
    (
        r#"data: {"choices":[{"delta":{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"weather","arguments":""}}]}}]}"#,
        "\n\n",
        Arguments(""),
    ),
    (
        r#"data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"city\": \"Zü"}}]}}]}"#,
        "\r\n\r\n",
        Arguments("{\"city\": \"Zü"),
    ),
    (": keep-alive", "\r\n\r\n", Nothing),
    (
        r#"data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"rich \u20ac\"}"}}]}}]}"#,
        "\r\n\r\n",
        Arguments("rich €\"}"),
    ),
    (
        r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#,
        "\r\n\r\n",
        Finish,
    ),
    (
        r#"data: {"choices":[],"usage":{"total_tokens":5}}"#,
        "\r\n\r\n",
        Usage,
    ),
    ("data: [DONE]", "\r\n\r\n", Done),
];
const OPENAI_REPLY: &str = "Grüße € 😀\r\n💥";

/// The login's token has expired when it comes: each chat logs in.
const LOGIN: Lines = &[(
    r#"{"code":0,"msg":"für alle \u20ac","data":{"expires_at":1,"token":"login-1"}}"#,
    "",
    Nothing,
)];
const TEXT: Lines = &[(
    r#"{"code":0,"msg":"ok","data":{"token":"s+1/ü&\u00e9"}}"#,
    "",
    Nothing,
)];

fn body_of(lines: Lines) -> String {
    lines
        .iter()
        .flat_map(|(line, end, _)| [*line, *end])
        .collect()
}

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Framing {
    Length,
    Chunks,
    Close,
}

const FRAMINGS: [Framing; 3] = [Framing::Length, Framing::Chunks, Framing::Close];

/// An answer, byte by byte.
struct Answer {
    bytes: Vec<u8>,
    /// The length of its header.
    header: usize,
    /// How many bytes of the body are in so many bytes of the answer.
    carried: Vec<usize>,
    framing: Framing,
}

impl Answer {
    fn new(body: &str, framing: Framing) -> Answer {
        let told = match framing {
            Framing::Length => format!("Content-Length: {}\r\n", body.len()),
            Framing::Chunks => "Transfer-Encoding: chunked\r\n".into(),
            Framing::Close => "Connection: close\r\n".into(),
        };
        let head = format!("HTTP/1.1 200 OK\r\nServer: x\r\n{told}X-Request-Id: r\r\n\r\n");
        let mut answer = Answer {
            bytes: Vec::new(),
            header: head.len(),
            carried: vec![0],
            framing,
        };
        answer.send(head.as_bytes(), 0);
        let (chunk, end) = match framing {
            Framing::Chunks => (100, "0\r\nX-Trailer: y\r\n\r\n"),
            _ => (usize::MAX, ""),
        };
        for part in body.as_bytes().chunks(chunk.min(body.len())) {
            if framing == Framing::Chunks {
                answer.send(format!("{:X};x=\"y\"\r\n", part.len()).as_bytes(), 0);
            }
            answer.send(part, 1);
            if framing == Framing::Chunks {
                answer.send(b"\r\n", 0);
            }
        }
        answer.send(end.as_bytes(), 0);
        answer
    }

    /// More bytes, each of which has so many of the body's.
    fn send(&mut self, bytes: &[u8], each: usize) {
        for byte in bytes {
            self.bytes.push(*byte);
            self.carried
                .push(self.carried[self.carried.len() - 1] + each);
        }
    }

    fn send_to(&self, peer: &mut Peer) {
        peer.send(&self.bytes);
        if self.framing == Framing::Close {
            peer.close();
        }
    }
}

// ---- in two reads ----

/// A service whose answers never change.
fn replayed(framing: Framing) -> Builder {
    let mut service = Service::builder();
    for (endpoint, lines) in [
        (Endpoint::Login, LOGIN),
        (Endpoint::Text, TEXT),
        (Endpoint::Stream, GPTALK),
        (Endpoint::Chat, OPENAI),
    ] {
        let answer = Answer::new(&body_of(lines), framing);
        service = service.on(endpoint, move |_, peer| answer.send_to(peer));
    }
    service
}

/// `tests/c/shim.c` sees to it that a read ends at the byte where it should, which no service can.
fn in_two_reads(protocol: &str, reply: &str) {
    thread::scope(|scope| {
        for framing in FRAMINGS {
            scope.spawn(move || {
                let service = replayed(framing).start();
                sweep_keeps("every_split", &[protocol, &service.url(), reply]);
            });
        }
    });
}

#[test]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn a_gptalk_chat_may_be_split_at_every_byte() {
    in_two_reads("gptalk", GPTALK_REPLY);
}

#[test]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn an_openai_chat_may_be_split_at_every_byte() {
    in_two_reads("openai", OPENAI_REPLY);
}

// ---- cut for good ----

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Fin,
    Rst,
}

const ENDS: [End; 2] = [End::Fin, End::Rst];

/// A service one of whose answers is cut, and a client.
struct Stage {
    _service: Service,
    client: Client,
    /// What is left of the next answers.
    next: Arc<Mutex<(Vec<u8>, Option<End>)>>,
}

/// What a chat came to.
#[derive(Debug)]
struct Outcome {
    pieces: String,
    reply: Reply,
    kind: Option<ErrorKind>,
    code: Option<String>,
}

impl Stage {
    fn new(protocol: Protocol, endpoint: Endpoint) -> Stage {
        // No other test shares its logins: a port may come back, an `app_id` does not.
        static STAGES: AtomicU32 = AtomicU32::new(1);
        let app_id = format!("splits-{}", STAGES.fetch_add(1, Ordering::Relaxed));
        let next = Arc::new(Mutex::new((Vec::new(), None)));
        let script = next.clone();
        let service = replayed(Framing::Length)
            .on(endpoint, move |_, peer| {
                let (bytes, end): (Vec<u8>, Option<End>) = script.lock().unwrap().clone();
                peer.send(bytes);
                match end {
                    Some(End::Fin) => peer.close(),
                    Some(End::Rst) => peer.reset(),
                    None => {}
                }
            })
            .start();
        let client = Client::builder().protocol(protocol).retries(0);
        let client = client.base_url(&service.url()).app_id(&app_id);
        let client = client.build().unwrap();
        Stage {
            _service: service,
            client,
            next,
        }
    }

    /// A chat that is answered so.
    fn chat(&self, bytes: &[u8], end: Option<End>) -> Outcome {
        *self.next.lock().unwrap() = (bytes.to_vec(), end);
        let mut pieces = String::new();
        let result = self.client.chat("Hi", |piece| {
            pieces.push_str(piece);
            ControlFlow::Continue(())
        });
        match result {
            Ok(reply) => Outcome {
                pieces,
                reply,
                kind: None,
                code: None,
            },
            Err(error) => Outcome {
                pieces,
                reply: error.reply().expect("what has come").clone(),
                kind: Some(error.kind()),
                code: error.code().map(str::to_owned),
            },
        }
    }
}

/// What is to come of a stream of which so many bytes have come.
struct Expected {
    text: String,
    thoughts: String,
    arguments: Option<String>,
    finish_reason: Option<&'static str>,
    usage: Option<u64>,
    has_event: bool,
    is_done: bool,
    /// A part of an event stands at the end.
    is_in_event: bool,
}

impl Expected {
    fn of(lines: Lines, bytes: usize) -> Expected {
        let mut expected = Expected {
            text: String::new(),
            thoughts: String::new(),
            arguments: None,
            finish_reason: None,
            usage: None,
            has_event: false,
            is_done: false,
            is_in_event: false,
        };
        let (mut start, mut half) = (0, false);
        for (line, end, brings) in lines {
            let whole = start + line.len();
            if bytes < whole {
                let data = line.find(['{', '[']).unwrap_or(line.len());
                expected.is_in_event = *brings != Nothing && bytes > start + data;
                break;
            }
            expected.has_event |= *brings != Nothing;
            match brings {
                Text(text) | Half(text) => {
                    expected.text += text;
                    half = matches!(brings, Half(_));
                }
                Thought(thought) => expected.thoughts += thought,
                Arguments(piece) => *expected.arguments.get_or_insert_default() += piece,
                Finish => expected.finish_reason = Some("tool_calls"),
                Usage => expected.usage = Some(5),
                Done => expected.is_done = true,
                Nothing | Event => {}
            }
            start = whole + end.len();
        }
        if half {
            expected.text.push('\u{fffd}');
        }
        expected
    }
}

/// Cuts the answer at every byte.
fn cut_everywhere(protocol: Protocol, framing: Framing, end: End) {
    let (lines, endpoint) = match protocol {
        Protocol::Openai => (OPENAI, Endpoint::Chat),
        _ => (GPTALK, Endpoint::Stream),
    };
    let stage = Stage::new(protocol, endpoint);
    let answer = Answer::new(&body_of(lines), framing);
    for at in 0..=answer.bytes.len() {
        let outcome = stage.chat(&answer.bytes[..at], Some(end));
        let expected = Expected::of(lines, answer.carried[at]);
        let kind = if at < answer.header {
            Some(ErrorKind::Network)
        } else if expected.is_done {
            None
        } else if framing != Framing::Close || end == End::Rst {
            Some(ErrorKind::Truncated)
        } else if !expected.has_event {
            // A body that ends in good order, as far as anybody can tell.
            Some(ErrorKind::Protocol)
        } else if expected.finish_reason.is_some() && !expected.is_in_event {
            None
        } else {
            Some(ErrorKind::Truncated)
        };
        let code = match kind {
            Some(ErrorKind::Network) => Some("closed"),
            Some(ErrorKind::Protocol) => Some("empty"),
            _ => None,
        };
        let shown = format!("{framing:?} {end:?} at {at}: {outcome:?}");
        assert_eq!(outcome.kind, kind, "{shown}");
        assert_eq!(outcome.code.as_deref(), code, "{shown}");
        let reply = &outcome.reply;
        assert_eq!(reply.text, expected.text, "{shown}");
        assert_eq!(outcome.pieces, expected.text, "{shown}");
        assert_eq!(reply.reasoning, expected.thoughts, "{shown}");
        assert_eq!(
            reply.finish_reason.as_deref(),
            expected.finish_reason,
            "{shown}"
        );
        assert_eq!(reply.total_tokens(), expected.usage, "{shown}");
        let calls = reply.tool_calls.iter();
        let calls: Vec<_> = calls
            .map(|call| call["function"]["arguments"].as_str())
            .collect();
        // None are those of a function that takes none.
        let arguments = expected.arguments.as_deref();
        let arguments = arguments.map(|all| if all.is_empty() { "{}" } else { all });
        let expected: Vec<_> = arguments.map(Some).into_iter().collect();
        assert_eq!(calls, expected, "{shown}");
    }
}

fn cut_stream_everywhere(protocol: Protocol) {
    thread::scope(|scope| {
        for framing in FRAMINGS {
            for end in ENDS {
                scope.spawn(move || cut_everywhere(protocol, framing, end));
            }
        }
    });
}

#[test]
fn a_gptalk_stream_may_be_cut_at_every_byte() {
    cut_stream_everywhere(Protocol::Gptalk);
}

#[test]
fn an_openai_stream_may_be_cut_at_every_byte() {
    cut_stream_everywhere(Protocol::Openai);
}

/// The answers that are wanted whole, cut at every byte.
#[test]
fn a_login_and_a_text_may_be_cut_at_every_byte() {
    thread::scope(|scope| {
        for (endpoint, lines) in [(Endpoint::Login, LOGIN), (Endpoint::Text, TEXT)] {
            for end in ENDS {
                scope.spawn(move || {
                    let stage = Stage::new(Protocol::Gptalk, endpoint);
                    for framing in FRAMINGS {
                        cut_json_everywhere(&stage, &body_of(lines), framing, end);
                    }
                });
            }
        }
    });
}

fn cut_json_everywhere(stage: &Stage, json: &str, framing: Framing, end: End) {
    let answer = Answer::new(json, framing);
    for at in 0..=answer.bytes.len() {
        let carried = answer.carried[at];
        let is_whole = carried == json.len();
        let outcome = stage.chat(&answer.bytes[..at], Some(end));
        let (kind, code) = if is_whole {
            (None, None)
        } else if at < answer.header {
            (Some(ErrorKind::Network), Some("closed"))
        } else if framing != Framing::Close || end == End::Rst {
            (Some(ErrorKind::Truncated), None)
        } else if carried == 0 {
            (Some(ErrorKind::Protocol), Some("empty"))
        } else {
            (Some(ErrorKind::Protocol), Some("json"))
        };
        let shown = format!("{framing:?} {end:?} at {at}: {outcome:?}");
        assert_eq!(outcome.kind, kind, "{shown}");
        assert_eq!(outcome.code.as_deref(), code, "{shown}");
        let text = if is_whole { GPTALK_REPLY } else { "" };
        assert_eq!(outcome.pieces, text, "{shown}");
    }
}
