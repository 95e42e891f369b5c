package main

import (
	"bufio"
	"encoding/json"
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

	"github.com/jackc/pgx/v5"

	"github.com/wheelrefinery/refinery/internal/pgtest"
)

// route is what is measured: path gives another one for each request, where there are several.
type route struct {
	name    string
	path    func(s *site, rng *rand.Rand) string
	equal   func(s *site, rng *rand.Rand) string // where path gives fewer items at the smaller size: what is compared
	least   float64                              // requests a second at the larger size; 0: half of /health
	slowest time.Duration                        // p99
	rounds  []round
}

// round is one measurement of a route at both sizes, one directly after the other; cold with nothing kept: every request is answered from
// Postgres.
type round struct{ kept, cold [2]load }

// site is a control plane over a seeded log.
type site struct {
	*plane
	seeder
	times []time.Time // at which something ended, each once
}

const (
	apiClients = 16
	apiRounds  = 5
	apiWindow  = time.Second
)

func always(path string) func(*site, *rand.Rand) string {
	return func(*site, *rand.Rand) string { return path }
}

func apiRoutes() []*route {
	const quick = 25 * time.Millisecond
	project := func(s *site, r *rand.Rand) string { return s.projects[r.IntN(len(s.projects))] }
	return []*route{
		{name: "/health", path: always("/health")},
		{name: "/summary", path: always("/summary")},
		{name: "/queue/stats", path: always("/queue/stats")},
		{name: "/recent", path: always("/recent")},
		{name: "/history?package=…", least: 2500, slowest: quick, path: func(s *site, r *rand.Rand) string {
			return "/history?package=" + project(s, r)
		}},
		{name: "/history?run_id=…", least: 2500, slowest: quick, path: func(s *site, r *rand.Rand) string {
			return "/history?run_id=" + s.runs[r.IntN(len(s.runs))].String()
		}},
		{name: "/history?from=…&to=…", least: 2500, slowest: quick, path: func(s *site, r *rand.Rand) string {
			tenth := max(1, len(s.times)/10) // each time has more entries than a page
			i := r.IntN(len(s.times) - tenth)
			return "/history?" + url.Values{"from": {s.times[i].Format(time.RFC3339Nano)}, "to": {s.times[i+tenth].Format(time.RFC3339Nano)}}.Encode()
		}},
		{name: "/stats/failures", least: 2500, slowest: quick, path: always("/stats/failures")},
		{name: "/packages/{name}", least: 2500, slowest: quick, path: func(s *site, r *rand.Rand) string {
			return "/packages/" + project(s, r)
		}},
		{
			name: "/history?status=failed&limit=500", least: 500, path: always("/history?status=failed&limit=500"),
			equal: always("/history?status=failed&limit=250"), // 10,000 events hold some 300 failures
		},
	}
}

// BenchmarkAPI reads over HTTP from a log of 10,000 events and one of a million (BENCH_EVENTS), with 16 connections, beside GET /health.
// Clients, control plane and Postgres share the machine. It prints a table of medians with the limits. What a read costs at both sizes is
// compared with nothing kept, at the smaller size everything would be, and over answers with as many items.
func BenchmarkAPI(b *testing.B) {
	sizes := [2]int64{10_000, 1_000_000}
	if n, err := strconv.ParseInt(os.Getenv("BENCH_EVENTS"), 10, 64); err == nil {
		sizes[1] = n
	}
	for b.Loop() {
		var sites [2]*site
		for i, size := range sizes {
			sites[i] = openSite(b, size) // a database for each: a project has as many builds in both
		}
		time.Sleep(5 * time.Second) // what a start brings to the log, such as the catalogue of hints
		routes := apiRoutes()
		for _, r := range routes {
			if r.equal == nil {
				r.equal = r.path
			}
			if a, z := sites[0].items(b, r), sites[1].items(b, r); a != z {
				b.Errorf("%s: %d items in 20 answers at %d events, %d at %d", r.name, a, sizes[0], z, sizes[1])
			}
		}
		for range apiRounds {
			for _, r := range routes {
				var now round
				for i, s := range sites {
					hammer(b, s, r.path, apiWindow/4, nil) // fills what is kept
					now.kept[i] = hammer(b, s, r.path, apiWindow, nil)
				}
				for i, s := range sites {
					now.cold[i] = hammer(b, s, r.equal, apiWindow, func() { s.plane.log.Touch(s.read.Names()...) })
				}
				r.rounds = append(r.rounds, now)
			}
		}
		for _, s := range sites {
			if err := s.stop(); err != nil {
				b.Fatal(err)
			}
		}
		report(routes, sizes)
	}
}

