/* The library through its C functions. */
#include "measure.h"

#include <gptalk.h>

static int on_text(const char *text, size_t len, void *userdata)
{
    take(userdata, text, len);
    return 0;
}

static void *open_client(struct chats *chats)
{
    gptalk_client *client = gptalk_client_new();
    gptalk_set(client, "protocol", chats->is_openai ? "openai" : "gptalk");
    gptalk_set(client, "base_url", chats->url);
    gptalk_on(client, "reasoning", on_text, chats);
    return client;
}

static int chat(void *client, struct chats *chats)
{
    gptalk_status status =
        gptalk_client_chat(client, "[{\"role\":\"user\",\"content\":\"" PROMPT "\"}]", on_text, chats);
    if (status != GPTALK_OK)
        fprintf(stderr, "%s\n", gptalk_get(client, "error"));
    return status != GPTALK_OK;
}

static void close_client(void *client)
{
    gptalk_client_free(client);
}
