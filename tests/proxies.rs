//! Proxies: which one serves a chat, what is said to it, and what a user sees where it does not do
//! what it is asked for.

mod observer;
mod programs;

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use gptalk::{Client, ClientBuilder, Error, ErrorKind, Event, Protocol, Reply};
use gptalk_service::certificates::Authority;
use gptalk_service::{Builder, Endpoint, Peer, Request, Service};
use observer::{Fault, hold, ticks_and_is_cancelled};
use programs::{Program, free_port, left_out};
use rustls::ServerConfig;

/// How late a time limit may be noticed, and how slow a machine may be that runs other tests too.
const LATE: Duration = Duration::from_millis(250 + 750);

/// How long a chat waits for what is not to come.
const PATIENCE: Duration = Duration::from_secs(5);

const PROTOCOLS: [Protocol; 2] = [Protocol::Gptalk, Protocol::Openai];

/// What must never be shown: a key, and a proxy's password, as it is, as a URL has it, and as a
/// header has it.
const KEY: &str = "sk-SENTINEL-0123456789";
const PASSWORD: &str = "SENTINEL: p@ss/wörd";
const PASSWORD_IN_URL: &str = "SENTINEL%3A%20p%40ss%2Fw%C3%B6rd";
const CREDENTIALS: &str = "YWxpY2U6U0VOVElORUw6IHBAc3Mvd8O2cmQ=";

const STANDS: &str = "HTTP/1.1 200 Connection established\r\n\r\n";

static ROOT: LazyLock<Authority> = LazyLock::new(|| Authority::new("root of these tests"));
static ROOT_FILE: LazyLock<String> = LazyLock::new(|| file("root.pem", &ROOT.pem()));

/// A server's certificate, for loopback and for names that nobody resolves.
static TLS: LazyLock<Arc<ServerConfig>> = LazyLock::new(|| {
    let names = ["localhost", "127.0.0.1", "service.invalid"];
    Arc::new(ROOT.issue(&names).config())
});

/// A file of this process, and its path.
fn file(name: &str, content: &str) -> String {
    let name = format!("proxies-{}-{name}", process::id());
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, content).expect("a temporary file");
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// A client whose logins no other test shares: a port may come back, an `app_id` does not.
fn builder(url: &str, proxy: &str, protocol: Protocol) -> ClientBuilder {
    static CLIENTS: AtomicU32 = AtomicU32::new(1);
    let app_id = CLIENTS.fetch_add(1, Ordering::Relaxed).to_string();
    let client = Client::builder().base_url(url).protocol(protocol);
    let client = match protocol {
        Protocol::Openai => client.api_key(KEY),
        _ => client.app_id(&app_id),
    };
    client
        .proxy(proxy)
        .ca_file(&ROOT_FILE)
        .retries(0)
        .connect_timeout(Some(PATIENCE))
        .response_timeout(Some(PATIENCE))
        .idle_timeout(Some(PATIENCE))
        // No test goes on forever, whatever limit is not kept.
        .timeout(Some(4 * PATIENCE))
}

/// A service that speaks TLS, or does not.
fn service(tls: bool) -> Service {
    let service = Service::builder();
    match tls {
        true => service.tls(TLS.clone()).start(),
        false => service.start(),
    }
}

/// A proxy that makes a tunnel to the service, whatever it is asked for.
fn http_proxy(service: &Service) -> Builder {
    let port = service.port();
    Service::builder().on(Endpoint::Other, move |_, peer| {
        peer.send(STANDS);
        peer.tunnel(port, usize::MAX);
    })
}

/// The same, for whoever has the password.
fn guarded_proxy(service: &Service) -> Service {
    let port = service.port();
    let guard = move |request: &Request, peer: &mut Peer| {
        let wanted = format!("Basic {CREDENTIALS}");
        if request.header("proxy-authorization") == Some(&wanted) {
            peer.send(STANDS);
            return peer.tunnel(port, usize::MAX);
        }
        peer.header("proxy-authenticate", "Basic realm=\"proxy\"");
        peer.respond(407, "text/plain", "");
    };
    Service::builder().on(Endpoint::Other, guard).start()
}

fn url(scheme: &str, proxy: &Service) -> String {
    format!("{scheme}://127.0.0.1:{}", proxy.port())
}

fn url_with_password(scheme: &str, proxy: &Service) -> String {
    let port = proxy.port();
    format!("{scheme}://alice:{PASSWORD_IN_URL}@127.0.0.1:{port}")
}

/// What a chat brought, and all that it could have shown a secret in.
struct Seen {
    text: String,
    words: String,
    result: Result<Reply, Error>,
    took: Duration,
}

fn chat(client: &Client) -> Seen {
    let started = Instant::now();
    let mut stream = client.stream("Hi there").unwrap().with_log();
    let (mut text, mut words) = (String::new(), format!("{client:?}\n"));
    while let Some(event) = stream.next_event() {
        match event {
            Event::Text(piece) => text += piece,
            Event::Log(line) => words += line,
            _ => {}
        }
    }
    words += &format!("\n{stream:?}\n");
    let result = stream.finish();
    if let Err(error) = &result {
        words += &format!("{error}\n{error:?}\n{:?} {:?}", error.code(), error.body());
    }
    let took = started.elapsed();
    tells_no_secret(&words);
    Seen {
        text,
        words,
        result,
        took,
    }
}

#[track_caller]
fn tells_no_secret(words: &str) {
    for secret in [KEY, PASSWORD, PASSWORD_IN_URL, CREDENTIALS, "SENTINEL"] {
        assert!(!words.contains(secret), "{secret} is shown: {words}");
    }
}

/// The chat fails on its way: nothing comes of it, and nothing gets to the service.
#[track_caller]
fn fails(service: &Service, client: &Client, kind: ErrorKind) -> Error {
    let (before, requests) = (service.connections(), service.requests().len());
    let seen = chat(client);
    let error = seen.result.expect_err("a failure");
    assert_eq!(error.kind(), kind, "{error}");
    assert_eq!(seen.text, "");
    assert_eq!(error.reply().unwrap().text, "");
    assert!(seen.took < PATIENCE + LATE, "{:?}: {error}", seen.took);
    assert_eq!(service.connections(), before, "never direct: {error}");
    assert_eq!(service.requests().len(), requests);
    error
}

