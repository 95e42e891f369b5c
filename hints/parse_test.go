package hints

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

func mustParse(t testing.TB, data string) []Entry {
	t.Helper()
	entries, err := Parse([]byte(data))
	if err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	return entries
}

func TestParseForms(t *testing.T) {
	least := events.Hint{ID: "a", Pattern: "abc", Severity: "error", Confidence: 0.6}
	derived := events.Hint{ID: "pattern-" + "ba7816bf8f01cfea", Pattern: "abc", Severity: "error", Confidence: 0.6} // SHA-256 of abc
	packages := derived
	packages.Recipes = []events.Recipe{{Kind: "apt", Items: []string{"x-dev", "y-dev"}}, {Kind: "dnf", Items: []string{"x-devel"}}}
	full := whole()
	full.ID, full.Examples = "full", []string{"fatal error: libpq-fe.h"}
	for _, c := range []struct {
		name, data string
		want       []events.Hint
	}{
		{"a list in YAML", "- id: a\n  pattern: abc\n", []events.Hint{least}},
		{"a list in JSON", `[{"id": "a", "pattern": "abc"}]`, []events.Hint{least}},
		{"JSON with escapes that YAML lacks", `[{"id":"a","pattern":"a\/\ud83d\ude00bc"}]`, []events.Hint{{ID: "a", Pattern: "a/😀bc", Severity: "error", Confidence: 0.6}}},
		{"hints in YAML", "hints:\n- {id: a, pattern: abc}\n", []events.Hint{least}},
		{"hints in JSON", `{"hints": [{"id": "a", "pattern": "abc"}]}`, []events.Hint{least}},
		{"errors in YAML", "errors:\n- pattern: abc\n  packages:\n    dnf: [x-devel]\n    apt: [x-dev, y-dev]\n", []events.Hint{packages}},
		{"errors in JSON", `{"errors": [{"pattern": "abc", "packages": {"dnf": "x-devel", "apt": ["x-dev", "y-dev"]}}]}`, []events.Hint{packages}},
		{"an id from the pattern", "- pattern: abc", []events.Hint{derived}},
		{"confidence as a word", "- {id: a, pattern: abc, confidence: high}\n- {id: b, pattern: abcd, confidence: low}\n- {id: c, pattern: abcde, confidence: medium}", []events.Hint{
			{ID: "a", Pattern: "abc", Severity: "error", Confidence: 0.9},
			{ID: "b", Pattern: "abcd", Severity: "error", Confidence: 0.3},
			{ID: "c", Pattern: "abcde", Severity: "error", Confidence: 0.6},
		}},
		{"confidence as a number", "- {id: a, pattern: abc, confidence: 0}\n- {id: b, pattern: abcd, confidence: .25}\n- {id: c, pattern: abcde, confidence: 1e-1}", []events.Hint{
			{ID: "a", Pattern: "abc", Severity: "error"},
			{ID: "b", Pattern: "abcd", Severity: "error", Confidence: 0.25},
			{ID: "c", Pattern: "abcde", Severity: "error", Confidence: 0.1},
		}},
		{"versions that look like numbers", "- {id: 1.10, pattern: 3.10 is, applies_to: {python_versions: [3.10, '3.9'], packages: a1}}", []events.Hint{{
			ID: "1.10", Pattern: "3.10 is", Severity: "error", Confidence: 0.6,
			AppliesTo: events.AppliesTo{PythonVersions: []string{"3.10", "3.9"}, Packages: []string{"a1"}},
		}}},
		{"nothing", "[]", nil},
		{"no hints", "hints: []", nil},
	} {
		entries := mustParse(t, c.data)
		var got []events.Hint
		for i, e := range entries {
			if e.Err != nil || e.Index != i {
				t.Errorf("%s: %+v", c.name, e)
			}
			got = append(got, e.Hint)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", c.name, diff)
		}
	}
	for _, form := range []any{[]events.Hint{full}, map[string]any{"hints": []events.Hint{full}}} {
		data, err := json.Marshal(form)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]Entry{{Hint: full}}, mustParse(t, string(data))); diff != "" {
			t.Errorf("what events hold is not read back: (-want +got)\n%s", diff)
		}
	}
}

