// A chat in the terminal, in Go: 1.19 or later, with cgo.
//
//	cd examples/go
//	go build -o chat .
//	./chat "Привет, как дела?"
//
// pkg-config says where the library is installed; GPTALK_BASE_URL and the like say which service.
// Ctrl-C stops the reply.
package main

/*
#cgo pkg-config: gptalk
#include <stdlib.h>
#include <gptalk.h>
*/
import "C"

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"unsafe"
)

// An Error says in a sentence what happened and what to do.
type Error struct {
	Status int // of gptalk_status
	Text   string
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s (%s)", e.Text, C.GoString(C.gptalk_status_name(C.int(e.Status))))
}

// A Message is what somebody has said: "system", "user" or "assistant".
type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// A Client does one chat at a time. What it tells of the chat does not depend on the thread, so
// that goroutines may be moved from one to another.
type Client struct {
	c    *C.gptalk_client // nil once closed; written with both locked
	chat sync.Mutex       // held by a chat
	call sync.Mutex       // held by a call, until what it gave is copied; not while each runs
}

// NewClient gives a client, which is to be closed.
func NewClient() *Client { return &Client{c: C.gptalk_client_new()} }

// Close releases the client. It waits for a chat that runs: cancel its context before.
func (client *Client) Close() {
	client.chat.Lock()
	defer client.chat.Unlock()
	client.call.Lock()
	defer client.call.Unlock()
	C.gptalk_client_free(client.c)
	client.c = nil
}

// Chat sends a conversation and calls each for every piece of the reply as it comes, until the
// reply ends, each fails, or ctx is done; their errors are returned as they are. A second Chat
// waits for the first, so that each may not begin one.
//
// The pieces are pulled: for the callback form, each would have to be exported to C.
func (client *Client) Chat(ctx context.Context, messages []Message, each func(piece string) error) error {
	text, err := json.Marshal(messages)
	if err != nil {
		return err
	}
	list := C.CString(string(text))
	defer C.free(unsafe.Pointer(list))

	client.chat.Lock()
	defer client.chat.Unlock()
	if client.c == nil {
		return &Error{C.GPTALK_MISUSE, "the client is closed"}
	}
	if status := C.gptalk_start(client.c, list); status != C.GPTALK_OK {
		return client.failure(status)
	}
	defer C.gptalk_finish(client.c) // cancels the chat where each fails, or panics

	// By now there is a chat to cancel. Until the goroutine has returned, there is the client.
	over, watched := make(chan struct{}), make(chan struct{})
	defer func() { close(over); <-watched }()
	go func() {
		defer close(watched)
		select {
		case <-ctx.Done():
			C.gptalk_cancel(client.c)
		case <-over:
		}
	}()

	for {
		piece, ok := client.next()
		if !ok {
			break
		}
		if err := each(piece); err != nil {
			return err
		}
	}
	status := C.gptalk_finish(client.c)
	if status == C.GPTALK_CANCELLED && ctx.Err() != nil {
		return ctx.Err()
	}
	return client.failure(status)
}

// next gives the next piece of the reply, where there is one.
func (client *Client) next() (string, bool) {
	client.call.Lock()
	defer client.call.Unlock()
	var length C.size_t
	piece := C.gptalk_next(client.c, &length)
	return C.GoStringN(piece, C.int(length)), piece != nil
}

// Number tells of the last chat, such as its "prompt_tokens"; -1: not known. Beside a chat that
// runs, it waits for the next piece; inside each it does not.
func (client *Client) Number(key string) int64 {
	name := C.CString(key)
	defer C.free(unsafe.Pointer(name))
	client.call.Lock()
	defer client.call.Unlock()
	if client.c == nil {
		return -1
	}
	return int64(C.gptalk_get_int(client.c, name))
}

func (client *Client) failure(status C.gptalk_status) error {
	if status == C.GPTALK_OK {
		return nil
	}
	key := C.CString("error")
	defer C.free(unsafe.Pointer(key))
	client.call.Lock()
	defer client.call.Unlock()
	return &Error{int(status), C.GoString(C.gptalk_get(client.c, key))}
}

// The program.

func chat(ctx context.Context, prompt string) error {
	client := NewClient()
	defer client.Close()

	printed := false
	err := client.Chat(ctx, []Message{{"user", prompt}}, func(piece string) error {
		printed = true
		_, err := os.Stdout.WriteString(piece)
		return err
	})
	if printed || err == nil {
		fmt.Println()
	}
	if err != nil {
		return err
	}
	asked, answered := client.Number("prompt_tokens"), client.Number("completion_tokens")
	if asked < 0 || answered < 0 {
		fmt.Fprintln(os.Stderr, "usage: not reported")
	} else {
		fmt.Fprintf(os.Stderr, "usage: %d prompt + %d completion tokens\n", asked, answered)
	}
	return nil
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: chat PROMPT")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	go func() { <-ctx.Done(); stop() }() // another Ctrl-C ends the program, whatever it waits for

	err := chat(ctx, os.Args[1])
	if errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "cancelled")
		os.Exit(130)
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}
