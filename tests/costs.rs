//! What a chat costs, in what can be counted: instructions, allocations, system calls, round trips,
//! memory. Through the C functions of the library as it is published, in `$GPTALK_PREFIX`; without that
//! nothing is tested here. (What it takes in time: `cargo bench`.)
//!
//! `benches/budget.txt` has the instructions. `GPTALK_BUDGET=write` writes what is counted there.

#![cfg(all(target_os = "linux", target_env = "gnu"))]

#[path = "../benches/lab/mod.rs"]
mod lab;
mod programs;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Once, OnceLock};
use std::time::Duration;
use std::{env, fs};

use Protocol::{GpTalk, OpenAi};
use gptalk_service::{Endpoint, Service};
use lab::{Client, LOGIN_USES, Measured, Protocol, Replies, Stream, c, words};
use programs::{ROOT, left_out, works};

/// So far a count may be from its budget: compilers and machines differ.
const TOLERANCE: f64 = 0.05;

/// What no budget may be above.
const MOST_INSTRUCTIONS: [(&str, f64); 2] = [("openai.token", 600.0), ("gptalk.kilobyte", 600.0)];

const MOST_ALLOCATIONS: f64 = 90.0;

/// What a stream may take beyond what a short reply does: of the two that are tried the longer one is 400 kB of
/// text, which is kept.
const MOST_KIB: f64 = 768.0;

/// How often buffers may have grown while a reply became twice as long.
const GROWTHS: f64 = 10.0;

/// None where there is no installation; says so.
fn library() -> Option<PathBuf> {
    static SAID: Once = Once::new();
    let prefix = env::var_os("GPTALK_PREFIX");
    if prefix.is_none() {
        SAID.call_once(|| left_out("what a chat costs: GPTALK_PREFIX is not set"));
    }
    prefix.map(|prefix| Path::new(&prefix).join("lib"))
}

fn client() -> Option<&'static Client> {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    let folder = library()?;
    Some(CLIENT.get_or_init(|| Client::linked("costs", c("gptalk.c", &[]), &folder)))
}

/// One that counts its allocations.
fn counting_client() -> Option<&'static Client> {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    let folder = library()?;
    Some(CLIENT.get_or_init(|| {
        let source = c("gptalk.c", &["benches/c/allocations.c"]);
        Client::linked("costs-allocations", source, &folder)
    }))
}

fn has(tool: &str, probe: &[&str]) -> bool {
    let has = works(Command::new(tool).args(probe));
    if !has {
        left_out(&format!(
            "what a chat costs: there is no {tool}, or it may not run"
        ));
    }
    has
}

