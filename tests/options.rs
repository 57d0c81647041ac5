//! The options: names, checks, layers; and that no secret among them is ever shown.

use gptalk::{CancelHandle, Client, ClientBuilder, Conversation, Error, ErrorKind, Event, Reply};
use gptalk_service::{Builder, Endpoint, Peer, Request, Service};
use serde_json::{Map, json};
use std::ffi::{OsStr, OsString};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBgzCCASmgAwIBAgIUcDF6SiuEEA/5oKF4LZsentfSMKgwCgYIKoZIzj0EAwIw
FjEUMBIGA1UEAwwLZ3B0YWxrLXRlc3QwIBcNMjYxMTIyMTcwNDIzWhgPMjEyNjEw
MjkxNzA0MjNaMBYxFDASBgNVBAMMC2dwdGFsay10ZXN0MFkwEwYHKoZIzj0CAQYI
KoZIzj0DAQcDQgAEs+0sm0UetTOnGIwI7YRM5vJUDqdzDFgFgPyAGrtLtJxrHEWB
AzB5+wW+juDoxJHAaV38rjIs3kDEmnLtMHGQJKNTMFEwHQYDVR0OBBYEFNUHfqMm
YXXg3a5y9Up1AttK1CtwMB8GA1UdIwQYMBaAFNUHfqMmYXXg3a5y9Up1AttK1Ctw
MA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIhAPOWtYZjqb6BXG6f
66SBNiyNQWtzEasGDYyDCEbi2Hh/AiAiIRGuPu8PxBnteuOFZ15wHuo5SmnCuwgE
RdYRoBOjmA==
-----END CERTIFICATE-----
";

const WHOLE: [&str; 3] = ["0", "1", "86400000"];
const NOT_WHOLE: &[&str] = &[
    "",
    "-1",
    "1.5",
    "+1",
    " 1",
    "1s",
    "1e3",
    "99999999999999999999",
];

/// A value that must never be shown.
const SENTINEL: &str = "sk-SENTINEL-0123456789abcdef";