// A bad entry is refused by itself, with every reason and its pointer.
func TestParseBadEntries(t *testing.T) {
	data := `
- {id: good, pattern: abc}
- {id: a b, pattern: abc(, severity: bad}
- just text
- {id: x1, pattern: abcd, colour: red, "what\nis": this}
- {id: [x], pattern: {a: b}, tags: {}, recipes: text, applies_to: [], note: true, examples: [[]], confidence: often, severity: 7}
- {id: x2, pattern: abcd, recipes: {apt: [x-dev], brew: [x]}}
- {id: x3, pattern: abcd, recipes: [{kind: apt, items: [-y], because: no}], applies_to: {os: [linux]}}
- {id: x4, pattern: abcd, packages: {apt: [x-dev]}}
- {id: x5, pattern: abcd, confidence: 2}
- {id: x6, pattern: abcd, confidence: .nan}
- {id: x7, pattern: abcd, confidence: }
- {}
-
- {id: also-good, pattern: abcd, confidence: "high", examples: abcde}
`
	want := [][]string{
		nil,
		{"/id", "/pattern", "/severity"},
		{""},
		{"/colour", ""},
		{"/applies_to", "/confidence", "/examples/0", "/id", "/note", "/pattern", "/recipes", "/severity", "/tags"},
		{"/recipes/brew"},
		{"/applies_to/os", "/recipes/0/because", "/recipes/0/items/0"},
		{"/packages"},
		{"/confidence"},
		{"/confidence"},
		{"/confidence"},
		{"/pattern"},
		{""},
		nil,
	}
	for i, e := range mustParse(t, data) {
		var f *fault.Error
		if want[i] == nil {
			if e.Err != nil {
				t.Errorf("%d: %v", i, e.Err)
			}
			continue
		}
		if !errors.As(e.Err, &f) || f.Code != fault.Invalid {
			t.Errorf("%d: %v", i, e.Err)
			continue
		}
		for _, pointer := range want[i] {
			if !strings.Contains(pointers(f), " "+strings.TrimSuffix(pointer, "?")+" ") {
				t.Errorf("%d: no reason at %q: %+v", i, pointer, f.Fields)
			}
		}
		for _, field := range f.Fields {
			if !strings.Contains(" "+strings.ReplaceAll(strings.Join(want[i], " "), "?", "")+" ", " "+field.Pointer+" ") && field.Pointer != "" {
				t.Errorf("%d: unexpected %+v", i, field)
			}
		}
	}
}

func pointers(f *fault.Error) string {
	s := " "
	for _, field := range f.Fields {
		s += field.Pointer + " "
	}
	return s
}

func TestParseDuplicates(t *testing.T) {
	entries := mustParse(t, `
- {id: a, pattern: abc(}
- {id: a, pattern: abc}
- {id: a, pattern: abcd}
- {id: b, pattern: abc}
- {id: c, pattern: abc, applies_to: {packages: [x]}}
- {id: d, pattern: abc, applies_to: {packages: [x]}, note: another}
- {id: b, pattern: abcde}
- pattern: xyz
- pattern: xyz
`)
	for i, want := range []string{
		"/pattern: is not a regular expression", "", "/id: is the id of entry 1", "/pattern: is that of entry 1", "", "/pattern: is that of entry 4", "", "", "/id: is the id of entry 7",
	} {
		switch err := entries[i].Err; {
		case want == "" && err != nil:
			t.Errorf("%d: %v", i, err)
		case want != "" && (err == nil || !strings.HasPrefix(err.Error(), want)):
			t.Errorf("%d: %v, want %s", i, err, want)
		case i > 0 && want != "" && fault.CodeOf(err) != fault.Conflict:
			t.Errorf("%d: %s", i, fault.CodeOf(err))
		}
	}
}

