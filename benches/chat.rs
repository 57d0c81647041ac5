//! What a chat costs: the library through its C functions, beside libcurl as one uses it by hand, and
//! beside a bare `recv()`, which is the limit.
//!
//! ```text
//! cargo bench                             # all of it: three minutes on two cores
//! cargo bench -- [ROUNDS] [SCENARIO...]   # nine rounds; scenarios: those of `SCENARIOS`
//! cargo bench -- --readme                 # writes the table and the plot of README.md, too
//! ```
//!
//! The programs are C (`benches/c`), and run in turns: A B C, C B A, and so on; a figure is the median
//! of the rounds. The library is the one in `$GPTALK_PREFIX` where that is set, else it is built
//! here as it is published. libcurl takes part where its header is, with yyjson where that is
//! installed or `$YYJSON` names a folder with `yyjson.c` and `yyjson.h`, else with cJSON.

mod lab;
mod plot;
#[path = "../tests/programs/mod.rs"]
mod programs;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fmt, fs, thread};

use Protocol::{GpTalk, OpenAi};
use gptalk_service::Service;
use gptalk_service::certificates::Authority;
use lab::{Client, Measured, Protocol, Replies, Stream, c, words};
use programs::{ROOT, left_out, run};

const ROUNDS: usize = 9;

const TMP: &str = env!("CARGO_TARGET_TMPDIR");

/// Between these README.md has the table.
const BEGIN: &str = "<!-- cargo bench -- --readme -->";
const END: &str = "<!-- end of cargo bench -->";

/// Where systems have their trusted roots.
const ROOTS: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

type Scenario = fn(&Bench) -> Vec<Row>;

const SCENARIOS: [(&str, Scenario); 12] = [
    ("stream", stream),
    ("stream-64k", stream_64k),
    ("cumulative", cumulative),
    ("cumulative-escapes", cumulative_escapes),
    ("paced", paced),
    ("paced-gptalk", paced_gptalk),
    ("chats", chats),
    ("chats-gptalk", chats_gptalk),
    ("threads", threads),
    ("threads-gptalk", threads_gptalk),
    ("https", https),
    ("start", start),
];

const OPENAI_TOKENS: usize = 100_000;
const GPTALK_TOKENS: usize = 4_000;

fn stream(bench: &Bench) -> Vec<Row> {
    let replies = Replies::start(Stream::of(OpenAi, &words(OPENAI_TOKENS, 4)));
    let figures = [
        Figure::cpu("OpenAI stream, a chunk for each token", "ns a token", |m| {
            m.cpu(OPENAI_TOKENS) * 1e3
        }),
        Figure::memory("The same: peak of memory"),
    ];
    bench.chats(OpenAi, &replies, 3, 1, &figures)
}

fn stream_64k(bench: &Bench) -> Vec<Row> {
    let stream = Stream::openai("content", &words(OPENAI_TOKENS, 4), 64 * 1024);
    let figure = Figure::cpu("OpenAI stream, chunks of 64 KiB", "ns a token", |m| {
        m.cpu(OPENAI_TOKENS) * 1e3
    });
    bench.chats(OpenAi, &Replies::start(stream), 3, 1, &[figure])
}

fn cumulative(bench: &Bench) -> Vec<Row> {
    let replies = Replies::start(Stream::of(GpTalk, &words(GPTALK_TOKENS, 8)));
    let figures = [
        Figure::cpu("GPTalk stream, 64 MB for 32 kB", "µs a token", |m| {
            m.cpu(GPTALK_TOKENS)
        }),
        Figure::memory("The same: peak of memory"),
    ];
    bench.chats(GpTalk, &replies, 3, 1, &figures)
}