/// Every option by its name, with good values and bad ones.
fn table() -> Vec<(&'static str, Vec<String>, Vec<String>)> {
    let file = |name: &str, content: &str| {
        // Tests run at the same time, children too: each has a file of its own.
        let name = format!(
            "{}-{:?}-{name}",
            std::process::id(),
            std::thread::current().id()
        );
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let roots = file("roots.pem", CERTIFICATE);
    let none = file("none.pem", "no certificate in here");
    let proxies = "none http://h:1 https://u:p@h socks5://h socks5h://[::1]:1";
    let proxies: Vec<_> = proxies.split(' ').collect();
    let headers = ["A: b", "a:b", "X-Empty:", "X: a: b"];
    #[rustfmt::skip]
    let table: [(_, &[&str], &[&str]); 19] = [
        ("protocol", &["openai", "gptalk"], &["", "grpc"]),
        ("base_url", &["http://h", "https://h:1/p/", "10.0.0.1"], &["", "http://", "ftp://h"]),
        ("api_key", &["sk-1"], &["sk-1\n", "ké"]),
        ("model", &["gpt-x", "vendor/модель:7b"], &[]),
        ("temperature", &["0", "1", "0.7", "1e-1"], &["", "warm", "NaN", "1e999", "0,7", "\"1\"", "null"]),
        ("max_tokens", &WHOLE, NOT_WHOLE),
        ("body", &["{}", r#"{"a": [1]}"#], &["", "[]", "null", "1", "{", "x"]),
        ("header", &headers, &["", "A b", ": b", "A b: c", "A: é", "A: b\r\nC: d", "Host: h",
            "Content-Length: 1", "transfer-encoding: chunked", "Connection: close"]),
        ("proxy", &proxies, &["", "http://", "ftp://h", "socks4://h", "http://h:0", "http://h:99999", "http://h o"]),
        ("ca_file", &[&roots], &["", "/no/such/file", &none, env!("CARGO_TARGET_TMPDIR")]),
        ("connect_timeout_ms", &WHOLE, NOT_WHOLE),
        ("response_timeout_ms", &WHOLE, NOT_WHOLE),
        ("idle_timeout_ms", &WHOLE, NOT_WHOLE),
        ("timeout_ms", &WHOLE, NOT_WHOLE),
        ("retries", &WHOLE, NOT_WHOLE),
        ("max_reply_bytes", &WHOLE, NOT_WHOLE),
        ("user_agent", &["mine/1.0 (x)"], &["é", "a\nb", "a\0b"]),
        ("app_id", &["77"], &["é", "7\r7", "\u{7f}"]),
        ("fingerprint", &["0123"], &[]),
    ];
    let owned = |values: &[&str]| values.iter().map(|value| value.to_string()).collect();
    table
        .into_iter()
        .map(|(key, good, bad)| (key, owned(good), owned(bad)))
        .collect()
}

/// A service to be, at a URL of its own: the system may give its port to another one later, and
/// the process would take the logins of the one for the other's.
fn fresh() -> Builder {
    static NTH: AtomicUsize = AtomicUsize::new(0);
    Service::builder().prefix(&format!("/{}", NTH.fetch_add(1, SeqCst)))
}

fn builder(service: &Service) -> ClientBuilder {
    Client::builder()
        .base_url(&service.url())
        .timeout(Some(Duration::from_secs(20)))
        .retries(0)
}

/// A `Misuse` that names what it is about.
#[track_caller]
fn assert_misuse<T>(result: Result<T, Error>, name: &str) -> String {
    let Err(error) = result else {
        panic!("{name}: taken")
    };
    assert_eq!(error.kind(), ErrorKind::Misuse, "{name}: {error}");
    assert!(error.to_string().contains(name), "{name}: {error}");
    error.to_string()
}

/// The test `child` in a process of its own, with this environment and no other; what it printed
/// as [`say`] does.
#[track_caller]
fn run_child<V: AsRef<OsStr>>(role: &str, env: &[(&str, V)]) -> Vec<String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        "--exact",
        "child",
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    command.env_clear().env("OPTIONS_TEST_ROLE", role);
    let output = command
        .envs(env.iter().map(|(name, value)| (name, value)))
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    stdout
        .lines()
        .filter_map(|line| Some(line.strip_prefix("=> ")?.to_owned()))
        .collect()
}

fn say(result: Result<Reply, Error>) {
    match result {
        Ok(reply) => println!("\n=> ok: {}", reply.text),
        Err(error) => println!(
            "\n=> {}: {}",
            error.kind(),
            error.to_string().escape_debug()
        ),
    }
}

#[test]
#[ignore = "run by the others, in processes of their own"]
fn child() {
    match std::env::var("OPTIONS_TEST_ROLE").as_deref() {
        Ok("chat") => say(Client::new().complete("Hi")),
        Ok("layers") => layers(),
        Ok("defaults") => {
            for (key, good, bad) in table() {
                good.iter()
                    .for_each(|value| gptalk::set_default(key, Some(value)).unwrap());
                for value in bad {
                    assert_misuse(gptalk::set_default(key, Some(&value)), key);
                }
                gptalk::set_default(key, None).unwrap();
            }
            assert_misuse(gptalk::set_default("Model", Some("x")), "Model");
            say(Client::new().complete("Hi"));
        }
        _ => {}
    }
}

/// One chat after each change.
fn layers() {
    let mut client = Client::new();
    say(client.complete("the environment's"));
    gptalk::set_default("model", Some("process")).unwrap();
    say(client.complete("the process's, for a client that was there before"));
    say(gptalk::chat("the one-liner's", |_| {
        ControlFlow::Continue(())
    }));
    client.set("model", Some("client")).unwrap();
    say(client.complete("the client's"));
    say(client.clone().complete("its clone's"));
    client.set("model", None).unwrap();
    say(client.complete("the process's again"));
    gptalk::set_default("model", None).unwrap();
    #[allow(unsafe_code)]
    // SAFETY: no other thread of this process touches the environment.
    unsafe {
        std::env::set_var("GPTALK_MODEL", "too late");
    }
    say(Client::new().complete("the environment's again, as it was at first"));
}

#[test]
fn every_option_is_set_and_unset_by_its_name() {
    for (key, good, _) in table() {
        let mut client = Client::new();
        for value in good {
            client
                .set(key, Some(&value))
                .unwrap_or_else(|error| panic!("{error}"));
            Client::builder()
                .option(key, &value)
                .build()
                .unwrap_or_else(|error| panic!("{error}"));
        }
        client.set(key, None).unwrap();
    }
}

#[test]
fn a_bad_value_is_refused_at_once_and_the_error_names_the_option() {
    for (key, _, bad) in table() {
        for value in bad {
            assert_misuse(Client::new().set(key, Some(&value)), key);
            assert_misuse(Client::builder().option(key, &value).build(), key);
        }
    }
    assert_misuse(
        Client::builder().temperature(f64::NAN).build(),
        "temperature",
    );
    assert_misuse(Client::builder().header("A b", "c").build(), "header");
    let two = Client::builder()
        .retries(1)
        .option("timeout_ms", "x")
        .option("retries", "y");
    assert_misuse(two.build(), "timeout_ms"); // the first of them
}

#[test]
fn a_value_that_is_too_long_for_a_header_is_refused() {
    for (key, before) in [
        ("header", "X-Long: "),
        ("user_agent", ""),
        ("app_id", ""),
        ("base_url", "http://127.0.0.1/"),
    ] {
        let value = |bytes: usize| format!("{before}{}", "x".repeat(bytes));
        Client::new().set(key, Some(&value(4 << 10))).unwrap();
        for bytes in [9 << 10, 1 << 20] {
            let words = assert_misuse(Client::new().set(key, Some(&value(bytes))), key);
            assert!(words.len() < 1 << 10, "{key}: {} bytes", words.len());
            let builder = Client::builder().option(key, &value(bytes));
            assert_misuse(builder.build(), key);
            assert_misuse(gptalk::set_default(key, Some(&value(bytes))), key);
        }
    }
}

#[test]
fn an_unknown_option_is_refused_by_its_name() {
    for key in ["Model", "base-url", "timeout", "GPTALK_MODEL", "model "] {
        assert_misuse(Client::new().set(key, Some("1")), key);
        assert_misuse(Client::new().set(key, None), key);
        assert_misuse(Client::builder().option(key, "1").build(), key);
    }
    assert_misuse(Client::new().set("", Some("1")), "option");
    let odd = format!("a\nb{}", "c".repeat(1000));
    let error = Client::new().set(&odd, Some("1")).unwrap_err().to_string();
    assert!(error.len() < 1000, "{error}");
    assert!(!error.contains(char::is_control), "{error:?}");
}

#[test]
fn after_a_bad_value_the_option_is_as_it_was() {
    let service = fresh().start();
    let mut client = builder(&service).build().unwrap();
    for (key, good, bad) in [
        ("temperature", "0.5", "warm"),
        ("user_agent", "mine/1", "é"),
        ("header", "X-Mine: 1", "X-Mine: é"),
        ("body", r#"{"mine": 1}"#, "[]"),
        ("proxy", "none", "ftp://127.0.0.1"),
        ("timeout_ms", "20000", "-1"),
    ] {
        client.set(key, Some(good)).unwrap();
        assert_misuse(client.set(key, Some(bad)), key);
    }
    assert_misuse(
        client.set("base_url", Some("http://127.0.0.1:0")),
        "base_url",
    );
    client.complete("Hi").unwrap();
    let text = service
        .requests()
        .into_iter()
        .find(|r| r.endpoint == Endpoint::Text)
        .unwrap();
    assert_eq!(text.json()["temperature"], json!(0.5));
    assert_eq!(text.json()["mine"], 1);
    assert_eq!(text.header("user-agent"), Some("mine/1"));
    assert_eq!(text.header("x-mine"), Some("1"));
}

#[test]
fn a_base_url_that_cannot_be_meant_is_refused() {
    let mut taken = Vec::new();
    for url in [
        "http://user@127.0.0.1",
        "http://user:pass@127.0.0.1:80/p",
        "user@127.0.0.1",
        "http://127.0.0.1:0",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:65536",
        "http://127.0.0.1:-1",
        "http://127.0.0.1:+80",
        "http://127.0.0.1:8o",
        "http://127.0.0.1:80:80",
        "http://127.0.0.1/#fragment",
        "http://127.0.0.1#",
        "http://127.0.0.1/a b",
        " http://127.0.0.1",
        "http://127.0.0.1\n",
        "http://127.0.0.1/\0",
        "http://127.0.0.1/\u{7f}",
        "http://127.0.0.1/é",
        "http://müller.example",
        "http://127.0.0.1/<x>",
        "http://127.0.0.1/a`b",
        "http://127.0.0.1\\x",
        "http://",
        "http:///path",
        "://127.0.0.1",
        "ftp://127.0.0.1",
        "ws://127.0.0.1",
        "file:///etc/passwd",
        "unix:/run/x.sock",
        "http:/127.0.0.1",
        "http://[::1",
        "http://[::1]x",
        "http://[::1]:0",
        "http://[::g]",
        "http://[127.0.0.1]",
        "http://::1",
        "http://::1:80",
        "",
        "/",
        "?",
    ] {
        match Client::new().set("base_url", Some(url)) {
            Ok(()) => taken.push(url),
            refused => drop(assert_misuse(refused, "base_url")),
        }
    }
    assert_eq!(taken, [""; 0]);
}

#[test]
fn an_ipv6_service_is_reached_and_named_in_brackets() {
    use std::io::{BufRead, BufReader, Write};
    let Ok(listener) = std::net::TcpListener::bind("[::1]:0") else {
        eprintln!("skipped: this machine has no IPv6");
        return;
    };
    let port = listener.local_addr().unwrap().port();
    for url in [
        format!("http://[::1]:{port}/p"),
        format!("[0:0:0:0:0:0:0:1]:{port}"),
    ] {
        let head = std::thread::scope(|scope| {
            let served = scope.spawn(|| {
                let (mut stream, _) = listener.accept().unwrap();
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let head = lines.map(|line| line.unwrap().to_ascii_lowercase());
                let head: Vec<_> = head.take_while(|line| !line.is_empty()).collect();
                stream
                    .write_all(b"HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n")
                    .unwrap();
                head
            });
            let client = Client::builder().base_url(&url).retries(0).build().unwrap();
            let error = client.complete("Hi").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Auth, "{error}");
            served.join().unwrap()
        });
        let host = url.trim_start_matches("http://").trim_end_matches("/p");
        assert!(head.contains(&format!("host: {host}")), "{head:?}");
        assert!(head.contains(&format!("origin: http://{host}")), "{head:?}");
    }
}

#[test]
fn null_clears_all_headers() {
    let service = fresh().start();
    let client = builder(&service).header("X-One", "1").header("X-Two", "2");
    let mut client = client.build().unwrap();
    client.complete("Hi").unwrap();
    client.set("header", None).unwrap();
    client.complete("Hi").unwrap();
    let texts = service
        .requests()
        .into_iter()
        .filter(|r| r.endpoint == Endpoint::Text);
    let seen: Vec<_> = texts
        .map(|r| ["x-one", "x-two"].map(|name| r.header(name).is_some()))
        .collect();
    assert_eq!(seen, [[true; 2], [false; 2]]);
}

#[test]
fn the_client_is_asked_first_then_the_process_then_the_environment() {
    let service = fresh().start();
    let outcomes = run_child(
        "layers",
        &[
            ("GPTALK_BASE_URL", &*service.url()),
            ("GPTALK_MODEL", "env"),
        ],
    );
    assert!(
        outcomes.iter().all(|outcome| outcome.starts_with("ok: ")),
        "{outcomes:#?}"
    );
    let texts = service
        .requests()
        .into_iter()
        .filter(|r| r.endpoint == Endpoint::Text);
    let models: Vec<_> = texts
        .map(|r| r.json()["model"].as_str().unwrap().to_owned())
        .collect();
    let expected = [
        "env", "process", "process", "client", "client", "process", "env",
    ];
    assert_eq!(models, expected);
}

#[test]
fn every_option_is_set_and_unset_for_the_process() {
    let service = fresh().start();
    let outcomes = run_child("defaults", &[("GPTALK_BASE_URL", service.url())]);
    assert_eq!(outcomes, ["ok: You said: Hi"]);
}

#[test]
fn the_environment_sets_options() {
    let service = fresh().start();
    let hex = "0123456789abcdef".repeat(2);
    let outcomes = run_child(
        "chat",
        &[
            ("GPTALK_BASE_URL", &*service.url()),
            ("GPTALK_PROTOCOL", "gptalk"),
            ("GPTALK_API_KEY", "unused"),
            ("GPTALK_MODEL", "m"),
            ("GPTALK_TEMPERATURE", "0.5"),
            ("GPTALK_BODY", r#"{"mine": 1}"#),
            ("GPTALK_HEADER", "X-Mine: 1"),
            ("GPTALK_USER_AGENT", "mine/1"),
            ("GPTALK_APP_ID", "77"),
            ("GPTALK_FINGERPRINT", &hex),
            ("GPTALK_TIMEOUT_MS", "20000"),
            ("GPTALK_NO_SUCH_OPTION", "is nobody's business"),
            ("http_proxy", "http://127.0.0.1:1"), // not for loopback
        ],
    );
    assert_eq!(outcomes, ["ok: You said: Hi"]);
    let requests = service.requests();
    assert_eq!(requests[0].json()["fingerprint"], hex);
    assert!(
        requests
            .iter()
            .all(|r| r.header("x-auth-appid") == Some("77"))
    );
    assert!(requests.iter().all(|r| r.header("x-mine") == Some("1")));
    let body = requests[1].json();
    assert_eq!(body["model"], "m");
    assert_eq!(body["temperature"], json!(0.5));
    assert_eq!(body["mine"], 1);
    assert_eq!(body["user_agent"], "mine/1");
}

#[test]
fn an_empty_variable_is_as_none() {
    let service = fresh().start();
    let names: Vec<_> = table()
        .iter()
        .map(|row| format!("GPTALK_{}", row.0.to_uppercase()))
        .collect();
    let mut env: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), String::new()))
        .collect();
    env.push(("http_proxy", String::new()));
    env.push(("GPTALK_BASE_URL", service.url())); // the last one counts
    assert_eq!(run_child("chat", &env), ["ok: You said: Hi"]);
}

