/* What the header promises of protocol=openai, one subcommand a promise: openai NAME URL... */
#include "check.h"

#define COUNT(list) (sizeof list / sizeof list[0])

#define HO "[{\"role\":\"user\",\"content\":\"Ho\"}]"
#define SAID_HO "You said: Ho"

#define TOOLS                                                                                                          \
    "{\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"parameters\":{"                       \
    "\"type\":\"object\",\"required\":[\"city\"],\"properties\":{\"city\":{\"type\":\"string\"}}}}}]}"

static void use_openai(gptalk_client *client, const char *url)
{
    CHECK_STATUS(client, gptalk_set(client, "base_url", url), GPTALK_OK);
    CHECK_STATUS(client, gptalk_set(client, "protocol", "openai"), GPTALK_OK);
    CHECK_STATUS(client, gptalk_set(client, "retries", "0"), GPTALK_OK);
}

/* A client of the OpenAI-compatible service at that URL, which does not retry. */
static gptalk_client *openai_at(const char *url)
{
    gptalk_client *client = gptalk_client_new();
    CHECK(client != NULL);
    use_openai(client, url);
    return client;
}

static void check_has(const gptalk_client *client, const char *key, const char *part)
{
    const char *text = gptalk_get(client, key);
    if (text == NULL || strstr(text, part) == NULL) {
        fprintf(stderr, "\"%s\" is \"%s\", without \"%s\"\n", key, text ? text : "(NULL)", part);
        _exit(1);
    }
}

/* Nothing that can be asked for shows it. */
static void check_never_shown(const gptalk_client *client, const char *secret)
{
    static const char *const keys[] = {
        "error", "error_code",    "error_body", "text",  "reasoning",
        "message", "finish_reason", "usage",      "model", "request_id", "url",
    };
    for (size_t i = 0; i < COUNT(keys); i++) {
        const char *text = gptalk_get(client, keys[i]);
        if (text != NULL && strstr(text, secret) != NULL) {
            fprintf(stderr, "\"%s\" shows the secret: %s\n", keys[i], text);
            _exit(1);
        }
    }
}

/* ---- every way to chat ---- */

static void one_liner(char **args)
{
    struct heard heard = nothing_heard();
    use_openai(NULL, args[0]);
    CHECK_STATUS(NULL, gptalk_chat(HI, hear, &heard), GPTALK_OK);
    CHECK_TEXT(heard.text, SAID_HI);
    CHECK_INT(heard.pieces, 3);
    CHECK_TEXT(gptalk_get(NULL, "message/content"), SAID_HI);
    CHECK_TEXT(gptalk_get(NULL, "usage/total_tokens"), "4");
    CHECK_TEXT(gptalk_get(NULL, "finish_reason"), "stop");

    CHECK_STATUS(NULL, gptalk_chat(HO, NULL, NULL), GPTALK_OK);
    CHECK_TEXT(gptalk_get(NULL, "text"), SAID_HO);
    CHECK_TEXT(gptalk_get(NULL, "message/content"), SAID_HO);
    CHECK_TEXT(gptalk_get(NULL, "error"), NULL);
}

/* args: URL of a service that wants the key "sk-right" */
static void client(char **args)
{
    gptalk_client *one = openai_at(args[0]), *two;
    struct heard heard = nothing_heard();
    CHECK_STATUS(one, gptalk_set(one, "api_key", "sk-right"), GPTALK_OK);
    check_chat(one, SAID_HI);
    CHECK_STATUS(one, gptalk_client_chat(one, HO, NULL, NULL), GPTALK_OK);
    CHECK_TEXT(gptalk_get(one, "text"), SAID_HO);
    CHECK_INT(gptalk_get_int(one, "pieces"), 3);

    /* An object is a request's body. */
    CHECK_STATUS(one, gptalk_client_chat(one, "{\"model\":\"m\",\"messages\":" HI "}", NULL, NULL), GPTALK_OK);
    CHECK_TEXT(gptalk_get(one, "model"), "m");

    /* A clone has the protocol and the key, and nothing of the chats. */
    CHECK_STATUS(one, gptalk_on(one, "event", hear, &heard), GPTALK_OK);
    two = gptalk_client_clone(one);
    CHECK_TEXT(gptalk_get(two, "message"), NULL);
    CHECK_TEXT(gptalk_get(two, "message/content"), NULL);
    CHECK_TEXT(gptalk_get(two, "usage/total_tokens"), NULL);
    CHECK_INT(gptalk_get_int(two, "total_tokens"), -1);
    check_chat(two, SAID_HI);
    check_has(two, "url", "/v1/chat/completions");
    CHECK_INT(heard.pieces, 0);

    /* What is unset on one is not unset on the other. */
    CHECK_STATUS(two, gptalk_set(two, "api_key", NULL), GPTALK_OK);
    CHECK_STATUS(two, gptalk_client_chat(two, HI, NULL, NULL), GPTALK_AUTH);
    CHECK_STATUS(two, gptalk_set(two, "protocol", NULL), GPTALK_OK);
    check_chat(two, SAID_HI);
    check_has(two, "url", "/api/chatgpt/");
    check_chat(one, SAID_HI);
    gptalk_client_free(one);
    gptalk_client_free(two);
}

static void pull(char **args)
{
    gptalk_client *client = openai_at(args[0]);
    struct heard heard = nothing_heard();
    const char *piece;
    size_t len = 99;

    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_BUSY);
    CHECK_STATUS(client, gptalk_client_chat(client, HI, NULL, NULL), GPTALK_BUSY);
    while ((piece = gptalk_next(client, &len)) != NULL) {
        hear(piece, len, &heard);
        CHECK_TEXT(gptalk_get(client, "message/content"), heard.text);
        CHECK_STATUS(client, gptalk_client_chat(client, HI, NULL, NULL), GPTALK_BUSY);
    }
    CHECK_INT(len, 0);
    CHECK_TEXT(heard.text, SAID_HI);
    CHECK_INT(heard.pieces, 3);
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_OK);
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_OK);
    CHECK_TEXT(gptalk_get(client, "finish_reason"), "stop");
    CHECK_TEXT(gptalk_get(client, "usage/total_tokens"), "4");

    /* Before the end, finish cancels. */
    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    CHECK_TEXT(gptalk_next(client, &len), "You ");
    CHECK_INT(len, 4);
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_CANCELLED);
    CHECK_TEXT(gptalk_get(client, "message"), "{\"role\":\"assistant\",\"content\":\"You \"}");
    CHECK_TEXT(gptalk_get(client, "finish_reason"), NULL);
    CHECK_TEXT(gptalk_get(client, "usage"), NULL);
    check_chat(client, SAID_HI);

    /* A reply of tool calls has no piece. */
    CHECK_STATUS(client, gptalk_set(client, "body", TOOLS), GPTALK_OK);
    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    CHECK_TEXT(gptalk_next(client, &len), NULL);
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_OK);
    CHECK_TEXT(gptalk_get(client, "message/tool_calls/0/function/arguments/city"), "Hi");
    gptalk_client_free(client);
}