func TestParseRefusesTheWhole(t *testing.T) {
	bomb := "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
	for c := 'b'; c <= 'k'; c++ {
		bomb += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c, ", c-1), 10), ", "))
	}
	for _, c := range []struct {
		name, data string
		code       fault.Code
	}{
		{"nothing", "", fault.Invalid},
		{"a comment", "# hints\n", fault.Invalid},
		{"text", "hints", fault.Invalid},
		{"null", "null", fault.Invalid},
		{"a mapping of something else", "{things: []}", fault.Invalid},
		{"two lists", "{hints: [], errors: []}", fault.Invalid},
		{"hints that are no list", "{hints: {a: b}}", fault.Invalid},
		{"broken YAML", "- a: [b", fault.Invalid},
		{"broken JSON", `[{"id": "a"`, fault.Invalid},
		{"two documents", "- pattern: abc\n---\n- pattern: abcd\n", fault.Invalid},
		{"two values", "[] []", fault.Invalid},
		{"bytes that are no text", "- pattern: \xff\xfe\n", fault.Invalid},
		{"a binary file", "\x7fELF\x02\x01\x01\x00", fault.Invalid},
		{"an alias", "- &x {pattern: abc}\n- *x\n", fault.Invalid},
		{"an alias of nothing", "- *" + strings.Repeat("secret", 100), fault.Invalid},
		{"an alias bomb", bomb, fault.Invalid},
		{"a merge of itself", "a: &a\n  <<: *a\n", fault.Invalid},
		{"deep YAML", strings.Repeat("- ", 100), fault.Invalid},
		{"very deep", strings.Repeat("[", mostData/2) + strings.Repeat("]", mostData/2), fault.TooLarge},
		{"very deep YAML", strings.Repeat("- ", mostMarks/2), fault.Invalid},
		{"millions of nodes", "- {" + strings.Repeat("?,", mostMarks) + "}", fault.TooLarge},
		{"twice the same key", "- {id: a, id: b, pattern: abc}", fault.Invalid},
		{"a list as a key", "? [a]\n: b\n", fault.Invalid},
		{"too many", strings.Repeat("- a\n", mostEntries+1), fault.TooLarge},
		{"too many in JSON", "[" + strings.Repeat("1,", mostEntries) + "1]", fault.TooLarge},
		{"too large", strings.Repeat(" ", mostData+1), fault.TooLarge},
	} {
		entries, err := Parse([]byte(c.data))
		if err == nil || fault.CodeOf(err) != c.code {
			t.Errorf("%s: %d entries, %v", c.name, len(entries), err)
		} else if len(err.Error()) > 300 || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %.400s", c.name, err)
		}
	}
	if entries, err := Parse([]byte(strings.Repeat("- a\n", mostEntries))); err != nil || len(entries) != mostEntries {
		t.Errorf("%d, %v", len(entries), err)
	}
}

// Whatever comes: no panic, good entries are valid, and are read back from their JSON as they are.
func FuzzParse(f *testing.F) {
	f.Add([]byte("- id: a\n  pattern: 'abc'\n  recipes: {apt: [x-dev]}\n  applies_to: {python_versions: [3.10]}\n"))
	f.Add([]byte(`{"hints": [{"id": "a", "pattern": "abc", "recipes": [{"kind": "env", "items": ["A=b"]}], "confidence": "low", "examples": ["xabc"]}]}`))
	f.Add([]byte("errors:\n- pattern: abc\n  packages: {dnf: [x-devel], apt: x-dev}\n- pattern: abc\n"))
	f.Add([]byte("- &x {pattern: abc}\n- *x\n- <<: *x\n"))
	f.Add([]byte("- {pattern: \"a\\u0000b\", tags: [1, 2.0, ~, true], confidence: .inf}\n- !!binary aGVsbG8=\n- 2001-01-01\n"))
	f.Add([]byte("? a\n: - b\n"))
	f.Add([]byte("%YAML 1.2\n--- |\n  text\n...\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := Parse(data)
		if err != nil {
			if c := fault.CodeOf(err); c != fault.Invalid && c != fault.TooLarge {
				t.Fatalf("%s: %v", c, err)
			}
			return
		}
		for i, e := range entries {
			if e.Index != i {
				t.Fatalf("entry %d says that it is %d", i, e.Index)
			}
			if e.Err != nil {
				continue
			}
			if err := Validate(e.Hint); err != nil {
				t.Fatalf("%+v: %v", e.Hint, err)
			}
			again, err := json.Marshal([]events.Hint{e.Hint})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]Entry{{Hint: e.Hint}}, mustParse(t, string(again))); diff != "" {
				t.Fatalf("(-want +got)\n%s", diff)
			}
		}
	})
}
