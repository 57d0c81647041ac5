//! Generates `include/gptalk.h` from `src/ffi/api.rs`, and links the shared library.

use std::path::Path;
use std::{env, fs};

const SOURCE: &str = "src/ffi/api.rs";
const HEADER: &str = "include/gptalk.h";

const PREFACE: &str = "\
/**
 * @file gptalk.h
 * Chat with a language model from any language, through one C function.
 *
 * This header is the manual; examples/c/README.md goes from the first chat to a chat window.
 * Generated from src/ffi/api.rs: change it there.
 *
 * What holds everywhere:
 *
 * - A chat blocks, and callbacks run on the thread that called. The library starts no thread,
 *   installs no signal handler, changes no signal mask and prints nothing (but for the report of
 *   a defect of its own, on stderr).
 * - Any function may be called from any thread, in any callback; in a signal handler only
 *   gptalk_cancel(). A client does one chat at a time: clone it for more.
 * - Strings are UTF-8 and end with a NUL. Those that go in are used during the call only, or
 *   copied. A `const char *` that comes out is the library's, for as long as its function says; the
 *   `char *` of gptalk_push() is yours: gptalk_free() it.
 * - Every pointer may be NULL: where that has no meaning it is GPTALK_MISUSE, NULL, 0 or -1.
 * - Times are in milliseconds, sizes in bytes.
 * - After fork() the child opens connections and logs in for itself. A client that another
 *   thread was using then is good for gptalk_client_clone() alone. A fork waits while an option is
 *   set: hold no lock meanwhile that a pthread_atfork() handler of yours takes.
 * - longjmp() must not cross the library, and a thread inside it must not be ended by
 *   pthread_cancel(), which aborts the process. Out of memory aborts, too.
 * - A stack of 128 KiB is enough. On Linux, dlclose() leaves the library loaded.
 */";

const CLIENT: &str = "
/** A client: options, connections, channels, the last chat's outcome. Opaque. */
typedef struct gptalk_client gptalk_client;";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-changed={HEADER}");

    let is_apple = env::var("CARGO_CFG_TARGET_VENDOR").as_deref() == Ok("apple");
    if env::var_os("CARGO_CFG_UNIX").is_some() && !is_apple {
        // Never unloaded: the host's threads, and fork, may hold pointers into it.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }

    let config = cbindgen::Config {
        language: cbindgen::Language::C,
        cpp_compat: true,
        include_guard: Some("GPTALK_H".into()),
        sys_includes: vec!["stddef.h".into(), "stdint.h".into()],
        no_includes: true,
        header: Some(PREFACE.into()),
        after_includes: Some(CLIENT.into()),
        style: cbindgen::Style::Type,
        documentation_style: cbindgen::DocumentationStyle::Doxy,
        line_length: 96,
        usize_is_size_t: true,
        ..cbindgen::Config::default()
    };
    let bindings = cbindgen::Builder::new()
        .with_config(config)
        .with_src(SOURCE)
        .generate()
        .expect("src/ffi/api.rs makes a header");
    let mut header = Vec::new();
    bindings.write(&mut header);

    // Written only where it differs, and not in a tree that is read-only (a published crate).
    let current = fs::read(HEADER).unwrap_or_default();
    if current != header && fs::write(HEADER, &header).is_err() {
        let out = env::var_os("OUT_DIR").expect("cargo gives a build script OUT_DIR");
        fs::write(Path::new(&out).join("gptalk.h"), header).expect("OUT_DIR can be written");
    }
}
