/* What the header promises of its functions, one subcommand a promise: contract NAME URL... */
#include "check.h"

#include <semaphore.h>
#include <signal.h>
#include <sys/time.h>

#define COUNT(list) (sizeof list / sizeof list[0])

static const char *const text_keys[] = {
    "error", "error_code",    "error_body", "text",  "reasoning",
    "message", "finish_reason", "usage",      "model", "request_id", "url",
};
static const char *const number_keys[] = {
    "http_status",       "retry_after_ms", "retryable",        "attempts",      "prompt_tokens",
    "completion_tokens", "total_tokens",   "reasoning_tokens", "cached_tokens", "text_len",
    "pieces",            "first_text_ms",  "duration_ms",
};

/* ---- the one-liner and clients ---- */

static void one_liner(char **args)
{
    struct heard heard = nothing_heard();
    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[0]), GPTALK_OK);
    CHECK_STATUS(NULL, gptalk_chat(HI, hear, &heard), GPTALK_OK);
    CHECK_TEXT(heard.text, SAID_HI);
    CHECK_INT(heard.pieces, 3);
    CHECK_TEXT(gptalk_get(NULL, "text"), SAID_HI);
    CHECK_INT(gptalk_get_int(NULL, "pieces"), 3);

    CHECK_STATUS(NULL, gptalk_chat("[{\"role\":\"user\",\"content\":\"Ho\"}]", NULL, NULL), GPTALK_OK);
    CHECK_TEXT(gptalk_get(NULL, "text"), "You said: Ho");
    CHECK_TEXT(gptalk_get(NULL, "error"), NULL);

    /* What was handed out stays until the next one, whatever is asked meanwhile. */
    const char *first, *second;
    CHECK_STATUS(NULL, gptalk_set(NULL, "retries", "many"), GPTALK_MISUSE);
    first = gptalk_get(NULL, "error");
    CHECK_STATUS(NULL, gptalk_set(NULL, "temperature", "hot"), GPTALK_MISUSE);
    second = gptalk_get(NULL, "error");
    CHECK(strstr(first, "retries") != NULL && strstr(second, "temperature") != NULL);
}

static void client(char **args)
{
    gptalk_client *one = client_at(args[0]), *two;
    check_chat(one, SAID_HI);
    CHECK_STATUS(one, gptalk_client_chat(one, HI, NULL, NULL), GPTALK_OK);
    CHECK_TEXT(gptalk_get(one, "text"), SAID_HI);

    /* An object is a request's body. */
    CHECK_STATUS(one, gptalk_client_chat(one, "{\"model\":\"m\",\"messages\":" HI "}", NULL, NULL), GPTALK_OK);

    /* A clone has the options and the connections, and nothing of the chats. */
    struct heard heard = nothing_heard();
    CHECK_STATUS(one, gptalk_on(one, "event", hear, &heard), GPTALK_OK);
    two = gptalk_client_clone(one);
    CHECK(two != NULL && two != one);
    CHECK_TEXT(gptalk_get(two, "text"), NULL);
    CHECK_INT(gptalk_get_int(two, "pieces"), -1);
    check_chat(two, SAID_HI);
    CHECK_INT(heard.pieces, 0);

    /* What is set on one is not set on the other. */
    CHECK_STATUS(two, gptalk_set(two, "base_url", "http://127.0.0.1:1"), GPTALK_OK);
    check_chat(one, SAID_HI);
    CHECK_INT(heard.pieces, 3);
    gptalk_client_free(one);
    CHECK_STATUS(two, gptalk_set(two, "base_url", args[0]), GPTALK_OK);
    check_chat(two, SAID_HI);
    gptalk_client_free(two);
    gptalk_client_free(NULL);
}

/* ---- options ---- */

/* args: URL, a PEM file */
static void options(char **args)
{
    const char *const good[][2] = {
        {"protocol", "gptalk"},
        {"base_url", args[0]},
        {"api_key", "sk-test"},
        {"model", "a-model"},
        {"temperature", "0.5"},
        {"max_tokens", "100"},
        {"body", "{\"extra\": [1, 2]}"},
        {"header", "X-One: 1"},
        {"header", "X-Two: 2"},
        {"proxy", "none"},
        {"ca_file", args[1]},
        {"connect_timeout_ms", "30000"},
        {"response_timeout_ms", "30000"},
        {"idle_timeout_ms", "30000"},
        {"timeout_ms", "60000"},
        {"retries", "1"},
        {"max_reply_bytes", "1000"},
        {"user_agent", "tester/1"},
        {"app_id", "77"},
        {"fingerprint", "0123456789abcdef0123456789abcdef"},
    };
    static const char *const bad[][2] = {
        {"protocol", "gopher"},          {"protocol", ""},
        {"base_url", "ftp://host/"},     {"base_url", "http://host:99999"},
        {"base_url", "http://host:0"},   {"base_url", "http://user:pw@host/"},
        {"base_url", "http://h/#x"},     {"base_url", ""},
        {"api_key", "sk\n"},             {"temperature", "warm"},
        {"temperature", ""},             {"temperature", "\"1\""},
        {"max_tokens", "-1"},            {"max_tokens", "1.5"},
        {"body", "[]"},                  {"body", "{"},
        {"header", "no colon"},          {"header", "two words: x"},
        {"header", "X-Three: a\r\nb: c"}, {"proxy", "gopher://host"},
        {"proxy", ""},                   {"ca_file", "/does/not/exist.pem"},
        {"ca_file", "/dev/null"},        {"connect_timeout_ms", "1s"},
        {"response_timeout_ms", "-1"},   {"idle_timeout_ms", ""},
        {"timeout_ms", "99999999999999999999"}, {"timeout_ms", "+1"},
        {"retries", "many"},             {"max_reply_bytes", " 1"},
        {"user_agent", "a\nb"},          {"app_id", "a\nb"},
        {"fingerprint", ""},
    };
    gptalk_client *client = gptalk_client_new();
    size_t i;

    for (i = 0; i < COUNT(good); i++)
        CHECK_STATUS(client, gptalk_set(client, good[i][0], good[i][1]), GPTALK_OK);
    CHECK_TEXT(gptalk_get(client, "error"), NULL);
    for (i = 0; i < COUNT(bad); i++) {
        gptalk_status status = gptalk_set(client, bad[i][0], bad[i][1]);
        if (status != GPTALK_MISUSE)
            fprintf(stderr, "%s = \"%s\":\n", bad[i][0], bad[i][1]);
        CHECK_STATUS(client, status, GPTALK_MISUSE);
        CHECK(gptalk_get(client, "error") != NULL);
        CHECK(strstr(gptalk_get(client, "error"), bad[i][0]) != NULL);
        CHECK_STATUS(NULL, gptalk_set(NULL, bad[i][0], bad[i][1]), GPTALK_MISUSE);
        CHECK(strstr(gptalk_get(NULL, "error"), bad[i][0]) != NULL);
    }
    CHECK_STATUS(client, gptalk_set(client, "no_such_option", "1"), GPTALK_MISUSE);
    CHECK(strstr(gptalk_get(client, "error"), "no_such_option") != NULL);
    CHECK_STATUS(client, gptalk_set(client, "no_such_option", NULL), GPTALK_MISUSE);

    /* The bad values have left the good ones alone. */
    check_chat(client, SAID_HI);

    /* Every option can be unset. A GPTalk service is still needed. */
    for (i = 0; i < COUNT(good); i++)
        CHECK_STATUS(client, gptalk_set(client, good[i][0], NULL), GPTALK_OK);
    CHECK_STATUS(client, gptalk_set(client, "base_url", args[0]), GPTALK_OK);
    check_chat(client, SAID_HI);

    /* max_reply_bytes bites. */
    CHECK_STATUS(client, gptalk_set(client, "max_reply_bytes", "6"), GPTALK_OK);
    CHECK_STATUS(client, gptalk_client_chat(client, HI, NULL, NULL), GPTALK_LIMIT);
    CHECK_TEXT(gptalk_get(client, "text"), "You ");
    gptalk_client_free(client);
}

/* args: the URLs of services that answer "client", "process" and "environment"; the last one's is
 * in the environment. */
