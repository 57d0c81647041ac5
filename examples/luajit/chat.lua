-- A chat in the terminal, in Lua: LuaJIT 2.1, with nothing to install but the library.
--
--     LD_LIBRARY_PATH=target/release luajit examples/luajit/chat.lua "Привет, как дела?"
--
-- GPTALK_BASE_URL and the like say which service. Ctrl-C stops the reply.

local ffi = require("ffi")

ffi.cdef([[
typedef struct gptalk_client gptalk_client;
typedef int (*gptalk_callback)(const char *text, size_t len, void *userdata);
gptalk_client *gptalk_client_new(void);
void gptalk_client_free(gptalk_client *client);
int gptalk_set(gptalk_client *client, const char *key, const char *value);
int gptalk_on(gptalk_client *client, const char *channel, gptalk_callback cb, void *userdata);
int gptalk_start(gptalk_client *client, const char *msgs_json);
const char *gptalk_next(gptalk_client *client, size_t *len);
int gptalk_finish(gptalk_client *client);
const char *gptalk_get(const gptalk_client *client, const char *key);
int64_t gptalk_get_int(const gptalk_client *client, const char *key);
char *gptalk_push(const char *msgs_json, const char *role, const char *content);
void gptalk_free(char *text);
const char *gptalk_status_name(int status);
]])
local lib = ffi.load("gptalk") -- LuaJIT adds what the system wants: lib, .so, .dylib, .dll

local OK, MISUSE, BUSY = 0, 2, 3

-- The interpreter raises "interrupted!" at Ctrl-C, but only in a Lua function: about every 100 ms this
-- one gives it the occasion. The error goes through the library, which allows that. One callback serves
-- all clients, for LuaJIT has few and never collects them.
local function tick() return 0 end
jit.off(tick)
local on_tick = ffi.cast("gptalk_callback", tick)

local Client = {}
Client.__index = Client

-- What is raised: a table with the status's name and a sentence.
local Error = { __tostring = function(e) return ("%s (%s)"):format(e.message, e.status) end }

local function fail(message, status)
  error(setmetatable({ message = message, status = ffi.string(lib.gptalk_status_name(status)) }, Error))
end

local function check(client, status)
  if status == BUSY then fail("the client is in a chat already", status) end
  if status ~= OK then fail(client:get("error"), status) end
end

-- The options are those of gptalk_set(): Client.new({ base_url = "http://127.0.0.1:8080" }).
function Client.new(options)
  local handle = ffi.gc(lib.gptalk_client_new(), lib.gptalk_client_free)
  local client = setmetatable({ handle = handle, length = ffi.new("size_t[1]") }, Client)
  lib.gptalk_on(handle, "tick", on_tick, nil)
  for key, value in pairs(options or {}) do
    check(client, lib.gptalk_set(handle, key, tostring(value)))
  end
  return client
end

local function next_piece(client)
  local text = lib.gptalk_next(client.handle, client.length)
  if text ~= nil then return ffi.string(text, client.length[0]) end
  check(client, lib.gptalk_finish(client.handle))
end
jit.off(next_piece) -- compiled code may not call what calls back

-- for piece in client:chat({ { role = "user", content = "Hi" } }) do ... end
-- To leave the loop early, call client:stop().
function Client:chat(messages)
  local json
  for _, message in ipairs(messages) do
    if tostring(message.content):find("\0", 1, true) then
      fail("a message holds a NUL, where a C string ends", MISUSE)
    end
    json = ffi.gc(lib.gptalk_push(json, message.role, message.content), lib.gptalk_free)
    if json == nil then fail("a message is not UTF-8", MISUSE) end
  end
  check(self, lib.gptalk_start(self.handle, json))
  return next_piece, self
end

function Client:stop() lib.gptalk_finish(self.handle) end

function Client:get(key)
  local text = lib.gptalk_get(self.handle, key)
  return text ~= nil and ffi.string(text) or nil
end

function Client:get_int(key) return tonumber(lib.gptalk_get_int(self.handle, key)) end

function Client:close()
  if self.handle then lib.gptalk_client_free(ffi.gc(self.handle, nil)) end
  self.handle = nil -- the library refuses NULL, but not what was freed
end

local function print_text(text)
  local ok, reason = io.write(text)
  if ok then ok, reason = io.flush() end
  if not ok then error("stdout: " .. reason, 0) end -- as on a full disk
end

local function main(prompt, more)
  if not prompt or more then
    io.stderr:write("usage: chat.lua PROMPT\n")
    return 2
  end
  local printed, line = false, nil
  local ok, err = pcall(function()
    local client = Client.new()
    for piece in client:chat({ { role = "user", content = prompt } }) do
      printed = true -- before it is, since Ctrl-C may come in between
      print_text(piece)
    end
    local tokens = { client:get_int("prompt_tokens"), client:get_int("completion_tokens") }
    line = math.min(unpack(tokens)) < 0 and "usage: not reported"
      or ("usage: %d prompt + %d completion tokens"):format(unpack(tokens))
    client:close()
    print_text("\n")
  end)
  if printed and not ok then pcall(print_text, "\n") end
  local cancelled = not ok and tostring(err):find("interrupted!", 1, true)
  io.stderr:write(ok and line or cancelled and "cancelled" or "error: " .. tostring(err), "\n")
  return ok and 0 or cancelled and 130 or 1
end

os.exit(main(...))
