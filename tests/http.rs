//! HTTP as services and what stands before them speak it, in order and out of it.

mod observer;
mod programs;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use gptalk::{Client, ClientBuilder, Error, ErrorKind, Event, Reply};
use gptalk_service::{Endpoint, Peer, Service};
use observer::{Fault, hold};
use serde_json::json;

/// How late a time limit may be noticed, and how slow a machine may be that runs other tests too.
const LATE: Duration = Duration::from_millis(250 + 750);

const ENDPOINTS: [Endpoint; 3] = [Endpoint::Login, Endpoint::Text, Endpoint::Stream];
const OK: &str = "HTTP/1.1 200 OK\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
const HELLO: &str = "data: {\"content\": \"Hello\"}\n\n";
const DONE: &str = "data: [DONE]\n\n";

/// How long a chat waits for a service that stalls where it should not have to.
const PATIENCE: Duration = Duration::from_secs(5);

/// A client whose logins no other test shares: a port may come back, an `app_id` does not.
fn builder(service: &Service) -> ClientBuilder {
    static CLIENTS: AtomicU32 = AtomicU32::new(1);
    let app_id = CLIENTS.fetch_add(1, Ordering::Relaxed).to_string();
    let client = Client::builder().base_url(&service.url()).app_id(&app_id);
    client
        .retries(0)
        .response_timeout(Some(PATIENCE))
        .idle_timeout(Some(PATIENCE))
}

/// A service whose answer at an endpoint is these bytes, and then that end, while the fault is on.
fn service(endpoint: Endpoint, raw: impl AsRef<[u8]>, end: fn(&mut Peer)) -> (Service, Fault) {
    let raw = raw.as_ref().to_vec();
    let fault = Fault::default();
    fault.turn(true);
    let answer = move |peer: &mut Peer| {
        peer.send(&raw);
        end(peer);
    };
    let service = match endpoint {
        // Each chat logs in.
        Endpoint::Login => Service::builder().login_data(json!({"expires_at": 1})),
        _ => Service::builder(),
    };
    (fault.at(service, endpoint, answer).start(), fault)
}

/// What follows a raw answer: the next request on the same connection.
fn stay(_: &mut Peer) {}

/// A chat that gets this raw answer, and one more, which is answered as it should be; and whether
/// the connection served both. The answer is held to what holds for every one, and to its being
/// the end at once.
#[track_caller]
fn chat(
    endpoint: Endpoint,
    raw: impl AsRef<[u8]>,
    end: fn(&mut Peer),
) -> (Result<Reply, Error>, bool) {
    let (service, fault) = service(endpoint, raw, end);
    let client = builder(&service).build().unwrap();
    let result = client.complete("Hi");
    fault.turn(false);
    let next = client
        .complete("Hi there")
        .expect("the client works for the next chat");
    assert_eq!(next.text, "You said: Hi there");
    let reused = service.connections() == 1;
    let patience = &PATIENCE.as_millis().to_string();
    let options = [
        ("base_url", &*service.url()),
        ("retries", "0"),
        ("response_timeout_ms", patience),
        ("idle_timeout_ms", patience),
    ];
    hold(&options, Duration::ZERO, |on| fault.turn(on)).agrees(&result);
    assert_eq!(service.refusals(), Vec::<String>::new());
    (result, reused)
}

/// The stream that is answered so is the reply "Hello"; and whether the connection is reused.
#[track_caller]
fn says_hello(raw: impl AsRef<[u8]>, end: fn(&mut Peer)) -> bool {
    let (result, reused) = chat(Endpoint::Stream, raw, end);
    assert_eq!(result.expect("a reply").text, "Hello");
    reused
}

/// Answered so, the chat fails, and its connection is not used again.
#[track_caller]
fn fails(endpoint: Endpoint, raw: impl AsRef<[u8]>, end: fn(&mut Peer), kind: ErrorKind) -> Error {
    let (result, reused) = chat(endpoint, raw, end);
    let error = result.expect_err("a failure");
    assert_eq!(error.kind(), kind, "{error}");
    assert!(!reused, "a spoilt connection is not used again");
    error
}