#[test]
fn a_bad_variable_is_a_misuse_that_names_it() {
    let service = fresh().start();
    for (key, _, bad) in table() {
        let name = format!("GPTALK_{}", key.to_uppercase());
        let Some(bad) = bad
            .iter()
            .find(|bad| !bad.is_empty() && !bad.contains('\0'))
        else {
            continue;
        };
        let outcomes = run_child(
            "chat",
            &[("GPTALK_BASE_URL", &*service.url()), (&name, bad)],
        );
        assert_eq!(outcomes.len(), 1);
        assert!(
            outcomes[0].starts_with("misuse: ") && outcomes[0].contains(&name),
            "{outcomes:?}"
        );
    }
    assert!(service.requests().is_empty(), "nothing is sent");
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_utf8_is_a_misuse_that_names_it() {
    use std::os::unix::ffi::OsStringExt;
    let service = fresh().start();
    let url = OsString::from(service.url());
    let outcomes = run_child(
        "chat",
        &[
            ("GPTALK_BASE_URL", url),
            ("GPTALK_MODEL", OsString::from_vec(b"caf\xe9".to_vec())),
        ],
    );
    assert!(
        outcomes[0].starts_with("misuse: ") && outcomes[0].contains("GPTALK_MODEL"),
        "{outcomes:?}"
    );
    assert!(service.requests().is_empty(), "nothing is sent");
}

/// Whatever of an error a user may see.
fn shown(error: &Error) -> String {
    let (code, body) = (error.code().unwrap_or(""), error.body().unwrap_or(""));
    format!(
        "{error}\n{error:?}\n{error:#?}\n{code}\n{body}\n{:?}",
        error.reply()
    )
}

/// All that a chat that fails shows: log lines, `Debug`s, and the error.
#[track_caller]
fn shown_by_a_failure(client: &Client) -> String {
    let mut stream = client.stream("Hi").unwrap().with_log();
    let (mut shown_so_far, mut lines) = (format!("{client:?}\n{stream:?}\n"), 0);
    while let Some(event) = stream.next_event() {
        if let Event::Log(line) = event {
            shown_so_far += &format!("{line}\n");
            lines += 1;
        }
    }
    assert!(lines > 0, "there is a log");
    shown_so_far += &format!("{stream:?}\n{:?}\n", stream.cancel_handle());
    shown_so_far + &shown(&stream.finish().unwrap_err())
}

/// Answers with an error whose body is what the request said, wherever a service may put it.
fn echo(request: &Request, peer: &mut Peer) {
    let authorization = request.header("authorization").unwrap_or("none");
    let all = format!("{} {:?}", request.target, request.headers);
    let body = json!({"code": authorization, "msg": all}).to_string();
    peer.send(format!(
        "HTTP/1.1 503 No\r\nretry-after-ms: 1\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ));
}

#[test]
fn a_services_error_does_not_show_a_key_of_a_header() {
    for endpoint in [Endpoint::Login, Endpoint::Text, Endpoint::Stream] {
        let service = fresh().on(endpoint, echo).start();
        let key = format!("{SENTINEL}-2");
        let client = builder(&service)
            .retries(1)
            .header("X-Api-Key", &key)
            .api_key(SENTINEL);
        // A login that needs authorization: the user's own is on every request.
        let client = match endpoint {
            Endpoint::Login => client.header("Authorization", &format!("Bearer {SENTINEL}")),
            _ => client,
        };
        let builder = format!("{client:?}");
        let shown = shown_by_a_failure(&client.build().unwrap());
        assert_eq!(service.count(endpoint), 2, "a retry is logged");
        assert!(shown.contains("503") && shown.contains("***"), "{shown}");
        assert!(!(builder + &shown).contains("SENTINEL"), "{shown}");
    }
}

#[test]
fn a_services_error_does_not_show_a_part_of_a_header_or_the_fingerprint() {
    const FINGERPRINT: &str = "5e4711ef5e4711ef5e4711ef5e4711ef";
    const SECRETS: [&str; 4] = ["AAAAAAAA", "BBBBBBBB", "CCCCCCCC", FINGERPRINT];
    for endpoint in [Endpoint::Login, Endpoint::Text, Endpoint::Stream] {
        for code in SECRETS {
            let service = fresh().on(endpoint, move |_, peer| {
                let words = format!("you are {}, aren't you?", SECRETS.join(" or "));
                let body = json!({"code": code, "msg": words}).to_string();
                let head = "HTTP/1.1 503 No\r\nretry-after-ms: 1\r\n";
                peer.send(format!(
                    "{head}content-length: {}\r\n\r\n{body}",
                    body.len()
                ));
            });
            let service = service.start();
            let client = builder(&service)
                .retries(1)
                .header("Cookie", "sid=AAAAAAAA; b=BBBBBBBB")
                .header("X-Session-Id", "CCCCCCCC")
                .fingerprint(FINGERPRINT);
            let builder = format!("{client:?}");
            let shown = builder + &shown_by_a_failure(&client.build().unwrap());
            assert_eq!(service.count(endpoint), 2, "a retry is logged");
            assert!(shown.contains("aren't you?"), "{shown}");
            for secret in SECRETS {
                assert!(!shown.contains(secret), "{endpoint:?}, {secret}: {shown}");
            }
        }
    }
}

#[test]
fn a_key_at_the_edge_of_an_excerpt_is_not_shown_in_part() {
    for limit in [512, 4096] {
        let body = "x".repeat(limit + 1 - SENTINEL.len()) + SENTINEL + " rest";
        let handler = move |_: &Request, peer: &mut Peer| peer.respond(500, "text/plain", &body);
        let service = fresh().on(Endpoint::Login, handler).start();
        let client = builder(&service).header("Authorization", &format!("Bearer {SENTINEL}"));
        let shown = shown_by_a_failure(&client.build().unwrap());
        assert!(
            !shown.contains("SENTINEL"),
            "an excerpt of {limit} bytes shows most of the key"
        );
    }
}

#[test]
fn login_and_stream_tokens_are_never_shown() {
    let raw = "SENTINEL/a b+é";
    let encoded = "SENTINEL%2Fa%20b%2B%C3%A9";
    let gives = |token: &str| json!({"data": {"token": token}}).to_string();
    let good = gives(raw);
    let service = fresh()
        .login_data(json!({"token": "SENTINEL-login"}))
        .on(Endpoint::Text, move |_, peer| {
            peer.respond(200, "application/json", &good)
        })
        .on(Endpoint::Stream, move |request, peer| {
            assert!(request.target.ends_with(encoded));
            peer.respond(
                403,
                "text/plain",
                format!("{raw} {} SENTINEL-login", request.target),
            );
        });
    let service = service.start();
    let shown = shown_by_a_failure(&builder(&service).build().unwrap());
    assert!(
        shown.contains("***") && !shown.contains("SENTINEL"),
        "{shown}"
    );

    // A token in an answer that is not of the protocol.
    for endpoint in [Endpoint::Login, Endpoint::Text] {
        for body in [
            gives("SENTINEL") + "}",
            gives("SENTINEL\n"),
            format!("<p>{}", gives("SENTINEL")),
        ] {
            let service = fresh()
                .on(endpoint, move |_, peer| {
                    peer.respond(200, "application/json", &body)
                })
                .on(Endpoint::Stream, |_, peer| {
                    peer.respond(403, "text/plain", "")
                });
            let service = service.start();
            let shown = shown_by_a_failure(&builder(&service).build().unwrap());
            assert!(!shown.contains("SENTINEL"), "{endpoint:?}: {shown}");
        }
    }
}

/// A logger that a program in Rust may have; it keeps all that any library says.
struct Logger;

static LOGGED: Mutex<String> = Mutex::new(String::new());

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        let line = format!("{}: {}\n", record.target(), record.args());
        LOGGED.lock().unwrap().push_str(&line);
    }

    fn flush(&self) {}
}

#[test]
fn no_logger_of_the_programs_hears_a_secret() {
    log::set_logger(&Logger).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    // In a dump of bytes it would stand in parts: any part will do.
    let secret = "s3cr3t".repeat(10);
    let service = fresh().login_data(json!({"token": secret}));
    let token = json!({"data": {"token": secret}}).to_string();
    let service = service.on(Endpoint::Text, move |_, peer| {
        peer.respond(200, "application/json", &token)
    });
    let service = service.on(Endpoint::Stream, |_, peer| {
        peer.sse_head();
        peer.chunk("data: {\"content\": \"Hi\"}\n\ndata: [DONE]\n\n");
        peer.last_chunk();
    });
    let service = service.start();
    let url = format!("{}/v1?key={secret}", service.url());
    let clients = [
        builder(&service),
        builder(&service)
            .base_url(&url)
            .protocol(gptalk::Protocol::Openai)
            .api_key(&secret),
    ];
    for client in clients {
        let client = client.header("x-key", &secret);
        client.build().unwrap().complete(&*secret).unwrap();
    }
    assert_eq!(service.requests().len(), 4);
    let logged = LOGGED.lock().unwrap();
    assert!(logged.contains("200"), "it hears of the answers: {logged}");
    assert!(!logged.contains("cr3t"), "{logged}");
}

#[test]
fn a_proxys_password_is_never_shown() {
    let proxy = fresh().on(Endpoint::Other, |request, peer| {
        let credentials = request.header("proxy-authorization").unwrap_or("none");
        let head = format!("HTTP/1.1 407 {credentials}\r\nproxy-authenticate: {credentials}");
        peer.send(format!("{head}\r\ncontent-length: 0\r\n\r\n"));
    });
    let proxy = proxy.start();
    let client = Client::builder()
        .base_url("http://127.0.0.1:9")
        .proxy(&format!(
            "http://alice:SENTINEL%40pw@127.0.0.1:{}",
            proxy.port()
        ));
    let builder = format!("{client:?}");
    let client = client.retries(0).build().unwrap();
    let shown = builder + &shown_by_a_failure(&client);
    assert_eq!(proxy.count(Endpoint::Other), 1);
    assert!(shown.contains("407"), "{shown}");
    let base64 = "YWxpY2U6U0VOVElORUxAcHc=";
    let request = &proxy.requests()[0];
    assert_eq!(
        request.header("proxy-authorization"),
        Some(&*format!("Basic {base64}"))
    );
    assert!(
        !shown.contains("SENTINEL") && !shown.contains(base64),
        "{shown}"
    );
}

#[test]
fn the_refusal_of_an_option_shows_no_secret() {
    let mut leaks = Vec::new();
    for (key, value) in [
        ("api_key", "SENTINEL\n"),
        ("api_key", "SENTINELé"),
        ("header", "Authorization: Bearer SENTINEL\r\nX: y"),
        ("header", "Authorization: SENTINELé"),
        ("header", "Authorization SENTINEL"),
        ("header", "Authorization Bearer SENTINEL:1"), // its colon forgotten, but one in the key
        ("header", "Cookie=SENTINEL; at=http://x"),
        ("proxy", "ftp://alice:SENTINEL@h"),
        ("proxy", "http://alice:SENTINEL@h:0"),
        ("proxy", "http://alice:SENTINEL@"),
        ("proxy", "http://alice:SENTINEL%ff@h"),
        ("proxy", "http://alice:a@SENTINEL@h:99999"),
        ("proxy", "alice:SENTINEL://@h"),
        ("proxy", "http://alice:SENTINEL"), // its host forgotten
        ("base_url", "http://alice:SENTINEL@h"),
        ("base_url", "http://h:99999/v1?key=SENTINEL"),
        ("base_url", "ftp://h/v1?key=SENTINEL"),
        ("base_url", "http://h/v1?key=SENTINEL#x"),
    ] {
        let error = Client::new().set(key, Some(value)).unwrap_err();
        assert_misuse::<()>(Err(error.clone()), key);
        if shown(&error).to_lowercase().contains("sentinel") {
            leaks.push(error.to_string());
        }
    }
    assert_eq!(leaks, [""; 0]);
}

#[test]
fn clients_errors_and_streams_go_to_other_threads() {
    fn send<T: Send>() {}
    fn share<T: Send + Sync>() {}
    send::<gptalk::Stream>();
    send::<ClientBuilder>();
    share::<Client>();
    share::<Error>();
    share::<ErrorKind>();
    share::<Reply>();
    share::<CancelHandle>();
    share::<Conversation>();
    share::<gptalk::Message>();
    fn an_error<T: std::error::Error + Send + Sync + 'static>() {}
    an_error::<Error>();
}

#[test]
fn the_typed_setters_are_the_options() {
    let service = fresh().start();
    let limit = Some(Duration::from_micros(1)); // below the finest that an option can say
    for client in [
        builder(&service)
            .protocol(gptalk::Protocol::Gptalk)
            .proxy("none"),
        builder(&service).body(Map::new()).max_reply_bytes(12),
        builder(&service)
            .connect_timeout(None)
            .response_timeout(None)
            .idle_timeout(None),
        builder(&service).timeout(None),
    ] {
        client.build().unwrap().complete("Hi").unwrap();
    }
    let over = builder(&service)
        .max_reply_bytes(11)
        .build()
        .unwrap()
        .complete("Hi");
    assert_eq!(over.unwrap_err().kind(), ErrorKind::Limit);
    let stalls = fresh().on(Endpoint::Login, |_, peer| peer.stall()).start();
    for client in [
        builder(&stalls).timeout(limit),
        builder(&stalls).response_timeout(limit),
    ] {
        let error = client.build().unwrap().complete("Hi").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    }
}
