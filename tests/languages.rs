//! The programs of `examples/`, one for each language that calls C: each streams a reply, tells of
//! an error, is cancelled by Ctrl-C, and prints the usage, through its language's own FFI.
//!
//! They use the library that is installed at `GPTALK_PREFIX`, where that is set, else the one that
//! cargo has left beside the tests. A language that is not on this machine is left out.

#![cfg(target_os = "linux")]

mod programs;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, fs};

use gptalk_service::{Endpoint, Service};
use programs::{
    Done, ROOT, Running, command, compile_shared, compiler, cuts, has_cpp, left_out, libraries,
    say_nothing, send_hel, stalls, succeeds, wait_until,
};

// ---- where things are ----

fn prefix() -> Option<PathBuf> {
    env::var_os("GPTALK_PREFIX").map(PathBuf::from)
}

fn library_folder() -> PathBuf {
    prefix().map_or_else(libraries, |prefix| prefix.join("lib"))
}

/// A folder of this test's for what a language's tools make.
fn folder(language: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(language);
    fs::create_dir_all(&folder).expect("a temporary folder");
    folder
}

/// A command that builds or runs an example, and finds the library.
fn tool(name: impl AsRef<OsStr>) -> Command {
    let mut command = command(name);
    command.current_dir(ROOT);
    command.env("LD_LIBRARY_PATH", library_folder());
    command.env("PKG_CONFIG_PATH", library_folder().join("pkgconfig"));
    command
}

// ---- what each of them does ----

/// What is the same for all: `run` gives the command, to which a prompt is added.
#[track_caller]
fn is_a_chat(run: impl Fn() -> Command) {
    wants_a_prompt(run());
    streams(run());
    prints_the_usage(run());
    tells_of_a_refusal(run());
    keeps_what_came_before_a_failure(run());
    is_cancelled_between_pieces(run());
    is_cancelled_in_silence(run());
}

#[track_caller]
fn wants_a_prompt(run: Command) {
    let (code, out, err) = told(Running::start(run));
    assert_eq!((code, out.as_str()), (Some(2), ""), "{err}");
    assert!(err.to_lowercase().starts_with("usage: "), "{err}");
}

/// The exit code, and what it printed.
fn told(program: Running) -> (Option<i32>, String, String) {
    let Done { status, out, err } = program.ends();
    (status.code(), out, err)
}

fn with_service(mut run: Command, service: &Service, prompt: &str) -> Running {
    run.env("GPTALK_BASE_URL", service.url()).arg(prompt);
    Running::start(run)
}

fn on_openai(mut run: Command) -> Command {
    run.env("GPTALK_PROTOCOL", "openai");
    run
}

/// Each piece is printed before the next one is sent.
#[track_caller]
fn streams(run: Command) {
    let goes_on = Arc::new(AtomicBool::new(false));
    let may_go_on = Arc::clone(&goes_on);
    let service = Service::builder()
        .on(Endpoint::Stream, move |_, peer| {
            peer.sse_head();
            peer.chunk("data: {\"content\": \"Привет\"}\n\n");
            while !may_go_on.load(Ordering::SeqCst) && !peer.client_closed(Duration::from_millis(1))
            {
            }
            peer.chunk(
                "data: {\"content\": \"Привет, 世界 \\ud83c\\udf0d\\u0000!\"}\n\ndata: [DONE]\n\n",
            );
            peer.last_chunk();
        })
        .start();
    let mut program = with_service(run, &service, "Скажи \"привет\"\n\\o/");
    program.prints("Привет");
    goes_on.store(true, Ordering::SeqCst);
    let (code, out, err) = told(program);
    assert_eq!(out, "Привет, 世界 🌍\0!\n");
    assert_eq!((code, err.as_str()), (Some(0), "usage: not reported\n"));
    let request = &service.requests()[1];
    assert_eq!(request.json()["content"], "Скажи \"привет\"\n\\o/");
}

