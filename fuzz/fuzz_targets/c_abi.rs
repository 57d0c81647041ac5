//! Calls of the C functions, in any order and with any arguments: nothing breaks, what they return
//! and what they say agree, and what is handed out is text.

#![no_main]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{null, null_mut};

use gptalk::fuzzing::{Answer, answer};
use gptalk_fuzz::{OK, before_the_stream, check_request, sized};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;

type Callback = Option<unsafe extern "C-unwind" fn(*const c_char, usize, *mut c_void) -> c_int>;
type Text = *const c_char;
type Client = *mut c_void;

unsafe extern "C-unwind" {
    fn gptalk_chat(msgs: Text, cb: Callback, userdata: *mut c_void) -> c_int;
    fn gptalk_client_new() -> Client;
    fn gptalk_client_clone(client: Client) -> Client;
    fn gptalk_client_free(client: Client);
    fn gptalk_client_chat(client: Client, msgs: Text, cb: Callback, data: *mut c_void) -> c_int;
    fn gptalk_set(client: Client, key: Text, value: Text) -> c_int;
    fn gptalk_on(client: Client, channel: Text, cb: Callback, userdata: *mut c_void) -> c_int;
    fn gptalk_start(client: Client, msgs: Text) -> c_int;
    fn gptalk_next(client: Client, len: *mut usize) -> Text;
    fn gptalk_finish(client: Client) -> c_int;
    fn gptalk_cancel(client: Client) -> c_int;
    fn gptalk_get(client: Client, key: Text) -> Text;
    fn gptalk_get_int(client: Client, key: Text) -> i64;
    fn gptalk_push(msgs: Text, role: Text, content: Text) -> *mut c_char;
    fn gptalk_free(text: *mut c_char);
    fn gptalk_status_name(status: c_int) -> Text;
}

const GPTALK_OK: c_int = 0;
const GPTALK_MISUSE: c_int = 2;
const GPTALK_BUSY: c_int = 3;
const GPTALK_INTERNAL: c_int = 14;

const OPTIONS: &[&str] = &[
    "protocol",
    "base_url",
    "api_key",
    "model",
    "temperature",
    "max_tokens",
    "body",
    "header",
    "proxy",
    "ca_file",
    "connect_timeout_ms",
    "response_timeout_ms",
    "idle_timeout_ms",
    "timeout_ms",
    "retries",
    "max_reply_bytes",
    "user_agent",
    "app_id",
    "fingerprint",
];
const VALUES: &[&str] = &[
    "",
    "0",
    "1",
    "gptalk",
    "openai",
    "none",
    "{}",
    "http://127.0.0.1:9",
    "https://[::1]:9/v1?a=b",
    "X-Test: yes",
    "example.com",
    "socks5h://u:p@proxy:1",
    "http://p",
    "{\"stream\":false}",
];
const CHANNELS: &[&str] = &["reasoning", "event", "tick", "log", "text"];
const KEYS: &[&str] = &[
    "error",
    "error_code",
    "error_body",
    "text",
    "reasoning",
    "message",
    "finish_reason",
    "usage",
    "model",
    "request_id",
    "url",
    "http_status",
    "retry_after_ms",
    "retryable",
    "attempts",
    "prompt_tokens",
    "text_len",
    "pieces",
    "first_text_ms",
    "duration_ms",
    "message/tool_calls/0/function/arguments/x",
    "usage/total_tokens",
];
const MESSAGES: &[&str] = &[
    "[]",
    "[{\"role\":\"user\",\"content\":\"Hi\"}]",
    "{\"messages\":[{\"role\":\"user\",\"content\":[{\"text\":\"a\"}]}],\"seed\":1}",
];
const REPLY: &[&str] = &[
    "data: {\"id\":\"1\",\"model\":\"m\",\"choices\":[{\"delta\":{\"reasoning\":\"Hm\"}}]}\n\n",
    "data: {\"content\":\"a\",\"choices\":[{\"delta\":{\"content\":\"a\\u0000\"}}]}\n\n",
    "data: {\"content\":\"a\u{e4}\",\"choices\":[{\"delta\":{\"content\":\"\u{e4}\"}}]}\n\n",
    "data: {\"content\":\"b\",\"choices\":[{\"delta\":{\"tool_calls\":[{\"function\":{\"name\":\
     \"f\",\"arguments\":\"{\\\"x\\\":1}\"}}]}}],\"usage\":{\"total_tokens\":3}}\n\n",
    "data: [DONE]\n\n",
];

/// What the calls are made of, and the clients there are.
struct Host<'a> {
    input: Unstructured<'a>,
    clients: Vec<Client>,
    /// The last list that was pushed on.
    list: *mut c_char,
    /// How many callbacks run.
    depth: usize,
}

