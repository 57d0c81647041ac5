//! Chats with servers that others have written: llama.cpp's own, with a model that recites one
//! text, and aimock, whose replies the user's message decides.
//!
//! `.ci/run` installs them into `target/tools`, and names in `GPTALK_PEERS` the folder of the scripts
//! that start them. Where that is not so, the tests say what they leave out, and pass. A server is
//! started when the first test wants it, serves all of them, and ends with this process.

#![cfg(unix)]

use std::env;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use gptalk::{
    Client, ClientBuilder, Conversation, Error, ErrorKind, Event, Message, Protocol, Reply,
};
use serde_json::{Value, json};

/// How long a server may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);
/// For what is done at once, on a machine that runs other tests too.
const SOON: Duration = Duration::from_secs(10);

const KEY: &str = "sk-test";

// ---- servers ----

/// Runs a server as long as the other end of the standard input is held, which ends with this
/// process, however that ends.
const KEEPER: &str = r#"
    exec 2>&1 3<&0
    "$@" </dev/null 3<&- & server=$!
    { read -r _ <&3; kill -9 $server; } &
    wait $server
    kill $!
"#;

struct Server {
    port: u16,
    _keeper: Child,
}

/// A server, or why it did not come up.
type Kept = OnceLock<Result<Server, String>>;

/// Where the scripts that start the servers are, and what is installed.
struct Folders {
    scripts: PathBuf,
    installed: PathBuf,
}

impl Folders {
    fn get() -> Option<&'static Folders> {
        static FOLDERS: OnceLock<Option<Folders>> = OnceLock::new();
        let find = || {
            let scripts = env::var_os("GPTALK_PEERS").filter(|path| !path.is_empty());
            let Some(scripts) = scripts else {
                left_out("real servers: GPTALK_PEERS is not set");
                return None;
            };
            Some(Folders {
                scripts: scripts.into(),
                installed: Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools"),
            })
        };
        FOLDERS.get_or_init(find).as_ref()
    }

    /// The same, where all these files of a server are there; `is_here` remembers it.
    fn with(name: &str, files: &[&str], is_here: &OnceLock<bool>) -> Option<&'static Folders> {
        let folders = Folders::get()?;
        let look = || {
            let is_here = |file: &&str| folders.installed.join(file).exists();
            let are_here = files.iter().all(is_here);
            if !are_here {
                left_out(&format!("{name}, which is not in target/tools"));
            }
            are_here
        };
        is_here.get_or_init(look).then_some(folders)
    }
}

/// Says what is left out, where it is seen: only the macros that print are captured.
fn left_out(what: &str) {
    let _ = writeln!(io::stderr(), "left out: chats with {what} (see .ci/run)");
}

