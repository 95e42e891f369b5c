package hints

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/coregx/ahocorasick"

	"github.com/wheelrefinery/refinery/events"
)

// Limits of matching.
const (
	mostMatches  = 100
	mostLine     = 16 << 10 // bytes of a line that are looked at
	mostText     = 1_000    // bytes of a line that are shown
	mostCompiled = 2_000    // patterns that are kept compiled
	mostStates   = 400_000  // bytes of literals that are looked for at once; a state of the automaton takes some 256
	mostKey      = 16       // bytes of a literal that are looked for at once
	gram         = 4        // bytes by which it is judged how rare a literal is
)

// Build is what a hint's limits are compared with. What is empty is not known, and excludes no hint.
type Build struct{ Name, PythonTag, PlatformTag, Backend string }

// Match is the first line of a log that a hint matches.
type Match struct {
	Hint string
	Line int    // from 1
	Text string // without escapes; of a long line the part that matched and some before it
}

// Matcher finds hints in logs. It may be used by several goroutines.
//
// Equal patterns are tried once. Which patterns a line is worth trying for is found out for all of them at once, by an automaton that looks
// for a literal of each.
type Matcher struct {
	list     []events.Hint
	groups   []*group
	keys     *ahocorasick.Automaton // nil: there is no group
	byKey    [][]int32              // the groups of each key
	compiled atomic.Int32
}

// group is the hints that have the same pattern.
type group struct {
	pattern string
	hints   []int32
	must    [][]string // as literals returns it
	key     int        // the list of must that the automaton looks for
	re      atomic.Pointer[regexp.Regexp]
}

// Compile makes a matcher of hints that Validate holds for. Others are left out: the error names them, and the matcher finds the rest.
func Compile(list []events.Hint) (*Matcher, error) {
	m := &Matcher{list: list}
	var bad []error
	groups := map[string]*group{}
	for i, h := range list {
		g := groups[h.Pattern]
		if g == nil {
			g = &group{pattern: h.Pattern}
			groups[h.Pattern] = g
			re, err := syntax.Parse(h.Pattern, syntax.Perl)
			if err == nil {
				g.must = literals(re.Simplify())
			}
			if g.must != nil {
				m.groups = append(m.groups, g)
			}
		}
		if g.must == nil {
			bad = append(bad, fmt.Errorf("hint %s: its pattern is no regular expression, or needs no text of a line", h.ID))
			continue
		}
		g.hints = append(g.hints, int32(i))
	}
	if len(m.groups) > 0 {
		if err := m.index(); err != nil {
			return nil, err
		}
	}
	return m, errors.Join(bad...)
}

// index chooses for each group the list of literals that the fewest other patterns share, of those the longest, and makes the automaton
// that looks for a piece of each.
func (m *Matcher) index() error {
	shared := map[string]int{}
	for _, g := range m.groups {
		for _, s := range slices.Concat(g.must...) {
			for piece := range pieces(s) {
				shared[piece]++
			}
		}
	}
	total := 0
	for _, g := range m.groups {
		best := math.MaxInt
		for i, list := range g.must {
			if n := cost(shared, list); n < best || n == best && len(list[0]) > len(g.must[g.key][0]) {
				g.key, best = i, n
			}
		}
		total += len(g.must[g.key])
	}
	size := min(mostKey, max(leastLiteral, mostStates/total))
	ids := map[string]int{}
	var keys []string
	for i, g := range m.groups {
		for _, s := range g.must[g.key] {
			at, _ := rarest(shared, s)
			at = max(0, min(at-(size-gram)/2, len(s)-size))
			key := s[at:min(at+size, len(s))]
			id, ok := ids[key]
			if !ok {
				id = len(keys)
				ids[key], keys, m.byKey = id, append(keys, key), append(m.byKey, nil)
			}
			m.byKey[id] = append(m.byKey[id], int32(i))
		}
	}
	var err error
	if m.keys, err = ahocorasick.NewBuilder().AddStrings(keys).Build(); err != nil {
		return fmt.Errorf("look for %d literals at once: %w", len(keys), err)
	}
	return nil
}

// pieces yields what a literal is judged by, with where it is.
func pieces(s string) iter.Seq2[string, int] {
	return func(yield func(string, int) bool) {
		for i := 0; i == 0 || i+gram <= len(s); i++ {
			if !yield(s[i:min(i+gram, len(s))], i) {
				return
			}
		}
	}
}

