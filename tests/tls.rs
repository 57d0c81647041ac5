//! TLS: which servers are trusted and what is said of the others, handshakes that fail or hang, and
//! connections that end with `close_notify` and without.

mod observer;
mod programs;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, OnceLock, mpsc};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use gptalk::{Client, ClientBuilder, Error, ErrorKind, Event, Protocol, Reply};
use gptalk_service::certificates::rcgen::{
    BasicConstraints, ExtendedKeyUsagePurpose, IsCa, date_time_ymd,
};
use gptalk_service::certificates::{Authority, Identity};
use gptalk_service::{Builder, Endpoint, Peer, Service};
use observer::{Fault, Seen as SeenFromC, hold, hold_until_cured, ticks_and_is_cancelled};
use programs::{Program, free_port, left_out, works as is_here};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// How late a time limit may be noticed, and how slow a machine may be that runs other tests too.
const LATE: Duration = Duration::from_millis(250 + 750);

/// How long a chat waits for what is not to come.
const PATIENCE: Duration = Duration::from_secs(5);

const PROTOCOLS: [Protocol; 2] = [Protocol::Gptalk, Protocol::Openai];

/// The names of a server on loopback.
const LOCAL: &[&str] = &["localhost", "127.0.0.1"];

/// A key that must never be shown.
const KEY: &str = "sk-SENTINEL-0123456789";

const OK: &str = "HTTP/1.1 200 OK\r\n";

/// Whom the clients of these tests trust.
static ROOT: LazyLock<Authority> = LazyLock::new(|| Authority::new("root of these tests"));
static ROOT_FILE: LazyLock<String> = LazyLock::new(|| file("root.pem", ROOT.pem()));

/// A server whose certificate is good.
static GOOD: LazyLock<Arc<ServerConfig>> = LazyLock::new(|| Arc::new(ROOT.issue(LOCAL).config()));

/// A file of this process, and its path.
fn file(name: &str, content: impl AsRef<[u8]>) -> String {
    let name = format!("tls-{}-{name}", process::id());
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, content).expect("a temporary file");
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// A client whose logins no other test shares: a port may come back, an `app_id` does not.
fn builder(url: &str, protocol: Protocol) -> ClientBuilder {
    static CLIENTS: AtomicU32 = AtomicU32::new(1);
    let app_id = CLIENTS.fetch_add(1, Ordering::Relaxed).to_string();
    let client = Client::builder().base_url(url).protocol(protocol);
    let client = match protocol {
        Protocol::Openai => client.api_key(KEY),
        _ => client.app_id(&app_id),
    };
    client
        .ca_file(&ROOT_FILE)
        .retries(0)
        .response_timeout(Some(PATIENCE))
        .idle_timeout(Some(PATIENCE))
        // No test goes on forever, whatever limit is not kept.
        .timeout(Some(4 * PATIENCE))
}

fn client(service: &Service, protocol: Protocol) -> Client {
    builder(&service.url(), protocol).build().unwrap()
}

fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Openai => "openai",
        _ => "gptalk",
    }
}

/// A chat with a service that goes wrong while the fault is on comes to what holds for every one.
#[track_caller]
fn held(service: &Service, protocol: Protocol, limit: Duration, fault: &Fault) -> SeenFromC {
    let options = [
        ("protocol", name(protocol)),
        ("base_url", &*service.url()),
        ("ca_file", &ROOT_FILE),
        ("connect_timeout_ms", &PATIENCE.as_millis().to_string()),
        ("retries", "0"),
    ];
    let limited = [("connect_timeout_ms", &*limit.as_millis().to_string())];
    let limited = if limit.is_zero() { &[][..] } else { &limited };
    hold(&[&options, limited].concat(), limit, |on| fault.turn(on))
}

/// Where the reply comes from.
fn reply_of(protocol: Protocol) -> Endpoint {
    match protocol {
        Protocol::Openai => Endpoint::Chat,
        _ => Endpoint::Stream,
    }
}

/// An event that begins a reply.
fn hello(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Openai => "data: {\"choices\": [{\"delta\": {\"content\": \"Hello\"}}]}\n\n",
        _ => "data: {\"content\": \"Hello\"}\n\n",
    }
}

/// What a chat brought, and all that it could have shown a secret in.
struct Seen {
    text: String,
    words: String,
    result: Result<Reply, Error>,
    took: Duration,
}

fn chat(client: &Client, prompt: &str) -> Seen {
    let started = Instant::now();
    let mut stream = client.stream(prompt).unwrap().with_log();
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
    Seen {
        text,
        words,
        result,
        took,
    }
}

/// No key and no token of what the service was sent stands there.
#[track_caller]
fn tells_no_secret(service: &Service, words: &str) {
    let requests = service.requests();
    let headers = requests.iter().filter_map(|r| r.header("authorization"));
    let tokens = requests
        .iter()
        .filter_map(|r| r.target.split_once("token="));
    let secrets = headers.map(|value| value.trim_start_matches("Bearer "));
    let secrets = secrets.chain(tokens.map(|(_, token)| token)).chain([KEY]);
    for secret in secrets {
        assert!(!words.contains(secret), "{secret} is shown: {words}");
    }
}

/// An error is for people: no name of a type or of a variant, no number of the system's.
#[track_caller]
fn is_in_words(error: &Error) {
    // Names that people know.
    let text = error.to_string().replace("OpenAI", "");
    let text = text.replace("basicConstraints", "");
    let is_name = |pair: &[u8]| match pair[1] {
        b'(' | b'{' => pair[0].is_ascii_alphanumeric(),
        second => pair[0].is_ascii_lowercase() && second.is_ascii_uppercase(),
    };
    assert!(!text.as_bytes().windows(2).any(is_name), "{error}");
    assert!(!text.contains("os error"), "{error}");
}

/// The chat fails: what arrived was handed out once and is kept, no secret is shown, and the
/// connection is closed.
#[track_caller]
fn fails(service: &Service, client: &Client, kind: ErrorKind) -> Error {
    let seen = chat(client, "Hi there");
    let error = seen.result.expect_err("a failure");
    assert_eq!(error.kind(), kind, "{error}");
    assert_eq!(error.reply().unwrap().text, seen.text, "{error}");
    assert!(seen.took < PATIENCE + LATE, "{:?}: {error}", seen.took);
    tells_no_secret(service, &seen.words);
    assert!(
        service.wait_until(|s| s.open_connections() == 0),
        "the connection is closed: {error}"
    );
    error
}

/// The same, with what had arrived.
#[track_caller]
fn fails_after_hello(service: &Service, client: &Client, kind: ErrorKind) -> Error {
    let error = fails(service, client, kind);
    assert_eq!(error.reply().unwrap().text, "Hello", "{error}");
    assert!(!error.is_retryable(), "text was delivered");
    error
}

#[track_caller]
fn works(client: &Client) -> Reply {
    let seen = chat(client, "Hi there");
    let reply = seen.result.expect("a reply");
    assert_eq!(reply.text, "You said: Hi there");
    assert_eq!(reply.text, seen.text, "it was handed out, once");
    reply
}

