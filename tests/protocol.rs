//! The GPTalk protocol: every rule of its description, as the service sees it.

use gptalk::{Client, Conversation, Message, Reply};
use gptalk_service::{Builder, Endpoint, Peer, Request, Service};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

/// A time limit that only a chat that hangs meets.
const FOREVER: Duration = Duration::from_secs(20);

/// A service to be, at a URL of its own: the system may give its port to another one later, and
/// the process would take the logins of the one for the other's.
fn fresh() -> Builder {
    static NTH: AtomicUsize = AtomicUsize::new(0);
    Service::builder().prefix(&format!("/{}", NTH.fetch_add(1, SeqCst)))
}

#[track_caller]
fn client(service: &Service) -> Client {
    let builder = Client::builder().base_url(&service.url());
    builder.timeout(Some(FOREVER)).build().unwrap()
}

/// The pieces of a chat that succeeds, and its outcome.
#[track_caller]
fn chat(client: &Client, talk: impl Into<Conversation>) -> (Vec<String>, Reply) {
    let mut pieces = Vec::new();
    let reply = client.chat(talk, |piece| {
        pieces.push(piece.to_owned());
        ControlFlow::Continue(())
    });
    let reply = reply.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(reply.pieces, pieces.len() as u64);
    (pieces, reply)
}

/// The last request for an endpoint.
#[track_caller]
fn last(service: &Service, endpoint: Endpoint) -> Request {
    let mut requests = service.requests().into_iter();
    requests.rfind(|r| r.endpoint == endpoint).unwrap()
}

/// The only value of a header that is there once.
#[track_caller]
fn sole<'a>(request: &'a Request, name: &str) -> &'a str {
    let named = request.headers.iter().filter(|(n, _)| n == name);
    match *named.map(|(_, value)| value.as_str()).collect::<Vec<_>>() {
        [value] => value,
        ref values => panic!("{:?} has {name} as {values:?}", request.endpoint),
    }
}

#[track_caller]
fn assert_nothing_refused(service: &Service) {
    assert_eq!(service.refusals(), [""; 0]);
}

fn line(content: &str) -> String {
    format!("data: {}\n\n", json!({"content": content}))
}

/// A whole stream in one write, so that the end of its body is there with its last event.
fn respond_stream(peer: &mut Peer, lines: &str) {
    let size = lines.len();
    peer.send(format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
         {size:x}\r\n{lines}\r\n0\r\n\r\n"
    ));
}

/// A service whose every reply is these lines.
fn streaming(lines: String) -> Builder {
    fresh().on(Endpoint::Stream, move |_, peer| {
        respond_stream(peer, &lines);
    })
}

