//! Programs that are not Rust: how tests compile them, run them and look at what they did. What is
//! missing on this machine is said, and left out.

// Not every test file needs all of it.
#![allow(dead_code)]

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

/// Longer than any program takes.
pub const LONG: Duration = Duration::from_secs(100);

pub const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Where cargo has left the libraries: beside this test.
pub fn libraries() -> PathBuf {
    let test = env::current_exe().expect("the test's own path");
    test.parent().expect("a folder").to_owned()
}

/// A compiler's command, with the folders and the strictness that all have in common.
pub fn compiler(name: &str, options: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.current_dir(ROOT).args(options);
    command.args(["-Wall", "-Wextra", "-pedantic", "-Werror", "-Iinclude"]);
    command
}

#[track_caller]
pub fn succeeds(mut command: Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{errors}");
}

/// Compiles a program of tests/c and links it with the library.
pub fn compile(name: &str, mut command: Command, libraries: &[&str]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = folder.join(name);
    // Other processes may run the program that is there.
    let fresh = folder.join(format!("{name}.{}", process::id()));
    command.arg("-o").arg(&fresh).args(libraries);
    succeeds(command);
    fs::rename(&fresh, &path).expect("the program's place");
    path
}

/// Compiles a program of tests/c and links it with the shared library.
pub fn compile_shared(name: &str, mut command: Command) -> PathBuf {
    let folder = libraries();
    let folder = folder.to_str().expect("a path in UTF-8");
    command.arg(format!("-L{folder}"));
    let rpath = format!("-Wl,-rpath,{folder}");
    compile(name, command, &["-lgptalk", &rpath, "-lpthread"])
}

/// Whether a C++ program can be compiled here; says so if not.
pub fn has_cpp() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join("probe.cpp");
        fs::write(&source, "#include <string>\nstd::string text;\n").expect("a temporary file");
        works(Command::new("c++").arg("-fsyntax-only").arg(source))
    })
}

/// Whether a tool is there and does its work.
pub fn works(probe: &mut Command) -> bool {
    let silent = probe
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    silent.status().is_ok_and(|status| status.success())
}

/// Says what a test leaves out, whether or not the test's own output is captured.
pub fn left_out(what: &str) {
    let _ = writeln!(std::io::stderr(), "left out: {what}");
}

/// What a program has done.
pub struct Done {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
}

/// A program to run, in an environment that says nothing of chats.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    // Cargo's own path begins with a folder where an older library may lie.
    command.env("LD_LIBRARY_PATH", libraries());
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy().to_ascii_uppercase();
        let ours = ["GPTALK_", "OPENAI_", "SSL_CERT"];
        if ours.iter().any(|ours| text.starts_with(ours)) || text.ends_with("_PROXY") {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs a program to its end, which must come.
pub fn run(mut command: Command) -> Done {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let out = read_all(child.stdout.take());
    let err = read_all(child.stderr.take());
    let deadline = Instant::now() + LONG;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child to wait for") {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().expect("a child to kill");
        }
        thread::sleep(Duration::from_millis(1));
    };
    let text = |reader: thread::JoinHandle<String>| reader.join().expect("a reader");
    Done {
        status,
        out: text(out),
        err: text(err),
    }
}

pub fn read_all(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.expect("a pipe").read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Runs a program that must succeed, without a word. (Exit code 77: it says what it leaves out.)
#[track_caller]
pub fn succeeds_silently(command: Command) {
    let shown = format!("{command:?}");
    let done = run(command);
    if done.status.code() == Some(77) {
        return left_out(&done.out);
    }
    let said = format!("{}{}", done.out, done.err);
    assert!(done.status.success(), "{shown}\n{}\n{said}", done.status);
    assert_eq!(said, "", "{shown}");
}