/// Fails with all of them.
#[track_caller]
fn none(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

// ---- instructions ----

/// What is counted in one program and not in another that does less of the same: so the start, the end and
/// the first chat cancel out.
struct Instructions {
    name: &'static str,
    protocol: Protocol,
    /// The stream, and the number of chats: of the lesser program, and of the other.
    runs: [(Replies, usize); 2],
    /// By how many units they differ.
    units: f64,
    least: [f64; 2],
}

impl Instructions {
    fn of_streams(
        name: &'static str,
        protocol: Protocol,
        streams: [Stream; 2],
        units: f64,
    ) -> Self {
        Instructions {
            name,
            protocol,
            runs: streams.map(|stream| (Replies::start(stream), 1)),
            units,
            least: [f64::INFINITY; 2],
        }
    }

    fn of_chats(name: &'static str, protocol: Protocol) -> Self {
        Instructions {
            name,
            protocol,
            runs: [10, 110].map(|chats| (Replies::start(Stream::short(protocol)), chats)),
            units: 100.0,
            least: [f64::INFINITY; 2],
        }
    }

    fn profile(&self) -> PathBuf {
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.callgrind", self.name))
    }

    /// For a unit. A slow service makes the client wait in slices, which adds some: the least of the runs so
    /// far counts.
    fn count(&mut self, client: &Client) -> f64 {
        let profile = self.profile();
        for (least, (replies, chats)) in self.least.iter_mut().zip(&self.runs) {
            let url = replies.service.url();
            *least = least.min(instructions(client, self.protocol, &url, *chats, &profile));
        }
        (self.least[1] - self.least[0]) / self.units
    }
}

fn instructions(
    client: &Client,
    protocol: Protocol,
    url: &str,
    chats: usize,
    profile: &Path,
) -> f64 {
    let out = format!("--callgrind-out-file={}", profile.display());
    let valgrind = ["valgrind", "--tool=callgrind", &out];
    let mut command = client.to_chat(&valgrind, protocol, url, chats, 1);
    // Else a long copy is one instruction, and where a copy is long depends on the machine.
    command.env(
        "GLIBC_TUNABLES",
        "glibc.cpu.x86_rep_movsb_threshold=0x7fffffff",
    );
    let said = Measured::of(command).err;
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    let (_, count) = collected.unwrap_or_else(|| panic!("valgrind counts nothing: {said}"));
    count.trim().parse().expect("a number of instructions")
}

#[test]
fn a_chat_keeps_to_its_budget_of_instructions() {
    let Some(client) = client() else { return };
    if !has("valgrind", &["--version"]) {
        return;
    }
    let openai = |tokens| Stream::of(OpenAi, &words(tokens, 4));
    let gptalk = |tokens| Stream::of(GpTalk, &words(tokens, 8));
    let streams = [1_000, 2_000].map(gptalk);
    let kilobytes = (streams[1].len() - streams[0].len()) as f64 / 1024.0;
    let all = [
        Instructions::of_streams(
            "openai.token",
            OpenAi,
            [10_000, 20_000].map(openai),
            10_000.0,
        ),
        Instructions::of_streams("gptalk.kilobyte", GpTalk, streams, kilobytes),
        Instructions::of_chats("openai.chat", OpenAi),
        Instructions::of_chats("gptalk.chat", GpTalk),
    ];

    let mut budget = Budget::read();
    let mut too_many = Vec::new();
    for mut instructions in all {
        let name = instructions.name;
        let allowed = budget.of(name);
        let mut count = instructions.count(client);
        for _ in 0..2 {
            if budget.is_written || count > allowed * (1.0 + TOLERANCE) {
                count = instructions.count(client);
            }
        }
        let limit = MOST_INSTRUCTIONS
            .iter()
            .find(|(limited, _)| *limited == name);
        let most = limit.map_or(f64::INFINITY, |(_, most)| *most);
        let allowed = if budget.is_written { count } else { allowed };
        budget.set(name, count);
        if count > most || count > allowed * (1.0 + TOLERANCE) {
            let profile = instructions.profile();
            too_many.push(format!(
                "{name}: {count:.0} instructions, where {:.0} are allowed: callgrind_annotate {}",
                allowed.min(most),
                profile.display()
            ));
        } else if count < allowed * (1.0 - TOLERANCE) {
            // Whether or not the test's own output is captured.
            let _ = writeln!(
                io::stderr(),
                "{name}: {count:.0} instructions, where {allowed:.0} are allowed: GPTALK_BUDGET=write lowers that"
            );
        }
    }
    budget.write();
    none(&too_many);
}

/// Lines of a name and a number; others are comments.
struct Budget {
    text: String,
    is_written: bool,
}

impl Budget {
    fn path() -> PathBuf {
        Path::new(ROOT).join("benches/budget.txt")
    }

    fn read() -> Budget {
        Budget {
            text: fs::read_to_string(Budget::path()).expect("the budget"),
            is_written: env::var_os("GPTALK_BUDGET").is_some_and(|value| value == "write"),
        }
    }

    fn of(&self, name: &str) -> f64 {
        let lines = self.text.lines().filter_map(|line| line.split_once(' '));
        let mut numbers = lines
            .filter(|(known, _)| *known == name)
            .map(|(_, number)| number.parse());
        let number = numbers
            .next()
            .unwrap_or_else(|| panic!("there is no budget for {name}"));
        number.expect("a number in the budget")
    }

    fn set(&mut self, name: &str, count: f64) {
        let lines = self.text.lines().map(|line| match line.split_once(' ') {
            Some((known, _)) if known == name => format!("{name} {count:.0}\n"),
            _ => format!("{line}\n"),
        });
        self.text = lines.collect();
    }

    fn write(self) {
        if self.is_written {
            fs::write(Budget::path(), self.text).expect("the budget");
        }
    }
}

/// Whole lines may not be looked through again with each read that brings a part of them.
#[test]
fn a_reply_of_twice_the_bytes_takes_twice_the_instructions() {
    let Some(client) = client() else { return };
    if !has("valgrind", &["--version"]) {
        return;
    }
    let profile = Path::new(env!("CARGO_TARGET_TMPDIR")).join("linear.callgrind");
    let sizes = [32, 64, 128].map(|count| {
        let stream = Stream::of(GpTalk, &words(count, 4096));
        let bytes = stream.len() as f64;
        let replies = Replies::start(stream);
        let url = replies.service.url();
        (bytes, instructions(client, GpTalk, &url, 1, &profile))
    });
    let slope = |from: (f64, f64), to: (f64, f64)| (to.1 - from.1) / (to.0 - from.0);
    let (short, long) = (slope(sizes[0], sizes[1]), slope(sizes[1], sizes[2]));
    assert!(
        long < short * 1.2,
        "a byte takes {short:.2} instructions, and {long:.2} where lines are twice as long"
    );
}

// ---- allocations ----

#[test]
fn a_piece_is_not_allocated() {
    let Some(client) = counting_client() else {
        return;
    };
    let openai = |member| move |words: &[String]| Stream::openai(member, words, 1);
    let gptalk = || |words: &[String]| Stream::gptalk(words, 1);
    type Render = Box<dyn Fn(&[String]) -> Stream>;
    let streams: [(&str, Protocol, Render, &str); 6] = [
        ("text", OpenAi, Box::new(openai("content")), " word"),
        (
            "escapes",
            OpenAi,
            Box::new(openai("content")),
            r#"\n\"\u00e9\ud83d\ude00"#,
        ),
        (
            "other alphabets",
            OpenAi,
            Box::new(openai("content")),
            "né東京💥",
        ),
        (
            "thoughts",
            OpenAi,
            Box::new(openai("reasoning_content")),
            " word",
        ),
        ("text", GpTalk, Box::new(gptalk()), " word"),
        (
            "escapes",
            GpTalk,
            Box::new(gptalk()),
            r#"\n\"\u00e9\ud83d\ude00"#,
        ),
    ];
    let mut allocated = Vec::new();
    for (what, protocol, render, word) in streams {
        let [few, many] = [1_000, 2_000].map(|count| {
            let replies = Replies::start(render(&vec![word.to_owned(); count]));
            let measured = client.chats(protocol, &replies.service.url(), 1, 1);
            assert_eq!(measured.get("pieces"), count as f64, "{what}");
            [measured.get("allocations"), measured.get("reallocations")]
        });
        let (fresh, resized) = (many[0] - few[0], many[1] - few[1]);
        if fresh > GROWTHS || resized > GROWTHS {
            allocated.push(format!(
                "{}, {what}: {} allocations and {} reallocations a piece",
                protocol.name(),
                fresh / 1000.0,
                resized / 1000.0
            ));
        }
    }
    none(&allocated);
}

#[test]
fn a_warm_chat_takes_few_allocations() {
    let Some(client) = counting_client() else {
        return;
    };
    let mut too_many = Vec::new();
    for protocol in Protocol::BOTH {
        let replies = Replies::start(Stream::short(protocol));
        let measured = client.chats(protocol, &replies.service.url(), 101, 1);
        let allocations = measured.later("allocations");
        if allocations > MOST_ALLOCATIONS {
            too_many.push(format!("{}: {allocations} a chat", protocol.name()));
        }
    }
    none(&too_many);
}

// ---- system calls ----

/// The system calls of so many chats, but for those that waited in vain: a service that others keep from the
/// processor makes some.
fn system_calls(
    client: &Client,
    protocol: Protocol,
    replies: &Replies,
    chats: usize,
) -> Vec<String> {
    let log = format!(
        "{}/{}.strace",
        env!("CARGO_TARGET_TMPDIR"),
        replies.service.port()
    );
    let strace = ["strace", "-f", "-o", &log];
    Measured::of(client.to_chat(&strace, protocol, &replies.service.url(), chats, 1));
    let text = fs::read(&log).expect("what strace wrote");
    fs::remove_file(&log).expect("what strace wrote");
    let text = String::from_utf8_lossy(&text);
    let is_call =
        |line: &&str| line.contains('(') && !line.contains("EAGAIN") && !line.contains("resumed>");
    // Each line begins with the task.
    let calls = text
        .lines()
        .filter(is_call)
        .filter_map(|line| line.split_once(' '));
    calls
        .map(|(_, call)| call.trim_start().to_owned())
        .collect()
}

fn has_strace() -> bool {
    has("strace", &["-f", "-o", "/dev/null", "true"])
}

#[test]
fn a_warm_chat_takes_few_system_calls_on_one_connection_and_one_thread() {
    let Some(client) = client() else { return };
    if !has_strace() {
        return;
    }
    // A request, its answer, and a look whether the idle connection still stands; a login for five chats.
    for (protocol, most) in [(OpenAi, 3.0), (GpTalk, 6.6)] {
        let name = protocol.name();
        // An answer may come in two parts now and then, where much else is done.
        let least = |chats| {
            let counts = [0; 3].map(|_| {
                let replies = Replies::start(Stream::short(protocol));
                let calls = system_calls(client, protocol, &replies, chats);
                assert_eq!(replies.service.connections(), 1, "{name}");
                let tasks = ["clone", "fork", "vfork"];
                let is_task = |call: &&String| tasks.iter().any(|task| call.starts_with(task));
                assert_eq!(calls.iter().find(is_task), None, "{name}");
                calls.len()
            });
            counts.into_iter().min().unwrap_or_default()
        };
        let [few, many] = [10, 110].map(least);
        // The heap may have grown once or twice.
        let calls = (many as f64 - few as f64) / 100.0;
        assert!(calls < most + 0.05, "{name}: {calls} system calls a chat");
    }
}

#[test]
fn a_token_that_comes_alone_takes_one_system_call() {
    let Some(client) = client() else { return };
    if !has_strace() {
        return;
    }
    for protocol in Protocol::BOTH {
        let [few, many] = [20, 60].map(|tokens| {
            let stream = Stream::of(protocol, &words(tokens, 4));
            let replies = Replies::paced(stream, Duration::from_millis(3));
            system_calls(client, protocol, &replies, 1).len()
        });
        let (calls, name) = (many as f64 - few as f64, protocol.name());
        assert!(
            calls < 40.0 * 1.1,
            "{name}: {calls} system calls for 40 tokens"
        );
    }
}

// ---- round trips ----

/// Each connection and each request is one: the next waits for what it brings.
#[test]
fn a_chat_takes_as_many_round_trips_as_its_protocol_wants() {
    let Some(client) = client() else { return };
    for (protocol, cold, warm) in [(OpenAi, 2, 1), (GpTalk, 4, 2)] {
        for chats in 1..=LOGIN_USES {
            let replies = Replies::start(Stream::short(protocol));
            client.chats(protocol, &replies.service.url(), chats, 1);
            let trips = replies.service.connections() + replies.requests();
            assert_eq!(trips, cold + warm * (chats - 1), "{}", protocol.name());
        }
    }
}

#[test]
fn no_token_of_64_threads_is_refused_nor_wasted() {
    let Some(client) = client() else { return };
    let replies = Replies::start(Stream::short(GpTalk));
    client.chats(GpTalk, &replies.service.url(), 20, 64);
    assert_eq!(replies.refused(), 0);
    assert_eq!(replies.service.count(Endpoint::Text), 64 * 20);
    assert_eq!(replies.service.count(Endpoint::Login), 64 * 20 / LOGIN_USES);
}

// ---- memory ----

/// What a process has of the C library's and this one's code depends on how a kernel maps files, and is the
/// same for each reply.
#[test]
fn a_long_stream_takes_little_memory() {
    let Some(client) = client() else { return };
    let peak = |protocol, stream| {
        let replies = Replies::start(stream);
        // Kernels count pages in batches: by some dozens of them a count is off.
        let mut peaks = [0; 5].map(|_| {
            let measured = client.chats(protocol, &replies.service.url(), 1, 1);
            measured.get("peak")
        });
        peaks.sort_by(f64::total_cmp);
        peaks[2]
    };
    let mut too_much = Vec::new();
    for (protocol, tokens, bytes) in [(OpenAi, 100_000, 4), (GpTalk, 4_000, 8)] {
        let long = peak(protocol, Stream::of(protocol, &words(tokens, bytes)));
        let more = long - peak(protocol, Stream::short(protocol));
        if more >= MOST_KIB {
            too_much.push(format!("{}: {more} KiB", protocol.name()));
        }
    }
    none(&too_much);
}

// ---- the other clients of the bench ----

#[test]
fn the_bench_compares_with_clients_that_work() {
    let limit = Client::new("costs-recv", c("recv.c", &[]), &[]);
    for protocol in Protocol::BOTH {
        let replies = Replies::start(Stream::short(protocol));
        limit.chats(protocol, &replies.service.url(), LOGIN_USES + 1, 2);
        assert_eq!(replies.refused(), 0);
    }
    match lab::curl("costs-curl") {
        Ok((_, curl)) => {
            let service = Service::start();
            for protocol in Protocol::BOTH {
                let measured = curl.chats(protocol, &service.url(), LOGIN_USES + 1, 2);
                let text = "You said: hello".len() * 2 * (LOGIN_USES + 1);
                assert_eq!(measured.get("bytes"), text as f64, "{}", protocol.name());
            }
            assert_eq!(service.refusals(), [""; 0]);
        }
        Err(missing) => left_out(&format!(
            "the bench's client of libcurl: there is no {missing}"
        )),
    }
}
