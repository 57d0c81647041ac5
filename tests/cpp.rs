//! The C++ side: what `include/gptalk.hpp` promises, and `examples/cpp/chat.cpp`.
//!
//! `tests/c/wrapper.cpp` has a subcommand for each promise; a test stages the service that it needs.
//! A program that keeps its promise says nothing at all. Where there is no C++ compiler or no
//! valgrind, a test says what it leaves out, and passes.

#![cfg(target_os = "linux")]

mod programs;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fs, process, thread};

use gptalk_service::{Endpoint, Peer, Service};
use programs::{
    LONG, ROOT, command, compile_shared, compiler, has_cpp, left_out, read_all, succeeds,
    succeeds_silently, works,
};
use serde_json::{Value, json};

// ---- programs ----

/// A compiler's command, as strict as a careful user's.
fn strict(name: &str, options: &[&str]) -> Command {
    let mut command = compiler(name, options);
    command.args(["-Wshadow", "-Wconversion"]);
    command
}

fn temporary(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", process::id()))
}

/// wrapper.cpp, with another file that includes the header. None where there is no C++ compiler.
fn wrapper() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        if !has_cpp() {
            left_out("C++: there is no c++");
            return None;
        }
        let other = temporary("wrapper-other.cpp");
        let code = "#include <gptalk.hpp>\n\
                    bool nothing_runs(const gptalk::client &client);\n\
                    bool nothing_runs(const gptalk::client &client) { return !client.cancel(); }\n";
        fs::write(&other, code).expect("a temporary file");
        let mut command = strict("c++", &["-std=c++17", "-g", "-pthread"]);
        command.arg("tests/c/wrapper.cpp").arg(&other);
        let program = compile_shared("wrapper", command);
        let _ = fs::remove_file(other);
        Some(program)
    });
    built.as_deref()
}

/// A promise of wrapper.cpp.
#[track_caller]
fn keeps(name: &str, args: &[&str]) {
    if let Some(program) = wrapper() {
        let mut command = command(program);
        command.arg(name).args(args);
        succeeds_silently(command);
    }
}

/// The example. None where there is no C++ compiler.
fn chat() -> Option<Command> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        if !has_cpp() {
            left_out("the example in C++: there is no c++");
            return None;
        }
        let source = ["-std=c++17", "-pthread", "examples/cpp/chat.cpp"];
        Some(compile_shared("chat-cpp", strict("c++", &source)))
    });
    built.as_ref().map(command)
}

// ---- services ----

/// A service that is left to itself; the promise is kept with it alone.
#[track_caller]
fn keeps_with_a_service(name: &str) -> Service {
    let service = Service::start();
    keeps(name, &[&service.url()]);
    assert_eq!(service.refusals(), [""; 0]);
    service
}

fn send_hel(peer: &mut Peer) {
    peer.sse_head();
    peer.chunk("data: {\"content\": \"Hel\"}\n\n");
}

fn say_nothing(_: &mut Peer) {}

/// Waits for something that must come.
fn wait_until(mut what: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + LONG;
    while !what() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}

/// A service that stalls at the first request of an endpoint, once it has begun, until the client
/// closes the connection. Its replies tell whether the client has: "closed".
fn stalls(at: Endpoint, begin: fn(&mut Peer)) -> Service {
    let is_closed = Arc::new(AtomicBool::new(false));
    let was_closed = Arc::clone(&is_closed);
    Service::builder()
        .on(at, move |request, peer| {
            if peer.nth() > 0 {
                return peer.normal(request);
            }
            begin(peer);
            is_closed.store(peer.client_closed(LONG), Ordering::SeqCst);
        })
        .reply(move |_| {
            let is_closed = wait_until(|| was_closed.load(Ordering::SeqCst));
            if is_closed { "closed" } else { "open" }.to_owned()
        })
        .start()
}

/// A service that sends "Hel" and then closes the connection.
fn cuts() -> Service {
    Service::builder()
        .on(Endpoint::Stream, |_, peer| {
            send_hel(peer);
            peer.close();
        })
        .start()
}

// ---- callbacks ----

#[test]
fn whatever_takes_a_piece_is_a_callback() {
    keeps_with_a_service("callbacks");
}

#[test]
fn a_callback_that_returns_false_cancels() {
    let service = stalls(Endpoint::Stream, send_hel);
    keeps("false_cancels", &[&service.url()]);
}

