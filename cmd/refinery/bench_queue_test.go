package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

// table prints figures, each beside its limit.
type table struct{ w *tabwriter.Writer }

func newTable(head string) table {
	t := table{tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)}
	fmt.Fprintln(t.w, head)
	return t
}

func (t table) row(what string, got float64, held bool, limit string) {
	verdict := ""
	if !held {
		verdict = "MISSED"
	}
	fmt.Fprintf(t.w, "%s\t%.2f\t%s\t%s\n", what, got, limit, verdict)
}

// BenchmarkQueue enqueues over HTTP with 16 connections, with the wait for the outcome and without, on two control planes side by side, one
// with 1,000 builds in its queue and one with 100,000; what a round adds is taken out again before the next. Then it reads pages of the
// long queue from Postgres. Medians of the rounds, beside GET /health of the same run.
func BenchmarkQueue(b *testing.B) {
	const rounds, window = 5, time.Second
	for b.Loop() {
		var planes [2]*plane
		for i, n := range []int{1_000, 100_000} {
			planes[i] = startBench(b)
			planes[i].fillQueue(b, n)
			planes[i].load(b, 16, window, "", http.StatusCreated)
			planes[i].drain(b, n)
		}
		debug.SetMemoryLimit(2 * debug.SetMemoryLimit(-1)) // there are two in this process
		var health []float64
		var wait, async [2]struct{ rate, p99 []float64 }
		for range rounds {
			health = append(health, planes[0].load(b, 16, window/2, "", http.StatusOK).rate)
			for i, p := range planes {
				n := []int{1_000, 100_000}[i]
				l := p.load(b, 16, window, "", http.StatusCreated)
				wait[i].rate, wait[i].p99 = append(wait[i].rate, l.rate), append(wait[i].p99, l.percentile(99))
				p.drain(b, n)
				l = p.load(b, 16, window, "respond-async", http.StatusAccepted)
				async[i].rate, async[i].p99 = append(async[i].rate, l.rate), append(async[i].p99, l.percentile(99))
				p.drain(b, n)
			}
		}
		t := newTable("what\tgot\tlimit\t")
		t.row("/health, /s", middle(health), true, "")
		for i, n := range []string{"1,000", "100,000"} {
			rate, p99 := middle(wait[i].rate), middle(wait[i].p99)
			t.row("enqueue with the wait, "+n+" queued, /s", rate, rate >= 1500, "≥ 1500")
			t.row("its p99, ms", p99, true, "")
			rate, p99 = middle(async[i].rate), middle(async[i].p99)
			t.row("enqueue without, "+n+" queued, /s", rate, rate >= 3000, "≥ 3000")
			t.row("its p99, ms", p99, p99 <= 30, "≤ 30")
		}
		ratio := middle(wait[0].rate) / middle(wait[1].rate)
		t.row("with the wait, cost of 100,000 queued", ratio, ratio <= 1.2, "≤ 1.2")
		ratio = middle(async[0].rate) / middle(async[1].rate)
		t.row("without, cost of 100,000 queued", ratio, ratio <= 1.2, "≤ 1.2")
		for _, limit := range []int{50, 500} {
			ms := planes[1].page(b, limit)
			t.row(fmt.Sprintf("/queue, page of %d of 100,000, nothing kept, p99 ms", limit), ms, ms <= 10, "≤ 10")
		}
		t.w.Flush()
	}
}

// queued is what a filled queue holds.
func queued(n int) events.BuildID {
	return events.BuildID{Name: fmt.Sprintf("queued-%d", n), Version: "1.0", PythonTag: "cp311", PlatformTag: "linux_x86_64"}
}

// fillQueue appends n builds that wait, in the priorities that a run's depth gives.
func (p *plane) fillQueue(b *testing.B, n int) {
	b.Helper()
	for from := 0; from < n; from += 500 {
		var entries []eventlog.Entry
		for i := range 500 {
			entries = append(entries, entryOf(queued(from+i).Stream(), 0, events.BuildPlanned{}, events.BuildQueued{Priority: (from + i) % 7}))
		}
		p.append(b, entries)
	}
	p.settle(b)
	// What autovacuum would soon do, now and not while it is measured.
	if _, err := p.pool.Exec(b.Context(), `vacuum analyze`); err != nil {
		b.Fatal(err)
	}
}

func (p *plane) append(b *testing.B, entries []eventlog.Entry) {
	b.Helper()
	results, err := p.log.Append(b.Context(), entries...)
	if err != nil {
		b.Fatal(err)
	}
	for _, r := range results {
		if r.Err != nil {
			b.Fatal(r.Err)
		}
	}
}

// settle waits until the read models have everything that was sent.
func (p *plane) settle(b *testing.B) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	if err := p.read.Wait(ctx, p.log.Head()); err != nil {
		b.Fatal(err)
	}
}

