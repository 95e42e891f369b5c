package readapi_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/wheelrefinery/refinery/projections"
)

// buildLog makes text like that of builds: commands of compilers, warnings, paths, addresses, over 20,000 names.
type buildLog struct {
	rng   *rand.Rand
	names []string
}

func newBuildLog() *buildLog {
	l := &buildLog{rng: rand.New(rand.NewPCG(1, 2))}
	for range 20_000 {
		name := ""
		for range 2 + l.rng.IntN(3) {
			name += string("bcdfghklmnprstvz"[l.rng.IntN(16)]) + string("aeiou"[l.rng.IntN(5)])
		}
		l.names = append(l.names, name)
	}
	return l
}

func (l *buildLog) name() string { return l.names[l.rng.IntN(len(l.names))] }

func (l *buildLog) line() string {
	a, b, c := l.name(), l.name(), l.name()
	switch l.rng.IntN(9) {
	case 0, 1, 2:
		return fmt.Sprintf("gcc -pthread -Wno-unused-result -Wsign-compare -DNDEBUG -g -fwrapv -O3 -Wall -fPIC -I/usr/include/python3.11 -I%s/include -c src/%s/%s.c -o build/temp.linux-x86_64-cpython-311/src/%s/%s.o", a, b, c, b, c)
	case 3:
		return fmt.Sprintf("src/%s/%s.c:%d:%d: warning: implicit declaration of function ‘%s_%s’ [-Wimplicit-function-declaration]", a, b, l.rng.IntN(5000), l.rng.IntN(80), b, c)
	case 4:
		return fmt.Sprintf("  %5d |     if (!PyArg_ParseTuple(args, \"O!O!|i:%s\", &%s_Type, &%s)) return NULL;", l.rng.IntN(5000), a, b, c)
	case 5:
		return fmt.Sprintf("copying src/%s/%s.py -> build/lib.linux-x86_64-cpython-311/%s", a, b, a)
	case 6:
		return fmt.Sprintf("adding '%s/%s.cpython-311-x86_64-linux-gnu.so' sha256=%016x%016x", a, b, l.rng.Uint64(), l.rng.Uint64())
	case 7:
		return fmt.Sprintf("[%d/%d] Building CXX object CMakeFiles/%s.dir/src/%s/%s.cpp.o", l.rng.IntN(900), 900, a, b, c)
	}
	return fmt.Sprintf("/usr/bin/ld: %s.o: in function `%s_%s': %s.c:(.text+0x%x)", a, a, b, a, l.rng.IntN(1<<20))
}

// BenchmarkSearch searches 1 GB of log text. Ingesting as much takes many minutes, so the rows are copied into the read table as the
// projection would write them, without its other tables, and indexed afterwards as a rebuild does. Each search is a request, the whole of it; figures
// are medians and maxima of 11 in milliseconds.
func BenchmarkSearch(b *testing.B) {
	const bytes, pieceBytes, perSegment = 1 << 30, 8 << 10, 2048
	for b.Loop() {
		f := start(b)
		exec := func(sql string) {
			if _, err := f.pool.Exec(b.Context(), sql); err != nil {
				b.Fatal(err)
			}
		}
		rows, err := f.pool.Query(b.Context(), `select indexdef, indexname from pg_indexes where schemaname = 'logs' and tablename = 'pieces' and indexname <> 'pieces_pkey'`)
		if err != nil {
			b.Fatal(err)
		}
		type index struct{ Def, Name string }
		indexes, err := pgx.CollectRows(rows, pgx.RowToStructByPos[index])
		if err != nil || len(indexes) < 5 {
			b.Fatal(indexes, err)
		}
		for _, i := range indexes {
			exec("drop index logs." + i.Name)
		}
		l, size, piece, line := newBuildLog(), 0, 0, 1
		at, begin := time.Now().Add(-24*time.Hour), time.Now()
		_, err = f.pool.CopyFrom(b.Context(), pgx.Identifier{"logs", "pieces"}, []string{
			"stream", "chunk", "piece", "first_line", "lines", "segment", "position", "time", "text", "name", "version", "python_tag", "platform_tag", "version_key", "attempt",
		}, pgx.CopyFromFunc(func() ([]any, error) {
			if size >= bytes {
				return nil, nil
			}
			if piece%256 == 0 {
				line = 1
			}
			var text strings.Builder
			first := line
			for text.Len() < pieceBytes-200 {
				text.WriteString(l.line() + "\n")
				line++
			}
			if n := piece % 40_000; n == 1234 {
				text.WriteString("error: Zyzzyva_Widget was not found\ntest failed: installation of the compiler package\n")
				line += 2
			}
			name := fmt.Sprintf("pkg-%d", piece/256)
			piece++
			size += text.Len()
			return []any{
				"log/" + name + "/1.0/cp311/linux_x86_64/1", piece / 8, piece % 8, first, line - first, piece / perSegment, piece, at.Add(time.Duration(piece) * time.Millisecond),
				text.String(), name, "1.0", "cp311", "linux_x86_64", projections.VersionKey("1.0"), 1,
			}, nil
		}))
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(begin).Seconds(), "copy-s")
		for _, i := range indexes {
			begin := time.Now()
			if exec(i.Def); strings.Contains(i.Def, "gin") {
				b.ReportMetric(time.Since(begin).Seconds(), "index-s")
			}
		}
		exec("vacuum analyze logs.pieces")
		var table, gin int64
		if err := f.pool.QueryRow(b.Context(), `select pg_total_relation_size('logs.pieces'), (select sum(pg_relation_size(indexrelid)) from pg_index join pg_class c on c.oid = indexrelid
			join pg_am a on a.oid = c.relam where indrelid = 'logs.pieces'::regclass and amname = 'gin')`).Scan(&table, &gin); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(table)/(1<<20), "table-MiB")
		b.ReportMetric(float64(gin)/(1<<20), "index-MiB")
		for _, c := range []struct {
			name, query string
			least, most int // hits of the first page
		}{
			{"rare", "q=zyzzyva_widget", 4, 4},
			{"rare-of-common-parts", "q=installation+of+the+compiler", 4, 4},
			{"absent", "q=quizzaciously", 0, 0},
			{"absent-of-common-parts", "q=warning:+function+building", 0, 0},
			{"common", "q=gcc&limit=50", 50, 50},
			{"common-500", "q=-Wimplicit-function&limit=500&context=2", 500, 500},
			{"common-in-package", "q=gcc&package=pkg-3&limit=50", 50, 50},
			{"no-trigram", "q=" + url.QueryEscape("&&&"), 0, 50},
			{"in-the-past", "q=gcc&to=" + url.QueryEscape(at.Add(10*time.Second).UTC().Format(time.RFC3339)), 50, 50},
		} {
			var took []float64
			for range 11 {
				w := httptest.NewRecorder()
				begin := time.Now()
				f.handler.ServeHTTP(w, httptest.NewRequestWithContext(b.Context(), http.MethodGet, "/logs/search?"+c.query, nil))
				took = append(took, float64(time.Since(begin).Microseconds())/1000)
				if n := strings.Count(w.Body.String(), `"position"`); w.Code != http.StatusOK || n < c.least || n > c.most {
					b.Errorf("%s: %d, %d hits, want %d to %d: %.300s", c.name, w.Code, n, c.least, c.most, w.Body)
				}
			}
			slices.Sort(took)
			b.ReportMetric(took[len(took)/2], c.name+"-ms")
			b.ReportMetric(took[len(took)-1], c.name+"-most-ms")
		}
		b.ReportMetric(0, "ns/op")
	}
}