static void hear_as(const char *format, const char *text, struct heard *heard)
{
    size_t room = sizeof heard->text - heard->len;
    int len = snprintf(heard->text + heard->len, room, format, text);
    CHECK(len >= 0 && (size_t)len < room);
    heard->len += (size_t)len;
    heard->pieces++;
}

static int hear_event(const char *json, size_t len, void *heard)
{
    CHECK_INT(strlen(json), len);
    hear_as("<%s>", json, (struct heard *)heard);
    return 0;
}

static int hear_thought(const char *text, size_t len, void *heard)
{
    CHECK_INT(strlen(text), len);
    hear_as("(%s)", text, (struct heard *)heard);
    return 0;
}

#define THOUGHT_EVENT(text) "<{\"choices\":[{\"delta\":{\"reasoning_content\":\"" text "\"}}]}>"
#define TEXT_EVENT(text) "<{\"choices\":[{\"delta\":{\"content\":\"" text "\"}}]}>"

/* The service thinks and talks, with pauses of 450 ms. Its first answer is a 500 that shows the key. */
static void channels(char **args)
{
    gptalk_client *client = openai_at(args[0]);
    struct heard heard = nothing_heard();
    int ticks = 0, lines = 0;
    CHECK_STATUS(client, gptalk_set(client, "api_key", "sk-SENTINEL-0123456789"), GPTALK_OK);
    CHECK_STATUS(client, gptalk_set(client, "retries", "1"), GPTALK_OK);
    CHECK_STATUS(client, gptalk_on(client, "reasoning", hear_thought, &heard), GPTALK_OK);
    CHECK_STATUS(client, gptalk_on(client, "event", hear_event, &heard), GPTALK_OK);
    CHECK_STATUS(client, gptalk_on(client, "tick", hear_tick, &ticks), GPTALK_OK);
    CHECK_STATUS(client, gptalk_on(client, "log", hear_log, &lines), GPTALK_OK);

    CHECK_STATUS(client, gptalk_client_chat(client, HI, hear, &heard), GPTALK_OK);
    CHECK_TEXT(heard.text,
               THOUGHT_EVENT("Let me ") "(Let me )" THOUGHT_EVENT("see.") "(see.)" TEXT_EVENT("Hel") "Hel" TEXT_EVENT(
                   "lo") "lo<{\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}>");
    CHECK(ticks >= 6 && ticks <= 60);
    CHECK(lines >= 2);
    CHECK_INT(gptalk_get_int(client, "attempts"), 2);
    CHECK_INT(gptalk_get_int(client, "pieces"), 2);
    CHECK_INT(gptalk_get_int(client, "text_len"), 5);
    CHECK(gptalk_get_int(client, "first_text_ms") >= 800);
    CHECK(gptalk_get_int(client, "first_text_ms") <= gptalk_get_int(client, "duration_ms"));
    CHECK_TEXT(gptalk_get(client, "text"), "Hello");
    CHECK_TEXT(gptalk_get(client, "reasoning"), "Let me see.");
    CHECK_TEXT(gptalk_get(client, "message"), "{\"role\":\"assistant\",\"content\":\"Hello\"}");
    CHECK_TEXT(gptalk_get(client, "usage"), NULL);
    CHECK_TEXT(gptalk_get(client, "usage/total_tokens"), NULL);

    /* In the pull form they are called inside gptalk_next(). */
    heard = nothing_heard();
    ticks = lines = 0;
    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    CHECK_TEXT(gptalk_next(client, NULL), "Hel");
    CHECK_TEXT(heard.text, THOUGHT_EVENT("Let me ") "(Let me )" THOUGHT_EVENT("see.") "(see.)" TEXT_EVENT("Hel"));
    CHECK_TEXT(gptalk_get(client, "reasoning"), "Let me see.");
    CHECK(ticks >= 6);
    CHECK(lines >= 1);
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_CANCELLED);
    CHECK_TEXT(gptalk_get(client, "reasoning"), "Let me see.");

    /* NULL removes. */
    CHECK_STATUS(client, gptalk_on(client, "reasoning", NULL, NULL), GPTALK_OK);
    CHECK_STATUS(client, gptalk_on(client, "event", NULL, NULL), GPTALK_OK);
    CHECK_STATUS(client, gptalk_on(client, "tick", NULL, NULL), GPTALK_OK);
    CHECK_STATUS(client, gptalk_on(client, "log", NULL, NULL), GPTALK_OK);
    heard = nothing_heard();
    ticks = lines = 0;
    CHECK_STATUS(client, gptalk_client_chat(client, HI, hear, &heard), GPTALK_OK);
    CHECK_TEXT(heard.text, "Hello");
    CHECK_INT(ticks + lines, 0);
    gptalk_client_free(client);
}

/* ---- the outcome ---- */

static void check_outcome_of_success(const gptalk_client *client, const char *base_url)
{
    char url[256];
    snprintf(url, sizeof url, "%s/v1/chat/completions", base_url);
    CHECK_TEXT(gptalk_get(client, "error"), NULL);
    CHECK_TEXT(gptalk_get(client, "error_code"), NULL);
    CHECK_TEXT(gptalk_get(client, "error_body"), NULL);
    CHECK_TEXT(gptalk_get(client, "text"), SAID_HI);
    CHECK_TEXT(gptalk_get(client, "reasoning"), NULL);
    CHECK_TEXT(gptalk_get(client, "message"), "{\"role\":\"assistant\",\"content\":\"" SAID_HI "\"}");
    CHECK_TEXT(gptalk_get(client, "finish_reason"), "stop");
    CHECK_TEXT(gptalk_get(client, "usage"), "{\"prompt_tokens\":1,\"completion_tokens\":3,\"total_tokens\":4}");
    CHECK_TEXT(gptalk_get(client, "model"), "built-in");
    check_has(client, "request_id", "req_");
    CHECK_TEXT(gptalk_get(client, "url"), url);
    CHECK_INT(gptalk_get_int(client, "http_status"), 200);
    CHECK_INT(gptalk_get_int(client, "retry_after_ms"), -1);
    CHECK_INT(gptalk_get_int(client, "retryable"), 0);
    CHECK_INT(gptalk_get_int(client, "attempts"), 1);
    CHECK_INT(gptalk_get_int(client, "prompt_tokens"), 1);
    CHECK_INT(gptalk_get_int(client, "completion_tokens"), 3);
    CHECK_INT(gptalk_get_int(client, "total_tokens"), 4);
    CHECK_INT(gptalk_get_int(client, "reasoning_tokens"), -1);
    CHECK_INT(gptalk_get_int(client, "cached_tokens"), -1);
    CHECK_INT(gptalk_get_int(client, "text_len"), strlen(SAID_HI));
    CHECK_INT(gptalk_get_int(client, "pieces"), 3);
    CHECK(gptalk_get_int(client, "first_text_ms") >= 0);
    CHECK(gptalk_get_int(client, "first_text_ms") <= gptalk_get_int(client, "duration_ms"));
    CHECK(gptalk_get_int(client, "duration_ms") < 60000);
}

