package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/pgtest"
)

// queueBuilds has n builds wait, by the log itself.
func queueBuilds(t testing.TB, p *plane, n int) {
	t.Helper()
	for at := 0; at < n; at += 500 {
		var entries []eventlog.Entry
		for i := at; i < min(n, at+500); i++ {
			id := events.BuildID{Name: fmt.Sprint("queued-", i), Version: "1.0", PythonTag: "cp311", PlatformTag: "linux_x86_64"}
			entries = append(entries, eventlog.Entry{
				Outcome: eventlog.Outcome{Command: uuid.Must(uuid.NewV7()), Name: "queue", Stream: id.Stream(), Actor: "bench", Status: eventlog.Applied},
				Events:  []events.Event{events.BuildQueued{Priority: i % 5}},
			})
		}
		if _, err := p.log.Append(t.Context(), entries...); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.read.Wait(t.Context(), p.log.Head()); err != nil {
		t.Fatal(err)
	}
}

// leaseAll has workers lease from planes in turn until most jobs are leased or there are none, and returns how often each build was leased
// and how long each answer took, sorted.
func leaseAll(t testing.TB, workers, most int, planes ...*plane) (leased map[string]int, took []time.Duration) {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: workers}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	leased = map[string]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for n := range workers {
		wg.Go(func() {
			body, err := json.Marshal(api.LeaseRequest{
				Worker: "w" + strconv.Itoa(n), Slots: 1, PythonTag: "cp311", PlatformTag: "linux_x86_64", PythonVersion: "3.11.7",
				Kinds: []api.JobKind{api.JobKindBuild},
			})
			if err != nil {
				t.Error(err)
				return
			}
			url := planes[n%len(planes)].url() + "/worker/lease"
			for {
				begin := time.Now()
				answer, err := client.Post(url, "application/json", bytes.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				text, err := io.ReadAll(answer.Body)
				answer.Body.Close()
				if answer.StatusCode == http.StatusNoContent {
					return
				}
				var job api.Job
				if err == nil {
					err = json.Unmarshal(text, &job)
				}
				if err != nil || answer.StatusCode != http.StatusOK {
					t.Errorf("%d %v %s", answer.StatusCode, err, text)
					return
				}
				mu.Lock()
				leased[job.Build.Name]++
				took = append(took, time.Since(begin))
				enough := len(took) >= most
				mu.Unlock()
				if enough {
					return
				}
			}
		})
	}
	wg.Wait()
	slices.Sort(took)
	return leased, took
}

// BenchmarkLease has 64 workers lease over HTTP from 10,000 builds that wait. Limits: at least 500 leases a second, p99 at most 200 ms, no
// build twice.
func BenchmarkLease(b *testing.B) {
	for b.Loop() {
		p := startBench(b)
		queueBuilds(b, p, 10_000)
		leaseAll(b, 64, 64, p) // which registers the workers
		begin := time.Now()
		leased, took := leaseAll(b, 64, 5_000, p)
		rate := float64(len(took)) / time.Since(begin).Seconds()
		p99 := float64(took[len(took)*99/100].Microseconds()) / 1000
		b.ReportMetric(rate, "leases/s")
		b.ReportMetric(p99, "p99-ms")
		if rate < 500 || p99 > 200 || len(leased) != len(took) {
			b.Errorf("%.0f leases/s, p99 %.0f ms, %d leases of %d builds; the limits are 500, 200 and once each", rate, p99, len(took), len(leased))
		}
	}
}

// BenchmarkHandlers compares on each transport posts where one process handles the commands with posts where two do, beside one that does
// all else, in turns. Limit: not less, but for a twentieth that comes and goes with the machine. two-api/s is what two processes that each
// do everything take; on two cores, which one process fills, it is less.
func BenchmarkHandlers(b *testing.B) {
	const rounds, window = 5, 2 * time.Second
	const others = "writeapi,readapi,projector,policies,relay"
	for _, backend := range backends {
		b.Run(backend.name, func(b *testing.B) {
			for b.Loop() {
				start := func(roles ...string) []string {
					var c controlSettings
					backend.set(b, &c)
					return servers(b, c, roles...)
				}
				one, two, full := start(others, "handlers"), start(others, "handlers", "handlers"), start("", "")
				var rates [3][]float64
				for range rounds {
					rates[0] = append(rates[0], loadAt(b, one[0], 64, window, "", http.StatusCreated).rate)
					rates[1] = append(rates[1], loadAt(b, two[0], 64, window, "", http.StatusCreated).rate)
					var loads [2]load
					var wg sync.WaitGroup
					for i, url := range full {
						wg.Go(func() { loads[i] = loadAt(b, url, 32, window, "", http.StatusCreated) })
					}
					wg.Wait()
					rates[2] = append(rates[2], loads[0].rate+loads[1].rate)
				}
				one1, two1 := middle(rates[0]), middle(rates[1])
				b.ReportMetric(one1, "one/s")
				b.ReportMetric(two1, "two/s")
				b.ReportMetric(middle(rates[2]), "two-api/s")
				if two1 < 0.95*one1 {
					b.Errorf("two processes handle %.0f a second, one %.0f", two1, one1)
				}
			}
		})
	}
}

// servers starts a control-plane process for each of roles ("": all) on a durable Postgres, one folder and c's bus, and returns their
// addresses.
func servers(b *testing.B, c controlSettings, roles ...string) (urls []string) {
	b.Helper()
	dir, dsn := b.TempDir(), pgtest.DurableDSN(b)
	for _, r := range roles {
		p := &program{t: b, dir: dir, dsn: dsn, api: freeAddr(b), env: []string{
			"LOG_LEVEL=warn", "QUEUE_BACKEND=" + c.QueueBackend, "REDIS_URL=" + c.RedisURL, "KAFKA_BROKERS=" + c.KafkaBrokers,
		}}
		if r != "" {
			p.env = append(p.env, "ROLES="+r)
		}
		serve := p.command("serve")
		serve.Stderr = os.Stderr
		if err := serve.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			_ = serve.Process.Kill() // it has ended only where the benchmark has failed
			_ = serve.Wait()
		})
		urls = append(urls, "http://"+p.api)
	}
	for _, url := range urls {
		eventually(b, 30*time.Second, func() error {
			if status, body, err := get(url + "/ready"); err != nil || status != http.StatusOK {
				return fmt.Errorf("%d %s %w", status, body, err)
			}
			return nil
		})
	}
	return urls
}
