//! Errors of OpenAI-compatible services, in every shape that they come in: what a user reads of
//! them, what he may match on, what is tried again; the advice that goes with an error; and that no
//! key is ever shown in one.

use gptalk::{Client, ClientBuilder, Error, ErrorKind, Event, Protocol};
use gptalk_service::{Endpoint, Peer, Request, Service};
use serde_json::json;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// A client that has no key, whatever the environment says, and one try.
fn builder(base_url: &str) -> ClientBuilder {
    Client::builder()
        .protocol(Protocol::Openai)
        .base_url(base_url)
        .api_key("")
        .timeout(Some(Duration::from_secs(20)))
        .retries(0)
}

fn client(service: &Service) -> Client {
    builder(&service.url()).build().unwrap()
}

/// A service that answers every chat with these bytes, and closes the connection.
fn answering(raw: impl Into<Vec<u8>>) -> Service {
    let raw = raw.into();
    let answer = move |_: &Request, peer: &mut Peer| {
        peer.send(&raw);
        peer.close();
    };
    Service::builder().on(Endpoint::Chat, answer).start()
}

/// An answer as bytes; `headers` end in CRLF.
fn answer(status: u16, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status} Whatever\r\n{headers}content-length: {length}\r\n\r\n{body}")
}

fn stream(body: &str) -> String {
    answer(200, "content-type: text/event-stream\r\n", body)
}

/// The error of the one request that a chat with such a service is.
#[track_caller]
fn error_of(raw: impl Into<Vec<u8>>) -> Error {
    let service = answering(raw);
    let error = client(&service).complete("Hi").expect_err("a failure");
    assert_eq!(service.requests().len(), 1);
    assert!(error.to_string().contains(&service.url()), "{error}");
    error
}

#[track_caller]
fn assert_says(error: &Error, words: &[&str]) {
    for word in words {
        assert!(
            error.to_string().contains(word),
            "not {word:?}, but: {error}"
        );
    }
}

const HELLO: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hello\"}}]}\n\n";

// The shapes.

