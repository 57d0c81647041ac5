//! A chat in the terminal, in Zig 0.17.
//!
//!     zig translate-c -lc include/gptalk.h > gptalk.zig
//!     zig build-exe -lc $(pkg-config --libs gptalk) --name chat \
//!         --dep gptalk -Mroot=examples/zig/chat.zig -Mgptalk=gptalk.zig
//!     ./chat "Привет, как дела?"
//!
//! In a build.zig, `addTranslateC` takes the first step and `linkSystemLibrary` asks pkg-config.
//! GPTALK_BASE_URL and the like say which service. Ctrl-C stops the reply.

const std = @import("std");
const c = @import("gptalk");

/// An error for each status; one that is newer than this file is `Internal`.
fn check(status: c.gptalk_status) !void {
    return switch (status) {
        c.GPTALK_OK => {},
        c.GPTALK_CANCELLED => error.Cancelled,
        c.GPTALK_MISUSE => error.Misuse,
        c.GPTALK_BUSY => error.Busy,
        c.GPTALK_AUTH => error.Auth,
        c.GPTALK_RATE_LIMIT => error.RateLimit,
        c.GPTALK_REQUEST => error.Request,
        c.GPTALK_SERVER => error.Server,
        c.GPTALK_NETWORK => error.Network,
        c.GPTALK_TLS => error.Tls,
        c.GPTALK_TIMEOUT => error.Timeout,
        c.GPTALK_PROTOCOL => error.Protocol,
        c.GPTALK_TRUNCATED => error.Truncated,
        c.GPTALK_LIMIT => error.Limit,
        else => error.Internal,
    };
}

/// A conversation: a JSON array of messages.
pub const Messages = struct {
    json: [*:0]u8,

    pub fn init(role: [*:0]const u8, content: [*:0]const u8) !Messages {
        return .{ .json = c.gptalk_push(null, role, content) orelse return error.Misuse };
    }

    /// Adds a message; without a role it is a whole one in JSON, such as `client.get("message")`.
    pub fn push(messages: *Messages, role: ?[*:0]const u8, content: [*:0]const u8) !void {
        const longer = c.gptalk_push(messages.json, role, content) orelse return error.Misuse;
        messages.deinit();
        messages.json = longer;
    }

    pub fn deinit(messages: Messages) void {
        c.gptalk_free(messages.json);
    }
};

/// Does one chat at a time.
pub const Client = struct {
    handle: *c.gptalk_client,

    pub fn init() !Client {
        return .{ .handle = c.gptalk_client_new() orelse return error.Internal };
    }

    /// Cancels the chat that runs.
    pub fn deinit(client: Client) void {
        c.gptalk_client_free(client.handle);
    }

    /// Begins a chat, which `next` runs.
    pub fn start(client: Client, messages: Messages) !void {
        return check(c.gptalk_start(client.handle, messages.json));
    }

    /// The next piece of the reply, which lives until the next call on the client; null at the end.
    pub fn next(client: Client) !?[:0]const u8 {
        var len: usize = 0;
        const text = c.gptalk_next(client.handle, &len);
        if (text != null) return text[0..len :0];
        try client.finish();
        return null;
    }

    /// How the chat ended. Cancels it where its end has not been reached.
    pub fn finish(client: Client) !void {
        return check(c.gptalk_finish(client.handle));
    }

    /// Any thread and any signal handler may do this, as long as there is the client.
    pub fn cancel(client: Client) void {
        _ = c.gptalk_cancel(client.handle);
    }

    /// What is known of the last chat, such as "error"; it lives until the next call on the client.
    pub fn get(client: Client, key: [*:0]const u8) ?[:0]const u8 {
        const text = c.gptalk_get(client.handle, key);
        return if (text != null) std.mem.span(@as([*:0]const u8, text)) else null;
    }

    pub fn getInt(client: Client, key: [*:0]const u8) ?i64 {
        const number = c.gptalk_get_int(client.handle, key);
        return if (number >= 0) number else null;
    }
};

// The program.

var interruptible: Client = undefined;

fn onInterrupt(_: std.posix.SIG) callconv(.c) void {
    interruptible.cancel();
}

/// SIGINT goes to the handler once; then it ends the program.
fn setInterrupt(handler: ?std.posix.Sigaction.handler_fn) void {
    std.posix.sigaction(.INT, &.{
        .handler = .{ .handler = handler },
        .mask = std.posix.sigemptyset(),
        .flags = std.posix.SA.RESTART | std.posix.SA.RESETHAND,
    }, null);
}

fn chat(io: std.Io, client: Client, messages: Messages) !void {
    const stdout = std.Io.File.stdout();
    var printed = false;
    errdefer if (printed) stdout.writeStreamingAll(io, "\n") catch {};

    try client.start(messages);
    // There is a chat to cancel by now, and there is the client for as long as SIGINT is ours.
    interruptible = client;
    setInterrupt(onInterrupt);
    defer setInterrupt(std.posix.SIG.DFL);
    while (try client.next()) |piece| {
        printed = true;
        try stdout.writeStreamingAll(io, piece);
    }
    try stdout.writeStreamingAll(io, "\n");
}

pub fn main(init: std.process.Init) !u8 {
    const args = try init.minimal.args.toSlice(init.arena.allocator());
    if (args.len != 2) {
        std.debug.print("usage: chat PROMPT\n", .{});
        return 2;
    }
    const messages = Messages.init("user", args[1]) catch {
        std.debug.print("error: the prompt is not UTF-8 (misuse)\n", .{});
        return 1;
    };
    defer messages.deinit();
    const client: Client = try .init();
    defer client.deinit();

    chat(init.io, client, messages) catch |err| {
        if (err == error.Cancelled) {
            std.debug.print("cancelled\n", .{});
            return 130;
        }
        // Each text is printed before the next call on the client takes it back.
        std.debug.print("error: {s}", .{client.get("error") orelse @errorName(err)});
        std.debug.print(" ({s})\n", .{c.gptalk_status_name(@intCast(c.gptalk_finish(client.handle)))});
        return 1;
    };
    const asked = client.getInt("prompt_tokens");
    const answered = client.getInt("completion_tokens");
    if (asked != null and answered != null) {
        std.debug.print("usage: {d} prompt + {d} completion tokens\n", .{ asked.?, answered.? });
    } else {
        std.debug.print("usage: not reported\n", .{});
    }
    return 0;
}