// drain waits until what was accepted is handled, and cancels what is queued beside the first n.
func (p *plane) drain(b *testing.B, n int) {
	b.Helper()
	for head := int64(-1); head != p.log.Head(); time.Sleep(100 * time.Millisecond) {
		head = p.log.Head()
	}
	p.settle(b)
	rows, err := p.pool.Query(b.Context(), `select name from queue.builds b join queue.entries e using (stream) where name like 'bench-%'`)
	if err != nil {
		b.Fatal(err)
	}
	defer rows.Close()
	var entries []eventlog.Entry
	for rows.Next() {
		id := queued(0)
		if err := rows.Scan(&id.Name); err != nil {
			b.Fatal(err)
		}
		entries = append(entries, entryOf(id.Stream(), 1, events.BuildCancelled{Reason: "measured"}))
	}
	if err := rows.Err(); err != nil {
		b.Fatal(err)
	}
	for len(entries) > 0 {
		most := min(len(entries), 500)
		p.append(b, entries[:most])
		entries = entries[most:]
	}
	p.settle(b)
	var left int
	if err := p.pool.QueryRow(b.Context(), `select count(*) from queue.entries`).Scan(&left); err != nil || left != n {
		b.Fatalf("%d are queued, want %d: %v", left, n, err)
	}
}

// page is the p99 in milliseconds of reading a page of the queue with nothing kept.
func (p *plane) page(b *testing.B, limit int) float64 {
	b.Helper()
	var l load
	for range 200 {
		p.log.Touch(p.read.Names()...)
		begin := time.Now()
		answer, err := http.Get(fmt.Sprintf("%s/queue?limit=%d", p.url(), limit))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, answer.Body); err != nil || answer.StatusCode != http.StatusOK {
			b.Fatal(answer.Status, err)
		}
		answer.Body.Close()
		l.latencies = append(l.latencies, time.Since(begin))
	}
	slices.Sort(l.latencies)
	return l.percentile(99)
}

// BenchmarkStart is how long a start takes until /ready says ok, with no hints but the program's own and with 10,000 more, which take
// turns.
func BenchmarkStart(b *testing.B) {
	const rounds, more = 5, 10_000
	for b.Loop() {
		var sites [2]struct {
			dsn, dir string
			ms       []float64
		}
		for i := range sites {
			sites[i].dsn, sites[i].dir = pgtest.DurableDSN(b), b.TempDir()
			p, _ := startReady(b, sites[i].dsn, sites[i].dir)
			for from := 0; i == 1 && from < more; from += 500 {
				var entries []eventlog.Entry
				for n := range 500 {
					h := events.Hint{
						ID: fmt.Sprintf("hint-%d", from+n), Pattern: fmt.Sprintf(`header-%d\.h: No such file or directory`, from+n), Severity: "error", Confidence: 0.6,
						Recipes: []events.Recipe{{Kind: "apt", Items: []string{"libheader-dev"}}},
					}
					entries = append(entries, entryOf(events.HintStream(h.ID), 0, events.HintSaved{Hint: h}))
				}
				p.append(b, entries)
			}
			p.settle(b)
			if err := p.stop(); err != nil {
				b.Fatal(err)
			}
		}
		for range rounds {
			for i := range sites {
				p, took := startReady(b, sites[i].dsn, sites[i].dir)
				sites[i].ms = append(sites[i].ms, float64(took.Microseconds())/1000)
				if err := p.stop(); err != nil {
					b.Fatal(err)
				}
			}
		}
		t := newTable("what\tgot\tlimit\t")
		none, with := middle(sites[0].ms), middle(sites[1].ms)
		t.row("start to ready, no hints stored, ms", none, true, "")
		t.row("start to ready, 10,000 hints stored, ms", with, with <= none+1000, "≤ 1000 more")
		t.w.Flush()
	}
}

// startReady starts a control plane and returns when /ready says ok.
func startReady(b *testing.B, dsn, dir string) (*plane, time.Duration) {
	b.Helper()
	begin := time.Now()
	p, err := startPlane(b.Context(), controlSettings{
		PostgresDSN: dsn, QueueBackend: "file", HTTPAddr: freeAddr(b), MaxAttempts: 3, KeepOutcomes: time.Hour,
	}, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	for {
		answer, err := http.Get(p.url() + "/ready")
		if err != nil {
			b.Fatal(err)
		}
		answer.Body.Close()
		if answer.StatusCode == http.StatusOK {
			return p, time.Since(begin)
		}
		if time.Since(begin) > time.Minute {
			b.Fatal("it is not ready after a minute")
		}
		time.Sleep(time.Millisecond)
	}
}
