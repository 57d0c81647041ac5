//! The service on its own, for clients written in something else than Rust:
//!
//! ```text
//! cargo run -p gptalk-service -- --port 8080 --pace-ms 100
//! ```
//!
//! The first line on stdout is its URL, the same for both protocols; with `--api-key KEY`, the
//! OpenAI-compatible one asks for that key. It serves until it is killed.

use gptalk_service::{Builder, Service};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

/// A pace that looks like someone typing.
const PACE: Duration = Duration::from_millis(40);

fn main() -> ExitCode {
    let Some(builder) = configure(std::env::args().skip(1)) else {
        eprintln!("usage: gptalk-service [--port N] [--pace-ms N] [--api-key KEY]");
        return ExitCode::from(2);
    };
    let service = builder.start();
    let url = service.url();
    // A program that started this one and closed the pipe is no reason to stop.
    let mut stdout = std::io::stdout();
    let _ = writeln!(stdout, "{url}").and_then(|()| stdout.flush());
    eprintln!("export GPTALK_BASE_URL={url}");
    eprintln!("or, for the OpenAI-compatible protocol:");
    eprintln!("export GPTALK_BASE_URL={url} GPTALK_PROTOCOL=openai");
    loop {
        std::thread::park();
    }
}

/// The service the arguments ask for; None if they make no sense.
fn configure(mut args: impl Iterator<Item = String>) -> Option<Builder> {
    let mut builder = Service::builder().pace(PACE);
    while let Some(name) = args.next() {
        let value = args.next()?;
        builder = match name.as_str() {
            "--port" => builder.port(value.parse().ok()?),
            "--pace-ms" => builder.pace(Duration::from_millis(value.parse().ok()?)),
            "--api-key" => builder.api_key(&value),
            _ => return None,
        };
    }
    Some(builder)
}
