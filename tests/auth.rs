//! Logins: exact counts under threads, expiry, refusals, and chats that wait for another's login.
//!
//! The book of logins is the process's; each service here has a URL, and so an entry, of its own.

mod observer;
mod programs;

use gptalk::{Client, ClientBuilder, Error, ErrorKind, Event, Reply, Stream};
use gptalk_service::{Builder, Endpoint, Peer, Request, Service};
use observer::{Fault, Seen, hold};
use serde_json::json;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// A time limit that only a chat that hangs meets.
const FOREVER: Duration = Duration::from_secs(20);
/// How late a chat may end: after its deadline, or after a cancel.
const LATE: Duration = Duration::from_millis(250);

/// A service to be, at a URL of its own: the system may give its port to another one later, and
/// the process would take the logins of the one for the other's.
fn fresh() -> Builder {
    static NTH: AtomicUsize = AtomicUsize::new(0);
    Service::builder().prefix(&format!("/{}", NTH.fetch_add(1, SeqCst)))
}

fn builder(service: &Service) -> ClientBuilder {
    Client::builder()
        .base_url(&service.url())
        .timeout(Some(FOREVER))
        .retries(0)
}

#[track_caller]
fn client(service: &Service) -> Client {
    builder(service).build().unwrap()
}

#[track_caller]
fn chat(client: &Client) -> Reply {
    client
        .complete("Hi")
        .unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn chats(client: &Client, n: usize) {
    (0..n).for_each(|_| drop(chat(client)));
}

#[track_caller]
fn fails(client: &Client, kind: ErrorKind) -> Error {
    let error = client.complete("Hi").expect_err("a failure");
    assert_eq!(error.kind(), kind, "{error}");
    error
}

/// Chats with this service, once it is turned so, come to what holds for every one.
#[track_caller]
fn held(service: &Service, turn: impl Fn(bool)) -> Seen {
    let options = [("base_url", &*service.url()), ("retries", "0")];
    let seen = hold(&options, Duration::ZERO, turn);
    assert_eq!(service.refusals(), [""; 0]);
    seen
}

/// So does a chat whose login is answered with this.
#[track_caller]
fn held_in_login(status: u16, body: String, kind: ErrorKind) {
    let fault = Fault::default();
    // Each chat logs in.
    let service = fresh().login_data(json!({"expires_at": 1}));
    let service = fault.at(service, Endpoint::Login, move |peer| {
        peer.respond(status, "application/json", &body)
    });
    let seen = held(&service.start(), |on| fault.turn(on));
    assert_eq!(seen.status, kind.name(), "{seen:?}");
    assert!(!seen.error.unwrap().contains("SENTINEL"));
}

fn logins(service: &Service) -> usize {
    service.count(Endpoint::Login)
}

fn texts(service: &Service) -> usize {
    service.count(Endpoint::Text)
}

/// A handler that answers the first requests with these bodies, and then as it should be.
fn first(status: u16, bodies: Vec<String>) -> impl Fn(&Request, &mut Peer) + Send + Sync {
    move |request, peer| match bodies.get(peer.nth()) {
        Some(body) => peer.respond(status, "application/json", body),
        None => peer.normal(request),
    }
}

/// A service whose first login is not answered before the flag is up.
fn stalling() -> (Service, Arc<AtomicBool>) {
    let flag = Arc::new(AtomicBool::new(false));
    let up = flag.clone();
    let service = fresh().on(Endpoint::Login, move |request, peer| {
        while peer.nth() == 0 && !up.load(SeqCst) && !peer.client_closed(Duration::ZERO) {
            peer.pause(Duration::from_millis(1));
        }
        peer.normal(request);
    });
    (service.start(), flag)
}

/// A chat that is suspended in its login: nobody pulls it.
#[track_caller]
fn suspended_in_login(client: &Client, service: &Service) -> Stream {
    let mut stream = client.stream("Hi").unwrap();
    loop {
        let event = stream.next_event();
        assert_eq!(event, Some(Event::Tick), "there is nothing but to wait");
        if logins(service) == 1 {
            return stream;
        }
    }
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_secs().try_into().unwrap()
}

#[test]
fn a_login_serves_five_chats() {
    for n in [1, 4, 5, 6, 10, 11, 23] {
        let service = fresh().start();
        chats(&client(&service), n);
        assert_eq!(logins(&service), n.div_ceil(5), "{n} chats");
        assert_eq!(texts(&service), n);
        assert!(service.refusals().is_empty());
        assert_eq!(held(&service, |_| ()).status, "ok");
    }
}

#[test]
fn clients_of_one_service_share_logins_however_its_url_is_written() {
    let service = fresh().start();
    let url = service.url();
    for url in [
        &url,
        &format!("{url}/"),
        url.trim_start_matches("http://"),
        &url.replace("http", "HTTP"),
    ] {
        chat(&builder(&service).base_url(url).build().unwrap());
    }
    chat(&client(&service).clone());
    assert_eq!(logins(&service), 1);
    chat(&client(&service));
    assert_eq!(logins(&service), 2);
}

#[test]
fn another_service_app_id_or_fingerprint_has_logins_of_its_own() {
    let (one, other) = (fresh().start(), fresh().start());
    let hex = "0123456789abcdef".repeat(2);
    let of_one = [
        builder(&one),
        builder(&one).app_id("77"),
        builder(&one).fingerprint(&hex),
        builder(&one).app_id("77").fingerprint(&hex),
        builder(&one).base_url(&one.url().replace("127.0.0.1", "localhost")),
    ];
    let clients = of_one.map(|builder| builder.build().unwrap());
    for uses in 1..=6 {
        clients.iter().for_each(|client| drop(chat(client)));
        chat(&client(&other));
        assert_eq!(logins(&one), if uses <= 5 { 5 } else { 10 });
        assert_eq!(logins(&other), if uses <= 5 { 1 } else { 2 });
    }
    assert!(one.refusals().is_empty() && other.refusals().is_empty());
}

#[test]
fn four_hundred_chats_on_sixteen_threads_take_eighty_logins() {
    for shared in [true, false] {
        let service = fresh().start();
        let client_of_all = client(&service);
        thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| match shared {
                    true => chats(&client_of_all, 25),
                    false => chats(&client(&service), 25),
                });
            }
        });
        assert_eq!(
            (logins(&service), texts(&service)),
            (80, 400),
            "one client: {shared}"
        );
        assert!(service.refusals().is_empty());
    }
}

