// What gptalk.hpp promises: wrapper NAME URL...
// Compiled more strictly than check.h, which is C.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wsign-conversion"
#include "check.h"
#pragma GCC diagnostic pop

#include <gptalk.hpp>

#include <atomic>
#include <cstdlib>
#include <future>
#include <new>
#include <numeric>
#include <optional>
#if __has_include(<ranges>)
#include <ranges>
#endif
#include <thread>
#include <vector>

// How often the program has allocated. (Inlined, g++ takes them for mismatched.)
static std::atomic<long> allocations{0};

[[gnu::noinline]] void *operator new(std::size_t size)
{
    ++allocations;
    if (void *place = std::malloc(size))
        return place;
    throw std::bad_alloc();
}

[[gnu::noinline]] void operator delete(void *place) noexcept
{
    std::free(place);
}

[[gnu::noinline]] void operator delete(void *place, std::size_t) noexcept
{
    std::free(place);
}

// Of another file, which includes the header too.
bool nothing_runs(const gptalk::client &client);

namespace {

using gptalk::client;
using gptalk::conversation;
using gptalk::stream;

static_assert(!std::is_copy_constructible_v<client> && !std::is_copy_assignable_v<client>);
static_assert(std::is_nothrow_move_constructible_v<client> && std::is_nothrow_move_assignable_v<client>);
static_assert(!std::is_copy_constructible_v<stream> && !std::is_copy_assignable_v<stream>);
static_assert(std::is_nothrow_move_constructible_v<stream> && std::is_nothrow_move_assignable_v<stream>);
static_assert(std::is_nothrow_destructible_v<client> && std::is_nothrow_destructible_v<stream>);
static_assert(std::is_nothrow_copy_constructible_v<gptalk::error>);
static_assert(noexcept(std::declval<const client &>().cancel()) && noexcept(gptalk::cancel()));
#ifdef __cpp_lib_ranges
static_assert(std::ranges::input_range<stream> && std::ranges::viewable_range<stream>);
#endif

#define NOT_REACHED failed(__FILE__, __LINE__, "this is not reached")
#define CHECK_STRING(is, expected) CHECK_TEXT(std::string(is).c_str(), expected)
#define CHECK_GET(client, key, expected) CHECK_TEXT((client).get(key).value_or("(none)").c_str(), expected)

// What the call throws, which has to be an error of that status.
template <class F> gptalk::error thrown(gptalk_status status, F &&call)
{
    try {
        call();
    } catch (const gptalk::error &error) {
        CHECK_INT(error.status(), status);
        CHECK(error.what()[0] != '\0');
        return error;
    }
    NOT_REACHED;
    std::abort();
}

client client_of(const char *url)
{
    return client{{"base_url", url}, {"retries", "0"}};
}

void check_chats(client &client, const char *reply)
{
    std::string text;
    CHECK(client.chat(HI, [&](std::string_view piece) { text += piece; }));
    CHECK_STRING(text, reply);
    CHECK_GET(client, "text", reply);
    CHECK(!client.get("error"));
    CHECK(nothing_runs(client));
}

// Something that counts how many of it there are.
struct counted {
    static int there;
    counted() { ++there; }
    counted(const counted &) { ++there; }
    counted(counted &&) noexcept { ++there; }
    ~counted() { --there; }
};
int counted::there = 0;

// ---- callbacks ----

std::string heard_by_function;

void hear_piece(std::string_view piece)
{
    heard_by_function += piece;
}

struct Counter {
    int pieces = 0;
    void operator()(std::string_view) { ++pieces; }
};

struct Joiner {
    std::string *text;
    bool operator()(std::string_view piece) const
    {
        *text += piece;
        return true;
    }
};

void callbacks(char **args)
{
    client client = client_of(args[0]);

    CHECK(client.chat(HI, hear_piece));
    CHECK_STRING(heard_by_function, SAID_HI);
    CHECK(client.chat(HI, &hear_piece));
    CHECK_STRING(heard_by_function, SAID_HI SAID_HI);

    Counter counter; // not a copy of it
    CHECK(client.chat(HI, counter));
    CHECK_INT(counter.pieces, 3);
    CHECK_INT(client.get_int("pieces"), 3);

    std::string text;
    const Joiner joiner{&text};
    CHECK(client.chat(HI, joiner));
    CHECK_STRING(text, SAID_HI);

    // One that cannot be copied, and takes more than it is given.
    auto owner = std::make_unique<std::string>();
    auto *owned = owner.get();
    CHECK(client.chat(HI, [owner = std::move(owner), owned](const std::string_view &, int = 0) mutable {
        CHECK(owner.get() == owned);
    }));

    CHECK(client.chat(HI));
    CHECK_GET(client, "text", SAID_HI);
    CHECK_GET(client, "finish_reason", "(none)");
    CHECK_INT(client.get_int("total_tokens"), -1);
}

// The service stalls after "Hel", and tells the next chat whether it was left.
void false_cancels(char **args)
{
    client client = client_of(args[0]);
    std::string text;
    CHECK(!client.chat(HI, [&](std::string_view piece) {
        text += piece;
        return false;
    }));
    CHECK_STRING(text, "Hel");
    CHECK_GET(client, "text", "Hel");
    check_chats(client, "closed");
}

// The same by another thread, which presses the button when the chat waits.
void cancel_from_thread(char **args)
{
    client client = client_of(args[0]);
    const gptalk::client &seen_by_button = client;
    CHECK(!seen_by_button.cancel());

    std::promise<void> waits;
    int ticks = 0;
    client.on("tick", [&](std::string_view nothing) {
        CHECK(nothing.empty());
        if (++ticks == 2)
            waits.set_value();
    });
    std::thread button([&] {
        waits.get_future().wait();
        CHECK(seen_by_button.cancel());
    });
    CHECK(!client.chat(HI));
    button.join();
    client.on("tick", nullptr);
    CHECK(!seen_by_button.cancel());
    check_chats(client, "closed");
}

// Many pieces cost no more than few.
void no_allocation_for_a_piece(char **args)
{
    std::string words = "word";
    for (int i = 0; i < 1000; i++)
        words += " word";
    const conversation few = conversation().push("user", "Hi"), many = conversation().push("user", words);
    client client = client_of(args[0]);
    int reasoned = 0;
    std::int64_t pieces = 0;
    client.on("reasoning", [&](std::string_view) { ++reasoned; });

    const auto cost = [&](const conversation &talk) {
        const long before = allocations;
        CHECK(client.chat(talk, [&](std::string_view) { ++pieces; }));
        for (std::string_view piece : client.stream(talk))
            pieces += !piece.empty();
        return allocations - before;
    };
    CHECK_INT(cost(few), cost(many));
    CHECK(pieces > 2000);
}

// ---- errors ----

// args: a service that asks to wait, one that cuts the reply, one that is well
void errors(char **args)
{
    client client = client_of(args[0]);
    auto slow_down = thrown(GPTALK_RATE_LIMIT, [&] { client.chat(HI); });
    CHECK_GET(client, "error", slow_down.what());
    CHECK_STRING(slow_down.code(), "slow_down");
    CHECK_INT(slow_down.http_status(), 429);
    CHECK_INT(slow_down.retry_after_ms(), 7000);
    CHECK(slow_down.retryable());

    // A copy is as good, also when the client has gone on.
    client.set("base_url", args[1]);
    const gptalk::error kept = slow_down;
    std::string text;
    const auto listen = [&](std::string_view piece) { text += piece; };
    const auto cut = thrown(GPTALK_TRUNCATED, [&] { client.chat(HI, listen); });
    CHECK_STRING(text, "Hel");
    CHECK_GET(client, "text", "Hel");
    CHECK_INT(cut.http_status(), 200);
    CHECK_INT(cut.retry_after_ms(), -1);
    CHECK(!cut.retryable());
    CHECK_STRING(kept.code(), "slow_down");
    CHECK_TEXT(kept.what(), slow_down.what());

    const auto no_json = thrown(GPTALK_MISUSE, [&] { client.chat("Hi"); });
    CHECK(strstr(no_json.what(), "not valid JSON") != nullptr);
    CHECK_STRING(no_json.code(), "");
    CHECK_INT(no_json.http_status(), -1);
    thrown(GPTALK_MISUSE, [&] { client.stream("Hi"); });
    thrown(GPTALK_MISUSE, [&] { client.chat(std::string("[]\0", 3)); });
    CHECK(nothing_runs(client));

    client.set("base_url", args[2]);
    check_chats(client, SAID_HI);

    // What was refused is no chat's failure.
    const auto no_option = thrown(GPTALK_MISUSE, [&] { client.set("bass_url", "x"); });
    CHECK(strstr(no_option.what(), "bass_url") != nullptr);
    CHECK_INT(no_option.http_status(), -1);
    const auto no_channel = thrown(GPTALK_MISUSE, [&] { client.on("tock", hear_piece); });
    CHECK(strstr(no_channel.what(), "tock") != nullptr);
    thrown(GPTALK_MISUSE, [&] { client.on("tock", nullptr); });
    CHECK_INT(client.get_int("http_status"), 200);
    check_chats(client, SAID_HI);
}

void busy(char **args)
{
    client client = client_of(args[0]);
    int pieces = 0;
    CHECK(client.chat(HI, [&](std::string_view) {
        ++pieces;
        const auto error = thrown(GPTALK_BUSY, [&] { client.chat(HI); });
        CHECK(strstr(error.what(), "clone") != nullptr);
        CHECK_INT(error.http_status(), -1);
        thrown(GPTALK_BUSY, [&] { client.stream(HI); });
        CHECK(!client.get("error"));
        gptalk::client other = client.clone();
        check_chats(other, SAID_HI);
    }));
    CHECK_INT(pieces, 3);

    auto reply = client.stream(HI);
    thrown(GPTALK_BUSY, [&] { client.chat(HI); });
    CHECK(!reply.finish());
    check_chats(client, SAID_HI);
}

// ---- exceptions of the callbacks ----

// Nothing of std, and nothing that can be copied by mistake.
struct Boom {
    int number;
};

void exceptions(char **args)
{
    client client = client_of(args[0]);
    try {
        client.chat(HI, [](std::string_view piece) {
            const counted witness;
            CHECK_STRING(piece, "Hel");
            throw Boom{7};
        });
        NOT_REACHED;
    } catch (const Boom &boom) {
        CHECK_INT(boom.number, 7);
    }
    CHECK_INT(counted::there, 0);
    CHECK(nothing_runs(client));
    CHECK_GET(client, "text", "Hel");
    check_chats(client, "closed");

    // An error of the library's own, of another client's, is one like any other.
    auto failing = client.clone();
    failing.set("base_url", "127.0.0.1:1");
    const auto network = thrown(GPTALK_NETWORK, [&] {
        client.chat(HI, [&](std::string_view) { failing.chat(HI); });
    });
    CHECK_STRING(network.code(), "connect");
    CHECK(!client.cancel());
    check_chats(client, "closed");
}

void exceptions_of_channels(char **args)
{
    client client = client_of(args[0]);
    for (const char *channel : {"log", "event"}) {
        client.on(channel, [](std::string_view) { throw Boom{1}; });
        for (const bool is_pulled : {false, true}) {
            int caught = 0;
            try {
                if (!is_pulled)
                    client.chat(HI);
                else
                    for (std::string_view piece : client.stream(HI))
                        (void)piece;
            } catch (const Boom &boom) {
                caught += boom.number;
            }
            CHECK_INT(caught, 1);
            CHECK(nothing_runs(client));
        }
        client.on(channel, nullptr);
        check_chats(client, SAID_HI);
    }
}

// A stream that an exception has ended has no part in the client's next chat.
void stream_after_an_exception(char **args)
{
    client client = client_of(args[0]);
    client.on("event", [](std::string_view) { throw Boom{1}; });
    std::optional<stream> first(client.stream(HI));
    int caught = 0;
    try {
        first->begin();
    } catch (const Boom &) {
        ++caught;
    }
    CHECK_INT(caught, 1);
    client.on("event", nullptr);

    auto second = client.stream(HI);
    auto piece = second.begin();
    CHECK_STRING(*piece, "You ");
    CHECK(first->begin() == first->end());
    CHECK(!first->finish());
    first.reset();
    std::string text;
    for (; piece != second.end(); ++piece)
        text += *piece;
    CHECK_STRING(text, SAID_HI);
    CHECK(second.finish());
}

// ---- the pull form ----

void pull(char **args)
{
    client client = client_of(args[0]);
    std::vector<std::string> pieces;
    for (std::string_view piece : client.stream(HI)) {
        CHECK_INT(piece.data()[piece.size()], '\0');
        pieces.emplace_back(piece);
    }
    CHECK(pieces == std::vector<std::string>({"You ", "said: ", "Hi"}));
    CHECK_GET(client, "text", SAID_HI);
    CHECK(nothing_runs(client));

    // The outcome is kept by a stream that has a name; its end leaves the client free.
    auto reply = client.stream(HI);
    CHECK(client.cancel() && !reply.finish());
    reply = client.stream(HI);
    const auto length = [](std::size_t so_far, std::string_view piece) { return so_far + piece.size(); };
    CHECK(std::accumulate(reply.begin(), reply.end(), std::size_t{0}, length) == strlen(SAID_HI));
    check_chats(client, SAID_HI);
    CHECK(reply.finish());
    CHECK(reply.begin() == reply.end());

    // Cancelled is an end like any other.
    auto stopped = client.stream(HI);
    int seen = 0;
    for (std::string_view piece : stopped) {
        CHECK_STRING(piece, "You ");
        CHECK(client.cancel());
        ++seen;
    }
    CHECK_INT(seen, 1);
    CHECK(!stopped.finish());
    CHECK_GET(client, "text", "You ");
    check_chats(client, SAID_HI);
}

// args: a service that cuts the reply, one that is well
void pull_fails(char **args)
{
    client client = client_of(args[0]);
    auto reply = client.stream(HI);
    auto piece = reply.begin();
    CHECK_STRING(*piece, "Hel");
    const auto error = thrown(GPTALK_TRUNCATED, [&] { ++piece; });
    CHECK_GET(client, "error", error.what());
    CHECK(nothing_runs(client));
    // It is said once.
    ++piece;
    CHECK(piece == reply.end());
    CHECK(!reply.finish());

    client.set("base_url", "127.0.0.1:1");
    auto refused = client.stream(HI);
    const auto network = thrown(GPTALK_NETWORK, [&] { refused.begin(); });
    CHECK_STRING(network.code(), "connect");
    client.set("base_url", args[1]);
    check_chats(client, SAID_HI);
    CHECK(!refused.finish());
}

// The service stalls after "Hel"; args[1]: how the stream is left
void pull_left(char **args)
{
    const std::string way = args[1];
    client client = client_of(args[0]);
    if (way == "break") {
        for (std::string_view piece : client.stream(HI)) {
            CHECK_STRING(piece, "Hel");
            break;
        }
    } else if (way == "throw") {
        try {
            for (std::string_view piece : client.stream(HI))
                throw Boom{static_cast<int>(piece.size())};
        } catch (const Boom &boom) {
            CHECK_INT(boom.number, 3);
        }
    } else if (way == "finish") {
        auto reply = client.stream(HI);
        CHECK_STRING(*reply.begin(), "Hel");
        CHECK(!reply.finish());
        CHECK_GET(client, "text", "Hel");
        check_chats(client, "closed");
    } else if (way == "assign") {
        auto reply = client.stream(HI);
        CHECK_STRING(*reply.begin(), "Hel");
        auto other = client.clone();
        reply = other.stream(HI);
        check_chats(client, "closed");
        CHECK_STRING(*reply.begin(), "closed");
    }
    CHECK(nothing_runs(client));
    check_chats(client, "closed");
}

// A stream that nobody pulls sends nothing, and leaves the client free.
void pull_forgotten(char **args)
{
    client client = client_of(args[0]);
    client.stream(HI);
    {
        const auto reply = client.stream(HI);
        CHECK(!nothing_runs(client));
    }
    CHECK(nothing_runs(client));
    auto reply = client.stream(HI);
    CHECK(!reply.finish());
    CHECK(!reply.finish());
}

void pull_moved(char **args)
{
    client client = client_of(args[0]);
    stream first = client.stream(HI);
    CHECK_STRING(*first.begin(), "You ");
    stream second = std::move(first);
    CHECK(!first.finish()); // it has nothing left to end
    CHECK(first.begin() == first.end());
    gptalk::client moved = std::move(client);
    std::string text;
    for (std::string_view piece : second) // goes on
        text += piece;
    CHECK_STRING(text, "said: Hi");
    CHECK(second.finish());
    check_chats(moved, SAID_HI);
}

void pull_outlives_client(char **args)
{
    std::string text;
    std::optional<client> own(client_of(args[0]));
    own->on("event", [&, witness = counted()](std::string_view) { text += "."; });
    stream reply = own->stream(HI);
    own.reset();
    CHECK_INT(counted::there, 1);
    for (std::string_view piece : reply)
        text += piece;
    CHECK_STRING(text, ".You .said: .Hi");
    CHECK_INT(counted::there, 0);
    CHECK(reply.finish());

    text.clear();
    for (std::string_view piece : client_of(args[0]).stream(HI))
        text += piece;
    CHECK_STRING(text, SAID_HI);
}

// ---- channels ----

// The service thinks, and takes its time for that.
void channels(char **args)
{
    client client{{"protocol", "openai"}, {"base_url", args[0]}};
    std::string thoughts;
    int ticks = 0, events = 0, lines = 0;
    client.on("reasoning", [&](std::string_view thought) { thoughts += thought; });
    client.on("tick", [&](std::string_view) { return ++ticks > 0; });
    client.on("event", [&](std::string_view json) { events += json.front() == '{'; });
    client.on("log", [&](std::string_view) { ++lines; });
    check_chats(client, "Hello");
    CHECK_STRING(thoughts, "Let me see.");
    CHECK_GET(client, "reasoning", "Let me see.");
    CHECK(ticks > 0 && events > 2 && lines > 0);

    // They go with the client, and a clone has none.
    gptalk::client moved = std::move(client);
    thoughts.clear();
    check_chats(moved, "Hello");
    CHECK_STRING(thoughts, "Let me see.");
    auto other = moved.clone();
    thoughts.clear();
    check_chats(other, "Hello");
    CHECK_STRING(thoughts, "");

    moved.on("reasoning", [](std::string_view) { return false; });
    CHECK(!moved.chat(HI));
    CHECK_STRING(thoughts, "");
    moved.on("reasoning", nullptr);
    check_chats(moved, "Hello");
}

void channels_are_owned(char **args)
{
    {
        client client = client_of(args[0]);
        int events = 0;
        const auto counter = [&, witness = counted()](std::string_view) { ++events; };
        client.on("event", counter);
        client.on("log", counter);
        CHECK_INT(counted::there, 3);
        client.on("log", hear_piece);
        CHECK_INT(counted::there, 2);
        CHECK(!client.get("error"));
        thrown(GPTALK_MISUSE, [&] { client.on("tock", counter); });
        CHECK_INT(counted::there, 2);
        check_chats(client, SAID_HI);
        CHECK_INT(events, 3);

        // It may remove itself, and put another in its place.
        client.on("event", [&client, witness = counted(), text = std::string("event")](std::string_view) {
            CHECK_INT(counted::there, 2);
            client.on(text, nullptr);
            CHECK_INT(counted::there, 2); // which runs still
            client.on(text, [](std::string_view) {});
            CHECK_STRING(text, "event");
        });
        CHECK_INT(counted::there, 2);
        check_chats(client, SAID_HI);
        CHECK_INT(counted::there, 1);
        client.on("event", counter);
        client = client_of(args[0]);
        CHECK_INT(counted::there, 1);
        check_chats(client, SAID_HI);
        CHECK_INT(events, 3);
    }
    CHECK_INT(counted::there, 0);

    // One that was removed is not called any more, at once.
    for (const char *channel : {"event", "log"}) {
        client client = client_of(args[0]);
        int calls = 0;
        client.on(channel, [&](std::string_view) {
            ++calls;
            client.on(channel, nullptr);
        });
        check_chats(client, SAID_HI);
        CHECK_INT(calls, 1);
    }
}

// ---- clients ----

// args: a service; another
void moved_from(char **args)
{
    gptalk::set("base_url", args[1]);
    client first = client_of(args[0]);
    client second = std::move(first);
    bool is_one_liner_complete = gptalk::chat(HI, [&](std::string_view) {
        CHECK(!first.cancel()); // nor the one-liner that runs
    });
    CHECK(is_one_liner_complete);
    CHECK(gptalk::get("text") && !second.get("text"));

    thrown(GPTALK_MISUSE, [&] { first.chat(HI); });
    thrown(GPTALK_MISUSE, [&] { first.stream(HI); });
    thrown(GPTALK_MISUSE, [&] { first.set("base_url", args[0]); });
    thrown(GPTALK_MISUSE, [&] { first.on("log", hear_piece); });
    thrown(GPTALK_MISUSE, [&] { first.on("log", nullptr); });
    thrown(GPTALK_MISUSE, [&] { first.get("text"); });
    thrown(GPTALK_MISUSE, [&] { first.get_int("pieces"); });
    const auto error = thrown(GPTALK_MISUSE, [&] { first.clone(); });
    CHECK(strstr(error.what(), "moved") != nullptr);

    // The process's own options and outcome were not touched.
    CHECK(!gptalk::get("error"));
    CHECK(gptalk::chat(HI));
    CHECK_STRING(gptalk::get("url").value().substr(0, strlen(args[1])), args[1]);
    first = std::move(second);
    check_chats(first, SAID_HI);
}

void gone_in_callback(char **args)
{
    // Destroyed: the chat goes on to its end.
    std::optional<client> own(client_of(args[0]));
    std::string text;
    own->on("event", [&, witness = counted()](std::string_view) { text += "."; });
    CHECK(own->chat(HI, [&](std::string_view piece) {
        own.reset();
        text += piece;
    }));
    CHECK_STRING(text, ".You .said: .Hi");
    CHECK_INT(counted::there, 0);

    // Destroyed by a channel, which is destroyed with it.
    for (const bool is_pulled : {false, true}) {
        own.emplace(client_of(args[0]));
        text.clear();
        own->on("event", [&own, witness = counted()](std::string_view) {
            own.reset();
            CHECK_INT(counted::there, 1);
        });
        if (!is_pulled)
            CHECK(own->chat(HI, [&](std::string_view piece) { text += piece; }));
        else
            for (std::string_view piece : own->stream(HI))
                text += piece;
        CHECK_STRING(text, SAID_HI);
        CHECK_INT(counted::there, 0);
    }

    // Moved, and destroyed with an exception.
    client first = client_of(args[0]);
    std::optional<client> second;
    CHECK(first.chat(HI, [&](std::string_view) {
        if (!second)
            second = std::move(first);
    }));
    check_chats(*second, SAID_HI);
    try {
        second->chat(HI, [&](std::string_view) {
            second.reset();
            throw Boom{3};
        });
        NOT_REACHED;
    } catch (const Boom &boom) {
        CHECK_INT(boom.number, 3);
    }
}

// The service wants the header X-Who; the tests look at what it was sent.
void options(char **args)
{
    const std::string url = args[0];
    gptalk::set("base_url", "127.0.0.1:1");
    client client{{"base_url", url}, {"header", "X-Who: me"}, {"temperature", "0.5"}};
    check_chats(client, SAID_HI);
    client.set("header", std::nullopt);
    client.set("temperature", std::nullopt);
    client.set("model", std::string("a-model"));
    check_chats(client, SAID_HI);

    // What C calls no value unsets it, too.
    const char *no_value = std::getenv("NO_SUCH_VARIABLE");
    client.set("retries", "0");
    client.set("base_url", no_value);
    thrown(GPTALK_NETWORK, [&] { client.chat(HI); }); // of the process's default
    client.set("base_url", url.c_str());
    gptalk::set("base_url", no_value);

    // What cannot be used leaves nothing behind.
    thrown(GPTALK_MISUSE, [&] { gptalk::client{{"base_url", url}, {"retries", "many"}}; });
    const auto nul = thrown(GPTALK_MISUSE, [&] { client.set("model", std::string("a\0b", 3)); });
    CHECK(strstr(nul.what(), "NUL") != nullptr);
    const std::string key("model\0x", 7);
    thrown(GPTALK_MISUSE, [&] { client.set(key, "x"); });
    thrown(GPTALK_MISUSE, [&] { client.get(key); });
    thrown(GPTALK_MISUSE, [&] { client.get_int(std::string("pieces\0x", 8)); });
    thrown(GPTALK_MISUSE, [&] { client.on(std::string("log\0x", 5), hear_piece); });
    check_chats(client, SAID_HI);
}

void clones_on_threads(char **args)
{
    const client client = client_of(args[0]);
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; i++)
        threads.emplace_back([&client] {
            auto own = client.clone();
            for (int chats = 0; chats < 5; chats++)
                check_chats(own, SAID_HI);
        });
    for (auto &thread : threads)
        thread.join();
}

