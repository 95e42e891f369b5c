package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

// startBench starts a control plane whose parts are those of `refinery serve`, on a durable Postgres.
func startBench(b *testing.B, change ...func(*controlSettings)) *plane {
	b.Helper()
	dir := b.TempDir()
	logger := slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelInfo}))
	c := controlSettings{
		PostgresDSN: pgtest.DurableDSN(b), QueueBackend: "file", HTTPAddr: freeAddr(b), UIAddr: "", MaxAttempts: 3, KeepOutcomes: time.Hour,
	}
	for _, f := range change {
		f(&c)
	}
	p, err := startPlane(b.Context(), c, dir, logger)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := p.stop(); err != nil {
			b.Error(err)
		}
	})
	return p
}

// load sends requests from n clients for a while and returns how many were answered, and how long each took.
type load struct {
	count     int
	rate      float64
	latencies []time.Duration // sorted
}

func (l load) percentile(p int) float64 {
	return float64(l.latencies[min(len(l.latencies)-1, len(l.latencies)*p/100)].Microseconds()) / 1000
}

var serial atomic.Int64

func (p *plane) load(b *testing.B, clients int, window time.Duration, prefer string, want int) load {
	b.Helper()
	return loadAt(b, p.url(), clients, window, prefer, want)
}

func loadAt(b *testing.B, url string, clients int, window time.Duration, prefer string, want int) load {
	b.Helper()
	var mu sync.Mutex
	var l load
	var wg sync.WaitGroup
	begin := time.Now()
	for range clients {
		wg.Go(func() {
			c, err := dial(url)
			if err != nil {
				b.Error(err)
				return
			}
			defer c.Close()
			var own []time.Duration
			for time.Since(begin) < window {
				var r *http.Request
				if want == http.StatusOK {
					r, _ = http.NewRequest(http.MethodGet, url+"/health", nil)
				} else {
					body := fmt.Sprintf(`{"package":"bench-%d","version":"1.0","python_tag":"cp311","platform_tag":"linux_x86_64"}`, serial.Add(1))
					r, _ = http.NewRequest(http.MethodPost, url+"/queue/enqueue", strings.NewReader(body))
					r.Header.Set("Content-Type", "application/json")
					if prefer != "" {
						r.Header.Set("Prefer", prefer)
					}
				}
				t0 := time.Now()
				status, text, err := c.do(r)
				if err != nil || status != want {
					b.Errorf("%d %v %s", status, err, text)
					return
				}
				own = append(own, time.Since(t0))
			}
			mu.Lock()
			l.latencies = append(l.latencies, own...)
			mu.Unlock()
		})
	}
	wg.Wait()
	l.count = len(l.latencies)
	l.rate = float64(l.count) / time.Since(begin).Seconds()
	slices.Sort(l.latencies)
	return l
}

// connection is one of a load, without the goroutines and channels of http.Client: on a machine that the load shares with what it
// measures, they took a tenth of the processor.
type connection struct {
	net.Conn
	buf *bufio.ReadWriter
}

func dial(url string) (*connection, error) {
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		return nil, err
	}
	return &connection{conn, bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))}, nil
}

func (c *connection) do(r *http.Request) (status int, body []byte, err error) {
	if err := errors.Join(r.Write(c.buf), c.buf.Flush()); err != nil {
		return 0, nil, err
	}
	answer, err := http.ReadResponse(c.buf.Reader, r)
	if err != nil {
		return 0, nil, err
	}
	defer answer.Body.Close()
	body, err = io.ReadAll(answer.Body)
	return answer.StatusCode, body, err
}

