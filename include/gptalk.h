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
 */

#ifndef GPTALK_H
#define GPTALK_H

#include <stddef.h>
#include <stdint.h>

/** A client; what is in it is the library's own. */
typedef struct gptalk_client gptalk_client;

/**
 * Outcome of a call. Values are frozen; new ones may be added: take an unknown one as a failure.
 */
typedef enum {
  /**
   * The reply is complete.
   */
  GPTALK_OK = 0,
  /**
   * gptalk_cancel(), or a callback returned nonzero.
   */
  GPTALK_CANCELLED = 1,
  /**
   * NULL where it is not allowed, bad UTF-8 or JSON, an unknown option or key, a bad value.
   */
  GPTALK_MISUSE = 2,
  /**
   * This client is already in a chat (its own callback included): clone it.
   */
  GPTALK_BUSY = 3,
  /**
   * The login or the key was refused: HTTP 401, 403; a login answer without a token.
   */
  GPTALK_AUTH = 4,
  /**
   * HTTP 429, or a quota: see "retry_after_ms".
   */
  GPTALK_RATE_LIMIT = 5,
  /**
   * The service refused the request: any other 4xx, or a redirect.
   */
  GPTALK_REQUEST = 6,
  /**
   * The service failed: 5xx, or an error that it reported with status 200.
   */
  GPTALK_SERVER = 7,
  /**
   * DNS, connect, reset, proxy.
   */
  GPTALK_NETWORK = 8,
  /**
   * The TLS handshake failed, or a certificate was refused.
   */
  GPTALK_TLS = 9,
  /**
   * One of the time limits passed: "error_code" says which.
   */
  GPTALK_TIMEOUT = 10,
  /**
   * An answer that is not of the protocol.
   */
  GPTALK_PROTOCOL = 11,
  /**
   * The reply was cut: what arrived has been delivered.
   */
  GPTALK_TRUNCATED = 12,
  /**
   * A line, a header or the reply is beyond its limit.
   */
  GPTALK_LIMIT = 13,
  /**
   * A defect of this library, contained.
   */
  GPTALK_INTERNAL = 14,
} gptalk_status;

/**
 * One piece of text: UTF-8, never half a character, `len` bytes and also NUL-terminated. It is
 * valid only during the call, which is always on the thread that called the library.
 *
 * Return 0 to go on, anything else to cancel the chat. (From Python's ctypes, Lua and the like:
 * return an explicit 0; a function that returns nothing gives garbage.)
 *
 * Inside, everything is allowed that is allowed elsewhere: another chat on another client or the
 * one-liner, gptalk_cancel(), gptalk_client_free() of the client itself. C++ exceptions and Lua
 * errors may pass through; longjmp() may not.
 */
typedef int (*gptalk_callback)(const char *text, size_t len, void *userdata);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The one-liner: sends a conversation and calls `cb` for each piece of the streamed reply.
 * Blocks until the reply ends. Any number of threads may do so at a time.
 *
 * `msgs_json`: an array of messages,
 *
 * ```c
 * [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
 * ```
 *
 * or an object: a request body with "messages" and whatever else, whose members replace the
 * defaults. Of an OpenAI-compatible service that may be tools, an image, an answer in JSON:
 *
 * ```c
 * {"messages": [{"role": "user", "content": [
 *      {"type": "text", "text": "What is on this picture?"},
 *      {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0..."}}]}],
 *  "response_format": {"type": "json_schema", "json_schema": {"name": "picture", "strict": true,
 *      "schema": {"type": "object", "properties": {"objects": {"type": "array",
 *          "items": {"type": "string"}}}, "required": ["objects"], "additionalProperties": false}}}}
 * ```
 *
 * `cb` may be NULL: read "text" then. `userdata` is handed to `cb` as it is.
 *
 * Returns GPTALK_OK when the reply is complete. The outcome is at gptalk_get(NULL, ...) on the
 * same thread. The options are those of gptalk_set(NULL, ...) and of the environment:
 *
 * ```c
 * gptalk_set(NULL, "base_url", "http://127.0.0.1:8080");
 * if (gptalk_chat("[{\"role\":\"user\",\"content\":\"Hi\"}]", on_text, NULL) != GPTALK_OK)
 *     fprintf(stderr, "%s\n", gptalk_get(NULL, "error"));
 * ```
 */
gptalk_status gptalk_chat(const char *msgs_json,
                          gptalk_callback cb,
                          void *userdata);

/**
 * A client: options, connections, and one chat at a time. Release it with gptalk_client_free().
 * NULL only on internal failure.
 */
gptalk_client *gptalk_client_new(void);

/**
 * A client with the same options and shared connections, but no chat state: neither channels
 * nor an outcome. For another thread, or for another chat at the same time. NULL for NULL, and on
 * internal failure.
 */
gptalk_client *gptalk_client_clone(const gptalk_client *client);