impl Server {
    /// The server that is started with the words that `command` gives for a port.
    fn get(kept: &'static Kept, command: impl Fn(u16) -> Vec<OsString>) -> &'static Server {
        let start = || Server::start(&command);
        // A port may be taken before the server has it.
        match kept.get_or_init(|| start().or_else(|_| start()).or_else(|_| start())) {
            Ok(server) => server,
            Err(why) => panic!("{why}"),
        }
    }

    fn start(command: impl Fn(u16) -> Vec<OsString>) -> Result<Server, String> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("the port").port();
        drop(listener);
        let mut keeper = Command::new("sh")
            .args(["-c", KEEPER, "sh"])
            .args(command(port))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let output = BufReader::new(keeper.stdout.take().expect("a pipe"));
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // Nobody listens once the server is up; nor may the pipe fill up.
                let _ = tell.send(line);
            }
        });
        let server = Server {
            port,
            _keeper: keeper,
        };
        let until = Instant::now() + PATIENCE;
        let mut said = String::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match told.recv_timeout(left) {
                Ok(line) if line.contains("listening on") => break,
                Ok(line) => said.push_str(&line),
                Err(why) => return Err(format!("{why}: {said}")),
            }
        }
        while server.ask("/health").is_none() {
            if Instant::now() > until {
                return Err(format!("it does not answer: {said}"));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// What it tells of itself; `None` where that is no JSON of status 200.
    fn ask(&self, path: &str) -> Option<Value> {
        let mut peer = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()?;
        peer.set_read_timeout(Some(PATIENCE)).ok()?;
        let head = format!("GET {path} HTTP/1.0\r\nauthorization: Bearer {KEY}\r\n\r\n");
        peer.write_all(head.as_bytes()).ok()?;
        let mut answer = String::new();
        peer.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?;
        serde_json::from_str(body).ok().filter(|_| status == "200")
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn builder(&self) -> ClientBuilder {
        Client::builder()
            .protocol(Protocol::Openai)
            .base_url(&self.url("/v1"))
            .api_key(KEY)
            .temperature(0.0)
            .idle_timeout(Some(PATIENCE))
    }

    fn client(&self) -> Client {
        self.builder().build().unwrap()
    }
}

// ---- chats ----

/// A chat and the pieces that it brought.
fn chat(client: &Client, talk: impl Into<Conversation>) -> (Vec<String>, Result<Reply, Error>) {
    let mut pieces = Vec::new();
    let result = client.chat(talk, |piece| {
        pieces.push(piece.to_owned());
        ControlFlow::Continue(())
    });
    (pieces, result)
}

/// A chat that has to go well.
#[track_caller]
fn replies(client: &Client, talk: impl Into<Conversation>) -> Reply {
    let (pieces, result) = chat(client, talk);
    let reply = result.unwrap();
    assert_eq!(pieces.concat(), reply.text);
    assert_eq!(pieces.len() as u64, reply.pieces);
    assert!(pieces.iter().all(|piece| !piece.is_empty()), "{pieces:?}");
    reply
}

/// A chat that has to fail: the error, its text, and what had come of the reply.
#[track_caller]
fn fails(
    client: &Client,
    talk: impl Into<Conversation>,
    kind: ErrorKind,
) -> (Error, String, Reply) {
    let (pieces, result) = chat(client, talk);
    let error = result.unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    let reply = error.reply().unwrap().clone();
    assert_eq!(pieces.concat(), reply.text);
    let text = error.to_string();
    assert!(!text.contains("sk-"), "{text}");
    (error, text, reply)
}

fn request(members: Value) -> Conversation {
    let mut request = json!({"messages": [{"role": "user", "content": "Hi"}]});
    let members = members.as_object().expect("an object").clone();
    request.as_object_mut().unwrap().extend(members);
    Conversation::from_json(&request.to_string()).unwrap()
}

mod llama {
    use super::*;

    /// What the model says, one byte a token where it is not ASCII: 25 tokens, and one for the end.
    const TEXT: &str = " The quick brown fox 😀 jumps café over\n日\t{\"lazy\":\\data: [DONE] dog.";
    const TOKENS: u64 = 25;
    /// Of prompt and reply together.
    const CONTEXT: u64 = 4096;

    fn server() -> Option<&'static Server> {
        static SERVER: Kept = Kept::new();
        with(&SERVER, &[])
    }

    fn with(kept: &'static Kept, options: &[&str]) -> Option<&'static Server> {
        static IS_HERE: OnceLock<bool> = OnceLock::new();
        let files = ["llama/python/xllamacpp", "llama/tiny.gguf"];
        let folders = Folders::with("llama.cpp's server", &files, &IS_HERE)?;
        let mut path = OsString::from("PYTHONPATH=");
        path.push(folders.installed.join("llama/python"));
        Some(Server::get(kept, |port| {
            let mut words = vec!["env".into(), path.clone(), "python3".into()];
            words.push(folders.scripts.join("llama_server.py").into());
            words.push(folders.installed.join("llama/tiny.gguf").into());
            words.push(port.to_string().into());
            words.extend(["--api-key", KEY].iter().chain(options).map(OsString::from));
            words
        }))
    }

    /// A request whose reply ends for being too long, after half a minute: the grammar has no say, but
    /// much to count. The seed is to find it by.
    fn endless(seed: u32) -> Value {
        let any = |count: usize| format!("[^\\x00]{{{count}}}");
        let grammar = (1..=30).map(any).collect::<Vec<_>>().join(" | ");
        json!({
            "ignore_eos": true,
            "max_tokens": -1,
            "seed": seed,
            "grammar": format!("root ::= ({grammar})*"),
        })
    }

    /// What the server is doing for the request with this seed: whether it still works on it, and how
    /// many tokens it has, those of the prompt included. `None`: there is no sign of it.
    fn work(server: &Server, seed: u32) -> Option<(bool, u64)> {
        let slots = server.ask("/slots").expect("the server's slots");
        let mut slots = slots.as_array().expect("an array").iter();
        let slot = slots.find(|slot| slot["params"]["seed"] == seed)?;
        let is_working = slot["is_processing"].as_bool().expect("whether it works");
        let tokens = slot["n_prompt_tokens"].as_u64().expect("a number");
        Some((is_working, tokens))
    }

    /// Waits until the server has stopped working for the request with this seed, and shows that it
    /// stopped long before the reply's end.
    #[track_caller]
    fn has_stopped(server: &Server, seed: u32) {
        let until = Instant::now() + SOON;
        loop {
            match work(server, seed) {
                Some((true, tokens)) => {
                    assert!(Instant::now() < until, "it goes on: {tokens} tokens");
                    thread::sleep(Duration::from_millis(10));
                }
                Some((false, tokens)) => return assert!(tokens < CONTEXT / 2, "{tokens} tokens"),
                // Another request has its place.
                None => return,
            }
        }
    }

    #[track_caller]
    fn is_whole(reply: &Reply) {
        assert_eq!(reply.text, TEXT);
        assert_eq!(reply.finish_reason.as_deref(), Some("stop"));
        assert_eq!(reply.completion_tokens(), Some(TOKENS + 1));
    }

    #[test]
    fn a_reply_and_all_about_it() {
        let Some(server) = server() else { return };
        let reply = replies(&server.client(), "Hi");
        is_whole(&reply);
        assert!((2..=TOKENS).contains(&reply.pieces), "{}", reply.pieces);
        assert_eq!(reply.model.as_deref(), Some("tiny"));
        let id = reply.request_id.as_deref().unwrap();
        assert!(id.starts_with("chatcmpl-"), "{id}");
        let url = server.url("/v1/chat/completions");
        assert_eq!(reply.url, Some(url));
        assert_eq!((reply.http_status, reply.attempts), (Some(200), 1));
        let prompt = reply.prompt_tokens().unwrap();
        assert!(prompt > 0);
        assert_eq!(reply.total_tokens(), Some(prompt + TOKENS + 1));
        assert!(reply.cached_tokens().unwrap() <= prompt);
        assert_eq!(reply.reasoning_tokens(), None);
        let first_text = reply.first_text.unwrap();
        assert!(first_text > Duration::ZERO && first_text <= reply.duration);
        assert!(!reply.rewritten && reply.reasoning.is_empty() && reply.tool_calls.is_empty());
    }

    #[test]
    fn every_form_brings_the_same() {
        let Some(server) = server() else { return };
        let client = server.client();
        is_whole(&replies(&client, "Hi"));
        is_whole(&client.complete("Hi").unwrap());

        let pieces: Result<Vec<_>, _> = client.stream("Hi").unwrap().collect();
        let pieces = pieces.unwrap();
        assert!(pieces.len() > 1);
        assert_eq!(pieces.concat(), TEXT);

        let mut stream = client.stream("Hi").unwrap().with_events().with_log();
        let (mut text, mut said, mut log) = (String::new(), String::new(), String::new());
        while let Some(event) = stream.next_event() {
            match event {
                Event::Text(piece) => text.push_str(piece),
                Event::Json(event) => {
                    let event: Value = serde_json::from_str(event).unwrap();
                    let piece = &event["choices"][0]["delta"]["content"];
                    said.push_str(piece.as_str().unwrap_or_default());
                    // Its text comes right after it.
                    assert!(said.starts_with(&text));
                }
                Event::Log(line) => log.push_str(line),
                Event::Tick => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((&*text, &*said), (TEXT, TEXT));
        assert!(log.contains("HTTP 200") && !log.contains(KEY), "{log}");
        is_whole(stream.reply());
        is_whole(&stream.finish().unwrap());
    }

    #[test]
    fn a_base_url_is_a_host_a_path_or_the_whole_endpoint() {
        let Some(server) = server() else { return };
        let endpoint = server.url("/v1/chat/completions");
        for path in ["", "/", "/v1", "/v1/", "/v1/chat/completions"] {
            let client = server.builder().base_url(&server.url(path));
            let reply = replies(&client.build().unwrap(), "Hi");
            is_whole(&reply);
            assert_eq!(reply.url.as_ref(), Some(&endpoint), "{path}");
        }
        let bare = server
            .builder()
            .base_url(&server.url("/v1")["http://".len()..]);
        is_whole(&replies(&bare.build().unwrap(), "Hi"));
    }

    #[test]
    fn a_reply_is_as_long_as_it_may_be() {
        let Some(server) = server() else { return };
        let by_request = request(json!({"max_tokens": 3}));
        let by_body = |members: Value| {
            let members = members.as_object().unwrap().clone();
            server.builder().body(members).build().unwrap()
        };
        let short = [
            replies(&server.client(), by_request),
            replies(&server.builder().max_tokens(3).build().unwrap(), "Hi"),
            replies(&by_body(json!({"max_tokens": 3})), "Hi"),
            replies(&by_body(json!({"max_completion_tokens": 3})), "Hi"),
        ];
        for reply in short {
            assert_eq!(reply.text, " The quick brown");
            assert_eq!(reply.finish_reason.as_deref(), Some("length"));
            assert_eq!(reply.completion_tokens(), Some(3));
        }

        // 80 times the text.
        let count = 80 * TOKENS;
        let long = request(json!({"ignore_eos": true, "max_tokens": count}));
        let reply = replies(&server.client(), long);
        assert!(reply.text == TEXT.repeat(80), "{}", reply.text);
        assert_eq!(reply.finish_reason.as_deref(), Some("length"));
        assert_eq!(reply.completion_tokens(), Some(count));
        assert!((80..=count).contains(&reply.pieces), "{}", reply.pieces);
    }

    #[test]
    fn a_reply_that_ends_inside_a_character_has_all_before_it() {
        let Some(server) = server() else { return };
        // The fox's face is the tokens 6 to 9.
        for count in 5..10 {
            let reply = replies(&server.client(), request(json!({"max_tokens": count})));
            let text = reply.text.trim_end_matches('\u{FFFD}');
            let face = if count == 9 { "😀" } else { "" };
            assert_eq!(text, format!(" The quick brown fox {face}"), "{count}");
            assert_eq!(reply.finish_reason.as_deref(), Some("length"));
            assert_eq!(reply.completion_tokens(), Some(count));
        }
    }

    #[test]
    fn an_answer_that_does_not_stream() {
        let Some(server) = server() else { return };
        let reply = replies(&server.client(), request(json!({"stream": false})));
        is_whole(&reply);
        assert_eq!(reply.pieces, 1);
        assert_eq!(reply.model.as_deref(), Some("tiny"));
    }

    #[test]
    fn a_key_that_is_wrong_or_missing() {
        let Some(server) = server() else { return };
        let wrong = server.builder().api_key("sk-wrong").build().unwrap();
        let (error, text, _) = fails(&wrong, "Hi", ErrorKind::Auth);
        assert_eq!(error.http_status(), Some(401));
        assert!(text.contains("Invalid API Key"), "{text}");
        assert!(!error.body().unwrap().contains("sk-wrong"));
        // One that the environment has is not meant.
        let none = server.builder().api_key("").build().unwrap();
        let (_, text, _) = fails(&none, "Hi", ErrorKind::Auth);
        assert!(text.contains("set api_key"), "{text}");
    }

    #[test]
    fn requests_that_it_refuses() {
        let Some(server) = server() else { return };
        let nowhere = server.builder().base_url(&server.url("/nowhere"));
        let (error, text, reply) = fails(&nowhere.build().unwrap(), "Hi", ErrorKind::Request);
        assert_eq!(error.http_status(), Some(404));
        assert!(text.contains("set base_url"), "{text}");
        let url = server.url("/nowhere/chat/completions");
        assert!(text.contains(&url), "{text}");
        assert_eq!(reply.url, Some(url));

        let no_text = r#"[{"role": "user", "content": 7}]"#;
        let no_text = Conversation::from_json(no_text).unwrap();
        let bad = [
            (no_text, "Expected 'content' to be a string or an array"),
            (
                request(json!({"temperature": "warm"})),
                "type must be number, but is string",
            ),
            (
                Conversation::from("word ".repeat(4 * CONTEXT as usize)),
                "exceeds the available context size (4096 tokens)",
            ),
        ];
        let client = server.client();
        for (talk, words) in bad {
            let (error, text, reply) = fails(&client, talk, ErrorKind::Request);
            assert!(text.contains(words), "{text}");
            assert_eq!((error.http_status(), reply.attempts), (Some(400), 1));
            assert!(error.body().unwrap().contains(words));
            assert!(!error.is_retryable());
        }
        // It has done the client no harm.
        is_whole(&replies(&client, "Hi"));
    }

    /// Nothing else ends the reply before its time.
    #[test]
    fn the_server_stops_where_a_callback_cancels() {
        let Some(server) = server() else { return };
        let seed = 1001;
        let mut count = 0;
        let mut cancelled = None;
        let result = server.client().chat(request(endless(seed)), |_| {
            count += 1;
            if count < 5 {
                return ControlFlow::Continue(());
            }
            assert!(matches!(work(server, seed), Some((true, _))));
            cancelled = Some(Instant::now());
            ControlFlow::Break(())
        });
        assert!(cancelled.unwrap().elapsed() < SOON);
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        let reply = error.reply().unwrap();
        assert_eq!(
            (reply.text.as_str(), reply.pieces),
            (" The quick brown fox ", 5)
        );
        has_stopped(server, seed);
    }

    #[test]
    fn the_server_stops_where_another_thread_cancels() {
        let Some(server) = server() else { return };
        let seed = 1002;
        let client = server.client();
        let handle = client.cancel_handle();
        let (tell, told) = mpsc::channel();
        let canceller = thread::spawn(move || {
            for () in told.iter().take(5) {}
            (handle.cancel(), Instant::now())
        });
        let mut text = String::new();
        let result = client.chat(request(endless(seed)), |piece| {
            text.push_str(piece);
            let _ = tell.send(());
            ControlFlow::Continue(())
        });
        let (found, cancelled) = canceller.join().unwrap();
        assert!(found && cancelled.elapsed() < SOON);
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(error.reply().unwrap().text, text);
        assert!(text.starts_with(" The quick brown fox "), "{text}");
        has_stopped(server, seed);
    }

    #[test]
    fn the_server_stops_where_a_stream_is_dropped() {
        let Some(server) = server() else { return };
        let seed = 1003;
        let mut stream = server.client().stream(request(endless(seed))).unwrap();
        let text: Result<String, _> = stream.by_ref().take(3).collect();
        assert_eq!(text.unwrap(), " The quick brown");
        assert!(matches!(work(server, seed), Some((true, _))));
        drop(stream);
        has_stopped(server, seed);
    }

    /// It sends nothing before it has all: the chat waits for the header.
    #[test]
    fn a_cancel_before_the_answer() {
        let Some(server) = server() else { return };
        let mut members = endless(1004);
        members["stream"] = json!(false);
        // It does not look whether somebody waits.
        members["max_tokens"] = json!(300);
        let client = server.client();
        let mut stream = client.stream(request(members)).unwrap();
        assert_eq!(stream.next_event(), Some(Event::Tick));
        let cancelled = Instant::now();
        assert!(client.cancel_handle().cancel());
        let error = stream.finish().unwrap_err();
        assert!(cancelled.elapsed() < SOON);
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(error.reply().unwrap().http_status, None);
    }

    #[test]
    fn four_chats_at_a_time() {
        let Some(server) = server() else { return };
        let client = server.client();
        thread::scope(|scope| {
            for _ in 0..4 {
                let client = client.clone();
                scope.spawn(move || {
                    let talk = json!({"ignore_eos": true, "max_tokens": 20 * TOKENS});
                    assert_eq!(replies(&client, request(talk)).text, TEXT.repeat(20));
                });
            }
        });
    }

    /// It closes a connection behind each stream, and behind a hundred JSON answers.
    #[test]
    fn chats_one_after_another() {
        let Some(server) = server() else { return };
        let client = server.client();
        for (count, streams) in [(20, true), (120, false)] {
            for _ in 0..count {
                let reply = replies(&client, request(json!({"stream": streams})));
                is_whole(&reply);
                assert_eq!(reply.attempts, 1);
            }
        }
    }

    #[test]
    fn conversations_that_it_understands() {
        let Some(server) = server() else { return };
        let client = server.client();
        let mut talk = Conversation::from(vec![
            Message::system("You recite."),
            Message::user("\"Hi\", \\ \u{1} Привет 😀\r\n"),
        ]);
        let first = replies(&client, talk.clone());
        is_whole(&first);
        talk.push_json(first.message()).unwrap();
        talk.push(Message::user("Again!"));
        let second = replies(&client, talk.clone());
        is_whole(&second);
        assert!(second.prompt_tokens() > first.prompt_tokens());

        // As another model would have it.
        let function = json!({"name": "clock", "arguments": "{}"});
        let call = json!({"id": "call_1", "type": "function", "function": function});
        let calls = json!({"role": "assistant", "content": null, "tool_calls": [call]});
        talk.push_json(calls).unwrap();
        talk.push(Message::tool("noon"));
        is_whole(&replies(&client, talk));
    }

    /// Two replies share 256 tokens of memory: each of them alone would fit.
    #[test]
    fn an_error_inside_the_stream() {
        static SERVER: Kept = Kept::new();
        let Some(server) = with(&SERVER, &["--kvu", "256"]) else {
            return;
        };
        let client = server.client();
        let mut one = client.stream(request(endless(1))).unwrap();
        let first: Result<String, _> = one.by_ref().take(1).collect();
        assert_eq!(first.unwrap(), " The");
        let (_, text, other) = fails(&client, request(endless(2)), ErrorKind::Server);
        assert!(text.contains("Context size has been exceeded"), "{text}");
        let error = one.finish().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Server, "{error}");
        assert!(!error.is_retryable(), "text has been delivered");
        for reply in [error.reply().unwrap(), &other] {
            assert!(TEXT.repeat(10).starts_with(&reply.text), "{}", reply.text);
            assert!(!reply.text.is_empty());
            assert_eq!((reply.finish_reason.as_ref(), reply.attempts), (None, 1));
        }
        is_whole(&replies(&client, "Hi"));
    }
}

mod aimock {
    use super::*;

    fn server() -> Option<&'static Server> {
        static SERVER: Kept = Kept::new();
        static IS_HERE: OnceLock<bool> = OnceLock::new();
        let program = "aimock/node_modules/.bin/llmock";
        let folders = Folders::with("aimock", &[program], &IS_HERE)?;
        let key = OsString::from(format!("AIMOCK_API_KEYS={KEY}"));
        Some(Server::get(&SERVER, |port| {
            let mut words = vec!["env".into(), key.clone()];
            words.push(folders.installed.join(program).into());
            words.extend(["-f".into(), folders.scripts.join("aimock").into()]);
            words.extend(["-p".into(), port.to_string().into()]);
            words.push("--validate-on-load".into());
            words
        }))
    }

    /// How a request for this message has been answered, each time that it came.
    fn answers(server: &Server, message: &str) -> Vec<Value> {
        let journal = server.ask("/__aimock/journal").expect("the journal");
        let entries = journal.as_array().expect("an array").iter();
        entries
            .filter(|entry| entry["body"]["messages"][0]["content"] == message)
            .cloned()
            .collect()
    }

    /// A client that does not try again.
    fn once(server: &Server) -> Client {
        server.builder().retries(0).build().unwrap()
    }

    #[test]
    fn replies_and_why_they_end() {
        let Some(server) = server() else { return };
        let client = server.builder().model("some-model").build().unwrap();
        let cases = [
            (
                "hello",
                "Hello, wörld 😀! How can I help you today?",
                "stop",
            ),
            ("length", "This was cut off because", "length"),
            ("filtered", "I ", "content_filter"),
        ];
        for (message, text, reason) in cases {
            let reply = replies(&client, message);
            assert_eq!(reply.text, text);
            assert_eq!(reply.finish_reason.as_deref(), Some(reason));
            assert_eq!(reply.model.as_deref(), Some("some-model"));
            let id = reply.request_id.as_deref().unwrap();
            assert!(id.starts_with("req-"), "{id}");
        }
        for _ in 0..20 {
            let reply = replies(&client, "hello");
            assert_eq!((reply.pieces, reply.attempts), (3, 1));
        }

        let reply = replies(&client, "usage");
        assert_eq!(reply.text, "counted");
        let counts = [
            reply.prompt_tokens(),
            reply.completion_tokens(),
            reply.total_tokens(),
        ];
        assert_eq!(counts, [Some(11), Some(22), Some(33)]);
    }

    #[test]
    fn a_tool_is_called_and_its_result_sent_back() {
        let Some(server) = server() else { return };
        let client = server.client();
        let mut talk = Conversation::from("which tool?");
        let reply = replies(&client, talk.clone());
        assert_eq!((&*reply.text, reply.pieces), ("", 0));
        assert_eq!(reply.finish_reason.as_deref(), Some("tool_calls"));
        let [call] = &reply.tool_calls[..] else {
            panic!("{:?}", reply.tool_calls);
        };
        let id = call["id"].as_str().unwrap();
        assert!(id.starts_with("call_"), "{id}");
        assert_eq!(
            (&call["type"], &call["function"]["name"]),
            (&json!("function"), &json!("get_weather"))
        );
        let arguments = call["function"]["arguments"].as_str().unwrap();
        let arguments: Value = serde_json::from_str(arguments).unwrap();
        assert_eq!(arguments, json!({"city": "Zürich"}));

        talk.push_json(reply.message()).unwrap();
        talk.push(Message::tool("18 °C, rain"));
        talk.push(Message::user("Well?"));
        let reply = replies(&client, talk);
        assert_eq!(reply.text, "second turn");
        assert_eq!(reply.finish_reason.as_deref(), Some("stop"));
        let sent = answers(server, "which tool?").pop().unwrap();
        let messages = &sent["body"]["messages"];
        assert_eq!(messages[1]["tool_calls"], json!([call]));
        assert_eq!(
            messages[2],
            json!({"role": "tool", "content": "18 °C, rain", "tool_call_id": id})
        );
    }

    #[test]
    fn thoughts_come_before_the_answer() {
        let Some(server) = server() else { return };
        let mut stream = server.client().stream("reason").unwrap();
        let (mut thoughts, mut text) = (String::new(), String::new());
        while let Some(event) = stream.next_event() {
            match event {
                Event::Reasoning(piece) => {
                    assert_eq!(text, "");
                    thoughts.push_str(piece);
                }
                Event::Text(piece) => text.push_str(piece),
                _ => {}
            }
        }
        assert_eq!((&*thoughts, &*text), ("let me think", "42"));
        let reply = stream.finish().unwrap();
        assert_eq!((&*reply.reasoning, &*reply.text), ("let me think", "42"));
    }

    /// A piece each 300 ms.
    #[test]
    fn pieces_come_when_they_are_sent() {
        let Some(server) = server() else { return };
        let mut stream = server.client().stream("slow").unwrap();
        let (mut ticks, mut arrivals) = (0, Vec::new());
        while let Some(event) = stream.next_event() {
            match event {
                Event::Text(_) => arrivals.push(Instant::now()),
                Event::Tick => ticks += 1,
                _ => {}
            }
        }
        let reply = stream.finish().unwrap();
        assert_eq!(
            reply.text,
            "one two three four five six seven eight nine ten"
        );
        assert_eq!(reply.pieces, 12);
        let between = *arrivals.last().unwrap() - arrivals[0];
        assert!(between > Duration::from_secs(2), "{between:?}");
        assert!(ticks > 3, "{ticks} ticks");
    }

    #[test]
    fn a_cancel_between_two_pieces() {
        let Some(server) = server() else { return };
        let client = server.client();
        let mut stream = client.stream("slow").unwrap();
        let text: Result<String, _> = stream.by_ref().take(2).collect();
        assert_eq!(text.unwrap(), "one two ");
        let cancelled = Instant::now();
        assert!(client.cancel_handle().cancel());
        let error = stream.finish().unwrap_err();
        assert!(cancelled.elapsed() < SOON);
        assert_eq!(error.kind(), ErrorKind::Cancelled);
        assert_eq!(error.reply().unwrap().text, "one two ");
        assert_eq!(replies(&client, "usage").text, "counted");
    }

    #[test]
    fn replies_that_are_cut() {
        let Some(server) = server() else { return };
        let client = server.client();
        for message in ["cut", "dropms"] {
            // One that was held up drops the connection before it has sent a text.
            let mut tries = (0..20).map(|_| chat(&client, message));
            let (pieces, result) = tries.find(|(pieces, _)| !pieces.is_empty()).unwrap();
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Truncated, "{error}");
            assert!(!error.is_retryable(), "text has been delivered");
            let reply = error.reply().unwrap();
            assert_eq!(reply.text, pieces.concat());
            let whole = "This stream is going to be ";
            assert!(whole.starts_with(&reply.text), "{}", reply.text);
            assert_eq!((reply.finish_reason.as_ref(), reply.attempts), (None, 1));
        }
    }

    #[test]
    fn answers_that_are_none() {
        let Some(server) = server() else { return };
        // The request has arrived: it is not sent again.
        let (_, text, reply) = fails(&server.client(), "disconnect", ErrorKind::Network);
        assert!(text.contains(&server.url("/v1/chat/completions")), "{text}");
        assert_eq!(reply.attempts, 1);
        assert_eq!(answers(server, "disconnect").len(), 1);

        let (_, text, _) = fails(&server.client(), "malformed", ErrorKind::Protocol);
        assert!(text.contains("{malformed json: <<<chaos>>>"), "{text}");
    }

    #[test]
    fn refusals() {
        let Some(server) = server() else { return };
        let cases = [
            (
                "drop500",
                ErrorKind::Server,
                500,
                "chaos_drop",
                "Chaos: request dropped",
            ),
            (
                "err429",
                ErrorKind::RateLimit,
                429,
                "rate_limit_exceeded",
                "Rate limited",
            ),
            (
                "err400",
                ErrorKind::Request,
                400,
                "invalid_request_error",
                "Bad thing",
            ),
            (
                "err503",
                ErrorKind::Server,
                503,
                "server_error",
                "Overloaded",
            ),
        ];
        for (message, kind, status, code, words) in cases {
            let (error, text, reply) = fails(&once(server), message, kind);
            assert_eq!(
                (error.http_status(), error.code()),
                (Some(status), Some(code))
            );
            assert!(text.contains(words), "{text}");
            assert_eq!(error.is_retryable(), kind != ErrorKind::Request);
            let wait = (status == 429).then_some(Duration::from_secs(1));
            assert_eq!(error.retry_after(), wait);
            assert_eq!((reply.text.as_str(), reply.attempts), ("", 1));
            assert_eq!(answers(server, message).len(), 1);
        }
        let wrong = server.builder().api_key("sk-wrong").build().unwrap();
        let (error, text, _) = fails(&wrong, "hello", ErrorKind::Auth);
        assert_eq!(error.code(), Some("invalid_api_key"));
        assert!(text.contains("Invalid API key"), "{text}");
    }

    #[test]
    fn a_chat_is_tried_again() {
        let Some(server) = server() else { return };
        let reply = replies(&server.client(), "flaky");
        assert_eq!((&*reply.text, reply.attempts), ("second time lucky", 2));
        assert_eq!(answers(server, "flaky").len(), 2);
    }
}
