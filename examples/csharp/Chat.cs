/*
 * A chat in the terminal, in C#, with Mono 6 (Debian: mono-mcs, mono-runtime, libmono-posix4.0-cil)
 *
 *     export LD_LIBRARY_PATH=target/release
 *     mcs -r:Mono.Posix -out:chat.exe examples/csharp/Chat.cs
 *     mono chat.exe "Привет, как дела?"
 *
 * or with .NET Core 3 or later, as the Program.cs of a `dotnet new console`.
 *
 * GPTALK_BASE_URL and the like say which service. Ctrl-C stops the reply.
 */
using System;
using System.Collections.Generic;
using System.IO;
using System.Runtime.InteropServices;
using System.Text;
using System.Threading;

/// <summary>A sentence that says what happened and what to do.</summary>
sealed class GptalkException : Exception
{
    public readonly int Status; // of gptalk_status

    public GptalkException(int status, string message) : base(message) { Status = status; }
}

/// <summary>A client does one chat at a time. Released during a chat, it is freed behind it.</summary>
sealed class GptalkClient : SafeHandle
{
    const int Cancelled = 1;

    GptalkClient() : base(IntPtr.Zero, true) { } // for gptalk_client_new

    public static GptalkClient New() { return gptalk_client_new(); }

    public override bool IsInvalid { get { return handle == IntPtr.Zero; } }

    protected override bool ReleaseHandle()
    {
        gptalk_client_free(handle);
        return true;
    }

    /// <summary>A conversation, a JSON array (null for none), with one message more.</summary>
    public static string Push(string messages, string role, string content)
    {
        if (content.IndexOf('\0') >= 0)
            throw new ArgumentException("the message holds a NUL, where a C string ends");
        IntPtr longer = gptalk_push(messages, role, content);
        if (longer == IntPtr.Zero)
            throw new ArgumentException("the conversation is not JSON");
        try { return Marshal.PtrToStringUTF8(longer); }
        finally { gptalk_free(longer); }
    }

    /// <summary>
    /// Sends a conversation; brings each piece of the reply as it comes. To leave the loop cancels it.
    /// </summary>
    public IEnumerable<string> Chat(string messages, CancellationToken cancel)
    {
        bool isHeld = false, hasBegun = false;
        DangerousAddRef(ref isHeld); // whoever calls Dispose() meanwhile, the handle is good to the end
        try
        {
            Check(gptalk_start(handle, messages));
            hasBegun = true;
            // Now there is a chat to cancel. The block's end waits for a cancel that runs.
            using (cancel.Register(() => gptalk_cancel(handle)))
            {
                IntPtr piece;
                UIntPtr length;
                while ((piece = gptalk_next(handle, out length)) != IntPtr.Zero)
                    yield return Marshal.PtrToStringUTF8(piece, checked((int)length));
            }
            int status = gptalk_finish(handle);
            if (status == Cancelled)
                cancel.ThrowIfCancellationRequested();
            Check(status);
        }
        finally
        {
            if (hasBegun)
                gptalk_finish(handle);
            DangerousRelease();
        }
    }

    /// <summary>Tells of the last chat, such as its "prompt_tokens"; -1: not known.</summary>
    public long Number(string key) { return gptalk_get_int(this, key); }

    void Check(int status)
    {
        if (status == 0)
            return;
        string error = Marshal.PtrToStringUTF8(gptalk_get(handle, "error"))
            ?? "the client is in a chat already"; // of which "error" says nothing
        string name = Marshal.PtrToStringUTF8(gptalk_status_name(status));
        throw new GptalkException(status, error + " (" + name + ")");
    }

    // gptalk.h. A string that is returned is an IntPtr, since the marshaller would free it.
    const string Lib = "gptalk";
    const CallingConvention C = CallingConvention.Cdecl;
    const UnmanagedType Utf8 = UnmanagedType.LPUTF8Str;