/**
 * Releases a client. NULL is fine. Inside its own callback it is released at the chat's end,
 * which it does not hasten. A chat begun by gptalk_start() is cancelled.
 */
void gptalk_client_free(gptalk_client *client);

/**
 * Sends a conversation and calls `cb` for each piece of the streamed reply; see gptalk_chat().
 * The outcome is at gptalk_get(client, ...).
 *
 * A client does one chat at a time: while it is in one, on any thread, this returns GPTALK_BUSY
 * and leaves the outcome of the running chat alone: "error" says nothing of it.
 */
gptalk_status gptalk_client_chat(gptalk_client *client,
                                 const char *msgs_json,
                                 gptalk_callback cb,
                                 void *userdata);

/**
 * Sets an option. `key` and `value` are copied. `client` NULL: the process's defaults, which count
 * for the one-liner and wherever a client does not set the option itself. `value` NULL: unset.
 *
 * The value is checked at once: GPTALK_MISUSE for an unknown key or a bad value, which leaves the
 * option as it was; the reason is at gptalk_get(client, "error"). At each chat an option is
 * looked for in the client, in the process's defaults, in the environment (GPTALK_ and the key in
 * upper case, read once, at the library's first use), and then built in. While a chat runs, what
 * is set counts from the next chat on.
 *
 * | key | meaning | default |
 * |-----|---------|---------|
 * | protocol | "gptalk", or "openai": any service with OpenAI-compatible chat completions | gptalk |
 * | base_url | the service; without a scheme it is http for loopback and private addresses, else https. openai: a host, .../v1, .../v1/ or the full endpoint; a query is kept | gptalk: https://gptalk.net, whose public service is known not to work: set your own; openai: OPENAI_BASE_URL in the environment, else https://api.openai.com/v1 |
 * | api_key | openai only: goes over plain http to loopback and private addresses alone (else GPTALK_MISUSE, and nothing is sent) | OPENAI_API_KEY in the environment, else none |
 * | model | | gptalk: gpt-3.5-turbo (the one model known of the public service; other names are passed on); openai: left out, which local servers take and others refuse |
 * | temperature | a number | gptalk: 0; openai: the service's own |
 * | max_tokens | openai only: the longest reply; sent as max_completion_tokens where the service wants that | the service's own |
 * | body | a JSON object whose members replace those of the request body | none |
 * | header | "Name: value"; may be set several times; NULL clears | none |
 * | proxy | http://, https://, socks5://, socks5h:// URL, with credentials; "none": direct | the environment's, as curl reads it (http_proxy in lower case only; HTTPS_PROXY, ALL_PROXY, NO_PROXY in both), but never for loopback |
 * | ca_file | PEM file of trusted roots | the system's roots (SSL_CERT_FILE heeded), else Mozilla's |
 * | connect_timeout_ms | until connected, TLS included, DNS aside; 0: no limit, here and below | 10000 |
 * | response_timeout_ms | from the request sent to the answer's header | 300000 |
 * | idle_timeout_ms | silence inside a reply | 120000 |
 * | timeout_ms | the whole chat, retries and their waits included | 0 |
 * | retries | how often a chat that failed before its first text is tried again | 2 |
 * | max_reply_bytes | the longest reply, its reasoning and tool calls included | 67108864 |
 * | user_agent | | gptalk/<version> |
 * | app_id | the GPTalk protocol's application id | 2229 |
 * | fingerprint | what the GPTalk protocol logs in with | random for each login |
 */
gptalk_status gptalk_set(gptalk_client *client,
                         const char *key,
                         const char *value);

/**
 * Sets the callback of a further channel of the client's; `cb` NULL removes it. It counts from
 * the next chat on for "event" and "log", at once for the others.
 *
 * | channel | what it brings |
 * |---------|----------------|
 * | reasoning | a reasoning model's thoughts, piece by piece |
 * | event | each event's JSON as it came, before its text |
 * | tick | an empty text about every 100 ms while the chat waits on the network |
 * | log | one line that says what the library does, secrets redacted |
 *
 * A nonzero return cancels the chat, as with any callback. GPTALK_MISUSE: `client` is NULL, or there
 * is no such channel.
 */
gptalk_status gptalk_on(gptalk_client *client,
                        const char *channel,
                        gptalk_callback cb,
                        void *userdata);

/**
 * The pull form, for hosts that dislike callbacks: begins a chat. Then call gptalk_next() until it
 * returns NULL, and gptalk_finish() for the outcome.
 *
 * ```c
 * if (gptalk_start(client, msgs_json) == GPTALK_OK)
 *     while ((text = gptalk_next(client, &len)) != NULL)
 *         fwrite(text, 1, len, stdout);
 * status = gptalk_finish(client);
 * ```
 *
 * GPTALK_BUSY: the client is in a chat. GPTALK_MISUSE: `client` is NULL, or the options or the
 * messages cannot be used. Nothing is sent before the first gptalk_next().
 */
gptalk_status gptalk_start(gptalk_client *client,
                           const char *msgs_json);