/// The same, with the text that had arrived.
#[track_caller]
fn fails_after_hello(raw: impl AsRef<[u8]>, end: fn(&mut Peer), kind: ErrorKind) {
    let error = fails(Endpoint::Stream, raw, end, kind);
    assert_eq!(error.reply().unwrap().text, "Hello", "{error}");
}

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

fn sized(head: &str, body: &str) -> String {
    format!("{head}content-length: {}\r\n\r\n{body}", body.len())
}

// The header.

#[test]
fn a_header_may_have_64_kib_and_128_lines_and_no_more() {
    let lines = |n: usize| "x-line: y\r\n".repeat(n);
    let long = |n: usize| format!("x-long: {}\r\n", "y".repeat(n));
    let reply = [HELLO, DONE].concat();
    for header in [lines(120), long(60 << 10), long(1 << 10).repeat(55)] {
        assert!(says_hello(sized(&[OK, &header].concat(), &reply), stay));
    }
    for header in [
        lines(140),
        long(70 << 10),
        long(1 << 10).repeat(70),
        long(4 << 20),
    ] {
        for endpoint in ENDPOINTS {
            let raw = sized(&[OK, &header].concat(), &reply);
            let error = fails(endpoint, raw, Peer::stall, ErrorKind::Limit);
            assert!(error.to_string().contains("header"), "{error}");
        }
    }
}

/// Sends that again and again until the client goes; but not forever.
fn drip(peer: &mut Peer, what: &str, pause: Duration) {
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end && !peer.client_closed(pause) {
        peer.send(what);
    }
}

#[test]
fn a_header_in_drops_ends_at_the_response_timeout() {
    let drops: [fn(&mut Peer); 4] = [
        |peer| drip(peer, "x", Duration::from_millis(5)),
        |peer| drip(peer, "x", Duration::from_millis(90)),
        |peer| drip(peer, "y\r\nx: ", Duration::from_millis(30)),
        |peer| {
            drip(
                peer,
                "y\r\n\r\nHTTP/1.1 103 Hints\r\nx: ",
                Duration::from_millis(90),
            )
        },
    ];
    for drops in drops {
        let (service, _) = service(Endpoint::Stream, "HTTP/1.1 103 Hints\r\nx: ", drops);
        let limit = Duration::from_millis(400);
        let client = builder(&service)
            .response_timeout(Some(limit))
            .build()
            .unwrap();
        let started = Instant::now();
        let error = client.complete("Hi").unwrap_err();
        let took = started.elapsed();
        assert_eq!(error.kind(), ErrorKind::Timeout, "after {took:?}: {error}");
        assert!(took >= limit && took < limit + LATE, "{took:?}");
    }
}

#[test]
fn informational_answers_are_passed_over_but_not_without_end() {
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n";
    let reply = sized(OK, &[HELLO, DONE].concat());
    for before in ["HTTP/1.1 100 Continue\r\n\r\n", hints, &hints.repeat(20)] {
        assert!(says_hello([before, &reply].concat(), stay));
    }
    fails(Endpoint::Stream, hints, endless_hints, ErrorKind::Limit);
    fails(Endpoint::Login, hints, endless_hints, ErrorKind::Limit);
}

fn endless_hints(peer: &mut Peer) {
    while !peer.client_closed(Duration::from_millis(1)) {
        peer.send("HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n".repeat(100));
    }
}

