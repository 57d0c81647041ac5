//! The installed library: what `.ci/release`, that is `cargo cinstall`, has put in place, as a C
//! programmer finds it.
//!
//! `GPTALK_PREFIX` names the prefix; `.ci/run` installs there. Without it nothing is tested here.

#![cfg(target_os = "linux")]

mod programs;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::{env, fs};

use gptalk_service::certificates::Authority;
use gptalk_service::{Endpoint, Service};
use programs::{
    Done, ROOT, command, compile, compiler, left_out, run, succeeds, succeeds_silently, works,
};

/// Stripped, and with TLS.
const MOST_BYTES: u64 = 2_000_000;

/// What a build on Debian 12 wants: since 2.34 the symbols of threads are in libc itself.
const NEWEST_GLIBC: (u32, u32) = (2, 34);

struct Prefix(PathBuf);

impl Prefix {
    /// None where there is no installation; says so.
    fn get() -> Option<Self> {
        static SAID: Once = Once::new();
        let prefix = env::var_os("GPTALK_PREFIX");
        if prefix.is_none() {
            SAID.call_once(|| left_out("the installed library: GPTALK_PREFIX is not set"));
        }
        prefix.map(|prefix| Prefix(prefix.into()))
    }

    fn library(&self, name: &str) -> PathBuf {
        self.0.join("lib").join(name)
    }

    fn header(&self, name: &str) -> PathBuf {
        self.0.join("include").join(name)
    }

    /// The words that pkg-config says.
    fn pkg_config(&self, options: &[&str]) -> Vec<String> {
        let mut command = Command::new("pkg-config");
        command.env("PKG_CONFIG_PATH", self.library("pkgconfig"));
        let said = output(command.args(options).arg("gptalk"));
        said.split_whitespace().map(str::to_owned).collect()
    }

    /// A chat through a program that is linked with this library.
    #[track_caller]
    fn assert_chats(&self, program: &Path) {
        let service = Service::start();
        let mut command = command(program);
        command.env("LD_LIBRARY_PATH", self.0.join("lib"));
        command.env("GPTALK_BASE_URL", service.url()).arg("Привет");
        let Done { status, out, err } = run(command);
        assert!(status.success(), "{program:?}: {err}");
        assert_eq!(out, "You said: Привет\n");
    }
}

#[track_caller]
fn output(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn has(tool: &str) -> bool {
    let has = works(Command::new(tool).arg("--version"));
    if !has {
        left_out(&format!("the installed library: there is no {tool}"));
    }
    has
}

fn readelf(options: &[&str], path: &Path) -> String {
    output(Command::new("readelf").arg("-W").args(options).arg(path))
}

/// The C example as README.md builds it.
fn cc(flags: &[String]) -> Command {
    let mut command = Command::new("cc");
    command
        .current_dir(ROOT)
        .arg("examples/c/chat.c")
        .args(flags);
    command
}

#[test]
fn the_headers_are_those_of_the_repository() {
    let Some(prefix) = Prefix::get() else { return };
    for name in ["gptalk.h", "gptalk.hpp"] {
        let ours = fs::read(Path::new(ROOT).join("include").join(name)).expect(name);
        assert!(
            fs::read(prefix.header(name)).expect(name) == ours,
            "{name} differs"
        );
    }
}

#[test]
fn pkg_config_compiles_and_links_a_program() {
    let Some(prefix) = Prefix::get() else { return };
    if !has("pkg-config") {
        return;
    }
    let flags = prefix.pkg_config(&["--cflags", "--libs"]);
    prefix.assert_chats(&compile("pkg-config", cc(&flags), &[]));

    let version = prefix.pkg_config(&["--modversion"]);
    assert_eq!(version, [env!("CARGO_PKG_VERSION")]);
}

#[test]
fn pkg_config_links_a_program_statically() {
    let Some(prefix) = Prefix::get() else { return };
    if !has("pkg-config") {
        return;
    }
    let flags = prefix.pkg_config(&["--static", "--cflags", "--libs"]);
    let flags: Vec<_> = flags
        .iter()
        .map(|flag| flag.replace("-lgptalk", "-l:libgptalk.a"))
        .collect();
    let program = compile("pkg-config-static", cc(&flags), &[]);
    assert!(!readelf(&["-d"], &program).contains("libgptalk"));
    prefix.assert_chats(&program);
}

#[test]
fn cmake_finds_the_package() {
    let Some(prefix) = Prefix::get() else { return };
    if !has("cmake") {
        return;
    }
    let project = Path::new(ROOT).join("tests/c/cmake");
    let build = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cmake");
    let _ = fs::remove_dir_all(&build);
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(&project).arg("-B").arg(&build);
    configure.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.0.display()));
    succeeds(configure);
    let mut make = Command::new("cmake");
    make.arg("--build").arg(&build);
    succeeds(make);
    for program in ["shared", "static"] {
        let program = build.join(program);
        let is_shared = readelf(&["-d"], &program).contains("libgptalk");
        assert_eq!(is_shared, program.ends_with("shared"));
        prefix.assert_chats(&program);
    }
}

