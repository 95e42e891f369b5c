package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/wheelrefinery/refinery/api"
)

// Whatever bytes come in whatever pieces: chunks are within their limit, hold whole lines of valid text, and nothing is lost or added.
func TestLogKeepsEverything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.SliceOf(rapid.SampledFrom([]string{"a", "\n", "€", "\U0001F600", "\xff", "\x00", "\r\n", strings.Repeat("é", 9000), "line\n"})).Draw(t, "text")
		input := strings.Join(text, "")
		var got bytes.Buffer
		next := 0
		l := &logStream{limit: 1 << 30, post: func(_ context.Context, chunk int, text string) error {
			if chunk != next || len(text) > maxChunk || !strings.HasSuffix(text, "\n") || !utf8.ValidString(text) || strings.ContainsRune(text, 0) {
				t.Fatalf("chunk %d (expected %d), %d bytes: %.100q", chunk, next, len(text), text)
			}
			next++
			got.WriteString(text)
			return nil
		}}
		for rest := input; rest != ""; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "n")
			l.write(t.Context(), []byte(rest[:n]))
			rest = rest[n:]
		}
		if err := l.finish(t.Context()); err != nil {
			t.Fatal(err)
		}
		flat := func(s string) string { return strings.NewReplacer("\n", "", "\r", "").Replace(s) }
		want := strings.ReplaceAll(flat(input), "\x00", "\uFFFD")
		want = strings.Join(strings.Split(strings.ToValidUTF8(want, "\uFFFD"), ""), "")
		squeeze := func(s string) string { // neighbouring bytes that are no text become one sign or more
			for strings.Contains(s, "\uFFFD\uFFFD") {
				s = strings.ReplaceAll(s, "\uFFFD\uFFFD", "\uFFFD")
			}
			return s
		}
		if squeeze(flat(got.String())) != squeeze(want) {
			t.Fatalf("got %.300q, want %.300q", got.String(), want)
		}
		if strings.Count(got.String(), "\n") != l.count() {
			t.Fatalf("%d lines, count says %d", strings.Count(got.String(), "\n"), l.count())
		}
	})
}

// Of a log over its limit, first and last lines are there in order, and what is missing is counted to the byte.
func TestLogCut(t *testing.T) {
	for _, lines := range []int{10, 100, 101, 110, 5000, 50_000} {
		var got strings.Builder
		l := &logStream{limit: 10 * 100, post: func(_ context.Context, _ int, text string) error { got.WriteString(text); return nil }}
		var input strings.Builder
		for n := range lines {
			fmt.Fprintf(&input, "%09d\n", n)
		}
		if err := l.copy(t.Context(), strings.NewReader(input.String()), nil); err != nil {
			t.Fatal(err)
		}
		if err := l.finish(t.Context()); err != nil {
			t.Fatal(err)
		}
		kept := strings.SplitAfter(got.String(), "\n")
		missing := 0
		kept = slices.DeleteFunc(kept, func(s string) bool {
			_, err := fmt.Sscanf(s, "[refinery] … %d bytes", &missing)
			return err == nil || s == ""
		})
		if len(kept)*10+missing != lines*10 {
			t.Errorf("%d lines: %d are there, %d bytes are said to be missing", lines, len(kept), missing)
		}
		if !slices.IsSorted(kept) || kept[0] != "000000000\n" || kept[len(kept)-1] != fmt.Sprintf("%09d\n", lines-1) {
			t.Errorf("%d lines: from %s to %s", lines, kept[0], kept[len(kept)-1])
		}
	}
}

// A post that fails ends the sending, is told at once, and the rest is read all the same.
func TestLogRefused(t *testing.T) {
	refusal := errors.New("no")
	l := &logStream{limit: 1 << 30, post: func(context.Context, int, string) error { return refusal }}
	r, w := io.Pipe()
	told := make(chan error, 1000)
	go func() {
		for range 1000 {
			fmt.Fprintln(w, strings.Repeat("x", 1000))
		}
		w.Close()
	}()
	if err := l.copy(t.Context(), r, func(err error) { told <- err }); !errors.Is(err, refusal) || len(told) == 0 {
		t.Errorf("%v, told %d times", err, len(told))
	}
}

// The lines are those of real builds that failed.
func TestClassify(t *testing.T) {
	for _, c := range []struct {
		line   string
		code   int
		class  api.Class
		reason string
	}{
		{"Error: pg_config executable not found.", 1, classMissingTool, "pg_config is missing"},
		{"./psycopg/psycopg.h:36:10: fatal error: libpq-fe.h: No such file or directory", 1, classMissingHeader, "the header libpq-fe.h is missing"},
		{"Exception: Can not find valid pkg-config name.", 1, classMissingLibrary, "pkg-config name"},
		{"Error: Please make sure the libxml2 and libxslt development packages are installed.", 1, classMissingLibrary, "libxml2"},
		{"../cairo/meson.build:31:12: ERROR: Dependency \"cairo\" not found (tried pkg-config and cmake)", 1, classMissingLibrary, "the library cairo is missing"},
		{"error: can't find Rust compiler", 1, classMissingTool, "Rust"},
		{"aiohttp/_websocket.c:198:12: fatal error: 'longintrepr.h' file not found", 1, classMissingHeader, "longintrepr.h"},
		{"AttributeError: 'build_ext' object has no attribute 'cython_sources'", 1, classBackend, "cython_sources"},
		{"src/x.c:4:1: error: unknown type name 'foo'", 1, classCompiler, "unknown type name"},
		{"error: command '/usr/bin/gcc' failed with exit code 1", 1, classCompiler, "gcc"},
		{"/usr/bin/ld: cannot find -lssl: No such file or directory", 1, classMissingLibrary, "the library ssl is missing"},
		{"gcc: fatal error: Killed signal terminated program cc1plus", 1, classOutOfMemory, "cc1plus"},
		{"MemoryError", 1, classOutOfMemory, "memory"},
		{"/bin/sh: 1: fork: Resource temporarily unavailable", 1, classOther, "processes"},
		{"OSError: [Errno 28] No space left on device", 1, classOther, "disk is full"},
		{"FileNotFoundError: [Errno 2] No such file or directory: 'cmake'", 1, classMissingTool, "cmake is missing"},
		{"error: command 'gcc' failed: No such file or directory", 1, classMissingTool, "gcc is missing"},
		{"error: could not compile `rpds` (lib) due to 1 previous error", 101, classCompiler, "rpds"},
		{"ModuleNotFoundError: No module named 'numpy'", 1, classBackend, "numpy"},
		{"nothing that is known", 3, classBackend, "ended with code 3"},
		{"nothing that is known", 137, classOutOfMemory, "killed"},
	} {
		log := append(slices.Repeat([]string{"building 'x' extension", "gcc -c x.c"}, 30), c.line, "", "ERROR: the build failed")
		if strings.HasPrefix(c.line, "nothing") {
			log = log[:len(log)-1]
		}
		f := classify(log, c.code)
		if f.Class != c.class || !strings.Contains(f.Reason, c.reason) || len(f.Evidence) != evidenceLines || strings.Contains(f.Reason, "$") {
			t.Errorf("%s: %s, %s, %d lines", c.line, f.Class, f.Reason, len(f.Evidence))
		}
	}
}
