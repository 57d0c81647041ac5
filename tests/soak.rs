//! Thousands of chats with whatever may go wrong, at random and all at once: nothing is lost, doubled
//! or leaked.
//!
//!     cargo test --release --test soak -- --ignored --nocapture
//!
//! The service is this program once more, as a process of its own, so that memory, descriptors and
//! threads here are the client's alone. Both know from one seed what is to befall which chat
//! ([`Plan`]), and [`FAULTS`] says how it may end then. GPTALK_SOAK_SEED=... makes the same plans
//! again; the threads race as they like.

#![cfg(target_os = "linux")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicIsize, AtomicU64, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use std::{env, fs, mem, thread};

use gptalk::{Client, Error, ErrorKind, Event, Reply};
use gptalk_service::Endpoint::{self, Chat, Login, Other, Stream, Text};
use gptalk_service::{Peer, Request, Service};
use serde_json::{Value, json};

/// Longer than anything here takes: what meets it has hung.
const LONG: Duration = Duration::from_secs(20);
/// How many chats a login token serves.
const USES: u32 = 5;
/// The first of the chats that nothing befalls.
const QUIET: u64 = 1 << 32;
const SEED: &str = "GPTALK_SOAK_SEED";
/// How many threads chat, if not 16.
const THREADS: &str = "GPTALK_SOAK_THREADS";
/// Its value is the seed of the service that this process is to be.
const SERVICE: &str = "GPTALK_SOAK_SERVICE";

#[test]
fn chats_with_faults_at_random_lose_and_leak_nothing() {
    if let Some(seed) = number(SERVICE) {
        return serve(seed);
    }
    soak(1_500);
}

