/* What a C programmer writes with care: libcurl, its handle kept from chat to chat; lines split in the write
 * callback; yyjson in a pool of memory that is kept (-DWITH_YYJSON), or cJSON. It speaks both protocols as
 * their services want it. */
#include "measure.h"

#include <curl/curl.h>
#ifdef WITH_YYJSON
#include <yyjson.h>
#else
#include <cjson/cJSON.h>
#endif

#define LOGIN_USES 5
#define USER_AGENT "bench/1.0"

struct bytes {
    char *at;
    size_t len, room;
};

struct client {
    CURL *curl;
    struct chats *chats;
    struct bytes line; /* begun, its end still to come */
    struct bytes answer;
    size_t known; /* how much of a cumulative text was there before */
    int is_done, uses_left;
    char login[128];
#ifdef WITH_YYJSON
    struct bytes pool;
#else
    cJSON *json;
#endif
};

static void reserve(struct bytes *bytes, size_t room)
{
    if (room > bytes->room) {
        bytes->room = room * 2;
        bytes->at = realloc(bytes->at, bytes->room);
    }
}

static void append(struct bytes *bytes, const char *text, size_t len)
{
    reserve(bytes, bytes->len + len + 1);
    memcpy(bytes->at + bytes->len, text, len);
    bytes->len += len;
    bytes->at[bytes->len] = 0;
}

/* ---- JSON: the string at a path, until the next call ---- */

enum path { CONTENT, DELTA_CONTENT, TOKEN };

#ifdef WITH_YYJSON
static const char *string_at(struct client *client, enum path path, const char *json, size_t len, size_t *string_len)
{
    yyjson_alc pool;
    size_t room = yyjson_read_max_memory_usage(len, 0);
    reserve(&client->pool, room);
    yyjson_alc_pool_init(&pool, client->pool.at, client->pool.room);
    yyjson_val *value = yyjson_doc_get_root(yyjson_read_opts((char *)json, len, 0, &pool, NULL));
    if (path == DELTA_CONTENT)
        value = yyjson_obj_get(yyjson_arr_get_first(yyjson_obj_get(value, "choices")), "delta");
    if (path == TOKEN)
        value = yyjson_obj_get(value, "data");
    value = yyjson_obj_get(value, path == TOKEN ? "token" : "content");
    *string_len = yyjson_get_len(value);
    return yyjson_get_str(value);
}

static void forget(struct client *client)
{
    free(client->pool.at);
}
#else
static const char *string_at(struct client *client, enum path path, const char *json, size_t len, size_t *string_len)
{
    cJSON_Delete(client->json);
    cJSON *value = client->json = cJSON_ParseWithLength(json, len);
    if (path == DELTA_CONTENT)
        value = cJSON_GetObjectItem(cJSON_GetArrayItem(cJSON_GetObjectItem(value, "choices"), 0), "delta");
    if (path == TOKEN)
        value = cJSON_GetObjectItem(value, "data");
    const char *string = cJSON_GetStringValue(cJSON_GetObjectItem(value, path == TOKEN ? "token" : "content"));
    *string_len = string ? strlen(string) : 0;
    return string;
}

static void forget(struct client *client)
{
    cJSON_Delete(client->json);
}
#endif

/* ---- the stream ---- */

static void on_line(struct client *client, const char *line, size_t len)
{
    size_t text_len;
    if (len > 0 && line[len - 1] == '\r')
        len--;
    if (len < 6 || memcmp(line, "data: ", 6) != 0)
        return;
    line += 6;
    len -= 6;
    if (len == 6 && memcmp(line, "[DONE]", 6) == 0) {
        client->is_done = 1;
        return;
    }
    const char *text = string_at(client, client->chats->is_openai ? DELTA_CONTENT : CONTENT, line, len, &text_len);
    if (text && text_len > client->known)
        take(client->chats, text + client->known, text_len - client->known);
    if (!client->chats->is_openai)
        client->known = text_len;
}

static size_t on_stream(char *bytes, size_t size, size_t count, void *userdata)
{
    struct client *client = userdata;
    size_t left = size * count;
    while (left > 0) {
        char *end = memchr(bytes, '\n', left);
        size_t len = end ? (size_t)(end - bytes) : left;
        if (!end || client->line.len > 0)
            append(&client->line, bytes, len);
        if (!end)
            break;
        if (client->line.len > 0)
            on_line(client, client->line.at, client->line.len);
        else
            on_line(client, bytes, len);
        client->line.len = 0;
        bytes = end + 1;
        left -= len + 1;
    }
    return size * count;
}

static size_t on_answer(char *bytes, size_t size, size_t count, void *userdata)
{
    append(&((struct client *)userdata)->answer, bytes, size * count);
    return size * count;
}

/* ---- requests ---- */

static void add(struct curl_slist **headers, const char *name, const char *value)
{
    char line[256];
    snprintf(line, sizeof line, *value ? "%s: %s" : "%s;", name, value);
    *headers = curl_slist_append(*headers, line);
}