/// A service without any mistake of the client's.
#[track_caller]
fn served(service: &Service) {
    assert_eq!(service.refusals(), [""; 0]);
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

/// A service with a good certificate whose first reply goes wrong.
fn once(
    protocol: Protocol,
    handler: impl Fn(&mut Peer) + Send + Sync + 'static,
) -> (Service, Client) {
    let service = Service::builder().tls(GOOD.clone());
    let service = service.on(reply_of(protocol), move |request, peer| match peer.nth() {
        0 => handler(peer),
        _ => peer.normal(request),
    });
    let service = service.start();
    let client = client(&service, protocol);
    (service, client)
}

/// A service with something on the way to it: both, and a URL that leads there.
fn behind(
    service: Builder,
    way: impl Fn(&mut Peer, u16) + Send + Sync + 'static,
) -> (Service, Service) {
    let port = Arc::new(OnceLock::new());
    let far = Arc::clone(&port);
    let way = move |peer: &mut Peer| way(peer, *far.get().expect("a service behind this"));
    let way = Service::builder().on_connect(way).start();
    let origin = format!("https://127.0.0.1:{}", way.port());
    let service = service.tls(GOOD.clone()).origin(&origin).start();
    port.set(service.port()).expect("one service");
    (way, service)
}

// Servers that are trusted.

#[test]
fn chats_go_over_tls_and_their_connections_are_used_again() {
    for protocol in PROTOCOLS {
        for host in LOCAL {
            let service = Service::builder().tls(GOOD.clone()).start();
            let url = format!("https://{host}:{}", service.port());
            let client = builder(&url, protocol).build().unwrap();
            for _ in 0..3 {
                assert_eq!(works(&client).attempts, 1);
            }
            assert_eq!((service.connections(), service.handshakes()), (1, 1));
            served(&service);
        }
    }
}

#[test]
fn tls_1_2_and_tls_1_3_are_spoken() {
    for version in [&TLS12, &TLS13] {
        let nobody = WebPkiClientVerifier::no_client_auth();
        let config = ROOT.issue(LOCAL).config_with(&[version], nobody);
        let service = Service::builder().tls(config).start();
        for protocol in PROTOCOLS {
            let client = client(&service, protocol);
            works(&client);
            works(&client);
        }
        assert_eq!(service.connections(), 2, "one for each client");
        served(&service);
    }
}

#[test]
fn a_certificate_may_have_authorities_between_it_and_the_root() {
    let (nearer, address) = (ROOT.intermediate("nearer"), &["127.0.0.1"]);
    let nearest = nearer.intermediate("nearest");
    for identity in [nearer.issue(address), nearest.issue(address)] {
        let service = Service::builder().tls(identity.config()).start();
        works(&client(&service, Protocol::Gptalk));
    }
}

#[test]
fn a_self_signed_certificate_is_good_where_it_is_the_ca_file() {
    let identity = Identity::self_signed(LOCAL, |_| ());
    let service = Service::builder().tls(identity.config()).start();
    let ca_file = file("self-signed.pem", identity.pem());
    for protocol in PROTOCOLS {
        let client = builder(&service.url(), protocol).ca_file(&ca_file);
        works(&client.build().unwrap());
    }
}

#[test]
fn one_client_is_not_served_by_a_connection_that_trusts_others() {
    let service = Service::builder().tls(GOOD.clone()).start();
    let mut client = client(&service, Protocol::Openai);
    works(&client);
    let stranger = file("stranger.pem", Authority::new("a stranger").pem());
    client.set("ca_file", Some(&stranger)).unwrap();
    let seen = chat(&client, "Hi there");
    assert_eq!(seen.result.unwrap_err().kind(), ErrorKind::Tls);
    assert_eq!(service.count(Endpoint::Chat), 1);
    client.set("ca_file", Some(&ROOT_FILE)).unwrap();
    works(&client);
}

#[test]
fn long_texts_go_both_ways() {
    for protocol in PROTOCOLS {
        let service = Service::builder().tls(GOOD.clone()).start();
        let client = client(&service, protocol);
        let prompt = "é💥x".repeat(200 << 10);
        let seen = chat(&client, &prompt);
        assert!(seen.text.strip_prefix("You said: ") == Some(&prompt));
        assert!(seen.result.expect("a reply").text == seen.text);
        works(&client);
        assert_eq!(service.connections(), 1);
    }
}

#[test]
fn one_byte_at_a_time_is_as_good_as_all_at_once() {
    for protocol in PROTOCOLS {
        let drip = |peer: &mut Peer, port| peer.tunnel(port, 1);
        let (_way, service) = behind(Service::builder(), drip);
        let client = client(&service, protocol);
        works(&client);
        works(&client);
        served(&service);
    }
}

#[test]
fn a_record_of_one_byte_is_a_record() {
    for protocol in PROTOCOLS {
        let body = format!("{}data: [DONE]\n\n", hello(protocol));
        let answer = format!("{OK}content-length: {}\r\n\r\n{body}", body.len());
        let (service, client) = once(protocol, move |peer| peer.drip(&answer));
        assert_eq!(chat(&client, "Hi").result.expect("a reply").text, "Hello");
        works(&client);
        assert_eq!(service.connections(), 1);
    }
}

#[test]
fn text_is_handed_out_as_its_record_comes() {
    let heard = Arc::new(AtomicUsize::new(0));
    let hears = Arc::clone(&heard);
    let (_service, client) = once(Protocol::Gptalk, move |peer| {
        peer.sse_head();
        let mut text = String::new();
        for n in 1..=5 {
            text += "x";
            peer.chunk(format!("data: {{\"content\": \"{text}\"}}\n"));
            // The next is sent when this one has been heard.
            let end = Instant::now() + PATIENCE;
            while hears.load(Ordering::SeqCst) < n && Instant::now() < end {
                peer.pause(Duration::from_millis(1));
            }
        }
        peer.chunk("data: [DONE]\n\n");
        peer.last_chunk();
    });
    let started = Instant::now();
    let reply = client.chat("Hi", |piece| {
        assert_eq!(piece, "x");
        heard.fetch_add(1, Ordering::SeqCst);
        std::ops::ControlFlow::Continue(())
    });
    assert_eq!(reply.expect("a reply").text, "xxxxx");
    assert!(started.elapsed() < PATIENCE, "nobody waited for more");
}

// Servers that are not trusted.

/// A certificate that is not good is refused with these words, before anything is sent.
#[track_caller]
fn is_refused(identity: &Identity, ca_file: &str, words: &[&str]) {
    let service = Service::builder().tls(identity.config()).start();
    let good = Service::builder().tls(GOOD.clone()).start();
    for protocol in PROTOCOLS {
        let client = builder(&service.url(), protocol).ca_file(ca_file);
        let mut client = client.retries(2).build().unwrap();
        let error = fails(&service, &client, ErrorKind::Tls);
        let text = error.to_string();
        for word in words {
            assert!(text.contains(word), "{word:?} is not in: {text}");
        }
        assert!(
            text.contains(&format!("127.0.0.1:{}", service.port())),
            "{text}"
        );
        is_in_words(&error);
        assert!(!error.is_retryable(), "{text}");
        assert_eq!(error.reply().unwrap().attempts, 1, "{text}");
        client.set("base_url", Some(&good.url())).unwrap();
        client.set("ca_file", Some(&ROOT_FILE)).unwrap();
        works(&client);
        let url = service.url();
        let options = [
            ("protocol", name(protocol)),
            ("base_url", &*url),
            ("ca_file", ca_file),
        ];
        let cure = [("base_url", &*good.url()), ("ca_file", &ROOT_FILE)];
        hold_until_cured(&options, Duration::ZERO, |_| (), &cure).agrees(&Err(error));
    }
    assert_eq!(service.handshakes(), 0, "nothing was sent");
    assert!(service.requests().is_empty());
}

#[test]
fn a_certificate_of_nobody_known_is_refused() {
    let words = &["not trusted", "ca_file"];
    is_refused(
        &Authority::new("a stranger").issue(LOCAL),
        &ROOT_FILE,
        words,
    );
    is_refused(&Identity::self_signed(LOCAL, |_| ()), &ROOT_FILE, words);
    let lonely = ROOT.intermediate("nearer").issue(LOCAL).without_path();
    is_refused(&lonely, &ROOT_FILE, words);
}

/// As when an authority was made anew, and the `ca_file` is that of the old one.
#[test]
fn a_certificate_of_an_authority_of_the_same_name_is_refused() {
    let namesake = Authority::new("root of these tests");
    let words = &["signature", "ca_file"];
    is_refused(&namesake.issue(LOCAL), &ROOT_FILE, words);
}

#[test]
fn a_certificate_is_refused_before_and_after_its_time() {
    let past = ROOT.issue_with(LOCAL, |params| params.not_after = date_time_ymd(2021, 1, 1));
    is_refused(&past, &ROOT_FILE, &["has expired"]);
    let coming = ROOT.issue_with(LOCAL, |params| {
        params.not_before = date_time_ymd(2999, 1, 1)
    });
    is_refused(&coming, &ROOT_FILE, &["not valid yet", "clock"]);
}

#[test]
fn a_certificate_for_another_host_is_refused() {
    for names in [&["elsewhere.test"][..], &["localhost"], &["127.0.0.2"], &[]] {
        is_refused(&ROOT.issue(names), &ROOT_FILE, &["another host"]);
    }
}

#[test]
fn a_certificate_for_another_purpose_is_refused() {
    let of_a_client = ROOT.issue_with(LOCAL, |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    is_refused(&of_a_client, &ROOT_FILE, &["certificate"]);
}

/// As `openssl req -x509` makes it where nobody says otherwise.
#[test]
fn an_authoritys_certificate_in_place_of_a_servers_is_refused() {
    let identity = Identity::self_signed(LOCAL, |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    });
    let itself = file("authority.pem", identity.pem());
    for ca_file in [&*itself, &ROOT_FILE] {
        is_refused(&identity, ca_file, &["authority"]);
    }
}

// The handshake.

/// A service that does this with the first connection, in place of a handshake, and then speaks TLS.
fn fumbles(handler: impl Fn(&mut Peer) + Send + Sync + 'static) -> Service {
    let handler = move |peer: &mut Peer| {
        if peer.nth() == 0 {
            handler(peer);
        }
    };
    Service::builder()
        .tls(GOOD.clone())
        .on_connect(handler)
        .start()
}

/// The same with every connection while the fault is on.
fn fumbles_while(handler: impl Fn(&mut Peer) + Send + Sync + 'static) -> (Service, Fault) {
    let fault = Fault::default();
    let is_on = fault.clone();
    let handler = move |peer: &mut Peer| {
        if is_on.is_on() {
            handler(peer);
        }
    };
    let service = Service::builder().tls(GOOD.clone()).on_connect(handler);
    (service.start(), fault)
}

/// A handshake that is answered so fails; what is said of it.
#[track_caller]
fn handshake_fails(handler: impl Fn(&mut Peer) + Clone + Send + Sync + 'static) -> Error {
    let errors = PROTOCOLS.map(|protocol| {
        let service = fumbles(handler.clone());
        let client = client(&service, protocol);
        let error = fails(&service, &client, ErrorKind::Tls);
        assert!(service.requests().is_empty(), "{error}");
        is_in_words(&error);
        works(&client);
        served(&service);

        let (service, fault) = fumbles_while(handler.clone());
        let seen = held(&service, protocol, Duration::ZERO, &fault);
        assert_eq!(seen.status, "tls", "{seen:?}");
        error
    });
    errors[0].clone()
}

#[test]
fn what_speaks_no_tls_is_told() {
    for answer in [
        "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        "220 mail.example ESMTP\r\n",
        "\0\0\0\0\0\0\0\0",
        "<html>",
    ] {
        for end in [Peer::stall, Peer::close] {
            let error = handshake_fails(move |peer| {
                peer.receive(1);
                peer.send(answer);
                end(peer);
            });
            assert!(error.to_string().contains("does not speak TLS"), "{error}");
        }
    }
}

#[test]
fn plain_http_to_a_server_of_tls_is_answered_by_no_http() {
    let service = Service::builder().tls(GOOD.clone()).start();
    for protocol in PROTOCOLS {
        let url = format!("http://127.0.0.1:{}", service.port());
        let client = builder(&url, protocol).build().unwrap();
        let error = fails(&service, &client, ErrorKind::Protocol);
        assert!(error.to_string().contains("HTTP"), "{error}");
    }
    assert!(service.requests().is_empty());
}

#[test]
fn versions_of_tls_from_before_1_2_are_refused_in_words() {
    // An alert, as of a server that is not offered what it speaks: fatal, protocol_version.
    let alert = [21, 3, 1, 0, 2, 2, 70];
    let error = handshake_fails(move |peer| {
        peer.receive(1);
        peer.send(alert);
        peer.close();
    });
    assert!(error.to_string().contains("version"), "{error}");
    // A ServerHello of TLS 1.0 and of TLS 1.1, as of a server that does not ask.
    for minor in [1, 2] {
        let hello = [&[3, minor][..], &[7; 32], &[0], &[0xc0, 0x13], &[0]].concat();
        let length = u8::try_from(hello.len()).unwrap();
        let record = [&[22, 3, minor, 0, length + 4, 2, 0, 0, length], &*hello].concat();
        let error = handshake_fails(move |peer| {
            peer.receive(1);
            peer.send(&record);
            peer.stall();
        });
        assert!(error.to_string().contains("1.2"), "{error}");
    }
}

#[test]
fn a_handshake_that_the_server_breaks_off_is_told_in_words() {
    // handshake_failure, internal_error, unrecognized_name.
    for (alert, words) in [(40, "handshake"), (80, "internal error"), (112, "name")] {
        let error = handshake_fails(move |peer| {
            peer.receive(1);
            peer.send([21, 3, 3, 0, 2, 2, alert]);
            peer.close();
        });
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_server_that_asks_for_a_certificate_is_told_in_words() {
    for version in [&TLS12, &TLS13] {
        let identity = ROOT.issue(LOCAL);
        let config = identity.config_with(&[version], ROOT.client_verifier());
        for protocol in PROTOCOLS {
            let service = Service::builder().tls(config.clone()).start();
            let client = builder(&service.url(), protocol).retries(2);
            let error = fails(&service, &client.build().unwrap(), ErrorKind::Tls);
            is_in_words(&error);
            assert!(error.to_string().contains("client certificate"), "{error}");
            assert_eq!(error.reply().unwrap().attempts, 1, "{error}");
            assert!(service.requests().is_empty());
        }
    }
}

#[test]
fn a_handshake_that_is_cut_fails() {
    for end in [Peer::close, Peer::reset] {
        for limit in [0, 1, 5, 6, 100, 500] {
            let cut = move |peer: &mut Peer, port| match peer.nth() {
                0 => {
                    // Not before it has begun.
                    match limit {
                        0 => drop(peer.receive(1)),
                        _ => peer.tunnel_until(port, usize::MAX, limit),
                    }
                    end(peer);
                }
                _ => peer.tunnel(port, usize::MAX),
            };
            let (way, service) = behind(Service::builder(), cut);
            let client = client(&service, Protocol::Gptalk);
            let error = fails(&service, &client, ErrorKind::Tls);
            assert!(error.to_string().contains("no TLS connection"), "{error}");
            assert_eq!(service.handshakes(), 0, "it was cut before its end");
            works(&client);
            assert_eq!(way.connections(), 2);
        }
    }
}

#[test]
fn a_handshake_that_is_cut_is_told_in_words() {
    for end in [Peer::close, Peer::reset] {
        let error = handshake_fails(move |peer| {
            peer.receive(1);
            end(peer);
        });
        assert!(error.to_string().contains("connection"), "{error}");
    }
}

/// The beginning of a record that never ends.
fn drip_a_record(peer: &mut Peer) {
    peer.send([22, 3, 3, 0x40, 0]);
    let end = Instant::now() + PATIENCE + LATE;
    while Instant::now() < end && !peer.client_closed(Duration::from_millis(5)) {
        peer.send([2]);
    }
}

#[test]
fn a_handshake_that_hangs_or_drips_ends_at_its_time_limit() {
    let limit = Duration::from_millis(400);
    for hang in [Peer::stall, drip_a_record] {
        for protocol in PROTOCOLS {
            let service = fumbles(hang);
            let client = builder(&service.url(), protocol)
                .connect_timeout(Some(limit))
                .retries(2);
            let client = client.build().unwrap();
            let started = Instant::now();
            let error = fails(&service, &client, ErrorKind::Timeout);
            took(limit, started);
            assert_eq!(error.code(), Some("connect_timeout"), "{error}");
            assert!(error.to_string().contains("TLS handshake"), "{error}");
            works(&client);

            let service = fumbles(hang);
            let client = builder(&service.url(), protocol).timeout(Some(limit));
            let started = Instant::now();
            let error = fails(&service, &client.build().unwrap(), ErrorKind::Timeout);
            took(limit, started);
            assert_eq!(error.code(), Some("timeout"), "{error}");

            let (service, fault) = fumbles_while(hang);
            let seen = held(&service, protocol, limit, &fault);
            assert_eq!(seen.code.as_deref(), Some("connect_timeout"), "{seen:?}");
        }
    }
}

/// The chat ticks while it waits, and a cancel ends it and its connection.
#[track_caller]
fn waits_well(service: &Service, prompt: &str) {
    ticks_and_is_cancelled(builder(&service.url(), Protocol::Openai), prompt);
    assert!(
        service.wait_until(|s| s.open_connections() == 0),
        "the connection is closed"
    );
}

#[test]
fn ticks_and_cancel_during_a_handshake() {
    for hang in [Peer::stall, drip_a_record] {
        waits_well(&fumbles(hang), "Hi");
    }
    // The server's part comes, but for its last byte: of a record that has begun.
    let part = |peer: &mut Peer, port| {
        peer.tunnel_until(port, usize::MAX, 300);
        peer.stall();
    };
    let (_way, service) = behind(Service::builder(), part);
    waits_well(&service, "Hi");
}

#[test]
fn ticks_and_cancel_inside_a_record() {
    // A record of the reply that begins and never ends.
    let (_way, service) = behind(Service::builder(), |peer, port| {
        peer.tunnel_until(port, usize::MAX, 1500);
        peer.stall();
    });
    let prompt = "x".repeat(1 << 10);
    waits_well(&service, &prompt);
    assert_eq!(service.count(Endpoint::Chat), 1);
}

#[test]
fn a_server_that_stops_reading_is_left_at_the_response_timeout() {
    let service = Service::builder().tls(GOOD.clone());
    let deaf = service.on(Endpoint::Chat, |request, peer| {
        peer.normal(request);
        peer.pause(2 * PATIENCE);
    });
    let service = deaf.start();
    let limit = Duration::from_millis(400);
    let client = builder(&service.url(), Protocol::Openai).response_timeout(Some(limit));
    let client = client.build().unwrap();
    works(&client);
    // On the same connection, on which nobody reads.
    let stream = client.stream("x".repeat(24 << 20)).unwrap();
    let started = Instant::now();
    let error = stream.finish().unwrap_err();
    // The limit counts from the last byte that went; a debug build takes its time to encrypt.
    let took = started.elapsed();
    assert!(took >= limit && took < 2 * PATIENCE, "{took:?}");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert_eq!(error.code(), Some("response_timeout"), "{error}");
    assert_eq!(service.connections(), 1);
}

// The end of a connection.

fn with_length(body: &str, missing: usize) -> String {
    format!("{OK}content-length: {}\r\n\r\n{body}", body.len() + missing)
}

fn chunked(body: &str) -> String {
    format!(
        "{OK}transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n",
        body.len()
    )
}

/// Until the connection is closed.
fn endless(body: &str) -> String {
    format!("{OK}\r\n{body}")
}

#[test]
fn a_reply_that_is_whole_needs_no_close_notify() {
    for protocol in PROTOCOLS {
        let (hello, done) = (hello(protocol), "data: [DONE]\n\n");
        let reply = [hello, done].concat();
        for raw in [
            with_length(&reply, 0),
            with_length(&reply, 100),
            chunked(&reply),
            chunked(&reply) + "0\r\n\r\n",
            endless(&reply),
        ] {
            for end in [Peer::close, Peer::cut] {
                let raw = raw.clone();
                let (service, client) = once(protocol, move |peer| {
                    peer.send(&raw);
                    end(peer);
                });
                assert_eq!(chat(&client, "Hi").result.expect("a reply").text, "Hello");
                assert!(service.wait_until(|s| s.open_connections() == 0));
                works(&client);
                served(&service);
            }
        }
    }
}

#[test]
fn a_reply_that_is_cut_is_truncated_with_a_close_notify_and_without() {
    let resets: fn(&mut Peer) = |peer| {
        // It must not overtake what was sent.
        peer.pause(Duration::from_millis(100));
        peer.reset();
    };
    for protocol in PROTOCOLS {
        let hello = hello(protocol);
        for raw in [with_length(hello, 100), chunked(hello), endless(hello)] {
            for end in [Peer::close, Peer::cut, resets] {
                let sent = raw.clone();
                let (service, client) = once(protocol, move |peer| {
                    peer.send(&sent);
                    end(peer);
                });
                fails_after_hello(&service, &client, ErrorKind::Truncated);
                works(&client);
                served(&service);

                let (fault, raw) = (Fault::default(), raw.clone());
                let service = Service::builder().tls(GOOD.clone());
                let service = fault.at(service, reply_of(protocol), move |peer| {
                    peer.send(&raw);
                    end(peer);
                });
                let seen = held(&service.start(), protocol, Duration::ZERO, &fault);
                assert_eq!((&*seen.status, &*seen.text), ("truncated", "Hello"));
            }
        }
    }
}

/// Where the end of the connection is the only end of the body, it has to be in good order.
#[test]
fn a_finished_completion_without_a_done_is_whole_where_its_end_is_notified() {
    let finish = "data: {\"choices\": [{\"delta\": {}, \"finish_reason\": \"stop\"}]}\n\n";
    let raw = endless(&[hello(Protocol::Openai), finish].concat());
    let reply = raw.clone();
    let (_service, client) = once(Protocol::Openai, move |peer| {
        peer.send(&reply);
        peer.close();
    });
    assert_eq!(chat(&client, "Hi").result.expect("a reply").text, "Hello");
    let (service, client) = once(Protocol::Openai, move |peer| {
        peer.send(&raw);
        peer.cut();
    });
    fails_after_hello(&service, &client, ErrorKind::Truncated);
}

#[test]
fn a_missing_close_notify_is_told_in_words() {
    let (service, client) = once(Protocol::Gptalk, |peer| {
        peer.send(chunked(hello(Protocol::Gptalk)));
        peer.cut();
    });
    let error = fails_after_hello(&service, &client, ErrorKind::Truncated);
    assert!(!error.to_string().contains("docs.rs"), "{error}");
}

#[test]
fn json_in_place_of_a_stream_is_whole_where_its_end_is_notified() {
    for end in [Peer::close, Peer::cut] {
        let (service, client) = once(Protocol::Gptalk, move |peer| {
            peer.send(endless(r#"{"content": "Hello"}"#));
            end(peer);
        });
        // It has an end of its own, but for what may follow it.
        match chat(&client, "Hi").result {
            Ok(reply) => assert_eq!(reply.text, "Hello"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Truncated, "{error}"),
        }
        works(&client);
        served(&service);
    }
}

#[test]
fn silence_in_the_middle_of_a_record_ends_at_the_idle_timeout() {
    let limit = Duration::from_millis(400);
    for protocol in PROTOCOLS {
        let (service, client) = once(protocol, move |peer| {
            peer.send(chunked(hello(protocol)));
            peer.stall();
        });
        let mut client = client;
        client.set("idle_timeout_ms", Some("400")).unwrap();
        let started = Instant::now();
        let error = fails_after_hello(&service, &client, ErrorKind::Timeout);
        took(limit, started);
        assert_eq!(error.code(), Some("idle_timeout"));
        works(&client);
    }
}

#[test]
fn a_submission_that_may_have_been_accepted_is_not_sent_again() {
    for end in [Peer::close, Peer::cut, Peer::reset] {
        let service = Service::builder().tls(GOOD.clone());
        let service = service.on(Endpoint::Chat, move |_, peer| end(peer)).start();
        let client = builder(&service.url(), Protocol::Openai).retries(3);
        let error = fails(&service, &client.build().unwrap(), ErrorKind::Network);
        assert!(error.to_string().contains(&service.url()), "{error}");
        assert_eq!(service.count(Endpoint::Chat), 1);
    }
}

#[test]
fn a_connection_that_died_while_idle_goes_unnoticed() {
    for end in [Peer::close, Peer::cut, Peer::reset] {
        for protocol in PROTOCOLS {
            let service = Service::builder().tls(GOOD.clone());
            let service = service.on(reply_of(protocol), move |request, peer| {
                peer.normal(request);
                // A reset must not overtake what was sent.
                peer.pause(Duration::from_millis(50));
                end(peer);
            });
            let service = service.start();
            let client = client(&service, protocol);
            for chats in 1..=3 {
                assert_eq!(works(&client).attempts, 1);
                assert!(service.wait_until(|s| s.open_connections() == 0));
                assert_eq!(
                    (service.connections(), service.handshakes()),
                    (chats, chats)
                );
            }
        }
    }
}

#[test]
fn a_reused_connection_that_dies_under_the_request_is_replaced_once() {
    for end in [Peer::close, Peer::cut, Peer::reset] {
        let service = Service::builder().tls(GOOD.clone());
        let service = service.on(Endpoint::Text, move |request, peer| match peer.nth() {
            1 | 3 | 4 => end(peer),
            _ => peer.normal(request),
        });
        let service = service.start();
        let client = client(&service, Protocol::Gptalk);
        works(&client);
        assert_eq!(works(&client).attempts, 1, "at no retry's cost");
        assert_eq!(service.connections(), 2);
        fails(&service, &client, ErrorKind::Network);
        works(&client);
    }
}

/// An answer that ends where a record and the room for it do, and more behind it.
#[test]
fn a_connection_with_something_behind_its_answer_is_not_used_again() {
    let body = format!("{}data: [DONE]\n\n", hello(Protocol::Openai));
    for size in [
        body.len(),
        (16 << 10) - 1,
        16 << 10,
        (16 << 10) + 1,
        32 << 10,
    ] {
        for more in ["x", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"] {
            let head = format!("{OK}x-a: {}\r\n", "a".repeat(1000));
            let length = size.saturating_sub(head.len() + "content-length: 12345\r\n\r\n".len());
            let body = format!("{}{body}", "\n".repeat(length.saturating_sub(body.len())));
            let raw = format!(
                "{head}content-length: {:05}\r\n\r\n{body}{more}",
                body.len()
            );
            let (service, client) = once(Protocol::Openai, move |peer| peer.send(&raw));
            assert_eq!(chat(&client, "Hi").result.expect("a reply").text, "Hello");
            works(&client);
            assert_eq!(service.connections(), 2, "{size} bytes, and {more:?}");
        }
    }
}

#[test]
fn a_chat_that_is_cut_anywhere_is_no_reply() {
    const WHOLE: &str = "You said: Hi there";
    for end in [Peer::close, Peer::reset] {
        let (mut replies, mut kinds) = (0, Vec::new());
        for limit in (40..).step_by(160) {
            let cut = move |peer: &mut Peer, port| match peer.nth() {
                0 => {
                    peer.tunnel_until(port, usize::MAX, limit);
                    end(peer);
                }
                _ => peer.tunnel(port, usize::MAX),
            };
            let (way, service) = behind(Service::builder(), cut);
            let client = client(&service, Protocol::Gptalk);
            let seen = chat(&client, "Hi there");
            assert!(WHOLE.starts_with(&seen.text), "{}", seen.text);
            tells_no_secret(&service, &seen.words);
            assert!(seen.took < PATIENCE, "{:?}", seen.took);
            match seen.result {
                Ok(reply) => {
                    assert_eq!((&*reply.text, &*seen.text), (WHOLE, WHOLE));
                    replies += 1;
                }
                Err(error) => {
                    assert_eq!(error.reply().unwrap().text, seen.text);
                    let delivered = !seen.text.is_empty();
                    let is_truncated = error.kind() == ErrorKind::Truncated;
                    assert!(!delivered || is_truncated, "{error}");
                    kinds.push(error.kind());
                    assert!(way.wait_until(|s| s.open_connections() == 0), "{error}");
                }
            }
            works(&client);
            if replies == 2 {
                break;
            }
        }
        // In the handshake; in or before a header, or in a body that is not the reply's.
        assert_eq!(kinds.first(), Some(&ErrorKind::Tls));
        assert!(kinds.contains(&ErrorKind::Network), "{kinds:?}");
        kinds.retain(|kind| {
            use ErrorKind::{Network, Tls, Truncated};
            !matches!(kind, Tls | Network | Truncated)
        });
        assert_eq!(kinds, []);
    }
}

// The trusted roots.

/// Paths to what is no PEM file of trusted roots.
fn bad_ca_files(test: &str) -> Vec<String> {
    let file = |name: &str, content: &[u8]| file(&format!("{test}-{name}"), content);
    let certificate = |content: &str| {
        format!("-----BEGIN CERTIFICATE-----\n{content}\n-----END CERTIFICATE-----\n")
    };
    vec![
        String::new(),
        "/no/such/folder/roots.pem".to_owned(),
        env!("CARGO_TARGET_TMPDIR").to_owned(),
        file("empty.pem", b""),
        file("text.pem", b"no certificate in here"),
        file("key.pem", ROOT.issue(LOCAL).key_pem().as_bytes()),
        file("der.pem", &[0x30, 0x82, 0x01, 0x0a, 0xff, 0x00]),
        file("cut.pem", &ROOT.pem().as_bytes()[..200]),
        file("not-base64.pem", certificate("!!!!").as_bytes()),
        file("not-der.pem", certificate("bm8gREVS").as_bytes()),
    ]
}

#[test]
fn a_ca_file_that_is_none_is_refused_when_it_is_set() {
    let service = Service::builder().tls(GOOD.clone()).start();
    let mut client = client(&service, Protocol::Gptalk);
    for path in &bad_ca_files("set") {
        let error = client.set("ca_file", Some(path)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Misuse, "{error}");
        let text = error.to_string();
        assert!(text.contains("ca_file") && text.contains(path), "{text}");
        let built = Client::builder().ca_file(path).build().unwrap_err();
        assert_eq!(built.to_string(), text);
        let refused = gptalk::set_default("ca_file", Some(path)).unwrap_err();
        assert_eq!(refused.to_string(), text);
    }
    works(&client); // with what was set before
}

#[test]
fn a_ca_file_that_is_none_says_what_to_do() {
    for path in bad_ca_files("advice") {
        let error = Client::builder().ca_file(&path).build().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("give a PEM file of trusted roots"), "{text}");
        is_in_words(&error);
    }
}

#[test]
fn a_ca_file_may_hold_more_than_one_certificate_and_other_things() {
    let service = Service::builder().tls(GOOD.clone()).start();
    let (root, other) = (ROOT.pem(), Authority::new("a stranger").pem());
    let key = ROOT.issue(LOCAL).key_pem();
    for content in [
        format!("{other}{root}"),
        format!("{key}{root}"),
        format!("Certificate:\n    Data:\n        Version: 3\n{root}\n# the end"),
        root.replace('\n', "\r\n"),
        root.trim_end().to_owned(),
    ] {
        let client = builder(&service.url(), Protocol::Gptalk);
        let client = client.ca_file(&file("more.pem", content)).build().unwrap();
        works(&client);
    }
}

/// The test `child` in a process of its own, with this environment and no other; what it printed.
/// It says nothing else.
#[track_caller]
fn run_child(role: &str, env: &[(&str, &str)]) -> String {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([
        "--exact",
        "child",
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    command.env_clear().env("TLS_TEST_ROLE", role);
    let output = command.envs(env.iter().copied()).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert_eq!(stderr, "");
    let said = stdout.lines().find_map(|line| line.strip_prefix("=> "));
    said.expect("an outcome").to_owned()
}

#[test]
#[ignore = "run by the others, in processes of their own"]
fn child() {
    let chat = || match Client::new().complete("Hi") {
        Ok(reply) => reply.text,
        Err(error) => format!("{}: {error}", error.kind()),
    };
    let said = match env::var("TLS_TEST_ROLE").as_deref() {
        Ok("chat") => chat(),
        Ok("small stack") => {
            // As much as is promised of a release build; the frames of a debug build are larger.
            let kib = if cfg!(debug_assertions) { 512 } else { 128 };
            let stack = thread::Builder::new().stack_size(kib << 10);
            stack.spawn(chat).unwrap().join().unwrap()
        }
        _ => return,
    };
    println!("\n=> {said}");
}

const HI: &str = "You said: Hi";

/// A folder of this process that holds a file.
fn folder(name: &str, pem: &str) -> String {
    let name = format!("tls-{}-{name}", process::id());
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&path).expect("a temporary folder");
    fs::write(path.join("root.pem"), pem).expect("a temporary file");
    path.to_str().expect("a path in UTF-8").to_owned()
}

#[test]
fn the_environment_names_the_trusted_roots() {
    let service = Service::builder().tls(GOOD.clone()).start();
    let url = service.url();
    let other = Authority::new("a stranger").pem();
    let other_file = file("environment-other.pem", &other);
    let (dir, other_dir) = (folder("root", &ROOT.pem()), folder("other", &other));
    let (file, no_file) = (
        ("SSL_CERT_FILE", &**ROOT_FILE),
        ("SSL_CERT_FILE", &*other_file),
    );
    let (dir, no_dir) = (("SSL_CERT_DIR", &*dir), ("SSL_CERT_DIR", &*other_dir));
    fn ours(path: &str) -> (&str, &str) {
        ("GPTALK_CA_FILE", path)
    }
    let chat = |env: &[(&str, &str)]| {
        let base = [("GPTALK_BASE_URL", &*url), ("GPTALK_RETRIES", "0")];
        run_child("chat", &[&base, env].concat())
    };
    for env in [
        &[file][..],
        &[dir],
        &[no_file, dir],
        &[file, no_dir],
        // What is ours goes first.
        &[no_file, no_dir, ours(&ROOT_FILE)],
    ] {
        assert_eq!(chat(env), HI, "{env:?}");
    }
    // What is named and not there is no reason to trust others.
    let nowhere = "/no/such/file";
    for env in [
        &[("SSL_CERT_FILE", nowhere)][..],
        &[("SSL_CERT_DIR", nowhere)],
    ] {
        let said = chat(env);
        assert!(said.starts_with("misuse: "), "{said}");
        assert!(said.contains("SSL_CERT_FILE and SSL_CERT_DIR"), "{said}");
    }
    // Those of the system and those of others do not know this one.
    for env in [
        &[][..],
        &[("SSL_CERT_FILE", ""), ("SSL_CERT_DIR", "")],
        &[no_file],
        &[no_dir],
        &[file, dir, ours(&other_file)],
    ] {
        let outcome = chat(env);
        assert!(outcome.starts_with("tls: "), "{env:?}: {outcome}");
        assert!(outcome.contains("not trusted"), "{env:?}: {outcome}");
    }
    let outcome = chat(&[ours("/no/such/file")]);
    assert!(outcome.starts_with("misuse: "), "{outcome}");
    assert!(outcome.contains("GPTALK_CA_FILE"), "{outcome}");
    served(&service);
}

#[test]
fn the_folders_of_trusted_roots_may_be_several() {
    let service = Service::builder().tls(GOOD.clone()).start();
    let other = folder("several-other", &Authority::new("a stranger").pem());
    let dir = folder("several", &ROOT.pem());
    let separator = if cfg!(windows) { ';' } else { ':' };
    for dirs in [[&*other, &dir], [&*dir, &other], ["/no/such/folder", &dir]] {
        let dirs = dirs.join(&separator.to_string());
        let env = [
            ("GPTALK_BASE_URL", &*service.url()),
            ("GPTALK_RETRIES", "0"),
            ("SSL_CERT_DIR", &dirs),
        ];
        assert_eq!(run_child("chat", &env), HI, "{dirs}");
    }
}

#[test]
fn a_small_stack_is_enough() {
    for version in [&TLS12, &TLS13] {
        let nobody = WebPkiClientVerifier::no_client_auth();
        let nearest = ROOT.intermediate("nearer").intermediate("nearest");
        let config = nearest.issue(LOCAL).config_with(&[version], nobody);
        let service = Service::builder().tls(config).start();
        let env = [
            ("GPTALK_BASE_URL", &*service.url()),
            ("GPTALK_CA_FILE", &**ROOT_FILE),
        ];
        assert_eq!(run_child("small stack", &env), HI);
    }
}

#[test]
fn no_secret_is_shown_of_chats_that_fail() {
    // As a peer that sends back what it was sent.
    let echoes = |request: &gptalk_service::Request, peer: &mut Peer| {
        let key = request.header("authorization").unwrap_or_default();
        peer.respond(500, "text/plain", format!("{key} {}", request.target));
        peer.close();
    };
    for protocol in PROTOCOLS {
        for endpoint in [Endpoint::Text, Endpoint::Stream, Endpoint::Chat] {
            let service = Service::builder().tls(GOOD.clone()).on(endpoint, echoes);
            let service = service.start();
            let seen = chat(&client(&service, protocol), "Hi");
            assert_eq!(seen.result.is_err(), service.count(endpoint) > 0);
            tells_no_secret(&service, &seen.words);
            let env = [
                ("GPTALK_BASE_URL", &*service.url()),
                ("GPTALK_CA_FILE", &**ROOT_FILE),
                ("GPTALK_RETRIES", "0"),
                (
                    "GPTALK_PROTOCOL",
                    match protocol {
                        Protocol::Openai => "openai",
                        _ => "gptalk",
                    },
                ),
                ("OPENAI_API_KEY", KEY),
            ];
            tells_no_secret(&service, &run_child("chat", &env));
        }
    }
}

// Servers that others have written.

/// A program that speaks TLS before a service of ours.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Front {
    Stunnel,
    Nginx,
}

impl Front {
    fn all() -> impl Iterator<Item = Front> {
        let all = [
            (Front::Stunnel, "stunnel4", "-version"),
            (Front::Nginx, "nginx", "-v"),
        ];
        all.into_iter().filter_map(|(front, name, probe)| {
            let is_here = is_here(Command::new(name).arg(probe));
            if !is_here {
                left_out(&format!("TLS of {name}, which is not installed"));
            }
            is_here.then_some(front)
        })
    }

    /// Its configuration: these ports, files with the certificates and the key, and more lines.
    fn configuration(self, folder: &str, port: u16, service: u16, more: &str) -> String {
        let (certificate, key) = (format!("{folder}/chain.pem"), format!("{folder}/key.pem"));
        match self {
            Front::Stunnel => format!(
                "foreground = yes\npid =\n[service]\naccept = 127.0.0.1:{port}\n\
                 connect = 127.0.0.1:{service}\ncert = {certificate}\nkey = {key}\n{more}\n"
            ),
            Front::Nginx => {
                let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                    .map(|name| format!("{name}_temp_path {folder}/{name};"))
                    .concat();
                format!(
                    "daemon off; master_process off; pid {folder}/pid; events {{}}\n\
                     http {{ access_log off; {temporary} server {{\n\
                     listen 127.0.0.1:{port} ssl;\n\
                     ssl_certificate {certificate}; ssl_certificate_key {key};\n{more}\n\
                     location / {{ proxy_pass http://127.0.0.1:{service}; proxy_buffering off;\n\
                     proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
                     proxy_set_header Host $http_host; }} }} }}\n"
                )
            }
        }
    }

    /// The program, and the service behind it.
    fn start(
        self,
        identity: &Identity,
        more: &str,
        plan: fn(Builder) -> Builder,
    ) -> (Program, Service) {
        static NTH: AtomicUsize = AtomicUsize::new(0);
        let nth = NTH.fetch_add(1, Ordering::Relaxed);
        let folder = folder(&format!("{self:?}-{nth}"), &ROOT.pem());
        fs::write(format!("{folder}/chain.pem"), identity.pem()).unwrap();
        fs::write(format!("{folder}/key.pem"), identity.key_pem()).unwrap();
        let configuration = format!("{folder}/configuration");
        let error_log = format!("{folder}/error.log");
        let words = match self {
            Front::Stunnel => vec!["stunnel4", &configuration],
            Front::Nginx => vec![
                "nginx",
                "-p",
                &folder,
                "-e",
                &error_log,
                "-c",
                &configuration,
            ],
        };
        // A port may be taken before the program has it.
        for _ in 0..3 {
            let port = free_port();
            let service = plan(Service::builder()).origin(&format!("https://127.0.0.1:{port}"));
            let service = service.start();
            let text = self.configuration(&folder, port, service.port(), more);
            fs::write(&configuration, text).unwrap();
            if let Some(program) = Program::start(&words, port) {
                return (program, service);
            }
        }
        panic!("{self:?} does not start: see {folder}");
    }
}