#[test]
#[ignore = "takes half a minute: cargo test --release --test soak -- --ignored --nocapture"]
fn ten_thousand_chats_with_faults_at_random_lose_and_leak_nothing() {
    let tally = soak(10_000);
    for (fault, _, kinds) in FAULTS {
        for kind in kinds {
            let has_been = tally.contains_key(&format!("{fault:?} {kind}"));
            assert!(has_been, "{fault:?} has ended no chat as {kind}");
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

// ---- what is to happen ----

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Nothing,
    Busy,
    Revoked,
    Break,
    Cut,
    Reset,
    Silence,
    Garbage,
    Malformed,
    BadChunk,
    Reported,
    TooLong,
    Nobody,
}
use Fault::*;

const ANY: &[Endpoint] = &[Login, Text, Stream];
const REPLY: &[Endpoint] = &[Stream];

/// Whom a fault may befall, and how it may end a chat.
const FAULTS: [(Fault, &[Endpoint], &[ErrorKind]); 12] = [
    // It asks for a retry at once.
    (Busy, ANY, &[ErrorKind::Server, ErrorKind::RateLimit]),
    // The login token is no longer good.
    (Revoked, &[Text], &[ErrorKind::Auth]),
    // The connection ends before the answer; or in it, in order or not.
    (Break, ANY, &[ErrorKind::Network]),
    (Cut, ANY, &[ErrorKind::Truncated]),
    (Reset, REPLY, &[ErrorKind::Truncated]),
    // The answer does not come, or does not go on.
    (Silence, &[Text, Stream], &[ErrorKind::Timeout]),
    // It is not HTTP, or its header has no end; it is not JSON; it has a chunk without a length.
    (Garbage, ANY, &[ErrorKind::Protocol, ErrorKind::Limit]),
    (Malformed, ANY, &[ErrorKind::Protocol]),
    (BadChunk, REPLY, &[ErrorKind::Protocol]),
    // The service's own error, in the stream.
    (Reported, REPLY, &[ErrorKind::Server]),
    // It is more than the client wants to have.
    (TooLong, REPLY, &[ErrorKind::Limit]),
    // Nobody listens.
    (Nobody, REPLY, &[ErrorKind::Network]),
];

/// How the client leaves a chat before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    Never,
    Cancel(u64),  // at that piece of text, from within
    Drop(u64),    // at that event, be it text or not, where the chat is pulled
    Outside(u64), // by a cancel on another thread, after so many microseconds
}

/// What is to befall a chat.
#[derive(Debug)]
struct Plan {
    openai: bool,
    retries: u32,
    fault: Fault,
    at: Endpoint,
    kinds: &'static [ErrorKind],
    times: u32,    // that the fault comes
    pieces: usize, // of the reply
    cut: usize,    // pieces that come before the fault
    leave: Leave,
}

impl Plan {
    fn of(seed: u64, n: u64) -> Plan {
        let mut rng = Rng::new(seed, n);
        let pieces = rng.between(8, 40);
        let mut plan = Plan {
            openai: n < QUIET && rng.one_in(3),
            retries: rng.pick(&[0, 1, 2]),
            fault: Nothing,
            at: Other,
            kinds: &[],
            times: 1,
            pieces: pieces as usize,
            cut: rng.between(1, pieces - 1) as usize,
            leave: Leave::Never,
        };
        if n >= QUIET {
            return plan;
        }
        let (fault, at, kinds) = rng.pick(&FAULTS);
        if rng.one_in(2) && (!plan.openai || at.contains(&Stream)) {
            (plan.fault, plan.kinds) = (fault, kinds);
            plan.at = if plan.openai { Chat } else { rng.pick(at) };
        }
        match fault {
            Busy | Revoked | Break => plan.times = rng.pick(&[1, 2]),
            Nobody => plan.retries = plan.retries.min(1), // each waits
            _ => {}
        }
        match rng.between(0, 19) {
            0 | 1 => plan.leave = Leave::Cancel(rng.between(1, pieces)),
            2..=5 => plan.leave = Leave::Drop(rng.between(1, 40)),
            6 | 7 => plan.leave = Leave::Outside(rng.between(0, 15_000)),
            _ => {}
        }
        plan
    }

    /// Where a chat is left at any moment, it is a matter of luck what that does to logins and their
    /// uses. So such chats share logins among themselves, and the others theirs.
    fn app_id(&self) -> &'static str {
        match self.leave {
            Leave::Drop(_) | Leave::Outside(_) => "hasty",
            _ => "patient",
        }
    }

    /// The pieces of the reply, which no other chat has.
    fn reply(&self, n: u64) -> Vec<String> {
        const SPICE: [&str; 6] = ["", "é", "🙂", "\"", "漢字", "\\n"];
        let piece = |at| format!("{n}.{at}{} ", SPICE[(n as usize + at) % SPICE.len()]);
        (0..self.pieces).map(piece).collect()
    }

    /// How many retries the fault may cost; all where it is never overcome.
    fn most_retries(&self) -> u32 {
        match (self.at, self.fault) {
            (_, Nobody) => self.retries,
            (_, Busy) | (Login, Break | Cut) => self.retries.min(self.times),
            _ => 0,
        }
    }

    /// Whether a chat that nobody has left may end so, after that many pieces.
    fn allows(&self, end: Option<ErrorKind>, count: usize) -> bool {
        let is_overcome = self.fault != Nobody && self.most_retries() == self.times;
        let Some(kind) = end else {
            let may_pass = match self.fault {
                Nothing => true,
                // Perhaps it need not log in.
                _ if self.at == Login => true,
                // A connection that was idle is replaced once, and so is another chat's token.
                Break | Revoked => self.times == 1,
                _ => is_overcome,
            };
            return may_pass && count == self.pieces;
        };
        let is_right = match self.fault {
            // A reset takes with it what has not been read; a short time limit may pass anywhere.
            Reset | Silence => count <= self.cut,
            Break | Busy | Garbage | Nobody => count == 0,
            _ if is_reply(self.at) => count == self.cut,
            _ => count == 0,
        };
        is_right && !is_overcome && self.kinds.contains(&kind)
    }
}

fn is_reply(endpoint: Endpoint) -> bool {
    matches!(endpoint, Stream | Chat)
}