static void outcome(char **args)
{
    gptalk_client *client = openai_at(args[0]);
    check_chat(client, SAID_HI);
    check_outcome_of_success(client, args[0]);

    /* A reply that reaches its limit is complete, and says so. */
    CHECK_STATUS(client, gptalk_set(client, "max_tokens", "2"), GPTALK_OK);
    CHECK_STATUS(client, gptalk_set(client, "model", "a-model"), GPTALK_OK);
    check_chat(client, "You said: ");
    CHECK_TEXT(gptalk_get(client, "finish_reason"), "length");
    CHECK_TEXT(gptalk_get(client, "model"), "a-model");
    CHECK_TEXT(gptalk_get(client, "usage/completion_tokens"), "2");

    /* The other protocol's outcome has nothing of it. */
    CHECK_STATUS(client, gptalk_set(client, "protocol", "gptalk"), GPTALK_OK);
    check_chat(client, SAID_HI);
    CHECK_TEXT(gptalk_get(client, "finish_reason"), NULL);
    CHECK_TEXT(gptalk_get(client, "usage"), NULL);
    CHECK_TEXT(gptalk_get(client, "usage/completion_tokens"), NULL);
    CHECK_TEXT(gptalk_get(client, "model"), NULL);
    CHECK_TEXT(gptalk_get(client, "message/content"), SAID_HI);
    CHECK_TEXT(gptalk_get(client, "message/tool_calls"), NULL);
    CHECK_INT(gptalk_get_int(client, "total_tokens"), -1);

    CHECK_STATUS(client, gptalk_set(client, "protocol", "openai"), GPTALK_OK);
    CHECK_STATUS(client, gptalk_set(client, "max_tokens", NULL), GPTALK_OK);
    CHECK_STATUS(client, gptalk_set(client, "model", NULL), GPTALK_OK);
    check_chat(client, SAID_HI);
    check_outcome_of_success(client, args[0]);
    gptalk_client_free(client);

    use_openai(NULL, args[0]);
    CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
    check_outcome_of_success(NULL, args[0]);
}

/* args: URL of a service that wants the key "sk-right", URL of one that refuses every key and shows it */
static void refused_key(char **args)
{
    static const char wrong[] = "sk-WRONG-0123456789";
    gptalk_client *client = openai_at(args[0]);
    struct heard heard = nothing_heard();
    CHECK_STATUS(client, gptalk_set(client, "retries", "2"), GPTALK_OK);
    CHECK_STATUS(client, gptalk_set(client, "api_key", wrong), GPTALK_OK);
    CHECK_STATUS(client, gptalk_client_chat(client, HI, hear, &heard), GPTALK_AUTH);
    CHECK_INT(heard.pieces, 0);
    check_has(client, "error", "api_key");
    check_has(client, "error", "401");
    check_has(client, "error", "/v1/chat/completions");
    CHECK_TEXT(gptalk_get(client, "error_code"), "invalid_api_key");
    check_has(client, "error_body", "Incorrect API key provided");
    check_never_shown(client, wrong);
    CHECK_TEXT(gptalk_get(client, "text"), "");
    CHECK_TEXT(gptalk_get(client, "message"), NULL);
    CHECK_TEXT(gptalk_get(client, "message/role"), NULL);
    CHECK_TEXT(gptalk_get(client, "error/x"), NULL);
    CHECK_TEXT(gptalk_get(client, "usage"), NULL);
    CHECK_TEXT(gptalk_get(client, "finish_reason"), NULL);
    check_has(client, "request_id", "req_");
    CHECK_INT(gptalk_get_int(client, "http_status"), 401);
    CHECK_INT(gptalk_get_int(client, "retryable"), 0);
    CHECK_INT(gptalk_get_int(client, "attempts"), 1);
    CHECK_INT(gptalk_get_int(client, "first_text_ms"), -1);
    CHECK_INT(gptalk_get_int(client, "total_tokens"), -1);

    CHECK_STATUS(client, gptalk_set(client, "base_url", args[1]), GPTALK_OK);
    CHECK_STATUS(client, gptalk_client_chat(client, HI, NULL, NULL), GPTALK_AUTH);
    check_has(client, "error", "api_key");
    check_has(client, "error_body", "You said");
    check_never_shown(client, wrong);
    check_never_shown(client, "WRONG");

    CHECK_STATUS(client, gptalk_set(client, "base_url", args[0]), GPTALK_OK);
    CHECK_STATUS(client, gptalk_set(client, "api_key", NULL), GPTALK_OK);
    CHECK_STATUS(client, gptalk_client_chat(client, HI, NULL, NULL), GPTALK_AUTH);
    check_has(client, "error", "no key was sent");
    check_has(client, "error", "api_key");
    CHECK_STATUS(client, gptalk_set(client, "api_key", "sk-right"), GPTALK_OK);
    check_chat(client, SAID_HI);
    check_outcome_of_success(client, args[0]);
    gptalk_client_free(client);
}

