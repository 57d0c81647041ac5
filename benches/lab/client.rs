//! The programs of `benches/c`, and what they say.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, iter};

use super::Protocol;
use crate::programs::{command, compile, compiler, run, succeeds, works};

/// A program of `benches/c`, and what it needs to run.
#[derive(Clone)]
pub struct Client {
    pub program: PathBuf,
    environment: Vec<(&'static str, PathBuf)>,
}

/// So a program of `benches/c` is compiled.
pub fn c(source: &str, options: &[&str]) -> Command {
    let mut command = compiler("cc", &["-std=gnu99", "-O2"]);
    command.args(options).arg(format!("benches/c/{source}"));
    command
}

impl Client {
    /// One that stands alone.
    pub fn new(name: &str, mut command: Command, libraries: &[&str]) -> Client {
        command.arg("-pthread");
        Client {
            program: compile(name, command, libraries),
            environment: Vec::new(),
        }
    }

    /// One that is linked with the shared library in that folder.
    pub fn linked(name: &str, mut command: Command, folder: &Path) -> Client {
        command.arg("-L").arg(folder);
        Client::new(name, command, &["-Wl,--no-as-needed", "-lgptalk"])
            .env("LD_LIBRARY_PATH", folder)
    }

    pub fn env(mut self, name: &'static str, value: &Path) -> Client {
        self.environment.push((name, value.to_owned()));
        self
    }

    /// Its command, without arguments; below another program, where there are words before it.
    pub fn command(&self, before: &[&str]) -> Command {
        let program = self.program.as_os_str();
        let mut words = before.iter().map(OsStr::new).chain(iter::once(program));
        let mut command = command(words.next().expect("a program"));
        command.args(words);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The command that makes it chat so often in each of so many threads.
    pub fn to_chat(
        &self,
        before: &[&str],
        protocol: Protocol,
        url: &str,
        chats: usize,
        threads: usize,
    ) -> Command {
        let mut command = self.command(before);
        command.args([
            protocol.name(),
            url,
            &chats.to_string(),
            &threads.to_string(),
        ]);
        command
    }

    /// Chats, and says what it measured.
    #[track_caller]
    pub fn chats(&self, protocol: Protocol, url: &str, chats: usize, threads: usize) -> Measured {
        Measured::of(self.to_chat(&[], protocol, url, chats, threads))
    }
}

/// libcurl's client, with the parser of JSON that there is, and its name; what is missing, where it cannot be
/// compiled.
pub fn curl(program: &str) -> Result<(&'static str, Client), &'static str> {
    const YYJSON: &str = "libcurl + yyjson";
    if !has_header("curl/curl.h", None) {
        return Err("curl/curl.h");
    }
    let folder = env::var_os("YYJSON").map(PathBuf::from);
    if let Some(folder) = folder.filter(|folder| has_header("yyjson.h", Some(folder))) {
        let object = Path::new(env!("CARGO_TARGET_TMPDIR")).join("yyjson.o");
        let mut cc = Command::new("cc");
        cc.args(["-O3", "-c", "-o"]).arg(&object);
        succeeds({
            cc.arg(folder.join("yyjson.c"));
            cc
        });
        let mut command = c("curl.c", &["-DWITH_YYJSON"]);
        command.arg("-isystem").arg(folder).arg(object);
        return Ok((YYJSON, Client::new(program, command, &["-lcurl"])));
    }
    let (name, options, library) = if has_header("yyjson.h", None) {
        (YYJSON, &["-DWITH_YYJSON"][..], "-lyyjson")
    } else if has_header("cjson/cJSON.h", None) {
        ("libcurl + cJSON", &[][..], "-lcjson")
    } else {
        return Err("yyjson (see $YYJSON), and no cJSON");
    };
    let client = Client::new(program, c("curl.c", options), &["-lcurl", library]);
    Ok((name, client))
}

fn has_header(name: &str, folder: Option<&Path>) -> bool {
    let mut cc = Command::new("cc");
    cc.args(["-fsyntax-only", "-x", "c", "-include", name]);
    cc.args(folder.map(|folder| format!("-I{}", folder.display())));
    works(cc.arg("/dev/null"))
}

/// What a client says of its chats; `benches/c/measure.h` has the names.
pub struct Measured {
    values: HashMap<String, f64>,
    /// What a program that it ran below said.
    pub err: String,
}

impl Measured {
    /// Of chats that went well.
    #[track_caller]
    pub fn of(command: Command) -> Measured {
        let shown = format!("{command:?}");
        let done = run(command);
        assert!(done.status.success(), "{shown}\n{}{}", done.out, done.err);
        let pairs = done.out.split_whitespace();
        let values = pairs.filter_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Measured {
            values: values.collect(),
            err: done.err,
        }
    }

    #[track_caller]
    pub fn get(&self, name: &str) -> f64 {
        let value = self.values.get(name);
        *value.unwrap_or_else(|| panic!("the client does not say {name}"))
    }

    /// The processor's time for each of so many parts of a chat, in microseconds.
    pub fn cpu(&self, parts: usize) -> f64 {
        self.get("cpu") / self.get("chats") / parts as f64
    }

    /// For each chat but the first.
    #[track_caller]
    pub fn later(&self, name: &str) -> f64 {
        let all = self.get(name) - self.get(&format!("first_{name}"));
        all / (self.get("chats") - 1.0)
    }
}