// ---- conversations ----

void conversations(char **args)
{
    client client = client_of(args[0]);
    conversation talk;
    talk.push("system", "Be \"brief\".").push("user", "Hi");
    CHECK(client.chat(talk));
    talk.push(client.get("message").value()).push("user", "Привет 🙂\n");
    CHECK(client.chat(talk));

    const std::string before = talk;
    conversation restored(before);
    CHECK(client.chat(restored.push(client.get("message").value())));

    // What cannot be pushed leaves the conversation as it was.
    thrown(GPTALK_MISUSE, [&] { talk.push("user", "\xff"); });
    thrown(GPTALK_MISUSE, [&] { talk.push("user", std::string("a\0b", 3)); });
    thrown(GPTALK_MISUSE, [&] { talk.push("no message"); });
    CHECK_STRING(talk, before.c_str());
    thrown(GPTALK_MISUSE, [&] { conversation("no list").push("user", "Hi"); });
    CHECK_STRING(std::string(conversation()), "[]");

    // What came of a temporary lives on.
    const std::string &text = conversation().push("user", "Hi");
    const std::string &of_message = conversation().push(R"({"role":"user","content":"Hi"})");
    auto &&moved = conversation().push("user", "Hi");
    const conversation kept = conversation().push("user", "Hi");
    CHECK_STRING(text, HI);
    CHECK_STRING(of_message, HI);
    CHECK_STRING(moved, HI);
    CHECK_STRING(kept, HI);
    std::string assigned;
    assigned = conversation().push("user", "Hi");
    CHECK_STRING(assigned, HI);
    CHECK(client.chat(kept) && client.chat(conversation().push("user", "Hi")));

    conversation tools(R"([{"role":"assistant","tool_calls":[{"id":"call_a","function":{"name":"f"}}]}])");
    const std::string &with_result = tools.push("tool", "18 °C");
    CHECK(with_result.find(R"("tool_call_id":"call_a")") != std::string::npos);
}