/* args: URLs of services that cut the reply: in its text, in a tool call's arguments, before both */
static void cut(char **args)
{
    gptalk_client *client = openai_at(args[0]);
    struct heard heard = nothing_heard();
    char *msgs;
    CHECK_STATUS(client, gptalk_client_chat(client, HI, hear, &heard), GPTALK_TRUNCATED);
    CHECK_TEXT(heard.text, "Hel");
    CHECK_TEXT(gptalk_get(client, "text"), "Hel");
    CHECK_TEXT(gptalk_get(client, "message"), "{\"role\":\"assistant\",\"content\":\"Hel\"}");
    CHECK_TEXT(gptalk_get(client, "message/content"), "Hel");
    CHECK_TEXT(gptalk_get(client, "message/content/x"), NULL);
    CHECK_TEXT(gptalk_get(client, "finish_reason"), NULL);
    CHECK_TEXT(gptalk_get(client, "usage"), NULL);
    CHECK_TEXT(gptalk_get(client, "model"), "a-model");
    check_has(client, "error", "/v1/chat/completions");
    CHECK_INT(gptalk_get_int(client, "http_status"), 200);
    CHECK_INT(gptalk_get_int(client, "retryable"), 0);
    CHECK_INT(gptalk_get_int(client, "pieces"), 1);
    CHECK_INT(gptalk_get_int(client, "text_len"), 3);
    CHECK(gptalk_get_int(client, "first_text_ms") >= 0);
    msgs = gptalk_push(HI, NULL, gptalk_get(client, "message"));
    CHECK_TEXT(msgs, "[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":\"Hel\"}]");
    gptalk_free(msgs);

    CHECK_STATUS(client, gptalk_set(client, "base_url", args[1]), GPTALK_OK);
    CHECK_STATUS(client, gptalk_client_chat(client, HI, hear, &heard), GPTALK_TRUNCATED);
    CHECK_TEXT(gptalk_get(client, "text"), "");
    CHECK_TEXT(gptalk_get(client, "message/tool_calls/0/id"), "call_a");
    CHECK_TEXT(gptalk_get(client, "message/tool_calls/0/function/arguments"), "{\"city\":\"Zü");
    CHECK_TEXT(gptalk_get(client, "message/tool_calls/0/function/arguments/city"), NULL);

    CHECK_STATUS(client, gptalk_set(client, "base_url", args[2]), GPTALK_OK);
    CHECK_STATUS(client, gptalk_client_chat(client, HI, hear, &heard), GPTALK_TRUNCATED);
    CHECK_TEXT(gptalk_get(client, "text"), "");
    CHECK_TEXT(gptalk_get(client, "message"), NULL);
    CHECK_TEXT(gptalk_get(client, "message/role"), NULL);
    CHECK_INT(gptalk_get_int(client, "first_text_ms"), -1);
    gptalk_client_free(client);
}

/* ---- JSON pointers ---- */

#define CALL_0 "message/tool_calls/0/"
#define CALL_1 "message/tool_calls/1/"
#define ARGUMENTS CALL_0 "function/arguments"

static const char *const pointers[][2] = {
    {"message/role", "assistant"},
    {"message/role/0", NULL},
    {"message/content", NULL}, /* null */
    {"message/content/0", NULL},
    {"message/", NULL},
    {"message//", NULL},
    {"message/nothing", NULL},
    {"message/nothing/at/all", NULL},
    {"message/Role", NULL},
    {"message/role ", NULL},
    {"message/role/", NULL},
    {CALL_0 "id", "call_a"},
    {"message/tool_calls/00/id", NULL},
    {"message/tool_calls/+0/id", NULL},
    {"message/tool_calls/01/id", NULL},
    {CALL_0 "type", "function"},
    {CALL_0 "index", NULL},
    {CALL_0 "function/name", "get_weather"},
    {CALL_1 "id", "call_b"},
    {CALL_1 "function/name", "get \"time\""},
    {CALL_1 "function", "{\"name\":\"get \\\"time\\\"\",\"arguments\":\"in words\"}"},
    {CALL_1 "function/arguments", "in words"},
    {CALL_1 "function/arguments/words", NULL},
    {CALL_1 "function/arguments/", NULL},

    /* An index is what RFC 6901 says, and in range. */
    {"message/tool_calls/2", NULL},
    {"message/tool_calls/2/id", NULL},
    {"message/tool_calls/-", NULL},
    {"message/tool_calls/-1/id", NULL},
    {"message/tool_calls/1.0/id", NULL},
    {"message/tool_calls/ 1/id", NULL},
    {"message/tool_calls//id", NULL},
    {"message/tool_calls/18446744073709551615/id", NULL},
    {"message/tool_calls/18446744073709551616/id", NULL},
    {"message/tool_calls/id", NULL},

    /* The arguments are entered; as a whole they are what the model wrote. */
    {ARGUMENTS "/city", "Zürich \xF0\x9F\x99\x82"},
    {ARGUMENTS "/city/0", NULL},
    {ARGUMENTS "/страна", "Швейцария"},
    {ARGUMENTS "/lines", "one\n\"two\"\\"},
    {ARGUMENTS "/half a smile", "\xEF\xBF\xBD"}, /* \ud83d */
    {ARGUMENTS "/whole", "7"},
    {ARGUMENTS "/whole/0", NULL},
    {ARGUMENTS "/half", "-0.5"},
    {ARGUMENTS "/yes", "true"},
    {ARGUMENTS "/null", NULL},
    {ARGUMENTS "/null/0", NULL},
    {ARGUMENTS "/empty text", ""},
    {ARGUMENTS "/empty text/0", NULL},
    {ARGUMENTS "/list", "[1,[2,\"three\"],{\"x\":null}]"},
    {ARGUMENTS "/list/0", "1"},
    {ARGUMENTS "/list/1", "[2,\"three\"]"},
    {ARGUMENTS "/list/1/1", "three"},
    {ARGUMENTS "/list/2", "{\"x\":null}"},
    {ARGUMENTS "/list/2/x", NULL},
    {ARGUMENTS "/list/3", NULL},
    {ARGUMENTS "/no list", "{}"},
    {ARGUMENTS "/no list/0", NULL},

    /* "~1" is "/" and "~0" is "~", in that order. */
    {ARGUMENTS "/a~1b", "a slash"},
    {ARGUMENTS "/a/b", NULL},
    {ARGUMENTS "/m~0n", "a tilde"},
    {ARGUMENTS "/~01", "a tilde and a one"},
    {ARGUMENTS "/", "nothing for a name"},

    /* JSON in a string in JSON in a string, and what only looks like it. */
    {ARGUMENTS "/inner", "{\"deep\":[\"down\"]}"},
    {ARGUMENTS "/inner/deep", "[\"down\"]"},
    {ARGUMENTS "/inner/deep/0", "down"},
    {ARGUMENTS "/inner/deep/1", NULL},
    {ARGUMENTS "/number text", "42"},
    {ARGUMENTS "/number text/0", NULL},

    {"usage", "{\"prompt_tokens\":5,\"completion_tokens\":7,\"total_tokens\":12,"
              "\"prompt_tokens_details\":{\"cached_tokens\":3},\"completion_tokens_details\":{\"reasoning_tokens\":2},"
              "\"cost\":0.25,\"\":{\"\":\"nothing twice\"}}"},
    {"usage/total_tokens", "12"},
    {"usage/total_tokens/0", NULL},
    {"usage/prompt_tokens_details", "{\"cached_tokens\":3}"},
    {"usage/prompt_tokens_details/cached_tokens", "3"},
    {"usage/prompt_tokens_details/audio_tokens", NULL},
    {"usage/cost", "0.25"},
    {"usage/", "{\"\":\"nothing twice\"}"},
    {"usage//", "nothing twice"},
    {"usage///", NULL},

    /* Of the other keys there is nothing inside. */
    {"text/x", NULL},
    {"text/", NULL},
    {"error/x", NULL},
    {"error_body/x", NULL},
    {"reasoning/0", NULL},
    {"finish_reason/x", NULL},
    {"model/x", NULL},
    {"request_id/x", NULL},
    {"url/x", NULL},
    {"no_such_key/x", NULL},
    {"message.role", NULL},
    {"message#/role", NULL},
    {"Message/role", NULL},
    {"/message/role", NULL},
    {"/", NULL},
    {"", NULL},
    {"message/\xFF", NULL},
};

