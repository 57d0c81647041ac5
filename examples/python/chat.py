"""A chat in the terminal, in Python: 3.9 or later, with nothing to install but the library.

    LD_LIBRARY_PATH=target/release python3 examples/python/chat.py "Привет, как дела?"

GPTALK_BASE_URL and the like say which service. Ctrl-C stops the reply.
"""

import ctypes
import json
import signal
import sys
from ctypes import c_char_p, c_int, c_int64, c_size_t, c_void_p

_names = {"darwin": "libgptalk.dylib", "win32": "gptalk.dll"}
_lib = ctypes.CDLL(_names.get(sys.platform, "libgptalk.so"))

# What is not declared is taken for an int, which cuts pointers in half. A c_char_p that comes back
# is copied at once, up to its first NUL; gptalk_next() gives a pointer, and a length, instead.
for _name, _result, *_parameters in (
    ("gptalk_client_new", c_void_p),
    ("gptalk_client_free", None, c_void_p),
    ("gptalk_set", c_int, c_void_p, c_char_p, c_char_p),
    ("gptalk_on", c_int, c_void_p, c_char_p, c_void_p, c_void_p),
    ("gptalk_start", c_int, c_void_p, c_char_p),
    ("gptalk_next", c_void_p, c_void_p, ctypes.POINTER(c_size_t)),
    ("gptalk_finish", c_int, c_void_p),
    ("gptalk_get", c_char_p, c_void_p, c_char_p),
    ("gptalk_get_int", c_int64, c_void_p, c_char_p),
    ("gptalk_status_name", c_char_p, c_int),
):
    _function = getattr(_lib, _name)
    _function.restype, _function.argtypes = _result, _parameters

_OK, _BUSY = 0, 3
_Tick = ctypes.CFUNCTYPE(c_int)  # a gptalk_callback that leaves its arguments alone


class GptalkError(Exception):
    """A chat that failed; `status` is the name of its gptalk_status."""

    def __init__(self, status, sentence):
        super().__init__(sentence)
        self.status = _lib.gptalk_status_name(status).decode()


def _ticks(raised):
    """The callback that lets signal handlers run while the library waits, about every 100 ms.

    They run, and raise KeyboardInterrupt, at the very start of a function, before its `try`; and
    what leaves a callback is lost. A generator that goes on is inside its `try` from the start.
    """
    try:
        while True:
            yield 0
    except GeneratorExit:
        raise
    except BaseException as error:
        raised.append(error)
    yield 1  # cancels the chat


class Client:
    """One chat at a time. The options are those of gptalk_set(): Client(base_url="...")."""

    _client = None

    def __init__(self, **options):
        self._client = _lib.gptalk_client_new()
        for key, value in options.items():
            text = None if value is None else str(value).encode()  # None unsets it
            if text and b"\0" in text:
                raise ValueError(f"{key} holds a NUL, where a C string ends")
            self._check(_lib.gptalk_set(self._client, key.encode(), text))

    def chat(self, messages):
        """Yields the reply, piece by piece. Leaving the loop ends the chat."""
        raised, length, status = [], c_size_t(), None
        ticks = _ticks(raised)
        next(ticks)
        on_tick = _Tick(ticks.__next__)  # has to live as long as the library may call it
        try:
            status = _lib.gptalk_start(self._client, json.dumps(messages).encode())
            if status == _OK:
                _lib.gptalk_on(self._client, b"tick", on_tick, None)
                while text := _lib.gptalk_next(self._client, ctypes.byref(length)):
                    yield ctypes.string_at(text, length.value).decode()
        finally:
            if status != _BUSY:  # the chat that runs then is not this one
                _lib.gptalk_on(self._client, b"tick", None, None)
                status = _lib.gptalk_finish(self._client)
        if raised:
            raise raised.pop()
        self._check(status)

    def get(self, key):
        text = _lib.gptalk_get(self._client, key.encode())
        return None if text is None else text.decode()

    def get_int(self, key):
        return _lib.gptalk_get_int(self._client, key.encode())

    def close(self):
        client, self._client = self._client, None  # the library refuses NULL, not what was freed
        _lib.gptalk_client_free(client)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    __del__ = close

    def _check(self, status):
        if status == _BUSY:
            raise GptalkError(status, "the client is in a chat already")
        if status != _OK:
            raise GptalkError(status, self.get("error"))


def main():
    if len(sys.argv) != 2:
        print("usage: chat.py PROMPT", file=sys.stderr)
        return 2
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `chat.py ... | head` just ends
    out, printed, code = sys.stdout.buffer, False, 0
    with Client() as client:
        try:
            for piece in client.chat([{"role": "user", "content": sys.argv[1]}]):
                printed = True  # before it is, since Ctrl-C may come in between
                out.write(piece.encode())
                out.flush()
            tokens = client.get_int("prompt_tokens"), client.get_int("completion_tokens")
            line = "usage: not reported"
            if min(tokens) >= 0:
                line = "usage: %d prompt + %d completion tokens" % tokens
        except GptalkError as error:
            code, line = 1, f"error: {error} ({error.status})"
        except KeyboardInterrupt:
            code, line = 130, "cancelled"
    if printed or code == 0:
        out.write(b"\n")
        out.flush()
    print(line, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
