package hints

import (
	"fmt"
	"math"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// Limits of a hint. They keep its event small and the work for a line bounded.
const (
	mostPattern  = 1_000 // bytes
	mostSize     = 1_000 // steps of the pattern with its repetitions spelt out
	mostNote     = 4_000 // bytes
	mostTags     = 20
	mostLimits   = 100 // items of each list of applies_to
	mostExamples = 20
	mostExample  = 4_000 // bytes
	mostRecipes  = 20
)

// Severities lists every severity of a hint.
var Severities = []string{"info", "warning", "error"}

var (
	idForm       = regexp.MustCompile(`^[A-Za-z0-9._-]{1,100}$`)
	tagForm      = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,49}$`)
	platformForm = regexp.MustCompile(`^[A-Za-z0-9_.]{1,100}$`) // part of a platform tag (PEP 425)
	pythonForm   = regexp.MustCompile(`^3\.[0-9]{1,2}$`)
	backendForm  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]{0,198}(:[A-Za-z_][A-Za-z0-9_.]*)?$`) // PEP 517
	nameForm     = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)                                   // PEP 503, normalised
)

// Validate says everything that is wrong with h, each reason with its pointer.
func Validate(h events.Hint) error {
	var k fault.Checks
	k.Check(idForm.MatchString(h.ID), "/id", "is not 1 to 100 letters, digits, '.', '_', '-'")
	re := checkPattern(&k, h.Pattern)
	checkList(&k, "/recipes", h.Recipes, mostRecipes, func(at string, r events.Recipe) { CheckRecipe(&k, at, r) })
	k.Check(text(h.Note, mostNote), "/note", "is longer than %d bytes or not text", mostNote)
	checkForms(&k, "/tags", h.Tags, mostTags, tagForm, "is not a tag: letters, digits, '.', '_', '-', at most 50")
	k.Check(slices.Contains(Severities, h.Severity), "/severity", "is not one of %s", strings.Join(Severities, ", "))
	a := h.AppliesTo
	checkForms(&k, "/applies_to/platforms", a.Platforms, mostLimits, platformForm, "is not the beginning of a platform tag (PEP 425)")
	checkForms(&k, "/applies_to/arch", a.Arch, mostLimits, platformForm, "is not the end of a platform tag (PEP 425)")
	checkForms(&k, "/applies_to/python_versions", a.PythonVersions, mostLimits, pythonForm, "is not a version of Python such as 3.11")
	checkForms(&k, "/applies_to/build_backends", a.BuildBackends, mostLimits, backendForm, "is not a build backend (PEP 517) such as setuptools.build_meta")
	checkForms(&k, "/applies_to/packages", a.Packages, mostLimits, nameForm, "is not a normalised project name (PEP 503)")
	k.Check(h.Confidence >= 0 && h.Confidence <= 1, "/confidence", "is not between 0 and 1")
	matched := len(h.Examples) == 0 || len(h.Examples) > mostExamples
	checkList(&k, "/examples", h.Examples, mostExamples, func(at, line string) {
		k.Check(text(line, mostExample) && !strings.Contains(line, "\n"), at, "is longer than %d bytes, not text, or more than one line", mostExample)
		matched = matched || re == nil || re.Match(plain([]byte(line)))
	})
	k.Check(matched, "/examples", "holds no line that the pattern matches")
	return k.Err()
}

// checkPattern returns the compiled pattern, or nil where something is wrong with it.
func checkPattern(k *fault.Checks, pattern string) *regexp.Regexp {
	const at = "/pattern"
	if pattern == "" || !text(pattern, mostPattern) {
		k.Check(false, at, "is empty, longer than %d bytes or not text", mostPattern)
		return nil
	}
	parsed, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		k.Check(false, at, "is not a regular expression (RE2): %s", reason(err))
		return nil
	}
	if size(parsed) > mostSize { // before compiling it, which is what costs
		k.Check(false, at, "is larger than %d steps with its repetitions spelt out: use smaller ones", mostSize)
		return nil
	}
	re, err := regexp.Compile(pattern)
	if err != nil {
		k.Check(false, at, "is not a regular expression (RE2): %s", reason(err))
		return nil
	}
	switch {
	case re.MatchString(""):
		k.Check(false, at, "matches the empty string, and so every line")
	case literals(parsed.Simplify()) == nil:
		k.Check(false, at, "needs no text of %d letters or more in a line: write out a word that is always there", leastLiteral)
	}
	return re
}

// size is about the number of instructions that the pattern is compiled to.
func size(re *syntax.Regexp) int {
	n := 1
	if re.Op == syntax.OpLiteral {
		n = len(re.Rune)
	}
	for _, s := range re.Sub {
		n += size(s)
	}
	if re.Op == syntax.OpRepeat {
		n *= max(re.Min+1, re.Max)
	}
	return min(n, math.MaxInt32)
}

// reason says what is wrong with a pattern, without the part of the pattern that syntax.Error quotes.
func reason(err error) string {
	if e, ok := err.(*syntax.Error); ok {
		return e.Code.String()
	}
	return "it cannot be compiled"
}

func checkForms(k *fault.Checks, at string, list []string, most int, form *regexp.Regexp, detail string) {
	checkList(k, at, list, most, func(at, s string) { k.Check(form.MatchString(s), at, "%s", detail) })
}

func checkList[T any](k *fault.Checks, at string, list []T, most int, check func(at string, item T)) {
	if len(list) > most {
		k.Check(false, at, "has more than %d items", most)
		return
	}
	for i, item := range list {
		check(fmt.Sprintf("%s/%d", at, i), item)
	}
}

// text says whether Postgres and JSON can hold s, and it is no longer than most bytes.
func text(s string, most int) bool {
	return len(s) <= most && utf8.ValidString(s) && !strings.Contains(s, "\x00")
}
