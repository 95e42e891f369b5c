package hints

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

func whole() events.Hint {
	return events.Hint{
		ID: "libpq.h_1-x", Pattern: `fatal error: (\S+/)?libpq-fe\.h`, Note: "install it", Tags: []string{"missing-header", "c++"[:1]}, Severity: "error", Confidence: 0.9,
		Recipes:   []events.Recipe{{Kind: "apt", Items: []string{"libpq-dev"}}, {Kind: "env", Items: []string{"A=b"}}},
		Examples:  []string{"no", "\x1b[1mx.c: fatal \x1b[0merror: libpq-fe.h"},
		AppliesTo: events.AppliesTo{Platforms: []string{"linux", "musllinux_1_2"}, Arch: []string{"x86_64"}, PythonVersions: []string{"3.9", "3.13"}, BuildBackends: []string{"setuptools.build_meta", "setuptools.build_meta:__legacy__"}, Packages: []string{"psycopg2", "zope-interface"}},
	}
}

func TestValidate(t *testing.T) {
	if err := Validate(whole()); err != nil {
		t.Fatal(err)
	}
	if err := Validate(events.Hint{ID: "a", Pattern: "abc", Severity: "info"}); err != nil {
		t.Errorf("the least: %v", err)
	}
	many := func(s string, n int) []string { return slices.Repeat([]string{s}, n) }
	for _, c := range []struct {
		pointer string
		spoil   func(*events.Hint)
	}{
		{"/id", func(h *events.Hint) { h.ID = "" }},
		{"/id", func(h *events.Hint) { h.ID = "a/b" }},
		{"/id", func(h *events.Hint) { h.ID = "a\n" }},
		{"/id", func(h *events.Hint) { h.ID = "ä" }},
		{"/id", func(h *events.Hint) { h.ID = strings.Repeat("a", 101) }},
		{"/pattern", func(h *events.Hint) { h.Pattern, h.Examples = "", nil }},
		{"/pattern", func(h *events.Hint) { h.Pattern = "secret(" }},
		{"/pattern", func(h *events.Hint) { h.Pattern = `secret\8` }},
		{"/pattern", func(h *events.Hint) { h.Pattern = `(?<=secret)libpq` }},
		{"/pattern", func(h *events.Hint) { h.Pattern = "secret{2000}" }},
		{"/pattern", func(h *events.Hint) { h.Pattern = "(secret){200}" }},
		{"/pattern", func(h *events.Hint) { h.Pattern = strings.Repeat("(secret|s?){999}", 50) }},
		{"/pattern", func(h *events.Hint) { h.Pattern = strings.Repeat("secret", 200) }},
		{"/pattern", func(h *events.Hint) { h.Pattern = "secret\x00" }},
		{"/pattern", func(h *events.Hint) { h.Pattern = "secret\xff" }},
		{"/pattern", func(h *events.Hint) { h.Pattern = "(libpq)?" }},
		{"/pattern", func(h *events.Hint) { h.Pattern = "l.*b.*" }},
		{"/pattern", func(h *events.Hint) { h.Pattern = "libpq|." }},
		{"/note", func(h *events.Hint) { h.Note = strings.Repeat("a", mostNote+1) }},
		{"/note", func(h *events.Hint) { h.Note = "a\x00" }},
		{"/tags", func(h *events.Hint) { h.Tags = many("a", mostTags+1) }},
		{"/tags/1", func(h *events.Hint) { h.Tags = []string{"a", ""} }},
		{"/tags/0", func(h *events.Hint) { h.Tags = []string{"two words"} }},
		{"/tags/0", func(h *events.Hint) { h.Tags = []string{strings.Repeat("a", 51)} }},
		{"/severity", func(h *events.Hint) { h.Severity = "" }},
		{"/severity", func(h *events.Hint) { h.Severity = "Error" }},
		{"/confidence", func(h *events.Hint) { h.Confidence = 1.01 }},
		{"/confidence", func(h *events.Hint) { h.Confidence = -0.01 }},
		{"/confidence", func(h *events.Hint) { h.Confidence = math.NaN() }},
		{"/confidence", func(h *events.Hint) { h.Confidence = math.Inf(1) }},
		{"/applies_to/platforms/0", func(h *events.Hint) { h.AppliesTo.Platforms = []string{"linux-gnu"} }},
		{"/applies_to/platforms", func(h *events.Hint) { h.AppliesTo.Platforms = many("linux", mostLimits+1) }},
		{"/applies_to/arch/1", func(h *events.Hint) { h.AppliesTo.Arch = []string{"x86_64", ""} }},
		{"/applies_to/python_versions/0", func(h *events.Hint) { h.AppliesTo.PythonVersions = []string{"3"} }},
		{"/applies_to/python_versions/0", func(h *events.Hint) { h.AppliesTo.PythonVersions = []string{"cp311"} }},
		{"/applies_to/build_backends/0", func(h *events.Hint) { h.AppliesTo.BuildBackends = []string{"../x"} }},
		{"/applies_to/packages/0", func(h *events.Hint) { h.AppliesTo.Packages = []string{"Psycopg2"} }},
		{"/examples", func(h *events.Hint) { h.Examples = []string{"nothing"} }},
		{"/examples", func(h *events.Hint) { h.Examples, h.Pattern = many("libpq", mostExamples+1), "libpq" }},
		{"/examples/1", func(h *events.Hint) { h.Examples[1] += "\nx" }},
		{"/examples/1", func(h *events.Hint) { h.Examples[1] += "\x00" }},
		{"/examples/1", func(h *events.Hint) { h.Examples[1] += strings.Repeat("a", mostExample) }},
		{"/recipes/1/items/0", func(h *events.Hint) { h.Recipes[1].Items = []string{"PATH=/x"} }},
		{"/recipes/0/kind", func(h *events.Hint) { h.Recipes[0].Kind = "brew" }},
		{"/recipes", func(h *events.Hint) { h.Recipes = slices.Repeat(h.Recipes, mostRecipes) }},
	} {
		h := whole()
		c.spoil(&h)
		var f *fault.Error
		if err := Validate(h); !errors.As(err, &f) || f.Code != fault.Invalid || len(f.Fields) != 1 || f.Fields[0].Pointer != c.pointer {
			t.Errorf("%+v: %v, want one reason at %s", h, err, c.pointer)
		} else if strings.Contains(f.Message, "secret") {
			t.Errorf("the pattern is echoed: %s", f.Message)
		}
	}
}

// Every reason is given at once.
func TestValidateSaysAll(t *testing.T) {
	var f *fault.Error
	err := Validate(events.Hint{Pattern: "(", Confidence: 2, Tags: []string{"", " "}, Examples: []string{"x"}, Recipes: []events.Recipe{{}, {Kind: "apt", Items: []string{"-y"}}}})
	if !errors.As(err, &f) || len(f.Fields) != 8 {
		t.Errorf("%+v", f)
	}
	if !strings.Contains(f.Message, "and 7 more") {
		t.Error(f.Message)
	}
}
