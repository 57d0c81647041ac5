# frozen_string_literal: true

# A chat in the terminal, in Ruby: 3.1 or later, with nothing to install but the library.
#
#     LD_LIBRARY_PATH=target/release ruby examples/ruby/chat.rb "Привет, как дела?"
#
# GPTALK_BASE_URL and the like say which service. Ctrl-C stops the reply.

require "fiddle/import"
require "json"

module GPTalk
  # The C functions. Those that return text are declared to give a pointer, to be copied from.
  module C
    extend Fiddle::Importer
    dlload(case RUBY_PLATFORM
           when /darwin/ then "libgptalk.dylib"
           when /mswin|mingw/ then "gptalk.dll"
           else "libgptalk.so"
           end)
    extern "void *gptalk_client_new()"
    extern "void gptalk_client_free(void *client)"
    extern "int gptalk_set(void *client, const char *key, const char *value)"
    extern "int gptalk_start(void *client, const char *msgs_json)"
    extern "const char *gptalk_next(void *client, size_t *len)"
    extern "int gptalk_finish(void *client)"
    extern "int gptalk_cancel(void *client)"
    extern "const char *gptalk_get(void *client, const char *key)"
    extern "int64_t gptalk_get_int(void *client, const char *key)"
    extern "const char *gptalk_status_name(int status)"
  end

  OK = 0
  BUSY = 3

  # A chat that failed; `status` is the name of its gptalk_status.
  class Error < StandardError
    attr_reader :status

    def initialize(status, sentence)
      super(sentence)
      @status = C.gptalk_status_name(status).to_s
    end
  end

  class Client
    # The options are those of gptalk_set(): Client.new(base_url: "http://127.0.0.1:8080").
    def initialize(**options)
      @length = Fiddle::Pointer.malloc(Fiddle::SIZEOF_SIZE_T, Fiddle::RUBY_FREE)
      @client = C.gptalk_client_new
      @client.free = C["gptalk_client_free"] # where close() is forgotten, the garbage collector does it
      options.each { |key, value| check C.gptalk_set(@client, key.to_s, value&.to_s) } # nil unsets it
    end

    # Yields the reply piece by piece; leaving the block ends the chat. Without one: an Enumerator.
    def chat(messages)
      return enum_for(:chat, messages) unless block_given?

      status = nil
      begin
        status = C.gptalk_start(@client, JSON.generate(messages))
        while status == OK && (piece = next_piece)
          yield piece
        end
      ensure
        unless status == BUSY # the chat that runs then is not this one
          C.gptalk_cancel(@client) # does nothing to a chat that is over
          @reader&.join
          status = C.gptalk_finish(@client)
        end
      end
      check status
    end

    def get(key)
      text = C.gptalk_get(@client, key)
      text.to_s.force_encoding(Encoding::UTF_8) unless text.null?
    end

    def get_int(key) = C.gptalk_get_int(@client, key)

    def close
      @client&.call_free
      @client = nil # the library refuses NULL, but not what was freed
    end

    private

    # While another thread waits for the library (fiddle releases the interpreter's lock), this one can
    # be interrupted, by Ctrl-C, Timeout or Thread#kill, at some 40 µs a piece. A callback ("tick") could
    # not let them through: Ruby raises with longjmp(), which must not cross the library.
    def next_piece
      @reader = Thread.new { C.gptalk_next(@client, @length) }
      text = @reader.value
      return if text.null?

      length = @length[0, Fiddle::SIZEOF_SIZE_T].unpack1("J")
      text[0, length].force_encoding(Encoding::UTF_8)
    end

    def check(status)
      return if status == OK

      raise Error.new(status, status == BUSY ? "the client is in a chat already" : get("error"))
    end
  end
end

def main(args)
  if args.size != 1
    $stderr.puts "usage: chat.rb PROMPT"
    return 2
  end
  trap("PIPE", "SYSTEM_DEFAULT") if Signal.list.key?("PIPE") # `chat.rb ... | head` just ends
  $stdout.binmode.sync = true
  prompt = args[0].dup.force_encoding(Encoding::UTF_8).scrub # whatever the locale says
  client = GPTalk::Client.new
  printed = false
  begin
    client.chat([{ role: "user", content: prompt }]) do |piece|
      printed = true # before it is, since Ctrl-C may come in between
      $stdout.write(piece)
    end
    tokens = %w[prompt_tokens completion_tokens].map { |key| client.get_int(key) }
    code = 0
    line = "usage: not reported"
    line = format("usage: %d prompt + %d completion tokens", *tokens) unless tokens.min.negative?
  rescue GPTalk::Error => e
    code = 1
    line = "error: #{e.message} (#{e.status})"
  rescue Interrupt
    code = 130
    line = "cancelled"
  ensure
    client.close
  end
  puts if printed || code.zero?
  $stderr.puts line
  code
end

exit main(ARGV) if $PROGRAM_NAME == __FILE__
