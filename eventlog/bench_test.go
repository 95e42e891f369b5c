package eventlog_test

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

// BenchmarkAppend measures appends of one event a command by many writers, each beside what it is compared with in the same run: one
// transaction for each event under the lock, and a bare "insert … select unnest" in batches of 256 without streams, outcomes or
// positions. Figures are medians of nine short rounds, since what else the machine does comes and goes.
func BenchmarkAppend(b *testing.B) {
	const rounds, window = 9, 500 * time.Millisecond
	for b.Loop() {
		debug.SetGCPercent(300) // as cmd/refinery does
		pool := pgtest.Durable(b)
		l := open(b, pool)
		// A server that has run for a while writes into WAL files that are there; a new one must make each, 16 MiB at a time.
		if _, err := pool.Exec(b.Context(), `create table filler as select repeat(md5(i::text), 20) from generate_series(1, 600000) i; drop table filler; checkpoint`); err != nil {
			b.Fatal(err)
		}
		var single, bare, w64, w256, p50, p99 []float64
		for range rounds {
			single = append(single, oneByOne(b, pool, window))
			bare = append(bare, bareInsert(b, pool, window))
			rate, lat := writers(b, l, 64, window)
			w64 = append(w64, rate)
			p50 = append(p50, lat[len(lat)/2].Seconds()*1000)
			p99 = append(p99, lat[len(lat)*99/100].Seconds()*1000)
			rate, _ = writers(b, l, 256, window)
			w256 = append(w256, rate)
		}
		s, f := median(single), median(bare)
		b.ReportMetric(s, "single/s")
		b.ReportMetric(f, "bare/s")
		b.ReportMetric(median(w64), "64w/s")
		b.ReportMetric(median(w256), "256w/s")
		b.ReportMetric(median(w64)/s, "64w/single")
		b.ReportMetric(median(w64)/f, "64w/bare")
		b.ReportMetric(median(w256)/s, "256w/single")
		b.ReportMetric(median(p50), "p50-ms")
		b.ReportMetric(median(p99), "p99-ms")
	}
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// queued is an event of the size that is common.
func queued() events.BuildQueued {
	return events.BuildQueued{
		Run: uuid.New(), Priority: 3,
		Sdist: &events.File{Filename: "markupsafe-3.0.2.tar.gz", URL: "https://files.example/packages/markupsafe-3.0.2.tar.gz", SHA256: fmt.Sprintf("%064x", 7)},
	}
}

func writers(b *testing.B, l *eventlog.Log, n int, window time.Duration) (rate float64, latencies []time.Duration) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	start := time.Now()
	for w := range n {
		wg.Go(func() {
			var own []time.Duration
			for i := 0; time.Since(start) < window; i++ {
				e := entry(fmt.Sprintf("build/p%d-%d-%s/1/cp311/any", w, i, start.Format("150405.000")), 0, 0)
				e.Events = []events.Event{queued()}
				t0 := time.Now()
				if r, err := l.Append(context.Background(), e); err != nil || r[0].Err != nil {
					b.Error(err, r)
					return
				}
				own = append(own, time.Since(t0))
			}
			mu.Lock()
			latencies = append(latencies, own...)
			mu.Unlock()
		})
	}
	wg.Wait()
	rate = float64(len(latencies)) / time.Since(start).Seconds()
	slices.Sort(latencies)
	return rate, latencies
}

// oneByOne is what an append without group commit gives: 16 writers, each event in a transaction of its own under the lock.
func oneByOne(b *testing.B, pool *pgxpool.Pool, window time.Duration) float64 {
	if _, err := pool.Exec(b.Context(), `create table if not exists single (like events including all); create table if not exists single_head as select 0::bigint as position`); err != nil {
		b.Fatal(err)
	}
	data, err := events.Encode(queued())
	if err != nil {
		b.Fatal(err)
	}
	var count atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for w := range 16 {
		wg.Go(func() {
			for i := 0; time.Since(start) < window; i++ {
				tx, err := pool.Begin(b.Context())
				if err != nil {
					b.Error(err)
					return
				}
				_, err = tx.Exec(b.Context(), `select pg_advisory_xact_lock(1)`)
				if err == nil {
					_, err = tx.Exec(b.Context(), `with h as (update single_head set position = position + 1 returning position)
						insert into single select position, $1, 1, 'build.queued.v1', $2, $3, $3, 0, 'tester', now() from h`,
						fmt.Sprintf("build/p%d-%d/1/cp311/any", w, i), data, uuid.Must(uuid.NewV7()))
				}
				if err == nil {
					err = tx.Commit(b.Context())
				}
				if err != nil {
					b.Error(err)
					return
				}
				count.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(count.Load()) / time.Since(start).Seconds()
}

// bareInsert is the limit: the same rows into a table like events, 256 a statement, and nothing else.
func bareInsert(b *testing.B, pool *pgxpool.Pool, window time.Duration) float64 {
	if _, err := pool.Exec(b.Context(), `create table if not exists bare (like events including all)`); err != nil {
		b.Fatal(err)
	}
	var position int64
	if err := pool.QueryRow(b.Context(), `select coalesce(max(position), 0) from bare`).Scan(&position); err != nil {
		b.Fatal(err)
	}
	data, err := events.Encode(queued())
	if err != nil {
		b.Fatal(err)
	}
	start, n := time.Now(), 0
	for time.Since(start) < window {
		var positions []int64
		var streams, datas []string
		var commands []uuid.UUID
		for range 256 {
			position++
			positions = append(positions, position)
			streams = append(streams, fmt.Sprintf("build/p%d-%d-%s/1/cp311/any", position%64, position/64, start.Format("150405.000")))
			datas = append(datas, string(data))
			commands = append(commands, uuid.Must(uuid.NewV7()))
		}
		_, err := pool.Exec(b.Context(), `insert into bare select p, s, 1, 'build.queued.v1', d::json, c, c, 0, 'tester', now()
			from unnest($1::bigint[], $2::text[], $3::text[], $4::uuid[]) u(p, s, d, c)`, positions, streams, datas, commands)
		if err != nil {
			b.Fatal(err)
		}
		n += 256
	}
	return float64(n) / time.Since(start).Seconds()
}
