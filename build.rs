//! Generates `include/gptalk.h` from `src/ffi/api.rs`, and links the shared library.

use std::path::Path;
use std::{env, fs};

const SOURCE: &str = "src/ffi/api.rs";
const HEADER: &str = "include/gptalk.h";

const PREFACE: &str = "\
/**
 * @file gptalk.h
 * gptalk: chat with a language model from any language, through one C function.
 *
 * Generated from src/ffi/api.rs: change it there.
 *
 * Rules that hold everywhere: any function may be called from any thread; a client does one chat
 * at a time (clone it for more; clones share connections); every pointer is checked; strings are
 * UTF-8 and NUL-terminated, and those that go in are used during the call only, or copied. The
 * library starts no thread, installs no signal handler, changes no signal mask and prints nothing
 * (but for the report of a defect of its own, on stderr). After fork() the child opens its own
 * connections and logs in for itself; a client that was in a chat on another thread stays busy
 * there (clone it). Out of memory aborts.
 */";

const CLIENT: &str = "
/** A client; what is in it is the library's own. */
typedef struct gptalk_client gptalk_client;";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-changed={HEADER}");

    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
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