fn cumulative_escapes(bench: &Bench) -> Vec<Row> {
    let mut words = words(GPTALK_TOKENS, 8);
    for word in words.iter_mut().step_by(8) {
        *word = r#"\n\"\u00e9\ud83d\ude00"#.to_owned();
    }
    let replies = Replies::start(Stream::of(GpTalk, &words));
    let figure = Figure::cpu("GPTalk stream, with escapes", "µs a token", |m| {
        m.cpu(GPTALK_TOKENS)
    });
    bench.chats(GpTalk, &replies, 3, 1, &[figure])
}

fn paced(bench: &Bench) -> Vec<Row> {
    let stream = Stream::of(OpenAi, &words(3_000, 4));
    let replies = Replies::paced(stream, Duration::from_micros(100));
    let figure = Figure::cpu("OpenAI stream, a token each 100 µs", "µs a token", |m| {
        m.cpu(3_000)
    });
    bench.chats(OpenAi, &replies, 1, 1, &[figure])
}

fn paced_gptalk(bench: &Bench) -> Vec<Row> {
    let stream = Stream::of(GpTalk, &words(1_000, 8));
    let replies = Replies::paced(stream, Duration::from_micros(300));
    let figure = Figure::cpu("GPTalk stream, a token each 300 µs", "µs a token", |m| {
        m.cpu(1_000)
    });
    bench.chats(GpTalk, &replies, 1, 1, &[figure])
}

fn chats(bench: &Bench) -> Vec<Row> {
    let figure = Figure::cpu("OpenAI chats of 20 tokens", "µs a chat", |m| m.cpu(1));
    bench.chats(
        OpenAi,
        &Replies::start(Stream::short(OpenAi)),
        1_000,
        1,
        &[figure],
    )
}

fn chats_gptalk(bench: &Bench) -> Vec<Row> {
    let figure = Figure::cpu("GPTalk chats of 20 tokens", "µs a chat", |m| m.cpu(1));
    bench.chats(
        GpTalk,
        &Replies::start(Stream::short(GpTalk)),
        1_000,
        1,
        &[figure],
    )
}

fn threads(bench: &Bench) -> Vec<Row> {
    let figures = [
        Figure::cpu("OpenAI chats in 64 threads", "µs a chat", |m| m.cpu(1)),
        Figure::rate("The same: throughput"),
    ];
    bench.chats(
        OpenAi,
        &Replies::start(Stream::short(OpenAi)),
        200,
        64,
        &figures,
    )
}

fn threads_gptalk(bench: &Bench) -> Vec<Row> {
    let figures = [
        Figure::cpu("GPTalk chats in 64 threads", "µs a chat", |m| m.cpu(1)),
        Figure::rate("The same: throughput"),
    ];
    bench.chats(
        GpTalk,
        &Replies::start(Stream::short(GpTalk)),
        200,
        64,
        &figures,
    )
}

/// Each client reads the roots of the system, and the one of the service.
fn https(bench: &Bench) -> Vec<Row> {
    let system = ROOTS.iter().find_map(|file| fs::read_to_string(file).ok());
    let Some(system) = system else {
        left_out("https: the system's roots are in no known place");
        return Vec::new();
    };
    let root = Authority::new("the bench's root");
    let file = Path::new(TMP).join("bench-roots.pem");
    fs::write(&file, system + &root.pem()).expect("a temporary file");
    let bench = bench.trusting(&file);
    let tls = || Service::builder().tls(root.issue(&["127.0.0.1"]).config());

    let replies = Replies::with(tls(), Stream::short(OpenAi), None);
    let figures = [
        Figure::cpu("First https chat", "ms", |m| m.get("first_cpu") / 1e3),
        Figure::cpu("Later https chats", "µs a chat", |m| m.later("cpu")),
    ];
    let mut rows = bench.chats(OpenAi, &replies, 200, 1, &figures);

    let stream = Stream::of(OpenAi, &words(OPENAI_TOKENS, 4));
    let replies = Replies::with(tls(), stream, None);
    let figure = Figure::cpu("OpenAI stream over https", "ns a token", |m| {
        m.later("cpu") * 1e3 / OPENAI_TOKENS as f64
    });
    rows.extend(bench.chats(OpenAi, &replies, 4, 1, &[figure]));
    rows
}

