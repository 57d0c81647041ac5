//! What an OpenAI-compatible service is asked: its URL, the headers, the body; what is changed about
//! a request that a service refuses a member of; how often it is sent, and over which connection.

use gptalk::{
    Client, ClientBuilder, Conversation, Error, ErrorKind, Event, Message, Protocol, Reply,
};
use gptalk_service::{Endpoint, Peer, Request, Service};
use serde_json::{Value, json};
use std::net::TcpListener;
use std::ops::ControlFlow;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

const JSON: &str = "application/json";

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

/// A service whose endpoint has a handler.
fn service(
    endpoint: Endpoint,
    handler: impl Fn(&Request, &mut Peer) + Send + Sync + 'static,
) -> Service {
    Service::builder().on(endpoint, handler).start()
}

/// Repeats the prompt, in one write: once it is read, the connection is free for the next chat.
fn echo(request: &Request, peer: &mut Peer) {
    let choice = json!({
        "delta": {"content": request.json()["messages"][0]["content"]},
        "finish_reason": "stop",
    });
    let events = format!("data: {}\n\ndata: [DONE]\n\n", json!({"choices": [choice]}));
    peer.respond(200, "text/event-stream", events);
}

/// The one request that a chat with the strict service is, with these options.
#[track_caller]
fn sent(
    options: impl FnOnce(ClientBuilder) -> ClientBuilder,
    talk: impl Into<Conversation>,
) -> Request {
    let service = Service::start();
    let client = options(builder(&service.url())).build().unwrap();
    let result = client.complete(talk);
    assert_eq!(service.refusals(), [""; 0]);
    result.unwrap_or_else(|error| panic!("{error}"));
    let mut requests = service.requests();
    assert_eq!(requests.len(), 1);
    requests.remove(0)
}

/// The members of the body that a chat sends besides its messages.
#[track_caller]
fn members(
    options: impl FnOnce(ClientBuilder) -> ClientBuilder,
    talk: impl Into<Conversation>,
) -> Value {
    let mut body = sent(options, talk).json();
    body.as_object_mut().unwrap().shift_remove("messages");
    body
}

#[track_caller]
fn read(json: &str) -> Conversation {
    Conversation::from_json(json).unwrap_or_else(|error| panic!("{json}: {error}"))
}

#[track_caller]
fn fails(client: &Client, talk: impl Into<Conversation>, kind: ErrorKind) -> Error {
    let error = client.complete(talk).expect_err("a failure");
    assert_eq!(error.kind(), kind, "{error}");
    error
}

fn object(json: Value) -> serde_json::Map<String, Value> {
    json.as_object().unwrap().clone()
}

// The request.

#[test]
fn a_request_is_a_post_with_the_headers_it_needs_and_no_others() {
    let request = sent(|client| client.api_key("sk-1"), "Hi");
    assert_eq!(
        (&*request.method, &*request.target),
        ("POST", "/v1/chat/completions")
    );
    let mut names: Vec<_> = request.headers.iter().map(|(name, _)| &**name).collect();
    names.sort_unstable();
    let expected = [
        "accept",
        "authorization",
        "content-length",
        "content-type",
        "host",
        "user-agent",
    ];
    assert_eq!(names, expected);
    assert_eq!(request.header("accept"), Some("*/*"));
    assert_eq!(request.header("content-type"), Some(JSON));
    assert_eq!(request.header("authorization"), Some("Bearer sk-1"));
    let agent = concat!("gptalk/", env!("CARGO_PKG_VERSION"));
    assert_eq!(request.header("user-agent"), Some(agent));
}

