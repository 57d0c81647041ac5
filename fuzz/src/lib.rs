//! What the fuzz targets have in common: chats over a network in memory, whose answers arrive in
//! any parts.
//!
//! An input is a body, as it would be on the wire, and behind it a few bytes that say how it
//! arrives ([`How`]). So a corpus can be read, and written by hand.

use std::fmt::Debug;

use gptalk::fuzzing::{Answer, answer};
use gptalk::{Client, Conversation, Error, ErrorKind, Event, Protocol, Reply, Stream};
use serde_json::{Value, json};

/// How the bytes of an answer arrive.
#[derive(Clone, Copy)]
pub struct How {
    /// For the target's own use.
    pub choice: u8,
    framing: u8,
    pub random: Random,
}

/// Marsaglia's xorshift.
#[derive(Clone, Copy)]
pub struct Random(u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    /// The parts of some bytes, none of them empty.
    pub fn split<'a>(&mut self, mut bytes: &'a [u8]) -> Vec<&'a [u8]> {
        let most = [1, 2, 7, 30, 1000, 100_000][self.below(6)];
        let mut parts = Vec::new();
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(1 + self.below(most.min(bytes.len())));
            parts.push(part);
            bytes = rest;
        }
        parts
    }
}

/// An input's body, and how it arrives.
pub fn body_and_how(data: &[u8]) -> (&[u8], How) {
    let (body, how) = data.split_at(data.len().saturating_sub(3));
    let byte = |at| how.get(at).copied().unwrap_or_default();
    let seed = u64::from(byte(2)) + 1;
    let how = How {
        choice: byte(0),
        framing: byte(1),
        random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
    };
    (body, how)
}

impl How {
    /// Whether the body, and not the connection alone, comes to its end.
    pub fn is_whole(self) -> bool {
        self.framing & 0x80 == 0
    }

    /// The answer at once, in the simplest way.
    pub fn at_once(self, head: &str, body: &[u8]) -> Answer {
        let missing = usize::from(!self.is_whole());
        let length = body.len() + missing;
        let head = format!("{head}content-length: {length}\r\n\r\n");
        Answer {
            parts: [[head.as_bytes(), body].concat().into()].into(),
            reset: false,
        }
    }