/// What the start of a program takes more than that of one that does nothing.
fn start(bench: &Bench) -> Vec<Row> {
    let nothing = Client::new("bench-start", c("start.c", &[]), &[]);
    let mut rows = Vec::new();
    for (what, place) in [
        ("Start of a program, linked with it", 0),
        ("Start of a program, with a client", 1),
    ] {
        let starts = bench
            .contenders
            .iter()
            .map(|contender| contender.starts.as_ref());
        let programs = starts.map(|starts| starts.map(|starts| starts[place].clone()));
        let programs: Vec<_> = programs.chain([Some(nothing.clone())]).collect();
        // Each is over in no time.
        let medians = interleave(bench.rounds * 10, &programs, |program| {
            vec![Measured::of(program.command(&[])).get("cpu")]
        });
        let (nothing, others) = medians.split_last().expect("the program that does nothing");
        let nothing = nothing.as_ref().expect("its time")[0];
        let others = others
            .iter()
            .map(|values| Some(values.as_ref()?[0] - nothing));
        rows.push(Row {
            what,
            unit: "µs",
            is_cpu: true,
            values: others.collect(),
        });
    }
    rows
}

/// Runs them in turns, there and back, and takes the median of each of their figures.
fn interleave(
    rounds: usize,
    clients: &[Option<Client>],
    measure: impl Fn(&Client) -> Vec<f64>,
) -> Vec<Option<Vec<f64>>> {
    let mut all = vec![Vec::new(); clients.len()];
    for round in 0..rounds {
        let mut order: Vec<_> = (0..clients.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for n in order {
            all[n].extend(clients[n].as_ref().map(&measure));
        }
    }
    let medians = all.iter().map(|runs: &Vec<Vec<f64>>| {
        let figures = 0..runs.first()?.len();
        let median = |figure: usize| {
            let mut values: Vec<_> = runs.iter().map(|run| run[figure]).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        Some(figures.map(median).collect())
    });
    medians.collect()
}

/// What is read off a client's measurements.
struct Figure {
    what: &'static str,
    unit: &'static str,
    is_cpu: bool,
    of: fn(&Measured) -> f64,
}

impl Figure {
    /// Time of the processor: the client's, user and system.
    fn cpu(what: &'static str, unit: &'static str, of: fn(&Measured) -> f64) -> Figure {
        Figure {
            what,
            unit,
            is_cpu: true,
            of,
        }
    }

    fn memory(what: &'static str) -> Figure {
        Figure {
            what,
            unit: "MB",
            is_cpu: false,
            of: |measured| measured.get("peak") / 1024.0,
        }
    }

    /// The service has its part in it.
    fn rate(what: &'static str) -> Figure {
        Figure {
            what,
            unit: "chats a second",
            is_cpu: false,
            of: |measured| measured.get("chats") / measured.get("wall") * 1e6,
        }
    }
}

/// A line of the table: the medians of those who take part, `None` for who does not.
pub struct Row {
    what: &'static str,
    unit: &'static str,
    is_cpu: bool,
    values: Vec<Option<f64>>,
}

/// Who takes part.
#[derive(Clone)]
struct Contender {
    name: &'static str,
    client: Option<Client>,
    /// Programs that are linked with it: one that does nothing, one that makes a client.
    starts: Option<[Client; 2]>,
}

struct Bench {
    rounds: usize,
    /// The library, libcurl, `recv()`.
    contenders: Vec<Contender>,
}

impl Bench {
    /// The same, with TLS: these roots are trusted, and who cannot speak it is left out.
    fn trusting(&self, roots: &Path) -> Bench {
        let contenders = self.contenders.iter().cloned().map(|mut contender| {
            let speaks_tls = contender.starts.is_some();
            let client = contender.client.filter(|_| speaks_tls);
            contender.client = client.map(|client| client.env("SSL_CERT_FILE", roots));
            contender
        });
        Bench {
            rounds: self.rounds,
            contenders: contenders.collect(),
        }
    }

    fn chats(
        &self,
        protocol: Protocol,
        replies: &Replies,
        chats: usize,
        threads: usize,
        figures: &[Figure],
    ) -> Vec<Row> {
        let url = replies.service.url();
        let clients = self
            .contenders
            .iter()
            .map(|contender| contender.client.clone());
        let clients: Vec<_> = clients.collect();
        // They read the same, and the caches are warm.
        let mut texts = clients[..2].iter().flatten().map(|client| {
            let mut command = client.to_chat(&[], protocol, &url, 2, 1);
            command.env("CHAT_HASH", "1");
            let measured = Measured::of(command);
            (measured.get("bytes"), measured.get("hash"))
        });
        let text = texts.next();
        assert!(
            texts.all(|other| Some(other) == text),
            "they read different texts"
        );

        let medians = interleave(self.rounds, &clients, |client| {
            let measured = client.chats(protocol, &url, chats, threads);
            figures
                .iter()
                .map(|figure| (figure.of)(&measured))
                .collect()
        });
        let rows = figures.iter().enumerate().map(|(n, figure)| Row {
            what: figure.what,
            unit: figure.unit,
            is_cpu: figure.is_cpu,
            values: medians
                .iter()
                .map(|values| values.as_ref().map(|values| values[n]))
                .collect(),
        });
        rows.collect()
    }
}

/// With three figures.
struct Rounded(f64);

impl fmt::Display for Rounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.0;
        match value {
            0.0..10.0 => write!(f, "{value:.2}"),
            10.0..100.0 => write!(f, "{value:.1}"),
            100.0..1000.0 => write!(f, "{value:.0}"),
            _ => {
                // The digits that count, and noughts.
                let unit = 10f64.powi(value.log10() as i32 - 2);
                let digits = format!("{:.0}", (value / unit).round() * unit);
                let (left, right) = digits.split_at(digits.len() % 3);
                let groups = right.as_bytes().chunks(3).map(String::from_utf8_lossy);
                let groups = [left.into()].into_iter().chain(groups);
                let groups: Vec<_> = groups.filter(|group| !group.is_empty()).collect();
                f.write_str(&groups.join(","))
            }
        }
    }
}