fn prompt(n: u64) -> String {
    format!("tell me about {n}")
}

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn new(seed: u64, n: u64) -> Rng {
        Rng(seed ^ n.wrapping_mul(0xD6E8_FEB8_6659_FD93))
    }

    /// Both ends are among them.
    fn between(&mut self, least: u64, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        least + (z ^ (z >> 31)) % (most - least + 1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.between(1, n) == 1
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.between(0, from.len() as u64 - 1) as usize]
    }
}

// ---- the service ----

/// What the service knows.
#[derive(Default)]
struct Books {
    chats: HashMap<u64, Record>,
    tokens: Vec<Token>,                 // at the number in them
    logins: HashMap<&'static str, u64>, // that were begun as whom
    wrong: Vec<String>,                 // that clients have done
}

/// What it knows of a chat.
#[derive(Default)]
struct Record {
    requests: u64,
    hits: u32,
    broken: bool, // its submission, which may come again on another connection
}

/// A login token.
#[derive(Default)]
struct Token {
    app_id: &'static str,
    shown: bool,
    uses: u32, // that count, or may: those that got no answer
    revoked: bool,
}

fn books() -> MutexGuard<'static, Books> {
    static BOOKS: LazyLock<Mutex<Books>> = LazyLock::new(Mutex::default);
    BOOKS.lock().expect("no panic")
}

/// Serves until stdin ends: the other process has ended then, however it did. For each line from there
/// it tells what it knows.
fn serve(seed: u64) {
    let mut service = Service::builder();
    for endpoint in [Login, Text, Stream, Chat] {
        service = service.on(endpoint, move |request, peer| handle(seed, request, peer));
    }
    let service = service.start();
    for _ in io::stdin().lines() {
        // This is the last in the queue: when it is served, no connection is still to be accepted;
        // and when all have ended, whatever was sent has been read.
        let asked = service.count(Other);
        let mut last = TcpStream::connect(("127.0.0.1", service.port())).expect("itself");
        last.write_all(b"GET /last HTTP/1.1\r\n\r\n").expect("sent");
        assert!(service.wait_until(|service| service.count(Other) > asked));
        drop(last);
        assert!(service.wait_until(|service| service.open_connections() == 0));
        println!("\ntold {}", books().told(&service.url()));
    }
}

