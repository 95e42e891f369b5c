package readapi_test

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// BenchmarkReads reads over 20,000 builds with a queue of 5,000, one request at a time, beside GET /health, which costs what the
// middleware costs. fraction is how often it reaches the rate of /health.
func BenchmarkReads(b *testing.B) {
	f := start(b)
	f.fill(20_000)
	deep := f.cursorAt("/history?limit=500", 30)
	health := 0.0
	for _, c := range []struct{ name, path string }{
		{"health", "/health"},
		{"summary", "/summary"},
		{"queue-stats", "/queue/stats"},
		{"recent", "/recent"},
		{"history-by-package", "/history?package=pkg-7"},
		{"history-first", "/history"},
		{"history-deep", "/history?cursor=" + deep},
		{"build", "/builds/pkg-0/1.0/cp39/linux_x86_64"},
		{"log-tail", "/logs/logged/1.0?tail=50"},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				w := httptest.NewRecorder()
				f.handler.ServeHTTP(w, httptest.NewRequestWithContext(b.Context(), http.MethodGet, c.path, nil))
				if w.Code != http.StatusOK {
					b.Fatal(w.Code, w.Body)
				}
			}
			each := float64(b.Elapsed().Nanoseconds()) / float64(b.N)
			if c.name == "health" {
				health = each
			}
			b.ReportMetric(health/each, "fraction")
			b.ReportMetric(each/1e3, "µs/read")
			b.ReportMetric(0, "ns/op")
		})
	}
	b.Run("not-modified", func(b *testing.B) {
		w := httptest.NewRecorder()
		f.handler.ServeHTTP(w, httptest.NewRequestWithContext(b.Context(), http.MethodGet, "/history", nil))
		for b.Loop() {
			r := httptest.NewRequestWithContext(b.Context(), http.MethodGet, "/history", nil)
			r.Header.Set("If-None-Match", w.Header().Get("ETag"))
			w := httptest.NewRecorder()
			if f.handler.ServeHTTP(w, r); w.Code != http.StatusNotModified {
				b.Fatal(w.Code)
			}
		}
	})
}

// cursorAt is the cursor behind so many pages.
func (f *fixture) cursorAt(path string, pages int) string {
	f.t.Helper()
	next := ""
	for range pages {
		at := path
		if next != "" {
			at += "&cursor=" + next
		}
		var ok bool
		if next, ok = pick(f.expect(at, http.StatusOK), "next").(string); !ok {
			f.t.Fatal("the list is too short")
		}
	}
	return next
}
