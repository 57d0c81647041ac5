//! The C++ side: what `include/gptalk.hpp` promises, and `examples/cpp/chat.cpp`.
//!
//! `tests/c/wrapper.cpp` has a subcommand for each promise; a test stages the service that it needs.
//! A program that keeps its promise says nothing at all. Where there is no C++ compiler or no
//! valgrind, a test says what it leaves out, and passes.

#![cfg(target_os = "linux")]

mod programs;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{fs, process};

use gptalk_service::{Endpoint, Peer, Service};
use programs::{
    ROOT, Running, command, compile_shared, compiler, cuts, has_cpp, left_out, run, say_nothing,
    send_hel, stalls, succeeds, succeeds_silently, wait_until, works,
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
    const MISTAKES: [(&str, &str); 11] = [
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
        ("client.set(\"retries\", 0);", "ambiguous"),
        ("client.set(\"header\", nullptr);", "deleted"),
        ("gptalk::set(\"retries\", 0);", "ambiguous"),
        ("gptalk::set(\"header\", nullptr);", "deleted"),
        (
            "gptalk::conversation &talk = gptalk::conversation().push(\"user\", \"Hi\");",
            "bind",
        ),
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

fn chat_at(service: &Service) -> Option<Command> {
    let mut command = chat()?;
    command.env("GPTALK_BASE_URL", service.url());
    command.args(["Hi"]);
    Some(command)
}

/// Enter is the Stop button.
#[test]
fn the_example_stops_at_enter() {
    stops_at_enter(say_nothing, "");
    stops_at_enter(send_hel, "Hel");
}

#[track_caller]
fn stops_at_enter(begin: fn(&mut Peer), came: &str) {
    let service = stalls(Endpoint::Stream, begin);
    let Some(mut command) = chat_at(&service) else {
        return;
    };
    command.stdin(Stdio::piped());
    let mut program = Running::start(command);
    program.prints(came);
    assert!(wait_until(|| service.count(Endpoint::Stream) == 1));
    program.types("no Enter, no stop"); // which a terminal would keep back
    program.types("\n");
    let done = program.ends();
    let ended = (done.status.code(), done.err.as_str());
    assert_eq!(ended, (Some(130), "cancelled\n"));
    assert_eq!(done.out.trim_end(), came);
    assert!(wait_until(|| service.open_connections() == 0));
}

#[test]
fn the_example_goes_on_where_there_is_no_keyboard() {
    let service = Service::builder().pace(Duration::from_millis(20)).start();
    let Some(mut command) = chat_at(&service) else {
        return;
    };
    command.stdin(Stdio::null());
    let done = run(command);
    assert_eq!(
        (done.out.as_str(), done.err.as_str()),
        ("You said: Hi\n", "usage: not reported\n")
    );
    assert!(done.status.success(), "{}", done.status);
}
