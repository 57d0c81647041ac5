// A chat in the terminal, in JavaScript: Node.js 18 or later.
//
//     cd examples/node && npm install      # koffi, which calls C
//     LD_LIBRARY_PATH=../../target/release node chat.mjs "Привет, как дела?"
//
// GPTALK_BASE_URL and the like say which service. Ctrl-C stops the reply.

import { existsSync, realpathSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import koffi from 'koffi';

const names = { darwin: 'libgptalk.dylib', win32: 'gptalk.dll' };
const lib = koffi.load(names[process.platform] ?? 'libgptalk.so');

// A `str` that comes back is copied at once, up to its first NUL; a `void *` is left as it is.
const gptalk = {
  new: lib.func('void *gptalk_client_new()'),
  free: lib.func('void gptalk_client_free(void *client)'),
  set: lib.func('int gptalk_set(void *client, str key, str value)'),
  chat: lib.func('int gptalk_client_chat(void *client, str msgs_json, void *cb, void *userdata)'),
  start: lib.func('int gptalk_start(void *client, str msgs_json)'),
  next: promisify(lib.func('void *gptalk_next(void *client, _Out_ size_t *len)').async),
  finish: lib.func('int gptalk_finish(void *client)'),
  cancel: lib.func('int gptalk_cancel(void *client)'),
  get: lib.func('str gptalk_get(void *client, str key)'),
  getBytes: lib.func('void *gptalk_get(void *client, str key)'),
  getInt: lib.func('int64_t gptalk_get_int(void *client, str key)'),
  statusName: lib.func('str gptalk_status_name(int status)'),
};
const OK = 0;
const BUSY = 3;

/** A chat that failed; `status` is the name of its gptalk_status. */
export class GptalkError extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.name = 'GptalkError';
    this.status = gptalk.statusName(status);
  }
}

/** One chat at a time. The options are those of gptalk_set(): new Client({ base_url: '...' }). */
export class Client {
  #client = gptalk.new();

  constructor(options = {}) {
    for (const [key, value] of Object.entries(options)) {
      const text = value == null ? null : String(value); // NULL unsets it
      this.#check(gptalk.set(this.#client, key, text));
    }
  }

  /**
   * Yields the reply, piece by piece. Leaving the loop ends the chat.
   *
   * The wait for a piece is on a thread of Node's pool, while timers and sockets go on. The pool has
   * four, which files and DNS want too: for more chats at a time, set UV_THREADPOOL_SIZE.
   */
  async *chat(messages) {
    this.#check(gptalk.start(this.#client, JSON.stringify(messages)));
    let status;
    try {
      const length = [0];
      let text;
      while ((text = await gptalk.next(this.#client, length)) !== null) {
        yield koffi.decode.string(text, length[0]);
      }
    } finally {
      status = gptalk.finish(this.#client);
    }
    this.#check(status);
  }

  /** The whole reply at once. Nothing else runs meanwhile: no timer, no handler of Ctrl-C. */
  chatSync(messages) {
    this.#check(gptalk.chat(this.#client, JSON.stringify(messages), null, null));
    return koffi.decode.string(gptalk.getBytes(this.#client, 'text'), this.getInt('text_len'));
  }

  /** Ends the chat that runs: within 100 ms it throws a GptalkError of the status `cancelled`. */
  cancel() {
    gptalk.cancel(this.#client);
  }

  get(key) {
    return gptalk.get(this.#client, key);
  }

  getInt(key) {
    return gptalk.getInt(this.#client, key);
  }

  /** Frees the client; not while it is in a chat. */
  close() {
    gptalk.free(this.#client);
    this.#client = null; // the library refuses NULL, but not what was freed
  }

  #check(status) {
    if (status === BUSY) throw new GptalkError(status, 'the client is in a chat already');
    if (status !== OK) throw new GptalkError(status, this.get('error'));
  }
}

async function main(args) {
  if (args.length !== 1) {
    console.error('usage: chat.mjs PROMPT');
    return 2;
  }
  const client = new Client();
  process.once('SIGINT', () => client.cancel()); // another one ends the program, whatever it waits for
  process.stdout.on('error', () => process.exit(1)); // the reader has left: `chat.mjs ... | head`
  let printed = false;
  let code = 0;
  let line = 'usage: not reported';
  try {
    for await (const piece of client.chat([{ role: 'user', content: args[0] }])) {
      process.stdout.write(piece);
      printed = true;
    }
    const prompt = client.getInt('prompt_tokens');
    const completion = client.getInt('completion_tokens');
    if (prompt >= 0 && completion >= 0) {
      line = `usage: ${prompt} prompt + ${completion} completion tokens`;
    }
  } catch (error) {
    if (!(error instanceof GptalkError)) throw error;
    const cancelled = error.status === 'cancelled';
    code = cancelled ? 130 : 1;
    line = cancelled ? 'cancelled' : `error: ${error.message} (${error.status})`;
  } finally {
    client.close();
  }
  if (printed || code === 0) process.stdout.write('\n');
  console.error(line);
  return code;
}

const [, program = '', ...args] = process.argv;
// Where it is the program, not imported by one.
if (existsSync(program) && realpathSync(program) === fileURLToPath(import.meta.url)) {
  process.exitCode = await main(args);
}
