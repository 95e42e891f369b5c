package hints

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/wheelrefinery/refinery/events"
)

func withPatterns(patterns ...string) (list []events.Hint) {
	for i, p := range patterns {
		list = append(list, events.Hint{ID: fmt.Sprint("h", i), Pattern: p, Severity: "error", Confidence: 0.9})
	}
	return list
}

func mustCompile(t testing.TB, list []events.Hint) *Matcher {
	t.Helper()
	m, err := Compile(list)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func mustMatch(t testing.TB, m *Matcher, b Build, log string) []Match {
	t.Helper()
	found, err := m.Match(b, strings.NewReader(log))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestMatch(t *testing.T) {
	m := mustCompile(t, withPatterns(`fatal error: (\S+)\.h`, `(?i)killed`, `^make: \*\*\*`, `fatal error: (\S+)\.h`, `no such (file|folder)$`))
	for _, c := range []struct {
		name, log string
		want      []Match
	}{
		{"the first line of each, in order of lines", "cc -c x.c\nmake: *** [x] Killed\nx.c:1: fatal error: a.h: no such file\nfatal error: b.h\n", []Match{
			{"h1", 2, "make: *** [x] Killed"},
			{"h2", 2, "make: *** [x] Killed"},
			{"h0", 3, "x.c:1: fatal error: a.h: no such file"},
			{"h3", 3, "x.c:1: fatal error: a.h: no such file"},
			{"h4", 3, "x.c:1: fatal error: a.h: no such file"},
		}},
		{"anchors are those of the line", "x make: ***\nno such file or\n", []Match{}},
		{"a last line without an end", "\n\nKILLED", []Match{{"h1", 3, "KILLED"}}},
		{"ends of Windows", "no such folder\r\n", []Match{{"h4", 1, "no such folder"}}},
		{"colours", "\x1b[1;31mfatal \x1b[0merr\x1b[Kor: a\x1b]0;title\x07.h\x1b[0m\n\x1b(Bno such file\x1b[m\n", []Match{
			{"h0", 1, "fatal error: a.h"}, {"h3", 1, "fatal error: a.h"}, {"h4", 2, "no such file"},
		}},
		{"an escape that does not end", "killed\x1b[\n\x1b]0;killed again\nkilled\x1b", []Match{{"h1", 1, "killed"}}},
		{"letters that fold to others", "\u212ailled\n", []Match{{"h1", 1, "\u212ailled"}}},
		{"what is no text", "\xff\x00killed\xc3\n", []Match{{"h1", 1, "\uFFFD\uFFFDkilled\uFFFD"}}},
		{"nothing", "", []Match{}},
	} {
		if diff := cmp.Diff(c.want, mustMatch(t, m, Build{}, c.log)); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", c.name, diff)
		}
	}
	if found := mustMatch(t, mustCompile(t, nil), Build{}, "killed"); found == nil || len(found) != 0 {
		t.Errorf("%#v", found)
	}
}

// A line without an end costs neither memory nor the lines after it.
func TestMatchLongLines(t *testing.T) {
	m := mustCompile(t, withPatterns(`killed`, `second`, `third`, `fourth`))
	long := strings.Repeat("x", mostLine)
	found := mustMatch(t, m, Build{}, long[100:]+"killed"+long+" second\nsecond\n"+strings.Repeat("y", 3*mostLine)+"\n"+long[5:]+"third\n"+long[4:]+"fourth")
	if len(found) != 3 || found[2].Line != 4 || found[0].Line != 1 || found[1] != (Match{"h1", 2, "second"}) {
		t.Fatalf("%d: %.200v", len(found), found)
	}
	if text := found[0].Text; len(text) != mostText || !strings.Contains(text, "xkilledx") {
		t.Errorf("the text does not show what matched: %d bytes", len(text))
	}
	if found := mustMatch(t, m, Build{}, strings.Repeat("\xff", 5000)+"second"); len(found) != 1 || len(found[0].Text) > 3*mostText {
		t.Errorf("%d", len(found[0].Text))
	}
}

func TestMatchStopsAtTheLimit(t *testing.T) {
	var patterns []string
	var log strings.Builder
	for i := range 2 * mostMatches {
		patterns = append(patterns, fmt.Sprintf("line %d ends", i))
		fmt.Fprintf(&log, "line %d ends\n", i)
	}
	found := mustMatch(t, mustCompile(t, withPatterns(patterns...)), Build{}, log.String())
	if len(found) != mostMatches || found[mostMatches-1] != (Match{"h99", 100, "line 99 ends"}) {
		t.Errorf("%d: %+v", len(found), found)
	}
	same := withPatterns(slices.Repeat([]string{"always"}, 2*mostMatches)...)
	if found := mustMatch(t, mustCompile(t, same), Build{}, "always"); len(found) != mostMatches {
		t.Errorf("%d", len(found))
	}
}

func TestMatchLimits(t *testing.T) {
	whole := Build{"lxml", "cp311", "musllinux_1_2_x86_64", "setuptools.build_meta"}
	for _, c := range []struct {
		limits events.AppliesTo
		build  Build
		want   bool
	}{
		{events.AppliesTo{}, whole, true},
		{events.AppliesTo{Platforms: []string{"win", "musllinux"}}, whole, true},
		{events.AppliesTo{Platforms: []string{"linux"}}, whole, false},
		{events.AppliesTo{Platforms: []string{"win"}}, Build{PlatformTag: "any"}, true},
		{events.AppliesTo{Arch: []string{"x86_64"}}, whole, true},
		{events.AppliesTo{Arch: []string{"s390x", "aarch64"}}, whole, false},
		{events.AppliesTo{PythonVersions: []string{"3.10", "3.11"}}, whole, true},
		{events.AppliesTo{PythonVersions: []string{"3.1"}}, whole, false},
		{events.AppliesTo{PythonVersions: []string{"3.12"}}, Build{PythonTag: "py3"}, true},
		{events.AppliesTo{PythonVersions: []string{"3.12"}}, Build{PythonTag: "py312"}, true},
		{events.AppliesTo{BuildBackends: []string{"setuptools.build_meta"}}, whole, true},
		{events.AppliesTo{BuildBackends: []string{"mesonpy"}}, whole, false},
		{events.AppliesTo{BuildBackends: []string{"setuptools.build_meta:__legacy__"}}, whole, false},
		{events.AppliesTo{BuildBackends: []string{"setuptools.build_meta"}}, Build{Backend: "setuptools.build_meta:__legacy__"}, true},
		{events.AppliesTo{Packages: []string{"lxml"}}, whole, true},
		{events.AppliesTo{Packages: []string{"lx"}}, whole, false},
		{events.AppliesTo{Packages: []string{"lxml"}, Arch: []string{"s390x"}}, whole, false},
		{events.AppliesTo{Platforms: []string{"a"}, Arch: []string{"a"}, PythonVersions: []string{"3.9"}, BuildBackends: []string{"a"}, Packages: []string{"a"}}, Build{}, true},
	} {
		list := withPatterns("killed", "killed")
		list[0].AppliesTo = c.limits
		want := []Match{{"h1", 1, "killed"}}
		if c.want {
			want = []Match{{"h0", 1, "killed"}, {"h1", 1, "killed"}}
		}
		if diff := cmp.Diff(want, mustMatch(t, mustCompile(t, list), c.build, "killed")); diff != "" {
			t.Errorf("%+v for %+v: (-want +got)\n%s", c.limits, c.build, diff)
		}
	}
}

func TestMatchReadError(t *testing.T) {
	m := mustCompile(t, withPatterns("killed"))
	gone := errors.New("gone")
	if found, err := m.Match(Build{}, io.MultiReader(strings.NewReader("killed\nx"), iotest.ErrReader(gone))); !errors.Is(err, gone) {
		t.Errorf("%v, %v", found, err)
	}
	if found, err := m.Match(Build{}, iotest.OneByteReader(strings.NewReader("a\nkilled\n"))); err != nil || len(found) != 1 || found[0].Line != 2 {
		t.Errorf("%v, %v", found, err)
	}
}

// A hint that no Validate has seen is left out and named; the others are found.
func TestCompileLeavesOut(t *testing.T) {
	m, err := Compile(withPatterns(`(`, `killed`, `.*`))
	if err == nil || !strings.Contains(err.Error(), "h0") || !strings.Contains(err.Error(), "h2") || strings.Contains(err.Error(), "h1") {
		t.Errorf("%v", err)
	}
	if found := mustMatch(t, m, Build{}, "killed"); len(found) != 1 || found[0].Hint != "h1" {
		t.Errorf("%+v", found)
	}
}

// More patterns than are kept compiled, by several goroutines at once.
func TestMatchForgetsCompiledPatterns(t *testing.T) {
	var patterns []string
	var log strings.Builder
	for i := range 3 * mostCompiled {
		patterns = append(patterns, fmt.Sprintf(`^line %d\.$`, i))
		fmt.Fprintf(&log, "line %d.!\n", i)
	}
	log.WriteString("line 7.\n")
	m := mustCompile(t, withPatterns(patterns...))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if found := mustMatch(t, m, Build{}, log.String()); len(found) != 1 || found[0].Hint != "h7" {
				t.Errorf("%+v", found)
			}
		})
	}
	wg.Wait()
	kept := 0
	for _, g := range m.groups {
		if g.re.Load() != nil {
			kept++
		}
	}
	if kept > mostCompiled+4 {
		t.Errorf("%d patterns are kept compiled", kept)
	}
}