static void check_pointers(const gptalk_client *client)
{
    for (size_t i = 0; i < COUNT(pointers); i++) {
        const char *is = gptalk_get(client, pointers[i][0]), *expected = pointers[i][1];
        int same = is == NULL || expected == NULL ? is == expected : strcmp(is, expected) == 0;
        if (!same) {
            fprintf(stderr, "\"%s\" leads to \"%s\", not \"%s\"\n", pointers[i][0], is ? is : "(NULL)",
                    expected ? expected : "(NULL)");
            _exit(1);
        }
    }
}

/* args: URL of a service that makes the calls above, URL of one whose text is JSON */
static void pointer_keys(char **args)
{
    gptalk_client *client = openai_at(args[0]);
    size_t i, size = 1 << 20;
    char *key;
    for (i = 0; i < COUNT(pointers); i++)
        CHECK_TEXT(gptalk_get(client, pointers[i][0]), NULL); /* before any chat */
    CHECK_STATUS(client, gptalk_client_chat(client, HI, NULL, NULL), GPTALK_OK);
    check_pointers(client);
    check_pointers(client);
    CHECK_INT(gptalk_get_int(client, "prompt_tokens"), 5);
    CHECK_INT(gptalk_get_int(client, "completion_tokens"), 7);
    CHECK_INT(gptalk_get_int(client, "total_tokens"), 12);
    CHECK_INT(gptalk_get_int(client, "cached_tokens"), 3);
    CHECK_INT(gptalk_get_int(client, "reasoning_tokens"), 2);
    CHECK_INT(gptalk_get_int(client, "usage/total_tokens"), -1);
    CHECK_INT(gptalk_get_int(client, "first_text_ms"), -1);
    CHECK_INT(gptalk_get_int(client, "pieces"), 0);
    CHECK_TEXT(gptalk_get(client, "finish_reason"), "tool_calls");
    CHECK_TEXT(gptalk_get(client, "model"), "a-model");
    CHECK_TEXT(gptalk_get(client, "request_id"), "chatcmpl-7"); /* no header has one */
    CHECK_TEXT(gptalk_get(client, "text"), "");

    /* As long as can be. */
    key = malloc(size);
    CHECK(key != NULL);
    memset(key, '/', size);
    memcpy(key, "message", 7);
    key[size - 1] = '\0';
    CHECK_TEXT(gptalk_get(client, key), NULL);
    memset(key + 8, '~', size - 9);
    CHECK_TEXT(gptalk_get(client, key), NULL);
    memcpy(key, "message/tool_calls/", 19);
    memset(key + 19, '9', size - 20);
    CHECK_TEXT(gptalk_get(client, key), NULL);
    free(key);

    /* A refused option changes nothing. */
    CHECK_STATUS(client, gptalk_set(client, "retries", "many"), GPTALK_MISUSE);
    check_pointers(client);

    /* A text that is JSON may be entered, too. */
    CHECK_STATUS(client, gptalk_set(client, "base_url", args[1]), GPTALK_OK);
    CHECK_STATUS(client, gptalk_client_chat(client, HI, NULL, NULL), GPTALK_OK);
    CHECK_TEXT(gptalk_get(client, "message/content"), "{\"objects\": [\"a cat\", \"a mat\"]}");
    CHECK_TEXT(gptalk_get(client, "message/content/objects/1"), "a mat");
    CHECK_TEXT(gptalk_get(client, "message/content/objects/2"), NULL);
    CHECK_TEXT(gptalk_get(client, "text/objects/1"), NULL);
    CHECK_TEXT(gptalk_get(client, CALL_0 "id"), NULL); /* it was the last chat's */
    gptalk_client_free(client);

    use_openai(NULL, args[0]);
    CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
    check_pointers(NULL);
}

/* What was handed out under a key stays until that key is asked for again, or the next chat. For
 * valgrind, too. args: as above */
static void lifetimes(char **args)
{
    gptalk_client *client = openai_at(args[0]), *other = openai_at(args[1]), *copy;
    const char *name, *name_1, *city, *country, *message, *tokens, *usage, *text;
    char *msgs, key[64];
    int i;
    CHECK_STATUS(client, gptalk_client_chat(client, HI, NULL, NULL), GPTALK_OK);
    name = gptalk_get(client, CALL_0 "function/name");
    name_1 = gptalk_get(client, CALL_1 "function/name");
    city = gptalk_get(client, ARGUMENTS "/city");
    country = gptalk_get(client, ARGUMENTS "/страна");
    message = gptalk_get(client, "message");
    tokens = gptalk_get(client, "usage/total_tokens");
    usage = gptalk_get(client, "usage");
    text = gptalk_get(client, "text");

    /* Other keys, options, numbers, lists, clones and clients. */
    for (i = 0; i < 1000; i++) {
        snprintf(key, sizeof key, "message/tool_calls/%d/id", i);
        gptalk_get(client, key);
    }
    check_has(client, "message", "tool_calls");
    CHECK_STATUS(client, gptalk_set(client, "model", "another"), GPTALK_OK);
    CHECK_STATUS(client, gptalk_set(client, "model", "bad\xFF"), GPTALK_MISUSE);
    CHECK_STATUS(client, gptalk_on(client, "tick", hear, NULL), GPTALK_OK);
    CHECK_INT(gptalk_get_int(client, "total_tokens"), 12);
    CHECK_INT(gptalk_cancel(client), 0);
    CHECK(gptalk_get(client, "error") != NULL);
    msgs = gptalk_push(HI, NULL, gptalk_get(client, "message"));
    CHECK(msgs != NULL);
    copy = gptalk_client_clone(client);
    CHECK_STATUS(other, gptalk_client_chat(other, HI, NULL, NULL), GPTALK_OK);
    gptalk_client_free(copy);
    gptalk_client_free(other);

    CHECK_TEXT(name, "get_weather");
    CHECK_TEXT(name_1, "get \"time\"");
    CHECK_TEXT(city, "Zürich \xF0\x9F\x99\x82");
    CHECK_TEXT(country, "Швейцария");
    CHECK(strstr(message, "\"call_b\"") != NULL);
    CHECK_TEXT(tokens, "12");
    CHECK(strstr(usage, "\"cost\":0.25") != NULL);
    CHECK_TEXT(text, "");

    /* The same again is good, and the old pointer stays so. */
    CHECK_TEXT(gptalk_get(client, CALL_0 "function/name"), "get_weather");
    CHECK_TEXT(name, "get_weather");
    /* Two ways to one place do not get into each other's. */
    CHECK(gptalk_get(client, ARGUMENTS "/list/1/1") != gptalk_get(client, ARGUMENTS "/list/1"));
    gptalk_free(msgs);
    gptalk_client_free(client);

    /* The thread's one-liner. */
    use_openai(NULL, args[0]);
    CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
    name = gptalk_get(NULL, CALL_0 "function/name");
    city = gptalk_get(NULL, ARGUMENTS "/city");
    CHECK_TEXT(gptalk_get(NULL, CALL_1 "id"), "call_b");
    CHECK_TEXT(name, "get_weather");
    CHECK_TEXT(city, "Zürich \xF0\x9F\x99\x82");
}