#[track_caller]
fn prints_the_usage(run: Command) {
    let service = Service::builder()
        .on(Endpoint::Chat, |_, peer| {
            peer.sse_head();
            peer.chunk(
                "data: {\"choices\": [{\"delta\": {\"content\": \"Hi\"}, \"finish_reason\": \"stop\"}]}\n\n\
                 data: {\"choices\": [], \"usage\": {\"prompt_tokens\": 3, \"completion_tokens\": 5, \"total_tokens\": 8}}\n\n\
                 data: [DONE]\n\n",
            );
            peer.last_chunk();
        })
        .start();
    let (code, out, err) = told(with_service(on_openai(run), &service, "Hi"));
    assert_eq!((code, out.as_str()), (Some(0), "Hi\n"));
    assert_eq!(err, "usage: 3 prompt + 5 completion tokens\n");
}

#[track_caller]
fn tells_of_a_refusal(mut run: Command) {
    let service = Service::builder().api_key("right").start();
    run.env("GPTALK_API_KEY", "wrong");
    let (code, out, err) = told(with_service(on_openai(run), &service, "Hi"));
    assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
    assert_is_error(&err, "auth");
    assert!(err.contains("401") && !err.contains("wrong"), "{err}");
}

#[track_caller]
fn assert_is_error(err: &str, status: &str) {
    let is_one_line = err.find('\n') == Some(err.len() - 1);
    let is_an_error = err.starts_with("error: ") && err.ends_with(&format!(" ({status})\n"));
    assert!(is_one_line && is_an_error, "{err}");
}

#[track_caller]
fn keeps_what_came_before_a_failure(run: Command) {
    let service = cuts();
    let (code, out, err) = told(with_service(run, &service, "Hi"));
    assert_eq!((code, out.as_str()), (Some(1), "Hel\n"), "{err}");
    assert_is_error(&err, "truncated");
}

#[track_caller]
fn is_cancelled_between_pieces(run: Command) {
    let service = stalls(Endpoint::Stream, send_hel);
    let mut program = with_service(run, &service, "Hi");
    program.prints("Hel");
    program.interrupt();
    assert_cancelled(program, &service, "Hel\n");
}

/// While the service has not said a word.
#[track_caller]
fn is_cancelled_in_silence(run: Command) {
    let service = stalls(Endpoint::Login, say_nothing);
    let program = with_service(run, &service, "Hi");
    assert!(service.wait_until(|service| service.count(Endpoint::Login) == 1));
    program.interrupt();
    assert_cancelled(program, &service, "");
}

#[track_caller]
fn assert_cancelled(program: Running, service: &Service, printed: &str) {
    let (code, out, err) = told(program);
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (Some(130), printed, "cancelled\n")
    );
    assert!(wait_until(|| service.open_connections() == 0));
}

// ---- the languages ----

/// The language's tools, that is files or commands; `false`, said, where one is not here.
fn has(language: &str, wanted: &[&str]) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = env::split_paths(&path).collect();
    let is_here = |wanted: &&&str| folders.iter().any(|folder| folder.join(wanted).exists());
    let missing = wanted.iter().find(|wanted| !is_here(wanted));
    if let Some(missing) = missing {
        left_out(&format!("{language}: there is no {missing}"));
    }
    missing.is_none()
}

/// A command with its arguments.
fn words(words: &[&str]) -> Command {
    let mut command = tool(words[0]);
    command.args(&words[1..]);
    command
}

/// Tools that find the library by its gptalk.pc are tested where it is installed.
fn is_installed(language: &str) -> bool {
    let is_installed = prefix().is_some();
    if !is_installed {
        left_out(&format!("{language}: GPTALK_PREFIX is not set"));
    }
    is_installed
}

/// Its Stop button is tried in tests/cpp.rs.
#[test]
fn cpp() {
    if has_cpp() {
        let source = ["-std=c++17", "-pthread", "examples/cpp/chat.cpp"];
        let program = compile_shared("chat-in-cpp", compiler("c++", &source));
        is_a_chat(|| tool(&program));
    } else {
        left_out("C++: there is no c++");
    }
}

#[test]
fn python() {
    if has("Python", &["python3"]) {
        is_a_chat(|| words(&["python3", "examples/python/chat.py"]));
    }
}