/// The head of a table in Markdown.
fn head(bench: &Bench) -> String {
    let names = bench
        .contenders
        .iter()
        .map(|contender| format!(" {} |", contender.name));
    let names: String = names.collect();
    format!("| | |{names}\n|---|---|---:|---:|---:|\n")
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "| {} | {} |", self.what, self.unit)?;
        for value in &self.values {
            match value {
                Some(value) => write!(f, " {} |", Rounded(*value))?,
                None => f.write_str(" |")?,
            }
        }
        writeln!(f)
    }
}

/// What the figures depend on.
fn circumstances(bench: &Bench) -> String {
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        text.unwrap_or_default()
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut text = format!(
        "Medians of {} rounds on {cores} cores, which clients and service share; Linux {}, over loopback; {}",
        bench.rounds,
        said("uname", &["-r"]),
        said("rustc", &["--version"])
            .split(" (")
            .next()
            .unwrap_or_default(),
    );
    if let Some([_, curl]) = &bench.contenders[1].starts {
        // libcurl and its TLS; what else it is made with is not used.
        let mut curl = curl.command(&[]);
        curl.arg("--version");
        let versions = run(curl).out;
        let versions: Vec<_> = versions.split_whitespace().take(2).collect();
        text += &format!("; {}", versions.join(", "));
    }
    text + "."
}

