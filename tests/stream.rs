//! The stream of a reply: its lines, their ends and splits, its JSON, its characters; and an
//! independent reading of the protocol to compare with.

mod observer;
mod programs;
mod random;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use gptalk::{Client, Error, ErrorKind, Event, Reply};
use gptalk_service::{Endpoint, Peer, Service};
use observer::hold;
use random::Random;
use serde_json::{Value, json};

/// For what is done at once, on a machine that runs other tests too.
const SOON: Duration = Duration::from_millis(1000);

const DONE: &str = "data: [DONE]\n\n";

/// How a body ends.
type End = fn(&mut Peer);
const LAST_CHUNK: End = Peer::last_chunk;

/// How long a chat waits for a service that stalls.
const PATIENCE: Duration = Duration::from_secs(5);

/// The parts of a reply, each a chunk of its own, and its end.
type Script = (Vec<Vec<u8>>, End);

/// A service and a client, for any number of chats whose replies a test writes byte by byte.
struct Stage {
    service: Service,
    client: Client,
    options: Vec<(&'static str, String)>,
    /// The next reply; without one, the service's own.
    next: Arc<Mutex<Option<Script>>>,
}

/// What a chat came to.
struct Outcome {
    pieces: Vec<String>,
    result: Result<Reply, Error>,
}

impl Stage {
    fn new() -> Stage {
        Stage::with(None)
    }

    fn with(option: impl IntoIterator<Item = (&'static str, &'static str)>) -> Stage {
        // No other test shares its logins: a port may come back, an `app_id` does not.
        static STAGES: AtomicU32 = AtomicU32::new(1);
        let next = Arc::new(Mutex::new(None));
        let script = next.clone();
        let service = Service::builder()
            .reply(|_| "Fine".into())
            .on(Endpoint::Stream, move |request, peer| {
                let script: Option<Script> = script.lock().unwrap().clone();
                let Some((parts, end)) = script else {
                    return peer.normal(request);
                };
                peer.sse_head();
                let part = |part: &Vec<u8>| {
                    [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat()
                };
                peer.send(parts.iter().map(part).collect::<Vec<_>>().concat());
                end(peer);
            })
            .start();
        let option = option.into_iter();
        let options = option.map(|(key, value)| (key, value.to_owned())).chain([
            ("base_url", service.url()),
            ("app_id", STAGES.fetch_add(1, Ordering::Relaxed).to_string()),
            ("idle_timeout_ms", PATIENCE.as_millis().to_string()),
            ("retries", "0".into()),
        ]);
        let options: Vec<_> = options.collect();
        let mut client = Client::new();
        for (key, value) in &options {
            client.set(key, Some(value)).unwrap();
        }
        Stage {
            service,
            client,
            options,
            next,
        }
    }

    /// A chat whose reply arrives in these parts. Whatever it is, these hold.
    #[track_caller]
    fn split(&self, parts: Vec<Vec<u8>>, end: End) -> Outcome {
        let parts = parts.into_iter().filter(|part| !part.is_empty()).collect();
        *self.next.lock().unwrap() = Some((parts, end));
        let mut pieces = Vec::new();
        let result = self.client.chat("Hi", |piece| {
            pieces.push(piece.to_owned());
            ControlFlow::Continue(())
        });
        let outcome = Outcome { pieces, result };
        let reply = outcome.reply();
        assert_eq!(reply.pieces, outcome.pieces.len() as u64);
        assert!(outcome.pieces.iter().all(|piece| !piece.is_empty()));
        if !reply.rewritten {
            assert_eq!(outcome.pieces.concat(), reply.text);
        }
        outcome
    }

    /// The same, held to what holds for every chat.
    #[track_caller]
    fn play(&self, parts: Vec<Vec<u8>>, end: End) -> Outcome {
        let outcome = self.split(parts, end);
        let script = self.next.lock().unwrap().take();
        let options = self.options.iter().map(|(key, value)| (*key, &**value));
        let seen = hold(&options.collect::<Vec<_>>(), PATIENCE, |on| {
            *self.next.lock().unwrap() = script.clone().filter(|_| on);
        });
        seen.is(&outcome.pieces.concat(), outcome.result.as_ref().err());
        outcome
    }

    /// The same for a body that arrives at once and ends in order.
    #[track_caller]
    fn say(&self, body: impl AsRef<[u8]>) -> Outcome {
        self.play(vec![body.as_ref().to_vec()], LAST_CHUNK)
    }

    /// These lines, and then what ends a reply, are a reply of these pieces.
    #[track_caller]
    fn says(&self, lines: impl AsRef<[u8]>, pieces: &[&str]) -> Reply {
        let outcome = self.say([lines.as_ref(), DONE.as_bytes()].concat());
        let shown: String = String::from_utf8_lossy(lines.as_ref())
            .chars()
            .take(200)
            .collect();
        let reply = outcome
            .result
            .unwrap_or_else(|error| panic!("{error}, from {shown}"));
        assert!(
            outcome.pieces == pieces,
            "{:.500?} from {shown}",
            outcome.pieces
        );
        reply
    }

    /// This line ends the reply, whose text up to there is kept.
    #[track_caller]
    fn fails(&self, line: impl AsRef<[u8]>, kind: ErrorKind) -> Error {
        let body = [
            content("Hello").as_bytes(),
            line.as_ref(),
            b"\n",
            DONE.as_bytes(),
        ]
        .concat();
        let outcome = self.say(body);
        assert_eq!(outcome.pieces, ["Hello"]);
        let error = outcome.result.expect_err("a failure");
        assert_eq!(error.kind(), kind, "{error}");
        error
    }
}

impl Outcome {
    fn reply(&self) -> &Reply {
        match &self.result {
            Ok(reply) => reply,
            Err(error) => error.reply().expect("what has arrived"),
        }
    }