func TestLiterals(t *testing.T) {
	for pattern, want := range map[string]string{
		`abc`:                         "abc",
		`ab`:                          "",
		`a.c`:                         "",
		`ab+c`:                        "",
		`(?i)KILLED`:                  "killed",
		`abc|abd|xyz`:                 "abc|abd|xyz",
		`abc|x`:                       "",
		`gr[ae]y`:                     "gray|grey",
		`colou?r`:                     "color|colour",
		`foo.*bar.+bazz`:              "foo bar bazz",
		`(foo|barbaz) not found`:      "foo not found|barbaz not found",
		`(?:foo)+x`:                   "foo",
		`(?:foo){2,3}`:                "foofoo",
		`(?:foo)*bar`:                 "bar",
		`^\bpg_config\b$`:             "pg_config",
		`[a-z]+ing`:                   "ing",
		`(?i)é+tude`:                  "tude",
		`(?i)straße`:                  "stra",
		`étude`:                       "étude",
		"a\uFFFDbcd":                  "bcd",
		`(.*foo.*|bar.*bazz)`:         "foo|bazz",
		`\d{3}`:                       "",
		`abc(x|y|.*)`:                 "abc",
		`abc(d|abc)?`:                 "abc",
		`[^\x00-\x{10FFFF}]abc`:       "abc",
		`(?i)[^k]ks\x{212a}\x{17f}`:   "ksks",
		`([a-z]|[0-9])abc`:            "abc",
		`(a|b|c)(d|e|f)(g|h|i)(j|kl)`: "adg|adh|adi|aeg|aeh|aei|afg|afh|afi|bdg|bdh|bdi|beg|beh|bei|bfg|bfh|bfi|cdg|cdh|cdi|ceg|ceh|cei|cfg|cfh|cfi",
	} {
		re, err := syntax.Parse(pattern, syntax.Perl)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, list := range literals(re.Simplify()) {
			slices.SortFunc(list, func(a, b string) int {
				if len(a) != len(b) {
					return len(a) - len(b)
				}
				return strings.Compare(a, b)
			})
			got = append(got, strings.Join(list, "|"))
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: %q, want %q", pattern, s, want)
		}
	}
}