/// Puts the table between its marks in README.md, and the plot where README.md shows it.
fn write_readme(bench: &Bench, table: &str, rows: &[Row]) {
    let names: Vec<_> = bench
        .contenders
        .iter()
        .map(|contender| contender.name)
        .collect();
    let root = Path::new(ROOT);
    fs::write(root.join("benches/chat.svg"), plot::svg(&names, rows)).expect("benches/chat.svg");
    let file = root.join("README.md");
    let readme = fs::read_to_string(&file).expect("README.md");
    let (before, rest) = readme.split_once(BEGIN).expect("a mark in README.md");
    let (_, after) = rest.split_once(END).expect("a second mark in README.md");
    fs::write(&file, format!("{before}{BEGIN}\n\n{table}\n{END}{after}")).expect("README.md");
}

fn main() {
    let arguments: Vec<_> = env::args().skip(1).collect();
    // Cargo says so; as a test this would take too long.
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let (options, words): (Vec<_>, Vec<_>) = arguments
        .iter()
        .partition(|argument| argument.starts_with("--"));
    let is_for_readme = options.iter().any(|option| *option == "--readme");
    let rounds = words.first().and_then(|word| word.parse().ok());
    let wanted = &words[usize::from(rounds.is_some())..];
    for name in wanted {
        let is_known = SCENARIOS.iter().any(|(known, _)| known == name);
        assert!(is_known, "there is no scenario {name}");
    }

    let bench = Bench {
        rounds: rounds.unwrap_or(ROUNDS),
        contenders: contenders(),
    };
    let has_all = bench
        .contenders
        .iter()
        .all(|contender| contender.client.is_some());
    assert!(
        !is_for_readme || (has_all && wanted.is_empty()),
        "README.md tells of all scenarios, and of libcurl"
    );
    let mut table = head(&bench);
    let mut rows = Vec::new();
    print!("{table}");
    for (name, scenario) in SCENARIOS {
        if wanted.is_empty() || wanted.iter().any(|wanted| *wanted == name) {
            for row in scenario(&bench) {
                print!("{row}");
                table += &row.to_string();
                rows.push(row);
            }
        }
    }
    let circumstances = circumstances(&bench);
    println!("\n{circumstances}");
    if is_for_readme {
        write_readme(&bench, &format!("{table}\n{circumstances}\n"), &rows);
    }
}

fn contenders() -> Vec<Contender> {
    let folder = library();
    let start = |name, options: &[&str]| Client::linked(name, c("start.c", options), &folder);
    let gptalk = Contender {
        name: "gptalk",
        client: Some(Client::linked("bench-gptalk", c("gptalk.c", &[]), &folder)),
        starts: Some([
            start("bench-start-gptalk-unused", &[]),
            start("bench-start-gptalk", &["-DWITH_GPTALK"]),
        ]),
    };
    let mut curl = Contender {
        name: "libcurl",
        client: None,
        starts: None,
    };
    match lab::curl("bench-curl") {
        Ok((name, client)) => {
            let linked = ["-Wl,--no-as-needed", "-lcurl"];
            let start = |name, options: &[&str]| Client::new(name, c("start.c", options), &linked);
            curl.name = name;
            curl.client = Some(client);
            curl.starts = Some([
                start("bench-start-curl-unused", &[]),
                start("bench-start-curl", &["-DWITH_CURL"]),
            ]);
        }
        Err(missing) => left_out(&format!("libcurl: there is no {missing}")),
    }
    let limit = Contender {
        name: "bare `recv()`",
        client: Some(Client::new("bench-recv", c("recv.c", &[]), &[])),
        starts: None,
    };
    vec![gptalk, curl, limit]
}

/// The folder of the shared library.
fn library() -> PathBuf {
    if let Some(prefix) = env::var_os("GPTALK_PREFIX") {
        return Path::new(&prefix).join("lib");
    }
    // Not what was built beside this program: that is without optimization across crates.
    let target = Path::new(TMP).with_file_name("bench-library");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(ROOT);
    cargo.args(["rustc", "--release", "--package", "gptalk", "--lib"]);
    cargo
        .args(["--crate-type", "cdylib", "--target-dir"])
        .arg(&target);
    let status = cargo.status().expect("cargo");
    assert!(status.success(), "{cargo:?}");
    target.join("release")
}
