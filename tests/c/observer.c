/* Chats as it is told on stdin, and says what came of it and what of it is left in the process:

     set KEY VALUE    an option of the client, which is made where there is none
     messages JSON    what the chats say from now on
     prompt LENGTH    the same: one message that long
     chat | pull      a chat, in either form: STATUS MS TEXT ERROR CODE, the lengths of three texts, and these
     free             releases the client: DESCRIPTORS TASKS HEAP

   What no chat may do, whatever the service does, ends the program with words. */
#include "check.h"

/* RFC 3629, a table of which is: Unicode 16, table 3-7. */
static int is_utf8(const unsigned char *text, size_t len)
{
    size_t i = 0;
    while (i < len) {
        unsigned char first = text[i++], low = 0x80, high = 0xbf;
        int more = first < 0x80 ? 0 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3;
        if ((first >= 0x80 && first < 0xc2) || first > 0xf4)
            return 0;
        if (first == 0xe0)
            low = 0xa0;
        if (first == 0xed)
            high = 0x9f;
        if (first == 0xf0)
            low = 0x90;
        if (first == 0xf4)
            high = 0x8f;
        for (; more > 0; more--, low = 0x80, high = 0xbf)
            if (i == len || text[i] < low || text[i++] > high)
                return 0;
    }
    return 1;
}

struct said {
    pthread_t thread;
    long long pieces;
    size_t len, room;
    char *text;
};

static int on_piece(const char *piece, size_t len, void *userdata)
{
    struct said *said = userdata;
    CHECK(pthread_equal(said->thread, pthread_self()));
    CHECK(len > 0);
    CHECK(piece[len] == '\0');
    CHECK(is_utf8((const unsigned char *)piece, len));
    while (said->room - said->len < len) {
        said->room = said->room * 2 + 4096;
        said->text = realloc(said->text, said->room);
        CHECK(said->text != NULL);
    }
    memcpy(said->text + said->len, piece, len);
    said->len += len;
    said->pieces++;
    return 0;
}

static size_t length(const char *text)
{
    return text == NULL ? 0 : strlen(text);
}

static void chat(gptalk_client *client, const char *messages, int pulled)
{
    struct said said = {pthread_self(), 0, 0, 0, NULL};
    long long begun = now_ms(), took;
    gptalk_status status;
    const char *error, *code, *text;
    int64_t len;
    int is_rewritten;

    if (pulled) {
        const char *piece;
        size_t len;
        status = gptalk_start(client, messages);
        while (status == GPTALK_OK && (piece = gptalk_next(client, &len)) != NULL)
            on_piece(piece, len, &said);
        if (status == GPTALK_OK)
            status = gptalk_finish(client);
    } else {
        status = gptalk_client_chat(client, messages, on_piece, &said);
    }
    took = now_ms() - begun;

    CHECK_INT(gptalk_get_int(client, "pieces"), said.pieces);
    CHECK(status != GPTALK_INTERNAL);
    /* Each text is borrowed until the next call. */
    code = gptalk_get(client, "error_code");
    is_rewritten = code != NULL && strcmp(code, "rewritten") == 0;
    len = gptalk_get_int(client, "text_len");
    text = gptalk_get(client, "text");
    CHECK(text != NULL);
    CHECK(is_utf8((const unsigned char *)text, len));
    if (!is_rewritten) {
        CHECK_INT(len, said.len);
        CHECK(said.len == 0 || memcmp(text, said.text, said.len) == 0);
    }
    printf("%s %lld %zu %zu %zu\n", gptalk_status_name(status), took, said.len,
           length(gptalk_get(client, "error")), length(gptalk_get(client, "error_code")));
    fwrite(said.text, 1, said.len, stdout);
    error = gptalk_get(client, "error");
    CHECK((error == NULL) == (status == GPTALK_OK));
    if (error != NULL) {
        CHECK(error[0] != '\0');
        CHECK(is_utf8((const unsigned char *)error, strlen(error)));
        fputs(error, stdout);
        CHECK(gptalk_get_int(client, "retryable") != 1 || said.len == 0);
    }
    code = gptalk_get(client, "error_code");
    fputs(code == NULL ? "" : code, stdout);
    fflush(stdout);
    free(said.text);
}

int main(void)
{
    static char line[1 << 16];
    gptalk_client *client = NULL;
    char *messages = strdup(HI);

    while (fgets(line, sizeof line, stdin) != NULL) {
        char *word = strtok(line, " \n"), *key, *value;
        if (strcmp(word, "set") == 0) {
            key = strtok(NULL, " ");
            value = strtok(NULL, "\n");
            if (client == NULL)
                client = gptalk_client_new();
            CHECK_STATUS(client, gptalk_set(client, key, value), GPTALK_OK);
        } else if (strcmp(word, "prompt") == 0) {
            static const char before[] = "[{\"role\":\"user\",\"content\":\"", after[] = "\"}]";
            size_t len = strtoul(strtok(NULL, "\n"), NULL, 10);
            free(messages);
            messages = malloc(sizeof before + len + sizeof after);
            CHECK(messages != NULL);
            strcpy(messages, before);
            memset(messages + sizeof before - 1, 'x', len);
            strcpy(messages + sizeof before - 1 + len, after);
        } else if (strcmp(word, "messages") == 0) {
            const char *json = strtok(NULL, "\n");
            free(messages);
            messages = strdup(json == NULL ? "" : json);
        } else if (strcmp(word, "free") == 0) {
            gptalk_client_free(client);
            client = NULL;
            printf("%d %d %zu\n", entries("/proc/self/fd"), entries("/proc/self/task"), heap());
            fflush(stdout);
        } else {
            chat(client, messages, strcmp(word, "pull") == 0);
        }
    }
    free(messages);
    gptalk_client_free(client);
    return 0;
}
