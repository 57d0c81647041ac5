/* Chats as it is told on stdin, and says what each callback and each pull brought, and what the outcome
   was then:

     set KEY VALUE           an option of the client and of the process
     FORM LEAVE AT           a chat in that form, which is left so at that piece of text; -: it is not
     read                    the same in the callback form, while another thread asks how far it is

   FORM: calls | events, the callback form where events are wanted | pulls | line, the one-liner.
   LEAVE: return | cancel | thread, where another one cancels | throw | finish | free | free_return | free_throw

   An answer is records: `KIND LENGTH TEXT_LEN PIECES`, and LENGTH and TEXT_LEN bytes. KIND: t, a piece of text;
   r, of thoughts; or the name of the status, at the end. TEXT_LEN is -1 where the client has been freed. */
#include "check.h"

struct chat {
    gptalk_client *client;
    const char *leave;
    int at, pieces, is_freed;
};

static gptalk_client *client;

static void tell(const struct chat *chat, const char *kind, const char *piece, size_t len)
{
    int64_t text_len = -1, pieces = -1;
    if (!chat->is_freed) {
        const char *text;
        text_len = gptalk_get_int(chat->client, "text_len");
        pieces = gptalk_get_int(chat->client, "pieces");
        text = gptalk_get(chat->client, "message/content");
        /* One with a NUL in it is not told, and an empty one is no message after a failure. */
        if (text != NULL) {
            char *copy = strdup(text);
            CHECK(copy != NULL);
            CHECK_TEXT(gptalk_get(chat->client, "text"), copy);
            free(copy);
        }
        text = gptalk_get(chat->client, "text");
        CHECK(text != NULL && text[text_len] == '\0');
        printf("%s %zu %lld %lld\n", kind, len, (long long)text_len, (long long)pieces);
        fwrite(piece, 1, len, stdout);
        fwrite(text, 1, text_len, stdout);
    } else {
        printf("%s %zu -1 -1\n", kind, len);
        fwrite(piece, 1, len, stdout);
    }
}

static void *cancels(void *of)
{
    const struct chat *chat = (const struct chat *)of;
    /* About one-liners, each thread is told of its own. */
    if (chat->client != NULL)
        CHECK_INT(gptalk_get_int(chat->client, "pieces"), chat->pieces);
    CHECK_INT(gptalk_cancel(chat->client), 1);
    return NULL;
}

