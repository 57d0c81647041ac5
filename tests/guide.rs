//! What the C documents say: "Using gptalk from C" (`examples/c/README.md`), whose programs are
//! compiled here and print what the page shows; the chat window, `examples/c/gui.c`, in a display of
//! its own; and the header's tables of keys, and the parsers that read it.
//!
//! Where a tool is missing, a test says what it leaves out, and passes.

#![cfg(target_os = "linux")]

mod programs;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use gptalk_service::{Builder, Endpoint, Peer, Request, Service};
use programs::{
    Done, LONG, ROOT, command, compile, compile_shared, compiler, left_out, libraries, run,
    succeeds, wait_until, works,
};
use serde_json::{Value, json};

/// Waits for something that must come.
#[track_caller]
fn until(what: &str, has_come: impl FnMut() -> bool) {
    assert!(wait_until(has_come), "this did not come: {what}");
}

/// A process that does not outlive its test.
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

// ---- the page ----

/// A fenced block of the page.
struct Block {
    language: String,
    text: String,
}

fn blocks() -> Vec<Block> {
    let page = fs::read_to_string(format!("{ROOT}/examples/c/README.md")).expect("the page");
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let text = lines.by_ref().take_while(|line| *line != "```");
            blocks.push(Block {
                language: language.to_owned(),
                text: text.map(|line| format!("{line}\n")).collect(),
            });
        }
    }
    blocks
}

fn is_program(code: &str) -> bool {
    code.contains("\nint main(")
}

/// A program's name: it begins with `/* NAME.c: ...`.
fn name_of(code: &str) -> &str {
    let name = code
        .strip_prefix("/* ")
        .and_then(|code| code.split_once(".c:"));
    name.expect("a program that begins with its name").0
}

/// The folder of the page's programs, which are compiled as the page says.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guide");
        fs::create_dir_all(&folder).expect("a folder for programs");
        for block in blocks() {
            if block.language == "c" && is_program(&block.text) {
                let name = name_of(&block.text);
                let mut source = compiler("cc", &["-std=c99"]);
                source.arg(write(&format!("guide/{name}.c"), &block.text));
                compile_shared(&format!("guide/{name}"), source);
            }
        }
        folder
    })
}

/// Writes a temporary file.
fn write(name: &str, text: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, text).expect("a temporary file");
    path
}

/// A program of the page, to be run.
fn program(name: &str, service: &Service) -> Command {
    let mut command = command(folder().join(name));
    command.env("GPTALK_BASE_URL", service.url());
    command
}

#[test]
fn the_programs_of_the_page_print_what_it_shows() {
    let mut shown = BTreeSet::new();
    for session in blocks().iter().filter(|block| block.language == "console") {
        let service = Service::start();
        for line in session
            .text
            .split_terminator("$ ")
            .filter(|line| !line.is_empty())
        {
            let (order, expected) = line.split_once('\n').expect("an order on a line");
            let mut shell = command("sh");
            shell
                .args(["-c", &format!("{order} 2>&1")])
                .current_dir(folder());
            shell.env("GPTALK_BASE_URL", service.url());
            let done = run(shell);
            // The page's service is where the page says.
            let printed = done.out.replace(&service.url(), "http://127.0.0.1:8080");
            assert_eq!(printed, expected, "$ {order}\n{}", done.err);
            let name = order
                .split("./")
                .nth(1)
                .expect("a program")
                .split(' ')
                .next();
            shown.extend(name.map(str::to_owned));
        }
    }
    let programs = blocks().into_iter().filter(|block| is_program(&block.text));
    let programs: BTreeSet<_> = programs
        .map(|block| name_of(&block.text).to_owned())
        .collect();
    let elsewhere: Vec<_> = programs.difference(&shown).collect();
    assert_eq!(
        elsewhere,
        ["stop", "ticks"],
        "these two have a test of their own"
    );
}

#[test]
fn the_lines_of_the_page_compile_too() {
    const AROUND: &str = "#include <stdio.h>\n#include <gptalk.h>\n\
         int on_text(const char *text, size_t len, void *out);\n\
         void lines(gptalk_client *client, const char *key);\n\
         void lines(gptalk_client *client, const char *key)\n{\n(void)client, (void)key;\n";
    let mut lines = String::new();
    for block in blocks() {
        if block.language == "c" && !is_program(&block.text) {
            lines += &block.text;
        }
    }
    assert!(lines.contains("gptalk_set"), "{lines}");
    let source = write("guide-lines.c", &format!("{AROUND}{lines}}}\n"));
    let mut command = compiler("cc", &["-std=c99", "-fsyntax-only"]);
    command.arg(source);
    succeeds(command);
}

