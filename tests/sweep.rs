//! The n-th system call of a chat fails, is short or is interrupted, for every n: an error that says
//! what happened, or none; never a panic, a hang, a leak, or text that is wrong.
//!
//! `tests/c/shim.c` stands between `tests/c/sweep.c` and the system, and `sweep.c` says what holds
//! after each chat; here are the services, and the ways to them.

#![cfg(all(target_os = "linux", target_env = "gnu"))]

mod programs;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use gptalk_service::Service;
use programs::sweep_keeps;
use serde_json::json;

/// What every chat is told: several pieces, and characters of every length.
const REPLY: &str = "Grüße aus 東京 und «наша» Welt 💥!";

const GPTALK: &str = "gptalk";
const OPENAI: &str = "openai";

/// A service whose logins have expired when they come: each serves the chat that logged in.
fn cold() -> Service {
    Service::builder()
        .reply(|_| REPLY.into())
        .login_data(json!({"expires_at": 1}))
        .start()
}

/// The way to a service by name, for which the system has to be asked.
fn by_name(service: &Service) -> String {
    service.url().replace("127.0.0.1", "localhost")
}

/// The requests were good. One for a stream may come once more, on a new connection: its token serves once.
#[track_caller]
fn assert_well_asked(service: &Service) {
    let mut refusals = service.refusals();
    refusals.retain(|refusal| refusal != "stream: the token is unknown or used");
    assert_eq!(refusals, [""; 0]);
}

#[track_caller]
fn every_call(protocol: &str, url: impl FnOnce(&Service) -> String, proxy: Option<&str>) {
    let service = cold();
    let mut args = vec![protocol, "", REPLY];
    let url = url(&service);
    args[1] = &url;
    args.extend(proxy);
    sweep_keeps("every_call", &args);
    assert_well_asked(&service);
}

#[test]
fn every_call_of_a_gptalk_chat_may_fail() {
    every_call(GPTALK, Service::url, None);
}

#[test]
fn every_call_of_an_openai_chat_may_fail() {
    every_call(OPENAI, Service::url, None);
}

#[test]
fn every_call_may_fail_on_the_way_to_a_name() {
    every_call(OPENAI, by_name, None);
}

#[test]
fn every_call_may_fail_on_the_way_through_a_proxy() {
    let proxy = proxy();
    for scheme in ["http", "socks5h"] {
        // With a name and a password: the way has all the steps that there are.
        let proxy = format!("{scheme}://user:password@localhost:{}", proxy.port());
        every_call(OPENAI, Service::url, Some(&proxy));
    }
}

#[test]
fn every_call_may_fail_on_a_connection_and_a_login_that_have_served() {
    for protocol in [GPTALK, OPENAI] {
        let service = Service::builder().reply(|_| REPLY.into()).start();
        sweep_keeps(
            "every_call_of_a_warm_chat",
            &[protocol, &service.url(), REPLY],
        );
        assert_well_asked(&service);
    }
}

#[test]
fn every_call_may_do_little_and_be_interrupted() {
    for protocol in [GPTALK, OPENAI] {
        let service = cold();
        sweep_keeps("short_and_interrupted", &[protocol, &service.url(), REPLY]);
        assert_well_asked(&service);
    }
}

#[test]
fn random_numbers_may_be_few_or_late_or_come_from_elsewhere() {
    for protocol in [GPTALK, OPENAI] {
        let service = cold();
        sweep_keeps("first_random_numbers", &[protocol, &service.url(), REPLY]);
        assert_well_asked(&service);
    }
}

// ---- a proxy ----

/// A proxy of both kinds, HTTP and SOCKS, until the test's process ends.
fn proxy() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A client that goes in the middle of its words is what the tests are about.
            thread::spawn(move || serve(&client));
        }
    });
    address
}

fn serve(mut client: &TcpStream) -> io::Result<()> {
    let mut first = [0];
    client.peek(&mut first)?;
    let target = match first {
        [5] => greet_socks(client)?,
        _ => greet_http(client)?,
    };
    let service = TcpStream::connect(target)?;
    service.set_nodelay(true)?;
    client.set_nodelay(true)?;
    let copy = |mut from: &TcpStream, mut to: &TcpStream| {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    };
    match first {
        [5] => client.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 0])?,
        _ => client.write_all(b"HTTP/1.1 200 Connected\r\nvia: test\r\n\r\n")?,
    }
    thread::scope(|scope| {
        scope.spawn(|| copy(client, &service));
        copy(&service, client);
    });
    Ok(())
}

/// The address that is asked for, an IPv4 one.
fn greet_http(mut client: &TcpStream) -> io::Result<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head);
    let target = head.split(' ').nth(1).unwrap_or_default();
    Ok(target.to_owned())
}

/// The address that is asked for, an IPv4 one.
fn greet_socks(mut client: &TcpStream) -> io::Result<String> {
    let methods = read(client, 2)?[1];
    read(client, methods.into())?;
    client.write_all(&[5, 2])?;
    read(client, 1)?;
    for _ in ["user", "password"] {
        let length = read(client, 1)?[0];
        read(client, length.into())?;
    }
    client.write_all(&[1, 0])?;
    let [.., a, b, c, d, high, low] = read(client, 10)?[..] else {
        return Ok(String::new());
    };
    let port = u16::from_be_bytes([high, low]);
    Ok(format!("{a}.{b}.{c}.{d}:{port}"))
}

fn read(mut client: &TcpStream, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    client.read_exact(&mut bytes)?;
    Ok(bytes)
}