    [DllImport(Lib, CallingConvention = C)] static extern GptalkClient gptalk_client_new();
    [DllImport(Lib, CallingConvention = C)] static extern void gptalk_client_free(IntPtr client);
    [DllImport(Lib, CallingConvention = C)] static extern int gptalk_start(IntPtr client,
        [MarshalAs(Utf8)] string messages);
    [DllImport(Lib, CallingConvention = C)] static extern IntPtr gptalk_next(IntPtr client, out UIntPtr length);
    [DllImport(Lib, CallingConvention = C)] static extern int gptalk_finish(IntPtr client);
    [DllImport(Lib, CallingConvention = C)] static extern int gptalk_cancel(IntPtr client);
    [DllImport(Lib, CallingConvention = C)] static extern IntPtr gptalk_get(IntPtr client,
        [MarshalAs(Utf8)] string key);
    [DllImport(Lib, CallingConvention = C)] static extern long gptalk_get_int(GptalkClient client,
        [MarshalAs(Utf8)] string key);
    [DllImport(Lib, CallingConvention = C)] static extern IntPtr gptalk_push([MarshalAs(Utf8)] string messages,
        [MarshalAs(Utf8)] string role, [MarshalAs(Utf8)] string content);
    [DllImport(Lib, CallingConvention = C)] static extern void gptalk_free(IntPtr text);
    [DllImport(Lib, CallingConvention = C)] static extern IntPtr gptalk_status_name(int status);
}

static class Program
{
    // Console.Out and Console.Error speak the terminal's encoding, whatever that is.
    static readonly TextWriter Out = Utf8(Console.OpenStandardOutput());
    static readonly TextWriter Error = Utf8(Console.OpenStandardError());

    static TextWriter Utf8(Stream stream)
    {
        return new StreamWriter(stream, new UTF8Encoding(false)) { AutoFlush = true, NewLine = "\n" };
    }

    /// <summary>Ctrl-C cancels; another one ends the program, whatever it waits for.</summary>
    static void OnCtrlC(CancellationTokenSource cancel)
    {
#if __MonoCS__
        // Mono raises Console.CancelKeyPress on a terminal only, and sends escape sequences to it.
        var interrupt = new Mono.Unix.UnixSignal(Mono.Unix.Native.Signum.SIGINT);
        ThreadStart wait = () =>
        {
            // A signal that comes just before the wait does not end it.
            using (interrupt)
                while (!interrupt.IsSet)
                    interrupt.WaitOne(100, false);
            cancel.Cancel();
        };
        new Thread(wait) { IsBackground = true }.Start();
#else
        Console.CancelKeyPress += (sender, e) =>
        {
            e.Cancel = !cancel.IsCancellationRequested;
            cancel.Cancel();
        };
#endif
    }

    static void Print(IEnumerable<string> reply)
    {
        bool printed = false;
        try
        {
            foreach (string piece in reply)
            {
                Out.Write(piece);
                printed = true;
            }
        }
        catch (Exception e) when (printed && !(e is IOException))
        {
            Out.WriteLine();
            throw;
        }
        Out.WriteLine();
    }

    static int Main(string[] args)
    {
        if (args.Length != 1)
        {
            Error.WriteLine("usage: chat PROMPT");
            return 2;
        }
        var cancel = new CancellationTokenSource();
        OnCtrlC(cancel);
        try
        {
            using (var client = GptalkClient.New())
            {
                Print(client.Chat(GptalkClient.Push(null, "user", args[0]), cancel.Token));
                long asked = client.Number("prompt_tokens"), answered = client.Number("completion_tokens");
                Error.WriteLine(asked < 0 || answered < 0 ? "usage: not reported"
                    : "usage: " + asked + " prompt + " + answered + " completion tokens");
            }
            return 0;
        }
        catch (OperationCanceledException)
        {
            Error.WriteLine("cancelled");
            return 130;
        }
        catch (Exception e)
        {
            Error.WriteLine("error: " + e.Message);
            return 1;
        }
    }
}