    fn kind(&self) -> Option<ErrorKind> {
        self.result.as_ref().err().map(Error::kind)
    }
}

/// An event whose content is this.
fn content(text: &str) -> String {
    format!("data: {}\n", json!({"content": text}))
}

/// The data of every event of a reply, as it came.
fn events(stage: &Stage, body: &str) -> Vec<String> {
    *stage.next.lock().unwrap() = Some((vec![body.into()], LAST_CHUNK));
    let mut stream = stage.client.stream("Hi").unwrap().with_events();
    let mut events = Vec::new();
    while let Some(event) = stream.next_event() {
        if let Event::Json(json) = event {
            events.push(json.to_owned());
        }
    }
    events
}

// Lines.

#[test]
fn a_byte_order_mark_is_dropped_once_at_the_start() {
    let stage = Stage::new();
    let (a, ab) = (content("a"), content("ab"));
    stage.says(format!("\u{feff}{a}{ab}"), &["a", "b"]);
    stage.says(format!("\u{feff}\u{feff}{a}{ab}"), &["ab"]);
    stage.says(format!("{a}\u{feff}{ab}"), &["a"]);
    let body = format!("\u{feff}{a}{ab}{DONE}");
    for at in 1..=3 {
        let parts = vec![
            body.as_bytes()[..at].to_vec(),
            body.as_bytes()[at..].to_vec(),
        ];
        assert_eq!(stage.play(parts, LAST_CHUNK).pieces, ["a", "b"]);
    }
}

#[test]
fn a_line_ends_with_lf_cr_or_crlf() {
    let stage = Stage::new();
    let lines = ["a", "ab", "abc", "abcd"].map(|text| content(text).trim_end().to_owned());
    for ends in [
        ["\n"; 4],
        ["\r"; 4],
        ["\r\n"; 4],
        ["\r", "\n", "\r\n", "\r\r\n\n"],
    ] {
        let body: String = lines
            .iter()
            .zip(ends)
            .flat_map(|(line, end)| [line, end])
            .collect();
        stage.says(&body, &["a", "b", "c", "d"]);
        let bytes = format!("{body}{DONE}")
            .bytes()
            .map(|byte| vec![byte])
            .collect();
        assert_eq!(stage.play(bytes, LAST_CHUNK).pieces, ["a", "b", "c", "d"]);
    }
    stage.says(format!("{}\r\ndata: [DONE]\r\n", lines[0]), &["a"]);
    stage.says(format!("{}\rdata: [DONE]\r", lines[0]), &["a"]);
}

#[test]
fn of_the_white_space_before_an_event_one_space_is_stripped() {
    let stage = Stage::new();
    let body = "data:{\"content\": \"a\"}\ndata: {}\ndata:  {}\ndata:\t{}\ndata: [DONE]\n";
    assert_eq!(
        events(&stage, body),
        ["{\"content\": \"a\"}", "{}", " {}", "\t{}"]
    );
    stage.says(
        "data:{\"content\": \"a\"}\ndata:  {\"content\": \"ab\"}\n",
        &["a", "b"],
    );
}

#[test]
fn what_is_no_event_passes_silently() {
    let stage = Stage::new();
    let long_comment = format!(":{}", "x".repeat(1 << 20));
    let data = "{\"content\": \"wrong\"}";
    for line in [
        ":",
        ": hello",
        &long_comment,
        "event: message",
        "event",
        "id: \0",
        "id:",
        "data:",
    ] {
        stage.says(
            format!("{line}\n{}{line}\n\n{line}\n", content("a")),
            &["a"],
        );
    }
    for field in [
        ":data", "Data", "DATA", " data", "\tdata", "da-ta", "data ", "datas", "retry", "\u{feff}",
    ] {
        let body = format!("{field}: {data}\n{field}: [DONE]\n{}", content("a"));
        stage.says(format!("{}{body}", content("")), &["a"]);
    }
    for line in [
        "retry: never",
        "retry: 99999999999999999999",
        "data",
        "\0",
        "unknown",
        "{}",
    ] {
        stage.says(
            format!("{}{line}\n{}", content("a"), content("ab")),
            &["a", "b"],
        );
    }
}

#[test]
fn a_nul_is_a_character_as_any_other() {
    let stage = Stage::new();
    let reply = stage.says("data: {\"content\": \"a\\u0000b\"}\n", &["a\0b"]);
    assert_eq!(reply.text.len(), 3);
    // Raw, it is not for JSON strings; it is not dropped either.
    stage.fails("data: {\"content\": \"Hello\0\"}", ErrorKind::Protocol);
    stage.says(format!(": \0\n{}event: \0\n", content("a")), &["a"]);
}

#[test]
fn each_data_line_is_an_event_with_or_without_blank_lines() {
    let stage = Stage::new();
    let (a, ab, abc) = (content("a"), content("ab"), content("abc"));
    stage.says(format!("{a}{ab}{abc}"), &["a", "b", "c"]);
    stage.says(format!("{a}\n\n\n{ab}\n{abc}\n\n"), &["a", "b", "c"]);
    stage.says(format!("{a}{a}\n{ab}{ab}{abc}"), &["a", "b", "c"]);
}

#[test]
fn done_ends_the_reply_at_once() {
    let stage = Stage::new();
    for done in [
        DONE,
        "data:[DONE]\n",
        "data:   [DONE] \t\r",
        "data: [DONE]\r\n",
    ] {
        let started = Instant::now();
        let body = format!("{}{done}", content("a"));
        let outcome = stage.play(vec![body.into_bytes()], Peer::stall);
        assert_eq!(outcome.result.expect("a reply").text, "a");
        assert!(started.elapsed() < SOON, "{done:?} waits for what follows");
    }
    for after in [
        content("ab"),
        "data: {\n".into(),
        "data: {\"error\": \"no\"}\n".into(),
    ] {
        let started = Instant::now();
        stage.says(format!("{}{DONE}{after}", content("a")), &["a"]);
        assert!(started.elapsed() < SOON);
    }
}

#[test]
fn what_only_looks_like_done_is_not_the_end() {
    let stage = Stage::new();
    for line in [
        "[DONE]x",
        "[DONE] [DONE]",
        "[done]",
        "\"[DONE]\"",
        "[\"DONE\"]",
        "[DONE",
    ] {
        stage.fails(format!("data: {line}"), ErrorKind::Protocol);
    }
    stage.says(
        format!("{}{}", content("[DONE]"), content("[DONE]!")),
        &["[DONE]", "!"],
    );
    stage.says(
        format!("{}[DONE]\ndone: [DONE]\n{}", content("a"), content("ab")),
        &["a", "b"],
    );
}

/// Last lines without their ends, after a `Hello`, and the text with them.
const LAST_LINES: [(&str, &str); 9] = [
    ("data: {\"content\": \"Hello you\"}", "Hello you"),
    (
        "data: {\"content\": \"Hello \\udc00you\"}",
        "Hello \u{fffd}you",
    ),
    (
        "data: {\"content\": \"Hello you\\ud83d\"}",
        "Hello you\u{fffd}",
    ),
    ("data: {\"content\": \"Hello you", "Hello"),
    ("data: {\"content\": \"Hello you\"", "Hello"),
    ("data: ", "Hello"),
    ("data: [DON", "Hello"),
    ("dat", "Hello"),
    (": comment", "Hello"),
];

#[track_caller]
fn last_lines_count(end: End) {
    let stage = Stage::new();
    for (last, text) in LAST_LINES {
        let outcome = stage.play(vec![content("Hello").into(), last.into()], end);
        assert_eq!(outcome.kind(), Some(ErrorKind::Truncated), "{last}");
        assert_eq!(outcome.reply().text, text, "{last}");
    }
}

#[test]
fn a_last_line_without_its_end_counts_where_it_is_whole() {
    last_lines_count(LAST_CHUNK);
}

#[test]
fn a_last_line_without_its_end_counts_though_the_connection_broke() {
    last_lines_count(Peer::close);
    last_lines_count(Peer::reset);
}

#[test]
fn a_last_done_without_its_end_ends_the_reply() {
    let stage = Stage::new();
    let outcome = stage.say(format!("{}data: [DONE]", content("Hello")));
    assert_eq!(outcome.result.expect("a reply").text, "Hello");
}

#[test]
fn a_line_may_have_16_mib_and_no_more() {
    let stage = Stage::new();
    let long = |n: usize| content(&"x".repeat(n));
    stage.says(long(15 << 20), &[&"x".repeat(15 << 20)]);
    for line in [long(17 << 20), ":".repeat(17 << 20)] {
        let parts = vec![content("Hello").into(), line.into_bytes()];
        let outcome = stage.play(parts, Peer::stall);
        assert_eq!(outcome.kind(), Some(ErrorKind::Limit));
        assert_eq!(outcome.pieces, ["Hello"]);
    }
}

/// A reply with a little of everything, and its pieces.
const SAMPLE: &str = "\u{feff}: hi\r\ndata: {\"content\":\"Grü\"}\r\n\r\nevent: x\rdata:{\"content\":\"Grüße €\"}\r\
                      data: {\"content\": \"Grüße € \\ud83d\"}\n\ndata: {\"content\": \"Grüße € \\ud83d\\ude00 💥\"}\r\n\
                      data: {\"content\":null}\r\n\r\ndata: [DONE]\r\n\r\n";
const SAMPLE_PIECES: [&str; 4] = ["Grü", "ße €", " ", "😀 💥"];

#[test]
fn it_does_not_matter_where_a_stream_is_split() {
    let stage = Stage::new();
    let bytes = SAMPLE.as_bytes();
    for at in 0..=bytes.len() {
        let parts = vec![bytes[..at].to_vec(), bytes[at..].to_vec()];
        assert_eq!(
            stage.split(parts, LAST_CHUNK).pieces,
            SAMPLE_PIECES,
            "split at {at}"
        );
    }
    for size in [1, 2, 3, 7] {
        let parts = bytes.chunks(size).map(<[u8]>::to_vec).collect();
        assert_eq!(
            stage.split(parts, LAST_CHUNK).pieces,
            SAMPLE_PIECES,
            "{size} bytes at a time"
        );
    }
    assert_eq!(stage.service.connections(), 1, "it is reused after each");
}

#[test]
fn it_does_not_matter_where_the_network_splits_an_answer() {
    // The whole answer, its header and chunks too, in two reads, and at last byte by byte.
    let half = SAMPLE.find("event").unwrap();
    let (one, two) = SAMPLE.split_at(half);
    let answer = format!(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x};x=y\r\n{one}\r\n{:x}\r\n{two}\r\n0\r\n\r\n",
        one.len(),
        two.len()
    );
    let (splits, done) = (answer.len(), answer.find("[DONE]").unwrap());
    let service = Service::builder().on(Endpoint::Stream, move |_, peer| match peer.nth() {
        at if at < answer.len() => peer.send_split(&answer, at),
        _ => peer.drip(&answer),
    });
    let service = service.start();
    let client = Client::builder()
        .base_url(&service.url())
        .app_id("splits")
        .build()
        .unwrap();
    for at in 0..=splits {
        let pieces: Result<Vec<_>, _> = client.stream("Hi").unwrap().collect();
        assert_eq!(pieces.expect("a reply"), SAMPLE_PIECES, "split at {at}");
    }
    // Where the end of a body is late, the connection need not be waited for.
    let late = splits - done;
    let connections = service.connections();
    assert!(
        connections <= 1 + late,
        "{connections} connections: it is reused"
    );
}

// JSON.

#[test]
fn a_malformed_event_ends_the_reply_and_keeps_its_text() {
    let stage = Stage::new();
    for line in [
        "{",
        "{\"content\":}",
        "{\"content\": \"Hello",
        "{} {}",
        "{\"content\": \"Hello\"},",
        "nope",
        "{'content': 'Hello'}",
        "{\"content\": \"\\x\"}",
        "{\"content\": \"\\u12\"}",
        "\u{feff}{}",
    ] {
        let error = stage.fails(format!("data: {line}"), ErrorKind::Protocol);
        assert!(error.to_string().contains(line), "{error}");
    }
    let error = stage.fails(format!("data: {{{}", "x".repeat(5000)), ErrorKind::Protocol);
    let excerpt = error.to_string().matches('x').count();
    assert!(
        (100..=512).contains(&excerpt),
        "{excerpt} bytes of it are shown"
    );
}

#[test]
fn an_event_of_another_type_ends_the_reply() {
    let stage = Stage::new();
    for line in [
        "[]",
        "5",
        "true",
        "null",
        "\"Hello\"",
        "[{\"content\": \"Hello\"}]",
    ] {
        stage.fails(format!("data: {line}"), ErrorKind::Protocol);
    }
    for value in [
        "5",
        "true",
        "[]",
        "{}",
        "[\"Hello\"]",
        "{\"text\": \"Hello\"}",
    ] {
        stage.fails(
            format!("data: {{\"content\": {value}}}"),
            ErrorKind::Protocol,
        );
    }
}

#[test]
fn json_may_be_nested_128_deep_and_no_more() {
    let stage = Stage::new();
    for (open, close) in [("[", "]"), ("{\"x\":", "}")] {
        let nested = |n: usize| {
            let inner = if open == "[" { "" } else { "1" };
            let deep = [&open.repeat(n), inner, &close.repeat(n)].concat();
            format!("data: {{\"content\": \"Hello\", \"deep\": {deep}}}")
        };
        stage.says(nested(100) + "\n", &["Hello"]);
        for n in [130, 100_000, 1_000_000] {
            stage.fails(nested(n), ErrorKind::Protocol);
        }
    }
}

#[test]
fn an_event_without_content_is_skipped() {
    let stage = Stage::new();
    for event in [
        json!({}),
        json!({"content": null}),
        json!({"id": 7, "data": {"content": "no"}}),
        json!({"code": 0, "msg": "ok"}),
        json!({"code": 200, "error": null}),
        json!({"code": "0", "content": null}),
    ] {
        let lines = format!("data: {event}\n{}data: {event}\n", content("a"));
        stage.says(lines + &content("ab"), &["a", "b"]);
    }
    stage.says("data: {}\ndata: {\"content\": \"\"}\n", &[]);
}

#[test]
fn an_error_inside_the_stream_is_the_services() {
    let stage = Stage::new();
    for (event, code) in [
        (
            json!({"error": {"message": "too busy", "code": "overloaded"}}),
            Some("overloaded"),
        ),
        (
            json!({"error": {"message": "too busy", "code": 401}}),
            Some("401"),
        ),
        (json!({"error": "too busy"}), None),
        (json!({"code": 500, "msg": "too busy"}), Some("500")),
        (
            json!({"code": "429", "message": "too busy", "content": null}),
            Some("429"),
        ),
        (
            json!({"code": -1, "msg": "too busy", "data": null}),
            Some("-1"),
        ),
    ] {
        let error = stage.fails(format!("data: {event}"), ErrorKind::Server);
        assert!(error.to_string().contains("too busy"), "{error}");
        assert_eq!(error.code(), code);
        // And at the very beginning.
        let error = stage
            .say(format!("data: {event}\n"))
            .result
            .expect_err("a failure");
        assert_eq!(
            (error.kind(), error.code()),
            (ErrorKind::Server, code),
            "{error}"
        );
    }
}

#[test]
fn of_two_members_with_one_name_the_last_counts() {
    let stage = Stage::new();
    stage.says(
        "data: {\"content\": \"no\", \"content\": \"Hello\"}\n",
        &["Hello"],
    );
    stage.says(
        "data: {\"content\": 5, \"content\": \"Hello\"}\n",
        &["Hello"],
    );
    stage.fails(
        "data: {\"content\": \"Hello you\", \"content\": 5}",
        ErrorKind::Protocol,
    );
}

// Characters.

#[test]
fn a_lone_surrogate_becomes_a_replacement_character() {
    let stage = Stage::new();
    for (escaped, text) in [
        ("a\\ud83db", "a\u{fffd}b"),
        ("a\\ude00b", "a\u{fffd}b"),
        ("a\\ude00", "a\u{fffd}"),
        ("\\ude00\\ud83d!", "\u{fffd}\u{fffd}!"),
        ("\\ud83d\\ud83d\\ude00", "\u{fffd}😀"),
        ("\\uD83D\\uDE00\\u00e9\\n\\\\ud83d\\\"", "😀é\n\\ud83d\""),
        ("\\ud83d\\n", "\u{fffd}\n"),
        ("\\ud83dé\\ud83d\\\\", "\u{fffd}é\u{fffd}\\"),
    ] {
        let reply = stage.says(format!("data: {{\"content\": \"{escaped}\"}}\n"), &[text]);
        assert!(!reply.rewritten);
        // In what is not the text, too.
        stage.says(
            format!("data: {{\"{escaped}\": \"{escaped}\", \"content\": \"a\"}}\n"),
            &["a"],
        );
    }
}

#[test]
fn half_a_character_waits_for_its_other_half() {
    let stage = Stage::new();
    let lines = |contents: &[&str]| -> String {
        contents
            .iter()
            .map(|escaped| format!("data: {{\"content\": \"{escaped}\"}}\n"))
            .collect()
    };
    for (contents, pieces) in [
        (&["ab\\ud83d", "ab\\ud83d\\ude00"][..], &["ab", "😀"][..]),
        (&["ab\\ud83d", "ab😀c"], &["ab", "😀c"]),
        (
            &["\\ud83d", "\\ud83d", "\\ud83d\\ude00\\ud83d", "😀😀"],
            &["😀", "😀"],
        ),
        (&["ab\\ud83d", "ab\\ud83dc"], &["ab", "\u{fffd}c"]),
        (&["ab\\ud83d"], &["ab", "\u{fffd}"]),
        (&["\\ud83d"], &["\u{fffd}"]),
        (&["ab\\ud83d", "ab"], &["ab"]),
    ] {
        let reply = stage.says(lines(contents), pieces);
        assert!(!reply.rewritten, "{contents:?}");
        // Where the reply is cut, what waited comes too.
        let outcome = stage.say(lines(contents));
        assert_eq!(outcome.kind(), Some(ErrorKind::Truncated));
        assert_eq!(outcome.pieces, pieces);
    }
}

#[test]
fn invalid_utf_8_becomes_replacement_characters() {
    let stage = Stage::new();
    for (bytes, text) in [
        (&b"a\xffb"[..], "a\u{fffd}b"),
        (b"\xc3", "\u{fffd}"),
        (b"\xf0\x9f\x98!", "\u{fffd}!"),
        (b"\xed\xa0\x80", "\u{fffd}\u{fffd}\u{fffd}"),
        (b"\xfe\xff", "\u{fffd}\u{fffd}"),
        (b"a\xff\\ud83d\\u0041", "a\u{fffd}\u{fffd}A"),
    ] {
        stage.says(
            [b"data: {\"content\": \"", bytes, b"\"}\n"].concat(),
            &[text],
        );
        stage.says(
            [b": ", bytes, b"\nda\xffta: x\n", content("a").as_bytes()].concat(),
            &["a"],
        );
    }
    let cut = b"data: {\"content\": \"gr\xc3\"}\ndata: {\"content\": \"gr\xc3\xbcn\"}\n";
    let reply = stage.says(cut, &["gr\u{fffd}", "n"]);
    assert_eq!((reply.text.as_str(), reply.rewritten), ("grün", true));
}

#[test]
fn a_service_may_shrink_and_rewrite_what_it_said() {
    let stage = Stage::new();
    for (contents, pieces) in [
        (&["Hello", "He", "Help"][..], &["Hello", "lp"][..]),
        (&["Hello", "", "Bye"], &["Hello", "Bye"]),
        (&["ab", "äöü"], &["ab", "ü"]),
        (&["äöü", "abcd"], &["äöü", "d"]),
        (&["💥💥", "aé€💥"], &["💥💥", "€💥"]),
        (&["Hello", "Jello", "Jelly!"], &["Hello", "!"]),
        (&["Hello", "He"], &["Hello"]),
    ] {
        let lines: String = contents.iter().map(|text| content(text)).collect();
        let reply = stage.says(lines, pieces);
        assert!(reply.rewritten, "{contents:?}");
        assert_eq!(
            reply.text,
            *contents.last().unwrap(),
            "the text is the last line's"
        );
    }
}

// Sizes.

#[test]
fn the_piece_that_would_pass_the_limit_of_a_reply_is_not_delivered() {
    let stage = Stage::with([("max_reply_bytes", "10")]);
    let ten = content("12345") + &content("1234567890");
    assert_eq!(stage.says(&ten, &["12345", "67890"]).text, "1234567890");
    for last in ["1234567890a", "1234567890é", "1234567890ab", "ABCDEFGHIJK"] {
        let outcome = stage.say([&*ten, &content(last), DONE].concat());
        assert_eq!(outcome.kind(), Some(ErrorKind::Limit));
        assert_eq!(outcome.pieces, ["12345", "67890"]);
        assert_eq!(outcome.reply().text, "1234567890");
        assert!(!outcome.reply().rewritten, "it was not taken");
    }
    // A character that waits for its other half counts too, when it becomes U+FFFD.
    let half =
        ["12345678", "123456789\\ud83d"].map(|text| format!("data: {{\"content\": \"{text}\"}}\n"));
    let outcome = stage.say([&*half.concat(), DONE].concat());
    assert_eq!(
        (outcome.kind(), outcome.pieces.concat()),
        (Some(ErrorKind::Limit), "123456789".into())
    );
}

#[test]
fn a_piece_over_the_limit_leaves_no_half_character_behind() {
    let stage = Stage::with([("max_reply_bytes", "10")]);
    let outcome = stage.say(
        [
            &content("12345"),
            "data: {\"content\": \"1234567890a\\ud83d\"}\n",
            DONE,
        ]
        .concat(),
    );
    assert_eq!(
        (outcome.kind(), outcome.pieces.concat()),
        (Some(ErrorKind::Limit), "12345".into())
    );
}

/// How long a reply of so many characters takes, each line with one part in so many more of it.
fn time_of(length: usize, lines: usize) -> Duration {
    let text = "All work and no play ".repeat(length / 21 + 1)[..length].to_owned();
    let reply = text.clone();
    let handler = move |_: &_, peer: &mut Peer| {
        peer.sse_head();
        let mut batch = String::new();
        for line in 1..=lines {
            batch += &format!(
                "data: {{\"content\": \"{}\"}}\n",
                &reply[..length * line / lines]
            );
            if batch.len() > 64 << 10 {
                peer.chunk(std::mem::take(&mut batch));
            }
        }
        peer.chunk(batch + DONE);
        peer.last_chunk();
    };
    let service = Service::builder().on(Endpoint::Stream, handler).start();
    let client = Client::builder()
        .base_url(&service.url())
        .app_id("sizes")
        .build()
        .unwrap();
    let started = Instant::now();
    let reply = client.complete("Hi").expect("a reply");
    assert!(reply.text == text);
    assert_eq!(reply.pieces, lines as u64);
    started.elapsed()
}

#[test]
fn the_work_is_linear_in_the_bytes() {
    // 6 MB, and 100 MB in few lines, in more, and in many.
    let short = time_of(256 << 10, 50).max(Duration::from_millis(10));
    for (length, lines) in [(1 << 20, 200), (128 << 10, 1600), (20 << 10, 10_000)] {
        let long = time_of(length, lines);
        assert!(
            long < short * 16 * 10,
            "{long:?} for {lines} lines, {short:?} for 1/16 of the bytes"
        );
    }
}

#[test]
#[ignore = "5 GB through loopback: half a minute without optimization"]
fn a_reply_of_1_mib_in_10_000_lines() {
    let time = time_of(1 << 20, 10_000);
    assert!(time < Duration::from_secs(120), "{time:?}");
}

// An independent reading of the protocol.

/// The pieces, the text, and how it ends: the protocol's words, and nothing clever.
fn slowly(body: &[u8]) -> (Vec<String>, String, Option<ErrorKind>) {
    let body = String::from_utf8_lossy(body)
        .replace("\r\n", "\n")
        .replace('\r', "\n");
    let lines: Vec<&str> = body
        .strip_prefix('\u{feff}')
        .unwrap_or(&body)
        .split('\n')
        .collect();
    let (mut pieces, mut text) = (Vec::new(), String::new());
    for (at, line) in lines.iter().enumerate() {
        // Only lines that begin with `data:` matter.
        let Some(data) = line
            .strip_prefix("data:")
            .filter(|data| !data.trim().is_empty())
        else {
            continue;
        };
        if data.trim() == "[DONE]" {
            return (pieces, text, None);
        }
        let event: Value = match serde_json::from_str(data) {
            Ok(event) => event,
            // A part of a line, where the body ends.
            Err(_) if at + 1 == lines.len() => break,
            Err(_) => return (pieces, text, Some(ErrorKind::Protocol)),
        };
        if let Some(whole) = event["content"].as_str() {
            // What it has beyond the number of characters that the line before it had.
            let piece: String = whole.chars().skip(text.chars().count()).collect();
            if !piece.is_empty() {
                pieces.push(piece);
            }
            text = whole.to_owned();
        }
    }
    (pieces, text, Some(ErrorKind::Truncated))
}

impl Random {
    /// Up to so many characters of one to four bytes.
    fn text(&mut self, most: usize) -> String {
        let characters: Vec<char> = "abc XYZ\0\n\r\"\\/:{}[]é¿ßЖ€漢\u{2028}\u{feff}\u{fffd}💥😀"
            .chars()
            .collect();
        (0..self.below(most + 1))
            .map(|_| self.one(&characters))
            .collect()
    }