/**
 * The next piece of the reply: blocks until there is one. NULL at the end and on error:
 * gptalk_finish() tells which. The piece is NUL-terminated and lives until the next call on the
 * client; `len` may be NULL. The client's channels are called from inside.
 */
const char *gptalk_next(gptalk_client *client, size_t *len);

/**
 * The outcome of the chat begun by gptalk_start(). Before the reply's end it cancels the chat.
 * May be called again, with the same answer. GPTALK_MISUSE: `client` is NULL, or has had no chat.
 */
gptalk_status gptalk_finish(gptalk_client *client);

/**
 * Cancels the chat that runs: from any thread, any callback, any signal handler. The chat ends
 * with GPTALK_CANCELLED within 100 ms, except inside the system's name resolution. `client` NULL:
 * all one-liner chats. Returns 1 where a chat was running, else 0: a later chat is not affected.
 */
int gptalk_cancel(gptalk_client *client);

/**
 * About the last chat, or the last refused gptalk_set(). NULL: not known, or not reported. The text
 * is borrowed until the next call on that client (`client` NULL: this thread's next one-liner).
 * In a callback, and on other threads, it tells of the chat that runs, as far as that has come.
 *
 * | key | meaning |
 * |-----|---------|
 * | error | never NULL after a failure: one sentence that says what happened, to which URL, and what to do |
 * | error_code | the service's own code, or a stable word of ours: connect, dns, proxy, closed, plain_http, connect_timeout, response_timeout, idle_timeout, timeout, header, line, reply, tool_calls, empty, json, token, expires_at; rewritten where the service changed text that was delivered already |
 * | error_body | the first 4 KiB of the service's error answer |
 * | text | all of the reply so far, also after a failure |
 * | reasoning | all of the model's thoughts so far |
 * | message | the assistant's message as JSON, tool calls included, ready for gptalk_push(msgs, NULL, message) |
 * | finish_reason | why the model stopped, in the service's words: stop, length, tool_calls |
 * | usage | token counts, as the service's JSON |
 * | model | the model that answered |
 * | request_id | the service's name for the exchange |
 * | url | the URL of the last request, without its query |
 *
 * "message" and "usage" take a JSON pointer (RFC 6901) behind the key. A string comes without its
 * quotes, another value as JSON; a string that is JSON itself, as the arguments of a tool call
 * are, may be entered. A number comes as the library reads it: beyond 64 bits, take the whole.
 *
 * ```c
 * gptalk_get(client, "message/tool_calls/0/function/name")             // get_weather
 * gptalk_get(client, "message/tool_calls/0/function/arguments/city")   // Paris
 * gptalk_get(client, "message/tool_calls/1/id")                        // NULL: there is one call
 * ```
 */
const char *gptalk_get(const gptalk_client *client,
                       const char *key);

/**
 * Numbers about the last chat. -1: not known, or not reported.
 *
 * | key | meaning |
 * |-----|---------|
 * | http_status | of the last answer |
 * | retry_after_ms | how long the service asked to wait, at most 120000 |
 * | retryable | 1: nothing was delivered and another try may help; else 0 |
 * | attempts | how often the chat was tried |
 * | prompt_tokens, completion_tokens, total_tokens | as the service counts |
 * | reasoning_tokens, cached_tokens | as the service counts |
 * | text_len | the length of "text" in bytes, which may hold NULs |
 * | pieces | how many pieces of text were delivered |
 * | first_text_ms | from the chat's start to its first piece |
 * | duration_ms | from the chat's start to its end |
 */
int64_t gptalk_get_int(const gptalk_client *client, const char *key);

/**
 * A new JSON array: `msgs_json` (NULL: empty) and one message more, escaped. `role` NULL:
 * `content` is a whole message's JSON. NULL on bad input. Release it with gptalk_free().
 *
 * ```c
 * char *msgs = gptalk_push(NULL, "user", "Hi");
 * gptalk_client_chat(client, msgs, on_text, NULL);
 * char *more = gptalk_push(msgs, NULL, gptalk_get(client, "message"));
 * ```
 *
 * A message of the role "tool" is a result for the last message in `msgs_json` that has tool calls,
 * and gets the id of the first of them that has none yet. So a tool round trip is: chat, push "message", push a result for
 * each of its tool calls in their order, chat again. examples/c/tools.c is a whole program.
 */
char *gptalk_push(const char *msgs_json,
                  const char *role,
                  const char *content);

/**
 * Releases what gptalk_push() gave. NULL is fine.
 */
void gptalk_free(char *text);

/**
 * A status's name: "timeout" for GPTALK_TIMEOUT, "unknown" for a number that is none. Static.
 */
const char *gptalk_status_name(int status);

/**
 * The library's version: "0.1.0". Static.
 */
const char *gptalk_version(void);

/**
 * The library's version as a number: major * 1000000 + minor * 1000 + patch.
 */
uint32_t gptalk_version_number(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* GPTALK_H */