/// An error as some service sends it, its words, and its code.
#[rustfmt::skip]
const SHAPES: &[(&str, &[&str], Option<&str>)] = &[
    // OpenAI, and most others.
    (r#"{"error": {"message": "out of order", "type": "server_error", "param": null, "code": "broken"}}"#,
        &["out of order"], Some("broken")),
    (r#"{"error": {"message": "out of order", "type": "server_error", "param": null, "code": null}}"#,
        &["out of order"], Some("server_error")),
    (r#"{"error": {"message": "out of order", "code": 1234}}"#, &["out of order"], Some("1234")),
    (r#"{"error": {"message": "out of order", "code": ""}}"#, &["out of order"], None),
    // LiteLLM.
    (r#"{"error": {"message": "out of order", "type": null, "param": null, "code": "500"}}"#,
        &["out of order"], Some("500")),
    // Ollama, LM Studio.
    (r#"{"error": "out of order"}"#, &["out of order"], None),
    // FastAPI.
    (r#"{"detail": "Not Found"}"#, &["Not Found"], None),
    (r#"{"detail": [{"type": "missing", "loc": ["body", "model"], "msg": "Field required"}]}"#,
        &["model", "Field required"], None),
    // Gemini.
    ("[{\n  \"error\": {\n    \"code\": 429,\n    \"message\": \"Resource exhausted\",\n    \
        \"status\": \"RESOURCE_EXHAUSTED\"\n  }\n}\n]", &["Resource exhausted"], Some("429")),
    // Mistral.
    (r#"{"object": "error", "message": {"detail": [{"loc": ["body", "x"], "msg": "no x"}]}, "type": "invalid_request_error", "param": null, "code": null}"#,
        &["body", "no x"], Some("invalid_request_error")),
    // Scaleway.
    (r#"{"error": "Bad Request", "message": "out of order"}"#, &["out of order"], None),
    // OpenRouter.
    (r#"{"error": {"code": 502, "message": "Provider returned error", "metadata": {"raw": "{\"detail\": \"exploded\"}", "provider_name": "X"}}, "user_id": "u"}"#,
        &["Provider returned error", "exploded"], Some("502")),
    // vLLM.
    (r#"{"object": "error", "message": "out of order", "type": "NotFoundError", "param": null, "code": 404}"#,
        &["out of order"], Some("404")),
    // llama.cpp.
    (r#"{"error": {"code": 500, "message": "context size has been exceeded", "type": "server_error"}}"#,
        &["context size has been exceeded"], Some("500")),
];

#[test]
fn an_error_answer_is_understood_in_every_shape() {
    for (body, words, code) in SHAPES {
        for (status, kind) in [(400, ErrorKind::Request), (502, ErrorKind::Server)] {
            for body in [(*body).to_owned(), format!("\u{feff}{body}\n")] {
                let error = error_of(answer(status, "", &body));
                assert_eq!((error.kind(), error.code()), (kind, *code), "{error}");
                assert_says(&error, words);
                assert_says(&error, &[&status.to_string()]);
                assert_eq!(error.http_status(), Some(status));
                assert_eq!(error.body(), Some(&*body));
                assert_eq!(error.is_retryable(), status == 502);
                assert_eq!(error.reply().unwrap().text, "");
            }
        }
    }
}

#[test]
fn an_error_inside_a_stream_is_understood_in_every_shape_and_keeps_the_text() {
    for (json, words, code) in SHAPES {
        let json = json.replace('\n', "");
        for raw in [
            stream(&format!("{HELLO}data: {json}\n\n")),
            stream(&format!("{HELLO}data: {json}\n\ndata: [DONE]\n\n")),
            stream(&format!("{HELLO}data:{json}")),
            stream(&format!("{HELLO}{json}\n")),
            format!("HTTP/1.1 200 OK\r\n\r\n{HELLO}data: {json}\r\n"),
        ] {
            let error = error_of(raw);
            assert_eq!(
                (error.kind(), error.code()),
                (ErrorKind::Server, *code),
                "{error}"
            );
            assert_says(&error, words);
            let reply = error.reply().unwrap();
            assert_eq!((&*reply.text, reply.http_status), ("Hello", Some(200)));
            assert!(!error.is_retryable(), "text was delivered");
        }
    }
}

#[test]
fn an_error_for_an_answer_is_understood_in_every_shape() {
    for (json, words, code) in SHAPES {
        for kind in ["application/json", "text/event-stream"] {
            let head = format!("content-type: {kind}\r\n");
            let error = error_of(answer(200, &head, json));
            assert_eq!(
                (error.kind(), error.code()),
                (ErrorKind::Server, *code),
                "{error}"
            );
            assert_says(&error, words);
            let reply = error.reply().unwrap();
            assert_eq!((&*reply.text, reply.http_status), ("", Some(200)));
        }
    }
}

#[test]
fn an_error_in_a_stream_may_stand_elsewhere_than_in_an_error_event() {
    for (lines, code) in [
        // OpenRouter: in a chunk.
        (
            r#"data: {"id": "gen-1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}], "error": {"code": 502, "message": "out of order"}}"#,
            Some("502"),
        ),
        // OpenRouter: in a choice.
        (
            r#"data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "error", "error": {"code": 502, "message": "out of order"}}]}"#,
            Some("502"),
        ),
        // Older llama.cpp: a field of its own.
        (
            r#"error: {"code": 500, "message": "out of order"}"#,
            Some("500"),
        ),
        ("error: out of order", None),
        // By the name of the event.
        ("event: error\ndata: {\"message\": \"out of order\"}", None),
        (
            r#"data: {"type": "error", "message": "out of order"}"#,
            Some("error"),
        ),
    ] {
        let error = error_of(stream(&format!("{HELLO}{lines}\n\n")));
        assert_eq!(
            (error.kind(), error.code()),
            (ErrorKind::Server, code),
            "{error}"
        );
        assert_says(&error, &["out of order"]);
        assert_eq!(error.reply().unwrap().text, "Hello");
    }
}

#[test]
fn of_a_web_page_the_title_is_shown() {
    let page = "<!DOCTYPE html>\n<html><head><style>body { color: red }</style>\n\
        <TITLE>\n 502 Bad Gateway\n</TITLE></head><body>nginx</body></html>";
    let error = error_of(answer(502, "content-type: text/html\r\n", page));
    assert_eq!(error.kind(), ErrorKind::Server);
    assert_says(&error, &["HTTP 502: 502 Bad Gateway;"]);
    assert!(!error.to_string().contains("color"), "{error}");
    assert_eq!(error.body(), Some(page));
}

#[test]
fn what_is_no_error_of_any_shape_is_shown_as_it_is() {
    for body in [
        "upstream connect error or disconnect/reset before headers",
        "<h1>Sorry</h1>",
        r#"{"oops": [1, 2]}"#,
        r#"{"error": {}}"#,
        r#"{"error":"#,
        "[]",
        "null",
    ] {
        let error = error_of(answer(503, "", body));
        assert_eq!(
            (error.kind(), error.code()),
            (ErrorKind::Server, None),
            "{error}"
        );
        assert_says(&error, &["503"]);
        assert_eq!(error.body(), Some(body));
        if body.len() > 4 && body != r#"{"error": {}}"# {
            assert_says(&error, &[body]);
        }
    }
}

#[test]
fn a_status_without_a_body_or_a_reason_says_enough() {
    for line in [
        "HTTP/1.1 529\r\n",
        "HTTP/1.1 529 \r\n",
        "HTTP/1.1 529 Overloaded\r\n",
    ] {
        for rest in ["content-length: 0\r\n\r\n", "connection: close\r\n\r\n"] {
            let error = error_of([line, rest].concat());
            assert_eq!(error.kind(), ErrorKind::Server, "{error}");
            assert_eq!((error.http_status(), error.code()), (Some(529), None));
            assert_says(&error, &["529"]);
            assert!(error.body().is_none_or(str::is_empty));
            assert!(error.is_retryable());
        }
    }
}

// What is tried again.

#[test]
fn a_quota_that_is_used_up_is_final() {
    for body in [
        r#"{"error": {"message": "You exceeded your current quota", "type": "insufficient_quota", "param": null, "code": "insufficient_quota"}}"#,
        r#"{"error": {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": null}}"#,
        r#"{"error": {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": 1113}}"#,
        r#"[{"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}]"#,
    ] {
        let service = answering(answer(429, "retry-after: 0\r\n", body));
        let client = builder(&service.url()).retries(2).build().unwrap();
        let error = client.complete("Hi").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RateLimit);
        assert_says(&error, &["quota"]);
        assert!(!error.is_retryable(), "{error}");
        assert_eq!(service.requests().len(), 1, "{body}");

        let error = error_of(stream(&format!("data: {body}\n\n")));
        assert_eq!(error.kind(), ErrorKind::Server);
        assert!(!error.is_retryable(), "{error}");
    }
}

#[test]
fn a_rate_limit_is_waited_for_as_long_as_the_service_says() {
    const BODY: &str = r#"{"error": {"message": "slow down", "type": "requests", "param": null, "code": "rate_limit_exceeded"}}"#;
    for (headers, wait) in [
        ("retry-after: 1\r\n", 1000),
        ("retry-after-ms: 300\r\n", 300),
        ("retry-after-ms: 300\r\nretry-after: 60\r\n", 300),
        ("retry-after: 0.3\r\n", 300),
        ("retry-after: 0\r\n", 0),
    ] {
        let wait = Duration::from_millis(wait);
        let service =
            Service::builder().on(Endpoint::Chat, move |request, peer| match peer.nth() {
                0 => peer.send(answer(429, headers, BODY)),
                1 => peer.normal(request),
                _ => peer.send(answer(429, "retry-after: 30\r\n", BODY)),
            });
        let service = service.start();
        let client = builder(&service.url()).retries(1).build().unwrap();
        let started = Instant::now();
        let reply = client
            .complete("Hi")
            .unwrap_or_else(|error| panic!("{error}"));
        assert!(started.elapsed() >= wait, "{headers}");
        assert_eq!((&*reply.text, reply.attempts), ("You said: Hi", 2));

        // The chat has 20 seconds: a wait of 30 is not begun.
        let error = client.complete("Hi").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RateLimit);
        assert_eq!(error.code(), Some("rate_limit_exceeded"));
        assert_eq!(error.retry_after(), Some(Duration::from_secs(30)));
        assert!(error.is_retryable(), "{error}");
        assert_says(&error, &["slow down"]);
        assert_eq!(service.requests().len(), 3);
    }
}

#[test]
fn an_error_inside_a_stream_is_not_tried_again_by_itself() {
    for before in ["", HELLO] {
        let event = r#"data: {"error": {"message": "overloaded", "code": 503}}"#;
        let service = answering(stream(&format!("{before}{event}\n\n")));
        let client = builder(&service.url()).retries(2).build().unwrap();
        let error = client.complete("Hi").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Server);
        assert_eq!(service.requests().len(), 1);
        assert_eq!(error.is_retryable(), before.is_empty(), "{error}");
    }
}

#[test]
fn an_error_that_is_the_requests_own_fault_is_not_worth_another_try() {
    for error in [
        r#"{"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"}"#,
        r#"{"message": "too long", "type": "invalid_request_error", "code": null}"#,
        r#"{"message": "too long", "type": "exceed_context_size_error", "code": 400}"#,
        r#"{"message": "no", "code": "403"}"#,
        r#"{"message": "no", "type": "invalid_request_error", "code": "invalid_api_key"}"#,
        r#"{"message": "no", "type": "authentication_error", "code": "e17"}"#,
    ] {
        let error = error_of(stream(&format!("data: {{\"error\": {error}}}\n\n")));
        assert_eq!(error.kind(), ErrorKind::Server);
        assert!(!error.is_retryable(), "{error}");
    }
}

#[test]
fn an_error_answer_that_is_whole_is_not_waited_for() {
    let body = r#"{"error": {"message": "no GPU", "code": "gpu"}}"#;
    let service = Service::builder()
        .on(Endpoint::Chat, move |_, peer| {
            peer.send(format!("HTTP/1.1 400 No\r\n\r\n{body}"));
            peer.stall();
        })
        .start();
    let started = Instant::now();
    let error = client(&service).complete("Hi").unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::Request, Some("gpu"))
    );
    assert!(started.elapsed() < Duration::from_secs(10), "{error}");
}

