/**
 * @file gptalk.hpp
 * gptalk.h for C++17: the same names, with objects that clean up, lambdas and exceptions.
 *
 * ```cpp
 * gptalk::client client{{"base_url", "http://127.0.0.1:8080"}};
 * gptalk::conversation talk;
 * talk.push("system", "Be brief.").push("user", "Hi");
 * client.chat(talk, [](std::string_view piece) { std::cout << piece << std::flush; });
 * talk.push(client.get("message").value()).push("user", "Why?");
 * for (std::string_view piece : client.stream(talk))
 *     std::cout << piece << std::flush;
 * ```
 *
 * The manual is gptalk.h: the options, the channels, the keys of the outcome. What differs:
 *
 * Errors: what may fail throws gptalk::error, for GPTALK_BUSY and GPTALK_MISUSE too. A chat that was
 * cancelled has not failed, since somebody wanted that: chat() and finish() return false.
 *
 * Callbacks: anything that takes a std::string_view, which is valid during the call only. It returns
 * nothing, or a bool: true to go on, false to cancel the chat. What it throws ends the chat and comes
 * out of chat(), or of the stream, as it was; the client is ready for the next chat.
 *
 * Threads: a client, with its streams, is for one thread at a time. Meanwhile others may clone() it
 * for themselves, and cancel(), which a signal handler may too.
 *
 * Lifetimes: a callback may move or destroy its own client, and a stream may outlive its client. A
 * client that was moved from throws GPTALK_MISUSE; its cancel() finds nothing.
 */

#ifndef GPTALK_HPP
#define GPTALK_HPP