/// Before 1.0, a minor version is an ABI.
#[test]
fn cmake_refuses_the_versions_of_another_abi_and_what_is_not_there() {
    let Some(prefix) = Prefix::get() else { return };
    if !has("cmake") {
        return;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cmake-versions");
    fs::create_dir_all(&folder).expect("a temporary folder");
    for (wanted, is_found) in [
        ("", true),
        ("0.1", true),
        ("0.1.0", true),
        ("0.1.0 EXACT", true),
        ("0.1.99", false),
        ("0.2", false),
        ("0.1...<0.2", true),
        ("0.0.1...0.0.9", false),
        ("COMPONENTS gptalk gptalk_static", true),
        ("COMPONENTS gptalk_dynamic", false),
        ("0.0.1", false),
        ("1.0", false),
    ] {
        let text = format!(
            "cmake_minimum_required(VERSION 3.16)\nproject(versions C)\nfind_package(gptalk {wanted})\n\
             if(gptalk_FOUND)\n  message(STATUS \"found it\")\nendif()\n"
        );
        fs::write(folder.join("CMakeLists.txt"), text).expect("a temporary file");
        let _ = fs::remove_dir_all(folder.join("build"));
        let mut configure = Command::new("cmake");
        configure
            .arg("-S")
            .arg(&folder)
            .arg("-B")
            .arg(folder.join("build"));
        configure.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.0.display()));
        let said = output(&mut configure);
        assert_eq!(said.contains("found it"), is_found, "{wanted}: {said}");
    }
}

#[test]
fn the_shared_library_is_made_as_a_loader_and_a_distributor_want_it() {
    let Some(prefix) = Prefix::get() else { return };
    let path = prefix.library("libgptalk.so");
    let dynamic = readelf(&["-d"], &path);
    let entries = |tag: &str| -> Vec<&str> {
        let tagged = dynamic.lines().filter(|line| line.contains(tag));
        tagged
            .filter_map(|line| line.split(['[', ']']).nth(1))
            .collect()
    };
    assert_eq!(entries("(SONAME)"), ["libgptalk.so.0.1"]);
    for needed in entries("(NEEDED)") {
        let known = ["libc.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"];
        assert!(known.contains(&needed), "it needs {needed}");
    }
    let flags = dynamic.lines().find(|line| line.contains("(FLAGS_1)"));
    let flags = flags.expect("flags");
    assert!(
        flags.contains("NOW") && flags.contains("NODELETE"),
        "{flags}"
    );
    assert!(!dynamic.contains("(TEXTREL)") && !dynamic.contains("PATH)"));

    let segments = readelf(&["-l"], &path);
    assert!(segments.contains("GNU_RELRO"));
    let stack = segments.lines().find(|line| line.contains("GNU_STACK"));
    assert!(stack.is_some_and(|line| line.contains(" RW ")), "{stack:?}");
}