#[test]
fn an_error_of_status_200_has_its_body_too() {
    let error = r#"{"error": {"message": "no GPU", "code": 500}}"#;
    for raw in [
        answer(200, "", error),
        stream(&format!("data: {error}\n\n")),
        stream(&format!("{HELLO}data: {error}\n\n")),
    ] {
        let failure = error_of(raw);
        assert_eq!(failure.body(), Some(error), "{failure}");
        assert_eq!(failure.http_status(), None, "it was 200: no refusal");
    }
}

// Errors that help.

#[test]
fn a_wrong_key_and_a_missing_one_are_told_apart() {
    let service = Service::builder().api_key("right").start();
    let wrong = builder(&service.url())
        .api_key("wrong-key-1")
        .build()
        .unwrap();
    let error = wrong.complete("Hi").unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::Auth, Some("invalid_api_key"))
    );
    assert_eq!(error.http_status(), Some(401));
    assert_says(
        &error,
        &["Incorrect API key provided", "is api_key the one"],
    );
    assert!(!error.to_string().contains("OPENAI_API_KEY"), "{error}");

    let error = client(&service).complete("Hi").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Auth);
    assert_says(
        &error,
        &[
            "no key was sent",
            "api_key",
            "GPTALK_API_KEY",
            "OPENAI_API_KEY",
        ],
    );

    let right = builder(&service.url()).api_key("right").build().unwrap();
    assert_eq!(right.complete("Hi").unwrap().text, "You said: Hi");
}