static void layers(char **args)
{
    gptalk_client *client = gptalk_client_new();
    check_chat(client, "environment");
    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[1]), GPTALK_OK);
    check_chat(client, "process");
    CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
    CHECK_TEXT(gptalk_get(NULL, "text"), "process");
    CHECK_STATUS(client, gptalk_set(client, "base_url", args[0]), GPTALK_OK);
    check_chat(client, "client");
    CHECK_STATUS(client, gptalk_set(client, "base_url", NULL), GPTALK_OK);
    check_chat(client, "process");
    /* The environment was read at the first use, and not again. */
    setenv("GPTALK_BASE_URL", "http://127.0.0.1:1", 1);
    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", NULL), GPTALK_OK);
    check_chat(client, "environment");
    gptalk_client_free(client);
}

/* GPTALK_RETRIES is "many". */
static void bad_environment(char **args)
{
    gptalk_client *client = client_at(args[0]);
    CHECK_STATUS(client, gptalk_client_chat(client, HI, NULL, NULL), GPTALK_MISUSE);
    CHECK(strstr(gptalk_get(client, "error"), "GPTALK_RETRIES") != NULL);
    gptalk_client_free(client);
}

static int set_in_callback(const char *text, size_t len, void *client)
{
    (void)text;
    (void)len;
    CHECK_STATUS(client, gptalk_set(client, "base_url", "http://127.0.0.1:1"), GPTALK_OK);
    return 0;
}

/* What is set while a chat runs counts from the next chat on. */
static void set_while_chatting(char **args)
{
    gptalk_client *client = client_at(args[0]);
    CHECK_STATUS(client, gptalk_client_chat(client, HI, set_in_callback, client), GPTALK_OK);
    CHECK_TEXT(gptalk_get(client, "text"), SAID_HI);
    CHECK_STATUS(client, gptalk_client_chat(client, HI, NULL, NULL), GPTALK_NETWORK);
    gptalk_client_free(client);
}

/* ---- channels ---- */

static const char *const channel_names[] = {"reasoning", "event", "tick", "log"};

/* What a chat brings, in order: events in brackets, text as it is. */
static int hear_event(const char *json, size_t len, void *userdata)
{
    struct heard *heard = userdata;
    (void)len;
    CHECK(strlen(heard->text) + strlen(json) + 3 < sizeof heard->text);
    strcat(strcat(strcat(heard->text, "<"), json), ">");
    heard->len = strlen(heard->text);
    return 0;
}

/* The service takes a second before it answers, and its login token is a sentinel. */
static void channels(char **args)
{
    gptalk_client *client = client_at(args[0]);
    struct heard heard = nothing_heard(), reasoning = nothing_heard();
    int ticks = 0, lines = 0;
    size_t i;

    CHECK_STATUS(client, gptalk_on(client, "reasoning", hear, &reasoning), GPTALK_OK);
    CHECK_STATUS(client, gptalk_on(client, "event", hear_event, &heard), GPTALK_OK);
    CHECK_STATUS(client, gptalk_on(client, "tick", hear_tick, &ticks), GPTALK_OK);
    CHECK_STATUS(client, gptalk_on(client, "log", hear_log, &lines), GPTALK_OK);
    CHECK_STATUS(client, gptalk_on(client, "no_such_channel", hear, &heard), GPTALK_MISUSE);
    CHECK(strstr(gptalk_get(client, "error"), "no_such_channel") != NULL);
    CHECK_STATUS(client, gptalk_on(client, "no_such_channel", NULL, NULL), GPTALK_MISUSE);

    CHECK_STATUS(client, gptalk_client_chat(client, HI, hear, &heard), GPTALK_OK);
    CHECK_TEXT(heard.text, "<{\"content\":\"You \"}>You <{\"content\":\"You said: \"}>said: "
                           "<{\"content\":\"You said: Hi\"}>Hi");
    CHECK(ticks >= 3 && ticks <= 30);
    CHECK(lines >= 1);
    CHECK_INT(reasoning.pieces, 0);

    /* In the pull form they are called inside gptalk_next(). */
    heard = nothing_heard();
    ticks = lines = 0;
    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    CHECK_TEXT(gptalk_next(client, NULL), "You ");
    CHECK_TEXT(heard.text, "<{\"content\":\"You \"}>");
    CHECK(ticks >= 3);
    CHECK(lines >= 1);
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_CANCELLED);

    /* NULL removes. */
    for (i = 0; i < COUNT(channel_names); i++)
        CHECK_STATUS(client, gptalk_on(client, channel_names[i], NULL, NULL), GPTALK_OK);
    heard = nothing_heard();
    ticks = lines = 0;
    CHECK_STATUS(client, gptalk_client_chat(client, HI, hear, &heard), GPTALK_OK);
    CHECK_TEXT(heard.text, SAID_HI);
    CHECK_INT(ticks + lines, 0);
    gptalk_client_free(client);
}

static int refuse(const char *text, size_t len, void *calls)
{
    (void)text;
    (void)len;
    ++*(int *)calls;
    return -1;
}

/* args: URL of a slow service, channel */
static void channel_cancels(char **args)
{
    gptalk_client *client = client_at(args[0]);
    int calls = 0;
    CHECK_STATUS(client, gptalk_on(client, args[1], refuse, &calls), GPTALK_OK);
    CHECK_STATUS(client, gptalk_client_chat(client, HI, NULL, NULL), GPTALK_CANCELLED);
    CHECK_INT(calls, 1);
    CHECK(gptalk_get(client, "error") != NULL);

    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    CHECK_TEXT(gptalk_next(client, NULL), NULL);
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_CANCELLED);
    CHECK_INT(calls, 2);

    CHECK_STATUS(client, gptalk_on(client, args[1], NULL, NULL), GPTALK_OK);
    check_chat(client, SAID_HI);
    gptalk_client_free(client);
}

/* ---- the pull form ---- */

static void pull(char **args)
{
    gptalk_client *client = client_at(args[0]);
    struct heard heard = nothing_heard();
    const char *piece;
    size_t len = 99;

    CHECK_TEXT(gptalk_next(client, &len), NULL); /* without a start */
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_MISUSE);

    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_BUSY);
    CHECK_STATUS(client, gptalk_client_chat(client, HI, NULL, NULL), GPTALK_BUSY);
    while ((piece = gptalk_next(client, &len)) != NULL) {
        hear(piece, len, &heard);
        CHECK_TEXT(gptalk_get(client, "text"), heard.text);
        CHECK_INT(gptalk_get_int(client, "pieces"), heard.pieces);
    }
    CHECK_TEXT(heard.text, SAID_HI);
    CHECK_INT(heard.pieces, 3);
    CHECK_TEXT(gptalk_next(client, &len), NULL);
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_OK);
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_OK);
    CHECK_TEXT(gptalk_next(client, &len), NULL);
    CHECK_TEXT(gptalk_get(client, "text"), SAID_HI);

    /* len may be NULL. */
    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    CHECK_TEXT(gptalk_next(client, NULL), "You ");
    CHECK_TEXT(gptalk_next(client, NULL), "said: ");
    CHECK_TEXT(gptalk_next(client, NULL), "Hi");
    CHECK_TEXT(gptalk_next(client, NULL), NULL);
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_OK);

    /* Before the end, finish cancels. */
    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    CHECK_TEXT(gptalk_next(client, &len), "You ");
    CHECK_INT(len, 4);
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_CANCELLED);
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_CANCELLED);
    CHECK_TEXT(gptalk_get(client, "text"), "You ");
    CHECK(gptalk_get(client, "error") != NULL);
    CHECK_TEXT(gptalk_next(client, &len), NULL);

    /* gptalk_cancel() does, too. */
    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    CHECK_TEXT(gptalk_next(client, &len), "You ");
    CHECK_INT(gptalk_cancel(client), 1);
    CHECK_TEXT(gptalk_next(client, &len), NULL);
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_CANCELLED);
    CHECK_INT(gptalk_cancel(client), 0);

    /* A start that is refused has an outcome, and leaves the client free. */
    CHECK_STATUS(client, gptalk_start(client, "no JSON"), GPTALK_MISUSE);
    CHECK_TEXT(gptalk_next(client, &len), NULL);
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_MISUSE);
    CHECK(gptalk_get(client, "error") != NULL);
    check_chat(client, SAID_HI);
    gptalk_client_free(client);
}