fn handle(seed: u64, request: &Request, peer: &mut Peer) {
    let n = request.header("x-soak").and_then(|n| n.parse().ok());
    let n: u64 = n.expect("the number of the chat");
    let plan = Plan::of(seed, n);
    let (fault, begun, token) = books().admit(request, n, &plan);
    if request.endpoint == Login {
        peer.pause(Duration::from_millis(2)); // time for others to do the wrong thing
        let has_begun = books().logins[plan.app_id()] > begun;
        // Then the client has left this one: it is about to close.
        if has_begun && !peer.client_closed(LONG / 4) {
            books().wrong.push(format!("{n}: two logins at a time"));
        }
    }
    let mut rng = Rng::new(!seed, n << 20 | begun);
    let is_reply = is_reply(request.endpoint);
    match fault {
        Break => return rng.pick::<fn(&mut Peer)>(&[Peer::close, Peer::reset])(peer),
        Silence if !is_reply || rng.one_in(3) => return peer.stall(),
        Garbage => {
            let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(70 << 10));
            peer.send(rng.pick(&["SSH-2.0-OpenSSH_9.2\r\n", &endless]));
            return peer.stall();
        }
        Busy => {
            peer.header("retry-after", "0");
            return peer.respond(rng.pick(&[429, 503]), "text/html", "");
        }
        Revoked => return peer.respond(401, "text/html", "<title>No</title>"),
        _ => {}
    }
    let (before, after) = match is_reply {
        true => events(n, &plan, &mut rng),
        false => {
            let data = json!({"token": token, "expires_at": i64::MAX});
            let body = json!({"code": 0, "data": data}).to_string();
            (body[..20].to_owned(), body[20..].to_owned())
        }
    };
    let is_open = matches!(fault, Cut | Reset | Silence | BadChunk);
    let body = match fault {
        _ if is_open && is_reply => before + "data: {\"cont",
        Malformed if is_reply => before + "data: {\"content\": oops}\n\n" + &after,
        Malformed | Cut => before,
        Reported => before + "data: {\"error\": {\"message\": \"no\"}}\n\n" + &after,
        _ => before + &after,
    };
    peer.send("HTTP/1.1 103 Hint\r\nlink: a\r\n\r\n".repeat(rng.pick(&[0, 0, 0, 0, 1, 3])));
    if is_open || rng.one_in(2) {
        // In chunks that know nothing of lines or characters.
        let mut rest = body.as_bytes();
        peer.sse_head();
        while !rest.is_empty() {
            let size = rng.between(1, 1_000) as usize;
            let (chunk, others) = rest.split_at(size.min(rest.len()));
            peer.chunk(chunk);
            peer.pause(Duration::from_millis(rng.between(0, 50).saturating_sub(46)));
            rest = others;
        }
        // With the last bytes, so that it is there when the connection is next wanted.
        let unasked = rng.pick(&["", "", "", "HTTP/1.1 500 What\r\n\r\n"]);
        match fault {
            Cut => peer.close(),
            Reset => peer.reset(),
            Silence => peer.stall(),
            BadChunk => peer.send("oops\r\n"),
            _ => peer.send(["0\r\n\r\n", unasked].concat()),
        }
    } else if rng.one_in(8) {
        peer.send(["HTTP/1.1 200 OK\r\n\r\n", &body].concat());
        peer.close();
    } else {
        // In one write: a reset takes with it what still waits to be sent.
        peer.respond(200, "text/html", body);
        let stay: fn(&mut Peer) = |_| ();
        rng.pick(&[stay, stay, stay, stay, Peer::close, Peer::reset])(peer);
    }
}

impl Books {
    /// Puts a request on record. The fault that befalls it, how many logins there have been, or
    /// requests of the chat, and the token that its answer gives.
    fn admit(&mut self, request: &Request, n: u64, plan: &Plan) -> (Fault, u64, String) {
        let (endpoint, app_id) = (request.endpoint, plan.app_id());
        let record = self.chats.entry(n).or_default();
        record.requests += 1;
        let is_due = plan.at == endpoint && record.hits < plan.times;
        record.hits += u32::from(is_due);
        let fault = if is_due { plan.fault } else { Nothing };
        let mut wrong = |what: &str| self.wrong.push(format!("chat {n}: {endpoint:?}: {what}"));
        let body = String::from_utf8_lossy(&request.body);
        if matches!(endpoint, Text | Chat) && !body.contains(&format!("{:?}", prompt(n))) {
            wrong("the prompt is another's");
        }
        match endpoint {
            Login => {
                let begun = self.logins.entry(app_id).or_default();
                *begun += 1;
                let given = format!("login-{}", self.tokens.len());
                if fault == Nothing {
                    let token = Token::default();
                    self.tokens.push(Token { app_id, ..token });
                }
                return (fault, *begun, given);
            }
            Text => {
                let value = request.header("authorization").unwrap_or_default();
                let number = value.strip_prefix("Bearer login-").map(str::parse::<usize>);
                let token = number.and_then(|number| self.tokens.get_mut(number.ok()?));
                if let Some(token) = token.filter(|token| token.app_id == app_id) {
                    token.shown = true;
                    token.revoked |= fault == Revoked;
                    let was_broken = mem::replace(&mut record.broken, fault == Break);
                    let is_refused = matches!(fault, Busy | Revoked | Malformed);
                    token.uses += u32::from(!is_refused && !was_broken);
                    if token.uses > USES {
                        wrong("the login token has served five already");
                    }
                } else {
                    wrong("the login token is none, or another's");
                }
            }
            _ => {}
        }
        (fault, record.requests, "stream".to_owned())
    }