func middle(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// BenchmarkPost measures POST /queue/enqueue over HTTP, with the wait for outcome and read models and without, beside GET /health and a
// bare publish to the bus in the same run. Client, control plane and Postgres share the machine. Medians of three rounds.
func BenchmarkPost(b *testing.B) {
	const rounds, window = 3, 2 * time.Second
	for b.Loop() {
		p := startBench(b)
		var health, publish, one50, w64, w64p50, w64p99, async, kept, rest []float64
		for range rounds {
			health = append(health, p.load(b, 16, window/2, "", http.StatusOK).rate)
			publish = append(publish, barePublish(b, bareBus(b, controlSettings{QueueBackend: "file"}), 64, window/2))
			one50 = append(one50, p.load(b, 1, window/2, "", http.StatusCreated).percentile(50))
			l := p.load(b, 64, window, "", http.StatusCreated)
			w64, w64p50, w64p99 = append(w64, l.rate), append(w64p50, l.percentile(50)), append(w64p99, l.percentile(99))
			before := p.log.Head()
			l = p.load(b, 16, window, "respond-async", http.StatusAccepted)
			handled := p.log.Head() - before
			end := time.Now()
			for p.log.Head() < before+int64(l.count) && time.Since(end) < 10*time.Second {
				time.Sleep(time.Millisecond)
			}
			async = append(async, l.rate)
			kept = append(kept, 100*float64(handled)/float64(l.count))
			rest = append(rest, float64(time.Since(end).Milliseconds()))
		}
		b.ReportMetric(middle(health), "health/s")
		b.ReportMetric(middle(publish), "publish64/s")
		b.ReportMetric(middle(one50), "1-p50-ms")
		b.ReportMetric(middle(w64), "64/s")
		b.ReportMetric(middle(w64p50), "64-p50-ms")
		b.ReportMetric(middle(w64p99), "64-p99-ms")
		b.ReportMetric(middle(async), "async16/s")
		b.ReportMetric(middle(kept), "async-handled-%")
		b.ReportMetric(middle(rest), "async-rest-ms")
	}
}

// BenchmarkLogSize compares appends and posts with the wait on two control planes side by side, with 10,000 and with 1,000,000 events in
// the log and in their read models. The two take turns, since what else the machine does comes and goes.
func BenchmarkLogSize(b *testing.B) {
	const rounds, window = 7, time.Second
	for b.Loop() {
		var planes [2]*plane
		for i, size := range []int64{10_000, 1_000_000} {
			p := startBench(b)
			fill(b, p.log, size)
			ctx, cancel := context.WithTimeout(b.Context(), 10*time.Minute)
			if err := p.read.Wait(ctx, p.log.Head()); err != nil {
				b.Fatal(err)
			}
			cancel()
			// What autovacuum would soon do, now and not while it is measured.
			if _, err := p.pool.Exec(b.Context(), `vacuum analyze`); err != nil {
				b.Fatal(err)
			}
			p.load(b, 64, window, "", http.StatusCreated)
			planes[i] = p
		}
		var posts, appends [2][]float64
		for range rounds {
			for i, p := range planes {
				posts[i] = append(posts[i], p.load(b, 64, window, "", http.StatusCreated).rate)
				appends[i] = append(appends[i], appendRate(b, p, 64, window))
			}
		}
		b.ReportMetric(middle(posts[0]), "posts-10k/s")
		b.ReportMetric(middle(posts[1]), "posts-1M/s")
		b.ReportMetric(middle(posts[1])/middle(posts[0]), "posts-1M/10k")
		b.ReportMetric(middle(appends[0]), "appends-10k/s")
		b.ReportMetric(middle(appends[1]), "appends-1M/s")
		b.ReportMetric(middle(appends[1])/middle(appends[0]), "appends-1M/10k")
	}
}

// appendRate is how many commands of one event n writers append a second, and waits until the read models have them.
func appendRate(b *testing.B, p *plane, n int, window time.Duration) float64 {
	b.Helper()
	var count atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for range n {
		wg.Go(func() {
			for time.Since(begin) < window {
				id := events.BuildID{Name: fmt.Sprintf("append-%d", serial.Add(1)), Version: "1.0", PythonTag: "cp311", PlatformTag: "linux_x86_64"}
				results, err := p.log.Append(b.Context(), eventlog.Entry{
					Outcome: eventlog.Outcome{Command: uuid.Must(uuid.NewV7()), Name: "append", Stream: id.Stream(), Actor: "bench", Status: eventlog.Applied},
					Events:  []events.Event{events.BuildQueued{Priority: 3}},
				})
				if err != nil || results[0].Err != nil {
					b.Error(err, results)
					return
				}
				count.Add(1)
			}
		})
	}
	wg.Wait()
	rate := float64(count.Load()) / time.Since(begin).Seconds()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	if err := p.read.Wait(ctx, p.log.Head()); err != nil {
		b.Fatal(err)
	}
	return rate
}

// fill appends histories of builds until the log holds size events.
func fill(b *testing.B, log *eventlog.Log, size int64) {
	b.Helper()
	now := time.Now().UTC()
	for log.Head() < size {
		var entries []eventlog.Entry
		for range 200 {
			id := events.BuildID{Name: fmt.Sprintf("fill-%d", serial.Add(1)), Version: "1.0", PythonTag: "cp311", PlatformTag: "linux_x86_64"}
			file := events.File{Filename: id.Name + "-1.0.tar.gz", URL: "https://files.example/" + id.Name, SHA256: fmt.Sprintf("%064x", 7)}
			entries = append(entries, eventlog.Entry{
				Outcome: eventlog.Outcome{Command: uuid.Must(uuid.NewV7()), Name: "fill", Stream: id.Stream(), Actor: "bench", Status: eventlog.Applied},
				Events: []events.Event{
					events.BuildQueued{Sdist: &file},
					events.BuildLeased{Attempt: 1, Worker: "w", ExpiresAt: now},
					events.BuildStarted{Attempt: 1},
					events.BuildSucceeded{Attempt: 1, Worker: "w", Wheel: file, StartedAt: now, DurationMS: 1000, LogLines: 10},
				},
			})
		}
		if _, err := log.Append(b.Context(), entries...); err != nil {
			b.Fatal(err)
		}
	}
}
