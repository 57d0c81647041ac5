/*
 * A chat in the terminal with a Stop button, in C++.
 *
 *     c++ -std=c++17 chat.cpp -pthread $(pkg-config --cflags --libs gptalk) -o chat
 *
 * or, in this repository:
 *
 *     cargo build --release
 *     c++ -std=c++17 -pthread -Iinclude examples/cpp/chat.cpp -Ltarget/release -lgptalk -Wl,-rpath,target/release -o chat
 *
 *     cargo run -p gptalk-service         # in another terminal: a service to talk to
 *     export GPTALK_BASE_URL=...          # as it says
 *
 *     ./chat "Привет, как дела?"
 *
 * Enter stops the reply, and so does Ctrl-C.
 */
#include <gptalk.hpp>

#include <cerrno>
#include <csignal>
#include <iostream>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>

#include <poll.h>
#include <unistd.h>

namespace {

const gptalk::client *on_screen;

extern "C" void on_interrupt(int)
{
    on_screen->cancel(); // may be called in a signal handler
}

// The Stop button of a client. A thread waits for Enter, as that of a window would for a click.
class stop_button {
public:
    explicit stop_button(const gptalk::client &client)
    {
        if (pipe(gone_) != 0)
            throw std::system_error(errno, std::generic_category(), "pipe");
        on_screen = &client;
        std::signal(SIGINT, on_interrupt);
        thread_ = std::thread([this] { wait(); });
    }

    stop_button(const stop_button &) = delete;

    ~stop_button()
    {
        std::signal(SIGINT, SIG_DFL);
        close(gone_[1]); // wakes the thread: it may be that nobody presses Enter
        thread_.join();
        close(gone_[0]);
    }

private:
    void wait() const
    {
        pollfd files[] = {{gone_[0], POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
        for (;;) {
            char key = 0;
            if (poll(files, 2, -1) < 0) {
                if (errno != EINTR)
                    return;
            } else if (files[0].revents != 0) {
                return;
            } else if (read(STDIN_FILENO, &key, 1) != 1) {
                files[1].fd = -1; // no keys any more
            } else if (key == '\n') {
                on_screen->cancel();
            }
        }
    }

    int gone_[2]; // a pipe, closed when the button goes
    std::thread thread_;
};

std::string usage_of(const gptalk::client &client)
{
    const auto prompt = client.get_int("prompt_tokens");
    const auto completion = client.get_int("completion_tokens");
    if (prompt < 0 || completion < 0)
        return "usage: not reported";
    return "usage: " + std::to_string(prompt) + " prompt + " + std::to_string(completion)
           + " completion tokens";
}

} // namespace

int main(int argc, char **argv)
{
    if (argc != 2) {
        std::cerr << "usage: chat PROMPT\n";
        return 2;
    }
    bool printed = false;
    int code = 0;
    std::string end;
    try {
        gptalk::client client;
        auto reply = client.stream(gptalk::conversation().push("user", argv[1]));
        const stop_button button(client);
        for (std::string_view piece : reply) {
            if (!(std::cout << piece << std::flush))
                break; // as on a full disk: see below
            printed = true;
        }
        if (reply.finish()) {
            end = usage_of(client);
        } else {
            end = "cancelled";
            code = 130;
        }
    } catch (const gptalk::error &error) {
        end = std::string("error: ") + error.what() + " (" + gptalk_status_name(error.status()) + ")";
        code = 1;
    }
    if (printed || code == 0)
        std::cout << std::endl;
    if (!std::cout) {
        end = "error: stdout cannot be written";
        code = 1;
    }
    std::cerr << end << '\n';
    return code;
}
