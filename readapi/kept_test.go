package readapi_test

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/events"
)

// traced makes the fixture read through a pool of at most so many connections that counts round trips.
func (f *fixture) traced(most int32) *tracer {
	f.t.Helper()
	seen := &tracer{}
	cfg := f.reads.Config()
	cfg.ConnConfig.Tracer, cfg.MaxConns = seen, most
	pool, err := pgxpool.NewWithConfig(f.t.Context(), cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(pool.Close)
	f.options.Pool = pool
	f.serve()
	return seen
}

// together sends the paths at once and returns the statuses.
func (f *fixture) together(paths []string) map[int]int {
	f.t.Helper()
	server := httptest.NewServer(f.handler) // without the check of the contract, which takes longer than the reads
	defer server.Close()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: len(paths)}}
	defer client.CloseIdleConnections()
	var mu sync.Mutex
	var wg sync.WaitGroup
	statuses := map[int]int{}
	for _, path := range paths {
		wg.Go(func() {
			resp, err := client.Get(server.URL + path)
			if err != nil {
				f.t.Error(err)
				return
			}
			defer resp.Body.Close()
			_, _ = io.Copy(io.Discard, resp.Body)
			mu.Lock()
			defer mu.Unlock()
			statuses[resp.StatusCode]++
		})
	}
	wg.Wait()
	return statuses
}

// Who has written something and then reads sees it, whatever was kept: with the wait of a write, and with min_position.
func TestKeptAnswersAreNeverStale(t *testing.T) {
	f := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range 4 { // what others read fills what is kept at any moment
		wg.Go(func() {
			for ctx.Err() == nil {
				f.expect("/history?limit=500", http.StatusOK)
				f.expect("/queue/stats", http.StatusOK)
			}
		})
	}
	for n := range 60 {
		b := id(fmt.Sprintf("p-%d", n))
		if n%2 == 0 {
			f.add(b.Stream(), events.BuildQueued{}, events.BuildCancelled{Reason: "x"})
		} else {
			results := f.append(b.Stream(), events.BuildQueued{}, events.BuildCancelled{Reason: "x"})
			_, _, body := f.get(fmt.Sprintf("/history?limit=500&min_position=%d", results))
			f.same(n+1, len(items(body)))
		}
		f.same(n+1, len(items(f.expect("/history?limit=500", http.StatusOK))))
		f.same(0, pick(f.expect("/queue/stats", http.StatusOK), "length"))
	}
}

func TestWhoWantsTheSameSharesOneQuery(t *testing.T) {
	f := start(t)
	seen := f.traced(4)
	lists["/history"](f, 1)
	paths := make([]string, 50)
	for i := range paths {
		paths[i] = "/history"
	}
	if got := f.together(paths); got[http.StatusOK] != 50 {
		t.Error(got)
	}
	if seen.trips != 1 {
		t.Errorf("%d round trips", seen.trips)
	}
	// Ages grow without an event.
	lists["/queue"](f, 1)
	f.same(0, pick(f.expect("/queue", http.StatusOK), "items", 0, "age_seconds"))
	time.Sleep(1600 * time.Millisecond)
	if age := pick(f.expect("/queue", http.StatusOK), "items", 0, "age_seconds"); age == 0.0 {
		t.Error("an age was kept")
	}
	if age := pick(f.expect("/summary", http.StatusOK), "queue", "oldest_age_seconds"); age == 0.0 {
		t.Error("an age was kept")
	}
}

// The one for whom an answer is made goes away; those who share it get it all the same.
func TestAClientThatGoesTakesNobodyWithIt(t *testing.T) {
	f := start(t)
	lists["/history"](f, 1)
	release := f.lock("history.entries")
	ask := func(ctx context.Context) (answered chan int) {
		answered = make(chan int)
		go func() {
			w := httptest.NewRecorder()
			f.handler.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/history", nil))
			answered <- w.Body.Len()
		}()
		time.Sleep(100 * time.Millisecond)
		return answered
	}
	ctx, cancel := context.WithCancel(t.Context())
	goes := ask(ctx)
	stays := ask(t.Context())
	cancel()
	if n := <-goes; n > 0 {
		t.Errorf("the first was answered with %d bytes", n)
	}
	release()
	if n := <-stays; n == 0 {
		t.Error("the second was not answered")
	}
}