#[test]
fn real_servers_are_spoken_to() {
    for front in Front::all() {
        let versions = match front {
            Front::Stunnel => ["sslVersion = TLSv1.2", "sslVersion = TLSv1.3"],
            Front::Nginx => ["ssl_protocols TLSv1.2;", "ssl_protocols TLSv1.3;"],
        };
        let identity = ROOT.intermediate("nearer").issue(LOCAL);
        for version in versions {
            let (_program, service) = front.start(&identity, version, |service| service);
            for protocol in PROTOCOLS {
                let client = client(&service, protocol);
                for _ in 0..3 {
                    works(&client);
                }
                let prompt = "é💥x".repeat(50 << 10);
                let seen = chat(&client, &prompt);
                assert!(seen.text.strip_prefix("You said: ") == Some(&prompt));
            }
            if front == Front::Stunnel {
                // One for each client: those to the service are those to stunnel.
                assert_eq!(service.connections(), 2);
            }
            served(&service);
        }
    }
}

#[test]
fn real_servers_with_a_bad_certificate_are_refused() {
    for front in Front::all() {
        let past = ROOT.issue_with(LOCAL, |params| params.not_after = date_time_ymd(2021, 1, 1));
        let stranger = Authority::new("a stranger").issue(LOCAL);
        for (identity, words) in [
            (past, "has expired"),
            (stranger, "not trusted"),
            (ROOT.issue(&["elsewhere.test"]), "another host"),
        ] {
            let (_program, service) = front.start(&identity, "", |service| service);
            for protocol in PROTOCOLS {
                let client = client(&service, protocol);
                let error = fails(&service, &client, ErrorKind::Tls);
                assert!(error.to_string().contains(words), "{front:?}: {error}");
                is_in_words(&error);
            }
            assert!(service.requests().is_empty());
        }
    }
}