    /// The same answer in parts, framed otherwise.
    pub fn in_parts(self, head: &str, body: &[u8]) -> Answer {
        let random = &mut self.random.clone();
        let mut reset = self.framing & 0x40 != 0;
        let (framing, bytes) = match self.framing % 4 {
            0 => {
                let mut bytes = Vec::new();
                for part in random.split(body) {
                    let extension = ["", "", ";a=b"][random.below(3)];
                    bytes.extend(format!("{:x}{extension}\r\n", part.len()).as_bytes());
                    bytes.extend(part);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(
                    if self.is_whole() {
                        "0\r\n\r\n"
                    } else {
                        "1\r\n"
                    }
                    .as_bytes(),
                );
                ("transfer-encoding: chunked".to_owned(), bytes)
            }
            // Until it closes.
            1 => {
                reset = !self.is_whole();
                ("x: y".to_owned(), body.to_owned())
            }
            _ => {
                let length = body.len() + usize::from(!self.is_whole());
                (format!("content-length: {length}"), body.to_owned())
            }
        };
        let mut answer = parts(random, &bytes, reset);
        // Nothing comes for a while.
        for _ in 0..random.below(4) {
            let at = random.below(answer.parts.len() + 1);
            answer.parts.insert(at, [].into());
        }
        answer
            .parts
            .push_front(format!("{head}{framing}\r\n\r\n").into_bytes().into());
        answer
    }
}

/// An answer in parts.
pub fn parts(random: &mut Random, bytes: &[u8], reset: bool) -> Answer {
    let mut answer = Answer {
        reset,
        ..Answer::default()
    };
    for part in random.split(bytes) {
        answer.parts.push_back(part.iter().copied().collect());
    }
    answer
}

/// An answer whose body is this.
pub fn sized(status: u16, body: &str) -> Answer {
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    Answer {
        parts: [[head, body.to_owned()].concat().into_bytes().into()].into(),
        reset: false,
    }
}

pub const OK: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
pub const LOGIN_TOKEN: &str = "login-token/4cfe";
pub const STREAM_TOKEN: &str = "stream token+81aa";

/// What a GPTalk service answers before its stream. The token serves one chat, so that each
/// execution is like the first.
pub fn before_the_stream() -> [Answer; 2] {
    [
        sized(
            200,
            &json!({"data": {"token": LOGIN_TOKEN, "expires_at": 0}}).to_string(),
        ),
        sized(200, &json!({"data": {"token": STREAM_TOKEN}}).to_string()),
    ]
}

/// What was sent is a request, whatever was put into it. Where it is, its body.
pub fn check_request(sent: &[u8]) -> Option<&[u8]> {
    if !sent.starts_with(b"POST /") && !sent.starts_with(b"GET /") {
        return None;
    }
    let end = sent.windows(4).position(|at| at == b"\r\n\r\n").unwrap();
    let (head, body) = (std::str::from_utf8(&sent[..end]).unwrap(), &sent[end + 4..]);
    let (first, lines) = head.split_once("\r\n").unwrap();
    assert!(first.ends_with(" HTTP/1.1") && first.split(' ').count() == 3);
    assert!(first.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
    let mut names = Vec::new();
    for line in lines.split("\r\n") {
        let (name, value) = line.split_once(": ").unwrap();
        let is_token =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        assert!(!name.is_empty() && name.bytes().all(is_token), "{line:?}");
        assert!(
            value.bytes().all(|byte| (0x20..0x7f).contains(&byte)),
            "{line:?}"
        );
        names.push(name.to_ascii_lowercase());
        if name.eq_ignore_ascii_case("content-length") {
            assert_eq!(value.parse(), Ok(body.len()));
        }
    }
    assert!(names.contains(&"host".to_owned()));
    assert_eq!(
        names.contains(&"content-length".to_owned()),
        first.starts_with("POST")
    );
    names.sort();
    assert!(names.windows(2).all(|two| two[0] != two[1]), "{names:?}");
    Some(body)
}

/// What is handed out.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    Text(String),
    Thought(String),
    Json(String),
}

/// What a chat came to.
#[derive(Debug)]
pub struct Outcome {
    pub told: Vec<Told>,
    pub log: Vec<String>,
    pub reply: Reply,
    pub error: Option<Error>,
    /// The requests, as they were sent.
    pub sent: Vec<Vec<u8>>,
}

/// A client that tries once, in all else as users have it.
pub fn client(protocol: Protocol) -> gptalk::ClientBuilder {
    let client = Client::builder().protocol(protocol).retries(0);
    client.base_url("http://127.0.0.1:9").proxy("none")
}

/// A chat that is answered so, and wants to see the events: each of them is parsed.
pub fn chat(
    client: &Client,
    talk: &Conversation,
    answers: impl IntoIterator<Item = Answer>,
) -> Outcome {
    let stream = client.stream(talk).expect("options that can be used");
    run(stream.with_events(), answers)
}

/// The same, on the hot path: an event that is like the last one is not parsed.
pub fn hot_chat(
    client: &Client,
    talk: &Conversation,
    answers: impl IntoIterator<Item = Answer>,
) -> Outcome {
    run(
        client.stream(talk).expect("options that can be used"),
        answers,
    )
}

/// Whatever the answers are, these hold.
fn run(stream: Stream, answers: impl IntoIterator<Item = Answer>) -> Outcome {
    answer(answers);
    let mut stream = stream.with_log();
    let (mut told, mut log) = (Vec::new(), Vec::new());
    while let Some(event) = stream.next_event() {
        match event {
            Event::Text(text) => told.push(Told::Text(text.to_owned())),
            Event::Reasoning(text) => told.push(Told::Thought(text.to_owned())),
            Event::Json(text) => told.push(Told::Json(text.to_owned())),
            Event::Log(line) => log.push(line.to_owned()),
            _ => {}
        }
    }
    let (reply, error) = match stream.finish() {
        Ok(reply) => (reply, None),
        Err(error) => (error.reply().expect("what came").clone(), Some(error)),
    };
    let outcome = Outcome {
        told,
        log,
        reply,
        error,
        sent: answer([]),
    };
    for sent in &outcome.sent {
        check_request(sent);
    }
    let (reply, pieces) = (&outcome.reply, outcome.pieces());
    assert!(outcome.told.iter().all(|told| !told.text().is_empty()));
    assert_eq!(reply.pieces, pieces.len() as u64);
    if !reply.rewritten {
        assert_eq!(pieces.concat(), reply.text);
    }
    assert_eq!(outcome.thoughts(), reply.reasoning);
    assert_ne!(outcome.kind(), Some(ErrorKind::Internal));
    outcome
}

impl Told {
    pub fn text(&self) -> &str {
        let (Told::Text(text) | Told::Thought(text) | Told::Json(text)) = self;
        text
    }
}

impl Outcome {
    pub fn pieces(&self) -> Vec<&str> {
        let pieces = self.told.iter().filter_map(|told| match told {
            Told::Text(text) => Some(&**text),
            _ => None,
        });
        pieces.collect()
    }

    fn thoughts(&self) -> String {
        let thoughts = self
            .told
            .iter()
            .filter(|told| matches!(told, Told::Thought(_)));
        thoughts.map(Told::text).collect()
    }

    pub fn kind(&self) -> Option<ErrorKind> {
        self.error.as_ref().map(Error::kind)
    }

    /// The same without the events, as one sees it who does not want them.
    pub fn without_events(mut self) -> Outcome {
        self.told.retain(|told| !matches!(told, Told::Json(_)));
        self
    }

    /// All that must not depend on how the bytes arrived.
    pub fn essence(&self) -> impl PartialEq + Debug + use<> {
        let reply = &self.reply;
        let code = self.error.as_ref().and_then(Error::code).map(str::to_owned);
        (
            self.told.clone(),
            reply.text.clone(),
            (reply.rewritten, reply.http_status, self.kind(), code),
            with_made_ids(reply.message()),
            (reply.usage.clone(), reply.finish_reason.clone()),
            (reply.model.clone(), reply.request_id.clone()),
        )
    }
}

/// A message; an `id` of the library's making is `MADE`.
fn with_made_ids(mut message: Value) -> Value {
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        let id = call["id"].as_str().expect("each call has an id");
        assert!(!id.is_empty());
        if id.starts_with("call_") && id.len() == 21 {
            call["id"] = json!("MADE");
        }
    }
    message
}