/// The same, where it is the proxy's fault.
#[track_caller]
fn proxy_fails(service: &Service, proxy: &str, client: &Client) -> Error {
    let error = fails(service, client, ErrorKind::Network);
    assert_eq!(error.code(), Some("proxy"), "{error}");
    let text = error.to_string();
    assert!(text.contains(&format!("the proxy {proxy} ")), "{text}");
    assert!(error.is_retryable(), "{text}");
    error
}

#[track_caller]
fn works(client: &Client) -> Reply {
    let seen = chat(client);
    let reply = seen.result.expect("a reply");
    assert_eq!(reply.text, "You said: Hi there", "{}", seen.words);
    assert_eq!(reply.text, seen.text, "it was handed out, once");
    reply
}

/// A service without any mistake of the client's, or a proxy's request that got there.
#[track_caller]
fn served(service: &Service) {
    assert_eq!(service.refusals(), [""; 0]);
    for request in service.requests() {
        let odd = |(name, _): &&(String, String)| name.starts_with("proxy-");
        assert_eq!(request.headers.iter().find(odd), None);
    }
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

// HTTP proxies.

#[test]
fn chats_go_through_an_http_proxy_which_hears_none_of_them() {
    for tls in [false, true] {
        for scheme in ["http", "https"] {
            for protocol in PROTOCOLS {
                let service = service(tls);
                let proxy = http_proxy(&service);
                let proxy = match scheme {
                    "https" => proxy.tls(TLS.clone()).start(),
                    _ => proxy.start(),
                };
                let client = builder(&service.url(), &url(scheme, &proxy), protocol);
                let client = client.build().unwrap();
                for _ in 0..3 {
                    works(&client);
                }
                let asked = proxy.requests();
                assert_eq!(asked.len(), 1, "the tunnel is used again");
                let target = format!("127.0.0.1:{}", service.port());
                assert_eq!((&*asked[0].method, &asked[0].target), ("CONNECT", &target));
                assert_eq!(asked[0].headers, [("host".to_owned(), target)]);
                assert_eq!((proxy.connections(), service.connections()), (1, 1));
                served(&service);
                drop(client);
                assert!(service.wait_until(|s| s.open_connections() == 0));
                assert!(proxy.wait_until(|s| s.open_connections() == 0));
            }
        }
    }
}

#[test]
fn one_byte_at_a_time_is_as_good_as_all_at_once() {
    for tls in [false, true] {
        let service = service(tls);
        let port = service.port();
        let proxy = Service::builder().on(Endpoint::Other, move |_, peer| {
            peer.drip("HTTP/1.0 200 OK\r\nVia: somebody\r\nContent-Length: 0\r\n\r\n");
            peer.tunnel(port, 1);
        });
        let proxy = proxy.start();
        let client = builder(&service.url(), &url("http", &proxy), Protocol::Gptalk);
        works(&client.build().unwrap());
        served(&service);
    }
}

#[test]
fn a_name_is_the_proxys_to_resolve() {
    for protocol in PROTOCOLS {
        let service = Service::builder().tls(TLS.clone());
        let service = service.origin("https://service.invalid").start();
        let proxy = http_proxy(&service).start();
        let client = builder(&service.url(), &url("http", &proxy), protocol);
        works(&client.build().unwrap());
        assert_eq!(proxy.requests()[0].target, "service.invalid:443");
        served(&service);
    }
}

#[test]
fn a_proxy_has_its_password_and_nobody_else_has() {
    for tls in [false, true] {
        let service = service(tls);
        let proxy = guarded_proxy(&service);
        for protocol in PROTOCOLS {
            let with = url_with_password("http", &proxy);
            works(&builder(&service.url(), &with, protocol).build().unwrap());
        }
        assert_eq!(proxy.count(Endpoint::Other), 2);
        served(&service);
    }
}

#[test]
fn a_proxy_that_wants_a_password_is_told_and_none_is_shown() {
    let service = service(false);
    let proxy = guarded_proxy(&service);
    let address = format!("127.0.0.1:{}", proxy.port());
    for protocol in PROTOCOLS {
        for wrong in [
            url("http", &proxy),
            url_with_password("http", &proxy).replace("alice", "SENTINEL"),
            url_with_password("http", &proxy).replace("rd@", "@"),
            format!("http://SENTINEL@{address}"),
            format!("http://:SENTINEL@{address}"),
        ] {
            let mut client = builder(&service.url(), &wrong, protocol).build().unwrap();
            let error = proxy_fails(&service, &address, &client);
            assert!(error.to_string().contains("407"), "{error}");
            assert!(error.to_string().contains("password"), "{error}");
            let right = url_with_password("http", &proxy);
            client.set("proxy", Some(&right)).unwrap();
            works(&client);
        }
    }
}

/// What comes of a proxy that goes wrong on its first connection; a chat that follows goes well.
#[track_caller]
fn goes_wrong(
    scheme: &str,
    protocol: Protocol,
    handler: impl Fn(&mut Peer) + Send + Sync + 'static,
) -> Error {
    let service = service(false);
    let port = service.port();
    let fault = Fault::default();
    fault.turn(true);
    let is_on = fault.clone();
    let proxy = Service::builder().on_connect(move |peer| match is_on.is_on() {
        true => handler(peer),
        false => relay(peer, port),
    });
    let proxy = proxy.start();
    let with = url_with_password(scheme, &proxy);
    let client = builder(&service.url(), &with, protocol).build().unwrap();
    let address = format!("127.0.0.1:{}", proxy.port());
    let error = proxy_fails(&service, &address, &client);
    assert!(
        proxy.wait_until(|s| s.open_connections() == 0),
        "the connection is closed: {error}"
    );
    fault.turn(false);
    works(&client);
    served(&service);
    let options = [
        (
            "protocol",
            if protocol == Protocol::Openai {
                "openai"
            } else {
                "gptalk"
            },
        ),
        ("base_url", &*service.url()),
        ("proxy", &*with),
        ("retries", "0"),
    ];
    let seen = hold(&options, Duration::ZERO, |on| fault.turn(on));
    assert_eq!(seen.code.as_deref(), Some("proxy"), "{seen:?}");
    tells_no_secret(&seen.error.expect("an error"));
    error
}

/// A proxy of both kinds, whichever is spoken to it.
fn relay(peer: &mut Peer, port: u16) {
    match peer.receive(4)[..] {
        [5, 2, 0, 2] => {
            peer.send([5, 2]);
            peer.receive(2 + "alice".len() + 1 + PASSWORD.len());
            peer.send([1, 0]);
            answer_socks(peer, port);
        }
        _ => {
            let mut last = Vec::new();
            while !last.ends_with(b"\r\n\r\n") {
                match peer.receive(1)[..] {
                    [byte] => last.push(byte),
                    _ => return,
                }
            }
            peer.send(STANDS);
            peer.tunnel(port, usize::MAX);
        }
    }
}

/// The rest of a SOCKS5 proxy's part, as it should be.
fn answer_socks(peer: &mut Peer, port: u16) {
    asked_socks(peer);
    peer.send([5, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    peer.tunnel(port, usize::MAX);
}

/// What a SOCKS5 proxy is asked for: the type of the address, the address, and the port.
fn asked_socks(peer: &mut Peer) -> (u8, Vec<u8>, u16) {
    let head = peer.receive(4);
    let [5, 1, 0, kind] = head[..] else {
        return (0, head, 0);
    };
    let length = match kind {
        1 => 4,
        4 => 16,
        _ => peer.receive(1).first().copied().unwrap_or(0).into(),
    };
    let address = peer.receive(length);
    let port = peer.receive(2);
    let port = port.try_into().map_or(0, u16::from_be_bytes);
    (kind, address, port)
}

#[test]
fn what_an_http_proxy_does_in_place_of_a_tunnel_is_told() {
    for (answer, words) in [
        ("HTTP/1.1 403 Forbidden\r\n\r\nno", "403"),
        ("HTTP/1.1 502 Bad Gateway\r\nx: y\r\n\r\n", "502"),
        ("HTTP/1.0 503 SENTINEL\r\n\r\n", "503"),
        ("HTTP/1.1 302 Found\r\nlocation: http://h\r\n\r\n", "302"),
        ("HTTP/1.1 407 alice:SENTINEL\r\n\r\n", "407"),
        ("HTTP/1.1 \r\n\r\n", "HTTP"),
        ("SENTINEL\r\n\r\n", "does not speak HTTP"),
        ("HTTP/1.1 200 OK\r\n\r\nand more", "more than its answer"),
        ("HTTP/1.1 200 OK\r\nx:", "closed the connection"),
        ("", "closed the connection"),
    ] {
        for protocol in PROTOCOLS {
            let error = goes_wrong("http", protocol, move |peer| {
                peer.receive(1);
                peer.send(answer);
                peer.close();
            });
            assert!(error.to_string().contains(words), "{answer:?}: {error}");
        }
    }
}

#[test]
fn a_proxy_that_resets_the_connection_is_told_in_words() {
    for scheme in ["http", "socks5"] {
        let error = goes_wrong(scheme, Protocol::Gptalk, |peer| {
            peer.receive(1);
            peer.reset();
        });
        let text = error.to_string();
        assert!(text.contains("broke the connection"), "{text}");
        assert!(!text.contains("os error"), "{text}");
        assert_eq!(text.matches("proxy").count(), 1, "{text}");
    }
}

#[test]
fn a_header_without_end_of_a_proxy_is_not_read_forever() {
    let error = goes_wrong("http", Protocol::Gptalk, |peer| {
        peer.receive(1);
        peer.send("HTTP/1.1 200 OK\r\n");
        while !peer.client_closed(Duration::ZERO) {
            peer.send("x-more: of the same\r\n".repeat(1000));
        }
    });
    assert!(error.to_string().contains("without end"), "{error}");
}

#[test]
fn a_proxy_that_speaks_no_http_is_told_at_once() {
    for answer in [
        "SSH-2.0-OpenSSH_9.2\r\n",
        "220 mail.example ESMTP\r\n",
        "\x05\x00\0\0\0\0",
    ] {
        let error = goes_wrong("http", Protocol::Gptalk, move |peer| {
            peer.receive(1);
            peer.send(answer);
            peer.stall();
        });
        assert!(error.to_string().contains("does not speak HTTP"), "{error}");
    }
}

#[test]
fn a_proxy_that_is_not_there_is_told_and_gone_round_by_nobody() {
    for scheme in ["http", "https", "socks5", "socks5h"] {
        for protocol in PROTOCOLS {
            let service = service(false);
            let port = free_port();
            let proxy = format!("{scheme}://alice:{PASSWORD_IN_URL}@127.0.0.1:{port}");
            let client = builder(&service.url(), &proxy, protocol).build().unwrap();
            let error = proxy_fails(&service, &format!("127.0.0.1:{port}"), &client);
            assert!(error.to_string().contains("refused"), "{error}");
            let service_port = service.port().to_string();
            assert!(error.to_string().contains(&service_port), "{error}");
        }
    }
    let service = service(false);
    let proxy = "http://no-such-proxy.invalid:3128";
    let client = builder(&service.url(), proxy, Protocol::Gptalk).build();
    let error = fails(&service, &client.unwrap(), ErrorKind::Network);
    assert!(
        error.to_string().contains("no-such-proxy.invalid"),
        "{error}"
    );
}

#[test]
fn a_proxy_that_fails_is_tried_again_as_often_as_is_asked_for() {
    let service = service(false);
    let port = service.port();
    let proxy = Service::builder().on_connect(move |peer| match peer.nth() {
        0 | 1 => peer.close(),
        _ => relay(peer, port),
    });
    let proxy = proxy.start();
    let with = url_with_password("http", &proxy);
    let client = builder(&service.url(), &with, Protocol::Gptalk);
    let client = client.retries(2).build().unwrap();
    assert_eq!(works(&client).attempts, 3);
    assert_eq!(service.count(Endpoint::Login), 1);
}

#[test]
fn the_certificate_of_a_proxy_is_looked_at_too() {
    let service = service(false);
    for (identity, words) in [
        (
            Authority::new("a stranger").issue(&["127.0.0.1"]),
            "not trusted",
        ),
        (ROOT.issue(&["elsewhere.test"]), "another host"),
    ] {
        let proxy = http_proxy(&service).tls(identity.config()).start();
        let with = url_with_password("https", &proxy);
        let client = builder(&service.url(), &with, Protocol::Gptalk);
        let address = format!("127.0.0.1:{}", proxy.port());
        let error = proxy_fails(&service, &address, &client.build().unwrap());
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(proxy.handshakes(), 0, "nothing was sent");
    }
    let error = goes_wrong_plainly(&service);
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
}

/// A proxy that is asked for TLS, and speaks none.
fn goes_wrong_plainly(service: &Service) -> Error {
    let proxy = Service::builder().on_connect(|peer| {
        peer.receive(1);
        peer.send("HTTP/1.1 400 Bad Request\r\n\r\n");
        peer.stall();
    });
    let proxy = proxy.start();
    let with = url_with_password("https", &proxy);
    let client = builder(&service.url(), &with, Protocol::Gptalk);
    let address = format!("127.0.0.1:{}", proxy.port());
    proxy_fails(service, &address, &client.build().unwrap())
}

#[test]
fn the_certificate_of_the_service_is_looked_at_behind_a_proxy() {
    let identity = ROOT.issue(&["elsewhere.test"]);
    let service = Service::builder().tls(identity.config()).start();
    let proxy = http_proxy(&service).start();
    for protocol in PROTOCOLS {
        let with = url("http", &proxy);
        let client = builder(&service.url(), &with, protocol).build().unwrap();
        let error = chat(&client).result.expect_err("a failure");
        assert_eq!(error.kind(), ErrorKind::Tls, "{error}");
        assert!(error.to_string().contains("another host"), "{error}");
        assert_eq!(service.handshakes(), 0, "nothing was sent");
        assert!(proxy.wait_until(|s| s.open_connections() == 0));
    }
}

// SOCKS5 proxies.

/// A SOCKS5 proxy without a password, and what it is to be asked for.
fn socks_proxy(service: &Service, wanted: (u8, Vec<u8>, u16)) -> Service {
    let port = service.port();
    let proxy = Service::builder().on_connect(move |peer| {
        if peer.receive(3) == [5, 1, 0] {
            peer.send([5, 0]);
            if asked_socks(peer) == wanted {
                // The bound address may be a name.
                peer.send([5, 0, 0, 3, 4, b'h', b'o', b's', b't', 0, 80]);
                return peer.tunnel(port, usize::MAX);
            }
        }
        peer.close();
    });
    proxy.start()
}

#[test]
fn chats_go_through_a_socks_proxy() {
    for tls in [false, true] {
        for protocol in PROTOCOLS {
            for scheme in ["socks5", "socks5h"] {
                let service = service(tls);
                let wanted = (1, vec![127, 0, 0, 1], service.port());
                let proxy = socks_proxy(&service, wanted);
                let client = builder(&service.url(), &url(scheme, &proxy), protocol);
                let client = client.build().unwrap();
                works(&client);
                works(&client);
                assert_eq!((proxy.connections(), service.connections()), (1, 1));
                served(&service);
            }
        }
    }
}

#[test]
fn a_name_is_resolved_by_the_socks_proxy_or_here() {
    let service = Service::builder().tls(TLS.clone());
    let service = service.origin("https://service.invalid:8443").start();
    let wanted = (3, b"service.invalid".to_vec(), 8443);
    let proxy = socks_proxy(&service, wanted);
    for protocol in PROTOCOLS {
        let client = builder(&service.url(), &url("socks5h", &proxy), protocol);
        works(&client.build().unwrap());
        let client = builder(&service.url(), &url("socks5", &proxy), protocol);
        let error = fails(&service, &client.build().unwrap(), ErrorKind::Network);
        assert_eq!(error.code(), Some("dns"), "{error}");
    }
    assert_eq!(proxy.connections(), 2);
    served(&service);
}

#[test]
fn an_ipv6_address_is_given_to_a_proxy_as_one() {
    let service = Service::builder()
        .origin("http://[2001:db8::7]:8080")
        .start();
    let address = "2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap();
    let socks = socks_proxy(&service, (4, address.octets().to_vec(), 8080));
    let http = http_proxy(&service).start();
    for proxy in [
        url("socks5", &socks),
        url("socks5h", &socks),
        url("http", &http),
    ] {
        let client = builder(&service.url(), &proxy, Protocol::Gptalk);
        works(&client.build().unwrap());
    }
    assert_eq!(http.requests()[0].target, "[2001:db8::7]:8080");
    served(&service);
}

#[test]
fn a_socks_proxy_has_its_password_where_it_asks_for_it() {
    let wanted = [&[1, 5][..], b"alice", &[20], PASSWORD.as_bytes()].concat();
    assert_eq!(usize::from(wanted[7]), PASSWORD.len());
    for asks in [false, true] {
        let service = service(false);
        let (port, wanted) = (service.port(), wanted.clone());
        let proxy = Service::builder().on_connect(move |peer| {
            if peer.receive(4) != [5, 2, 0, 2] {
                return peer.close();
            }
            peer.send([5, if asks { 2 } else { 0 }]);
            if asks {
                let is_right = peer.receive(wanted.len()) == wanted;
                peer.send([1, u8::from(!is_right)]);
            }
            answer_socks(peer, port);
        });
        let proxy = proxy.start();
        let with = url_with_password("socks5", &proxy);
        works(
            &builder(&service.url(), &with, Protocol::Gptalk)
                .build()
                .unwrap(),
        );
        served(&service);
    }
}

#[test]
fn what_a_socks_proxy_does_in_place_of_a_tunnel_is_told() {
    fn refuses(code: u8) -> Vec<u8> {
        [&[5, 0, 5, code][..], &[0, 1, 0, 0, 0, 0, 0, 0]].concat()
    }
    for (answer, words) in [
        (vec![5, 0xff], "user name and password"),
        (vec![5, 2, 1, 1], "refused the user name and password"),
        (refuses(1), "general failure"),
        (refuses(2), "not allowed"),
        (refuses(3), "network unreachable"),
        (refuses(4), "host unreachable"),
        (refuses(5), "connection refused"),
        (refuses(6), "timed out"),
        (refuses(7), "not supported"),
        (refuses(99), "could not connect"),
        (vec![5, 0, 4, 0], "does not speak SOCKS5"),
        (vec![5, 0, 5, 0, 0, 9, 9], "address type"),
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            "does not speak SOCKS5",
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), "does not speak SOCKS5"),
        (vec![4, 0], "does not speak SOCKS5"),
    ] {
        for scheme in ["socks5", "socks5h"] {
            let given = answer.clone();
            let error = goes_wrong(scheme, Protocol::Gptalk, move |peer| {
                peer.receive(1);
                peer.send(&given);
                peer.stall();
            });
            assert!(error.to_string().contains(words), "{answer:?}: {error}");
        }
    }
}

#[test]
fn a_socks_proxy_that_ends_early_is_told() {
    let whole = [5, 0, 5, 0, 0, 3, 4, b'h', b'o', b's', b't', 0];
    for length in 0..=whole.len() {
        for end in [Peer::close, Peer::reset] {
            let error = goes_wrong("socks5h", Protocol::Openai, move |peer| {
                peer.receive(4);
                peer.send(&whole[..length]);
                end(peer);
            });
            assert!(error.to_string().contains("onnection"), "{error}");
        }
    }
}

#[test]
fn the_answers_of_a_socks_proxy_may_come_in_drops() {
    let service = service(false);
    let port = service.port();
    let proxy = Service::builder().on_connect(move |peer| {
        peer.receive(4);
        peer.send_split([5, 2], 1);
        peer.receive(2 + "alice".len() + 1 + PASSWORD.len());
        peer.send_split([1, 0], 1);
        asked_socks(peer);
        for byte in [5, 0, 0, 4].into_iter().chain([0; 18]) {
            peer.send_split([byte], 1);
        }
        peer.tunnel(port, 1);
    });
    let proxy = proxy.start();
    let with = url_with_password("socks5h", &proxy);
    works(
        &builder(&service.url(), &with, Protocol::Gptalk)
            .build()
            .unwrap(),
    );
    served(&service);
}

// Proxies that hang.

type Handler = fn(&mut Peer);

/// How a proxy hangs, with the scheme it is spoken to in.
const HANGS: [(&str, Handler); 8] = [
    ("http", Peer::stall),
    ("https", Peer::stall),
    ("socks5", Peer::stall),
    ("http", |peer| {
        peer.send("HTTP/1.1 200 OK\r\n");
        peer.stall();
    }),
    ("http", |peer| {
        peer.send("HTTP/1.1 200 OK\r\nx: ");
        while !peer.client_closed(Duration::from_millis(5)) {
            peer.send("x");
        }
    }),
    ("socks5", |peer| {
        peer.send([5]);
        peer.stall();
    }),
    ("socks5h", |peer| {
        peer.send([5, 2]);
        peer.stall();
    }),
    ("socks5h", |peer| {
        peer.send([5, 0, 5, 0, 0, 3, 200]);
        while !peer.client_closed(Duration::from_millis(20)) {
            peer.send([0; 1]);
        }
    }),
];

#[test]
fn a_proxy_that_hangs_is_left_at_the_time_limit() {
    let limit = Duration::from_millis(400);
    let service = service(false);
    thread::scope(|scope| {
        for (scheme, hang) in HANGS {
            let service = &service;
            scope.spawn(move || {
                let proxy = Service::builder().on_connect(hang).start();
                let with = url_with_password(scheme, &proxy);
                let client = builder(&service.url(), &with, Protocol::Gptalk).retries(2);
                let client = client.connect_timeout(Some(limit)).build().unwrap();
                let started = Instant::now();
                let error = fails(service, &client, ErrorKind::Timeout);
                took(limit, started);
                assert_eq!(error.code(), Some("connect_timeout"), "{error}");
                let address = format!("127.0.0.1:{}", proxy.port());
                assert!(error.to_string().contains(&address), "{error}");
                assert!(proxy.wait_until(|s| s.open_connections() == 0));

                let client = builder(&service.url(), &with, Protocol::Openai);
                let client = client.timeout(Some(limit)).build().unwrap();
                let started = Instant::now();
                let error = fails(service, &client, ErrorKind::Timeout);
                took(limit, started);
                assert_eq!(error.code(), Some("timeout"), "{error}");
                assert!(proxy.wait_until(|s| s.open_connections() == 0));
            });
        }
    });
    assert_eq!(service.connections(), 0);
}

#[test]
fn ticks_and_cancel_while_a_proxy_hangs() {
    thread::scope(|scope| {
        for (scheme, hang) in HANGS {
            scope.spawn(move || {
                let proxy = Service::builder().on_connect(hang).start();
                let with = url_with_password(scheme, &proxy);
                ticks_and_is_cancelled(builder("https://192.0.2.1", &with, Protocol::Openai), "Hi");
                assert!(
                    proxy.wait_until(|s| s.open_connections() == 0),
                    "the connection is closed"
                );
            });
        }
    });
}

// Which proxy it is.

/// The test `child` in a process of its own, with this environment and no other; what it printed.
/// It says nothing else.
#[track_caller]
fn run_child(env: &[(&str, &str)]) -> String {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([
        "--exact",
        "child",
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    command.env_clear().env("PROXIES_TEST_ROLE", "chat");
    let output = command.envs(env.iter().copied()).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert_eq!(stderr, "");
    tells_no_secret(&stdout);
    let said = stdout.lines().find_map(|line| line.strip_prefix("=> "));
    said.expect("an outcome").to_owned()
}

#[test]
#[ignore = "run by the others, in processes of their own"]
fn child() {
    if env::var_os("PROXIES_TEST_ROLE").is_none() {
        return;
    }
    match Client::new().complete("Hi") {
        Ok(reply) => println!("\n=> {}", reply.text),
        Err(error) => println!(
            "\n=> {}: {error}",
            error.code().unwrap_or(error.kind().name())
        ),
    }
}

const HI: &str = "You said: Hi";

/// A service of a name, or at an address, that none but a proxy finds, and three proxies that do.
struct Hidden {
    service: Service,
    proxies: [Service; 3],
    /// The names that the cases give to their URLs.
    urls: [(&'static str, String); 4],
}

impl Hidden {
    fn new(origin: &str) -> Hidden {
        let service = Service::builder().origin(origin);
        let service = match origin.starts_with("https:") {
            true => service.tls(TLS.clone()).start(),
            false => service.start(),
        };
        let proxies = [(); 3].map(|()| http_proxy(&service).start());
        let [a, b, c] = [0, 1, 2].map(|n| url("http", &proxies[n]));
        Hidden {
            service,
            proxies,
            urls: [("A", a), ("B", b), ("C", c), ("none", "none".to_owned())],
        }
    }

    /// Which proxy serves a chat with these variables, where `A`, `B` and `C` stand for theirs;
    /// nothing: none does. What the chat says.
    #[track_caller]
    fn serves(&self, env: &str) -> (String, String) {
        let counts = || self.proxies.each_ref().map(Service::connections);
        let before = counts();
        let url = self.service.url();
        let mut vars = vec![
            ("GPTALK_BASE_URL", &*url),
            ("GPTALK_CA_FILE", &**ROOT_FILE),
            ("GPTALK_CONNECT_TIMEOUT_MS", "300"),
            ("GPTALK_RETRIES", "0"),
        ];
        for assignment in env.split_terminator(';') {
            let (name, value) = assignment.trim_start().split_once('=').unwrap();
            let known = self.urls.iter().find(|(name, _)| *name == value);
            vars.push((name, known.map_or(value, |(_, url)| &**url)));
        }
        let said = run_child(&vars);
        let new = counts().into_iter().zip(before).zip(&self.urls);
        let served = new.filter(|((now, before), _)| now > before);
        (served.map(|(_, (name, _))| *name).collect(), said)
    }

    #[track_caller]
    fn is_served(&self, env: &str, proxy: &str) {
        let (served, said) = self.serves(env);
        assert_eq!(served, proxy, "{env:?}: {said}");
        assert_eq!(said == HI, !proxy.is_empty(), "{env:?}: {said}");
    }
}

#[test]
fn the_environment_names_the_proxy_as_curl_reads_it() {
    let http = Hidden::new("http://service.invalid:8080");
    for (env, proxy) in [
        ("", ""),
        ("http_proxy=A", "A"),
        // A CGI program's is a header of the request that it serves.
        ("HTTP_PROXY=A", ""),
        ("HTTP_PROXY=A; ALL_PROXY=B", "B"),
        ("all_proxy=A", "A"),
        ("ALL_PROXY=A", "A"),
        ("all_proxy=A; ALL_PROXY=B", "A"),
        ("http_proxy=A; all_proxy=B; ALL_PROXY=C", "A"),
        ("http_proxy=; all_proxy=; ALL_PROXY=C", "C"),
        ("https_proxy=A; HTTPS_PROXY=B", ""),
        ("https_proxy=A; all_proxy=B", "B"),
        // What is ours goes first.
        ("GPTALK_PROXY=A; http_proxy=B; all_proxy=C", "A"),
        ("GPTALK_PROXY=; http_proxy=B", "B"),
        ("GPTALK_PROXY=none; http_proxy=A; all_proxy=B", ""),
    ] {
        http.is_served(env, proxy);
    }
    let https = Hidden::new("https://service.invalid");
    for (env, proxy) in [
        ("", ""),
        ("https_proxy=A", "A"),
        ("HTTPS_PROXY=A", "A"),
        ("https_proxy=A; HTTPS_PROXY=B; all_proxy=C", "A"),
        ("https_proxy=; HTTPS_PROXY=B; all_proxy=C", "B"),
        ("all_proxy=A; ALL_PROXY=B", "A"),
        ("ALL_PROXY=B", "B"),
        ("http_proxy=A; HTTP_PROXY=B", ""),
        ("GPTALK_PROXY=A; https_proxy=B", "A"),
        ("GPTALK_PROXY=none; https_proxy=A", ""),
    ] {
        https.is_served(env, proxy);
    }
    for hidden in [http, https] {
        served(&hidden.service);
    }
}

#[test]
fn the_environments_proxy_is_for_nobody_on_loopback() {
    let service = Service::start();
    let proxy = http_proxy(&service).start();
    let proxy_url = url("http", &proxy);
    for host in ["127.0.0.1", "localhost"] {
        let url = format!("http://{host}:{}", service.port());
        let base = ("GPTALK_BASE_URL", &*url);
        for name in ["http_proxy", "all_proxy", "ALL_PROXY"] {
            assert_eq!(run_child(&[base, (name, &proxy_url)]), HI);
        }
        assert_eq!(proxy.connections(), 0);
    }
    let url = service.url();
    let base = ("GPTALK_BASE_URL", &*url);
    let ours = ("GPTALK_PROXY", &*proxy_url);
    assert_eq!(run_child(&[base, ours, ("no_proxy", "*")]), HI);
    assert_eq!(proxy.connections(), 1, "one that is set is for all");
}

/// Whether a list of `no_proxy` names the host of a URL.
#[track_caller]
fn is_exempt(hidden: &Hidden, list: &str, expected: bool) {
    let proxy = if expected { "" } else { "A" };
    hidden.is_served(&format!("http_proxy=A; no_proxy={list}"), proxy);
}

#[test]
fn no_proxy_is_read_as_curl_reads_it() {
    let hidden = Hidden::new("http://chat.service.invalid:8080");
    for (list, expected) in [
        ("", false),
        ("chat.service.invalid", true),
        ("service.invalid", true),
        ("invalid", true),
        (".service.invalid", true),
        (".chat.service.invalid", true),
        ("CHAT.Service.Invalid", true),
        ("*", true),
        (" other.invalid , chat.service.invalid ", true),
        ("other.invalid,,chat.service.invalid", true),
        ("other.invalid\tchat.service.invalid", true),
        ("other.invalid chat.service.invalid", true),
        ("t.service.invalid", false),
        ("hat.service.invalid", false),
        ("vice.invalid", false),
        ("my.chat.service.invalid", false),
        ("chat", false),
        ("*.invalid", false),
        ("chat.service.invalid:8081", false),
        // curl reads no ports; others do.
        ("chat.service.invalid:8080", true),
        ("service.invalid:8080", true),
        ("[", false),
        ("http://chat.service.invalid", false),
    ] {
        is_exempt(&hidden, list, expected);
    }
    // In both cases of letters, the lower one first; for every proxy, but for one that is set.
    for (env, proxy) in [
        ("http_proxy=A; NO_PROXY=service.invalid", ""),
        ("http_proxy=A; no_proxy=; NO_PROXY=service.invalid", ""),
        (
            "http_proxy=A; no_proxy=other; NO_PROXY=service.invalid",
            "A",
        ),
        ("ALL_PROXY=A; no_proxy=service.invalid", ""),
        ("GPTALK_PROXY=A; no_proxy=service.invalid,*", "A"),
    ] {
        hidden.is_served(env, proxy);
    }
}

#[test]
fn no_proxy_may_name_addresses() {
    // Of networks that are for documents alone.
    let hidden = Hidden::new("http://198.51.100.7:8080");
    for (list, expected) in [
        ("198.51.100.7", true),
        ("198.51.100.7:8080", true),
        ("198.51.100.7:80", false),
        ("198.51.100.70", false),
        ("98.51.100.7", false),
        ("198.51.100.", false),
    ] {
        is_exempt(&hidden, list, expected);
    }
    let hidden = Hidden::new("http://[2001:db8::7]:8080");
    for (list, expected) in [
        ("2001:db8::7", true),
        ("[2001:db8::7]", true),
        ("2001:db8::", false),
        ("db8::7", false),
    ] {
        is_exempt(&hidden, list, expected);
    }
}

#[test]
fn no_proxy_is_read_as_curl_reads_it_in_full() {
    let hidden = Hidden::new("http://198.51.100.7:8080");
    for (list, expected) in [
        ("198.51.100.7/33", false),
        ("7", false),
        ("100.7", false),
        (".51.100.7", false),
        ("198.51.100.0/24", true),
        ("198.51.101.0/24", false),
        ("198.0.0.0/8, 10.0.0.0/8", true),
        ("198.51.100.7/32", true),
        ("198.51.100.6/32", false),
    ] {
        is_exempt(&hidden, list, expected);
    }
    let hidden = Hidden::new("http://[2001:db8::7]:8080");
    for (list, expected) in [
        ("2001:db8::/32", true),
        ("2001:db9::/32", false),
        ("2001:0db8:0:0::7", true),
    ] {
        is_exempt(&hidden, list, expected);
    }
    let hidden = Hidden::new("http://service.invalid:8080");
    for (list, expected) in [
        ("service.invalid.", true),
        // Alone it is for all, and in a list nobody's name.
        ("other.invalid,*", false),
    ] {
        is_exempt(&hidden, list, expected);
    }
}

#[test]
fn a_proxy_that_cannot_be_used_is_a_misuse_and_never_gone_round() {
    let service = Service::start();
    let url = service.url();
    let hidden = Hidden::new("http://service.invalid:8080");
    let mut client = builder(&url, "none", Protocol::Gptalk).build().unwrap();
    for bad in [
        "http://",
        "http://alice:SENTINEL@",
        "http://alice:SENTINEL@:3128",
        "http://alice:SENTINEL@h:0",
        "http://alice:SENTINEL@h:99999",
        "http://alice:SENTINEL@h:x",
        "http://alice:SENTINEL@h:3128:1",
        "http://alice:SENTINEL@h h",
        "http://alice:SENTINEL@[::1",
        "http://alice:SENTINEL@[::x]:3128",
        "http://alice:SENTINEL%0d%0a@h",
        "http://alice:SENTINEL%ff@h",
        "ftp://alice:SENTINEL@h",
        "socks4://alice:SENTINEL@h",
        "socks4a://h",
        "socks://h",
        "://alice:SENTINEL@h",
        "alice:SENTINEL",
        " ",
        "direct://",
    ] {
        let error = client.set("proxy", Some(bad)).expect_err(bad);
        assert_eq!(error.kind(), ErrorKind::Misuse, "{bad}: {error}");
        assert!(error.to_string().starts_with("proxy: "), "{bad}: {error}");
        assert!(
            error.to_string().contains("socks5://"),
            "it says what to do: {error}"
        );
        tells_no_secret(&format!("{error} {error:?}"));
        let built = Client::builder().proxy(bad);
        tells_no_secret(&format!("{built:?}"));
        let error = built.base_url(&url).build().expect_err(bad);
        assert_eq!(error.kind(), ErrorKind::Misuse, "{bad}: {error}");
        for name in ["GPTALK_PROXY", "http_proxy", "all_proxy", "ALL_PROXY"] {
            let (served, said) = hidden.serves(&format!("{name}={bad}"));
            assert_eq!(served, "");
            assert!(said.starts_with("misuse: "), "{name}={bad}: {said}");
            assert!(said.contains(name), "{name}={bad}: {said}");
        }
    }
    assert_eq!(service.connections(), 0);
    works(&client); // with what was set before
}

// Proxies that others have written.

#[derive(Clone, Copy, Debug)]
enum Kind {
    Tinyproxy,
    Microsocks,
}

/// A password that these two take in what configures them.
const PLAIN: &str = "SENTINEL-0123456789";

impl Kind {
    fn all() -> impl Iterator<Item = Kind> {
        let all = [
            (Kind::Tinyproxy, "tinyproxy", "-v"),
            (Kind::Microsocks, "microsocks", "-h"),
        ];
        all.into_iter().filter_map(|(kind, name, probe)| {
            // microsocks has no option that succeeds.
            let mut command = Command::new(name);
            let quiet = command
                .arg(probe)
                .stdin(Stdio::null())
                .stdout(Stdio::null());
            let is_here = quiet.stderr(Stdio::null()).status().is_ok();
            if !is_here {
                left_out(&format!("chats through {name}, which is not installed"));
            }
            is_here.then_some(kind)
        })
    }

    fn schemes(self) -> &'static [&'static str] {
        match self {
            Kind::Tinyproxy => &["http"],
            Kind::Microsocks => &["socks5", "socks5h"],
        }
    }

    /// The program, and its port; of tinyproxy, with more lines of its configuration.
    fn start(self, guarded: bool, more: &str) -> (Program, u16) {
        // A port may be taken before the program has it.
        for _ in 0..3 {
            let port = free_port();
            let number = port.to_string();
            let started = match self {
                Kind::Tinyproxy => {
                    let guard = match guarded {
                        true => format!("BasicAuth alice {PLAIN}\n"),
                        false => String::new(),
                    };
                    let text = format!(
                        "Port {port}\nListen 127.0.0.1\nTimeout 60\nLogLevel Critical\n{guard}{more}\n"
                    );
                    let configuration = file(&format!("tinyproxy-{port}"), &text);
                    Program::start(&["tinyproxy", "-d", "-c", &configuration], port)
                }
                Kind::Microsocks => {
                    let words = ["microsocks", "-i", "127.0.0.1", "-p", &number];
                    let guard = ["-u", "alice", "-P", PLAIN];
                    let guard: &[_] = if guarded { &guard } else { &[] };
                    Program::start(&[&words[..], guard].concat(), port)
                }
            };
            if let Some(program) = started {
                return (program, port);
            }
        }
        panic!("{self:?} does not start");
    }
}

#[test]
fn chats_go_through_real_proxies() {
    for kind in Kind::all() {
        for guarded in [false, true] {
            let (_program, port) = kind.start(guarded, "");
            for tls in [false, true] {
                let service = service(tls);
                for scheme in kind.schemes() {
                    let user = if guarded {
                        format!("alice:{PLAIN}@")
                    } else {
                        String::new()
                    };
                    let proxy = format!("{scheme}://{user}127.0.0.1:{port}");
                    for protocol in PROTOCOLS {
                        let client = builder(&service.url(), &proxy, protocol);
                        let client = client.build().unwrap();
                        let before = service.connections();
                        // The end of a reply may be late, and its connection is not waited for.
                        (0..5).for_each(|_| drop(works(&client)));
                        let opened = service.connections() - before;
                        assert!(opened < 5, "a connection serves several chats");
                    }
                }
                served(&service);
            }
        }
    }
}

#[test]
fn real_proxies_that_want_a_password_are_told() {
    for kind in Kind::all() {
        let (_program, port) = kind.start(true, "");
        let service = service(true);
        for scheme in kind.schemes() {
            for user in ["", "alice:SENTINEL@", "SENTINEL:SENTINEL@"] {
                for protocol in PROTOCOLS {
                    let proxy = format!("{scheme}://{user}127.0.0.1:{port}");
                    let client = builder(&service.url(), &proxy, protocol).build().unwrap();
                    let address = format!("127.0.0.1:{port}");
                    let error = proxy_fails(&service, &address, &client);
                    let text = error.to_string();
                    // Some versions of tinyproxy answer as a server does: 401.
                    let told = text.contains("password") || text.contains("401");
                    assert!(told, "{user:?}: {text}");
                }
            }
        }
    }
}

#[test]
fn what_real_proxies_do_in_place_of_a_tunnel_is_told() {
    for kind in Kind::all() {
        // A port that tinyproxy is allowed to connect to is no other.
        let (_program, port) = kind.start(false, "ConnectPort 1\n");
        let service = service(false);
        let nowhere = format!("http://127.0.0.1:{}", free_port());
        for scheme in kind.schemes() {
            let proxy = format!("{scheme}://127.0.0.1:{port}");
            let (url, words) = match kind {
                Kind::Tinyproxy => (service.url(), "403"),
                Kind::Microsocks => (nowhere.clone(), "connection refused"),
            };
            let client = builder(&url, &proxy, Protocol::Gptalk).build().unwrap();
            let error = proxy_fails(&service, &format!("127.0.0.1:{port}"), &client);
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}

/// It speaks when it is spoken to, in HTTP, and has to be told that this is SOCKS.
#[test]
fn real_proxies_of_the_other_kind_are_told() {
    for kind in Kind::all() {
        let (_program, port) = kind.start(false, "");
        let service = service(false);
        let scheme = match kind {
            Kind::Tinyproxy => "socks5",
            Kind::Microsocks => "http",
        };
        let proxy = format!("{scheme}://127.0.0.1:{port}");
        let client = builder(&service.url(), &proxy, Protocol::Gptalk);
        let client = client.connect_timeout(Some(Duration::from_millis(400)));
        let error = chat(&client.build().unwrap()).result.unwrap_err();
        let told = error.code() == Some("proxy") || error.code() == Some("connect_timeout");
        assert!(told, "{kind:?}: {error}");
        assert_eq!(service.connections(), 0);
    }
}