// lock locks a table until release is called.
func (f *fixture) lock(table string) (release func()) {
	f.t.Helper()
	tx, err := f.pool.Begin(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	if _, err := tx.Exec(f.t.Context(), "lock table "+table); err != nil {
		f.t.Fatal(err)
	}
	return sync.OnceFunc(func() {
		if err := tx.Rollback(context.Background()); err != nil {
			f.t.Error(err)
		}
	})
}

// 500 clients who all want something else, and a table that somebody has locked: those who read it wait or are sent away, the others are
// served as ever, and no more connections are opened than allowed.
func TestALockedTableSlowsOnlyWhatReadsIt(t *testing.T) {
	f := start(t)
	for i := range 20 {
		f.add(id(fmt.Sprintf("p-%d", i)).Stream(), events.BuildQueued{}, events.BuildLeased{Attempt: 1}, events.BuildFailed{Attempt: 1})
	}
	f.traced(24)
	release := f.lock("history.entries")
	defer release()
	var blocked, free []string
	for i := range 100 {
		blocked = append(blocked, fmt.Sprintf("/history?limit=%d", i+1), fmt.Sprintf("/recent?limit=%d", i+1), fmt.Sprintf("/summary?failure_limit=%d", i+1))
		free = append(free, fmt.Sprintf("/builds?limit=%d", i+1), fmt.Sprintf("/artifacts?limit=%d", i+1), fmt.Sprintf("/queue?limit=%d", i+1))
	}
	done := make(chan map[int]int)
	go func() { done <- f.together(blocked) }()
	time.Sleep(200 * time.Millisecond)
	begin := time.Now()
	if got := f.together(free); got[http.StatusOK] != len(free) {
		t.Errorf("while history is locked, others get %v", got)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("others took %v", took)
	}
	var conns int
	if err := f.pool.QueryRow(t.Context(), "select count(*) from pg_stat_activity where application_name = 'refinery-read' and datname = current_database()").Scan(&conns); err != nil || conns > 24+4 {
		t.Errorf("%d connections: %v", conns, err)
	}
	got := <-done
	if got[http.StatusServiceUnavailable] == 0 || got[http.StatusServiceUnavailable]+got[http.StatusOK] != len(blocked) {
		t.Errorf("those who read it get %v", got)
	}
	release()
	f.expect("/history?limit=1", http.StatusOK)
	if got := f.together(append(blocked[:250], free[:250]...)); got[http.StatusOK] != 500 {
		t.Errorf("500 clients get %v", got)
	}
}

func TestGzip(t *testing.T) {
	f := start(t)
	for n := range 10 {
		lists["/history"](f, n)
	}
	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	defer client.CloseIdleConnections()
	read := func(path, accept string) (encoding, body, etag, length string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if accept != "" {
			r.Header.Set("Accept-Encoding", accept)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var from io.Reader = resp.Body
		if encoding = resp.Header.Get("Content-Encoding"); encoding == "gzip" {
			if from, err = gzip.NewReader(resp.Body); err != nil {
				t.Fatal(err)
			}
		}
		text, err := io.ReadAll(from)
		if err != nil {
			t.Fatal(err)
		}
		if len(text) > 1400 && resp.Header.Get("Vary") != "Accept-Encoding" {
			t.Errorf("%s: Vary is %q", path, resp.Header.Get("Vary"))
		}
		return encoding, string(text), resp.Header.Get("ETag"), resp.Header.Get("Content-Length")
	}
	for _, path := range []string{"/history", "/openapi.yaml"} {
		_, plain, etag, _ := read(path, "")
		for accept, want := range map[string]string{
			"": "", "identity": "", "br": "", "gzip;q=0": "", "gzip;q=0.0, deflate": "", "gzip": "gzip", "deflate, GZIP;q=0.5": "gzip", "gzip, zstd": "gzip",
		} {
			encoding, body, tag, _ := read(path, accept)
			if encoding != want || body != plain || tag != etag {
				t.Errorf("%s, Accept-Encoding %q: %q, want %q; the same body: %v; ETag %s, plain %s", path, accept, encoding, want, body == plain, tag, etag)
			}
		}
	}
	if encoding, _, etag, _ := read("/history?limit=1", "gzip"); encoding != "" || !strings.HasPrefix(etag, "W/") {
		t.Errorf("a few bytes are sent as %q, ETag %s", encoding, etag)
	}
	_, _, etag, _ := read("/history", "gzip")
	if status, _, _ := f.get("/history", "If-None-Match", etag); status != http.StatusNotModified {
		t.Errorf("%d for the ETag of the compressed answer", status)
	}
}

// Every response says which position it covers, whatever it is.
func TestEveryResponseHasAPosition(t *testing.T) {
	f := start(t)
	last := f.add(id("a").Stream(), events.BuildQueued{})
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{http.MethodGet, "/history", 200},
		{http.MethodHead, "/history", 200},
		{http.MethodGet, "/health", 200},
		{http.MethodGet, "/config", 200},
		{http.MethodGet, "/openapi.yaml", 200},
		{http.MethodGet, "/nothing", 404},
		{http.MethodGet, "/plan", 404},
		{http.MethodGet, "/history?limit=0", 400},
		{http.MethodGet, "/projections", 200},
		{http.MethodGet, "/workers", 200},
		{http.MethodDelete, "/history", 405},
		{http.MethodPost, "/queue/enqueue", 415}, // a write
	} {
		var body io.Reader
		if c.method == http.MethodPost {
			body = strings.NewReader("x")
		}
		w := httptest.NewRecorder()
		f.handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), c.method, c.path, body))
		if w.Code != c.status || w.Header().Get("Refinery-Position") != fmt.Sprint(last) {
			t.Errorf("%s %s: %d, Refinery-Position %q, want %d", c.method, c.path, w.Code, w.Header().Get("Refinery-Position"), last)
		}
	}
}