/// A service that takes whatever headers it gets.
fn lenient() -> Service {
    let token = |_: &Request, peer: &mut Peer| {
        peer.respond(200, "application/json", r#"{"data":{"token":"token"}}"#);
    };
    let service = streaming(line("Hi") + "data: [DONE]\n\n");
    service
        .on(Endpoint::Login, token)
        .on(Endpoint::Text, token)
        .start()
}

/// The pieces that a stream with these contents makes.
#[track_caller]
fn deltas(contents: &[&str]) -> (Vec<String>, Reply) {
    let lines: String = contents.iter().map(|content| line(content)).collect();
    let service = streaming(lines + "data: [DONE]\n\n").start();
    chat(&client(&service), "Hi")
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_secs().try_into().unwrap()
}

/// RFC 3986: what is not unreserved is encoded.
fn percent_encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[test]
fn all_eight_headers_are_on_each_of_the_three_requests() {
    let service = fresh().start();
    let before = unix_now();
    chat(&client(&service), "Hi");
    let after = unix_now();

    let requests = service.requests();
    let paths = requests.iter().map(|r| r.target.split('?').next());
    let prefix = service.url().split_off(service.url().rfind('/').unwrap());
    let expected = ["user/login", "chatapi/text", "chatapi/stream"];
    let expected = expected.map(|path| format!("{prefix}/api/chatgpt/{path}"));
    assert!(paths.eq(expected.iter().map(|path| Some(&**path))));
    assert_eq!(
        requests.iter().map(|r| &*r.method).collect::<Vec<_>>(),
        ["POST", "POST", "GET"]
    );

    let timestamp = sole(&requests[0], "x-auth-timestamp").to_owned();
    let moment: i64 = timestamp.parse().unwrap();
    assert!((before..=after).contains(&moment), "{moment}");
    assert_eq!(requests[1].json()["created_at"], moment);
    for request in &requests {
        for (name, value) in [
            ("accept", "*/*"),
            ("content-type", "application/json"),
            ("origin", service.url().trim_end_matches(&prefix)),
            ("user-agent", concat!("gptalk/", env!("CARGO_PKG_VERSION"))),
            ("x-auth-appid", "2229"),
            ("x-auth-openid", ""),
            ("x-auth-platform", ""),
            ("x-auth-timestamp", &timestamp),
        ] {
            assert_eq!(
                sole(request, name),
                value,
                "{name} of {:?}",
                request.endpoint
            );
        }
    }
    assert_nothing_refused(&service);
}

#[test]
fn only_the_text_request_is_authorized_and_by_the_login_token() {
    let service = fresh().login_data(json!({"token": "abc.DEF-123"})).start();
    chat(&client(&service), "Hi");
    assert_eq!(
        last(&service, Endpoint::Login).header("authorization"),
        None
    );
    assert_eq!(
        sole(&last(&service, Endpoint::Text), "authorization"),
        "Bearer abc.DEF-123"
    );
    assert_eq!(
        last(&service, Endpoint::Stream).header("authorization"),
        None
    );
    assert_nothing_refused(&service);
}

#[test]
fn a_login_has_a_random_fingerprint_of_32_lower_case_hex_digits() {
    let service = fresh().expires_in(-1).start();
    // The service's own tokens are good for nothing: each chat logs in, and is refused.
    for _ in 0..8 {
        client(&service).complete("Hi").unwrap_err();
    }
    let logins = service
        .requests()
        .into_iter()
        .filter(|r| r.endpoint == Endpoint::Login);
    let mut fingerprints = HashSet::new();
    for body in logins.map(|login| login.json()) {
        let fingerprint = body["fingerprint"].as_str().unwrap().to_owned();
        assert_eq!(
            body,
            json!({"fingerprint": fingerprint, "platform": "fingerprint"})
        );
        assert_eq!(fingerprint.len(), 32);
        assert!(
            fingerprint
                .bytes()
                .all(|b| b"0123456789abcdef".contains(&b)),
            "{fingerprint}"
        );
        fingerprints.insert(fingerprint);
    }
    assert_eq!(fingerprints.len(), 8, "each login has its own");
}

#[test]
fn a_configured_fingerprint_is_used_as_it_is() {
    let service = lenient();
    for fingerprint in ["00112233445566778899aabbccddeeff", "Not Hex \"é\""] {
        let client = Client::builder()
            .base_url(&service.url())
            .fingerprint(fingerprint);
        chat(&client.build().unwrap(), "Hi");
        let body = last(&service, Endpoint::Login).json();
        assert_eq!(
            body,
            json!({"fingerprint": fingerprint, "platform": "fingerprint"})
        );
    }
}

#[test]
fn the_text_has_twelve_members_by_default() {
    let service = fresh().start();
    chat(&client(&service), "Hi");
    let text = last(&service, Endpoint::Text);
    let user_agent = sole(&text, "user-agent");
    let created_at: i64 = sole(&text, "x-auth-timestamp").parse().unwrap();
    assert_eq!(
        text.json(),
        json!({
            "content": "Hi", "accept": "stream", "from": 1, "model": "gpt-3.5-turbo",
            "is_mobile": 0, "user_agent": user_agent, "is_open_ctx": 0, "prompt": "",
            "roid": 111, "temperature": 0, "ctx_msg_count": 3, "created_at": created_at,
        })
    );
}

#[test]
fn options_and_request_members_are_in_the_text() {
    let service = fresh().start();
    let members = json!({"roid": 111, "is_vip": true, "model": "from-body"});
    let client = Client::builder()
        .base_url(&service.url())
        .model("from-option")
        .temperature(0.7)
        .max_tokens(9) // which the protocol has no member for
        .user_agent("mine/1.0")
        .app_id("77");
    chat(&client.build().unwrap(), "Hi");
    let text = last(&service, Endpoint::Text);
    let body = text.json();
    assert_eq!(body["model"], "from-option");
    assert_eq!(body["temperature"], json!(0.7));
    assert_eq!(body["user_agent"], "mine/1.0");
    assert_eq!(body.as_object().unwrap().len(), 12);
    for request in service.requests() {
        assert_eq!(sole(&request, "user-agent"), "mine/1.0");
        assert_eq!(sole(&request, "x-auth-appid"), "77");
    }

    let talk = r#"{"messages": [{"role": "user", "content": "Hi"}], "temperature": 1,
        "model": "from-request", "big": 18446744073709551615, "deep": {"a": [null]}}"#;
    let talk = Conversation::from_json(talk).unwrap();
    let client = Client::builder()
        .base_url(&service.url())
        .model("from-option")
        .temperature(0.7);
    chat(&client.build().unwrap(), &talk);
    let body = last(&service, Endpoint::Text).json();
    assert_eq!(body["model"], "from-request");
    assert_eq!(body["temperature"], json!(1));
    assert_eq!(body["big"], json!(u64::MAX));
    assert_eq!(body["deep"], json!({"a": [null]}));
    assert_eq!(body["content"], "Hi");
    assert_eq!(body.get("messages"), None);

    let client = Client::builder()
        .base_url(&service.url())
        .model("from-option");
    chat(
        &client
            .body(members.as_object().unwrap().clone())
            .build()
            .unwrap(),
        &talk,
    );
    let body = last(&service, Endpoint::Text).json();
    assert_eq!(body["model"], "from-body");
    assert_eq!(body["is_vip"], true);
    assert_eq!(
        body["temperature"],
        json!(1),
        "what body does not name stays"
    );
    assert_eq!(body.as_object().unwrap().len(), 12 + 3);
    assert_nothing_refused(&service);
}