    /// What the other process wants to know: above all, of the patient's logins.
    fn told(&self, url: &str) -> Value {
        let good = |token: &&Token| token.app_id == "patient" && !token.revoked;
        let good = self.tokens.iter().filter(good);
        let free = good.clone().filter(|token| token.shown);
        json!({
            "url": url,
            "logins": self.logins.get("patient"),
            "free": free.map(|token| USES.saturating_sub(token.uses)).sum::<u32>(),
            // Of these the answer has come too late, perhaps.
            "unshown": good.filter(|token| !token.shown).count(),
            "wrong": self.wrong,
        })
    }
}

/// The lines of the reply: those of the pieces before the fault, and the others.
fn events(n: u64, plan: &Plan, rng: &mut Rng) -> (String, String) {
    // An event without its blank line waits for nothing in one protocol, and is joined in the other.
    let line_end = rng.pick(&["\n", "\r\n", "\r"]);
    let line_end = line_end.repeat(if plan.openai || rng.one_in(2) { 2 } else { 1 });
    let (mut so_far, mut halves) = (String::new(), <[String; 2]>::default());
    for (at, piece) in plan.reply(n).into_iter().enumerate() {
        so_far += &piece;
        let event = match plan.openai {
            true => json!({"choices": [{"index": 0, "delta": {"content": piece}}]}),
            false => json!({"content": so_far}),
        };
        let half = &mut halves[usize::from(at >= plan.cut)];
        *half += &": keep waiting\n\n".repeat(rng.pick(&[0, 0, 0, 0, 1, 50]));
        *half += &format!("data: {event}{line_end}");
    }
    let [before, mut after] = halves;
    if plan.openai {
        let stop = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
        after += &format!("data: {stop}{line_end}");
    }
    // Where it has said why it stops, that is enough.
    if !plan.openai || rng.one_in(2) {
        after += "data: [DONE]\n\n";
    }
    (before, after)
}

// ---- the chats ----

/// The service's process, which ends with this, and the way to it.
struct Process(Child, BufReader<UnixStream>);

impl Process {
    fn start(seed: u64) -> Process {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_read_timeout(Some(LONG)).expect("a limit");
        let name = "chats_with_faults_at_random_lose_and_leak_nothing";
        let child = Command::new(env::current_exe().expect("this program"))
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(SERVICE, seed.to_string())
            .stdin(OwnedFd::from(theirs.try_clone().expect("a descriptor")))
            .stdout(OwnedFd::from(theirs))
            .spawn();
        Process(child.expect("a process"), BufReader::new(ours))
    }