#include "gptalk.h"

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace gptalk {

/// Why a call failed. what() is the library's sentence: what happened, to which URL, what to do.
class error : public std::runtime_error {
public:
    /// For callers that report failures of their own in the same way.
    error(gptalk_status status, const std::string &sentence, const std::string &code = "",
          std::int64_t http_status = -1, std::int64_t retry_after_ms = -1, bool retryable = false)
        : std::runtime_error(sentence), status_(status), code_(code), http_status_(http_status),
          retry_after_ms_(retry_after_ms), retryable_(retryable)
    {
    }

    /// What kind of failure; an unknown value is of a later library.
    gptalk_status status() const noexcept { return status_; }
    /// The "error_code"; empty where there is none.
    std::string_view code() const noexcept { return code_.what(); }
    /// Of the last answer; -1 where there was none, or where it was no chat that failed.
    std::int64_t http_status() const noexcept { return http_status_; }
    /// How long the service asked to wait; -1 where it did not.
    std::int64_t retry_after_ms() const noexcept { return retry_after_ms_; }
    /// Nothing was delivered, and another try may help.
    bool retryable() const noexcept { return retryable_; }

private:
    gptalk_status status_;
    std::runtime_error code_; // a text whose copies cannot throw, which an exception's may not
    std::int64_t http_status_, retry_after_ms_;
    bool retryable_;
};

/// Not for use from outside. A client that is NULL is the process's defaults and the one-liners.
namespace detail {

/// The C side would take a text to end at a NUL, without a word.
inline const char *c_str(const std::string &text)
{
    if (text.find('\0') != std::string::npos)
        throw error(GPTALK_MISUSE, "a text for gptalk has a NUL in it");
    return text.c_str();
}

inline std::optional<std::string> get(const gptalk_client *client, const std::string &key)
{
    const std::int64_t len = key == "text" ? gptalk_get_int(client, "text_len") : -1; // it may hold NULs
    const char *text = gptalk_get(client, c_str(key));
    if (text == nullptr)
        return std::nullopt;
    return len < 0 ? std::string(text) : std::string(text, static_cast<std::size_t>(len));
}

/// The outcome of gptalk_set() and gptalk_on(), which says nothing of a chat.
inline void accepted(const gptalk_client *client, gptalk_status status)
{
    if (status != GPTALK_OK)
        throw error(status, get(client, "error").value_or(""));
}

inline std::int64_t get_int(const gptalk_client *client, const std::string &key)
{
    return gptalk_get_int(client, c_str(key));
}

inline void set(gptalk_client *client, const std::string &key, const char *value)
{
    accepted(client, gptalk_set(client, c_str(key), value));
}

/// The outcome of a chat: whether the reply is complete.
inline bool complete(const gptalk_client *client, gptalk_status status)
{
    if (status == GPTALK_OK || status == GPTALK_CANCELLED)
        return status == GPTALK_OK;
    if (status == GPTALK_BUSY) // what there is to get is of the chat that runs
        throw error(status, "this client is in a chat already: clone it for another");
    throw error(status, get(client, "error").value_or(""), get(client, "error_code").value_or(""),
                gptalk_get_int(client, "http_status"), gptalk_get_int(client, "retry_after_ms"),
                gptalk_get_int(client, "retryable") == 1);
}

/// Calls back. As C wants it: 0 to go on.
template <class F> int call(F &callback, std::string_view text)
{
    static_assert(std::is_invocable_v<F &, std::string_view>, "a callback takes a std::string_view");
    using result = std::invoke_result_t<F &, std::string_view>;
    static_assert(std::is_void_v<result> || std::is_same_v<result, bool>,
                  "a callback returns nothing, or a bool: true to go on, false to cancel");
    if constexpr (std::is_void_v<result>) {
        callback(text);
        return 0;
    } else {
        return callback(text) ? 0 : 1;
    }
}

/// userdata: a pointer to a pointer to the callback, which may be a plain function.
template <class F> int on_text(const char *text, std::size_t len, void *userdata)
{
    return call(**static_cast<F **>(userdata), std::string_view(text, len));
}

/// A callback of any type.
struct channel {
    std::shared_ptr<void> callback;
    int (*call)(void *callback, std::string_view text) = nullptr; // none: removed
};

/// userdata: the channel.
inline int on_channel(const char *text, std::size_t len, void *userdata)
{
    const channel now = *static_cast<channel *>(userdata); // the callback may remove itself
    return now.call == nullptr ? 0 : now.call(now.callback.get(), std::string_view(text, len));
}

/// The library's client and the callbacks it has. A chat that runs holds it too.
struct core {
    gptalk_client *const handle;
    std::map<std::string, channel> channels; // in places that stay

    core() : core(gptalk_client_new()) {}
    core(const core &other) : core(gptalk_client_clone(other.handle)) {}
    core &operator=(const core &) = delete;
    ~core() { gptalk_client_free(handle); }

private:
    explicit core(gptalk_client *made) : handle(made)
    {
        if (made == nullptr)
            throw error(GPTALK_INTERNAL, "gptalk could not make a client");
    }
};

} // namespace detail

/// What was said so far, as the JSON that chat() sends.
class conversation {
public:
    /// An array of messages, which push() and chat() read.
    explicit conversation(std::string msgs_json = "[]") : json_(std::move(msgs_json)) {}

    /// Adds a message; see gptalk_push().
    conversation &push(const std::string &role, const std::string &content) &
    {
        return pushed(detail::c_str(role), content);
    }
    /// The same for a temporary, which is moved out.
    conversation push(const std::string &role, const std::string &content) &&
    {
        return std::move(push(role, content));
    }
    /// Adds a whole message in JSON, such as get("message").
    conversation &push(const std::string &message_json) & { return pushed(nullptr, message_json); }
    /// The same for a temporary, which is moved out.
    conversation push(const std::string &message_json) && { return std::move(push(message_json)); }

    // By value: a reference would bind to a temporary's, too, and outlive it.
    /// The array in JSON.
    operator std::string() const & { return json_; }
    /// The array in JSON, moved out.
    operator std::string() && noexcept { return std::move(json_); }

private:
    conversation &pushed(const char *role, const std::string &content)
    {
        const std::unique_ptr<char, void (*)(char *)> longer(
            gptalk_push(detail::c_str(json_), role, detail::c_str(content)), gptalk_free);
        if (longer == nullptr)
            throw error(GPTALK_MISUSE, "push: what is not UTF-8, or not the JSON that it should be");
        json_ = longer.get();
        return *this;
    }

    std::string json_;
};

/// A chat that is pulled: an input range of the reply's pieces, each valid until the next call on the
/// client. It throws where the next piece would be, if the chat has failed. Moved, it leaves its
/// iterators behind.
class stream {
public:
    class iterator {
    public:
        using iterator_category = std::input_iterator_tag;
        using value_type = std::string_view;
        using difference_type = std::ptrdiff_t;
        using pointer = void;
        using reference = std::string_view;

        iterator() = default;
        std::string_view operator*() const { return stream_->piece_; }
        iterator &operator++() { return *this = stream_->begin(); }
        void operator++(int) { ++*this; }
        friend bool operator==(iterator a, iterator b) { return a.stream_ == b.stream_; }
        friend bool operator!=(iterator a, iterator b) { return a.stream_ != b.stream_; }

    private:
        friend stream;
        explicit iterator(stream *of) : stream_(of) {}
        stream *stream_ = nullptr; // at the end: none
    };

    /// Takes over the chat; iterators stay behind.
    stream(stream &&) noexcept = default;
    /// Ends its own chat, and takes over the other's.
    stream &operator=(stream &&other) noexcept
    {
        finish();
        core_ = std::move(other.core_);
        piece_ = other.piece_;
        status_ = other.status_;
        return *this;
    }
    ~stream() { finish(); }

    /// The next piece, also where a loop was left before.
    iterator begin()
    {
        // Away meanwhile: if a channel throws, this chat is over, and the client may be in another.
        auto core = std::move(core_);
        if (core == nullptr)
            return end();
        std::size_t len = 0;
        if (const char *text = gptalk_next(core->handle, &len)) {
            piece_ = std::string_view(text, len);
            core_ = std::move(core);
            return iterator(this);
        }
        status_ = gptalk_finish(core->handle);
        detail::complete(core->handle, status_);
        return end();
    }
    /// Where the reply ends.
    iterator end() const noexcept { return iterator(); }

    /// Ends the chat, as cancelled if it still runs. Whether the reply is complete.
    bool finish() noexcept
    {
        if (const auto core = std::move(core_))
            status_ = gptalk_finish(core->handle);
        return status_ == GPTALK_OK;
    }

private:
    friend class client;
    stream(std::shared_ptr<detail::core> core, const std::string &msgs_json)
    {
        detail::complete(core->handle, gptalk_start(core->handle, detail::c_str(msgs_json)));
        core_ = std::move(core);
    }

    std::shared_ptr<detail::core> core_; // while the chat runs
    std::string_view piece_;
    gptalk_status status_ = GPTALK_CANCELLED;
};

/// Options, connections, channels, one chat at a time, and the outcome of the last one.
class client {
public:
    client() : core_(std::make_shared<detail::core>()) {}
    /// With options, as set() takes them; here a value is never NULL.
    client(std::initializer_list<std::pair<std::string, std::string>> options) : client()
    {
        for (const auto &[key, value] : options)
            set(key, value);
    }
    /// Takes over all of it, a chat that runs included.
    client(client &&) noexcept = default;
    /// Releases what it was; a chat that runs there goes on.
    client &operator=(client &&) noexcept = default;

    /// The same options and shared connections; neither channels nor an outcome.
    client clone() const { return client(std::make_shared<detail::core>(*held())); }

    /// Sets an option, or unsets it: std::nullopt.
    void set(const std::string &key, const std::optional<std::string> &value)
    {
        set(key, value ? detail::c_str(*value) : nullptr);
    }
    /// The same; NULL unsets it, which std::getenv() may return.
    void set(const std::string &key, const char *value) { detail::set(held()->handle, key, value); }
    void set(const std::string &key, std::nullptr_t) = delete; // so that a 0 is no value

    /// Sets a channel's callback, which the client keeps until it is replaced or removed.
    template <class F> void on(const std::string &channel, F callback)
    {
        put(channel, detail::on_channel,
            {std::make_shared<F>(std::move(callback)),
             [](void *kept, std::string_view text) { return detail::call(*static_cast<F *>(kept), text); }});
    }
    /// Removes it.
    void on(const std::string &channel, std::nullptr_t) { put(channel, nullptr, {}); }

    /// Sends a conversation and hands over the reply as it comes. Whether it is complete; false:
    /// cancelled.
    template <class F> bool chat(const std::string &msgs_json, F &&callback)
    {
        const auto core = held(); // the callback may destroy this client
        auto *userdata = std::addressof(callback);
        const auto status = gptalk_client_chat(core->handle, detail::c_str(msgs_json),
                                               detail::on_text<std::remove_reference_t<F>>, &userdata);
        return detail::complete(core->handle, status);
    }
    /// The reply is at get("text").
    bool chat(const std::string &msgs_json) { return chat(msgs_json, [](std::string_view) {}); }

    /// Begins a chat that is to be pulled; nothing is sent before the first piece is asked for. The
    /// client is busy until the stream has ended, was finished or is destroyed.
    gptalk::stream stream(const std::string &msgs_json) { return gptalk::stream(held(), msgs_json); }

    /// Cancels the chat that runs. Whether one did: a later chat is not affected.
    bool cancel() const noexcept { return core_ != nullptr && gptalk_cancel(core_->handle) != 0; }

    /// About the last chat; none: not known, or not reported.
    std::optional<std::string> get(const std::string &key) const { return detail::get(held()->handle, key); }
    /// -1: not known, or not reported.
    std::int64_t get_int(const std::string &key) const { return detail::get_int(held()->handle, key); }

private:
    explicit client(std::shared_ptr<detail::core> core) : core_(std::move(core)) {}

    void put(const std::string &channel, gptalk_callback on_channel, detail::channel next)
    {
        const auto core = held();
        detail::channel &place = core->channels[channel];
        detail::accepted(core->handle, gptalk_on(core->handle, detail::c_str(channel), on_channel, &place));
        std::swap(place, next);
    }

    const std::shared_ptr<detail::core> &held() const
    {
        if (core_ == nullptr)
            throw error(GPTALK_MISUSE, "this client was moved from");
        return core_;
    }

    std::shared_ptr<detail::core> core_;
};

/// The one-liner: a chat without a client, on any number of threads at a time. Its options are the
/// process's defaults, and its outcome is the thread's own. See client::chat().
template <class F> bool chat(const std::string &msgs_json, F &&callback)
{
    auto *userdata = std::addressof(callback);
    const auto on_text = detail::on_text<std::remove_reference_t<F>>;
    return detail::complete(nullptr, gptalk_chat(detail::c_str(msgs_json), on_text, &userdata));
}
/// The same, without a callback: the reply is at get("text").
inline bool chat(const std::string &msgs_json) { return chat(msgs_json, [](std::string_view) {}); }
/// Sets an option of the process's defaults, or unsets it: NULL.
inline void set(const std::string &key, const char *value) { detail::set(nullptr, key, value); }
/// The same; std::nullopt unsets it.
inline void set(const std::string &key, const std::optional<std::string> &value)
{
    set(key, value ? detail::c_str(*value) : nullptr);
}
void set(const std::string &key, std::nullptr_t) = delete;
/// About this thread's last one-liner; see client::get().
inline std::optional<std::string> get(const std::string &key) { return detail::get(nullptr, key); }
/// About this thread's last one-liner; -1: not known, or not reported.
inline std::int64_t get_int(const std::string &key) { return detail::get_int(nullptr, key); }
/// Cancels the one-liners' chats, on all threads. Whether there was one.
inline bool cancel() noexcept { return gptalk_cancel(nullptr) != 0; }

} // namespace gptalk

#endif