/// What is kept of the headers before it is no reason to mistake one.
#[test]
fn each_answer_of_a_connection_has_its_own_header() {
    let head = |id: &str| format!("{OK}transfer-encoding: chunked\r\nx-request-id: {id}\r\n\r\n");
    let body = [&chunk(HELLO), &chunk(DONE), "0\r\n\r\n"].concat();
    let reply = |id: &str| head(id) + &body;
    let long = format!("{}{}", "long", "1".repeat(2000));
    let sized = sized(&format!("{OK}x-request-id: s\r\n"), &[HELLO, DONE].concat());
    let refusal = reply("r").replace("200 OK", "500 Oh no");
    let continued = "HTTP/1.1 100 Continue\r\n\r\n".to_owned() + &reply("1");
    // As many headers that differ in order as it takes to have forgotten the first, and it again.
    let mut answers = vec![("1", reply("1")), ("1", reply("1")), ("11", reply("11"))];
    answers.extend([
        ("1", reply("1")),
        ("s", sized.clone()),
        ("r", refusal),
        ("1", continued),
    ]);
    answers.extend([
        ("2", reply("2")),
        ("3", reply("3")),
        ("4", reply("4")),
        ("5", reply("5")),
    ]);
    answers.extend([
        ("1", reply("1")),
        (&long, reply(&long)),
        (&long, reply(&long)),
        ("s", sized),
    ]);
    for split in [false, true] {
        let raw: Vec<_> = answers.iter().map(|(_, raw)| raw.clone()).collect();
        let service = Service::builder().on(Endpoint::Stream, move |_, peer| {
            let raw = &raw[peer.nth()];
            // Between the two line ends that are the header's end.
            match raw.find("\r\n\r\n").filter(|_| split) {
                Some(end) => peer.send_split(raw, end + 2),
                None => peer.send(raw),
            }
        });
        let service = service.start();
        let client = builder(&service).build().unwrap();
        for (id, _) in &answers {
            let (text, reply) = match client.complete("Hi") {
                Ok(reply) => ("Hello", reply),
                Err(error) => ("", error.reply().unwrap().clone()),
            };
            assert_eq!(
                (&*reply.text, reply.request_id.as_deref()),
                (text, Some(*id))
            );
            assert_eq!(text.is_empty(), *id == "r");
        }
        assert_eq!(service.connections(), 1);
        assert_eq!(service.refusals(), Vec::<String>::new());
    }
}

#[test]
fn switching_protocols_is_not_of_the_protocol() {
    let raw =
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";
    for endpoint in ENDPOINTS {
        fails(endpoint, raw, Peer::stall, ErrorKind::Protocol);
    }
}

#[test]
fn what_is_not_http_is_said_at_once() {
    for garbage in [
        "<html><body>It works!</body></html>\n",
        "SSH-2.0-OpenSSH_9.6\r\n",
        "garbage\r\n\r\n",
        "HTTP/1.1 abc OK\r\n\r\n",
        "HTTP/9.9 200 OK\r\n\r\n",
        "\x15\x03\x01\0\x02\x02\x0a",
        "data: {\"content\": \"Hello\"}\n\ndata: [DONE]\n\n",
    ] {
        for end in [Peer::stall, Peer::close] {
            fails(Endpoint::Stream, garbage, end, ErrorKind::Protocol);
        }
        fails(Endpoint::Login, garbage, Peer::close, ErrorKind::Protocol);
    }
}

#[test]
fn http_1_0_is_understood_and_its_connection_closed() {
    let reply = [HELLO, DONE].concat();
    assert!(!says_hello(
        ["HTTP/1.0 200 OK\r\n\r\n", &reply].concat(),
        Peer::close
    ));
    assert!(!says_hello(
        sized("HTTP/1.0 200 OK\r\n", &reply),
        Peer::stall
    ));
    let keep = "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n";
    assert!(
        says_hello(sized(keep, &reply), stay),
        "unless both want to keep it"
    );
}

#[test]
fn a_compressed_answer_is_refused() {
    for encoding in ["gzip", "br", "deflate", "GZIP"] {
        let head = format!("{OK}content-encoding: {encoding}\r\n");
        for endpoint in ENDPOINTS {
            let raw = sized(&head, "\x1f\u{8b}\x08");
            let error = fails(endpoint, raw, Peer::stall, ErrorKind::Protocol);
            assert!(
                error
                    .to_string()
                    .to_lowercase()
                    .contains("content-encoding"),
                "{error}"
            );
        }
    }
    let identity = format!("{OK}content-encoding: identity\r\n");
    assert!(says_hello(sized(&identity, &[HELLO, DONE].concat()), stay));
}

