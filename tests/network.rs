//! The way to a service and back: refused, blackholed, reset, silent, dripping. What a user sees
//! of it, when, and what is tried again.

mod observer;
mod programs;

use std::cell::RefCell;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use gptalk::{Client, ClientBuilder, Error, ErrorKind, Event};
use gptalk_service::{Endpoint, Peer, Service};
use observer::{Fault, Seen, hold, hold_until_cured, ticks_and_is_cancelled};
use programs::{free_port, left_out};
use serde_json::json;
use socket2::{Domain, Socket, Type};

/// How late a time limit may be noticed, and how slow a machine may be that runs other tests too.
const LATE: Duration = Duration::from_millis(250 + 750);

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(60);

/// A client whose logins no other test shares: a port may come back, an `app_id` does not.
fn builder(url: &str) -> ClientBuilder {
    static CLIENTS: AtomicU32 = AtomicU32::new(1);
    let app_id = CLIENTS.fetch_add(1, Ordering::Relaxed).to_string();
    Client::builder().base_url(url).app_id(&app_id).retries(0)
}

fn client(service: &Service) -> Client {
    builder(&service.url()).build().unwrap()
}

/// A service one of whose endpoints is answered by a handler.
fn service(endpoint: Endpoint, handler: fn(&mut Peer)) -> Service {
    Service::builder()
        .on(endpoint, move |_, peer| handler(peer))
        .start()
}

/// As [`service`], but the first request alone goes wrong.
fn once(endpoint: Endpoint, handler: fn(&mut Peer)) -> Service {
    let handler = move |request: &_, peer: &mut Peer| match peer.nth() {
        0 => handler(peer),
        _ => peer.normal(request),
    };
    Service::builder().on(endpoint, handler).start()
}

/// An answer as bytes; `headers` end in CRLF.
fn answer(status: u16, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status} Whatever\r\n{headers}content-length: {length}\r\n\r\n{body}")
}

fn send_hello(peer: &mut Peer) {
    peer.sse_head();
    peer.chunk("data: {\"content\": \"Hello\"}\n\n");
}

#[track_caller]
fn fails(client: &Client, kind: ErrorKind) -> Error {
    let error = client.complete("Hi").expect_err("a failure");
    assert_eq!(error.kind(), kind, "{error}");
    error
}

/// The chat fails with the text that had arrived, and its connection is closed.
#[track_caller]
fn fails_after_hello(service: &Service, client: &Client, kind: ErrorKind) -> Error {
    let mut pieces = String::new();
    let error = client
        .chat("Hi", |piece| {
            pieces.push_str(piece);
            std::ops::ControlFlow::Continue(())
        })
        .expect_err("a failure");
    assert_eq!(error.kind(), kind, "{error}");
    assert_eq!(pieces, "Hello");
    assert_eq!(error.reply().unwrap().text, "Hello");
    assert!(!error.is_retryable(), "text was delivered");
    assert!(service.wait_until(|s| s.open_connections() == 0));
    error
}

/// What a chat comes to, once the fault is on, is what holds for every chat.
#[track_caller]
fn held(service: &Service, options: &[(&str, &str)], deadline: Duration, fault: &Fault) -> Seen {
    let url = service.url();
    let all = [&[("base_url", &*url), ("retries", "0")], options].concat();
    hold(&all, deadline, |on| fault.turn(on))
}

/// As [`held`], of a chat that fails at once.
#[track_caller]
fn held_to(kind: ErrorKind, service: &Service, options: &[(&str, &str)], fault: &Fault) -> Seen {
    let seen = held(service, options, Duration::ZERO, fault);
    assert_eq!(seen.status, kind.name(), "{seen:?}");
    seen
}

#[track_caller]
fn works(client: &Client) -> gptalk::Reply {
    let reply = client.complete("Hi there").expect("a reply");
    assert_eq!(reply.text, "You said: Hi there");
    reply
}

/// What began then has ended now: not before its time limit, and not long after it.
#[track_caller]
fn took(limit: Duration, since: Instant) {
    let took = since.elapsed();
    assert!(
        took >= limit && took < limit + LATE,
        "{took:?} for a limit of {limit:?}"
    );
}

/// A listener that answers no SYN: its queue is full.
struct Blackhole {
    port: u16,
    _listener: Socket,
    _queue: Vec<TcpStream>,
}

