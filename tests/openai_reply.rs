//! What services that call themselves OpenAI-compatible really send as a reply: their framing, their
//! chunks, their tool calls, their errors in the middle; and random replies of which it is known what
//! they say.
//!
//! Every scripted body is played at once, byte by byte, and in between, and must mean the same.

mod observer;
mod programs;
mod random;

use std::collections::HashSet;
use std::fmt::Display;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use gptalk::{Client, Conversation, Error, ErrorKind, Event, Message, Reply};
use gptalk_service::{Endpoint, Peer, Service};
use observer::hold;
use random::Random;
use serde_json::{Value, json};

use Told::{Json, Text, Thought};

/// Within this, whatever needs no waiting has come to its end, on a machine that does much else.
const SOON: Duration = Duration::from_secs(10);
/// What a client that waits where it need not would wait for.
const IDLE: Duration = Duration::from_secs(20);

const DONE: &str = "data: [DONE]\n\n";

/// How a body ends: in order, or not at all, or the connection with it.
type End = fn(&mut Peer);
const LAST_CHUNK: End = Peer::last_chunk;
const BROKEN: [End; 2] = [Peer::close, Peer::reset];

type Script = Box<dyn FnOnce(&mut Peer) + Send>;

/// A service and a client, for any number of chats whose replies a test writes byte by byte.
struct Stage {
    service: Service,
    client: Client,
    options: Vec<(&'static str, String)>,
    /// The next answer; without one, the service's own.
    script: Arc<Mutex<Option<Script>>>,
}

/// What a piece of a reply is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Told {
    Text,
    Thought,
    Json,
}

/// What a chat came to.
struct Outcome {
    /// The body, for whoever has to find out what is wrong with it.
    body: String,
    /// What was handed out, in order.
    told: Vec<(Told, String)>,
    reply: Reply,
    error: Option<Error>,
}

impl Stage {
    fn new() -> Stage {
        Stage::with(None)
    }

    fn with(option: impl IntoIterator<Item = (&'static str, &'static str)>) -> Stage {
        let script = Arc::new(Mutex::new(None::<Script>));
        let next = script.clone();
        let service = Service::builder()
            .reply(|_| "Fine".into())
            .on(Endpoint::Chat, move |request, peer| {
                let script = next.lock().unwrap().take();
                match script {
                    Some(script) => script(peer),
                    None => peer.normal(request),
                }
            })
            .start();
        let patience = IDLE.as_millis().to_string();
        let options = [
            ("protocol", "openai".to_owned()),
            ("base_url", service.url()),
            ("idle_timeout_ms", patience.clone()),
            ("response_timeout_ms", patience),
        ];
        let option = option.into_iter();
        let option = option.map(|(key, value)| (key, value.to_owned()));
        let options: Vec<_> = options.into_iter().chain(option).collect();
        let mut client = Client::new();
        for (key, value) in &options {
            client.set(key, Some(value)).unwrap();
        }
        Stage {
            service,
            client,
            options,
            script,
        }
    }

    /// A chat with that answer. Whatever it is, these hold.
    #[track_caller]
    fn chat(&self, body: &[u8], script: impl FnOnce(&mut Peer) + Send + 'static) -> Outcome {
        *self.script.lock().unwrap() = Some(Box::new(script));
        let (started, requests) = (Instant::now(), self.service.count(Endpoint::Chat));
        let mut stream = self.client.stream("Hi").unwrap().with_events();
        let mut told = Vec::new();
        while let Some(event) = stream.next_event() {
            told.push(match event {
                Event::Text(text) => (Text, text.to_owned()),
                Event::Reasoning(thought) => (Thought, thought.to_owned()),
                Event::Json(json) => (Json, json.to_owned()),
                _ => continue,
            });
        }
        let (reply, error) = match stream.finish() {
            Ok(reply) => (reply, None),
            Err(error) => (error.reply().expect("what came").clone(), Some(error)),
        };
        assert!(started.elapsed() < SOON, "it waits for nothing");
        assert_eq!(self.service.count(Endpoint::Chat), requests + 1);
        assert_eq!(reply.attempts, 1);
        let body = String::from_utf8_lossy(body).chars().take(500).collect();
        let outcome = Outcome {
            body,
            told,
            reply,
            error,
        };
        let reply = &outcome.reply;
        assert!(outcome.told.iter().all(|(_, piece)| !piece.is_empty()));
        assert_eq!(outcome.of(Text).concat(), reply.text);
        assert_eq!(outcome.of(Thought).concat(), reply.reasoning);
        assert_eq!(outcome.of(Text).len() as u64, reply.pieces);
        // The client works, and has asked as it should.
        assert_eq!(self.client.complete("Hi").expect("a reply").text, "Fine");
        assert_eq!(self.service.refusals(), [""; 0]);
        outcome
    }

    /// A chat with these bytes for an answer.
    #[track_caller]
    fn answer(&self, answer: String, end: End) -> Outcome {
        self.chat(&answer.clone().into_bytes(), move |peer| {
            peer.send(answer);
            end(peer);
        })
    }

    /// A chat whose body arrives in these parts, each an HTTP chunk.
    #[track_caller]
    fn parts<'a>(&self, parts: impl IntoIterator<Item = &'a [u8]>, end: End) -> Outcome {
        let (mut body, mut chunks) = (Vec::new(), Vec::new());
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            body.extend_from_slice(part);
            chunks.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
            chunks.extend_from_slice(part);
            chunks.extend_from_slice(b"\r\n");
        }
        self.chat(&body, move |peer| {
            peer.sse_head();
            peer.send(chunks);
            end(peer);
        })
    }

    /// Chats with this body, however it is split: they come to the same, and hold to what holds for
    /// every chat.
    #[track_caller]
    fn play(&self, body: impl AsRef<[u8]>, end: End) -> Outcome {
        let body = body.as_ref();
        let whole = self.parts([body], end);
        for size in [1, 7, 64] {
            let split = self.parts(body.chunks(size), end);
            let shown = &whole.body;
            assert_eq!(split.essence(), whole.essence(), "{size} each: {shown}");
            assert_eq!(split.error(), whole.error(), "{size} each: {shown}");
        }
        let options = self.options.iter().map(|(key, value)| (*key, &**value));
        let seen = hold(&options.collect::<Vec<_>>(), IDLE, |on| {
            let body = body.to_vec();
            let script: Script = Box::new(move |peer| {
                peer.sse_head();
                peer.chunk(body);
                end(peer);
            });
            *self.script.lock().unwrap() = Some(script).filter(|_| on);
        });
        seen.is(&whole.of(Text).concat(), whole.error.as_ref());
        whole
    }

    /// The same for a body that ends in order.
    #[track_caller]
    fn say(&self, body: impl AsRef<[u8]>) -> Outcome {
        self.play(body, LAST_CHUNK)
    }

    /// These lines, and then what ends a reply, are a reply of these pieces.
    #[track_caller]
    fn says(&self, lines: impl AsRef<[u8]>, pieces: &[&str]) -> Reply {
        let outcome = self.say([lines.as_ref(), DONE.as_bytes()].concat());
        outcome.is(pieces, None).reply
    }

    /// These lines end the reply, whose text up to there is kept.
    #[track_caller]
    fn fails(&self, lines: impl AsRef<[u8]>, kind: ErrorKind) -> Error {
        let hello = content("Hello");
        let body = [hello.as_bytes(), lines.as_ref(), DONE.as_bytes()].concat();
        self.say(body).is(&["Hello"], kind).error.unwrap()
    }
}

impl Outcome {
    fn of(&self, kind: Told) -> Vec<&str> {
        let told = self.told.iter().filter(|(told, _)| *told == kind);
        told.map(|(_, piece)| &**piece).collect()
    }

    /// What was handed out but JSON, in order.
    fn spoken(&self) -> Vec<(Told, &str)> {
        let told = self.told.iter().map(|(told, piece)| (*told, &**piece));
        told.filter(|(told, _)| *told != Json).collect()
    }

    fn kind(&self) -> Option<ErrorKind> {
        self.error.as_ref().map(Error::kind)
    }

    fn code(&self) -> Option<&str> {
        self.error.as_ref()?.code()
    }

    fn error(&self) -> String {
        let error = self.error.as_ref();
        error.map(Error::to_string).unwrap_or_default()
    }

    /// The reply had these pieces, and failed so, or did not.
    #[track_caller]
    fn is(self, pieces: &[&str], kind: impl Into<Option<ErrorKind>>) -> Outcome {
        let (error, body) = (self.error(), &self.body);
        assert_eq!(self.of(Text), pieces, "{error}, from {body}");
        assert_eq!(self.kind(), kind.into(), "{error}, from {body}");
        self
    }

    /// There was no reply, as its code says, too.
    #[track_caller]
    fn brought_nothing(self) -> Outcome {
        let outcome = self.is(&[], ErrorKind::Protocol);
        assert_eq!(outcome.code(), Some("empty"), "from {}", outcome.body);
        outcome
    }

    /// All that must not depend on how the bytes arrived.
    fn essence(&self) -> String {
        let reply = &self.reply;
        let calls = with_made_ids(&reply.tool_calls);
        let facts = (&reply.finish_reason, &reply.usage, &reply.model);
        let end = (&reply.request_id, self.kind(), self.code());
        format!("{:?}", (&self.told, calls, facts, end))
    }
}

/// The calls; an `id` of the library's making is `MADE`.
fn with_made_ids(calls: &[Value]) -> Vec<Value> {
    let mut calls = calls.to_vec();
    for call in &mut calls {
        let id = call["id"].as_str().expect("each call has an id");
        if id.starts_with("call_") && id.len() == 21 {
            call["id"] = json!("MADE");
        }
    }
    calls
}

fn event(json: impl Display) -> String {
    format!("data: {json}\n\n")
}