/* A chat fails while it is pulled. The service cuts the reply after "Hel". */
static void pull_fails(char **args)
{
    gptalk_client *client = client_at(args[0]);
    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    CHECK_TEXT(gptalk_next(client, NULL), "Hel");
    CHECK_TEXT(gptalk_next(client, NULL), NULL);
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_TRUNCATED);
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_TRUNCATED);
    CHECK_TEXT(gptalk_get(client, "text"), "Hel");
    CHECK(gptalk_get(client, "error") != NULL);
    gptalk_client_free(client);
}

/* The service must see nothing. */
static void start_alone(char **args)
{
    gptalk_client *client = client_at(args[0]);
    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_CANCELLED);
    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    gptalk_client_free(client);
}

/* The service stalls after "Hel", and tells the next chat whether it was left. */
static void pull_left(char **args)
{
    gptalk_client *client = client_at(args[0]), *other = gptalk_client_clone(client);
    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    CHECK_TEXT(gptalk_next(client, NULL), "Hel");
    if (strcmp(args[1], "finish") == 0)
        CHECK_STATUS(client, gptalk_finish(client), GPTALK_CANCELLED);
    else
        gptalk_client_free(client), client = NULL;
    check_chat(other, "closed");
    gptalk_client_free(client);
    gptalk_client_free(other);
}

/* ---- the outcome ---- */

static void outcome_before(char **args)
{
    gptalk_client *client = gptalk_client_new();
    size_t i;
    (void)args;
    for (i = 0; i < COUNT(text_keys); i++) {
        CHECK_TEXT(gptalk_get(client, text_keys[i]), NULL);
        CHECK_TEXT(gptalk_get(NULL, text_keys[i]), NULL);
    }
    for (i = 0; i < COUNT(number_keys); i++) {
        CHECK_INT(gptalk_get_int(client, number_keys[i]), -1);
        CHECK_INT(gptalk_get_int(NULL, number_keys[i]), -1);
    }
    gptalk_client_free(client);
}

static void check_outcome_of_success(const gptalk_client *client, const char *url)
{
    char stream[256];
    snprintf(stream, sizeof stream, "%s/api/chatgpt/chatapi/stream", url);
    CHECK_TEXT(gptalk_get(client, "error"), NULL);
    CHECK_TEXT(gptalk_get(client, "error_code"), NULL);
    CHECK_TEXT(gptalk_get(client, "error_body"), NULL);
    CHECK_TEXT(gptalk_get(client, "text"), SAID_HI);
    CHECK_TEXT(gptalk_get(client, "reasoning"), NULL);
    CHECK_TEXT(gptalk_get(client, "message"), "{\"role\":\"assistant\",\"content\":\"" SAID_HI "\"}");
    CHECK_TEXT(gptalk_get(client, "finish_reason"), NULL);
    CHECK_TEXT(gptalk_get(client, "usage"), NULL);
    CHECK_TEXT(gptalk_get(client, "model"), NULL);
    CHECK_TEXT(gptalk_get(client, "url"), stream);
    CHECK_INT(gptalk_get_int(client, "http_status"), 200);
    CHECK_INT(gptalk_get_int(client, "retry_after_ms"), -1);
    CHECK_INT(gptalk_get_int(client, "retryable"), 0);
    CHECK_INT(gptalk_get_int(client, "attempts"), 1);
    CHECK_INT(gptalk_get_int(client, "prompt_tokens"), -1);
    CHECK_INT(gptalk_get_int(client, "completion_tokens"), -1);
    CHECK_INT(gptalk_get_int(client, "total_tokens"), -1);
    CHECK_INT(gptalk_get_int(client, "reasoning_tokens"), -1);
    CHECK_INT(gptalk_get_int(client, "cached_tokens"), -1);
    CHECK_INT(gptalk_get_int(client, "text_len"), strlen(SAID_HI));
    CHECK_INT(gptalk_get_int(client, "pieces"), 3);
    CHECK(gptalk_get_int(client, "first_text_ms") >= 0);
    CHECK(gptalk_get_int(client, "first_text_ms") <= gptalk_get_int(client, "duration_ms"));
    CHECK(gptalk_get_int(client, "duration_ms") < 60000);

    CHECK_TEXT(gptalk_get(client, "no_such_key"), NULL);
    CHECK_INT(gptalk_get_int(client, "no_such_key"), -1);
    CHECK_TEXT(gptalk_get(client, "pieces"), NULL);
    CHECK_INT(gptalk_get_int(client, "text"), -1);

    /* What was handed out stays, whatever else is asked. */
    const char *text = gptalk_get(client, "text"), *again = gptalk_get(client, "text");
    gptalk_get(client, "message");
    gptalk_get(client, "error");
    CHECK_TEXT(text, SAID_HI);
    CHECK_TEXT(again, SAID_HI);
}

static void outcome_of_success(char **args)
{
    gptalk_client *client = client_at(args[0]);
    check_chat(client, SAID_HI);
    check_outcome_of_success(client, args[0]);
    gptalk_client_free(client);

    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[0]), GPTALK_OK);
    CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
    check_outcome_of_success(NULL, args[0]);
}

/* The first text is answered with 429, code slow_down, Retry-After 7. */
static void outcome_of_failure(char **args)
{
    gptalk_client *client = client_at(args[0]);
    struct heard heard = nothing_heard();
    CHECK_STATUS(client, gptalk_client_chat(client, HI, hear, &heard), GPTALK_RATE_LIMIT);
    CHECK_INT(heard.pieces, 0);
    CHECK(strstr(gptalk_get(client, "error"), "/api/chatgpt/chatapi/text") != NULL);
    CHECK(strstr(gptalk_get(client, "error"), "Too fast") != NULL);
    CHECK_TEXT(gptalk_get(client, "error_code"), "slow_down");
    CHECK_TEXT(gptalk_get(client, "error_body"), "{\"code\":\"slow_down\",\"msg\":\"Too fast\"}");
    CHECK_TEXT(gptalk_get(client, "text"), "");
    CHECK_TEXT(gptalk_get(client, "reasoning"), NULL);
    CHECK_TEXT(gptalk_get(client, "finish_reason"), NULL);
    CHECK_TEXT(gptalk_get(client, "usage"), NULL);
    CHECK_TEXT(gptalk_get(client, "model"), NULL);
    CHECK_TEXT(gptalk_get(client, "request_id"), NULL);
    CHECK(strstr(gptalk_get(client, "url"), "/api/chatgpt/chatapi/text") != NULL);
    CHECK_INT(gptalk_get_int(client, "http_status"), 429);
    CHECK_INT(gptalk_get_int(client, "retry_after_ms"), 7000);
    CHECK_INT(gptalk_get_int(client, "retryable"), 1);
    CHECK_INT(gptalk_get_int(client, "attempts"), 1);
    CHECK_INT(gptalk_get_int(client, "text_len"), 0);
    CHECK_INT(gptalk_get_int(client, "pieces"), 0);
    CHECK_INT(gptalk_get_int(client, "first_text_ms"), -1);
    CHECK_INT(gptalk_get_int(client, "total_tokens"), -1);
    CHECK(gptalk_get_int(client, "duration_ms") >= 0);

    /* A success afterwards leaves nothing of it. */
    check_chat(client, SAID_HI);
    check_outcome_of_success(client, args[0]);

    /* A refused option is told of until the next chat; the chat's own facts stay. */
    CHECK_STATUS(client, gptalk_set(client, "retries", "many"), GPTALK_MISUSE);
    CHECK(strstr(gptalk_get(client, "error"), "retries") != NULL);
    CHECK_TEXT(gptalk_get(client, "text"), SAID_HI);
    check_chat(client, SAID_HI);
    gptalk_client_free(client);
}

/* For a callback that sets a bad option of a client's, or of the process's, and then may cancel. */
struct bad_setter {
    gptalk_client *client;
    int answer;
};