#[test]
fn a_redirect_is_not_followed() {
    let target = Service::start();
    let location = format!("{}/elsewhere?key=sesame", target.url());
    for status in [300, 301, 302, 303, 304, 305, 307, 308] {
        for endpoint in ENDPOINTS {
            let head = format!("HTTP/1.1 {status} Gone\r\nlocation: {location}\r\n");
            let (result, _) = chat(endpoint, sized(&head, ""), stay);
            let error = result.expect_err("a failure");
            assert_eq!(error.kind(), ErrorKind::Request, "{error}");
            assert_eq!(error.http_status(), Some(status));
            let text = error.to_string();
            assert!(
                text.contains(&format!("{}/elsewhere", target.url())),
                "{text}"
            );
            assert!(!text.contains("sesame"), "{text}");
        }
    }
    assert_eq!(target.connections(), 0);

    let far = format!("{}/\tfar{}", target.url(), "away".repeat(1000));
    let head = format!("HTTP/1.1 302 Found\r\nlocation: {far}\r\n");
    let error = chat(Endpoint::Login, sized(&head, ""), stay).0.unwrap_err();
    let text = error.to_string();
    assert!(text.len() < 1 << 10 && text.contains("far"), "{text}");
    assert!(!text.contains(char::is_control), "{text}");
}

// The body.

#[test]
fn an_answer_without_a_body_is_empty() {
    for raw in [
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        for endpoint in ENDPOINTS {
            let (result, _) = chat(endpoint, raw, stay);
            let error = result.expect_err("a failure");
            assert_eq!(
                (error.kind(), error.code()),
                (ErrorKind::Protocol, Some("empty")),
                "{raw}"
            );
        }
    }
    let error = fails(
        Endpoint::Stream,
        format!("{OK}\r\n"),
        Peer::close,
        ErrorKind::Protocol,
    );
    assert_eq!(error.code(), Some("empty"));
    for comments in [": hi\n\n", "\n\n", "event: ping\n\n", "data:\n\n", DONE] {
        let (result, _) = chat(Endpoint::Stream, sized(OK, comments), stay);
        let error = result.expect_err("a failure");
        assert_eq!(
            (error.kind(), error.code()),
            (ErrorKind::Protocol, Some("empty")),
            "{comments}"
        );
    }
}

#[test]
fn lengths_that_contradict_each_other_are_refused() {
    for lengths in [
        "5\r\ncontent-length: 7",
        "5, 7",
        "-5",
        "five",
        "5 5",
        "+5",
        "0x5",
    ] {
        let raw = format!("{OK}content-length: {lengths}\r\n\r\n{HELLO}{DONE}");
        for endpoint in ENDPOINTS {
            fails(endpoint, &raw, Peer::stall, ErrorKind::Protocol);
        }
    }
}

#[test]
fn chunks_count_more_than_a_length_and_the_connection_is_closed() {
    let head = format!("{OK}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n");
    let raw = [&head, &*chunk(HELLO), &chunk(DONE), "0\r\n\r\n"].concat();
    assert!(!says_hello(raw, Peer::stall));
}

#[test]
fn extensions_and_trailers_pass_and_the_connection_is_reused() {
    let size = HELLO.len();
    let long = "x".repeat(30 << 10);
    for first in [
        format!("{size:x};name=value\r\n{HELLO}\r\n"),
        format!("{size:x} ; name=\"a value\"; more\r\n{HELLO}\r\n"),
        format!("{size:x};{long}\r\n{HELLO}\r\n"),
        format!("0000{size:X}\r\n{HELLO}\r\n"),
        HELLO.chars().map(|c| format!("1\r\n{c}\r\n")).collect(),
    ] {
        for last in [
            "0\r\n\r\n",
            "0;end\r\n\r\n",
            "0\r\nx-sum: 1\r\nexpires: never\r\n\r\n",
        ] {
            assert!(says_hello(
                [CHUNKED, &first, &chunk(DONE), last].concat(),
                stay
            ));
        }
        let last = format!("0\r\nx-long: {long}\r\n\r\n");
        assert!(says_hello(
            [CHUNKED, &first, &chunk(DONE), &last].concat(),
            stay
        ));
    }
}

#[test]
fn a_bad_chunk_ends_the_reply_and_keeps_its_text() {
    for bad in [
        "zz\r\n",
        "-1\r\nx",
        "\r\n",
        "ffffffffffffffffff\r\n",
        "1\r\nxyz\r\n",
        "5",
    ] {
        let raw = [CHUNKED, &chunk(HELLO), bad].concat();
        let (end, kind): (fn(&mut Peer), _) = match bad {
            "5" => (Peer::close, ErrorKind::Truncated),
            _ => (Peer::stall, ErrorKind::Protocol),
        };
        fails_after_hello(raw, end, kind);
    }
}

