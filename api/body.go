package api

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"time"
)

var (
	bodyTime = 30 * time.Second // for a whole body that is read at once
	idleTime = 60 * time.Second // between two pieces of a body that is streamed
)

// leastRate is how many bytes a second a streamed body must bring on the whole, beyond idleTime.
const leastRate = 16 << 10

func newBody(b []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(b)) }

// limited is a request's body with a limit of bytes and of time. The deadline is lifted at the end of the body: a handler may take
// longer to answer. Where the end is not read to, it stays, so that nobody waits for the rest.
type limited struct {
	io.ReadCloser
	deadline *http.ResponseController
	stream   bool
	begin    time.Time
	bytes    int64
}

func limitBody(w http.ResponseWriter, r *http.Request, op *operation) io.ReadCloser {
	return &limited{ReadCloser: http.MaxBytesReader(w, r.Body, op.maxBody), deadline: http.NewResponseController(w), stream: op.stream, begin: time.Now()}
}

func (l *limited) Read(p []byte) (int, error) {
	if l.stream {
		end := l.begin.Add(idleTime + time.Duration(l.bytes/leastRate)*time.Second)
		if idle := time.Now().Add(idleTime); idle.Before(end) {
			end = idle
		}
		_ = l.deadline.SetReadDeadline(end)
	}
	n, err := l.ReadCloser.Read(p)
	l.bytes += int64(n)
	if errors.Is(err, io.EOF) {
		_ = l.deadline.SetReadDeadline(time.Time{})
	}
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge || err == nil || errors.Is(err, io.EOF) {
		return n, err
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return n, &httpError{status: http.StatusRequestTimeout, detail: "The body did not arrive in time. Send it again."}
	}
	return n, &httpError{status: http.StatusBadRequest, detail: "The body ended early. Send it again."}
}

// readAll reads a body of about size bytes, which may be unknown (-1).
func readAll(r io.Reader, size int64) ([]byte, error) {
	if size == 0 {
		return nil, nil
	}
	var buf bytes.Buffer
	if size > 0 {
		buf.Grow(int(size) + bytes.MinRead)
	}
	if _, err := buf.ReadFrom(r); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