/// In Debian's words, as its package would state them.
#[test]
fn every_promised_symbol_is_there_and_no_other() {
    let Some(prefix) = Prefix::get() else { return };
    let file = Path::new(ROOT).join("tests/abi/libgptalk.symbols");
    let text = fs::read_to_string(file).expect("the list of symbols");
    let promised: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix(' ')?.split('@').next())
        .collect();

    let mut nm = Command::new("nm");
    nm.args(["-D", "--defined-only"])
        .arg(prefix.library("libgptalk.so"));
    let listed = output(&mut nm);
    let name = |line: &'_ str| line.split_whitespace().nth(2).map(str::to_owned);
    assert_eq!(
        listed.lines().filter_map(name).collect::<Vec<_>>(),
        promised
    );

    // The archive keeps the rest to itself.
    let mut nm = Command::new("nm");
    nm.args(["-g", "--defined-only"])
        .arg(prefix.library("libgptalk.a"));
    let mut shown: Vec<_> = output(&mut nm).lines().filter_map(name).collect();
    shown.sort();
    assert_eq!(shown, promised);
}

#[test]
fn debians_own_tool_agrees_with_the_list_of_symbols() {
    let Some(prefix) = Prefix::get() else { return };
    if !has("dpkg-gensymbols") {
        return;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gensymbols");
    fs::create_dir_all(folder.join("debian")).expect("a temporary folder");
    let control = "Source: gptalk\nMaintainer: nobody <nobody@localhost>\n\n\
                   Package: libgptalk0.1\nArchitecture: any\nDescription: gptalk\n";
    fs::write(folder.join("debian/control"), control).expect("a temporary file");
    let mut gensymbols = Command::new("dpkg-gensymbols");
    gensymbols
        .current_dir(&folder)
        .args(["-plibgptalk0.1", "-v0.1.0", "-c4", "-Onew.symbols"]);
    gensymbols.arg(format!("-I{ROOT}/tests/abi/libgptalk.symbols"));
    gensymbols.arg(format!(
        "-e{}",
        prefix.library("libgptalk.so.0.1.0").display()
    ));
    succeeds(gensymbols);
}

#[test]
fn it_runs_with_the_glibc_that_the_readme_states() {
    let Some(prefix) = Prefix::get() else { return };
    let symbols = readelf(&["--dyn-syms"], &prefix.library("libgptalk.so"));
    let newest = symbols
        .split("GLIBC_")
        .skip(1)
        .filter_map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
            let (major, minor) = rest[..end?].split_once('.')?;
            let minor = minor.split('.').next()?;
            Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
        })
        .max();
    let newest = newest.expect("a version of glibc's");
    assert!(newest <= NEWEST_GLIBC, "it needs glibc {newest:?}");
    let readme = fs::read_to_string(Path::new(ROOT).join("README.md")).expect("README.md");
    let (major, minor) = NEWEST_GLIBC;
    assert!(readme.contains(&format!("glibc {major}.{minor}")));
}

#[test]
fn it_is_small() {
    let Some(prefix) = Prefix::get() else { return };
    let stripped = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libgptalk.stripped");
    let mut strip = Command::new("strip");
    strip
        .arg("-o")
        .arg(&stripped)
        .arg(prefix.library("libgptalk.so"));
    succeeds(strip);
    let size = fs::metadata(&stripped).expect("a stripped library").len();
    assert!(size < MOST_BYTES, "{size} bytes, stripped");
}

#[test]
fn it_does_not_tell_where_it_was_built() {
    let Some(prefix) = Prefix::get() else { return };
    // A home of "/" would be found everywhere.
    let home = env::var("HOME").ok().filter(|home| home.len() > 1);
    let home = home.unwrap_or_else(|| "/root".into());
    for name in ["libgptalk.so", "libgptalk.a"] {
        let bytes = fs::read(prefix.library(name)).expect(name);
        for path in [ROOT, &home, ".cargo", "/registry/"] {
            let found = bytes
                .windows(path.len())
                .any(|bytes| bytes == path.as_bytes());
            assert!(!found, "{path} is in {name}");
        }
    }
}

