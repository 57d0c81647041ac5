//! The lines of a stream: the same as a reading of the whole gives, however it is split.

#![no_main]

use gptalk::fuzzing::lines;
use gptalk_fuzz::body_and_how;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (body, mut how) = body_and_how(data);
    let expected = slowly(body);
    assert_eq!(lines(&[body]), expected);
    assert_eq!(lines(&how.random.split(body)), expected);
    let bytes: Vec<&[u8]> = body.chunks(1).collect();
    assert_eq!(lines(&bytes), expected);
});

/// The lines, and what stands behind the last line end.
fn slowly(body: &[u8]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut lines = vec![Vec::new()];
    for (at, byte) in body.iter().enumerate() {
        match (at.checked_sub(1).map(|at| body[at]), byte) {
            (Some(b'\r'), b'\n') => {}
            (_, b'\r' | b'\n') => lines.push(Vec::new()),
            _ => lines.last_mut().unwrap().push(*byte),
        }
    }
    if lines[0].starts_with(b"\xef\xbb\xbf") {
        lines[0].drain(..3);
    }
    let rest = lines.pop().unwrap();
    (lines, rest)
}
