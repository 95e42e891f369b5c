package readapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/readapi"
)

// live serves the API as it is, for answers that do not end.
func (f *fixture) live() string {
	f.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := httptest.NewUnstartedServer(f.handler)
	s.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	s.Start()
	f.t.Cleanup(func() { cancel(); s.Close() })
	return s.URL
}

// block is a server-sent event; one without data only moves the id.
type block struct {
	id, kind, data string
	comment        bool
}

// follower reads server-sent events.
type follower struct {
	t    testing.TB
	resp *http.Response
	in   *bufio.Reader
}

func follow(t testing.TB, url string, header ...string) *follower {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	f := &follower{t, resp, bufio.NewReader(resp.Body)}
	if resp.StatusCode == http.StatusOK {
		if b, err := f.next(); err != nil || b.id == "" || b.data != "" {
			t.Fatal("the first block", b, err)
		}
	}
	return f
}

func (f *follower) next() (b block, err error) {
	for {
		line, err := f.in.ReadString('\n')
		if err != nil {
			return b, err
		}
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch name {
		case "":
			if value == "ping" {
				b.comment = true
				continue
			}
			return b, nil
		case "id":
			b.id = value
		case "event":
			b.kind = value
		case "data":
			b.data = value
		}
	}
}

// event is the next block with data.
func (f *follower) event() block {
	f.t.Helper()
	for {
		b, err := f.next()
		if err != nil {
			f.t.Fatal(err)
		}
		if b.data != "" {
			return b
		}
	}
}

// appendAt appends to a stream that stands at version; any goroutine may call it.
func (f *fixture) appendAt(stream string, version int64, es ...events.Event) {
	results, err := f.log.Append(context.Background(), eventlog.Entry{
		Outcome:  eventlog.Outcome{Command: uuid.New(), Name: "test", Stream: stream, Actor: "tester", Status: eventlog.Applied},
		Expected: version, Events: es,
	})
	if err != nil || results[0].Err != nil {
		f.t.Error(err, results)
	}
}

// Whoever follows, from wherever, and however often it connects again while events are appended, sees each event once and in order.
func TestEventsAreSeenOnce(t *testing.T) {
	f := start(t)
	url := f.live()
	const before, writers, each = 1500, 8, 250
	const all = before + writers*each
	var es []events.Event
	for range before {
		es = append(es, events.BuildQueued{})
	}
	f.appendAt("build/first/1/cp311/any", 0, es...)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := range each {
				f.appendAt(fmt.Sprintf("build/p%d/%d/cp311/any", w, n), 0, events.BuildQueued{Priority: n})
			}
		})
	}
	for n := range 6 {
		wg.Go(func() {
			at := int64(n) * 300
			for cuts := 0; at < all; cuts++ {
				s := follow(t, url+"/events?after=7", "Last-Event-ID", strconv.FormatInt(at, 10))
				for read := 0; at < all && (read < 100*n || n == 0); read++ {
					b, err := s.next()
					if err != nil {
						t.Errorf("follower %d at %d: %v", n, at, err)
						return
					}
					if b.data == "" {
						continue
					}
					if at++; b.id != strconv.FormatInt(at, 10) {
						t.Errorf("follower %d: %s, want %d", n, b.id, at)
						return
					}
				}
				s.resp.Body.Close()
			}
		})
	}
	wg.Wait()
}

// What is sent live and what is read from the log are the same bytes, and say everything.
func TestEventsOfTheTailAndOfTheLogAreTheSame(t *testing.T) {
	f := start(t)
	url := f.live()
	s := follow(t, url+"/events")
	e := events.BuildFailed{Attempt: 1, Class: events.ClassCompiler, Reason: "<é>\n\u2028 \x1b[31m&\r\n\nid: 9\n"}
	f.appendAt(id("flask").Stream(), 0, events.BuildQueued{}, e)
	_, live := s.event(), s.event()
	r := follow(t, url+"/events?after=1")
	if replayed := r.event(); replayed != live {
		t.Errorf("live\n%v\nreplayed\n%v", live, replayed)
	}
	var got struct {
		Position, Version            int64
		Stream, Type, Actor, Command string
		Time                         time.Time
		Data                         events.BuildFailed
	}
	if err := json.Unmarshal([]byte(live.data), &got); err != nil {
		t.Fatal(err)
	}
	if got.Position != 2 || got.Version != 2 || got.Stream != id("flask").Stream() || got.Type != "build.failed.v1" || got.Type != live.kind || live.id != "2" ||
		got.Actor != "tester" || uuid.Validate(got.Command) != nil || time.Since(got.Time) > time.Minute || got.Data.Reason != e.Reason {
		t.Errorf("%+v", got)
	}
}