#[test]
fn a_model_that_the_service_does_not_have_is_named_with_its_option() {
    for (status, body) in [
        (
            404,
            r#"{"error": {"message": "The model `nope` does not exist or you do not have access to it.", "type": "invalid_request_error", "param": null, "code": "model_not_found"}}"#,
        ),
        (
            404,
            r#"{"error": {"message": "model \"nope\" not found, try pulling it first", "type": "api_error", "param": null, "code": null}}"#,
        ),
        (
            404,
            r#"{"object": "error", "message": "The model `nope` does not exist.", "type": "NotFoundError", "param": null, "code": 404}"#,
        ),
        (
            400,
            r#"{"error": {"message": "nope is not a valid model ID", "code": 400}}"#,
        ),
    ] {
        let service = answering(answer(status, "", body));
        let with = builder(&service.url()).model("nope").build().unwrap();
        let error = with.complete("Hi").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Request);
        assert_says(&error, &["model is \"nope\""]);
        assert!(!error.to_string().contains("base_url"), "{error}");
    }
}

#[test]
fn a_service_that_wants_a_model_says_which_option_to_set() {
    for (status, body) in [
        (
            400,
            r#"{"error": {"message": "you must provide a model parameter", "type": "invalid_request_error", "param": null, "code": null}}"#,
        ),
        (
            400,
            r#"{"error": {"message": "model is required", "type": "api_error", "param": null, "code": null}}"#,
        ),
        (
            422,
            r#"{"detail": [{"type": "missing", "loc": ["body", "model"], "msg": "Field required"}]}"#,
        ),
        (
            404,
            r#"{"error": {"message": "no such thing", "code": "model_not_found"}}"#,
        ),
    ] {
        let error = error_of(answer(status, "", body));
        assert_eq!(error.kind(), ErrorKind::Request);
        assert_says(&error, &["set model", "GPTALK_MODEL"]);
    }
}