/// A service whose first reply begins with "Hel", and then waits for the client to close the
/// connection; and how often it has.
fn hanging(at: Endpoint, begin: fn(&mut Peer)) -> (Service, Arc<AtomicUsize>) {
    let closed = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&closed);
    let service = Service::builder().on(at, move |_, peer| {
        begin(peer);
        counted.fetch_add(peer.client_closed(LONG).into(), Ordering::SeqCst);
    });
    (service.start(), closed)
}

fn send_hel(peer: &mut Peer) {
    peer.sse_head();
    peer.chunk("data: {\"content\": \"Hel\"}\n\n");
}

#[test]
fn control_c_stops_the_reply_and_not_the_program() {
    let (service, closed) = hanging(Endpoint::Stream, send_hel);
    let mut child = program("stop", &service)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program");
    let mut out = child.stdout.take().expect("a pipe");
    let mut begun = [0; 3];
    out.read_exact(&mut begun).expect("the reply's beginning");
    let mut kill = Command::new("sh");
    kill.args(["-c", &format!("kill -INT {}", child.id())]);
    succeeds(kill);
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("the rest");
    assert!(child.wait().expect("an end").success());
    assert_eq!(rest, " [stopped after 3 bytes]\n");
    until("the closed connection", || {
        closed.load(Ordering::SeqCst) == 1
    });
}

/// Runs `ticks`, whose input is open until `act` has been done.
fn tick(service: &Service, act: impl FnOnce(&mut dyn Write)) -> String {
    let mut child = program("ticks", service)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program");
    let mut input = child.stdin.take().expect("a pipe");
    act(&mut input);
    let mut printed = String::new();
    let mut out = child.stdout.take().expect("a pipe");
    out.read_to_string(&mut printed).expect("what it prints");
    assert!(child.wait().expect("an end").success());
    printed
}

#[test]
fn a_tick_looks_at_what_else_there_is() {
    assert_eq!(tick(&Service::start(), |_| {}), "You said: Hi\nok\n");

    let (service, closed) = hanging(Endpoint::Stream, |_| {});
    let printed = tick(&service, |input| {
        until("the request", || service.count(Endpoint::Stream) == 1);
        input.write_all(b"\n").expect("a program that reads");
    });
    assert_eq!(printed, "\ncancelled\n");
    until("the closed connection", || {
        closed.load(Ordering::SeqCst) == 1
    });
}

#[test]
fn what_had_come_before_a_failure_is_told_of() {
    let service = Service::builder().on(Endpoint::Stream, |_, peer| {
        send_hel(peer);
        peer.close();
    });
    let service = service.start();
    let Done { out, err, status } = run(program("errors", &service));
    assert_eq!(status.code(), Some(1));
    assert_eq!(out, "Hel\n");
    assert!(
        err.contains("\nstatus truncated, code none\nthe reply is not complete\n"),
        "{err}"
    );
    assert!(!err.contains("another try"), "{err}");
}

/// A service that tells all that there is to tell: thoughts, every count, an id.
fn talkative() -> Builder {
    Service::builder().on(Endpoint::Chat, |_, peer| {
        let usage = json!({
            "prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18,
            "completion_tokens_details": {"reasoning_tokens": 5},
            "prompt_tokens_details": {"cached_tokens": 3},
        });
        let delta = |delta: Value| json!({"choices": [{"index": 0, "delta": delta}], "model": "m"});
        let mut last = delta(json!({}));
        last["choices"][0]["finish_reason"] = json!("stop");
        let events = [
            delta(json!({"reasoning_content": "Hm."})),
            delta(json!({"reasoning_content": " Well."})),
            delta(json!({"content": "Hello"})),
            last,
            json!({"choices": [], "usage": usage}),
        ];
        peer.header("x-request-id", "req_1");
        peer.sse_head();
        for event in events {
            peer.chunk(format!("data: {event}\n\n"));
        }
        peer.chunk("data: [DONE]\n\n");
        peer.last_chunk();
    })
}

#[test]
fn thoughts_come_before_the_reply_and_counts_after_it() {
    let service = talkative().start();
    let mut usage = program("usage", &service);
    usage.env("GPTALK_PROTOCOL", "openai");
    let done = run(usage);
    assert_eq!(
        done.out.replace(")(", ""),
        "(Hm. Well.)Hello\n\
         stop: 11 prompt_tokens 7 completion_tokens 5 reasoning_tokens 3 cached_tokens\n",
        "{}",
        done.err
    );
}

