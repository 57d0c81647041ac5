<?php

/**
 * A chat in the terminal, in PHP: 8.1 or later, with the extension FFI (and pcntl, for Ctrl-C).
 *
 *     LD_LIBRARY_PATH=target/release php examples/php/chat.php "Привет, как дела?"
 *
 * GPTALK_BASE_URL and the like say which service. Ctrl-C stops the reply.
 */

declare(strict_types=1);

/** A chat that failed; the code is its gptalk_status. */
final class GptalkException extends RuntimeException
{
    public const CANCELLED = 1;
    public const BUSY = 3;

    /** The status's name: "timeout", "auth". */
    public function __construct(string $message, int $code, public readonly string $status)
    {
        parent::__construct($message, $code);
    }
}

final class GptalkClient
{
    /** What comes back as `const char *` is copied, up to its first NUL; `char *` stays a pointer. */
    private const FUNCTIONS = <<<'C'
        typedef struct gptalk_client gptalk_client;
        typedef int (*gptalk_callback)(const char *text, size_t len, void *userdata);
        gptalk_client *gptalk_client_new(void);
        void gptalk_client_free(gptalk_client *client);
        int gptalk_set(gptalk_client *client, const char *key, const char *value);
        int gptalk_on(gptalk_client *client, const char *channel, gptalk_callback cb, void *userdata);
        int gptalk_start(gptalk_client *client, const char *msgs_json);
        char *gptalk_next(gptalk_client *client, size_t *len);
        int gptalk_finish(gptalk_client *client);
        int gptalk_cancel(gptalk_client *client);
        const char *gptalk_get(const gptalk_client *client, const char *key);
        int64_t gptalk_get_int(const gptalk_client *client, const char *key);
        const char *gptalk_status_name(int status);
        C;

    private static ?FFI $c = null;
    private static FFI\CData $onTick;
    private static ?Throwable $thrown = null;
    private readonly FFI\CData $client;

    public function __construct()
    {
        if (self::$c === null) {
            self::$c = FFI::cdef(self::FUNCTIONS, match (PHP_OS_FAMILY) {
                'Darwin' => 'libgptalk.dylib',
                'Windows' => 'gptalk.dll',
                default => 'libgptalk.so',
            });
            // PHP keeps what it makes of a closure until it exits: one is made, for all clients.
            self::$onTick = self::$c->new('gptalk_callback[1]');
            self::$onTick[0] = self::tick(...);
        }
        $this->client = self::$c->gptalk_client_new();
        self::$c->gptalk_on($this->client, 'tick', self::$onTick[0], null);
    }

    public function __destruct()
    {
        self::$c->gptalk_client_free($this->client);
    }

    /** Sets an option, such as base_url. */
    public function set(string $key, ?string $value): void
    {
        $this->check(self::$c->gptalk_set($this->client, $key, $value));
    }

    /**
     * Yields the reply, piece by piece. Leaving the loop ends the chat.
     *
     * @return Generator<string>
     */
    public function chat(array $messages): Generator
    {
        $json = json_encode($messages, JSON_THROW_ON_ERROR | JSON_INVALID_UTF8_SUBSTITUTE);
        $length = self::$c->new('size_t');
        $status = null;
        try {
            $status = self::$c->gptalk_start($this->client, $json);
            while ($status === 0 && ($text = self::$c->gptalk_next($this->client, FFI::addr($length))) !== null) {
                yield FFI::string($text, $length->cdata);
            }
        } finally {
            if ($status !== GptalkException::BUSY) { // the chat that runs then is not this one
                $status = self::$c->gptalk_finish($this->client);
            }
        }
        if (self::$thrown !== null) {
            [$thrown, self::$thrown] = [self::$thrown, null];
            throw $thrown;
        }
        $this->check($status);
    }

    /** Ends the chat that runs: it throws, with the code CANCELLED. */
    public function cancel(): void
    {
        self::$c->gptalk_cancel($this->client);
    }

    public function get(string $key): ?string
    {
        return self::$c->gptalk_get($this->client, $key);
    }

    public function getInt(string $key): int
    {
        return self::$c->gptalk_get_int($this->client, $key);
    }

    /**
     * Signal handlers run while PHP code runs: about every 100 ms this is some. What they throw must
     * not leave it; they run as it begins, inside the `try`.
     */
    private static function tick(): int
    {
        try {
            return 0;
        } catch (Throwable $thrown) {
            self::$thrown = $thrown;
            return 1; // cancels the chat
        }
    }

    private function __clone()
    {
    }

    private function check(int $status): void
    {
        if ($status !== 0) {
            $busy = $status === GptalkException::BUSY;
            $message = $busy ? 'the client is in a chat already' : $this->get('error');
            throw new GptalkException($message, $status, self::$c->gptalk_status_name($status));
        }
    }
}

function main(array $arguments): int
{
    if (count($arguments) !== 1) {
        fwrite(STDERR, "usage: chat.php PROMPT\n");
        return 2;
    }
    $client = new GptalkClient();
    if (function_exists('pcntl_async_signals')) {
        pcntl_async_signals(true);
        pcntl_signal(SIGINT, static fn () => $client->cancel());
        pcntl_signal(SIGPIPE, SIG_DFL); // `chat.php ... | head` just ends
    }
    $printed = false;
    $code = 0;
    try {
        foreach ($client->chat([['role' => 'user', 'content' => $arguments[0]]]) as $piece) {
            echo $piece;
            $printed = true;
        }
        [$prompt, $completion] = [$client->getInt('prompt_tokens'), $client->getInt('completion_tokens')];
        $known = $prompt >= 0 && $completion >= 0;
        $line = $known ? "usage: $prompt prompt + $completion completion tokens" : 'usage: not reported';
    } catch (GptalkException $e) {
        $cancelled = $e->getCode() === GptalkException::CANCELLED;
        $code = $cancelled ? 130 : 1;
        $line = $cancelled ? 'cancelled' : "error: {$e->getMessage()} ({$e->status})";
    }
    echo $printed || $code === 0 ? "\n" : '';
    fwrite(STDERR, "$line\n");
    return $code;
}

exit(main(array_slice($argv, 1)));