#[test]
fn a_body_is_the_messages_a_wish_for_a_stream_and_what_is_set() {
    let body = |options: fn(ClientBuilder) -> ClientBuilder| sent(options, "Hi").json();
    let usual = json!({
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    assert_eq!(body(|client| client), usual);
    let with = |name: &str, value: Value| {
        let mut body = usual.clone();
        body[name] = value;
        body
    };
    assert_eq!(body(|client| client.model("m")), with("model", json!("m")));
    assert_eq!(
        body(|client| client.temperature(0.0)),
        with("temperature", json!(0))
    );
    assert_eq!(
        body(|client| client.option("temperature", "0.7")),
        with("temperature", json!(0.7))
    );
    assert_eq!(
        body(|client| client.max_tokens(50)),
        with("max_tokens", json!(50))
    );
    assert_eq!(body(|client| client.model("")), usual);
}

#[test]
fn messages_of_every_role_are_sent_in_their_order() {
    let talk = [
        Message::system("Be brief."),
        Message::user("\u{0}\"é\"\n💥"),
        Message::assistant(""),
        Message::user("Hi"),
    ];
    let expected = talk
        .each_ref()
        .map(|message| json!({"role": message.role, "content": message.content}));
    assert_eq!(
        sent(|client| client, talk).json()["messages"],
        json!(expected)
    );
}

#[test]
fn what_a_request_object_has_beside_its_messages_passes_through_byte_for_byte() {
    let messages = concat!(
        r#""messages":[{"role":"user","content":[{"type":"text","text":"é \" \\ \u0001 💥"},"#,
        r#"{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0KGgo="}}],"#,
        r#""name":"me","cache_control":{"type":"ephemeral"}}]"#,
    );
    let members = concat!(
        r#""tool_choice":"none","response_format":{"type":"json_schema","json_schema":"#,
        r#"{"name":"z","strict":true,"schema":{"type":"object","properties":{"b":{},"a":[]}}}},"#,
        r#""seed":9007199254740993,"big":18446744073709551615,"small":-9223372036854775808,"#,
        r#""fine":0.1,"stop":["\n\n","</s>"],"logit_bias":{"50256":-100},"user":null,"#,
        r#""zebra":false,"apple":{"":""}"#,
    );
    let request = sent(|client| client, read(&format!("{{{members},{messages}}}")));
    let body = String::from_utf8(request.body).unwrap();
    assert!(body.contains(messages), "{body}");
    assert!(body.contains(members), "{body}");
}

#[test]
fn a_request_replaces_an_option_and_the_option_body_replaces_both() {
    let options = |client: ClientBuilder| client.model("option").temperature(0.5);
    let request = read(
        r#"{"messages": [{"role": "user", "content": "Hi"}],
        "model": "request", "temperature": 1, "seed": 1, "mine": 1}"#,
    );
    let usual = json!({"stream": true, "stream_options": {"include_usage": true}});
    let with = |more: Value| {
        let mut all = object(usual.clone());
        all.extend(object(more));
        Value::Object(all)
    };
    assert_eq!(
        members(options, "Hi"),
        with(json!({"model": "option", "temperature": 0.5}))
    );
    assert_eq!(
        members(options, request.clone()),
        with(json!({"model": "request", "temperature": 1, "seed": 1, "mine": 1}))
    );
    let body = object(json!({"model": "body", "seed": 2}));
    assert_eq!(
        members(|client| options(client).body(body), request),
        with(json!({"model": "body", "temperature": 1, "seed": 2, "mine": 1}))
    );
    let talk = json!([{"role": "user", "content": "another talk"}]);
    let body = object(json!({"messages": talk}));
    let request = sent(|client| client.body(body), "Hi");
    assert_eq!(request.json()["messages"], talk);
    let text = String::from_utf8(request.body).unwrap();
    assert_eq!(text.matches("\"messages\"").count(), 1, "{text}");
}

#[test]
fn a_reply_that_is_not_to_stream_is_delivered_whole() {
    let asks = r#"{"messages": [{"role": "user", "content": "Hi there"}], "stream": false}"#;
    let in_body = object(json!({"stream": false}));
    for (client, talk) in [
        (Client::builder(), read(asks)),
        (
            Client::builder().body(in_body),
            Conversation::from("Hi there"),
        ),
    ] {
        let service = Service::start();
        let client = client
            .protocol(Protocol::Openai)
            .base_url(&service.url())
            .build()
            .unwrap();
        let mut pieces = Vec::new();
        let reply = client.chat(talk, |piece| {
            pieces.push(piece.to_owned());
            ControlFlow::Continue(())
        });
        assert_eq!(service.refusals(), [""; 0], "such as stream_options");
        let reply = reply.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(pieces, ["You said: Hi there"]);
        assert_eq!(reply.text, pieces[0]);
        assert_eq!(reply.finish_reason.as_deref(), Some("stop"));
        assert_eq!(reply.completion_tokens(), Some(4));
        let body = service.requests()[0].json();
        assert_eq!(body["stream"], false);
        assert!(body.get("stream_options").is_none(), "{body}");
    }
}

#[test]
fn a_users_own_stream_options_and_token_limits_stay_as_they_are() {
    let own = |member: &str| {
        read(&format!(
            r#"{{"messages": [{{"role": "user", "content": "Hi"}}], {member}}}"#
        ))
    };
    let limited = |client: ClientBuilder| client.max_tokens(50);
    let body = members(
        limited,
        own(r#""stream_options": {"include_usage": false}"#),
    );
    assert_eq!(body["stream_options"], json!({"include_usage": false}));
    assert_eq!(body["max_tokens"], 50);

    let body = members(limited, own(r#""max_tokens": 7"#));
    assert_eq!(body["max_tokens"], 7);

    for body in [
        members(limited, own(r#""max_completion_tokens": 7"#)),
        members(
            |client| limited(client).body(object(json!({"max_completion_tokens": 7}))),
            "Hi",
        ),
    ] {
        assert_eq!(body["max_completion_tokens"], 7);
        assert!(body.get("max_tokens").is_none(), "{body}");
    }
}

// Where it goes.

#[test]
fn every_form_of_a_base_url_finds_the_endpoint() {
    let service = Service::builder()
        .on(Endpoint::Chat, echo)
        .on(Endpoint::Other, echo)
        .start();
    let hosts = [
        "http://127.0.0.1",
        "HTTP://127.0.0.1",
        "127.0.0.1",
        "localhost",
    ];
    let hosts = hosts.map(|host| format!("{host}:{}", service.port()));
    let chat = "/v1/chat/completions";
    let azure = "/openai/deployments/x/chat/completions?api-version=2024-10-21";
    for (path, target) in [
        ("", chat),
        ("/", chat),
        ("/v1", chat),
        ("/v1/", chat),
        ("/v1//", chat),
        (chat, chat),
        ("/v1/chat/completions/", chat),
        ("/api/v1", "/api/v1/chat/completions"),
        ("/v1beta/openai/", "/v1beta/openai/chat/completions"),
        (
            "/compatible-mode/v1/chat/completions",
            "/compatible-mode/v1/chat/completions",
        ),
        ("/openai/deployments/x?api-version=2024-10-21", azure),
        ("/openai/deployments/x/?api-version=2024-10-21", azure),
        (azure, azure),
        ("?a=b", "/v1/chat/completions?a=b"),
        ("/?a=b&c=%20d", "/v1/chat/completions?a=b&c=%20d"),
    ] {
        for host in &hosts {
            let url = format!("{host}{path}");
            let reply = builder(&url).build().unwrap().complete("Hi");
            let reply = reply.unwrap_or_else(|error| panic!("{url}: {error}"));
            let request = service.requests().pop().unwrap();
            assert_eq!(request.target, target, "{url}");
            let shown = reply.url.unwrap();
            let path = target.split('?').next().unwrap();
            assert!(shown.starts_with("http://"), "{url}: {shown}");
            assert!(
                shown.ends_with(&format!(":{}{path}", service.port())),
                "{url}: {shown}"
            );
        }
    }
}

#[test]
fn azure_has_its_deployment_its_version_and_its_key() {
    let service = service(Endpoint::Other, echo);
    let url = format!("{}/openai/deployments/x?api-version=1", service.url());
    let client = builder(&url).header("api-key", "azure-1").build().unwrap();
    client.complete("Hi").unwrap();
    let request = &service.requests()[0];
    assert_eq!(
        request.target,
        "/openai/deployments/x/chat/completions?api-version=1"
    );
    assert_eq!(request.header("api-key"), Some("azure-1"));
    assert_eq!(request.header("authorization"), None);
}

// Keys and names.

#[test]
fn a_key_goes_where_the_user_says() {
    type Options = fn(ClientBuilder) -> ClientBuilder;
    let rows: [(Options, &[&str]); 5] = [
        (|client| client, &[]),
        (
            |client| client.api_key("sk-1"),
            &["authorization: Bearer sk-1"],
        ),
        (|client| client.header("Api-Key", "a-1"), &["api-key: a-1"]),
        (
            |client| {
                client
                    .api_key("sk-1")
                    .header("Authorization", "Bearer mine")
            },
            &["authorization: Bearer mine"],
        ),
        (
            |client| client.api_key("sk-1").header("x-api-key", "x-1"),
            &["authorization: Bearer sk-1", "x-api-key: x-1"],
        ),
    ];
    for (options, expected) in rows {
        let request = sent(options, "Hi");
        let keys = ["authorization", "api-key", "x-api-key"];
        let headers = request.headers.iter();
        let mut found: Vec<_> = headers
            .filter(|(name, _)| keys.contains(&&**name))
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        found.sort_unstable();
        assert_eq!(found, expected);
    }
}

#[test]
fn a_client_may_call_itself_something_else() {
    let option = |client: ClientBuilder| client.user_agent("option/1");
    for (request, expected) in [
        (sent(option, "Hi"), "option/1"),
        (
            sent(
                |client| option(client).header("User-Agent", "header/1"),
                "Hi",
            ),
            "header/1",
        ),
    ] {
        let agents = request
            .headers
            .iter()
            .filter(|(name, _)| name == "user-agent");
        let agents: Vec<_> = agents.map(|(_, value)| &**value).collect();
        assert_eq!(agents, [expected]);
    }
}

/// The test `child` in a process of its own, with this environment and no other; what it printed.
#[track_caller]
fn run_child(role: &str, env: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        "--exact",
        "child",
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    command.env_clear().env("OPENAI_TEST_ROLE", role);
    let output = command.envs(env.iter().copied()).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let said = stdout.lines().find_map(|line| line.strip_prefix("=> "));
    said.expect("an outcome").to_owned()
}

#[test]
#[ignore = "run by the others, in processes of their own"]
fn child() {
    let client = match std::env::var("OPENAI_TEST_ROLE").as_deref() {
        Ok("chat") => Client::new(),
        Ok("options") => {
            let url = std::env::var("OPENAI_TEST_URL").unwrap();
            let client = Client::builder().api_key("option").base_url(&url);
            client.build().unwrap()
        }
        Ok("no key") => Client::builder().api_key("").build().unwrap(),
        Ok("forms") => return forms(),
        _ => return,
    };
    match client.complete("Hi") {
        Ok(reply) => println!("\n=> {}", reply.text),
        Err(error) => println!(
            "\n=> {}: {}",
            error.kind(),
            error.to_string().escape_debug()
        ),
    }
}

#[test]
fn the_variables_of_openais_clients_serve_behind_everything_that_is_ours() {
    let service = Service::start();
    let url = service.url();
    // Where nobody listens: what goes there fails.
    let nowhere = "http://127.0.0.1:1";
    let openai = ("GPTALK_PROTOCOL", "openai");
    let theirs = [("OPENAI_BASE_URL", &*url), ("OPENAI_API_KEY", "theirs")];
    let ours = [("GPTALK_BASE_URL", &*url), ("GPTALK_API_KEY", "ours")];
    let theirs_nowhere = [("OPENAI_BASE_URL", nowhere), ("OPENAI_API_KEY", "theirs")];
    let ours_nowhere = [("GPTALK_BASE_URL", nowhere), ("GPTALK_API_KEY", "ours")];
    let option = ("OPENAI_TEST_URL", &*url);
    for (role, env, key) in [
        (
            "chat",
            &[&[openai][..], &theirs].concat(),
            Some("Bearer theirs"),
        ),
        (
            "chat",
            &[&[openai][..], &theirs_nowhere, &ours].concat(),
            Some("Bearer ours"),
        ),
        (
            "options",
            &[&[openai, option][..], &theirs_nowhere, &ours_nowhere].concat(),
            Some("Bearer option"),
        ),
        ("no key", &[&[openai][..], &theirs].concat(), None),
        (
            "chat",
            &vec![openai, theirs[0], ("OPENAI_API_KEY", "")],
            None,
        ),
        (
            "chat",
            &vec![openai, theirs[0], theirs[1], ("GPTALK_API_KEY", "")],
            Some("Bearer theirs"),
        ),
        // Another service's key, in a header of its own, is not joined by theirs.
        (
            "chat",
            &[&[openai, ("GPTALK_HEADER", "api-key: mine")][..], &theirs].concat(),
            None,
        ),
        // A gateway's own credentials are beside the key.
        (
            "chat",
            &[
                &[openai, ("GPTALK_HEADER", "helicone-auth: Bearer gateway")][..],
                &theirs,
            ]
            .concat(),
            Some("Bearer theirs"),
        ),
        // One that is not looked at does no harm.
        (
            "chat",
            &vec![openai, ours[0], ("OPENAI_BASE_URL", "ftp://h")],
            None,
        ),
    ] {
        assert_eq!(run_child(role, env), "You said: Hi", "{env:?}");
        let request = service.requests().pop().unwrap();
        assert_eq!(request.header("authorization"), key, "{env:?}");
        assert_eq!(request.endpoint, Endpoint::Chat);
    }
    assert_eq!(service.refusals(), [""; 0]);
}

#[test]
fn the_variables_of_openais_clients_are_not_for_the_gptalk_protocol() {
    let service = Service::start();
    let url = service.url();
    for key in ["theirs", "theirs, and no key of any service\n"] {
        let env = [
            ("GPTALK_BASE_URL", &*url),
            ("OPENAI_BASE_URL", "ftp://h"),
            ("OPENAI_API_KEY", key),
        ];
        assert_eq!(run_child("chat", &env), "You said: Hi");
    }
    for request in service.requests() {
        assert!(!format!("{:?}", request.headers).contains("theirs"));
    }
    let before = service.connections();
    // The default is asked for, through a proxy that is not there.
    let env = [
        ("GPTALK_PROXY", "http://127.0.0.1:1"),
        ("GPTALK_RETRIES", "0"),
        ("OPENAI_BASE_URL", &url),
    ];
    let outcome = run_child("chat", &env);
    assert!(outcome.starts_with("network: "), "{outcome}");
    assert!(outcome.contains("gptalk.net:443"), "{outcome}");
    assert_eq!(service.connections(), before);
}

#[test]
fn a_bad_variable_of_openais_clients_is_a_misuse_that_names_it() {
    for (name, bad) in [
        ("OPENAI_BASE_URL", "ftp://h"),
        ("OPENAI_BASE_URL", "http://127.0.0.1:99999/v1?key=SENTINEL"),
        ("OPENAI_API_KEY", "SENTINEL\n"),
    ] {
        let outcome = run_child("chat", &[("GPTALK_PROTOCOL", "openai"), (name, bad)]);
        assert!(outcome.starts_with("misuse: "), "{outcome}");
        assert!(outcome.contains(name), "{outcome}");
        assert!(!outcome.contains("SENTINEL"), "{outcome}");
    }
}

// Keys in plain text.

/// A key, however it is given.
const KEYS: [fn(ClientBuilder) -> ClientBuilder; 5] = [
    |client| client.api_key("sk-1"),
    |client| client.header("Authorization", "Bearer sk-1"),
    |client| client.header("api-key", "sk-1"),
    |client| client.header("x-api-key", "sk-1"),
    |client| client.header("x-goog-api-key", "sk-1"),
];

#[test]
fn a_key_is_not_sent_over_plain_http_to_a_public_address() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let proxies = ["http", "socks5", "socks5h"].map(|s| format!("{s}://127.0.0.1:{port}"));
    for url in [
        "http://192.0.2.1",
        "http://8.8.8.8/v1",
        "http://8.8.8.8:8080/v1/chat/completions?a=b",
        "http://[2001:db8::1]:8080",
    ] {
        for proxy in proxies.iter().map(String::as_str).chain(["none"]) {
            for key in KEYS {
                let client = key(builder(url)).proxy(proxy).build().unwrap();
                let error = fails(&client, "Hi", ErrorKind::Misuse);
                assert_eq!(error.code(), Some("plain_http"), "{error}");
                assert!(error.to_string().contains("https"), "{error}");
                assert!(!error.is_retryable());
            }
        }
    }
    for url in [
        "http://8.8.8.8/v1?key=sk-1",
        "http://8.8.8.8?api-version=1&api_key=sk-1",
    ] {
        for proxy in proxies.iter().map(String::as_str).chain(["none"]) {
            let client = builder(url).proxy(proxy).build().unwrap();
            let error = fails(&client, "Hi", ErrorKind::Misuse);
            assert_eq!(error.code(), Some("plain_http"), "{error}");
        }
    }
    let accepted = listener.accept();
    assert!(
        accepted.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock),
        "the proxy hears nothing of it"
    );
}

#[test]
fn a_key_goes_over_plain_http_to_loopback_through_a_proxy_too() {
    let service = service(Endpoint::Chat, echo);
    let proxy = self::service(Endpoint::Other, |request, peer| {
        assert_eq!(request.method, "CONNECT");
        peer.respond(502, JSON, "{}");
    });
    for key in KEYS {
        for host in ["127.0.0.1", "localhost"] {
            let url = format!("http://{host}:{}", service.port());
            let client = key(builder(&url)).build().unwrap();
            assert_eq!(client.complete("Hi").unwrap().text, "Hi");
            let client = key(builder(&url)).proxy(&proxy.url()).build().unwrap();
            let error = fails(&client, "Hi", ErrorKind::Network);
            assert_eq!(error.code(), Some("proxy"), "it was asked: {error}");
        }
    }
}

#[test]
fn without_a_key_plain_http_goes_anywhere() {
    // An address for documents: there is nobody.
    let client = builder("http://192.0.2.1").proxy("none");
    let client = client.connect_timeout(Some(Duration::from_millis(50)));
    let error = client.build().unwrap().complete("Hi").unwrap_err();
    let kind = error.kind();
    assert!(
        matches!(kind, ErrorKind::Network | ErrorKind::Timeout),
        "{error}"
    );
}

#[test]
fn a_connection_to_a_public_address_that_was_made_without_a_key_carries_none_later() {
    let way = Service::builder()
        .on(Endpoint::Other, |_, peer| {
            peer.send("HTTP/1.1 200 OK\r\n\r\n")
        })
        .on(Endpoint::Chat, echo)
        .start();
    let proxy = format!("http://127.0.0.1:{}", way.port());
    for key in ["api_key", "header"] {
        let client = builder("http://192.0.2.1").proxy(&proxy);
        let mut client = client.build().unwrap();
        assert_eq!(client.complete("Hi").unwrap().text, "Hi");
        assert_eq!(client.complete("Ho").unwrap().text, "Ho");
        let before = (way.connections(), way.requests().len());
        client.set(key, Some("api-key: sk-1")).unwrap();
        let error = fails(&client, "Hi", ErrorKind::Misuse);
        assert_eq!(error.code(), Some("plain_http"), "{error}");
        assert_eq!((way.connections(), way.requests().len()), before);
        client.set(key, None).unwrap();
        client.set("api_key", Some("")).unwrap();
        assert_eq!(client.complete("Hi").unwrap().text, "Hi");
    }
}

// Repairs.

const MAX_TOKENS: &str = r#"{"error": {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.", "type": "invalid_request_error", "param": "max_tokens", "code": "unsupported_parameter"}}"#;
const AZURE: &str = r#"{"error": {"message": "Unrecognized request argument supplied: stream_options", "type": "invalid_request_error", "param": null, "code": null}}"#;
const MISTRAL: &str = r#"{"object": "error", "message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted", "input": {"include_usage": true}}]}, "type": "invalid_request_error", "param": null, "code": null}"#;
const FASTAPI: &str = r#"{"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted", "input": {"include_usage": true}}]}"#;
const DATABRICKS: &str = r#"{"error_code": "BAD_REQUEST", "message": "Bad request: json: unknown field \"stream_options\""}"#;
const FIREWORKS: &str = r#"{"error": {"object": "error", "type": "invalid_request_error", "message": "Extra inputs are not permitted, field: 'stream_options', value: {'include_usage': True}"}}"#;

/// A member that a service refuses, and its words for that.
type Dislike = (&'static str, u16, &'static str);

/// A service that answers where a request has none of these members, and else refuses the first.
fn picky(dislikes: &'static [Dislike]) -> Service {
    service(Endpoint::Chat, move |request, peer| {
        let body = request.json();
        match dislikes.iter().find(|(name, ..)| body.get(name).is_some()) {
            Some((_, status, words)) => peer.respond(*status, JSON, words),
            None => peer.normal(request),
        }
    })
}

/// Which of the members that services refuse each request had, since so many before.
fn asked(service: &Service, before: usize) -> Vec<Vec<&'static str>> {
    let names = ["stream_options", "max_tokens", "max_completion_tokens"];
    let requests = service.requests().into_iter().skip(before);
    requests
        .map(|request| {
            let body = request.json();
            let has = |name: &&str| body.get(name).is_some();
            names.into_iter().filter(has).collect()
        })
        .collect()
}

fn limited(service: &Service) -> Client {
    builder(&service.url()).max_tokens(50).build().unwrap()
}

const BOTH: &[&str] = &["stream_options", "max_tokens"];

#[test]
fn a_member_of_ours_that_a_service_refuses_is_left_out_or_renamed_and_that_is_remembered() {
    let without: &[&str] = &["max_tokens"];
    let renamed: &[&str] = &["stream_options", "max_completion_tokens"];
    let rows: [(&'static [Dislike], _); 8] = [
        (
            &[("max_tokens", 400, "Invalid parameter: max_tokens")],
            renamed,
        ),
        (&[("max_tokens", 400, MAX_TOKENS)], renamed),
        (&[("max_tokens", 422, MAX_TOKENS)], renamed),
        (&[("stream_options", 400, AZURE)], without),
        (&[("stream_options", 422, MISTRAL)], without),
        (&[("stream_options", 422, FASTAPI)], without),
        (&[("stream_options", 400, DATABRICKS)], without),
        (&[("stream_options", 400, FIREWORKS)], without),
    ];
    for (dislikes, repaired) in rows {
        let service = picky(dislikes);
        let client = limited(&service);
        for chat in 0..3 {
            let reply = client
                .complete("Hi")
                .unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(reply.text, "You said: Hi", "chat {chat}");
            assert_eq!(reply.attempts, 1, "a repair is no retry");
            assert_eq!(reply.http_status, Some(200));
        }
        assert_eq!(
            asked(&service, 0),
            [BOTH, repaired, repaired, repaired],
            "{dislikes:?}"
        );
        assert_eq!(service.refusals(), [""; 0]);
        assert!(service.requests().iter().all(|request| {
            let body = request.json();
            [&body["max_tokens"], &body["max_completion_tokens"]].contains(&&json!(50))
        }));

        let before = service.requests().len();
        limited(&service).complete("Hi").unwrap();
        assert_eq!(
            asked(&service, before),
            [BOTH, repaired],
            "a new client knows nothing"
        );
    }
}

#[test]
fn two_members_of_ours_may_be_refused_in_one_chat() {
    for dislikes in [
        &[
            ("stream_options", 422, MISTRAL),
            ("max_tokens", 400, MAX_TOKENS),
        ],
        &[
            ("max_tokens", 400, MAX_TOKENS),
            ("stream_options", 422, MISTRAL),
        ],
    ] {
        let service = picky(dislikes);
        let client = limited(&service);
        for _ in 0..2 {
            let reply = client
                .complete("Hi")
                .unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((&*reply.text, reply.attempts), ("You said: Hi", 1));
        }
        let asked = asked(&service, 0);
        assert_eq!(asked.len(), 4, "{asked:?}");
        assert_eq!(asked[0], BOTH);
        assert_eq!(asked[2..], [["max_completion_tokens"]; 2]);
    }
}

#[test]
fn a_repaired_request_stays_repaired_when_it_is_tried_again() {
    let service = service(Endpoint::Chat, |request, peer| match peer.nth() {
        0 => peer.respond(400, JSON, AZURE),
        1 => {
            peer.header("retry-after", "0");
            peer.respond(429, JSON, "{}");
        }
        _ => peer.normal(request),
    });
    let client = builder(&service.url()).retries(1).build().unwrap();
    assert_eq!(client.complete("Hi").unwrap().attempts, 2);
    assert_eq!(asked(&service, 0), [BOTH[..1].to_vec(), vec![], vec![]]);
}

#[test]
fn a_request_that_no_repair_helps_fails_and_nothing_is_remembered() {
    for (words, status) in [(MISTRAL, 422), (MAX_TOKENS, 400)] {
        let service = service(Endpoint::Chat, move |_, peer| {
            peer.respond(status, JSON, words)
        });
        let client = limited(&service);
        for _ in 0..2 {
            let before = service.requests().len();
            let error = fails(&client, "Hi", ErrorKind::Request);
            assert_eq!(error.http_status(), Some(status));
            assert_eq!(error.body(), Some(words));
            let asked = asked(&service, before);
            assert_eq!(asked[0], BOTH, "it begins anew");
            assert_eq!(
                asked.len(),
                2,
                "what was refused is not asked again: {asked:?}"
            );
            assert_ne!(asked[0], asked[1]);
        }
    }
}

#[test]
fn a_member_that_the_user_gave_is_not_touched() {
    for (member, words) in [
        (json!({"stream_options": {"include_usage": true}}), AZURE),
        (json!({"max_tokens": 7}), MAX_TOKENS),
        (json!({"max_completion_tokens": 7}), MAX_TOKENS),
    ] {
        let service = service(Endpoint::Chat, move |_, peer| {
            peer.respond(400, JSON, words)
        });
        let mut request = member.clone();
        request["messages"] = json!([{"role": "user", "content": "Hi"}]);
        let in_body = builder(&service.url())
            .max_tokens(50)
            .body(object(member.clone()));
        for (client, talk) in [
            (limited(&service), read(&request.to_string())),
            (in_body.build().unwrap(), "Hi".into()),
        ] {
            let before = service.requests().len();
            let error = fails(&client, talk, ErrorKind::Request);
            assert_eq!(error.http_status(), Some(400));
            let requests = service.requests();
            assert_eq!(requests.len(), before + 1, "{member}");
            let (name, value) = member.as_object().unwrap().iter().next().unwrap();
            assert_eq!(&requests[before].json()[name], value);
        }
    }
}

#[test]
fn a_refusal_of_something_else_is_the_error() {
    for (status, message) in [
        (
            400,
            "max_tokens is too large: 50. This model supports at most 16 completion tokens.",
        ),
        (
            400,
            "Invalid max_tokens value, the valid range of max_tokens is [1, 8192]",
        ),
        (
            400,
            "Invalid 'max_tokens': integer below minimum value. Expected a value >= 1, but got 0.",
        ),
        (
            400,
            "Could not finish the message because max_tokens or model output limit was reached.",
        ),
        (400, "This model's maximum context length is 4096 tokens."),
        (
            400,
            "Invalid value: 'narrator'. Supported values are: 'system' and 'user'.",
        ),
        (
            400,
            "max_tokens value of 50 but the supported range is from 1 (inclusive) to 40",
        ),
        (
            400,
            "max_tokens exceeds the maximum that is not supported by this model",
        ),
        (400, "'max_tokens' does not support 50 with this model."),
        (400, "Invalid parameter: 'max_tokens' must be 40 or less."),
        (422, "messages: Field required"),
        // No refusal of a member, whatever it names.
        (404, "stream_options"),
        (413, "stream_options, max_tokens"),
        (500, "stream_options"),
    ] {
        let service = service(Endpoint::Chat, move |_, peer| {
            peer.respond(
                status,
                JSON,
                json!({"error": {"message": message}}).to_string(),
            );
        });
        let error = limited(&service).complete("Hi").unwrap_err();
        assert_eq!(error.http_status(), Some(status), "{error}");
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(asked(&service, 0), [BOTH], "{message}");
    }
}

#[test]
fn a_refusal_that_repeats_the_request_names_no_member_by_that() {
    let service = service(Endpoint::Chat, |request, peer| {
        let refusal = json!({"type": "missing", "loc": ["body", "model"], "msg": "Field required",
            "input": request.json()});
        peer.respond(422, JSON, json!({"detail": [refusal]}).to_string());
    });
    let error = limited(&service).complete("Hi").unwrap_err();
    assert!(error.to_string().contains("Field required"), "{error}");
    assert_eq!(asked(&service, 0), [BOTH]);
}

#[test]
fn a_clone_knows_what_the_service_refused() {
    let service = picky(&[("stream_options", 400, AZURE)]);
    let client = client(&service);
    client.complete("Hi").unwrap();
    let clone = client.clone();
    clone.complete("Hi").unwrap();
    assert_eq!(service.requests().len(), 3, "a repair, and one more");
}

#[test]
fn what_a_service_refused_is_known_until_the_service_or_the_model_changes() {
    const DISLIKES: &[Dislike] = &[("stream_options", 400, AZURE)];
    let (service, other) = (picky(DISLIKES), picky(DISLIKES));
    let mut client = client(&service);
    client.complete("Hi").unwrap();
    assert_eq!(service.requests().len(), 2);
    for (key, value) in [
        ("temperature", "0.5"),
        ("api_key", "sk-1"),
        ("header", "X-Mine: 1"),
        ("body", r#"{"mine": 1}"#),
        ("timeout_ms", "15000"),
        ("retries", "1"),
        ("user_agent", "mine/1"),
    ] {
        let before = service.requests().len();
        client.set(key, Some(value)).unwrap();
        client.complete("Hi").unwrap();
        assert_eq!(
            service.requests().len(),
            before + 1,
            "{key} changes nothing"
        );
    }
    for (key, value, service) in [("model", "m", &service), ("base_url", &other.url(), &other)] {
        let before = service.requests().len();
        client.set(key, Some(value)).unwrap();
        for requests in [2, 3] {
            client.complete("Hi").unwrap();
            assert_eq!(service.requests().len(), before + requests, "{key}");
        }
    }
}

#[test]
fn what_a_service_refused_is_not_forgotten_by_a_chat_that_was_on_its_way_before() {
    let is_known = Arc::new(AtomicBool::new(false));
    let go = is_known.clone();
    let service = service(Endpoint::Chat, move |request, peer| {
        let body = request.json();
        if body["stream"] == false {
            let until = Instant::now() + Duration::from_secs(8);
            while !go.load(SeqCst) && Instant::now() < until {
                peer.pause(Duration::from_millis(1));
            }
        } else if body.get("stream_options").is_some() {
            return peer.respond(400, JSON, AZURE);
        }
        peer.normal(request);
    });
    let client = client(&service);
    let early = r#"{"messages": [{"role": "user", "content": "Hi"}], "stream": false}"#;
    let mut early = client.stream(read(early)).unwrap();
    while service.requests().is_empty() {
        assert_eq!(early.next_event(), Some(Event::Tick));
    }
    client.complete("Hi").unwrap();
    is_known.store(true, SeqCst);
    early.finish().unwrap();
    let before = service.requests().len();
    client.complete("Hi").unwrap();
    assert_eq!(asked(&service, before), [[""; 0]]);
}

#[test]
fn what_one_model_does_not_take_is_not_kept_from_another_that_a_request_names() {
    let service = picky(&[("max_tokens", 400, MAX_TOKENS)]);
    let client = builder(&service.url()).model("new").max_tokens(50);
    let client = client.build().unwrap();
    client.complete("Hi").unwrap();
    let old = r#"{"messages": [{"role": "user", "content": "Hi"}], "model": "old"}"#;
    let before = service.requests().len();
    client.complete(read(old)).unwrap();
    assert_eq!(asked(&service, before)[0], BOTH);
}

// How often it is sent, and over which connection.

#[test]
fn thirty_chats_are_thirty_requests_on_one_connection() {
    let service = service(Endpoint::Chat, echo);
    let client = client(&service);
    for n in 0..30 {
        let prompt = format!("number {n}");
        assert_eq!(client.complete(&prompt).unwrap().text, prompt);
    }
    assert_eq!((service.requests().len(), service.connections()), (30, 1));
}

#[test]
fn clones_share_connections_and_not_chats() {
    let service = service(Endpoint::Chat, echo);
    let client = client(&service);
    thread::scope(|scope| {
        for thread in 0..4 {
            let client = client.clone();
            scope.spawn(move || {
                for n in 0..10 {
                    let prompt = format!("{n} of {thread}");
                    assert_eq!(client.complete(&prompt).unwrap().text, prompt);
                }
            });
        }
    });
    client.complete("Hi").unwrap();
    assert_eq!(service.requests().len(), 41);
    assert!(service.connections() <= 4, "{}", service.connections());
}

#[test]
fn a_service_that_is_not_well_is_asked_again_and_one_that_says_no_is_not() {
    for (status, is_asked_again) in [
        (408, true),
        (409, true),
        (429, true),
        (500, true),
        (501, true),
        (502, true),
        (503, true),
        (504, true),
        (529, true),
        (400, false),
        (401, false),
        (402, false),
        (403, false),
        (404, false),
        (413, false),
        (422, false),
    ] {
        let service = service(Endpoint::Chat, move |request, peer| match peer.nth() {
            0 | 2 | 3 => {
                peer.header("retry-after", "0");
                peer.respond(status, JSON, r#"{"error": {"message": "no"}}"#);
            }
            _ => peer.normal(request),
        });
        let client = builder(&service.url()).retries(1).build().unwrap();
        let result = client.complete("Hi");
        if !is_asked_again {
            let error = result.unwrap_err();
            assert_eq!(error.http_status(), Some(status));
            assert!(!error.is_retryable(), "{error}");
            assert_eq!(service.requests().len(), 1);
            continue;
        }
        let reply = result.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((&*reply.text, reply.attempts), ("You said: Hi", 2));
        // Only so often.
        let error = client.complete("Hi").unwrap_err();
        assert_eq!(error.http_status(), Some(status));
        assert!(error.is_retryable(), "{error}");
        assert_eq!(error.reply().unwrap().attempts, 2);
        assert_eq!(service.requests().len(), 4);
    }
}

#[test]
fn a_request_that_may_have_been_accepted_is_not_sent_again() {
    for end in [Peer::close, Peer::reset] {
        let service = service(Endpoint::Chat, move |_, peer| end(peer));
        let client = builder(&service.url()).retries(3).build().unwrap();
        let error = fails(&client, "Hi", ErrorKind::Network);
        assert!(error.to_string().contains(&service.url()), "{error}");
        assert_eq!((service.requests().len(), service.connections()), (1, 1));
    }
}

#[test]
fn a_connection_that_the_service_closes_while_it_is_idle_is_replaced_unnoticed() {
    for end in [Peer::close, Peer::reset] {
        let finished = Arc::new(AtomicUsize::new(0));
        let chats = finished.clone();
        let service = service(Endpoint::Chat, move |request, peer| {
            echo(request, peer);
            // It is idle once the chat is over; not to wait for ever for one that never is.
            let until = Instant::now() + Duration::from_secs(8);
            while chats.load(SeqCst) <= peer.nth() && Instant::now() < until {
                peer.pause(Duration::from_millis(1));
            }
            end(peer);
        });
        let client = client(&service);
        for chats in 1..=3 {
            let reply = client
                .complete("Hi")
                .unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((&*reply.text, reply.attempts), ("Hi", 1));
            finished.store(chats, SeqCst);
            assert!(service.wait_until(|service| service.open_connections() == 0));
            assert_eq!(
                (service.requests().len(), service.connections()),
                (chats, chats)
            );
        }
    }
}

#[test]
fn a_connection_that_the_service_closes_under_the_request_is_replaced_once() {
    for end in [Peer::close, Peer::reset] {
        let service = service(Endpoint::Chat, move |request, peer| match peer.nth() {
            1 => end(peer),
            _ => echo(request, peer),
        });
        let client = client(&service);
        for _ in 0..3 {
            let reply = client
                .complete("Hi")
                .unwrap_or_else(|error| panic!("{error}"));
            assert_eq!((&*reply.text, reply.attempts), ("Hi", 1));
        }
        assert_eq!((service.requests().len(), service.connections()), (4, 2));
    }
}

// The forms of a chat, and a talk with tools.

/// One chat in each form; all come to the same.
fn forms() {
    let client = Client::new();
    let all = |reply: &Reply| {
        let about = (
            reply.finish_reason.clone(),
            reply.model.clone(),
            reply.url.clone(),
        );
        let counts = (
            reply.pieces,
            reply.attempts,
            reply.http_status,
            reply.usage.clone(),
        );
        (reply.text.clone(), about, counts)
    };
    let whole = client.complete("Hi there").unwrap();
    assert_eq!(whole.text, "You said: Hi there");
    let whole = all(&whole);

    let mut chats: Vec<(Vec<String>, Reply)> = Vec::new();
    let mut pieces = Vec::new();
    let reply = gptalk::chat("Hi there", |piece| {
        pieces.push(piece.to_owned());
        ControlFlow::Continue(())
    });
    chats.push((pieces, reply.unwrap()));

    let mut pieces = Vec::new();
    let reply = client.chat("Hi there", |piece| {
        pieces.push(piece.to_owned());
        ControlFlow::Continue(())
    });
    chats.push((pieces, reply.unwrap()));

    let mut stream = client.stream("Hi there").unwrap();
    let pieces = stream.by_ref().collect::<Result<_, _>>().unwrap();
    chats.push((pieces, stream.finish().unwrap()));

    let mut stream = client.stream("Hi there").unwrap();
    let mut pieces = Vec::new();
    while let Some(event) = stream.next_event() {
        if let Event::Text(piece) = event {
            pieces.push(piece.to_owned());
        }
    }
    chats.push((pieces, stream.finish().unwrap()));

    for (pieces, reply) in chats {
        assert_eq!(pieces, ["You ", "said: ", "Hi ", "there"]);
        assert_eq!(all(&reply), whole);
    }
    println!("\n=> five chats");
}

#[test]
fn every_form_of_a_chat_gives_the_same() {
    let service = Service::start();
    let env = [
        ("GPTALK_PROTOCOL", "openai"),
        ("GPTALK_BASE_URL", &*service.url()),
        ("GPTALK_MODEL", "m"),
        ("GPTALK_TEMPERATURE", "0.5"),
    ];
    assert_eq!(run_child("forms", &env), "five chats");
    assert_eq!(service.refusals(), [""; 0]);
    let requests = service.requests();
    assert_eq!(requests.len(), 5);
    assert!(
        requests
            .iter()
            .all(|request| request.body == requests[0].body)
    );
}

#[test]
fn a_tools_message_gets_the_id_of_the_first_call_without_a_result() {
    let call = |id: &str| json!({"id": id, "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let mut talk = Conversation::from("Hi");
    talk.push_json(json!({"role": "assistant", "content": null, "tool_calls": [call("old")]}))
        .unwrap();
    talk.push(Message::tool("0"));
    talk.push_json(
        json!({"role": "assistant", "content": null, "tool_calls": [call("a"), call("b")]}),
    )
    .unwrap();
    talk.push(Message::tool("1"));
    talk.push(Message::tool("2"));
    talk.push(Message::user("Thanks"));
    let messages: Value = serde_json::from_str(&talk.to_json()).unwrap();
    let results = messages.as_array().unwrap().iter();
    let results: Vec<_> = results
        .filter(|message| message["role"] == "tool")
        .map(|message| (message["tool_call_id"].clone(), message["content"].clone()))
        .collect();
    assert_eq!(
        json!(results),
        json!([["old", "0"], ["a", "1"], ["b", "2"]])
    );
}

#[test]
fn a_tool_is_called_and_its_result_is_talked_about() {
    let service = Service::start();
    let tools = json!({"tools": [{"type": "function", "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "required": ["city"],
            "properties": {"city": {"type": "string"}},
        },
    }}]});
    let client = builder(&service.url()).body(object(tools)).build().unwrap();
    let mut talk = Conversation::from("How is the weather in Zürich?");

    let reply = client.complete(&talk).unwrap();
    assert_eq!(
        (&*reply.text, reply.finish_reason.as_deref()),
        ("", Some("tool_calls"))
    );
    let [call] = &reply.tool_calls[..] else {
        panic!("{:?}", reply.tool_calls)
    };
    assert_eq!(call["function"]["name"], "weather");
    let arguments = call["function"]["arguments"].as_str().unwrap();
    let arguments: Value = serde_json::from_str(arguments).unwrap();
    assert_eq!(arguments, json!({"city": "Zürich"}));

    talk.push_json(reply.message()).unwrap();
    talk.push(Message::tool("sunny"));
    let reply = client.complete(&talk).unwrap();
    assert_eq!(reply.text, "weather says: sunny");
    assert_eq!(service.refusals(), [""; 0]);
}