func openSite(b *testing.B, size int64) *site {
	b.Helper()
	s, begin := &site{seeder: seeder{rng: rand.New(rand.NewPCG(1, 2))}}, time.Now()
	dsn := pgtest.DurableDSN(b)
	seed(b, dsn, &s.seeder, size)
	fmt.Printf("%d events after %v\n", size, time.Since(begin).Round(time.Second))
	var err error
	if s.plane, err = startPlane(b.Context(), controlSettings{
		PostgresDSN: dsn, QueueBackend: "file", HTTPAddr: freeAddr(b), MaxAttempts: 3, KeepOutcomes: time.Hour,
	}, b.TempDir(), slog.New(slog.DiscardHandler)); err != nil {
		b.Fatal(err)
	}
	rows, err := s.pool.Query(b.Context(), `select distinct time from history.entries order by time`)
	if err != nil {
		b.Fatal(err)
	}
	if s.times, err = pgx.CollectRows(rows, pgx.RowTo[time.Time]); err != nil {
		b.Fatal(err)
	}
	return s
}

// items counts the items of 20 answers.
func (s *site) items(b *testing.B, r *route) (n int) {
	b.Helper()
	rng := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		answer, err := http.Get(s.url() + r.equal(s, rng))
		if err != nil {
			b.Fatal(err)
		}
		var list struct{ Items []json.RawMessage }
		err = json.NewDecoder(answer.Body).Decode(&list)
		answer.Body.Close()
		if err != nil {
			b.Fatal(err)
		}
		n += len(list.Items)
	}
	return n
}

// hammer sends requests over connections of its own, as cheaply as can be: what the clients take the server lacks. Before each it calls
// before, if there is one.
func hammer(b *testing.B, s *site, path func(*site, *rand.Rand) string, window time.Duration, before func()) load {
	b.Helper()
	var mu sync.Mutex
	var l load
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range apiClients {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(begin.UnixNano()), uint64(i)))
			conn, err := net.Dial("tcp", s.HTTPAddr)
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
				if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path(s, rng)); err != nil {
					b.Error(err)
					return
				}
				answer, err := http.ReadResponse(answers, nil)
				if err != nil {
					b.Error(err)
					return
				}
				if _, err := io.Copy(io.Discard, answer.Body); err != nil || answer.StatusCode != http.StatusOK {
					b.Errorf("%s: %d %v", path(s, rng), answer.StatusCode, err)
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
	health := routes[0]
	for _, r := range routes {
		over := func(f func(i int, n round) float64) float64 {
			all := make([]float64, len(r.rounds))
			for i, n := range r.rounds {
				all[i] = f(i, n)
			}
			return middle(all)
		}
		rate := over(func(_ int, n round) float64 { return n.kept[1].rate })
		fraction := over(func(i int, n round) float64 { return n.kept[1].rate / health.rounds[i].kept[1].rate })
		p99 := over(func(_ int, n round) float64 { return n.kept[1].percentile(99) })
		cost := over(func(_ int, n round) float64 { return n.cold[0].rate / n.cold[1].rate })
		var limits, missed []string
		limit := func(ok bool, format string, args ...any) {
			limits = append(limits, fmt.Sprintf(format, args...))
			if !ok {
				missed = append(missed, limits[len(limits)-1])
			}
		}
		switch {
		case r == health:
		case r.least == 0:
			limit(fraction >= 0.5, "≥ 0.5 of /health")
		default:
			limit(rate >= r.least, "≥ %.0f/s", r.least)
		}
		if r.slowest > 0 {
			limit(p99 <= float64(r.slowest.Milliseconds()), "p99 ≤ %v", r.slowest)
		}
		if r != health {
			limit(cost <= 1.3, "cost ≤ 1.3")
		}
		verdict := ""
		if len(missed) > 0 {
			verdict = "MISSED: " + strings.Join(missed, ", ")
		}
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.2f\t%.2f\t%.2f\t%.0f\t%.2f\t%s\t%s\n", r.name,
			over(func(_ int, n round) float64 { return n.kept[0].rate }), rate, fraction,
			over(func(_ int, n round) float64 { return n.kept[1].percentile(50) }), p99,
			over(func(_ int, n round) float64 { return n.cold[1].rate }), cost, strings.Join(limits, ", "), verdict)
	}
	w.Flush()
}