#[test]
fn a_reply_that_is_cut_behind_a_real_server_is_truncated() {
    fn cuts(service: Builder) -> Builder {
        service.on(Endpoint::Stream, |request, peer| match peer.nth() {
            nth @ 0..2 => {
                peer.send(chunked(hello(Protocol::Gptalk)));
                // What is sent comes through before the end does.
                peer.pause(Duration::from_millis(100));
                match nth {
                    0 => peer.close(),
                    _ => peer.reset(),
                }
            }
            _ => peer.normal(request),
        })
    }
    for front in Front::all() {
        let (_program, service) = front.start(&ROOT.issue(LOCAL), "", cuts);
        let client = client(&service, Protocol::Gptalk);
        for _ in 0..2 {
            let error = chat(&client, "Hi").result.expect_err("a failure");
            assert_eq!(error.kind(), ErrorKind::Truncated, "{front:?}: {error}");
            assert_eq!(error.reply().unwrap().text, "Hello");
        }
        works(&client);
        served(&service);
    }
}

#[test]
fn a_real_server_that_asks_for_a_certificate_is_told() {
    for front in Front::all() {
        let more = match front {
            Front::Stunnel => format!("verifyChain = yes\nCAfile = {}", *ROOT_FILE),
            Front::Nginx => format!(
                "ssl_verify_client on; ssl_client_certificate {};",
                *ROOT_FILE
            ),
        };
        let (_program, service) = front.start(&ROOT.issue(LOCAL), &more, |service| service);
        for protocol in PROTOCOLS {
            let client = client(&service, protocol);
            match front {
                Front::Stunnel => {
                    let error = fails(&service, &client, ErrorKind::Tls);
                    assert!(error.to_string().contains("client certificate"), "{error}");
                    is_in_words(&error);
                }
                // It says so in HTTP.
                Front::Nginx => {
                    let error = fails(&service, &client, ErrorKind::Request);
                    assert!(error.to_string().contains("certificate"), "{error}");
                }
            }
        }
        assert!(service.requests().is_empty());
    }
}