impl Blackhole {
    fn new(ip: IpAddr, port: u16) -> Blackhole {
        let address = SocketAddr::from((ip, port));
        let listener = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        listener.bind(&address.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let join = || TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
        Blackhole {
            port: address.port(),
            _queue: std::iter::from_fn(join).collect(),
            _listener: listener,
        }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

fn blackhole() -> Blackhole {
    Blackhole::new(Ipv4Addr::LOCALHOST.into(), 0)
}

/// Runs one test of this file in a process of its own, below `wrapper`, and tells it a URL.
fn in_child(wrapper: &[&str], test: &str, url: &str) -> Output {
    let exe = std::env::current_exe().unwrap();
    let exe = exe.to_str().unwrap();
    let words = [exe, "--exact", test, "--nocapture", "--test-threads=1"];
    let words: Vec<&str> = wrapper.iter().copied().chain(words).collect();
    Command::new(words[0])
        .args(&words[1..])
        .env(CHILD, url)
        .output()
        .unwrap()
}

const CHILD: &str = "GPTALK_TEST_CHILD";

#[track_caller]
fn passed(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    let more = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{more}"
    );
}

// Connecting.

#[test]
fn a_refused_connection_names_host_and_port() {
    let port = free_port();
    let client = builder(&format!("http://127.0.0.1:{port}"))
        .build()
        .unwrap();
    let error = fails(&client, ErrorKind::Network);
    assert!(
        error.to_string().contains(&format!("127.0.0.1:{port}")),
        "{error}"
    );
    assert!(error.is_retryable());
    assert_eq!(error.reply().unwrap().attempts, 1);

    let service = RefCell::new(None);
    let options = [
        ("base_url", &*format!("http://127.0.0.1:{port}")),
        ("retries", "0"),
    ];
    let seen = hold(&options, Duration::ZERO, |down| {
        service.replace((!down).then(|| Service::builder().port(port).start()));
    });
    seen.agrees(&Err(error));
}

#[test]
fn an_unknown_host_is_named_and_has_the_code_dns() {
    let client = builder("http://no-such-host.invalid:8080").build().unwrap();
    let error = fails(&client, ErrorKind::Network);
    assert_eq!(error.code(), Some("dns"));
    assert!(
        error.to_string().contains("no-such-host.invalid"),
        "{error}"
    );
    let service = Service::start();
    let unknown = [
        ("base_url", "http://no-such-host.invalid:8080"),
        ("retries", "0"),
    ];
    let cure = [("base_url", &*service.url())];
    hold_until_cured(&unknown, LONG, |_| (), &cure).agrees(&Err(error));
}

#[test]
fn a_blackholed_connect_ends_at_its_time_limit() {
    let (hole, limit) = (blackhole(), Duration::from_millis(300));
    let client = builder(&hole.url())
        .connect_timeout(Some(limit))
        .retries(5)
        .build()
        .unwrap();
    let started = Instant::now();
    let error = fails(&client, ErrorKind::Timeout);
    took(limit, started);
    assert_eq!(error.code(), Some("connect_timeout"));

    let service = Service::start();
    let options = [
        ("base_url", &*hole.url()),
        ("connect_timeout_ms", "300"),
        ("retries", "5"),
    ];
    let cure = [("base_url", &*service.url())];
    hold_until_cured(&options, limit, |_| (), &cure).agrees(&Err(error));
}

#[test]
fn a_blackholed_connect_ends_at_the_time_limit_of_the_chat() {
    let (hole, limit) = (blackhole(), Duration::from_millis(300));
    let client = builder(&hole.url()).timeout(Some(limit)).build().unwrap();
    let started = Instant::now();
    fails(&client, ErrorKind::Timeout);
    took(limit, started);
}

#[test]
fn of_several_addresses_a_dead_one_is_passed_over() {
    let addresses = || ("localhost", 1).to_socket_addrs().unwrap();
    if addresses()
        .next()
        .is_none_or(|first| first.ip() != Ipv6Addr::LOCALHOST)
    {
        // Again, where localhost is ::1 first: in a namespace with a hosts file of its own.
        assert!(
            std::env::var_os(CHILD).is_none(),
            "the hosts file has no effect"
        );
        let hosts = std::env::temp_dir().join(format!("gptalk-hosts-{}", std::process::id()));
        fs::write(&hosts, "::1 localhost\n127.0.0.1 localhost\n").unwrap();
        let mount = format!(
            "mount --bind '{}' /etc/hosts || exit 77; exec \"$@\"",
            hosts.display()
        );
        let wrapper = ["unshare", "-rm", "sh", "-c", &mount, "sh"];
        if programs::works(Command::new("unshare").args(["-rm", "true"])) {
            let test = "of_several_addresses_a_dead_one_is_passed_over";
            let output = in_child(&wrapper, test, "");
            fs::remove_file(&hosts).unwrap();
            passed(&output);
        } else {
            left_out("several addresses: localhost has one, and namespaces are not to be had");
        }
        return;
    }
    let service = Service::start();
    let url = format!("http://localhost:{}", service.port());
    works(&builder(&url).build().unwrap()); // ::1 is refused
    let hole = Blackhole::new(Ipv6Addr::LOCALHOST.into(), service.port());
    let client = builder(&url)
        .connect_timeout(Some(Duration::from_secs(1)))
        .build()
        .unwrap();
    works(&client); // ::1 is silent
    assert_eq!(hole.port, service.port());
    let options = [("base_url", &*url), ("connect_timeout_ms", "1000")];
    let seen = hold(&options, Duration::from_secs(1), |_| ());
    assert_eq!(seen.status, "ok", "{seen:?}");
}

// A connection that ends.

#[test]
fn a_submission_that_may_have_been_accepted_is_not_sent_again() {
    for end in [Peer::close, Peer::reset] {
        let service = Service::builder()
            .on(Endpoint::Login, |_, peer| {
                let body = r#"{"data": {"token": "fresh"}}"#;
                peer.send(answer(200, "connection: close\r\n", body));
                peer.close();
            })
            .on(Endpoint::Text, move |_, peer| end(peer))
            .start();
        let client = builder(&service.url()).retries(3).build().unwrap();
        let error = fails(&client, ErrorKind::Network);
        assert!(error.to_string().contains(&service.url()), "{error}");
        assert_eq!(
            service.connections(),
            2,
            "the text went over a connection of its own"
        );
        assert_eq!(service.count(Endpoint::Text), 1);

        let fault = Fault::default();
        let service = Service::builder().on(Endpoint::Login, |request, peer| {
            peer.normal(request);
            peer.close();
        });
        let service = fault.at(service, Endpoint::Text, end).start();
        held_to(ErrorKind::Network, &service, &[], &fault);
    }
}

#[test]
fn a_connection_that_died_while_idle_goes_unnoticed() {
    for end in [Peer::close, Peer::reset] {
        let service = Service::builder()
            .on(Endpoint::Stream, move |request, peer| {
                peer.normal(request);
                end(peer);
            })
            .start();
        let client = client(&service);
        for chats in 1..=3 {
            assert_eq!(works(&client).attempts, 1);
            assert!(service.wait_until(|s| s.open_connections() == 0));
            assert_eq!(service.connections(), chats);
            assert_eq!(service.count(Endpoint::Text), chats);
        }
        let options = [("base_url", &*service.url()), ("retries", "0")];
        let seen = hold(&options, Duration::ZERO, |_| {
            assert!(service.wait_until(|s| s.open_connections() == 0));
        });
        assert_eq!((&*seen.status, &*seen.text), ("ok", "You said: Hi"));
    }
}

#[test]
fn a_reused_connection_that_dies_under_the_request_is_replaced_once() {
    for end in [Peer::close, Peer::reset] {
        // The second text finds its connection ended under it, the fourth and fifth both do.
        let service = Service::builder()
            .on(Endpoint::Text, move |request, peer| match peer.nth() {
                1 | 3 | 4 => end(peer),
                _ => peer.normal(request),
            })
            .start();
        let client = client(&service);
        works(&client);
        assert_eq!(works(&client).attempts, 1, "at no retry's cost");
        assert_eq!(
            (service.count(Endpoint::Text), service.connections()),
            (3, 2)
        );
        fails(&client, ErrorKind::Network);
        assert_eq!(
            (service.count(Endpoint::Text), service.connections()),
            (5, 3)
        );
        works(&client);

        let fault = Fault::default();
        let service = fault.at(Service::builder(), Endpoint::Text, end).start();
        held_to(ErrorKind::Network, &service, &[], &fault);
    }
}

#[test]
fn a_reset_in_the_middle_of_a_reply_keeps_its_text() {
    let service = once(Endpoint::Stream, |peer| {
        send_hello(peer);
        // It must not overtake what was sent.
        peer.pause(Duration::from_millis(100));
        peer.reset();
    });
    let client = builder(&service.url()).retries(2).build().unwrap();
    fails_after_hello(&service, &client, ErrorKind::Truncated);
    assert_eq!(
        service.count(Endpoint::Stream),
        1,
        "no retry after the first text"
    );
    works(&client);

    let fault = Fault::default();
    let service = fault.at(Service::builder(), Endpoint::Stream, |peer| {
        send_hello(peer);
        peer.pause(Duration::from_millis(100));
        peer.reset();
    });
    let seen = held_to(ErrorKind::Truncated, &service.start(), &[], &fault);
    assert_eq!(seen.text, "Hello");
}

#[test]
fn an_early_refusal_of_a_long_text_is_a_refusal_or_a_broken_connection() {
    let service = Service::builder()
        .on(Endpoint::Login, |_, peer| {
            let body = r#"{"data": {"token": "fresh"}}"#;
            peer.send(answer(200, "connection: close\r\n", body));
            peer.close();
        })
        .on_connect(|peer| {
            if peer.nth() == 1 {
                peer.send(answer(413, "connection: close\r\n", ""));
                peer.close();
            }
        })
        .start();
    let error = client(&service)
        .complete("x".repeat(8 << 20).as_str())
        .unwrap_err();
    match error.kind() {
        ErrorKind::Request => assert_eq!(error.http_status(), Some(413)),
        kind => assert_eq!(kind, ErrorKind::Network, "{error}"),
    }
}

/// A service whose login ends its connection. On the next one it answers at once, and reads
/// nothing of the request before the flag is up; and a text that no buffer takes.
fn early(
    answer: impl Fn(&mut Peer) + Send + Sync + 'static,
) -> (gptalk_service::Builder, Arc<AtomicBool>, String) {
    let flag = Arc::new(AtomicBool::new(false));
    let up = Arc::clone(&flag);
    let service = Service::builder()
        .on(Endpoint::Login, |request, peer| {
            peer.normal(request);
            peer.close();
        })
        .on_connect(move |peer| {
            if peer.nth() == 1 {
                answer(peer);
                let end = Instant::now() + Duration::from_secs(8);
                while !up.load(Ordering::SeqCst) && Instant::now() < end {
                    peer.pause(Duration::from_millis(1));
                }
            }
        });
    (service, flag, "x".repeat(24 << 20))
}

#[test]
fn a_connection_whose_request_was_not_wholly_sent_is_not_used_again() {
    let (service, read_on, text) =
        early(|peer| peer.send(answer(413, "connection: keep-alive\r\n", "too long")));
    let service = service.start();
    let client = builder(&service.url())
        .response_timeout(Some(Duration::from_secs(5)))
        .build()
        .unwrap();
    let error = client.complete(text).unwrap_err();
    match error.kind() {
        ErrorKind::Request => assert_eq!(error.http_status(), Some(413)),
        kind => assert_eq!(kind, ErrorKind::Network, "{error}"),
    }
    read_on.store(true, Ordering::SeqCst);
    works(&client);
    assert!(
        service.wait_until(|s| s.open_connections() == 1),
        "the connection of the long text is closed"
    );
    let requests = service.requests();
    let of: Vec<_> = requests
        .iter()
        .map(|r| (r.endpoint, r.connection))
        .collect();
    assert_eq!(
        of,
        [
            (Endpoint::Login, 0),
            (Endpoint::Text, 2),
            (Endpoint::Stream, 2)
        ]
    );
    assert!(requests.iter().all(|r| r.body.len() < 1 << 10));
    assert_eq!(service.refusals(), [""; 0]);
}

#[test]
fn a_text_that_was_not_wholly_sent_counts_no_use_of_its_login() {
    let (service, read_on, text) = early(|peer| {
        // Time for what the buffers take.
        peer.pause(Duration::from_millis(100));
        peer.reset();
    });
    read_on.store(true, Ordering::SeqCst);
    let service = service.start();
    let client = client(&service);
    let error = client.complete(text).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Network, "{error}");
    (0..5).for_each(|_| drop(works(&client)));
    assert_eq!(service.count(Endpoint::Login), 1);
}

#[test]
fn a_header_that_comes_before_the_request_was_read_is_an_answer() {
    let (service, read_on, text) = early(Peer::sse_head);
    let service = service
        .on(Endpoint::Text, |_, peer| {
            peer.chunk(r#"{"data": {"token": "t"}}"#);
            peer.last_chunk();
        })
        .on(Endpoint::Stream, |_, peer| {
            send_hello(peer);
            peer.chunk("data: [DONE]\n\n");
            peer.last_chunk();
        });
    let service = service.start();
    let client = builder(&service.url())
        .idle_timeout(Some(Duration::from_secs(3)))
        .build()
        .unwrap();
    let mut stream = client.stream(text.as_str()).unwrap();
    // Some looks around, and the header is seen; the text cannot be sent before it is read.
    for _ in 0..3 {
        assert_eq!(stream.next_event(), Some(Event::Tick));
    }
    read_on.store(true, Ordering::SeqCst);
    assert_eq!(stream.finish().expect("a reply").text, "Hello");
    let request = &service.requests()[1];
    assert_eq!(request.endpoint, Endpoint::Text);
    assert_eq!(request.connection, 1, "the one that was answered early");
    assert_eq!(
        request.json()["content"].as_str().map(str::len),
        Some(text.len()),
        "the rest of the text was sent"
    );
}

// Silence, and drops.

#[test]
fn a_service_that_never_answers_is_left_at_the_response_timeout() {
    for endpoint in [Endpoint::Login, Endpoint::Text, Endpoint::Stream] {
        let service = once(endpoint, Peer::stall);
        let limit = Duration::from_millis(300);
        let client = builder(&service.url())
            .response_timeout(Some(limit))
            .build()
            .unwrap();
        let started = Instant::now();
        let error = fails(&client, ErrorKind::Timeout);
        took(limit, started);
        assert_eq!(error.code(), Some("response_timeout"));
        assert!(service.wait_until(|s| s.open_connections() == 0));
        works(&client);

        let fault = Fault::default();
        let service = Service::builder().login_data(json!({"expires_at": 1}));
        let service = fault.at(service, endpoint, Peer::stall).start();
        let options = [("response_timeout_ms", "300")];
        let seen = held(&service, &options, limit, &fault);
        assert_eq!(seen.code.as_deref(), Some("response_timeout"), "{seen:?}");
    }
}

#[test]
fn silence_in_the_middle_of_a_reply_ends_at_the_idle_timeout() {
    let service = once(Endpoint::Stream, |peer| {
        send_hello(peer);
        peer.stall();
    });
    let limit = Duration::from_millis(300);
    let client = builder(&service.url())
        .idle_timeout(Some(limit))
        .build()
        .unwrap();
    let started = Instant::now();
    let error = fails_after_hello(&service, &client, ErrorKind::Timeout);
    took(limit, started);
    assert_eq!(error.code(), Some("idle_timeout"));
    works(&client);

    let fault = Fault::default();
    let service = fault.at(Service::builder(), Endpoint::Stream, |peer| {
        send_hello(peer);
        peer.stall();
    });
    let options = [("idle_timeout_ms", "300")];
    let seen = held(&service.start(), &options, limit, &fault);
    assert_eq!((&*seen.status, &*seen.text), ("timeout", "Hello"));
}

/// Sends that again and again, faster than anybody waits, until the client goes; but not forever.
fn drip(peer: &mut Peer, what: &str) {
    let end = Instant::now() + Duration::from_secs(8);
    while Instant::now() < end && !peer.client_closed(Duration::from_millis(5)) {
        peer.send(what);
    }
}

/// A reply that begins, and then only comments.
fn drip_comments(peer: &mut Peer) {
    send_hello(peer);
    drip(peer, "2\r\n:\n\r\n");
}

#[test]
fn bytes_that_drip_without_an_event_end_at_the_time_limit_of_the_chat() {
    let service = once(Endpoint::Stream, drip_comments);
    let (idle, limit) = (Duration::from_millis(400), Duration::from_millis(800));
    let client = builder(&service.url())
        .idle_timeout(Some(idle))
        .timeout(Some(limit));
    let client = client.build().unwrap();
    let started = Instant::now();
    let error = fails_after_hello(&service, &client, ErrorKind::Timeout);
    took(limit, started);
    assert_eq!(error.code(), Some("timeout"));
    works(&client);

    let fault = Fault::default();
    let service = fault.at(Service::builder(), Endpoint::Stream, drip_comments);
    let options = [("idle_timeout_ms", "400"), ("timeout_ms", "800")];
    let seen = held(&service.start(), &options, limit, &fault);
    assert_eq!((&*seen.status, &*seen.text), ("timeout", "Hello"));
}

#[test]
fn one_byte_at_a_time_is_as_good_as_all_at_once() {
    let token = r#"{"data": {"token": "t"}}"#;
    let reply = "data: {\"content\": \"Grüße\"}\r\n\r\ndata: [DONE]\r\n\r\n";
    let service = Service::builder()
        .on(Endpoint::Login, move |_, peer| {
            peer.drip(answer(200, "", token))
        })
        .on(Endpoint::Text, move |_, peer| {
            peer.drip(answer(200, "", token))
        })
        .on(Endpoint::Stream, move |_, peer| {
            let answer = answer(200, "", reply);
            // A reply is left at its [DONE], and what follows is not waited for long.
            let (drops, rest) = answer.split_at(answer.find("[DONE]").unwrap());
            peer.drip(drops);
            peer.send(rest);
        })
        .start();
    let client = client(&service);
    for _ in 0..3 {
        let reply = client.complete("Hi").unwrap();
        assert_eq!((reply.text.as_str(), reply.pieces), ("Grüße", 1));
    }
    assert_eq!(service.connections(), 1);
    let options = [("base_url", &*service.url()), ("retries", "0")];
    let seen = hold(&options, Duration::ZERO, |_| ());
    assert_eq!((&*seen.status, &*seen.text), ("ok", "Grüße"));
}

/// A login, after which the service reads no more; and a text that no buffer takes.
fn deaf_service() -> (Service, String) {
    let service = service(Endpoint::Login, |peer| {
        peer.send(answer(200, "", r#"{"data": {"token": "t"}}"#));
        peer.pause(LONG);
    });
    (service, "x".repeat(24 << 20))
}

#[test]
fn a_service_that_stops_reading_is_left_at_the_response_timeout() {
    let (service, text) = deaf_service();
    let limit = Duration::from_millis(400);
    let client = builder(&service.url())
        .response_timeout(Some(limit))
        .build()
        .unwrap();
    let stream = client.stream(text.as_str()).unwrap();
    let started = Instant::now();
    let error = stream.finish().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    took(limit, started);

    let healthy = Service::start();
    let options = [
        ("base_url", &*service.url()),
        ("response_timeout_ms", "400"),
        ("retries", "0"),
        ("prompt", &text.len().to_string()),
    ];
    let cure = [("base_url", &*healthy.url()), ("prompt", "2")];
    // A build without optimization takes its time for so long a text.
    let deadline = limit + Duration::from_secs(5);
    hold_until_cured(&options, deadline, |_| (), &cure).agrees(&Err(error));
}

// Retries.

/// The chat is refused with these headers and that body each time; the error, and how often.
#[track_caller]
fn refused(status: u16, headers: &str, body: &str, retries: u32) -> (Error, usize) {
    let refusal = answer(status, headers, body);
    let service = Service::builder()
        .on(Endpoint::Text, move |_, peer| peer.send(&refusal))
        .start();
    let client = builder(&service.url()).retries(retries).build().unwrap();
    let error = client.complete("Hi").expect_err("a failure");
    let times = service.count(Endpoint::Text);
    assert_eq!(error.http_status(), Some(status), "{error}");
    assert_eq!(error.reply().unwrap().attempts as usize, times);
    (error, times)
}

#[test]
fn a_refusal_that_may_pass_is_retried_and_another_is_not() {
    for status in [408, 409, 429, 500, 502, 503, 504, 529] {
        let (error, times) = refused(status, "retry-after-ms: 1\r\n", "", 2);
        assert_eq!(times, 3, "HTTP {status}");
        assert!(error.is_retryable(), "HTTP {status}");
    }
    for status in [400, 401, 402, 403, 404, 405, 410, 413, 422] {
        let (error, times) = refused(status, "retry-after-ms: 1\r\n", "", 2);
        assert_eq!(times, 1, "HTTP {status}");
        assert!(!error.is_retryable(), "HTTP {status}");
    }
}

#[test]
fn the_number_of_retries_is_kept() {
    for retries in [0, 1, 4] {
        let (_, times) = refused(503, "retry-after-ms: 0\r\n", "", retries);
        assert_eq!(times, retries as usize + 1);
    }
}

#[test]
fn a_quota_that_is_used_up_is_not_retried() {
    let body = r#"{"error": {"message": "no money left", "code": "insufficient_quota"}}"#;
    let (error, times) = refused(429, "retry-after-ms: 1\r\n", body, 2);
    assert_eq!((times, error.kind()), (1, ErrorKind::RateLimit));
    assert_eq!(error.code(), Some("insufficient_quota"));
    assert!(!error.is_retryable());
}

#[test]
fn retry_after_is_read_in_every_form_and_nonsense_is_ignored() {
    let asked = |headers: &str| refused(429, headers, "", 0).0.retry_after();
    let (ms, s) = (Duration::from_millis, Duration::from_secs);
    for (headers, wait) in [
        ("", None),
        ("Retry-After: 7\r\n", Some(s(7))),
        ("retry-after: 0\r\n", Some(s(0))),
        ("retry-after-ms: 1500\r\n", Some(ms(1500))),
        ("retry-after: 9\r\nretry-after-ms: 20\r\n", Some(ms(20))),
        ("retry-after: 1000000000\r\n", Some(s(120))),
        ("retry-after: 1e9\r\n", Some(s(120))),
        ("retry-after: Fri, 31 Dec 1999 23:59:59 GMT\r\n", Some(s(0))),
        ("retry-after: -1\r\n", None),
        ("retry-after: NaN\r\n", None),
        ("retry-after: inf\r\n", None),
        ("retry-after: soon\r\n", None),
        ("retry-after-ms: NaN\r\n", None),
        ("retry-after-ms: NaN\r\nretry-after: 3\r\n", Some(s(3))),
        ("retry-after-ms: -5\r\nretry-after: 3\r\n", Some(s(3))),
    ] {
        assert_eq!(asked(headers), wait, "{headers:?}");
    }
    let date = httpdate::fmt_http_date(SystemTime::now() + s(60));
    let wait = asked(&format!("retry-after: {date}\r\n")).expect("a wait");
    assert!(wait <= s(60) && wait > s(55), "{wait:?} until {date}");
}

/// How long a chat takes whose first text is refused with these headers.
#[track_caller]
fn wait_after(headers: &'static str) -> Duration {
    let refuse_once = move |request: &_, peer: &mut Peer| match peer.nth() {
        0 => peer.send(answer(503, headers, "")),
        _ => peer.normal(request),
    };
    let service = Service::builder().on(Endpoint::Text, refuse_once).start();
    let client = builder(&service.url()).retries(1).build().unwrap();
    let started = Instant::now();
    assert_eq!(works(&client).attempts, 2);
    started.elapsed()
}

#[test]
fn the_service_says_how_long_a_retry_waits_else_it_is_about_half_a_second() {
    assert!(wait_after("retry-after-ms: 5\r\n") < Duration::from_millis(250));
    assert!(wait_after("retry-after: 1\r\n") >= Duration::from_secs(1));
    for headers in ["", "retry-after: NaN\r\n", "retry-after: -1\r\n"] {
        let wait = wait_after(headers);
        assert!(wait >= Duration::from_millis(250), "{headers:?}: {wait:?}");
        assert!(
            wait < Duration::from_millis(750) + LATE,
            "{headers:?}: {wait:?}"
        );
    }
}

#[test]
fn a_retry_that_would_come_after_the_time_limit_is_not_waited_for() {
    let service = service(Endpoint::Text, |peer| {
        peer.send(answer(429, "retry-after: 30\r\n", ""))
    });
    let client = builder(&service.url())
        .retries(2)
        .timeout(Some(Duration::from_secs(20)));
    let started = Instant::now();
    let error = fails(&client.build().unwrap(), ErrorKind::RateLimit);
    assert!(started.elapsed() < LATE);
    assert_eq!(error.retry_after(), Some(Duration::from_secs(30)));
    assert_eq!(service.count(Endpoint::Text), 1);
}

#[test]
fn a_refused_connection_is_tried_again_until_the_service_is_there() {
    let port = free_port();
    let client = builder(&format!("http://127.0.0.1:{port}"))
        .retries(1)
        .build()
        .unwrap();
    let mut stream = client.stream("Hi there").unwrap();
    assert_eq!(
        stream.next_event(),
        Some(Event::Tick),
        "while it waits for its retry"
    );
    let service = Service::builder().port(port).start();
    let reply = stream.finish().unwrap();
    assert_eq!(
        (reply.text.as_str(), reply.attempts),
        ("You said: Hi there", 2)
    );
    assert_eq!(service.count(Endpoint::Login), 1);
}

#[test]
fn a_login_that_was_refused_or_reset_is_tried_again() {
    for fault in [
        |peer: &mut Peer| peer.send(answer(503, "retry-after-ms: 1\r\n", "")),
        Peer::reset,
    ] {
        let service = once(Endpoint::Login, fault);
        let client = builder(&service.url()).retries(1).build().unwrap();
        assert_eq!(works(&client).attempts, 2);
        assert_eq!(service.count(Endpoint::Login), 2);
        assert_eq!(service.count(Endpoint::Text), 1);
    }
}

#[test]
fn a_login_whose_answer_is_cut_is_tried_again() {
    let cuts: [fn(&mut Peer); 2] = [Peer::close, |peer| {
        // It must not overtake what was sent.
        peer.pause(Duration::from_millis(100));
        peer.reset();
    }];
    for cut in cuts {
        let handler = move |request: &_, peer: &mut Peer| match peer.nth() {
            0 => {
                peer.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"data\": {");
                cut(peer);
            }
            _ => peer.normal(request),
        };
        let service = Service::builder().on(Endpoint::Login, handler).start();
        let client = builder(&service.url()).retries(1).build().unwrap();
        assert_eq!(works(&client).attempts, 2);
        assert_eq!(service.count(Endpoint::Login), 2);
        assert_eq!(service.count(Endpoint::Text), 1);
    }
}

#[test]
fn after_a_refused_stream_the_text_is_submitted_anew() {
    for status in [429, 503] {
        let refuse_once = move |request: &_, peer: &mut Peer| match peer.nth() {
            0 => peer.send(answer(status, "retry-after-ms: 1\r\n", "")),
            _ => peer.normal(request),
        };
        let service = Service::builder().on(Endpoint::Stream, refuse_once).start();
        let client = builder(&service.url()).retries(1).build().unwrap();
        assert_eq!(works(&client).attempts, 2);
        let requests = service.requests();
        let streams: Vec<_> = requests
            .iter()
            .filter(|r| r.endpoint == Endpoint::Stream)
            .collect();
        assert_eq!((streams.len(), service.count(Endpoint::Text)), (2, 2));
        assert_ne!(streams[0].target, streams[1].target, "another stream token");
        assert_eq!(service.count(Endpoint::Login), 1);
    }
}

#[test]
fn nothing_is_retried_after_the_first_text() {
    let fault: [fn(&mut Peer); 3] = [
        Peer::close,
        |peer| peer.chunk("data: {\"error\": {\"message\": \"overloaded\", \"code\": 503}}\n\n"),
        |peer| peer.chunk("data: {\n\n"),
    ];
    for fault in fault {
        let handler = move |_: &_, peer: &mut Peer| {
            send_hello(peer);
            fault(peer);
        };
        let service = Service::builder().on(Endpoint::Stream, handler).start();
        let client = builder(&service.url()).retries(3).build().unwrap();
        let error = client.complete("Hi").unwrap_err();
        assert_eq!(error.reply().unwrap().text, "Hello", "{error}");
        assert!(!error.is_retryable());
        assert_eq!(service.count(Endpoint::Text), 1);
    }
}

// Ticks and cancelling, in every phase in which a chat waits.

/// The same, in the phase that a handler of the service makes last.
#[track_caller]
fn waits_well(endpoint: Endpoint, handler: fn(&mut Peer)) {
    let service = service(endpoint, handler);
    ticks_and_is_cancelled(builder(&service.url()).retries(2), "Hi");
    assert_eq!(service.count(endpoint), 1);
    assert!(
        service.wait_until(|s| s.open_connections() == 0),
        "the connection is closed"
    );
}

#[test]
fn ticks_and_cancel_while_connecting() {
    ticks_and_is_cancelled(builder(&blackhole().url()), "Hi");
}

#[test]
fn ticks_and_cancel_before_an_answer() {
    waits_well(Endpoint::Login, Peer::stall);
    waits_well(Endpoint::Text, Peer::stall);
    waits_well(Endpoint::Stream, Peer::stall);
}

#[test]
fn ticks_and_cancel_inside_a_header_and_inside_an_answer() {
    waits_well(Endpoint::Text, |peer| {
        peer.send("HTTP/1.1 200 OK\r\ncontent-");
        peer.stall();
    });
    waits_well(Endpoint::Login, |peer| {
        peer.send("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{");
        peer.stall();
    });
}

#[test]
fn ticks_and_cancel_while_a_header_drips() {
    waits_well(Endpoint::Stream, |peer| {
        peer.send("HTTP/1.1 200 OK\r\nx-long: ");
        drip(peer, "x");
    });
}

#[test]
fn ticks_and_cancel_in_the_middle_of_a_reply() {
    waits_well(Endpoint::Stream, |peer| {
        send_hello(peer);
        peer.stall();
    });
}

#[test]
fn ticks_and_cancel_while_comments_drip() {
    waits_well(Endpoint::Stream, drip_comments);
}

#[test]
fn ticks_and_cancel_while_events_without_text_drip() {
    waits_well(Endpoint::Stream, |peer| {
        send_hello(peer);
        drip(peer, "9\r\ndata: {}\n\r\n");
    });
}

#[test]
fn ticks_and_cancel_while_waiting_for_a_retry() {
    waits_well(Endpoint::Login, |peer| {
        peer.send(answer(503, "retry-after: 4\r\nconnection: close\r\n", ""));
        peer.close();
    });
}

#[test]
fn ticks_and_cancel_while_the_service_does_not_read() {
    let (service, text) = deaf_service();
    ticks_and_is_cancelled(builder(&service.url()), &text);
}

#[test]
fn ticks_and_cancel_while_another_chat_logs_in() {
    let service = service(Endpoint::Login, Peer::stall);
    let options = || {
        Client::builder()
            .base_url(&service.url())
            .app_id("shared login")
    };
    let first = options().build().unwrap();
    let handle = first.cancel_handle();
    thread::scope(|scope| {
        let first = scope.spawn(|| first.complete("Hi").unwrap_err().kind());
        assert!(service.wait_until(|s| s.count(Endpoint::Login) == 1));
        ticks_and_is_cancelled(options(), "Hi");
        assert_eq!(service.count(Endpoint::Login), 1, "the login is shared");
        assert!(handle.cancel(), "the other chat still runs");
        assert_eq!(first.join().unwrap(), ErrorKind::Cancelled);
    });
}

#[test]
fn a_dropped_stream_closes_its_connection() {
    let service = service(Endpoint::Stream, |peer| {
        send_hello(peer);
        peer.stall();
    });
    let client = client(&service);
    let mut stream = client.stream("Hi").unwrap();
    assert_eq!(stream.next_event(), Some(Event::Text("Hello")));
    assert_eq!(service.open_connections(), 1);
    drop(stream);
    assert!(service.wait_until(|s| s.open_connections() == 0));
    assert!(!client.cancel_handle().cancel(), "no chat is left");
}

#[test]
fn a_chat_starts_no_thread() {
    const TEST: &str = "a_chat_starts_no_thread";
    let Ok(url) = std::env::var(CHILD) else {
        // The threads of the service and of the other tests are in this process.
        let service = Service::builder().pace(Duration::from_millis(40)).start();
        passed(&in_child(
            &[],
            TEST,
            &format!("http://localhost:{}", service.port()),
        ));
        assert_eq!(service.count(Endpoint::Stream), 5);
        return;
    };
    let (looks, most, over) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicBool::new(false),
    );
    let threads = || fs::read_dir("/proc/self/task").unwrap().count();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(threads(), Ordering::Relaxed);
                looks.fetch_add(1, Ordering::Relaxed);
            }
        });
        while looks.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        let before = threads();
        let client = builder(&url).timeout(Some(LONG)).build().unwrap();
        for _ in 0..5 {
            works(&client);
        }
        over.store(true, Ordering::Relaxed);
        assert_eq!(most.load(Ordering::Relaxed), before);
    });
}

#[test]
fn a_service_that_speaks_no_tls_is_told_apart_from_one_that_is_not_there() {
    // It waits for a request, as http services do, where TLS waits for an answer.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let client = Client::builder()
        .base_url(&format!("https://127.0.0.1:{port}"))
        .connect_timeout(Some(Duration::from_millis(300)))
        .retries(0)
        .build()
        .unwrap();
    let error = client.complete("Hi").unwrap_err();
    assert_eq!(
        (error.kind(), error.code()),
        (ErrorKind::Timeout, Some("connect_timeout"))
    );
    assert!(error.to_string().contains("no TLS handshake"), "{error}");
    assert!(error.to_string().contains("http://"), "{error}");
}
