package hints

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/wheelrefinery/refinery/events"
)

const mostMatches = 100

// Build is what a hint's limits are compared with. What is empty is not known, and excludes no hint.
type Build struct{ Name, PythonTag, PlatformTag, Backend string }

// Match is the first line of a log that a hint matches.
type Match struct {
	Hint string
	Line int // from 1
	Text string
}

// Matcher finds hints in logs. It may be used by several goroutines.
type Matcher struct {
	list     []events.Hint
	patterns []*regexp.Regexp
}

// Compile makes a matcher for hints that Validate holds for.
func Compile(list []events.Hint) (*Matcher, error) {
	m := &Matcher{list: list}
	for _, h := range list {
		re, err := regexp.Compile(h.Pattern)
		if err != nil {
			return nil, fmt.Errorf("hint %s: %w", h.ID, err)
		}
		m.patterns = append(m.patterns, re)
	}
	return m, nil
}

// Match returns the first line for each hint that applies to b, in order of lines, at most 100.
func (m *Matcher) Match(b Build, log io.Reader) ([]Match, error) {
	found := []Match{}
	seen := map[int]bool{}
	r := bufio.NewReader(log)
	for n := 1; ; n++ {
		line, err := r.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read the log: %w", err)
		}
		line = strings.TrimRight(line, "\r\n")
		for i, re := range m.patterns {
			if !seen[i] && b.within(m.list[i].AppliesTo) && re.MatchString(line) {
				seen[i] = true
				found = append(found, Match{m.list[i].ID, n, strings.ToValidUTF8(line, "\uFFFD")})
				if len(found) == mostMatches {
					return found, nil
				}
			}
		}
		if err != nil {
			return found, nil
		}
	}
}

// within says whether a hint with these limits applies to b.
func (b Build) within(a events.AppliesTo) bool {
	return one(a.Platforms, b.PlatformTag, strings.HasPrefix) &&
		one(a.Arch, b.PlatformTag, strings.HasSuffix) &&
		one(a.PythonVersions, b.PythonTag, func(tag, v string) bool {
			return strings.TrimLeft(tag, "abcdefghijklmnopqrstuvwxyz") == strings.ReplaceAll(v, ".", "")
		}) &&
		one(a.BuildBackends, b.Backend, func(x, y string) bool { return x == y }) &&
		one(a.Packages, b.Name, func(x, y string) bool { return x == y })
}

func one(limits []string, known string, fits func(known, limit string) bool) bool {
	return len(limits) == 0 || known == "" || slices.ContainsFunc(limits, func(l string) bool { return fits(known, l) })
}
