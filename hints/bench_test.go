package hints

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/wheelrefinery/refinery/events"
)

const (
	mostMatchTime   = 2 * time.Second // for 10,000 hints over 5 MB on one core
	mostCompileTime = time.Second
)

// compilerLog is n bytes as a build writes them: long commands, notes and warnings, now and then an error.
func compilerLog(n int) string {
	r := rand.New(rand.NewPCG(1, 2))
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		f := fmt.Sprintf("src/lib/part%d/file%d", r.IntN(50), r.IntN(2000))
		switch r.IntN(12) {
		default:
			fmt.Fprintf(&b, "gcc -pthread -B /opt/compiler_compat -Wsign-compare -DNDEBUG -fwrapv -O2 -Wall -fPIC -I/usr/include/python3.11 -Isrc/include -c %s.c -o build/temp.linux-x86_64-cpython-311/%s.o\n", f, f)
		case 0, 1:
			fmt.Fprintf(&b, "%s.c:%d:%d: warning: unused variable ‘value%d’ [-Wunused-variable]\n  %d |     int value%d = compute(context, %d);\n      |         ^~~~~~\n", f, i%900, i%70, i, i%900, i, i)
		case 2:
			fmt.Fprintf(&b, "In file included from %s.h:12,\n                 from %s.c:34:\n", f, f)
		case 3:
			fmt.Fprintf(&b, "%s.c:%d:10: fatal error: thing%d/part.h: No such file or directory\ncompilation terminated.\n", f, i%900, 100_000+r.IntN(900_000))
		case 4:
			fmt.Fprintf(&b, "copying %s.py -> build/lib.linux-x86_64-cpython-311/%s.py\n", f, f)
		case 5:
			fmt.Fprintf(&b, "/usr/bin/ld: cannot find -lthing%d: No such file or directory\n\x1b[31merror:\x1b[0m command '/usr/bin/gcc' failed with exit code 1\n", 100_000+r.IntN(900_000))
		}
	}
	return b.String()[:n] + "\nx.c:1:10: fatal error: thing0/part.h: No such file or directory\n/usr/bin/ld: cannot find -lthing1\n"
}

// manyHints has the given number of distinct patterns, of the forms that people write.
func manyHints(hints, patterns int) (list []events.Hint) {
	forms := []string{
		`fatal error: thing%d/\S+\.h: No such file or directory`,
		`(?i)cannot find -lthing%d\b`,
		`fatal error: (?:\S+/)?header%d\.hp{0,2}: No such file or directory`,
		`Package '?lib%d'?(?:, required by '.*',)? (?:was )?not found`,
		`^\s*(?:error|ERROR): .*module%d.*(?:missing|not found|is required)`,
		`ModuleNotFoundError: No module named '(?:pkg|project)%d(?:\.\w+)*'`,
		`[\w./+-]+:\d+:\d+: error: (?:unknown|undeclared) \w+ '?name%d'?`,
		`undefined reference to .?symbol%d`,
	}
	for i := range hints {
		n := i % patterns
		list = append(list, events.Hint{
			ID: fmt.Sprint("h", i), Pattern: fmt.Sprintf(forms[n%len(forms)], n), Severity: "error", Confidence: 0.9,
			AppliesTo: events.AppliesTo{Packages: []string{fmt.Sprint("p", i/patterns)}},
		})
	}
	return list
}

func TestBenchmarkedHintsAreValid(t *testing.T) {
	for _, h := range manyHints(100, 100) {
		if err := Validate(h); err != nil {
			t.Errorf("%s: %v", h.Pattern, err)
		}
	}
}

// processTime is what this process has had of a core, so that what else runs does not count.
func processTime(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkMatch is the work for one log of 5 MB: compiling apart, matching with every pattern still to be compiled, on one core.
func BenchmarkMatch(b *testing.B) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	log := compilerLog(5_000_000)
	for _, patterns := range []int{100, 10_000} {
		b.Run(fmt.Sprintf("hints=10000/patterns=%d", patterns), func(b *testing.B) {
			list := manyHints(10_000, patterns)
			var compiling, matching time.Duration
			var matches int
			b.ReportAllocs()
			for b.Loop() {
				start := processTime(b)
				m, err := Compile(list)
				if err != nil {
					b.Fatal(err)
				}
				compiled := processTime(b)
				found, err := m.Match(Build{Name: "p0"}, strings.NewReader(log))
				if err != nil || len(found) != 2 {
					b.Fatal(len(found), err)
				}
				compiling, matching, matches = max(compiling, compiled-start), max(matching, processTime(b)-compiled), len(found)
			}
			b.ReportMetric(compiling.Seconds(), "s/compile")
			b.ReportMetric(matching.Seconds(), "s/match")
			b.ReportMetric(float64(matches), "matches")
			if compiling > mostCompileTime || matching > mostMatchTime {
				b.Errorf("compiling took %v (limit %v), matching %v (limit %v)", compiling, mostCompileTime, matching, mostMatchTime)
			}
		})
	}
}