// ---- the header's tables ----

/// Does what its arguments say, and names the keys to which there is an answer.
const ASK: &str = r#"
#include <gptalk.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    gptalk_client *client = gptalk_client_new();
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *what = argv[i], *key = argv[i + 1];
        if (strcmp(what, "unset") == 0 && gptalk_set(client, key, NULL) == GPTALK_OK)
            puts(key);
        if (strcmp(what, "off") == 0 && gptalk_on(client, key, NULL, NULL) == GPTALK_OK)
            puts(key);
        if (strcmp(what, "get") == 0 && gptalk_get(client, key) != NULL)
            puts(key);
        if (strcmp(what, "get_int") == 0 && gptalk_get_int(client, key) != -1)
            puts(key);
        if (strcmp(what, "say") == 0)
            puts(gptalk_get(client, key));
        if (strcmp(what, "chat") == 0)
            gptalk_client_chat(client, key, NULL, NULL);
    }
    gptalk_client_free(client);
    return 0;
}
"#;

/// What there is an answer to.
fn answered(orders: &[(&str, &str)], service: Option<&Service>) -> Vec<String> {
    static ASKER: OnceLock<PathBuf> = OnceLock::new();
    let asker = ASKER.get_or_init(|| {
        let mut source = compiler("cc", &["-std=c99"]);
        source.arg(write("guide-ask.c", ASK));
        compile_shared("guide-ask", source)
    });
    let mut command = command(asker);
    for (what, key) in orders {
        command.args([what, key]);
    }
    if let Some(service) = service {
        command.envs([("GPTALK_PROTOCOL", "openai"), ("GPTALK_RETRIES", "0")]);
        command.env("GPTALK_BASE_URL", service.url());
    }
    let done = run(command);
    assert!(done.status.success(), "{}\n{}", done.status, done.err);
    done.out.lines().map(str::to_owned).collect()
}

/// The first cells of a table in a function's comment, by the head of their column.
fn table(function: &str, head: &str) -> Vec<String> {
    let header = fs::read_to_string(format!("{ROOT}/include/gptalk.h")).expect("the header");
    let mut comment = Vec::new();
    for line in header.lines() {
        match line.strip_prefix(" *") {
            Some(text) => comment.push(text.trim()),
            // A declaration begins at a line's beginning.
            None if line.contains(&format!("{function}(")) => break,
            None => comment.clear(),
        }
    }
    let rows = comment
        .iter()
        .skip_while(|row| !row.starts_with(&format!("| {head} |")));
    let rows = rows.take_while(|row| row.starts_with('|')).skip(2);
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let keys: Vec<_> = cells
        .flat_map(|cell| cell.trim().split(", ").map(str::to_owned))
        .collect();
    assert!(!keys.is_empty(), "{function} has no table of a {head}");
    keys
}

/// What is behind the colon of a sentence that lists what there is: "...; the options are a, b".
fn listed(sentence: &str, are: &str) -> Vec<String> {
    let (_, list) = sentence.split_once(are).expect("a list");
    list.split(", ").map(str::to_owned).collect()
}

#[track_caller]
fn assert_same(documented: &[String], known: &[String]) {
    let sorted = |keys: &[String]| keys.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(sorted(documented), sorted(known));
    assert_eq!(documented.len(), known.len(), "a key is there twice");
}

#[test]
fn the_header_has_every_option_and_no_other() {
    let options = table("gptalk_set", "key");
    let orders: Vec<_> = options.iter().map(|key| ("unset", &**key)).collect();
    assert_same(&options, &answered(&orders, None));
    let refused = answered(&[("unset", "bogus"), ("say", "error")], None);
    assert_same(&options, &listed(&refused[0], "the options are "));
}

#[test]
fn the_header_has_every_channel_and_no_other() {
    let channels = table("gptalk_on", "channel");
    let orders: Vec<_> = channels.iter().map(|name| ("off", &**name)).collect();
    assert_same(&channels, &answered(&orders, None));
    let refused = answered(&[("off", "bogus"), ("say", "error")], None);
    assert_same(&channels, &listed(&refused[0], "the channels are "));
}