struct asker {
    gptalk_client *client;
    const char *url;
    struct heard heard;
};

static int ask_in_callback(const char *text, size_t len, void *userdata)
{
    struct asker *asker = (struct asker *)userdata;
    const gptalk_client *client = asker->client;
    char message[sizeof asker->heard.text + 64];
    const char *whole, *content;
    hear(text, len, &asker->heard);
    snprintf(message, sizeof message, "{\"role\":\"assistant\",\"content\":\"%s\"}", asker->heard.text);
    whole = gptalk_get(client, "message");
    content = gptalk_get(client, "message/content");
    CHECK_TEXT(gptalk_get(client, "text"), asker->heard.text);
    CHECK_TEXT(gptalk_get(client, "message/role"), "assistant");
    CHECK_TEXT(gptalk_get(client, "message/tool_calls/0/id"), NULL);
    CHECK_TEXT(whole, message);
    CHECK_TEXT(content, asker->heard.text);
    CHECK_TEXT(gptalk_get(client, "model"), "built-in");
    check_has(client, "request_id", "req_");
    check_has(client, "url", asker->url);
    CHECK_TEXT(gptalk_get(client, "error"), NULL);
    CHECK_INT(gptalk_get_int(client, "http_status"), 200);
    CHECK_INT(gptalk_get_int(client, "attempts"), 1);
    CHECK_INT(gptalk_get_int(client, "pieces"), asker->heard.pieces);
    CHECK_INT(gptalk_get_int(client, "text_len"), asker->heard.len);
    CHECK(gptalk_get_int(client, "first_text_ms") >= 0);
    /* These come at the end. */
    CHECK_TEXT(gptalk_get(client, "finish_reason"), NULL);
    CHECK_TEXT(gptalk_get(client, "usage"), NULL);
    CHECK_TEXT(gptalk_get(client, "usage/total_tokens"), NULL);
    CHECK_INT(gptalk_get_int(client, "total_tokens"), -1);
    return 0;
}

static void asked_in_callback(char **args)
{
    struct asker asker;
    int i;
    asker.url = args[0];
    asker.client = openai_at(args[0]);
    for (i = 0; i < 2; i++) { /* nothing is left of the chat before */
        asker.heard = nothing_heard();
        CHECK_STATUS(asker.client, gptalk_client_chat(asker.client, HI, ask_in_callback, &asker), GPTALK_OK);
        check_outcome_of_success(asker.client, args[0]);
    }
    gptalk_client_free(asker.client);

    asker.client = NULL;
    asker.heard = nothing_heard();
    use_openai(NULL, args[0]);
    CHECK_STATUS(NULL, gptalk_chat(HI, ask_in_callback, &asker), GPTALK_OK);
    check_outcome_of_success(NULL, args[0]);
}

/* ---- tools ---- */

/* Adds a message; the shorter list is released. */
static char *push(char *msgs, const char *role, const char *content)
{
    char *longer = gptalk_push(msgs, role, content);
    CHECK(longer != NULL);
    gptalk_free(msgs);
    return longer;
}

static void check_ends(const char *text, const char *end)
{
    CHECK(strlen(text) >= strlen(end));
    CHECK_TEXT(text + strlen(text) - strlen(end), end);
}

/* One call, of the service as it is. */
static void round_trip(char **args)
{
    gptalk_client *client = openai_at(args[0]);
    struct heard heard = nothing_heard();
    char *msgs = push(NULL, "user", "What is the weather in Zürich?"), end[128];
    int round;
    CHECK_STATUS(client, gptalk_set(client, "body", TOOLS), GPTALK_OK);
    for (round = 0; round < 2; round++) {
        CHECK_STATUS(client, gptalk_client_chat(client, msgs, hear, &heard), GPTALK_OK);
        CHECK_INT(heard.pieces, 0);
        CHECK_TEXT(gptalk_get(client, "finish_reason"), "tool_calls");
        CHECK_TEXT(gptalk_get(client, "message/content"), NULL);
        CHECK_TEXT(gptalk_get(client, CALL_0 "function/name"), "get_weather");
        CHECK_TEXT(gptalk_get(client, ARGUMENTS "/city"), round == 0 ? "Zürich" : "Bern");
        CHECK_TEXT(gptalk_get(client, CALL_1 "id"), NULL);

        msgs = push(msgs, NULL, gptalk_get(client, "message"));
        msgs = push(msgs, "tool", "{\"celsius\": 18}");
        snprintf(end, sizeof end,
                 "{\"role\":\"tool\",\"content\":\"{\\\"celsius\\\": 18}\",\"tool_call_id\":\"%s\"}]",
                 gptalk_get(client, CALL_0 "id"));
        check_ends(msgs, end);
        CHECK_STATUS(client, gptalk_client_chat(client, msgs, hear, &heard), GPTALK_OK);
        CHECK_TEXT(heard.text, "get_weather says: {\"celsius\": 18}");
        CHECK_TEXT(gptalk_get(client, "message"),
                   "{\"role\":\"assistant\",\"content\":\"get_weather says: {\\\"celsius\\\": 18}\"}");
        CHECK_TEXT(gptalk_get(client, "finish_reason"), "stop");

        msgs = push(msgs, NULL, gptalk_get(client, "message"));
        msgs = push(msgs, "user", "And in Bern?");
        heard = nothing_heard();
    }
    gptalk_free(msgs);
    gptalk_client_free(client);
}

#define RESULT(content, id) ",{\"role\":\"tool\",\"content\":\"" content "\",\"tool_call_id\":\"" id "\"}"