void one_liner(char **args)
{
    gptalk::set("base_url", args[0]);
    std::string text;
    CHECK(gptalk::chat(conversation().push("user", "Hi"), [&](std::string_view piece) { text += piece; }));
    CHECK_STRING(text, SAID_HI);
    CHECK_INT(gptalk::get_int("pieces"), 3);
    CHECK(gptalk::chat(HI));
    CHECK_TEXT(gptalk::get("text").value().c_str(), SAID_HI);
    CHECK(!gptalk::get("error"));

    CHECK(!gptalk::cancel());
    CHECK(!gptalk::chat(HI, [](std::string_view) { CHECK(gptalk::cancel()); }));
    CHECK(!gptalk::chat(HI, [](std::string_view) { return false; }));
    CHECK_TEXT(gptalk::get("text").value().c_str(), "You ");

    const auto error = thrown(GPTALK_MISUSE, [] { gptalk::chat("Hi"); });
    CHECK_TEXT(gptalk::get("error").value().c_str(), error.what());
    thrown(GPTALK_MISUSE, [] { gptalk::set("retries", "many"); });
    try {
        gptalk::chat(HI, [](std::string_view) { throw Boom{5}; });
        NOT_REACHED;
    } catch (const Boom &boom) {
        CHECK_INT(boom.number, 5);
    }
    gptalk::set("base_url", std::nullopt);
}