#[test]
fn a_header_of_the_users_replaces_or_adds() {
    let service = lenient();
    let client = Client::builder()
        .base_url(&service.url())
        .header("X-Auth-OpenId", "me")
        .header("X-Mine", "first")
        .header("X-Other", "a: b, c")
        .header("x-mine", "second");
    chat(&client.build().unwrap(), "Hi");
    assert_eq!(service.requests().len(), 3);
    for request in service.requests() {
        assert_eq!(sole(&request, "x-auth-openid"), "me");
        assert_eq!(sole(&request, "x-auth-platform"), "");
        assert_eq!(sole(&request, "x-mine"), "second");
        assert_eq!(sole(&request, "x-other"), "a: b, c");
    }
}

#[test]
fn the_user_agent_member_is_the_user_agent_header() {
    let service = fresh().start();
    let client = Client::builder()
        .base_url(&service.url())
        .header("User-Agent", "mine/2.0");
    let outcome = client.build().unwrap().complete("Hi");
    let text = last(&service, Endpoint::Text);
    assert_eq!(sole(&text, "user-agent"), "mine/2.0");
    assert_eq!(text.json()["user_agent"], "mine/2.0");
    outcome.unwrap();
}

#[test]
fn a_base_url_may_have_a_prefix_and_a_slash_and_no_scheme() {
    let service = Service::builder().prefix("/a/b%20c").start();
    let (url, port) = (service.url(), service.port());
    for (base_url, host) in [
        (url.clone(), "127.0.0.1"),
        (format!("{url}/"), "127.0.0.1"),
        (format!("127.0.0.1:{port}/a/b%20c/"), "127.0.0.1"),
        (format!("HTTP://LocalHost:{port}/a/b%20c"), "localhost"),
        (format!("localhost:{port}/a/b%20c"), "localhost"),
    ] {
        let client = Client::builder().base_url(&base_url).build().unwrap();
        chat(&client, "Hi");
        let text = last(&service, Endpoint::Text);
        assert_eq!(
            text.target, "/a/b%20c/api/chatgpt/chatapi/text",
            "{base_url}"
        );
        assert_eq!(
            sole(&text, "origin"),
            format!("http://{host}:{port}"),
            "{base_url}"
        );
        assert_eq!(sole(&text, "host"), format!("{host}:{port}"), "{base_url}");
    }
    assert_nothing_refused(&service);
}

