//! A service's no, in any words and with any status: the error is one line of a bounded length, and
//! shows no secret, whoever repeats it.

#![no_main]

use gptalk::{Conversation, Protocol};
use gptalk_fuzz::{
    LOGIN_TOKEN, STREAM_TOKEN, before_the_stream, body_and_how, chat, client, parts,
};
use libfuzzer_sys::fuzz_target;

const API_KEY: &str = "sk-proj/SECRET-1b2e";
const IN_HEADER: &str = "SECRET-in-a-header";
const IN_QUERY: &str = "SECRET-in-a-query";
const FINGERPRINT: &str = "SECRET+fingerprint";
/// In a body, bytes that UTF-8 does not have stand for these.
const SECRETS: [(u8, &str); 6] = [
    (0xf5, API_KEY),
    (0xf6, IN_QUERY),
    (0xf7, IN_HEADER),
    (0xf8, FINGERPRINT),
    (0xf9, LOGIN_TOKEN),
    (0xfa, STREAM_TOKEN),
];

fuzz_target!(|data: &[u8]| {
    let (body, mut how) = body_and_how(data);
    let (body, status) = body.split_at(body.len().saturating_sub(2));
    let status = match *status {
        [low, high] => 100 + u16::from_le_bytes([low, high]) % 900,
        _ => 500,
    };
    let mut words = Vec::new();
    for byte in body {
        match SECRETS.iter().find(|(mark, _)| mark == byte) {
            Some((_, secret)) => words.extend(secret.as_bytes()),
            None => words.push(*byte),
        }
    }
    // Its header, too, may have anything in it.
    let (header, content) = match how.choice & 8 {
        0 => (&[][..], &*words),
        _ => words.split_at(words.iter().position(|b| *b == b'\n').unwrap_or(0)),
    };
    let name = ["content-type", "location", "retry-after", "x-request-id"];
    let mut bytes = format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n",
        content.len()
    );
    bytes += name[usize::from(how.choice >> 4) % name.len()];
    let bytes = [bytes.as_bytes(), b": ", header, b"\r\n\r\n", content].concat();
    let answer = parts(&mut how.random, &bytes, false);

    // The secrets that the client knows of, too.
    let (client, answers, secrets) = match how.choice % 4 {
        0 => {
            let client = client(Protocol::Openai).api_key(API_KEY);
            let url = format!("http://127.0.0.1:9/v1?key={IN_QUERY}");
            let client = client.base_url(&url).model("m").max_tokens(5);
            // Another request may follow what is refused, or two.
            let answers = vec![answer.clone(), answer.clone(), answer];
            (client, answers, &SECRETS[..3])
        }
        known => {
            let known = usize::from(known);
            let client = client(Protocol::Gptalk).fingerprint(FINGERPRINT);
            let before = before_the_stream().into_iter().take(known - 1);
            (
                client,
                before.chain([answer]).collect(),
                &SECRETS[2..3 + known],
            )
        }
    };
    let client = client.header("x-api-key", IN_HEADER).build().unwrap();
    let outcome = chat(&client, &Conversation::from("Hi"), answers);

    let Some(error) = &outcome.error else {
        return;
    };
    let message = error.to_string();
    assert!(message.len() <= 2000, "{} bytes: {message}", message.len());
    assert!(!message.contains(char::is_control), "{message:?}");
    let shown = [
        message,
        format!("{error:?}"),
        error.body().unwrap_or_default().to_owned(),
        error.code().unwrap_or_default().to_owned(),
        format!("{:?}", (&outcome.reply.url, &outcome.reply.request_id)),
        outcome.log.join("\n"),
    ];
    assert!(shown[2].len() <= 4096);
    assert!(outcome.log.iter().all(|line| !line.contains(['\n', '\r'])));
    for (_, secret) in secrets {
        for text in &shown {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
});