// rarest says where the piece of s is that the fewest literals share, and how many do.
func rarest(shared map[string]int, s string) (at, n int) {
	n = math.MaxInt
	for piece, i := range pieces(s) {
		if shared[piece] < n {
			at, n = i, shared[piece]
		}
	}
	return at, n
}

func cost(shared map[string]int, list []string) (sum int) {
	for _, s := range list {
		_, n := rarest(shared, s)
		sum += n
	}
	return sum
}

// Match returns the first line for each hint that applies to b, in order of lines, at most 100. The log may be any bytes.
func (m *Matcher) Match(b Build, log io.Reader) ([]Match, error) {
	found := []Match{}
	if m.keys == nil {
		return found, nil
	}
	done := make([]bool, len(m.groups)) // matched before
	tried := make([]int, len(m.groups)) // in which line last
	var folded []byte
	r := bufio.NewReaderSize(log, mostLine)
	for n := 1; ; n++ {
		line, err := r.ReadSlice('\n')
		if len(line) > 0 {
			line = plain(line)
			folded = fold(append(folded[:0], line...))
			var hit []int32
			for _, key := range m.keys.FindAllOverlapping(folded) {
				for _, i := range m.byKey[key.PatternID] {
					if !done[i] && tried[i] != n {
						tried[i] = n
						hit = append(hit, i)
					}
				}
			}
			slices.Sort(hit)
			for _, i := range hit {
				at := m.groups[i].find(m, line, folded)
				if at < 0 {
					continue
				}
				done[i] = true
				for _, h := range m.groups[i].hints {
					if b.within(m.list[h].AppliesTo) {
						found = append(found, Match{m.list[h].ID, n, shown(line, at)})
						if len(found) == mostMatches {
							return found, nil
						}
					}
				}
			}
		}
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = r.ReadSlice('\n')
		}
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read the log: %w", err)
		}
	}
}

// find says where the pattern matches the line, or -1.
func (g *group) find(m *Matcher, line, folded []byte) int {
	for _, list := range g.must {
		end := math.MaxInt
		for _, s := range list {
			if i := bytes.Index(folded[:min(end, len(folded))], []byte(s)); i >= 0 {
				end = i + len(s)
			}
		}
		if end > len(folded) {
			return -1
		}
		folded = folded[end:]
	}
	re := g.re.Load()
	if re == nil {
		if m.compiled.Add(1) > mostCompiled {
			m.compiled.Store(1)
			for _, g := range m.groups {
				g.re.Store(nil)
			}
		}
		re = regexp.MustCompile(g.pattern) // Compile has parsed it
		g.re.Store(re)
	}
	if at := re.FindIndex(line); at != nil {
		return at[0]
	}
	return -1
}

// escapes are the control sequences that colour a terminal, move its cursor and set its title.
var escapes = regexp.MustCompile(`\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~]|)`)

// plain is what of a line counts: without its end and without escapes.
func plain(line []byte) []byte {
	line = bytes.TrimRight(line, "\r\n")
	if bytes.IndexByte(line, 0x1b) < 0 {
		return line
	}
	return escapes.ReplaceAllLiteral(line, nil)
}

// shown is the line as text. A long one begins a little before at.
func shown(line []byte, at int) string {
	if len(line) > mostText {
		line = line[max(0, min(at-mostText/10, len(line)-mostText)):]
		line = line[:mostText]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(string(line), "\uFFFD"), "\x00", "\uFFFD")
}

// within says whether a hint with these limits applies to b.
func (b Build) within(a events.AppliesTo) bool {
	python := strings.TrimLeft(b.PythonTag, "abcdefghijklmnopqrstuvwxyz")
	if len(python) < 2 { // py3: any
		python = ""
	}
	platform := b.PlatformTag
	if platform == "any" {
		platform = ""
	}
	return one(a.Platforms, platform, strings.HasPrefix) &&
		one(a.Arch, platform, strings.HasSuffix) &&
		one(a.PythonVersions, python, func(known, limit string) bool { return known == strings.ReplaceAll(limit, ".", "") }) &&
		one(a.BuildBackends, b.Backend, func(known, limit string) bool {
			module, _, _ := strings.Cut(known, ":") // __legacy__ is an object of setuptools.build_meta
			return limit == known || limit == module
		}) &&
		one(a.Packages, b.Name, equal)
}

func one(limits []string, known string, fits func(known, limit string) bool) bool {
	return len(limits) == 0 || known == "" || slices.ContainsFunc(limits, func(l string) bool { return fits(known, l) })
}

func equal(a, b string) bool { return a == b }