#[test]
fn cold_threads_share_logins_one_at_a_time() {
    let (in_flight, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = most.clone();
    let service = fresh().on(Endpoint::Login, move |request, peer| {
        seen.fetch_max(in_flight.fetch_add(1, SeqCst) + 1, SeqCst);
        peer.pause(Duration::from_millis(30)); // time for the others to do the wrong thing
        in_flight.fetch_sub(1, SeqCst);
        peer.normal(request);
    });
    let service = service.start();
    thread::scope(|scope| {
        (0..16).for_each(|_| drop(scope.spawn(|| chat(&client(&service)))));
    });
    assert_eq!((logins(&service), texts(&service)), (4, 16));
    assert_eq!(most.load(SeqCst), 1);
}

#[test]
fn expires_at_is_understood_in_every_form() {
    let later = unix_now() + 3600;
    // Six chats: with a token that is good for its uses, and with one that is in the past.
    for (expires_at, expected) in [
        (json!(later), 2),
        (json!(null), 2),
        (json!(i64::MAX), 2),
        (json!(1_u64 << 63), 2),
        (json!(u64::MAX), 2),
        (json!(1e300), 2),
        (json!(later * 1000), 2), // in milliseconds
        (json!(later as f64 + 0.5), 2),
        (json!(later.to_string()), 2),
        (json!(format!("{later}.25")), 2),
        (json!("9223372036854775808"), 2),
        (json!(0), 6),
        (json!(-1), 6),
        (json!(i64::MIN), 6),
        (json!(-1e300), 6),
        (json!(unix_now() - 1), 6),
        (json!(1.5), 6),
        (json!("12"), 6),
        (json!("-9223372036854775809"), 6),
    ] {
        let service = fresh()
            .login_data(json!({"expires_at": expires_at}))
            .start();
        chats(&client(&service), 6);
        assert_eq!(logins(&service), expected, "{expires_at}");
        assert_eq!(held(&service, |_| ()).status, "ok", "{expires_at}");
    }
    let service = fresh().login_data(json!({"more": {}})).start();
    chats(&client(&service), 6);
    assert_eq!(logins(&service), 2, "without expires_at");
}

#[test]
fn expires_at_of_another_type_is_not_of_the_protocol() {
    for expires_at in [
        json!(true),
        json!([]),
        json!({}),
        json!("soon"),
        json!("NaN"),
    ] {
        let service = fresh()
            .login_data(json!({"expires_at": expires_at}))
            .start();
        for n in 1..=2 {
            fails(&client(&service), ErrorKind::Protocol);
            assert_eq!((logins(&service), texts(&service)), (n, 0), "{expires_at}");
        }
        let body = json!({"data": {"token": "SENTINEL", "expires_at": expires_at}});
        held_in_login(200, body.to_string(), ErrorKind::Protocol);
    }
}

#[test]
fn a_token_is_good_in_its_last_second_and_not_in_the_next() {
    // Once more where the second ended between the two chats.
    let logins_in_one_second = || loop {
        let service = fresh().expires_in(0).start();
        let began = unix_now();
        let outcomes = [0; 2].map(|_| client(&service).complete("Hi").is_ok());
        if unix_now() == began {
            return (outcomes, logins(&service));
        }
    };
    assert_eq!(logins_in_one_second(), ([true; 2], 1));

    let service = fresh().expires_in(1).start();
    let client = client(&service);
    chat(&client);
    let limit = unix_now() + 1; // or more, where a second has passed since the login
    while unix_now() <= limit {
        thread::sleep(Duration::from_millis(10));
    }
    chat(&client);
    assert_eq!(
        (logins(&service), texts(&service)),
        (2, 2),
        "it was not even tried"
    );
}

#[test]
fn a_refused_token_costs_one_login_and_one_more_submission() {
    for status in [401, 403] {
        let refuse = Arc::new(AtomicBool::new(false));
        let refuses = refuse.clone();
        let service = fresh().on(Endpoint::Text, move |request, peer| {
            match refuses.swap(false, SeqCst) {
                true => peer.respond(status, "text/plain", "no more"),
                false => peer.normal(request),
            }
        });
        let service = service.start();
        let client = client(&service);
        chats(&client, 2);
        refuse.store(true, SeqCst);
        assert_eq!(chat(&client).attempts, 1, "that is no retry");
        assert_eq!((logins(&service), texts(&service)), (2, 4), "{status}");
        chats(&client, 4);
        assert_eq!(logins(&service), 2, "the new token has its five uses");
    }

    let service = fresh().start();
    let client = client(&service);
    chat(&client);
    service.revoke_logins();
    chats(&client, 5);
    assert_eq!((logins(&service), texts(&service)), (2, 7));
    let seen = held(&service, |revoked| {
        if revoked {
            service.revoke_logins();
        }
    });
    assert_eq!(seen.status, "ok");
}

#[test]
fn of_two_refused_tokens_the_second_is_not_tried() {
    let (service, up) = stalling();
    let client = client(&service);
    let outer = suspended_in_login(&client, &service);
    chat(&client);
    up.store(true, SeqCst);
    outer.finish().unwrap();
    assert_eq!(
        (logins(&service), texts(&service)),
        (2, 2),
        "each with four uses left"
    );
    service.revoke_logins();
    chat(&client);
    assert_eq!(
        (logins(&service), texts(&service)),
        (3, 4),
        "one login, one submission more"
    );
}

#[test]
fn threads_whose_token_is_refused_share_the_new_logins() {
    for _ in 0..10 {
        let service = fresh().start();
        let client = client(&service);
        chat(&client);
        service.revoke_logins();
        thread::scope(|scope| {
            (0..16).for_each(|_| drop(scope.spawn(|| chat(&client))));
        });
        assert_eq!(logins(&service), 1 + 4);
        let refused = texts(&service) - 17;
        assert!(
            (1..=4).contains(&refused),
            "{refused}: at most the uses that were left"
        );
    }
}

#[test]
fn a_token_refused_in_the_chat_that_got_it_is_an_auth_error() {
    for (status, body) in [
        (401, ""),
        (403, "{}"),
        (401, "<html>"),
        (200, r#"{"code": 401}"#),
    ] {
        let service = fresh().on(Endpoint::Text, move |_, peer| {
            peer.respond(status, "text/html", body)
        });
        let service = service.start();
        for n in 1..=2 {
            fails(
                &builder(&service).retries(2).build().unwrap(),
                ErrorKind::Auth,
            );
            assert_eq!(
                (logins(&service), texts(&service)),
                (n, n),
                "{status} {body}"
            );
        }
        let fault = Fault::default();
        let service = fault.at(fresh(), Endpoint::Text, move |peer| {
            peer.respond(status, "text/html", body)
        });
        let seen = held(&service.start(), |on| fault.turn(on));
        assert_eq!(seen.status, "auth", "{seen:?}");
    }

    // An old token first, then one of its own: both refused.
    let service = fresh().on(Endpoint::Text, |request, peer| match peer.nth() {
        0 => peer.normal(request),
        _ => peer.respond(401, "text/plain", ""),
    });
    let service = service.start();
    let client = client(&service);
    chat(&client);
    fails(&client, ErrorKind::Auth);
    assert_eq!((logins(&service), texts(&service)), (2, 3));
}

#[test]
fn a_submission_that_failed_counts_no_use() {
    let bodies = [
        "{}",
        r#"{"code": 9}"#,
        "no JSON",
        r#"{"data": {"token": ""}}"#,
    ];
    let bodies: Vec<String> = bodies.iter().map(|body| body.to_string()).collect();
    for (status, kinds) in [
        (
            200,
            [
                ErrorKind::Protocol,
                ErrorKind::Server,
                ErrorKind::Protocol,
                ErrorKind::Protocol,
            ],
        ),
        (400, [ErrorKind::Request; 4]),
        (429, [ErrorKind::RateLimit; 4]),
        (503, [ErrorKind::Server; 4]),
    ] {
        let service = fresh()
            .on(Endpoint::Text, first(status, bodies.clone()))
            .start();
        let client = client(&service);
        for kind in kinds {
            fails(&client, kind);
        }
        chats(&client, 5);
        assert_eq!((logins(&service), texts(&service)), (1, 9), "HTTP {status}");
        chat(&client);
        assert_eq!(logins(&service), 2, "HTTP {status}");
    }
}

/// The service counts it, for all that the client knows.
#[test]
fn a_submission_that_was_cancelled_before_its_answer_counts_a_use() {
    let service = fresh()
        .on(Endpoint::Text, |request, peer| {
            if peer.nth() == 0 {
                assert!(peer.client_closed(Duration::from_secs(5)));
            }
            peer.normal(request);
        })
        .start();
    let client = client(&service);
    let mut stream = client.stream("Hi").unwrap();
    while texts(&service) == 0 {
        assert_eq!(stream.next_event(), Some(Event::Tick));
    }
    drop(stream);
    chats(&client, 5);
    // None was submitted with a token that had served five already, and refused.
    assert_eq!((logins(&service), texts(&service)), (2, 6));
}

#[test]
fn a_submission_that_was_answered_with_nonsense_counts_a_use_whenever_that_came() {
    for pause in [0, 200].map(Duration::from_millis) {
        let service = fresh().on(Endpoint::Text, move |request, peer| match peer.nth() {
            0..5 => {
                peer.pause(pause);
                peer.send("nonsense\r\n\r\n");
                peer.close();
            }
            _ => peer.normal(request),
        });
        let service = service.start();
        let client = client(&service);
        (0..5).for_each(|_| drop(fails(&client, ErrorKind::Protocol)));
        chat(&client);
        assert_eq!((logins(&service), texts(&service)), (2, 6), "{pause:?}");
    }
}

/// Nothing of it was sent: it counts for nothing.
#[test]
fn a_chat_that_was_cancelled_before_its_submission_counts_no_use() {
    let service = fresh().start();
    let client = client(&service);
    chat(&client);
    for _ in 0..10 {
        drop(client.stream("Hi").unwrap());
    }
    chats(&client, 4);
    assert_eq!((logins(&service), texts(&service)), (1, 5));
}

#[test]
fn a_failed_login_leaves_the_tokens_as_they_were() {
    for (status, body, kind) in [
        (500, "{}", ErrorKind::Server),
        (500, "", ErrorKind::Server),
        (429, "", ErrorKind::RateLimit),
        (404, "<html>", ErrorKind::Request),
        (401, "", ErrorKind::Auth),
        (403, "<html>", ErrorKind::Auth),
        (200, "<html>", ErrorKind::Protocol),
        (200, "", ErrorKind::Protocol),
        (200, "{}", ErrorKind::Auth),
        (200, "null", ErrorKind::Auth),
        (200, r#"{"data": {"token": ""}}"#, ErrorKind::Auth),
        (200, r#"{"data": {"token": 5}}"#, ErrorKind::Auth),
        (
            200,
            r#"{"data": {"token": "t", "expires_at": []}}"#,
            ErrorKind::Protocol,
        ),
    ] {
        let service = fresh().on(Endpoint::Login, move |request, peer| {
            match request.header("x-auth-appid") == Some("77") && peer.nth() <= 2 {
                true => peer.respond(status, "application/json", body),
                false => peer.normal(request),
            }
        });
        let service = service.start();
        let (good, bad) = (
            client(&service),
            builder(&service).app_id("77").build().unwrap(),
        );
        chat(&good);
        fails(&bad, kind);
        fails(&bad, kind);
        assert_eq!(
            (logins(&service), texts(&service)),
            (3, 1),
            "{status} {body}"
        );
        chats(&good, 4);
        chats(&bad, 5);
        assert_eq!(
            (logins(&service), texts(&service)),
            (4, 10),
            "{status} {body}"
        );
        held_in_login(status, body.to_owned(), kind);
    }
}

#[test]
fn an_answer_without_its_token_carries_the_services_words() {
    use ErrorKind::{Auth, Protocol, RateLimit, Server};
    for (endpoint, body, kind, code, words) in [
        (
            Endpoint::Login,
            r#"{"code": 1001, "msg": "no such app"}"#,
            Auth,
            "1001",
            "no such app",
        ),
        (
            Endpoint::Login,
            r#"{"code": "x", "message": "closed"}"#,
            Auth,
            "x",
            "closed",
        ),
        (
            Endpoint::Text,
            r#"{"code": 401, "msg": "who?"}"#,
            Auth,
            "401",
            "who?",
        ),
        (
            Endpoint::Text,
            r#"{"code": 403, "msg": "not you"}"#,
            Auth,
            "403",
            "not you",
        ),
        (
            Endpoint::Text,
            r#"{"code": 429, "msg": "slowly"}"#,
            RateLimit,
            "429",
            "slowly",
        ),
        (
            Endpoint::Text,
            r#"{"code": 7, "message": "dunno"}"#,
            Server,
            "7",
            "dunno",
        ),
        (Endpoint::Text, r#"{"msg": "sorry"}"#, Protocol, "", "sorry"),
        (
            Endpoint::Stream,
            r#"{"error": {"code": "busy", "message": "later"}}"#,
            Server,
            "busy",
            "later",
        ),
        (
            Endpoint::Stream,
            r#"{"code": 500, "msg": "oops"}"#,
            Server,
            "500",
            "oops",
        ),
        (
            Endpoint::Stream,
            r#"{"content": null, "error": "broken"}"#,
            Server,
            "",
            "broken",
        ),
        (Endpoint::Stream, r#"{"content": 5}"#, Protocol, "", ""),
        (Endpoint::Stream, r#"["content"]"#, Protocol, "", ""),
        (Endpoint::Stream, "5", Protocol, "", ""),
    ] {
        let service = fresh().on(endpoint, move |_, peer| match endpoint {
            Endpoint::Stream => {
                let skipped =
                    "data: {\"code\": 0}\ndata: {\"code\": 200, \"content\": null}\ndata:\n";
                peer.sse_head();
                peer.chunk(format!(
                    "{skipped}data: {{\"content\": \"Hel\"}}\ndata: {body}\n\n"
                ));
                peer.last_chunk();
            }
            _ => peer.respond(200, "text/html", format!("\u{feff}{body}")),
        });
        let service = service.start();
        let error = fails(&client(&service), kind);
        assert_eq!(error.code().unwrap_or(""), code, "{body}: {error}");
        assert!(error.to_string().contains(words), "{body}: {error}");
        let delivered = if endpoint == Endpoint::Stream {
            "Hel"
        } else {
            ""
        };
        assert_eq!(
            error.reply().map(|reply| &*reply.text),
            Some(delivered),
            "{body}"
        );
    }
}

#[test]
fn a_login_token_that_no_header_can_hold_is_not_of_the_protocol() {
    for bad in ["\r", "\n", "\r\nx: y", "\0", "\u{7f}", "é", "令牌"] {
        let token = format!("SENTINEL{bad}SENTINEL");
        let service = fresh().login_data(json!({"token": token})).start();
        let error = fails(&client(&service), ErrorKind::Protocol);
        assert!(
            !format!("{error} {error:?}").contains("SENTINEL"),
            "{error}"
        );
        assert_eq!((logins(&service), texts(&service)), (1, 0), "{token:?}");
        let body = json!({"data": {"token": token}}).to_string();
        held_in_login(200, body, ErrorKind::Protocol);
    }
    let odd = "a b&c#d%e+f/g=\"h\\i,j;";
    let service = fresh().login_data(json!({"token": odd})).start();
    chat(&client(&service));
    let bearer = format!("Bearer {odd}");
    assert_eq!(
        service.requests()[1].header("authorization"),
        Some(&*bearer)
    );
    assert_eq!(held(&service, |_| ()).status, "ok");
}

#[test]
fn a_token_that_is_too_long_is_not_of_the_protocol() {
    for (bytes, is_good) in [(4 << 10, true), (70 << 10, false)] {
        let token = "t".repeat(bytes);
        let answer = json!({"data": {"token": token}}).to_string();
        let of_login = fresh().login_data(json!({"token": token}));
        let of_stream = fresh()
            .on(Endpoint::Text, move |_, peer| {
                peer.respond(200, "application/json", &answer)
            })
            .on(Endpoint::Stream, |_, peer| {
                peer.respond(200, "application/json", r#"{"content": "Hello"}"#)
            });
        for (service, sent) in [(of_login, (1, 0, 0)), (of_stream, (1, 1, 0))] {
            let service = service.start();
            if is_good {
                chat(&client(&service));
                continue;
            }
            let error = fails(&client(&service), ErrorKind::Protocol);
            assert_eq!(error.code(), Some("token"), "{error}");
            let shown = format!("{error} {error:?} {:?}", error.body());
            assert!(!shown.contains("tttttttt"), "{shown}");
            let streams = service.count(Endpoint::Stream);
            assert_eq!((logins(&service), texts(&service), streams), sent);
        }
    }
}

#[test]
fn words_of_a_login_that_are_not_utf8_are_no_reason_to_fail() {
    let service = fresh()
        .on(Endpoint::Login, |_, peer| {
            let body = b"{\"data\": {\"token\": \"good\"}, \"msg\": \"\xb3\xc9\xb9\xa6\"}";
            peer.respond(200, "application/json", body);
        })
        .on(Endpoint::Text, |request, peer| {
            let is_good = request.header("authorization") == Some("Bearer good");
            let status = if is_good { 200 } else { 401 };
            peer.respond(status, "application/json", r#"{"data": {"token": "t"}}"#);
        })
        .on(Endpoint::Stream, |_, peer| {
            peer.respond(200, "application/json", r#"{"content": "Hello"}"#)
        });
    let service = service.start();
    assert_eq!(chat(&client(&service)).text, "Hello");
    assert_eq!((logins(&service), texts(&service)), (1, 1));
}

#[test]
fn a_chat_that_waits_for_anothers_login_keeps_its_own_deadline() {
    let (service, _) = stalling();
    let holder = client(&service);
    thread::scope(|scope| {
        let held = scope.spawn(|| holder.complete("Hi"));
        assert!(service.wait_until(|s| logins(s) == 1));
        let limit = Duration::from_millis(300);
        let client = builder(&service).timeout(Some(limit)).build().unwrap();
        let started = Instant::now();
        fails(&client, ErrorKind::Timeout);
        let took = started.elapsed();
        assert!((limit..limit + LATE).contains(&took), "{took:?}");
        assert_eq!(logins(&service), 1, "it did wait");
        assert!(holder.cancel_handle().cancel());
        assert_eq!(
            held.join().unwrap().unwrap_err().kind(),
            ErrorKind::Cancelled
        );
    });
    chat(&holder);
    assert_eq!(logins(&service), 2);
}

#[test]
fn a_chat_that_waits_for_anothers_login_can_be_cancelled() {
    let (service, up) = stalling();
    let (holder, client) = (client(&service), client(&service));
    thread::scope(|scope| {
        let held = scope.spawn(|| holder.complete("Hi"));
        assert!(service.wait_until(|s| logins(s) == 1));
        let mut stream = client.stream("Hi").unwrap();
        assert_eq!(
            stream.next_event(),
            Some(Event::Tick),
            "it waits, and ticks"
        );
        let cancel = stream.cancel_handle();
        let waiting = scope.spawn(move || (stream.finish(), Instant::now()));
        let cancelled = Instant::now();
        assert!(cancel.cancel());
        let (outcome, ended) = waiting.join().unwrap();
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Cancelled);
        assert!(ended - cancelled < LATE, "{:?}", ended - cancelled);

        // The one that logs in is not affected.
        up.store(true, SeqCst);
        held.join().unwrap().unwrap();
    });
    assert_eq!((logins(&service), texts(&service)), (1, 1));
}

#[test]
fn a_chat_inside_anothers_callback_works() {
    let service = fresh().reply(|prompt| format!("one two {prompt}")).start();
    let client = client(&service);
    let mut inner = 0;
    let reply = client.chat("Hi", |_| {
        chats(&client, 3);
        inner += 3;
        ControlFlow::Continue(())
    });
    assert_eq!((reply.unwrap().text.as_str(), inner), ("one two Hi", 9));
    assert_eq!((logins(&service), texts(&service)), (2, 10));
    assert!(service.refusals().is_empty());
}

#[test]
fn a_chat_works_while_another_of_its_thread_is_suspended_in_its_login() {
    let (service, up) = stalling();
    let client = client(&service);
    let outer = suspended_in_login(&client, &service);
    chats(&client, 5);
    assert_eq!((logins(&service), texts(&service)), (2, 5));

    up.store(true, SeqCst);
    assert_eq!(outer.finish().unwrap().text, "You said: Hi");
    assert_eq!((logins(&service), texts(&service)), (2, 6));
    chats(&client, 4);
    assert_eq!(logins(&service), 2, "its own login has four uses left");
    chat(&client);
    assert_eq!(logins(&service), 3);
}

#[test]
fn a_chat_that_nobody_pulls_does_not_keep_other_threads_from_their_logins() {
    let (service, up) = stalling();
    let client = client(&service);
    let outer = suspended_in_login(&client, &service);
    thread::scope(|scope| {
        (0..4).for_each(|_| drop(scope.spawn(|| chat(&client))));
    });
    assert_eq!((logins(&service), texts(&service)), (2, 4));
    up.store(true, SeqCst);
    outer.finish().unwrap();
    assert_eq!((logins(&service), texts(&service)), (2, 5));
}

#[test]
fn a_panic_in_a_callback_leaves_everything_usable() {
    let service = fresh().start();
    let client = client(&service);
    for _ in 0..2 {
        let call = || client.chat("Hi", |_| resume_unwind(Box::new("the callback's")));
        let panic = catch_unwind(AssertUnwindSafe(call)).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"the callback's"));
        chat(&client);
    }
    assert!(!client.cancel_handle().cancel(), "no chat is left running");
    chat(&client);
    assert_eq!((logins(&service), texts(&service)), (1, 5));
    assert!(service.refusals().is_empty());
}

#[test]
fn a_panic_in_the_midst_of_a_login_lets_another_chat_log_in() {
    let (service, _) = stalling();
    let client = client(&service);
    let call = || {
        let _stream = suspended_in_login(&client, &service);
        resume_unwind(Box::new(()));
    };
    catch_unwind(AssertUnwindSafe(call)).unwrap_err();
    thread::scope(|scope| drop(scope.spawn(|| chats(&client, 5))));
    assert_eq!((logins(&service), texts(&service)), (2, 5));
}

/// The service counts it, for all that the client knows.
#[test]
fn a_submission_that_ran_out_of_time_counts_a_use() {
    let service = fresh()
        .on(Endpoint::Text, |request, peer| {
            if peer.nth() == 0 {
                assert!(peer.client_closed(Duration::from_secs(5)));
            }
            peer.normal(request);
        })
        .start();
    let hasty = builder(&service).response_timeout(Some(Duration::from_millis(200)));
    fails(&hasty.build().unwrap(), ErrorKind::Timeout);
    chats(&client(&service), 5);
    assert_eq!((logins(&service), texts(&service)), (2, 6));
}