#[test]
fn of_a_fault_that_is_not_the_models_name_the_name_is_not_doubted() {
    for message in [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens.",
        "max_tokens is too large: 50000. This model supports at most 16384 completion tokens.",
        "Unsupported value: 'temperature' does not support 0 with this model.",
        "This model's maximum context length is 4096 tokens. Provide a shorter prompt.",
    ] {
        let body = json!({"error": {"message": message, "code": null}}).to_string();
        let service = answering(answer(400, "", &body));
        for client in [builder(&service.url()).model("m"), builder(&service.url())] {
            let error = client.build().unwrap().complete("Hi").unwrap_err();
            assert_says(&error, &[message]);
            assert!(error.to_string().ends_with(message), "no advice: {error}");
        }
    }
}

#[test]
fn a_wrong_path_shows_what_was_tried_and_says_base_url() {
    let not_found = r#"{"detail": "Not Found"}"#;
    let page = "<html><title>404 Not Found</title></html>";
    let tried = "/v1/chat/completions";
    for (status, body) in [(404, not_found), (404, page), (404, ""), (405, not_found)] {
        let error = error_of(answer(status, "", body));
        assert_eq!(error.kind(), ErrorKind::Request);
        assert_says(&error, &[tried, "base_url", "/v1"]);
    }
    // A GPTalk service, at a path that it does not know.
    let service = Service::start();
    let client = builder(&format!("{}/path", service.url())).build().unwrap();
    let error = client.complete("Hi").unwrap_err();
    let tried = format!("{}/path/chat/completions", service.url());
    assert_says(&error, &[&tried, "404", "base_url", "protocol", "gptalk"]);

    let client = builder(&format!("{}/api/chatgpt", service.url()));
    let error = client.build().unwrap().complete("Hi").unwrap_err();
    assert_says(&error, &["set protocol to gptalk (GPTALK_PROTOCOL)"]);
}