/* What a piece of text is answered with. */
static int leaves(struct chat *chat)
{
    const char *leave = chat->leave;
    pthread_t thread;
    if (++chat->pieces != chat->at)
        return 0;
    if (strncmp(leave, "free", 4) == 0) {
        gptalk_client_free(chat->client);
        client = NULL;
        chat->is_freed = 1;
    } else if (strcmp(leave, "cancel") == 0) {
        CHECK_INT(gptalk_cancel(chat->client), 1);
    } else if (strcmp(leave, "thread") == 0) {
        CHECK(pthread_create(&thread, NULL, cancels, chat) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
    }
#ifdef __cplusplus
    if (strstr(leave, "throw") != NULL)
        throw 7;
#endif
    return strstr(leave, "return") != NULL;
}

static int on_text(const char *piece, size_t len, void *userdata)
{
    struct chat *chat = (struct chat *)userdata;
    CHECK(len > 0 && piece[len] == '\0');
    tell(chat, "t", piece, len);
    return leaves(chat);
}

static int on_thought(const char *piece, size_t len, void *userdata)
{
    CHECK(len > 0 && piece[len] == '\0');
    tell((struct chat *)userdata, "r", piece, len);
    return 0;
}

static int on_event(const char *json, size_t len, void *userdata)
{
    (void)userdata;
    CHECK(strlen(json) == len && len > 0);
    return 0;
}

static gptalk_status pull(struct chat *chat)
{
    gptalk_status status = gptalk_start(chat->client, HI);
    const char *piece;
    size_t len;
    if (status != GPTALK_OK)
        return status;
    while ((piece = gptalk_next(chat->client, &len)) != NULL) {
        /* A piece lives until the next call. */
        char *copy = (char *)malloc(len + 1);
        int goes_on;
        CHECK(copy != NULL);
        memcpy(copy, piece, len + 1);
        goes_on = on_text(copy, len, chat) == 0;
        free(copy);
        if (!goes_on || (chat->pieces == chat->at && strcmp(chat->leave, "finish") == 0))
            break;
    }
    return gptalk_finish(chat->client);
}

static void chat(const char *form, const char *leave, int at)
{
    int is_line = strcmp(form, "line") == 0, is_thrown = 0;
    struct chat chat = {is_line ? NULL : client, leave, at, 0, 0};
    gptalk_status status = GPTALK_OK;
    if (!is_line) {
        int wants_events = strcmp(form, "events") == 0;
        gptalk_on(client, "reasoning", on_thought, &chat);
        gptalk_on(client, "event", wants_events ? on_event : NULL, &chat);
    }
#ifdef __cplusplus
    try {
#endif
        if (strcmp(form, "pulls") == 0)
            status = pull(&chat);
        else if (is_line)
            status = gptalk_chat(HI, on_text, &chat);
        else
            status = gptalk_client_chat(client, HI, on_text, &chat);
#ifdef __cplusplus
    } catch (int) {
        is_thrown = 1;
    }
#endif
    if (!chat.is_freed)
        CHECK_INT(gptalk_cancel(chat.client), 0);
    tell(&chat, is_thrown ? "thrown" : gptalk_status_name(status), "", 0);
    fflush(stdout);
}

/* The chat that another thread asks about. */
static int is_over;

static void *asks(void *unused)
{
    int64_t text_len = 0, pieces = 0;
    (void)unused;
    while (!__atomic_load_n(&is_over, __ATOMIC_SEQ_CST)) {
        int64_t now = gptalk_get_int(client, "text_len");
        /* That of the chat before, or none. */
        if (now <= 0)
            continue;
        CHECK(now >= text_len);
        text_len = now;
        now = gptalk_get_int(client, "pieces");
        CHECK(now >= pieces);
        pieces = now;
    }
    return NULL;
}

static int counts(const char *piece, size_t len, void *pieces)
{
    (void)piece, (void)len;
    ++*(int *)pieces;
    CHECK_INT(gptalk_get_int(client, "pieces"), *(int *)pieces);
    return 0;
}

static void read_on(void)
{
    struct chat chat = {client, "-", 0, 0, 0};
    pthread_t thread;
    gptalk_status status;
    int pieces = 0;
    gptalk_on(client, "reasoning", NULL, NULL);
    gptalk_on(client, "event", NULL, NULL);
    /* A chat that came to nothing is forgotten. */
    CHECK(gptalk_client_chat(client, "[]", NULL, NULL) == GPTALK_MISUSE);
    __atomic_store_n(&is_over, 0, __ATOMIC_SEQ_CST);
    CHECK(pthread_create(&thread, NULL, asks, NULL) == 0);
    status = gptalk_client_chat(client, HI, counts, &pieces);
    __atomic_store_n(&is_over, 1, __ATOMIC_SEQ_CST);
    CHECK(pthread_join(thread, NULL) == 0);
    tell(&chat, gptalk_status_name(status), "", 0);
    fflush(stdout);
}

int main(void)
{
    static char line[4096], options[32][2][1024];
    int count = 0;

    while (fgets(line, sizeof line, stdin) != NULL) {
        char *word = strtok(line, " \n");
        if (strcmp(word, "set") == 0) {
            const char *key = strtok(NULL, " "), *value = strtok(NULL, "\n");
            int n = 0;
            while (n < count && strcmp(options[n][0], key) != 0)
                n++;
            count += n == count;
            strcpy(options[n][0], key);
            strcpy(options[n][1], value == NULL ? "" : value);
            gptalk_client_free(client);
            client = NULL;
            continue;
        }
        /* A new one, or the one that the last chat was left on. */
        if (client == NULL) {
            client = gptalk_client_new();
            for (int n = 0; n < count; n++) {
                const char *value = options[n][1][0] == '\0' ? NULL : options[n][1];
                CHECK_STATUS(client, gptalk_set(client, options[n][0], value), GPTALK_OK);
                CHECK_STATUS(NULL, gptalk_set(NULL, options[n][0], value), GPTALK_OK);
            }
        }
        if (strcmp(word, "read") == 0) {
            read_on();
        } else {
            const char *leave = strtok(NULL, " "), *at = strtok(NULL, "\n");
            chat(word, leave, atoi(at));
        }
    }
    gptalk_client_free(client);
    return 0;
}