/// A reply that is at the end of its first chunk's data, and one that is in its trailer.
fn before_a_line_end() -> [String; 2] {
    let in_chunk = format!("{CHUNKED}{:x}\r\n{HELLO}", HELLO.len());
    let in_trailer = [CHUNKED, &chunk(HELLO), "0\r\n"].concat();
    [in_chunk, in_trailer]
}

#[test]
fn carriage_returns_without_end_are_a_bad_body() {
    // Without a pause: a reader that waits for them to end would be kept.
    let flood: fn(&mut Peer) = |peer| {
        let end = Instant::now() + 2 * LATE;
        while Instant::now() < end && !peer.client_closed(Duration::ZERO) {
            peer.send("\r".repeat(16 << 10));
        }
    };
    for raw in before_a_line_end() {
        let error = fails(Endpoint::Stream, raw, flood, ErrorKind::Protocol);
        assert_eq!(error.reply().unwrap().text, "Hello", "{error}");
        assert!(error.to_string().contains("bad body"), "{error}");
    }
}

#[test]
fn carriage_returns_that_drip_do_not_hold_a_cancel_up() {
    let [_, in_trailer] = before_a_line_end();
    let dripping = Arc::new(AtomicBool::new(false));
    let drips = Arc::clone(&dripping);
    let service = Service::builder().on(Endpoint::Stream, move |_, peer| {
        peer.send(&in_trailer);
        peer.drip("\r".repeat(20));
        drips.store(true, Ordering::SeqCst);
        drip(peer, "\r", Duration::from_millis(1));
    });
    let service = service.start();
    let client = builder(&service).build().unwrap();
    let mut stream = client.stream("Hi").unwrap();
    while let Some(event) = stream.next_event() {
        if event == Event::Text("Hello") {
            break;
        }
    }
    let handle = client.cancel_handle();
    let (error, ended, cancelled) = thread::scope(|scope| {
        let cancel = scope.spawn(|| {
            assert!(service.wait_until(|_| dripping.load(Ordering::SeqCst)));
            assert!(handle.cancel(), "there is a chat to cancel");
            Instant::now()
        });
        let error = stream.finish().expect_err("a failure");
        (error, Instant::now(), cancel.join().unwrap())
    });
    let late = ended.saturating_duration_since(cancelled);
    assert!(late < LATE, "it ended {late:?} after the cancel: {error}");
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    assert_eq!(error.reply().unwrap().text, "Hello");
}

#[test]
fn a_body_shorter_than_promised_is_truncated() {
    for end in [Peer::close, Peer::reset] {
        let promised = format!("{OK}content-length: 1000\r\n\r\n");
        fails_after_hello([&promised, HELLO].concat(), end, ErrorKind::Truncated);
        fails_after_hello([CHUNKED, &chunk(HELLO)].concat(), end, ErrorKind::Truncated);
        let half_a_chunk = format!("100\r\n{HELLO}");
        fails_after_hello([CHUNKED, &half_a_chunk].concat(), end, ErrorKind::Truncated);
        for endpoint in ENDPOINTS {
            fails(
                endpoint,
                [&promised, "{"].concat(),
                end,
                ErrorKind::Truncated,
            );
        }
    }
}

#[test]
fn after_done_the_end_of_the_body_does_not_matter() {
    let length = format!("{OK}content-length: 1000\r\n\r\n");
    let until_close = format!("{OK}\r\n");
    for head in [&*length, &until_close] {
        for end in [Peer::close, Peer::reset, Peer::stall] {
            assert!(!says_hello([head, HELLO, DONE].concat(), end));
        }
    }
    for end in [Peer::close, Peer::reset, Peer::stall] {
        let chunks = [CHUNKED, &chunk(HELLO), &chunk(DONE)].concat();
        assert!(!says_hello(&chunks, end));
        assert!(
            !says_hello(chunks + "zz\r\n", end),
            "what follows is not of interest"
        );
    }
}