#[test]
fn another_thread_cancels_and_that_is_no_error() {
    for endpoint in [Endpoint::Login, Endpoint::Text, Endpoint::Stream] {
        let service = stalls(endpoint, say_nothing);
        keeps("cancel_from_thread", &[&service.url()]);
    }
    let service = stalls(Endpoint::Stream, send_hel);
    keeps("cancel_from_thread", &[&service.url()]);
}

#[test]
fn a_piece_costs_no_allocation() {
    keeps_with_a_service("no_allocation_for_a_piece");
}

#[test]
fn a_nul_does_not_end_a_text() {
    let service = Service::builder()
        .on(Endpoint::Stream, |_, peer| {
            peer.sse_head();
            peer.chunk("data: {\"content\": \"a\\u0000b\"}\n\ndata: [DONE]\n\n");
            peer.last_chunk();
        })
        .start();
    keeps("embedded_nul", &[&service.url()]);
}

// ---- errors and exceptions ----

#[test]
fn a_failure_is_an_exception_that_tells_all() {
    let slow_down = Service::builder()
        .on(Endpoint::Text, |_, peer| {
            peer.header("retry-after", "7");
            let error = r#"{"code": "slow_down", "msg": "Too fast"}"#;
            peer.respond(429, "application/json", error);
        })
        .start();
    let (cuts, well) = (cuts(), Service::start());
    keeps("errors", &[&slow_down.url(), &cuts.url(), &well.url()]);
}

#[test]
fn a_second_chat_at_a_time_is_busy() {
    keeps_with_a_service("busy");
}

#[test]
fn an_exception_comes_out_as_it_was_thrown() {
    let service = stalls(Endpoint::Stream, send_hel);
    keeps("exceptions", &[&service.url()]);
    keeps_with_a_service("exceptions_of_channels");
    keeps_with_a_service("stream_after_an_exception");
}

// ---- the pull form ----

#[test]
fn a_stream_is_a_range_of_pieces() {
    keeps_with_a_service("pull");
}

#[test]
fn a_stream_throws_where_the_chat_has_failed() {
    let (cuts, well) = (cuts(), Service::start());
    keeps("pull_fails", &[&cuts.url(), &well.url()]);
}

#[test]
fn a_stream_that_is_left_closes_its_connection() {
    for way in ["break", "throw", "finish", "assign"] {
        let service = stalls(Endpoint::Stream, send_hel);
        keeps("pull_left", &[&service.url(), way]);
    }
}

#[test]
fn a_stream_that_is_forgotten_sends_nothing() {
    let service = keeps_with_a_service("pull_forgotten");
    assert_eq!(service.connections(), 0);
}

#[test]
fn a_stream_is_moved_and_outlives_its_client() {
    keeps_with_a_service("pull_moved");
    keeps_with_a_service("pull_outlives_client");
}

// ---- channels ----

/// A service that thinks before it answers, and takes its time for that.
fn thinks() -> Service {
    Service::builder()
        .on(Endpoint::Chat, |_, peer| {
            let said = |name: &str, text: &str| {
                let event = json!({"choices": [{"delta": {name: text}}]});
                format!("data: {event}\n\n")
            };
            peer.sse_head();
            peer.chunk(said("reasoning_content", "Let me "));
            peer.chunk(said("reasoning_content", "see."));
            peer.pause(Duration::from_millis(450)); // time for a tick
            peer.chunk(said("content", "Hel"));
            peer.chunk(said("content", "lo"));
            peer.chunk("data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n");
            peer.chunk("data: [DONE]\n\n");
            peer.last_chunk();
        })
        .start()
}

#[test]
fn channels_are_lambdas_that_go_with_the_client() {
    keeps("channels", &[&thinks().url()]);
    keeps_with_a_service("channels_are_owned");
}

// ---- clients ----

#[test]
fn a_client_that_was_moved_from_is_harmless() {
    let (one, other) = (Service::start(), Service::start());
    keeps("moved_from", &[&one.url(), &other.url()]);
}

#[test]
fn a_callback_may_move_and_destroy_its_client() {
    keeps_with_a_service("gone_in_callback");
}

