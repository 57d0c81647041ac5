// Exceptions pass through every callback, and leave the client in order: contract NAME URL...
#include "check.h"

#include <stdexcept>
#include <string>

namespace {

// Counts how often it is destroyed: what stands on the stack that is unwound.
struct Witness {
    static int gone;
    ~Witness() { ++gone; }
};
int Witness::gone = 0;

struct Thrower {
    gptalk_client *client;
    std::string phase; // a part of the URL that is waited on; empty: anywhere
    int at;            // the call at which to throw
    int calls = 0;
};

int throws(const char *text, size_t, void *userdata)
{
    Thrower *thrower = static_cast<Thrower *>(userdata);
    const char *url = gptalk_get(thrower->client, "url");
    if (url != nullptr && std::string(url).find(thrower->phase) != std::string::npos
        && ++thrower->calls == thrower->at) {
        Witness witness;
        throw std::runtime_error(std::string("thrown at \"") + text + "\"");
    }
    return 0;
}

// What a chat throws; empty if it does not.
std::string thrown(gptalk_client *client, gptalk_callback cb, void *userdata)
{
    try {
        gptalk_client_chat(client, HI, cb, userdata);
    } catch (const std::runtime_error &error) {
        return error.what();
    }
    return "";
}

void check_left(gptalk_client *client, const char *text)
{
    CHECK_TEXT(gptalk_get(client, "text"), text);
    CHECK_INT(gptalk_cancel(client), 0); // nothing runs any more
    check_chat(client, "closed");
}

// The service stalls after "Hel", and tells the next chat whether it was left.
void throw_from_text(char **args)
{
    gptalk_client *client = client_at(args[0]);
    Thrower thrower{client, "", 1};
    CHECK_TEXT(thrown(client, throws, &thrower).c_str(), "thrown at \"Hel\"");
    CHECK_INT(thrower.calls, 1);
    CHECK_INT(Witness::gone, 1);
    check_left(client, "Hel");
    gptalk_client_free(client);
}

// args: URL of a service that stalls before a header, a part of that request's URL
void throw_from_tick(char **args)
{
    gptalk_client *client = client_at(args[0]);
    Thrower thrower{client, args[1], 3};
    gptalk_on(client, "tick", throws, &thrower);
    CHECK_TEXT(thrown(client, nullptr, nullptr).c_str(), "thrown at \"\"");
    gptalk_on(client, "tick", nullptr, nullptr);
    CHECK_INT(thrower.calls, 3);
    check_left(client, "");
    gptalk_client_free(client);
}

// The same in the pull form.
void throw_from_tick_while_pulling(char **args)
{
    gptalk_client *client = client_at(args[0]);
    Thrower thrower{client, args[1], 3};
    std::string what;
    gptalk_on(client, "tick", throws, &thrower);
    CHECK_STATUS(client, gptalk_start(client, HI), GPTALK_OK);
    try {
        while (gptalk_next(client, nullptr) != nullptr) {
        }
    } catch (const std::runtime_error &error) {
        what = error.what();
    }
    CHECK_TEXT(what.c_str(), "thrown at \"\"");
    gptalk_on(client, "tick", nullptr, nullptr);
    CHECK_TEXT(gptalk_next(client, nullptr), nullptr);
    CHECK_STATUS(client, gptalk_finish(client), GPTALK_CANCELLED);
    CHECK_TEXT(gptalk_get(client, "text"), std::string(args[1]) == "stream" ? "Hel" : "");
    check_chat(client, "closed");
    gptalk_client_free(client);
}

int throw_at_once(const char *, size_t, void *)
{
    throw std::runtime_error("at once");
}

// args: URL; the channels that bring something, one after the other
void throw_from_channels(char **args)
{
    gptalk_client *client = client_at(args[0]);
    for (const char *channel : {"log", "event"}) {
        gptalk_on(client, channel, throw_at_once, nullptr);
        CHECK_TEXT(thrown(client, nullptr, nullptr).c_str(), "at once");
        gptalk_on(client, channel, nullptr, nullptr);
        check_chat(client, SAID_HI);
    }
    gptalk_client_free(client);
}

// The one-liner: its outcome is this thread's, though the chat inside the callback was the last.
int chat_and_throw(const char *, size_t, void *)
{
    CHECK_STATUS(nullptr, gptalk_chat("[{\"role\":\"user\",\"content\":\"Ho\"}]", nullptr, nullptr), GPTALK_OK);
    throw std::runtime_error("after a chat");
}

void throw_from_one_liner(char **args)
{
    gptalk_set(nullptr, "base_url", args[0]);
    std::string what;
    try {
        gptalk_chat(HI, chat_and_throw, nullptr);
    } catch (const std::runtime_error &error) {
        what = error.what();
    }
    CHECK_TEXT(what.c_str(), "after a chat");
    CHECK_TEXT(gptalk_get(nullptr, "text"), "You ");
    CHECK_INT(gptalk_cancel(nullptr), 0);
    CHECK_STATUS(nullptr, gptalk_chat(HI, nullptr, nullptr), GPTALK_OK);
}

// A callback frees its client and throws: nobody is left to ask, and nothing is leaked.
int free_and_throw(const char *, size_t, void *client)
{
    gptalk_client_free(static_cast<gptalk_client *>(client));
    throw std::runtime_error("freed");
}

void throw_after_free(char **args)
{
    gptalk_client *client = client_at(args[0]), *other = client_at(args[0]);
    CHECK_TEXT(thrown(client, free_and_throw, client).c_str(), "freed");
    check_chat(other, SAID_HI);
    gptalk_client_free(other);
}

const promise promises[] = {
    {"throw_from_text", throw_from_text},
    {"throw_from_tick", throw_from_tick},
    {"throw_from_tick_while_pulling", throw_from_tick_while_pulling},
    {"throw_from_channels", throw_from_channels},
    {"throw_from_one_liner", throw_from_one_liner},
    {"throw_after_free", throw_after_free},
};

} // namespace

int main(int argc, char **argv)
{
    return KEEP(promises);
}
