package api_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/internal/access"
)

// dial sends the beginning of a request over a connection of its own.
func dial(t *testing.T, srv *httptest.Server, text string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return c
}

// A body that does not come ends the request and the connection, on every kind of route: those that read it, those that do not, and those
// that refuse before; with a length and without.
func TestSlowBodies(t *testing.T) {
	defer api.SetTimes(300*time.Millisecond, 300*time.Millisecond, time.Second)()
	open := httptest.NewServer(serve(t, api.Options{}, &server{put: func(r io.Reader) error {
		_, err := io.Copy(io.Discard, r)
		return err
	}}))
	defer open.Close()
	guarded := httptest.NewServer(serve(t, api.Options{Guard: guard(t, access.Config{Worker: "w", Read: "r"})}, &server{}))
	defer guarded.Close()
	upload := "Content-Type: application/octet-stream\r\nX-Content-SHA256: " + strings.Repeat("a", 64) + "\r\nX-Build: a/1/cp311/any\r\nX-Attempt: 1\r\n"
	for _, c := range []struct {
		srv             *httptest.Server
		request, header string
		status          int
	}{
		{open, "POST /queue/enqueue", "Content-Type: application/json\r\n", 408},
		{open, "POST /runs", "Content-Type: multipart/form-data; boundary=x\r\n", 0},
		{open, "PUT /artifacts/a-1-py3-none-any.whl", upload, 408},
		{open, "POST /session", "Content-Type: application/json\r\n", 408},
		{open, "GET /queue/stats", "", 408},
		{open, "GET /simple/a/", "", 200},
		{open, "GET /docs", "", 200},
		{open, "POST /nothing", "", 404},
		{guarded, "POST /queue/enqueue", "Content-Type: application/json\r\n", 401},
		{guarded, "GET /queue/stats", "", 401},
	} {
		for _, framing := range []string{"Content-Length: 1000\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"} {
			begin := time.Now()
			conn := dial(t, c.srv, c.request+" HTTP/1.1\r\nHost: localhost\r\n"+c.header+framing)
			_ = conn.SetDeadline(begin.Add(5 * time.Second))
			in := bufio.NewReader(conn)
			answer, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Errorf("%s: no answer: %v", c.request, err)
				continue
			}
			if c.status != 0 && answer.StatusCode != c.status || c.status == 0 && answer.StatusCode < 400 {
				t.Errorf("%s %.20q: %s, want %d", c.request, framing, answer.Status, c.status)
			}
			if _, err := io.Copy(io.Discard, answer.Body); err != nil {
				t.Errorf("%s: %v", c.request, err)
			}
			if _, err := in.ReadByte(); err == nil || strings.Contains(err.Error(), "timeout") {
				t.Errorf("%s %.20q: the connection stays: %v", c.request, framing, err)
			}
			if took := time.Since(begin); took > 3*time.Second {
				t.Errorf("%s %.20q took %v", c.request, framing, took)
			}
		}
	}
}

// An upload that trickles is cut, although each piece comes in time.
func TestTricklingUpload(t *testing.T) {
	defer api.SetTimes(300*time.Millisecond, 300*time.Millisecond, time.Second)()
	srv := httptest.NewServer(serve(t, api.Options{}, &server{put: func(r io.Reader) error {
		_, err := io.Copy(io.Discard, r)
		return err
	}}))
	defer srv.Close()
	conn := dial(t, srv, "PUT /artifacts/a-1-py3-none-any.whl HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\nX-Content-SHA256: "+
		strings.Repeat("a", 64)+"\r\nX-Build: a/1/cp311/any\r\nX-Attempt: 1\r\nContent-Length: 1000000\r\n\r\n")
	go func() {
		for {
			if _, err := conn.Write([]byte("x")); err != nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}()
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusRequestTimeout {
		t.Error(answer.Status)
	}
}

// A connection is used again after a request with a body and after a pause that is longer than any deadline of the request before.
func TestDeadlinesEndWithTheirRequest(t *testing.T) {
	defer api.SetTimes(200*time.Millisecond, 200*time.Millisecond, 200*time.Millisecond)()
	srv := httptest.NewServer(serve(t, api.Options{}, &server{}))
	defer srv.Close()
	conn := dial(t, srv, "")
	in := bufio.NewReader(conn)
	for i := range 3 {
		body := enqueueFlask
		fmt.Fprintf(conn, "POST /queue/enqueue HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", len(body))
		if line, err := in.ReadString('\n'); err != nil || !strings.Contains(line, "100") {
			t.Fatalf("%d: %q %v", i, line, err)
		}
		if _, err := in.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, body)
		answer, err := http.ReadResponse(in, nil)
		if err != nil || answer.StatusCode != 201 {
			t.Fatalf("%d: %v %v", i, answer, err)
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		time.Sleep(400 * time.Millisecond)
		fmt.Fprintf(conn, "HEAD /queue/stats HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if answer, err = http.ReadResponse(in, &http.Request{Method: "HEAD"}); err != nil || answer.StatusCode != 200 {
			t.Fatalf("%d: %v %v", i, answer, err)
		}
		time.Sleep(400 * time.Millisecond)
	}
}

// Who does not take an answer does not hold its handler for ever; who takes it slowly gets all of it.
func TestSlowReaders(t *testing.T) {
	defer api.SetTimes(time.Second, time.Second, time.Second)()
	const size = 24 << 20
	ended := make(chan error, 1)
	index := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/simple/written/" {
			var err error
			for n := 0; n < size && err == nil; n += 1 << 20 {
				_, err = w.Write(make([]byte, 1<<20))
			}
			ended <- err
			return
		}
		_, err := io.Copy(w, bytes.NewReader(make([]byte, size)))
		ended <- err
	})
	h, err := api.New(api.Options{Logger: slog.New(slog.DiscardHandler)}, &server{}, index)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	defer srv.Close()
	for _, path := range []string{"/simple/written/", "/simple/copied/"} {
		dial(t, srv, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\n\r\n")
		select {
		case err := <-ended:
			if err == nil {
				t.Errorf("%s: all was sent to somebody who takes nothing", path)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: the handler waits for ever", path)
		}
		conn := dial(t, srv, "GET "+path+" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
		got, buf := 0, make([]byte, 256<<10)
		for {
			n, err := conn.Read(buf)
			got += n
			if err != nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if err := <-ended; err != nil || got < size {
			t.Errorf("%s: %d bytes came slowly: %v", path, got, err)
		}
	}
}