#[test]
fn options_have_the_names_of_c() {
    let service = keeps_with_a_service("options");
    let texts: Vec<_> = service
        .requests()
        .into_iter()
        .filter(|request| request.endpoint == Endpoint::Text)
        .collect();
    if let [set, unset, refused] = &texts[..] {
        assert_eq!(set.header("x-who"), Some("me"));
        assert_eq!(set.json()["temperature"], 0.5);
        assert_eq!(unset.header("x-who"), None);
        assert_eq!(unset.json()["temperature"], 0);
        assert_eq!(unset.json()["model"], "a-model");
        assert_eq!(refused.json()["model"], "a-model");
    } else {
        assert!(wrapper().is_none(), "{texts:?}");
    }
}

#[test]
fn threads_chat_with_clones() {
    keeps_with_a_service("clones_on_threads");
}

#[test]
fn a_conversation_is_built_without_a_json_library() {
    let messages = Arc::new(OnceLock::new());
    let sent = Arc::clone(&messages);
    let service = Service::builder()
        .on(Endpoint::Chat, move |request, peer| {
            if peer.nth() == 2 {
                let _ = sent.set(request.json()["messages"].take());
            }
            peer.normal(request);
        })
        .start();
    let Some(program) = wrapper() else { return };
    let mut command = command(program);
    command.args(["conversations", &service.url()]);
    command.env("GPTALK_PROTOCOL", "openai");
    succeeds_silently(command);
    assert_eq!(service.refusals(), [""; 0]);
    let said = |role: &str, text: &str| json!({"role": role, "content": text});
    let expected = [
        said("system", "Be \"brief\"."),
        said("user", "Hi"),
        said("assistant", "You said: Hi"),
        said("user", "Привет 🙂\n"),
        said("assistant", "You said: Привет 🙂\n"),
    ];
    assert_eq!(messages.get(), Some(&Value::from(expected.to_vec())));
}

#[test]
fn the_one_liner_wants_no_client() {
    keeps_with_a_service("one_liner");
}

// ---- memory ----

#[test]
fn valgrind_finds_nothing_in_the_wrapper() {
    let Some(program) = wrapper() else { return };
    if !works(Command::new("valgrind").arg("--version")) {
        return left_out("the wrapper's memory: there is no valgrind");
    }
    let valgrind = |name: &str, url: &str| {
        let mut command = command("valgrind");
        command.args(["-q", "--leak-check=full", "--error-exitcode=9"]);
        command.arg(program).args([name, url]);
        succeeds_silently(command);
    };
    valgrind("every_way", &Service::start().url());
    valgrind("exceptions", &stalls(Endpoint::Stream, send_hel).url());
    valgrind("channels", &thinks().url());
}

// ---- compilers ----

/// The compilers that are there, each with the standards that it knows.
fn compilers() -> Vec<(&'static str, Vec<&'static str>)> {
    let probe = temporary("probe.cpp");
    fs::write(&probe, "#include <string_view>\n").expect("a temporary file");
    let knows = |name: &str, standard: &str| {
        let mut command = Command::new(name);
        works(command.args([standard, "-fsyntax-only"]).arg(&probe))
    };
    let mut found = Vec::new();
    for name in ["g++", "clang++"] {
        let mut standards = vec!["-std=c++17", "-std=c++20", "-std=c++2b"];
        standards.retain(|standard| {
            let is_known = knows(name, standard);
            if !is_known {
                left_out(&format!(
                    "the header with {name} {standard}: it does not work here"
                ));
            }
            is_known
        });
        if !standards.is_empty() {
            found.push((name, standards));
        }
    }
    let _ = fs::remove_file(probe);
    found
}

#[test]
fn the_header_compiles_everywhere_without_a_warning() {
    for (name, standards) in compilers() {
        let check = |options: &[&str]| {
            let mut command = strict(name, &["-fsyntax-only"]);
            command.args(options);
            command.args(["tests/c/wrapper.cpp", "examples/cpp/chat.cpp"]);
            succeeds(command);
        };
        for standard in &standards {
            check(&[standard]);
        }
        check(&[standards[0], "-fno-rtti"]);
    }
}