/* Two calls at once, twice, with the same ids. The service says then what the last result was. */
static void parallel_calls(char **args)
{
    gptalk_client *client = openai_at(args[0]);
    char *msgs = push(NULL, "user", "Hi");
    int round;
    for (round = 0; round < 2; round++) {
        CHECK_STATUS(client, gptalk_client_chat(client, msgs, NULL, NULL), GPTALK_OK);
        CHECK_TEXT(gptalk_get(client, CALL_0 "id"), "call_a");
        CHECK_TEXT(gptalk_get(client, CALL_0 "function/arguments/city"), "Zürich");
        CHECK_TEXT(gptalk_get(client, CALL_1 "id"), "call_b");
        CHECK_TEXT(gptalk_get(client, CALL_1 "function/arguments/city"), "Bern");
        CHECK_TEXT(gptalk_get(client, "message/tool_calls/2/id"), NULL);

        msgs = push(msgs, NULL, gptalk_get(client, "message"));
        msgs = push(msgs, "tool", "one");
        check_ends(msgs, "\"}}]}" RESULT("one", "call_a") "]");
        msgs = push(msgs, "tool", "two");
        check_ends(msgs, RESULT("one", "call_a") RESULT("two", "call_b") "]");
        CHECK_STATUS(client, gptalk_client_chat(client, msgs, NULL, NULL), GPTALK_OK);
        CHECK_TEXT(gptalk_get(client, "text"), "get_bearings says: two");
        msgs = push(msgs, NULL, gptalk_get(client, "message"));
        msgs = push(msgs, "user", "Again");
    }
    gptalk_free(msgs);
    gptalk_client_free(client);
}