    /// What the service knows, once every connection to it has ended.
    fn ask(&mut self) -> Value {
        self.1.get_mut().write_all(b"\n").expect("a service");
        let mut lines = self.1.by_ref().lines().map(|line| line.expect("its word"));
        let told = lines.find_map(|line| Some(line.strip_prefix("told ")?.to_owned()));
        serde_json::from_str(&told.expect("a service that lives")).expect("JSON")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What came of a chat.
#[derive(Debug, Default)]
struct Talk {
    text: String,
    pieces: u64,
    end: Option<Result<Reply, Error>>, // none where it was dropped
    left: bool,                        // from within
    cancelled: bool,                   // by another thread, which has found it running
}

/// One chat as it is planned, judged; what was planned, and how it ended.
fn chat(client: &mut Client, seed: u64, n: u64, url: &str) -> String {
    let plan = Plan::of(seed, n);
    let pieces = plan.reply(n);
    let (mut url, mut limit, mut room) = (url, LONG.as_millis().to_string(), 1 << 24);
    match plan.fault {
        Nobody => url = "http://127.0.0.1:1",
        Silence => limit = "250".to_owned(),
        TooLong => room = pieces[..plan.cut].concat().len(),
        _ => {}
    }
    for (key, value) in [
        ("base_url", url),
        ("protocol", if plan.openai { "openai" } else { "gptalk" }),
        ("app_id", plan.app_id()),
        ("header", &format!("x-soak: {n}")),
        ("retries", &plan.retries.to_string()),
        ("idle_timeout_ms", &limit),
        ("response_timeout_ms", &limit),
        ("timeout_ms", &LONG.as_millis().to_string()),
        ("max_reply_bytes", &room.to_string()),
    ] {
        client.set(key, Some(value)).expect("an option");
    }
    if n % 7 == 0 {
        *client = client.clone();
    }
    let handle = client.cancel_handle();
    let talk = thread::scope(|scope| {
        let canceller = match plan.leave {
            Leave::Outside(after) => Some(scope.spawn(move || {
                thread::sleep(Duration::from_micros(after)); // wherever the chat is then
                handle.cancel()
            })),
            _ => None,
        };
        let mut talk = talk(client, n, &plan);
        talk.cancelled = canceller.is_some_and(|thread| thread.join().expect("a canceller"));
        talk
    });

    let count = talk.pieces as usize;
    let (reply, kind) = match &talk.end {
        None => (None, None),
        Some(Ok(reply)) => (Some(reply), None),
        Some(Err(error)) => (error.reply(), Some(error.kind())),
    };
    let is_dropped = talk.end.is_none();
    let is_cancelled = kind == Some(ErrorKind::Cancelled);
    let is_prefix = count <= pieces.len() && talk.text == pieces[..count].concat();
    let is_same = |reply: &Reply| reply.text == talk.text && reply.pieces == talk.pieces;
    let is_left = talk.left || talk.cancelled;
    let is_left_there = is_cancelled && plan.leave == Leave::Cancel(talk.pieces);
    let attempts = reply.map_or(1, |reply| reply.attempts);
    let is_right = is_cancelled || is_dropped || plan.allows(kind, count);
    let is_tried_well = (1..=1 + plan.most_retries()).contains(&attempts);
    for (holds, what) in [
        (is_prefix, "pieces are lost or doubled"),
        (reply.map_or(is_dropped, is_same), "its reply is another"),
        (is_tried_well, "it is tried too often"),
        (!talk.left || is_left_there, "it goes on after it was left"),
        (!talk.cancelled || kind.is_some(), "the cancel is lost"),
        (!is_cancelled || is_left, "nobody has cancelled it"),
        (is_right, "its fault does not end it so"),
    ] {
        assert!(
            holds,
            "{SEED}={seed}: chat {n}: {what}:\n{talk:?}\n{plan:?}"
        );
    }
    let end = match kind {
        _ if is_dropped => "dropped",
        None => "ok",
        Some(kind) => kind.name(),
    };
    format!("{:?} {end}", plan.fault)
}

fn talk(client: &Client, n: u64, plan: &Plan) -> Talk {
    let mut talk = Talk::default();
    let mut is_left = |piece: &str| {
        talk.text += piece;
        talk.pieces += 1;
        talk.left |= plan.leave == Leave::Cancel(talk.pieces);
        talk.left
    };
    talk.end = match n % 3 {
        0 => Some(client.chat(prompt(n), |piece| match is_left(piece) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })),
        1 => {
            let end = client.complete(prompt(n));
            if let Some(reply) = end.as_ref().map_or_else(Error::reply, Some) {
                (talk.text, talk.pieces) = (reply.text.clone(), reply.pieces);
            }
            Some(end)
        }
        _ => {
            let stream = client.stream(prompt(n)).expect("a chat");
            let mut stream = stream.with_events().with_log();
            for at in 1.. {
                let is_left = match stream.next_event() {
                    Some(Event::Text(piece)) => is_left(piece),
                    Some(_) => false,
                    None => break,
                };
                if plan.leave == Leave::Drop(at) {
                    return talk;
                }
                if is_left {
                    stream.cancel();
                }
            }
            Some(stream.finish())
        }
    };
    talk
}

// ---- the soak ----

/// Runs so many chats, and checks what is left of them. How often a fault has ended how.
fn soak(chats: u64) -> BTreeMap<String, u64> {
    // Memory and descriptors are the process's: one at a time.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock();
    let started = Instant::now();
    let seed = number(SEED).unwrap_or_else(|| RandomState::new().hash_one(()));
    println!("soak: {SEED}={seed}");
    let threads = number(THREADS).unwrap_or(16);
    let mut service = Process::start(seed);
    let url = service.ask()["url"].take();
    let url = url.as_str().expect("a URL");

    let (next, tally) = (AtomicU64::new(0), Mutex::new(BTreeMap::new()));
    // The chats up to that one, on all threads, with clients that are gone in the end.
    let run = |end: u64| {
        let shared = Client::new();
        let work = |at: u64| {
            // A quarter has connections of its own.
            let client = (at % 4 != 3).then(|| shared.clone());
            let mut client = client.unwrap_or_default();
            let take = |n| (n < end).then_some(n + 1);
            while let Ok(n) = next.fetch_update(Relaxed, Relaxed, take) {
                let end = chat(&mut client, seed, n, url);
                *tally.lock().expect("no panic").entry(end).or_default() += 1;
            }
        };
        thread::scope(|scope| {
            let work = &work;
            let spawn = |at| scope.spawn(move || work(at));
            let workers: Vec<_> = (0..threads).map(spawn).collect();
            for worker in workers {
                worker.join().expect("a thread without a panic");
            }
        });
    };
    let had = held();
    run(chats / 10);
    let early = heap();
    run(chats);
    let late = heap();
    let deadline = Instant::now() + LONG;
    while held() != had && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    let has = held();
    assert_eq!(has, had, "{SEED}={seed}: descriptors or threads are left");

    // By the service's own count: no token has served more than five, none has been refused, and
    // exactly what is left of them serves before the next login.
    let told = service.ask();
    assert_eq!(told["wrong"], json!([]), "{SEED}={seed}");
    let number = |key: &str| told[key].as_u64().expect("a number");
    let least = number("free");
    let most = least + number("unshown") * u64::from(USES);
    let mut is_free = |n: &u64| {
        chat(&mut Client::new(), seed, *n, url);
        service.ask()["logins"] == told["logins"]
    };
    let free = (QUIET..=QUIET + most).take_while(&mut is_free).count() as u64;

    let seconds = started.elapsed().as_secs_f32();
    println!("soak: {chats} chats on {threads} threads in {seconds:.1} s");
    let tally = tally.into_inner().expect("no panic");
    println!("soak: {tally:?}");
    println!("soak: (bytes, blocks) on the heap: {early:?} at 10 %, {late:?} at the end");
    println!("soak: (descriptors, threads): {had:?} at first, {has:?} at the end");
    println!("soak: {free} uses are left of {told}");
    // Clients and threads are gone: what is left is the process's book of logins, of a few tokens.
    assert!(late.0 - early.0 < 16 << 10, "{SEED}={seed}: bytes are lost");
    assert!(late.1 - early.1 < 150, "{SEED}={seed}: blocks are lost");
    let is_exact = (least..=most).contains(&free) && (free - least) % u64::from(USES) == 0;
    assert!(is_exact, "{SEED}={seed}: {free} uses, and not {least}");
    tally
}

// ---- what the process has ----

/// How many descriptors and threads.
fn held() -> (usize, usize) {
    let count = |path| fs::read_dir(path).expect("procfs").count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}

/// How many bytes, in how many blocks.
fn heap() -> (isize, isize) {
    (BYTES.load(Relaxed), BLOCKS.load(Relaxed))
}

static BYTES: AtomicIsize = AtomicIsize::new(0);
static BLOCKS: AtomicIsize = AtomicIsize::new(0);

#[global_allocator]
static COUNTING: Counting = Counting;

/// The system's allocator, counted.
struct Counting;

fn count(layout: Layout, sign: isize) {
    BYTES.fetch_add(sign * layout.size() as isize, Relaxed);
    BLOCKS.fetch_add(sign, Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came (the methods left out come to these
// two); counting allocates nothing.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout, 1);
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(layout, -1);
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(block, layout) }
    }
}