static int set_badly_in_callback(const char *text, size_t len, void *userdata)
{
    struct bad_setter *setter = userdata;
    (void)text;
    (void)len;
    CHECK_STATUS(setter->client, gptalk_set(setter->client, "bogus", "1"), GPTALK_MISUSE);
    CHECK(strstr(gptalk_get(setter->client, "error"), "bogus") != NULL);
    return setter->answer;
}

/* "error" tells of the chat's end, not of an option that was refused before. */
static void check_error_of_cancel(const gptalk_client *client)
{
    CHECK(gptalk_get(client, "error") != NULL);
    CHECK(strstr(gptalk_get(client, "error"), "cancel") != NULL);
    CHECK(strstr(gptalk_get(client, "error"), "bogus") == NULL);
    CHECK_TEXT(gptalk_get(client, "error_code"), NULL);
    CHECK_TEXT(gptalk_get(client, "text"), "You ");
}

static void refused_while_chatting(char **args)
{
    struct bad_setter setter;
    setter.client = client_at(args[0]);
    setter.answer = 1;
    CHECK_STATUS(setter.client, gptalk_client_chat(setter.client, HI, set_badly_in_callback, &setter),
                 GPTALK_CANCELLED);
    check_error_of_cancel(setter.client);
    setter.answer = 0;
    CHECK_STATUS(setter.client, gptalk_client_chat(setter.client, HI, set_badly_in_callback, &setter), GPTALK_OK);
    CHECK_TEXT(gptalk_get(setter.client, "error"), NULL);
    CHECK_TEXT(gptalk_get(setter.client, "text"), SAID_HI);

    /* In the pull form, between two pieces. */
    CHECK_STATUS(setter.client, gptalk_start(setter.client, HI), GPTALK_OK);
    CHECK_TEXT(gptalk_next(setter.client, NULL), "You ");
    set_badly_in_callback("", 0, &setter);
    CHECK_STATUS(setter.client, gptalk_finish(setter.client), GPTALK_CANCELLED);
    check_error_of_cancel(setter.client);
    CHECK_STATUS(setter.client, gptalk_start(setter.client, HI), GPTALK_OK);
    while (gptalk_next(setter.client, NULL) != NULL)
        set_badly_in_callback("", 0, &setter);
    CHECK_STATUS(setter.client, gptalk_finish(setter.client), GPTALK_OK);
    CHECK_TEXT(gptalk_get(setter.client, "error"), NULL);
    gptalk_client_free(setter.client);

    /* And in the one-liner. */
    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[0]), GPTALK_OK);
    setter.client = NULL;
    setter.answer = 1;
    CHECK_STATUS(NULL, gptalk_chat(HI, set_badly_in_callback, &setter), GPTALK_CANCELLED);
    check_error_of_cancel(NULL);
    setter.answer = 0;
    CHECK_STATUS(NULL, gptalk_chat(HI, set_badly_in_callback, &setter), GPTALK_OK);
    CHECK_TEXT(gptalk_get(NULL, "error"), NULL);
}

/* The service cuts the reply after "Hel". */
static void outcome_of_a_cut(char **args)
{
    gptalk_client *client = client_at(args[0]);
    struct heard heard = nothing_heard();
    CHECK_STATUS(client, gptalk_client_chat(client, HI, hear, &heard), GPTALK_TRUNCATED);
    CHECK_TEXT(heard.text, "Hel");
    CHECK_TEXT(gptalk_get(client, "text"), "Hel");
    CHECK(strstr(gptalk_get(client, "error"), "/api/chatgpt/chatapi/stream") != NULL);
    CHECK_INT(gptalk_get_int(client, "retryable"), 0);
    CHECK_INT(gptalk_get_int(client, "pieces"), 1);
    CHECK_INT(gptalk_get_int(client, "text_len"), 3);
    CHECK_INT(gptalk_get_int(client, "http_status"), 200);
    CHECK(gptalk_get_int(client, "first_text_ms") >= 0);
    gptalk_client_free(client);
}

/* ---- gptalk_push() and names ---- */

static void push(char **args)
{
    gptalk_client *client = client_at(args[0]);
    char *one, *two, *three;
    static const char *const words = "\"quoted\" back\\slash\ttab\r\nПривет, как дела? \xF0\x9F\x99\x82 \x01";

    one = gptalk_push(NULL, "user", words);
    CHECK(one != NULL);
    CHECK(one[0] == '[' && one[strlen(one) - 1] == ']');
    CHECK(strchr(one, '\n') == NULL);
    CHECK(strstr(one, "\"role\"") != NULL && strstr(one, "\"content\"") != NULL);
    CHECK(strstr(one, "\"role\"") < strstr(one, "\"content\""));

    /* It comes back as it was. */
    char reply[256];
    snprintf(reply, sizeof reply, "You said: %s", words);
    CHECK_STATUS(client, gptalk_client_chat(client, one, NULL, NULL), GPTALK_OK);
    CHECK_TEXT(gptalk_get(client, "text"), reply);

    /* The assistant's message, and a question more. */
    two = gptalk_push(one, NULL, gptalk_get(client, "message"));
    CHECK(two != NULL);
    three = gptalk_push(two, "user", "");
    CHECK(three != NULL);
    snprintf(reply, sizeof reply, "You said: User: %s\nAssistant: You said: %s\nUser: \nAssistant:", words, words);
    CHECK_STATUS(client, gptalk_client_chat(client, three, NULL, NULL), GPTALK_OK);
    CHECK_TEXT(gptalk_get(client, "text"), reply);
    gptalk_free(one);
    gptalk_free(two);
    gptalk_free(three);

    /* Whatever is made can be read again: a message is as deep as it may be in its array. */
    char deep[300] = "{\"role\":\"user\",\"content\":\"\",\"x\":";
    const size_t start = strlen(deep);
    memset(deep + start, '[', 125);
    memset(deep + start + 125, ']', 125);
    strcpy(deep + start + 250, "}");
    one = gptalk_push(NULL, NULL, deep);
    CHECK(one != NULL);
    two = gptalk_push(one, "user", "Hi");
    CHECK(two != NULL);
    gptalk_free(one);
    gptalk_free(two);
    memset(deep + start, '[', 126);
    memset(deep + start + 126, ']', 126);
    strcpy(deep + start + 252, "}");
    CHECK(gptalk_push(NULL, NULL, deep) == NULL);

    /* The members of messages stay, in their order. */
    one = gptalk_push("[ {\"role\":\"tool\",\"tool_call_id\":\"7\",\"content\":null} ]", NULL,
                      "{\"role\":\"user\",\"name\":\"n\",\"content\":\"x\"}");
    CHECK_TEXT(one, "[{\"role\":\"tool\",\"tool_call_id\":\"7\",\"content\":null},"
                    "{\"role\":\"user\",\"name\":\"n\",\"content\":\"x\"}]");
    gptalk_free(one);
    one = gptalk_push("[]", "user", "x");
    CHECK_TEXT(one, "[{\"role\":\"user\",\"content\":\"x\"}]");
    gptalk_free(one);

    CHECK_TEXT(gptalk_push("no JSON", "user", "x"), NULL);
    CHECK_TEXT(gptalk_push("", "user", "x"), NULL);
    CHECK_TEXT(gptalk_push("7", "user", "x"), NULL);
    CHECK_TEXT(gptalk_push("[7]", "user", "x"), NULL);
    CHECK_TEXT(gptalk_push("[", "user", "x"), NULL);
    CHECK_TEXT(gptalk_push(NULL, NULL, "no JSON"), NULL);
    CHECK_TEXT(gptalk_push(NULL, NULL, "[]"), NULL);
    CHECK_TEXT(gptalk_push(NULL, NULL, "{\"content\":\"no role\"}"), NULL);
    CHECK_TEXT(gptalk_push(NULL, "user", NULL), NULL);
    gptalk_free(NULL);
    gptalk_client_free(client);
}

