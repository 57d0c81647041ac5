//! An answer from its status line on, whatever it is: what it comes to does not depend on how it
//! arrives.

#![no_main]

use gptalk::fuzzing::Answer;
use gptalk::{Conversation, ErrorKind, Protocol};
use gptalk_fuzz::{body_and_how, chat, client, parts};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (bytes, mut how) = body_and_how(data);
    let client = client(Protocol::Openai).build().unwrap();
    let talk = Conversation::from("Hi");
    let reset = how.choice & 1 != 0;
    let at_once = Answer {
        parts: [bytes.iter().copied().collect()].into(),
        reset,
    };
    // An answer of 400 may be followed by another request.
    let whole = chat(&client, &talk, [at_once.clone(), at_once]);
    let split = parts(&mut how.random, bytes, reset);
    let parts = chat(&client, &talk, [split.clone(), split]);
    // Of a header that is wrong and not whole, either may be told.
    if ![whole.kind(), parts.kind()].contains(&Some(ErrorKind::Network)) {
        assert_eq!(parts.essence(), whole.essence());
    }
});
