/* The limit: what the operating system takes to send such requests, and to hand out what comes. Nothing is
 * read of it but where it ends. By address, without TLS. */
#include "measure.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#define LOGIN_USES 5

struct client {
    int socket, uses_left;
    char login[64], stream[64];
    char buffer[256 * 1024];
};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void *open_client(struct chats *chats)
{
    struct client *client = calloc(1, sizeof *client);
    struct sockaddr_in address = {.sin_family = AF_INET};
    unsigned port;
    int on = 1;
    char host[32];
    if (sscanf(chats->url, "http://%31[0-9.]:%u", host, &port) != 2 || inet_pton(AF_INET, host, &address.sin_addr) != 1)
        die(chats->url);
    address.sin_port = htons((uint16_t)port);
    client->socket = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(client->socket, (struct sockaddr *)&address, sizeof address) != 0)
        die("connect");
    setsockopt(client->socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return client;
}

static void ask(struct client *client, const char *line, const char *login, const char *body)
{
    char request[2048];
    int len = snprintf(request, sizeof request,
                       "%s HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer %s\r\n"
                       "content-type: application/json\r\ncontent-length: %zu\r\n\r\n%s",
                       line, login, strlen(body), body);
    if (send(client->socket, request, (size_t)len, 0) != len)
        die("send");
}

/* Receives until the answer ends like that. */
static void receive(struct client *client, struct chats *chats, const char *end)
{
    size_t len = 0, tail = strlen(end);
    for (;;) {
        ssize_t got = recv(client->socket, client->buffer + len, sizeof client->buffer - 1 - len, 0);
        if (got <= 0)
            die("recv");
        if (chats)
            take(chats, client->buffer + len, (size_t)got);
        len += (size_t)got;
        if (len >= tail && memcmp(client->buffer + len - tail, end, tail) == 0)
            break;
        if (len + 1 == sizeof client->buffer) {
            memmove(client->buffer, client->buffer + len - tail, tail);
            len = tail;
        }
    }
    client->buffer[len] = 0;
}

static void ask_for_token(struct client *client, const char *line, const char *body, char *token)
{
    ask(client, line, client->login, body);
    receive(client, NULL, "}");
    const char *found = strstr(client->buffer, "\"token\":\"");
    if (!found || sscanf(found + 9, "%63[^\"]", token) != 1)
        die("no token");
}

static int chat(void *userdata, struct chats *chats)
{
    struct client *client = userdata;
    if (chats->is_openai) {
        ask(client, "POST /v1/chat/completions", "key",
            "{\"messages\":[{\"role\":\"user\",\"content\":\"" PROMPT "\"}],\"stream\":true}");
    } else {
        char line[128];
        if (client->uses_left == 0) {
            ask_for_token(client, "POST /api/chatgpt/user/login",
                          "{\"fingerprint\":\"0123456789abcdef0123456789abcdef\",\"platform\":\"fingerprint\"}",
                          client->login);
            client->uses_left = LOGIN_USES;
        }
        client->uses_left--;
        ask_for_token(client, "POST /api/chatgpt/chatapi/text",
                      "{\"content\":\"" PROMPT "\",\"model\":\"gpt-3.5-turbo\",\"temperature\":0}", client->stream);
        snprintf(line, sizeof line, "GET /api/chatgpt/chatapi/stream?token=%s", client->stream);
        ask(client, line, "", "");
    }
    receive(client, chats, "\r\n0\r\n\r\n");
    return 0;
}

static void close_client(void *userdata)
{
    struct client *client = userdata;
    close(client->socket);
    free(client);
}