#[test]
fn an_unexpected_endpoint_with_status_200_is_a_wrong_path_too() {
    let body = r#"{"error":"Unexpected endpoint or method. (POST /chat/completions)"}"#;
    let error = error_of(answer(200, "content-type: application/json\r\n", body));
    assert_eq!(error.kind(), ErrorKind::Server);
    assert_says(
        &error,
        &["Unexpected endpoint or method", "base_url", "/v1"],
    );
}

#[test]
fn a_page_where_a_reply_was_expected_says_base_url() {
    let page = "<html><title>Sign in</title></html>";
    let error = error_of(answer(200, "content-type: text/html\r\n", page));
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::Protocol, Some("empty"))
    );
    assert_says(&error, &["Sign in", "base_url"]);
}

#[test]
fn a_redirect_names_its_target_without_the_query() {
    for status in [301, 302, 303, 307, 308] {
        let to = "location: https://elsewhere.example/v2?session=SENTINEL\r\n";
        let error = error_of(answer(status, to, ""));
        assert_eq!(error.kind(), ErrorKind::Request);
        assert_says(&error, &["https://elsewhere.example/v2", "base_url"]);
        assert!(!error.to_string().contains("SENTINEL"), "{error}");
    }
}

#[test]
fn nothing_that_listens_is_said_with_host_and_port() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let client = builder(&format!("http://127.0.0.1:{port}/v1"));
    let error = client.build().unwrap().complete("Hi").unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::Network, Some("connect"))
    );
    assert_says(&error, &[&format!("127.0.0.1:{port}"), "running"]);
    assert!(error.is_retryable());
}

#[test]
fn a_service_that_is_known_by_its_port_is_named() {
    for (port, name) in [(11434, "Ollama"), (1234, "LM Studio")] {
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            eprintln!("skipped: somebody listens on {port}");
            continue;
        }
        for host in ["127.0.0.1", "localhost"] {
            let client = builder(&format!("http://{host}:{port}")).build().unwrap();
            let error = client.complete("Hi").unwrap_err();
            assert_eq!(error.code(), Some("connect"));
            assert_says(&error, &[name, &port.to_string(), "running"]);
        }
    }
}

#[test]
fn the_gptalk_protocol_with_what_is_for_the_other_one_says_so() {
    let service = Service::builder()
        .on(Endpoint::Login, |_, peer| {
            peer.respond(404, "text/plain", "404 page not found")
        })
        .start();
    let gptalk = |path: &str, key: &str| {
        let url = format!("{}{path}", service.url());
        let client = builder(&url).protocol(Protocol::Gptalk).api_key(key);
        client.build().unwrap().complete("Hi").unwrap_err()
    };
    for (path, key) in [
        ("", "sk-1"),
        ("/v1", ""),
        ("/v1/", ""),
        ("/v1/chat/completions", ""),
        ("/v1", "sk-1"),
    ] {
        let error = gptalk(path, key);
        assert_says(
            &error,
            &["404", "set protocol to openai", "GPTALK_PROTOCOL"],
        );
    }
    // Where nothing speaks for either, both are named, once.
    let error = gptalk("", "").to_string();
    assert!(error.contains("is base_url the right one?"), "{error}");
    assert_eq!(
        error.matches("set protocol to openai").count(),
        1,
        "{error}"
    );
}

// Secrets.

/// A key that must never be shown, nor a part of it.
const SENTINEL: &str = "sk-SENTINEL-0123456789abcdef";

