use crate::{Endpoint, Peer, Request, Service};
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime};

const LOGIN: &str = "POST /api/chatgpt/user/login";
const TEXT: &str = "POST /api/chatgpt/chatapi/text";
const STREAM: &str = "GET /api/chatgpt/chatapi/stream";

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

/// The status and the body of the answer to a request.
fn exchange(service: &Service, request: &str) -> (u16, String) {
    let mut stream = connect(service);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
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