/// A program in C that links two libraries made of Rust (rust-lang/rust#44322).
#[test]
fn the_archive_links_beside_another_one_made_of_rust() {
    let Some(prefix) = Prefix::get() else { return };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let write = |name: &str, text: &str| {
        fs::write(folder.join(name), text).expect("a temporary file");
        folder.join(name)
    };
    let other = write(
        "other.rs",
        "#[unsafe(no_mangle)]\n\
         pub extern \"C\" fn other(n: i32) -> i32 {\n\
         \x20   std::panic::catch_unwind(|| if n > 1 { panic!() } else { n }).unwrap_or(-1)\n\
         }\n",
    );
    let program = write(
        "two.c",
        "#include <gptalk.h>\n#include <stdio.h>\nint other(int);\n\
         int main(void) { printf(\"%d %d %d\\n\", other(1), other(2), gptalk_chat(\"\", 0, 0)); return 0; }\n",
    );
    let libother = folder.join("libother.a");
    let mut rustc = Command::new("rustc");
    rustc.args(["--edition=2024", "--crate-type=staticlib", "-O"]);
    rustc.arg("--print=native-static-libs");
    rustc.arg("-o").arg(&libother).arg(other);
    let said = rustc.output().expect("rustc");
    let said = String::from_utf8_lossy(&said.stderr);

    let ours = prefix.library("libgptalk.a");
    let private = prefix.pkg_config(&["--static", "--libs-only-l"]);
    let private: Vec<_> = private.iter().filter(|lib| *lib != "-lgptalk").collect();
    // What any library made of Rust needs of the system, and no more.
    let native = said.split("native-static-libs:").nth(1).expect(&said);
    let native: Vec<_> = native
        .lines()
        .next()
        .unwrap_or("")
        .split_whitespace()
        .collect();
    assert_eq!(private, native);
    for (name, archives) in [
        ("ours-first", [&ours, &libother]),
        ("ours-last", [&libother, &ours]),
    ] {
        let mut cc = Command::new("cc");
        cc.arg("-I").arg(prefix.0.join("include")).arg(&program);
        cc.args(archives)
            .args(&private)
            .args(["-Wl,--gc-sections", "-s"]);
        let done = run(command(compile(name, cc, &[])));
        assert_eq!(done.out, "1 -1 2\n", "{}", done.err);
    }
}

#[test]
fn a_small_stack_is_enough() {
    let Some(prefix) = Prefix::get() else { return };
    let source = compiler("cc", &["-std=c99", "tests/c/process.c"]);
    let folder = prefix.0.join("lib");
    let folder = folder.to_str().expect("a path in UTF-8");
    let libraries = [&format!("-L{folder}"), "-lgptalk", "-lpthread"];
    let program = compile("process-installed", source, &libraries);
    let on_a_stack = |service: &Service, kib, depth| {
        let mut command = command(&program);
        command.env("LD_LIBRARY_PATH", folder);
        command.args(["small_stack", &service.url(), kib, depth]);
        command
    };

    // As deep as JSON may be, in what is sent and in what comes: so much is promised.
    let deep = format!("{}{}", "[".repeat(120), "]".repeat(120));
    let event = format!("{{\"x\": {deep}, \"content\": \"You said: Hi\"}}");
    let service = Service::builder().on(Endpoint::Stream, move |_, peer| {
        peer.sse_head();
        peer.chunk(format!("data: {event}\n\ndata: [DONE]\n\n"));
        peer.last_chunk();
    });
    let service = service.start();
    succeeds_silently(on_a_stack(&service, "128", "119"));

    // And half of that is enough for everyday life, with TLS.
    let root = Authority::new("root");
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("package-root.pem");
    fs::write(&file, root.pem()).expect("a temporary file");
    let service = Service::builder().tls(root.issue(&["127.0.0.1"]).config());
    let service = service.start();
    let mut command = on_a_stack(&service, "64", "5");
    command.env("GPTALK_CA_FILE", &file);
    succeeds_silently(command);
}