    /// A JSON string, some of whose characters are escaped though they need not be.
    fn quoted(&mut self, text: &str) -> String {
        let mut json = String::new();
        for character in text.chars() {
            if character.is_control() || "\"\\".contains(character) || self.below(4) == 0 {
                let mut units = [0; 2];
                let units = character.encode_utf16(&mut units);
                json.extend(units.iter().map(|unit| format!("\\u{unit:04x}")));
            } else {
                json.push(character);
            }
        }
        format!("\"{json}\"")
    }

    /// A reply's body: it begins with an event, the rest is chance.
    fn body(&mut self) -> Vec<u8> {
        let mut body = self.one(&["", "", "", "\u{feff}"]).to_owned();
        let mut content = self.text(6);
        let end = self.one(&["\n", "\r\n", "\r"]);
        for _ in 0..=self.below(12) {
            let spelling = self.one(&["data: ", "data: ", "data:", "data:  "]);
            let before = self.one(&["", "", "\"id\": 1, ", "\"content\": \"no\", "]);
            let quoted = self.quoted(&content);
            body += &format!("{spelling}{{{before}\"content\": {quoted}}}");
            body += self.one(&[end, end, end, "\n", "\r\n", "\r"]);
            body += self.one(&[
                "",
                end,
                end,
                ": ping\n",
                "event: x\r",
                "Data: {}\n",
                "data: {}\n",
                "data:\r\n",
            ]);
            if self.below(8) == 0 {
                // Earlier text is rewritten, or goes.
                let keep = self.below(content.chars().count() + 1);
                content = self.text(3) + &content.chars().skip(3).take(keep).collect::<String>();
            }
            content += &self.text(6);
        }
        let last = body.trim_end().rfind("data:").unwrap_or(0);
        match self.below(10) {
            0 => {}
            1 => body += "data: {\"content\": oops}\n",
            2 => body += "data: {\"content\": \"a last line\"}",
            3 if last > 5 => {
                let mut bytes = body.into_bytes();
                bytes.truncate(last + self.below(bytes.len() - last));
                return bytes;
            }
            _ => {
                body += self.one(&["data: [DONE]", "data:[DONE]", "data: [DONE] "]);
                body += end;
                body += self.one(&["", end, "data: {\n", "data: {\"content\": \"more\"}\n"]);
            }
        }
        if self.below(20) == 0 {
            // One character is no longer UTF-8.
            return body
                .replace('ß', "\u{1}")
                .bytes()
                .map(|b| if b == 1 { 0xff } else { b })
                .collect();
        }
        body.into_bytes()
    }

    /// The parts in which a body arrives.
    fn split(&mut self, body: &[u8]) -> Vec<Vec<u8>> {
        let most = self.one(&[1, 3, 20, 200, 10_000]);
        let (mut parts, mut at) = (Vec::new(), 0);
        while at < body.len() {
            let next = (at + 1 + self.below(most)).min(body.len());
            parts.push(body[at..next].to_vec());
            at = next;
        }
        parts
    }
}

#[test]
fn random_streams_are_read_as_an_independent_reader_reads_them() {
    thread::scope(|scope| {
        for worker in 0..2 {
            scope.spawn(move || {
                let stage = Stage::new();
                for seed in (1 + worker..=4000).step_by(2) {
                    let mut random = Random(seed * 0x9e37_79b9);
                    let body = random.body();
                    let parts = random.split(&body);
                    let outcome = stage.split(parts, LAST_CHUNK);
                    let is = (&outcome.pieces, &outcome.reply().text, outcome.kind());
                    let (pieces, text, kind) = slowly(&body);
                    let body = String::from_utf8_lossy(&body);
                    assert_eq!(is, (&pieces, &text, kind), "seed {seed}: {body:?}");
                }
            });
        }
    });
}