#[test]
fn what_follows_done_without_end_holds_nothing_up() {
    let comments = chunk(&":\n".repeat(500_000));
    let start = [CHUNKED, &chunk(HELLO), &chunk(DONE), &comments].concat();
    let flood = move |request: &_, peer: &mut Peer| {
        if peer.nth() > 0 {
            return peer.normal(request);
        }
        peer.send(&start);
        // Without a pause: one is the end of the flood for a reader that only looks at what has come.
        let end = Instant::now() + LATE + LATE / 2;
        while Instant::now() < end {
            peer.send(&comments);
        }
    };
    let service = Service::builder().on(Endpoint::Stream, flood).start();
    let client = builder(&service).build().unwrap();
    for reply in ["Hello", "You said: Hi"] {
        let started = Instant::now();
        assert_eq!(client.complete("Hi").expect("a reply").text, reply);
        assert!(started.elapsed() < LATE, "{reply}: {:?}", started.elapsed());
    }
}

#[test]
fn bytes_behind_an_answer_are_not_taken_for_the_next_one() {
    let reply = sized(OK, &[HELLO, DONE].concat());
    for more in [
        "HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\r\n",
        &reply,
        "x",
    ] {
        assert!(!says_hello([&reply, more].concat(), Peer::stall));
    }
}

#[test]
fn a_body_that_ends_with_its_connection_is_truncated_without_done() {
    for end in [Peer::close, Peer::reset] {
        fails_after_hello(format!("{OK}\r\n{HELLO}"), end, ErrorKind::Truncated);
        fails_after_hello(sized(OK, HELLO) + "x", end, ErrorKind::Truncated);
    }
}

// What is no stream.

#[test]
fn a_web_page_is_shown_in_an_excerpt() {
    let page = "<!DOCTYPE html>\n<title>Sign in</title>\n<p>This portal wants you.</p>\n";
    let html = format!("{OK}content-type: text/html\r\n");
    for endpoint in ENDPOINTS {
        let (result, _) = chat(endpoint, sized(&html, page), stay);
        let error = result.expect_err("a failure");
        assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
        let text = error.to_string();
        for line in page.lines() {
            assert_eq!(
                text.matches(line).count(),
                1,
                "{endpoint:?}, {line} in: {text}"
            );
        }
        for long in [
            "~".repeat(100_000),
            "~\n".repeat(50_000),
            "<é~>".repeat(10_000),
        ] {
            let (result, _) = chat(endpoint, sized(&html, &long), stay);
            let error = result.expect_err("a failure");
            assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
            let text = error.to_string();
            let shown = text.find(&long[..1]).expect("an excerpt");
            assert!(text.rfind('~').unwrap() - shown < 512, "{text}");
        }
    }
}

#[test]
fn json_where_a_stream_was_asked_for_is_the_reply() {
    for json in [
        r#"{"content": "Hello"}"#,
        r#"{"code": 0, "msg": "ok", "data": {"content": "Hello", "id": 7}}"#,
        "\r\n  {\n  \"content\":\n    \"Hello\"\n}\n",
        "\u{feff}{\"content\": \"Hello\"}",
    ] {
        for kind in ["application/json", "text/event-stream"] {
            let head = format!("{OK}content-type: {kind}\r\n");
            assert!(says_hello(sized(&head, json), stay));
            let head = format!("{head}transfer-encoding: chunked\r\n\r\n");
            for at in 1..json.len() {
                let (one, two) = json.as_bytes().split_at(at);
                let size = |part: &[u8]| format!("{:x}\r\n", part.len()).into_bytes();
                let parts = [head.as_bytes(), &size(one), one, b"\r\n", &size(two), two];
                let raw = [&parts.concat()[..], b"\r\n0\r\n\r\n"].concat();
                assert!(
                    says_hello(raw, stay),
                    "{json:?} in two parts, {at} bytes first"
                );
            }
        }
    }
}

#[test]
fn json_where_a_stream_was_asked_for_may_hold_broken_text() {
    for content in [&b"ab\xff"[..], b"ab\\ud800", b"ab\\udc00"] {
        let json = [b"{\"content\": \"", content, b"\"}"].concat();
        let head = format!("{OK}content-length: {}\r\n\r\n", json.len());
        let (result, _) = chat(Endpoint::Stream, [head.as_bytes(), &json].concat(), stay);
        assert_eq!(result.expect("a reply").text, "ab\u{fffd}");
    }
}