#[test]
fn a_real_server_of_tls_is_not_spoken_to_in_plain_http() {
    for front in Front::all() {
        let (_program, service) = front.start(&ROOT.issue(LOCAL), "", |service| service);
        let url = service.url().replace("https:", "http:");
        for protocol in PROTOCOLS {
            let client = builder(&url, protocol).build().unwrap();
            let error = chat(&client, "Hi").result.expect_err("a failure");
            let kind = match front {
                Front::Stunnel => [ErrorKind::Protocol, ErrorKind::Network],
                // It says so in HTTP.
                Front::Nginx => [ErrorKind::Request; 2],
            };
            assert!(kind.contains(&error.kind()), "{front:?}: {error}");
        }
        assert!(service.requests().is_empty());
    }
}

#[test]
fn a_real_server_of_tls_1_0_is_refused_in_words() {
    if !is_here(Command::new("openssl").arg("version")) {
        return left_out("TLS 1.0 of openssl, which is not installed");
    }
    let folder = folder("tls-1.0", "");
    let identity = ROOT.issue(LOCAL);
    let (chain, key) = (format!("{folder}/chain.pem"), format!("{folder}/key.pem"));
    fs::write(&chain, identity.pem()).unwrap();
    fs::write(&key, identity.key_pem()).unwrap();
    for version in ["-tls1", "-tls1_1"] {
        let started = std::iter::repeat_with(|| {
            let port = free_port();
            let accept = port.to_string();
            let words = ["openssl", "s_server", "-quiet", version, "-accept", &accept];
            let more = ["-cipher", "ALL:@SECLEVEL=0", "-cert", &chain, "-key", &key];
            Program::start(&[&words[..], &more].concat(), port).map(|program| (program, port))
        });
        let mut started = started.take(3).flatten();
        let (_program, port) = started.next().expect("openssl's server");
        let url = format!("https://127.0.0.1:{port}");
        let client = builder(&url, Protocol::Gptalk).build().unwrap();
        let error = chat(&client, "Hi").result.expect_err("a failure");
        assert_eq!(error.kind(), ErrorKind::Tls, "{error}");
        assert!(error.to_string().contains("version"), "{error}");
        is_in_words(&error);
    }
}

#[test]
fn an_answer_that_comes_before_the_whole_request_was_sent_is_read() {
    for stays in [true, false] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let (done, until_done) = mpsc::channel::<()>();
        let service = thread::spawn(move || {
            let session = ServerConnection::new(GOOD.clone()).unwrap();
            let mut peer = StreamOwned::new(session, listener.accept().unwrap().0);
            peer.read_exact(&mut [0; 1000]).unwrap();
            // Longer than it takes to fill the buffers on the way, which hold a part of the text.
            thread::sleep(Duration::from_millis(300));
            let answer = "HTTP/1.1 413 Too Much\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
            peer.write_all(answer.as_bytes()).unwrap();
            peer.flush().unwrap();
            if stays {
                let _ = until_done.recv();
            }
        });
        let client = builder(&url, Protocol::Openai).build().unwrap();
        let error = client.complete("x".repeat(24 << 20)).unwrap_err();
        drop(done);
        service.join().unwrap();
        match error.kind() {
            // Where it closes with much unread, its reset may overtake its answer.
            ErrorKind::Network if !stays => {}
            _ => assert_eq!(error.http_status(), Some(413), "{error}"),
        }
    }
}