#[test]
fn the_header_has_every_outcome_key_and_no_other() {
    let refusal = json!({"error": {"code": "slow_down", "message": "Too fast"}}).to_string();
    let refusing = Service::builder().on(Endpoint::Chat, move |_, peer| {
        peer.header("retry-after", "7");
        peer.respond(429, "application/json", &refusal);
    });
    for (function, order) in [("gptalk_get", "get"), ("gptalk_get_int", "get_int")] {
        let keys = table(function, "key");
        let mut orders = vec![("chat", r#"[{"role": "user", "content": "Hi"}]"#)];
        orders.extend(keys.iter().map(|key| (order, &**key)));
        // Some keys tell of a reply, others of a failure.
        let mut known = answered(&orders, Some(&talkative().start()));
        let is_of_failures = |key: &str| key.starts_with("error") || key == "retry_after_ms";
        assert!(!known.iter().any(|key| is_of_failures(key)), "{known:?}");
        known.extend(keys.iter().filter(|key| is_of_failures(key)).cloned());
        assert_same(&keys, &known);
    }
    let refusing = refusing.start();
    let orders = [
        ("chat", r#"[{"role": "user", "content": "Hi"}]"#),
        ("get", "error"),
        ("get", "error_code"),
        ("get", "error_body"),
        ("get_int", "retry_after_ms"),
    ];
    assert_eq!(
        answered(&orders, Some(&refusing)),
        ["error", "error_code", "error_body", "retry_after_ms"]
    );

    // No function lists these keys, so the source is asked: `"key" =>` begins an arm.
    let source = include_str!("../src/ffi/outcome.rs");
    let arms = source.lines().filter_map(|line| {
        let (key, _) = line.trim().strip_prefix('"')?.split_once("\" =>")?;
        Some(key.to_owned())
    });
    let documented = [table("gptalk_get", "key"), table("gptalk_get_int", "key")].concat();
    assert_same(&documented, &arms.collect::<Vec<_>>());
}

// ---- who reads the header ----

#[test]
fn clang_warns_of_nothing_in_the_header() {
    if !works(Command::new("clang").arg("--version")) {
        return left_out("the header in clang: there is no clang");
    }
    let source = write("guide-include.c", "#include <gptalk.h>\n");
    for standard in ["c99", "c11", "c17", "c++11", "c++14", "c++17", "c++20"] {
        let mut clang = Command::new("clang");
        clang
            .current_dir(ROOT)
            .args(["-Weverything", "-Werror", "-Iinclude", "-fsyntax-only"]);
        clang.arg(format!("-std={standard}"));
        if standard.starts_with("c++") {
            // This one is for whoever wants C++98 still.
            clang.args(["-Wno-c++98-compat-pedantic", "-x", "c++"]);
        }
        clang.arg(&source);
        succeeds(clang);
    }
}

#[test]
fn tcc_reads_the_header() {
    if !works(Command::new("tcc").arg("-v")) {
        return left_out("the header in tcc: there is no tcc");
    }
    let mut tcc = Command::new("tcc");
    tcc.current_dir(ROOT).args([
        "-Wall",
        "-Werror",
        "-Iinclude",
        "-c",
        "tests/c/header.c",
        "-o",
    ]);
    tcc.arg(Path::new(env!("CARGO_TARGET_TMPDIR")).join("guide-tcc.o"));
    succeeds(tcc);
}

/// The header for a parser that knows C's types by itself, made as the page says.
fn declarations() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guide-empty");
    fs::create_dir_all(&folder).expect("a folder");
    for name in ["stddef.h", "stdint.h"] {
        fs::write(folder.join(name), "").expect("an empty file");
    }
    let mut cc = Command::new("cc");
    cc.current_dir(ROOT)
        .args(["-E", "-P", "-nostdinc", "include/gptalk.h"]);
    let output = cc.arg("-I").arg(folder).output().expect("a C compiler");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.contains("gptalk_chat"), "{text}");
    write("guide-declarations.h", &text)
}

/// A program of another language, which is given the declarations and the library, finds its way
/// in it: it prints the version, and a frozen number.
#[track_caller]
fn reads_the_declarations(mut reader: Command) {
    reader
        .arg(declarations())
        .arg(libraries().join("libgptalk.so"));
    let done = run(reader);
    let expected = format!("{} 14\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(done.out, expected, "{}", done.err);
}

#[test]
fn luajit_reads_the_header() {
    const PROGRAM: &str = "local ffi = require 'ffi' ffi.cdef(io.open(arg[1]):read('*a')) \
        local gptalk = ffi.load(arg[2]) \
        print(ffi.string(gptalk.gptalk_version()) .. ' ' .. tonumber(gptalk.GPTALK_INTERNAL))";
    if !works(Command::new("luajit").arg("-v")) {
        return left_out("the header in LuaJIT: there is no luajit");
    }
    let mut luajit = command("luajit");
    luajit.arg(write("guide.lua", PROGRAM));
    reads_the_declarations(luajit);
}

#[test]
fn cffi_reads_the_header() {
    const PROGRAM: &str = "import cffi, sys; ffi = cffi.FFI(); ffi.cdef(open(sys.argv[1]).read())\n\
        gptalk = ffi.dlopen(sys.argv[2])\n\
        print(ffi.string(gptalk.gptalk_version()).decode(), gptalk.GPTALK_INTERNAL)";
    // The system's, or the one that .ci/run installs.
    let path = Path::new(ROOT).join("target/tools/cffi");
    let mut probe = Command::new("python3");
    if !works(probe.args(["-c", "import cffi"]).env("PYTHONPATH", &path)) {
        return left_out("the header in Python's cffi: there is none");
    }
    let mut python = command("python3");
    python.args(["-c", PROGRAM]).env("PYTHONPATH", &path);
    reads_the_declarations(python);
}

#[test]
fn php_reads_the_header() {
    const PROGRAM: &str = "$gptalk = FFI::cdef(file_get_contents($argv[1]), $argv[2]); \
        echo $gptalk->gptalk_version(), ' ', $gptalk->GPTALK_INTERNAL, PHP_EOL;";
    let has_ffi = "exit(class_exists('FFI') ? 0 : 1);";
    if !works(Command::new("php").args(["-r", has_ffi])) {
        return left_out("the header in PHP's FFI: there is none");
    }
    let mut php = command("php");
    php.args(["-d", "ffi.enable=1", "-r", PROGRAM, "--"]);
    reads_the_declarations(php);
}

// ---- the window ----

/// The chat window; None where GTK 4 is missing.
fn window() -> Option<PathBuf> {
    let mut pkg_config = Command::new("pkg-config");
    pkg_config.args(["--cflags", "--libs", "gtk4"]);
    let flags = pkg_config
        .output()
        .ok()
        .filter(|output| output.status.success());
    let Some(flags) = flags else {
        left_out("the chat window: there is no GTK 4");
        return None;
    };
    let flags = String::from_utf8(flags.stdout).expect("options in UTF-8");
    // GTK's own headers want C11.
    let mut source = compiler("cc", &["-std=c11", "examples/c/gui.c"]);
    let folder = libraries();
    let folder = folder.to_str().expect("a path in UTF-8");
    source.args([&format!("-L{folder}"), &format!("-Wl,-rpath,{folder}")]);
    let mut options: Vec<&str> = flags.split_whitespace().collect();
    options.push("-lgptalk");
    Some(compile("guide-gui", source, &options))
}

/// A display, and a keyboard in front of it.
struct Screen {
    name: String,
    _server: Owned,
}

impl Screen {
    /// None where there is no X server, or no hand to type.
    fn new() -> Option<Screen> {
        if !works(Command::new("xdotool").arg("--version")) {
            left_out("what the chat window does: there is no xdotool");
            return None;
        }
        let mut server = Command::new("Xvfb");
        server.args([
            "-displayfd",
            "1",
            "-screen",
            "0",
            "800x600x24",
            "-nolisten",
            "tcp",
        ]);
        let server = server
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let Ok(server) = server.spawn() else {
            left_out("what the chat window does: there is no Xvfb");
            return None;
        };
        let mut server = Owned(server);
        // The number comes when the server is ready.
        let mut number = String::new();
        let out = server.0.stdout.take().expect("a pipe");
        BufReader::new(out)
            .read_line(&mut number)
            .expect("a display");
        assert!(!number.trim().is_empty(), "Xvfb does not start");
        Some(Screen {
            name: format!(":{}", number.trim()),
            _server: server,
        })
    }

    #[track_caller]
    fn xdotool(&self, args: &[&str]) {
        let mut xdotool = Command::new("xdotool");
        let done = run({
            xdotool.args(args).env("DISPLAY", &self.name);
            xdotool
        });
        assert!(done.status.success(), "xdotool {args:?}: {}", done.err);
    }

    fn show(&self, program: &Path, service: &Service) -> Child {
        let mut command = command(program);
        command.env("DISPLAY", &self.name);
        // Nothing of the desktop that the tests may run on.
        command.envs([("GDK_BACKEND", "x11"), ("GSK_RENDERER", "cairo")]);
        command.envs([("GTK_A11Y", "none"), ("GSETTINGS_BACKEND", "memory")]);
        command.envs([("GPTALK_PROTOCOL", "openai"), ("GPTALK_RETRIES", "0")]);
        command.env("GPTALK_BASE_URL", service.url());
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().expect("the chat window");
        // There is no window manager, who would give it the keyboard.
        let search = ["search", "--sync", "--onlyvisible", "--name", "^gptalk$"];
        self.xdotool(&[&search[..], &["windowfocus", "--sync"]].concat());
        child
    }

    /// Presses a key until the service gets its nth chat: where one still runs, or its end is not
    /// shown yet, a key means nothing.
    #[track_caller]
    fn press_until_chat(&self, key: &str, service: &Service, nth: usize) {
        let deadline = Instant::now() + LONG;
        loop {
            self.xdotool(&["key", key]);
            let soon = Instant::now() + Duration::from_millis(200);
            while Instant::now() < soon {
                if service.count(Endpoint::Chat) == nth {
                    return;
                }
                thread::sleep(Duration::from_millis(1));
            }
            assert!(Instant::now() < deadline, "{key}: there is no chat {nth}");
        }
    }
}

fn messages(request: &Request) -> Vec<Value> {
    let messages = request.json()["messages"].as_array().cloned();
    messages.expect("messages")
}

#[test]
fn the_chat_window_sends_stops_tries_again_and_closes() {
    let Some(program) = window() else { return };
    let Some(screen) = Screen::new() else { return };
    let closed = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&closed);
    let service = Service::builder().on(Endpoint::Chat, move |request, peer| match peer.nth() {
        // To be stopped, and to be closed upon.
        1 | 5 => {
            peer.sse_head();
            peer.chunk("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hel\"}}]}\n\n");
            counted.fetch_add(peer.client_closed(LONG).into(), Ordering::SeqCst);
        }
        3 => peer.respond(503, "text/plain", "out of order"),
        _ => peer.normal(request),
    });
    let service = service.start();
    let mut child = Owned(screen.show(&program, &service));
    let err = programs::read_all(child.0.stderr.take());
    let user = |text: &str| json!({"role": "user", "content": text});
    let hello = [
        user("Hello"),
        json!({"role": "assistant", "content": "You said: Hello"}),
    ];

    screen.xdotool(&["type", "Hello"]);
    screen.press_until_chat("Return", &service, 1);

    // A conversation: what was said before goes along.
    screen.xdotool(&["type", "More"]);
    screen.press_until_chat("Return", &service, 2);
    screen.xdotool(&["key", "Escape"]);
    until("the stopped chat", || closed.load(Ordering::SeqCst) == 1);

    screen.xdotool(&["type", "Again"]);
    screen.press_until_chat("Return", &service, 3);

    // The service fails, and is asked the same again.
    screen.xdotool(&["type", "Really"]);
    screen.press_until_chat("Return", &service, 4);
    screen.press_until_chat("ctrl+r", &service, 5);

    screen.xdotool(&["type", "Bye"]);
    screen.press_until_chat("Return", &service, 6);
    screen.xdotool(&["key", "ctrl+w"]);
    until("the closed chat", || closed.load(Ordering::SeqCst) == 2);
    let mut status = None;
    until("the window's end", || {
        status = child.0.try_wait().expect("a child to wait for");
        status.is_some()
    });
    let err = err.join().expect("a reader");
    assert!(
        status.is_some_and(|status| status.success()),
        "{status:?}\n{err}"
    );
    assert!(!err.contains("CRITICAL"), "{err}");

    assert_eq!(service.refusals(), [""; 0]);
    let sent: Vec<_> = service.requests().iter().map(messages).collect();
    assert_eq!(sent[0], hello[..1]);
    assert_eq!(sent[1], [&hello[..], &[user("More")]].concat());
    // What came before the stop, if anything, is between.
    assert_eq!(sent[2][..2], hello);
    assert_eq!(sent[2].last(), Some(&user("Again")));
    assert_eq!(sent[3].last(), Some(&user("Really")));
    assert_eq!(sent[4], sent[3]);
    assert_eq!(sent[5].last(), Some(&user("Bye")));
    assert_eq!(sent[5].len(), sent[4].len() + 2);
}