/* args: the version */
static void names(char **args)
{
    static const char *const all[] = {
        "ok",      "cancelled", "misuse", "busy",    "auth",     "rate_limit", "request", "server",
        "network", "tls",       "timeout", "protocol", "truncated", "limit",   "internal",
    };
    unsigned major, minor, patch;
    int i;
    for (i = 0; i < (int)COUNT(all); i++)
        CHECK_TEXT(gptalk_status_name(i), all[i]);
    CHECK_TEXT(gptalk_status_name(-1), "unknown");
    CHECK_TEXT(gptalk_status_name(15), "unknown");
    CHECK_TEXT(gptalk_status_name(2147483647), "unknown");
    CHECK(gptalk_status_name(GPTALK_TIMEOUT) == gptalk_status_name(GPTALK_TIMEOUT));

    CHECK_TEXT(gptalk_version(), args[0]);
    CHECK_INT(sscanf(args[0], "%u.%u.%u", &major, &minor, &patch), 3);
    CHECK_INT(gptalk_version_number(), major * 1000000 + minor * 1000 + patch);
}

/* ---- misuse ---- */

static void nulls(char **args)
{
    gptalk_client *client = client_at(args[0]);
    size_t len = 99;

    CHECK_STATUS(NULL, gptalk_chat(NULL, NULL, NULL), GPTALK_MISUSE);
    CHECK(gptalk_get(NULL, "error") != NULL);
    CHECK_TEXT((char *)gptalk_client_clone(NULL), NULL);
    gptalk_client_free(NULL);
    CHECK_STATUS(NULL, gptalk_client_chat(NULL, HI, hear, NULL), GPTALK_MISUSE);
    CHECK(gptalk_get(NULL, "error") != NULL);
    CHECK_STATUS(NULL, gptalk_client_chat(NULL, NULL, NULL, NULL), GPTALK_MISUSE);
    CHECK_STATUS(client, gptalk_client_chat(client, NULL, NULL, NULL), GPTALK_MISUSE);
    CHECK(gptalk_get(client, "error") != NULL);
    CHECK_STATUS(client, gptalk_set(client, NULL, "x"), GPTALK_MISUSE);
    CHECK_STATUS(client, gptalk_set(client, NULL, NULL), GPTALK_MISUSE);
    CHECK_STATUS(NULL, gptalk_set(NULL, NULL, NULL), GPTALK_MISUSE);
    CHECK_STATUS(NULL, gptalk_on(NULL, "tick", hear, NULL), GPTALK_MISUSE);
    CHECK_STATUS(NULL, gptalk_on(NULL, NULL, NULL, NULL), GPTALK_MISUSE);
    CHECK_STATUS(client, gptalk_on(client, NULL, hear, NULL), GPTALK_MISUSE);
    CHECK_STATUS(NULL, gptalk_start(NULL, HI), GPTALK_MISUSE);
    CHECK_STATUS(NULL, gptalk_start(NULL, NULL), GPTALK_MISUSE);
    CHECK_STATUS(client, gptalk_start(client, NULL), GPTALK_MISUSE);
    CHECK_TEXT(gptalk_next(NULL, &len), NULL);
    CHECK_TEXT(gptalk_next(NULL, NULL), NULL);
    CHECK_TEXT(gptalk_next(client, NULL), NULL);
    CHECK_STATUS(NULL, gptalk_finish(NULL), GPTALK_MISUSE);
    CHECK_INT(gptalk_cancel(NULL), 0);
    CHECK_INT(gptalk_cancel(client), 0);
    CHECK_TEXT(gptalk_get(NULL, NULL), NULL);
    CHECK_TEXT(gptalk_get(client, NULL), NULL);
    CHECK_INT(gptalk_get_int(NULL, NULL), -1);
    CHECK_INT(gptalk_get_int(client, NULL), -1);
    CHECK_TEXT(gptalk_push(NULL, NULL, NULL), NULL);
    CHECK_TEXT(gptalk_push(HI, NULL, NULL), NULL);
    gptalk_free(NULL);

    check_chat(client, SAID_HI);
    gptalk_client_free(client);
}

/* Nothing of it may reach the service. */
static void bad_strings(char **args)
{
    static const char *const bad[] = {"\xFF", "[{\"role\":\"user\",\"content\":\"\xC3\"}]", "\xED\xA0\x80"};
    static const char *const bad_msgs[] = {
        "", " ", "{", "[]", "[1]", "[{}]", "[null]", "null", "\"Hi\"", "{}", "{\"messages\":1}", "{\"messages\":[]}",
        "[{\"content\":\"x\"}]", "[{\"role\":1,\"content\":\"x\"}]", HI " x",
    };
    gptalk_client *client = client_at(args[0]);
    size_t i;
    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[0]), GPTALK_OK);
    for (i = 0; i < COUNT(bad); i++) {
        CHECK_STATUS(NULL, gptalk_chat(bad[i], NULL, NULL), GPTALK_MISUSE);
        CHECK_STATUS(client, gptalk_client_chat(client, bad[i], NULL, NULL), GPTALK_MISUSE);
        CHECK(strstr(gptalk_get(client, "error"), "UTF-8") != NULL);
        CHECK_STATUS(client, gptalk_start(client, bad[i]), GPTALK_MISUSE);
        CHECK_STATUS(client, gptalk_set(client, bad[i], "x"), GPTALK_MISUSE);
        CHECK_STATUS(client, gptalk_set(client, "model", bad[i]), GPTALK_MISUSE);
        CHECK(strstr(gptalk_get(client, "error"), "UTF-8") != NULL);
        CHECK_STATUS(NULL, gptalk_set(NULL, bad[i], "x"), GPTALK_MISUSE);
        CHECK_STATUS(NULL, gptalk_set(NULL, "model", bad[i]), GPTALK_MISUSE);
        CHECK_STATUS(client, gptalk_on(client, bad[i], hear, NULL), GPTALK_MISUSE);
        CHECK_TEXT(gptalk_get(client, bad[i]), NULL);
        CHECK_TEXT(gptalk_get(NULL, bad[i]), NULL);
        CHECK_INT(gptalk_get_int(client, bad[i]), -1);
        CHECK_TEXT(gptalk_push(bad[i], "user", "x"), NULL);
        CHECK_TEXT(gptalk_push(NULL, bad[i], "x"), NULL);
        CHECK_TEXT(gptalk_push(NULL, "user", bad[i]), NULL);
        CHECK_TEXT(gptalk_push(NULL, NULL, bad[i]), NULL);
    }
    for (i = 0; i < COUNT(bad_msgs); i++) {
        CHECK_STATUS(client, gptalk_client_chat(client, bad_msgs[i], NULL, NULL), GPTALK_MISUSE);
        CHECK(gptalk_get(client, "error") != NULL);
        CHECK_STATUS(NULL, gptalk_chat(bad_msgs[i], NULL, NULL), GPTALK_MISUSE);
        CHECK(gptalk_get(NULL, "error") != NULL);
        CHECK_STATUS(client, gptalk_start(client, bad_msgs[i]), GPTALK_MISUSE);
    }
    gptalk_client_free(client);
}

/* ---- callbacks ---- */

/* The service stalls after "Hel", and tells the next chat whether it was left. */
static void callback_cancels(char **args)
{
    gptalk_client *client = client_at(args[0]);
    struct heard heard = nothing_heard();
    heard.stop_at = 1;
    CHECK_STATUS(client, gptalk_client_chat(client, HI, hear, &heard), GPTALK_CANCELLED);
    CHECK_INT(heard.pieces, 1);
    CHECK_TEXT(heard.text, "Hel");
    CHECK_TEXT(gptalk_get(client, "text"), "Hel");
    CHECK(gptalk_get(client, "error") != NULL);
    CHECK_INT(gptalk_get_int(client, "pieces"), 1);
    check_chat(client, "closed");
    gptalk_client_free(client);
}

/* The last piece's refusal counts as well. */
static void last_piece_cancels(char **args)
{
    gptalk_client *client = client_at(args[0]);
    struct heard heard = nothing_heard();
    heard.stop_at = 3;
    CHECK_STATUS(client, gptalk_client_chat(client, HI, hear, &heard), GPTALK_CANCELLED);
    CHECK_TEXT(gptalk_get(client, "text"), SAID_HI);
    gptalk_client_free(client);
}

