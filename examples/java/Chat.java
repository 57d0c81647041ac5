/*
 * A chat in the terminal, in Java: 17 or later, with JNA (Debian: libjna-java).
 *
 *     export LD_LIBRARY_PATH=target/release
 *     java -cp /usr/share/java/jna.jar examples/java/Chat.java "Привет, как дела?"
 *
 * GPTALK_BASE_URL and the like say which service. Ctrl-C stops the reply. Java reads its arguments in
 * the locale's encoding, which should be UTF-8; from 24 on, JNA wants --enable-native-access=ALL-UNNAMED.
 */
import com.sun.jna.Library;
import com.sun.jna.Memory;
import com.sun.jna.Native;
import com.sun.jna.Pointer;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.PrintStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;

public final class Chat {
    /** gptalk.h. JNA copies a String in either direction, and frees none that it was given. */
    private interface Gptalk extends Library {
        Gptalk LIB = Native.load("gptalk", Gptalk.class, Map.of(OPTION_STRING_ENCODING, "UTF-8"));

        Pointer gptalk_client_new();
        void gptalk_client_free(Pointer client);
        int gptalk_start(Pointer client, String messages);
        Pointer gptalk_next(Pointer client, Pointer length);
        int gptalk_finish(Pointer client);
        int gptalk_cancel(Pointer client);
        String gptalk_get(Pointer client, String key);
        long gptalk_get_int(Pointer client, String key);
        Pointer gptalk_push(String messages, String role, String content); // to be freed: no String
        void gptalk_free(Pointer text);
        String gptalk_status_name(int status);
    }

    /** A sentence that says what happened and what to do. */
    static final class GptalkException extends Exception {
        private static final long serialVersionUID = 1;
        static final int CANCELLED = 1;
        final int status; // of gptalk_status

        GptalkException(int status, String message) {
            super(message);
            this.status = status;
        }
    }

    /** A client does one chat at a time; another thread waits for its turn. */
    static final class Client implements AutoCloseable {
        private Pointer client = Gptalk.LIB.gptalk_client_new(); // null once closed, which C checks
        private final Object alive = new Object(); // held while the client is cancelled, or freed

        /** A conversation, a JSON array (null for none), with one message more. */
        static String push(String messages, String role, String content) {
            if (content.indexOf('\0') >= 0) {
                throw new IllegalArgumentException("the message holds a NUL, where a C string ends");
            }
            Pointer longer = Gptalk.LIB.gptalk_push(messages, role, content);
            if (longer == null) {
                throw new IllegalArgumentException("the conversation is not JSON");
            }
            try {
                return longer.getString(0, "UTF-8");
            } finally {
                Gptalk.LIB.gptalk_free(longer);
            }
        }

        /** Sends a conversation; hands over each piece of the reply as it comes. */
        synchronized void chat(String messages, Consumer<String> each) throws GptalkException {
            check(Gptalk.LIB.gptalk_start(client, messages));
            try {
                Memory length = new Memory(Native.SIZE_T_SIZE); // JNA's NativeLong is no size_t on Windows
                Pointer piece;
                while ((piece = Gptalk.LIB.gptalk_next(client, length)) != null) {
                    long size = Native.SIZE_T_SIZE == 8 ? length.getLong(0) : length.getInt(0);
                    each.accept(new String(piece.getByteArray(0, (int) size), StandardCharsets.UTF_8));
                }
            } finally {
                Gptalk.LIB.gptalk_finish(client); // cancels the chat where `each` has thrown
            }
            check(Gptalk.LIB.gptalk_finish(client));
        }

        /** Tells of the last chat, such as its "prompt_tokens"; -1: not known. */
        synchronized long number(String key) {
            return Gptalk.LIB.gptalk_get_int(client, key);
        }

        /** Cancels the chat that runs; false: none does. For any thread. */
        boolean cancel() {
            synchronized (alive) {
                return client != null && Gptalk.LIB.gptalk_cancel(client) != 0;
            }
        }

        /** Cancels the chat that runs, and releases the client. */
        @Override
        public void close() {
            cancel();
            synchronized (this) {
                synchronized (alive) {
                    Gptalk.LIB.gptalk_client_free(client);
                    client = null;
                }
            }
        }

        private void check(int status) throws GptalkException {
            if (status != 0) {
                String error = Gptalk.LIB.gptalk_get(client, "error");
                String name = Gptalk.LIB.gptalk_status_name(status);
                String busy = "the client is in a chat already"; // of which "error" says nothing
                throw new GptalkException(status, (error != null ? error : busy) + " (" + name + ")");
            }
        }
    }

    // The program. System.out and System.err speak the locale's encoding.

    private static final PrintStream OUT = utf8(FileDescriptor.out);
    private static final PrintStream ERR = utf8(FileDescriptor.err);

    private static PrintStream utf8(FileDescriptor file) {
        return new PrintStream(new FileOutputStream(file), true, StandardCharsets.UTF_8);
    }

    private static int chat(Client client, String prompt) {
        boolean[] printed = {false};
        try {
            client.chat(Client.push(null, "user", prompt), piece -> {
                printed[0] = true;
                OUT.print(piece);
                if (OUT.checkError()) { // flushes, too
                    throw new UncheckedIOException("nobody reads the reply", new IOException());
                }
            });
        } catch (GptalkException | UncheckedIOException | IllegalArgumentException e) {
            if (printed[0]) {
                OUT.print('\n');
            }
            boolean cancelled = e instanceof GptalkException g && g.status == GptalkException.CANCELLED;
            ERR.print(cancelled ? "cancelled\n" : "error: " + e.getMessage() + "\n");
            return cancelled ? 130 : 1;
        }
        OUT.print('\n');
        long asked = client.number("prompt_tokens"), answered = client.number("completion_tokens");
        ERR.print(asked < 0 || answered < 0 ? "usage: not reported\n"
                : "usage: " + asked + " prompt + " + answered + " completion tokens\n");
        return 0;
    }

    public static void main(String[] args) {
        if (args.length != 1) {
            ERR.print("usage: chat PROMPT\n");
            System.exit(2);
        }
        CountDownLatch told = new CountDownLatch(1);
        int code;
        try (Client client = new Client()) {
            // Ctrl-C ends the program with 130, once its hooks have returned: this one lets the chat
            // end, and that be told.
            Runtime.getRuntime().addShutdownHook(new Thread(() -> {
                try {
                    if (client.cancel()) {
                        told.await(1, TimeUnit.SECONDS);
                    }
                } catch (InterruptedException e) {
                    Thread.currentThread().interrupt();
                }
            }));
            code = chat(client, args[0]);
        }
        told.countDown();
        System.exit(code);
    }
}