// The automaton must never hide a match: what is found is what each pattern by itself finds in each line.
func FuzzMatch(f *testing.F) {
	f.Add("fatal error: (\\S+)\\.h\n(?i)killed|signal 9\n^make: \\*+", []byte("cc\nx: fatal error: a.h\nmake: *** KILLED\n"))
	f.Add("(?i)straße\n(?i)kassel\nſtr|abc", []byte("STRAẞE\n\u212aaſſel\nſtr\nABC"))
	f.Add("a\uFFFDbcd\n\\x{fffd}abc", []byte("a\xffbcd\n\xfe\xffabc\xc3"))
	f.Add("(foo|bar)?baz+\n(?s)x.yyy\n(a|b|c|d)(e|f|g|h)(i|j|k|l)", []byte("foobazz\nx\ryyy\naei\r\nbfj"))
	f.Add("abc\nabcd\nbcd\nbcde.*abc\ncde", []byte("abcde\nxabcdxx\nbcdeabc"))
	f.Add("(?U)ab{2,5}c$\n[[:alpha:]]{3}foo\n\\Qa.b\\E", []byte("abbbc\n\x1b[31mxyzfoo\x1b[m\na.b"))
	f.Fuzz(func(t *testing.T, patterns string, log []byte) {
		var list []events.Hint
		for _, p := range strings.Split(patterns, "\n")[:min(20, strings.Count(patterns, "\n")+1)] {
			h := events.Hint{ID: fmt.Sprint("h", len(list)), Pattern: p, Severity: "info"}
			if Validate(h) == nil {
				list = append(list, h)
			}
		}
		m := mustCompile(t, list)
		got, err := m.Match(Build{}, bytes.NewReader(log))
		if err != nil {
			t.Fatal(err)
		}
		want := []Match{}
		seen := map[string]bool{}
		for n, line := range bytes.Split(log, []byte("\n")) {
			line = plain(line[:min(len(line), mostLine)])
			for _, h := range list {
				if at := regexp.MustCompile(h.Pattern).FindIndex(line); at != nil && !seen[h.ID] {
					seen[h.ID] = true
					want = append(want, Match{h.ID, n + 1, shown(line, at[0])})
				}
			}
		}
		less := func(a, b Match) int {
			if a.Line != b.Line {
				return a.Line - b.Line
			}
			return strings.Compare(a.Hint, b.Hint)
		}
		slices.SortFunc(got, less)
		slices.SortFunc(want, less)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: (-want +got)\n%s", patterns, diff)
		}
	})
}