/* The reply is "a\0b". */
static void embedded_nul(char **args)
{
    gptalk_client *client = client_at(args[0]);
    struct heard heard = nothing_heard();
    size_t len;
    const char *piece;
    CHECK_STATUS(client, gptalk_client_chat(client, HI, hear, &heard), GPTALK_OK);
    CHECK_INT(heard.len, 3);
    CHECK(memcmp(heard.text, "a\0b", 4) == 0);
    CHECK_INT(gptalk_get_int(client, "text_len"), 3);
    CHECK(memcmp(gptalk_get(client, "text"), "a\0b", 4) == 0);
    CHECK_TEXT(gptalk_get(client, "message"), "{\"role\":\"assistant\",\"content\":\"a\\u0000b\"}");
    CHECK_TEXT(gptalk_get(client, "message/role"), "assistant");
    CHECK_TEXT(gptalk_get(client, "message/content"), NULL); /* it would be "a" */

    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    piece = gptalk_next(client, &len);
    CHECK_INT(len, 3);
    CHECK(memcmp(piece, "a\0b", 4) == 0);
    CHECK_TEXT(gptalk_next(client, &len), NULL);
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_OK);
    gptalk_client_free(client);
}

struct nested {
    gptalk_client *outer, *other;
    struct heard heard;
    int calls;
};

/* All that a callback may do, at the first piece. */
static int chat_in_callback(const char *text, size_t len, void *userdata)
{
    struct nested *nested = userdata;
    struct heard heard = nothing_heard();
    hear(text, len, &nested->heard);
    CHECK_TEXT(gptalk_get(nested->outer, "text"), nested->heard.text);
    CHECK_INT(gptalk_get_int(nested->outer, "text_len"), nested->heard.len);
    CHECK_INT(gptalk_get_int(nested->outer, "duration_ms"), -1);
    CHECK_INT(gptalk_get_int(nested->outer, "pieces"), nested->heard.pieces);
    CHECK_TEXT(gptalk_get(nested->outer, "error"), NULL);
    if (nested->calls++ > 0)
        return 0;

    CHECK_STATUS(nested->outer, gptalk_client_chat(nested->outer, HI, hear, &heard), GPTALK_BUSY);
    CHECK_STATUS(nested->outer, gptalk_client_chat(nested->outer, "no JSON", hear, &heard), GPTALK_BUSY);
    CHECK_STATUS(nested->outer, gptalk_start(nested->outer, HI), GPTALK_BUSY);
    CHECK_TEXT(gptalk_next(nested->outer, NULL), NULL);
    CHECK_TEXT(gptalk_get(nested->outer, "error"), NULL);

    check_chat(nested->other, SAID_HI);
    CHECK_STATUS(nested->other, gptalk_start(nested->other, HI), GPTALK_OK);
    CHECK_TEXT(gptalk_next(nested->other, NULL), "You ");
    CHECK_STATUS(nested->other, gptalk_finish(nested->other), GPTALK_CANCELLED);
    CHECK_STATUS(NULL, gptalk_chat(HI, hear, &heard), GPTALK_OK);
    CHECK_TEXT(heard.text, SAID_HI);
    CHECK_TEXT(gptalk_get(NULL, "text"), SAID_HI);

    gptalk_client *copy = gptalk_client_clone(nested->outer);
    check_chat(copy, SAID_HI);
    gptalk_client_free(copy);
    return 0;
}

static void nested(char **args)
{
    struct nested nested;
    memset(&nested, 0, sizeof nested);
    nested.heard = nothing_heard();
    nested.outer = client_at(args[0]);
    nested.other = client_at(args[0]);
    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[0]), GPTALK_OK);
    CHECK_STATUS(nested.outer, gptalk_client_chat(nested.outer, HI, chat_in_callback, &nested), GPTALK_OK);
    CHECK_TEXT(nested.heard.text, SAID_HI);
    CHECK_TEXT(gptalk_get(nested.outer, "text"), SAID_HI);
    CHECK_TEXT(gptalk_get(nested.outer, "error"), NULL);
    CHECK_INT(gptalk_get_int(nested.outer, "pieces"), 3);
    CHECK_TEXT(gptalk_get(nested.other, "text"), "You ");
    gptalk_client_free(nested.outer);
    gptalk_client_free(nested.other);
}

static int one_liner_in_one_liner(const char *text, size_t len, void *depth)
{
    char msgs[64], reply[64];
    int left = *(int *)depth - 1;
    (void)text;
    (void)len;
    if (left < 0)
        return 0;
    snprintf(msgs, sizeof msgs, "[{\"role\":\"user\",\"content\":\"%d\"}]", left);
    snprintf(reply, sizeof reply, "You said: %d", left);
    if (gptalk_get_int(NULL, "pieces") == 1) {
        CHECK_TEXT(gptalk_get(NULL, "text"), "You "); /* the one that runs */
        CHECK_STATUS(NULL, gptalk_chat(msgs, one_liner_in_one_liner, &left), GPTALK_OK);
        CHECK_TEXT(gptalk_get(NULL, "text"), reply); /* the one that is done */
        CHECK_STATUS(NULL, gptalk_chat("no JSON", NULL, NULL), GPTALK_MISUSE);
        CHECK(gptalk_get(NULL, "error") != NULL);
    }
    return 0;
}

static void nested_one_liners(char **args)
{
    int depth = 4;
    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[0]), GPTALK_OK);
    CHECK_STATUS(NULL, gptalk_chat(HI, one_liner_in_one_liner, &depth), GPTALK_OK);
    CHECK_TEXT(gptalk_get(NULL, "text"), SAID_HI);
    CHECK_TEXT(gptalk_get(NULL, "error"), NULL);
    CHECK_INT(gptalk_get_int(NULL, "pieces"), 3);
}

static int chat_while_logging_in(const char *text, size_t len, void *client)
{
    (void)text;
    (void)len;
    CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
    CHECK_TEXT(gptalk_get(NULL, "text"), SAID_HI);
    CHECK_INT(gptalk_cancel(client), 1);
    return 0;
}

/* A login with that header stalls; a chat inside the tick of the chat that waits for it does not. */
static void nested_in_login(char **args)
{
    gptalk_client *client = client_at(args[0]);
    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[0]), GPTALK_OK);
    CHECK_STATUS(client, gptalk_set(client, "header", "x-stall: 1"), GPTALK_OK);
    CHECK_STATUS(client, gptalk_on(client, "tick", chat_while_logging_in, client), GPTALK_OK);
    CHECK_STATUS(client, gptalk_client_chat(client, HI, NULL, NULL), GPTALK_CANCELLED);
    CHECK_STATUS(client, gptalk_on(client, "tick", NULL, NULL), GPTALK_OK);
    CHECK_STATUS(client, gptalk_set(client, "header", NULL), GPTALK_OK);
    check_chat(client, SAID_HI);
    gptalk_client_free(client);
}

struct freed {
    gptalk_client *client;
    struct heard heard;
};

static int free_in_callback(const char *text, size_t len, void *userdata)
{
    struct freed *freed = userdata;
    gptalk_client_free(freed->client);
    freed->client = NULL;
    return hear(text, len, &freed->heard);
}

/* args: URL of a slow service */
static void freed_in_callback(char **args)
{
    gptalk_client *client = client_at(args[0]);
    struct freed freed;

    freed.heard = nothing_heard();
    freed.client = client;
    CHECK_INT(gptalk_client_chat(client, HI, free_in_callback, &freed), GPTALK_OK);
    CHECK_TEXT(freed.heard.text, SAID_HI);

    freed.heard = nothing_heard();
    freed.heard.stop_at = 1;
    freed.client = client = client_at(args[0]);
    CHECK_INT(gptalk_client_chat(client, HI, free_in_callback, &freed), GPTALK_CANCELLED);

    /* In the pull form, whose chat it ends at the latest when gptalk_next() returns. */
    freed.heard = nothing_heard();
    freed.heard.stop_at = 1;
    freed.client = client = client_at(args[0]);
    CHECK_STATUS(client, gptalk_on(client, "tick", free_in_callback, &freed), GPTALK_OK);
    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    CHECK_TEXT(gptalk_next(client, NULL), NULL);
}