fuzz_target!(|data: &[u8]| {
    let mut host = Host {
        input: Unstructured::new(data),
        clients: Vec::new(),
        list: null_mut(),
        depth: 0,
    };
    for key in OPTIONS {
        let value = match *key {
            "base_url" => c"http://127.0.0.1:9".as_ptr(),
            _ => null(),
        };
        let key = CString::new(*key).unwrap();
        assert_eq!(
            unsafe { gptalk_set(null_mut(), key.as_ptr(), value) },
            GPTALK_OK
        );
    }
    // The thread's last one-liner is as in a new process.
    unsafe { gptalk_chat(null(), None, null_mut()) };
    while !host.input.is_empty() && host.call().is_ok() {}
    for client in host.clients {
        unsafe { gptalk_client_free(client) };
    }
    unsafe { gptalk_free(host.list) };
    replace_network(Vec::new());
});

/// The next answers; what was sent before were requests.
fn replace_network(answers: Vec<Answer>) {
    for sent in answer(answers) {
        check_request(&sent);
    }
}

impl Host<'_> {
    /// One of the strings, or any bytes, or NULL.
    fn text(&mut self, known: &[&str]) -> Result<Option<CString>> {
        Ok(match self.input.arbitrary::<u8>()? {
            0..8 => None,
            8..64 => {
                let length = self.input.arbitrary_len::<u8>()?;
                let bytes = self.input.bytes(length)?;
                let bytes = bytes.iter().copied().take_while(|byte| *byte != 0);
                Some(CString::new(bytes.collect::<Vec<u8>>()).unwrap())
            }
            _ => Some(CString::new(*self.input.choose(known)?).unwrap()),
        })
    }

    /// A client, or NULL.
    fn client(&mut self) -> Result<Client> {
        let at: usize = self.input.int_in_range(0..=3)?;
        Ok(self.clients.get(at).copied().unwrap_or(null_mut()))
    }

    fn callback(&mut self) -> Result<Callback> {
        Ok(self.input.ratio(7, 8)?.then_some(on_text))
    }

    /// What the next connections bring.
    fn network(&mut self) -> Result<()> {
        let count = self.input.int_in_range(0..=REPLY.len())?;
        let reply = REPLY[..count].concat();
        let reply = Answer {
            parts: [[OK, "\r\n", &reply].concat().into_bytes().into()].into(),
            reset: count == 4,
        };
        let mut answers = Vec::new();
        match self.input.int_in_range(0..=4)? {
            0 => {}
            1 => answers.extend(before_the_stream()),
            2 => {
                let length = self.input.arbitrary_len::<u8>()?;
                let bytes = self.input.bytes(length)?.iter().copied().collect();
                answers.push(Answer {
                    parts: [bytes].into(),
                    reset: false,
                });
            }
            3 => answers.push(sized(
                429,
                "{\"error\":{\"code\":\"x\",\"message\":\"no\"}}",
            )),
            _ => {
                let protocol: bool = self.input.arbitrary()?;
                answers.extend(before_the_stream().into_iter().filter(|_| protocol));
                answers.push(reply);
            }
        }
        replace_network(answers);
        Ok(())
    }

    fn call(&mut self) -> Result<()> {
        let data: *mut c_void = std::ptr::from_mut(self).cast();
        match self.input.int_in_range(0..=14)? {
            0 if self.clients.len() < 4 => {
                let client = unsafe { gptalk_client_new() };
                assert!(!client.is_null());
                self.clients.push(client);
            }
            1 if self.clients.len() < 4 => {
                let client = self.client()?;
                let copy = unsafe { gptalk_client_clone(client) };
                assert_eq!(copy.is_null(), client.is_null());
                if !copy.is_null() {
                    self.clients.push(copy);
                }
            }
            2 => {
                let client = self.client()?;
                self.clients.retain(|known| *known != client);
                unsafe { gptalk_client_free(client) };
            }
            0..=3 => {
                let (client, key) = (self.client()?, self.text(OPTIONS)?);
                let value = self.text(VALUES)?;
                // No file of this machine's, and no waits.
                let is_left_out =
                    |key: &CString| [c"ca_file", c"retries"].contains(&key.as_c_str());
                if !key.as_ref().is_some_and(is_left_out) {
                    let status = unsafe { gptalk_set(client, pointer(&key), pointer(&value)) };
                    self.refused(client, status);
                }
            }
            4 => {
                let (client, channel) = (self.client()?, self.text(CHANNELS)?);
                let callback = self.callback()?;
                let status = unsafe { gptalk_on(client, pointer(&channel), callback, data) };
                self.refused(client, status);
            }
            5..=6 if self.depth < 3 => {
                let (client, msgs) = (self.client()?, self.text(MESSAGES)?);
                let callback = self.callback()?;
                self.network()?;
                let is_one_liner: bool = self.input.arbitrary()?;
                self.no_retries(if is_one_liner { null_mut() } else { client });
                let msgs = pointer(&msgs);
                if is_one_liner {
                    let status = unsafe { gptalk_chat(msgs, callback, data) };
                    self.ended(null_mut(), status);
                } else {
                    let status = unsafe { gptalk_client_chat(client, msgs, callback, data) };
                    // It may have been freed in a callback.
                    if client.is_null() || self.clients.contains(&client) {
                        self.ended(client, status);
                    }
                }
            }
            7 => {
                let (client, msgs) = (self.client()?, self.text(MESSAGES)?);
                self.no_retries(client);
                let status = unsafe { gptalk_start(client, pointer(&msgs)) };
                self.ended(client, status);
            }
            8 => {
                let client = self.client()?;
                if self.depth < 3 {
                    self.network()?;
                    let mut length = 7;
                    let piece = unsafe { gptalk_next(client, &mut length) };
                    if piece.is_null() {
                        assert_eq!(length, 0);
                    } else {
                        check(piece, length);
                        assert!(length > 0);
                    }
                }
            }
            9 => {
                let client = self.client()?;
                let status = unsafe { gptalk_finish(client) };
                if status != GPTALK_OK {
                    self.ended(client, status);
                }
            }
            10 => {
                let client = self.client()?;
                let was_running = unsafe { gptalk_cancel(client) };
                assert!([0, 1].contains(&was_running));
            }
            11 => {
                let (client, key) = (self.client()?, self.text(KEYS)?);
                let value = unsafe { gptalk_get(client, pointer(&key)) };
                if !value.is_null() {
                    let length = unsafe { CStr::from_ptr(value) }.to_bytes().len();
                    check(value, length);
                }
            }
            12 => {
                let (client, key) = (self.client()?, self.text(KEYS)?);
                let value = unsafe { gptalk_get_int(client, pointer(&key)) };
                assert!(value >= -1);
            }
            13 => {
                let (role, content) = (self.text(&["user", "tool"])?, self.text(MESSAGES)?);
                let pushed = unsafe { gptalk_push(self.list, pointer(&role), pointer(&content)) };
                if !pushed.is_null() {
                    // What was pushed can be pushed on.
                    let more = unsafe { gptalk_push(pushed, c"user".as_ptr(), c"x".as_ptr()) };
                    assert!(!more.is_null());
                    unsafe { gptalk_free(more) };
                    unsafe { gptalk_free(std::mem::replace(&mut self.list, pushed)) };
                }
            }
            _ => {
                let status = self.input.arbitrary()?;
                let name = unsafe { CStr::from_ptr(gptalk_status_name(status)) };
                assert!(!name.is_empty());
            }
        }
        Ok(())
    }

    fn no_retries(&self, client: Client) {
        let status = unsafe { gptalk_set(client, c"retries".as_ptr(), c"0".as_ptr()) };
        assert_eq!(status, GPTALK_OK);
    }

    /// What may be refused is done, or refused with a reason.
    fn refused(&self, client: Client, status: c_int) {
        assert!([GPTALK_OK, GPTALK_MISUSE].contains(&status));
        if status != GPTALK_OK {
            self.has_error(client);
        }
    }

    /// A chat went well, or there is an error.
    fn ended(&self, client: Client, status: c_int) {
        assert_ne!(status, GPTALK_INTERNAL);
        match status {
            GPTALK_BUSY => assert!(!client.is_null()),
            GPTALK_OK => {
                let error = unsafe { gptalk_get(client, c"error".as_ptr()) };
                assert!(error.is_null());
            }
            _ => self.has_error(client),
        }
    }

    fn has_error(&self, client: Client) {
        let error = unsafe { gptalk_get(client, c"error".as_ptr()) };
        assert!(!error.is_null());
        let error = unsafe { CStr::from_ptr(error) }.to_str().unwrap();
        assert!(
            !error.is_empty() && !error.contains(char::is_control),
            "{error:?}"
        );
    }
}

fn pointer(text: &Option<CString>) -> Text {
    text.as_ref().map_or(null(), |text| text.as_ptr())
}

/// UTF-8 with a NUL behind it.
fn check(text: Text, length: usize) {
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), length + 1) };
    assert_eq!(bytes[length], 0);
    std::str::from_utf8(&bytes[..length]).unwrap();
}

/// A callback of any kind: makes calls of its own, and may cancel.
unsafe extern "C-unwind" fn on_text(text: Text, length: usize, data: *mut c_void) -> c_int {
    check(text, length);
    let host: &mut Host = unsafe { &mut *data.cast() };
    host.depth += 1;
    let mut wants_more = host.input.is_empty();
    let calls = host.input.int_in_range(0..=3).unwrap_or(0);
    for _ in 0..calls {
        wants_more |= host.call().is_err();
    }
    check(text, length);
    wants_more |= host.input.ratio(7, 8).unwrap_or(true);
    host.depth -= 1;
    c_int::from(!wants_more)
}