#[test]
fn a_stream_token_is_percent_encoded() {
    for token in [
        "plain-._~0",
        "a&b#c%d+e/f=g h?i",
        "%2B%20",
        "жетон/令牌/🎫",
        "\r\n\0\t\u{7f}\"<>'",
        "a;b:c@d!e$f,g*h(i)j[k]l{m}n|o\\p^q`r",
    ] {
        let body = json!({"data": {"token": token}}).to_string();
        let service = streaming(line("Hi") + "data: [DONE]\n\n")
            .on(Endpoint::Text, move |_, peer| {
                peer.respond(200, "application/json", &body)
            })
            .start();
        chat(&client(&service), "Hi");
        let expected = format!(
            "/api/chatgpt/chatapi/stream?token={}",
            percent_encoded(token)
        );
        let target = last(&service, Endpoint::Stream).target;
        assert!(target.ends_with(&expected), "{target}");
    }
}

#[test]
fn a_conversation_becomes_one_prompt() {
    let service = fresh().start();
    let client = client(&service);
    for (messages, prompt) in [
        // A single message is sent as it is, whoever says it.
        (json!([["user", "Hi"]]), "Hi"),
        (json!([["system", "Be brief"]]), "Be brief"),
        (json!([["tOOL", " two\nlines \n"]]), " two\nlines \n"),
        (
            json!([
                ["user", "Hi"],
                ["assistant", "Hello! How can I help?"],
                ["user", "Tell me a joke"]
            ]),
            "User: Hi\nAssistant: Hello! How can I help?\nUser: Tell me a joke\nAssistant:",
        ),
        (
            json!([["sYSTEM", "a"], ["USER", "b"], ["x", ""], ["éTÉ", "c"]]),
            "System: a\nUser: b\nX: \nÉté: c\nAssistant:",
        ),
        (
            json!([
                ["system", "Кратко"],
                ["user", "日本語で"],
                ["user", "👩‍👩‍👧 \"\\\u{1}"]
            ]),
            "System: Кратко\nUser: 日本語で\nUser: 👩‍👩‍👧 \"\\\u{1}\nAssistant:",
        ),
        (
            json!([["user", "a\nb"], ["user", "c"]]),
            "User: a\nb\nUser: c\nAssistant:",
        ),
    ] {
        let message = |pair: &Value| {
            let [role, content] = [0, 1].map(|at| pair[at].as_str().unwrap());
            Message::new(role, content)
        };
        let talk: Vec<Message> = messages.as_array().unwrap().iter().map(message).collect();
        let (pieces, reply) = chat(&client, talk);
        assert_eq!(last(&service, Endpoint::Text).json()["content"], prompt);
        assert_eq!(reply.text, format!("You said: {prompt}"));
        assert_eq!(pieces.concat(), reply.text);
    }
    assert_nothing_refused(&service);
}

#[test]
fn a_line_brings_what_it_has_beyond_the_characters_of_the_line_before() {
    for (contents, expected) in [
        (
            &["Hel", "Hello", "Hello there"][..],
            &["Hel", "lo", " there"][..],
        ),
        (&["П", "При", "Привет"], &["П", "ри", "вет"]),
        (&["日", "日本", "日本語 ok"], &["日", "本", "語 ok"]),
        (&["👍", "👍🏽", "👍🏽e\u{301}"], &["👍", "🏽", "e\u{301}"]),
        (&["", "a\0b", "a\0b\"\\\n"], &["a\0b", "\"\\\n"]),
        (&["a", "a", "ab", "ab", "ab"], &["a", "b"]), // a line that adds nothing brings nothing
        (&[""], &[]),
    ] {
        let (pieces, reply) = deltas(contents);
        assert_eq!(pieces, expected, "{contents:?}");
        assert_eq!(reply.text, expected.concat(), "{contents:?}");
        assert!(!reply.rewritten, "{contents:?}");
    }
}