#[test]
fn json_where_a_stream_was_asked_for_may_be_an_error() {
    for (json, code) in [
        (
            r#"{"error": {"message": "overloaded", "code": "busy"}}"#,
            Some("busy"),
        ),
        (r#"{"code": 500, "msg": "overloaded"}"#, Some("500")),
        (
            r#"{"code": 401, "message": "overloaded", "data": null}"#,
            Some("401"),
        ),
        (r#"{"error": "overloaded"}"#, None),
    ] {
        let (result, _) = chat(Endpoint::Stream, sized(OK, json), stay);
        let error = result.expect_err("a failure");
        assert_eq!(
            (error.kind(), error.code()),
            (ErrorKind::Server, code),
            "{error}"
        );
        assert!(error.to_string().contains("overloaded"), "{error}");
    }
    for nothing in ["{}", r#"{"content": ""}"#, r#"{"data": {}}"#, "{", "[1, 2"] {
        let (result, _) = chat(Endpoint::Stream, sized(OK, nothing), stay);
        let error = result.expect_err("a failure");
        assert_eq!(error.kind(), ErrorKind::Protocol, "{nothing}: {error}");
    }
}

#[test]
fn a_json_answer_has_a_limit_of_1_mib() {
    let long = |n: usize| {
        format!(
            r#"{{"data": {{"token": "t"}}, "content": "Hello", "pad": "{}"}}"#,
            "x".repeat(n)
        )
    };
    assert!(says_hello(sized(OK, &long(900 << 10)), stay));
    for endpoint in ENDPOINTS {
        fails(
            endpoint,
            sized(OK, &long(1 << 20)),
            Peer::stall,
            ErrorKind::Limit,
        );
    }
}

#[test]
fn a_json_answer_may_come_in_the_smallest_of_pieces() {
    // To look at all of it after each would take seconds.
    let begin = format!(
        "{{\"data\": {{\"token\": \"t\"}}, \"pad\": \"{}",
        "x".repeat(900 << 10)
    );
    let drip: fn(&mut Peer) = |peer| {
        for _ in 0..1000 {
            peer.send("1\r\n");
            thread::yield_now();
            peer.send("x\r\n");
            thread::yield_now();
        }
        peer.send([&*chunk("\"}"), "0\r\n\r\n"].concat());
    };
    let raw = [CHUNKED, &chunk(&begin)].concat();
    let (service, _) = service(Endpoint::Login, raw, drip);
    let client = builder(&service).build().unwrap();
    let before = busy();
    let error = client.complete("Hi").unwrap_err();
    let busy = busy() - before;
    assert!(busy < Duration::from_millis(500), "{busy:?}");
    assert_eq!(error.kind(), ErrorKind::Auth, "its token is none: {error}");
}

/// How long this thread has had a processor: not how long others have. (Known on Linux.)
fn busy() -> Duration {
    let stat = fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    let ticks: u64 = fields.skip(11).take(2).flat_map(str::parse::<u64>).sum();
    Duration::from_millis(10 * ticks)
}

#[test]
fn a_byte_order_mark_before_a_json_answer_is_nothing() {
    for endpoint in [Endpoint::Login, Endpoint::Text] {
        let raw = sized(OK, "\u{feff}{\"data\": {\"token\": \"t\"}}");
        // The service does not know that token: what fails, fails later.
        let (service, _) = service(endpoint, raw, stay);
        let error = builder(&service)
            .build()
            .unwrap()
            .complete("Hi")
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Auth, "{error}");
    }
}

// Refusals.

/// The error of a chat that is refused at an endpoint.
#[track_caller]
fn refused(endpoint: Endpoint, status: u16, body: impl AsRef<[u8]>) -> Error {
    let body = body.as_ref();
    let head = format!(
        "HTTP/1.1 {status} No\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let (result, _) = chat(endpoint, [head.as_bytes(), body].concat(), stay);
    let error = result.expect_err("a failure");
    assert_eq!(error.http_status(), Some(status), "{error}");
    assert_eq!(error.reply().unwrap().http_status, Some(status));
    error
}

#[test]
fn the_status_decides_the_kind_of_an_error() {
    for (status, kind) in [
        (400, ErrorKind::Request),
        (401, ErrorKind::Auth),
        (402, ErrorKind::Request),
        (403, ErrorKind::Auth),
        (404, ErrorKind::Request),
        (408, ErrorKind::Request),
        (413, ErrorKind::Request),
        (418, ErrorKind::Request),
        (429, ErrorKind::RateLimit),
        (500, ErrorKind::Server),
        (502, ErrorKind::Server),
        (503, ErrorKind::Server),
        (599, ErrorKind::Server),
    ] {
        for endpoint in ENDPOINTS {
            let error = refused(
                endpoint,
                status,
                r#"{"data": {"token": "t"}, "content": "x"}"#,
            );
            assert_eq!(error.kind(), kind, "{endpoint:?}: {error}");
            assert!(error.to_string().contains(&status.to_string()), "{error}");
            assert_eq!(error.reply().unwrap().text, "");
        }
    }
}

#[test]
fn the_words_of_a_refusal_are_shown() {
    for (body, code) in [
        (r#"{"code": 1234, "msg": "out of order"}"#, Some("1234")),
        (
            r#"{"code": "broken", "message": "out of order", "data": null}"#,
            Some("broken"),
        ),
        (
            r#"{"error": {"message": "out of order", "code": "broken"}}"#,
            Some("broken"),
        ),
        (
            r#"{"error": {"message": "out of order", "code": null}}"#,
            None,
        ),
        (r#"{"error": "out of order"}"#, None),
        (
            r#"[{"error": {"message": "out of order", "code": 7}}]"#,
            Some("7"),
        ),
        ("\u{feff}{\"message\": \"out of order\"}", None),
        ("<html><h1>out of order</h1></html>", None),
        ("out of order", None),
    ] {
        for endpoint in ENDPOINTS {
            let error = refused(endpoint, 500, body);
            assert!(error.to_string().contains("out of order"), "{error}");
            assert_eq!(error.code(), code, "{body}");
            assert_eq!(error.body(), Some(body));
        }
    }
}

#[test]
fn the_body_of_a_refusal_may_be_empty_broken_or_long() {
    for endpoint in ENDPOINTS {
        assert!(refused(endpoint, 500, "").body().is_none_or(str::is_empty));
        assert_eq!(refused(endpoint, 400, b"a\xffb").body(), Some("a\u{fffd}b"));
        for long in [
            "x".repeat(60 << 10),
            "é".repeat(60 << 10),
            "💥".repeat(60 << 10),
        ] {
            let error = refused(endpoint, 503, &long);
            let body = error.body().expect("a body");
            assert!(
                body.len() <= 4 << 10 && body.len() > (4 << 10) - 4,
                "{}",
                body.len()
            );
            assert!(long.starts_with(body), "no half character at the end");
            assert!(error.to_string().len() < 1 << 10, "{error}");
        }
    }
}

#[test]
fn a_refusal_whose_body_does_not_end_is_not_waited_for() {
    let body = "x".repeat(70 << 10);
    let raw = format!("HTTP/1.1 503 No\r\ncontent-length: 9999999\r\n\r\n{body}");
    for endpoint in ENDPOINTS {
        fails(endpoint, &raw, Peer::stall, ErrorKind::Server);
    }
}

#[test]
fn a_refusal_whose_body_is_cut_is_still_that_refusal() {
    let raw = "HTTP/1.1 429 No\r\nretry-after: 7\r\ncontent-length: 1000\r\n\r\nslow do";
    for end in [Peer::close, Peer::reset] {
        for endpoint in ENDPOINTS {
            let error = fails(endpoint, raw, end, ErrorKind::RateLimit);
            assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
            assert_eq!(error.body(), Some("slow do"));
        }
    }
}

#[test]
fn what_follows_an_informational_answer_is_no_header_however_much_comes_at_once() {
    let big = format!(
        "data: {{\"content\": \"{}\"}}\n\n{DONE}",
        "x".repeat(100_000)
    );
    let chats = AtomicU32::new(0);
    let service = Service::builder().on(Endpoint::Stream, move |_, peer| {
        // A receive brings as much as that on a connection that has had long answers.
        let hints = match chats.fetch_add(1, Ordering::SeqCst) {
            0..3 => "",
            _ => "HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n",
        };
        let length = big.len();
        peer.send(format!("{hints}{OK}content-length: {length}\r\n\r\n{big}"));
    });
    let service = service.start();
    let client = builder(&service).build().unwrap();
    for _ in 0..8 {
        assert_eq!(client.complete("Hi").unwrap().text.len(), 100_000);
    }
}