/// All that a chat that fails shows: log lines, `Debug`s, and the error.
#[track_caller]
fn shown(options: ClientBuilder) -> String {
    let mut shown = format!("{options:?}\n");
    let client = options.build().unwrap();
    let mut stream = client.stream("Hi").unwrap().with_log();
    shown += &format!("{client:?}\n{stream:?}\n");
    while let Some(event) = stream.next_event() {
        if let Event::Log(line) = event {
            shown += &format!("log: {line}\n");
        }
    }
    shown += &format!("{stream:?}\n{:?}\n", stream.cancel_handle());
    let in_passing = stream.error().expect("an error").clone();
    let error = stream.finish().unwrap_err();
    for error in [in_passing, error] {
        let (code, body) = (error.code().unwrap_or(""), error.body().unwrap_or(""));
        shown += &format!(
            "{error}\n{error:?}\n{error:#?}\n{code}\n{body}\n{:?}\n",
            error.reply()
        );
    }
    shown
}

/// A way to give a key, and a URL.
type Given = fn(&str) -> ClientBuilder;

const GIVEN: [Given; 5] = [
    |url| builder(url).api_key(SENTINEL),
    |url| builder(url).header("api-key", SENTINEL),
    |url| builder(url).header("Authorization", &format!("Bearer {SENTINEL}")),
    |url| builder(&format!("{url}?key={SENTINEL}")),
    |url| builder(&format!("{url}/v1?api-version=1&api_key={SENTINEL}&x=y")),
];

#[test]
fn a_key_that_the_service_repeats_is_not_shown() {
    let words = format!("you sent {SENTINEL}, didn't you");
    let error = json!({"error": {"message": words, "type": SENTINEL, "code": SENTINEL}});
    let raw = json!({"error": {"code": 502, "message": "no", "metadata": {"raw": words}}});
    let detail = json!({"detail": [{"msg": words, "input": SENTINEL}]}).to_string();
    let (error, raw) = (error.to_string(), raw.to_string());
    let page = format!("<html><title>{words}</title></html>");
    let soon = "retry-after-ms: 1\r\n";
    for answer in [
        answer(401, "", &error),
        answer(400, "", &error),
        answer(422, "", &detail),
        answer(429, soon, &error),
        answer(500, soon, &words),
        answer(502, soon, &raw),
        answer(503, soon, &page),
        answer(200, "", &error),
        answer(200, "", &words),
        answer(200, "", &page),
        stream(&format!("data: {error}\n\n")),
        stream(&format!("{HELLO}data: {error}\n\ndata: [DONE]\n\n")),
        stream(&format!("{HELLO}error: {words}\n\n")),
        stream(&format!("{HELLO}data: {{{words}\n\n")),
        stream(&format!("data: \"{words}\"\n\n")),
        stream(&format!("data: {{\"choices\": \"{words}\"}}\n\n")),
    ] {
        let service = answering(answer.clone());
        for given in GIVEN {
            let shown = shown(given(&service.url()).retries(1));
            assert!(shown.contains("log: "), "{answer}\n{shown}");
            assert!(shown.contains("you sent ***"), "{answer}\n{shown}");
            assert!(!shown.contains("SENTINEL"), "{answer}\n{shown}");
        }
    }
}

#[test]
fn a_key_that_the_service_repeats_in_the_head_of_its_answer_is_not_shown() {
    for head in [
        format!("HTTP/1.1 401 {SENTINEL}\r\nwww-authenticate: Bearer {SENTINEL}\r\n"),
        format!("HTTP/1.1 307 No\r\nlocation: https://h.example/{SENTINEL}?{SENTINEL}\r\n"),
        format!("HTTP/1.1 503 No\r\nretry-after: {SENTINEL}\r\nset-cookie: k={SENTINEL}\r\n"),
        format!("HTTP/1.1 200 OK\r\ncontent-encoding: {SENTINEL}\r\n"),
        format!("HTTP/1.1 200 OK\r\ncontent-type: {SENTINEL}\r\n"),
        format!("{SENTINEL}: you\r\n"),
    ] {
        let service = answering(format!("{head}content-length: 0\r\n\r\n"));
        for given in GIVEN {
            let shown = shown(given(&service.url()));
            assert!(!shown.contains("SENTINEL"), "{head}\n{shown}");
        }
    }
}

