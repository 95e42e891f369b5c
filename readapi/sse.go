package readapi

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/wheelrefinery/refinery/api"
)

var pingEvery = 15 * time.Second // a variable for the tests

const (
	writeTime = 10 * time.Second // for a client to take a part
	retryWait = 2 * time.Second  // that a browser lets pass before it connects again
)

// sse sends server-sent events: parts, each flushed, each within a time.
type sse struct {
	w       http.ResponseWriter
	control *http.ResponseController
	ping    *time.Ticker
}

// startSSE sends the headers and the first bytes. ok is false when there is nothing more to send: the client asked for the headers only,
// or has gone. After it, end must be called.
func startSSE(ctx context.Context, w http.ResponseWriter, id int64) (s *sse, ok bool) {
	s = &sse{w, http.NewResponseController(w), time.NewTicker(pingEvery)}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // proxies that gather answers do not gather this one
	w.WriteHeader(http.StatusOK)
	if api.RequestFrom(ctx).Method == http.MethodHead {
		return s, false
	}
	return s, s.send(fmt.Appendf(nil, "retry: %d\nid: %d\n\n", retryWait.Milliseconds(), id))
}

// end gives the connection back as it was.
func (s *sse) end() {
	s.ping.Stop()
	_ = s.control.SetWriteDeadline(time.Time{}) // a test's recorder has none
}

// gathers has buffers that make few large writes of many events; they are held only while something is sent.
var gathers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 16<<10) }}

// send is false when the client has gone or took too long. It is cut off then: half an event must not look like a whole one.
func (s *sse) send(parts ...[]byte) bool {
	_ = s.control.SetWriteDeadline(time.Now().Add(writeTime)) // a test's recorder has none
	b := gathers.Get().(*bufio.Writer)
	defer func() { b.Reset(nil); gathers.Put(b) }()
	b.Reset(s.w)
	for _, p := range parts {
		_, _ = b.Write(p) // Flush says the same
	}
	return b.Flush() == nil && s.control.Flush() == nil
}
