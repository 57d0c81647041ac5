//! Programs that are not Rust: how tests compile them, run them and look at what they did. What is
//! missing on this machine is said, and left out.

// Not every test file needs all of it.
#![allow(dead_code)]

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use gptalk_service::{Endpoint, Peer, Service};

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

/// Keeps a promise of sweep.c, whose system calls are in the hands of shim.c.
#[track_caller]
pub fn sweep_keeps(name: &str, args: &[&str]) {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let program = BUILT.get_or_init(|| {
        // The library is to find the functions of the program before the system's, by `dlsym` too.
        let options = ["-std=c99", "-rdynamic", "tests/c/sweep.c", "tests/c/shim.c"];
        compile_shared("sweep", compiler("cc", &options))
    });
    let mut command = command(program);
    command.arg(name).args(args);
    // What malloc keeps for a thread counts as used: without that, the heap is known to the byte.
    command.env("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0");
    succeeds_silently(command);
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
    command.stdin(Stdio::null());
    Running::start(command).ends()
}

/// A program that runs, with its keyboard in our hands where the command leaves that open.
pub struct Running {
    child: Child,
    /// What it prints, as it comes.
    out: mpsc::Receiver<Vec<u8>>,
    printed: Vec<u8>,
    err: JoinHandle<String>,
}

impl Running {
    pub fn start(mut command: Command) -> Running {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command
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
        Running {
            child,
            out,
            printed: Vec::new(),
            err,
        }
    }

    /// Waits until it has printed this, and nothing else.
    #[track_caller]
    pub fn prints(&mut self, text: &str) {
        while self.printed.len() < text.len() {
            match self.out.recv_timeout(LONG) {
                Ok(bytes) => self.printed.extend(bytes),
                Err(_) => break,
            }
        }
        assert_eq!(String::from_utf8_lossy(&self.printed), text);
    }

    pub fn types(&mut self, keys: &str) {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        stdin.write_all(keys.as_bytes()).expect("a reader");
    }

    /// Ctrl-C.
    pub fn interrupt(&self) {
        // The shell's own: a machine may have no other.
        let mut kill = Command::new("sh");
        kill.args(["-c", &format!("kill -INT {}", self.child.id())]);
        succeeds(kill);
    }

    /// Its end, which must come, though its keyboard stays.
    pub fn ends(mut self) -> Done {
        let _keyboard = self.child.stdin.take();
        if !wait_until(|| self.child.try_wait().expect("a child").is_some()) {
            self.child.kill().expect("a child to kill");
        }
        let status = self.child.wait().expect("a child to wait for");
        self.printed.extend(self.out.iter().flatten());
        Done {
            status,
            out: String::from_utf8_lossy(&self.printed).into_owned(),
            err: self.err.join().expect("a reader"),
        }
    }
}

/// Waits for something that must come.
pub fn wait_until(mut what: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + LONG;
    while !what() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
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

// ---- services that programs talk to ----

pub fn send_hel(peer: &mut Peer) {
    peer.sse_head();
    peer.chunk("data: {\"content\": \"Hel\"}\n\n");
}

pub fn say_nothing(_: &mut Peer) {}

/// A service that stalls at the first request of an endpoint, once it has begun, until the client
/// closes the connection. Its replies tell whether the client has: "closed".
pub fn stalls(at: Endpoint, begin: fn(&mut Peer)) -> Service {
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
pub fn cuts() -> Service {
    Service::builder()
        .on(Endpoint::Stream, |_, peer| {
            send_hel(peer);
            peer.close();
        })
        .start()
}

// ---- programs that others have written, and that listen ----

/// A port where nobody listens.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Runs a program as long as the standard input is held, which ends with this process, however
/// that ends.
const KEEPER: &str = r#"
    exec 3<&0
    "$@" </dev/null 3<&- & program=$!
    { read -r _ <&3; kill -9 $program; } 2>/dev/null &
    wait $program
"#;

/// A program that listens on a port, until it is dropped.
pub struct Program(Child);

impl Program {
    /// Started with these words; `None` where it ended before it listened.
    pub fn start(words: &[&str], port: u16) -> Option<Program> {
        let mut keeper = Command::new("sh");
        keeper.args(["-c", KEEPER, "sh"]).args(words);
        keeper.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut program = Program(keeper.stderr(Stdio::null()).spawn().expect("a shell"));
        let until = Instant::now() + LONG;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let has_ended = program.0.try_wait().expect("a child").is_some();
            if has_ended || Instant::now() > until {
                return None;
            }
            thread::sleep(Duration::from_millis(5));
        }
        Some(program)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