/* body NULL: a GET; bearer NULL: without */
static int ask(struct client *client, const char *path, const char *bearer, const char *timestamp, const char *body,
               curl_write_callback on_bytes)
{
    struct curl_slist *headers = NULL;
    char url[512], value[192];
    add(&headers, "content-type", "application/json");
    if (bearer) {
        snprintf(value, sizeof value, "Bearer %s", bearer);
        add(&headers, "authorization", value);
    }
    if (timestamp) {
        add(&headers, "origin", client->chats->url);
        add(&headers, "x-auth-appid", "2229");
        add(&headers, "x-auth-openid", "");
        add(&headers, "x-auth-platform", "");
        add(&headers, "x-auth-timestamp", timestamp);
    }
    snprintf(url, sizeof url, "%s%s", client->chats->url, path);
    curl_easy_setopt(client->curl, CURLOPT_URL, url);
    curl_easy_setopt(client->curl, CURLOPT_HTTPHEADER, headers);
    if (body)
        curl_easy_setopt(client->curl, CURLOPT_POSTFIELDS, body);
    else
        curl_easy_setopt(client->curl, CURLOPT_HTTPGET, 1L);
    curl_easy_setopt(client->curl, CURLOPT_WRITEFUNCTION, on_bytes);
    curl_easy_setopt(client->curl, CURLOPT_WRITEDATA, client);
    CURLcode code = curl_easy_perform(client->curl);
    curl_slist_free_all(headers);
    if (code != CURLE_OK)
        fprintf(stderr, "%s: %s\n", url, curl_easy_strerror(code));
    return code != CURLE_OK;
}

static int ask_for_token(struct client *client, const char *path, const char *bearer, const char *timestamp,
                         const char *body, char *token, size_t room)
{
    size_t len;
    client->answer.len = 0;
    if (ask(client, path, bearer, timestamp, body, on_answer) != 0)
        return 1;
    const char *found = string_at(client, TOKEN, client->answer.at, client->answer.len, &len);
    if (!found || len >= room) {
        fprintf(stderr, "no token: %s\n", client->answer.at);
        return 1;
    }
    memcpy(token, found, len + 1);
    return 0;
}

static int chat_gptalk(struct client *client)
{
    char timestamp[32], body[512], token[128], path[512];
    snprintf(timestamp, sizeof timestamp, "%ld", (long)time(NULL));
    if (client->uses_left == 0) {
        const char *login = "{\"fingerprint\":\"0123456789abcdef0123456789abcdef\",\"platform\":\"fingerprint\"}";
        if (ask_for_token(client, "/api/chatgpt/user/login", NULL, timestamp, login, client->login,
                          sizeof client->login))
            return 1;
        client->uses_left = LOGIN_USES;
    }
    client->uses_left--;
    snprintf(body, sizeof body,
             "{\"content\":\"" PROMPT "\",\"accept\":\"stream\",\"from\":1,\"model\":\"gpt-3.5-turbo\",\"is_mobile\":0,"
             "\"user_agent\":\"" USER_AGENT "\",\"is_open_ctx\":0,\"prompt\":\"\",\"roid\":111,\"temperature\":0,"
             "\"ctx_msg_count\":3,\"created_at\":%s}",
             timestamp);
    if (ask_for_token(client, "/api/chatgpt/chatapi/text", client->login, timestamp, body, token, sizeof token))
        return 1;
    char *escaped = curl_easy_escape(client->curl, token, 0);
    snprintf(path, sizeof path, "/api/chatgpt/chatapi/stream?token=%s", escaped);
    curl_free(escaped);
    return ask(client, path, NULL, timestamp, NULL, on_stream);
}

static int chat(void *userdata, struct chats *chats)
{
    struct client *client = userdata;
    int failed;
    client->known = client->line.len = 0;
    client->is_done = 0;
    if (chats->is_openai)
        failed = ask(client, "/v1/chat/completions", NULL, NULL,
                     "{\"messages\":[{\"role\":\"user\",\"content\":\"" PROMPT "\"}],\"stream\":true,"
                     "\"stream_options\":{\"include_usage\":true}}",
                     on_stream);
    else
        failed = chat_gptalk(client);
    return failed || !client->is_done;
}

static void init(void)
{
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

static void *open_client(struct chats *chats)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, init);
    struct client *client = calloc(1, sizeof *client);
    client->chats = chats;
    client->curl = curl_easy_init();
    curl_easy_setopt(client->curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(client->curl, CURLOPT_USERAGENT, USER_AGENT);
    /* The command curl heeds it, the library does not. */
    if (getenv("SSL_CERT_FILE"))
        curl_easy_setopt(client->curl, CURLOPT_CAINFO, getenv("SSL_CERT_FILE"));
    return client;
}

static void close_client(void *userdata)
{
    struct client *client = userdata;
    curl_easy_cleanup(client->curl);
    forget(client);
    free(client->line.at);
    free(client->answer.at);
    free(client);
}
