package main

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/wheelrefinery/refinery/internal/pgtest"
)

// route is what is measured: path gives another one for each request, where there are several.
type route struct {
	name     string
	path     func(rng *rand.Rand) string
	least    float64       // requests a second at the larger size; 0: half of /health
	slowest  time.Duration // p99
	measured [2]load
	cold     [2]load // nothing is kept: every request is answered from Postgres
}

const (
	apiClients = 16
	apiWindow  = 3 * time.Second
)

// BenchmarkAPI reads over HTTP from a log of 10,000 events and one of a million (BENCH_EVENTS), with 16 connections, beside GET /health.
// Clients, control plane and Postgres share the machine. It prints a table with the limits. What a read costs at both sizes is compared with
// nothing kept: at the smaller size everything would be.
func BenchmarkAPI(b *testing.B) {
	sizes := [2]int64{10_000, 1_000_000}
	if n, err := strconv.ParseInt(os.Getenv("BENCH_EVENTS"), 10, 64); err == nil {
		sizes[1] = n
	}
	for b.Loop() {
		s := &seeder{rng: rand.New(rand.NewPCG(1, 2))}
		always := func(path string) func(*rand.Rand) string { return func(*rand.Rand) string { return path } }
		var begin, end time.Time
		routes := []*route{
			{name: "/health", path: always("/health")},
			{name: "/summary", path: always("/summary")},
			{name: "/queue/stats", path: always("/queue/stats")},
			{name: "/recent", path: always("/recent")},
			{name: "/history?package=…", least: 2500, slowest: 25 * time.Millisecond, path: func(r *rand.Rand) string {
				return "/history?package=" + s.projects[r.IntN(len(s.projects))]
			}},
			{name: "/history?run_id=…", least: 2500, slowest: 25 * time.Millisecond, path: func(r *rand.Rand) string {
				return "/history?run_id=" + s.runs[r.IntN(len(s.runs))].String()
			}},
			{name: "/history?from=…&to=…", least: 2500, slowest: 25 * time.Millisecond, path: func(r *rand.Rand) string {
				from := begin.Add(time.Duration(r.Int64N(int64(end.Sub(begin)))))
				return "/history?" + url.Values{"from": {from.Format(time.RFC3339Nano)}, "to": {from.Add(end.Sub(begin) / 10).Format(time.RFC3339Nano)}}.Encode()
			}},
			{name: "/stats/failures", least: 2500, slowest: 25 * time.Millisecond, path: always("/stats/failures")},
			{name: "/packages/{name}", least: 2500, slowest: 25 * time.Millisecond, path: func(r *rand.Rand) string {
				return "/packages/" + s.projects[r.IntN(len(s.projects))]
			}},
			{name: "/history?status=failed&limit=500", least: 500, path: always("/history?status=failed&limit=500")},
		}
		for i, size := range sizes {
			// Each size has a database of its own: a project has as many builds in both.
			*s = seeder{rng: s.rng}
			dsn := pgtest.DurableDSN(b)
			begin = time.Now().UTC()
			seed(b, dsn, s, size)
			end = time.Now().UTC()
			fmt.Printf("%d events after %v\n", size, end.Sub(begin).Round(time.Second))
			p, err := startPlane(b.Context(), controlSettings{PostgresDSN: dsn, QueueBackend: "file", HTTPAddr: freeAddr(b)}, b.TempDir(), slog.New(slog.DiscardHandler))
			if err != nil {
				b.Fatal(err)
			}
			for _, r := range routes {
				hammer(b, p.HTTPAddr, r, apiWindow/3, nil) // fills what is kept
				r.measured[i] = hammer(b, p.HTTPAddr, r, apiWindow, nil)
				r.cold[i] = hammer(b, p.HTTPAddr, r, apiWindow, func() { p.log.Touch(p.read.Names()...) })
			}
			if err := p.stop(); err != nil {
				b.Fatal(err)
			}
		}
		report(routes, sizes)
	}
}

// hammer sends requests over connections of its own, as cheaply as can be: what the clients take the server lacks. Before each it calls
// before, if there is one.
func hammer(b *testing.B, addr string, r *route, window time.Duration, before func()) load {
	b.Helper()
	var mu sync.Mutex
	var l load
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range apiClients {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(begin.UnixNano()), uint64(i)))
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				b.Error(err)
				return
			}
			defer conn.Close()
			answers := bufio.NewReaderSize(conn, 64<<10)
			var own []time.Duration
			for time.Since(begin) < window {
				if before != nil {
					before()
				}
				t0 := time.Now()
				if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", r.path(rng)); err != nil {
					b.Error(err)
					return
				}
				answer, err := http.ReadResponse(answers, nil)
				if err != nil {
					b.Error(err)
					return
				}
				if _, err := io.Copy(io.Discard, answer.Body); err != nil || answer.StatusCode != http.StatusOK {
					b.Errorf("%s: %d %v", r.name, answer.StatusCode, err)
					return
				}
				own = append(own, time.Since(t0))
			}
			mu.Lock()
			defer mu.Unlock()
			l.latencies = append(l.latencies, own...)
		})
	}
	wg.Wait()
	l.count = len(l.latencies)
	l.rate = float64(l.count) / time.Since(begin).Seconds()
	slices.Sort(l.latencies)
	return l
}

func report(routes []*route, sizes [2]int64) {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "route\t%d: /s\t%d: /s\tof /health\tp50 ms\tp99 ms\tcold: /s\tcost\tlimit\t\n", sizes[0], sizes[1])
	health := routes[0].measured
	for _, r := range routes {
		small, large := r.measured[0], r.measured[1]
		fraction, cost := large.rate/health[1].rate, r.cold[0].rate/r.cold[1].rate*health[1].rate/health[0].rate
		var limits, missed []string
		limit := func(ok bool, format string, args ...any) {
			limits = append(limits, fmt.Sprintf(format, args...))
			if !ok {
				missed = append(missed, limits[len(limits)-1])
			}
		}
		switch {
		case r == routes[0]:
		case r.least == 0:
			limit(fraction >= 0.5, "≥ 0.5 of /health")
		default:
			limit(large.rate >= r.least, "≥ %.0f/s", r.least)
		}
		if r.slowest > 0 {
			limit(large.percentile(99) <= float64(r.slowest.Milliseconds()), "p99 ≤ %v", r.slowest)
		}
		if r != routes[0] {
			limit(cost <= 1.3, "cost ≤ 1.3")
		}
		verdict := ""
		if len(missed) > 0 {
			verdict = "MISSED: " + strings.Join(missed, ", ")
		}
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.2f\t%.2f\t%.2f\t%.0f\t%.2f\t%s\t%s\n", r.name, small.rate, large.rate, fraction,
			large.percentile(50), large.percentile(99), r.cold[1].rate, cost, strings.Join(limits, ", "), verdict)
	}
	w.Flush()
}