#[test]
fn rewritten_text_is_counted_in_characters_and_the_last_line_is_the_reply() {
    for (contents, expected) in [
        (&["abc", "xyzw"][..], &["abc", "w"][..]),
        (&["abc", "abd"], &["abc"]),
        (&["abcd", "ab", "abX"], &["abcd", "X"]),
        (&["abc", "", "xy"], &["abc", "xy"]),
        (&["abc", "äöüß"], &["abc", "ß"]),
        (&["日本語", "abcd", "日本語!?"], &["日本語", "d", "?"]),
        (&["👍👍", "👍ab", "👍"], &["👍👍", "b"]),
    ] {
        let (pieces, reply) = deltas(contents);
        assert_eq!(pieces, expected, "{contents:?}");
        assert_eq!(reply.text, *contents.last().unwrap(), "{contents:?}");
        assert!(reply.rewritten, "{contents:?}");
    }
}

#[test]
fn only_data_lines_matter() {
    let lines = concat!(
        ": a comment\nevent: message\nid: 1\nretry: 10\n\n",
        "data: {\"content\": \"one\"}\ndata: {\"content\": \"one two\"}\r\n",
        "dat: {\"content\": \"x\"}\n data: {\"content\": \"y\"}\nDATA: {\"content\": \"z\"}\nnonsense\n\n",
        "data:{\"content\": \"one two three\"}\n\ndata: [DONE]\n\n",
    );
    let service = streaming(lines.into()).start();
    let (pieces, _) = chat(&client(&service), "Hi");
    assert_eq!(pieces, ["one", " two", " three"]);
}

#[test]
fn text_arrives_with_its_line_and_not_later() {
    let (heard, hears) = mpsc::channel();
    let hears = std::sync::Mutex::new(hears);
    let late = std::sync::Arc::new(AtomicBool::new(false));
    let saw_late = late.clone();
    let handler = move |_: &Request, peer: &mut Peer| {
        peer.sse_head();
        for content in ["one", "one two", "one two three"] {
            peer.chunk(line(content));
            // The next line is not sent before the callback has this one.
            if hears
                .lock()
                .unwrap()
                .recv_timeout(Duration::from_secs(5))
                .is_err()
            {
                saw_late.store(true, SeqCst);
            }
        }
        peer.chunk("data: [DONE]\n\n");
        peer.last_chunk();
    };
    let service = fresh().on(Endpoint::Stream, handler).start();
    let reply = client(&service).chat("Hi", |_| {
        heard.send(()).unwrap();
        ControlFlow::Continue(())
    });
    assert_eq!(reply.unwrap().text, "one two three");
    assert!(!late.load(SeqCst), "a piece was held back");
}

#[test]
fn done_ends_the_reply_and_what_follows_is_not_read() {
    let lines = line("Hi") + "data: [DONE]\n\n" + &line("Hi again") + "data: {not JSON\n\n";
    let service = streaming(lines).start();
    let client = client(&service);
    for _ in 0..2 {
        let (pieces, reply) = chat(&client, "Hi");
        assert_eq!((pieces, &*reply.text), (vec!["Hi".to_owned()], "Hi"));
    }
}

#[test]
fn done_ends_the_reply_though_its_connection_stays_open() {
    let open = |_: &Request, peer: &mut Peer| {
        peer.sse_head();
        peer.chunk(line("Hi") + "data: [DONE]\n\n");
        peer.stall(); // until the client closes: no last chunk
    };
    let service = fresh().on(Endpoint::Stream, open).start();
    let client = client(&service);
    for chats in 1..=3 {
        let (_, reply) = chat(&client, "Hi");
        assert_eq!(reply.text, "Hi");
        assert_eq!(
            service.connections(),
            chats,
            "a stream that goes on cannot be reused"
        );
        assert!(
            service.wait_until(|s| s.open_connections() == 1),
            "the old one was closed"
        );
    }
    drop(client);
    assert!(service.wait_until(|s| s.open_connections() == 0));
}

#[test]
fn ten_chats_take_one_connection_and_two_requests_each() {
    let service = streaming(line("Hi") + "data: [DONE]\n\n").start();
    let client = client(&service);
    for chats in 1..=10 {
        // A clone shares the connections of its original.
        chat(&client.clone(), "Hi");
        let logins = if chats > 5 { 2 } else { 1 };
        assert_eq!(service.count(Endpoint::Login), logins);
        assert_eq!(service.requests().len(), logins + 2 * chats);
    }
    assert_eq!(service.connections(), 1);
    assert_nothing_refused(&service);
}