#[test]
fn ruby() {
    if has("Ruby", &["ruby"]) {
        is_a_chat(|| words(&["ruby", "examples/ruby/chat.rb"]));
    }
}

#[test]
fn php() {
    if has("PHP", &["php"]) {
        is_a_chat(|| words(&["php", "examples/php/chat.php"]));
    }
}

#[test]
fn luajit() {
    if has("LuaJIT", &["luajit"]) {
        is_a_chat(|| words(&["luajit", "examples/luajit/chat.lua"]));
    }
}

/// Node looks for packages beside the program and above it, so that it runs beside koffi.
#[test]
fn node() {
    let folder = Path::new(ROOT).join("target/tools/koffi");
    if has(
        "Node",
        &["node", &format!("{}/node_modules", folder.display())],
    ) {
        let program = folder.join("chat.mjs");
        fs::copy(Path::new(ROOT).join("examples/node/chat.mjs"), &program).expect("the program");
        is_a_chat(|| {
            let mut run = tool("node");
            run.arg(&program);
            run
        });
    }
}

#[test]
fn go() {
    if has("Go", &["go", "pkg-config"]) && is_installed("Go") {
        let program = folder("go").join("chat");
        let mut go = words(&["go", "build", "-o"]);
        go.arg(&program).arg(".");
        go.current_dir(Path::new(ROOT).join("examples/go"));
        succeeds(go);
        is_a_chat(|| tool(&program));
    }
}

#[test]
fn java() {
    const JNA: &str = "/usr/share/java/jna.jar";
    if has("Java", &["javac", JNA]) {
        let classes = folder("java");
        let mut javac = words(&[
            "javac",
            "-Xlint:all",
            "-Werror",
            "-encoding",
            "UTF-8",
            "-cp",
            JNA,
            "-d",
        ]);
        javac.arg(&classes).arg("examples/java/Chat.java");
        succeeds(javac);
        let path = format!("{JNA}:{}", classes.display());
        is_a_chat(|| {
            let mut run = words(&["java", "-cp", &path, "Chat"]);
            // It reads its arguments in the locale's encoding.
            run.env("LC_ALL", "C.UTF-8");
            run
        });
    }
}

#[test]
fn csharp() {
    if has("C#", &["mcs", "mono"]) {
        let program = folder("csharp").join("chat.exe");
        let mut mcs = words(&[
            "mcs",
            "-warnaserror",
            "-r:Mono.Posix",
            "examples/csharp/Chat.cs",
        ]);
        mcs.arg(format!("-out:{}", program.display()));
        succeeds(mcs);
        is_a_chat(|| {
            let mut run = tool("mono");
            run.arg(&program);
            run
        });
    }
}

#[test]
fn zig() {
    let zig = Path::new(ROOT).join("target/tools/zig");
    let zig = zig.to_str().expect("a path in UTF-8");
    if has("Zig", &["python3", "pkg-config", zig]) && is_installed("Zig") {
        let folder = folder("zig");
        let zig = |command: &str| {
            let mut run = words(&["python3", "-m", "ziglang", command, "-lc"]);
            run.current_dir(&folder).env("PYTHONPATH", zig);
            run.env("ZIG_GLOBAL_CACHE_DIR", format!("{zig}/cache"));
            run
        };
        let library = library_folder();
        let mut translate = zig("translate-c");
        translate.arg(library.with_file_name("include").join("gptalk.h"));
        let output = translate.output().expect("zig");
        fs::write(folder.join("gptalk.zig"), &output.stdout).expect("a temporary file");

        let mut compile = zig("build-exe");
        compile
            .arg("-L")
            .arg(&library)
            .args(["-lgptalk", "--name", "chat", "--dep", "gptalk"]);
        compile.arg(format!("-Mroot={ROOT}/examples/zig/chat.zig"));
        succeeds({
            compile.arg("-Mgptalk=gptalk.zig");
            compile
        });
        is_a_chat(|| tool(folder.join("chat")));
    }
}
