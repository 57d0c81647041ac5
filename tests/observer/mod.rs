//! What holds for every chat, whatever the service does, seen from outside: by a program that chats
//! through the C functions, `tests/c/observer.c`, and whose descriptors, tasks and heap are its own.
//!
//! - The text is valid UTF-8, is handed out once, and is what it was meant to be.
//! - The status and the last error agree with each other, and with what Rust says.
//! - The call returns within its deadline.
//! - The client works for the next chat.
//! - Descriptors, tasks and heap are back where they were.
//! - Callback and pull come to the same.
//!
//! (It runs on Linux. Elsewhere the chats are Rust's, and nothing is counted.)
//!
//! `GPTALK_TEST_OBSERVER` names a command that the program runs below, such as valgrind with its
//! options: its exit code counts, its time does not.

// Not every test file needs all of it.
#![allow(dead_code)]

use std::cell::RefCell;
use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{self, Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use gptalk::{Client, ClientBuilder, Conversation, Error, ErrorKind, Event, Reply};
use gptalk_service::{Builder, Endpoint, Peer};

use crate::programs::{command, compile_shared, compiler};

/// How late a call may return after its deadline, and how slow a machine may be that runs other
/// tests too.
const LATE: Duration = Duration::from_millis(250 + 750);

/// How often the heap may grow, round after round: what is learned once, and its room, stay.
const LESSONS: usize = 10;

/// Something that goes wrong at a service while it is on.
#[derive(Clone, Default)]
pub struct Fault(Arc<AtomicBool>);

impl Fault {
    pub fn turn(&self, on: bool) {
        self.0.store(on, Ordering::SeqCst);
    }

    pub fn is_on(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// One of the service's endpoints goes wrong.
    pub fn at(
        &self,
        service: Builder,
        endpoint: Endpoint,
        handler: impl Fn(&mut Peer) + Send + Sync + 'static,
    ) -> Builder {
        let fault = self.clone();
        service.on(endpoint, move |request, peer| match fault.is_on() {
            true => handler(peer),
            false => peer.normal(request),
        })
    }
}

/// What the program saw of a chat.
#[derive(Debug, PartialEq)]
pub struct Seen {
    /// The name of its status.
    pub status: String,
    pub text: String,
    pub error: Option<String>,
    pub code: Option<String>,
}

impl Seen {
    fn of(text: &str, error: Option<&Error>) -> Seen {
        Seen {
            status: error.map_or("ok", |error| error.kind().name()).to_owned(),
            text: text.to_owned(),
            error: error.map(Error::to_string),
            code: error.and_then(Error::code).map(str::to_owned),
        }
    }

    /// Rust says the same.
    #[track_caller]
    pub fn agrees(&self, result: &Result<Reply, Error>) {
        let reply = result.as_ref().map_or_else(Error::reply, Some);
        self.is(reply.map_or("", |reply| &reply.text), result.as_ref().err());
    }

    /// The same, of what Rust has handed out and said.
    #[track_caller]
    pub fn is(&self, text: &str, error: Option<&Error>) {
        let rewritten = self.code.clone().filter(|code| code == "rewritten");
        let mut said = Seen::of(text, error);
        said.code = said.code.or(rewritten);
        assert_eq!(*self, said, "C on the left, Rust on the right");
    }
}

/// Holds a fault, which is turned on and off, to all that is said above; what was seen of it.
#[track_caller]
pub fn hold(options: &[(&str, &str)], deadline: Duration, turn: impl Fn(bool)) -> Seen {
    hold_until_cured(options, deadline, turn, &[])
}

/// The same for a fault that the next chat is without because of these options. `messages` is one
/// too, the JSON of what is said, and so is `prompt`, its length.
#[track_caller]
pub fn hold_until_cured(
    options: &[(&str, &str)],
    deadline: Duration,
    turn: impl Fn(bool),
    cure: &[(&str, &str)],
) -> Seen {
    if !cfg!(target_os = "linux") {
        return in_rust(options, turn, cure);
    }
    PROGRAM.with_borrow_mut(|program| {
        let program = program.get_or_insert_with(Program::start);
        let mut seen: Option<Seen> = None;
        let mut before = program.free();
        let first = before;
        for round in 0.. {
            program.set(options);
            for form in ["chat", "pull"] {
                turn(true);
                let (now, took) = program.chat(form);
                let is_late = took >= deadline + LATE && env::var_os(BELOW).is_none();
                assert!(!is_late, "it took {took:?}: {now:?}");
                if let Some(before) = seen.replace(now) {
                    assert_eq!(Some(before), seen, "a chat, and the same in another form");
                }
            }
            turn(false);
            program.set(cure);
            let (next, _) = program.chat("chat");
            assert_eq!(next.status, "ok", "after {seen:?}: {next:?}");
            let after = program.free();
            assert_eq!(
                (after.descriptors, after.tasks),
                (first.descriptors, first.tasks),
                "after {seen:?}"
            );
            if round > 0 && after.heap <= before.heap {
                break;
            }
            assert!(round < LESSONS, "the heap grows with each {seen:?}");
            before = after;
        }
        seen.expect("a chat")
    })
}

/// The same chats where the program does not run, which looks into /proc.
#[track_caller]
fn in_rust(options: &[(&str, &str)], turn: impl Fn(bool), cure: &[(&str, &str)]) -> Seen {
    let (mut client, mut talk) = (Client::new(), Ok(Conversation::from("Hi")));
    let mut chat = |options: &[(&str, &str)], is_wrong| {
        for (key, value) in options {
            match *key {
                "messages" => talk = Conversation::from_json(value),
                "prompt" => talk = Ok("x".repeat(value.parse().expect("a length")).into()),
                _ => client.set(key, Some(value)).expect(key),
            }
        }
        turn(is_wrong);
        let mut text = String::new();
        let result = talk.clone().and_then(|talk| {
            client.chat(talk, |piece| {
                text.push_str(piece);
                ControlFlow::Continue(())
            })
        });
        Seen::of(&text, result.as_ref().err())
    };
    let seen = chat(options, true);
    let next = chat(cure, false);
    assert_eq!(next.status, "ok", "after {seen:?}: {next:?}");
    seen
}

/// The chat ticks while it waits, and a cancel from another thread ends it.
#[track_caller]
pub fn ticks_and_is_cancelled(client: ClientBuilder, text: &str) {
    // Without ticks the test must end too.
    let limit = Some(Duration::from_secs(5));
    let client = client.connect_timeout(limit).timeout(limit);
    let client = client.build().unwrap();
    let mut stream = client.stream(text).unwrap();
    let (started, mut ticks, mut cancel) = (Instant::now(), 0, None);
    while let Some(event) = stream.next_event() {
        ticks += usize::from(event == Event::Tick);
        if ticks == 3 && cancel.is_none() {
            assert!(
                started.elapsed() < Duration::from_millis(300) + LATE,
                "ticks come rarely"
            );
            let handle = client.cancel_handle();
            cancel = Some(thread::spawn(move || {
                let now = Instant::now();
                assert!(handle.cancel(), "there is a chat to cancel");
                now
            }));
        }
    }
    let ended = Instant::now();
    let error = stream.finish().expect_err("a failure");
    assert_eq!(ticks.min(3), 3, "ticks do not come: {error}");
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    let latency = ended.saturating_duration_since(cancel.unwrap().join().unwrap());
    assert!(
        latency < Duration::from_millis(250 + 250),
        "cancelled after {latency:?}"
    );
    assert!(!client.cancel_handle().cancel(), "no chat is left");
}

/// The variable with the command that the program runs below.
const BELOW: &str = "GPTALK_TEST_OBSERVER";

thread_local! {
    static PROGRAM: RefCell<Option<Program>> = const { RefCell::new(None) };
}

/// What the process of the program has.
#[derive(Clone, Copy, Debug)]
struct Process {
    descriptors: usize,
    tasks: usize,
    heap: usize,
}

struct Program {
    child: Child,
    /// None once it is to end.
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Program {
    fn start() -> Program {
        static BUILT: OnceLock<PathBuf> = OnceLock::new();
        let path = BUILT.get_or_init(|| {
            let source = ["-std=c99", "tests/c/observer.c"];
            compile_shared("observer", compiler("cc", &source))
        });
        let below = env::var(BELOW).unwrap_or_default();
        let mut words = below.split_whitespace();
        let mut command = command(words.next().map_or(path.as_path(), Path::new));
        if !below.is_empty() {
            command.args(words).arg(path);
        }
        // What malloc keeps for a thread would count as in use.
        command.env("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn().expect("a child");
        Program {
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().expect("a pipe")),
            child,
        }
    }

    fn say(&mut self, words: &str) {
        let stdin = self.stdin.as_mut().expect("a program that runs");
        if writeln!(stdin, "{words}").is_err() {
            self.has_died();
        }
    }

    fn set(&mut self, options: &[(&str, &str)]) {
        for (key, value) in options {
            match *key {
                "messages" | "prompt" => self.say(&format!("{key} {value}")),
                _ => self.say(&format!("set {key} {value}")),
            }
        }
    }

    fn chat(&mut self, form: &str) -> (Seen, Duration) {
        self.say(form);
        let line = self.line();
        let mut words = line.split_whitespace();
        let status = words.next().expect("a status").to_owned();
        let [took, text, error, code] = words
            .map(|word| word.parse().expect("a number"))
            .collect::<Vec<usize>>()[..]
        else {
            panic!("{line}");
        };
        let seen = Seen {
            status,
            text: self.text(text).unwrap_or_default(),
            error: self.text(error),
            code: self.text(code),
        };
        (seen, Duration::from_millis(took as u64))
    }

    fn free(&mut self) -> Process {
        self.say("free");
        let line = self.line();
        let words = line.split_whitespace();
        let [descriptors, tasks, heap] = words
            .map(|word| word.parse().expect("a number"))
            .collect::<Vec<usize>>()[..]
        else {
            panic!("{line}");
        };
        Process {
            descriptors,
            tasks,
            heap,
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        if self.stdout.read_line(&mut line).unwrap_or(0) == 0 {
            self.has_died();
        }
        line
    }

    fn text(&mut self, length: usize) -> Option<String> {
        let mut bytes = vec![0; length];
        if self.stdout.read_exact(&mut bytes).is_err() {
            self.has_died();
        }
        (length > 0).then(|| String::from_utf8(bytes).expect("valid UTF-8"))
    }

    fn has_died(&mut self) -> ! {
        let mut words = String::new();
        let stderr = self.child.stderr.as_mut().expect("a pipe");
        let _ = stderr.read_to_string(&mut words);
        panic!("tests/c/observer.c: {}{words}", self.child.wait().unwrap());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let mut words = String::new();
        let stderr = self.child.stderr.as_mut().expect("a pipe");
        let _ = stderr.read_to_string(&mut words);
        let status = self.child.wait().expect("a child to wait for");
        let is_silent = words.is_empty() || env::var_os(BELOW).is_some();
        let is_well = status.success() && is_silent;
        if !is_well && !std::thread::panicking() {
            // The thread is ending: there is nobody to catch a panic.
            eprintln!("tests/c/observer.c: {status}{words}");
            process::abort();
        }
    }
}