void embedded_nul(char **args)
{
    client client = client_of(args[0]);
    std::string text;
    CHECK(client.chat(HI, [&](std::string_view piece) { text += piece; }));
    CHECK(text.size() == 3);
    CHECK(client.get("text") == text);
    for (std::string_view piece : client.stream(HI))
        CHECK(piece == text);
}

// What valgrind is to look at: all that wants no more than a service that is well.
void every_way(char **args)
{
    char *urls[] = {args[0], args[0], nullptr};
    for (const auto check : {callbacks, busy, exceptions_of_channels, stream_after_an_exception, pull,
                             pull_forgotten, pull_moved, pull_outlives_client, channels_are_owned, moved_from,
                             gone_in_callback, options, conversations, one_liner})
        check(urls);
}

const promise promises[] = {
    {"callbacks", callbacks},
    {"false_cancels", false_cancels},
    {"cancel_from_thread", cancel_from_thread},
    {"no_allocation_for_a_piece", no_allocation_for_a_piece},
    {"errors", errors},
    {"busy", busy},
    {"exceptions", exceptions},
    {"exceptions_of_channels", exceptions_of_channels},
    {"stream_after_an_exception", stream_after_an_exception},
    {"pull", pull},
    {"pull_fails", pull_fails},
    {"pull_left", pull_left},
    {"pull_forgotten", pull_forgotten},
    {"pull_moved", pull_moved},
    {"pull_outlives_client", pull_outlives_client},
    {"channels", channels},
    {"channels_are_owned", channels_are_owned},
    {"moved_from", moved_from},
    {"gone_in_callback", gone_in_callback},
    {"options", options},
    {"clones_on_threads", clones_on_threads},
    {"conversations", conversations},
    {"one_liner", one_liner},
    {"embedded_nul", embedded_nul},
    {"every_way", every_way},
};

} // namespace

int main(int argc, char **argv)
{
    return KEEP(promises);
}