#[test]
fn a_key_at_the_edge_of_an_excerpt_is_not_shown_in_part() {
    for limit in [512, 4096] {
        for inside in 1..SENTINEL.len() {
            let before = "x".repeat(limit - inside);
            let words = format!("{before}{SENTINEL} rest");
            let error = json!({"error": {"message": words}}).to_string();
            for raw in [
                answer(200, "", &words),
                answer(500, "", &words),
                answer(400, "", &error),
                answer(400, "", &error[error.find('x').unwrap()..]),
                stream(&format!("data: {error}\n\n")),
                stream(&format!("data: {{{}\n\n", &words[1..])),
            ] {
                let service = answering(raw);
                let shown = shown(builder(&service.url()).api_key(SENTINEL));
                assert!(shown.contains("xxx"), "{shown}");
                // What follows the padding would be the key's beginning.
                assert!(
                    !shown.contains("xs"),
                    "{inside} bytes before {limit}: {shown}"
                );
            }
        }
    }
}

#[test]
fn a_key_in_another_form_is_not_shown() {
    let json = |words: &str| json!({"error": {"message": words}}).to_string();
    let echo = answer(401, "", &json(&format!("you sent {SENTINEL}")));
    let decoded = answer(401, "", &json("you sent a+b/SENTINEL"));
    let escaped = answer(
        401,
        "",
        r#"{"error": {"message": "you sent a\/SENTINEL\/b"}}"#,
    );
    let garbage = format!("{}{SENTINEL}\r\n\r\n", "x".repeat(60));
    let chunk =
        json!({"id": SENTINEL, "model": SENTINEL, "choices": [{"delta": {"content": "a"}}]});
    let named = stream(&format!("data: {chunk}\n\n"));
    let head = format!("content-type: text/event-stream\r\nx-request-id: {SENTINEL}\r\n");
    let request_id = answer(200, &head, HELLO);
    let given: [(&str, Given); 7] = [
        (&echo, |url| builder(url).api_key(&format!(" {SENTINEL}  "))),
        (&echo, |url| {
            builder(url).api_key(&format!("Bearer {SENTINEL}"))
        }),
        (&decoded, |url| {
            builder(&format!("{url}?key=a%2Bb%2FSENTINEL"))
        }),
        (&escaped, |url| builder(url).api_key("a/SENTINEL/b")),
        (&garbage, |url| builder(url).api_key(SENTINEL)),
        (&named, |url| builder(url).api_key(SENTINEL)),
        (&request_id, |url| builder(url).api_key(SENTINEL)),
    ];
    for (raw, options) in given {
        let service = answering(raw);
        let shown = shown(options(&service.url()));
        assert!(shown.contains("***"), "{raw}\n{shown}");
        assert!(!shown.contains("SENTINEL"), "{raw}\n{shown}");
    }
}

#[test]
fn a_key_in_the_query_is_sent_and_not_shown() {
    let service = Service::start();
    let url = format!("{}/v1?key={SENTINEL}&api-version=1", service.url());
    let client = builder(&url).build().unwrap();
    let reply = client.complete("Hi").unwrap();
    let tried = format!("{}/v1/chat/completions", service.url());
    assert_eq!(reply.url.as_deref(), Some(&*tried));
    assert!(!format!("{reply:?}").contains("SENTINEL"), "{reply:?}");
    let sent = format!("/v1/chat/completions?key={SENTINEL}&api-version=1");
    assert_eq!(service.requests()[0].target, sent);

    drop(service);
    let shown = shown(builder(&url).retries(1));
    assert!(shown.contains("connect"), "nobody is there: {shown}");
    assert!(!shown.contains("SENTINEL"), "{shown}");
}