/* Before the text comes, so that the piece would go with the client. For valgrind, too. */
static void freed_while_pulling(char **args)
{
    static const char *const channels[] = {"log", "event"};
    size_t i;
    for (i = 0; i < COUNT(channels); i++) {
        gptalk_client *client = client_at(args[0]);
        struct freed freed;
        size_t len = 99;
        freed.heard = nothing_heard();
        freed.client = client;
        CHECK_STATUS(client, gptalk_on(client, channels[i], free_in_callback, &freed), GPTALK_OK);
        CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
        CHECK(gptalk_next(client, &len) == NULL);
        CHECK_INT(len, 0);
        CHECK(freed.client == NULL);
        CHECK(freed.heard.pieces > 0);
    }
}

static int cancel_in_callback(const char *text, size_t len, void *client)
{
    (void)text;
    (void)len;
    CHECK_INT(gptalk_cancel(client), 1);
    return 0;
}

static void cancelled_in_callback(char **args)
{
    gptalk_client *client = client_at(args[0]);
    CHECK_STATUS(client, gptalk_client_chat(client, HI, cancel_in_callback, client), GPTALK_CANCELLED);
    CHECK_TEXT(gptalk_get(client, "text"), "You ");
    CHECK_INT(gptalk_cancel(client), 0);
    check_chat(client, SAID_HI);
    gptalk_client_free(client);

    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[0]), GPTALK_OK);
    CHECK_STATUS(NULL, gptalk_chat(HI, cancel_in_callback, NULL), GPTALK_CANCELLED);
    CHECK_INT(gptalk_cancel(NULL), 0);
    CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
}

/* ---- cancel ---- */

/* A chat that is to be cancelled once it waits in a phase: at the third tick there. */
struct wait {
    gptalk_client *client;
    const char *phase; /* a part of the URL that is waited on, or "body", or "" */
    int ticks;
    sem_t reached;
    struct heard heard;
    void (*then)(void);
    volatile sig_atomic_t answer;
    volatile long long at;
};

static int reach(const char *text, size_t len, void *userdata)
{
    struct wait *wait = userdata;
    const char *url = gptalk_get(wait->client, "url");
    (void)text;
    (void)len;
    if (strcmp(wait->phase, "body") == 0 ? wait->heard.pieces == 0
                                         : wait->phase[0] != '\0' && (url == NULL || strstr(url, wait->phase) == NULL))
        return 0;
    if (++wait->ticks == 3) {
        if (wait->then)
            wait->then();
        sem_post(&wait->reached);
    }
    return 0;
}

static void begin_wait(struct wait *wait, gptalk_client *client, const char *phase)
{
    memset(wait, 0, sizeof *wait);
    wait->client = client;
    wait->phase = phase;
    wait->heard = nothing_heard();
    wait->answer = -1;
    sem_init(&wait->reached, 0, 0);
    CHECK_STATUS(client, gptalk_set(client, "retries", "1"), GPTALK_OK);
    CHECK_STATUS(client, gptalk_on(client, "tick", reach, wait), GPTALK_OK);
}

static void *cancel_when_reached(void *userdata)
{
    struct wait *wait = userdata;
    sem_wait(&wait->reached);
    wait->at = now_ms();
    wait->answer = gptalk_cancel(wait->client);
    return NULL;
}

/* The chat of a wait ends as cancelled, in time. */
static void check_cancelled(struct wait *wait)
{
    CHECK_STATUS(wait->client, gptalk_client_chat(wait->client, HI, hear, &wait->heard), GPTALK_CANCELLED);
    CHECK_INT(wait->answer, 1);
    CHECK(now_ms() - wait->at < LATE_MS);
    CHECK(gptalk_get(wait->client, "error") != NULL);
    CHECK_INT(gptalk_get_int(wait->client, "retryable"), 0);
    CHECK_INT(gptalk_cancel(wait->client), 0);
}

/* args: URL of a service that stalls, phase, the reply of the chat after */
static void cancel_from_thread(char **args)
{
    gptalk_client *client = client_at(args[0]);
    struct wait wait;
    pthread_t thread;
    begin_wait(&wait, client, args[1]);
    CHECK_INT(pthread_create(&thread, NULL, cancel_when_reached, &wait), 0);
    check_cancelled(&wait);
    pthread_join(thread, NULL);
    if (strcmp(args[1], "body") == 0)
        CHECK_TEXT(gptalk_get(client, "text"), "Hel");
    CHECK_STATUS(client, gptalk_on(client, "tick", NULL, NULL), GPTALK_OK);
    check_chat(client, args[2]); /* a later chat is not affected */
    gptalk_client_free(client);
}

static void *chat_to_be_cancelled(void *wait)
{
    ((struct wait *)wait)->heard.thread = pthread_self();
    check_cancelled(wait);
    return NULL;
}

/* The first login stalls, and another chat waits for it. */
static void cancel_while_another_logs_in(char **args)
{
    struct wait first, second;
    pthread_t chat, canceller;
    begin_wait(&first, client_at(args[0]), "user/login");
    begin_wait(&second, client_at(args[0]), "");
    CHECK_INT(pthread_create(&chat, NULL, chat_to_be_cancelled, &first), 0);
    sem_wait(&first.reached);
    CHECK_INT(pthread_create(&canceller, NULL, cancel_when_reached, &second), 0);
    check_cancelled(&second);
    pthread_join(canceller, NULL);
    first.at = now_ms();
    first.answer = gptalk_cancel(first.client);
    pthread_join(chat, NULL);
    check_chat(second.client, "closed");
    gptalk_client_free(first.client);
    gptalk_client_free(second.client);
}

static struct wait signalled;

static void on_alarm(int number)
{
    (void)number;
    signalled.at = now_ms();
    signalled.answer = gptalk_cancel(signalled.client);
}

static void set_alarm(void)
{
    struct itimerval soon;
    memset(&soon, 0, sizeof soon);
    soon.it_value.tv_usec = 10000;
    CHECK_INT(setitimer(ITIMER_REAL, &soon, NULL), 0);
}

/* args: URL of a service that stalls, phase, the reply of the chat after */
static void cancel_from_signal(char **args)
{
    gptalk_client *client = client_at(args[0]);
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_alarm;
    action.sa_flags = SA_RESTART;
    CHECK_INT(sigaction(SIGALRM, &action, NULL), 0);
    begin_wait(&signalled, client, args[1]);
    signalled.then = set_alarm;
    check_cancelled(&signalled);
    CHECK_STATUS(client, gptalk_on(client, "tick", NULL, NULL), GPTALK_OK);
    check_chat(client, args[2]);
    gptalk_client_free(client);
}

static void cancel_nothing(char **args)
{
    gptalk_client *client = client_at(args[0]);
    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[0]), GPTALK_OK);
    CHECK_INT(gptalk_cancel(client), 0);
    CHECK_INT(gptalk_cancel(NULL), 0);
    check_chat(client, SAID_HI);
    CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
    CHECK_INT(gptalk_cancel(client), 0);
    CHECK_INT(gptalk_cancel(NULL), 0);
    check_chat(client, SAID_HI);
    CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);

    /* A clone's chat, or a one-liner, is not the client's. */
    gptalk_client *copy = gptalk_client_clone(client);
    CHECK_STATUS(copy, gptalk_start(copy, HI), GPTALK_OK);
    CHECK_INT(gptalk_cancel(client), 0);
    CHECK_INT(gptalk_cancel(NULL), 0);
    CHECK_TEXT(gptalk_next(copy, NULL), "You ");
    CHECK_INT(gptalk_cancel(copy), 1);
    CHECK_STATUS(copy, gptalk_finish(copy), GPTALK_CANCELLED);
    gptalk_client_free(copy);
    gptalk_client_free(client);
}

static int post(const char *text, size_t len, void *semaphore)
{
    (void)text;
    (void)len;
    sem_post(semaphore);
    return 0;
}

static void *one_liner_to_be_cancelled(void *semaphore)
{
    CHECK_STATUS(NULL, gptalk_chat(HI, post, semaphore), GPTALK_CANCELLED);
    CHECK_TEXT(gptalk_get(NULL, "text"), "Hel");
    CHECK(gptalk_get(NULL, "error") != NULL);
    return NULL;
}