#[test]
fn mistakes_do_not_compile() {
    const MISTAKES: [(&str, &str); 9] = [
        (
            "client.chat(\"[]\", [](std::string_view) { return 0; });",
            "returns nothing, or a bool",
        ),
        (
            "client.chat(\"[]\", [](int) {});",
            "takes a std::string_view",
        ),
        ("client.on(\"tick\", [] {});", "takes a std::string_view"),
        (
            "client.on(\"tick\", [](std::string_view) { return 1; });",
            "returns nothing, or a bool",
        ),
        (
            "gptalk::chat(\"[]\", [](std::string_view) { return \"\"; });",
            "returns nothing, or a bool",
        ),
        ("client.set(\"retries\", 0);", "deleted"),
        ("client.set(\"header\", nullptr);", "deleted"),
        ("gptalk::set(\"retries\", 0);", "deleted"),
        ("gptalk::client copy = client;", "deleted"),
    ];
    for (name, standards) in compilers() {
        for (mistake, reason) in MISTAKES {
            let source = temporary(&format!("mistake-{name}.cpp"));
            let code = format!(
                "#include <gptalk.hpp>\nvoid mistake(gptalk::client &client)\n{{\n{mistake}\n}}\n"
            );
            fs::write(&source, code).expect("a temporary file");
            let mut command = Command::new(name);
            command.current_dir(ROOT).arg(standards[0]);
            command.args(["-Iinclude", "-fsyntax-only"]).arg(&source);
            let output = command.output().expect("a compiler");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success(), "{name}: {mistake}");
            assert!(said.contains(reason), "{name}: {mistake}\n{said}");
            let _ = fs::remove_file(source);
        }
    }
}

#[test]
fn the_header_brings_nothing_that_was_not_asked_for() {
    let header = fs::read_to_string(format!("{ROOT}/include/gptalk.hpp")).expect("the header");
    let defined: Vec<_> = header
        .lines()
        .filter(|line| line.starts_with("#define"))
        .collect();
    assert_eq!(defined, ["#define GPTALK_HPP"]);
    for unwanted in ["using namespace", "<iostream>", "<functional>"] {
        assert!(!header.contains(unwanted), "{unwanted}");
    }
}

// ---- the example ----

/// A program that runs, with a terminal's keys in our hands.
struct Program {
    child: Child,
    /// What it prints, as it comes.
    out: mpsc::Receiver<Vec<u8>>,
    printed: Vec<u8>,
    err: JoinHandle<String>,
}

impl Program {
    fn start(mut command: Command) -> Program {
        let pipes = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = pipes
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let err = read_all(child.stderr.take());
        let mut pipe = child.stdout.take().expect("a pipe");
        let (sender, out) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = pipe.read(&mut bytes) {
                let _ = sender.send(bytes[..read].to_vec());
            }
        });
        Program {
            child,
            out,
            printed: Vec::new(),
            err,
        }
    }

    /// Waits until it has printed this, and nothing else.
    #[track_caller]
    fn prints(&mut self, text: &str) {
        while self.printed.len() < text.len() {
            match self.out.recv_timeout(LONG) {
                Ok(bytes) => self.printed.extend(bytes),
                Err(_) => break,
            }
        }
        assert_eq!(String::from_utf8_lossy(&self.printed), text);
    }

    fn types(&mut self, keys: &str) {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        stdin.write_all(keys.as_bytes()).expect("a reader");
    }

    fn interrupt(&self) {
        // The shell's own: a machine may have no other.
        let mut kill = Command::new("sh");
        kill.args(["-c", &format!("kill -INT {}", self.child.id())]);
        succeeds(kill);
    }

    /// Its end, which must come, though its keyboard stays.
    #[track_caller]
    fn ends(mut self, code: i32, out: &str, err: &str) {
        let mut child = self.child;
        let _keyboard = child.stdin.take();
        let has_ended = || child.try_wait().expect("a child to wait for").is_some();
        if !wait_until(has_ended) {
            child.kill().expect("a child to kill");
        }
        let status = child.wait().expect("a child to wait for");
        self.printed.extend(self.out.iter().flatten());
        let printed = String::from_utf8_lossy(&self.printed).into_owned();
        let said = self.err.join().expect("a reader");
        assert_eq!(status.code(), Some(code), "{status}: {printed}{said}");
        assert_eq!((printed.as_str(), said.as_str()), (out, err));
    }
}

fn chat_at(service: &Service) -> Option<Command> {
    let mut command = chat()?;
    command.env("GPTALK_BASE_URL", service.url());
    command.args(["Hi"]);
    Some(command)
}