#define CALLS                                                                                                          \
    "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":["                                                        \
    "{\"id\":\"a\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}},"                         \
    "{\"id\":\"b\",\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{}\"}}]}"

static void push_of_tools(char **args)
{
    char *msgs;
    (void)args;

    /* No call is open. */
    msgs = gptalk_push(NULL, "tool", "x");
    CHECK_TEXT(msgs, "[{\"role\":\"tool\",\"content\":\"x\"}]");
    gptalk_free(msgs);
    msgs = gptalk_push("[]", "tool", "");
    CHECK_TEXT(msgs, "[{\"role\":\"tool\",\"content\":\"\"}]");
    gptalk_free(msgs);
    msgs = gptalk_push(HI, "tool", "x");
    CHECK_TEXT(msgs, "[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"tool\",\"content\":\"x\"}]");
    gptalk_free(msgs);

    /* Each gets its own, the last none; other roles get none at all. */
    msgs = push(NULL, NULL, CALLS);
    msgs = push(msgs, "tool", "\"one\"");
    msgs = push(msgs, "user", "wait");
    msgs = push(msgs, "tool", "two");
    msgs = push(msgs, "tool", "three");
    CHECK_TEXT(msgs, "[" CALLS RESULT("\\\"one\\\"", "a") ",{\"role\":\"user\",\"content\":\"wait\"}" RESULT(
                         "two", "b") ",{\"role\":\"tool\",\"content\":\"three\"}]");
    gptalk_free(msgs);

    /* A result given whole counts. */
    msgs = push(NULL, NULL, CALLS);
    msgs = push(msgs, NULL, "{\"role\":\"tool\",\"tool_call_id\":\"a\",\"content\":\"one\"}");
    msgs = push(msgs, "tool", "two");
    check_ends(msgs, RESULT("two", "b") "]");
    gptalk_free(msgs);
    msgs = push(NULL, NULL, CALLS);
    msgs = push(msgs, NULL, "{\"role\":\"tool\",\"tool_call_id\":\"b\",\"content\":\"two\"}");
    msgs = push(msgs, "tool", "one");
    check_ends(msgs, RESULT("one", "a") "]");
    gptalk_free(msgs);

    /* The same ids again, in a later message, are calls of their own. */
    msgs = push(NULL, NULL, CALLS);
    msgs = push(msgs, "tool", "1");
    msgs = push(msgs, "tool", "2");
    msgs = push(msgs, NULL, CALLS);
    msgs = push(msgs, "tool", "3");
    msgs = push(msgs, "tool", "4");
    CHECK_TEXT(msgs, "[" CALLS RESULT("1", "a") RESULT("2", "b") "," CALLS RESULT("3", "a") RESULT("4", "b") "]");
    gptalk_free(msgs);

    /* So are two calls of one message that have the same id. */
    msgs = push(NULL, NULL, "{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"a\"},{\"id\":\"a\"}]}");
    msgs = push(msgs, "tool", "1");
    msgs = push(msgs, "tool", "2");
    msgs = push(msgs, "tool", "3");
    check_ends(msgs, "]}" RESULT("1", "a") RESULT("2", "a") ",{\"role\":\"tool\",\"content\":\"3\"}]");
    gptalk_free(msgs);

    /* The last calls count, though earlier ones have no results; a message with no call has none. */
    msgs = push(NULL, NULL, "{\"role\":\"assistant\",\"tool_calls\":[{\"id\":\"old\"}]}");
    msgs = push(msgs, NULL, CALLS);
    msgs = push(msgs, NULL, "{\"role\":\"assistant\",\"content\":\"x\",\"tool_calls\":[]}");
    msgs = push(msgs, NULL, "{\"role\":\"assistant\",\"content\":\"x\",\"tool_calls\":null}");
    msgs = push(msgs, "tool", "1");
    msgs = push(msgs, "tool", "2");
    msgs = push(msgs, "tool", "3");
    check_ends(msgs, RESULT("1", "a") RESULT("2", "b") ",{\"role\":\"tool\",\"content\":\"3\"}]");
    gptalk_free(msgs);

    /* What calls there are may be written in whatever way. */
    msgs = gptalk_push("[{\"role\":\"assistant\",\"tool_calls\":[]}]", "tool", "x");
    check_ends(msgs, ",{\"role\":\"tool\",\"content\":\"x\"}]");
    gptalk_free(msgs);
    msgs = gptalk_push("[{\"role\":\"assistant\",\"tool_calls\":[null,7,{},{\"id\":8},{\"id\":\"c\"}]}]", "tool", "x");
    check_ends(msgs, RESULT("x", "c") "]");
    gptalk_free(msgs);
    CHECK_TEXT(gptalk_push("{\"messages\":[" CALLS "],\"model\":\"m\"}", "tool", "x"), NULL);
    CHECK_TEXT(gptalk_push("[" CALLS "]", "tool", NULL), NULL);
    CHECK_TEXT(gptalk_push("[" CALLS "]", "tool", "\xFF"), NULL);
}

/* ---- callbacks ---- */

static int cancel_in_callback(const char *text, size_t len, void *client)
{
    (void)text;
    (void)len;
    CHECK_INT(gptalk_cancel((gptalk_client *)client), 1);
    return 0;
}

/* args: URL of a service that stalls after a thought, a tool call and "Hel", and that tells the next
 * chat whether it was left; channel, or "text" */
static void cancelled_in_callback(char **args)
{
    gptalk_client *client = openai_at(args[0]);
    int in_text = strcmp(args[1], "text") == 0;
    if (!in_text)
        CHECK_STATUS(client, gptalk_on(client, args[1], cancel_in_callback, client), GPTALK_OK);
    CHECK_STATUS(client, gptalk_client_chat(client, HI, in_text ? cancel_in_callback : NULL, client), GPTALK_CANCELLED);
    CHECK(gptalk_get(client, "error") != NULL);
    CHECK_INT(gptalk_get_int(client, "retryable"), 0);
    if (in_text) {
        CHECK_TEXT(gptalk_get(client, "message/content"), "Hel");
        CHECK_TEXT(gptalk_get(client, ARGUMENTS "/city"), "Bern");
        CHECK_TEXT(gptalk_get(client, "reasoning"), "Hm.");
        CHECK_INT(gptalk_get_int(client, "pieces"), 1);
    }
    CHECK_INT(gptalk_cancel(client), 0);
    if (!in_text)
        CHECK_STATUS(client, gptalk_on(client, args[1], NULL, NULL), GPTALK_OK);
    check_chat(client, "closed");
    gptalk_client_free(client);
}

static void cancelled_one_liner(char **args)
{
    struct heard heard = nothing_heard();
    use_openai(NULL, args[0]);
    CHECK_STATUS(NULL, gptalk_chat(HI, cancel_in_callback, NULL), GPTALK_CANCELLED);
    CHECK_TEXT(gptalk_get(NULL, "text"), "You ");
    CHECK_INT(gptalk_cancel(NULL), 0);
    heard.stop_at = 2;
    CHECK_STATUS(NULL, gptalk_chat(HI, hear, &heard), GPTALK_CANCELLED);
    CHECK_TEXT(gptalk_get(NULL, "text"), "You said: ");
    CHECK_STATUS(NULL, gptalk_chat(HI, NULL, NULL), GPTALK_OK);
}

struct nested {
    gptalk_client *outer, *inner;
    struct heard heard;
    int calls;
};

static int chat_in_callback(const char *text, size_t len, void *userdata)
{
    struct nested *nested = (struct nested *)userdata;
    struct heard heard = nothing_heard();
    gptalk_client *copy;
    hear(text, len, &nested->heard);
    CHECK_TEXT(gptalk_get(nested->outer, "message/content"), nested->heard.text);
    if (nested->calls++ > 0)
        return 0;

    CHECK_STATUS(nested->outer, gptalk_client_chat(nested->outer, HI, hear, &heard), GPTALK_BUSY);
    CHECK_STATUS(nested->outer, gptalk_client_chat(nested->outer, "no JSON", hear, &heard), GPTALK_BUSY);
    CHECK_STATUS(nested->outer, gptalk_start(nested->outer, HI), GPTALK_BUSY);
    CHECK_STATUS(nested->outer, gptalk_finish(nested->outer), GPTALK_BUSY);
    CHECK_TEXT(gptalk_next(nested->outer, NULL), NULL);
    CHECK_TEXT(gptalk_get(nested->outer, "error"), NULL);
    CHECK_INT(heard.pieces, 0);

    check_chat(nested->inner, SAID_HI);
    CHECK_STATUS(nested->inner, gptalk_start(nested->inner, HI), GPTALK_OK);
    CHECK_TEXT(gptalk_next(nested->inner, NULL), "You ");
    CHECK_STATUS(nested->inner, gptalk_finish(nested->inner), GPTALK_CANCELLED);
    check_chat(nested->inner, SAID_HI);
    CHECK_STATUS(NULL, gptalk_chat(HI, hear, &heard), GPTALK_OK);
    CHECK_TEXT(heard.text, SAID_HI);

    copy = gptalk_client_clone(nested->outer);
    check_chat(copy, SAID_HI);
    gptalk_client_free(copy);
    return 0;
}

/* A chat of one protocol in a callback of the other's, both ways; the one-liner is of the inner one's. */
static void nested(char **args)
{
    int way;
    for (way = 0; way < 2; way++) {
        gptalk_client *talk = client_at(args[0]), *openai = openai_at(args[0]);
        struct nested nested;
        memset(&nested, 0, sizeof nested);
        nested.heard = nothing_heard();
        nested.outer = way == 0 ? talk : openai;
        nested.inner = way == 0 ? openai : talk;
        use_openai(NULL, args[0]);
        CHECK_STATUS(NULL, gptalk_set(NULL, "protocol", way == 0 ? "openai" : "gptalk"), GPTALK_OK);
        CHECK_STATUS(talk, gptalk_set(talk, "protocol", "gptalk"), GPTALK_OK);

        CHECK_STATUS(nested.outer, gptalk_client_chat(nested.outer, HI, chat_in_callback, &nested), GPTALK_OK);
        CHECK_TEXT(nested.heard.text, SAID_HI);
        CHECK_INT(nested.calls, 3);
        CHECK_TEXT(gptalk_get(talk, "text"), SAID_HI);
        check_has(talk, "url", "/api/chatgpt/");
        CHECK_TEXT(gptalk_get(talk, "usage"), NULL);
        CHECK_TEXT(gptalk_get(NULL, "finish_reason"), way == 0 ? "stop" : NULL);
        check_outcome_of_success(openai, args[0]);
        gptalk_client_free(talk);
        gptalk_client_free(openai);
    }
}

struct freed {
    gptalk_client *client;
    struct heard heard;
};

static int free_in_callback(const char *text, size_t len, void *userdata)
{
    struct freed *freed = (struct freed *)userdata;
    gptalk_client_free(freed->client);
    freed->client = NULL;
    return hear(text, len, &freed->heard);
}

/* For valgrind, too. */
static void freed_in_callback(char **args)
{
    struct freed freed;
    gptalk_client *client;
    freed.heard = nothing_heard();
    freed.client = client = openai_at(args[0]);
    CHECK_INT(gptalk_client_chat(client, HI, free_in_callback, &freed), GPTALK_OK);
    CHECK_TEXT(freed.heard.text, SAID_HI);

    freed.heard = nothing_heard();
    freed.client = client = openai_at(args[0]);
    CHECK_STATUS(client, gptalk_on(client, "event", free_in_callback, &freed), GPTALK_OK);
    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    CHECK(gptalk_next(client, NULL) == NULL);
    CHECK(freed.client == NULL);
}

static const struct promise promises[] = {
    {"one_liner", one_liner},
    {"client", client},
    {"pull", pull},
    {"channels", channels},
    {"outcome", outcome},
    {"refused_key", refused_key},
    {"cut", cut},
    {"pointer_keys", pointer_keys},
    {"lifetimes", lifetimes},
    {"asked_in_callback", asked_in_callback},
    {"round_trip", round_trip},
    {"parallel_calls", parallel_calls},
    {"push_of_tools", push_of_tools},
    {"cancelled_in_callback", cancelled_in_callback},
    {"cancelled_one_liner", cancelled_one_liner},
    {"nested", nested},
    {"freed_in_callback", freed_in_callback},
};

int main(int argc, char **argv)
{
    return KEEP(promises);
}