/* The service stalls after "Hel", always. */
static void cancel_one_liners(char **args)
{
    pthread_t threads[2];
    sem_t reached;
    gptalk_client *client = client_at(args[0]);
    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    CHECK_TEXT(gptalk_next(client, NULL), "Hel");

    sem_init(&reached, 0, 0);
    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[0]), GPTALK_OK);
    CHECK_INT(pthread_create(&threads[0], NULL, one_liner_to_be_cancelled, &reached), 0);
    CHECK_INT(pthread_create(&threads[1], NULL, one_liner_to_be_cancelled, &reached), 0);
    sem_wait(&reached);
    sem_wait(&reached);
    CHECK_INT(gptalk_cancel(NULL), 1);
    long long at = now_ms();
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    CHECK(now_ms() - at < LATE_MS);
    CHECK_INT(gptalk_cancel(NULL), 0);

    CHECK_INT(gptalk_cancel(client), 1); /* the client's chat was let alone */
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_CANCELLED);
    gptalk_client_free(client);
}

struct race {
    gptalk_client *client;
    sem_t go, done;
    int answer;
};

#define RACES 120

static void *race_to_cancel(void *userdata)
{
    struct race *race = userdata;
    int i;
    for (i = 0; i < RACES; i++) {
        struct timespec pause = {0, i % 40 * 100000};
        sem_wait(&race->go);
        nanosleep(&pause, NULL);
        race->answer = gptalk_cancel(race->client);
        sem_post(&race->done);
    }
    return NULL;
}

/* A cancel that races the end has its effect, or finds nothing: its answer and the outcome agree. */
static void cancel_races(char **args)
{
    struct race race;
    pthread_t thread;
    int i, cancelled = 0;
    race.client = client_at(args[0]);
    sem_init(&race.go, 0, 0);
    sem_init(&race.done, 0, 0);
    CHECK_INT(pthread_create(&thread, NULL, race_to_cancel, &race), 0);
    for (i = 0; i < RACES; i++) {
        struct heard heard = nothing_heard();
        gptalk_status status;
        sem_post(&race.go);
        status = gptalk_client_chat(race.client, HI, hear, &heard);
        sem_wait(&race.done);
        CHECK_STATUS(race.client, status, race.answer ? GPTALK_CANCELLED : GPTALK_OK);
        CHECK_INT(gptalk_get(race.client, "error") != NULL, race.answer);
        CHECK_TEXT(gptalk_get(race.client, "text"), heard.text);
        CHECK(strncmp(SAID_HI, heard.text, heard.len) == 0);
        cancelled += race.answer;
    }
    pthread_join(thread, NULL);
    CHECK(cancelled > 0);
    check_chat(race.client, SAID_HI);
    gptalk_client_free(race.client);
}

/* ---- threads ---- */

struct rivals {
    gptalk_client *client;
    pthread_barrier_t barrier;
    sem_t refused;
    int count[16];
    pthread_mutex_t lock;
};

/* Holds the chat up until the rival has been refused. */
static int wait_for_refusal(const char *text, size_t len, void *userdata)
{
    struct rivals *rivals = userdata;
    (void)text;
    (void)len;
    if (gptalk_get_int(rivals->client, "pieces") == 1)
        sem_wait(&rivals->refused);
    return 0;
}

static void *rival(void *userdata)
{
    struct rivals *rivals = userdata;
    gptalk_status status;
    pthread_barrier_wait(&rivals->barrier);
    status = gptalk_client_chat(rivals->client, HI, wait_for_refusal, rivals);
    if (status == GPTALK_BUSY)
        sem_post(&rivals->refused);
    pthread_mutex_lock(&rivals->lock);
    rivals->count[status]++;
    pthread_mutex_unlock(&rivals->lock);
    return NULL;
}

static void two_threads(char **args)
{
    struct rivals rivals;
    pthread_t threads[2];
    memset(&rivals, 0, sizeof rivals);
    rivals.client = client_at(args[0]);
    pthread_barrier_init(&rivals.barrier, NULL, 2);
    pthread_mutex_init(&rivals.lock, NULL);
    sem_init(&rivals.refused, 0, 0);
    CHECK_INT(pthread_create(&threads[0], NULL, rival, &rivals), 0);
    CHECK_INT(pthread_create(&threads[1], NULL, rival, &rivals), 0);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    CHECK_INT(rivals.count[GPTALK_OK], 1);
    CHECK_INT(rivals.count[GPTALK_BUSY], 1);
    CHECK_TEXT(gptalk_get(rivals.client, "text"), SAID_HI);
    CHECK_TEXT(gptalk_get(rivals.client, "error"), NULL);
    gptalk_client_free(rivals.client);
}

static void *chat_on_a_clone(void *original)
{
    gptalk_client *client = gptalk_client_clone(original);
    int i;
    for (i = 0; i < 25; i++)
        check_chat(client, SAID_HI);
    gptalk_client_free(client);
    return NULL;
}

static void sixteen_threads(char **args)
{
    gptalk_client *client = client_at(args[0]);
    pthread_t threads[16];
    size_t i;
    for (i = 0; i < COUNT(threads); i++)
        CHECK_INT(pthread_create(&threads[i], NULL, chat_on_a_clone, client), 0);
    for (i = 0; i < COUNT(threads); i++)
        pthread_join(threads[i], NULL);
    gptalk_client_free(client);
}

static void *ten_one_liners(void *number)
{
    char words[32], reply[64];
    int i;
    for (i = 0; i < 10; i++) {
        struct heard heard = nothing_heard();
        char *msgs;
        snprintf(words, sizeof words, "%d of thread %d", i, *(int *)number);
        snprintf(reply, sizeof reply, "You said: %s", words);
        msgs = gptalk_push(NULL, "user", words);
        CHECK_STATUS(NULL, gptalk_chat(msgs, hear, &heard), GPTALK_OK);
        CHECK_TEXT(heard.text, reply);
        CHECK_TEXT(gptalk_get(NULL, "text"), reply);
        gptalk_free(msgs);
    }
    return NULL;
}

static void one_liners_of_threads(char **args)
{
    pthread_t threads[8];
    int numbers[8];
    size_t i;
    CHECK_STATUS(NULL, gptalk_set(NULL, "base_url", args[0]), GPTALK_OK);
    for (i = 0; i < COUNT(threads); i++) {
        numbers[i] = (int)i;
        CHECK_INT(pthread_create(&threads[i], NULL, ten_one_liners, &numbers[i]), 0);
    }
    for (i = 0; i < COUNT(threads); i++)
        pthread_join(threads[i], NULL);
    CHECK_TEXT(gptalk_get(NULL, "text"), NULL); /* this thread has had none */
}

static const struct promise promises[] = {
    {"one_liner", one_liner},
    {"client", client},
    {"options", options},
    {"layers", layers},
    {"bad_environment", bad_environment},
    {"set_while_chatting", set_while_chatting},
    {"channels", channels},
    {"channel_cancels", channel_cancels},
    {"pull", pull},
    {"pull_fails", pull_fails},
    {"start_alone", start_alone},
    {"pull_left", pull_left},
    {"outcome_before", outcome_before},
    {"outcome_of_success", outcome_of_success},
    {"outcome_of_failure", outcome_of_failure},
    {"refused_while_chatting", refused_while_chatting},
    {"outcome_of_a_cut", outcome_of_a_cut},
    {"push", push},
    {"names", names},
    {"nulls", nulls},
    {"bad_strings", bad_strings},
    {"callback_cancels", callback_cancels},
    {"last_piece_cancels", last_piece_cancels},
    {"embedded_nul", embedded_nul},
    {"nested", nested},
    {"nested_one_liners", nested_one_liners},
    {"nested_in_login", nested_in_login},
    {"freed_in_callback", freed_in_callback},
    {"freed_while_pulling", freed_while_pulling},
    {"cancelled_in_callback", cancelled_in_callback},
    {"cancel_from_thread", cancel_from_thread},
    {"cancel_while_another_logs_in", cancel_while_another_logs_in},
    {"cancel_from_signal", cancel_from_signal},
    {"cancel_nothing", cancel_nothing},
    {"cancel_one_liners", cancel_one_liners},
    {"cancel_races", cancel_races},
    {"two_threads", two_threads},
    {"sixteen_threads", sixteen_threads},
    {"one_liners_of_threads", one_liners_of_threads},
};

int main(int argc, char **argv)
{
    return KEEP(promises);
}