#[test]
fn the_example_streams_piece_by_piece() {
    let goes_on = Arc::new(AtomicBool::new(false));
    let may_go_on = Arc::clone(&goes_on);
    let service = Service::builder()
        .on(Endpoint::Stream, move |_, peer| {
            send_hel(peer);
            wait_until(|| may_go_on.load(Ordering::SeqCst));
            peer.chunk("data: {\"content\": \"Hello \\ud83d\\ude42\"}\n\ndata: [DONE]\n\n");
            peer.last_chunk();
        })
        .start();
    let Some(command) = chat_at(&service) else {
        return;
    };
    let mut program = Program::start(command);
    program.prints("Hel");
    program.types("no Enter, no stop"); // which the terminal would keep back
    goes_on.store(true, Ordering::SeqCst);
    // Nobody has pressed the button, and nobody will.
    program.ends(0, "Hello 🙂\n", "usage: not reported\n");
}

#[test]
fn the_example_tells_of_the_usage() {
    let service = Service::builder()
        .on(Endpoint::Chat, |_, peer| {
            let usage = json!({"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8});
            let delta = json!({"choices": [{"delta": {"content": "Hello"}}]});
            let last = json!({"choices": [], "usage": usage});
            peer.sse_head();
            peer.chunk(format!("data: {delta}\n\ndata: {last}\n\ndata: [DONE]\n\n"));
            peer.last_chunk();
        })
        .start();
    let Some(mut command) = chat_at(&service) else {
        return;
    };
    command.env("GPTALK_PROTOCOL", "openai");
    let usage = "usage: 3 prompt + 5 completion tokens\n";
    Program::start(command).ends(0, "Hello\n", usage);
}

#[test]
fn the_example_stops_at_enter_and_at_an_interrupt() {
    let press: [fn(&mut Program); 2] =
        [|program| program.types("\n"), |program| program.interrupt()];
    for press in press {
        for endpoint in [Endpoint::Login, Endpoint::Stream] {
            let service = stalls(endpoint, say_nothing);
            let Some(command) = chat_at(&service) else {
                return;
            };
            let mut program = Program::start(command);
            assert!(wait_until(|| service.count(endpoint) == 1));
            press(&mut program);
            program.ends(130, "", "cancelled\n");
            assert!(wait_until(|| service.open_connections() == 0));
        }
        let service = stalls(Endpoint::Stream, send_hel);
        let Some(command) = chat_at(&service) else {
            return;
        };
        let mut program = Program::start(command);
        program.prints("Hel");
        press(&mut program);
        program.ends(130, "Hel\n", "cancelled\n");
        assert!(wait_until(|| service.open_connections() == 0));
    }
}

#[test]
fn the_example_goes_on_where_there_is_no_keyboard() {
    let service = Service::builder().pace(Duration::from_millis(20)).start();
    let Some(mut command) = chat_at(&service) else {
        return;
    };
    command.stdin(Stdio::null());
    let done = programs::run(command);
    assert_eq!(
        (done.out.as_str(), done.err.as_str()),
        ("You said: Hi\n", "usage: not reported\n")
    );
    assert!(done.status.success(), "{}", done.status);
}

#[test]
fn the_example_tells_of_errors() {
    let service = Service::builder().api_key("right").start();
    let Some(mut command) = chat_at(&service) else {
        return;
    };
    command.env("GPTALK_PROTOCOL", "openai");
    command.env("GPTALK_API_KEY", "wrong");
    let done = programs::run(command);
    assert_eq!((done.status.code(), done.out.as_str()), (Some(1), ""));
    assert!(done.err.starts_with("error: "), "{}", done.err);
    assert!(
        done.err.contains("401") && done.err.ends_with(" (auth)\n"),
        "{}",
        done.err
    );

    // What had come stays.
    let service = cuts();
    let done = programs::run(chat_at(&service).expect("the example"));
    assert_eq!((done.status.code(), done.out.as_str()), (Some(1), "Hel\n"));
    assert!(done.err.ends_with(" (truncated)\n"), "{}", done.err);

    let done = programs::run(chat().expect("the example"));
    assert_eq!((done.status.code(), done.out.as_str()), (Some(2), ""));
    assert_eq!(done.err, "usage: chat PROMPT\n");
}