/// A chunk with this choice.
fn choice(choice: impl Display) -> String {
    event(format!(r#"{{"id":"chatcmpl-1","choices":[{choice}]}}"#))
}

fn delta(delta: impl Display) -> String {
    choice(format!(r#"{{"index":0,"delta":{delta}}}"#))
}

fn content(text: &str) -> String {
    delta(json!({"content": text}))
}

/// A member of the delta, a string that is escaped already.
fn escaped(member: &str, string: &str) -> String {
    delta(format!(r#"{{"{member}":"{string}"}}"#))
}

fn finish(reason: &str) -> String {
    choice(json!({"index": 0, "delta": {}, "finish_reason": reason}))
}

/// A whole completion, as an answer to a request for a stream.
fn whole(text: &str) -> Value {
    let message = json!({"role": "assistant", "content": text});
    json!({
        "id": "chatcmpl-2", "object": "chat.completion", "model": "tiny",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    })
}

/// The rows of a table.
fn rows(table: &str) -> impl Iterator<Item = &str> {
    table.lines().map(str::trim).filter(|row| !row.is_empty())
}

// Lines.

#[test]
fn what_is_no_event_passes_silently() {
    let stage = Stage::new();
    let table = r"
        :
        : OPENROUTER PROCESSING
        : keep-alive\n\n: keep-alive
        \n\n\n
        data: : keepalive
        data:  : keepalive
        data:
        data:  \t
        data
        id: 7\n
        : a comment\nid: 7\n\n: another
        event: message
        event
        retry: 3000
        retry: never
        unknown: x
        [INFO] hello
        Data: [DONE]
        \tdata: [DONE]
        da-ta: [DONE]
        data : [DONE]
        :data: [DONE]";
    for row in rows(table) {
        let line = row.replace("\\n", "\n").replace("\\t", "\t");
        let (a, b) = (content("a"), content("b"));
        stage.says(format!("{line}\n\n{a}{line}\n{b}{line}\n"), &["a", "b"]);
    }
    let long = format!(": {}\n", "x".repeat(1 << 20)) + &content("a") + DONE;
    let outcome = stage.parts(long.as_bytes().chunks(1000), LAST_CHUNK);
    outcome.is(&["a"], None);
}

#[test]
fn the_space_after_a_colon_may_be_missing_or_more() {
    let stage = Stage::new();
    for colon in [":", ": ", ":  ", ":\t"] {
        let body = content("a") + &content("b") + DONE;
        // JSON's own, too.
        stage.say(body.replace(": ", colon)).is(&["a", "b"], None);
        stage.say(body.replace(':', colon)).is(&["a", "b"], None);
    }
}

/// A reply with a little of everything, and its pieces.
const SAMPLE: &str = "\u{feff}: hi\ndata: {\"choices\":[]}\n\n\
    data:{\"choices\":[{\"delta\":{\"role\":\"assistant\",\"reasoning\":\"Hm\"}}]}\n\
    event: x\ndata: {\"choices\": [{\"delta\":\ndata: {\"content\": \"Grü\"}}]}\n\n\
    data: {\"choices\":[{\"delta\":{\"content\":\"ße \\ud83d\"}}]}\ndata:\n\n\
    data: {\"choices\":[{\"delta\":{\"content\":\"\\ude00💥\"},\"finish_reason\":\"stop\"}]}\n\n\
    data: {\"choices\":[],\"usage\":{\"total_tokens\":5}}\n\ndata: [DONE]\n\n";
const PIECES: &[&str] = &["Grü", "ße ", "😀💥"];

#[test]
fn it_does_not_matter_where_a_stream_is_split_nor_how_its_lines_end() {
    let stage = Stage::new();
    for end in ["\n", "\r\n", "\r"] {
        let sample = SAMPLE.replace('\n', end);
        let whole = stage.say(&sample).is(PIECES, None);
        assert_eq!(whole.of(Thought), ["Hm"]);
        assert_eq!(whole.reply.total_tokens(), Some(5));
        for at in 0..=sample.len() {
            let (one, two) = sample.as_bytes().split_at(at);
            let split = stage.parts([one, two], LAST_CHUNK);
            assert_eq!(split.essence(), whole.essence(), "split at {at}");
        }
    }
    let mut ends = ["\n", "\r\n", "\r", "\r\n"].into_iter().cycle();
    let mixed = SAMPLE.lines().flat_map(|line| [line, ends.next().unwrap()]);
    stage.say(mixed.collect::<String>()).is(PIECES, None);
}

#[test]
fn it_does_not_matter_where_the_network_splits_an_answer() {
    let stage = Stage::new();
    let json = format!(": keep-alive\n\n{}\n{DONE}", whole("Hello"));
    for (body, pieces) in [(SAMPLE, PIECES), (&*json, &["Hello"])] {
        let length = body.len();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
        let outcome = stage.chat(body.as_bytes(), |peer| peer.drip(answer));
        outcome.is(pieces, None);
    }
}

#[test]
fn the_data_lines_of_an_event_are_joined() {
    let stage = Stage::new();
    let pretty = |text: &str| {
        let chunk = json!({"choices": [{"index": 0, "delta": {"content": text}}]});
        serde_json::to_string_pretty(&chunk).unwrap()
    };
    let (a, b) = (pretty("a"), pretty("b"));
    let lines = |json: &str| event(json.replace('\n', "\ndata: "));
    let outcome = stage.say(lines(&a) + &lines(&b) + &content("c") + DONE);
    assert_eq!(outcome.of(Json)[..2], [&a, &b]);
    outcome.is(&["a", "b", "c"], None);
    // Whatever stands between them, and in them.
    for between in [": comment", "id: 7", "data:", "event: message", "unknown"] {
        let lines = a.replace('\n', &format!("\n{between}\ndata:"));
        stage.says(event(lines), &["a"]);
    }
    let odd = "data: {\"choices\"\ndata: :[{\"delta\"\ndata::{\"content\":\"a\"}}]}\n\n";
    stage.says(odd, &["a"]);
}

#[test]
fn an_event_needs_no_blank_line_behind_it_and_waits_for_none() {
    let stage = Stage::new();
    let body = [content("a"), content("b"), content("c")].concat();
    stage.says(body.replace("\n\n", "\n"), &["a", "b", "c"]);

    let (read, has_read) = mpsc::channel();
    *stage.script.lock().unwrap() = Some(Box::new(move |peer| {
        peer.sse_head();
        peer.chunk(content("a").trim_end().to_owned() + "\n");
        // The rest comes when the beginning has been handed out.
        let _ = has_read.recv_timeout(IDLE);
        peer.chunk(content("b") + DONE);
    }));
    let (started, mut stream) = (Instant::now(), stage.client.stream("Hi").unwrap());
    assert_eq!(stream.next().unwrap().unwrap(), "a");
    assert!(started.elapsed() < SOON);
    read.send(()).unwrap();
    assert_eq!(stream.next().unwrap().unwrap(), "b");
}

#[test]
fn a_line_or_an_event_may_have_16_mib_and_no_more() {
    let stage = Stage::new();
    let (hello, line) = (content("Hello"), "x".repeat(15 << 20));
    let outcome = stage.parts([content(&line).as_bytes(), DONE.as_bytes()], LAST_CHUNK);
    assert!(outcome.kind().is_none() && outcome.reply.text == line);
    let joined = format!("data: {{\"x\": \ndata: \"{line}\",\n").repeat(2);
    for long in [content(&line.repeat(2)), ":".repeat(17 << 20), joined] {
        let outcome = stage.parts([hello.as_bytes(), long.as_bytes()], Peer::stall);
        outcome.is(&["Hello"], ErrorKind::Limit);
    }
}

// The end.

#[test]
fn done_ends_the_reply_though_the_body_lingers() {
    let stage = Stage::new();
    for done in [
        DONE,
        "data: [DONE]\n",
        "data:[DONE]\r",
        "data:  [DONE] \t\r\n",
        "[DONE]\n\n",
        "data: [DONE]\n\ndata: {\n\n",
        "data: [DONE]\n\ndata: {\"error\": \"no\"}\n\n",
    ] {
        let outcome = stage.play(content("a") + done, Peer::stall);
        outcome.is(&["a"], None);
    }
    // The last line may lack its end, and the body its last chunk.
    for end in [LAST_CHUNK, Peer::close, Peer::reset] {
        let outcome = stage.play(content("a") + "data: [DONE]", end);
        outcome.is(&["a"], None);
    }
}

#[test]
fn what_only_looks_like_done_is_not_the_end() {
    let stage = Stage::new();
    for data in rows("[DONE]x\n [DONE] [DONE]\n [done]\n \"[DONE]\"\n [\"DONE\"]\n [DONE") {
        let error = stage.fails(event(data), ErrorKind::Protocol);
        assert!(error.to_string().contains(data), "{error}");
    }
    let text = "data: [DONE]\n\n";
    stage.says(content("[DONE]") + &content(text), &["[DONE]", text]);
    let lines = content("a") + "done: [DONE]\n\n" + &content("b");
    stage.says(lines, &["a", "b"]);
}

#[test]
fn without_done_a_reply_is_complete_where_a_finish_reason_came() {
    let stage = Stage::new();
    let (a, stop) = (content("a"), finish("stop"));
    let usage = event(r#"{"choices":[],"usage":{"total_tokens":5}}"#);
    for (lines, is_complete) in [
        (stop.clone(), true),
        (finish("length") + &usage, true),
        (stop.trim_end().to_owned(), true),
        (stop.clone() + "\n\n: bye\ndat", true),
        (String::new(), false),
        (usage, false),
        ("\n: bye\n".to_owned(), false),
        (finish(""), false),
    ] {
        let (body, cut) = (a.clone() + &lines, Some(ErrorKind::Truncated));
        let kind = if is_complete { None } else { cut };
        stage.say(&body).is(&["a"], kind);
        // Its close may be what ends the body. Where it breaks, nothing is complete.
        let answer = format!("HTTP/1.1 200 OK\r\n\r\n{body}");
        stage.answer(answer.clone(), Peer::close).is(&["a"], kind);
        stage.answer(answer, Peer::reset).is(&["a"], cut);
        for end in BROKEN {
            stage.play(&body, end).is(&["a"], cut);
        }
    }
}

#[test]
fn a_reply_cut_inside_an_event_keeps_what_came_before() {
    let stage = Stage::new();
    let (hello, you) = (content("Hello"), content(" you"));
    let last = you.trim_end().as_bytes();
    for end in [LAST_CHUNK, Peer::close, Peer::reset] {
        for at in 0..last.len() {
            let outcome = stage.parts([hello.as_bytes(), &last[..at]], end);
            outcome.is(&["Hello"], ErrorKind::Truncated);
        }
        // The last line counts where it is whole, and so does an event of several.
        let lines = "data: {\"choices\":[\ndata: {\"delta\":{\"content\":\" you\"}}]}";
        for last in [last, lines.as_bytes()] {
            let body = [hello.as_bytes(), last].concat();
            let outcome = stage.play(&body, end);
            outcome.is(&["Hello", " you"], ErrorKind::Truncated);
            let outcome = stage.play(&body[..body.len() - 1], end);
            outcome.is(&["Hello"], ErrorKind::Truncated);
        }
        let done = hello.clone() + "data: {\"choices\":[{\"delta\":{\"con\n[DONE]\n";
        stage.play(done, end).is(&["Hello"], ErrorKind::Protocol);
        let between = hello.clone() + "data: {\"choices\":[\n";
        stage
            .play(between, end)
            .is(&["Hello"], ErrorKind::Truncated);
    }
}

#[test]
fn a_stream_without_an_event_is_no_reply() {
    let stage = Stage::new();
    for body in [
        "",
        "\n\n",
        DONE,
        "data: [DONE]",
        "[DONE]\n",
        ": keep-alive\n\n",
        ": OPENROUTER PROCESSING\n\ndata: [DONE]\n\n",
        "event: x\nid: 1\n\ndata:\n\n",
    ] {
        stage.say(body).brought_nothing();
    }
    // vLLM's `[DONE]` is all that will come.
    stage.play(DONE, Peer::stall).brought_nothing();
    for head in ["200 OK\r\ncontent-length: 0", "204 No Content"] {
        let answer = format!("HTTP/1.1 {head}\r\n\r\n");
        stage.answer(answer, |_| {}).brought_nothing();
    }
}

#[test]
fn after_a_reply_that_ended_in_order_its_connection_serves_the_next_chat() {
    let stage = Stage::new();
    let finished = content("a") + &finish("stop");
    for body in [SAMPLE, &finished, &whole("Hello").to_string()] {
        let length = body.len();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
        assert_eq!(stage.answer(answer, |_| {}).kind(), None);
    }
    assert_eq!(stage.service.connections(), 1);
}

// JSON where a stream was asked for.

#[track_caller]
fn is_hello(outcome: Outcome) {
    let outcome = outcome.is(&["Hello"], None);
    let reply = &outcome.reply;
    assert_eq!(reply.finish_reason.as_deref(), Some("stop"));
    assert_eq!(reply.total_tokens(), Some(3));
    assert_eq!(reply.model.as_deref(), Some("tiny"));
    assert_eq!(reply.request_id.as_deref(), Some("chatcmpl-2"));
    let event: Value = serde_json::from_str(outcome.of(Json)[0]).unwrap();
    assert_eq!(event, whole("Hello"));
}

#[test]
fn a_json_answer_is_delivered_whole_whatever_its_type_says() {
    let stage = Stage::new();
    for kind in "application/json text/event-stream text/html nonsense".split(' ') {
        let json = whole("Hello").to_string();
        is_hello(stage.chat(&[], |peer| peer.respond(200, kind, json)));
    }
}

#[test]
fn a_json_answer_may_have_things_glued_on_and_a_connection_that_stays_open() {
    let stage = Stage::new();
    let json = whole("Hello").to_string();
    let pretty = serde_json::to_string_pretty(&whole("Hello")).unwrap();
    for body in [
        json.clone(),
        format!("{json}\n"),
        pretty.clone(),
        pretty.replace('\n', "\r\n"),
        pretty.replace('\n', "\r"),
        format!("\u{feff}{json}"),
        format!(" \t {json}"),
        " ".repeat(1000) + &json,
        format!("\n\n\r\n{json}"),
        format!(": keep-alive\n\n: keep-alive\n\n{json}"),
        format!("\n\n\n{pretty}\n\n"),
        format!("data: : keepalive\n\n{json}"),
        format!("{json}[DONE]"),
        format!("{json}\n[DONE]\n"),
        format!("{json}data: [DONE]\n\n"),
        format!("{json}\ndata: [DONE]"),
        format!("{pretty}\n\n{DONE}"),
        format!("{json}\r\n\r\ndata:[DONE]\r\n\r\n"),
        format!("{json}\n\n: bye\n\n{DONE}"),
    ] {
        is_hello(stage.say(&body));
        is_hello(stage.play(&body, Peer::stall));
    }
    // As an event, too.
    for data in [&json, &pretty.replace('\n', "\ndata:")] {
        is_hello(stage.say(event(data)));
        is_hello(stage.play(event(data) + DONE, Peer::stall));
    }
}

#[test]
fn a_json_answer_may_come_in_pieces_with_pauses() {
    let stage = Stage::new();
    let json = whole("Hello").to_string();
    let middle = json.find("llo").unwrap();
    for at in [1, middle, json.len() - 1, json.len()] {
        let body = json.clone() + "\n" + DONE;
        is_hello(stage.chat(&[], move |peer| {
            peer.sse_head();
            peer.chunk(&body[..at]);
            // Long enough for the client to look at what it has.
            peer.pause(Duration::from_millis(150));
            peer.chunk(&body[at..]);
            peer.stall();
        }));
    }
}

#[test]
fn a_json_answer_has_all_that_a_stream_has() {
    let stage = Stage::new();
    let call = r#"{"id":"a","type":"function","function":{"name":"f","arguments":"{\"x\": 1}"}}"#;
    let message = format!(r#"{{"content":null,"reasoning":"Hm 🤔","tool_calls":[{call}]}}"#);
    let choice = format!(r#"{{"message":{message},"finish_reason":"tool_calls"}}"#);
    let outcome = stage.play(format!(r#"{{"choices":[{choice}]}}"#), Peer::stall);
    let reply = outcome.is(&[], None).reply;
    assert_eq!(reply.reasoning, "Hm 🤔");
    assert_eq!(json!(reply.tool_calls).to_string(), format!("[{call}]"));
    assert_eq!(reply.finish_reason.as_deref(), Some("tool_calls"));

    let half = r#"{"choices":[{"message":{"content":"a\ud83d"}}]}"#;
    assert_eq!(stage.say(half).reply.text, "a\u{fffd}");
}

#[test]
fn a_json_answer_that_is_cut_is_no_reply() {
    let stage = Stage::new();
    let json = whole("Hello").to_string();
    for at in [1, json.find("llo").unwrap(), json.len() - 1] {
        for end in BROKEN {
            stage.play(&json[..at], end).is(&[], ErrorKind::Truncated);
        }
        assert!(stage.say(&json[..at]).kind().is_some());
    }
}

// Errors.

/// Errors in the shapes that services give them, behind their codes.
const ERRORS: &str = r#"
    - {"error":"no GPU"}
    500 {"error":{"message":"no GPU","type":null,"code":"500"}}
    500 {"error":{"code":500,"message":"no GPU","type":"server_error"}}
    overloaded {"error":{"message":"no GPU","type":"overloaded","param":null,"code":null}}
    - {"error":{"message":{"detail":"no GPU"}}}
    503 [{"error":{"code":503,"message":"no GPU","status":"UNAVAILABLE"}}]
    - {"error":"busy","message":"no GPU"}
    400 {"object":"error","message":"no GPU","type":"BadRequestError","code":400}
    overloaded {"type":"error","error":{"type":"overloaded","message":"no GPU"}}
    - {"detail":"no GPU"}
    503 {"code":503,"message":"no GPU"}
    401 {"choices":[],"error":{"message":"no GPU","code":401}}
    502 {"choices":[{"delta":{},"error":{"code":502,"message":"no GPU"}}]}
    x {"error":{"code":"x","message":"no GPU"},"choices":[{"delta":{"content":""}}]}"#;

#[test]
fn an_error_inside_the_stream_is_the_services_wherever_it_stands() {
    let stage = Stage::new();
    for (code, error) in rows(ERRORS).filter_map(|row| row.split_once(' ')) {
        let json: Value = serde_json::from_str(error).unwrap();
        let pretty = serde_json::to_string_pretty(&json).unwrap();
        for lines in [
            event(error),
            event(error).replace("\n\n", "\n"),
            event(pretty.replace('\n', "\ndata: ")),
            format!("event: error\n{}", event(error)),
            // Old llama.cpp, and Lemonade.
            format!("error: {error}\n\n"),
            format!("error:{error}\n"),
            format!("{error}\n\n"),
            format!("{pretty}\n"),
        ] {
            stage.fails(&lines, ErrorKind::Server);
            // And where the connection stays open; and at the very beginning.
            for (hello, pieces) in [(content("Hello"), &["Hello"][..]), (String::new(), &[])] {
                let outcome = stage.play(hello + &lines, Peer::stall);
                let outcome = outcome.is(pieces, ErrorKind::Server);
                assert_eq!(outcome.code().unwrap_or("-"), code);
                assert!(outcome.error().contains("no GPU"), "{}", outcome.error());
            }
        }
    }
}

#[test]
fn an_error_may_have_a_field_or_an_event_of_its_own() {
    let stage = Stage::new();
    for lines in [
        "error: {\"code\":500,\"message\":\"no GPU\",\"type\":\"server_error\"}\n\n",
        "error: no GPU\n\n",
        "event: error\ndata: {\"message\": \"no GPU\"}\n\n",
        "event: error\ndata: \"no GPU\"\n\n",
        "event: error\ndata: no GPU\n\n",
        "event:error\r\nid: 1\r\ndata:{\"msg\":\"no GPU\"}\r\n\r\n",
    ] {
        let error = stage.fails(lines, ErrorKind::Server);
        assert!(error.to_string().contains("no GPU"), "{error}");
    }
    // Of another event it is not the name.
    let others = event(r#"{"id":"x"}"#) + &content("a");
    stage.says("event: error\n\n".to_owned() + &others, &["a"]);
}

#[test]
fn an_error_that_is_null_or_empty_is_none() {
    let stage = Stage::new();
    let empty = [
        "null",
        "\"\"",
        "{}",
        "[]",
        "0",
        "false",
        r#"{"message":null,"code":null}"#,
    ];
    for error in empty {
        let beside = format!(r#"{{"error":{error},"choices":[{{"delta":{{"content":"a"}}}}]}}"#);
        let inside = format!(r#"{{"error":{error},"delta":{{"content":"b"}}}}"#);
        stage.says(event(beside) + &choice(inside), &["a", "b"]);
    }
    let usage = event(r#"{"choices":[],"usage":{"total_tokens":3},"detail":null}"#);
    stage.says(content("a") + &usage, &["a"]);
}

#[test]
fn words_and_no_reply_are_an_error() {
    let stage = Stage::new();
    for words in rows(
        r#"
        {"message":"no GPU"}
        {"code":"InvalidParameter","message":"no GPU"}
        {"choices":null,"code":500,"message":"no GPU"}
        {"choices":[],"code":"429","msg":"no GPU"}
        {"detail":"no GPU"}
        {"choices":[],"x_groq":{"id":"1","error":"no GPU"}}
        {"success":false,"errors":[{"code":5007,"message":"no GPU"}]}
        "#,
    ) {
        let error = stage.fails(event(words), ErrorKind::Server);
        assert!(error.to_string().contains("no GPU"), "{error}");
        for end in [DONE, ""] {
            let outcome = stage.say(event(words) + end).is(&[], ErrorKind::Server);
            assert!(outcome.error().contains("no GPU"), "{}", outcome.error());
        }
        let bare = stage.play(words, Peer::stall).is(&[], ErrorKind::Server);
        assert!(bare.error().contains("no GPU"), "{}", bare.error());
    }
    let nothing = r#"{"error":{"message":"","type":null,"code":null}}"#;
    stage.fails(event(nothing), ErrorKind::Server);
    // Where the reply goes on, they were none.
    let waiting = event(r#"{"status":"queued","message":"waiting for a worker"}"#);
    stage.says(
        waiting.clone() + &content("a") + &waiting + &content("b"),
        &["a", "b"],
    );
    stage.says(content("a") + &finish("stop") + &waiting, &["a"]);
}

#[test]
fn an_answer_that_is_no_reply_is_told_at_once_and_shown() {
    let stage = Stage::new();
    for answer in [
        r#"{"choices":null,"base_resp":{"status_msg":"no GPU"}}"#,
        r#"{"models":["no GPU"]}"#,
    ] {
        let outcome = stage.play(answer, Peer::stall).brought_nothing();
        assert!(outcome.error().contains("no GPU"), "{}", outcome.error());
        assert!(outcome.error().contains("base_url"), "{}", outcome.error());
    }
    stage.say(event("null") + DONE).brought_nothing();
    let usage = r#"{"choices":[],"usage":{"total_tokens":0}}"#;
    stage.say(event(usage) + DONE).brought_nothing();
    stage.say(event(usage)).is(&[], ErrorKind::Truncated);
    // What may be the beginning of one is not the end.
    for first in [r#"{"model":"m","choices":[]}"#, "{}"] {
        let lines = format!("{first}\n{}", content("a"));
        stage.says(lines, &["a"]);
    }
}

#[test]
fn the_last_words_beside_an_error_are_kept() {
    let stage = Stage::new();
    let choices = r#"[{"delta":{"content":" you"},"finish_reason":"error"}]"#;
    let last = event(format!(
        r#"{{"error":{{"message":"no"}},"choices":{choices}}}"#
    ));
    let outcome = stage.say(content("Hello") + &last);
    outcome.is(&["Hello", " you"], ErrorKind::Server);
}

#[test]
fn words_where_an_event_should_be_are_in_the_error_at_once() {
    let stage = Stage::new();
    // mistral.rs sends this, and then nothing.
    let words = "Number of choices must be greater than 0.";
    let (hello, lines) = (content("Hello"), event(words));
    let first = stage.play(&lines, Peer::stall).is(&[], ErrorKind::Protocol);
    let later = stage.play(hello + &lines, Peer::stall);
    // Without `data:` they are all there is, and it has an end.
    let bare = stage.say(words.to_owned() + "\n").brought_nothing();
    for outcome in [first, later.is(&["Hello"], ErrorKind::Protocol), bare] {
        assert!(outcome.error().contains(words), "{}", outcome.error());
    }
}

#[test]
fn words_behind_the_text_are_in_the_error_of_its_end() {
    let stage = Stage::with([("idle_timeout_ms", "300")]);
    let ends: [(End, _); 2] = [
        (LAST_CHUNK, ErrorKind::Truncated),
        (Peer::stall, ErrorKind::Timeout),
    ];
    for words in [
        "Internal error\n",
        "Internal error",
        "[ERROR] Internal error\n\n",
        "data: Internal error",
    ] {
        let body = content("Hello") + words;
        for (end, kind) in ends {
            let outcome = stage.parts([body.as_bytes()], end).is(&["Hello"], kind);
            let shown = outcome.error().matches("Internal error").count();
            assert_eq!(shown, 1, "{}", outcome.error());
        }
    }
}

#[test]
fn what_the_service_said_last_is_in_the_error_of_its_silence() {
    let stage = Stage::with([("idle_timeout_ms", "300")]);
    let body = content("Hello") + &event(r#"{"message":"overloaded"}"#);
    let outcome = stage.parts([body.as_bytes()], Peer::stall);
    assert!(
        outcome.error().contains("overloaded"),
        "{}",
        outcome.error()
    );
    outcome.is(&["Hello"], ErrorKind::Timeout);
    let body = content("Hello") + "event: error\ndata: overloaded";
    let outcome = stage.say(body).is(&["Hello"], ErrorKind::Server);
    assert!(
        outcome.error().contains("overloaded"),
        "{}",
        outcome.error()
    );
}

#[test]
fn words_and_then_silence_are_in_the_error_of_the_silence() {
    let stage = Stage::with([("idle_timeout_ms", "300")]);
    let table = "no GPU|no GPU\n|no GPU\n\n: ping\n|data: no GPU|{\"error\": \"no GPU";
    for words in table.split('|') {
        let outcome = stage.parts([words.as_bytes()], Peer::stall);
        assert_eq!(outcome.code(), Some("idle_timeout"));
        let shown = outcome.error().matches("no GPU").count();
        assert_eq!(shown, 1, "{}", outcome.error());
        outcome.is(&[], ErrorKind::Timeout);
    }
}

#[test]
fn a_malformed_event_ends_the_reply_and_is_shown() {
    let stage = Stage::new();
    let table = r#"
        {
        {"choices":}
        {"choices": []
        {} {}
        {},
        nope
        {'choices': []}
        {"content": "\x"}
        {"content": "\u12"}
        {"content": "Hello"#;
    for data in rows(table) {
        let error = stage.fails(event(data), ErrorKind::Protocol);
        assert!(error.to_string().contains(data), "{error}");
    }
    stage.fails("data: {\"a\": 1\ndata: \"b\": 2}\n\n", ErrorKind::Protocol);
    stage.fails(event("{\"content\": \"\0\"}"), ErrorKind::Protocol);
    let long = event(format!("{{{}", "x".repeat(5000)));
    let error = stage.fails(long, ErrorKind::Protocol);
    let excerpt = error.to_string().matches('x').count();
    assert!((100..=512).contains(&excerpt), "{excerpt} bytes are shown");
}

#[test]
fn what_carries_the_reply_and_cannot_be_read_ends_it() {
    let stage = Stage::new();
    let table = r#"
        5
        true
        "words"
        [5]
        {"choices":"words"}
        {"choices":5}
        {"choices":[{"delta":5}]}
        {"choices":[{"delta":"words"}]}
        {"choices":[{"delta":[{"content":"words"}]}]}
        {"choices":[{"message":"words"}]}
        {"choices":[5]}
        {"choices":{"delta":{"content":"words"}}}
        {"choices":[{"delta":{"content":5}}]}
        {"choices":[{"delta":{"content":0}}]}
        {"choices":[{"delta":{"content":true}}]}"#;
    for json in rows(table) {
        let error = stage.fails(event(json), ErrorKind::Protocol);
        assert!(error.to_string().contains(json), "{error}");
    }
}

#[test]
fn json_may_be_nested_deep_and_not_endlessly() {
    let stage = Stage::new();
    let nested = |n: usize| {
        let deep = "[{\"x\":".repeat(n) + "0" + &"}]".repeat(n);
        delta(format!(r#"{{"content":"a","deep":{deep}}}"#))
    };
    stage.says(nested(50), &["a"]);
    let (hello, endless) = (content("Hello"), nested(100_000));
    for bytes in [&endless, &endless[6..]] {
        let outcome = stage.parts([hello.as_bytes(), bytes.as_bytes()], LAST_CHUNK);
        outcome.is(&["Hello"], ErrorKind::Protocol);
    }
}

// Chunks.

#[test]
fn whatever_may_be_missing_null_or_empty_changes_nothing() {
    let stage = Stage::new();
    // Azure, llama.cpp, Cloudflare and mockllm are among them.
    let table = r#"
        {}
        {"choices":null}
        {"choices":[],"prompt_filter_results":[{"prompt_index":0}],"id":"","model":""}
        {"choices":[{"index":0,"content_filter_results":{},"finish_reason":null}]}
        {"choices":[null]}
        {"choices":[{}]}
        {"choices":{}}
        {"choices":""}
        {"choices":[{"delta":null}]}
        {"choices":[{"delta":[]}]}
        {"choices":[{"delta":""}]}
        {"choices":[{"delta":{}}]}
        {"choices":[{"message":null}]}
        {"choices":[{"delta":{"role":"assistant","content":null}}],"model":""}
        {"choices":[{"delta":{"role":null,"content":""},"index":null,"logprobs":null}]}
        {"choices":[{"delta":{"tool_calls":null,"function_call":null,"refusal":null}}]}
        {"choices":[{"delta":{"tool_calls":[],"reasoning":null,"reasoning_content":""}}]}
        {"choices":[{"delta":{"tool_calls":{}}}]}
        {"choices":[{"delta":{"tool_calls":[null]}}]}
        {"choices":[{"delta":{"content":[],"reasoning_details":[]}}]}
        {"choices":[{"delta":{"content":[{"type":"text","text":null},{"type":"reference"}]}}]}
        {"id":7,"object":"chat.completion.chunk","model":null,"usage":null,"x_groq":null}"#;
    let (a, b) = (content("a"), content("b"));
    for chunk in rows(table).map(event) {
        let reply = stage.says([&*chunk, &a, &chunk, &b, &chunk].concat(), &["a", "b"]);
        assert_eq!(reply.tool_calls, [""; 0], "{chunk}");
        assert_eq!((reply.finish_reason, reply.usage), (None, None), "{chunk}");
        assert_eq!(reply.reasoning, "");
    }
}

#[test]
fn of_two_members_with_one_name_the_last_counts() {
    let stage = Stage::new();
    let two = |one: &str, two: &str| delta(format!(r#"{{"content":{one},"content":{two}}}"#));
    stage.says(two("5", "\"a\""), &["a"]);
    stage.says(two("\"no\"", "\"a\""), &["a"]);
    stage.fails(two("\"no\"", "5"), ErrorKind::Protocol);
}

#[test]
fn the_finish_reason_is_the_services_word() {
    let stage = Stage::new();
    for word in ",null,stop,length,content_filter,eos_token,ÜNKNOWN".split(',') {
        // Ollama, SGLang and LocalAI send "", KoboldCpp "null".
        let known = Some(word.to_owned()).filter(|_| !["", "null"].contains(&word));
        let reply = stage.says(content("a") + &finish(word), &["a"]);
        assert_eq!(reply.finish_reason, known);
        // In the chunk of the last content; and what says none does not take it back.
        let last = choice(json!({"delta": {"content": "b"}, "finish_reason": word}));
        for after in ["{}", r#"{"finish_reason":null}"#, r#"{"finish_reason":""}"#] {
            let reply = stage.says(content("a") + &last + &choice(after), &["a", "b"]);
            assert_eq!(reply.finish_reason, known);
        }
    }
}

#[test]
fn the_usage_is_the_last_that_says_something() {
    let stage = Stage::new();
    // Each row is a stream; `U` is the usage that counts, `a` a choice with text.
    let table = r#"
        {"choices":[a],"usage":null} {"choices":[stop],"usage":U}
        {"choices":[a],"usage":{}} {"choices":[stop]} {"choices":[],"usage":U}
        {"choices":[a]} {"choices":[stop]} {"choices":[{"index":0,"delta":{}}],"usage":U}
        {"choices":[a]} {"choices":[stop]} {"usage":U}
        {"choices":[a],"usage":{"prompt_tokens":0,"completion_tokens":0}} {"choices":[],"usage":U}
        {"choices":[a],"usage":{"prompt_tokens":5,"completion_tokens":1}} {"choices":[],"usage":U}
        {"choices":[a],"usage":U} {"choices":[stop],"usage":null} {"choices":[],"usage":{}}
        {"choices":[a]} {"choices":[],"x_groq":{"id":"r","usage":U}}
        {"choices":[a]} {"choices":[{"delta":{},"finish_reason":"stop","usage":U}]}"#;
    let counts = json!({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8});
    for row in rows(table) {
        let lines = row
            .replace("[a]", r#"[{"delta":{"content":"a"}}]"#)
            .replace("[stop]", r#"[{"delta":{},"finish_reason":"stop"}]"#)
            .replace('U', &counts.to_string());
        let reply = stage.says(lines.split(' ').map(event).collect::<String>(), &["a"]);
        assert_eq!(reply.usage.as_ref(), Some(&counts), "{row}");
        assert_eq!(reply.prompt_tokens(), Some(5));
        assert_eq!(reply.completion_tokens(), Some(3));
        assert_eq!(reply.total_tokens(), Some(8));
    }
    let reply = stage.says(content("a") + &finish("stop"), &["a"]);
    assert_eq!((reply.usage.as_ref(), reply.total_tokens()), (None, None));
    let long = stage.parts(
        [whole(&"x".repeat(100_000)).to_string().as_bytes()],
        LAST_CHUNK,
    );
    assert_eq!(long.reply.total_tokens(), Some(3));
}

#[test]
fn cached_and_reasoning_tokens_have_several_names() {
    let stage = Stage::new();
    // The counts of cached and of reasoning tokens, and the usage.
    let table = r#"
        - - {"total_tokens":9}
        - - {"prompt_tokens_details":null,"completion_tokens_details":{}}
        4 2 {"prompt_tokens_details":{"cached_tokens":4},"reasoning_tokens":2}
        - 2 {"completion_tokens_details":{"reasoning_tokens":2}}
        4 - {"prompt_cache_hit_tokens":4,"prompt_cache_miss_tokens":1}
        0 - {"cached_tokens":0}"#;
    for row in rows(table) {
        let lines = content("a") + &event(format!(r#"{{"choices":[],"usage":{}}}"#, &row[4..]));
        let reply = stage.says(lines, &["a"]);
        let shown = |count: Option<u64>| count.map_or("-".into(), |count| count.to_string());
        let (cached, reasoning) = (reply.cached_tokens(), reply.reasoning_tokens());
        assert_eq!(
            [shown(cached), shown(reasoning)],
            [&row[..1], &row[2..3]],
            "{row}"
        );
        assert_eq!(reply.prompt_tokens(), None);
    }
}

#[test]
fn thoughts_come_apart_from_the_text_whatever_they_are_called() {
    let stage = Stage::new();
    // The same in two members is not said twice.
    let table = r#"
        {"reasoning_content":T}
        {"reasoning":T}
        {"role":"assistant","content":null,"reasoning_content":T}
        {"reasoning_content":"","reasoning":T,"content":""}
        {"reasoning_content":T,"reasoning":T}
        {"reasoning":T,"reasoning_details":[{"type":"reasoning.text","text":T,"index":0}]}
        {"reasoning_details":[{"type":"reasoning.text","text":T,"format":"x","index":0}]}
        {"reasoning_details":[{"type":"reasoning.summary","summary":T}]}
        {"content":[{"type":"thinking","thinking":[{"type":"text","text":T}]}]}
        {"content":[{"type":"thinking","thinking":T,"closed":true}]}"#;
    for row in rows(table) {
        let thought = |text: &str| delta(row.replace('T', &format!("{text:?}")));
        let body = [
            thought("Let me "),
            thought("see. "),
            delta(json!({"role": "assistant", "content": "It "})),
            thought("Yes."),
            content("is."),
            finish("stop"),
            DONE.into(),
        ];
        let outcome = stage.say(body.concat()).is(&["It ", "is."], None);
        assert_eq!(outcome.of(Thought), ["Let me ", "see. ", "Yes."], "{row}");
        let order: Vec<Told> = outcome.spoken().iter().map(|(told, _)| *told).collect();
        assert_eq!(order, [Thought, Thought, Text, Thought, Text]);
        // They are no part of what is said to the model next.
        let message = json!({"role": "assistant", "content": "It is."});
        assert_eq!(outcome.reply.message(), message);
    }
}

#[test]
fn content_may_come_in_parts() {
    let stage = Stage::new();
    let table = r#"
        [{"type":"thinking","thinking":"Hm"},{"type":"text","text":"a"}]
        [{"type":"text","text":"b"},{"type":"text","text":"c"}]
        {"type":"text","text":"d"}
        ["e"]
        "f""#;
    let chunks = rows(table).map(|content| delta(format!(r#"{{"content":{content}}}"#)));
    let reply = stage.says(chunks.collect::<String>(), &["a", "bc", "d", "e", "f"]);
    assert_eq!(reply.reasoning, "Hm");
}

#[test]
fn of_several_choices_the_first_is_the_reply() {
    let stage = Stage::new();
    let of = |index: u64, text: &str| json!({"index": index, "delta": {"content": text}});
    let both = |a: &str, b: &str| choice(format!("{},{}", of(0, a), of(1, b)));
    stage.says(both("a", "x") + &both("b", "y"), &["a", "b"]);
    let lines = choice(of(0, "a")) + &choice(of(1, "x")) + &choice(of(0, "b"));
    stage.says(lines, &["a", "b"]);
    // The other's end is not the reply's.
    let end = choice(r#"{"index":1,"delta":{},"finish_reason":"length"}"#);
    let outcome = stage.say(both("a", "x") + &end);
    outcome.is(&["a"], ErrorKind::Truncated);
    let choices = r#"{"index":0,"message":{"content":"a"},"finish_reason":"stop"},
                     {"index":1,"message":{"content":"x"},"finish_reason":"length"}"#;
    let outcome = stage.say(format!(r#"{{"choices":[{choices}]}}"#));
    let reply = outcome.is(&["a"], None).reply;
    assert_eq!(reply.finish_reason.as_deref(), Some("stop"));
}

#[test]
fn a_last_chunk_that_repeats_the_message_adds_nothing() {
    let stage = Stage::new();
    let message = r#""message":{"role":"assistant","content":"ab","reasoning_content":"Hm"}"#;
    for beside in ["", r#""delta":{},"#, r#""delta":{"content":""},"#] {
        let last = choice(format!(r#"{{{beside}{message},"finish_reason":"stop"}}"#));
        let thought = delta(r#"{"reasoning_content":"Hm"}"#);
        let lines = thought + &content("a") + &content("b") + &last;
        let reply = stage.says(lines, &["a", "b"]);
        assert_eq!(reply.reasoning, "Hm");
        assert_eq!(reply.finish_reason.as_deref(), Some("stop"));
    }
}

#[test]
fn a_whole_message_brings_what_its_parts_did_not() {
    let stage = Stage::new();
    let call = r#"{"id":"a","type":"function","function":{"name":"f","arguments":"{}"}}"#;
    let message =
        format!(r#"{{"role":"assistant","content":"ab","reasoning":"Hm","tool_calls":[{call}]}}"#);
    let last = choice(format!(r#"{{"message":{message},"finish_reason":"stop"}}"#));
    let role = delta(r#"{"role":"assistant","content":""}"#);
    for (parts, pieces) in [
        (role, &["ab"][..]),
        (delta(r#"{"reasoning":"Hm"}"#), &["ab"]),
        (content("a") + &content("b"), &["a", "b"]),
        (delta(format!(r#"{{"tool_calls":[{call}]}}"#)), &["ab"]),
    ] {
        let reply = stage.says(parts + &last, pieces);
        assert_eq!(reply.reasoning, "Hm");
        let call: Value = serde_json::from_str(call).unwrap();
        assert_eq!(reply.tool_calls, [call]);
    }
}

#[test]
fn messages_in_place_of_deltas_are_parts_and_end_as_parts_do() {
    let stage = Stage::new();
    let message = |text: &str| choice(json!({"message": {"content": text}}));
    let parts = message("Hel") + &message("lo");
    stage.says(&parts, &["Hel", "lo"]);
    stage.say(&parts).is(&["Hel", "lo"], ErrorKind::Truncated);
    stage.say(parts + &finish("stop")).is(&["Hel", "lo"], None);
}

#[test]
fn chunks_may_come_bare_or_in_an_array() {
    let stage = Stage::new();
    let lines = content("a") + &content("b") + &finish("stop");
    let bare = lines.replace("data: ", "");
    for bare in [
        bare.clone(),
        bare.replace("\n\n", "\n"),
        bare.replace('\n', ""),
    ] {
        stage.say(&bare).is(&["a", "b"], None);
        stage.say(bare + DONE).is(&["a", "b"], None);
    }
    let chunks: Vec<&str> = rows(&lines).map(|line| &line["data: ".len()..]).collect();
    stage.says(event(format!("[{}]", chunks[..2].join(","))), &["ab"]);
}

#[test]
fn a_completion_may_be_of_the_time_before_there_were_chats() {
    let stage = Stage::new();
    let old = r#"{"choices":[{"index":0,"text":"Hi","finish_reason":"stop"}]}"#;
    stage.say(old).is(&["Hi"], None);
    stage.says(event(old), &["Hi"]);
    let null = old.replace("\"text\"", "\"delta\":null,\"text\"");
    stage.says(event(null), &["Hi"]);
    stage.play(old, Peer::stall).is(&["Hi"], None);
}

#[test]
fn a_refusal_is_what_the_model_says() {
    let stage = Stage::new();
    let piece = |text: &str| delta(json!({"refusal": text}));
    let last = choice(json!({"message": {"refusal": "I cannot"}, "finish_reason": "stop"}));
    stage.says(piece("I can") + &piece("not") + &last, &["I can", "not"]);
    let lines = delta(r#"{"role":"assistant","content":null,"refusal":""}"#)
        + &delta(r#"{"refusal":"I "}"#)
        + &delta(r#"{"refusal":"won't."}"#);
    let reply = stage.says(lines + &finish("stop"), &["I ", "won't."]);
    assert_eq!(reply.message()["content"], "I won't.");
}

#[test]
fn the_model_and_the_request_have_the_names_that_the_service_gives() {
    let stage = Stage::new();
    let named = |id: &str, model: &str| {
        let choices = json!([{"delta": {"content": "a"}}]);
        event(json!({"id": id, "model": model, "choices": choices}))
    };
    // An id that changes, and names that are empty at first or at last.
    let lines = named("", "") + &named("one", "tiny") + &named("two", "") + &named("three", "");
    let reply = stage.says(&lines, &["a"; 4]);
    assert_eq!(reply.request_id.as_deref(), Some("one"));
    assert_eq!(reply.model.as_deref(), Some("tiny"));
    let lines_of_an_alias = content("a") + &named("", "no") + &named("", "yes");
    let reply = stage.says(lines_of_an_alias, &["a"; 3]);
    assert_eq!(reply.request_id.as_deref(), Some("chatcmpl-1"));
    assert_eq!(reply.model.as_deref(), Some("yes"));
    // The header is what stands in the service's log.
    let outcome = stage.chat(&[], move |peer| {
        peer.header("X-Request-ID", "req_7");
        peer.sse_head();
        peer.chunk(lines + DONE);
    });
    assert_eq!(outcome.reply.request_id.as_deref(), Some("req_7"));
}

#[test]
fn the_events_are_handed_out_as_they_came() {
    let stage = Stage::new();
    let events = [
        r#"{ "choices":[ ],"unknown" : 1.50 }"#,
        r#"{"choices":[{"delta":{"content":"\u0061\ud83d"}}]}"#,
        r#"{"choices":[{"delta":{"content":"\ude00"}}], "a": 1, "a": 2}"#,
        r#"{"error": "no"}"#,
    ];
    let body: String = events.iter().map(event).collect();
    let outcome = stage.say(": comment\n\n".to_owned() + &body + &content("unread") + DONE);
    assert_eq!(outcome.of(Json), events);
    // Each before what it brought.
    let kinds: Vec<Told> = outcome.told.iter().map(|(told, _)| *told).collect();
    assert_eq!(kinds, [Json, Json, Text, Json, Text, Json]);
    outcome.is(&["a", "😀"], ErrorKind::Server);
}

// Characters.

#[test]
fn a_lone_surrogate_becomes_a_replacement_character() {
    let stage = Stage::new();
    for (string, text) in [
        (r"\ud83d\ude00", "😀"),
        (r"a\ud83db", "a\u{fffd}b"),
        (r"a\ude00b", "a\u{fffd}b"),
        (r"\ude00", "\u{fffd}"),
        (r"\ude00\ud83d!", "\u{fffd}\u{fffd}!"),
        (r"\ud83d\ud83d\ude00", "\u{fffd}😀"),
        (r#"\uD83D\uDE00\u00e9\n\\ud83d\""#, "😀é\n\\ud83d\""),
        (r"\ud83d\n", "\u{fffd}\n"),
        (r"a\u0000b", "a\0b"),
    ] {
        stage.says(escaped("content", string), &[text]);
        let reply = stage.says(escaped("reasoning", string), &[]);
        assert_eq!(reply.reasoning, text);
        // In what is neither, too.
        stage.says(escaped(string, string) + &content("a"), &["a"]);
    }
}

#[test]
fn half_a_character_waits_for_its_other_half() {
    let stage = Stage::new();
    for (strings, pieces) in [
        (&[r"a\ud83d", r"\ude00b"][..], &["a", "😀b"][..]),
        (&[r"a\ud83d", "", r"\ude00"], &["a", "😀"]),
        (&[r"\ud83d", r"\ude00\ud83d", r"\ude00"], &["😀", "😀"]),
        (&[r"a\ud83d", "b"], &["a", "\u{fffd}b"]),
        (&[r"a\ud83d", "😀"], &["a", "\u{fffd}😀"]),
        (&[r"\ud83d", r"\ud83d", r"\ude00"], &["\u{fffd}", "😀"]),
        (&[r"\ude00", r"\ud83d\ude00"], &["\u{fffd}", "😀"]),
        // It never comes.
        (&[r"a\ud83d"], &["a", "\u{fffd}"]),
    ] {
        let chunks = |member: &str| -> String {
            let other = delta(r#"{"role":"assistant"}"#) + ": ping\n\n";
            let chunks = strings.iter().map(|string| escaped(member, string));
            chunks.map(|chunk| chunk + &other).collect()
        };
        let lines = chunks("content");
        stage.says(&lines, pieces);
        let thoughts = stage.say(chunks("reasoning_content") + DONE).is(&[], None);
        assert_eq!(thoughts.of(Thought), pieces);
        // However the reply ends.
        stage.say(&lines).is(pieces, ErrorKind::Truncated);
        let outcome = stage.play(&lines, Peer::reset);
        outcome.is(pieces, ErrorKind::Truncated);
        let error = event(r#"{"error":"no"}"#);
        stage.say(lines + &error).is(pieces, ErrorKind::Server);
    }
    // The text and the thoughts have each their own.
    let lines = escaped("content", r"\ud83d")
        + &escaped("reasoning", r"\ude00\ud83e")
        + &escaped("content", r"\ude00")
        + &escaped("reasoning", r"\udd14");
    assert_eq!(stage.says(lines, &["😀"]).reasoning, "\u{fffd}🤔");
    // What begins another string is not the other half.
    let lines = escaped("content", r"a\ud83d") + &delta(r#"{"content":"bcd","x":"\ude00"}"#);
    stage.says(lines, &["a", "\u{fffd}bcd"]);
}

#[test]
fn invalid_utf_8_becomes_replacement_characters() {
    let stage = Stage::new();
    for (bytes, text) in [
        (&b"a\xffb"[..], "a\u{fffd}b"),
        (b"\xc3", "\u{fffd}"),
        (b"\xf0\x9f\x98!", "\u{fffd}!"),
        (b"\xed\xa0\x80", "\u{fffd}\u{fffd}\u{fffd}"),
        (b"a\xff\\ud83d\\u0041", "a\u{fffd}\u{fffd}A"),
    ] {
        let before = br#"data: {"choices":[{"delta":{"content":""#;
        stage.says([before, bytes, b"\"}}]}\n"].concat(), &[text]);
        let comment = [b": ", bytes, b"\nun\xffknown: ", bytes, b"\n\n"].concat();
        stage.says([&*comment, content("a").as_bytes()].concat(), &["a"]);
    }
}

// Tool calls.

/// Streams of calls. A row is a chunk; `name` and `arguments` are members of `function` on the
/// wire. Behind `=` stand the id, name and arguments of each call.
const CALLS: &str = r#"
OpenAI
  {"index":0,"id":"a","type":"function","name":"f","arguments":""}
  {"index":0,"arguments":"{\"x\""}
  {"index":0,"arguments":": 1}"}
  {"index":1,"id":"b","type":"function","name":"g","arguments":""}
  {"index":1,"arguments":"{\"y\": 2}"}
= a f {"x": 1}
= b g {"y": 2}

Both in one chunk, and in turns
  {"index":0,"id":"a","name":"f","arguments":"{"}, {"index":1,"id":"b","name":"g","arguments":"{"}
  {"index":1,"arguments":"\"y\": 2"}, {"index":0,"arguments":"\"x\": 1"}
  {"index":0,"arguments":"}"}
  {"index":1,"arguments":"}"}
= a f {"x": 1}
= b g {"y": 2}

Ollama: neither index nor id, arguments in a string or not
  {"name":"f","arguments":{"x":1}}, {"name":"f","arguments":"{\"x\":2}"}
  {"name":"f","arguments":{}}
  {"name":"f","arguments":{"x":[4,{}],"a":null}}
= MADE f {"x":1}
= MADE f {"x":2}
= MADE f {}
= MADE f {"x":[4,{}],"a":null}

The same, with nothing to argue
  {"name":"f","arguments":""}
  {"name":"f"}, {"name":"g","arguments":{}}
= MADE f {}
= MADE f {}
= MADE g {}

The index is always 0: whole calls
  {"index":0,"id":"a","name":"f","arguments":"{\"x\": 1}"}
  {"index":0,"id":"b","name":"g","arguments":"{\"y\": 2}"}
= a f {"x": 1}
= b g {"y": 2}

The index is always 0: calls in pieces
  {"index":0,"id":"a","name":"f","arguments":""}
  {"index":0,"arguments":"{\"x\": 1}"}
  {"index":0,"id":"b","name":"g","arguments":""}
  {"index":0,"arguments":"{\"y\""}
  {"index":0,"arguments":": 2}"}
= a f {"x": 1}
= b g {"y": 2}

The index is always 0: nothing to argue
  {"index":0,"id":"a","name":"f","arguments":""}, {"index":0,"id":"b","name":"f","arguments":""}
= a f {}
= b f {}

Ids, but no index
  {"id":"a","name":"f","arguments":"{\"x\""}
  {"index":null,"arguments":": 1}"}
  {"id":"b","name":"g","arguments":""}
  {"arguments":"{\"y\": 2}"}
= a f {"x": 1}
= b g {"y": 2}

Id and name in each piece
  {"index":0,"id":"a","name":"f","arguments":""}
  {"index":0,"id":"a","name":"f","arguments":"{\"x\": "}
  {"index":0,"id":"a","name":"f","arguments":"1}"}
  {"index":0,"id":"a","name":"f","arguments":""}
= a f {"x": 1}

The name in each piece, and no id
  {"index":0,"name":"f","arguments":""}
  {"index":0,"name":"f","arguments":"{\"x\":"}
  {"index":0,"name":"f","arguments":"1}"}
  {"index":0,"name":"f","arguments":""}
= MADE f {"x":1}

Ids and names in each piece, but no index, in turns
  {"id":"a","name":"f","arguments":"{\"x\""}
  {"id":"b","name":"g","arguments":"{\"y\""}
  {"id":"a","name":"f","arguments":": 1}"}
  {"id":"b","name":"g","arguments":": 2}"}
= a f {"x": 1}
= b g {"y": 2}

No id; then empty ids and names
  {"index":0,"type":"function","name":"f","arguments":""}
  {"index":0,"id":"","type":"","name":"","arguments":"{\"x\":"}
  {"index":0,"id":null,"type":null,"name":null,"arguments":"1}"}
= MADE f {"x":1}

An id that comes late
  {"index":0,"id":"","name":"f","arguments":"{\"x\""}
  {"index":0,"id":"a","arguments":": 1}"}
= a f {"x": 1}

A name in pieces
  {"index":0,"id":"a","name":"get_","arguments":""}
  {"index":0,"name":"weather"}
  {"index":0,"arguments":"{}"}
= a get_weather {}

An id that comes before its name
  {"id":"a","name":"f","arguments":"{}"}
  {"id":"b"}
  {"name":"g","arguments":"{\"y\": 1}"}
= a f {}
= b g {"y": 1}

A name repeated behind the whole
  {"index":0,"id":"a","name":"f","arguments":"{}"}
  {"index":0,"id":"","name":"f","arguments":""}
= a f {}

All numbered 0, with arguments that no bracket ends
  {"index":0,"id":"a","name":"f","arguments":"null"}
  {"index":0,"id":"b","name":"g","arguments":"{}"}
= a f null
= b g {}

All numbered 0, the pieces in turn
  {"index":0,"id":"a","name":"f","arguments":"{\"x\""}
  {"index":0,"id":"b","name":"g","arguments":"{\"y\""}
  {"index":0,"id":"a","arguments":": 1}"}
  {"index":0,"id":"b","arguments":": 2}"}
= a f {"x": 1}
= b g {"y": 2}

Calls of nothing
  {"index":0,"name":"","arguments":""}
  {}

Arguments empty, null, missing
  {"index":0,"id":"a","name":"f","arguments":""}
  {"index":1,"id":"b","name":"f","arguments":null}
  {"index":2,"id":"c","name":"f"}
= a f {}
= b f {}
= c f {}

Numbers that do not begin at 0
  {"index":1,"id":"a","name":"f","arguments":"{\"x\": 1}"}
  {"index":7,"id":"b","name":"g","arguments":"{\"y\": 2}"}
= a f {"x": 1}
= b g {"y": 2}
"#;

/// A chunk of these pieces of calls, written as in [`CALLS`].
fn calls(row: &str) -> String {
    let mut pieces: Vec<Value> = serde_json::from_str(&format!("[{row}]")).unwrap();
    for piece in &mut pieces {
        let piece = piece.as_object_mut().unwrap();
        let mut function = json!({});
        for name in ["name", "arguments"] {
            if let Some(value) = piece.remove(name) {
                function[name] = value;
            }
        }
        piece.insert("function".into(), function);
    }
    delta(json!({"tool_calls": pieces}))
}

#[test]
fn tool_calls_are_put_together_from_whatever_pieces_they_come_in() {
    let stage = Stage::new();
    for stream in CALLS.trim().split("\n\n") {
        let (expected, chunks): (Vec<_>, Vec<_>) =
            stream.lines().skip(1).partition(|row| row.starts_with('='));
        let call = |row: &str| {
            let [_, id, name, arguments] = row.splitn(4, ' ').collect::<Vec<_>>()[..] else {
                panic!("{row}")
            };
            let function = json!({"name": name, "arguments": arguments});
            json!({"id": id, "type": "function", "function": function})
        };
        let none = delta(r#"{"content":null,"tool_calls":null}"#);
        let lines: String = chunks.iter().map(|row| calls(row) + &none).collect();
        let lines = content("Let me see.") + &lines + &finish("tool_calls");
        let reply = stage.says(lines, &["Let me see."]);
        let expected: Vec<Value> = expected.into_iter().map(call).collect();
        assert_eq!(with_made_ids(&reply.tool_calls), expected, "{stream}");
        let ids = reply.tool_calls.iter().map(|call| call["id"].as_str());
        let ids: HashSet<_> = ids.collect();
        assert_eq!(ids.len(), expected.len(), "each has an id of its own");
    }
}

#[test]
fn two_calls_of_one_id_are_two_where_they_are_numbered() {
    let stage = Stage::new();
    let lines = calls(r#"{"index":0,"id":"call","name":"f","arguments":"{\"x\":1}"}"#)
        + &calls(r#"{"index":1,"id":"call","name":"g","arguments":"{\"y\":1}"}"#);
    let reply = stage.says(lines, &[]);
    let names = reply
        .tool_calls
        .iter()
        .map(|call| &call["function"]["name"]);
    assert_eq!(names.collect::<Vec<_>>(), ["f", "g"]);
}

#[test]
fn a_call_may_be_of_the_time_before_there_were_several() {
    let stage = Stage::new();
    let call = |call: &str| delta(format!(r#"{{"content":null,"function_call":{call}}}"#));
    let lines = call(r#"{"name":"f","arguments":""}"#) + &call(r#"{"arguments":"{\"x\":"}"#);
    let reply = stage.says(lines + &call(r#"{"arguments":"1}"}"#), &[]);
    let function = json!({"name": "f", "arguments": "{\"x\":1}"});
    assert_eq!(reply.tool_calls[0]["function"], function);
    assert_eq!(reply.tool_calls.len(), 1);
}

#[test]
fn members_of_a_call_that_are_not_of_the_protocol_are_kept() {
    let stage = Stage::new();
    // Gemini wants it back.
    let extra = json!({"google": {"thought_signature": "c2ln"}});
    let call = json!({"extra_content": extra, "id": "a", "name": "f", "arguments": "{}"});
    let reply = stage.says(calls(&call.to_string()), &[]);
    assert_eq!(reply.tool_calls[0]["extra_content"], extra);
    assert_eq!(reply.message()["tool_calls"][0]["extra_content"], extra);
}

#[test]
fn a_character_may_be_split_over_the_pieces_of_arguments() {
    let stage = Stage::new();
    for (pieces, arguments) in [
        (&[r#"{\"x\":\"\ud83d"#, r#"\ude00\"}"#][..], r#"{"x":"😀"}"#),
        (&[r#"{\"x\":\"\ud83d"#, r#"\"}"#], "{\"x\":\"\u{fffd}\"}"),
        (&[r#"{\"x\":\"\\ud83d"#, r#"\"}"#], r#"{"x":"\ud83d"}"#),
        (&[r#"{\"x\":\"\ud83d"#], "{\"x\":\"\u{fffd}"),
    ] {
        let call = |piece: &&str| {
            let function = format!(r#"{{"name":"f","arguments":"{piece}"}}"#);
            let call = format!(r#"{{"id":"a","function":{function}}}"#);
            delta(format!(r#"{{"tool_calls":[{call}]}}"#))
        };
        let reply = stage.says(pieces.iter().map(call).collect::<String>(), &[]);
        assert_eq!(reply.tool_calls[0]["function"]["arguments"], arguments);
    }
}

#[test]
fn calls_of_a_reply_that_was_cut_are_kept_as_far_as_they_came() {
    let stage = Stage::new();
    let lines = calls(r#"{"index":0,"id":"a","name":"f","arguments":"{}"}"#)
        + &calls(r#"{"index":1,"id":"b","name":"f","arguments":"{\"x\""}"#);
    for end in [LAST_CHUNK, Peer::close, Peer::reset] {
        let outcome = stage.play(lines.clone() + "data: {", end);
        let calls = outcome.is(&[], ErrorKind::Truncated).reply.tool_calls;
        assert_eq!(calls.len(), 2);
        assert_eq!(calls[0]["function"]["arguments"], "{}");
        assert_eq!(calls[1]["function"]["arguments"], "{\"x\"");
    }
}

#[test]
fn the_message_and_the_results_of_its_calls_go_on_with_the_conversation() {
    let stage = Stage::new();
    let both = r#"{"name":"weather","arguments":{"in":"Oslo"}}, {"name":"time","arguments":{}}"#;
    for text in [json!(null), json!("Let me see.")] {
        let pieces: Vec<&str> = text.as_str().into_iter().collect();
        let lines = delta(json!({"content": text})) + &calls(both) + &finish("tool_calls");
        let reply = stage.says(lines, &pieces);
        let (message, calls) = (reply.message(), reply.tool_calls);
        assert_eq!(
            message,
            json!({"role": "assistant", "content": text, "tool_calls": calls})
        );

        let mut talk = Conversation::from("What is it like there?");
        talk.push_json(message.clone()).unwrap();
        talk.push(Message::tool("Rain"));
        talk.push(Message::tool("Noon"));
        // The service refuses a result that belongs to no call.
        let reply = stage.client.complete(&talk).expect("a reply");
        assert_eq!(reply.text, "time says: Noon");
        let sent = stage.service.requests().pop().unwrap().json();
        assert_eq!(sent["messages"][1], message);
        for (at, content) in ["Rain", "Noon"].into_iter().enumerate() {
            let id = &message["tool_calls"][at]["id"];
            let result = json!({"role": "tool", "content": content, "tool_call_id": id});
            assert_eq!(sent["messages"][2 + at], result);
        }
    }
}

// Sizes.

#[test]
fn the_piece_that_would_pass_the_limit_of_a_reply_is_not_delivered() {
    let stage = Stage::with([("max_reply_bytes", "40")]);
    let (twenty, long) = ("x".repeat(20), "z".repeat(41));
    let of = |member: &str, text: &str| delta(json!({member: text}));
    let call = |text: &str| calls(&json!({"name": "f", "arguments": text}).to_string());
    let (text, thought) = (of("content", &twenty), of("reasoning", &twenty));
    stage.says(text.repeat(2), &[&*twenty, &*twenty]);
    for (body, room) in [
        (text.repeat(2) + &content("z"), 40),
        (text.clone() + &content(&"é".repeat(10)) + &content("z"), 40),
        (text.clone() + &content(&long), 20),
        (text.clone() + &of("refusal", &long), 20),
        // Thoughts and calls count, too.
        (text.clone() + &of("reasoning", &long), 20),
        (text + &call(&long), 20),
        (thought.repeat(2) + &content("z"), 0),
        (call(&twenty) + &content(&long[..20]), 0),
        (whole(&long).to_string(), 0),
    ] {
        let outcome = stage.play(body, Peer::stall);
        assert_eq!(outcome.kind(), Some(ErrorKind::Limit), "{}", outcome.body);
        assert_eq!(outcome.code(), Some("reply"));
        assert_eq!(outcome.reply.text.len(), room, "{}", outcome.body);
        let has_z = |(_, piece): &(Told, &str)| piece.contains('z');
        assert!(!outcome.spoken().iter().any(has_z), "{}", outcome.body);
    }
}

#[test]
fn calls_without_number_and_json_without_end_are_beyond_the_limit() {
    let stage = Stage::new();
    let many = vec![r#"{"name":"f","arguments":{}}"#; 2000].join(",");
    let endless = format!("{{\"choices\": [{}", " ".repeat(2 << 20));
    for body in [calls(&many), endless] {
        let outcome = stage.parts([content("Hello").as_bytes(), body.as_bytes()], Peer::stall);
        outcome.is(&["Hello"], ErrorKind::Limit);
    }
}

#[test]
fn the_work_is_linear_in_the_bytes() {
    let stage = Stage::new();
    let call = |arguments: &str| json!({"index": 0, "name": "f", "arguments": arguments});
    let piece = |arguments: &str| calls(&call(arguments).to_string());
    let many = piece("{\"x\":[") + &piece("{} ,").repeat(20_000) + &content("Hello");
    let one = content("Hello").replace(',', &format!(",{}", "\ndata:".repeat(100_000)));
    let mut json = whole("Hello");
    json["deep"] = "x".repeat(900_000).into();
    for body in [many + DONE, one + DONE, json.to_string()] {
        // If it were not, the limit of every chat would not do.
        let outcome = stage.parts(body.as_bytes().chunks(16), Peer::stall);
        outcome.is(&["Hello"], None);
    }
}

// Replies of which it is known what they say.

/// What an event adds to the reply, in UTF-16: it may end in half a character.
enum Part {
    Text(Vec<u16>),
    Thought(Vec<u16>),
    /// To the arguments of the call with this name.
    Call(String, Vec<u16>),
}

/// How a service writes its calls.
#[derive(Clone, Copy, PartialEq)]
enum Calling {
    /// As OpenAI does.
    Numbered,
    /// The same, with id and name in each piece.
    Repeated,
    /// The same, without ids.
    Nameless,
    /// Whole, and the number of each is 0.
    Zero,
    /// Whole, with neither number nor id.
    Bare,
}

/// A body, and what it says.
#[derive(Default)]
struct Made {
    body: String,
    /// Each event's JSON, where in the body that ends, and what it adds.
    events: Vec<(String, usize, Option<Part>)>,
    /// Where `[DONE]` ends.
    done: Option<usize>,
}

impl Random {
    fn text(&mut self, most: usize) -> String {
        let all = "abc XYZ\0\n\r\"\\/:{}[]é¿ßЖ€漢\u{2028}\u{feff}\u{fffd}💥😀🤔";
        let all: Vec<char> = all.chars().collect();
        let length = self.below(most + 1);
        (0..length).map(|_| self.one(&all)).collect()
    }

    /// A text in pieces, cut between any two of its units.
    fn pieces(&mut self, text: &str) -> Vec<Vec<u16>> {
        let mut units: Vec<u16> = text.encode_utf16().collect();
        let mut pieces = Vec::new();
        while !units.is_empty() {
            let length = self.below(units.len().min(9) + 1);
            pieces.push(units.drain(..length).collect());
        }
        pieces
    }

    /// A JSON string; some of its characters are escaped though they need not be.
    fn quoted(&mut self, units: &[u16]) -> String {
        let mut json = String::new();
        for character in char::decode_utf16(units.iter().copied()) {
            let must_escape = |c: char| c.is_control() || "\"\\".contains(c);
            match character {
                Ok(c) if !must_escape(c) && self.below(4) > 0 => json.push(c),
                Ok(c) => {
                    let mut units = [0; 2];
                    let units = c.encode_utf16(&mut units).iter();
                    json.extend(units.map(|unit| format!("\\u{unit:04x}")));
                }
                Err(half) => json += &format!("\\u{:04X}", half.unpaired_surrogate()),
            }
        }
        format!("\"{json}\"")
    }

    /// The members of the delta that brings a part. Where there is a G, there may be a gap; no text
    /// has a G or a T in it.
    fn members(&mut self, part: &Part, calling: Calling, calls: &mut Vec<String>) -> String {
        const TEXTS: &[&str] = &[
            r#""content":GT"#,
            r#""role":"assistant",G"content":T,"tool_calls":null"#,
            r#""content":[{"type":"text",G"text":T}G]"#,
        ];
        const THOUGHTS: &[&str] = &[
            r#""reasoning_content":GT"#,
            r#""reasoning":T"#,
            r#""content":null,G"reasoning":T,"reasoning_content":GT"#,
            r#""reasoning_details":[{G"text":T}],"reasoning":T"#,
            r#""content":[{"type":"thinking","thinking":[{"text":T}]}]"#,
        ];
        let (name, units) = match part {
            Part::Text(units) => return self.one(TEXTS).replace('T', &self.quoted(units)),
            Part::Thought(units) => return self.one(THOUGHTS).replace('T', &self.quoted(units)),
            Part::Call(name, units) => (name, units),
        };
        let known = calls.iter().position(|call| call == name);
        let number = known.unwrap_or(calls.len());
        if known.is_none() {
            calls.push(name.clone());
        }
        let index = format!(r#""index":G{number},"#);
        let id = format!(r#""id":"{name}-id","#);
        let named = format!(r#""name":"{name}",G"#);
        let (index, id, named) = match (calling, known) {
            (Calling::Repeated, _) | (Calling::Numbered, None) => (&*index, &*id, &*named),
            (Calling::Numbered, Some(_)) => (&*index, "", ""),
            (Calling::Nameless, None) => (&*index, "", &*named),
            (Calling::Nameless, Some(_)) => (&*index, r#""id":"","#, r#""name":"","#),
            (Calling::Zero, _) => (r#""index":0,"#, &*id, &*named),
            (Calling::Bare, _) => ("", "", &*named),
        };
        let arguments = self.quoted(units);
        let function = format!(r#"G{{{named}"arguments":{arguments}G}}"#);
        format!(r#""tool_calls":[{{{index}{id}"function":{function}}}]"#)
    }

    /// Adds an event, in one of the ways to write it.
    fn event(&mut self, made: &mut Made, end: &str, json: &str, part: Option<Part>) {
        let gaps = self.one(&[["", " "], ["", " "], ["", "\n"]]);
        let mut text = String::new();
        for (n, piece) in json.split('G').enumerate() {
            text += if n > 0 { self.one(&gaps) } else { "" };
            text += piece;
        }
        let has_lines = text.contains('\n');
        for (n, line) in text.split('\n').enumerate() {
            if n > 0 {
                let between = self.one(&["\n", "\n", "\n: ping\n", "\nid: 3\n"]);
                made.body += &between.replace('\n', end);
            }
            made.body += self.one(&["data:", "data: "]);
            made.body += line;
        }
        made.events.push((text, made.body.len(), part));
        made.body += end;
        if has_lines || self.below(3) > 0 {
            made.body += end;
        }
        let others = ["", "", ": ping\n\n", "data:\n", "id: 3\n\n"];
        made.body += &self.one(&others).replace('\n', end);
    }

    /// A reply, and how a service calls its calls.
    fn reply(&mut self) -> (Made, Calling) {
        use Calling::*;
        let calling = self.one(&[Numbered, Repeated, Nameless, Zero, Bare]);
        let (text, other) = (self.text(20), self.text(20));
        let mut queues: Vec<Vec<Part>> = vec![
            self.pieces(&text).into_iter().map(Part::Text).collect(),
            self.pieces(&other).into_iter().map(Part::Thought).collect(),
        ];
        for n in 0..self.one(&[0, 0, 1, 2, 3]) {
            let arguments = json!({"x": self.text(9), "y": {}}).to_string();
            let pieces = match calling {
                Zero | Bare => vec![arguments.encode_utf16().collect()],
                _ => self.pieces(&arguments),
            };
            let part = |units| Part::Call(format!("f{n}"), units);
            queues.push(pieces.into_iter().map(part).collect());
        }

        let end = self.one(&["\n", "\r\n", "\r"]);
        let mut made = Made::default();
        made.body += self.one(&["", "\u{feff}"]);
        let first = self.one(&["", ": hello\n\n", "\n\n", "data: : ping\n"]);
        made.body += &first.replace('\n', end);
        let mut calls = Vec::new();
        // Each queue in its order, but in turns.
        queues.iter_mut().for_each(|queue| queue.reverse());
        queues.retain(|queue| !queue.is_empty());
        while !queues.is_empty() {
            let at = self.below(queues.len());
            let part = queues[at].pop();
            queues.retain(|queue| !queue.is_empty());
            let Some(part) = part else { continue };
            let members = self.members(&part, calling, &mut calls);
            let delta = format!(r#"G"delta":{{{members}}},"finish_reason":null"#);
            let json = format!(r#"{{G"id":"c","choices":[{{"index":0,{delta}}}G]}}"#);
            self.event(&mut made, end, &json, Some(part));
        }
        let finish = r#"{"choices":[{"delta":{},G"finish_reason":"stop"}]G}"#;
        self.event(&mut made, end, finish, None);
        if self.below(2) > 0 {
            made.body += "data: [DONE]";
            made.done = Some(made.body.len());
            made.body += end;
        }
        (made, calling)
    }

    /// The parts in which a body arrives.
    fn split<'a>(&mut self, mut body: &'a [u8]) -> Vec<&'a [u8]> {
        let most = self.one(&[1, 3, 20, 200, 10_000]);
        let mut parts = Vec::new();
        while !body.is_empty() {
            let (part, rest) = body.split_at((1 + self.below(most)).min(body.len()));
            parts.push(part);
            body = rest;
        }
        parts
    }
}

impl Made {
    /// What the first bytes of the body say: the text, the thoughts, and names and arguments of
    /// the calls.
    fn says(&self, bytes: usize) -> (String, String, Vec<(String, String)>) {
        let lossy = |units: Vec<u16>| String::from_utf16_lossy(&units);
        let (mut text, mut thoughts) = (Vec::new(), Vec::new());
        let mut calls: Vec<(&str, Vec<u16>)> = Vec::new();
        for (_, _, part) in self.events.iter().filter(|(_, end, _)| *end <= bytes) {
            match part {
                None => {}
                Some(Part::Text(units)) => text.extend(units),
                Some(Part::Thought(units)) => thoughts.extend(units),
                Some(Part::Call(name, units)) => {
                    match calls.iter_mut().find(|(known, _)| known == name) {
                        Some((_, arguments)) => arguments.extend(units),
                        None => calls.push((name, units.clone())),
                    }
                }
            }
        }
        let calls = calls.into_iter().map(|(name, units)| {
            let arguments = if units.is_empty() {
                "{}".into()
            } else {
                lossy(units)
            };
            (name.to_owned(), arguments)
        });
        (lossy(text), lossy(thoughts), calls.collect())
    }

    /// Whether these bytes of it came to what they say.
    fn check(&self, outcome: Outcome, bytes: usize, calling: Calling, seed: u64) {
        let reply = &outcome.reply;
        let call = |call: &Value| {
            let function = &call["function"];
            let member = |name: &str| function[name].as_str().unwrap().to_owned();
            let id = format!("{}-id", member("name"));
            let has_id = !matches!(calling, Calling::Nameless | Calling::Bare);
            assert_eq!(call["id"] == *id, has_id, "seed {seed}: {call}");
            (member("name"), member("arguments"))
        };
        let calls = reply.tool_calls.iter().map(call).collect();
        let is = (reply.text.clone(), reply.reasoning.clone(), calls);
        let body = &self.body[..bytes];
        assert_eq!(is, self.says(bytes), "seed {seed}: {body:?}");
        let events = self.events.iter().filter(|(_, end, _)| *end <= bytes);
        let events: Vec<&str> = events.map(|(json, _, _)| &**json).collect();
        assert_eq!(outcome.of(Json), events, "seed {seed}: {body:?}");
        let is_whole = bytes == self.body.len() || self.done.is_some_and(|done| done <= bytes);
        let kind = (!is_whole).then_some(ErrorKind::Truncated);
        let error = outcome.error();
        assert_eq!(outcome.kind(), kind, "seed {seed}: {error}, from {body:?}");
    }
}

/// Plays so many random replies, on two stages at a time.
fn for_each_reply(seeds: u64, play: impl Fn(&Stage, &mut Random, u64) + Sync) {
    thread::scope(|scope| {
        for worker in 0..2 {
            let play = &play;
            scope.spawn(move || {
                let stage = Stage::new();
                for seed in (1 + worker..=seeds).step_by(2) {
                    play(&stage, &mut Random(seed * 0x9e37_79b9), seed);
                }
            });
        }
    });
}

#[test]
fn random_replies_are_read_as_they_were_meant_whole_or_cut() {
    for_each_reply(600, |stage, random, seed| {
        let (made, calling) = random.reply();
        let body = made.body.as_bytes();
        let outcome = stage.parts(random.split(body), LAST_CHUNK);
        made.check(outcome, body.len(), calling, seed);

        let mut cut = random.below(body.len());
        while !made.body.is_char_boundary(cut) {
            cut -= 1;
        }
        let parts = random.split(&body[..cut]);
        let outcome = stage.parts(parts, random.one(&BROKEN));
        made.check(outcome, cut, calling, seed);
    });
}

#[test]
fn what_a_random_mess_means_does_not_depend_on_how_it_is_split() {
    for_each_reply(600, |stage, random, seed| {
        let (made, _) = random.reply();
        let mut body = made.body.into_bytes();
        for _ in 0..=random.below(3) {
            let (at, length) = (random.below(body.len()), random.below(20));
            let end = (at + length).min(body.len());
            let mess = random.one(&["", "\n", "\n\n", "{", "}", "\"", "[", "data:", "\\ud83d"]);
            body.splice(at..end, mess.bytes());
        }
        if random.below(4) == 0 {
            let at = random.below(body.len());
            body[at] = 0xff;
        }
        let whole = stage.parts([&*body], LAST_CHUNK);
        let (kind, shown) = (whole.kind(), &whole.body);
        assert_ne!(kind, Some(ErrorKind::Internal), "seed {seed}: {shown}");
        let split = stage.parts(random.split(&body), LAST_CHUNK);
        assert_eq!(split.essence(), whole.essence(), "seed {seed}: {shown}");
    });
}
