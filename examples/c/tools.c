/*
 * A model that calls a function of this program, in C.
 *
 *     cargo build --release
 *     cc -std=c99 -Iinclude examples/c/tools.c -Ltarget/release -lgptalk -Wl,-rpath,target/release -o tools
 *
 *     cargo run -p gptalk-service         # in another terminal: a service to talk to
 *     export GPTALK_BASE_URL=...          # as it says; elsewhere GPTALK_API_KEY and GPTALK_MODEL too
 *
 *     ./tools                             # "What is the weather in Zürich?"
 *     ./tools "Should I take an umbrella to Lisboa?"
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gptalk.h"

enum { MAX_ROUNDS = 8 };

/* What the model is told of the functions that it may call. */
static const char tools_json[] =
    "{\"tools\": [{\"type\": \"function\", \"function\": {"
    "    \"name\": \"get_weather\", \"description\": \"The weather in a city, now\","
    "    \"parameters\": {\"type\": \"object\", \"required\": [\"city\"],"
    "        \"properties\": {\"city\": {\"type\": \"string\"}}}}}]}";

static gptalk_client *client;

/* A part of the nth tool call that the model asks for; NULL where it is not there. */
static const char *part_of_call(int n, const char *part)
{
    char key[128];
    snprintf(key, sizeof key, "message/tool_calls/%d/function/%s", n, part);
    return gptalk_get(client, key);
}

/* A result is a text for the model to read, be it JSON or words. So is a complaint. */
static const char *get_weather(int n)
{
    const char *city = part_of_call(n, "arguments/city");
    if (city == NULL)
        return "which city?";
    return strcmp(city, "Zürich") == 0 ? "18 °C, sunny" : "15 °C, rain";
}

static const struct {
    const char *name;
    const char *(*run)(int n);
} tools[] = {{"get_weather", get_weather}};

/* Runs the nth tool call and gives its result; NULL where there is no such call. */
static const char *run_tool(int n)
{
    const char *name = part_of_call(n, "name");
    for (size_t i = 0; name != NULL && i < sizeof tools / sizeof tools[0]; i++)
        if (strcmp(name, tools[i].name) == 0) {
            printf("[%s %s]\n", tools[i].name, part_of_call(n, "arguments"));
            return tools[i].run(n);
        }
    return name != NULL ? "there is no such tool" : NULL;
}

/* Adds a message to a list, in whose place the longer one comes. */
static char *push(char *msgs, const char *role, const char *content)
{
    char *longer = gptalk_push(msgs, role, content);
    if (longer == NULL) {
        fputs("tools: a message is not UTF-8\n", stderr);
        exit(2);
    }
    gptalk_free(msgs);
    return longer;
}

static int on_text(const char *text, size_t len, void *out)
{
    return fwrite(text, 1, len, out) != len || fflush(out) != 0;
}

/* Asks, runs the tools that the model wants, and asks again with their results, until it wants none. */
static gptalk_status converse(const char *question)
{
    char *msgs = push(NULL, "user", question);
    gptalk_status status;
    int64_t tokens = 0;
    int calls, rounds = 0;

    do {
        calls = 0;
        status = gptalk_client_chat(client, msgs, on_text, stdout);
        if (gptalk_get_int(client, "pieces") > 0)
            putchar('\n');
        if (gptalk_get_int(client, "total_tokens") > 0)
            tokens += gptalk_get_int(client, "total_tokens");
        if (status == GPTALK_OK) {
            msgs = push(msgs, NULL, gptalk_get(client, "message"));
            /* The results, in the order of the calls. */
            for (const char *result; (result = run_tool(calls)) != NULL; calls++)
                msgs = push(msgs, "tool", result);
        }
    } while (calls > 0 && ++rounds < MAX_ROUNDS);

    if (calls > 0)
        fprintf(stderr, "tools: the model wants tools after %d rounds still\n", rounds);
    if (tokens > 0) /* where the service counts them */
        printf("(%lld tokens)\n", (long long)tokens);
    gptalk_free(msgs);
    return status;
}

int main(int argc, char **argv)
{
    gptalk_status status = GPTALK_OK;
    if ((client = gptalk_client_new()) == NULL)
        return 2;
    if (getenv("GPTALK_PROTOCOL") == NULL)
        status = gptalk_set(client, "protocol", "openai");
    if (status == GPTALK_OK)
        status = gptalk_set(client, "body", tools_json);
    if (status == GPTALK_OK)
        status = converse(argc > 1 ? argv[1] : "What is the weather in Zürich?");
    if (status != GPTALK_OK)
        fprintf(stderr, "tools: %s (%s)\n", gptalk_get(client, "error"), gptalk_status_name(status));
    gptalk_client_free(client);
    return status == GPTALK_OK ? 0 : 1;
}