func TestEventsFilters(t *testing.T) {
	f := start(t)
	url := f.live()
	a, b := id("a").Stream(), id("ab").Stream()
	grow := func(v int64) {
		f.appendAt(a, 2*v, events.BuildQueued{}, events.BuildLeased{Attempt: 1})
		f.appendAt(b, v, events.BuildQueued{})
		f.appendAt(events.QueueStream, v, events.QueuePaused{})
		f.appendAt(id("a").Log(int(v+1)), 0, events.LogAppended{FirstLine: 1, Lines: 1, Text: "x\n"})
	}
	grow(0)
	type want struct {
		query string
		ids   string
	}
	var open []*follower
	wants := []want{
		{"?after=0&stream=" + a, "1 2 6 7"},
		{"?after=0&stream=build/", "1 2 3 6 7 8"},
		{"?after=0&stream=build/a/", "1 2 6 7"},
		{"?after=0&type=build.queued.v1", "1 3 6 8"},
		{"?after=0&type=build.queued.v1&type=queue.paused.v1", "1 3 4 6 8 9"},
		{"?after=0&type=build.queued.v1&stream=" + b, "3 8"},
		{"?stream=log/", "10"},
		{"?after=3&stream=build/", "6 7 8"},
		{"?after=0", "1 2 3 4 5 6 7 8 9 10"},
		{"", "6 7 8 9 10"},
	}
	for _, w := range wants {
		open = append(open, follow(t, url+"/events"+w.query))
	}
	grow(1)
	f.appendAt("worker/last", 0, events.WorkerRegistered{Slots: 1})
	for i, w := range wants {
		for _, n := range strings.Fields(w.ids) {
			if got := open[i].event(); got.id != n {
				t.Errorf("%s: %s, want %s", w.query, got.id, n)
			}
		}
	}
	for _, query := range []string{"?stream=build", "?stream=%25/", "?type=build", "?type=x.v1%27", "?after=-1", "?after=x", "?kind=x", "?after=99999", "?stream="} {
		f.expect("/events"+query, http.StatusBadRequest)
	}
}

func TestEventsHeadersAndBadIDs(t *testing.T) {
	f := start(t)
	url := f.live()
	s := follow(t, url+"/events") // which has read the first block, and nothing has happened
	for name, want := range map[string]string{
		"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no",
	} {
		if got := s.resp.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for _, bad := range []string{"x", "-1", "1.5", "99999999999999999999", "7", "0x1", "1,2"} { // the log is empty
		if status, _, body := f.get("/events", "Last-Event-ID", bad); status != http.StatusBadRequest {
			t.Errorf("%q: %d %v", bad, status, body)
		}
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodHead, url+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil || resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Error(resp, err)
	}
	resp.Body.Close()
}

// A follower that nothing gets through to learns that the stream lives, and how far it is.
func TestEventsPingAndTell(t *testing.T) {
	defer readapi.PingEvery(50 * time.Millisecond)()
	f := start(t)
	url := f.live()
	var es []events.Event
	for range readapi.TellEvery + 10 {
		es = append(es, events.BuildQueued{})
	}
	f.appendAt(id("a").Stream(), 0, es...)
	s := follow(t, url+"/events?after=0&stream=queue/")
	told, pinged := false, false
	for range 20 {
		b, err := s.next()
		if err != nil {
			t.Fatal(err)
		}
		if n, _ := strconv.Atoi(b.id); n >= readapi.TellEvery && b.data == "" {
			told = true
		}
		if pinged = pinged || b.comment; told && pinged {
			break
		}
	}
	if !told || !pinged {
		t.Errorf("told %v, pinged %v", told, pinged)
	}
	f.appendAt(id("b").Stream(), 0, events.BuildQueued{})
	for b := (block{}); b.id != strconv.Itoa(readapi.TellEvery+11); {
		var err error
		if b, err = s.next(); err != nil {
			t.Fatal(err)
		}
	}
}

// A follower that does not read holds up neither appends nor others. It is dropped, and goes on where it was.
func TestASlowFollowerIsDroppedAndResumes(t *testing.T) {
	f := start(t)
	url := f.live()
	slow, quick := follow(t, url+"/events"), follow(t, url+"/events")
	const chunks = 600
	text := strings.Repeat(strings.Repeat("x", 99)+"\n", 600)
	begin := time.Now()
	go func() {
		for n := range chunks {
			f.appendAt(id("flask").Log(1), int64(n), events.LogAppended{Chunk: n, FirstLine: n*600 + 1, Lines: 600, Text: text})
		}
	}()
	for n := range chunks {
		if b := quick.event(); b.id != strconv.Itoa(n+1) {
			t.Fatalf("%s, want %d", b.id, n+1)
		}
	}
	if took := time.Since(begin); took > 9*time.Second {
		t.Errorf("the quick one took %v", took)
	}
	at := 0
	for {
		b := slow.event()
		if b.kind == "dropped" {
			if b.id != "" {
				t.Error("dropped has an id:", b)
			}
			break
		}
		if at++; b.id != strconv.Itoa(at) {
			t.Fatalf("%s, want %d", b.id, at)
		}
		if at == chunks {
			t.Fatal("the slow one was not dropped")
		}
	}
	if _, err := slow.next(); err == nil {
		t.Error("the stream goes on after dropped")
	}
	for s := follow(t, url+"/events", "Last-Event-ID", strconv.Itoa(at)); at < chunks; {
		if at++; s.event().id != strconv.Itoa(at) {
			t.Fatal("resumed wrongly at", at)
		}
	}
}

// Streams end with the server, and at once.
func TestStreamsEndAtShutdown(t *testing.T) {
	f := start(t)
	b := id("flask")
	f.add(b.Stream(), events.BuildQueued{}, events.BuildLeased{Attempt: 1})
	ctx, cancel := context.WithCancel(context.Background())
	s := httptest.NewUnstartedServer(f.handler)
	s.Config.BaseContext = func(net.Listener) context.Context { return ctx }
	s.Start()
	defer s.Close()
	streams := []*follower{follow(t, s.URL+"/events"), follow(t, s.URL+"/events?after=0&stream=queue/"), follow(t, s.URL+"/logs/flask/1.0?follow=true")}
	time.Sleep(50 * time.Millisecond)
	cancel()
	stopping, done := context.WithTimeout(t.Context(), 2*time.Second)
	defer done()
	if err := s.Config.Shutdown(stopping); err != nil {
		t.Error(err)
	}
	for _, s := range streams {
		for {
			if _, err := s.next(); err != nil {
				break
			}
		}
	}
	if _, err := http.Get(s.URL + "/events"); err == nil {
		t.Error("a stopped server answers")
	}
}
