/*
 * A chat in the terminal, in C.
 *
 *     cargo build --release
 *     cc -std=c99 -Iinclude examples/c/chat.c -Ltarget/release -lgptalk -Wl,-rpath,target/release -o chat
 *
 *     cargo run -p gptalk-service         # in another terminal: a service to talk to
 *     export GPTALK_BASE_URL=...          # as it says
 *
 *     ./chat "Привет, как дела?"          # one message
 *     ./chat                              # a conversation: a line each, Ctrl-D ends it
 *     ./chat --json FILE                  # a conversation from a file
 *
 * Ctrl-C stops the reply that runs, and the program where none does.
 */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gptalk.h"

static gptalk_client *client;
static int write_error; /* errno, where stdout could not be written, as on a full disk */

static void stop(int sig)
{
    (void)sig;
    if (!gptalk_cancel(client)) /* may be called in a signal handler */
        _exit(130);
}

static int on_text(const char *text, size_t len, void *userdata)
{
    FILE *out = userdata;
    if (fwrite(text, 1, len, out) == len && fflush(out) == 0)
        return 0;
    write_error = errno;
    return 1; /* cancels the chat */
}

/* Sends a conversation and prints the reply as it comes. Stopped by hand counts as well. */
static gptalk_status ask(const char *msgs_json)
{
    gptalk_status status = gptalk_client_chat(client, msgs_json, on_text, stdout);
    on_text("\n", 1, stdout);
    if (status == GPTALK_CANCELLED)
        status = GPTALK_OK;
    if (status != GPTALK_OK)
        fprintf(stderr, "chat: %s (%s)\n", gptalk_get(client, "error"), gptalk_status_name(status));
    if (write_error != 0) {
        fprintf(stderr, "chat: stdout: %s\n", strerror(write_error));
        exit(1);
    }
    return status;
}

/* Reads lines and answers each, with all that was said before. */
static gptalk_status converse(void)
{
    int is_typed = isatty(STDIN_FILENO);
    char *msgs = NULL, *line = NULL;
    size_t size = 0;
    gptalk_status status = GPTALK_OK;

    for (;;) {
        if (is_typed) {
            fputs("> ", stdout);
            fflush(stdout);
        }
        ssize_t length = getline(&line, &size, stdin);
        if (length < 0)
            break;
        line[strcspn(line, "\r\n")] = '\0';
        if (line[0] == '\0')
            continue;

        char *question = gptalk_push(msgs, "user", line);
        if (question == NULL) {
            fputs("chat: this line is not UTF-8\n", stderr);
            continue;
        }
        status = ask(question);
        const char *answer = status == GPTALK_OK ? gptalk_get(client, "message") : NULL;
        if (answer != NULL) {
            gptalk_free(msgs);
            msgs = gptalk_push(question, NULL, answer);
        }
        gptalk_free(question);
        if (status != GPTALK_OK && !is_typed)
            break;
    }
    free(line);
    gptalk_free(msgs);
    return is_typed ? GPTALK_OK : status;
}

static char *read_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    size_t length = 0, room = 1 << 16, got;
    char *text = malloc(room);

    while (file != NULL && text != NULL && (got = fread(text + length, 1, room - length - 1, file)) > 0) {
        length += got;
        if (length + 1 == room)
            text = realloc(text, room *= 2);
    }
    if (file == NULL || text == NULL || ferror(file)) {
        fprintf(stderr, "chat: %s: %s\n", path, strerror(errno));
        exit(2);
    }
    fclose(file);
    text[length] = '\0';
    return text;
}

int main(int argc, char **argv)
{
    gptalk_status status;
    struct sigaction action;

    client = gptalk_client_new();
    if (client == NULL)
        return 2;
    memset(&action, 0, sizeof action);
    action.sa_handler = stop;
    action.sa_flags = SA_RESTART;
    sigaction(SIGINT, &action, NULL);

    if (argc == 1) {
        status = converse();
    } else if (argc == 3 && strcmp(argv[1], "--json") == 0) {
        char *msgs = read_file(argv[2]);
        status = ask(msgs);
        free(msgs);
    } else if (argc == 2 && strncmp(argv[1], "--", 2) != 0) {
        char *msgs = gptalk_push(NULL, "user", argv[1]);
        if (msgs == NULL)
            fputs("chat: this text is not UTF-8\n", stderr);
        status = msgs != NULL ? ask(msgs) : GPTALK_MISUSE;
        gptalk_free(msgs);
    } else {
        fputs("usage: chat [TEXT | --json FILE]\n", stderr);
        status = GPTALK_MISUSE;
    }
    gptalk_client_free(client);
    return status == GPTALK_OK ? 0 : 1;
}
