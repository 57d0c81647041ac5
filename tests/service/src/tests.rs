use crate::certificates::Authority;
use crate::{Endpoint, Peer, Request, Service};
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime};

const LOGIN: &str = "POST /api/chatgpt/user/login";
const TEXT: &str = "POST /api/chatgpt/chatapi/text";
const STREAM: &str = "GET /api/chatgpt/chatapi/stream";
const CHAT: &str = "POST /v1/chat/completions";

fn connect(service: &Service) -> TcpStream {
    TcpStream::connect(("127.0.0.1", service.port())).unwrap()
}

fn timestamp() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_secs()
}

/// A request as it should be, and to be the last on its connection; `more` header lines end in CRLF.
fn request(service: &Service, what: &str, more: &str, body: &str) -> String {
    let (port, timestamp, length) = (service.port(), timestamp(), body.len());
    format!(
        "{what} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\n\
         Accept: */*\r\nContent-Type: application/json\r\nUser-Agent: test\r\nConnection: close\r\n\
         X-Auth-AppId: 2229\r\nX-Auth-OpenId:\r\nX-Auth-Platform: \r\n\
         X-Auth-Timestamp: {timestamp}\r\nContent-Length: {length}\r\n{more}\r\n{body}"
    )
}

/// The head and the body of the answer to a request.
fn answer(service: &Service, request: &str) -> (String, String) {
    let mut stream = connect(service);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// The status and the body of the answer to a request.
fn exchange(service: &Service, request: &str) -> (u16, String) {
    let (head, body) = answer(service, request);
    (head[9..12].parse().unwrap(), body)
}

/// Logs in; the header to be had for it.
fn log_in(service: &Service) -> String {
    let body = json!({"fingerprint": "0123456789abcdef".repeat(2), "platform": "fingerprint"});
    let (status, answer) = exchange(service, &request(service, LOGIN, "", &body.to_string()));
    assert_eq!(status, 200, "{answer}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let token = answer["data"]["token"].as_str().unwrap();
    format!("Authorization: Bearer {token}\r\n")
}

/// A text as it should be.
fn text(service: &Service, authorization: &str) -> String {
    let body = json!({
        "content": "Hi there", "accept": "stream", "from": 1, "model": "gpt-3.5-turbo",
        "is_mobile": 0, "user_agent": "test", "is_open_ctx": 0, "prompt": "", "roid": 111,
        "temperature": 0.5, "ctx_msg_count": 3, "created_at": timestamp(), "mine": true,
    });
    request(service, TEXT, authorization, &body.to_string())
}

#[test]
fn a_chat_as_it_should_be_and_what_is_refused() {
    let service = Service::start();
    let login = log_in(&service);
    let (_, answer) = exchange(&service, &text(&service, &login));
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let token = answer["data"]["token"].as_str().unwrap();

    let raw = token.replace(' ', "%20");
    let raw = request(&service, &format!("{STREAM}?token={raw}"), "", "");
    assert_eq!(exchange(&service, &raw).0, 400);
    let encoded: String = token.bytes().map(|b| format!("%{b:02X}")).collect();
    let encoded = request(&service, &format!("{STREAM}?token={encoded}"), "", "");
    let (status, body) = exchange(&service, &encoded);
    assert_eq!(status, 200);
    assert!(body.contains(
        "data: {\"content\":\"You said: \"}\n\ndata: {\"content\":\"You said: Hi \"}\n\n"
    ));
    assert!(body.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"));
    assert_eq!(exchange(&service, &encoded).0, 403);

    for (right, wrong) in [
        ("X-Auth-AppId", "X-Auth-App"),
        ("Origin: http:", "Origin: https:"),
        ("\"roid\":111", "\"roid\":\"1\""),
    ] {
        let spoilt = text(&service, &login).replace(right, wrong);
        assert_eq!(exchange(&service, &spoilt).0, 400);
    }
    let refusals = service.refusals();
    assert_eq!(refusals.len(), 5);
    assert_eq!(refusals[1], "stream: the token is unknown or used");
    assert_eq!(refusals[2], "text: x-auth-appid is missing");
    assert_eq!(refusals[4], "text: roid is \"1\", not 111");
    assert_eq!(service.count(Endpoint::Stream), 3);
    assert_eq!(service.requests()[1].json()["content"], "Hi there");
    assert!(service.wait_until(|s| s.open_connections() == 0));
}

#[test]
fn the_sixth_use_and_a_revoked_login() {
    let service = Service::start();
    let login = log_in(&service);
    for _ in 0..5 {
        assert_eq!(exchange(&service, &text(&service, &login)).0, 200);
    }
    assert_eq!(exchange(&service, &text(&service, &login)).0, 401);

    let login = log_in(&service);
    service.revoke_logins();
    assert_eq!(exchange(&service, &text(&service, &login)).0, 401);
    assert!(service.refusals().is_empty());
}

/// A request for a completion as it should be; `more` header lines end in CRLF.
fn chat(service: &Service, more: &str, body: &Value) -> String {
    let (port, body) = (service.port(), body.to_string());
    let length = body.len();
    format!(
        "{CHAT} HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n\
         User-Agent: test\r\nConnection: close\r\nContent-Length: {length}\r\n{more}\r\n{body}"
    )
}

/// The completion that answers a body.
fn complete(service: &Service, body: &Value) -> Value {
    let (status, answer) = exchange(service, &chat(service, "", body));
    assert_eq!(status, 200, "{answer}");
    serde_json::from_str(&answer).unwrap()
}

/// The events that answer a body, up to `[DONE]`.
fn stream(service: &Service, mut body: Value) -> Vec<Value> {
    body["stream"] = json!(true);
    let (status, answer) = exchange(service, &chat(service, "", &body));
    assert_eq!(status, 200, "{answer}");
    assert!(answer.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"));
    let data = answer.lines().filter_map(|l| l.strip_prefix("data: "));
    let events = data.take_while(|data| *data != "[DONE]");
    events.map(|e| serde_json::from_str(e).unwrap()).collect()
}

fn user(content: impl Into<Value>) -> Value {
    json!({"role": "user", "content": content.into()})
}

/// An assistant's message that calls a function.
fn caller(id: &str) -> Value {
    let call = json!({"id": id, "type": "function", "function": {"name": "weather"}});
    json!({"role": "assistant", "content": null, "tool_calls": [call]})
}

#[test]
fn a_completion_whole_and_as_a_stream() {
    let service = Service::builder().pace(Duration::from_millis(1)).start();
    let mut body = json!({"messages": [{"role": "system", "content": "Be kind"}, user("Hi you")]});
    let (head, _) = answer(&service, &chat(&service, "", &body));
    assert!(head.contains("\r\nx-request-id: req_"), "{head}");
    let whole = complete(&service, &body);
    assert!(whole["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(whole["object"], "chat.completion");
    assert!(whole["created"].is_u64());
    assert_eq!(whole["model"], "built-in");
    let message = json!({"role": "assistant", "content": "You said: Hi you"});
    let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
    assert_eq!(whole["choices"], json!([choice]));
    let usage = json!({"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8});
    assert_eq!(whole["usage"], usage);

    body["model"] = json!("mine");
    let choice =
        |delta, finish| json!([{"index": 0, "delta": delta, "finish_reason": finish as Value}]);
    let choices = [
        choice(json!({"role": "assistant", "content": ""}), Value::Null),
        choice(json!({"content": "You "}), Value::Null),
        choice(json!({"content": "said: "}), Value::Null),
        choice(json!({"content": "Hi "}), Value::Null),
        choice(json!({"content": "you"}), Value::Null),
        choice(json!({}), json!("stop")),
    ];
    let events = stream(&service, body.clone());
    assert_eq!(events.len(), choices.len());
    for (event, choice) in events.iter().zip(&choices) {
        assert_eq!(event["choices"], *choice);
        assert_eq!(event["id"], events[0]["id"]);
        assert_eq!(event["object"], "chat.completion.chunk");
        assert_eq!(event["model"], "mine");
        assert_eq!(event.get("usage"), None);
    }

    body["stream_options"] = json!({"include_usage": true});
    let events = stream(&service, body.clone());
    let (last, others) = events.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"], usage);
    assert_eq!(others.len(), choices.len());
    assert!(others.iter().all(|e| e.get("usage") == Some(&Value::Null)));

    // A paced word comes in an HTTP chunk of its own.
    body["stream"] = json!(true);
    let (_, answer) = answer(&service, &chat(&service, "", &body));
    assert_eq!(answer.matches("\n\n\r\n").count(), 4);
    assert!(service.refusals().is_empty());
    assert_eq!(service.count(Endpoint::Chat), 5);
}

#[test]
fn a_completion_of_parts_and_a_cut_one() {
    let service = Service::start();
    let image = json!({"type": "image_url", "image_url": {"url": "data:,"}});
    let parts = json!([{"type": "text", "text": "See"}, image, {"type": "text", "text": "it"}]);
    let mut body = json!({"messages": [user(parts), {"role": "assistant", "content": "No"}]});
    let text = "/choices/0/message/content";
    let whole = complete(&service, &body);
    assert_eq!(whole.pointer(text).unwrap(), "You said: See it");

    for limit in ["max_tokens", "max_completion_tokens"] {
        let mut body = body.clone();
        body[limit] = json!(3);
        let whole = complete(&service, &body);
        assert_eq!(whole.pointer(text).unwrap(), "You said: See ");
        assert_eq!(whole["choices"][0]["finish_reason"], "length");
        assert_eq!(whole["usage"]["completion_tokens"], 3);
        let events = stream(&service, body.clone());
        assert_eq!(events.len(), 5);
        assert_eq!(events[4]["choices"][0]["finish_reason"], "length");

        body[limit] = json!(4);
        let whole = complete(&service, &body);
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    }

    body["messages"] = json!([{"role": "system", "content": "Hi"}]);
    let whole = complete(&service, &body);
    assert_eq!(whole.pointer(text).unwrap(), "You said: ");
}

#[test]
fn a_tool_call_and_its_result() {
    let service = Service::start();
    let parameters = json!({"type": "object", "required": ["place", "city"]});
    let weather = json!({"name": "weather", "parameters": parameters});
    let tools = json!([{"type": "other"}, {"type": "function", "function": weather}]);
    let mut body = json!({"messages": [user("How is it in Zürich?!")], "tools": tools});
    let arguments = r#"{"place":"Zürich","city":"Zürich"}"#;

    let whole = complete(&service, &body);
    let message = &whole["choices"][0]["message"];
    let id = message["tool_calls"][0]["id"].as_str().unwrap();
    assert!(id.starts_with("call_"));
    let call = json!({
        "id": id, "type": "function", "function": {"name": "weather", "arguments": arguments},
    });
    let expected = json!({"role": "assistant", "content": null, "tool_calls": [call]});
    assert_eq!(*message, expected);
    assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");

    let events = stream(&service, body.clone());
    let (last, events) = events.split_last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(last["choices"][0]["delta"], json!({}));
    let first = &events[0]["choices"][0]["delta"];
    let call = json!({
        "id": first["tool_calls"][0]["id"], "type": "function",
        "function": {"name": "weather", "arguments": ""}, "index": 0,
    });
    let expected = json!({"role": "assistant", "content": null, "tool_calls": [call]});
    assert_eq!(*first, expected);
    let mut joined = String::new();
    for event in &events[1..] {
        let delta = &event["choices"][0]["delta"];
        let piece = delta["tool_calls"][0]["function"]["arguments"].as_str();
        let piece = piece.unwrap();
        let call = json!({"index": 0, "function": {"arguments": piece}});
        assert_eq!(*delta, json!({"tool_calls": [call]}));
        assert!(piece.chars().count() <= 8);
        joined += piece;
    }
    assert_eq!(joined, arguments);

    let result = json!({"role": "tool", "tool_call_id": "call_1", "content": "Fine today"});
    body["messages"] = json!([user("How is it?"), caller("call_1"), result]);
    let whole = complete(&service, &body);
    let message = json!({"role": "assistant", "content": "weather says: Fine today"});
    assert_eq!(whole["choices"][0]["message"], message);
}

#[test]
fn what_a_completion_is_refused_for() {
    let service = Service::start();
    let body = json!({"messages": [user("Hi")]});
    let good = chat(&service, "Authorization: Bearer any\r\n", &body);
    for (right, wrong, why) in [
        ("POST", "GET", "the method is not POST"),
        ("Host: l", "Host: L", "host is \"L"),
        ("n/json", "n/json; a=b", "content-type is"),
        ("User-Agent", "Agent", "user-agent is missing"),
        (
            "User-Agent",
            "User-Agent: a\r\nUser-Agent",
            "user-agent is given twice",
        ),
        (
            "Connection",
            "Accept-Encoding: gzip\r\nConnection",
            "accept-encoding is not",
        ),
        (
            "Connection",
            "Origin: http://a\r\nConnection",
            "origin is not for this request",
        ),
        (
            "Connection",
            "X-Auth-AppId: 1\r\nConnection",
            "x-auth-appid is of the other protocol",
        ),
        (
            "Bearer",
            "Basic",
            "authorization does not begin with \"Bearer \"",
        ),
        (
            "Connection",
            "Authorization: Bearer b\r\nConnection",
            "authorization is given twice",
        ),
        ("{\"m", "(\"m", "the body is not a JSON object"),
    ] {
        assert!(good.contains(right), "{right}");
        assert_refused(&service, &good.replacen(right, wrong, 1), why);
    }

    let foreign = json!({"role": "tool", "tool_call_id": "call_2", "content": ""});
    let late = json!({"role": "tool", "tool_call_id": "call_1", "content": ""});
    for (messages, why) in [
        (json!([]), "messages is not a list of messages"),
        (json!("Hi"), "messages is not a list of messages"),
        (json!([user("Hi"), "Hi"]), "messages[1] has no role"),
        (
            json!([{"role": "", "content": "Hi"}]),
            "messages[0] has no role",
        ),
        (json!([{"role": "system"}]), "messages[0] has no content"),
        (json!([user(Value::Null)]), "messages[0] has no content"),
        (
            json!([{"role": "assistant", "content": null, "tool_calls": []}]),
            "messages[0] has no content",
        ),
        (
            json!([caller("call_1"), foreign]),
            "messages[1] is the result of no tool call",
        ),
        (
            json!([late, caller("call_1")]),
            "messages[0] is the result of no tool call",
        ),
    ] {
        let body = json!({"messages": messages});
        assert_refused(&service, &chat(&service, "", &body), why);
    }

    for (members, why) in [
        (json!({"stream": 1}), "stream is not a boolean"),
        (
            json!({"stream_options": {}}),
            "stream_options is given, but no stream is asked for",
        ),
        (
            json!({"stream": true, "stream_options": 1}),
            "stream_options is not an object",
        ),
        (json!({"temperature": "1"}), "temperature is not a number"),
        (json!({"model": ""}), "model is not a name"),
        (
            json!({"max_tokens": 1, "max_completion_tokens": 1}),
            "max_tokens and max_completion_tokens are both given",
        ),
    ] {
        let mut body = body.clone();
        for (name, value) in members.as_object().unwrap() {
            body[name] = value.clone();
        }
        assert_refused(&service, &chat(&service, "", &body), why);
    }

    let other = good.replace("/completions", "/completion");
    assert_eq!(exchange(&service, &other).0, 404);
    assert_eq!(service.count(Endpoint::Other), 1);
    let query = good.replace("/completions", "/completions?a=b");
    assert_eq!(exchange(&service, &query).0, 200);
}

/// Asserts that a request is refused, and that answer and record say why.
fn assert_refused(service: &Service, request: &str, why: &str) {
    let (status, answer) = exchange(service, request);
    assert_eq!(status, 400, "{why}: {answer}");
    let recorded = service.refusals().pop().unwrap();
    let recorded = recorded.strip_prefix("chat: ").unwrap();
    assert!(recorded.starts_with(why), "{why}: {recorded}");
    let error = json!({
        "message": recorded, "type": "invalid_request_error", "param": null, "code": null,
    });
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer, json!({"error": error}));
}

#[test]
fn the_key_of_a_completion() {
    let service = Service::builder().api_key("sk-1").start();
    let body = json!({"messages": [user("Hi")]});
    let right = chat(&service, "Authorization: Bearer sk-1\r\n", &body);
    assert_eq!(exchange(&service, &right).0, 200);
    for wrong in ["", "Authorization: Bearer sk-2\r\n"] {
        let (status, answer) = exchange(&service, &chat(&service, wrong, &body));
        assert_eq!(status, 401);
        let error = json!({
            "message": "Incorrect API key provided", "type": "invalid_request_error",
            "param": null, "code": "invalid_api_key",
        });
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer, json!({"error": error}));
    }
    assert!(service.refusals().is_empty());
}

#[test]
fn requests_that_are_not_kept_are_counted() {
    let service = Service::builder().keep_requests(false).start();
    log_in(&service);
    assert_eq!(service.count(Endpoint::Login), 1);
    assert!(service.requests().is_empty());
}

#[test]
fn a_drop_wakes_whoever_waits() {
    let long = Duration::from_secs(60);
    let waits: [fn(&mut Peer); 4] = [
        |peer| peer.stall(),
        |peer| peer.pause(Duration::from_secs(60)),
        |peer| peer.send(vec![0; 64 << 20]), // more than is buffered, and not read
        |peer| assert!(peer.client_closed(Duration::from_secs(60))),
    ];
    for wait in waits {
        let service = Service::builder().on(Endpoint::Login, move |_: &Request, peer| wait(peer));
        let service = service.start();
        let (mut busy, idle) = (connect(&service), connect(&service));
        let request = request(&service, LOGIN, "", "");
        busy.write_all(request.as_bytes()).unwrap();
        assert!(service.wait_until(|s| s.count(Endpoint::Login) == 1 && s.connections() == 2));

        let started = Instant::now();
        drop(service);
        assert!(started.elapsed() < Duration::from_millis(200));
        for mut stream in [busy, idle] {
            stream.set_read_timeout(Some(long)).unwrap();
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
        assert!(started.elapsed() < long, "the connections are closed");
    }
}

#[test]
fn a_reset_a_close_and_a_client_that_goes() {
    let service = Service::builder().on_connect(|peer| match peer.nth() {
        0 => peer.reset(),
        1 => peer.close(),
        _ => assert!(peer.client_closed(Duration::from_secs(5))),
    });
    let service = service.start();
    let mut byte = [0];
    let reset = connect(&service).read(&mut byte);
    assert_eq!(reset.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(connect(&service).read(&mut byte).unwrap(), 0);
    drop(connect(&service));
    assert!(service.wait_until(|s| s.connections() == 3 && s.open_connections() == 0));
}

#[test]
fn a_tunnel_and_what_is_cut_of_one() {
    let service = Service::builder().api_key("sk-1").start();
    let port = service.port();
    let way = Service::builder().on_connect(move |peer| match peer.nth() {
        0 => peer.tunnel(port, 1),
        1 => {
            assert_eq!(peer.receive(4), b"POST");
            peer.close();
        }
        2 => {
            peer.tunnel_until(port, 7, 12);
            peer.close();
        }
        _ => peer.tunnel(port, usize::MAX),
    });
    let way = way.start();
    let request = chat(&service, "", &json!({"messages": [user("Hi")]}));
    assert_eq!(exchange(&way, &request).0, 401);
    let read = |request: &str| {
        let (mut stream, mut answer) = (connect(&way), String::new());
        stream.write_all(request.as_bytes()).unwrap();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert_eq!(read("POST"), "");
    assert_eq!(read(&request), "HTTP/1.1 401");

    let mut waiting = connect(&way);
    assert!(service.wait_until(|s| s.open_connections() == 1));
    let started = Instant::now();
    drop(way);
    assert!(started.elapsed() < Duration::from_millis(200));
    assert!(service.wait_until(|s| s.open_connections() == 0));
    assert!(!matches!(waiting.read(&mut [0]), Ok(1..)));
}

#[test]
fn a_service_with_tls_speaks_nothing_else() {
    let config = Authority::new("root").issue(&["127.0.0.1"]).config();
    let service = Service::builder().tls(config).start();
    assert!(service.url().starts_with("https://127.0.0.1:"));
    let mut stream = connect(&service);
    stream.write_all(b"POST / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer.first(), Some(&21), "an alert: {answer:?}");
    assert!(service.wait_until(|s| s.open_connections() == 0));
    assert!(service.requests().is_empty());
    assert_eq!((service.connections(), service.handshakes()), (1, 0));
}
